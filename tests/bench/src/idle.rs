//! Private memory and processor time of shim and agent with idle containers.

use crate::figure::Figure;
use anyhow::Context;
use coracle_tests::board::{Board, REGISTRY};
use coracle_tests::image::Image;
use std::time::Duration;

const QUIET: Duration = Duration::from_secs(120);

/// Memory of the start is given back before this.
const SETTLED: Duration = coracle_runtime::memory::QUIET.saturating_mul(2);

pub fn run() -> anyhow::Result<Vec<Figure>> {
    let mut board = Board::new()?;
    board.start_registry("")?;
    board.push(&Image::busybox()?, "app:1")?;
    board.start_agent()?;
    let with = |services: usize| -> anyhow::Result<[f64; 2]> {
        let mut text = String::from("services:\n");
        for number in 0..services {
            text.push_str(&format!(
                "  s{number}: {{image: \"{REGISTRY}/app:1\", stop_grace_period: 0s, command: sleep 100000}}\n"
            ));
        }
        board.compose(&text)?;
        board.coracle(&["up", "-d"])?;
        let pids = pids(&board)?;
        std::thread::sleep(SETTLED);
        let sum = |field| pids.iter().map(|pid| kib(*pid, field).unwrap_or(f64::NAN)).sum();
        Ok([sum("Pss:"), sum("Pss_Anon:")])
    };
    let [five, private] = with(5)?;
    let pids_before = pids(&board)?;
    std::thread::sleep(SETTLED);
    let (cpu, switches) = (cpu_seconds(&pids_before)?, switches(&pids_before)?);
    std::thread::sleep(QUIET);
    let cpu = (cpu_seconds(&pids_before)? - cpu) / QUIET.as_secs_f64() * 100.0;
    let wakeups = (self::switches(&pids_before)? - switches) / QUIET.as_secs_f64() * 60.0;
    let [fifteen, private_fifteen] = with(15)?;
    drop(board);
    Ok(vec![
        Figure::of("pss_mib", "MiB", &[five / 1024.0]),
        Figure::of("private_mib", "MiB", &[private / 1024.0]),
        Figure::of("per_container_kib", "KiB", &[(fifteen - five) / 10.0]),
        Figure::of("private_per_container_kib", "KiB", &[(private_fifteen - private) / 10.0]),
        Figure::of("cpu_percent", "%", &[cpu]),
        Figure::of("wakeups_per_minute", "1/min", &[wakeups]),
    ])
}

/// Agent and shim.
fn pids(board: &Board) -> anyhow::Result<[i64; 2]> {
    let document: serde_json::Value = serde_json::from_str(&board.coracle(&["inspect"])?)?;
    let pid = |name: &str| document["agent"][name].as_i64().with_context(|| format!("no {name}"));
    Ok([pid("pid")?, pid("shim_pid")?])
}

/// A field of `/proc/PID/smaps_rollup` (proc_pid_smaps(5)).
fn kib(pid: i64, field: &str) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Processor time of two processes, of their ended threads too (proc(5), `stat`, in ticks of 10 ms).
fn cpu_seconds(pids: &[i64]) -> anyhow::Result<f64> {
    let mut ticks = 0.0;
    for pid in pids {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name may hold anything; fields are counted behind it.
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        ticks += fields.get(11).context("no utime")?.parse::<f64>()?
            + fields.get(12).context("no stime")?.parse::<f64>()?;
    }
    Ok(ticks / 100.0)
}

/// Times that the main threads went to sleep by themselves: each was woken before. Other threads end when idle.
fn switches(pids: &[i64]) -> anyhow::Result<f64> {
    let mut count = 0.0;
    for pid in pids {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count += line.context("no switches")?.trim().parse::<f64>()?;
    }
    Ok(count)
}

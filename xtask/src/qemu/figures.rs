//! `cargo xtask bench board --board SLUG`: what a board with Coracle needs.

use super::{Given, Lab, demo, is, number, outside};
use crate::cross;
use crate::image::board::Board;
use crate::image::{self, Options};
use anyhow::Context;
use std::path::Path;
use std::time::Duration;

/// A boot with a minute without work in it, translated.
const LONGEST: Duration = Duration::from_secs(600);

/// Ticks of `/proc/PID/stat` in a second (`USER_HZ`).
const TICKS: f64 = 100.0;
/// Seconds in which nothing is done, in the script.
const IDLE_S: f64 = 60.0;

const MIB: f64 = 1_048_576.0;

/// Boots it twice on one card: a first time for the release to be pulled, a second time to be measured.
///
/// # Errors
/// What cannot be built, and a board that does not do it.
pub fn bench(board: &'static Board, json: Option<&Path>) -> anyhow::Result<()> {
    let program = cross::build(board.target)?;
    let binary = std::fs::metadata(&program)?.len();
    let slot = image::build(board, Options::default(), "image")?.root_bytes;
    let bare = image::build(board, Options { network: false, ..Options::default() }, "bare")?.root_bytes;
    let given = Given { name: "figures", script: include_str!("../../../tests/qemu/figures.sh"), modules: &[] };
    let mut lab = Lab::new(board, given, |_, _, share| {
        std::fs::write(share.join("idle.yaml"), include_str!("../../../tests/qemu/idle.yaml"))?;
        demo::compose(share)
    })?;
    let hello = cross::hello(board.target)?;
    let card = lab.card("card.img")?;
    let answers = outside(|outside| {
        demo::push(&lab.parts, outside, &hello)?;
        let first = lab.boot(1, &card, "", LONGEST)?;
        let right = is(&first.answers, "up", "0")
            .and_then(|()| is(&first.answers, "page", "Hello from a container. The clock says"));
        right.with_context(|| first.said.join("\n"))?;
        let second = lab.boot(2, &card, "", LONGEST)?;
        let right = is(&second.answers, "up", "0").and_then(|()| number(&second.answers, "private"));
        right.with_context(|| second.said.join("\n"))?;
        if let Some(memory) = board.least_memory_mib {
            lab.memory_mib = Some(memory);
            let third = lab.boot(3, &card, "", LONGEST)?;
            for (name, wanted) in [
                ("lacks", ""),
                ("up", "0"),
                ("page", "Hello from a container. The clock says"),
                ("address", "inet 10.0.2.15"),
                ("running", "2"),
                ("killed", "0"),
            ] {
                is(&third.answers, name, wanted).with_context(|| third.said.join("\n"))?;
            }
        }
        Ok(second.answers)
    })?;
    let figures = serde_json::json!({
        "board": board.slug,
        "binary_mib": binary as f64 / MIB,
        "root_slot_mib": slot as f64 / MIB,
        "root_slot_without_network_mib": bare as f64 / MIB,
        "boot_to_service_s": number(&answers, "service")?,
        "boot_to_agent_s": number(&answers, "agent")?,
        "private_mib": number(&answers, "private")? / 1024.0,
        "network_private_mib": number(&answers, "network private")? / 1024.0,
        "available_mib": number(&answers, "available")? / 1024.0,
        "least_memory_mib": board.least_memory_mib,
        "idle_cpu_percent": number(&answers, "idle ticks")? / TICKS / IDLE_S * 100.0,
    });
    let text = serde_json::to_string_pretty(&figures)?;
    println!("{text}");
    json.map_or(Ok(()), |path| Ok(std::fs::write(path, format!("{text}\n"))?))
}

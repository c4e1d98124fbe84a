//! `cargo xtask qemu --board SLUG --storm`: an hour in which programs and services end ten times a second. The first
//! process keeps its memory, no zombie is left, and a service beside them goes on.

use super::emulator::Turn;
use super::{Answers, Given, Lab, is, outside};
use crate::image::board::Board;
use anyhow::{Context, ensure};
use std::time::Duration;

/// An hour of the board's time; where there is nothing to do it goes on at once.
const LONGEST: Duration = Duration::from_secs(3600);

/// KiB by which private memory may differ after an hour: of the first process, of shim and agent. A page more or less
/// is the kernel's doing; a leak of a byte for each end would be 36 KiB.
const MORE: [u64; 3] = [16, 256, 512];

/// Ends that an hour has at least.
const ENDS: u64 = 36_000;

/// Makes the storm.
///
/// # Errors
/// What it breaks.
pub fn storm(board: &'static Board) -> anyhow::Result<()> {
    ensure!(board.takes_words(), "{}: an hour is too long for its loader", board.slug);
    let given = Given { name: "storm", script: include_str!("../../../tests/qemu/storm.sh"), modules: &[] };
    let lab = Lab::new(board, given, |parts, _, share| {
        std::fs::write(share.join("storm.yaml"), include_str!("../../../tests/qemu/storm.yaml"))?;
        parts.app()?.write(&share.join("hello"))
    })?;
    let card = lab.card("storm.img")?;
    outside(|_| {
        let heard = lab.turn_on(1, &Turn::new(&card), LONGEST)?;
        for (name, value) in &heard.answers {
            println!("  {name}: {value}");
        }
        judge(&heard.answers).with_context(|| heard.said.join("\n"))
    })
}

/// Private KiB of the three, zombies, processes begun so far, and the steady service's count of seconds.
fn look(answers: &Answers, name: &str) -> anyhow::Result<([u64; 3], u64, u64, u64)> {
    let text = answers.get(name).with_context(|| format!("it does not say {name}"))?;
    let numbers: Vec<u64> = text.split([' ', ',']).filter_map(|it| it.parse().ok()).collect();
    match numbers[..] {
        [first, shim, agent, zombies, forks, count, ..] => Ok(([first, shim, agent], zombies, forks, count)),
        _ => anyhow::bail!("{name}: {text}"),
    }
}

fn judge(answers: &Answers) -> anyhow::Result<()> {
    let (_, _, begun, started) = look(answers, "minute 0")?;
    let (early, ..) = look(answers, "minute 5")?;
    let (late, zombies, forks, count) = look(answers, "minute 60")?;
    ensure!(forks - begun >= ENDS, "{} ends are no storm", forks - begun);
    for ((before, after), more) in early.into_iter().zip(late).zip(MORE) {
        ensure!(after <= before + more, "private memory went from {before} to {after} KiB");
    }
    ensure!(zombies == 0, "{zombies} zombies");
    // It counts seconds, and each takes a little longer.
    ensure!(count - started > 3000, "the steady service counted {} seconds in an hour", count - started);
    for (name, wanted) in [("steady is the same", "yes"), ("answers", "there"), ("safe", "0")] {
        is(answers, name, wanted)?;
    }
    Ok(())
}

//! Boots a board three times on one card and asks it what a user relies on.

use super::{Answers, Given, Lab, is, number, outside};
use crate::cross;
use crate::image::board::Board;
use anyhow::{Context, ensure};
use std::path::Path;
use std::time::Duration;

/// One boot with all that is asked in it, translated, on a machine that does other things too.
const LONGEST_BOOT: Duration = Duration::from_secs(420);

/// The boot in which whole suites of tests run.
const LONGEST_SUITES: Duration = Duration::from_secs(1200);

/// Everything. `attacks`: tests for root that ask nothing of a machine but its kernel.
pub const ALL: Questions = Questions { suites: &["attacks"], radio: true };

/// What is asked of an emulated board beside the questions that all are asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Questions {
    /// Suites of tests that run there.
    pub suites: &'static [&'static str],
    /// It has radios, which the kernel plays (`mac80211_hwsim`): one is an access point.
    pub radio: bool,
}

/// Boots it.
///
/// # Errors
/// What is not as a user relies on.
pub fn test(board: &'static Board, questions: Questions) -> anyhow::Result<()> {
    let modules: &[&str] = if questions.radio { &["mac80211_hwsim"] } else { &[] };
    let given = Given { name: "test", script: include_str!("../../../tests/qemu/board.sh"), modules };
    let lab = Lab::new(board, given, |parts, add, share| {
        std::fs::write(share.join("compose.yaml"), include_str!("../../../tests/qemu/compose.yaml"))?;
        std::fs::write(share.join("suites"), questions.suites.join("\n"))?;
        parts.app()?.write(&share.join("hello"))?;
        let preload = add.with_extension("preload");
        std::fs::create_dir_all(preload.join("images"))?;
        std::fs::write(preload.join("compose.yaml"), include_str!("../../../tests/qemu/preload.yaml"))?;
        parts.app()?.named("hello:0").write(&preload.join("images/hello"))?;
        suites(board, questions.suites, share)?;
        if board.watchdog_works {
            std::fs::write(share.join("watchdog"), "")?;
        }
        if questions.radio { access_point(add, share) } else { Ok(()) }
    })?;
    println!("{}: root slot {:.1} MiB", board.slug, lab.image.root_bytes as f64 / f64::from(1 << 20));
    let card = lab.card("card.img")?;
    outside(|outside| {
        outside.push(&lab.parts.app()?, "hello:2")?;
        for boot in 1..=if board.watchdog_works { 4 } else { 3 } {
            let longest = if boot == 3 { LONGEST_SUITES } else { LONGEST_BOOT };
            let heard = lab.boot(boot, &card, "", longest)?;
            let judged = match boot {
                1 => first_boot(&heard.answers),
                2 => second_boot(&heard.answers, questions),
                3 => third_boot(&heard.answers, questions.suites),
                _ => fourth_boot(&heard.answers),
            };
            judged.with_context(|| heard.said.join("\n"))?;
        }
        Ok(())
    })
}

fn first_boot(answers: &Answers) -> anyhow::Result<()> {
    for (name, wanted) in [
        ("lacks", ""),
        ("slot", "PARTITION=2"),
        ("root", "squashfs ro"),
        ("swap", "1"),
        ("address", "inet 10.0.2.15"),
        ("names", "1"),
        ("preloaded", "there"),
        ("preload left", "compose.yaml"),
        ("pull", "0"),
        ("import", "0"),
        ("up", "0"),
        ("running", "3"),
        ("network in services", "served"),
        ("limit", "0"),
        ("others", "there there"),
        ("adopted", "same"),
        ("shim again", "yes"),
    ] {
        is(answers, name, wanted)?;
    }
    // 512 MiB less what is before it.
    ensure!(number(answers, "data")? > 150.0, "the data partition did not grow");
    ensure!(number(answers, "clock")? >= 2025.0, "the clock is before the image");
    let controllers = answers.get("controllers").context("controllers")?;
    ensure!(["cpu", "io", "memory", "pids"].iter().all(|it| controllers.contains(it)), "{controllers}");
    Ok(())
}

fn second_boot(answers: &Answers, questions: Questions) -> anyhow::Result<()> {
    for (name, wanted) in [("lacks", ""), ("kept", "kept"), ("orderly", "in order"), ("replayed", "0")] {
        is(answers, name, wanted)?;
    }
    ensure!(answers.contains_key("end"), "it did not come to the end");
    if questions.radio {
        is(answers, "radio before", "")?;
        is(answers, "radio", "inet 10.43.0.")?;
    }
    Ok(())
}

fn third_boot(answers: &Answers, suites: &[&str]) -> anyhow::Result<()> {
    is(answers, "after 2038", "0 2040 1")?;
    for suite in suites {
        is(answers, &format!("suite {suite}"), "0")?;
        ensure!(number(answers, &format!("passed in {suite}"))? > 0.0, "{suite}: no test was run");
        is(answers, &format!("skipped in {suite}"), "0")?;
    }
    Ok(())
}

fn fourth_boot(answers: &Answers) -> anyhow::Result<()> {
    let watchdog = answers.get("watchdog").context("it does not come up")?;
    ensure!(watchdog.ends_with(" active"), "{watchdog}");
    ensure!(!answers.contains_key("bitten"), "{watchdog} lets a board stand still");
    Ok(())
}

fn suites(board: &Board, suites: &[&str], share: &Path) -> anyhow::Result<()> {
    if suites.is_empty() {
        return Ok(());
    }
    for (suite, program) in suites.iter().zip(cross::suites(board.target, suites)?) {
        std::fs::copy(program, share.join(suite))?;
    }
    cross::compile(board.target, Path::new("tests/attack.c"), &share.join("attacker"))
}

/// One of its radios is somebody else's.
fn access_point(add: &Path, share: &Path) -> anyhow::Result<()> {
    std::fs::write(share.join("radio"), "")?;
    std::fs::write(share.join("access-point.conf"), include_str!("../../../tests/qemu/access-point.conf"))?;
    std::fs::write(share.join("udhcpd.conf"), include_str!("../../../tests/qemu/udhcpd.conf"))?;
    let folder = add.join("etc/NetworkManager/conf.d");
    std::fs::create_dir_all(&folder)?;
    let others = "[keyfile]\nunmanaged-devices=interface-name:cor-*;interface-name:corv*;interface-name:wlan1\n";
    Ok(std::fs::write(folder.join("access-point.conf"), others)?)
}

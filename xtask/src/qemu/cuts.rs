//! `cargo xtask qemu --board SLUG --cuts N`: power that goes at N moments of each of first boot, pull, start, update and
//! shutdown, and a boot after each.
//!
//! One boot does all that while every write to its card is recorded. Then cards are made as cuts would have left them,
//! and the board is booted from each.

use super::emulator::Turn;
use super::{Answers, Given, Lab, outside};
use crate::image::board::Board;
use anyhow::{Context, bail, ensure};
use coracle_tests::powercut::{Fate, Numbers, Record, image};
use std::fs::File;
use std::time::Duration;

/// The boot in which everything is done, and one after a cut.
const LONGEST: Duration = Duration::from_secs(420);

/// Bytes that a record may grow to; only what is written takes room.
const RECORD: u64 = 4 << 30;

/// In order. The first needs no mark: it begins with the power.
const STAGES: [&str; 5] = ["first boot", "pull", "start", "update", "shutdown"];

/// A moment at which the power goes.
#[derive(Debug, Clone, Copy)]
struct Cut {
    stage: usize,
    /// Before this request of the record.
    request: usize,
    seed: u64,
}

/// Cuts the power, `count` times in each stage.
///
/// # Errors
/// Boards that do not come up right.
pub fn cut(board: &'static Board, count: usize) -> anyhow::Result<()> {
    ensure!(board.takes_words(), "{}: its kernel cannot be told which boot is recorded", board.slug);
    let given = Given { name: "cuts", script: include_str!("../../../tests/qemu/cuts.sh"), modules: &[] };
    let lab = Lab::new(board, given, |_, _, share| {
        Ok(std::fs::write(share.join("cuts.yaml"), include_str!("../../../tests/qemu/cuts.yaml"))?)
    })?;
    let card = lab.card("recorded.img")?;
    let path = card.with_extension("record");
    File::create(&path)?.set_len(RECORD)?;
    outside(|outside| {
        for (name, release) in [("one:1", 1), ("two:1", 1), ("one:2", 2)] {
            outside.push(&image(lab.parts.app()?, &name[..3], release), name)?;
        }
        let turn = Turn { record: Some(&path), words: "test=record", ..Turn::new(&card) };
        let heard = lab.turn_on(1, &turn, LONGEST)?;
        let wanted = heard.answers;
        ensure!(wanted.contains_key("volume") && !wanted.contains_key("waits"), "{}", heard.said.join("\n"));
        let record = Record::open(&path)?;
        let cuts = moments(&record, count)?;
        let wrong = lab.each(&cuts, |worker, cut| {
            after(&lab, &record, worker, *cut, &wanted).with_context(|| format!("{cut:?}"))
        });
        println!("{}: {} cuts, {} boards that did not come up right", board.slug, cuts.len(), wrong.len());
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })
}

/// Moments, spread over each stage.
fn moments(record: &Record, count: usize) -> anyhow::Result<Vec<Cut>> {
    let mut begins = vec![0];
    for stage in &STAGES[1..] {
        let mark = format!("coracle-stage {stage} ");
        begins.push(record.after(mark.as_bytes())?.with_context(|| format!("{stage} is not in the record"))?);
    }
    begins.push(record.requests());
    println!("requests at which the stages begin: {begins:?}, flushes: {}", record.flushes());
    let mut numbers = Numbers::new(1);
    let mut cuts = Vec::new();
    for (stage, range) in begins.windows(2).enumerate() {
        let length = range[1].saturating_sub(range[0]);
        for number in 0..count {
            let request = range[0] + (number * length + numbers.below(length)) / count;
            cuts.push(Cut { stage, request, seed: cuts.len() as u64 + 1 });
        }
    }
    Ok(cuts)
}

/// Makes the card of a cut, boots it, and looks at what became of it.
fn after(lab: &Lab, record: &Record, worker: usize, cut: Cut, wanted: &Answers) -> anyhow::Result<()> {
    let card = lab.card(&format!("cut{worker}.img"))?;
    let mut numbers = Numbers::new(cut.seed);
    // A card without a write cache has done what it says, but for the write that it is at.
    let (cached, clean) = (record.flushes() > 0, cut.seed.is_multiple_of(3));
    let disk = File::options().write(true).open(&card)?;
    record.replay(&disk, 0, cut.request, || if cached { numbers.fate(clean) } else { Fate::Written })?;
    drop(disk);
    let heard = lab.turn_on(2, &Turn { words: "test=cut", ..Turn::new(&card) }, LONGEST)?;
    let at = |name: &str| heard.answers.get(name).map(String::as_str).unwrap_or_default();
    println!("  {}, request {}: {}", STAGES[cut.stage], cut.request, at("target"));
    let layers = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let all = layers(wanted.get("layers").context("layers")?);
    let targets: &[&str] = match STAGES[cut.stage] {
        "first boot" | "pull" => &["none"],
        "start" => &["none", "RELEASE=1"],
        "update" => &["RELEASE=1", "RELEASE=2"],
        _ => &["RELEASE=2"],
    };
    let right = [
        ("nothing is missing", at("lacks").is_empty()),
        ("a layer that is there is whole", layers(at("found")).iter().all(|it| it.is_empty() || all.contains(it))),
        ("the target is old or new", targets.contains(&at("target"))),
        ("the services run", at("after") == "RELEASE=2" && at("waits").is_empty()),
        ("all layers are there, and no others", layers(at("layers")) == all),
        ("the volume is filled", Some(at("volume")) == wanted.get("volume").map(String::as_str)),
        ("nothing is broken", at("broken") == "0"),
        ("the card is used", at("size").parse::<u32>().is_ok_and(|it| it > 150)),
    ];
    let wrong: Vec<&str> = right.iter().filter(|(_, holds)| !holds).map(|(what, _)| *what).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{}: not so: {}\n{}", STAGES[cut.stage], wrong.join("; "), heard.said.join("\n"))
}

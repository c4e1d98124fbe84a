//! `cargo xtask qemu --board SLUG --harms`: boards on which something is wrong. They come up as far as they can, say what
//! it is on the console and in their status, and keep what they had.

use super::emulator::Turn;
use super::{Answers, Given, Lab, copy_card, is, number, outside};
use crate::debian::run;
use crate::image::board::{Board, Table};
use anyhow::{Context, ensure};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A boot of a board that waits for what does not come.
const LONGEST: Duration = Duration::from_secs(420);

const SECTOR: u64 = 512;

/// What the owner wrote before anything was wrong.
const CONFIG: &str = "{\"hostname\": \"pump-1\"}\n";

/// A part of the disk.
#[derive(Debug, Clone, Copy)]
enum Part {
    Boot,
    RootA,
    RootB,
    State,
    Data,
}

/// What is done to a board that is off.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// Another `config.json`.
    Config(&'static str),
    /// Bytes of a partition, from and to; no end: all the rest.
    Garbage(Part, u64, Option<u64>),
    /// An entry of the partition table.
    Missing(Part),
    /// Its data partition is full.
    Full,
    /// The kernel finds its data partition damaged while it runs.
    Broken,
}

/// One thing that is wrong.
#[derive(Debug, Clone, Copy)]
struct Harm {
    name: &'static str,
    damage: &'static [Damage],
    /// Of the kernel's command line.
    words: &'static str,
    /// Without a network.
    alone: bool,
    /// More words for QEMU.
    more: &'static [&'static str],
    /// What is said on the console and in the status; none: nothing is wrong.
    told: Option<&'static str>,
    /// Answers, beside those of a board that is right.
    wanted: &'static [(&'static str, &'static str)],
    /// It gets no root, and boots again.
    no_root: bool,
}

/// Nothing is wrong.
const NONE: Harm = Harm {
    name: "",
    damage: &[],
    words: "test=harm",
    alone: false,
    more: &[],
    told: None,
    wanted: &[],
    no_root: false,
};

/// Answers of a board that is right.
const RIGHT: &[(&str, &str)] = &[
    ("hostname", "pump-1"),
    ("slot", "PARTITION=2"),
    ("state", "ext4"),
    ("data", "ext4"),
    ("service", "there"),
    ("kept", "kept"),
];

const MIB: u64 = 1 << 20;

const HARMS: &[Harm] = &[
    Harm {
        name: "a broken config.json",
        damage: &[Damage::Config("{\"hostname\": \"pump-2\"")],
        told: Some("config.json: EOF"),
        ..NONE
    },
    Harm {
        name: "an image for another board",
        damage: &[Damage::Config("{\"hostname\": \"pump-1\", \"deviceType\": \"beaglebone-black\"}")],
        told: Some("deviceType: it is for "),
        ..NONE
    },
    Harm {
        name: "a data partition whose first blocks are lost",
        damage: &[Damage::Garbage(Part::Data, 0, Some(4096))],
        told: Some("/mnt/data: it was damaged and is repaired"),
        ..NONE
    },
    Harm {
        name: "a data partition that is garbage",
        damage: &[Damage::Garbage(Part::Data, 0, None)],
        words: "test=harm-short",
        told: Some("/mnt/data: "),
        wanted: &[("data", "tmpfs"), ("service", ""), ("kept", "")],
        ..NONE
    },
    Harm {
        name: "no data partition",
        damage: &[Damage::Missing(Part::Data)],
        words: "test=harm-short",
        told: Some("/mnt/data: there is no LABEL=coracle-data or PARTITION="),
        wanted: &[("data", "tmpfs"), ("service", ""), ("kept", "")],
        ..NONE
    },
    Harm {
        name: "a full data partition",
        damage: &[Damage::Full],
        wanted: &[("service with room", "there"), ("pull with room", "0")],
        ..NONE
    },
    Harm {
        name: "a data partition that the kernel finds damaged while the board runs",
        damage: &[Damage::Broken],
        told: Some("/mnt/data: it was damaged and is repaired"),
        ..NONE
    },
    Harm {
        name: "a state partition that is garbage",
        damage: &[Damage::Garbage(Part::State, 0, None)],
        told: Some("/mnt/state: "),
        wanted: &[("state", "tmpfs")],
        ..NONE
    },
    Harm {
        name: "a root without a file system",
        damage: &[Damage::Garbage(Part::RootA, 0, Some(4096))],
        told: Some("root PARTITION=2: there is no file system on it"),
        wanted: &[("slot", "PARTITION=3")],
        ..NONE
    },
    Harm {
        name: "a root that is damaged inside",
        damage: &[Damage::Garbage(Part::RootA, MIB, Some(5 * MIB))],
        told: Some("root PARTITION=2: /sbin/init cannot be read"),
        wanted: &[("slot", "PARTITION=3")],
        ..NONE
    },
    Harm {
        name: "two roots without a file system",
        damage: &[Damage::Garbage(Part::RootA, 0, Some(4096)), Damage::Garbage(Part::RootB, 0, Some(4096))],
        no_root: true,
        ..NONE
    },
    Harm {
        name: "a kernel that cannot limit memory",
        words: "test=harm cgroup_disable=memory",
        told: Some("this kernel has no memory controller for cgroups"),
        ..NONE
    },
    Harm {
        name: "a kernel that cannot lay one folder over another",
        words: "test=harm-short module_blacklist=overlay",
        told: Some("this kernel has no overlayfs"),
        wanted: &[("service", ""), ("kept", "")],
        ..NONE
    },
    Harm { name: "no network", alone: true, ..NONE },
    Harm { name: "a clock without a battery", more: &["-rtc", "base=1970-01-02T00:00:00"], ..NONE },
];

/// Harms boards, and boots each. `only`: those whose names have this in them.
///
/// # Errors
/// Boards that are not as they should be.
pub fn harm(board: &'static Board, only: &str) -> anyhow::Result<()> {
    ensure!(board.takes_words(), "{}: its kernel cannot be told what is asked of it", board.slug);
    let given = Given { name: "harms", script: include_str!("../../../tests/qemu/harms.sh"), modules: &[] };
    let lab = Lab::new(board, given, |parts, add, _| {
        let preload = add.with_extension("preload");
        std::fs::create_dir_all(preload.join("images"))?;
        std::fs::write(preload.join("compose.yaml"), include_str!("../../../tests/qemu/harms.yaml"))?;
        parts.app()?.named("hello:0").write(&preload.join("images/hello"))
    })?;
    let whole = lab.card("whole.img")?;
    outside(|outside| {
        outside.push(&lab.parts.app()?, "hello:2")?;
        damage(board, &whole, Damage::Config(CONFIG))?;
        let heard = lab.turn_on(1, &Turn { words: "test=whole", ..Turn::new(&whole) }, LONGEST)?;
        for (name, wanted) in [("service", "there"), ("hostname", "pump-1"), ("lacks", "")] {
            is(&heard.answers, name, wanted).with_context(|| heard.said.join("\n"))?;
        }
        if "another program".contains(only) {
            renewed(&lab, &whole)?;
        }
        let harms: Vec<&Harm> = HARMS.iter().filter(|harm| harm.name.contains(only)).collect();
        let wrong =
            lab.each(&harms, |worker, harm| harmed(&lab, board, &whole, worker, harm).with_context(|| harm.name));
        println!("{}: {} harms, {} boards that are not as they should be", board.slug, harms.len(), wrong.len());
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })
}

/// Another program takes the place of agent and shim, and one that fails does not stay there.
fn renewed(lab: &Lab, whole: &Path) -> anyhow::Result<()> {
    let card = whole.with_file_name("renewed.img");
    copy_card(whole, &card)?;
    let heard = lab.turn_on(2, &Turn { words: "test=renew", ..Turn::new(&card) }, LONGEST)?;
    println!("renewed: {:?}", heard.answers);
    let all = || -> anyhow::Result<()> {
        for (name, wanted) in [
            ("renew", "0"),
            ("agent is it", "yes"),
            ("shim is it", "yes"),
            ("shim is the same process", "yes"),
            ("services are the same processes", "yes"),
            ("log", "whole"),
            ("exec", "there"),
            ("end", "\"code\":137"),
            ("agent is its own", "yes"),
            ("shim is its own", "yes"),
            ("put aside", "coracle.failed"),
            ("services go on", "yes"),
            ("own", "0"),
        ] {
            is(&heard.answers, name, wanted)?;
        }
        for bad in ["bad", "text"] {
            ensure!(number(&heard.answers, bad)? != 0.0, "a program that is none was taken ({bad})");
        }
        let told = heard.answers.get("told").context("it tells nothing")?;
        ensure!(told.contains("failed again and again"), "{told}");
        Ok(())
    };
    all().with_context(|| heard.said.join("\n"))
}

fn harmed(lab: &Lab, board: &Board, whole: &Path, worker: usize, harm: &Harm) -> anyhow::Result<()> {
    let card = whole.with_file_name(format!("harmed{worker}.img"));
    copy_card(whole, &card)?;
    for &one in harm.damage {
        match one {
            Damage::Full => {
                let heard = lab.turn_on(2, &Turn { words: "test=fill", ..Turn::new(&card) }, LONGEST)?;
                is(&heard.answers, "filled", "0")?;
            }
            Damage::Broken => {
                let heard = lab.turn_on(2, &Turn { words: "test=break", ..Turn::new(&card) }, LONGEST)?;
                is(&heard.answers, "data now", "ro")?;
                ensure!(
                    reboots(&heard.said),
                    "it does not boot again:
{}",
                    heard.said.join(
                        "
"
                    )
                );
            }
            one => damage(board, &card, one)?,
        }
    }
    let turn = Turn { words: harm.words, alone: harm.alone, more: harm.more, ..Turn::new(&card) };
    let heard = lab.turn_on(3, &turn, LONGEST)?;
    println!("{}: {:?}", harm.name, heard.answers);
    judge(harm, &heard.answers, &heard.said).with_context(|| heard.said.join("\n"))
}

/// QEMU ends where the board boots again.
fn reboots(said: &[String]) -> bool {
    said.iter().any(|line| line.contains("reboot: Restarting"))
}

fn judge(harm: &Harm, answers: &Answers, said: &[String]) -> anyhow::Result<()> {
    let on_console = |text: &str| said.iter().any(|line| line.contains("coracle") && line.contains(text));
    if harm.no_root {
        ensure!(
            on_console("no root: ") && on_console("booting again in 60 s"),
            "it does not say why it has no root"
        );
        ensure!(reboots(said), "it does not boot again");
        return Ok(());
    }
    for (name, wanted) in RIGHT {
        let wanted = harm.wanted.iter().find(|(it, _)| it == name).map_or(*wanted, |(_, wanted)| wanted);
        let answer = answers.get(*name).map(String::as_str).unwrap_or_default();
        // What has no answer says why instead.
        ensure!(if wanted.is_empty() { answer != "there" } else { answer == wanted }, "{name}: {answer:?}");
    }
    for (name, wanted) in harm.wanted.iter().filter(|(name, _)| RIGHT.iter().all(|(right, _)| right != name)) {
        is(answers, name, wanted)?;
    }
    let told = answers.get("told").map(String::as_str).unwrap_or_default().replace("\\\"", "\"");
    match harm.told {
        Some(text) => {
            ensure!(told.contains(text), "its status does not say {text:?}: {told}");
            ensure!(on_console(text), "its console does not say {text:?}");
        }
        None => ensure!(told == "\"lacks\":[]", "nothing is wrong with it, and it says {told}"),
    }
    ensure!(number(answers, "year")? >= 2025.0, "its clock is before its image");
    ensure!(answers.contains_key("end"), "it did not come to the end");
    Ok(())
}

fn damage(board: &Board, card: &Path, damage: Damage) -> anyhow::Result<()> {
    match damage {
        Damage::Config(text) => {
            let (from, _) = place(board, card, Part::Boot)?;
            let file = card.with_extension("config.json");
            std::fs::write(&file, text)?;
            let image = format!("{}@@{from}", card.display());
            run(Command::new("mcopy").args(["-o", "-i", &image]).arg(file).arg("::config.json"))
        }
        Damage::Garbage(part, from, to) => {
            let (start, length) = place(board, card, part)?;
            let mut disk = File::options().write(true).open(card)?;
            disk.seek(SeekFrom::Start(start + from))?;
            // No file system and no compressed data is like this.
            let garbage = vec![0xa5; MIB as usize];
            let mut left = to.unwrap_or(length) - from;
            while left > 0 {
                let piece = left.min(MIB);
                disk.write_all(&garbage[..piece as usize])?;
                left -= piece;
            }
            Ok(())
        }
        Damage::Missing(part) => {
            let number = number_of(board, part).to_string();
            run(Command::new("sfdisk").args(["-q", "--delete"]).arg(card).arg(number))
        }
        Damage::Full | Damage::Broken => Ok(()),
    }
}

/// As the image has them.
fn number_of(board: &Board, part: Part) -> u32 {
    let later = u32::from(board.table == Table::Mbr);
    match part {
        Part::Boot => 1,
        Part::RootA => 2,
        Part::RootB => 3,
        Part::State => 4 + later,
        Part::Data => 5 + later,
    }
}

/// First byte and length in bytes of a partition, as it is now.
fn place(board: &Board, card: &Path, part: Part) -> anyhow::Result<(u64, u64)> {
    let output = Command::new("sfdisk").arg("--dump").arg(card).output().context("starting sfdisk")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let name = format!("{}{} :", card.display(), number_of(board, part));
    let line = text.lines().find(|line| line.starts_with(&name)).with_context(|| format!("{name} {text}"))?;
    let field = |name: &str| -> anyhow::Result<u64> {
        let value = line.split([':', ',']).find_map(|it| it.trim().strip_prefix(name)).context("a field")?;
        Ok(value.trim().parse::<u64>()? * SECTOR)
    };
    Ok((field("start=")?, field("size=")?))
}

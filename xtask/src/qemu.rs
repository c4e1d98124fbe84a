//! `cargo xtask qemu --board SLUG`: boots the image of a board in QEMU and asks it what a user relies on.

use crate::cross;
use crate::debian::{Suites, run};
use crate::emulator::{Disk, Emulator, Running};
use crate::image::board::Board;
use crate::image::{self, Image, Options};
use anyhow::{Context, ensure};
use coracle_tests::board::Board as Outside;
use coracle_tests::image::Image as ContainerImage;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One boot with all that is asked in it, translated, on a machine that does other things too.
const LONGEST_BOOT: Duration = Duration::from_secs(420);

/// The boot in which whole suites of tests run.
const LONGEST_SUITES: Duration = Duration::from_secs(1200);

/// Everything. `attacks`: tests for root that ask nothing of a machine but its kernel.
pub const ALL: Questions = Questions { suites: &["attacks"], radio: true };

/// Answers of a boot, by name.
pub type Answers = BTreeMap<String, String>;

fn answers(said: &[String], boot: u32) -> Answers {
    let begin = format!("TEST {boot} ");
    let found = said.iter().filter_map(|line| line.split_once(&begin)?.1.split_once(':'));
    found.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// What is asked of an emulated board beside the questions that all are asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Questions {
    /// Suites of tests that run there.
    pub suites: &'static [&'static str],
    /// It has radios, which the kernel plays (`mac80211_hwsim`): one is an access point.
    pub radio: bool,
}

/// Boots it three times on one card.
///
/// # Errors
/// What is not as a user relies on.
pub fn test(board: &'static Board, questions: Questions) -> anyhow::Result<()> {
    let emulator = Emulator::fetch()?;
    let folder = std::path::absolute(Path::new("target/image").join(board.slug))?;
    let add = folder.join("add");
    additions(board, questions, &folder, &add)?;
    let modules: &[&str] = if questions.radio { &["mac80211_hwsim"] } else { &[] };
    let image = image::build(board, Options { add: Some(&add), modules, ..Options::default() }, "test")?;
    println!("{}: root slot {:.1} MiB", board.slug, image.root_bytes as f64 / f64::from(1 << 20));
    let disk = folder.join("test/card.img");
    run(Command::new("cp").arg("--sparse=always").arg(&image.disk).arg(&disk))?;
    let app = app(board, &folder)?;
    // Its network and its registry are in namespaces, which are those of a thread.
    let boots = std::thread::spawn(move || boots(&emulator, board, questions, &image, &disk, &app)).join();
    boots.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn boots(
    emulator: &Emulator,
    board: &Board,
    questions: Questions,
    image: &Image,
    disk: &Path,
    app: &ContainerImage,
) -> anyhow::Result<()> {
    let mut outside = Outside::new()?;
    outside.start_registry("")?;
    outside.push(app, "hello:2")?;
    for boot in 1..=3 {
        let begun = Instant::now();
        let mut running = Running::start(emulator, board, image, &Disk { file: disk, record: None }, "")?;
        running.hear(if boot == 3 { LONGEST_SUITES } else { LONGEST_BOOT })?;
        std::fs::write(disk.with_extension(format!("boot{boot}.log")), running.said.join("\n"))?;
        let answers = answers(&running.said, boot);
        println!("{} boot {boot}, {:.0} s:", board.slug, begun.elapsed().as_secs_f64());
        for (name, value) in &answers {
            println!("  {name}: {value}");
        }
        let judged = match boot {
            1 => first_boot(&answers),
            2 => second_boot(&answers, questions),
            _ => third_boot(&answers, questions.suites),
        };
        judged.with_context(|| running.said.join("\n"))?;
    }
    Ok(())
}

/// Why boards cannot be emulated here.
pub fn cannot_run() -> Option<String> {
    if std::env::consts::ARCH != "x86_64" {
        return Some("images are built on x86-64".to_owned());
    }
    let root = Command::new("id").arg("-u").output().is_ok_and(|it| it.stdout.starts_with(b"0\n"));
    let apt = Command::new("apt-get").arg("--version").stdout(Stdio::null()).status().is_ok();
    (!root || !apt).then(|| "needs root and apt-get, to fetch what it lacks".to_owned())
}

fn is(answers: &Answers, name: &str, wanted: &str) -> anyhow::Result<()> {
    let value = answers.get(name).with_context(|| format!("it does not say {name}"))?;
    ensure!(value == wanted, "{name}: {value:?}, not {wanted:?}");
    Ok(())
}

fn number(answers: &Answers, name: &str) -> anyhow::Result<f64> {
    let value = answers.get(name).with_context(|| format!("it does not say {name}"))?;
    value.split(' ').next().unwrap_or_default().parse().with_context(|| format!("{name}: {value}"))
}

fn first_boot(answers: &Answers) -> anyhow::Result<()> {
    for (name, wanted) in [
        ("lacks", ""),
        ("slot", "PARTITION=2"),
        ("root", "squashfs ro"),
        ("swap", "1"),
        ("address", "inet 10.0.2.15"),
        ("names", "1"),
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

/// What the tested image has beside the board's own: a shell, the questions, a release.
fn additions(board: &Board, questions: Questions, folder: &Path, add: &Path) -> anyhow::Result<()> {
    let suites = questions.suites;
    let _ = std::fs::remove_dir_all(add);
    let share = add.join("usr/share/board-test");
    for folder in ["usr/bin", "usr/share/board-test", "etc/coracle", "etc/NetworkManager/conf.d"] {
        std::fs::create_dir_all(add.join(folder))?;
    }
    std::fs::copy(busybox(board, folder)?, add.join("usr/bin/busybox"))?;
    std::fs::write(share.join("board.sh"), include_str!("../../tests/qemu/board.sh"))?;
    std::fs::write(share.join("compose.yaml"), include_str!("../../tests/qemu/compose.yaml"))?;
    std::fs::write(
        add.join("etc/coracle/programs"),
        "board-test /usr/bin/busybox sh /usr/share/board-test/board.sh\n",
    )?;
    if !suites.is_empty() {
        for (suite, program) in suites.iter().zip(cross::suites(board.target, suites)?) {
            std::fs::copy(program, share.join(suite))?;
        }
        cross::compile(board.target, Path::new("tests/attack.c"), &share.join("attacker"))?;
    }
    std::fs::write(share.join("suites"), suites.join("\n"))?;
    if questions.radio {
        std::fs::write(share.join("radio"), "")?;
        std::fs::write(share.join("access-point.conf"), include_str!("../../tests/qemu/access-point.conf"))?;
        std::fs::write(share.join("udhcpd.conf"), include_str!("../../tests/qemu/udhcpd.conf"))?;
        let other =
            "[keyfile]\nunmanaged-devices=interface-name:cor-*;interface-name:corv*;interface-name:wlan1\n";
        std::fs::write(add.join("etc/NetworkManager/conf.d/access-point.conf"), other)?;
    }
    app(board, folder)?.write(&share.join("hello"))
}

/// The image of its services.
fn app(board: &Board, folder: &Path) -> anyhow::Result<ContainerImage> {
    let architecture = match board.architecture {
        "armel" | "armhf" => "arm",
        "arm64" => "arm64",
        _ => "amd64",
    };
    Ok(ContainerImage::busybox_at(&busybox(board, folder)?)?.architecture(architecture))
}

/// Debian's static one, which runs on every board of the architecture.
fn busybox(board: &Board, folder: &Path) -> anyhow::Result<PathBuf> {
    let place = folder.join("debian/busybox-static");
    if !place.exists() {
        let suites = Suites::open_for(&folder.join("debian"), &["stable"], Some(board.architecture))?;
        suites.unpack("busybox-static")?;
    }
    let found = ["usr/bin/busybox", "bin/busybox"].map(|it| place.join(it)).into_iter().find(|it| it.exists());
    found.context("busybox-static has no busybox")
}

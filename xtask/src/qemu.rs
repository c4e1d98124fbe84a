//! `cargo xtask qemu --board SLUG`: boots the image of a board in QEMU and asks it what a user relies on.

use crate::cross;
use crate::debian::{Suites, run};
use crate::image::board::Board;
use crate::image::{self, Image};
use anyhow::{Context, bail, ensure};
use coracle_tests::image::Image as ContainerImage;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// The version of QEMU in Debian stable: older ones hang with these machines at times.
const QEMU: &str = "target/image/qemu";

/// Where an installed QEMU has its modules.
const INSTALLED: &str = "/usr/lib/x86_64-linux-gnu/qemu";

/// One boot with all that is asked in it, translated, on a machine that does other things too.
const LONGEST_BOOT: Duration = Duration::from_secs(420);

/// The boot in which whole suites of tests run.
const LONGEST_SUITES: Duration = Duration::from_secs(1200);

/// Between two words of a board: what it is asked takes a minute at most.
const LONGEST_SILENCE: Duration = Duration::from_secs(180);

/// Tests for root that ask nothing of a machine but its kernel.
pub const SUITES: &[&str] = &["attacks"];

/// A board's time goes on by its own instructions, 2 ns each, as an ARM1176 of 1 GHz does them, and is let go when it has
/// nothing to do. By the clock of this machine, a Pi that is held between the reading of its timer and the setting of its
/// next alarm has missed it, and stands still until the timer's 32 bits have come around, 71 minutes later.
const TIME: &[&str] = &["-icount", "shift=1,sleep=off"];

/// Answers of a boot, by name.
pub type Answers = BTreeMap<String, String>;

/// QEMU, unpacked, with its own loader and libraries.
struct Emulator {
    folder: PathBuf,
}

impl Emulator {
    fn fetch() -> anyhow::Result<Self> {
        let folder = std::path::absolute(QEMU)?;
        let stamp = folder.with_extension("unpacked");
        if !stamp.exists() {
            println!("fetching QEMU");
            let suites = Suites::open_for(&folder.with_extension("debian"), &["stable"], Some("amd64"))?;
            suites.unpack_all(&["qemu-system-arm"], &folder)?;
            std::fs::write(stamp, "")?;
        }
        Ok(Self { folder })
    }

    fn command(&self, program: &str) -> anyhow::Result<Command> {
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|it| self.folder.join(it));
        let loader = libraries.iter().map(|it| it.join("ld-linux-x86-64.so.2")).find(|it| it.exists());
        let path = libraries.iter().map(|it| it.display().to_string()).collect::<Vec<_>>().join(":");
        let loader = loader.context("QEMU's package has no loader")?;
        // It would take modules of another version that is installed, and end.
        let mut command = if Path::new(INSTALLED).exists() {
            let mut command = Command::new("unshare");
            let hide = format!("mount -t tmpfs none {INSTALLED} && exec \"$0\" \"$@\"");
            command.args(["--mount", "--propagation", "private", "sh", "-c", &hide]).arg(loader);
            command
        } else {
            Command::new(loader)
        };
        command.arg("--library-path").arg(path).arg(self.folder.join("usr/bin").join(program));
        command.arg("-L").arg(self.folder.join("usr/share/qemu"));
        command.env("QEMU_MODULE_DIR", self.folder.join("usr/lib/x86_64-linux-gnu/qemu"));
        Ok(command)
    }
}

/// A board that is on.
struct Running {
    child: Child,
    lines: Receiver<String>,
    /// All that it said.
    said: Vec<String>,
    /// Where QEMU itself is asked.
    monitor: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn start(emulator: &Emulator, board: &Board, image: &Image, disk: &Path) -> anyhow::Result<Self> {
        let (program, words) = board.machine.split_first().context("a machine")?;
        let mut command = emulator.command(program)?;
        command.args(words).arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.ramdisk);
        if let Some(tree) = &image.device_tree {
            command.arg("-dtb").arg(tree);
        }
        command.args(["-append", &format!("{} {} loglevel=5 panic=10", board.command_line, board.emulated)]);
        command.args(TIME);
        let disk = disk.display().to_string();
        command.args(board.disk.iter().map(|word| word.replace("DISK", &disk))).args(board.network);
        let monitor = Path::new(&disk).with_extension("monitor");
        command.args(["-monitor", &format!("unix:{},server,nowait", monitor.display())]);
        command.args(["-serial", "stdio", "-display", "none", "-no-reboot"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
        let output = child.stdout.take().context("a pipe")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Ok(Self { child, lines, said: Vec::new(), monitor })
    }

    /// Hears it until it is off.
    fn hear(&mut self, longest: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let patience = longest.saturating_sub(begun.elapsed()).min(LONGEST_SILENCE);
            match self.lines.recv_timeout(patience) {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {
                    let (said, silent, whole) =
                        (self.said.join("\n"), patience.as_secs(), begun.elapsed().as_secs());
                    bail!("after {whole} s, the last {silent} without a word:\n{said}\n{}", self.processor())
                }
            }
        }
    }

    /// What its processor is at, three times: whether a board that says nothing does anything.
    fn processor(&self) -> String {
        let ask = || -> std::io::Result<String> {
            let mut monitor = UnixStream::connect(&self.monitor)?;
            monitor.set_read_timeout(Some(Duration::from_secs(1)))?;
            let mut said = Vec::new();
            for _ in 0..3 {
                monitor.write_all(b"info registers\n")?;
                // It goes on talking; what came within the time is enough.
                let _ = monitor.read_to_end(&mut said);
            }
            Ok(String::from_utf8_lossy(&said).into_owned())
        };
        ask().unwrap_or_else(|error| format!("QEMU does not say where it is: {error}"))
    }
}

fn answers(said: &[String], boot: u32) -> Answers {
    let begin = format!("TEST {boot} ");
    let found = said.iter().filter_map(|line| line.split_once(&begin)?.1.split_once(':'));
    found.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// Boots it three times on one card, and runs `suites` there.
///
/// # Errors
/// What is not as a user relies on.
pub fn test(board: &Board, suites: &[&str]) -> anyhow::Result<()> {
    let emulator = Emulator::fetch()?;
    let folder = std::path::absolute(Path::new("target/image").join(board.slug))?;
    let add = folder.join("add");
    additions(board, suites, &folder, &add)?;
    let image = image::build(board, Some(&add), "test")?;
    println!("{}: root slot {:.1} MiB", board.slug, image.root_bytes as f64 / f64::from(1 << 20));
    let disk = folder.join("test/card.img");
    run(Command::new("cp").arg("--sparse=always").arg(&image.disk).arg(&disk))?;
    for boot in 1..=3 {
        let begun = Instant::now();
        let mut running = Running::start(&emulator, board, &image, &disk)?;
        running.hear(if boot == 3 { LONGEST_SUITES } else { LONGEST_BOOT })?;
        std::fs::write(disk.with_extension(format!("boot{boot}.log")), running.said.join("\n"))?;
        let answers = answers(&running.said, boot);
        println!("{} boot {boot}, {:.0} s:", board.slug, begun.elapsed().as_secs_f64());
        for (name, value) in &answers {
            println!("  {name}: {value}");
        }
        let judged = match boot {
            1 => first_boot(&answers),
            2 => second_boot(&answers),
            _ => third_boot(&answers, suites),
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

fn second_boot(answers: &Answers) -> anyhow::Result<()> {
    for (name, wanted) in [("lacks", ""), ("kept", "kept"), ("orderly", "in order"), ("replayed", "0")] {
        is(answers, name, wanted)?;
    }
    ensure!(answers.contains_key("end"), "it did not come to the end");
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
fn additions(board: &Board, suites: &[&str], folder: &Path, add: &Path) -> anyhow::Result<()> {
    let _ = std::fs::remove_dir_all(add);
    let share = add.join("usr/share/board-test");
    for folder in ["usr/bin", "usr/share/board-test", "etc/coracle"] {
        std::fs::create_dir_all(add.join(folder))?;
    }
    let busybox = busybox(board, folder)?;
    std::fs::copy(&busybox, add.join("usr/bin/busybox"))?;
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
    let architecture = match board.architecture {
        "armel" | "armhf" => "arm",
        "arm64" => "arm64",
        _ => "amd64",
    };
    ContainerImage::busybox_at(&busybox)?.architecture(architecture).write(&share.join("hello"))
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

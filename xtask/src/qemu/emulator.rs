//! QEMU, as it poses as a board.

use crate::debian::Suites;
use crate::image::Image;
use crate::image::board::{Board, Start};
use anyhow::{Context, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Where QEMU is unpacked, in the version of Debian stable: older ones hang with these machines at times.
const FOLDER: &str = "target/image/qemu";

/// Where an installed QEMU has its modules.
const INSTALLED: &str = "/usr/lib/x86_64-linux-gnu/qemu";

/// Between two words of a board: what it is asked takes a minute at most.
const LONGEST_SILENCE: Duration = Duration::from_secs(180);

/// A board's time goes on by its own instructions, 2 ns each, as an ARM1176 of 1 GHz does them, and is let go when it has
/// nothing to do. By the clock of this machine, a Pi that is held between the reading of its timer and the setting of its
/// next alarm has missed it, and stands still until the timer's 32 bits have come around, 71 minutes later.
const TIME: &[&str] = &["-icount", "shift=1,sleep=off"];

/// QEMU, unpacked, with its own loader and libraries.
pub struct Emulator {
    folder: PathBuf,
}

impl Emulator {
    /// Fetches it, once.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub fn fetch(packages: &[&str]) -> anyhow::Result<Self> {
        let folder = std::path::absolute(FOLDER)?.join(packages.join("+"));
        let stamp = folder.with_extension("unpacked");
        if !stamp.exists() {
            println!("fetching {}", packages.join(" "));
            let suites = Suites::open_for(&folder.with_extension("debian"), &["stable"], Some("amd64"))?;
            suites.unpack_all(packages, &folder)?;
            std::fs::write(stamp, "")?;
        }
        Ok(Self { folder })
    }

    /// Writes a script that is one of its programs.
    ///
    /// # Errors
    /// As the file system says.
    pub fn script(&self, program: &str, path: &Path) -> anyhow::Result<()> {
        let command = self.command(program)?;
        let quote = |word: &std::ffi::OsStr| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"));
        let mut text = "#!/bin/sh\n".to_owned();
        for (name, value) in command.get_envs() {
            text.push_str(&format!("export {}={}\n", name.to_string_lossy(), quote(value.unwrap_or_default())));
        }
        let words: Vec<String> =
            std::iter::once(command.get_program()).chain(command.get_args()).map(quote).collect();
        text.push_str(&format!("exec {} \"$@\"\n", words.join(" ")));
        std::fs::create_dir_all(path.parent().context("a folder")?)?;
        std::fs::write(path, text)?;
        Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
    }

    /// A board; its console is not connected.
    ///
    /// # Errors
    /// When QEMU has no loader.
    pub fn board(&self, posed: Posed<'_>, turn: &Turn<'_>) -> anyhow::Result<Command> {
        let Posed { board, image, memory_mib } = posed;
        let (program, machine) = board.machine.split_first().context("a machine")?;
        let mut command = self.command(program)?;
        let share = self.folder.join("usr/share").display().to_string();
        command.args(machine.iter().map(|word| word.replace("SHARE", &share)));
        if !turn.hurried {
            command.args(TIME);
        }
        let words = format!("{} loglevel=5 panic=10 {}", board.emulated, turn.words);
        match board.start {
            Start::Files => {
                command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.ramdisk);
                if let Some(tree) = &image.device_tree {
                    command.arg("-dtb").arg(tree);
                }
                command.args(["-append", format!("{} {words}", board.command_line).trim_end()]);
            }
            Start::Loader | Start::Bios => {}
            // systemd-stub(7): more words for the kernel, from who makes the virtual machine.
            Start::Uefi { .. } => {
                let words = format!("type=11,value=io.systemd.stub.kernel-cmdline-extra={}", words.trim());
                command.args(["-smbios", &words]);
            }
        }
        let drive = turn.drive();
        command.args(board.disk.iter().map(|word| word.replace("DRIVE", &drive)));
        command.args(if turn.alone { &["-nic", "none"] } else { board.network }).args(turn.more);
        if let Some(memory) = memory_mib {
            command.args(["-m", &memory.to_string()]);
        }
        command.args(["-display", "none", "-no-reboot"]);
        Ok(command)
    }

    /// One of its programs.
    ///
    /// # Errors
    /// When it has no loader.
    pub fn command(&self, program: &str) -> anyhow::Result<Command> {
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
        for folder in ["qemu", "seabios"] {
            command.arg("-L").arg(self.folder.join("usr/share").join(folder));
        }
        command.env("QEMU_MODULE_DIR", self.folder.join("usr/lib/x86_64-linux-gnu/qemu"));
        Ok(command)
    }
}

/// What QEMU poses as.
#[derive(Debug, Clone, Copy)]
pub struct Posed<'a> {
    /// The board.
    pub board: &'a Board,
    /// What is on it.
    pub image: &'a Image,
    /// Other than the board's usual memory.
    pub memory_mib: Option<u32>,
}

/// A boot of a board.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    /// Content of its disk.
    pub disk: &'a Path,
    /// Where each write to it is recorded.
    pub record: Option<&'a Path>,
    /// More words for the kernel's command line.
    pub words: &'a str,
    /// Without a network.
    pub alone: bool,
    /// By the clock of this machine: its processors run side by side, and no figure of time means anything. Not for a board
    /// whose timer comes around ([`TIME`]).
    pub hurried: bool,
    /// More words for QEMU.
    pub more: &'a [&'a str],
}

impl<'a> Turn<'a> {
    /// As it is.
    pub fn new(disk: &'a Path) -> Self {
        Self { disk, record: None, words: "", alone: false, hurried: false, more: &[] }
    }

    /// `-drive` of its disk, without how it is connected.
    fn drive(&self) -> String {
        let file = self.disk.display();
        match self.record {
            None => format!("file={file},format=raw"),
            Some(record) => format!(
                "driver=blklogwrites,file.driver=file,file.filename={file},log.driver=file,log.filename={}",
                record.display()
            ),
        }
    }
}

/// A board that is on.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    /// All that it said.
    pub said: Vec<String>,
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
    /// Turns it on.
    ///
    /// # Errors
    /// When QEMU does not start.
    pub fn start(emulator: &Emulator, posed: Posed<'_>, turn: &Turn<'_>) -> anyhow::Result<Self> {
        let mut command = emulator.board(posed, turn)?;
        let monitor = turn.disk.with_extension("monitor");
        command.args(["-monitor", &format!("unix:{},server,nowait", monitor.display()), "-serial", "stdio"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().context("starting QEMU")?;
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
    ///
    /// # Errors
    /// When it says nothing for long, or goes on for longer than `longest`.
    pub fn hear(&mut self, longest: Duration) -> anyhow::Result<()> {
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

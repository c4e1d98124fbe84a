//! Boards in QEMU: their images with a script on top, which asks what is to be known and says it on the console.

pub mod cuts;
pub mod demo;
mod emulator;
pub mod figures;
pub mod harms;
pub mod storm;
pub mod suites;
pub mod test;

use crate::debian::{Suites, run};
use crate::image::board::Board;
use crate::image::{self, Image, Options};
use anyhow::{Context, ensure};
use coracle_tests::board::Board as Outside;
use coracle_tests::image::Image as ContainerImage;
use emulator::{Emulator, Posed, Running, Turn};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Answers of a boot, by name.
pub type Answers = BTreeMap<String, String>;

/// What a board said.
pub struct Heard {
    /// What it was asked.
    pub answers: Answers,
    /// All.
    pub said: Vec<String>,
}

/// What an image has beside the board's own.
pub struct Given<'a> {
    /// Of its folder.
    pub name: &'a str,
    /// What runs at every boot.
    pub script: &'a str,
    /// Modules beside the board's.
    pub modules: &'a [&'a str],
}

/// What scripts and services on a board are made of.
pub struct Parts {
    board: &'static Board,
    busybox: PathBuf,
}

/// A board, its image, and what poses as it.
pub struct Lab {
    /// For services.
    pub parts: Parts,
    /// The image.
    pub image: Image,
    /// Memory of the next boots, where it is not the board's usual.
    pub memory_mib: Option<u32>,
    emulator: Emulator,
    folder: PathBuf,
}

impl Parts {
    /// An image of the shell, for the board's services.
    ///
    /// # Errors
    /// As the file system says.
    pub fn app(&self) -> anyhow::Result<ContainerImage> {
        let architecture = match self.board.architecture {
            "armel" | "armhf" => "arm",
            "arm64" => "arm64",
            _ => "amd64",
        };
        Ok(ContainerImage::busybox_at(&self.busybox)?.architecture(architecture))
    }
}

impl Lab {
    /// Builds the image. `fill`: puts more into the root, and into the folder that the script begins in.
    ///
    /// # Errors
    /// What cannot be fetched or built.
    pub fn new(
        board: &'static Board,
        given: Given<'_>,
        fill: impl FnOnce(&Parts, &Path, &Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let above = std::path::absolute(Path::new("target/image").join(board.slug))?;
        let folder = above.join(given.name);
        let add = above.join(format!("{}.add", given.name));
        // What is preloaded, where something is.
        let preload = add.with_extension("preload");
        for old in [&add, &preload] {
            let _ = std::fs::remove_dir_all(old);
        }
        let share = add.join("usr/share/board-test");
        for folder in ["usr/bin", "usr/share/board-test", "etc/coracle"] {
            std::fs::create_dir_all(add.join(folder))?;
        }
        let parts = Parts { board, busybox: busybox(board, &above)? };
        std::fs::copy(&parts.busybox, add.join("usr/bin/busybox"))?;
        std::fs::write(share.join("common.sh"), include_str!("../../../tests/qemu/common.sh"))?;
        std::fs::write(share.join("board.sh"), given.script)?;
        let programs = "board-test /usr/bin/busybox sh /usr/share/board-test/board.sh\n";
        std::fs::write(add.join("etc/coracle/programs"), programs)?;
        fill(&parts, &add, &share)?;
        let options = Options {
            add: Some(&add),
            preload: Some(preload.as_path()).filter(|it| it.exists()),
            modules: given.modules,
            ..Options::default()
        };
        let image = image::build(board, options, given.name)?;
        Ok(Self { parts, image, memory_mib: None, emulator: Emulator::fetch(board.emulator)?, folder })
    }

    /// A card with the image.
    ///
    /// # Errors
    /// As the file system says.
    pub fn card(&self, name: &str) -> anyhow::Result<PathBuf> {
        let card = self.folder.join(name);
        copy_card(&self.image.disk, &card)?;
        Ok(card)
    }

    /// Boots a card and hears the board until it is off. The log is beside the card.
    ///
    /// # Errors
    /// When it says nothing for long, or takes longer than `longest`.
    pub fn boot(&self, boot: u32, card: &Path, words: &str, longest: Duration) -> anyhow::Result<Heard> {
        // Several processors would take turns, and a second of theirs would be one of each.
        let hurried = self.parts.board.patience > 1;
        let heard = self.turn_on(boot, &Turn { words, hurried, ..Turn::new(card) }, longest)?;
        for (name, value) in &heard.answers {
            println!("  {name}: {value}");
        }
        Ok(heard)
    }

    fn turn_on(&self, boot: u32, turn: &Turn<'_>, longest: Duration) -> anyhow::Result<Heard> {
        let begun = Instant::now();
        let mut running = Running::start(&self.emulator, self.posed(), turn)?;
        let ended = running.hear(longest * self.parts.board.patience);
        let said = std::mem::take(&mut running.said);
        std::fs::write(turn.disk.with_extension(format!("boot{boot}.log")), said.join("\n"))?;
        ended?;
        println!(
            "{} {} boot {boot}, {:.0} s",
            self.parts.board.slug,
            self.folder_name(),
            begun.elapsed().as_secs_f64()
        );
        // The script's own number of the boot is on the card, where a cut may lose it.
        let found = said.iter().filter_map(|line| {
            let (_, answer) = line.split_once("TEST ")?;
            answer.split_once(' ')?.1.split_once(':')
        });
        let answers = found.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        Ok(Heard { answers, said })
    }

    /// Boots a card with the terminal as the board's console.
    ///
    /// # Errors
    /// When QEMU does not start, or fails.
    pub fn talk(&self, card: &Path) -> anyhow::Result<()> {
        let status =
            self.emulator.board(self.posed(), &Turn::new(card))?.args(["-serial", "mon:stdio"]).status()?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }

    fn posed(&self) -> Posed<'_> {
        Posed { board: self.parts.board, image: &self.image, memory_mib: self.memory_mib }
    }

    /// Does something with each, as many at once as there are processors; what went wrong.
    fn each<T: Sync>(&self, items: &[T], deed: impl Fn(usize, &T) -> anyhow::Result<()> + Sync) -> Vec<String> {
        let (next, wrong) = (Mutex::new(items.iter()), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            // They are in this thread's namespaces.
            for worker in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                let (next, wrong, deed) = (&next, &wrong, &deed);
                scope.spawn(move || {
                    while let Some(item) = next.lock().ok().and_then(|mut it| it.next()) {
                        if let Err(error) = deed(worker, item)
                            && let Ok(mut wrong) = wrong.lock()
                        {
                            println!("{error:#}");
                            wrong.push(format!("{error:#}"));
                        }
                    }
                });
            }
        });
        wrong.into_inner().unwrap_or_default()
    }

    fn folder_name(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Does something in a network of its own, with a registry in it, which a board that is booted there reaches as
/// `10.0.2.2:5000`.
/// Namespaces are those of a thread.
///
/// # Errors
/// What the work says.
pub fn outside<T: Send>(work: impl FnOnce(&Outside) -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut outside = Outside::new()?;
            outside.start_registry("")?;
            work(&outside)
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// QEMU for the virtual machines of the tests, in the version of Debian stable. In that of Debian 12 a machine with two
/// processors stands still now and then, inside of its own kernel: 3 of 30 did, and none of 28 in the newer one.
///
/// # Errors
/// When it cannot be fetched.
pub fn for_guests() -> anyhow::Result<()> {
    Emulator::fetch(&["qemu-system-x86"])?.script("qemu-system-x86_64", Path::new(coracle_tests::guest::EMULATOR))
}

/// Of a card, most is empty.
fn copy_card(from: &Path, to: &Path) -> anyhow::Result<()> {
    run(Command::new("cp").arg("--sparse=always").arg(from).arg(to))
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

//! Builds for boards, with nothing but the package registries: the standard library's source from Debian, compiler,
//! linker and C library from the `ziglang` package.

use crate::debian::{Suites, run};
use crate::{edits, install, size};
use anyhow::{Context, bail, ensure};
use coracle_runtime::image::arm;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A machine that we build for.
pub struct Target {
    /// Rust's name.
    pub name: &'static str,
    zig: &'static str,
    /// The least processor that it must run on, as zig names it.
    cpu: &'static str,
    /// How its programs run here, where they can.
    runner: Option<(&'static str, &'static [&'static str])>,
    /// The newest instructions that may be in it, for ARM.
    newest: Option<arm::Version>,
}

/// Boards of 32 bits first: they are why we build at all.
pub const TARGETS: [Target; 4] = [
    Target {
        name: "arm-unknown-linux-musleabihf",
        zig: "arm-linux-musleabihf",
        cpu: "arm1176jzf_s",
        runner: Some(("qemu-arm-static", &["-cpu", "arm1176"])),
        newest: Some(arm::Version::V6K),
    },
    Target {
        name: "armv7-unknown-linux-musleabihf",
        zig: "arm-linux-musleabihf",
        // Some ARMv7 boards (Marvell, early i.MX) have no NEON.
        cpu: "generic+v7a+vfp3d16-neon-d32",
        runner: Some(("qemu-arm-static", &["-cpu", "cortex-a7"])),
        newest: Some(arm::Version::V7),
    },
    Target {
        name: "aarch64-unknown-linux-musl",
        zig: "aarch64-linux-musl",
        cpu: "generic",
        runner: Some(("qemu-aarch64-static", &["-cpu", "cortex-a53"])),
        newest: None,
    },
    Target {
        name: "x86_64-unknown-linux-musl",
        zig: "x86_64-linux-musl",
        cpu: "x86_64",
        runner: None,
        newest: None,
    },
];

/// The profile of tests that run on boards: emulated ones take minutes for code that is not optimized.
const TESTS: &str = "board-tests";

/// What happens at a panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Panic {
    /// As in the product.
    Abort,
    /// A test that panics has failed, and the others go on.
    Unwind,
}

/// Everything that is fetched.
const FOLDER: &str = "target/cross";

/// Where the standard library's source of this very compiler may be.
const SUITES: [&str; 4] = ["stable", "trixie-backports", "forky", "sid"];

/// The version that was tried; each is some 100 MB to fetch.
const ZIG: &str = "0.17.1";

/// `cargo xtask build --target NAME`: the static `coracle`, checked; its path.
///
/// # Errors
/// What could not be fetched, built, or is wrong with the result.
pub fn build(name: &str) -> anyhow::Result<PathBuf> {
    build_with(name, "release")
}

/// `cargo xtask size --target NAME`: prints what each crate adds to that program.
///
/// # Errors
/// As [`build`].
pub fn size(name: &str) -> anyhow::Result<()> {
    size::print(&build_with(name, "symbols")?)
}

/// The demo's program, static, for a board; its path.
///
/// # Errors
/// As [`build`].
pub fn hello(name: &str) -> anyhow::Result<PathBuf> {
    let target = find(name)?;
    let words = ["build", "--profile", "release", "--locked", "-p", "hello"];
    finish(Chain::prepare()?.cargo(target, &words, Panic::Abort), &words)?;
    Ok(Path::new("target").join(target.name).join("release/hello"))
}

fn build_with(name: &str, profile: &str) -> anyhow::Result<PathBuf> {
    let target = find(name)?;
    let chain = Chain::prepare()?;
    let config = edits::config()?;
    let words = ["build", "--profile", profile, "--locked", "-p", "coracle", "--config", &config];
    finish(chain.cargo(target, &words, Panic::Abort), &words)?;
    let program = Path::new("target").join(target.name).join(profile).join("coracle");
    check(target, &program)?;
    let size = std::fs::metadata(&program)?.len();
    println!("{}: {:.2} MiB", program.display(), size as f64 / f64::from(1 << 20));
    Ok(program)
}

/// Crates whose unit tests run as another machine: those that go onto a board.
const TESTED: [&str; 7] = [
    "coracle", "coracle-board-support", "coracle-compose", "coracle-init", "coracle-netconfig", "coracle-runtime",
    "coracle-timesync",
];

/// `cargo xtask test --target NAME`: the unit and property tests of everything that goes onto a board, as that processor.
///
/// # Errors
/// What could not be fetched or built, and tests that fail.
pub fn test(name: &str) -> anyhow::Result<()> {
    let target = find(name)?;
    install::packages(&["qemu-user-static"])?;
    let chain = Chain::prepare()?;
    let config = edits::config()?;
    let mut words = vec!["test", "--profile", TESTS, "--locked", "--lib", "--config", &config];
    words.extend(TESTED.iter().flat_map(|name| ["-p", name]));
    let mut cargo = chain.cargo(target, &words, Panic::Unwind);
    if std::env::var_os(CASES).is_none() {
        // A quarter of the usual: each instruction is translated.
        cargo.env(CASES, "64");
    }
    finish(cargo, &words)
}

/// Rounds of a property test (proptest).
const CASES: &str = "PROPTEST_CASES";

/// Programs of privileged tests, built for a board; by name.
///
/// # Errors
/// What could not be fetched or built.
pub fn suites(name: &str, suites: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let target = find(name)?;
    let chain = Chain::prepare()?;
    let config = edits::config()?;
    let mut words = vec!["test", "--profile", TESTS, "--locked", "--no-run", "--config", &config];
    words.extend(["-p", "coracle-tests", "--message-format", "json-render-diagnostics"]);
    words.extend(suites.iter().flat_map(|name| ["--test", name]));
    let output = chain.cargo(target, &words, Panic::Unwind).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "cargo {} failed", words.join(" "));
    let messages: Vec<serde_json::Value> =
        output.stdout.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let program = |suite: &&str| {
        let message = messages.iter().find(|it| it["target"]["name"] == *suite && it["executable"].is_string());
        message.and_then(|it| it["executable"].as_str()).map(PathBuf::from).with_context(|| format!("no {suite}"))
    };
    suites.iter().map(program).collect()
}

/// A static C program for a board.
///
/// # Errors
/// What could not be fetched or built.
pub fn compile(name: &str, source: &Path, program: &Path) -> anyhow::Result<()> {
    let target = find(name)?;
    let compiler = Chain::prepare()?.folder.join("bin").join(format!("cc-{}", target.name));
    run(Command::new(compiler).args(["-O1", "-static", "-s", "-o"]).arg(program).arg(source))
}

fn find(name: &str) -> anyhow::Result<&'static Target> {
    let known = TARGETS.iter().map(|target| target.name).collect::<Vec<_>>();
    let found = TARGETS.iter().find(|target| target.name == name);
    found.with_context(|| format!("no target {name:?}; there are {}", known.join(", ")))
}

/// What a program says of itself, and that it runs.
fn check(target: &Target, program: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::open(program).with_context(|| program.display().to_string())?;
    if let Some(newest) = target.newest {
        let says = arm::attributes(&file).map_err(anyhow::Error::msg)?.context("it has no ARM attributes")?;
        ensure!(
            says.version <= newest,
            "{} has instructions of {:?}: {newest:?} is the newest",
            target.name,
            says.version
        );
        ensure!(says.hard_float, "{} passes floating point numbers in general registers", target.name);
        ensure!(newest > arm::Version::V6K || !says.simd, "{} has NEON instructions", target.name);
    }
    let Some((runner, words)) = target.runner else { return Ok(()) };
    install::packages(&["qemu-user-static"])?;
    let output = Command::new(runner).args(words).arg(program).arg("--version").output();
    let output = output.with_context(|| format!("starting {runner}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && said.starts_with("coracle "),
        "it does not run under {runner} {words:?}: {said}"
    );
    Ok(())
}

/// The tool chain, unpacked.
struct Chain {
    folder: PathBuf,
    library: PathBuf,
}

impl Chain {
    /// Fetches what is missing.
    fn prepare() -> anyhow::Result<Self> {
        let folder = std::path::absolute(FOLDER)?;
        std::fs::create_dir_all(folder.join("bin"))?;
        let library = standard_library(&folder)?;
        zig(&folder)?;
        let chain = Self { folder, library };
        for tool in ["ar", "ranlib"] {
            chain.script(tool, &format!("{} {tool} \"$@\"", chain.zig()))?;
        }
        for target in &TARGETS {
            // rustc and the cc crate name processors in a way that zig does not know.
            let drop = "for a do shift; case \"$a\" in --target=*|-march=*|-mcpu=*|-mfpu=*|-mfloat-abi=*|-marm|-mthumb) ;; *) set -- \"$@\" \"$a\" ;; esac; done";
            let call =
                format!("{} cc -target {} -mcpu={} -fno-sanitize=all \"$@\"", chain.zig(), target.zig, target.cpu);
            chain.script(&format!("cc-{}", target.name), &format!("{drop}\nexec {call}"))?;
        }
        Ok(chain)
    }

    fn zig(&self) -> String {
        format!("\"{}\" -m ziglang", self.folder.join("zig/bin/python").display())
    }

    fn script(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.folder.join("bin").join(name);
        let text = format!("#!/bin/sh\n{text}\n");
        if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        std::fs::write(&path, text)?;
        Ok(std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?)
    }

    /// cargo for a target, with a standard library that is built for it.
    fn cargo(&self, target: &Target, words: &[&str], panic: Panic) -> Command {
        let tool = |name: &str| self.folder.join("bin").join(name);
        let compiler = tool(&format!("cc-{}", target.name));
        let (lower, upper) = (target.name.replace('-', "_"), target.name.replace('-', "_").to_uppercase());
        println!("cargo {} --target {}", words.join(" "), target.name);
        let mut command = Command::new(env!("CARGO"));
        command.args(words).args(["--target", target.name]);
        // What it makes is looked for there, wherever the rest of this workspace is built.
        command.env("CARGO_TARGET_DIR", "target");
        command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_UNSTABLE_BUILD_STD", "std,panic_abort");
        let mut flags = "-C link-self-contained=no".to_owned();
        if panic == Panic::Abort {
            // Without std's default features: a panic says where it was, and not by which way; a board has no names of
            // functions. And nothing reads the tables by which it would be unwound.
            command.env("CARGO_UNSTABLE_BUILD_STD_FEATURES", "optimize_for_size");
            flags.push_str(" -C force-unwind-tables=no");
        }
        command.env("__CARGO_TESTS_ONLY_SRC_ROOT", &self.library);
        command.env(format!("CARGO_TARGET_{upper}_LINKER"), &compiler);
        command.env(format!("CARGO_TARGET_{upper}_RUSTFLAGS"), flags);
        if let Some((runner, words)) = target.runner {
            command.env(format!("CARGO_TARGET_{upper}_RUNNER"), [&[runner], words].concat().join(" "));
        }
        command.env(format!("CC_{lower}"), &compiler);
        command.env(format!("AR_{lower}"), tool("ar")).env(format!("RANLIB_{lower}"), tool("ranlib"));
        command
    }
}

fn finish(mut cargo: Command, words: &[&str]) -> anyhow::Result<()> {
    let status = cargo.status().context("starting cargo")?;
    if status.success() { Ok(()) } else { bail!("cargo {} failed", words.join(" ")) }
}

/// The source of the standard library, of the compiler's own version, with our edit; its `library` folder.
fn standard_library(folder: &Path) -> anyhow::Result<PathBuf> {
    let output = Command::new("rustc").arg("--version").output().context("starting rustc")?;
    let text = String::from_utf8(output.stdout)?;
    let version = text.split_whitespace().nth(1).context("rustc has no version")?.to_owned();
    let version = version.split('-').next().unwrap_or_default();
    let library = folder.join(format!("suites/rust-src/usr/src/rustc-{version}/library"));
    let std = library.join("std");
    if !std.exists() {
        let suites = Suites::open(&folder.join("suites"), &SUITES)?;
        let all = suites.versions("rust-src")?;
        let fits =
            all.iter().find(|it| it.starts_with(&format!("{version}+")) || it.starts_with(&format!("{version}-")));
        let fits = fits.with_context(|| format!("Debian has no rust-src {version}, but {}", all.join(", ")))?;
        suites.unpack(&format!("rust-src={fits}"))?;
    }
    if !edits::is_applied(&std, edits::STD) {
        edits::apply(&std, edits::STD).context("editing the standard library")?;
    }
    Ok(library)
}

fn zig(folder: &Path) -> anyhow::Result<()> {
    let stamp = folder.join("zig.stamp");
    if std::fs::read_to_string(&stamp).is_ok_and(|version| version == ZIG) {
        return Ok(());
    }
    install::packages(&["python3-venv"])?;
    println!("fetching ziglang {ZIG}");
    run(Command::new("python3").args(["-m", "venv"]).arg(folder.join("zig")))?;
    run(Command::new(folder.join("zig/bin/pip")).args(["-q", "install", &format!("ziglang=={ZIG}")]))?;
    Ok(std::fs::write(stamp, ZIG)?)
}

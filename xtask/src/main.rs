//! Developers' commands: `cargo xtask test`, `cargo xtask demo`.
#![forbid(unsafe_code)]

mod cross;
mod debian;
mod demo;
mod edits;
mod image;
mod install;
mod peers;
mod qemu;
mod size;

use anyhow::{Context, bail};
use std::process::Command;

const USAGE: &str =
    "usage: cargo xtask test [--target NAME] | build [--target NAME] | size [--target NAME] | image --board SLUG | qemu --board SLUG | demo [--board SLUG] [--once] | bench NAME [--json FILE] | edits

  build   the static program for a kind of board, or for all; fetches the tools for it
  demo    a release of two services from a real registry, live; installs what it needs
          --once: without a terminal, asks both services, takes all down, fails when anything was wrong
          --board: on that board in QEMU; the terminal is its console
  bench   a benchmark beside its peer: pull, start, up10, plan, idle, create, exec, oci; soak: creates and kills by
          the thousand; board --board SLUG: what a board needs, in QEMU
  size    what each crate adds to the program, for ARMv6 or another target
  image   a bootable disk image: --board SLUG [--add FOLDER], whose files are put into the root
          [--preload FOLDER]: a project, and its images in the folder `images`, which start at the first boot
          [--without-network]: without NetworkManager and what it needs
  qemu    boots a board's image in QEMU and asks it what a user relies on: --board SLUG
          --without-suites: without the suites of tests that run there, which take minutes
          --harms [WORDS]: instead, boards on which something is wrong; --storm: an hour of ends; --suites [NAME...]: no board,
          but this machine's tests for root with cgroup v2 alone
          --cuts N: instead, power that goes at N moments of each of first boot, pull, start, update and shutdown
  edits   what `cargo build` needs to be told for 32-bit boards, for those who build with tools of their own
  test    formatting, lints and every test of the workspace; installs what the tests need
          --target: unit and property tests of what goes onto a board, as its processor in QEMU";

/// Debian packages that the end-to-end tests use.
const TEST_PACKAGES: &[&str] = &[
    "docker-registry",
    "skopeo",
    "nftables",
    "busybox-static",
    "iproute2",
    "qemu-system-x86",
    "e2fsprogs",
    "systemd",
    // Makers of cards.
    "fdisk",
    "dosfstools",
    // An engine that drives the OCI command line.
    "podman",
    // Judges of the system call filter.
    "python3-seccomp",
    "golang-github-containers-common",
];

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("test") => match &std::env::args().skip(2).collect::<Vec<_>>()[..] {
            [] => test(),
            [flag, name] if flag == "--target" => cross::test(name),
            _ => bail!("{USAGE}"),
        },
        Some("demo") => demonstrate(&std::env::args().skip(2).collect::<Vec<_>>()),
        Some("bench") => bench(&std::env::args().skip(2).collect::<Vec<_>>()),
        Some("build") => build(&std::env::args().skip(2).collect::<Vec<_>>()),
        Some("size") => match &std::env::args().skip(2).collect::<Vec<_>>()[..] {
            [] => cross::size(cross::TARGETS[0].name),
            [flag, name] if flag == "--target" => cross::size(name),
            _ => bail!("{USAGE}"),
        },
        Some("image") => image_of(&std::env::args().skip(2).collect::<Vec<_>>()),
        Some("qemu") => emulate(&std::env::args().skip(2).collect::<Vec<_>>()),
        Some("edits") => {
            println!("{}", edits::config()?);
            Ok(())
        }
        Some("--help" | "-h" | "help") => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("{USAGE}"),
    }
}

fn build(arguments: &[String]) -> anyhow::Result<()> {
    let targets: Vec<&str> = match arguments {
        [] => cross::TARGETS.iter().map(|target| target.name).collect(),
        [flag, name] if flag == "--target" => vec![name],
        _ => bail!("{USAGE}"),
    };
    for target in targets {
        cross::build(target)?;
    }
    Ok(())
}

/// A board in QEMU.
fn emulate(arguments: &[String]) -> anyhow::Result<()> {
    if let Some(reason) = qemu::cannot_run() {
        bail!("boards cannot be emulated here: {reason}");
    }
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--board", slug] => qemu::test::test(image::board::find(slug)?, qemu::test::ALL),
        ["--board", slug, "--without-suites"] => {
            qemu::test::test(image::board::find(slug)?, qemu::test::Questions { suites: &[], ..qemu::test::ALL })
        }
        ["--suites", ref names @ ..] => qemu::suites::test(names),
        ["--board", slug, "--storm"] => qemu::storm::storm(image::board::find(slug)?),
        ["--board", slug, "--harms"] => qemu::harms::harm(image::board::find(slug)?, ""),
        ["--board", slug, "--harms", only] => qemu::harms::harm(image::board::find(slug)?, only),
        ["--board", slug, "--cuts", count] => {
            qemu::cuts::cut(image::board::find(slug)?, count.parse().context("--cuts needs a number")?)
        }
        _ => bail!("{USAGE}"),
    }
}

/// The demo, here or on a board.
fn demonstrate(arguments: &[String]) -> anyhow::Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let once = words.contains(&"--once");
    match words.into_iter().filter(|&word| word != "--once").collect::<Vec<_>>()[..] {
        [] => demo::run_demo(once),
        ["--board", slug] => match qemu::cannot_run() {
            Some(reason) => bail!("boards cannot be emulated here: {reason}"),
            None => qemu::demo::run(image::board::find(slug)?, once),
        },
        _ => bail!("{USAGE}"),
    }
}

/// What a board needs.
fn bench_board(arguments: &[String]) -> anyhow::Result<()> {
    if let Some(reason) = qemu::cannot_run() {
        bail!("boards cannot be emulated here: {reason}");
    }
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (slug, json) = match words[..] {
        ["--board", slug] => (slug, None),
        ["--board", slug, "--json", file] => (slug, Some(file.as_ref())),
        _ => bail!("{USAGE}"),
    };
    qemu::figures::bench(image::board::find(slug)?, json)
}

/// A disk image for a board.
fn image_of(arguments: &[String]) -> anyhow::Result<()> {
    let (mut slug, mut options) = (None, image::Options::default());
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--board" => slug = words.next(),
            "--add" => options.add = Some(words.next().context("--add needs a folder")?.as_ref()),
            "--preload" => options.preload = Some(words.next().context("--preload needs a folder")?.as_ref()),
            "--without-network" => options.network = false,
            _ => bail!("{word:?} is no option of image\n{USAGE}"),
        }
    }
    let board = image::board::find(slug.context("image needs --board SLUG")?)?;
    let image = image::build(board, options, "image")?;
    println!("{} (root slot {:.1} MiB)", image.disk.display(), image.root_bytes as f64 / f64::from(1 << 20));
    Ok(())
}

/// A benchmark beside its peer, in a release build.
fn bench(arguments: &[String]) -> anyhow::Result<()> {
    if let Some(("board", arguments)) = arguments.split_first().map(|(name, rest)| (name.as_str(), rest)) {
        return bench_board(arguments);
    }
    install::packages(TEST_PACKAGES)?;
    install::packages(demo::PACKAGES)?;
    install::packages(&["podman", "crun", "umoci"])?;
    if matches!(arguments.first().map(String::as_str), Some("create" | "exec" | "oci")) {
        install::packages(&["runc", "patchelf", "gcc", "libc6-dev", "golang-github-containers-common"])?;
        peers::crun()?;
    }
    // Both at once, so that what they share is built once; linked statically, as on a board.
    let target = host()?;
    let build = ["build", "--release", "--locked", "-p", "coracle", "-p", "coracle-bench", "--target", &target];
    cargo_with(&build, &[("RUSTFLAGS", "-C target-feature=+crt-static")])?;
    let folder = std::path::absolute(format!("target/{target}/release"))?;
    let program = folder.join("coracle-bench");
    let status = Command::new(&program).args(arguments).env("CORACLE_PROGRAM", folder.join("coracle")).status();
    let status = status.with_context(|| format!("starting {}", program.display()))?;
    if status.success() { Ok(()) } else { bail!("the benchmark failed") }
}

fn test() -> anyhow::Result<()> {
    install::packages(TEST_PACKAGES)?;
    if let Err(error) = peers::docker_compose() {
        // Its test says that it was skipped.
        println!("no Docker Compose to compare with: {error:#}");
    }
    if qemu::cannot_run().is_none() {
        qemu::for_guests()?;
    }
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    cargo(&["test", "--workspace", "--locked"])?;
    demo_if_possible()?;
    boards_if_possible()
}

/// Boards of 32 bits, which Coracle is for: its tests as their processor, and its images on them.
fn boards_if_possible() -> anyhow::Result<()> {
    if let Some(reason) = qemu::cannot_run() {
        println!("boards skipped: {reason}");
        return Ok(());
    }
    cross::test("arm-unknown-linux-musleabihf")?;
    let (first, second) = (image::board::find("raspberry-pi")?, image::board::find("generic-armv7")?);
    // The suites take minutes on an emulated board: once is enough.
    qemu::test::test(first, qemu::test::Questions { radio: false, ..qemu::test::ALL })?;
    qemu::test::test(second, qemu::test::Questions { suites: &[], ..qemu::test::ALL })?;
    image::compare(first)?;
    image::compare(second)
}

/// The README's first command is tested like everything else.
fn demo_if_possible() -> anyhow::Result<()> {
    install::packages(demo::PACKAGES)?;
    match demo::cannot_run() {
        Some(reason) => println!("demo skipped: {reason}"),
        None => demo::run_demo(true)?,
    }
    Ok(())
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    cargo_with(arguments, &[])
}

/// The target that is this machine.
fn host() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("starting rustc")?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names no host")?.to_owned())
}

fn cargo_with(arguments: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<()> {
    println!("cargo {}", arguments.join(" "));
    let mut command = Command::new(env!("CARGO"));
    let status = command.args(arguments).envs(environment.iter().copied()).status().context("starting cargo")?;
    if status.success() { Ok(()) } else { bail!("cargo {} failed", arguments.join(" ")) }
}

//! Pull and unpack of a distribution image of four layers from a registry on loopback.

use crate::figure::Figure;
use crate::podman::Podman;
use anyhow::{Context, ensure};
use coracle_tests::board::{Board, run as command};
use coracle_tests::image::Image;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const ROUNDS: usize = 4;

/// Debian packages whose files are the layers above the base: a Java runtime, a Go tool chain, a compiler library.
const LAYERS: [&str; 3] = ["openjdk-17-jre-headless", "golang-1.19-go", "libllvm14"];

/// Where what was made is kept.
const FOLDER: &str = "target/bench";

pub fn run() -> anyhow::Result<Vec<Figure>> {
    let image = image()?;
    let mut board = Board::new()?;
    board.start_registry("")?;
    let name = board.push(&image, "distribution:1")?;
    let bytes = compressed(&board)?;
    ensure!(bytes >= 150 << 20, "the image has {} MiB compressed", bytes >> 20);
    let (mut ours, mut theirs, mut synced) = (Vec::new(), Vec::new(), Vec::new());
    let (mut umoci, mut peaks) = (Vec::new(), Vec::new());
    // Nothing is removed between rounds: ext4 does not use an inode again for minutes after its file was removed, and
    // looking past thousands of them would be most of what is measured.
    let mut stores = Vec::new();
    for round in 0..ROUNDS {
        let podman = Podman::new(&board.path().join(format!("podman-{round}")))?;
        // Nobody pays for what another has not written yet: we sync, the peers do not.
        nix::unistd::sync();
        let (seconds, peak) = coracle(&board, &name, round)?;
        ours.push(seconds);
        peaks.push(peak);
        nix::unistd::sync();
        let begin = Instant::now();
        podman.run(&["pull", "-q", "--tls-verify=false", &name])?;
        theirs.push(begin.elapsed().as_secs_f64());
        nix::unistd::sync();
        synced.push(begin.elapsed().as_secs_f64());
        stores.push(podman);
        nix::unistd::sync();
        umoci.push(skopeo_umoci(&board, &name, round)?);
    }
    Ok(vec![
        Figure::ratio("wall_vs_podman", &ours, &theirs),
        Figure::ratio("wall_vs_podman_synced", &ours, &synced),
        Figure::of("peak_over_idle_mib", "MiB", &peaks),
        Figure::ratio("wall_vs_skopeo_umoci", &ours, &umoci),
        Figure::of("coracle_s", "s", &ours),
        Figure::of("podman_s", "s", &theirs),
        Figure::of("podman_synced_s", "s", &synced),
        Figure::of("skopeo_umoci_s", "s", &umoci),
        Figure::of("compressed_mib", "MiB", &[bytes as f64 / 1024.0 / 1024.0]),
    ])
}

/// Seconds, and MiB of agent and shim at their peak beyond those before.
fn coracle(board: &Board, name: &str, round: usize) -> anyhow::Result<(f64, f64)> {
    board.start_agent()?;
    let document: serde_json::Value = serde_json::from_str(&board.coracle(&["status"])?)?;
    let pids: Vec<i64> = ["pid", "shim_pid"].iter().filter_map(|it| document[it].as_i64()).collect();
    ensure!(pids.len() == 2, "no agent: {document}");
    let memory = |field: &str| pids.iter().map(|pid| kib(*pid, field).unwrap_or(f64::NAN)).sum::<f64>() / 1024.0;
    let idle = memory("VmRSS:");
    let begin = Instant::now();
    board.coracle(&["pull", name])?;
    let seconds = begin.elapsed().as_secs_f64();
    let peak = memory("VmHWM:") - idle;
    board.coracle(&["shutdown"])?;
    coracle_tests::board::wait_for("its end", || Ok(!board.output(&["status"])?.status.success()))?;
    std::fs::rename(board.data(), board.path().join(format!("data-{round}")))?;
    Ok((seconds, peak))
}

fn kib(pid: i64, field: &str) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn skopeo_umoci(board: &Board, name: &str, round: usize) -> anyhow::Result<f64> {
    let folder = board.path().join(format!("umoci-{round}"));
    std::fs::create_dir_all(&folder)?;
    let begin = Instant::now();
    let copy = ["copy", "--quiet", "--src-tls-verify=false", &format!("docker://{name}"), "oci:layout:it"];
    command(Command::new("skopeo").args(copy).current_dir(&folder))?;
    command(Command::new("umoci").args(["unpack", "--image", "layout:it", "bundle"]).current_dir(&folder))?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Bytes that the registry keeps for the image.
fn compressed(board: &Board) -> anyhow::Result<u64> {
    let text = command(Command::new("du").args(["-sb"]).arg(board.path().join("registry")))?;
    Ok(text.split_whitespace().next().context("no size")?.parse()?)
}

fn image() -> anyhow::Result<Image> {
    std::fs::create_dir_all(FOLDER)?;
    let base = coracle_tests::debian::base(&Path::new(FOLDER).join("base.tar"))?;
    let mut image = Image::new().archive(&base);
    for package in LAYERS {
        image = image.archive(&layer(package)?);
    }
    Ok(image)
}

fn layer(package: &str) -> anyhow::Result<PathBuf> {
    let folder = std::path::absolute(FOLDER)?;
    let archive = folder.join(format!("{package}.tar"));
    if archive.exists() {
        return Ok(archive);
    }
    command(
        Command::new("apt-get")
            .args(["-q", "-o", "APT::Sandbox::User=root", "download", package])
            .current_dir(&folder),
    )?;
    let deb = std::fs::read_dir(&folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|it| it.to_string_lossy().starts_with(&format!("{package}_"))))
        .context("no package was downloaded")?;
    let root = folder.join(package);
    command(Command::new("dpkg").arg("-x").arg(&deb).arg(&root))?;
    command(Command::new("tar").args(["--sort=name", "-cf"]).arg(&archive).arg("-C").arg(&root).arg("."))?;
    std::fs::remove_dir_all(&root)?;
    Ok(archive)
}

//! Installs Debian packages that are missing.

use crate::debian;
use std::process::{Command, Stdio};

/// Installs what is missing. Where that cannot be done (no root, no Debian) it says so and goes on: the tests that
/// need it say that they were skipped.
///
/// # Errors
/// When an installation that was begun fails.
pub fn packages(wanted: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<&str> = wanted.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let root = Command::new("id").arg("-u").output().is_ok_and(|it| it.stdout.starts_with(b"0\n"));
    if !root || Command::new("apt-get").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("not installed, needs root and apt-get: {}", missing.join(" "));
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    // An installation that was broken off blocks every other.
    run(Command::new("dpkg").args(["--configure", "-a"]))?;
    run(Command::new("apt-get").args(["update", "-q"]))?;
    run(Command::new("apt-get").args(["install", "-q", "-y", "--no-install-recommends"]).args(&missing))
}

fn is_installed(package: &str) -> bool {
    let output = Command::new("dpkg-query").args(["-W", "-f=${Status}", package]).output();
    output.is_ok_and(|it| it.stdout.ends_with(b"install ok installed"))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    debian::run(command.env("DEBIAN_FRONTEND", "noninteractive"))
}

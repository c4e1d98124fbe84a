//! Developers' commands: `cargo xtask test`, `cargo xtask demo`.
#![forbid(unsafe_code)]

mod install;

use anyhow::{Context, bail};
use std::process::Command;

const USAGE: &str = "usage: cargo xtask test

  test    formatting, lints and every test of the workspace; installs what the tests need";

/// Debian packages that the end-to-end tests use.
const TEST_PACKAGES: &[&str] = &["docker-registry", "skopeo", "nftables", "busybox-static", "iproute2"];

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("test") => test(),
        Some("--help" | "-h" | "help") => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("{USAGE}"),
    }
}

fn test() -> anyhow::Result<()> {
    install::packages(TEST_PACKAGES)?;
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    cargo(&["test", "--workspace", "--locked"])
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    println!("cargo {}", arguments.join(" "));
    let status = Command::new(env!("CARGO")).args(arguments).status().context("starting cargo")?;
    if status.success() { Ok(()) } else { bail!("cargo {} failed", arguments.join(" ")) }
}

//! `cargo xtask qemu --suites`: the tests for root of this machine in a virtual machine whose only hierarchy is cgroup v2,
//! with Debian's newer kernel. Its root is this machine's, which it can read, and what it writes is in its memory.

use super::busybox;
use super::emulator::Emulator;
use crate::debian::run;
use crate::image::board::{COMMON, find};
use crate::image::{kernel_of, ramdisk::Archive};
use crate::install;
use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// All but those that start machines of their own, and the one that takes hours.
const ALL: &[&str] =
    &["attacks", "fulldisk", "hostile", "images", "network", "oci", "registry", "release", "services"];

/// Memory in MiB: folders of the tests are in it.
const MEMORY: &str = "6144";

/// Seconds of a suite. Every instruction is translated, which makes it ten to thirty times slower.
const LONGEST: u32 = 3600;

/// Modules beside those of boards.
const MODULES: &[&str] = &["virtio_pci", "9p", "9pnet_virtio", "overlay", "nft_compat", "ext4", "crc32c_generic"];

/// Runs suites; none named: all. `SUITE:WORDS`: those of its tests that have the words in their names.
///
/// # Errors
/// Tests that fail there.
pub fn test(names: &[&str]) -> anyhow::Result<()> {
    let names = if names.is_empty() { ALL } else { names };
    install::packages(crate::TEST_PACKAGES)?;
    let programs = build(names)?;
    let board = find("generic-amd64")?;
    let kernel = kernel_of(board)?;
    let folder = std::path::absolute("target/image/suites")?;
    let _ = std::fs::remove_dir_all(&folder);
    let tree = folder.join("ramdisk");
    for name in ["bin", "proc", "sys", "dev", "host", "over", "root", "modules"] {
        std::fs::create_dir_all(tree.join(name))?;
    }
    std::fs::copy(busybox(board, &folder)?, tree.join("bin/busybox"))?;
    let wanted: Vec<&str> = MODULES.iter().chain(COMMON).copied().collect();
    let chosen = coracle_tests::modules::choose(&kernel.modules, &wanted, &[])?;
    coracle_tests::modules::copy(&kernel.modules, &chosen, board.signatures, &tree.join("modules"))?;
    let init = tree.join("init");
    std::fs::write(&init, script(&programs)?)?;
    run(Command::new("chmod").arg("755").arg(&init))?;
    let mut archive = Archive::default();
    archive.tree(&tree, "")?;
    archive.device("dev/console", 5, 1);
    let initial = folder.join("initrd.img");
    std::fs::write(&initial, archive.finish()?)?;
    let mut machine = Emulator::fetch(&["qemu-system-x86"])?.command("qemu-system-x86_64")?;
    machine.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY, "-nic", "none"]);
    machine.args(["-nographic", "-no-reboot", "-append", "console=ttyS0 loglevel=3 panic=-1 cgroup_no_v1=all"]);
    machine.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&initial);
    machine.args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]);
    let log = folder.join("said.log");
    machine.stdin(Stdio::null()).stdout(std::fs::File::create(&log)?);
    ensure!(machine.status()?.success(), "QEMU failed; see {}", log.display());
    let said = std::fs::read(&log)?;
    let said = String::from_utf8_lossy(&said).replace('\r', "");
    for line in said.lines().filter(|line| line.starts_with("SUITE ") || line.starts_with("test ")) {
        println!("{line}");
    }
    for name in names {
        ensure!(said.contains(&format!("SUITE {name}: 0\n")), "{name} failed there; see {}", log.display());
    }
    Ok(())
}

/// Programs of the suites, and ours.
fn build(names: &[&str]) -> anyhow::Result<Vec<(String, PathBuf)>> {
    crate::cargo(&["build", "--locked", "-p", "coracle"])?;
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--locked", "--no-run", "-p", "coracle-tests", "--message-format", "json"]);
    command.args(names.iter().flat_map(|name| ["--test", suite_of(name)]));
    let output = command.stderr(Stdio::inherit()).output().context("starting cargo")?;
    ensure!(output.status.success(), "the suites do not build");
    let messages: Vec<serde_json::Value> =
        output.stdout.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let program = |name: &&str| {
        let suite = suite_of(name);
        let message = messages.iter().find(|it| it["target"]["name"] == suite && it["executable"].is_string());
        let path = message.and_then(|it| it["executable"].as_str()).with_context(|| format!("no {name}"))?;
        Ok(((*name).to_owned(), PathBuf::from(path)))
    };
    names.iter().map(program).collect()
}

fn suite_of(name: &str) -> &str {
    name.split(':').next().unwrap_or(name)
}

fn script(programs: &[(String, PathBuf)]) -> anyhow::Result<String> {
    let (_, first) = programs.first().context("a suite")?;
    let ours = first.parent().and_then(Path::parent).context("a folder")?.join("coracle");
    let here = std::env::current_dir()?;
    let mut text = include_str!("../../../tests/qemu/suites.sh").to_owned();
    for (name, program) in programs {
        text.push_str(&format!(
            "suite {name} {} {} {} {LONGEST} {}\n",
            program.display(),
            ours.display(),
            here.join("tests").display(),
            name.split_once(':').map_or("", |(_, words)| words)
        ));
    }
    text.push_str("poweroff -f\n");
    Ok(text)
}

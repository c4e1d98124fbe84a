//! A disk that is full at any moment of a pull or an order: it is said, nothing half is left, what runs goes on, and
//! with room made the same thing works.

use anyhow::{Context, ensure};
use coracle_tests::archive::Archive;
use coracle_tests::board::{Board, REGISTRY, run, wait_for};
use coracle_tests::needs;
use coracle_tests::proxy::{Fault, Proxy};
use coracle_tests::upload::{Layer, Upload};
use std::process::Command;

const PAGE: u64 = 4096;

const MIB: u64 = 1024 * 1024;

/// A data folder on a file system of so many bytes.
fn mount(board: &Board, bytes: u64) -> anyhow::Result<()> {
    let data = board.data();
    std::fs::create_dir_all(&data)?;
    run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=700"), "tmpfs"]).arg(data))
        .map(drop)
}

fn remount(board: &Board, options: &str) -> anyhow::Result<()> {
    run(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(board.data())).map(drop)
}

/// Puts a file of so many bytes there; as much of it as there is space for.
fn fill(board: &Board) -> anyhow::Result<std::path::PathBuf> {
    let path = board.data().join("filler");
    let mut file = std::fs::File::create(&path)?;
    let full = std::io::copy(&mut std::io::repeat(b'x'), &mut file);
    ensure!(full.is_err_and(|it| it.raw_os_error() == Some(28)), "the disk is not full");
    Ok(path)
}

fn staging_is_empty(board: &Board) -> anyhow::Result<()> {
    let staging = std::fs::read_dir(board.data().join("images/staging"))?;
    let left: Vec<_> = staging.flatten().map(|it| it.file_name()).collect();
    ensure!(left.is_empty(), "staging has {left:?}");
    Ok(())
}

fn end(board: &Board) {
    // The board's own end works on the folder below.
    let _ = board.output(&["down", "-p", "demo"]);
    let _ = board.output(&["shutdown"]);
    let _ = Command::new("umount").arg("-l").arg(board.data()).status();
}

/// Files that take far more than is expected of so small a layer.
fn packed(files: usize, bytes: usize) -> Layer {
    let archive =
        (0..files).fold(Archive::new(), |it, number| it.file(&format!("d{number}/f"), &vec![b'0'; bytes]));
    Layer::of(&archive.end())
}

const UPLOAD: Upload<'_> = Upload { registry: REGISTRY, repository: "packed" };

const NAME: &str = "127.0.0.1:5000/packed:1";

fn pull_fails_cleanly(board: &Board, size: u64, words: &str) -> anyhow::Result<()> {
    let (code, said) = board.refused(&["pull", NAME])?;
    ensure!(code == 6 && said.lines().count() == 1, "{size}: {code} {said}");
    ensure!(said.to_lowercase().contains(words), "{size}: {said}");
    staging_is_empty(board)?;
    ensure!(!board.coracle(&["images"])?.contains("packed"), "{size}: it is shown");
    let target = std::fs::read(board.data().join("target.json"));
    ensure!(target.is_err() || serde_json::from_slice::<serde_json::Value>(&target?).is_ok(), "{size}: target");
    Ok(())
}

#[test]
fn a_pull_that_meets_a_full_disk_at_any_write_says_so_and_leaves_nothing_half() -> anyhow::Result<()> {
    needs!("docker-registry", "ip", "mount");
    let mut board = Board::new()?;
    board.start_registry("")?;
    UPLOAD.image("1", &[packed(3, 100_000), packed(20, MIB as usize)])?;
    mount(&board, 18 * MIB)?;
    board.start_agent()?;
    let fits = |size: u64| -> anyhow::Result<bool> {
        remount(&board, &format!("size={size}"))?;
        let pulled = board.output(&["pull", NAME])?.status.success();
        board.coracle(&["df", "--free"])?;
        Ok(pulled)
    };
    // The smallest size at which it fits, in pages.
    let (mut small, mut large) = (18 * MIB / PAGE, 40 * MIB / PAGE);
    ensure!(!fits(small * PAGE)? && fits(large * PAGE)?, "the sizes are well chosen");
    while large - small > 1 {
        let middle = (small + large) / 2;
        if fits(middle * PAGE)? { large = middle } else { small = middle }
    }
    // Its last writes, page by page, and then some in the middle of the layers.
    let last = (0..12).map(|pages| small - pages);
    for pages in last.chain([small - 100, small - 1000, small - 800]) {
        remount(&board, &format!("size={}", pages * PAGE))?;
        pull_fails_cleanly(&board, pages, "no space")?;
        board.coracle(&["df", "--free"])?;
    }
    remount(&board, &format!("size={}", 60 * MIB))?;
    board.coracle(&["pull", NAME])?;
    let layers = std::fs::read_dir(board.data().join("images/layers"))?.flatten();
    let files = layers.flat_map(|layer| std::fs::read_dir(layer.path()).into_iter().flatten().flatten());
    let sizes = files.map(|folder| std::fs::read(folder.path().join("f")).map_or(0, |it| it.len() as u64));
    ensure!(sizes.sum::<u64>() == 300_000 + 20 * MIB, "with room made it is whole");
    end(&board);
    Ok(())
}

#[test]
fn a_disk_without_inodes_is_named_as_such() -> anyhow::Result<()> {
    needs!("docker-registry", "ip", "mount");
    let mut board = Board::new()?;
    board.start_registry("")?;
    UPLOAD.image("1", &[packed(300, 10)])?;
    mount(&board, 64 * MIB)?;
    board.start_agent()?;
    for inodes in [60, 200, 400] {
        remount(&board, &format!("nr_inodes={inodes}"))?;
        pull_fails_cleanly(&board, inodes, "takes no more files (inodes)")?;
    }
    remount(&board, "nr_inodes=5000")?;
    board.coracle(&["pull", NAME])?;
    end(&board);
    Ok(())
}

#[test]
fn an_image_that_cannot_fit_is_refused_before_its_first_byte() -> anyhow::Result<()> {
    needs!("docker-registry", "skopeo", "busybox", "ip", "mount");
    let board = Board::with_app()?;
    let noise: Vec<u8> = (0..20 * MIB as u32).map(|it| (it.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let plain = Archive::new().file("noise", &noise).end();
    let layer = Layer { form: "tar", diff_id: coracle_runtime::image::digest_of(&plain), blob: plain };
    let image = Upload { registry: REGISTRY, repository: "large" }.image("1", &[layer])?;
    let blob = image["layers"][0]["digest"].as_str().context("a digest")?.to_owned();
    mount(&board, 40 * MIB)?;
    let proxy = Proxy::start("127.0.0.1:5001", REGISTRY, Fault::CutBodyAfter(usize::MAX / 2))?;
    board.compose("services: {web: {image: \"127.0.0.1:5001/large:1\", command: sleep 999}}")?;
    board.start_agent()?;
    let (code, said) = board.refused(&["up", "-d", "--plain-http", "127.0.0.1:5001"])?;
    let last = said.lines().last().unwrap_or_default();
    ensure!(code == 6 && last.contains("the images need 61 MiB") && last.contains("could free"), "{code} {said}");
    ensure!(
        !proxy.heads().is_empty() && !proxy.heads().iter().any(|it| it.contains(&blob)),
        "the layer was asked for"
    );
    ensure!(board.refused(&["ps"])?.0 == 3, "the order was not taken");
    end(&board);
    Ok(())
}

#[test]
fn services_and_orders_go_on_while_the_disk_is_full_and_the_rest_follows_by_itself() -> anyhow::Result<()> {
    needs!("docker-registry", "skopeo", "busybox", "ip", "mount", "nft");
    let board = Board::with_app()?;
    UPLOAD.image("1", &[packed(1, 10)])?;
    mount(&board, 64 * MIB)?;
    let web = "web: {image: \"127.0.0.1:5000/app:1\", command: sleep 999, init: true, stop_grace_period: 0s}";
    board.compose(&format!("services: {{{web}}}"))?;
    board.start_agent()?;
    board.coracle(&["up", "-d"])?;
    let first = board.service("web")?["container"].clone();
    let filler = fill(&board)?;
    let before = std::fs::read(board.data().join("target.json"))?;
    // Every state write until none is possible: each is old or new.
    board.coracle(&["stop", "web"])?;
    board.wait_for_service("web", "state", "exited".into())?;
    let stopped = std::fs::read(board.data().join("target.json"))?;
    ensure!(stopped != before, "the order is kept on a full disk");
    fill_the_rest(&board)?;
    board.compose(&format!(
        "services: {{{web}, more: {{image: \"127.0.0.1:5000/app:1\", command: sleep 999, init: true}}}}"
    ))?;
    let output = board.output(&["up", "-d"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    let last = said.lines().last().unwrap_or_default();
    ensure!(
        code == Some(6) && last.contains("identity.json: No space left"),
        "{code:?} {said}\n{}",
        board.log("agent.log")
    );
    let target = std::fs::read(board.data().join("target.json"))?;
    serde_json::from_slice::<serde_json::Value>(&target).context("the target is readable")?;
    // An agent that starts on a full disk takes over what is there.
    board.kill_agent()?;
    board.start_agent()?;
    ensure!(board.service("web")?["container"] == first, "web is known");
    // What it tries now fails yet: the order that follows is given to an agent that has seen it.
    wait_for("the new agent's first try", || Ok(board.coracle(&["status"])?.contains("No space left")))?;
    std::fs::remove_file(&filler)?;
    let _ = std::fs::remove_file(board.data().join("filler2"));
    board.coracle(&["up", "-d"])?;
    for name in ["web", "more"] {
        board.wait_for_service(name, "state", "running".into())?;
    }
    // A disk that fills up later: what fails is tried again without anybody's doing.
    let filler = fill(&board)?;
    fill_the_rest(&board)?;
    board.compose(&format!(
        "services: {{{web}, late: {{image: \"127.0.0.1:5000/app:1\", command: sleep 999, init: true}}}}"
    ))?;
    let (code, said) = board.refused(&["up", "-d"])?;
    ensure!(code == 6, "{code} {said}");
    ensure!(board.service("web")?["state"] == "running", "what runs goes on");
    std::fs::remove_file(&filler)?;
    board.wait_for_service("late", "state", "running".into())?;
    end(&board);
    Ok(())
}

/// What a state write had left.
fn fill_the_rest(board: &Board) -> anyhow::Result<()> {
    let path = board.data().join("filler2");
    let mut file = std::fs::File::create(&path)?;
    ensure!(std::io::copy(&mut std::io::repeat(b'x'), &mut file).is_err(), "the disk is not full");
    Ok(())
}

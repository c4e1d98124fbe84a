//! From the command to the running process, image present, network and overlay included.

use crate::figure::Figure;
use crate::podman::Podman;
use coracle_tests::board::{Board, REGISTRY};
use coracle_tests::image::Image;
use std::time::Instant;

const ROUNDS: usize = 15;
const ROUNDS_OF_TEN: usize = 7;

fn board() -> anyhow::Result<(Board, Podman)> {
    let mut board = Board::new()?;
    board.start_registry("")?;
    let image = board.push(&Image::busybox()?, "app:1")?;
    let podman = Podman::new(&board.path().join("podman"))?;
    podman.run(&["pull", "-q", "--tls-verify=false", &image])?;
    board.compose("services: {}\n")?;
    board.coracle(&["pull", &image])?;
    Ok((board, podman))
}

fn project(services: usize) -> String {
    let mut text = String::from("services:\n");
    for number in 0..services {
        text.push_str(&format!(
            "  s{number}: {{image: \"{REGISTRY}/app:1\", stop_grace_period: 0s, command: sleep 1000}}\n"
        ));
    }
    text
}

fn ours(board: &Board) -> anyhow::Result<f64> {
    let begin = Instant::now();
    board.coracle(&["up", "-d"])?;
    let seconds = begin.elapsed().as_secs_f64();
    board.coracle(&["down"])?;
    Ok(seconds * 1000.0)
}

fn run(
    services: usize,
    rounds: usize,
    theirs: impl Fn(&Podman) -> anyhow::Result<f64>,
) -> anyhow::Result<Vec<Figure>> {
    let (board, podman) = board()?;
    board.start_agent()?;
    board.compose(&project(services))?;
    let (mut mine, mut peers) = (Vec::new(), Vec::new());
    // The first round of both fills caches.
    for round in 0..=rounds {
        let (ours, theirs) = (ours(&board)?, theirs(&podman)?);
        if round > 0 {
            mine.push(ours);
            peers.push(theirs);
        }
    }
    drop(board);
    Ok(vec![
        Figure::ratio("wall_vs_podman", &mine, &peers),
        Figure::of("coracle_ms", "ms", &mine),
        Figure::of("podman_ms", "ms", &peers),
    ])
}

/// One service.
pub fn one() -> anyhow::Result<Vec<Figure>> {
    run(1, ROUNDS, |podman| {
        let begin = Instant::now();
        podman.run(&[
            "run",
            "-d",
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1000:1000",
            &format!("{REGISTRY}/app:1"),
            "sleep",
            "1000",
        ])?;
        let seconds = begin.elapsed().as_secs_f64();
        podman.run(&["rm", "-f", "-t", "0", "-a"])?;
        Ok(seconds * 1000.0)
    })
}

/// Ten services at once; podman's ten commands run side by side.
pub fn ten() -> anyhow::Result<Vec<Figure>> {
    run(10, ROUNDS_OF_TEN, |podman| {
        let begin = Instant::now();
        let mut children = Vec::new();
        for _ in 0..10 {
            let mut command = podman.command();
            command.args([
                "run",
                "-d",
                "--ulimit",
                "nofile=1024:1024",
                "--ulimit",
                "nproc=1000:1000",
                &format!("{REGISTRY}/app:1"),
                "sleep",
                "1000",
            ]);
            children.push(command.stdout(std::process::Stdio::null()).spawn()?);
        }
        for mut child in children {
            anyhow::ensure!(child.wait()?.success(), "podman run failed");
        }
        let seconds = begin.elapsed().as_secs_f64();
        podman.run(&["rm", "-f", "-t", "0", "-a"])?;
        Ok(seconds * 1000.0)
    })
}

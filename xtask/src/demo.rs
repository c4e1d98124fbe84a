//! The demo: a release of two services from a real registry, in namespaces of its own. Nothing of the machine's own
//! network is changed.

use crate::{TEST_PACKAGES, cargo, install};
use anyhow::{Context, ensure};
use coracle_tests::board::{Board, http, missing, run, wait_for};
use coracle_tests::image::{Entry, Image};
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the demo's files lie.
const FOLDER: &str = "target/demo";

/// The program in both images.
const PROGRAM: &str = "usr/local/bin/hello";

/// Debian packages beside those of the tests.
pub const PACKAGES: &[&str] = &["mmdebstrap"];

/// Why the demo cannot run on this machine.
pub fn cannot_run() -> Option<String> {
    missing(&["docker-registry", "skopeo", "nft", "ip", "mmdebstrap"])
}

/// Runs the demo; `once` without a terminal: asks both services, takes all down, and fails when anything was wrong.
///
/// # Errors
/// Whatever was wrong.
pub fn run_demo(once: bool) -> anyhow::Result<()> {
    install::packages(TEST_PACKAGES)?;
    install::packages(PACKAGES)?;
    if let Some(reason) = cannot_run() {
        anyhow::bail!("the demo {reason}");
    }
    cargo(&["build", "--locked", "-p", "coracle", "-p", "hello"])?;
    // The board's namespaces are those of the thread that makes it: what comes after the demo has its network again.
    let demo = std::thread::spawn(move || on_a_board(once)).join();
    demo.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn on_a_board(once: bool) -> anyhow::Result<()> {
    std::fs::create_dir_all(FOLDER)?;
    let base = coracle_tests::debian::base(&Path::new(FOLDER).join("base.tar"))?;
    let mut board = Board::new()?;
    println!("starting a registry, pushing two images");
    board.start_registry("")?;
    for (name, words) in [("clock", &["clock"][..]), ("page", &["page", "clock:80"])] {
        let base = Image::new().archive(&base);
        board.push(&image(base, Path::new("target/debug/hello"), words)?, &format!("demo/{name}:1"))?;
    }
    board.compose(&std::fs::read_to_string("examples/compose.yaml").context("reading examples/compose.yaml")?)?;
    let command = wrapper(&board)?;
    println!("coracle up -d");
    let status = board.command(&["up", "-d"]).status()?;
    ensure!(status.success(), "coracle up failed: {status}");
    show(&board)?;
    if once {
        return ask_and_take_down(&board);
    }
    println!("\nIt runs in a network of its own. Try, from another terminal:\n");
    for line in ["ps", "logs -f", "exec clock sh", "stats", "restart clock", "df", "down"] {
        println!("  {} {line}", command.display());
    }
    println!("  nsenter -t {} -n curl http://127.0.0.1:8080/", board.registry_pid().unwrap_or_default());
    println!("\nEnter ends the demo.");
    std::io::stdout().flush()?;
    if std::io::stdin().is_terminal() {
        std::io::stdin().read_line(&mut String::new())?;
    }
    board.coracle(&["down", "-v"]).map(drop)
}

fn show(board: &Board) -> anyhow::Result<()> {
    wait_for("the page", || Ok(http("127.0.0.1:8080", "/")?.contains("The clock says")))?;
    print!("{}", board.coracle(&["ps"])?);
    let answer = http("127.0.0.1:8080", "/")?;
    print!("http://127.0.0.1:8080/ says: {}", answer.split("\r\n\r\n").nth(1).unwrap_or_default());
    print!("{}", board.coracle(&["df"])?);
    Ok(())
}

/// Asks both services, looks at what is told about them, and takes everything down.
fn ask_and_take_down(board: &Board) -> anyhow::Result<()> {
    let page = http("127.0.0.1:8080", "/")?;
    ensure!(page.contains("200 OK") && page.contains("seconds since 1970"), "the page says {page:?}");
    let clock = board.coracle(&["exec", "page", &format!("/{PROGRAM}"), "ask", "clock:80"])?;
    ensure!(clock.starts_with("it is "), "the clock says {clock:?}");
    ensure!(board.service("clock")?["health"] == "healthy", "the clock is not healthy");
    ensure!(board.coracle(&["logs", "clock"])?.contains("GET / HTTP/1.0"), "the clock's log lacks the request");
    board.coracle(&["down", "-v"])?;
    let links = run(Command::new("ip").args(["-o", "link"]))?;
    let tables = run(Command::new("nft").args(["list", "tables"]))?;
    ensure!(!links.contains("cor-") && !tables.contains("coracle"), "something is left: {links}{tables}");
    println!("all was right");
    Ok(())
}

/// An image of the example's program on a base; `words`: what it is to do.
///
/// # Errors
/// When the program cannot be read.
pub fn image(base: Image, program: &Path, words: &[&str]) -> anyhow::Result<Image> {
    let program = std::fs::read(program).context("reading the built example")?;
    let layer = vec![Entry::File(PROGRAM.into(), 0o755, program), Entry::Folder("var/notes".into(), 0o777)];
    let command: Vec<String> =
        [format!("/{PROGRAM}")].into_iter().chain(words.iter().map(|&it| it.to_owned())).collect();
    Ok(base.layer(layer).with("Entrypoint", json!(command)).with("Cmd", json!([])))
}

/// A script that runs `coracle` on the demo's board from outside of its namespaces.
fn wrapper(board: &Board) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(Path::new(FOLDER).join("coracle"))?;
    let script = format!(
        "#!/bin/sh\ncommand=$1; shift\nexec nsenter -t {} -n -m -- {} \"$command\" --data {} --run {} -p demo \"$@\"\n",
        board.registry_pid().unwrap_or_default(),
        coracle_tests::board::coracle().display(),
        board.data().display(),
        board.run_folder().display(),
    );
    std::fs::write(&path, script)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

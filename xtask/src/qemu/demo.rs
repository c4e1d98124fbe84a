//! `cargo xtask demo --board SLUG`: the demo's release on an emulated board.

use super::{Given, Lab, Parts, is, outside};
use crate::cross;
use crate::demo::image;
use crate::image::board::Board;
use anyhow::{Context, ensure};
use coracle_tests::board::Board as Outside;
use std::path::Path;
use std::time::Duration;

/// A board that pulls two images and starts them, translated.
const LONGEST: Duration = Duration::from_secs(420);

/// Boots it; `once`: asks both services, takes all down, and fails when anything was wrong. Else the terminal is the
/// board's console.
///
/// # Errors
/// Whatever was wrong.
pub fn run(board: &'static Board, once: bool) -> anyhow::Result<()> {
    let given = Given { name: "demo", script: include_str!("../../../tests/qemu/demo.sh"), modules: &[] };
    let lab = Lab::new(board, given, |_, _, share| compose(share))?;
    let program = cross::hello(board.target)?;
    let card = lab.card("card.img")?;
    outside(|outside| {
        push(&lab.parts, outside, &program)?;
        if !once {
            return lab.talk(&card);
        }
        let heard = lab.boot(1, &card, "demo=once", LONGEST)?;
        let (answers, said) = (&heard.answers, heard.said.join("\n"));
        for (name, wanted) in
            [("lacks", ""), ("up", "0"), ("health", "\"health\":\"healthy\""), ("down", "0"), ("left", "0")]
        {
            is(answers, name, wanted).with_context(|| said.clone())?;
        }
        let page = answers.get("page").map(String::as_str).unwrap_or_default();
        ensure!(
            page.contains("Hello from a container") && page.contains("seconds since 1970"),
            "{page:?}\n{said}"
        );
        ensure!(answers.get("clock").is_some_and(|it| it.starts_with("it is ")), "{said}");
        ensure!(super::number(answers, "log")? > 0.0, "the clock's log lacks the request\n{said}");
        println!("all was right");
        Ok(())
    })
}

/// The demo's compose file, for a board.
///
/// # Errors
/// As the file system says.
pub fn compose(share: &Path) -> anyhow::Result<()> {
    Ok(std::fs::write(share.join("demo.yaml"), include_str!("../../../examples/compose.yaml"))?)
}

/// Puts the demo's images into the registry.
///
/// # Errors
/// When it does not take them.
pub fn push(parts: &Parts, outside: &Outside, program: &Path) -> anyhow::Result<()> {
    for (name, words) in [("clock", &["clock"][..]), ("page", &["page", "clock:80"])] {
        outside.push(&image(parts.app()?, program, words)?, &format!("demo/{name}:1"))?;
    }
    Ok(())
}

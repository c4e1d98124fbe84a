//! Thousands of creates, hundreds of kills: what hangs, leaks, changes or is lost is counted, and named on standard error.

use crate::figure::Figure;
use anyhow::{Context, bail};
use coracle_tests::soak::{Extent, board, soak};

/// As much as nobody tries by hand.
const EXTENT: Extent = Extent { creates: 5_000, kills: 300, seed: 1 };

pub fn run(mut options: impl Iterator<Item = String>) -> anyhow::Result<Vec<Figure>> {
    let mut extent = EXTENT;
    while let Some(name) = options.next() {
        let value = options.next().with_context(|| format!("{name} takes a number"))?;
        let number = || value.parse().with_context(|| format!("{name}: {value:?} is no number"));
        match name.as_str() {
            "--creates" => extent.creates = number()?,
            "--kills" => extent.kills = number()?,
            "--seed" => extent.seed = value.parse().with_context(|| format!("{name}: {value:?} is no number"))?,
            _ => bail!("{name:?} is no option: --creates, --kills, --seed, --json"),
        }
    }
    eprintln!("soak: {} creates, {} kills, seed {}", extent.creates, extent.kills, extent.seed);
    let begin = std::time::Instant::now();
    let board = board()?;
    let found = soak(&board, extent)?;
    let seconds = begin.elapsed().as_secs_f64();
    let wrong =
        [("hangs", &found.hangs), ("leaks", &found.leaks), ("restarted", &found.restarted), ("lost", &found.lost)];
    let count = |name, number: usize| Figure::of(name, "count", &[number as f64]);
    let mut figures = Vec::new();
    for (name, lines) in wrong {
        lines.iter().for_each(|line| eprintln!("{name}: {line}"));
        figures.push(count(name, lines.len()));
    }
    figures.push(count("creates", found.creates));
    figures.push(count("creates_failing", found.failing));
    figures.push(count("kills", extent.kills));
    figures.push(Figure::of("soak_s", "s", &[seconds]));
    Ok(figures)
}

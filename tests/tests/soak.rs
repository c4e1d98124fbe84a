//! The soak in small: `cargo xtask bench soak` runs thousands of creates and hundreds of kills.

use anyhow::ensure;
use coracle_tests::needs;
use coracle_tests::soak::{Extent, board, soak};

#[test]
fn creates_and_kills_hang_leak_restart_and_lose_nothing() -> anyhow::Result<()> {
    needs!("docker-registry", "skopeo", "nft", "busybox", "ip");
    let board = board()?;
    let found = soak(&board, Extent { creates: 60, kills: 10, seed: 7 })?;
    ensure!(found.creates >= 90 && found.failing * 4 <= found.creates, "{found:#?}");
    let wrong = [&found.hangs, &found.leaks, &found.restarted, &found.lost];
    ensure!(wrong.iter().all(|it| it.is_empty()), "{found:#?}\n{}", board.log("agent.log"));
    Ok(())
}

//! The agent: makes this device equal to what is wanted.
//!
//! ```text
//! compose file ──cli──> Target ─┐
//!                               ├─ plan(current, target, now) ─> [Step] ─> execute ─> observe again
//! shim, store, kernel ─observe─> Current ─┘    pure                          idempotent
//! ```
//!
//! **Invariant.** Only [`plan`] decides; only `execute` changes anything; only the loop in `reconcile` tries again.
#![forbid(unsafe_code)]

#[macro_use]
pub mod cli;
pub mod clock;
pub mod control;
pub mod current;
mod durable;
pub mod engine;
mod execute;
pub mod exit;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod health;
pub mod logfile;
pub mod oci;
pub mod paths;
pub mod plan;
pub mod restart;
pub mod settings;
pub mod status;
pub mod target;
mod translate;
mod usage;
pub mod wanted;

use paths::Paths;

/// Threads for what blocks: one pull (which has two more of its own), and short file and netlink work beside it.
const BLOCKING_THREADS: usize = 4;

/// An idle thread ends after this: before memory is given back.
const KEEP_THREADS: std::time::Duration = std::time::Duration::from_secs(1);

/// Runs the agent until SIGTERM, SIGINT or an order ends it. Containers go on.
///
/// # Errors
/// When it cannot begin, or no shim can be had.
pub fn run_agent(paths: Paths) -> anyhow::Result<()> {
    coracle_runtime::memory::use_one_heap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(KEEP_THREADS)
        .build()?;
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, run(paths));
    // A pull that blocks on its registry is no reason to stay.
    runtime.shutdown_background();
    result
}

async fn run(paths: Paths) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (engine, handle) = engine::Loop::new(paths).await?;
    let sender = handle.sender.clone();
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::task::spawn_local(async move {
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
        // The loop may be at its end already.
        let _ = sender.send(engine::Message::End).await;
    });
    tokio::select! {
        served = control::serve(handle) => Ok(served?),
        ended = engine.run() => ended,
    }
}

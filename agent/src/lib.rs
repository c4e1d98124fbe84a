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
pub mod device;
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
pub mod supervisor;
pub mod target;
mod translate;
mod usage;
pub mod wanted;

use paths::Paths;
use supervisor::Mode;

/// Threads for what blocks: one pull (which has two more of its own), and short file and netlink work beside it.
const BLOCKING_THREADS: usize = 4;

/// An idle thread ends after this: before memory is given back.
const KEEP_THREADS: std::time::Duration = std::time::Duration::from_secs(1);

/// Runs the agent until SIGTERM, SIGINT or an order ends it. Containers go on, unless SIGPWR says that the machine goes
/// down: then services are stopped in their order first.
///
/// # Errors
/// When it cannot begin, or no shim can be had.
pub fn run_agent(paths: Paths, mode: Mode) -> anyhow::Result<()> {
    coracle_runtime::memory::use_one_heap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(KEEP_THREADS)
        .build()?;
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, run(paths, mode));
    // A pull that blocks on its registry is no reason to stay.
    runtime.shutdown_background();
    result
}

async fn run(paths: Paths, mode: Mode) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (engine, handle) = engine::Loop::new(paths, mode).await?;
    let sender = handle.sender.clone();
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut power = signal(SignalKind::from_raw(nix::libc::SIGPWR))?;
    tokio::task::spawn_local(async move {
        loop {
            let message = tokio::select! {
                _ = power.recv() => engine::Message::GoDown,
                _ = term.recv() => engine::Message::End,
                _ = interrupt.recv() => engine::Message::End,
            };
            // The loop may be at its end already.
            if sender.send(message).await.is_err() {
                return;
            }
        }
    });
    tokio::select! {
        served = control::serve(handle) => Ok(served?),
        ended = engine.run() => ended,
    }
}

//! The shim from the agent's side: found, or started beside the agent so that it outlives it.

use super::Message;
use crate::paths::Paths;
use anyhow::Context;
use coracle_runtime::shim::{Client, Connection, Event, Request};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::sync::mpsc;

/// Looks for a shim that was just started.
const TRIES: u32 = 200;
/// Between two looks; together four seconds, for a board under load.
const TRY_PAUSE: Duration = Duration::from_millis(20);

/// Connects to the shim and hears its events; starts one when there is none.
///
/// # Errors
/// When none can be started, or it speaks another protocol.
pub async fn connect(paths: &Paths) -> anyhow::Result<Connection> {
    ensure(paths).await?;
    let connection = Client::connect(&paths.shim_socket()).await?;
    connection.client.tell(Request::Subscribe, &[]).await.context("subscribing to the shim's events")?;
    Ok(connection)
}

/// Starts the shim when none listens.
///
/// # Errors
/// When it does not come up.
pub async fn ensure(paths: &Paths) -> anyhow::Result<()> {
    use coracle_runtime::shim::ClientError;
    match Client::connect(&paths.shim_socket()).await {
        Err(ClientError::Connect { .. }) => {}
        Ok(_) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let mut child = spawn(paths).context("starting the shim")?;
    for _ in 0..TRIES {
        if Client::connect(&paths.shim_socket()).await.is_ok() {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            anyhow::bail!("the shim ended at once: {status}; its log is {}", log(paths).display());
        }
        tokio::time::sleep(TRY_PAUSE).await;
    }
    anyhow::bail!("the shim does not listen at {}", paths.shim_socket().display())
}

fn log(paths: &Paths) -> std::path::PathBuf {
    paths.run.join("shim.log")
}

fn spawn(paths: &Paths) -> anyhow::Result<std::process::Child> {
    let log = std::fs::File::create(log(paths))?;
    let program = std::env::current_exe()?;
    let child = Command::new(program)
        .arg("shim")
        .arg("--run")
        .arg(&paths.run)
        .env_clear()
        .envs(std::env::var("CORACLE_LOG").map(|level| ("CORACLE_LOG", level)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // Signals for the agent's group (Ctrl-C) are not for the shim.
        .process_group(0)
        .spawn()?;
    Ok(child)
}

/// Passes the shim's events to the loop.
pub fn forward(mut events: mpsc::Receiver<Event>, sender: mpsc::Sender<Message>) {
    tokio::task::spawn_local(async move {
        while let Some(event) = events.recv().await {
            if sender.send(Message::Shim(event)).await.is_err() {
                return;
            }
        }
        // The loop may be at its end.
        let _ = sender.send(Message::ShimGone).await;
    });
}

//! The shim from the agent's side: found, or started beside the agent so that it outlives it.

use super::Message;
use super::probe::{End, Execs};
use crate::paths::Paths;
use crate::supervisor::Mode;
use anyhow::Context;
use coracle_runtime::shim::{Client, ClientError, Connection, Event, Request, STATE};
use std::cell::RefCell;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Looks for a shim that was just started.
const TRIES: u32 = 200;
/// Looks for a shim that somebody else starts, after a pause of up to 30 s when it ended again and again.
const WAITS: u32 = 3000;
/// Between two looks; of ours together four seconds, for a board under load.
const TRY_PAUSE: Duration = Duration::from_millis(20);

/// Until a shim goes on as another program: it has no worker under way then. One that takes longer does so when it can.
const LONGEST_HANDOVER: Duration = Duration::from_secs(30);

/// Connects to the shim and hears its events; starts one when there is none.
///
/// # Errors
/// When none can be started, or it speaks another protocol.
pub async fn connect(paths: &Paths, mode: Mode) -> anyhow::Result<Connection> {
    if mode.supervised {
        wait(paths).await?;
    } else {
        ensure(paths).await?;
    }
    let mut connection = Client::connect(&paths.shim_socket()).await?;
    if let Some(program) = other_program(connection.shim_pid) {
        match connection.client.ask(Request::Replace { program, state: STATE }, &[]).await {
            Ok(_) => {
                let gone = async { while connection.events.recv().await.is_some() {} };
                if tokio::time::timeout(LONGEST_HANDOVER, gone).await.is_ok() {
                    if mode.supervised {
                        wait(paths).await?
                    } else {
                        ensure(paths).await?
                    }
                    connection = Client::connect(&paths.shim_socket()).await?;
                    tracing::info!(pid = connection.shim_pid, "the shim is this program now");
                } else {
                    tracing::warn!("the shim stays another program for now");
                }
            }
            // It is of use as it is: both speak the same protocol.
            Err(error) => tracing::warn!(%error, "the shim stays another program"),
        }
    }
    connection.client.tell(Request::Subscribe, &[]).await.context("subscribing to the shim's events")?;
    Ok(connection)
}

/// This program, when the shim is another one: the agent was replaced, and takes the shim along.
fn other_program(shim: i32) -> Option<String> {
    let own = std::env::current_exe().ok()?.into_os_string().into_string().ok()?;
    let theirs = File::open(format!("/proc/{shim}/exe")).ok()?;
    let same = same_file(File::open(&own).ok()?, theirs).ok()?;
    (!same).then_some(own)
}

/// The same file, or, where the shim runs from a copy in memory, the same bytes.
fn same_file(one: File, other: File) -> std::io::Result<bool> {
    let (first, second) = (one.metadata()?, other.metadata()?);
    if (first.dev(), first.ino()) == (second.dev(), second.ino()) {
        return Ok(true);
    }
    if first.len() != second.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let count = left.len().min(right.len());
        if left[..count] != right[..count] {
            return Ok(false);
        }
        if count == 0 {
            return Ok(true);
        }
        one.consume(count);
        other.consume(count);
    }
}

/// Waits for a shim that somebody else starts.
async fn wait(paths: &Paths) -> anyhow::Result<()> {
    for _ in 0..WAITS {
        match Client::connect(&paths.shim_socket()).await {
            Err(ClientError::Connect { .. }) => tokio::time::sleep(TRY_PAUSE).await,
            connected => return Ok(connected.map(drop)?),
        }
    }
    anyhow::bail!("there is no shim at {}", paths.shim_socket().display())
}

/// Starts the shim when none listens.
///
/// # Errors
/// When it does not come up.
pub async fn ensure(paths: &Paths) -> anyhow::Result<()> {
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

/// Where the shim's events go.
#[derive(Clone)]
pub struct Ears {
    /// To the loop: what changes the plan.
    pub sender: mpsc::Sender<Message>,
    /// To readers of logs: that there is more. The loop does not wake for a line of log.
    pub logs: watch::Sender<u64>,
    /// To health checks: how their commands ended.
    pub execs: Rc<RefCell<Execs>>,
}

impl Ears {
    /// Passes a connection's events on until the shim is gone.
    pub fn listen(&self, mut events: mpsc::Receiver<Event>) {
        let ears = self.clone();
        tokio::task::spawn_local(async move {
            while let Some(event) = events.recv().await {
                if let Event::ExecEnded { exec, exit, timed_out, output } = event {
                    ears.execs.borrow_mut().ended(exec, End { code: exit.code, timed_out, output });
                    continue;
                }
                ears.logs.send_modify(|count| *count += 1);
                let changes = !matches!(event, Event::LogGrew { .. });
                if changes && ears.sender.send(Message::ShimChanged).await.is_err() {
                    return;
                }
            }
            // The loop may be at its end.
            let _ = ears.sender.send(Message::ShimGone).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_are_the_same_program() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.path().join(name), bytes).expect("written");
            File::open(folder.path().join(name)).expect("opened")
        };
        let long = vec![7; 100_000];
        let mut other = long.clone();
        other[99_999] = 8;
        let same = |one: File, other: File| same_file(one, other).expect("read");
        assert!(same(file("a", &long), file("b", &long)));
        assert!(!same(file("a", &long), file("c", &other)));
        assert!(!same(file("a", &long), file("d", &long[1..])));
        assert!(same(File::open(folder.path().join("a")).expect("opened"), file("a", &other)));
    }
}

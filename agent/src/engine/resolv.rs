//! Services in the host's network ask the host's name servers: their `/etc/resolv.conf` follows the host's. A board's
//! network is often there only after its services.

use super::{Engine, Message};
use crate::translate;
use coracle_runtime::network::resolv::{self, Changes};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// Pause after a change before the file is looked at: it is written more than once when a link comes up.
const PAUSE: Duration = Duration::from_millis(200);

/// What is known of the host's servers.
#[derive(Default)]
pub struct HostNames {
    /// As containers have it.
    text: String,
    watch: Option<Watch>,
}

struct Watch {
    folder: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Engine {
    /// Brings every file that follows the host's to what the host says now.
    pub(super) fn look_at_host_names(&mut self) {
        self.listen_for_host_names();
        let text = resolv::read();
        if text == self.host_names.text {
            return;
        }
        for (id, known) in &self.containers {
            let Some(wanted) = self.target.projects.get(&known.identity.project) else { continue };
            let Some(service) = wanted.project.services.get(&known.identity.service) else { continue };
            if !translate::follows_host(&wanted.project, service) {
                continue;
            }
            if let Err(error) = rewrite(&self.context.paths.files(id).join("resolv.conf"), &text) {
                tracing::warn!(container = %id, %error, "its name servers are those of before");
            }
        }
        self.host_names.text = text;
    }

    /// The folder may come later than the agent, and a link may lead elsewhere.
    fn listen_for_host_names(&mut self) {
        let folder = resolv::folder();
        let is_heard = self.host_names.watch.as_ref().is_some_and(|watch| !watch.task.is_finished());
        if is_heard && self.host_names.watch.as_ref().map(|watch| &watch.folder) == folder.as_ref() {
            return;
        }
        self.host_names.watch = folder.and_then(|folder| match Changes::listen(&folder) {
            Ok(changes) => {
                let task = tokio::task::spawn_local(listen(changes, self.ears.sender.clone()));
                Some(Watch { folder, task })
            }
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "changes of name servers are seen later");
                None
            }
        });
    }
}

async fn listen(changes: Changes, sender: mpsc::Sender<Message>) {
    while changes.wait().await.is_ok() {
        tokio::time::sleep(PAUSE).await;
        if sender.send(Message::HostNamesTouched).await.is_err() {
            return;
        }
    }
}

/// In its place: the container has this very file mounted. Whoever reads it meanwhile finds servers in any case.
fn rewrite(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = match std::fs::File::options().write(true).open(path) {
        // The service has a file of its own there.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

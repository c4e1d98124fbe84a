//! Notices at once when the kernel kills processes of a container for want of memory, also when it runs on.

use super::{Engine, Message};
use crate::clock::unix_now;
use coracle_runtime::container::cgroup::{self, OomWatch};
use std::time::Duration;
use tokio::sync::mpsc;

/// Time between two looks at one container: one that lives at its limit has hundreds of notices a second, and a
/// process that is being killed may take as long to be gone.
const PAUSE: Duration = Duration::from_secs(1);

/// A task that listens for one run of a container.
pub struct Watch {
    run: u64,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Engine {
    /// Where a container is in the cgroup hierarchy.
    pub(super) fn cgroup_of(&self, id: &str) -> String {
        let privileged = self.containers.get(id).is_some_and(|known| known.identity.privileged);
        self.context.paths.cgroup_of(id, privileged)
    }

    /// Begins and ends to listen, so that every running container is listened to.
    pub(super) fn update_oom_watches(&mut self) {
        let running =
            |id: &String| self.shim.get(id).filter(|it| it.pid.is_some()).map(|it| it.started_boottime_ns);
        self.oom_watches.retain(|id, watch| running(id) == Some(watch.run));
        let new: Vec<(String, u64)> = self
            .shim
            .keys()
            .filter(|id| !self.oom_watches.contains_key(*id))
            .filter_map(|id| Some((id.clone(), running(id)?)))
            .collect();
        for (id, run) in new {
            match OomWatch::listen(&self.cgroup_of(&id)) {
                Ok(watch) => {
                    let task = tokio::task::spawn_local(listen(watch, id.clone(), self.ears.sender.clone()));
                    self.oom_watches.insert(id.clone(), Watch { run, task });
                }
                // It ends just now, or the kernel counts no memory.
                Err(error) => tracing::debug!(container = %id, %error, "kills for want of memory are seen later"),
            }
            // What happened before somebody listened.
            self.note_oom_kills(&id);
        }
    }

    /// Notes how many of a container's processes the kernel killed so far in this run.
    pub(super) fn note_oom_kills(&mut self, id: &str) {
        let kills = cgroup::oom_kills(&self.cgroup_of(id));
        let Some(known) = self.containers.get_mut(id) else { return };
        if kills > known.record.oom_kills {
            tracing::warn!(container = %id, kills, "the kernel killed a process for want of memory");
            known.record.oom_kills = kills;
            known.record.last_oom_kill = Some(unix_now());
            self.save_record(id);
        }
    }
}

async fn listen(watch: OomWatch, id: String, sender: mpsc::Sender<Message>) {
    while watch.wait().await.is_ok() {
        // v1 tells before it kills: the second look sees what the first was too early for.
        for pause in [Duration::ZERO, PAUSE] {
            tokio::time::sleep(pause).await;
            if sender.send(Message::OutOfMemory(id.clone())).await.is_err() {
                return;
            }
        }
    }
}

//! Runs health checks: one task for each running container that has one.

use super::{Engine, Message};
use crate::clock::boot_now;
use crate::current::Health;
use crate::health::{Check, Verdict};
use coracle_runtime::container::ExecSpec;
use coracle_runtime::container::cgroup::Kills;
use coracle_runtime::shim::{Client, Reply, Request};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Ends of commands that nobody waits for yet are kept: a command can end before its number is known. A number's
/// waiter comes within one turn, so few are ever there.
const MAX_EARLY: usize = 64;

/// Time that the shim may take to begin a check.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The end of a command.
#[derive(Debug)]
pub struct End {
    /// Exit code.
    pub code: i32,
    /// It was killed at its limit.
    pub timed_out: bool,
    /// What it wrote, bounded by the shim.
    pub output: Vec<u8>,
}

/// Who waits for the end of which command.
#[derive(Debug, Default)]
pub struct Execs {
    waiting: BTreeMap<u64, oneshot::Sender<End>>,
    early: VecDeque<(u64, End)>,
}

impl Execs {
    /// Passes an end to whoever waits for it.
    pub fn ended(&mut self, exec: u64, end: End) {
        match self.waiting.remove(&exec) {
            Some(waiter) => drop(waiter.send(end)),
            None => {
                if self.early.len() == MAX_EARLY {
                    self.early.pop_front();
                }
                self.early.push_back((exec, end));
            }
        }
    }

    fn wait(&mut self, exec: u64) -> oneshot::Receiver<End> {
        let (sender, receiver) = oneshot::channel();
        match self.early.iter().position(|(known, _)| *known == exec) {
            Some(at) => drop(self.early.remove(at).map(|(_, end)| sender.send(end))),
            None => drop(self.waiting.insert(exec, sender)),
        }
        receiver
    }
}

/// A result of a check.
pub struct Probed {
    /// Container id.
    pub id: String,
    /// Start of the run that was checked.
    pub run: u64,
    /// The verdict with it.
    pub verdict: Verdict,
    /// What it said.
    pub output: String,
}

/// A task that checks one run of a container.
pub struct Handle {
    run: u64,
    check: Check,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Prober {
    client: Client,
    execs: Rc<RefCell<Execs>>,
    sender: mpsc::Sender<Message>,
    id: String,
    cgroup: String,
    run: u64,
    check: Check,
    verdict: Verdict,
}

impl Engine {
    /// Starts and ends probes so that every running container with a check has one.
    pub(super) fn update_probes(&mut self) {
        let mut wanted: BTreeMap<String, (u64, Check)> = BTreeMap::new();
        for (id, status) in self.shim.iter().filter(|(_, status)| status.pid.is_some()) {
            if let Some(check) = self.check_of(id) {
                wanted.insert(id.clone(), (status.started_boottime_ns, check));
            }
        }
        self.probes.retain(|id, probe| {
            wanted.get(id).is_some_and(|(run, check)| *run == probe.run && *check == probe.check)
        });
        for (id, (run, check)) in wanted {
            if self.probes.contains_key(&id) {
                continue;
            }
            let record = &self.containers[&id].record;
            // An agent that was restarted goes on with what was known.
            let known = matches!(record.health, Health::Healthy | Health::Unhealthy);
            let verdict = if known {
                Verdict { health: record.health, failures: record.health_failures }
            } else {
                Verdict::default()
            };
            let prober = Prober {
                client: self.context.client.clone(),
                execs: Rc::clone(&self.ears.execs),
                sender: self.ears.sender.clone(),
                id: id.clone(),
                cgroup: self.cgroup_of(&id),
                run,
                check: check.clone(),
                verdict,
            };
            let task = tokio::task::spawn_local(prober.run());
            self.probes.insert(id, Handle { run, check, task });
        }
    }

    pub(super) fn stop_probes(&mut self) {
        self.probes.clear();
    }

    /// The check of the container's service as it is wanted now.
    pub(super) fn check_of(&self, id: &str) -> Option<Check> {
        let identity = &self.containers.get(id)?.identity;
        let wanted = self.target.projects.get(&identity.project)?;
        let service = wanted.project.services.get(&identity.service)?;
        let image = self.images.values().find(|image| image.digest == identity.image);
        crate::health::check(
            service.healthcheck.as_ref(),
            image.and_then(|image| image.config.healthcheck.as_ref()),
        )
    }

    pub(super) fn probed(&mut self, probed: &Probed) {
        let same_run = self.shim.get(&probed.id).is_some_and(|it| it.started_boottime_ns == probed.run);
        let Some(known) = self.containers.get_mut(&probed.id).filter(|_| same_run) else { return };
        let record = &mut known.record;
        if record.health != probed.verdict.health {
            tracing::info!(container = %probed.id, health = ?probed.verdict.health, "health changed");
        }
        let changed = (record.health, record.health_failures) != (probed.verdict.health, probed.verdict.failures);
        record.health = probed.verdict.health;
        record.health_failures = probed.verdict.failures;
        if !probed.output.is_empty() {
            record.note_output(&probed.output);
        }
        if changed {
            self.save_record(&probed.id);
        }
    }
}

impl Prober {
    async fn run(mut self) {
        let started = Duration::from_nanos(self.run);
        loop {
            let age = boot_now().saturating_sub(started);
            tokio::time::sleep(self.verdict.pause(&self.check, age)).await;
            let (success, output) = self.once().await;
            let age = boot_now().saturating_sub(started);
            self.verdict = self.verdict.after(&self.check, success, age);
            let probed = Probed {
                id: self.id.clone(),
                run: self.run,
                verdict: self.verdict,
                output: if success { String::new() } else { output },
            };
            if self.sender.send(Message::Probe(probed)).await.is_err() {
                return;
            }
        }
    }

    /// One check. One that cannot be begun has failed.
    async fn once(&self) -> (bool, String) {
        let spec = ExecSpec {
            args: self.check.args.clone(),
            env: Vec::new(),
            cwd: None,
            user: None,
            tty: false,
            terminal_size: None,
            privileged: false,
            contained: true,
        };
        let request = Request::Exec {
            id: self.id.clone(),
            spec: serde_json::to_vec(&spec).unwrap_or_default(),
            timeout: BEGIN_TIMEOUT,
            limit: Some(self.check.timeout),
        };
        let watch = Kills::of(&self.cgroup);
        let exec = match self.client.ask(request, &[]).await {
            Ok((Reply::ExecStarted { exec, .. }, _)) => exec,
            Ok(_) => return (false, "the shim gave an answer of another kind".to_owned()),
            Err(error) => return (false, error.to_string()),
        };
        let end = self.execs.borrow_mut().wait(exec);
        let Ok(end) = end.await else {
            return (false, "the shim is gone".to_owned());
        };
        let said = String::from_utf8_lossy(&end.output).into_owned();
        match watch.killed(end.code) {
            _ if end.timed_out => (false, format!("no end within {:?}: {said}", self.check.timeout)),
            Some(shortage) => (false, format!("out of memory, {shortage}: {said}")),
            None => (end.code == 0, said),
        }
    }
}

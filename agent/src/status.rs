//! What the agent tells about itself: the same words for people (`ps`) and programs (`--json`).

use crate::current::Health;
use crate::engine::Exit;
use crate::plan::{Problem, Step};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// A snapshot of everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Projects by name.
    pub projects: BTreeMap<String, ProjectStatus>,
    /// Steps that are still to be done, with what they wait for.
    pub steps: Vec<Step>,
    /// What cannot be planned.
    pub problems: Vec<Problem>,
    /// What somebody should know.
    pub notices: Vec<String>,
    /// What is wrong with the board: what it booted without, and what its `config.json` says in vain.
    #[serde(default)]
    pub lacks: Vec<String>,
    /// Steps under way.
    pub running: Vec<RunningStep>,
    /// Steps that failed and will be tried again.
    pub failures: Vec<Failure>,
    /// Counts the orders taken so far: a client that gave one waits for a status of at least its number.
    pub order: u64,
    /// How often the firewall's rules were lost and put back.
    pub rules_repaired: u64,
    /// Version of the agent.
    pub version: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Process id of the shim.
    pub shim_pid: i32,
}

/// A project.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProjectStatus {
    /// Where it came from.
    pub file: PathBuf,
    /// Services by name.
    pub services: BTreeMap<String, ServiceStatus>,
}

/// A service and its container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Container id; empty while there is none.
    pub container: String,
    /// Image as written in the file.
    pub image: String,
    /// Digest of the image's manifest.
    pub image_digest: String,
    /// `running`, `exited`, `created`, `absent`.
    pub state: String,
    /// Exit code of the last run, while it does not run.
    pub exit_code: Option<i32>,
    /// What its checks say.
    pub health: Health,
    /// Failed checks in a row.
    pub health_failures: u32,
    /// What the last failed check said.
    pub health_output: String,
    /// Process id of its main process.
    pub pid: Option<i32>,
    /// When it was started, seconds since 1970.
    pub started: Option<u64>,
    /// Restarts by policy since it was last started by order.
    pub restarts: u32,
    /// Processes killed for want of memory in this run.
    pub oom_kills: u64,
    /// When the last of them was seen, seconds since 1970.
    pub last_oom_kill: Option<u64>,
    /// Its last ends.
    pub exits: Vec<Exit>,
    /// Addresses by network.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    /// Published ports, `0.0.0.0:8080->80/tcp`.
    pub ports: Vec<String>,
    /// How much of its log is kept in files; `None`: it is in memory alone.
    pub log_files: Option<crate::logfile::Bounds>,
    /// Log bytes that were dropped.
    pub log_dropped: u64,
    /// What it waits for.
    pub waits: Vec<String>,
    /// It waits for something that will not come by itself.
    pub stuck: bool,
    /// It is stopped by hand.
    pub stopped: bool,
    /// Its cgroup.
    pub cgroup: String,
}

/// A step under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunningStep {
    /// Which.
    pub key: String,
    /// The project that it belongs to; empty for what belongs to none.
    pub project: String,
    /// Bytes done and in all, for a pull.
    pub bytes: Option<(u64, u64)>,
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Which.
    pub key: String,
    /// Why, one line.
    pub reason: String,
    /// How often in a row.
    pub count: u32,
    /// Trying again can help without anybody's doing.
    pub transient: bool,
    /// Exit code for a command that waits for it.
    pub code: crate::exit::Code,
}

impl Status {
    /// Steps of a project that a command which waits for it waits for: all but the next try of a service whose
    /// restart policy will have it.
    pub fn pending<'a>(&'a self, project: &'a str) -> impl Iterator<Item = &'a Step> {
        self.steps.iter().filter(move |step| step.concerns(project) && !step.is_another_try())
    }

    /// Nothing of a project is to be done or under way.
    pub fn is_settled(&self, project: &str) -> bool {
        self.pending(project).next().is_none() && !self.running.iter().any(|step| step.project == project)
    }

    /// Steps that failed for want of space, when a project has no others that are under way. They are tried again,
    /// but somebody has to make room first: a command does not wait for that.
    pub fn without_space<'a>(&'a self, project: &'a str) -> Option<Vec<&'a Step>> {
        let pending: Vec<&Step> = self.pending(project).collect();
        let failed = |step: &&Step| {
            let key = step.action.key();
            self.failures.iter().any(|failure| failure.key == key && failure.code == crate::exit::Code::NoSpace)
        };
        let rest = pending.iter().all(|step| !step.is_ready());
        let full: Vec<&Step> = pending.into_iter().filter(failed).collect();
        (rest && !full.is_empty()).then_some(full)
    }

    /// Steps that will not become ready by themselves, when a project has no others left.
    pub fn stuck<'a>(&'a self, project: &'a str) -> Option<Vec<&'a Step>> {
        let pending: Vec<&Step> = self.pending(project).collect();
        let keys = crate::plan::stuck(&pending);
        let all = !pending.is_empty() && pending.iter().all(|step| keys.contains(&step.action.key()));
        all.then(|| pending.into_iter().filter(|step| step.is_stuck()).collect())
    }
}

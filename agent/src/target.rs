//! What is wanted: the accepted projects, kept on disk.
//!
//! Written beside, synced, renamed; a file that cannot be read is put aside, and the device goes on with what was wanted
//! before, whole.

use crate::durable;
use coracle_compose::{Project, Restart};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Everything that is wanted of this device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Target {
    /// Projects by name.
    pub projects: BTreeMap<String, Wanted>,
    /// Projects whose volumes are to be removed, by order of `down --volumes`.
    pub purge: BTreeSet<String>,
    /// Images (full references) that stay without a project: fetched or imported by hand, or left by `down`.
    pub kept: BTreeSet<String>,
}

/// A project that is wanted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wanted {
    /// The project.
    pub project: Project,
    /// The file that it came from, for people.
    pub file: PathBuf,
    /// Services that were stopped by hand.
    pub stopped: BTreeSet<String>,
    /// How often a service was restarted or recreated by hand: a container of an older round is replaced.
    pub rounds: BTreeMap<String, Round>,
    /// How its images are fetched.
    pub registries: Registries,
}

/// Orders given by hand so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Round {
    /// Restarts: the same container is started again.
    pub restart: u64,
    /// Recreations: a new container takes its place.
    pub recreate: u64,
}

/// How registries are reached, beside the system's own settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registries {
    /// `host[:port]` that plain HTTP is allowed for.
    pub plain_http: Vec<String>,
    /// Files with certificate authorities, PEM.
    pub ca_files: Vec<PathBuf>,
    /// A Docker configuration with credentials.
    pub docker_config: Option<PathBuf>,
}

impl Wanted {
    /// True when the service shall run now.
    pub fn wants_running(&self, service: &str) -> bool {
        let running = self.project.services.get(service).is_some_and(|it| it.running != Some(false));
        running && !self.stopped.contains(service)
    }

    /// The orders given for a service.
    pub fn round(&self, service: &str) -> Round {
        self.rounds.get(service).copied().unwrap_or_default()
    }
}

impl Target {
    /// Reads the target; a broken file is put aside, and the one before it is taken.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn load(path: &Path) -> std::io::Result<Self> {
        Ok(durable::read_json_or_previous(path)?.unwrap_or_default())
    }

    /// Writes the target, from its reserve when the disk is full.
    ///
    /// # Errors
    /// As the file system says.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        durable::write_json_with_care(path, self)
    }

    /// The same, with every service stopped by hand.
    #[must_use]
    pub fn all_stopped(&self) -> Self {
        let mut target = self.clone();
        for wanted in target.projects.values_mut() {
            wanted.stopped = wanted.project.services.keys().cloned().collect();
        }
        target
    }

    /// After a boot: `always` means always, also for what was stopped by hand (Docker's rule; `unless-stopped` is
    /// the other one). True when something changed.
    pub fn forget_stops_of_always(&mut self) -> bool {
        let mut changed = false;
        for wanted in self.projects.values_mut() {
            let services = &wanted.project.services;
            let before = wanted.stopped.len();
            wanted.stopped.retain(|name| services.get(name).is_none_or(|it| it.restart != Restart::Always));
            changed |= wanted.stopped.len() != before;
        }
        changed
    }
}

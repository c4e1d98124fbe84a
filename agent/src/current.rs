//! What is: a snapshot of images, containers, networks, volumes and rules, taken before each plan.

use crate::target::Round;
use coracle_runtime::image::ImageConfig;
use coracle_runtime::network::subnet::{Foreign, Range};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

/// A moment of the boot clock (`CLOCK_BOOTTIME`): it never jumps, and a sleeping board's timers do not stand still.
pub type Moment = Duration;

/// Everything that a plan depends on, beside the target.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Current {
    /// Whole images in the store by full reference.
    pub images: BTreeMap<String, KnownImage>,
    /// Manifest digests of others that lost their name.
    pub unnamed: BTreeSet<String>,
    /// What pulls that were broken off left in the store is to go.
    pub remains: bool,
    /// References that were ordered to be fetched again.
    pub stale: BTreeSet<String>,
    /// Containers by id.
    pub containers: BTreeMap<String, Container>,
    /// Networks by bridge name.
    pub networks: BTreeMap<String, LiveNetwork>,
    /// Ranges of the host's own routes and addresses.
    pub foreign: Foreign,
    /// Named volumes: project and name.
    pub volumes: BTreeSet<(String, String)>,
    /// Rule sets in force by project.
    pub rules: BTreeMap<String, String>,
    /// Steps that failed, by [`crate::plan::Action::key`].
    pub failures: BTreeMap<String, Failed>,
}

/// An image of the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownImage {
    /// Manifest digest.
    pub digest: String,
    /// How it is run.
    pub config: ImageConfig,
}

/// A container that has a folder on disk, runs, or both.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// Who it is.
    pub identity: Identity,
    /// What it does.
    pub state: State,
    /// Addresses by network name, while it has some.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    /// Restarts by the agent since it was last started by order.
    pub restarts: u32,
    /// Of the last start.
    pub round: u64,
}

/// What is written on disk about a container when it is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// Project.
    pub project: String,
    /// Service.
    pub service: String,
    /// Digest over everything that makes the container what it is.
    pub definition: String,
    /// The image's manifest digest.
    pub image: String,
    /// Services that it was started after: they are stopped after it.
    pub after: BTreeSet<String>,
    /// Signal that asks it to end.
    pub stop_signal: i32,
    /// Milliseconds between that signal and SIGKILL.
    pub stop_grace_ms: u64,
    /// It is privileged.
    #[serde(default)]
    pub privileged: bool,
    /// Orders to recreate so far.
    pub recreate: u64,
    /// When it was made, seconds since 1970.
    pub created: u64,
}

impl Identity {
    /// The orders it stems from.
    pub fn is_of(&self, round: Round) -> bool {
        self.recreate >= round.recreate
    }
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It has a folder and was not started since boot.
    Created,
    /// Its main process runs.
    Running {
        /// Since when.
        since: Moment,
        /// What its checks say.
        health: Health,
    },
    /// Its main process ended.
    Ended {
        /// Exit code, 128 and more for signals.
        code: i32,
        /// When.
        at: Moment,
        /// Ends in a row without a good run between them; decides the pause.
        streak: u32,
        /// It was ended by our order.
        ordered: bool,
    },
}

/// What health checks say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// There is no check.
    #[default]
    None,
    /// No verdict yet.
    Starting,
    /// The last check succeeded.
    Healthy,
    /// Too many checks in a row failed.
    Unhealthy,
}

/// A network that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveNetwork {
    /// Project.
    pub project: String,
    /// Name in the project.
    pub name: String,
    /// Its range.
    pub range: Range,
    /// The bridge's own address.
    pub gateway: Ipv4Addr,
    /// Digest of its definition.
    pub definition: String,
    /// No way out.
    pub internal: bool,
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Why, one line.
    pub reason: String,
    /// How often in a row.
    pub count: u32,
    /// Not tried again before.
    pub until: Moment,
    /// Trying again can help without anybody's doing.
    pub transient: bool,
}

impl Container {
    /// True while the main process runs.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }
}

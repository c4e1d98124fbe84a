//! The agent's own socket: one JSON document a line, for the command line and for programs of the same host.
//!
//! A connection carries one request; its answers end with `done` or `refused`, or go on until the asker leaves.
//! The socket lies in the run folder, which is closed to everybody but the agent's user.

mod client;
mod logs;
mod preflight;
mod server;

pub use client::{Agent, ClientError};
pub use preflight::Preflight;
pub use server::serve;

use crate::engine::Refusal;
use crate::plan::Plan;
use crate::status::Status;
use crate::target::{Registries, Wanted};
use coracle_runtime::image::{Freed, Usage};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Bytes of one request: a project document with five hundred services and its inline files.
pub const MAX_REQUEST: u64 = 8 * 1024 * 1024;

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// A project is wanted.
    Up {
        /// The project.
        wanted: Box<Wanted>,
        /// All of its containers are made anew.
        recreate: bool,
        /// Its images are asked for again.
        pull: bool,
    },
    /// A project is not wanted any more.
    Down {
        /// Its name.
        project: String,
        /// Its volumes go too.
        volumes: bool,
    },
    /// Services are stopped by hand; none named: all.
    Stop {
        /// Project.
        project: String,
        /// Services.
        services: Vec<String>,
    },
    /// They are wanted again.
    Start {
        /// Project.
        project: String,
        /// Services.
        services: Vec<String>,
    },
    /// They are stopped and started.
    Restart {
        /// Project.
        project: String,
        /// Services.
        services: Vec<String>,
    },
    /// What would be done for a project.
    Plan {
        /// The project.
        wanted: Box<Wanted>,
    },
    /// One snapshot.
    Status,
    /// Every snapshot from now on.
    Watch,
    /// Log lines.
    Logs(LogRequest),
    /// Fetch images and keep them.
    Pull {
        /// References.
        images: Vec<String>,
        /// How.
        registries: Registries,
    },
    /// Take images from an archive or folder.
    Import {
        /// OCI layout folder, or archive of one, or `docker save` archive.
        path: PathBuf,
        /// Name in place of those inside.
        name: Option<String>,
    },
    /// Images of the store.
    Images,
    /// Bytes of the data folder.
    Usage,
    /// Remove images that no project wants.
    Free,
    /// End the agent, and the shim when no container runs.
    Shutdown,
}

/// Which log lines.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogRequest {
    /// Project.
    pub project: String,
    /// Services; none: all.
    pub services: Vec<String>,
    /// Go on with what comes.
    pub follow: bool,
    /// Last lines of each service; `None`: all.
    pub tail: Option<usize>,
    /// Not before, nanoseconds since 1970.
    pub since: Option<u64>,
    /// Not after, nanoseconds since 1970.
    pub until: Option<u64>,
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// An order was taken.
    Taken {
        /// Its number.
        order: u64,
        /// The plan as it is then.
        plan: Plan,
    },
    /// A plan, and what it fetches.
    Planned {
        /// The plan.
        plan: Plan,
        /// Images that would be fetched.
        preflight: Preflight,
    },
    /// A snapshot.
    Status(Box<Status>),
    /// A log line.
    Log(LogLine),
    /// How far a pull is.
    Progress {
        /// Image.
        image: String,
        /// Bytes.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// An image that is in the store now.
    Image(ImageInfo),
    /// Bytes.
    Usage(Box<DataUsage>),
    /// What was freed.
    Freed(Freed),
    /// All was answered.
    Done,
    /// It was not done.
    Refused(Refusal),
}

/// An image of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Full reference.
    pub name: String,
    /// Manifest digest.
    pub digest: String,
    /// `linux/arm/v6`.
    pub platform: String,
    /// Layers.
    pub layers: usize,
    /// Bytes of its files.
    pub size: u64,
}

/// Where the bytes of the data folder are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataUsage {
    /// Images.
    pub images: Usage,
    /// Writable layers by container.
    pub containers: Vec<(String, u64)>,
    /// Volumes by project and name.
    pub volumes: Vec<(String, u64)>,
    /// Log files by project and service.
    pub logs: Vec<(String, u64)>,
    /// Unfinished removals.
    pub staging: u64,
    /// Everything else: the target and what was put aside.
    pub other: u64,
    /// Bytes that [`Request::Free`] would free.
    pub freeable: u64,
    /// Bytes free on the file system.
    pub available: u64,
}

/// A log line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Service.
    pub service: String,
    /// Arrival, nanoseconds since 1970.
    pub unix_ns: u64,
    /// It came on standard error.
    pub stderr: bool,
    /// The text; bytes that are no UTF-8 are replaced.
    pub text: String,
    /// More of the same line follows.
    pub continues: bool,
    /// Bytes that were dropped before it.
    pub dropped: u64,
}

//! The OCI runtime specification 1.2 as a runtime's command line has it: bundles, states, hooks, resources.
//!
//! ```text
//! bundle ──Bundle::load──> refused whole, or made by a worker: cgroups, device program, libcontainer, launcher
//! start ──FIFO──> launcher: hooks inside, system call filter, the program
//! ```
//!
//! Containers are made as the agent's are: by a worker that goes into their cgroups itself, with our device program,
//! our system call filter, and libcontainer for namespaces, mounts and privileges.
//!
//! **Invariant.** What a configuration asks for is applied or refused by name before anything is made ([`fields`]).

#[cfg(any(test, fuzzing))]
use serde_json::Value;

pub mod bundle;
mod create;
mod error;
mod exec;
pub mod features;
pub mod fields;
mod helper;
pub mod hooks;
mod listener;
mod operate;
mod process;
mod resources;
mod state;
pub mod statistics;
mod systemd;
pub mod template;

pub use create::{Create, create};
pub use error::OciError;
pub use exec::{Change, Exec, exec};
pub use helper::run as helper;
pub use operate::{delete, pause, processes, reap, resume, signal, start, state, take_orphans, update};
pub(crate) use process::limit_number;
pub use state::{State, Status, list};

/// Everything that decides about a configuration, and makes nothing.
///
/// # Errors
/// Why it is refused, one line.
#[cfg(any(test, fuzzing))]
pub(crate) fn decide(text: &[u8]) -> Result<Value, String> {
    let (mut config, spec) = bundle::parse(text).map_err(|unfit| match unfit {
        bundle::Unfit::Unreadable(reason) => reason,
        bundle::Unfit::Refused { field, reason } => format!("{field}: {reason}"),
    })?;
    crate::container::launcher::unsupported(&spec);
    let kept_nowhere = crate::container::filters::Filters { folder: std::path::Path::new("/proc/none") };
    let prepared = process::prepare(&config["process"], config["linux"].get("seccomp"), kept_nowhere);
    let prepared = prepared.map_err(|error| error.to_string())?;
    prepared.typed().map_err(|error| error.to_string())?;
    if let Some(limits) = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()) {
        resources::decide(limits).map_err(|error| error.to_string())?;
    }
    if config["process"]["args"] == serde_json::json!([]) {
        // It was not there.
        config["process"] = Value::Null;
    }
    Ok(config)
}

/// Version of the specification that is followed.
pub const VERSION: &str = "1.2.0";

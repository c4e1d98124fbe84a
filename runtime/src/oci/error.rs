//! Why an operation of the OCI command line failed.

use crate::container::cgroup::entry::CgroupError;
use crate::shim::Failure;
use nix::errno::Errno;
use std::path::{Path, PathBuf};

/// Why an operation failed. Messages are one line, in the words that engines look for.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The configuration cannot be read.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The configuration asks for what is not to be had.
    #[error("config.json: {field}: {reason}")]
    Refused {
        /// The field.
        field: String,
        /// Why.
        reason: String,
    },
    /// Not a name for a container.
    #[error("invalid container ID {0:?}: letters, digits, `_`, `+`, `-` and `.` are taken, 1 to {MAX_ID} of them")]
    InvalidId(String),
    /// The name is taken.
    #[error("container with id {0:?} exists already")]
    Exists(String),
    /// There is no such container.
    #[error("container {0:?} does not exist")]
    DoesNotExist(String),
    /// The container is in another state than the operation needs.
    #[error("cannot {operation} container {id:?}: it is {status}")]
    WrongState {
        /// What was to be done.
        operation: &'static str,
        /// The container.
        id: String,
        /// What it is.
        status: &'static str,
    },
    /// A hook failed.
    #[error("error running {kind} hook #{number}: {reason}")]
    Hook {
        /// Kind as in the configuration.
        kind: &'static str,
        /// Counted from 0.
        number: usize,
        /// Why.
        reason: String,
    },
    /// An argument of the command.
    #[error("{0}")]
    Usage(String),
    /// The kernel or the file system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What was said.
        source: std::io::Error,
    },
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The container could not be made.
    #[error("{}", .0.message)]
    Container(#[from] Failure),
}

/// Letters of a name.
pub const MAX_ID: usize = 1024;

pub(super) fn io(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> OciError {
    let what = format!("{what} {}", path.display());
    move |source| OciError::System { what, source }
}

pub(super) fn errno(what: impl Into<String>) -> impl FnOnce(Errno) -> OciError {
    let what = what.into();
    move |errno| OciError::System { what, source: errno.into() }
}

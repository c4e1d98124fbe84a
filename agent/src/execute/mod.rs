//! The deeds: one short function for each step, safe to run twice. None of them tries again by itself.

mod container;
mod network;

pub use container::{Gate, Link, StartJob, Started, remove, start, stop};
pub use network::{apply_rules, make_network, ranges_of_others, remove_network, remove_rules};

use crate::paths::Paths;
use coracle_runtime::image::{self, Store};
use coracle_runtime::shim::{Client, ClientError, FailureKind};
use std::collections::BTreeSet;
use std::rc::Rc;
use tokio::sync::watch;

/// What a deed needs of the agent. Clones share it.
#[derive(Clone)]
pub struct Context {
    /// Folders.
    pub paths: Rc<Paths>,
    /// Images.
    pub store: Store,
    /// The shim.
    pub client: Client,
    /// Containers whose main process runs, as last seen.
    pub running: watch::Receiver<BTreeSet<String>>,
}

/// Why a deed failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// An image could not be had.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The shim refused or failed.
    #[error(transparent)]
    Shim(#[from] ClientError),
    /// The kernel's network refused.
    #[error(transparent)]
    Link(#[from] coracle_runtime::network::links::LinkError),
    /// The rules are not in force.
    #[error(transparent)]
    Firewall(#[from] coracle_runtime::network::firewall::FirewallError),
    /// A file failed.
    #[error("{action}: {source}")]
    File {
        /// What was tried.
        action: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It did not end in its time.
    #[error("{0} did not end although it was killed")]
    WillNotDie(String),
    /// The description cannot be made.
    #[error("{0}")]
    Description(String),
    /// The thread was lost.
    #[error("the work was broken off")]
    Aborted,
}

impl StepError {
    /// Trying again can help without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Image(error) => error.is_transient(),
            Self::Shim(ClientError::Failed(failure)) => {
                matches!(failure.kind, FailureKind::Timeout | FailureKind::NoSpace | FailureKind::Conflict)
            }
            Self::Shim(_) | Self::WillNotDie(_) | Self::Aborted => true,
            Self::File { source, .. } => crate::durable::is_full(source),
            Self::Link(_) | Self::Firewall(_) | Self::Description(_) => false,
        }
    }

    /// The exit code of a command that fails for this.
    pub fn exit_code(&self) -> crate::exit::Code {
        use crate::exit::Code;
        match self {
            Self::Image(error) => Code::of_image(error.kind()),
            Self::Shim(ClientError::Failed(failure)) => match failure.kind {
                FailureKind::NoSpace => Code::NoSpace,
                FailureKind::NotFound => Code::NotFound,
                FailureKind::Refused | FailureKind::NotRunnable { .. } => Code::Configuration,
                FailureKind::Conflict | FailureKind::Timeout | FailureKind::Internal => Code::Internal,
            },
            Self::File { source, .. } if crate::durable::is_full(source) => Code::NoSpace,
            Self::Description(_) => Code::Configuration,
            _ => Code::Internal,
        }
    }

    /// For [`Result::map_err`] on file operations.
    pub fn file(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::File { action, source }
    }
}

/// Runs what blocks in a thread of its own.
///
/// # Errors
/// As `work`.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepError> + Send + 'static,
) -> Result<T, StepError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(StepError::Aborted))
}

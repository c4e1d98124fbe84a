//! What can go wrong with images, and whether trying again can help.

use super::reference::ReferenceError;
use crate::untrusted::one_line;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Kinds of failures; each has its own exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A name or setting is wrong.
    Configuration,
    /// There is no such image.
    NotFound,
    /// The network or the registry failed.
    Network,
    /// The registry does not let us.
    RegistryRefused,
    /// The file system is full.
    NoSpace,
    /// The image breaks a rule.
    BadImage,
    /// Anything else.
    Internal,
}

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is wrong.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// Plain HTTP was not allowed.
    #[error("{0} is not reached over plain HTTP unless allowed: --plain-http {0}")]
    PlainHttp(String),
    /// There is no such image.
    #[error("{image}: not found in the registry (check the name and the tag)")]
    NotFound {
        /// The image.
        image: String,
    },
    /// No manifest fits this machine.
    #[error("{image}: {reason}")]
    NoPlatform {
        /// The image.
        image: String,
        /// What it offers.
        reason: String,
    },
    /// The registry wants other credentials.
    #[error("{registry} refused {what}: {reason}")]
    Refused {
        /// The registry.
        registry: String,
        /// What was asked.
        what: String,
        /// What it said.
        reason: String,
    },
    /// The connection failed.
    #[error("{registry}: {what}: {reason}")]
    Network {
        /// The registry.
        registry: String,
        /// What was asked.
        what: String,
        /// What failed.
        reason: String,
    },
    /// The registry asks to come later, or has a fault.
    #[error("{registry}: {what}: the registry answered {status}")]
    Busy {
        /// The registry.
        registry: String,
        /// What was asked.
        what: String,
        /// HTTP status.
        status: u16,
        /// When to come again.
        retry_after: Option<Duration>,
    },
    /// The image breaks a rule.
    #[error("{what}: {reason}")]
    BadImage {
        /// Which part of the image.
        what: String,
        /// The rule.
        reason: String,
    },
    /// It does not fit.
    #[error("no space: needs some {needed} bytes, {available} may be used; `coracle df` shows what takes it")]
    NoSpace {
        /// Bytes wanted.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// It was expected to fit and does not.
    #[error("{what}: no space left while it was unpacked; `coracle df` shows what takes it")]
    Full {
        /// Which part of the image.
        what: String,
    },
    /// It has too many files.
    #[error("no space: the file system takes no more files (inodes); `coracle df --free` removes unused images")]
    NoInodes,
    /// A file of the store failed.
    #[error("{action} {}", path.display())]
    Store {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Given up on order.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference(_) | Self::Setting(_) | Self::PlainHttp(_) => ErrorKind::Configuration,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::NoPlatform { .. } | Self::BadImage { .. } => ErrorKind::BadImage,
            Self::Refused { .. } => ErrorKind::RegistryRefused,
            Self::Network { .. } | Self::Busy { .. } => ErrorKind::Network,
            Self::NoSpace { .. } | Self::Full { .. } | Self::NoInodes => ErrorKind::NoSpace,
            Self::Store { source, .. } if is_full(source) => ErrorKind::NoSpace,
            Self::Store { .. } | Self::Cancelled => ErrorKind::Internal,
        }
    }

    /// Trying again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind(), ErrorKind::Network | ErrorKind::NoSpace)
    }

    /// When the registry asked to come again.
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::Busy { retry_after, .. } = self { *retry_after } else { None }
    }

    /// Both may hold what a stranger wrote.
    pub(super) fn bad(what: impl AsRef<str>, reason: impl AsRef<str>) -> Self {
        Self::BadImage { what: one_line(what.as_ref()), reason: one_line(reason.as_ref()) }
    }

    pub(super) fn store(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Store { action, path, source }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

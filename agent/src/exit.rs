//! Exit codes of the command line; `docs/exit-codes.md` lists them for users.

use coracle_runtime::image::ErrorKind;

/// Why a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// All was done.
    Done,
    /// Something of ours is broken.
    Internal,
    /// A file or an option is refused.
    Configuration,
    /// There is no such image, service or container.
    NotFound,
    /// The network or the registry failed.
    Network,
    /// The registry does not let us.
    RegistryRefused,
    /// It does not fit on the disk.
    NoSpace,
    /// A service does not come up: it waits for something that will not come.
    Stuck,
}

impl Code {
    /// The number for the shell. 2 is what Compose tools give for a refused file.
    pub fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Internal => 1,
            Self::Configuration => 2,
            Self::NotFound => 3,
            Self::Network => 4,
            Self::RegistryRefused => 5,
            Self::NoSpace => 6,
            Self::Stuck => 7,
        }
    }

    /// The code for an image that cannot be had.
    pub fn of_image(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Configuration | ErrorKind::BadImage => Self::Configuration,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Network => Self::Network,
            ErrorKind::RegistryRefused => Self::RegistryRefused,
            ErrorKind::NoSpace => Self::NoSpace,
            ErrorKind::Internal => Self::Internal,
        }
    }
}

//! Images: named, fetched from a registry in one streaming pass, checked, and kept as layers.
//!
//! ```text
//! Reference ──registry──> manifest, config ──> layers: download + sha256 | inflate + sha256 + tar ──> store
//! ```
//!
//! Nothing is visible in the store before both digests of a layer were checked and its files were synced.
//! Everything here blocks and runs in threads of its caller; see `docs/decisions/0001-blocking-http.md`.

pub mod arm;
mod config;
mod error;
mod files;
mod layer;
mod manifest;
mod origin;
mod platform;
mod program;
mod pull;
mod reference;
mod registry;
mod store;

pub use config::{DEFAULT_PATH, ImageConfig, ImageHealth};
pub use error::{Error, ErrorKind};
pub use files::{Files, Found};
pub use layer::digest_of;
pub use platform::Platform;
pub use pull::{Phase, Progress, PullOptions, RESERVE, Resolved, ResolvedLayer, import, pull, resolve};
pub use reference::{Reference, ReferenceError};
pub use store::{Freed, Image, ImageUsage, Store, Usage, tree_bytes};

// What the fuzz targets read.
#[cfg(any(test, fuzzing))]
pub(crate) use {
    config::parse as parse_config,
    layer::{decompressed, unpack},
    manifest::{Compression, Document, choose, parse as parse_manifest},
};

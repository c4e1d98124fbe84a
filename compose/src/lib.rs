//! Compose project files: read, interpolated, merged, checked, normalised.
//!
//! **Invariant.** Nothing that is written in a file is ignored in silence: it is in the [`Project`], refused, or warned about.
#![forbid(unsafe_code)]

mod model;

pub use model::*;

//! Compose project files: read, interpolated, checked, normalised.
//!
//! ```text
//! text ──yaml──> tree ──interpolate, assemble──> tree ──service, port, mount, …──> Project ──check──> Project
//! ```
//!
//! **Invariant.** Nothing that is written in a file is ignored in silence: it is in the [`Project`], refused, or
//! warned about.
#![forbid(unsafe_code)]

mod assemble;
mod dotenv;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod interpolate;
mod load;
mod model;
mod mount;
mod port;
mod print;
mod quantity;
mod reader;
mod report;
mod service;
mod text;
mod words;
mod yaml;

pub use load::{LoadOptions, Loaded, folder_of, load, parse_str, references};
pub use model::*;
pub use print::{to_json, to_yaml};
pub use quantity::duration as parse_duration;
pub use report::{Notice, Refusal, Refusals};
pub use service::{field_names, signal_number};
pub use words::split as split_words;

//! Images, the layer store, containers, the shim that holds them, and their network.
//!
//! What is wanted comes in as plain data ([`container::ContainerSpec`], a reference, a network definition); what is,
//! is read back from the shim, the store and the kernel. Deciding belongs to `agent`.
//!
//! **Invariant.** Only `container/libcontainer.rs` names libcontainer, and only the shim's workers call it.
#![deny(unsafe_code)]

mod beneath;
pub mod container;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod image;
pub mod memory;
pub mod network;
pub mod oci;
pub mod own;
pub mod seccomp;
pub mod shim;
mod sys;
pub mod terminal;
mod untrusted;
#[cfg(test)]
mod wide;

pub use untrusted::one_line;

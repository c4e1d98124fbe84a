//! What a container may ask of the kernel: profiles, and the programs that the kernel runs at each system call.
//!
//! **Invariant.** Everything here is pure; a worker's child loads the program just before it becomes the container's.

mod built;
mod calls;
mod default;
mod json;
mod profile;
mod program;

pub use built::default_filter;
pub use default::profile as default_profile;
pub use json::{MAX_BYTES, Reader};
pub use profile::{Action, Arch, Argument, Compare, Profile, Rule};
pub use program::{CompileError, Filter, Instruction, MAX_INSTRUCTIONS, compile};

#[cfg(test)]
mod tests;

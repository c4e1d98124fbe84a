//! End-to-end tests against real parts: a real registry, real containers, the kernel's own network.
//!
//! A [`Board`] is one device: a network and a mount namespace of its own, an agent, a shim, a registry beside it.
//! Nothing of this machine is changed. Where root or a tool is missing, a test says `skipped` and why.
#![forbid(unsafe_code)]

pub mod archive;
pub mod board;
pub mod bundle;
pub mod debian;
pub mod guest;
pub mod image;
pub mod modules;
pub mod powercut;
pub mod proxy;
pub mod soak;
pub mod token;
pub mod tree;
pub mod upload;

/// Ends the test as skipped, with the reason, unless this machine can run it.
#[macro_export]
macro_rules! needs {
    ($($tool:literal),* $(,)?) => {
        $crate::skip_without!($crate::board::missing(&[$($tool),*]))
    };
}

/// Ends a test where there is a reason that it cannot run, and says so.
#[macro_export]
macro_rules! skip_without {
    ($lacks:expr) => {
        if let Some(reason) = $lacks {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}

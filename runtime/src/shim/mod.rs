//! The shim: one small single-threaded process that is the parent of every container.
//!
//! ```text
//! agent ──SOCK_SEQPACKET──> shim ──fork──> worker (calls libcontainer, exits)
//!                            │                 │ CLONE_PARENT
//!                            └── container init <──┘
//! ```
//!
//! The shim holds what must outlive the agent: exit codes, output that nobody has read yet, terminals and network
//! namespaces. It decides nothing: it starts, signals and deletes what it is told to.
//!
//! **Invariant.** The shim never blocks: whatever may block (libcontainer, mounts, file systems) happens in a worker
//! with a deadline. It has one thread and no timer that fires while nothing happens.

mod children;
mod client;
mod handover;
mod output;
mod protocol;
mod ring;
mod server;
mod transport;

pub(crate) use output::{pipe, unix_now_ns};
pub(crate) use transport::{receive_descriptor, wait_readable};

pub use client::{Client, ClientError, Connection};
pub use handover::STATE;
pub use protocol::{
    ContainerStatus, Event, ExitStatus, Failure, FailureKind, LogPage, LogRecord, Reply, Request, Stream, chain,
};
#[cfg(any(test, fuzzing))]
pub(crate) use protocol::{FromShim, ToShim, decode_reply, decode_request};
pub use server::{ServerError, go_on, run};

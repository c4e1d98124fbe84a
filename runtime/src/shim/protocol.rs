//! Messages between agent and shim: one `SOCK_SEQPACKET` packet each, postcard-encoded, descriptors beside it.
//!
//! **Boundary.** Both ends are the same binary, but not always the same version: the agent may be newer than the
//! shim that still holds the containers. The first message says [`VERSION`]; variants are only ever appended.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Version of this protocol; raised when a message changes its meaning.
pub const VERSION: u32 = 1;

/// Largest packet in bytes. A page of log is cut to fit; everything else is far smaller.
pub const MAX_PACKET: usize = 64 * 1024;

/// Descriptors that one packet may carry: three of stdio, one namespace.
pub const MAX_DESCRIPTORS: usize = 4;

/// Log bytes in one page: leaves room for the records' framing within [`MAX_PACKET`].
pub const MAX_PAGE: usize = 48 * 1024;

/// What the agent asks. Every request has exactly one [`Reply`] with the same sequence number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// First message of a connection.
    Hello {
        /// The agent's [`VERSION`].
        version: u32,
    },
    /// Create and start the container that `<state>/<id>/container.json` describes. Descriptor, if any: the program
    /// runs when a byte comes from it; its end calls the start off.
    Start {
        /// Container id.
        id: String,
        /// The worker is killed after this time.
        timeout: Duration,
    },
    /// Run a command in a container; descriptors: stdin, stdout, stderr, or none (output is kept, bounded).
    Exec {
        /// Container id.
        id: String,
        /// JSON of [`crate::container::ExecSpec`].
        spec: Vec<u8>,
        /// The worker is killed when the command does not run after this time.
        timeout: Duration,
        /// The command and all its descendants are killed after this time, counted from its start.
        limit: Option<Duration>,
    },
    /// Send a signal to the container's main process.
    Signal {
        /// Container id.
        id: String,
        /// Signal number.
        signal: i32,
    },
    /// Send a signal to a command started by `Exec`.
    SignalExec {
        /// Number given in [`Reply::ExecStarted`].
        exec: u64,
        /// Signal number.
        signal: i32,
    },
    /// Kill every process of the container, descendants in other sessions too.
    KillAll {
        /// Container id.
        id: String,
    },
    /// Remove what is left of an ended container: cgroups, libcontainer's state, log, exit code.
    Delete {
        /// Container id.
        id: String,
        /// The worker is killed after this time.
        timeout: Duration,
    },
    /// All containers, from the one after `after` on; a page at a time.
    List {
        /// Last id of the page before; empty at first.
        after: String,
    },
    /// Log records from a sequence number on.
    ReadLog {
        /// Container id.
        id: String,
        /// First wanted record.
        from: u64,
    },
    /// Keep a network namespace alive under a name; descriptor: the namespace.
    HoldNamespace {
        /// Name, the container's id.
        name: String,
    },
    /// Let a namespace go; the kernel removes it when its last process ends.
    DropNamespace {
        /// Name given in `HoldNamespace`.
        name: String,
    },
    /// The descriptor of a held namespace.
    GetNamespace {
        /// Name given in `HoldNamespace`.
        name: String,
    },
    /// Names of the held namespaces.
    ListNamespaces,
    /// Send [`Event`]s on this connection from now on.
    Subscribe,
    /// End the shim; refused while containers run.
    Shutdown,
    /// Change the size of a terminal.
    Resize {
        /// Container id.
        id: String,
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// Go on as another program, once no worker is under way; connections end then. Refused when it cannot read what
    /// this shim knows.
    Replace {
        /// Path of the program.
        program: String,
        /// The [`crate::shim::STATE`] that it reads.
        state: u32,
    },
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// Answer to `Hello`.
    Hello {
        /// The shim's [`VERSION`].
        version: u32,
        /// The shim's own process id.
        pid: i32,
    },
    /// The container's main process runs.
    Started {
        /// Its process id on the host.
        pid: i32,
    },
    /// The command runs; its end comes as [`Event::ExecEnded`]. Descriptor: the terminal, when one was asked for.
    ExecStarted {
        /// Number of the command, never used twice by one shim.
        exec: u64,
        /// Its process id on the host.
        pid: i32,
    },
    /// A page of containers; the last page is shorter than [`LIST_PAGE`].
    Containers(Vec<ContainerStatus>),
    /// A page of log.
    Log(LogPage),
    /// The namespace's descriptor is beside this.
    Namespace,
    /// Names of namespaces.
    Namespaces(Vec<String>),
    /// It was not done.
    Failed(Failure),
}

/// Containers in one page of [`Request::List`]; keeps the packet below [`MAX_PACKET`].
pub const LIST_PAGE: usize = 64;

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure it is, for a program.
    pub kind: FailureKind,
    /// One line for a person.
    pub message: String,
}

/// Kinds of [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The description of the container is not acceptable.
    Refused,
    /// There is no such container, command or namespace.
    NotFound,
    /// It is there already, or runs.
    Conflict,
    /// It took longer than the time given.
    Timeout,
    /// The program cannot be run.
    NotRunnable {
        /// 126 or 127, as a shell would say.
        code: i32,
    },
    /// The file system is full.
    NoSpace,
    /// Anything else.
    Internal,
}

/// A container as the shim sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Container id.
    pub id: String,
    /// Process id of the main process while it runs.
    pub pid: Option<i32>,
    /// When it was started, nanoseconds of the boot clock (`CLOCK_BOOTTIME`).
    pub started_boottime_ns: u64,
    /// When it was started, nanoseconds since 1970 by the clock of that moment.
    pub started_unix_ns: u64,
    /// How it ended.
    pub exit: Option<ExitStatus>,
    /// Next log record's sequence number.
    pub log_next: u64,
    /// Log bytes dropped because the ring was full.
    pub log_dropped: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code, 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// When, nanoseconds of the boot clock.
    pub ended_boottime_ns: u64,
    /// When, nanoseconds since 1970 by the clock of that moment.
    pub ended_unix_ns: u64,
}

/// Which stream a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output, or a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Bytes that were read from a container at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Sequence number, without gaps but where bytes were dropped.
    pub sequence: u64,
    /// Arrival, nanoseconds since 1970.
    pub unix_ns: u64,
    /// Stream.
    pub stream: Stream,
    /// The record continues the one before it: no line break between them.
    pub continues: bool,
    /// One line without its line break, or a part of a very long one.
    pub bytes: Vec<u8>,
}

/// Consecutive records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPage {
    /// Records in order.
    pub records: Vec<LogRecord>,
    /// Where to go on.
    pub next: u64,
    /// Bytes dropped so far, for the whole life of the container.
    pub dropped: u64,
    /// Both streams are at their end: nothing more will come.
    pub ended: bool,
}

/// What the shim tells without being asked. A subscriber that does not read loses events, and is told so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A container's main process ended.
    Ended {
        /// Container id.
        id: String,
    },
    /// A container's log grew; sent once until the log is read.
    LogGrew {
        /// Container id.
        id: String,
    },
    /// A command ended.
    ExecEnded {
        /// Number of the command.
        exec: u64,
        /// How it ended.
        exit: ExitStatus,
        /// It was killed because its time was over.
        timed_out: bool,
        /// What it wrote, when no descriptors were given; bounded.
        output: Vec<u8>,
    },
    /// Events were lost: look at everything again.
    Lost,
}

/// What travels to the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToShim {
    /// Number of the request, chosen by the agent.
    pub sequence: u64,
    /// The request.
    pub request: Request,
}

/// What travels to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromShim {
    /// Answer to the request with that number.
    Reply {
        /// The request's number.
        sequence: u64,
        /// The answer.
        reply: Reply,
    },
    /// Unasked.
    Event(Event),
}

impl Failure {
    /// A failure of a kind with one line.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// An error and its causes in one line: outer messages alone say little.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        source = cause.source();
    }
    line
}

/// Decodes one packet from the agent.
///
/// # Errors
/// When the bytes are no message, or have more behind it.
pub fn decode_request(packet: &[u8]) -> Result<ToShim, postcard::Error> {
    exactly(packet)
}

/// Decodes one packet from the shim.
///
/// # Errors
/// When the bytes are no message, or have more behind it.
pub fn decode_reply(packet: &[u8]) -> Result<FromShim, postcard::Error> {
    exactly(packet)
}

fn exactly<T: serde::de::DeserializeOwned>(packet: &[u8]) -> Result<T, postcard::Error> {
    let (value, rest) = postcard::take_from_bytes(packet)?;
    if rest.is_empty() { Ok(value) } else { Err(postcard::Error::DeserializeBadEncoding) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn random_packets_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode_request(&bytes);
            let _ = decode_reply(&bytes);
        }

        #[test]
        fn requests_survive_the_wire(id in "[a-z0-9-]{1,40}", from in any::<u64>(), sequence in any::<u64>()) {
            let sent = ToShim { sequence, request: Request::ReadLog { id, from } };
            let packet = postcard::to_allocvec(&sent).expect("encodes");
            prop_assert_eq!(decode_request(&packet).expect("decodes"), sent);
        }
    }

    #[test]
    fn bytes_behind_a_message_are_refused() {
        let mut packet =
            postcard::to_allocvec(&ToShim { sequence: 1, request: Request::Subscribe }).expect("encodes");
        packet.push(0);
        assert!(decode_request(&packet).is_err());
    }
}

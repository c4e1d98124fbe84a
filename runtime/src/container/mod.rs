//! One container: its description, its root file system, and the worker that makes it.
//!
//! ```text
//! ContainerSpec ──worker: mount overlay, look up user, prepare mount points──> oci::Spec ──libcontainer──> process
//! ```
//!
//! Everything that touches a file of the image happens in a worker's private mount namespace, by paths that the
//! kernel resolves inside the root (`openat2(2)`, `RESOLVE_IN_ROOT`).
//!
//! **Invariant.** Only `libcontainer.rs` names libcontainer.

mod accounts;
pub mod cgroup;
pub(crate) mod filters;
mod init;
pub(crate) mod launcher;
pub(crate) mod libcontainer;
mod loss;
mod oci;
mod program;
pub(crate) mod rootfs;
mod spec;
pub(crate) mod users;
mod volume;
pub(crate) mod worker;

pub use accounts::{AccountError, Accounts, Identity};
pub(crate) use libcontainer::Stdio;
pub use loss::Loss;
pub use spec::{
    ContainerSpec, CpuLimits, DeviceSpec, ExecSpec, HostFile, Limits, MountSpec, NetworkNamespace, ProcessSpec,
    Rlimit, SPEC_FILE, Seccomp, SharedNamespace, SourceSpec,
};
pub(crate) use volume::copy_tree;

/// Capability names by number (linux/capability.h), without `CAP_`.
pub const CAPABILITIES: &[&str] = &[
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
];

/// Capabilities of a root service that asks for nothing: eleven of Docker's fourteen; `NET_RAW`, `MKNOD` and
/// `AUDIT_WRITE` are asked for by name.
pub const DEFAULT_CAPABILITIES: &[&str] = &[
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE",
    "SYS_CHROOT", "SETFCAP",
];

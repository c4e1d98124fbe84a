//! The description of a container, as the agent writes it and the shim's worker reads it.
//!
//! Paths on the host are the agent's; paths in the container and names of users come from images and compose files
//! and are resolved by the worker.

use super::loss::Loss;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Name of the file in the container's state folder that holds a [`ContainerSpec`].
pub const SPEC_FILE: &str = "container.json";

/// A container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// Unique on this device; letters, digits, `-`, `_`, `.`.
    pub id: String,
    /// Layer folders, topmost first.
    pub lower: Vec<PathBuf>,
    /// The container's own writable folder.
    pub upper: PathBuf,
    /// Overlay's work folder, on the file system of `upper`.
    pub work: PathBuf,
    /// Root file system read-only.
    pub read_only: bool,
    /// The main process.
    pub process: ProcessSpec,
    /// What it writes is read and not kept.
    #[serde(default)]
    pub no_log: bool,
    /// Host name; `None`: the host's, with its UTS namespace.
    pub hostname: Option<String>,
    /// Domain name.
    pub domainname: Option<String>,
    /// Mounts in order.
    pub mounts: Vec<MountSpec>,
    /// Files made by the agent and shown in the container: hosts, resolv.conf, secrets, configs.
    pub files: Vec<HostFile>,
    /// Device nodes beside the default ones.
    pub devices: Vec<DeviceSpec>,
    /// cgroup device rules as in Compose (`c 1:3 rwm`).
    pub device_rules: Vec<String>,
    /// Everything on `/dev`, all capabilities, nothing masked.
    pub privileged: bool,
    /// Kernel parameters.
    pub sysctls: BTreeMap<String, String>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: u64,
    /// cgroup limits.
    pub limits: Limits,
    /// cgroup path below the hierarchy's root, absolute.
    pub cgroup: String,
    /// The network namespace.
    pub network: NetworkNamespace,
    /// The PID namespace.
    pub pid: SharedNamespace,
    /// The IPC namespace.
    pub ipc: SharedNamespace,
    /// Its users are a range of the machine's that nobody else has.
    #[serde(default)]
    pub own_users: bool,
    /// Share the host's cgroup namespace.
    pub host_cgroup_namespace: bool,
    /// A reaper of ours is PID 1.
    pub init: bool,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// What it does without where the kernel lacks it.
    #[serde(default)]
    pub accepted_losses: Vec<Loss>,
}

/// A process in a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSpec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Variables in order.
    pub env: Vec<(String, String)>,
    /// Absolute.
    pub cwd: String,
    /// `user[:group]`, names or numbers; empty: root.
    pub user: String,
    /// Extra groups, names or numbers.
    pub group_add: Vec<String>,
    /// A terminal.
    pub tty: bool,
    /// Standard input stays open.
    pub stdin_open: bool,
    /// `no_new_privs` (prctl(2)).
    pub no_new_privileges: bool,
    /// Capability names without `CAP_`.
    pub capabilities: Vec<String>,
    /// The same when the user is a number other than 0: nobody who names one means to become another.
    pub capabilities_of_user: Vec<String>,
    /// What it may ask of the kernel.
    pub seccomp: Seccomp,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// -1000 to 1000 (proc(5)).
    pub oom_score_adj: i32,
}

impl ProcessSpec {
    /// The capabilities that it has.
    pub fn granted(&self) -> &[String] {
        let user = self.user.split(':').next().unwrap_or_default();
        match user.parse::<u32>() {
            Ok(number) if number != 0 => &self.capabilities_of_user,
            _ => &self.capabilities,
        }
    }
}

/// Which system calls a process may make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seccomp {
    /// Those of the default profile, for its capabilities.
    Default,
    /// Those of a profile in the form of Docker's.
    Profile(String),
    /// All.
    Unconfined,
}

/// A command in a running container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecSpec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Variables beside the container's own, in order.
    pub env: Vec<(String, String)>,
    /// Absolute; `None`: the container's.
    pub cwd: Option<String>,
    /// As in [`ProcessSpec`]; `None`: the container's.
    pub user: Option<String>,
    /// A terminal.
    pub tty: bool,
    /// Its rows and columns, from the start on.
    pub terminal_size: Option<(u16, u16)>,
    /// All capabilities.
    pub privileged: bool,
    /// A reaper of ours stays the parent of everything that the command starts, and nothing outlives it.
    pub contained: bool,
}

/// A resource limit (getrlimit(2)); -1 is unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    /// Name in lower case without `RLIMIT_`.
    pub name: String,
    /// Soft limit.
    pub soft: i64,
    /// Hard limit.
    pub hard: i64,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountSpec {
    /// Absolute path in the container.
    pub target: String,
    /// Read-only.
    pub read_only: bool,
    /// What is mounted.
    pub source: SourceSpec,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceSpec {
    /// A folder of the agent's.
    Volume {
        /// The folder that is shown.
        folder: PathBuf,
        /// Copy the image's content in before the first use; holds the marker's path, which says that it was done.
        fill: Option<PathBuf>,
        /// Folder inside, relative, made when it is not there.
        subpath: String,
    },
    /// A path of the host.
    Bind {
        /// The path.
        path: PathBuf,
        /// Mount propagation (mount_namespaces(7)).
        propagation: Option<String>,
    },
    /// Memory.
    Tmpfs {
        /// Bytes.
        size: Option<u64>,
        /// Mode bits of its root.
        mode: Option<u32>,
    },
}

/// A file that the agent made, bind-mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFile {
    /// The file on the host.
    pub path: PathBuf,
    /// Absolute path in the container.
    pub target: String,
    /// The container may write it.
    pub writable: bool,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// Path on the host.
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Some of `r`, `w`, `m`.
    pub permissions: String,
}

/// cgroup limits; sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Hard memory limit.
    pub memory: Option<i64>,
    /// Soft memory limit.
    pub memory_reservation: Option<i64>,
    /// Memory plus swap; -1 unlimited.
    pub memory_swap: Option<i64>,
    /// 0 to 100, v1 only.
    pub memory_swappiness: Option<u64>,
    /// Do not kill at the limit, v1 only.
    pub oom_kill_disable: bool,
    /// CPU time.
    pub cpu: CpuLimits,
    /// Number of tasks; -1 unlimited; `None`: as many as the runtime's default.
    pub pids: Option<i64>,
}

/// CPU limits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CpuLimits {
    /// Weight as in cgroup v1, 2 to 262144.
    pub shares: Option<u64>,
    /// Microseconds a period.
    pub quota: Option<i64>,
    /// Microseconds.
    pub period: Option<u64>,
    /// CPU list.
    pub cpus: Option<String>,
}

/// Where a container's network is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkNamespace {
    /// The host's.
    Host,
    /// One that the shim holds under this name.
    Held(String),
}

/// A namespace of the container's own, the host's, or another container's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SharedNamespace {
    /// Its own.
    Private,
    /// The host's.
    Host,
    /// That of the running container with this id.
    Container(String),
}

//! The checked project: what the rest of Coracle sees of a compose file.
//!
//! Everything here is already interpolated, merged, validated and normalised. Absent, empty and set are kept apart
//! where Compose keeps them apart (`command`, `entrypoint`, `environment` values).
//! Units are in the type or the name: bytes, nanoseconds, permille are never mixed.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A whole project, checked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Project {
    /// Project name: lower-case letters, digits, `-` and `_`, beginning with a letter or digit.
    pub name: String,
    /// Services by name.
    pub services: BTreeMap<String, Service>,
    /// Networks by the name used in the file. `default` is present when some service uses it.
    pub networks: BTreeMap<String, Network>,
    /// Named volumes by the name used in the file.
    pub volumes: BTreeMap<String, Volume>,
    /// Secrets by the name used in the file.
    pub secrets: BTreeMap<String, FileObject>,
    /// Configs by the name used in the file.
    pub configs: BTreeMap<String, FileObject>,
}

/// A document tells what differs from the default: it is short, and a field that a later version adds is absent until
/// somebody uses it, so an updated agent makes no container anew for it. Containers are known by a digest of this: fields
/// that are there stay in their order.
macro_rules! sparse {
    ($(#[$attribute:meta])* pub struct $name:ident { $($(#[$about:meta])* pub $field:ident: $kind:ty,)* }) => {
        $(#[$attribute])*
        pub struct $name {
            $($(#[$about])* #[serde(skip_serializing_if = "is_default")] pub $field: $kind,)*
        }
    };
}

fn is_default<T: Default + PartialEq>(it: &T) -> bool {
    *it == T::default()
}

sparse! {
    /// One service.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Service {
        /// Image reference as written. `None` only with [`Service::has_build`].
        pub image: Option<String>,
        /// The file has a `build` section for this service.
        pub has_build: bool,
        /// `None`: the image's CMD. `Some(vec![])`: cleared.
        pub command: Option<Vec<String>>,
        /// `None`: the image's ENTRYPOINT. `Some(vec![])`: cleared.
        pub entrypoint: Option<Vec<String>>,
        /// A `None` value removes the variable, the image's own included.
        pub environment: BTreeMap<String, Option<String>>,
        /// Labels of the service.
        pub labels: BTreeMap<String, String>,
        /// `user[:group]`, by name or number.
        pub user: Option<String>,
        /// Extra groups by name or number.
        pub group_add: Vec<String>,
        /// Working folder in the container.
        pub working_dir: Option<String>,
        /// Host name of the container.
        pub hostname: Option<String>,
        /// Domain name of the container.
        pub domainname: Option<String>,
        /// Allocate a terminal. `None`: not written in the file (false; true in a document from a balena backend).
        pub tty: Option<bool>,
        /// Keep standard input open.
        pub stdin_open: bool,
        /// Run a small init as PID 1 that reaps. `None`: not written.
        pub init: Option<bool>,
        /// What happens when the main process ends.
        pub restart: Restart,
        /// Signal name or number as written; `None`: the image's, else SIGTERM.
        pub stop_signal: Option<String>,
        /// `None`: 10 s.
        pub stop_grace_period: Option<Duration>,
        /// All capabilities, all devices.
        pub privileged: bool,
        /// Root file system read-only.
        pub read_only: bool,
        /// Capability names without `CAP_`, upper case; `ALL` is allowed.
        pub cap_add: Vec<String>,
        /// As [`Service::cap_add`].
        pub cap_drop: Vec<String>,
        /// Device nodes.
        pub devices: Vec<Device>,
        /// Device roles (CDI names, `vendor/class=name`).
        pub cdi_devices: Vec<String>,
        /// cgroup device rules as written, checked (`c 1:3 rwm`).
        pub device_cgroup_rules: Vec<String>,
        /// Entries as written, checked; `label` entries are left out.
        pub security_opt: Vec<String>,
        /// The profile that `security_opt: seccomp:FILE` names, JSON.
        pub seccomp: Option<String>,
        /// Kernel parameters.
        pub sysctls: BTreeMap<String, String>,
        /// Resource limits by Compose name (`nofile`), soft and hard; -1 is unlimited.
        pub ulimits: BTreeMap<String, Ulimit>,
        /// `host`, `auto` (users of its own), or none.
        pub userns_mode: Option<String>,
        /// `host`, `service:NAME` or none.
        pub pid: Option<String>,
        /// `host`, `none`, `private`, `shareable`, `service:NAME`.
        pub ipc: Option<String>,
        /// `host` or none.
        pub uts: Option<String>,
        /// `host` or `private`.
        pub cgroup: Option<String>,
        /// Parent cgroup below Coracle's own.
        pub cgroup_parent: Option<String>,
        /// Size of `/dev/shm` in bytes; `None`: 64 MiB.
        pub shm_size: Option<u64>,
        /// cgroup limits.
        pub limits: Limits,
        /// -1000 to 1000.
        pub oom_score_adj: Option<i32>,
        /// Mounts other than secrets and configs, in the file's order.
        pub mounts: Vec<Mount>,
        /// Secrets to show as files.
        pub secrets: Vec<FileGrant>,
        /// Configs to show as files.
        pub configs: Vec<FileGrant>,
        /// Published ports, one entry a container port.
        pub ports: Vec<Port>,
        /// Ports as documentation only.
        pub expose: Vec<String>,
        /// How the service is connected.
        pub network: NetworkMode,
        /// MAC address on the first network.
        pub mac_address: Option<String>,
        /// Name servers, in order.
        pub dns: Vec<String>,
        /// Search domains, in order.
        pub dns_search: Vec<String>,
        /// resolv.conf options.
        pub dns_opt: Vec<String>,
        /// Host name to addresses, added to `/etc/hosts`.
        pub extra_hosts: Vec<(String, String)>,
        /// Health check of the file; merged field by field over the image's.
        pub healthcheck: Option<HealthCheck>,
        /// Start order.
        pub depends_on: BTreeMap<String, Dependency>,
        /// Other services' links: name and alias, both names answer in DNS.
        pub links: Vec<(String, String)>,
        /// `linux/arm/v6` and so on, as written, checked for form.
        pub platform: Option<String>,
        /// OCI runtime name as written.
        pub runtime: Option<String>,
        /// When the image is pulled.
        pub pull_policy: PullPolicy,
        /// Number of containers; more than one is refused by the parser.
        pub scale: u32,
        /// Log bounds.
        pub logging: Logging,
        /// Annotations.
        pub annotations: BTreeMap<String, String>,
        /// `running: false` keeps the service stopped (balena).
        pub running: Option<bool>,
    }
}

/// When a service is started again after its main process ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// Always, unless stopped by hand; after a reboot too.
    Always,
    /// When the exit code is not 0, at most this many times (`None`: no limit).
    OnFailure(Option<u32>),
    /// As `Always`, but a service that was stopped by hand stays stopped after a reboot.
    UnlessStopped,
}

/// cgroup limits; sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Hard memory limit.
    pub memory: Option<u64>,
    /// Soft memory limit.
    pub memory_reservation: Option<u64>,
    /// Memory plus swap; -1 unlimited.
    pub memory_swap: Option<i64>,
    /// 0 to 100.
    pub memory_swappiness: Option<u64>,
    /// Billionths of a CPU.
    pub nano_cpus: Option<u64>,
    /// Relative weight, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time a period.
    pub cpu_quota: Option<i64>,
    /// Length of a period in microseconds.
    pub cpu_period: Option<u64>,
    /// CPU list, `0-2,4`.
    pub cpuset: Option<String>,
    /// Number of tasks; -1 unlimited.
    pub pids: Option<i64>,
    /// Do not kill at the memory limit.
    pub oom_kill_disable: bool,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Path on the host.
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Some of `r`, `w`, `m`.
    pub permissions: String,
}

/// A resource limit; -1 is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// Soft limit.
    pub soft: i64,
    /// Hard limit.
    pub hard: i64,
}

/// A mount into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Absolute path in the container.
    pub target: String,
    /// Read-only.
    pub read_only: bool,
    /// What is mounted.
    pub source: MountSource,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountSource {
    /// A named volume of the project.
    Volume {
        /// Name in the project's `volumes`.
        name: String,
        /// Do not copy the image's content in on first use.
        nocopy: bool,
        /// Folder inside the volume, relative; empty: the volume itself.
        subpath: String,
    },
    /// A volume that lives as long as the container.
    Anonymous,
    /// A path of the host.
    Bind {
        /// Absolute, cleaned path.
        path: PathBuf,
        /// The path lies inside the project folder.
        inside_project: bool,
        /// Make a folder there when nothing is there.
        create_host_path: bool,
        /// `rprivate`, `rslave`, …; `None`: `rprivate`.
        propagation: Option<String>,
    },
    /// Memory.
    Tmpfs {
        /// Bytes; `None`: the kernel's default of half the memory.
        size: Option<u64>,
        /// Mode bits of the root; `None`: 1777.
        mode: Option<u32>,
    },
}

/// Where a secret's or config's bytes come from, read when the project is loaded.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileObject {
    /// A file of the host, absolute.
    File(PathBuf),
    /// A variable of the caller's environment and its value; a value that is not set is refused.
    Environment {
        /// Name of the variable.
        name: String,
        /// Its value at load time.
        value: String,
    },
    /// Text in the file itself (configs only).
    Content(String),
}

/// A secret or config shown in a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileGrant {
    /// Name in the project's `secrets` or `configs`.
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Mode bits; 0444 by default.
    pub mode: u32,
}

/// One published container port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Port in the container.
    pub container: u16,
    /// First and last host port to choose from; `None`: any free one.
    pub host: Option<(u16, u16)>,
    /// Host address; `None`: all.
    pub host_ip: Option<std::net::IpAddr>,
    /// Protocol.
    pub protocol: Protocol,
}

/// Transport protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// How a service is connected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// The host's own network.
    Host,
    /// A namespace with loopback only.
    None,
    /// The namespace of another service.
    Service(String),
    /// Networks of the project, by name. Never empty.
    Networks(BTreeMap<String, Attachment>),
}

impl Default for NetworkMode {
    fn default() -> Self {
        Self::Networks(BTreeMap::from([("default".to_owned(), Attachment::default())]))
    }
}

/// A service on a network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attachment {
    /// Names beside the service's own.
    pub aliases: Vec<String>,
    /// Fixed address.
    pub ipv4_address: Option<std::net::Ipv4Addr>,
    /// Fixed address.
    pub ipv6_address: Option<std::net::Ipv6Addr>,
    /// Higher first; decides the default route.
    pub priority: i32,
    /// MAC address on this network.
    pub mac_address: Option<String>,
}

/// A network of the project.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Name on the host when the file sets one.
    pub name: Option<String>,
    /// No way out.
    pub internal: bool,
    /// IPv6 addresses too.
    pub enable_ipv6: bool,
    /// Subnets as `10.1.2.0/24`, with optional gateway.
    pub subnets: Vec<Subnet>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A subnet that the file asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// Network address.
    pub address: std::net::IpAddr,
    /// Prefix length.
    pub prefix: u8,
    /// The bridge's own address; `None`: the first of the subnet.
    pub gateway: Option<std::net::IpAddr>,
}

/// A named volume of the project.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Volume {
    /// Name on the host when the file sets one.
    pub name: Option<String>,
    /// Must be there already; never made or removed by us.
    pub external: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Options of the `local` driver (`type`, `device`, `o`).
    pub driver_opts: BTreeMap<String, String>,
}

/// A health check; absent fields come from the image, then from [`HealthCheck`]'s documented defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthCheck {
    /// Switch the image's check off.
    pub disable: bool,
    /// `None`: the image's test.
    pub test: Option<HealthTest>,
    /// `None`: the image's, else 30 s.
    pub interval: Option<Duration>,
    /// `None`: the image's, else 30 s.
    pub timeout: Option<Duration>,
    /// `None`: the image's, else 0.
    pub start_period: Option<Duration>,
    /// `None`: the image's, else 5 s.
    pub start_interval: Option<Duration>,
    /// `None`: the image's, else 3.
    pub retries: Option<u32>,
}

/// What a health check runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthTest {
    /// A program and its arguments.
    Exec(Vec<String>),
    /// A line for the image's shell (`/bin/sh -c`).
    Shell(String),
}

/// What a dependent waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dependency {
    /// What must hold before the dependent starts.
    pub condition: Condition,
    /// `false`: a dependency that cannot be had only warns.
    pub required: bool,
    /// Restart the dependent when the dependency is restarted or recreated by an explicit command.
    pub restart: bool,
}

/// The three conditions of `depends_on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Started, at least once.
    ServiceStarted,
    /// Its health check succeeds.
    ServiceHealthy,
    /// Ended with 0.
    ServiceCompletedSuccessfully,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// When it is not in the store.
    #[default]
    Missing,
    /// On every `up`.
    Always,
    /// Never: it must be in the store.
    Never,
}

/// Bounds of a service's log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logging {
    /// Keep no log at all (`driver: none`).
    pub none: bool,
    /// Keep files beside the ring in memory (`driver: local`).
    pub files: bool,
    /// Bytes a file (`max-size`).
    pub max_size: Option<u64>,
    /// Number of files (`max-file`).
    pub max_file: Option<u32>,
}

impl std::fmt::Debug for FileObject {
    /// Names the source, never the value: secrets must not reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Environment { name, .. } => {
                f.debug_struct("Environment").field("name", name).finish_non_exhaustive()
            }
            Self::Content(text) => f.debug_struct("Content").field("len", &text.len()).finish(),
        }
    }
}

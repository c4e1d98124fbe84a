//! From our description to the OCI runtime configuration that libcontainer reads. Pure.

use super::accounts::Identity;
use super::spec::{ContainerSpec, ExecSpec, MountSpec, ProcessSpec, Seccomp, SharedNamespace, SourceSpec};
use super::users::{self, IDS};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Version of the OCI runtime specification that the generated document follows.
const OCI_VERSION: &str = "1.0.2";

/// Paths of `/proc` and `/sys` that tell about or steer the host; the list of Docker's and Podman's defaults. Those of
/// each processor are [`Resolved::heat`].
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths of `/proc` that are shown but cannot be written.
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A device node whose numbers were looked up on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: String,
    /// `c` or `b`.
    pub kind: char,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Mode bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Some of `r`, `w`, `m`.
    pub access: String,
}

/// What the worker found out before it writes the configuration.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Where the overlay is mounted.
    pub root: PathBuf,
    /// Who the process runs as.
    pub identity: Identity,
    /// Mount points without links, in the order of [`ContainerSpec::mounts`], then of `files`.
    pub targets: Vec<PathBuf>,
    /// Path of the network namespace; `None`: the host's.
    pub network: Option<PathBuf>,
    /// Paths of another container's namespaces.
    pub pid: Option<PathBuf>,
    /// As `pid`.
    pub ipc: Option<PathBuf>,
    /// Path of its user namespace, and the machine's number of its user 0.
    pub users: Option<(PathBuf, u32)>,
    /// Device nodes.
    pub devices: Vec<DeviceNode>,
    /// There is one cgroup hierarchy, which can be shown.
    pub unified_cgroup: bool,
    /// Folders that tell of the processors' heat, which is what others do.
    pub heat: Vec<PathBuf>,
}

/// The whole `config.json`.
pub fn config(spec: &ContainerSpec, resolved: &Resolved) -> Value {
    let mut config = json!({
        "ociVersion": OCI_VERSION,
        "process": process(&spec.process, &resolved.identity),
        "root": { "path": resolved.root, "readonly": spec.read_only },
        "mounts": mounts(spec, resolved),
        "annotations": spec.annotations,
        "linux": linux(spec, resolved),
    });
    if let Some(hostname) = &spec.hostname {
        config["hostname"] = json!(hostname);
    }
    if let Some(domainname) = &spec.domainname {
        config["domainname"] = json!(domainname);
    }
    config
}

/// The `process` object of a container's main process.
pub fn process(process: &ProcessSpec, identity: &Identity) -> Value {
    let capabilities: Vec<String> = process.granted().iter().map(|name| format!("CAP_{name}")).collect();
    // A user other than root keeps the bounding set only: capabilities(7), and CVE-2022-29162 for the empty
    // inheritable set.
    let mut own = if identity.uid == 0 { capabilities.clone() } else { Vec::new() };
    if borrows_admin(process) && !own.iter().any(|name| name == "CAP_SYS_ADMIN") {
        own.push("CAP_SYS_ADMIN".to_owned());
    }
    let mut value = json!({
        "terminal": process.tty,
        "user": { "uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups },
        "args": process.args,
        "env": process.env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
        "cwd": process.cwd,
        "capabilities": {
            "bounding": capabilities,
            "effective": own,
            "permitted": own,
            "inheritable": [],
            "ambient": [],
        },
        "rlimits": process.rlimits.iter().map(|limit| json!({
            "type": format!("RLIMIT_{}", limit.name.to_uppercase()),
            "soft": limit.soft as u64,
            "hard": limit.hard as u64,
        })).collect::<Vec<_>>(),
    });
    // libcontainer treats a present `false` as something else than an absent field.
    if process.no_new_privileges {
        value["noNewPrivileges"] = json!(true);
    }
    value
}

/// A filter is loaded by who can gain no privileges, or by who has `CAP_SYS_ADMIN` (seccomp(2)). What has it for that
/// alone drops it after, and would lose it with the next program anyway: it is not in the bounding set.
pub fn borrows_admin(process: &ProcessSpec) -> bool {
    process.seccomp != Seccomp::Unconfined
        && !process.no_new_privileges
        && !process.granted().iter().any(|name| name == "SYS_ADMIN")
}

/// The process of a command: the container's own, with what the command changes.
pub fn exec_process(container: &ProcessSpec, exec: &ExecSpec) -> ProcessSpec {
    let mut process = container.clone();
    process.args.clone_from(&exec.args);
    process.tty = exec.tty;
    for (name, value) in &exec.env {
        process.env.retain(|(known, _)| known != name);
        process.env.push((name.clone(), value.clone()));
    }
    if let Some(cwd) = &exec.cwd {
        process.cwd.clone_from(cwd);
    }
    if let Some(user) = &exec.user {
        process.user.clone_from(user);
    }
    process
}

fn mounts(spec: &ContainerSpec, resolved: &Resolved) -> Vec<Value> {
    let mut mounts = system_mounts(spec, resolved.unified_cgroup);
    let wanted = spec.mounts.iter().zip(&resolved.targets);
    mounts.extend(wanted.map(|(wanted, target)| {
        let mut mount = user_mount(wanted, target);
        if let Some((_, first)) = resolved.users.as_ref().filter(|_| mount["type"] == "bind") {
            mount["uidMappings"] = mappings(*first);
            mount["gidMappings"] = mappings(*first);
        }
        mount
    }));
    let files = spec.files.iter().zip(resolved.targets.iter().skip(spec.mounts.len()));
    mounts.extend(files.map(|(file, target)| {
        let access = if file.writable { "rw" } else { "ro" };
        bind(&file.path, target, &["bind", "rprivate", "nosuid", "nodev", "noexec", access])
    }));
    mounts
}

/// A range of the machine's users and groups, as those from 0 on.
fn mappings(first: u32) -> Value {
    json!([{ "containerID": 0, "hostID": first, "size": IDS }])
}

fn system_mounts(spec: &ContainerSpec, unified_cgroup: bool) -> Vec<Value> {
    let sys_access = if spec.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "devpts",
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", sys_access]),
    ];
    if unified_cgroup {
        // Language runtimes read their limits there.
        let options = ["nosuid", "noexec", "nodev", "relatime", sys_access];
        mounts.push(mount("cgroup2", "cgroup", "/sys/fs/cgroup", &options));
    }
    if spec.ipc == SharedNamespace::Host {
        mounts.push(bind(Path::new("/dev/shm"), Path::new("/dev/shm"), &["rbind", "nosuid", "noexec", "nodev"]));
    } else {
        let size = format!("size={}", spec.shm_size);
        mounts.push(mount("tmpfs", "shm", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", &size]));
        mounts.push(mount("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]));
    }
    mounts
}

fn user_mount(wanted: &MountSpec, target: &Path) -> Value {
    let access = if wanted.read_only { "ro" } else { "rw" };
    match &wanted.source {
        SourceSpec::Volume { folder, subpath, .. } => {
            bind(&folder.join(subpath), target, &["bind", "rprivate", access])
        }
        SourceSpec::Bind { path, propagation } => {
            bind(path, target, &["rbind", propagation.as_deref().unwrap_or("rprivate"), access])
        }
        SourceSpec::Tmpfs { size, mode } => {
            let mut options =
                vec!["nosuid".to_owned(), "nodev".to_owned(), "noexec".to_owned(), access.to_owned()];
            options.push(format!("mode={:o}", mode.unwrap_or(0o1777)));
            options.extend(size.map(|size| format!("size={size}")));
            json!({ "destination": target, "type": "tmpfs", "source": "tmpfs", "options": options })
        }
    }
}

fn mount(kind: &str, source: &str, target: &str, options: &[&str]) -> Value {
    json!({ "destination": target, "type": kind, "source": source, "options": options })
}

fn bind(source: &Path, target: &Path, options: &[&str]) -> Value {
    json!({ "destination": target, "type": "bind", "source": source, "options": options })
}

fn linux(spec: &ContainerSpec, resolved: &Resolved) -> Value {
    let outside =
        |number: u32| resolved.users.as_ref().map_or(number, |(_, first)| users::outside(*first, number));
    let devices: Vec<Value> = resolved
        .devices
        .iter()
        .map(|node| {
            json!({ "path": node.path, "type": node.kind.to_string(), "major": node.major, "minor": node.minor,
                    "fileMode": node.mode, "uid": outside(node.uid), "gid": outside(node.gid) })
        })
        .collect();
    let masked: Vec<&Path> = match spec.privileged {
        true => Vec::new(),
        false => MASKED.iter().map(Path::new).chain(resolved.heat.iter().map(PathBuf::as_path)).collect(),
    };
    let none: &[&str] = &[];
    let mut linux = json!({
        "cgroupsPath": spec.cgroup,
        "namespaces": namespaces(spec, resolved),
        "devices": devices,
        "sysctl": spec.sysctls,
        "rootfsPropagation": "slave",
        "maskedPaths": masked,
        "readonlyPaths": if spec.privileged { none } else { READ_ONLY },
    });
    if let Some((_, first)) = &resolved.users {
        linux["uidMappings"] = mappings(*first);
        linux["gidMappings"] = mappings(*first);
    }
    linux
}

fn namespaces(spec: &ContainerSpec, resolved: &Resolved) -> Vec<Value> {
    let mut namespaces = vec![json!({ "type": "mount" })];
    if let Some((path, _)) = &resolved.users {
        namespaces.push(json!({ "type": "user", "path": path }));
    }
    if let Some(path) = &resolved.network {
        namespaces.push(json!({ "type": "network", "path": path }));
    }
    for (kind, wanted, path) in [("pid", &spec.pid, &resolved.pid), ("ipc", &spec.ipc, &resolved.ipc)] {
        match (wanted, path) {
            (SharedNamespace::Host, _) => {}
            (SharedNamespace::Container(_), Some(path)) => namespaces.push(json!({ "type": kind, "path": path })),
            _ => namespaces.push(json!({ "type": kind })),
        }
    }
    if spec.hostname.is_some() {
        namespaces.push(json!({ "type": "uts" }));
    }
    if !spec.host_cgroup_namespace {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    namespaces
}

//! From a service and its image to the container that `runtime` makes. Pure.

use crate::current::{Identity, KnownImage, LiveNetwork};
use crate::paths::Paths;
use crate::plan::first_network;
use crate::target::Wanted;
use crate::wanted::arguments;
use coracle_compose::{FileGrant, FileObject, MountSource, NetworkMode, Project, Service};
use coracle_runtime::container::{
    ContainerSpec, CpuLimits, DEFAULT_CAPABILITIES, DeviceSpec, HostFile, Limits, Loss, MountSpec,
    NetworkNamespace, ProcessSpec, Rlimit, Seccomp, SharedNamespace, SourceSpec,
};
use coracle_runtime::image::DEFAULT_PATH;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// `/dev/shm` when the file says nothing (Compose Specification, `shm_size`; Docker's default).
const SHM_SIZE: u64 = 64 * 1024 * 1024;

/// Period of a CPU quota in microseconds, the kernel's own default (cgroup-v2.rst, `cpu.max`).
const CPU_PERIOD: u64 = 100_000;

/// Everything that a container is made of.
pub struct Parts<'a> {
    /// Its project.
    pub wanted: &'a Wanted,
    /// Who it is.
    pub identity: &'a Identity,
    /// Its id.
    pub id: &'a str,
    /// Its image.
    pub image: &'a KnownImage,
    /// The image's layers, topmost first.
    pub lower: Vec<PathBuf>,
    /// Its addresses by network.
    pub addresses: &'a BTreeMap<String, Ipv4Addr>,
    /// The project's networks by name.
    pub networks: BTreeMap<&'a str, &'a LiveNetwork>,
    /// Containers of the project's other services.
    pub containers: BTreeMap<&'a str, &'a str>,
    /// The host's own name and resolv.conf, for services on its network.
    pub host_resolv: &'a str,
    /// What it does without where the kernel lacks it.
    pub accepted_losses: Vec<Loss>,
}

/// A file that is written for a container before it starts.
#[derive(Debug, PartialEq, Eq)]
pub struct MadeFile {
    /// Name in the container's folder of files.
    pub name: String,
    /// What it holds.
    pub content: Content,
    /// Owner.
    pub owner: (u32, u32),
    /// Mode bits.
    pub mode: u32,
}

/// What a [`MadeFile`] holds.
#[derive(PartialEq, Eq)]
pub enum Content {
    /// This text.
    Text(String),
    /// What this file of the host holds at that moment.
    Of(PathBuf),
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Of(path) => write!(f, "Of({})", path.display()),
        }
    }
}

/// A container as it is to be started.
#[derive(Debug)]
pub struct Made {
    /// For the shim.
    pub spec: ContainerSpec,
    /// Written before.
    pub files: Vec<MadeFile>,
    /// Folders of the host that are made when they are not there (`create_host_path`).
    pub folders: Vec<PathBuf>,
}

/// Makes the description of a container.
///
/// # Errors
/// What is missing, one line.
pub fn container(paths: &Paths, parts: &Parts<'_>) -> Result<Made, String> {
    let service = parts
        .wanted
        .project
        .services
        .get(&parts.identity.service)
        .ok_or_else(|| format!("service {} is not in the project", parts.identity.service))?;
    let folder = paths.container(parts.id);
    let hostname = service.hostname.clone().unwrap_or_else(|| parts.identity.service.replace(['_', '.'], "-"));
    let mut folders = Vec::new();
    let mounts = mounts(paths, parts, service, &mut folders);
    let (files, made) = files(paths, parts, service, &hostname);
    let own_names = service.uts.as_deref() != Some("host") && service.network != NetworkMode::Host;
    let spec = ContainerSpec {
        id: parts.id.to_owned(),
        lower: parts.lower.clone(),
        upper: folder.join("upper"),
        work: folder.join("work"),
        read_only: service.read_only,
        process: process(service, parts.image),
        no_log: service.logging.none,
        hostname: own_names.then_some(hostname),
        domainname: service.domainname.clone(),
        mounts,
        files,
        devices: service.devices.iter().map(device).collect(),
        device_rules: service.device_cgroup_rules.clone(),
        privileged: service.privileged,
        sysctls: sysctls(service),
        shm_size: service.shm_size.unwrap_or(SHM_SIZE),
        limits: limits(&service.limits),
        cgroup: paths.cgroup_of(parts.id, service.privileged),
        network: network(parts, service)?,
        pid: shared(parts, service.pid.as_deref())?,
        ipc: shared(parts, service.ipc.as_deref())?,
        own_users: service.userns_mode.as_deref() == Some("auto"),
        host_cgroup_namespace: service.cgroup.as_deref() == Some("host"),
        init: service.init.unwrap_or(false),
        annotations: service.annotations.clone(),
        accepted_losses: parts.accepted_losses.clone(),
    };
    Ok(Made { spec, files: made, folders })
}

/// In a network of its own a service may ping and bind low ports without a capability (Docker's defaults).
fn sysctls(service: &Service) -> BTreeMap<String, String> {
    let mut sysctls = service.sysctls.clone();
    if matches!(service.network, NetworkMode::Networks(_) | NetworkMode::None) {
        let defaults =
            [("net.ipv4.ping_group_range", "0 2147483647"), ("net.ipv4.ip_unprivileged_port_start", "0")];
        for (name, value) in defaults {
            sysctls.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    sysctls
}

fn device(device: &coracle_compose::Device) -> DeviceSpec {
    DeviceSpec {
        source: device.source.clone(),
        target: device.target.clone(),
        permissions: device.permissions.clone(),
    }
}

fn process(service: &Service, image: &KnownImage) -> ProcessSpec {
    let mut env = image.config.env.clone();
    for (name, value) in &service.environment {
        env.retain(|(known, _)| known != name);
        env.extend(value.clone().map(|value| (name.clone(), value)));
    }
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.insert(0, ("PATH".to_owned(), DEFAULT_PATH.to_owned()));
    }
    let privileges_grow = service.security_opt.iter().any(|option| option == "no-new-privileges=false");
    let unconfined =
        service.privileged || service.security_opt.iter().any(|option| option == "seccomp=unconfined");
    let cwd = service.working_dir.clone().unwrap_or_else(|| image.config.working_dir.clone());
    ProcessSpec {
        args: arguments(service, image),
        env,
        cwd: if cwd.is_empty() { "/".to_owned() } else { cwd },
        user: service.user.clone().unwrap_or_else(|| image.config.user.clone()),
        group_add: service.group_add.clone(),
        tty: service.tty.unwrap_or(false),
        stdin_open: service.stdin_open,
        no_new_privileges: !service.privileged && !privileges_grow,
        capabilities: capabilities(service, DEFAULT_CAPABILITIES),
        capabilities_of_user: capabilities(service, &[]),
        seccomp: match &service.seccomp {
            _ if unconfined => Seccomp::Unconfined,
            Some(profile) => Seccomp::Profile(profile.clone()),
            None => Seccomp::Default,
        },
        rlimits: service
            .ulimits
            .iter()
            .map(|(name, limit)| Rlimit { name: name.clone(), soft: limit.soft, hard: limit.hard })
            .collect(),
        oom_score_adj: service.oom_score_adj.unwrap_or(0),
    }
}

/// The default ones, less those dropped, with those added; `ALL` stands for every one (Docker's rule: what is added by
/// name stays although `ALL` is dropped).
fn capabilities(service: &Service, default: &[&str]) -> Vec<String> {
    let all = || coracle_runtime::container::CAPABILITIES.iter().map(|&it| it.to_owned());
    let mut granted: Vec<String> = default.iter().map(|&it| it.to_owned()).collect();
    let names = |list: &[String], name: &str| list.iter().any(|it| it == name);
    if service.privileged || names(&service.cap_add, "ALL") {
        granted = all().collect();
    }
    if names(&service.cap_drop, "ALL") {
        granted.clear();
    }
    granted.retain(|it| !names(&service.cap_drop, it));
    for name in service.cap_add.iter().filter(|it| *it != "ALL") {
        if !granted.contains(name) {
            granted.push(name.clone());
        }
    }
    granted
}

fn mounts(paths: &Paths, parts: &Parts<'_>, service: &Service, folders: &mut Vec<PathBuf>) -> Vec<MountSpec> {
    let own = |number: usize| paths.container(parts.id).join("volumes").join(number.to_string());
    let anonymous = |number: usize| SourceSpec::Volume {
        folder: own(number).join("_data"),
        fill: Some(own(number).join("filled")),
        subpath: String::new(),
    };
    let project = &parts.identity.project;
    let mut mounts: Vec<MountSpec> = Vec::new();
    for (number, mount) in service.mounts.iter().enumerate() {
        let source = match &mount.source {
            MountSource::Volume { name, nocopy, subpath } => {
                let folder = paths.volume(project, name);
                folders.push(folder.clone());
                SourceSpec::Volume {
                    fill: (!nocopy).then(|| paths.volumes(project).join(name).join("filled")),
                    folder,
                    subpath: subpath.clone(),
                }
            }
            MountSource::Anonymous => {
                folders.push(own(number).join("_data"));
                anonymous(number)
            }
            MountSource::Bind { path, create_host_path, propagation, .. } => {
                if *create_host_path {
                    folders.push(path.clone());
                }
                SourceSpec::Bind { path: path.clone(), propagation: propagation.clone() }
            }
            MountSource::Tmpfs { size, mode } => SourceSpec::Tmpfs { size: *size, mode: *mode },
        };
        mounts.push(MountSpec { target: mount.target.clone(), read_only: mount.read_only, source });
    }
    let covered: Vec<String> = mounts.iter().map(|it| it.target.trim_end_matches('/').to_owned()).collect();
    let volumes =
        parts.image.config.volumes.iter().filter(|it| !covered.iter().any(|by| by == it.trim_end_matches('/')));
    for (number, target) in volumes.enumerate() {
        let number = service.mounts.len() + number;
        folders.push(own(number).join("_data"));
        mounts.push(MountSpec { target: target.clone(), read_only: false, source: anonymous(number) });
    }
    // A mount over a folder comes before one inside it.
    mounts.sort_by_key(|mount| mount.target.matches('/').count());
    mounts
}

fn files(paths: &Paths, parts: &Parts<'_>, service: &Service, hostname: &str) -> (Vec<HostFile>, Vec<MadeFile>) {
    let mut shown = Vec::new();
    let mut made = Vec::new();
    let folder = paths.files(parts.id);
    let mut add = |name: String, target: String, content, owner, mode, writable| {
        shown.push(HostFile { path: folder.join(&name), target, writable });
        made.push(MadeFile { name, content, owner, mode });
    };
    let system = [
        ("hostname", format!("{hostname}\n")),
        ("hosts", hosts(parts, service, hostname)),
        ("resolv.conf", resolv(parts, service)),
    ];
    for (name, text) in system {
        let target = format!("/etc/{name}");
        if !service.mounts.iter().any(|mount| mount.target == target) {
            add(name.to_owned(), target, Content::Text(text), (0, 0), 0o644, true);
        }
    }
    let project = &parts.wanted.project;
    for (kind, grants, objects) in
        [("secret", &service.secrets, &project.secrets), ("config", &service.configs, &project.configs)]
    {
        for (number, grant) in grants.iter().enumerate() {
            let FileGrant { source, target, uid, gid, mode } = grant;
            let Some(object) = objects.get(source) else { continue };
            let content = match object {
                FileObject::File(path) => Content::Of(path.clone()),
                FileObject::Environment { value, .. } => Content::Text(value.clone()),
                FileObject::Content(text) => Content::Text(text.clone()),
            };
            add(format!("{kind}-{number}"), target.clone(), content, (*uid, *gid), *mode, false);
        }
    }
    (shown, made)
}

fn gateway(parts: &Parts<'_>, service: &Service) -> Option<Ipv4Addr> {
    let name = first_network(&service.network)?;
    parts.networks.get(name.as_str()).map(|live| live.gateway)
}

fn hosts(parts: &Parts<'_>, service: &Service, hostname: &str) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let full = service.domainname.as_ref().map(|domain| format!("{hostname}.{domain} ")).unwrap_or_default();
    let own = first_network(&service.network).and_then(|name| parts.addresses.get(name));
    if let Some(address) = own {
        text.push_str(&format!("{address}\t{full}{hostname}\n"));
    }
    for (name, address) in &service.extra_hosts {
        let address = match (address.as_str(), gateway(parts, service)) {
            ("host-gateway", Some(gateway)) => gateway.to_string(),
            ("host-gateway", None) => "127.0.0.1".to_owned(),
            (other, _) => other.to_owned(),
        };
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text
}

/// Whether a service's name servers are the host's.
pub fn follows_host(project: &Project, service: &Service) -> bool {
    let service = host_of(project, service).map_or(service, |(_, host)| host);
    service.dns.is_empty() && first_network(&service.network).is_none()
}

/// The service in whose network one is, with its name: the last in a chain of `service:`.
fn host_of<'a>(project: &'a Project, service: &'a Service) -> Option<(&'a str, &'a Service)> {
    /// Services that stand in each other's network; more than one is rare.
    const MOST: usize = 16;
    let next = |service: &'a Service| match &service.network {
        NetworkMode::Service(owner) => project.services.get_key_value(owner),
        _ => None,
    };
    std::iter::successors(next(service), |(_, owner)| next(owner))
        .take(MOST)
        .last()
        .map(|(name, it)| (&**name, it))
}

fn resolv(parts: &Parts<'_>, service: &Service) -> String {
    let service = host_of(&parts.wanted.project, service).map_or(service, |(_, host)| host);
    let mut text = String::new();
    match gateway(parts, service) {
        // Our own server answers names of services and asks the file's servers for the rest.
        Some(gateway) => text.push_str(&format!("nameserver {gateway}\n")),
        None if service.dns.is_empty() => return parts.host_resolv.to_owned(),
        None => service.dns.iter().for_each(|server| text.push_str(&format!("nameserver {server}\n"))),
    }
    if !service.dns_search.is_empty() {
        text.push_str(&format!("search {}\n", service.dns_search.join(" ")));
    }
    if !service.dns_opt.is_empty() {
        text.push_str(&format!("options {}\n", service.dns_opt.join(" ")));
    }
    text
}

/// Name servers that the file gives a service.
pub fn name_servers(service: &Service) -> Vec<IpAddr> {
    service.dns.iter().filter_map(|server| server.parse().ok()).collect()
}

fn network(parts: &Parts<'_>, service: &Service) -> Result<NetworkNamespace, String> {
    match &service.network {
        NetworkMode::Host => Ok(NetworkNamespace::Host),
        NetworkMode::Service(owner) => {
            let host = host_of(&parts.wanted.project, service);
            let (name, host) = host.ok_or_else(|| format!("there is no service {owner}"))?;
            if host.network == NetworkMode::Host {
                return Ok(NetworkNamespace::Host);
            }
            let id = parts.containers.get(name).ok_or_else(|| format!("service {name} has no container"))?;
            Ok(NetworkNamespace::Held((*id).to_owned()))
        }
        NetworkMode::None | NetworkMode::Networks(_) => Ok(NetworkNamespace::Held(parts.id.to_owned())),
    }
}

fn shared(parts: &Parts<'_>, mode: Option<&str>) -> Result<SharedNamespace, String> {
    match mode {
        Some("host") => Ok(SharedNamespace::Host),
        Some(other) => match other.strip_prefix("service:") {
            Some(owner) => {
                let id = parts.containers.get(owner).ok_or_else(|| format!("service {owner} has no container"))?;
                Ok(SharedNamespace::Container((*id).to_owned()))
            }
            None => Ok(SharedNamespace::Private),
        },
        None => Ok(SharedNamespace::Private),
    }
}

fn limits(limits: &coracle_compose::Limits) -> Limits {
    let bytes = |it: Option<u64>| it.map(|it| i64::try_from(it).unwrap_or(i64::MAX));
    let from_cpus = |nano: u64| i64::try_from(u128::from(nano) * u128::from(CPU_PERIOD) / 1_000_000_000).ok();
    let quota = limits.cpu_quota.or_else(|| limits.nano_cpus.and_then(from_cpus));
    let period = limits.cpu_period.or(quota.is_some().then_some(CPU_PERIOD));
    Limits {
        memory: bytes(limits.memory),
        memory_reservation: bytes(limits.memory_reservation),
        // Without a word on swap it is as much as memory, as Docker has it; else a limit would only move it there.
        memory_swap: limits.memory_swap.or(bytes(limits.memory).map(|memory| memory.saturating_mul(2))),
        memory_swappiness: limits.memory_swappiness,
        oom_kill_disable: limits.oom_kill_disable,
        cpu: CpuLimits { shares: limits.cpu_shares, quota, period, cpus: limits.cpuset.clone() },
        pids: limits.pids,
    }
}

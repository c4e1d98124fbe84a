//! One service: every field of the Compose Specification is read, refused by name, or warned about.

use crate::load::LoadOptions;
use crate::model::*;
use crate::reader::Reader;
use crate::yaml::{Node, Value};
use crate::{mount, port, quantity};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

/// Fields that are read. Also what "did you mean" chooses from.
pub const KNOWN: &[&str] = &[
    "annotations", "build", "cap_add", "cap_drop", "cgroup", "cgroup_parent", "command", "configs",
    "container_name", "cpu_count", "cpu_percent", "cpu_period", "cpu_quota", "cpu_shares", "cpus", "cpuset",
    "depends_on", "deploy", "device_cgroup_rules", "devices", "dns", "dns_opt", "dns_search", "domainname",
    "entrypoint", "env_file", "environment", "expose", "extra_hosts", "group_add", "healthcheck", "hostname",
    "image", "init", "ipc", "labels", "links", "logging", "mac_address", "mem_limit", "mem_reservation",
    "mem_swappiness", "memswap_limit", "network_mode", "networks", "oom_kill_disable", "oom_score_adj", "pid",
    "pids_limit", "platform", "ports", "privileged", "profiles", "pull_policy", "read_only", "restart", "runtime",
    "scale", "secrets", "security_opt", "shm_size", "stdin_open", "stop_grace_period", "stop_signal",
    "storage_opt", "sysctls", "tmpfs", "tty", "ulimits", "user", "userns_mode", "uts", "volumes", "working_dir",
];

/// Fields that Compose tools take and that mean nothing on a device.
const HARMLESS: &[(&str, &str)] = &[
    ("attach", "has no effect on a device"),
    ("container_name", "has no effect: containers are named by project and service"),
    ("develop", "has no effect on a device"),
    ("storage_opt", "has no effect"),
];

/// Fields of the specification that are refused, each with the reason.
const REFUSED: &[(&str, &str)] = &[
    ("blkio_config", "block I/O limits are not supported"),
    ("cpu_count", "is for Windows; use cpus"),
    ("cpu_percent", "is for Windows; use cpus"),
    ("cpu_rt_period", "real-time CPU limits are not supported"),
    ("cpu_rt_runtime", "real-time CPU limits are not supported"),
    ("credential_spec", "is for Windows"),
    ("external_links", "there are no containers outside of projects"),
    ("gpus", "GPUs are not supported"),
    ("isolation", "is for Windows"),
    ("label_file", "is not supported: write labels"),
    ("models", "AI models are not supported"),
    ("post_start", "lifecycle hooks are not supported"),
    ("pre_stop", "lifecycle hooks are not supported"),
    ("provider", "providers are not supported"),
    ("use_api_socket", "there is no Docker engine"),
    ("volumes_from", "is not supported: name the volumes"),
];

/// Names of all fields of a service that are known: taken, warned about, or refused by name.
pub fn field_names() -> impl Iterator<Item = &'static str> {
    let named = HARMLESS.iter().chain(REFUSED).map(|(name, _)| *name);
    KNOWN.iter().copied().chain(named)
}

/// A service and what belongs to it beside the model.
pub struct Read {
    /// The service.
    pub service: Service,
    /// Profiles; empty: always active.
    pub profiles: Vec<String>,
    /// Line of its name.
    pub line: usize,
}

/// Reads one service.
pub fn read(reader: &Reader<'_>, name: &str, node: &Node, options: &LoadOptions) -> Read {
    let at = format!("services.{name}");
    let mut service = Service { scale: 1, ..Service::default() };
    let mut profiles = Vec::new();
    let (mut env_files, mut environment) = (BTreeMap::new(), BTreeMap::new());
    for (key, node) in reader.mapping(node, &at) {
        let field = format!("{at}.{key}");
        if let Some((_, reason)) = REFUSED.iter().find(|(name, _)| name == key) {
            reader.refuse(node.line, &field, *reason);
        } else if let Some((_, message)) = HARMLESS.iter().find(|(name, _)| name == key) {
            reader.notice(node.line, &field, *message);
        } else {
            match key.as_str() {
                "profiles" => profiles = reader.words(node, &field),
                "env_file" => env_files = env_file(reader, node, &field, options),
                "environment" => environment = self::environment(reader, node, &field, options),
                // After the fields that it repeats.
                "deploy" => {}
                _ => read_field(reader, &mut service, key, node, &field, &at, options),
            }
        }
    }
    if let Some((_, node)) = reader.mapping(node, &at).iter().find(|(key, _)| key == "deploy") {
        deploy(reader, node, &format!("{at}.deploy"), &mut service);
    }
    let has = |wanted: &str| reader.mapping(node, &at).iter().any(|(key, node)| key == wanted && !node.is_null());
    if has("network_mode") && has("networks") {
        reader.refuse(node.line, &format!("{at}.network_mode"), "stands beside networks: write one of them");
    }
    env_files.extend(environment);
    service.environment = env_files;
    if let Some(image) = options.images.get(name) {
        service.image = Some(image.clone());
    }
    settle(reader, &mut service, node, &at);
    own_users(reader, &service, node, &at);
    Read { service, profiles, line: node.line }
}

/// What a service with users of its own may have: what counts for its files and processes. Everything else counts for a
/// network, a clock, a kernel that are the machine's.
fn own_users(reader: &Reader<'_>, service: &Service, node: &Node, at: &str) {
    const COUNTS: &[&str] = &[
        "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
        "SETFCAP", "SYS_CHROOT", "SYS_PTRACE", "NET_BIND_SERVICE",
    ];
    if service.userns_mode.as_deref() != Some("auto") {
        return;
    }
    let line =
        |wanted: &str| reader.mapping(node, at).iter().find(|(key, _)| key == wanted).map_or(0, |it| it.1.line);
    let way_out = "with users of its own (userns_mode: auto): write userns_mode: host";
    if service.privileged {
        reader.refuse(line("privileged"), &format!("{at}.privileged"), format!("means nothing {way_out}"));
    }
    for name in service.cap_add.iter().filter(|name| !COUNTS.contains(&name.as_str())) {
        reader.refuse(line("cap_add"), &format!("{at}.cap_add"), format!("{name} means nothing {way_out}"));
    }
}

fn read_field(
    reader: &Reader<'_>,
    s: &mut Service,
    key: &str,
    node: &Node,
    field: &str,
    at: &str,
    options: &LoadOptions,
) {
    let text = || reader.text(node, field).filter(|text| !text.is_empty());
    match key {
        "image" => s.image = text(),
        "build" => s.has_build = true,
        "command" => s.command = reader.command(node, field),
        "entrypoint" => s.entrypoint = reader.command(node, field),
        "labels" => s.labels = present(reader.pairs(node, field)),
        "annotations" => s.annotations = present(reader.pairs(node, field)),
        "user" => s.user = text(),
        "group_add" => s.group_add = reader.words(node, field),
        "working_dir" => s.working_dir = reader.parsed(node, field, absolute),
        "hostname" => s.hostname = reader.parsed(node, field, host_name),
        "domainname" => s.domainname = reader.parsed(node, field, host_name),
        "tty" => s.tty = reader.boolean(node, field),
        "stdin_open" => s.stdin_open = reader.boolean(node, field).unwrap_or_default(),
        "init" => s.init = reader.boolean(node, field),
        "restart" => s.restart = restart(reader, node, field).unwrap_or_default(),
        "stop_signal" => s.stop_signal = reader.parsed(node, field, signal),
        "stop_grace_period" => s.stop_grace_period = reader.parsed(node, field, quantity::duration),
        "privileged" => s.privileged = reader.boolean(node, field).unwrap_or_default(),
        "read_only" => s.read_only = reader.boolean(node, field).unwrap_or_default(),
        "cap_add" => s.cap_add = capabilities(reader, node, field),
        "cap_drop" => s.cap_drop = capabilities(reader, node, field),
        "devices" => devices(reader, node, field, s),
        "device_cgroup_rules" => s.device_cgroup_rules = device_rules(reader, node, field),
        "security_opt" => (s.security_opt, s.seccomp) = security_opt(reader, node, field, options),
        "sysctls" => s.sysctls = sysctls(reader, node, field),
        "ulimits" => s.ulimits = ulimits(reader, node, field),
        "userns_mode" => s.userns_mode = one_of(reader, node, field, &["auto", "host"]),
        "pid" => s.pid = mode(reader, node, field, &["host"], true),
        "ipc" => s.ipc = mode(reader, node, field, &["host", "none", "private", "shareable"], true),
        "uts" => s.uts = one_of(reader, node, field, &["host"]),
        "cgroup" => s.cgroup = one_of(reader, node, field, &["host", "private"]),
        "cgroup_parent" => reader.refuse(node.line, field, "is not supported: services live below one cgroup"),
        "shm_size" => s.shm_size = reader.parsed(node, field, quantity::size),
        "oom_score_adj" => s.oom_score_adj = reader.integer(node, field, -1000, 1000).map(|it| it as i32),
        "volumes" => s.mounts.extend(mount::volumes(reader, node, field, options)),
        "tmpfs" => s.mounts.extend(mount::tmpfs(reader, node, field)),
        "secrets" => s.secrets = mount::grants(reader, node, field, "/run/secrets"),
        "configs" => s.configs = mount::grants(reader, node, field, ""),
        "ports" => s.ports = port::read(reader, node, field),
        "expose" => s.expose = reader.words(node, field),
        "networks" => networks(reader, node, field, s),
        "network_mode" => network_mode(reader, node, field, s),
        "mac_address" => s.mac_address = text(),
        "dns" => s.dns = addresses(reader, node, field),
        "dns_search" => s.dns_search = reader.words(node, field),
        "dns_opt" => s.dns_opt = reader.words(node, field),
        "extra_hosts" => s.extra_hosts = extra_hosts(reader, node, field),
        "links" => s.links = links(reader, node, field),
        "healthcheck" => s.healthcheck = Some(health(reader, node, field)),
        "depends_on" => s.depends_on = depends_on(reader, node, field),
        "platform" => s.platform = platform(reader, node, field, options),
        "runtime" => {
            if !matches!(node.text(), Some("" | "runc" | "io.containerd.runc.v2")) {
                reader.refuse(
                    node.line,
                    field,
                    "this machine cannot run it: there is one runtime, leave the field out",
                );
            }
        }
        "pull_policy" => s.pull_policy = pull_policy(reader, node, field),
        "scale" => s.scale = scale(reader, node, field),
        "logging" => s.logging = logging(reader, node, field),
        _ if limit(reader, &mut s.limits, key, node, field) => {}
        _ => reader.unknown(node.line, at, key, KNOWN),
    }
}

/// Rules that need more than one field.
fn settle(reader: &Reader<'_>, s: &mut Service, node: &Node, at: &str) {
    match (&s.image, s.has_build) {
        (None, false) => reader.refuse(node.line, at, "has neither image nor build: give image"),
        (None, true) => reader.notice(
            node.line,
            &format!("{at}.build"),
            "needs a builder: build the image elsewhere and give image, or --image",
        ),
        (Some(_), true) => reader.notice(node.line, &format!("{at}.build"), "is left out: the image is used"),
        (Some(_), false) => {}
    }
    if !matches!(s.network, NetworkMode::Networks(_)) && !s.ports.is_empty() {
        match &s.network {
            NetworkMode::Host => {
                reader.notice(node.line, &format!("{at}.ports"), "have no effect with network_mode: host")
            }
            NetworkMode::Service(other) => {
                reader.refuse(
                    node.line,
                    &format!("{at}.ports"),
                    format!("must stand at the service {other}, whose network is used"),
                );
            }
            _ => reader.refuse(node.line, &format!("{at}.ports"), "cannot be published without a network"),
        }
    }
    let mut seen = BTreeMap::new();
    for mount in &s.mounts {
        if seen.insert(&mount.target, ()).is_some() {
            reader.refuse(node.line, &format!("{at}.volumes"), format!("{} is mounted twice", mount.target));
        }
    }
}

fn present(pairs: BTreeMap<String, Option<String>>) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(name, value)| (name, value.unwrap_or_default())).collect()
}

fn absolute(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err(format!("{text:?} must be an absolute path")) }
}

fn host_name(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    // HOST_NAME_MAX of Linux is 64.
    if text.len() <= 64 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is no host name of at most 64 characters"))
    }
}

fn restart(reader: &Reader<'_>, node: &Node, field: &str) -> Option<Restart> {
    reader.parsed(node, field, |text| match text {
        "no" | "" => Ok(Restart::No),
        "always" => Ok(Restart::Always),
        "unless-stopped" => Ok(Restart::UnlessStopped),
        "on-failure" => Ok(Restart::OnFailure(None)),
        "false" | "False" => Err("is no restart policy: write no".to_owned()),
        _ => match text.strip_prefix("on-failure:").and_then(|tries| tries.parse().ok()) {
            Some(tries) => Ok(Restart::OnFailure(Some(tries))),
            None => Err(format!(
                "{text:?} is no restart policy: no, always, unless-stopped, on-failure or on-failure:TRIES"
            )),
        },
    })
}

/// Signals of Linux that end a service, by name.
const SIGNALS: &[&str] = &[
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
    "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
    "WINCH", "IO", "PWR", "SYS",
];

/// Number of a signal: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
pub fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let offset: i32 = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse().ok()? };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    SIGNALS.iter().position(|&known| known == name).map(|index| index as i32 + 1)
}

fn signal(text: &str) -> Result<String, String> {
    signal_number(text)
        .map(|_| text.to_owned())
        .ok_or_else(|| format!("{text:?} is no signal: write SIGTERM or 15"))
}

fn capabilities(reader: &Reader<'_>, node: &Node, field: &str) -> Vec<String> {
    let mut names = Vec::new();
    for text in reader.words(node, field) {
        let name = text.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name).to_owned();
        if name == "ALL" || CAPABILITIES.contains(&name.as_str()) {
            if !names.contains(&name) {
                names.push(name);
            }
        } else {
            reader.refuse(node.line, field, format!("{text:?} is no capability (capabilities(7))"));
        }
    }
    names
}

/// Capability names (linux/capability.h).
const CAPABILITIES: &[&str] = &[
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
];

fn devices(reader: &Reader<'_>, node: &Node, field: &str, s: &mut Service) {
    for (index, node) in reader.sequence(node, field).iter().enumerate() {
        let field = format!("{field}[{index}]");
        let Some(text) = device_text(reader, node, &field) else {
            continue;
        };
        if !text.starts_with('/') && text.contains('=') {
            s.cdi_devices.push(text);
            continue;
        }
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, permissions) = match parts.as_slice() {
            [source] => (*source, *source, "rwm"),
            [source, target] => (*source, *target, "rwm"),
            [source, target, permissions] => (*source, *target, *permissions),
            _ => ("", "", ""),
        };
        let permitted = !permissions.is_empty() && permissions.bytes().all(|byte| b"rwm".contains(&byte));
        if source.starts_with("/dev/") && target.starts_with("/dev/") && permitted && !text.contains("..") {
            s.devices.push(Device {
                source: source.into(),
                target: target.into(),
                permissions: permissions.into(),
            });
        } else {
            reader.refuse(node.line, &field, format!("{text:?} is no device: write /dev/NAME[:/dev/NAME[:rwm]]"));
        }
    }
}

/// The short form; the long one has the same three parts.
fn device_text(reader: &Reader<'_>, node: &Node, field: &str) -> Option<String> {
    if !matches!(node.value, Value::Mapping(_)) {
        return reader.text(node, field);
    }
    let (mut source, mut target, mut permissions) = (None, None, "rwm".to_owned());
    for (key, node) in reader.mapping(node, field) {
        let field = format!("{field}.{key}");
        match key.as_str() {
            "source" => source = reader.text(node, &field),
            "target" => target = reader.text(node, &field),
            "permissions" => permissions = reader.text(node, &field).unwrap_or_default(),
            _ => reader.unknown(node.line, &field, key, &["source", "target", "permissions"]),
        }
    }
    let source = source?;
    Some(match target {
        // A device by name has one part.
        _ if !source.starts_with('/') => source,
        Some(target) => format!("{source}:{target}:{permissions}"),
        None => format!("{source}:{source}:{permissions}"),
    })
}

/// 0 is no limit, as -1 is.
fn tasks(reader: &Reader<'_>, node: &Node, field: &str) -> Option<i64> {
    let tasks = reader.integer(node, field, -1, i64::from(i32::MAX))?;
    Some(if tasks == 0 { -1 } else { tasks })
}

fn device_rules(reader: &Reader<'_>, node: &Node, field: &str) -> Vec<String> {
    // The kernel's numbers have 12 and 20 bits.
    let number = |text: &str, most: u32| text == "*" || text.parse::<u32>().is_ok_and(|it| it <= most);
    let good = |rule: &str| {
        let words: Vec<&str> = rule.split_whitespace().collect();
        let [kind, numbers, access] = words.as_slice() else {
            return false;
        };
        matches!(*kind, "a" | "b" | "c")
            && numbers
                .split_once(':')
                .is_some_and(|(major, minor)| number(major, 0xfff) && number(minor, 0xf_ffff))
            && access.bytes().all(|byte| b"rwm".contains(&byte))
    };
    let rules = reader.words(node, field);
    for rule in rules.iter().filter(|rule| !good(rule)) {
        reader.refuse(node.line, field, format!("{rule:?} is no rule: write c 1:3 rwm"));
    }
    rules
}

/// Options that are kept, and the seccomp profile that one of them names.
fn security_opt(
    reader: &Reader<'_>,
    node: &Node,
    field: &str,
    options: &LoadOptions,
) -> (Vec<String>, Option<String>) {
    let (mut kept, mut profile) = (Vec::new(), None);
    for option in reader.words(node, field) {
        match option.replacen(':', "=", 1).as_str() {
            "no-new-privileges" | "no-new-privileges=true" | "no-new-privileges=false" => {
                kept.push(option.replacen(':', "=", 1))
            }
            other if other.starts_with("label=") || other == "label" => {}
            "seccomp=unconfined" => kept.push("seccomp=unconfined".to_owned()),
            other if let Some(file) = other.strip_prefix("seccomp=") => {
                match crate::text::read(&options.folder.join(file)) {
                    Ok(text) => profile = Some(text),
                    Err(error) => reader.refuse(node.line, field, format!("{file}: {error}")),
                }
                kept.push(other.to_owned());
            }
            "apparmor=unconfined" => {
                reader.notice(node.line, field, format!("{option} has no effect yet: no such filter is in force"));
            }
            _ => reader.refuse(
                node.line,
                field,
                format!(
                    "{option:?} is not supported: no-new-privileges[:false], seccomp:FILE, seccomp:unconfined"
                ),
            ),
        }
    }
    (kept, profile)
}

fn sysctls(reader: &Reader<'_>, node: &Node, field: &str) -> BTreeMap<String, String> {
    let sysctls = present(reader.pairs(node, field));
    let namespaced = ["net.", "kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue."];
    for name in sysctls
        .keys()
        .filter(|name| !namespaced.iter().any(|prefix| name.starts_with(prefix)) || name.contains(".."))
    {
        reader.refuse(node.line, field, format!("{name} belongs to the whole machine: only net., kernel.msg*, kernel.sem, kernel.shm* and fs.mqueue. can be set"));
    }
    sysctls
}

/// Resource limits by Compose name (getrlimit(2)).
const ULIMITS: &[&str] = &[
    "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss",
    "rtprio", "rttime", "sigpending", "stack",
];

fn ulimits(reader: &Reader<'_>, node: &Node, field: &str) -> BTreeMap<String, Ulimit> {
    let mut limits = BTreeMap::new();
    for (name, node) in reader.mapping(node, field) {
        let field = format!("{field}.{name}");
        if !ULIMITS.contains(&name.as_str()) {
            reader.refuse(node.line, &field, "is no resource limit (getrlimit(2))");
            continue;
        }
        let mut limit = Ulimit { soft: -1, hard: -1 };
        if node.text().is_some() {
            limit.soft = reader.integer(node, &field, -1, i64::MAX).unwrap_or(-1);
            limit.hard = limit.soft;
        } else {
            let entries = reader.mapping(node, &field);
            if ["soft", "hard"].iter().any(|wanted| !entries.iter().any(|(key, _)| key == wanted)) {
                reader.refuse(node.line, &field, "needs soft and hard, or one number for both");
            }
            for (key, node) in entries {
                let value = || reader.integer(node, &format!("{field}.{key}"), -1, i64::MAX).unwrap_or(-1);
                match key.as_str() {
                    "soft" => limit.soft = value(),
                    "hard" => limit.hard = value(),
                    _ => reader.unknown(node.line, &field, key, &["soft", "hard"]),
                }
            }
        }
        if limit.hard >= 0 && (limit.soft < 0 || limit.soft > limit.hard) {
            reader.refuse(node.line, &field, "soft must not be above hard");
        }
        limits.insert(name.clone(), limit);
    }
    limits
}

fn one_of(reader: &Reader<'_>, node: &Node, field: &str, allowed: &[&str]) -> Option<String> {
    mode(reader, node, field, allowed, false)
}

fn mode(reader: &Reader<'_>, node: &Node, field: &str, allowed: &[&str], service: bool) -> Option<String> {
    reader
        .parsed(node, field, |text| {
            let named = service && text.strip_prefix("service:").is_some_and(|name| !name.is_empty());
            if text.is_empty() || named || allowed.contains(&text) {
                return Ok(text.to_owned());
            }
            let also = if service { " or service:NAME" } else { "" };
            Err(format!("{text:?} is not supported: {}{also}", allowed.join(", ")))
        })
        .filter(|text| !text.is_empty())
}

fn limit(reader: &Reader<'_>, limits: &mut Limits, key: &str, node: &Node, field: &str) -> bool {
    let size = || reader.parsed(node, field, quantity::size).filter(|&size| size > 0);
    match key {
        "mem_limit" => limits.memory = size(),
        "mem_reservation" => limits.memory_reservation = size(),
        "memswap_limit" if node.text() == Some("-1") => limits.memory_swap = Some(-1),
        "memswap_limit" => limits.memory_swap = size().and_then(|size| i64::try_from(size).ok()),
        "mem_swappiness" => limits.memory_swappiness = reader.integer(node, field, 0, 100).map(|it| it as u64),
        "oom_kill_disable" => limits.oom_kill_disable = reader.boolean(node, field).unwrap_or_default(),
        "cpus" => limits.nano_cpus = reader.parsed(node, field, quantity::nano_cpus).filter(|&cpus| cpus > 0),
        "cpu_shares" => {
            limits.cpu_shares = reader.integer(node, field, 0, 262_144).filter(|&it| it > 0).map(|it| it as u64)
        }
        "cpu_quota" => limits.cpu_quota = reader.integer(node, field, -1, i64::MAX).filter(|&it| it != 0),
        "cpu_period" => limits.cpu_period = reader.integer(node, field, 1_000, 1_000_000).map(|it| it as u64),
        "cpuset" => limits.cpuset = reader.parsed(node, field, cpu_list),
        "pids_limit" => limits.pids = tasks(reader, node, field),
        _ => return false,
    }
    true
}

fn cpu_list(text: &str) -> Result<String, String> {
    let number = |text: &str| text.parse::<u16>().is_ok();
    let good = text
        .split(',')
        .all(|part| part.split_once('-').map_or_else(|| number(part), |(a, b)| number(a) && number(b)));
    if good { Ok(text.to_owned()) } else { Err(format!("{text:?} is no CPU list: write 0-2,4")) }
}

fn networks(reader: &Reader<'_>, node: &Node, field: &str, s: &mut Service) {
    let mut attachments = BTreeMap::new();
    if let Value::Sequence(_) = &node.value {
        attachments.extend(reader.words(node, field).into_iter().map(|name| (name, Attachment::default())));
    } else {
        for (name, node) in reader.mapping(node, field) {
            attachments.insert(name.clone(), attachment(reader, node, &format!("{field}.{name}")));
        }
    }
    if !attachments.is_empty() {
        s.network = NetworkMode::Networks(attachments);
    }
}

fn attachment(reader: &Reader<'_>, node: &Node, field: &str) -> Attachment {
    let mut attachment = Attachment::default();
    for (key, node) in reader.mapping(node, field) {
        let field = format!("{field}.{key}");
        match key.as_str() {
            "aliases" => attachment.aliases = reader.words(node, &field),
            "ipv4_address" => attachment.ipv4_address = reader.parsed(node, &field, address),
            "ipv6_address" => attachment.ipv6_address = reader.parsed(node, &field, address),
            "priority" | "gw_priority" => {
                attachment.priority =
                    reader.integer(node, &field, i32::MIN.into(), i32::MAX.into()).unwrap_or(0) as i32;
            }
            "mac_address" => attachment.mac_address = reader.text(node, &field),
            "link_local_ips" | "driver_opts" | "interface_name" => {
                reader.refuse(node.line, &field, "is not supported")
            }
            _ => reader.unknown(
                node.line,
                &field,
                key,
                &["aliases", "ipv4_address", "ipv6_address", "priority", "mac_address"],
            ),
        }
    }
    attachment
}

fn address<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no address"))
}

fn network_mode(reader: &Reader<'_>, node: &Node, field: &str, s: &mut Service) {
    let Some(text) = reader.text(node, field) else {
        return;
    };
    let named = |name: &str| NetworkMode::Networks(BTreeMap::from([(name.to_owned(), Attachment::default())]));
    s.network = match text.as_str() {
        "host" => NetworkMode::Host,
        "none" => NetworkMode::None,
        "bridge" | "default" | "" => named("default"),
        _ => match text.split_once(':') {
            Some(("service", name)) => NetworkMode::Service(name.to_owned()),
            Some(_) => {
                return reader.refuse(
                    node.line,
                    field,
                    format!("{text:?} is not supported: host, none, bridge, service:NAME"),
                );
            }
            None => named(&text),
        },
    };
}

fn addresses(reader: &Reader<'_>, node: &Node, field: &str) -> Vec<String> {
    let words = reader.words(node, field);
    for word in words.iter().filter(|word| word.parse::<IpAddr>().is_err()) {
        reader.refuse(node.line, field, format!("{word:?} is no address"));
    }
    words
}

fn extra_hosts(reader: &Reader<'_>, node: &Node, field: &str) -> Vec<(String, String)> {
    let mut hosts = Vec::new();
    let entries: Vec<(String, String)> = match &node.value {
        Value::Mapping(_) => present(reader.pairs(node, field)).into_iter().collect(),
        _ => {
            let words = reader.words(node, field);
            let split = |word: &String| {
                word.split_once('=').or_else(|| word.split_once(':')).map(|(a, b)| (a.to_owned(), b.to_owned()))
            };
            words.iter().map(|word| split(word).unwrap_or_else(|| (word.clone(), String::new()))).collect()
        }
    };
    for (name, address) in entries {
        let bare = address.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(&address).to_owned();
        if bare == "host-gateway" || bare.parse::<IpAddr>().is_ok() {
            hosts.push((name, bare));
        } else {
            reader.refuse(node.line, field, format!("{name}: {address:?} is no address"));
        }
    }
    hosts
}

fn links(reader: &Reader<'_>, node: &Node, field: &str) -> Vec<(String, String)> {
    let split = |link: String| match link.split_once(':') {
        Some((name, alias)) => (name.to_owned(), alias.to_owned()),
        None => (link.clone(), link),
    };
    reader.words(node, field).into_iter().map(split).collect()
}

fn health(reader: &Reader<'_>, node: &Node, field: &str) -> HealthCheck {
    let mut check = HealthCheck::default();
    for (key, node) in reader.mapping(node, field) {
        let field = format!("{field}.{key}");
        let duration = || reader.parsed(node, &field, quantity::duration);
        match key.as_str() {
            "disable" => check.disable = reader.boolean(node, &field).unwrap_or_default(),
            "test" => match health_test(reader, node, &field) {
                Some(Some(test)) => check.test = Some(test),
                Some(None) => check.disable = true,
                None => {}
            },
            "interval" => check.interval = duration(),
            "timeout" => check.timeout = duration(),
            "start_period" => check.start_period = duration(),
            "start_interval" => check.start_interval = duration(),
            "retries" => check.retries = reader.integer(node, &field, 0, 1_000_000).map(|it| it as u32),
            _ => reader.unknown(
                node.line,
                &field,
                key,
                &["disable", "test", "interval", "timeout", "start_period", "start_interval", "retries"],
            ),
        }
    }
    check
}

/// `Some(None)`: switched off.
fn health_test(reader: &Reader<'_>, node: &Node, field: &str) -> Option<Option<HealthTest>> {
    if let Some(line) = node.text() {
        return Some(Some(HealthTest::Shell(line.to_owned())));
    }
    let words = reader.words(node, field);
    match words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some(("NONE", [])) => Some(None),
        Some(("CMD", rest)) if !rest.is_empty() => Some(Some(HealthTest::Exec(rest.to_vec()))),
        Some(("CMD-SHELL", [line])) => Some(Some(HealthTest::Shell(line.clone()))),
        _ => {
            reader.refuse(node.line, field, "begins with CMD, CMD-SHELL or NONE when it is a list");
            None
        }
    }
}

fn depends_on(reader: &Reader<'_>, node: &Node, field: &str) -> BTreeMap<String, Dependency> {
    let started = Dependency { condition: Condition::ServiceStarted, required: true, restart: false };
    if let Value::Sequence(_) = &node.value {
        return reader.words(node, field).into_iter().map(|name| (name, started)).collect();
    }
    let mut dependencies = BTreeMap::new();
    for (name, node) in reader.mapping(node, field) {
        let mut dependency = started;
        for (key, node) in reader.mapping(node, &format!("{field}.{name}")) {
            let field = format!("{field}.{name}.{key}");
            match key.as_str() {
                "condition" => {
                    dependency.condition = reader.parsed(node, &field, condition).unwrap_or(dependency.condition)
                }
                "required" => dependency.required = reader.boolean(node, &field).unwrap_or(true),
                "restart" => dependency.restart = reader.boolean(node, &field).unwrap_or_default(),
                _ => reader.unknown(node.line, &field, key, &["condition", "required", "restart"]),
            }
        }
        dependencies.insert(name.clone(), dependency);
    }
    dependencies
}

fn condition(text: &str) -> Result<Condition, String> {
    match text {
        "service_started" => Ok(Condition::ServiceStarted),
        "service_healthy" => Ok(Condition::ServiceHealthy),
        "service_completed_successfully" => Ok(Condition::ServiceCompletedSuccessfully),
        _ => Err(format!(
            "{text:?} is no condition: service_started, service_healthy, service_completed_successfully"
        )),
    }
}

fn platform(reader: &Reader<'_>, node: &Node, field: &str, options: &LoadOptions) -> Option<String> {
    reader.parsed(node, field, |text| {
        let fits = options.machine.as_deref().is_none_or(|machine| {
            let short = |platform: &str| platform.split('/').take(2).collect::<Vec<_>>().join("/");
            machine.starts_with(text) || short(machine) == text || text.starts_with(machine)
        });
        if fits {
            Ok(text.to_owned())
        } else {
            Err(format!(
                "{text} cannot run here: this machine is {}",
                options.machine.as_deref().unwrap_or_default()
            ))
        }
    })
}

fn pull_policy(reader: &Reader<'_>, node: &Node, field: &str) -> PullPolicy {
    let policy = reader.parsed(node, field, |text| match text {
        "missing" | "if_not_present" | "" => Ok(PullPolicy::Missing),
        "always" => Ok(PullPolicy::Always),
        "never" => Ok(PullPolicy::Never),
        "build" => Err("there is no builder: missing, always or never".to_owned()),
        _ => Err(format!("{text:?} is not supported: missing, always or never")),
    });
    policy.unwrap_or_default()
}

fn scale(reader: &Reader<'_>, node: &Node, field: &str) -> u32 {
    if reader.integer(node, field, 0, i64::MAX).is_some_and(|count| count > 1) {
        reader.refuse(node.line, field, "a service has one container on a device: write 1");
    }
    1
}

fn deploy(reader: &Reader<'_>, node: &Node, field: &str, s: &mut Service) {
    for (key, node) in reader.mapping(node, field) {
        let field = format!("{field}.{key}");
        match key.as_str() {
            "replicas" => s.scale = scale(reader, node, &field),
            "resources" => {
                let mut limits = Limits::default();
                for (key, node) in reader.mapping(node, &field) {
                    resources(reader, key, node, &format!("{field}.{key}"), &mut limits);
                }
                let refuse = |other: &str, here: &str| {
                    let reason = format!("is not what {other} says: write one of them");
                    reader.refuse(node.line, &format!("{field}.{here}"), reason);
                };
                let both = &mut s.limits;
                agree(&mut both.memory, limits.memory, || refuse("mem_limit", "limits.memory"));
                agree(&mut both.nano_cpus, limits.nano_cpus, || refuse("cpus", "limits.cpus"));
                agree(&mut both.pids, limits.pids, || refuse("pids_limit", "limits.pids"));
                agree(&mut both.memory_reservation, limits.memory_reservation, || {
                    refuse("mem_reservation", "reservations.memory");
                });
            }
            "mode" | "placement" | "labels" | "update_config" | "rollback_config" | "restart_policy"
            | "endpoint_mode" => {
                reader.notice(node.line, &field, "has no effect on a device");
            }
            _ => reader.unknown(node.line, &field, key, &["replicas", "resources"]),
        }
    }
}

/// Takes a value that may be written in two places.
fn agree<T: PartialEq>(known: &mut Option<T>, other: Option<T>, refuse: impl FnOnce()) {
    match (known.as_ref(), other) {
        (Some(known), Some(other)) if *known != other => refuse(),
        (None, other) => *known = other,
        _ => {}
    }
}

fn resources(reader: &Reader<'_>, kind: &str, node: &Node, field: &str, limits: &mut Limits) {
    let hard = match kind {
        "limits" => true,
        "reservations" => false,
        _ => return reader.unknown(node.line, field, kind, &["limits", "reservations"]),
    };
    for (key, node) in reader.mapping(node, field) {
        let field = format!("{field}.{key}");
        // 0 is no limit, here as in the fields outside of `deploy`.
        let size = || reader.parsed(node, &field, quantity::size).filter(|&size| size > 0);
        let cpus = || reader.parsed(node, &field, quantity::nano_cpus).filter(|&cpus| cpus > 0);
        let pids = || tasks(reader, node, &field);
        match (key.as_str(), hard) {
            ("cpus", true) => limits.nano_cpus = cpus(),
            ("memory", true) => limits.memory = size(),
            ("pids", true) => limits.pids = pids(),
            ("memory", false) => limits.memory_reservation = size(),
            ("cpus", false) => reader.notice(node.line, &field, "has no effect: CPU cannot be reserved"),
            ("devices" | "generic_resources", _) => {
                reader.refuse(node.line, &field, "is not supported: use devices")
            }
            _ => reader.unknown(node.line, &field, key, &["cpus", "memory", "pids"]),
        }
    }
}

/// Bytes of one log file: room for the longest lines, and no more than a board's flash can bear.
const LOG_FILE_SIZE: std::ops::RangeInclusive<u64> = 32 * 1024..=1024 * 1024 * 1024;

fn logging(reader: &Reader<'_>, node: &Node, field: &str) -> Logging {
    let mut logging = Logging::default();
    for (key, node) in reader.mapping(node, field) {
        let field = format!("{field}.{key}");
        match key.as_str() {
            "driver" => match node.text() {
                Some("none") => logging.none = true,
                Some("local") => logging.files = true,
                Some("json-file" | "journald") => reader.notice(
                    node.line,
                    &field,
                    "keeps the newest 256 KiB in memory; local keeps files of max-size and max-file on the disk",
                ),
                Some("") => {}
                _ => reader.refuse(node.line, &field, "is not supported: json-file, local or none"),
            },
            "options" => {
                for (key, node) in reader.mapping(node, &field) {
                    let field = format!("{field}.{key}");
                    match key.as_str() {
                        "max-size" => {
                            logging.max_size = reader.parsed(node, &field, |text| match quantity::size(text) {
                                Ok(size) if !LOG_FILE_SIZE.contains(&size) => {
                                    Err(format!("{text:?} is outside of 32k to 1g"))
                                }
                                size => size,
                            });
                        }
                        "max-file" => logging.max_file = reader.integer(node, &field, 1, 1000).map(|it| it as u32),
                        _ => reader.notice(node.line, &field, "has no effect"),
                    }
                }
            }
            _ => reader.unknown(node.line, &field, key, &["driver", "options"]),
        }
    }
    logging
}

/// `environment`: a name without value takes the caller's, else it is unset, the image's own included.
fn environment(
    reader: &Reader<'_>,
    node: &Node,
    field: &str,
    options: &LoadOptions,
) -> BTreeMap<String, Option<String>> {
    let mut pairs = reader.pairs(node, field);
    for (name, value) in &mut pairs {
        if value.is_none() {
            *value = options.environment.get(name).cloned();
        }
        if name.is_empty()
            || name.contains(['=', '\0'])
            || value.as_ref().is_some_and(|value| value.contains('\0'))
        {
            reader.refuse(node.line, field, format!("{name:?} is no variable name"));
        }
    }
    pairs
}

fn env_file(
    reader: &Reader<'_>,
    node: &Node,
    field: &str,
    options: &LoadOptions,
) -> BTreeMap<String, Option<String>> {
    let mut variables = BTreeMap::new();
    let one;
    let nodes = match &node.value {
        Value::Sequence(nodes) => nodes.as_slice(),
        _ => {
            one = [node.clone()];
            &one
        }
    };
    for node in nodes {
        let (path, required) = env_file_entry(reader, node, field);
        let path = options.folder.join(path);
        match crate::text::read(&path) {
            Ok(text) => read_env_file(reader, node, field, (&path, &text), options, &mut variables),
            Err(_) if !required => {}
            Err(error) => {
                let reason = format!("{}: {error}; write required: false when it may be missing", path.display());
                reader.refuse(node.line, field, reason);
            }
        }
    }
    variables
}

fn env_file_entry(reader: &Reader<'_>, node: &Node, field: &str) -> (String, bool) {
    if let Some(text) = node.text() {
        return (text.to_owned(), true);
    }
    let (mut path, mut required) = (String::new(), true);
    for (key, node) in reader.mapping(node, field) {
        let field = format!("{field}.{key}");
        match key.as_str() {
            "path" => path = reader.text(node, &field).unwrap_or_default(),
            "required" => required = reader.boolean(node, &field).unwrap_or(true),
            "format" => reader.refuse(node.line, &field, "is not supported: leave it out"),
            _ => reader.unknown(node.line, &field, key, &["path", "required"]),
        }
    }
    (path, required)
}

fn read_env_file(
    reader: &Reader<'_>,
    node: &Node,
    field: &str,
    (path, text): (&Path, &str),
    options: &LoadOptions,
    into: &mut BTreeMap<String, Option<String>>,
) {
    match crate::dotenv::parse(text, &options.environment) {
        Ok(parsed) => {
            for variable in parsed {
                for message in variable.unset_notices() {
                    let place = format!("{}:{}: ", path.display(), variable.line);
                    reader.notice(node.line, field, place + &message);
                }
                // A name alone takes the caller's value, and is left out when there is none.
                let value = variable.value.or_else(|| options.environment.get(&variable.name).cloned());
                if let Some(value) = value {
                    into.insert(variable.name, Some(value));
                }
            }
        }
        Err((line, reason)) => reader.refuse(node.line, field, format!("{}:{line}: {reason}", path.display())),
    }
}

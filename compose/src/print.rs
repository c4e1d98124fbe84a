//! A project as a compose file again: every field in its long form, in a fixed order.
//!
//! What is printed reads back as the same project. A secret's value is never printed, only where it comes from.

use crate::model::*;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Bytes of a key that stands before its colon without `?`. YAML 1.2 8.2.2 takes 1,024 characters; quoting makes up to
/// six of one.
const MAX_KEY: usize = 160;

/// A document to be printed.
#[derive(Debug, Clone, PartialEq)]
enum Doc {
    /// A word; `$` is doubled, as it is read with variables.
    Text(String),
    /// A number or boolean.
    Plain(String),
    List(Vec<Doc>),
    Map(Vec<(String, Doc)>),
}

/// The project as YAML.
pub fn to_yaml(project: &Project) -> String {
    let mut text = String::new();
    yaml(&mut text, &document(project), 0, false);
    text
}

/// The project as JSON, which is YAML too.
pub fn to_json(project: &Project) -> String {
    let mut text = String::new();
    json(&mut text, &document(project));
    text
}

fn document(project: &Project) -> Doc {
    let mut map = Fields::default();
    map.text("name", &project.name);
    map.push("services", named(&project.services, service));
    map.some("networks", (!project.networks.is_empty()).then(|| named(&project.networks, network)));
    map.some("volumes", (!project.volumes.is_empty()).then(|| named(&project.volumes, volume)));
    map.some("secrets", (!project.secrets.is_empty()).then(|| named(&project.secrets, object)));
    map.some("configs", (!project.configs.is_empty()).then(|| named(&project.configs, object)));
    map.into()
}

#[derive(Default)]
struct Fields(Vec<(String, Doc)>);

impl From<Fields> for Doc {
    fn from(fields: Fields) -> Self {
        Self::Map(fields.0)
    }
}

impl Fields {
    fn push(&mut self, name: &str, value: Doc) {
        self.0.push((name.to_owned(), value));
    }

    fn some(&mut self, name: &str, value: Option<Doc>) {
        self.0.extend(value.map(|value| (name.to_owned(), value)));
    }

    fn text(&mut self, name: &str, value: &str) {
        self.push(name, Doc::Text(value.to_owned()));
    }

    fn word(&mut self, name: &str, value: Option<&String>) {
        self.some(name, value.map(|value| Doc::Text(value.clone())));
    }

    fn number(&mut self, name: &str, value: Option<impl ToString>) {
        self.some(name, value.map(|value| Doc::Plain(value.to_string())));
    }

    fn flag(&mut self, name: &str, value: bool) {
        self.some(name, value.then(|| Doc::Plain("true".to_owned())));
    }

    fn words(&mut self, name: &str, value: &[String]) {
        self.some(name, (!value.is_empty()).then(|| words(value)));
    }

    fn pairs(&mut self, name: &str, value: &BTreeMap<String, String>) {
        let map =
            || Doc::Map(value.iter().map(|(name, value)| (name.clone(), Doc::Text(value.clone()))).collect());
        self.some(name, (!value.is_empty()).then(map));
    }

    fn duration(&mut self, name: &str, value: Option<Duration>) {
        self.some(name, value.map(|value| Doc::Text(format!("{}ns", value.as_nanos()))));
    }
}

fn named<T>(all: &BTreeMap<String, T>, one: impl Fn(&T) -> Doc) -> Doc {
    Doc::Map(all.iter().map(|(name, value)| (name.clone(), one(value))).collect())
}

fn words(list: &[String]) -> Doc {
    Doc::List(list.iter().cloned().map(Doc::Text).collect())
}

fn service(s: &Service) -> Doc {
    let mut map = Fields::default();
    map.word("image", s.image.as_ref());
    map.some("build", s.has_build.then(|| Doc::Map(vec![("context".to_owned(), Doc::Text(".".to_owned()))])));
    map.some("command", s.command.as_deref().map(words));
    map.some("entrypoint", s.entrypoint.as_deref().map(words));
    map.some("environment", (!s.environment.is_empty()).then(|| environment(&s.environment)));
    map.pairs("labels", &s.labels);
    map.pairs("annotations", &s.annotations);
    map.word("user", s.user.as_ref());
    map.words("group_add", &s.group_add);
    map.word("working_dir", s.working_dir.as_ref());
    map.word("hostname", s.hostname.as_ref());
    map.word("domainname", s.domainname.as_ref());
    map.number("tty", s.tty);
    map.flag("stdin_open", s.stdin_open);
    map.number("init", s.init);
    map.some("restart", restart(s.restart).map(Doc::Text));
    map.word("stop_signal", s.stop_signal.as_ref());
    map.duration("stop_grace_period", s.stop_grace_period);
    map.flag("privileged", s.privileged);
    map.flag("read_only", s.read_only);
    map.words("cap_add", &s.cap_add);
    map.words("cap_drop", &s.cap_drop);
    let devices: Vec<String> = s
        .devices
        .iter()
        .map(|it| format!("{}:{}:{}", it.source, it.target, it.permissions))
        .chain(s.cdi_devices.iter().cloned())
        .collect();
    map.words("devices", &devices);
    map.words("device_cgroup_rules", &s.device_cgroup_rules);
    map.words("security_opt", &s.security_opt);
    map.pairs("sysctls", &s.sysctls);
    map.some("ulimits", (!s.ulimits.is_empty()).then(|| named(&s.ulimits, ulimit)));
    for (name, value) in [
        ("userns_mode", &s.userns_mode),
        ("pid", &s.pid),
        ("ipc", &s.ipc),
        ("uts", &s.uts),
        ("cgroup", &s.cgroup),
        ("cgroup_parent", &s.cgroup_parent),
        ("mac_address", &s.mac_address),
        ("platform", &s.platform),
        ("runtime", &s.runtime),
    ] {
        map.word(name, value.as_ref());
    }
    map.number("shm_size", s.shm_size);
    limits(&mut map, &s.limits);
    map.number("oom_score_adj", s.oom_score_adj);
    map.some("volumes", (!s.mounts.is_empty()).then(|| Doc::List(s.mounts.iter().map(mount).collect())));
    map.some("secrets", (!s.secrets.is_empty()).then(|| Doc::List(s.secrets.iter().map(grant).collect())));
    map.some("configs", (!s.configs.is_empty()).then(|| Doc::List(s.configs.iter().map(grant).collect())));
    map.some("ports", (!s.ports.is_empty()).then(|| Doc::List(s.ports.iter().map(port).collect())));
    map.words("expose", &s.expose);
    network_mode(&mut map, &s.network);
    map.words("dns", &s.dns);
    map.words("dns_search", &s.dns_search);
    map.words("dns_opt", &s.dns_opt);
    let hosts: Vec<String> = s.extra_hosts.iter().map(|(name, address)| format!("{name}={address}")).collect();
    map.words("extra_hosts", &hosts);
    map.some("healthcheck", s.healthcheck.as_ref().map(health));
    map.some("depends_on", (!s.depends_on.is_empty()).then(|| named(&s.depends_on, dependency)));
    let links: Vec<String> = s.links.iter().map(|(name, alias)| format!("{name}:{alias}")).collect();
    map.words("links", &links);
    let policy = match s.pull_policy {
        PullPolicy::Missing => None,
        PullPolicy::Always => Some("always"),
        PullPolicy::Never => Some("never"),
    };
    map.some("pull_policy", policy.map(|it| Doc::Text(it.to_owned())));
    map.some("logging", logging(&s.logging));
    map.into()
}

fn environment(variables: &BTreeMap<String, Option<String>>) -> Doc {
    let value = |value: &Option<String>| match value {
        Some(value) => Doc::Text(value.clone()),
        None => Doc::Plain("null".to_owned()),
    };
    named(variables, value)
}

fn restart(restart: Restart) -> Option<String> {
    match restart {
        Restart::No => None,
        Restart::Always => Some("always".to_owned()),
        Restart::UnlessStopped => Some("unless-stopped".to_owned()),
        Restart::OnFailure(None) => Some("on-failure".to_owned()),
        Restart::OnFailure(Some(limit)) => Some(format!("on-failure:{limit}")),
    }
}

fn ulimit(limit: &Ulimit) -> Doc {
    let mut map = Fields::default();
    map.number("soft", Some(limit.soft));
    map.number("hard", Some(limit.hard));
    map.into()
}

fn limits(map: &mut Fields, limits: &Limits) {
    map.number("mem_limit", limits.memory);
    map.number("mem_reservation", limits.memory_reservation);
    map.number("memswap_limit", limits.memory_swap);
    map.number("mem_swappiness", limits.memory_swappiness);
    map.some("cpus", limits.nano_cpus.map(|nano| Doc::Plain(decimal(nano))));
    map.number("cpu_shares", limits.cpu_shares);
    map.number("cpu_quota", limits.cpu_quota);
    map.number("cpu_period", limits.cpu_period);
    map.word("cpuset", limits.cpuset.as_ref());
    map.number("pids_limit", limits.pids);
    map.flag("oom_kill_disable", limits.oom_kill_disable);
}

/// Billionths as a decimal number.
fn decimal(nano: u64) -> String {
    let text = format!("{}.{:09}", nano / 1_000_000_000, nano % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn mount(mount: &Mount) -> Doc {
    let mut map = Fields::default();
    let mut more = Fields::default();
    let section = match &mount.source {
        MountSource::Volume { name, nocopy, subpath } => {
            map.text("type", "volume");
            map.text("source", name);
            more.flag("nocopy", *nocopy);
            more.some("subpath", (!subpath.is_empty()).then(|| Doc::Text(subpath.clone())));
            "volume"
        }
        MountSource::Anonymous => {
            map.text("type", "volume");
            "volume"
        }
        MountSource::Bind { path, create_host_path, propagation, .. } => {
            map.text("type", "bind");
            map.text("source", &path.display().to_string());
            more.number("create_host_path", Some(*create_host_path));
            more.word("propagation", propagation.as_ref());
            "bind"
        }
        MountSource::Tmpfs { size, mode } => {
            map.text("type", "tmpfs");
            more.number("size", *size);
            more.some("mode", mode.map(|mode| Doc::Text(format!("0{mode:o}"))));
            "tmpfs"
        }
    };
    map.text("target", &mount.target);
    map.flag("read_only", mount.read_only);
    map.some(section, (!more.0.is_empty()).then(|| more.into()));
    map.into()
}

fn grant(grant: &FileGrant) -> Doc {
    let mut map = Fields::default();
    map.text("source", &grant.source);
    map.text("target", &grant.target);
    map.text("uid", &grant.uid.to_string());
    map.text("gid", &grant.gid.to_string());
    map.text("mode", &format!("0{:o}", grant.mode));
    map.into()
}

fn port(port: &Port) -> Doc {
    let mut map = Fields::default();
    map.number("target", Some(port.container));
    let published = port.host.map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    map.word("published", published.as_ref());
    map.word("host_ip", port.host_ip.map(|ip| ip.to_string()).as_ref());
    map.text("protocol", if port.protocol == Protocol::Udp { "udp" } else { "tcp" });
    map.into()
}

fn network_mode(map: &mut Fields, mode: &NetworkMode) {
    match mode {
        NetworkMode::Host => map.text("network_mode", "host"),
        NetworkMode::None => map.text("network_mode", "none"),
        NetworkMode::Service(name) => map.text("network_mode", &format!("service:{name}")),
        NetworkMode::Networks(networks) => map.push("networks", named(networks, attachment)),
    }
}

fn attachment(attachment: &Attachment) -> Doc {
    let mut map = Fields::default();
    map.words("aliases", &attachment.aliases);
    map.word("ipv4_address", attachment.ipv4_address.map(|it| it.to_string()).as_ref());
    map.word("ipv6_address", attachment.ipv6_address.map(|it| it.to_string()).as_ref());
    map.number("priority", (attachment.priority != 0).then_some(attachment.priority));
    map.word("mac_address", attachment.mac_address.as_ref());
    if map.0.is_empty() { Doc::Plain("null".to_owned()) } else { map.into() }
}

fn health(check: &HealthCheck) -> Doc {
    let mut map = Fields::default();
    map.flag("disable", check.disable);
    map.some(
        "test",
        check.test.as_ref().map(|test| match test {
            HealthTest::Exec(args) => words(&[&["CMD".to_owned()], args.as_slice()].concat()),
            HealthTest::Shell(line) => words(&["CMD-SHELL".to_owned(), line.clone()]),
        }),
    );
    map.duration("interval", check.interval);
    map.duration("timeout", check.timeout);
    map.duration("start_period", check.start_period);
    map.duration("start_interval", check.start_interval);
    map.number("retries", check.retries);
    map.into()
}

fn dependency(dependency: &Dependency) -> Doc {
    let mut map = Fields::default();
    map.text(
        "condition",
        match dependency.condition {
            Condition::ServiceStarted => "service_started",
            Condition::ServiceHealthy => "service_healthy",
            Condition::ServiceCompletedSuccessfully => "service_completed_successfully",
        },
    );
    map.number("required", Some(dependency.required));
    map.flag("restart", dependency.restart);
    map.into()
}

fn logging(logging: &Logging) -> Option<Doc> {
    if *logging == Logging::default() {
        return None;
    }
    let mut map = Fields::default();
    if logging.none {
        map.text("driver", "none");
    }
    if logging.files {
        map.text("driver", "local");
    }
    let mut options = Fields::default();
    options.word("max-size", logging.max_size.map(|it| it.to_string()).as_ref());
    options.word("max-file", logging.max_file.map(|it| it.to_string()).as_ref());
    map.some("options", (!options.0.is_empty()).then(|| options.into()));
    Some(map.into())
}

fn network(network: &Network) -> Doc {
    let mut map = Fields::default();
    map.word("name", network.name.as_ref());
    map.flag("internal", network.internal);
    map.flag("enable_ipv6", network.enable_ipv6);
    let subnets = network.subnets.iter().map(|subnet| {
        let mut map = Fields::default();
        map.text("subnet", &format!("{}/{}", subnet.address, subnet.prefix));
        map.word("gateway", subnet.gateway.map(|it| it.to_string()).as_ref());
        Doc::from(map)
    });
    let config = Doc::Map(vec![("config".to_owned(), Doc::List(subnets.collect()))]);
    map.some("ipam", (!network.subnets.is_empty()).then_some(config));
    map.pairs("labels", &network.labels);
    map.into()
}

fn volume(volume: &Volume) -> Doc {
    let mut map = Fields::default();
    map.word("name", volume.name.as_ref());
    map.flag("external", volume.external);
    map.pairs("labels", &volume.labels);
    map.into()
}

fn object(object: &FileObject) -> Doc {
    let mut map = Fields::default();
    match object {
        FileObject::File(path) => map.text("file", &path.display().to_string()),
        FileObject::Environment { name, .. } => map.text("environment", name),
        FileObject::Content(text) => map.text("content", text),
    }
    map.into()
}

fn yaml(text: &mut String, doc: &Doc, depth: usize, in_list: bool) {
    let indent = "  ".repeat(depth);
    match doc {
        Doc::Map(entries) if !entries.is_empty() => {
            for (index, (name, value)) in entries.iter().enumerate() {
                if !(in_list && index == 0) {
                    text.push_str(&indent);
                }
                key(text, name, &indent);
                below(text, value, depth);
            }
        }
        Doc::List(items) if !items.is_empty() => {
            for item in items {
                text.push_str(&indent);
                text.push_str("- ");
                match item {
                    Doc::Map(entries) if !entries.is_empty() => yaml(text, item, depth + 1, true),
                    _ => {
                        json(text, item);
                        text.push('\n');
                    }
                }
            }
        }
        _ => {
            json(text, doc);
            text.push('\n');
        }
    }
}

fn below(text: &mut String, value: &Doc, depth: usize) {
    match value {
        Doc::Map(entries) if !entries.is_empty() => {
            text.push('\n');
            yaml(text, value, depth + 1, false);
        }
        Doc::List(items) if !items.is_empty() => {
            text.push('\n');
            yaml(text, value, depth + 1, false);
        }
        _ => {
            text.push(' ');
            json(text, value);
            text.push('\n');
        }
    }
}

/// A key and its colon; a long one in the explicit form.
fn key(text: &mut String, name: &str, indent: &str) {
    let plain = name.bytes().all(|it| it.is_ascii_alphanumeric() || matches!(it, b'_' | b'-' | b'.' | b'/'))
        && name.starts_with(|it: char| it.is_ascii_alphabetic());
    if name.len() > MAX_KEY {
        text.push_str("? ");
        quoted(text, name);
        text.push('\n');
        text.push_str(indent);
    } else if plain {
        text.push_str(name);
    } else {
        quoted(text, name);
    }
    text.push(':');
}

/// JSON; scalars look the same in YAML.
fn json(text: &mut String, doc: &Doc) {
    match doc {
        Doc::Plain(plain) => text.push_str(plain),
        Doc::Text(value) => quoted(text, &value.replace('$', "$$")),
        Doc::List(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                json(text, item);
            }
            text.push(']');
        }
        Doc::Map(entries) => {
            text.push('{');
            for (index, (name, value)) in entries.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                quoted(text, name);
                text.push_str(": ");
                json(text, value);
            }
            text.push('}');
        }
    }
}

/// A string in double quotes, as JSON and YAML both read it.
fn quoted(text: &mut String, value: &str) {
    text.push('"');
    for char in value.chars() {
        match char {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            char if char.is_control() => {
                // Writing to a string cannot fail.
                let _ = write!(text, "\\u{:04x}", u32::from(char));
            }
            char => text.push(char),
        }
    }
    text.push('"');
}

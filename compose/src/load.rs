//! From files to a checked project: find, read, interpolate, read the fields, check what concerns several services.

use crate::assemble::Assembler;
use crate::model::*;
use crate::reader::Reader;
use crate::report::{Notice, Refusal, Refusals};
use crate::service;
use crate::yaml::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Names that are looked for, best first (Compose Specification, Compose file).
const NAMES: &[&str] = &["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];

/// Services of one project. Each is a container with a namespace and an address; boards run a dozen.
const MAX_SERVICES: usize = 512;

/// How a project is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The files, each over those before it; none: looked for in `folder`, with its override file.
    pub files: Vec<PathBuf>,
    /// The project's folder: relative paths count from here.
    pub folder: PathBuf,
    /// Project name in place of the file's or folder's.
    pub project_name: Option<String>,
    /// Active profiles.
    pub profiles: Vec<String>,
    /// Files with variables, in place of `.env`.
    pub env_files: Vec<PathBuf>,
    /// The caller's environment.
    pub environment: BTreeMap<String, String>,
    /// Host paths below which bind mounts are allowed.
    pub allow_binds: Vec<PathBuf>,
    /// Images in place of the file's, by service.
    pub images: BTreeMap<String, String>,
    /// Platform of this machine, `linux/amd64`; `None`: not judged.
    pub machine: Option<String>,
}

/// A loaded project.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The project.
    pub project: Project,
    /// What a reader should know.
    pub warnings: Vec<Notice>,
    /// Services that have a `build` and no image.
    pub needs_builder: Vec<String>,
    /// The file that was read.
    pub file: PathBuf,
}

/// Loads a project from disk.
///
/// # Errors
/// Everything that is refused, a line each.
pub fn load(options: &LoadOptions) -> Result<Loaded, Refusals> {
    let files = find(options)?;
    let (options, mut warnings) = with_variables(options)?;
    let shown = files[0].display().to_string();
    let reader = Reader::new(&shown);
    let tree = Assembler::new(&reader, &options).files(&files, &options.environment);
    read_project(reader, &tree, &options).map(|loaded| {
        warnings.extend(loaded.warnings);
        Loaded { file: files[0].clone(), warnings, ..loaded }
    })
}

/// The caller's environment wins over the files with variables.
fn with_variables(options: &LoadOptions) -> Result<(LoadOptions, Vec<Notice>), Refusals> {
    let mut options = options.clone();
    let named = !options.env_files.is_empty();
    let files = if named { options.env_files.clone() } else { vec![options.folder.join(".env")] };
    let (mut found, mut warnings) = (BTreeMap::new(), Vec::new());
    for file in files {
        let refuse =
            |line, reason| Refusal { file: file.display().to_string(), line, field: String::new(), reason };
        let text = match crate::text::read(&file) {
            Ok(text) => text,
            Err(error) if named => return Err(refuse(0, error.to_string()).into()),
            Err(_) => continue,
        };
        let parsed = crate::dotenv::parse(&text, &options.environment);
        for variable in parsed.map_err(|(line, reason)| refuse(line, reason))? {
            let shown = file.display().to_string();
            warnings.extend(variable.unset_notices().map(|message| Notice {
                file: shown.clone(),
                line: variable.line,
                field: variable.name.clone(),
                message,
            }));
            // A later file wins over an earlier one.
            found.extend(variable.value.map(|value| (variable.name, value)));
        }
    }
    for (name, value) in found {
        options.environment.entry(name).or_insert(value);
    }
    Ok((options, warnings))
}

fn find(options: &LoadOptions) -> Result<Vec<PathBuf>, Refusals> {
    if !options.files.is_empty() {
        return Ok(options.files.iter().map(|file| options.folder.join(file)).collect());
    }
    let found = NAMES.iter().map(|name| options.folder.join(name)).find(|path| path.is_file());
    let Some(first) = found else {
        let reason = format!("there is no {} in {}; name the file with -f", NAMES[0], options.folder.display());
        return Err(Refusal { file: String::new(), line: 0, field: String::new(), reason }.into());
    };
    // `compose.override.yaml` and its older names lie over it (Docker Compose).
    let base = if first.file_name().is_some_and(|it| it.to_string_lossy().starts_with("docker-")) {
        "docker-compose.override"
    } else {
        "compose.override"
    };
    let over = ["yaml", "yml"].map(|ending| options.folder.join(format!("{base}.{ending}")));
    let over = over.into_iter().find(|path| path.is_file());
    Ok([first].into_iter().chain(over).collect())
}

/// Reads a project from text. Touches the disk only for `env_file`, `extends`, `include` and links in bind mounts.
///
/// # Errors
/// Everything that is refused, a line each.
pub fn parse_str(name: &str, text: &str, options: &LoadOptions) -> Result<Loaded, Refusals> {
    let reader = Reader::new(name);
    let tree = Assembler::new(&reader, options).text(text, &options.environment);
    read_project(reader, &tree, options)
}

fn read_project(reader: Reader<'_>, root: &Node, options: &LoadOptions) -> Result<Loaded, Refusals> {
    let mut project = Project { name: project_name(&reader, root, options), ..Project::default() };
    let mut needs_builder = Vec::new();
    let mut lines = BTreeMap::new();
    for (key, node) in reader.mapping(root, "") {
        match key.as_str() {
            "services" => {
                for (name, node) in reader.mapping(node, key) {
                    read_service(&reader, name, node, options, &mut project, &mut lines);
                }
            }
            "networks" => project.networks = named(&reader, node, key, network),
            "volumes" => project.volumes = named(&reader, node, key, volume),
            "secrets" => project.secrets = objects(&reader, node, key, options),
            "configs" => project.configs = objects(&reader, node, key, options),
            "name" => {}
            "version" => reader.notice(node.line, key, "has no effect: the Compose Specification has no versions"),
            _ => reader.unknown(
                node.line,
                "",
                key,
                &["services", "networks", "volumes", "secrets", "configs", "name"],
            ),
        }
    }
    for (name, service) in &project.services {
        if service.image.is_none() && service.has_build {
            needs_builder.push(name.clone());
        }
    }
    check(&reader, &mut project, &lines);
    let (refusals, warnings) = reader.finish();
    if refusals.is_empty() {
        Ok(Loaded { project, warnings, needs_builder, file: PathBuf::new() })
    } else {
        Err(Refusals(refusals))
    }
}

/// `-p`, else `name:`, else the folder's name in lower case.
fn project_name(reader: &Reader<'_>, root: &Node, options: &LoadOptions) -> String {
    let written = reader.mapping(root, "").iter().find(|(key, _)| key == "name").and_then(|(_, node)| node.text());
    let folder = || {
        let folder = options.folder.canonicalize().unwrap_or_else(|_| options.folder.clone());
        let name = folder.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let kept: String =
            name.chars().filter(|char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_')).collect();
        kept.trim_start_matches(['-', '_']).to_owned()
    };
    let name = options.project_name.clone().or_else(|| written.map(str::to_owned)).unwrap_or_else(folder);
    let good = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || matches!(char, '-' | '_');
    let begins = name.chars().next().is_some_and(|char| char.is_ascii_lowercase() || char.is_ascii_digit());
    if !begins || !name.chars().all(good) || name.len() > 48 {
        reader.refuse(
            0,
            "name",
            format!("{name:?}: a project name has at most 48 lower-case letters, digits, - and _"),
        );
    }
    name
}

fn read_service(
    reader: &Reader<'_>,
    name: &str,
    node: &Node,
    options: &LoadOptions,
    project: &mut Project,
    lines: &mut BTreeMap<String, usize>,
) {
    let good = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.');
    if name.is_empty()
        || name.len() > 48
        || !name.chars().all(good)
        || !name.starts_with(|it: char| it.is_ascii_alphanumeric())
    {
        reader.refuse(
            node.line,
            "services",
            format!("{name:?}: a service name has at most 48 letters, digits, -, _ and ."),
        );
        return;
    }
    if project.services.len() >= MAX_SERVICES {
        reader.refuse(node.line, "services", format!("more than {MAX_SERVICES} services"));
        return;
    }
    let read = service::read(reader, name, node, options);
    lines.insert(name.to_owned(), read.line);
    if read.profiles.is_empty() || read.profiles.iter().any(|profile| options.profiles.contains(profile)) {
        project.services.insert(name.to_owned(), read.service);
    }
}

fn named<T>(
    reader: &Reader<'_>,
    node: &Node,
    field: &str,
    read: fn(&Reader<'_>, &Node, &str) -> T,
) -> BTreeMap<String, T> {
    let entries = reader.mapping(node, field).iter();
    entries.map(|(name, node)| (name.clone(), read(reader, node, &format!("{field}.{name}")))).collect()
}

fn network(reader: &Reader<'_>, node: &Node, field: &str) -> Network {
    let mut network = Network::default();
    for (key, node) in reader.mapping(node, field) {
        let field = format!("{field}.{key}");
        match key.as_str() {
            "name" => network.name = reader.text(node, &field),
            "internal" => network.internal = reader.boolean(node, &field).unwrap_or_default(),
            "enable_ipv6" => network.enable_ipv6 = reader.boolean(node, &field).unwrap_or_default(),
            "enable_ipv4" | "attachable" => reader.notice(node.line, &field, "has no effect"),
            "driver" => {
                if !matches!(node.text(), Some("bridge" | "default" | "")) {
                    reader.refuse(node.line, &field, "is not supported: bridge");
                }
            }
            "driver_opts" => reader.notice(node.line, &field, "have no effect"),
            "labels" => {
                network.labels =
                    reader.pairs(node, &field).into_iter().map(|(k, v)| (k, v.unwrap_or_default())).collect()
            }
            "external" => {
                if reader.boolean(node, &field) == Some(true) {
                    reader.refuse(
                        node.line,
                        &field,
                        "there are no networks outside of projects: leave external out",
                    );
                }
            }
            "ipam" => network.subnets = ipam(reader, node, &field),
            _ => reader.unknown(
                node.line,
                &field,
                key,
                &["name", "internal", "enable_ipv6", "driver", "labels", "external", "ipam"],
            ),
        }
    }
    network
}

fn ipam(reader: &Reader<'_>, node: &Node, field: &str) -> Vec<Subnet> {
    let mut subnets = Vec::new();
    for (key, node) in reader.mapping(node, field) {
        match key.as_str() {
            "config" => {
                for (index, node) in reader.sequence(node, field).iter().enumerate() {
                    subnets.extend(subnet(reader, node, &format!("{field}.config[{index}]")));
                }
            }
            "driver" if matches!(node.text(), Some("default" | "")) => {}
            _ => reader.refuse(node.line, &format!("{field}.{key}"), "is not supported: config"),
        }
    }
    subnets
}

fn subnet(reader: &Reader<'_>, node: &Node, field: &str) -> Option<Subnet> {
    let (mut range, mut gateway) = (None, None);
    for (key, node) in reader.mapping(node, field) {
        let field = format!("{field}.{key}");
        match key.as_str() {
            "subnet" => range = reader.parsed(node, &field, prefix),
            "gateway" => {
                gateway =
                    reader.parsed(node, &field, |text| text.parse().map_err(|_| format!("{text:?} is no address")))
            }
            "ip_range" | "aux_addresses" => reader.refuse(node.line, &field, "is not supported"),
            _ => reader.unknown(node.line, &field, key, &["subnet", "gateway"]),
        }
    }
    range.map(|(address, prefix)| Subnet { address, prefix, gateway })
}

fn prefix(text: &str) -> Result<(std::net::IpAddr, u8), String> {
    let wrong = || format!("{text:?} is no subnet: write 10.1.2.0/24");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let (address, length): (std::net::IpAddr, u8) =
        (address.parse().map_err(|_| wrong())?, length.parse().map_err(|_| wrong())?);
    let longest = if address.is_ipv4() { 30 } else { 126 };
    if (8..=longest).contains(&length) { Ok((address, length)) } else { Err(wrong()) }
}

fn volume(reader: &Reader<'_>, node: &Node, field: &str) -> Volume {
    let mut volume = Volume::default();
    for (key, node) in reader.mapping(node, field) {
        let field = format!("{field}.{key}");
        match key.as_str() {
            "name" => volume.name = reader.text(node, &field),
            "external" => volume.external = reader.boolean(node, &field).unwrap_or_default(),
            "labels" => {
                volume.labels =
                    reader.pairs(node, &field).into_iter().map(|(k, v)| (k, v.unwrap_or_default())).collect()
            }
            "driver" => {
                if !matches!(node.text(), Some("local" | "default" | "")) {
                    reader.refuse(node.line, &field, "is not supported: local");
                }
            }
            "driver_opts" => reader.refuse(
                node.line,
                &field,
                "are not supported yet: volumes are folders of the data partition",
            ),
            _ => reader.unknown(node.line, &field, key, &["name", "external", "labels", "driver"]),
        }
    }
    volume
}

fn objects(reader: &Reader<'_>, node: &Node, field: &str, options: &LoadOptions) -> BTreeMap<String, FileObject> {
    let mut objects = BTreeMap::new();
    for (name, node) in reader.mapping(node, field) {
        let at = format!("{field}.{name}");
        let mut object = None;
        for (key, node) in reader.mapping(node, &at) {
            let field_at = format!("{at}.{key}");
            let text = || reader.text(node, &field_at);
            match key.as_str() {
                "file" => {
                    object = text().map(|file| FileObject::File(crate::mount::clean(&options.folder.join(file))))
                }
                "environment" => {
                    object =
                        text().and_then(|variable| from_environment(reader, node, &field_at, variable, options))
                }
                "content" if field == "configs" => object = text().map(FileObject::Content),
                "name" | "labels" => reader.notice(node.line, &field_at, "has no effect"),
                "external" => reader.refuse(
                    node.line,
                    &field_at,
                    "there is no store of secrets and configs: use file or environment",
                ),
                _ => reader.unknown(node.line, &field_at, key, &["file", "environment", "content"]),
            }
        }
        match object {
            Some(object) => drop(objects.insert(name.clone(), object)),
            None => reader.refuse(node.line, &at, "needs file or environment"),
        }
    }
    objects
}

fn from_environment(
    reader: &Reader<'_>,
    node: &Node,
    field: &str,
    name: String,
    options: &LoadOptions,
) -> Option<FileObject> {
    match options.environment.get(&name) {
        Some(value) => Some(FileObject::Environment { name, value: value.clone() }),
        None => {
            reader.refuse(node.line, field, format!("variable {name} is not set"));
            None
        }
    }
}

/// What concerns several services.
fn check(reader: &Reader<'_>, project: &mut Project, lines: &BTreeMap<String, usize>) {
    let mut used_default = false;
    let mut published: BTreeMap<(String, u16, Protocol), String> = BTreeMap::new();
    for (name, service) in &project.services {
        let line = lines.get(name).copied().unwrap_or(0);
        let refuse =
            |field: &str, reason: String| reader.refuse(line, &format!("services.{name}.{field}"), reason);
        if let NetworkMode::Networks(networks) = &service.network {
            used_default |= networks.contains_key("default");
            for network in networks.keys().filter(|it| *it != "default" && !project.networks.contains_key(*it)) {
                refuse("networks", format!("network {network} is not defined: add it to networks"));
            }
        }
        for mount in &service.mounts {
            if let MountSource::Volume { name, .. } = &mount.source
                && !project.volumes.contains_key(name)
            {
                refuse(
                    "volumes",
                    format!("volume {name} is not defined: add it to volumes (a folder begins with ./)"),
                );
            }
        }
        for (field, grants, objects) in
            [("secrets", &service.secrets, &project.secrets), ("configs", &service.configs, &project.configs)]
        {
            for grant in grants.iter().filter(|grant| !objects.contains_key(&grant.source)) {
                refuse(field, format!("{} is not defined: add it to {field}", grant.source));
            }
        }
        for other in references(service) {
            if !project.services.contains_key(&other)
                && service.depends_on.get(&other).is_none_or(|it| it.required)
            {
                let reason = if lines.contains_key(&other) {
                    "is in a profile that is not active"
                } else {
                    "is not defined"
                };
                refuse("depends_on", format!("service {other} {reason}"));
            }
        }
        for port in service.ports.iter().filter(|port| port.host.is_some_and(|(first, last)| first == last)) {
            let host = port.host.map_or(0, |(first, _)| first);
            let ip = port.host_ip.map_or("*".to_owned(), |ip| ip.to_string());
            if let Some(other) = published.insert((ip, host, port.protocol), name.clone()) {
                refuse("ports", format!("host port {host} is published by {other} too"));
            }
        }
    }
    if used_default {
        project.networks.entry("default".to_owned()).or_default();
    }
    if let Some(cycle) = cycle(&project.services) {
        let line = lines.get(&cycle[0]).copied().unwrap_or(0);
        reader.refuse(line, "services", format!("these services wait for each other: {}", cycle.join(" -> ")));
    }
}

/// Services that must be there before this one.
pub fn references(service: &Service) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = service.depends_on.keys().cloned().collect();
    names.extend(service.links.iter().map(|(name, _)| name.clone()));
    if let NetworkMode::Service(name) = &service.network {
        names.insert(name.clone());
    }
    for mode in [&service.pid, &service.ipc].into_iter().flatten() {
        names.extend(mode.strip_prefix("service:").map(str::to_owned));
    }
    names
}

/// A cycle of references, first and last the same.
fn cycle(services: &BTreeMap<String, Service>) -> Option<Vec<String>> {
    let mut done = BTreeSet::new();
    for start in services.keys() {
        let mut path: Vec<(String, Vec<String>)> = Vec::new();
        let mut next = Some(start.clone());
        loop {
            if let Some(name) = next.take() {
                if let Some(at) = path.iter().position(|(known, _)| *known == name) {
                    let mut cycle: Vec<String> = path[at..].iter().map(|(name, _)| name.clone()).collect();
                    cycle.push(name);
                    return Some(cycle);
                }
                if !done.contains(&name) {
                    let below = services.get(&name).map(references).unwrap_or_default();
                    path.push((name, below.into_iter().collect()));
                }
            }
            match path.last_mut() {
                None => break,
                Some((name, below)) => match below.pop() {
                    Some(name) => next = Some(name),
                    None => {
                        done.insert(name.clone());
                        path.pop();
                    }
                },
            }
        }
    }
    None
}

/// The folder that relative paths of a file count from.
pub fn folder_of(file: &Path) -> PathBuf {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

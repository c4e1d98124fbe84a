//! `volumes`, `tmpfs`, `secrets` and `configs` of a service.

use crate::load::LoadOptions;
use crate::model::{FileGrant, Mount, MountSource};
use crate::quantity;
use crate::reader::Reader;
use crate::yaml::{Node, Value};
use std::path::{Component, Path, PathBuf};

/// Where Docker's engine listens elsewhere.
const DOCKER_SOCKETS: &[&str] = &["/var/run/docker.sock", "/run/docker.sock"];

/// Reads `volumes`.
pub fn volumes(reader: &Reader<'_>, node: &Node, field: &str, options: &LoadOptions) -> Vec<Mount> {
    let nodes = reader.sequence(node, field).iter().enumerate();
    nodes
        .filter_map(|(index, node)| {
            let field = format!("{field}[{index}]");
            let mount = match &node.value {
                Value::Scalar { text, .. } => short(text, options),
                _ => long(reader, node, &field, options),
            };
            mount.map_err(|reason| reader.refuse(node.line, &field, reason)).ok()
        })
        .collect()
}

/// Reads `tmpfs`: `/path` or `/path:size=64m,mode=1777`.
pub fn tmpfs(reader: &Reader<'_>, node: &Node, field: &str) -> Vec<Mount> {
    let mut mounts = Vec::new();
    for text in reader.words(node, field) {
        match tmpfs_entry(&text) {
            Ok(mount) => mounts.push(mount),
            Err(reason) => reader.refuse(node.line, field, reason),
        }
    }
    mounts
}

fn tmpfs_entry(text: &str) -> Result<Mount, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let (mut size, mut mode, mut read_only) = (None, None, false);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", value)) => size = Some(quantity::size(value)?),
            Some(("mode", value)) => {
                mode = Some(u32::from_str_radix(value, 8).map_err(|_| format!("mode {value:?} is not octal"))?)
            }
            None if option == "ro" => read_only = true,
            None if matches!(option, "rw" | "noexec" | "nosuid" | "nodev") => {}
            _ => {
                return Err(format!("tmpfs option {option:?} is not supported: size, mode, ro"));
            }
        }
    }
    Ok(Mount { target: target_path(target)?, read_only, source: MountSource::Tmpfs { size, mode } })
}

fn short(text: &str, options: &LoadOptions) -> Result<Mount, String> {
    let parts: Vec<&str> = text.split(':').map(str::trim).collect();
    let (source, target, flags) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, flags] => (*source, *target, *flags),
        _ => {
            return Err(format!("{text:?} is no volume: write NAME:/path or ./folder:/path, with :ro at the end"));
        }
    };
    let (mut read_only, mut nocopy, mut propagation) = (false, false, None);
    for flag in flags.split(',').filter(|flag| !flag.is_empty()) {
        match flag {
            "ro" => read_only = true,
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            "nocopy" => nocopy = true,
            "rprivate" | "private" | "rshared" | "shared" | "rslave" | "slave" => {
                propagation = Some(flag.to_owned())
            }
            _ => {
                return Err(format!("volume option {flag:?} is not known: ro, rw, nocopy, z, Z"));
            }
        }
    }
    let source = if source.is_empty() {
        MountSource::Anonymous
    } else if is_path(source) {
        bind(source, true, propagation, options)?
    } else {
        MountSource::Volume { name: source.to_owned(), nocopy, subpath: String::new() }
    };
    Ok(Mount { target: target_path(target)?, read_only, source })
}

fn is_path(source: &str) -> bool {
    source.starts_with(['/', '.', '~'])
}

fn long(reader: &Reader<'_>, node: &Node, field: &str, options: &LoadOptions) -> Result<Mount, String> {
    let (mut kind, mut source, mut target, mut read_only) = (String::new(), String::new(), String::new(), false);
    let (mut nocopy, mut subpath, mut propagation, mut create) = (false, String::new(), None, true);
    let (mut size, mut mode) = (None, None);
    for (key, node) in reader.mapping(node, field) {
        let field = format!("{field}.{key}");
        match key.as_str() {
            "type" => kind = reader.text(node, &field).unwrap_or_default(),
            "source" => source = reader.text(node, &field).unwrap_or_default(),
            "target" => target = reader.text(node, &field).unwrap_or_default(),
            "read_only" => read_only = reader.boolean(node, &field).unwrap_or_default(),
            "consistency" => {}
            "volume" | "bind" | "tmpfs" => {
                for (key, node) in reader.mapping(node, &field) {
                    let field = format!("{field}.{key}");
                    match key.as_str() {
                        "nocopy" => nocopy = reader.boolean(node, &field).unwrap_or_default(),
                        "subpath" => subpath = reader.text(node, &field).unwrap_or_default(),
                        "propagation" => propagation = reader.text(node, &field),
                        "create_host_path" => create = reader.boolean(node, &field).unwrap_or(true),
                        "selinux" => {}
                        "size" => size = reader.parsed(node, &field, quantity::size),
                        "mode" => mode = reader.parsed(node, &field, quantity::mode),
                        _ => reader.unknown(
                            node.line,
                            &field,
                            key,
                            &["nocopy", "subpath", "propagation", "size", "mode"],
                        ),
                    }
                }
            }
            _ => reader.unknown(
                node.line,
                &field,
                key,
                &["type", "source", "target", "read_only", "volume", "bind", "tmpfs"],
            ),
        }
    }
    if Path::new(&subpath).components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("subpath {subpath:?} must be a relative path inside the volume"));
    }
    let source = match kind.as_str() {
        "volume" if source.is_empty() => MountSource::Anonymous,
        "volume" => MountSource::Volume { name: source, nocopy, subpath },
        "bind" => bind(&source, create, propagation, options)?,
        "tmpfs" => MountSource::Tmpfs { size, mode },
        other => return Err(format!("type {other:?} is not supported: volume, bind or tmpfs")),
    };
    Ok(Mount { target: target_path(&target)?, read_only, source })
}

/// A path of the host: inside the project folder, or below a path that was allowed by name.
fn bind(
    source: &str,
    create: bool,
    propagation: Option<String>,
    options: &LoadOptions,
) -> Result<MountSource, String> {
    let path = match source.strip_prefix('~') {
        Some(rest) => {
            let home = options.environment.get("HOME").ok_or("~ needs the variable HOME")?;
            PathBuf::from(format!("{home}{rest}"))
        }
        None => options.folder.join(source),
    };
    let cleaned = clean(&path);
    if DOCKER_SOCKETS.iter().any(|socket| cleaned == Path::new(socket)) {
        return Err(format!("{source}: there is no Docker engine on this device, so there is no such socket"));
    }
    // Judged by where it leads: a link in the project must not open the host.
    let real = real_path(&cleaned);
    let inside_project = real.starts_with(real_path(&clean(&options.folder)));
    let allowed = options.allow_binds.iter().any(|allowed| real.starts_with(real_path(&clean(allowed))));
    if !inside_project && !allowed {
        return Err(format!(
            "{source}: a path of the host outside the project; allow it with --allow-bind {}",
            cleaned.display()
        ));
    }
    Ok(MountSource::Bind { path: cleaned, inside_project, create_host_path: create, propagation })
}

/// Removes `.` and `..` by name.
pub fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                cleaned.pop();
            }
            other => cleaned.push(other),
        }
    }
    cleaned
}

/// Follows links in the part that is there.
fn real_path(path: &Path) -> PathBuf {
    for existing in path.ancestors() {
        if let Ok(real) = existing.canonicalize() {
            return path.strip_prefix(existing).map_or(real.clone(), |rest| real.join(rest));
        }
    }
    path.to_owned()
}

/// An absolute path in the container, cleaned, not the root.
pub fn target_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') || text.contains('\0') {
        return Err(format!("{text:?} must be an absolute path in the container"));
    }
    let cleaned = clean(Path::new(text));
    if cleaned == Path::new("/") {
        return Err("nothing can be mounted on / of the container".to_owned());
    }
    Ok(cleaned.to_string_lossy().into_owned())
}

/// Reads `secrets` or `configs` of a service; `default_folder` is where short names are shown.
pub fn grants(reader: &Reader<'_>, node: &Node, field: &str, default_folder: &str) -> Vec<FileGrant> {
    let mut grants = Vec::new();
    for (index, node) in reader.sequence(node, field).iter().enumerate() {
        let field = format!("{field}[{index}]");
        let mut grant = FileGrant { source: String::new(), target: String::new(), uid: 0, gid: 0, mode: 0o444 };
        match &node.value {
            Value::Scalar { text, .. } => grant.source.clone_from(text),
            _ => {
                for (key, node) in reader.mapping(node, &field) {
                    grant_field(reader, &mut grant, key, node, &format!("{field}.{key}"));
                }
            }
        }
        let target = if grant.target.is_empty() { grant.source.clone() } else { grant.target.clone() };
        let target = if target.starts_with('/') { target } else { format!("{default_folder}/{target}") };
        match target_path(&target) {
            Ok(target) => grants.push(FileGrant { target, ..grant }),
            Err(reason) => reader.refuse(node.line, &field, reason),
        }
    }
    grants
}

fn grant_field(reader: &Reader<'_>, grant: &mut FileGrant, key: &str, node: &Node, field: &str) {
    let id = |node| reader.integer(node, field, 0, i64::from(u32::MAX) - 1).map_or(0, |id| id as u32);
    match key {
        "source" => grant.source = reader.text(node, field).unwrap_or_default(),
        "target" => grant.target = reader.text(node, field).unwrap_or_default(),
        "uid" => grant.uid = id(node),
        "gid" => grant.gid = id(node),
        "mode" => {
            grant.mode = reader.parsed(node, field, quantity::mode).unwrap_or(0o444);
            let text = node.text().unwrap_or_default();
            if text.starts_with(['4', '5', '6', '7'])
                && text.len() == 3
                && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte))
            {
                reader.notice(
                    node.line,
                    field,
                    format!(
                        "{text} is a decimal number, the mode is 0{:o}; 0{text} was probably meant",
                        grant.mode
                    ),
                );
            }
        }
        _ => reader.unknown(node.line, field, key, &["source", "target", "uid", "gid", "mode"]),
    }
}

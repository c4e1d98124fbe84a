//! Reading a bundle's configuration, and refusing whole what cannot be kept, before anything is made.

use super::error::OciError;
use super::fields::{self, Found};
use crate::container::launcher;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of a configuration. A system call filter of Docker's has 60 KiB, and engines write some hundred mounts.
pub const MAX_CONFIG: u64 = 4 * 1024 * 1024;

/// A configuration that was read and found to be possible.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The bundle's folder, absolute.
    pub folder: PathBuf,
    /// The root file system, absolute, without links.
    pub rootfs: PathBuf,
    /// As written.
    pub config: Value,
    /// As the specification has it.
    pub spec: Spec,
}

impl Bundle {
    /// Reads `config.json` of a bundle.
    ///
    /// # Errors
    /// What cannot be read, or not be kept, with the field's name.
    pub fn load(folder: &Path) -> Result<Self, OciError> {
        let file = folder.join("config.json");
        let unreadable = |reason: String| OciError::Unreadable { path: file.clone(), reason };
        let folder = folder.canonicalize().map_err(|error| unreadable(error.to_string()))?;
        let mut text = Vec::new();
        std::fs::File::open(&file)
            .and_then(|opened| opened.take(MAX_CONFIG + 1).read_to_end(&mut text))
            .map_err(|error| unreadable(error.to_string()))?;
        let (config, spec) = parse(&text).map_err(|error| match error {
            Unfit::Unreadable(reason) => unreadable(reason),
            Unfit::Refused { field, reason } => OciError::Refused { field, reason },
        })?;
        let path = spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
        let path = folder.join(path);
        let rootfs = path.canonicalize().map_err(|error| OciError::Refused {
            field: "root.path".to_owned(),
            reason: format!("{}: {error}", path.display()),
        })?;
        if !rootfs.is_dir() || rootfs == Path::new("/") {
            let reason = format!("{} is not a folder of its own", rootfs.display());
            return Err(OciError::Refused { field: "root.path".to_owned(), reason });
        }
        Ok(Self { folder, rootfs, config, spec })
    }
}

/// Why a configuration is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// Not JSON, or not of the right form.
    Unreadable(String),
    /// It asks for what is not to be had.
    Refused {
        /// The field.
        field: String,
        /// Why.
        reason: String,
    },
}

fn refused(field: &str, reason: impl Into<String>) -> Unfit {
    Unfit::Refused { field: field.to_owned(), reason: reason.into() }
}

/// Reads a configuration. Pure.
///
/// # Errors
/// The field and why.
pub fn parse(text: &[u8]) -> Result<(Value, Spec), Unfit> {
    if text.len() as u64 > MAX_CONFIG {
        return Err(Unfit::Unreadable(format!("larger than {MAX_CONFIG} bytes")));
    }
    let mut config: Value = serde_json::from_slice(text)
        .map_err(|error| Unfit::Unreadable(crate::untrusted::one_line(&error.to_string())))?;
    for found in fields::check(&config) {
        match found {
            Found::Refused(field, why) => return Err(refused(&field, why)),
            Found::Unknown(field) => {
                tracing::debug!(field = %crate::untrusted::one_line(&field), "is not of the specification and is ignored");
            }
        }
    }
    if config.get("process").is_none_or(Value::is_null) && config.is_object() {
        // A container can be made without, and not be started (config.md, Process).
        config["process"] = json!({ "args": [], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
    } else if config["process"].is_object() && config["process"]["args"].as_array().is_none_or(Vec::is_empty) {
        return Err(refused("process.args", "names no program"));
    }
    // Our own reader has it later (`crate::seccomp`): hundreds of names are not to be read twice.
    let section = config.get_mut("linux").and_then(Value::as_object_mut);
    let filter = section.and_then(|linux| linux.remove_entry("seccomp"));
    let spec = Spec::deserialize(&config)
        .map_err(|error| Unfit::Unreadable(crate::untrusted::one_line(&error.to_string())))?;
    if let (Some(linux), Some((name, filter))) = (config.get_mut("linux").and_then(Value::as_object_mut), filter) {
        linux.insert(name, filter);
    }
    check(&spec)?;
    Ok((config, spec))
}

fn check(spec: &Spec) -> Result<(), Unfit> {
    let version = spec.version();
    if !version.starts_with("1.") {
        return Err(refused("ociVersion", format!("{version:?} is not 1.something")));
    }
    if spec.root().is_none() {
        return Err(refused("root", "is missing"));
    }
    let process = spec.process().as_ref().ok_or_else(|| refused("process", "is missing"))?;
    if !process.cwd().is_absolute() {
        return Err(refused("process.cwd", format!("{} is not absolute", process.cwd().display())));
    }
    let linux = spec.linux().as_ref().ok_or_else(|| refused("linux", "is missing"))?;
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let has = |kind| namespaces.iter().any(|it| it.typ() == kind);
    for (number, namespace) in namespaces.iter().enumerate() {
        if namespaces[..number].iter().any(|it| it.typ() == namespace.typ()) {
            return Err(refused("linux.namespaces", format!("{:?} is there twice", namespace.typ())));
        }
    }
    if spec.hostname().as_ref().is_some_and(|it| !it.is_empty()) && !has(LinuxNamespaceType::Uts) {
        return Err(refused("hostname", "would change the machine's: a UTS namespace is wanted"));
    }
    for (number, mount) in spec.mounts().iter().flatten().enumerate() {
        for option in mount.options().iter().flatten() {
            if option == "tmpcopyup" && !has(LinuxNamespaceType::Mount) {
                let reason = "tmpcopyup: a mount namespace is wanted";
                return Err(refused(&format!("mounts[{number}].options"), reason));
            }
        }
        check_owners(spec, mount).map_err(|(field, why)| refused(&format!("mounts[{number}].{field}"), why))?;
    }
    const PROPAGATIONS: [&str; 9] =
        ["", "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"];
    if let Some(propagation) = linux.rootfs_propagation().as_deref().filter(|it| !PROPAGATIONS.contains(it)) {
        let propagation = crate::untrusted::one_line(propagation);
        return Err(refused("linux.rootfsPropagation", format!("{propagation:?} is no mount propagation")));
    }
    if let Some(sysctls) = linux.sysctl() {
        for name in sysctls.keys() {
            check_sysctl(name, namespaces.iter().map(|it| it.typ()).collect::<Vec<_>>().as_slice())?;
        }
    }
    Ok(())
}

/// A mount that shows files with other owners.
fn check_owners(spec: &Spec, mount: &Mount) -> Result<(), (&'static str, String)> {
    let some = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let (users, groups) = (some(mount.uid_mappings()), some(mount.gid_mappings()));
    let options = mount.options().as_deref().unwrap_or_default();
    if !users && !groups {
        return match options.iter().find(|it| *it == "idmap" || *it == "ridmap") {
            Some(option) => Err(("options", format!("{option}: uidMappings and gidMappings are wanted with it"))),
            None => Ok(()),
        };
    }
    let field = if users { "uidMappings" } else { "gidMappings" };
    let bound = mount.typ().as_deref() == Some("bind") || options.iter().any(|it| it == "bind" || it == "rbind");
    if users != groups {
        return Err((field, "uidMappings and gidMappings are wanted together".to_owned()));
    }
    if !bound {
        return Err((field, "is for bind mounts".to_owned()));
    }
    match launcher::unsupported(spec) {
        Some(what) => Err((field, format!("is not supported together with {what}"))),
        None => Ok(()),
    }
}

/// A kernel parameter of a namespace that is the container's own; another would be the machine's.
fn check_sysctl(name: &str, namespaces: &[LinuxNamespaceType]) -> Result<(), Unfit> {
    const IPC: &[&str] = &[
        "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
        "kernel.shmmni", "kernel.shm_rmid_forced",
    ];
    let dotted = name.replace('/', ".");
    let (kind, wants) = match dotted.as_str() {
        it if IPC.contains(&it) || it.starts_with("fs.mqueue.") => (LinuxNamespaceType::Ipc, "an IPC"),
        it if it.starts_with("net.") => (LinuxNamespaceType::Network, "a network"),
        "kernel.domainname" => (LinuxNamespaceType::Uts, "a UTS"),
        "kernel.hostname" => return Err(refused("linux.sysctl", "kernel.hostname: write hostname")),
        it if it.starts_with("user.") => (LinuxNamespaceType::User, "a user"),
        _ => return Err(refused("linux.sysctl", format!("{name}: is the machine's, not a namespace's"))),
    };
    if dotted.split('.').any(|part| part.is_empty() || part == "..") {
        return Err(refused("linux.sysctl", format!("{name}: is no name")));
    }
    if !namespaces.contains(&kind) {
        return Err(refused(
            "linux.sysctl",
            format!("{name}: would be the machine's: {wants} namespace is wanted"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::template;

    fn changed(pointer: &str, value: Value) -> Result<(), String> {
        let mut config = template::config(false);
        match pointer.rsplit_once('/') {
            Some((parent, name)) => config.pointer_mut(parent).expect("a parent")[name] = value,
            None => config = value,
        }
        match parse(&serde_json::to_vec(&config).expect("text")) {
            Ok(_) => Ok(()),
            Err(Unfit::Refused { field, reason }) => Err(format!("{field}: {reason}")),
            Err(Unfit::Unreadable(reason)) => Err(reason),
        }
    }

    #[test]
    fn what_cannot_be_kept_is_refused_by_its_field() {
        assert_eq!(changed("/hostname", json!("h")), Ok(()));
        assert_eq!(changed("/process", json!(null)), Ok(()), "it can be made, and not be started");
        for (pointer, value, field) in [
            ("/ociVersion", json!("2.0.0"), "ociVersion: "),
            ("/process", json!({}), "process.args: "),
            ("/process", json!("x"), "invalid type"),
            ("/process/args", json!([]), "process.args: "),
            ("/process/cwd", json!("srv"), "process.cwd: "),
            ("/linux/namespaces", json!([{"type": "mount"}, {"type": "mount"}]), "linux.namespaces: "),
            ("/linux/namespaces", json!([{"type": "mount"}]), "hostname: "),
            ("/linux/sysctl", json!({"kernel.panic": "1"}), "linux.sysctl: kernel.panic"),
            ("/linux/sysctl", json!({"net.x/../../kernel": "1"}), "linux.sysctl: "),
            ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt.closID: "),
            ("/mounts/0/options", json!(["idmap"]), "mounts[0].options: idmap"),
            (
                "/mounts/0/uidMappings",
                json!([{ "containerID": 0, "hostID": 1, "size": 1 }]),
                "mounts[0].uidMappings: ",
            ),
            ("/vm", json!({"kernel": {"path": "/x"}}), "vm: "),
            ("/process/user/uid", json!("root"), "invalid type"),
        ] {
            let refused = changed(pointer, value).expect_err(pointer);
            assert!(refused.starts_with(field), "{refused}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}

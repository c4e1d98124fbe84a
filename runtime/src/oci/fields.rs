//! Every field of the OCI runtime specification 1.2 (config.md, config-linux.md), and what becomes of it. Pure.
//!
//! `docs/oci.md` is this table in prose; a test keeps both the same.

use serde_json::Value;

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// It is so in the container, or the container is refused.
    Applied,
    /// It is read, and changes nothing; why.
    Noted(&'static str),
    /// A configuration that has it is refused; why.
    Refused(&'static str),
}

use Handling::{Applied, Noted, Refused};

const OTHER_PLATFORM: Handling = Refused("is for another operating system");
const NO_RDT: Handling = Refused("Intel RDT is not supported: no board that this is for has it");

/// All fields by path: `[]` is an element of a list, `*` a member of a map.
pub const FIELDS: &[(&str, Handling)] = &[
    ("ociVersion", Applied),
    ("root.path", Applied),
    ("root.readonly", Applied),
    ("mounts[].destination", Applied),
    ("mounts[].source", Applied),
    ("mounts[].type", Applied),
    ("mounts[].options[]", Applied),
    ("mounts[].uidMappings[]", Applied),
    ("mounts[].gidMappings[]", Applied),
    ("process.terminal", Applied),
    ("process.consoleSize.height", Applied),
    ("process.consoleSize.width", Applied),
    ("process.cwd", Applied),
    ("process.env[]", Applied),
    ("process.args[]", Applied),
    ("process.commandLine", OTHER_PLATFORM),
    ("process.rlimits[].type", Applied),
    ("process.rlimits[].soft", Applied),
    ("process.rlimits[].hard", Applied),
    ("process.apparmorProfile", Applied),
    ("process.capabilities.effective[]", Applied),
    ("process.capabilities.bounding[]", Applied),
    ("process.capabilities.inheritable[]", Applied),
    ("process.capabilities.permitted[]", Applied),
    ("process.capabilities.ambient[]", Applied),
    ("process.noNewPrivileges", Applied),
    ("process.oomScoreAdj", Applied),
    ("process.scheduler.policy", Applied),
    ("process.scheduler.nice", Applied),
    ("process.scheduler.priority", Applied),
    ("process.scheduler.flags[]", Applied),
    ("process.scheduler.runtime", Applied),
    ("process.scheduler.deadline", Applied),
    ("process.scheduler.period", Applied),
    ("process.selinuxLabel", Refused("SELinux labels of processes are not supported")),
    ("process.ioPriority.class", Applied),
    ("process.ioPriority.priority", Applied),
    ("process.execCPUAffinity.initial", Applied),
    ("process.execCPUAffinity.final", Applied),
    ("process.user.uid", Applied),
    ("process.user.gid", Applied),
    ("process.user.umask", Applied),
    ("process.user.additionalGids[]", Applied),
    ("process.user.username", OTHER_PLATFORM),
    ("hostname", Applied),
    ("domainname", Applied),
    ("hooks.prestart[]", Applied),
    ("hooks.createRuntime[]", Applied),
    ("hooks.createContainer[]", Applied),
    ("hooks.startContainer[]", Applied),
    ("hooks.poststart[]", Applied),
    ("hooks.poststop[]", Applied),
    ("annotations.*", Applied),
    ("linux.namespaces[].type", Applied),
    ("linux.namespaces[].path", Applied),
    ("linux.uidMappings[]", Applied),
    ("linux.gidMappings[]", Applied),
    ("linux.timeOffsets.*", Applied),
    ("linux.devices[].type", Applied),
    ("linux.devices[].path", Applied),
    ("linux.devices[].major", Applied),
    ("linux.devices[].minor", Applied),
    ("linux.devices[].fileMode", Applied),
    ("linux.devices[].uid", Applied),
    ("linux.devices[].gid", Applied),
    ("linux.netDevices.*", Applied),
    ("linux.cgroupsPath", Applied),
    ("linux.resources.devices[]", Applied),
    ("linux.resources.memory.limit", Applied),
    ("linux.resources.memory.reservation", Applied),
    ("linux.resources.memory.swap", Applied),
    ("linux.resources.memory.kernel", Noted("the kernel has no such limit since 5.4")),
    ("linux.resources.memory.kernelTCP", Applied),
    ("linux.resources.memory.swappiness", Applied),
    ("linux.resources.memory.disableOOMKiller", Applied),
    ("linux.resources.memory.useHierarchy", Noted("the kernel has nothing else since 5.11")),
    ("linux.resources.memory.checkBeforeUpdate", Applied),
    ("linux.resources.cpu.shares", Applied),
    ("linux.resources.cpu.quota", Applied),
    ("linux.resources.cpu.burst", Applied),
    ("linux.resources.cpu.period", Applied),
    ("linux.resources.cpu.realtimeRuntime", Applied),
    ("linux.resources.cpu.realtimePeriod", Applied),
    ("linux.resources.cpu.cpus", Applied),
    ("linux.resources.cpu.mems", Applied),
    ("linux.resources.cpu.idle", Applied),
    ("linux.resources.blockIO.weight", Applied),
    ("linux.resources.blockIO.leafWeight", Applied),
    ("linux.resources.blockIO.weightDevice[]", Applied),
    ("linux.resources.blockIO.throttleReadBpsDevice[]", Applied),
    ("linux.resources.blockIO.throttleWriteBpsDevice[]", Applied),
    ("linux.resources.blockIO.throttleReadIOPSDevice[]", Applied),
    ("linux.resources.blockIO.throttleWriteIOPSDevice[]", Applied),
    ("linux.resources.hugepageLimits[]", Applied),
    ("linux.resources.network.classID", Applied),
    ("linux.resources.network.priorities[]", Applied),
    ("linux.resources.pids.limit", Applied),
    ("linux.resources.rdma.*", Applied),
    ("linux.resources.unified.*", Applied),
    ("linux.intelRdt.closID", NO_RDT),
    ("linux.intelRdt.schemata[]", NO_RDT),
    ("linux.intelRdt.l3CacheSchema", NO_RDT),
    ("linux.intelRdt.memBwSchema", NO_RDT),
    ("linux.intelRdt.enableCMT", NO_RDT),
    ("linux.intelRdt.enableMBM", NO_RDT),
    ("linux.intelRdt.enableMonitoring", NO_RDT),
    ("linux.memoryPolicy.mode", Applied),
    ("linux.memoryPolicy.nodes", Applied),
    ("linux.memoryPolicy.flags[]", Applied),
    ("linux.sysctl.*", Applied),
    ("linux.seccomp.defaultAction", Applied),
    ("linux.seccomp.defaultErrnoRet", Applied),
    ("linux.seccomp.architectures[]", Applied),
    ("linux.seccomp.flags[]", Applied),
    ("linux.seccomp.listenerPath", Applied),
    ("linux.seccomp.listenerMetadata", Applied),
    ("linux.seccomp.syscalls[].names[]", Applied),
    ("linux.seccomp.syscalls[].action", Applied),
    ("linux.seccomp.syscalls[].errnoRet", Applied),
    ("linux.seccomp.syscalls[].args[]", Applied),
    ("linux.rootfsPropagation", Applied),
    ("linux.maskedPaths[]", Applied),
    ("linux.readonlyPaths[]", Applied),
    ("linux.mountLabel", Applied),
    ("linux.personality.domain", Applied),
    ("linux.personality.flags[]", Refused("the specification names no flag yet")),
    ("vm", OTHER_PLATFORM),
    ("solaris", OTHER_PLATFORM),
    ("windows", OTHER_PLATFORM),
    ("zos", OTHER_PLATFORM),
];

/// Levels of a document that are looked into; the specification has six.
const MAX_DEPTH: usize = 16;

/// A field that is refused or not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Refused, and why.
    Refused(String, &'static str),
    /// Not of the specification: a runtime must ignore it (config.md, Extensibility).
    Unknown(String),
}

/// What of a configuration is refused or unknown, in its order.
pub fn check(config: &Value) -> Vec<Found> {
    let mut found = Vec::new();
    walk(config, "", &mut found, 0);
    found
}

fn walk(value: &Value, path: &str, found: &mut Vec<Found>, depth: usize) {
    if let Some(handling) = FIELDS.iter().find(|(known, _)| *known == path).map(|(_, handling)| handling) {
        match handling {
            Refused(_) if is_nothing(value) => {}
            Refused(why) => {
                let field = path.to_owned();
                if !found.iter().any(|it| matches!(it, Found::Refused(known, _) if *known == field)) {
                    found.push(Found::Refused(field, why));
                }
            }
            Applied | Noted(_) => {}
        }
        return;
    }
    let below = |separator: &str| {
        FIELDS.iter().any(|(it, _)| it.strip_prefix(path).is_some_and(|rest| rest.starts_with(separator)))
    };
    match value {
        Value::Object(members) if depth < MAX_DEPTH && (path.is_empty() || below(".")) => {
            let any = format!("{path}.*");
            let any = FIELDS.iter().any(|(it, _)| *it == any).then_some(any);
            for (name, value) in members {
                let path = match &any {
                    _ if path.is_empty() => name.clone(),
                    Some(any) => any.clone(),
                    None => format!("{path}.{name}"),
                };
                walk(value, &path, found, depth + 1);
            }
        }
        Value::Array(elements) if depth < MAX_DEPTH && below("[]") => {
            let path = format!("{path}[]");
            // Lists of hundreds of names are one field.
            let known = FIELDS.iter().any(|(it, handling)| *it == path && !matches!(handling, Refused(_)));
            for element in elements.iter().filter(|_| !known) {
                walk(element, &path, found, depth + 1);
            }
        }
        Value::Null => {}
        // A section of the wrong type is found when it is read.
        _ if below(".") || below("[]") => {}
        _ => {
            if !found.contains(&Found::Unknown(path.to_owned())) {
                found.push(Found::Unknown(path.to_owned()));
            }
        }
    }
}

/// What asks for nothing may stand anywhere.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A document with one field.
    fn with(path: &str, leaf: Value) -> Value {
        path.rsplit('.').fold(leaf, |value, name| match name.strip_suffix("[]") {
            Some(name) => json!({ name: [value] }),
            None => json!({ name: value }),
        })
    }

    #[test]
    fn every_field_is_known_and_only_refused_ones_are_refused() {
        for (path, handling) in FIELDS {
            let found = check(&with(path, json!("x")));
            match handling {
                Refused(why) => assert_eq!(found, [Found::Refused((*path).to_owned(), why)], "{path}"),
                _ => assert_eq!(found, [], "{path}"),
            }
        }
    }

    #[test]
    fn what_asks_for_nothing_is_not_refused() {
        for nothing in [json!(null), json!(""), json!([]), json!({}), json!(false)] {
            assert_eq!(check(&with("linux.intelRdt.closID", nothing.clone())), [], "{nothing}");
        }
        assert_eq!(check(&json!({"mounts": [{"uidMappings": []}]})), []);
    }

    #[test]
    fn unknown_fields_are_named() {
        let found =
            check(&json!({"linux": {"later": {"x": 1}}, "process": {"user": {"nick": "a"}}, "hostname": "h"}));
        assert_eq!(
            found,
            [Found::Unknown("linux.later".to_owned()), Found::Unknown("process.user.nick".to_owned())]
        );
    }

    #[test]
    fn the_table_of_the_documentation_is_this_one() {
        let page = include_str!("../../../docs/oci.md");
        let rows: Vec<(String, String)> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|line| line.split_once("` | "))
            .map(|(path, rest)| (path.to_owned(), rest.split(" |").next().unwrap_or_default().to_owned()))
            .collect();
        let word = |handling: &Handling| match handling {
            Applied => "applied",
            Noted(_) => "no effect",
            Refused(_) => "refused",
        };
        let wanted: Vec<(String, String)> =
            FIELDS.iter().map(|(path, handling)| ((*path).to_owned(), word(handling).to_owned())).collect();
        assert_eq!(rows, wanted);
    }
}

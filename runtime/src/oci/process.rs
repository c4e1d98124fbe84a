//! The `process` of a configuration, and of a command in a container: what libcontainer is given of it, and what our
//! launcher does itself.

use super::error::{OciError, errno, io};
use super::listener::Listener;
use crate::container::filters::Filters;
use crate::container::libcontainer::{Launch, Waiting};
use crate::container::worker;
use crate::seccomp::Filter;
use crate::sys::SharedByte;
use oci_spec::runtime::Process;
use serde::Deserialize;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::fs::File;
use std::os::fd::RawFd;
use std::path::Path;

/// A process made ready.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    /// As libcontainer gets it.
    pub document: Value,
    /// Variables in order.
    pub env: Vec<(String, String)>,
    /// The system call filter.
    pub filter: Option<Filter>,
    /// Who answers for calls that the filter leaves to them.
    pub listener: Option<Listener>,
    /// As in [`Launch`].
    pub heard: Option<SharedByte>,
    /// `CAP_SYS_ADMIN` is there for the filter alone.
    pub borrows_admin: bool,
    /// -1000 to 1000; `None`: the caller's.
    pub oom_score_adj: Option<i32>,
    /// Rows and columns.
    pub console_size: Option<(u16, u16)>,
}

impl Prepared {
    /// As the specification has it.
    ///
    /// # Errors
    /// The field that is not.
    pub(super) fn typed(&self) -> Result<Process, OciError> {
        typed(&self.document)
    }

    /// With the byte that says that the filter's descriptor was taken.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn with_byte(&self, heard: &File) -> Result<Self, OciError> {
        let byte = SharedByte::of(heard).map_err(errno("mapping a file in memory"))?;
        Ok(Self { heard: Some(byte), ..self.clone() })
    }

    /// Looks whether this kernel has what it needs.
    ///
    /// # Errors
    /// A filter that it cannot have.
    pub(super) fn check_kernel(&self) -> Result<(), OciError> {
        if self.filter.is_none() || crate::sys::has_filters() {
            return Ok(());
        }
        let reason = "this kernel has no system call filters (CONFIG_SECCOMP_FILTER)".to_owned();
        Err(OciError::Refused { field: "linux.seccomp".to_owned(), reason })
    }

    /// What runs last in it. A container waits at `start`, with the hooks of `config` and its `state` for them; a
    /// command waits at `gate`.
    pub(super) fn launch(&self, preserve_fds: u32, at: &Waits, config: Value, state: Value) -> Launch {
        Launch {
            env: self.env.clone(),
            reaper: false,
            report: at.report,
            gate: at.gate,
            filter: self.filter.clone(),
            heard: self.heard,
            borrows_admin: self.borrows_admin,
            waiting: Some(Waiting {
                start: at.start,
                preserved: preserved(preserve_fds),
                console: self.console_size,
                config,
                state,
            }),
        }
    }
}

/// Descriptors that a process waits at, and where it says why it cannot run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    pub report: RawFd,
    pub gate: Option<RawFd>,
    pub start: Option<RawFd>,
}

/// A process as the specification has it.
///
/// # Errors
/// What is not of its form.
pub(super) fn typed(document: &Value) -> Result<Process, OciError> {
    Process::deserialize(document).map_err(|error| OciError::Refused {
        field: "process".to_owned(),
        reason: crate::untrusted::one_line(&error.to_string()),
    })
}

const SETS: [&str; 5] = ["bounding", "effective", "permitted", "inheritable", "ambient"];

/// Makes a process ready to be given to libcontainer: one that is of the specification's form ([`typed`]). `seccomp` is
/// the configuration's filter; `filters` keeps what it is compiled to.
///
/// # Errors
/// The field and why.
pub(super) fn prepare(
    process: &Value,
    seccomp: Option<&Value>,
    filters: Filters<'_>,
) -> Result<Prepared, OciError> {
    let refused = |field: &str, reason: String| OciError::Refused { field: field.to_owned(), reason };
    let mut document = process.clone();
    keep_available(&mut document);
    let bounding: Vec<String> = names(&document["capabilities"]["bounding"]);
    let effective: Vec<String> = names(&document["capabilities"]["effective"]);
    let listener = Listener::of(seccomp)?;
    let filter = match seccomp.filter(|it| !it.is_null()) {
        Some(profile) => {
            let mut profile = Cow::Borrowed(profile);
            // For who answers, not for the filter.
            for name in ["listenerPath", "listenerMetadata"] {
                if profile.get(name).is_some() {
                    profile.to_mut().as_object_mut().and_then(|profile| profile.remove(name));
                }
            }
            let capabilities: Vec<&str> = bounding.iter().map(String::as_str).collect();
            let program = filters.of_document(&profile, &capabilities, listener.is_some());
            Some(program.map_err(|reason| refused("linux.seccomp", reason))?)
        }
        None => None,
    };
    let gains = document["noNewPrivileges"] != Value::Bool(true);
    let borrows_admin = filter.is_some() && gains && !effective.iter().any(|it| it == "SYS_ADMIN");
    if let Some(document) = document.as_object_mut() {
        document.remove("oomScoreAdj");
        if gains {
            // libcontainer treats a present `false` as something else than an absent field.
            document.remove("noNewPrivileges");
        }
        if document.get("capabilities").is_none_or(Value::is_null) {
            // None named: none had (config.md, capabilities); libcontainer would leave it all of them.
            let none: [&str; 0] = [];
            document.insert(
                "capabilities".to_owned(),
                json!(SETS.map(|set| (set, none)).into_iter().collect::<std::collections::BTreeMap<_, _>>()),
            );
        }
    }
    if borrows_admin {
        for set in ["effective", "permitted"] {
            match document["capabilities"][set].as_array_mut() {
                Some(names) => names.push(json!("CAP_SYS_ADMIN")),
                None => document["capabilities"][set] = json!(["CAP_SYS_ADMIN"]),
            }
        }
    }
    check_limits(&document)?;
    let number = |value: &Value| value.as_u64().and_then(|it| u16::try_from(it).ok());
    let size = (number(&process["consoleSize"]["height"]), number(&process["consoleSize"]["width"]));
    let oom_score_adj = match &process["oomScoreAdj"] {
        Value::Null => None,
        score => {
            let score =
                score.as_i64().and_then(|it| i32::try_from(it).ok()).filter(|it| (-1000..=1000).contains(it));
            Some(score.ok_or_else(|| refused("process.oomScoreAdj", "is not -1000 to 1000".to_owned()))?)
        }
    };
    Ok(Prepared {
        env: environment(&document),
        heard: None,
        listener: listener.filter(|_| filter.as_ref().is_some_and(|filter| filter.notify)),
        filter,
        borrows_admin,
        oom_score_adj,
        console_size: size.0.zip(size.1).filter(|size| *size != (0, 0)),
        document,
    })
}

/// Names of resource limits by number (asm-generic/resource.h of the kernel).
const LIMITS: [&str; 16] = [
    "CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING",
    "MSGQUEUE", "NICE", "RTPRIO", "RTTIME",
];

/// The kernel's number of a limit.
pub(crate) fn limit_number(name: &str) -> Option<usize> {
    LIMITS.iter().position(|it| name.strip_prefix("RLIMIT_") == Some(it))
}

/// A limit that this process may not raise would be a bare EPERM of libcontainer's later.
fn check_limits(document: &Value) -> Result<(), OciError> {
    let may_raise = worker::available_capabilities().is_none_or(|all| all.iter().any(|it| it == "SYS_RESOURCE"));
    let mut seen: Vec<&str> = Vec::new();
    for limit in document["rlimits"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let kind = limit["type"].as_str().unwrap_or_default();
        let refused = |reason: String| OciError::Refused { field: "process.rlimits".to_owned(), reason };
        let (soft, hard) = (limit["soft"].as_u64(), limit["hard"].as_u64());
        let (Some(soft), Some(hard)) = (soft, hard) else {
            return Err(refused(format!("{kind}: soft and hard are wanted, as numbers")));
        };
        if soft > hard {
            return Err(refused(format!("{kind}: soft {soft} is more than hard {hard}")));
        }
        if seen.contains(&kind) {
            return Err(refused(format!("{kind} is there twice")));
        }
        seen.push(kind);
        let Some(own) = limit_number(kind).and_then(crate::sys::hard_limit) else { continue };
        if hard > own && !may_raise {
            return Err(refused(format!(
                "{kind}: {hard} is more than the {own} that this machine's root may set"
            )));
        }
    }
    Ok(())
}

fn names(set: &Value) -> Vec<String> {
    let all = set.as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(|it| it.as_str()?.strip_prefix("CAP_")).map(str::to_owned).collect()
}

/// Takes out capabilities that this machine's root has not: the kernel would refuse all of them for one.
fn keep_available(document: &mut Value) {
    let Some(available) = worker::available_capabilities() else { return };
    for set in SETS {
        let Some(names) = document["capabilities"].get_mut(set).and_then(Value::as_array_mut) else { continue };
        names.retain(|name| {
            let name = name.as_str().unwrap_or_default();
            let has = available.iter().any(|it| Some(it.as_str()) == name.strip_prefix("CAP_"));
            if !has {
                tracing::warn!(capability = %crate::untrusted::one_line(name), "this machine's root has it not");
            }
            has
        });
    }
}

fn environment(document: &Value) -> Vec<(String, String)> {
    let all = document["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pairs = all.iter().filter_map(|it| it.as_str()?.split_once('='));
    let mut env: Vec<(String, String)> = Vec::new();
    for (name, value) in pairs {
        // The last one counts.
        env.retain(|(known, _)| known != name);
        env.push((name.to_owned(), value.to_owned()));
    }
    // Sockets that a service manager opened are handed on (sd_listen_fds(3)).
    if let Some(count) = listen_descriptors() {
        env.push(("LISTEN_FDS".to_owned(), count.to_string()));
        env.push(("LISTEN_PID".to_owned(), "1".to_owned()));
    }
    env
}

/// Descriptors of a service manager; libcontainer keeps them open.
fn listen_descriptors() -> Option<u32> {
    std::env::var("LISTEN_FDS").ok()?.parse().ok().filter(|count| *count > 0)
}

/// How many descriptors above 2 the program gets: those that are asked for, and a service manager's behind them.
fn preserved(asked: u32) -> i32 {
    i32::try_from(asked.saturating_add(listen_descriptors().unwrap_or(0))).unwrap_or(0)
}

/// Writes the number of a process, old or new: an engine may look at any moment.
pub(super) fn write_pid_file(file: &Path, pid: i32) -> Result<(), OciError> {
    let name = file.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
    let beside = file.with_file_name(format!(".{name}"));
    std::fs::write(&beside, pid.to_string()).map_err(io("writing", &beside))?;
    std::fs::rename(&beside, file).map_err(io("writing", file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare(process: &Value, seccomp: Option<&Value>) -> Result<Prepared, OciError> {
        super::prepare(process, seccomp, Filters { folder: Path::new("/proc/none") })
    }

    fn filter() -> Value {
        json!({ "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["chroot"], "action": "SCMP_ACT_ERRNO" }] })
    }

    #[test]
    fn without_capabilities_there_are_none_and_false_is_left_out() {
        let process = prepare(&json!({ "noNewPrivileges": false, "args": ["a"] }), None).expect("ready");
        assert_eq!(process.document["capabilities"]["bounding"], json!([]));
        assert!(process.document.get("noNewPrivileges").is_none());
        assert!(!process.borrows_admin && process.filter.is_none());
    }

    #[test]
    fn a_filter_without_no_new_privileges_borrows_what_loading_it_takes() {
        let process = prepare(&json!({ "args": ["a"] }), Some(&filter())).expect("ready");
        assert!(process.borrows_admin && process.filter.is_some());
        assert_eq!(process.document["capabilities"]["effective"], json!(["CAP_SYS_ADMIN"]));
        assert_eq!(process.document["capabilities"]["bounding"], json!([]), "not for the program");
        let process = prepare(&json!({ "args": ["a"], "noNewPrivileges": true }), Some(&filter())).expect("ready");
        assert!(!process.borrows_admin);
    }

    #[test]
    fn the_last_variable_of_a_name_counts() {
        let process = prepare(&json!({ "env": ["A=1", "B=2", "A=3=4", "broken"] }), None).expect("ready");
        assert_eq!(process.env, [("B".to_owned(), "2".to_owned()), ("A".to_owned(), "3=4".to_owned())]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let refused = |process: Value, seccomp: Option<Value>| {
            prepare(&process, seccomp.as_ref()).expect_err("refused").to_string()
        };
        assert!(refused(json!({ "oomScoreAdj": 1001 }), None).starts_with("config.json: process.oomScoreAdj: "));
        let limits =
            |soft: u64, hard: u64| json!({ "rlimits": [{ "type": "RLIMIT_CORE", "soft": soft, "hard": hard }] });
        assert!(refused(limits(2, 1), None).contains("process.rlimits: RLIMIT_CORE: soft 2"));
        assert!(prepare(&limits(0, 0), None).is_ok());
        let broken = json!({ "defaultAction": "SCMP_ACT_X" });
        assert!(refused(json!({}), Some(broken)).starts_with("config.json: linux.seccomp: defaultAction"));
    }
}

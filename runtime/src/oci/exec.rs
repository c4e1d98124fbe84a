//! A command in a container of the OCI command line.

use super::create::{check_descriptors, check_terminal};
use super::error::{OciError, errno, io};
use super::listener;
use super::process::{self, Waits};
use super::state::{Home, Status, begin_of};
use crate::container::cgroup::entry;
use crate::container::filters::Filters;
use crate::container::launcher;
use crate::container::libcontainer::{self, Io, Launch, Making};
use crate::container::worker;
use crate::shim::{Failure, FailureKind, chain};
use nix::fcntl::OFlag;
use oci_spec::runtime::LinuxPersonalityDomain;
use serde::Deserialize;
use serde_json::{Value, json};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// What `exec` is told.
#[derive(Debug, Clone)]
pub struct Exec<'a> {
    /// Folder of all containers.
    pub root: &'a Path,
    /// Name.
    pub id: &'a str,
    /// What replaces the container's own process.
    pub change: Change,
    /// Where the terminal's master is sent.
    pub console_socket: Option<&'a Path>,
    /// Written when it runs.
    pub pid_file: Option<&'a Path>,
    /// Descriptors above 2 that it gets.
    pub preserve_fds: u32,
    /// Also in a container that is frozen.
    pub ignore_paused: bool,
    /// A cgroup below the container's.
    pub cgroup: Option<&'a str>,
}

/// What a command has of its own.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// The whole process, as in a configuration; everything else is left out then.
    pub process: Option<Value>,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Variables, `NAME=VALUE`, beside the container's.
    pub env: Vec<String>,
    /// Working folder.
    pub cwd: Option<String>,
    /// User and group.
    pub user: Option<(u32, Option<u32>)>,
    /// Groups beside.
    pub groups: Vec<u32>,
    /// Capabilities beside the container's.
    pub capabilities: Vec<String>,
    /// A terminal.
    pub terminal: bool,
    /// It can gain no privileges.
    pub no_new_privileges: bool,
    /// AppArmor profile.
    pub apparmor: Option<String>,
}

impl Change {
    /// The process of the command, from the container's. Pure.
    fn apply(&self, container: &Value) -> Value {
        if let Some(process) = &self.process {
            return process.clone();
        }
        let mut process = container.clone();
        process["args"] = json!(self.args);
        process["terminal"] = json!(self.terminal);
        if let Some(process) = process.as_object_mut() {
            process.remove("consoleSize");
        }
        let mut env: Vec<Value> = process["env"].as_array().cloned().unwrap_or_default();
        env.extend(self.env.iter().map(|it| json!(it)));
        process["env"] = json!(env);
        if let Some(cwd) = &self.cwd {
            process["cwd"] = json!(cwd);
        }
        if let Some((uid, gid)) = self.user {
            process["user"]["uid"] = json!(uid);
            if let Some(gid) = gid {
                process["user"]["gid"] = json!(gid);
            }
        }
        if !self.groups.is_empty() {
            let mut groups = process["user"]["additionalGids"].as_array().cloned().unwrap_or_default();
            groups.extend(self.groups.iter().map(|it| json!(it)));
            process["user"]["additionalGids"] = json!(groups);
        }
        for name in &self.capabilities {
            for set in ["bounding", "effective", "permitted"] {
                let mut names = process["capabilities"][set].as_array().cloned().unwrap_or_default();
                if !names.contains(&json!(name)) {
                    names.push(json!(name));
                }
                process["capabilities"][set] = json!(names);
            }
        }
        if self.no_new_privileges {
            process["noNewPrivileges"] = json!(true);
        }
        if let Some(profile) = &self.apparmor {
            process["apparmorProfile"] = json!(profile);
        }
        process
    }
}

/// Runs a command in a running container, and returns its process once it runs.
///
/// # Errors
/// What is refused or failed.
pub fn exec(order: &Exec<'_>) -> Result<i32, OciError> {
    check_descriptors(order.preserve_fds)?;
    let home = Home::of(order.root, order.id)?;
    let state = home.read()?;
    match state.status() {
        Status::Running | Status::Created => {}
        Status::Paused if order.ignore_paused => {}
        status => {
            return Err(OciError::WrongState { operation: "exec in", id: state.id, status: status.name() });
        }
    }
    let config = home.config()?;
    let document = order.change.apply(&config["process"]);
    let refused = |field: &str, reason: String| OciError::Refused { field: field.to_owned(), reason };
    // Of a file it may be anything.
    if process::typed(&document)?.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(refused("process.args", "names no program".to_owned()));
    }
    check_terminal(&document, order.console_socket)?;
    let filters = home.filters();
    let mut process = process::prepare(&document, config["linux"].get("seccomp"), Filters { folder: &filters })?;
    process.check_kernel()?;
    let typed = process.typed()?;
    let unsupported = launcher::unsupported_process(&typed);
    let place = entry::place_below(&state.cgroup, order.cgroup)?;
    let (report, report_write) = crate::shim::pipe().map_err(errno("making a pipe"))?;
    let (gate, gate_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(errno("making a pipe"))?;
    let heard = process.listener.as_ref().map(|_| listener::memory()).transpose()?;
    if let Some(heard) = &heard {
        process = process.with_byte(heard)?;
    }
    let at = Waits { report: report_write.as_raw_fd(), gate: Some(gate.as_raw_fd()), start: None };
    let launch = process.launch(order.preserve_fds, &at, Value::Null, Value::Null);
    let pid = match unsupported {
        None => {
            let io = Io::of(order.console_socket);
            let domain = config["linux"]["personality"].get("domain").cloned();
            let personality = domain.and_then(|domain| LinuxPersonalityDomain::deserialize(domain).ok());
            let command =
                launcher::Command { target: state.pid, process: &typed, personality, launch: &launch, io };
            launcher::exec(&place, &command)?
        }
        Some(_) if home.folder.join("runtime").exists() => {
            place.in_child(|| worker(order, &home, &process, launch))?
        }
        Some(what) => {
            let reason = format!("{what} is for containers that have one themselves");
            return Err(refused("process", reason));
        }
    };
    if begin_of(state.pid) != Some(state.begun) {
        // Its number was somebody else's when the namespaces were opened.
        worker::end(pid);
        return Err(OciError::Usage("container not running".to_owned()));
    }
    worker::set_oom_score(pid, process.oom_score_adj).inspect_err(|_| worker::end(pid))?;
    drop((gate, gate_write, report_write));
    if let (Some(listener), Some(heard)) = (&process.listener, &heard) {
        let handed = listener.hand_over(pid, heard, &report, &state.document(state.status()));
        handed.inspect_err(|_| worker::end(pid))?;
    }
    worker::wait_until_running(&report)?;
    if process.filter.is_some() {
        worker::must_be_filtered(pid)?;
    }
    if let Some(file) = order.pid_file {
        process::write_pid_file(file, pid)?;
    }
    Ok(pid)
}

/// All other shapes, through libcontainer.
fn worker(order: &Exec<'_>, home: &Home, process: &process::Prepared, launch: Launch) -> Result<i32, Failure> {
    let failed = |error: OciError| Failure::new(FailureKind::Internal, error.to_string());
    let file = home.folder.join(format!("exec-{}.json", std::process::id()));
    std::fs::write(&file, process.document.to_string()).map_err(io("writing", &file)).map_err(failed)?;
    let _remove = Removed(file.clone());
    worker::private_mounts()?;
    entry::hide().map_err(io("hiding", Path::new("/sys/fs/cgroup"))).map_err(failed)?;
    let making = Making {
        id: order.id,
        root: &home.folder.join("runtime"),
        bundle: &file,
        preserve_fds: order.preserve_fds as i32,
        no_pivot: false,
    };
    libcontainer::exec(&making, launch, Io::of(order.console_socket))
        .map_err(|error| Failure::new(FailureKind::Internal, chain(&error)))
}

/// A file that is removed in the end, whatever it is.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_what_the_container_has_but_for_what_is_named() {
        let container = json!({
            "terminal": true, "args": ["sh"], "env": ["A=1"], "cwd": "/", "user": {"uid": 5, "gid": 6},
            "capabilities": {"bounding": ["CAP_KILL"]}, "consoleSize": {"height": 1, "width": 2}, "noNewPrivileges": true,
        });
        let change = Change {
            args: vec!["ls".to_owned()],
            env: vec!["B=2".to_owned()],
            user: Some((7, None)),
            groups: vec![9],
            capabilities: vec!["CAP_CHOWN".to_owned()],
            ..Change::default()
        };
        let process = change.apply(&container);
        assert_eq!(
            process,
            json!({
                "terminal": false, "args": ["ls"], "env": ["A=1", "B=2"], "cwd": "/",
                "user": {"uid": 7, "gid": 6, "additionalGids": [9]}, "noNewPrivileges": true,
                "capabilities": {"bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]},
            })
        );
        let whole = Change { process: Some(json!({"args": ["x"]})), ..change };
        assert_eq!(whole.apply(&container), json!({"args": ["x"]}));
    }
}

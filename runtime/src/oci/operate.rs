//! What is done with a container that is there: let it run, signal, freeze, change its limits, delete.

use super::create::{REPORT, START};
use super::error::{OciError, errno, io};
use super::hooks::{self, Moment};
use super::resources;
use super::state::{Home, State, Status};
use super::systemd;
use crate::container::cgroup::{self, entry};
use crate::container::worker;
use crate::shim::{Failure, FailureKind};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Milliseconds that a killed process is waited for, as in runc: one in an uninterruptible sleep can take long, and then
/// deleting fails.
const DEATH_LIMIT_MS: u16 = 10_000;

fn wrong(operation: &'static str, state: &State, status: Status) -> OciError {
    OciError::WrongState { operation, id: state.id.clone(), status: status.name() }
}

/// The record of a container.
///
/// # Errors
/// When there is none.
pub fn state(root: &Path, id: &str) -> Result<State, OciError> {
    Home::of(root, id)?.read()
}

/// Lets the program of a container run, and returns when it does.
///
/// # Errors
/// When it is not waiting for that, or the program cannot be run.
pub fn start(root: &Path, id: &str) -> Result<(), OciError> {
    let home = Home::of(root, id)?;
    let _lock = home.lock()?;
    let state = home.read()?;
    match state.status() {
        Status::Created => {}
        status => return Err(wrong("start", &state, status)),
    }
    if !state.startable {
        return Err(OciError::Refused { field: "process".to_owned(), reason: "is missing".to_owned() });
    }
    let open = |name: &str, flags: OFlag| {
        nix::fcntl::open(&home.folder.join(name), flags | OFlag::O_CLOEXEC, Mode::empty())
            .map(sys::own)
            .map_err(errno(format!("opening {name}")))
    };
    // Reading without waiting for a writer, then waiting for its end.
    let report = open(REPORT, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
    let start: OwnedFd = open(START, OFlag::O_WRONLY | OFlag::O_NONBLOCK)?;
    nix::unistd::write(&start, &[0]).map_err(errno("letting the program run"))?;
    drop(start);
    worker::wait_until_running(&report)?;
    if state.filtered {
        worker::must_be_filtered(state.pid)?;
    }
    home.write(&State { started: true, ..state.clone() })?;
    // Version 1.2 wants a warning; later ones, and runc since ever, that the container is stopped.
    let hooked = hooks::run(&state.hooks, Moment::Poststart, &state.document(Status::Running), &[]);
    hooked.inspect_err(|_| worker::end(state.pid))
}

/// Sends a signal to the container's process, or with `all` to each of its cgroup.
///
/// # Errors
/// When it has ended.
pub fn signal(root: &Path, id: &str, signal: i32, all: bool) -> Result<(), OciError> {
    let state = Home::of(root, id)?.read()?;
    let status = state.status();
    if all {
        for pid in cgroup::all_processes(&state.cgroup) {
            let _ = send(pid, signal);
        }
        return Ok(());
    }
    if matches!(status, Status::Stopped | Status::Creating) {
        return Err(OciError::Usage("container not running".to_owned()));
    }
    send(state.pid, signal).map_err(errno(format!("sending signal {signal}")))?;
    // A frozen process would not hear it.
    if status == Status::Paused && signal == libc::SIGKILL {
        resume_cgroup(&state.cgroup)?;
    }
    Ok(())
}

/// By a descriptor, where there is one: a number may belong to somebody else by now.
fn send(pid: i32, signal: i32) -> Result<(), Errno> {
    let by_number = || Errno::result(sys::kill_number(pid, signal)).map(drop);
    match sys::open_process(pid) {
        Ok(process) => match sys::signal_process(process.as_fd(), signal) {
            Err(Errno::ENOSYS) => by_number(),
            sent => sent,
        },
        Err(Errno::ENOSYS) => by_number(),
        Err(errno) => Err(errno),
    }
}

/// Deletes a container that has ended, or waits for `start`; with `force` any.
///
/// # Errors
/// When it runs, or cannot die.
pub fn delete(root: &Path, id: &str, force: bool) -> Result<(), OciError> {
    let home = Home::of(root, id)?;
    let _lock = match home.lock() {
        Err(OciError::DoesNotExist(_)) if force => return Ok(()),
        lock => lock?,
    };
    let state = match home.read() {
        // A `create` that died before it wrote anything.
        Err(OciError::DoesNotExist(_) | OciError::Unreadable { .. }) if force => return home.remove(),
        state => state?,
    };
    match state.status() {
        Status::Stopped => {}
        Status::Created | Status::Creating => end(&state)?,
        _ if force => end(&state)?,
        status => return Err(wrong("delete", &state, status)),
    }
    entry::remove(&state.cgroup)?;
    home.remove()?;
    hooks::run_all(&state.hooks, Moment::Poststop, &state.document(Status::Stopped));
    if let Some(scope) = &state.scope {
        systemd::wait_until_gone(scope);
    }
    Ok(())
}

/// Kills the process and waits until it is gone.
fn end(state: &State) -> Result<(), OciError> {
    if state.status() == Status::Paused {
        resume_cgroup(&state.cgroup)?;
    }
    if state.pid == 0 || state.status() == Status::Stopped {
        return Ok(());
    }
    let Ok(process) = sys::open_process(state.pid) else {
        // Before Linux 5.3; the removal of the cgroup waits.
        let _ = kill(Pid::from_raw(state.pid), Signal::SIGKILL);
        return Ok(());
    };
    let _ = sys::signal_process(process.as_fd(), libc::SIGKILL);
    match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], PollTimeout::from(DEATH_LIMIT_MS)) {
        Ok(0) => Err(Failure::new(FailureKind::Internal, "its process does not end, though it was killed").into()),
        _ => Ok(()),
    }
}

/// Freezes the processes of a container.
///
/// # Errors
/// When it does not run, or there is no freezer.
pub fn pause(root: &Path, id: &str) -> Result<(), OciError> {
    let state = Home::of(root, id)?.read()?;
    match state.status() {
        Status::Running | Status::Created => {
            cgroup::freeze(&state.cgroup, true).map_err(io("freezing", Path::new(&state.cgroup)))
        }
        status => Err(wrong("pause", &state, status)),
    }
}

/// Lets the processes of a container go on.
///
/// # Errors
/// When it is not paused.
pub fn resume(root: &Path, id: &str) -> Result<(), OciError> {
    let state = Home::of(root, id)?.read()?;
    match state.status() {
        Status::Paused => resume_cgroup(&state.cgroup),
        status => Err(wrong("resume", &state, status)),
    }
}

fn resume_cgroup(path: &str) -> Result<(), OciError> {
    cgroup::freeze(path, false).map_err(io("unfreezing", Path::new(path)))
}

/// Changes the limits of a container; what is not named stays.
///
/// # Errors
/// The field that is refused, and why.
pub fn update(root: &Path, id: &str, resources: &LinuxResources) -> Result<(), OciError> {
    let home = Home::of(root, id)?;
    let _lock = home.lock()?;
    let state = home.read()?;
    if matches!(state.status(), Status::Stopped | Status::Creating) {
        return Err(wrong("update", &state, state.status()));
    }
    if resources.memory().as_ref().is_some_and(|it| it.check_before_update() == Some(true)) {
        check_usage(&state.cgroup, resources)?;
    }
    let devices = match resources.devices().as_deref() {
        None | Some([]) => None,
        Some(rules) => Some(resources::device_access(rules)?),
    };
    let tasks = resources::tasks(resources);
    raise_swap_first(&state.cgroup, resources);
    Ok(entry::change(&state.cgroup, resources, tasks.as_ref(), devices.as_ref())?)
}

/// `checkBeforeUpdate`: a limit below what is used would kill.
fn check_usage(cgroup: &str, resources: &LinuxResources) -> Result<(), OciError> {
    let file = if cgroup::is_v2() { "memory.current" } else { "memory.usage_in_bytes" };
    let path = cgroup::controller(cgroup, "memory").join(file);
    let used: i64 =
        std::fs::read_to_string(&path).map_err(io("reading", &path))?.trim().parse().unwrap_or(i64::MAX);
    let limit = resources.memory().as_ref().and_then(|memory| memory.limit()).unwrap_or(-1);
    match limit > 0 && limit < used {
        true => Err(OciError::Refused {
            field: "linux.resources.memory.limit".to_owned(),
            reason: format!("{limit} is less than the {used} bytes that are used (checkBeforeUpdate)"),
        }),
        false => Ok(()),
    }
}

/// On v1 the limit on memory and swap together is never below that on memory: one that grows is set first.
fn raise_swap_first(cgroup: &str, resources: &LinuxResources) {
    let swap = resources.memory().as_ref().and_then(|memory| memory.swap()).filter(|swap| *swap != 0);
    if let (false, Some(swap)) = (cgroup::is_v2(), swap) {
        let file = cgroup::controller(cgroup, "memory").join("memory.memsw.limit_in_bytes");
        // When it shrinks this is refused, and comes second.
        let _ = std::fs::write(file, swap.to_string());
    }
}

/// Processes of a container.
///
/// # Errors
/// When there is no such container.
pub fn processes(root: &Path, id: &str) -> Result<Vec<i32>, OciError> {
    let mut pids = cgroup::all_processes(&Home::of(root, id)?.read()?.cgroup);
    pids.sort_unstable();
    Ok(pids)
}

/// Reaps children of this process that have ended, orphans of the container among them; the exit code, as a shell has
/// it, when `pid` is one of them, 255 when it is no child. With `hang` this waits for it, else it can be `None`.
pub fn reap(pid: i32, hang: bool) -> Option<i32> {
    loop {
        match waitpid(None, (!hang).then_some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(ended, code)) if ended.as_raw() == pid => return Some(code),
            Ok(WaitStatus::Signaled(ended, signal, _)) if ended.as_raw() == pid => {
                return Some(128 + signal as i32);
            }
            Ok(WaitStatus::StillAlive) => return None,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return Some(255),
        }
    }
}

/// Takes what the container leaves as children of this process, so that its end can be waited for.
///
/// # Errors
/// On kernels before 3.4.
pub fn take_orphans() -> Result<(), OciError> {
    sys::become_subreaper().map_err(errno("becoming the container's parent"))
}

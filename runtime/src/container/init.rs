//! A reaper of ours inside the container's PID namespace: PID 1 of a service with `init: true`, and the parent of
//! every health check.
//!
//! It is a fork of the worker that never executes another program: the container needs no file of ours, and there is
//! no executable of ours that it could open (`/proc/PID/exe` is closed to it: the process is not dumpable).

use super::program::{self, NotRunnable};
use crate::sys;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Runs `args` as a child, hands signals on to it, reaps everything, and leaves with its exit code once no child is
/// left. `report` is told when the program cannot be run.
pub fn run(args: &[String], env: &[(String, String)], report: impl Fn(&NotRunnable)) -> ! {
    // A name that tells people who it is; without it, it bears the worker's.
    let _ = nix::sys::prctl::set_name(c"coracle-init");
    // Fails only on kernels before 3.4; then orphans go to the namespace's own init, as without us.
    let _ = sys::become_subreaper();
    let signals = SigSet::all();
    // Blocked before the fork, so that none is lost between fork and wait.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&signals), None);
    let child = sys::fork_worker(|| {
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
        let failure = program::run(args, env);
        report(&failure);
        failure.code
    });
    let Ok(child) = child else { sys::exit_now(126) };
    sys::close_descriptors_from(0);
    let mut code = None;
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {}
            Ok(signal) if code.is_none() => drop(kill(child, signal)),
            _ => {}
        }
        if reap(child, &mut code) {
            sys::exit_now(code.unwrap_or(255));
        }
    }
}

/// Reaps what has ended; true when no child is left.
fn reap(child: Pid, code: &mut Option<i32>) -> bool {
    loop {
        let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => (pid, status),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(WaitStatus::StillAlive) => break,
            Err(_) => return true,
            Ok(_) => continue,
        };
        if pid == child {
            *code = Some(status);
        }
    }
    // PID 1 ends the namespace: what the service left running ends with it.
    code.is_some() && std::process::id() == 1
}

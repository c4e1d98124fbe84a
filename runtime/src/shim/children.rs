//! Who this shim's children are, and what became of those that ended.
//!
//! A container's init may end before the worker that made it has told its process id. Such exits are kept,
//! bounded, as long as any worker lives: then they are claimed or belong to nobody.

use super::output::{boottime_now_ns, unix_now_ns};
use super::protocol::ExitStatus;
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::HashMap;

/// Unclaimed exits kept. Each worker leaves two at most (libcontainer's intermediate process and the init), and
/// [`super::server::MAX_WORKERS`] workers run at once.
const MAX_UNCLAIMED: usize = 256;

/// What a known child is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A worker, by its number.
    Worker(u64),
    /// A container's main process.
    Main(String),
    /// A command in a container.
    Exec(u64),
}

/// The table of children.
#[derive(Debug, Default)]
pub struct Children {
    known: HashMap<Pid, Role>,
    unclaimed: HashMap<Pid, ExitStatus>,
}

impl Children {
    /// Remembers what `pid` is. Returns its exit when it has ended already.
    pub fn claim(&mut self, pid: Pid, role: Role) -> Option<ExitStatus> {
        if let Some(exit) = self.unclaimed.remove(&pid) {
            return Some(exit);
        }
        self.known.insert(pid, role);
        None
    }

    /// Reaps every child that ended, and returns the known ones.
    pub fn reap(&mut self) -> Vec<(Role, ExitStatus)> {
        let mut ended = Vec::new();
        loop {
            let (pid, code, signal) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code, None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32, Some(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return ended,
                Ok(_) | Err(_) => continue,
            };
            let exit =
                ExitStatus { code, signal, ended_boottime_ns: boottime_now_ns(), ended_unix_ns: unix_now_ns() };
            match self.known.remove(&pid) {
                Some(role) => ended.push((role, exit)),
                None if self.has_worker() && self.unclaimed.len() < MAX_UNCLAIMED => {
                    self.unclaimed.insert(pid, exit);
                }
                None => {}
            }
        }
    }

    /// Forgets unclaimed exits when no worker is left that could claim them.
    pub fn settle(&mut self) {
        if !self.has_worker() {
            self.unclaimed.clear();
        }
    }

    fn has_worker(&self) -> bool {
        self.known.values().any(|role| matches!(role, Role::Worker(_)))
    }
}

//! Who this shim's children are, and what became of those that ended.
//!
//! A container's init may end before the worker that made it has told its process id. Such exits are kept,
//! bounded, as long as any worker's answer is awaited: then they are claimed or belong to nobody.

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

    /// Reaps every child that ended, and returns the known ones. `awaited`: some worker has not answered yet; that it
    /// was reaped itself says nothing, its answer may still lie in the socket.
    pub fn reap(&mut self, awaited: bool) -> Vec<(Role, ExitStatus)> {
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
                None if awaited && self.unclaimed.len() < MAX_UNCLAIMED => {
                    self.unclaimed.insert(pid, exit);
                }
                None => {}
            }
        }
    }

    /// Forgets unclaimed exits: no worker is left that could claim them.
    pub fn forget_unclaimed(&mut self) {
        self.unclaimed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Forks a child that ends with `code`, and waits until it is a zombie.
    fn ended(code: i32) -> Pid {
        let child = std::process::Command::new("sh").args(["-c", &format!("exit {code}")]).spawn();
        let pid = Pid::from_raw(child.expect("a child").id() as i32);
        let stat = format!("/proc/{pid}/stat");
        while !std::fs::read_to_string(&stat).is_ok_and(|it| it.contains(") Z ")) {
            std::thread::yield_now();
        }
        pid
    }

    #[test]
    fn a_command_that_ends_with_its_worker_is_not_lost() {
        // The only test of this crate that has children: `reap` takes all of the process.
        let (worker, command) = (ended(0), ended(7));
        let mut children = Children::default();
        assert!(children.claim(worker, Role::Worker(1)).is_none());
        assert_eq!(children.reap(true).len(), 1);
        let exit = children.claim(command, Role::Exec(2)).expect("kept until its worker answered");
        assert_eq!(exit.code, 7);
    }
}

//! Being in a container's cgroups from the first instruction on.
//!
//! Moving a process takes the kernel's lock on all forks, which costs a grace period of RCU (10 to 20 ms) when it was
//! not held just before. A single thread that moves itself on v1 does not (`cgroup_procs_write_start` in
//! kernel/cgroup/cgroup.c); on v2 nothing but being born there avoids it (`CLONE_INTO_CGROUP`, Linux 5.7).

use super::entry::{CgroupError, system};
use crate::shim::{Failure, FailureKind};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Bytes of what a worker says.
const MAX_ANSWER: u64 = 64 * 1024;

/// Where a container's processes are. All is open: soon the hierarchies are hidden.
#[derive(Debug, Default)]
pub struct Place {
    /// The folder in the unified hierarchy.
    unified: Option<File>,
    /// The files that take who writes to them in: `cgroup.procs` there, `tasks` in those of v1.
    files: Vec<(PathBuf, File)>,
}

/// What a worker says in the end.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Made(i32),
    Failed(Failure),
}

impl Place {
    /// The cgroup of the unified hierarchy, or those of v1.
    ///
    /// # Errors
    /// When one is not there.
    pub fn open(unified: Option<&Path>, v1: &[PathBuf]) -> Result<Self, CgroupError> {
        let folder = unified.map(|path| File::open(path).map_err(system(path))).transpose()?;
        let files = unified.map(|path| path.join("cgroup.procs"));
        let files = files.into_iter().chain(v1.iter().map(|path| path.join("tasks"))).map(|path| {
            let file = File::options().write(true).open(&path).map_err(system(&path))?;
            Ok((path, file))
        });
        Ok(Self { files: files.collect::<Result<_, CgroupError>>()?, unified: folder })
    }

    /// The folder in the unified hierarchy, where there is one.
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// Does `work` there, in a child.
    ///
    /// # Errors
    /// What `work` says, or why nobody could go there.
    pub fn in_child(&self, work: impl FnOnce() -> Result<i32, Failure>) -> Result<i32, Failure> {
        let failed = |what: &'static str| {
            move |errno: Errno| Failure::new(FailureKind::Internal, format!("{what}: {}", errno.desc()))
        };
        let (answer, answer_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed("making a pipe"))?;
        let act = |born_there: bool| {
            // Nobody would know of what it makes.
            let _ = nix::sys::prctl::set_pdeathsig(Some(Signal::SIGKILL));
            let entered = if born_there { Ok(()) } else { self.enter().map_err(Failure::from) };
            let said = match entered.and_then(|()| work()) {
                Ok(pid) => Answer::Made(pid),
                Err(failure) => Answer::Failed(failure),
            };
            let text = serde_json::to_vec(&said).unwrap_or_default();
            i32::from(nix::unistd::write(&answer_write, &text) != Ok(text.len()))
        };
        let child = self.fork(act).map_err(failed("forking a worker"))?;
        drop(answer_write);
        // The container holds the pipe's other end until its program runs, so the end is the worker's.
        while waitpid(child, None) == Err(Errno::EINTR) {}
        fcntl(answer.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(failed("reading an answer"))?;
        let mut text = Vec::new();
        // Nothing more is said: the end looks like an empty pipe.
        let _ = File::from(answer).take(MAX_ANSWER).read_to_end(&mut text);
        match serde_json::from_slice(&text) {
            Ok(Answer::Made(pid)) => Ok(pid),
            Ok(Answer::Failed(failure)) => Err(failure),
            Err(_) => Err(Failure::new(FailureKind::Internal, "the worker ended without a word")),
        }
    }

    fn fork(&self, act: impl FnOnce(bool) -> i32) -> Result<Pid, Errno> {
        let Some(folder) = &self.unified else {
            return sys::fork_worker(|| act(false));
        };
        let mut act = Some(act);
        match sys::clone_process(0, Some(folder.as_fd()), || act.take().map_or(1, |act| act(true))) {
            // Before Linux 5.7, or seccomp's answer to clone3(2) in a container of another engine.
            Err(Errno::ENOSYS | Errno::EINVAL | Errno::E2BIG | Errno::EPERM) => {
                sys::fork_worker(|| act.take().map_or(1, |act| act(false)))
            }
            forked => forked,
        }
    }

    /// 0 is whoever writes it.
    fn enter(&self) -> Result<(), CgroupError> {
        let enter = |(path, file): &(PathBuf, File)| (&mut &*file).write_all(b"0").map_err(system(path));
        self.files.iter().try_for_each(enter)
    }
}

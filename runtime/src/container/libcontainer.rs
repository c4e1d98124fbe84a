//! The only file that names libcontainer: create and start, run a command, delete.
//!
//! Called from workers of the shim alone, never from a process with threads: libcontainer clones and then runs
//! ordinary code. Its init lands as a child of the shim (`as_sibling`).

use super::init;
use super::program::{self, NotRunnable};
use crate::seccomp::Instruction;
use crate::sys;
use caps::{CapSet, Capability};
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::Spec;
use std::collections::HashMap;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// Descriptors for a process; a terminal replaces all three.
#[derive(Debug)]
pub struct Stdio {
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// How the process gets its input and output.
#[derive(Debug)]
pub enum Io {
    /// Three descriptors.
    Stdio(Stdio),
    /// A terminal, whose master is sent to this socket.
    Terminal(PathBuf),
}

/// What runs in init just before the program.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Variables in order.
    pub env: Vec<(String, String)>,
    /// Put a reaper of ours between the namespace and the program.
    pub reaper: bool,
    /// Where a failure is told; closed by the kernel when the program runs.
    pub report: RawFd,
    /// The program runs when a byte, or the end, comes from here.
    pub gate: Option<RawFd>,
    /// The system call filter; `None`: every call.
    pub filter: Option<Vec<Instruction>>,
    /// `CAP_SYS_ADMIN` is there for the filter alone.
    pub borrows_admin: bool,
}

impl Executor for Launch {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let args = spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default();
        let report = |failure: &NotRunnable| self.tell(failure);
        if let Some(gate) = self.gate {
            // libcontainer waits for the descriptors of a command to close before it returns to the worker, and the
            // worker opens the gate after that.
            close_all_but(&[self.report, gate]);
            let _ = nix::unistd::read(gate, &mut [0]);
        }
        if let Err(reason) = self.confine() {
            let failure = NotRunnable { code: 126, reason };
            report(&failure);
            sys::exit_now(failure.code)
        }
        if self.reaper {
            init::run(&args, &self.env, report);
        }
        let failure = program::run(&args, &self.env);
        report(&failure);
        sys::exit_now(failure.code)
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        // `exec` finds the program as the container will see it; libcontainer's own check is stricter than the kernel.
        Ok(())
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // `exec` passes the environment itself, in order.
        Ok(())
    }
}

impl Launch {
    /// The last thing before the program, and before the reaper, which stays.
    fn confine(&self) -> Result<(), String> {
        let Some(filter) = &self.filter else { return Ok(()) };
        sys::load_filter(filter).map_err(|errno| {
            format!("the kernel does not take the system call filter (CONFIG_SECCOMP_FILTER), so it does not run: {errno}")
        })?;
        if self.borrows_admin {
            for set in [CapSet::Effective, CapSet::Permitted] {
                caps::drop(None, set, Capability::CAP_SYS_ADMIN)
                    .map_err(|error| format!("dropping CAP_SYS_ADMIN: {error}"))?;
            }
        }
        Ok(())
    }

    fn tell(&self, failure: &NotRunnable) {
        let line = serde_json::to_vec(failure).unwrap_or_default();
        // Nobody is left to tell when this fails; the exit code still says it.
        let _ = nix::unistd::write(sys::borrow(self.report), &line);
    }
}

fn close_all_but(kept: &[RawFd]) {
    let mut sorted = kept.to_vec();
    sorted.sort_unstable();
    let mut first = 3;
    for fd in sorted {
        sys::close_descriptors_between(first, fd - 1);
        first = fd + 1;
    }
    sys::close_descriptors_from(first);
}

/// Creates the container of `bundle` and returns its process id; the program waits for [`start`].
///
/// # Errors
/// What libcontainer reports; it has cleaned up then, but for processes that the shim reaps.
pub fn create(id: &str, root: &Path, bundle: &Path, launch: Launch, io: Io) -> Result<Created, LibcontainerError> {
    let builder = with_io(ContainerBuilder::new(id.to_owned(), SyscallType::default()), io)
        .with_root_path(root)?
        .with_executor(launch)
        .validate_id()?;
    let container = builder
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .with_no_pivot(false)
        .build()?;
    let pid = container.pid().map_or(0, |pid| pid.as_raw());
    Ok(Created { container, pid })
}

/// A container whose program waits.
pub struct Created {
    container: Container,
    /// Process id of its init on the host.
    pub pid: i32,
}

impl Created {
    /// Lets the program run.
    ///
    /// # Errors
    /// When init has died meanwhile.
    pub fn start(mut self) -> Result<(), LibcontainerError> {
        self.container.start()
    }
}

/// Runs the process described by the file `process` in a running container, and returns its process id.
///
/// # Errors
/// What libcontainer reports.
pub fn exec(id: &str, root: &Path, process: &Path, launch: Launch, io: Io) -> Result<i32, LibcontainerError> {
    let builder = with_io(ContainerBuilder::new(id.to_owned(), SyscallType::default()), io)
        .with_root_path(root)?
        .with_executor(launch)
        .validate_id()?;
    let pid = builder.as_tenant().with_process(Some(process)).with_detach(true).as_sibling(true).build()?;
    Ok(pid.as_raw())
}

fn with_io(builder: ContainerBuilder, io: Io) -> ContainerBuilder {
    match io {
        Io::Stdio(stdio) => builder.with_stdin(stdio.stdin).with_stdout(stdio.stdout).with_stderr(stdio.stderr),
        Io::Terminal(socket) => builder.with_console_socket(Some(socket)),
    }
}

/// Removes what libcontainer keeps of an ended container: its state.
///
/// # Errors
/// As the file system says.
pub fn forget(id: &str, root: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(root.join(id)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

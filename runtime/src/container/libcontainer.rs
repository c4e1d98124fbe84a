//! The only file that names libcontainer, for what the launcher does not know; and what runs last, whoever made the process.
//!
//! Called from a worker alone, never from a process with threads: libcontainer clones and then runs ordinary code.

use super::init;
use super::program::{self, NotRunnable};
use crate::oci::hooks::{self, Moment};
use crate::seccomp::Filter;
use crate::sys::{self, SharedByte};
use caps::{CapSet, Capability};
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::Spec;
use serde_json::Value;
use std::collections::HashMap;
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
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
    /// Those of this process.
    Inherited,
}

impl Io {
    /// A terminal for who listens for one, else what this process has.
    pub fn of(console_socket: Option<&Path>) -> Self {
        match console_socket {
            Some(socket) => Self::Terminal(std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned())),
            None => Self::Inherited,
        }
    }
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
    pub filter: Option<Filter>,
    /// Set when somebody has taken the descriptor of a filter that leaves calls to them.
    pub heard: Option<SharedByte>,
    /// `CAP_SYS_ADMIN` is there for the filter alone.
    pub borrows_admin: bool,
    /// What a container of the OCI command line does besides.
    pub waiting: Option<Waiting>,
}

/// What the first process of a container of the OCI command line does besides.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// The program runs when a byte comes from here.
    pub start: Option<RawFd>,
    /// Descriptors above 2 that the program gets.
    pub preserved: i32,
    /// Rows and columns of the terminal.
    pub console: Option<(u16, u16)>,
    /// The configuration, with the hooks that run inside.
    pub config: Value,
    /// The container's state, for them.
    pub state: Value,
}

impl Waiting {
    /// Waits for `start`, and runs the hooks that come before the program.
    fn wait(&self, launch: &Launch) -> Result<(), String> {
        if let Some((rows, columns)) = self.console {
            // Descriptor 0 is the terminal then; without one there is nothing to size.
            let _ = crate::terminal::set_size(sys::borrow(0), rows, columns);
        }
        let Some(start) = self.start else { return Ok(()) };
        wait_for_byte(start);
        let hooks = hooks::run(&self.config, Moment::StartContainer, &self.state, &launch.env);
        hooks.map_err(|error| error.to_string())
    }
}

/// Looks at a byte in memory: some ten seconds, ten thousand times what handing a descriptor over takes.
const MOST_LOOKS: u64 = 1 << 30;

/// Waits for a byte, or for the end.
fn wait_for_byte(fd: RawFd) {
    while nix::unistd::read(fd, &mut [0]) == Err(nix::errno::Errno::EINTR) {}
}

impl Executor for Launch {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let args = spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default();
        self.go(&args)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let args = spec.process().as_ref().and_then(|process| process.args().as_deref()).unwrap_or_default();
        self.check(args).map_err(ExecutorValidationError::ArgValidationError)
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // `exec` passes the environment itself, in order.
        Ok(())
    }
}

impl Launch {
    /// Waits where it is to wait, and becomes the program.
    pub fn go(&self, args: &[String]) -> ! {
        let report = |failure: &NotRunnable| self.tell(failure);
        // libcontainer waits for the descriptors of a command to close before it returns to the worker, and the worker
        // opens the gate after that.
        let preserved = self.waiting.as_ref().map_or(0, |waiting| waiting.preserved);
        let start = self.waiting.as_ref().and_then(|waiting| waiting.start);
        let kept = (3..3 + preserved).chain([self.report]).chain(self.gate).chain(start);
        close_all_but(&kept.collect::<Vec<RawFd>>());
        if let Some(gate) = self.gate {
            wait_for_byte(gate);
        }
        // Who answers for calls wants to know of the container before it is started, as with runc.
        let early = self.filter.as_ref().is_some_and(|filter| filter.notify);
        let wait = || self.waiting.as_ref().map_or(Ok(()), |waiting| waiting.wait(self));
        let ready =
            if early { self.confine().and_then(|()| wait()) } else { wait().and_then(|()| self.confine()) };
        if let Err(reason) = ready {
            report(&NotRunnable { code: 126, reason });
            sys::exit_now(126)
        }
        if self.reaper {
            init::run(args, &self.env, report);
        }
        let failure = program::run(args, &self.env);
        report(&failure);
        sys::exit_now(failure.code)
    }

    /// Engines want to know at `create` already that there is no program, in the words of runc; the agent is told by
    /// the program's start, as the container will see it.
    ///
    /// # Errors
    /// That there is no program, or that it may not be run.
    pub fn check(&self, args: &[String]) -> Result<(), String> {
        match self.waiting {
            // Nothing will be started in it.
            Some(_) if args.is_empty() => Ok(()),
            Some(_) => program::find(args, &self.env).map_err(|it| it.reason),
            None => Ok(()),
        }
    }

    /// The last thing before the program, and before the reaper, which stays; before the wait for the start when somebody
    /// answers for calls.
    fn confine(&self) -> Result<(), String> {
        let Some(filter) = &self.filter else { return Ok(()) };
        let listener = sys::load_filter(filter).map_err(|errno| {
            format!("the kernel does not take the system call filter (CONFIG_SECCOMP_FILTER), so it does not run: {errno}")
        })?;
        if let Some(listener) = listener {
            // No system call from here on, until somebody answers. The kernel closes it when the program runs.
            let _ = listener.into_raw_fd();
            self.wait_until_heard()?;
        }
        if self.borrows_admin {
            for set in [CapSet::Effective, CapSet::Permitted] {
                caps::drop(None, set, Capability::CAP_SYS_ADMIN)
                    .map_err(|error| format!("dropping CAP_SYS_ADMIN: {error}"))?;
            }
        }
        Ok(())
    }

    /// Looks at memory alone: every call may be one that waits for an answer.
    fn wait_until_heard(&self) -> Result<(), String> {
        let heard = self.heard.ok_or("nobody listens for the calls that its filter leaves to them")?;
        for _ in 0..MOST_LOOKS {
            if heard.is_set() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        Err("nobody took the descriptor of its system call filter".to_owned())
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

/// What is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Making<'a> {
    /// The container.
    pub id: &'a str,
    /// libcontainer's own folder.
    pub root: &'a Path,
    /// The bundle's folder; for a command the file that describes its process.
    pub bundle: &'a Path,
    /// Descriptors above 2 that the program gets.
    pub preserve_fds: i32,
    /// Only change the root (chroot(2)).
    pub no_pivot: bool,
}

/// Creates the container of `bundle` and returns its process id; the program waits for [`start`].
///
/// # Errors
/// What libcontainer reports; it has cleaned up then, but for processes that the shim reaps.
pub fn create(making: &Making<'_>, launch: Launch, io: Io) -> Result<Created, LibcontainerError> {
    let builder = with_io(ContainerBuilder::new(making.id.to_owned(), SyscallType::default()), io)
        .with_root_path(making.root)?
        .with_executor(launch)
        .with_preserved_fds(making.preserve_fds)
        .validate_id()?;
    let container = builder
        .as_init(making.bundle)
        .with_systemd(false)
        .with_detach(true)
        .with_no_pivot(making.no_pivot)
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

/// Runs the process described by a file in a running container, and returns its process id.
///
/// # Errors
/// What libcontainer reports.
pub fn exec(making: &Making<'_>, launch: Launch, io: Io) -> Result<i32, LibcontainerError> {
    let builder = with_io(ContainerBuilder::new(making.id.to_owned(), SyscallType::default()), io)
        .with_root_path(making.root)?
        .with_executor(launch)
        .with_preserved_fds(making.preserve_fds)
        .validate_id()?;
    let tenant = builder.as_tenant().with_process(Some(making.bundle)).with_ignore_paused(true);
    let pid = tenant.with_detach(true).build()?;
    Ok(pid.as_raw())
}

fn with_io(builder: ContainerBuilder, io: Io) -> ContainerBuilder {
    match io {
        Io::Stdio(stdio) => builder.with_stdin(stdio.stdin).with_stdout(stdio.stdout).with_stderr(stdio.stderr),
        Io::Terminal(socket) => builder.with_console_socket(Some(socket)),
        Io::Inherited => builder,
    }
}

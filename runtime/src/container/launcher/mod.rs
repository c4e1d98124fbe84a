//! Our own way to make a container's process, for configurations of the usual shape: one clone with all namespaces,
//! born in its cgroup, and some seventy system calls; libcontainer takes thousands (`docs/decisions/0002-launcher.md`).
//!
//! ```text
//! caller ──clone3(INTO_CGROUP | NEW…)──> init: mounts, devices, root, privileges ──> Launch::exec
//!   └── hooks, while init waits ──────────┘
//! ```
//!
//! What it does not know ([`unsupported`]) libcontainer does; tests run both on the same configurations.
//!
//! **Invariant.** A path of the image is resolved inside its root and used through a descriptor; nothing in the container
//! is trusted for anything.

mod devices;
mod inside;
mod mounts;
mod namespaces;
mod privileges;
pub(crate) mod terminal;

use super::cgroup::place::Place;
use super::libcontainer::{Io, Launch};
use crate::shim::{Failure, FailureKind};
use crate::sys;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespaceType, LinuxPersonalityDomain, Spec};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Bytes of a message between the two.
const MAX_MESSAGE: usize = 4096;

/// A container that is to be made.
pub(crate) struct Order<'a> {
    /// Its configuration.
    pub spec: &'a Spec,
    /// The root file system.
    pub rootfs: &'a Path,
    /// What runs last.
    pub launch: &'a Launch,
    /// Its input and output.
    pub io: Io,
    /// Only change the root (chroot(2)).
    pub no_pivot: bool,
    /// Name of a session keyring of its own.
    pub keyring: Option<CString>,
    /// Names and folders of its cgroups, where a mount of them is wanted.
    pub cgroups: Vec<(String, PathBuf)>,
    /// Called when the namespaces are there, with the process; then hooks that run in them.
    pub hooks: Option<Hooks<'a>>,
}

/// Hooks at the two moments in the middle.
pub(crate) struct Hooks<'a> {
    /// Runs outside.
    pub outside: &'a dyn Fn(i32) -> Result<(), Failure>,
    /// Runs inside, before the root is changed.
    pub inside: &'a dyn Fn(i32) -> Result<(), String>,
}

/// A command in a container.
pub(crate) struct Command<'a> {
    /// The container's first process.
    pub target: i32,
    /// Its process, as in a configuration.
    pub process: &'a oci_spec::runtime::Process,
    /// The container's personality.
    pub personality: Option<LinuxPersonalityDomain>,
    /// What runs last.
    pub launch: &'a Launch,
    /// Its input and output.
    pub io: Io,
}

/// What of a configuration is left to libcontainer; `None`: nothing.
pub(crate) fn unsupported(spec: &Spec) -> Option<&'static str> {
    let linux = spec.linux().as_ref()?;
    let process = spec.process().as_ref()?;
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let propagation = linux.rootfs_propagation().as_deref().unwrap_or_default();
    let is = |yes: bool, what: &'static str| yes.then_some(what);
    let kind = |kind: LinuxNamespaceType| namespaces.iter().any(|it| it.typ() == kind);
    let joined = |kind: LinuxNamespaceType| namespaces.iter().any(|it| it.typ() == kind && it.path().is_some());
    is(kind(LinuxNamespaceType::User), "a user namespace")
        .or_else(|| is(kind(LinuxNamespaceType::Time), "a time namespace"))
        .or_else(|| is(!kind(LinuxNamespaceType::Mount), "the machine's mount namespace"))
        .or_else(|| is(joined(LinuxNamespaceType::Mount), "another's mount namespace"))
        .or_else(|| is(propagation.trim_start_matches('r') == "shared", "a shared root"))
        .or_else(|| is(linux.mount_label().as_ref().is_some_and(|it| !it.is_empty()), "a mount label"))
        .or_else(|| is(linux.memory_policy().is_some(), "a memory policy"))
        .or_else(|| is(linux.net_devices().as_ref().is_some_and(|it| !it.is_empty()), "network devices"))
        .or_else(|| unsupported_process(process))
        .or_else(|| {
            let options = spec.mounts().iter().flatten().flat_map(|mount| mount.options().iter().flatten());
            is(options.into_iter().any(|it| mounts::is_recursive(it)), "recursive mount options")
        })
}

/// What of a process is left to libcontainer; `None`: nothing.
pub(crate) fn unsupported_process(process: &oci_spec::runtime::Process) -> Option<&'static str> {
    let profile = process.apparmor_profile().as_ref().is_some_and(|it| !it.is_empty());
    let is = |yes: bool, what: &'static str| yes.then_some(what);
    is(process.scheduler().is_some(), "a scheduler")
        .or_else(|| is(process.io_priority().is_some(), "an I/O priority"))
        .or_else(|| is(process.exec_cpu_affinity().is_some(), "a CPU affinity"))
        .or_else(|| is(profile, "an AppArmor profile"))
}

/// Makes a container up to where [`Launch`] waits, and returns its process, a child of the caller's.
///
/// # Errors
/// What init says, one line; it has ended then.
pub(crate) fn create(place: &Place, order: &Order<'_>) -> Result<i32, Failure> {
    close_to_others()?;
    let namespaces = namespaces::Plan::of(order.spec).map_err(refused)?;
    let owners = mounts::Owners::of(order.spec, &namespaces)?;
    let (ours, theirs) = channel()?;
    let console = console(&order.io)?;
    let inside = || {
        let told = Channel(&theirs);
        inside::init(order, &namespaces, &owners, console.as_ref(), &told)
    };
    let child = namespaces.clone_into(place, &inside)?;
    drop(theirs);
    let outcome = attend(&ours, child, order.hooks.as_ref());
    outcome.inspect_err(|_| end(child))?;
    Ok(child.as_raw())
}

/// Starts a command in a container up to where [`Launch`] waits, and returns its process, a child of the caller's.
///
/// # Errors
/// What it says, one line; it has ended then.
pub(crate) fn exec(place: &Place, command: &Command<'_>) -> Result<i32, Failure> {
    close_to_others()?;
    let namespaces = namespaces::Joined::of(command.target)?;
    let (ours, theirs) = channel()?;
    let console = console(&command.io)?;
    let inside = || {
        let told = Channel(&theirs);
        inside::command(command, &namespaces, console.as_ref(), &told)
    };
    let child = namespaces.clone_into(place, &inside)?;
    drop(theirs);
    attend(&ours, child, None).inspect_err(|_| end(child))?;
    Ok(child.as_raw())
}

/// Before the clone, so that the new process is closed from its first instruction on: processes of the container see it
/// by then, and its memory and descriptors are this one's.
fn close_to_others() -> Result<(), Failure> {
    nix::sys::prctl::set_dumpable(false).map_err(internal("closing /proc/self to others"))
}

fn end(child: Pid) {
    let _ = kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
}

fn refused(reason: String) -> Failure {
    Failure::new(FailureKind::Refused, reason)
}

fn internal(what: &'static str) -> impl FnOnce(Errno) -> Failure {
    move |errno| Failure::new(FailureKind::Internal, format!("{what}: {}", errno.desc()))
}

fn channel() -> Result<(OwnedFd, OwnedFd), Failure> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(internal("making a channel"))
}

/// Connected before the file system is another one.
fn console(io: &Io) -> Result<Option<OwnedFd>, Failure> {
    match io {
        Io::Terminal(path) => terminal::connect(path).map(Some).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("console socket {}: {error}", path.display()))
        }),
        Io::Stdio(_) | Io::Inherited => Ok(None),
    }
}

/// What init says, and what it is told. First letters: `h` namespaces are there, `r` ready, `e` an error.
struct Channel<'a>(&'a OwnedFd);

impl Channel<'_> {
    fn say(&self, letter: u8, text: &str) {
        let mut message = vec![letter];
        message.extend_from_slice(&text.as_bytes()[..text.len().min(MAX_MESSAGE - 1)]);
        // A caller that is gone ends the wait that follows.
        let _ = send(self.0.as_raw_fd(), &message, MsgFlags::MSG_NOSIGNAL);
    }

    /// Waits for the word to go on; its number.
    fn wait(&self) -> Result<i32, String> {
        let mut number = [0; 4];
        match receive(self.0, &mut number) {
            Ok(4) => Ok(i32::from_ne_bytes(number)),
            _ => Err("the caller is gone".to_owned()),
        }
    }
}

fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match recv(fd.as_raw_fd(), buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            received => return received,
        }
    }
}

/// Listens to init until it is ready.
fn attend(ours: &OwnedFd, child: Pid, hooks: Option<&Hooks<'_>>) -> Result<(), Failure> {
    let mut buffer = [0; MAX_MESSAGE];
    loop {
        let length = receive(ours, &mut buffer).map_err(internal("listening to the container's process"))?;
        let (letter, text) = match buffer[..length].split_first() {
            Some((letter, text)) => (*letter, String::from_utf8_lossy(text).into_owned()),
            None => (b'e', "the container's process ended without a word".to_owned()),
        };
        match letter {
            b'r' => return Ok(()),
            b'h' => {
                if let Some(hooks) = hooks {
                    (hooks.outside)(child.as_raw())?;
                }
                let number = child.as_raw().to_ne_bytes();
                send(ours.as_raw_fd(), &number, MsgFlags::MSG_NOSIGNAL).map_err(internal("answering"))?;
            }
            _ => return Err(refused(text)),
        }
    }
}

/// Ends the new process with an error.
fn fail(told: &Channel<'_>, reason: &str) -> ! {
    told.say(b'e', reason);
    sys::exit_now(1)
}

//! The new process: from a clone to what [`Launch`] finds.

use super::super::libcontainer::{Io, Launch};
use super::super::rootfs::{Kind, Root};
use super::super::users;
use super::mounts::{self, Numbers, Owners};
use super::namespaces::{self, Joined, Plan};
use super::{Channel, Command, Order, devices, fail, privileges, terminal};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, fstat, major, minor, umask};
use nix::unistd::{chdir, chroot, dup2, fchdir, pivot_root, sethostname, setsid};
use oci_spec::runtime::{LinuxPersonalityDomain, Process, Spec};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// The mask of new files, when nothing is said.
const UMASK: u32 = 0o022;

fn text(what: &'static str) -> impl FnOnce(Errno) -> String {
    move |errno| format!("{what}: {}", errno.desc())
}

/// Becomes a container's first process. Ends in [`Launch`].
pub(super) fn init(
    order: &Order<'_>,
    namespaces: &Plan,
    owners: &Owners,
    console: Option<&OwnedFd>,
    told: &Channel<'_>,
) -> i32 {
    if let Err(reason) = become_container(order, namespaces, owners, console, told) {
        fail(told, &reason);
    }
    last(order.launch, order.spec.process().as_ref(), told)
}

/// Becomes a command in a container. Ends in [`Launch`].
pub(super) fn command(
    command: &Command<'_>,
    namespaces: &Joined,
    console: Option<&OwnedFd>,
    told: &Channel<'_>,
) -> i32 {
    let become_command = || -> Result<(), String> {
        begin(&command.io)?;
        if namespaces.has_users() {
            privileges::become_root()?;
        }
        if let Some(console) = console {
            let (slave, _) = terminal::set_up(console)?;
            terminal::take(&slave)?;
        }
        set_personality(command.personality)?;
        confine(command.process)
    };
    if let Err(reason) = become_command() {
        fail(told, &reason);
    }
    last(command.launch, Some(command.process), told)
}

/// A session of its own, and its descriptors.
fn begin(io: &Io) -> Result<(), String> {
    let _ = nix::sys::prctl::set_name(c"coracle:init");
    setsid().map_err(text("making a session"))?;
    umask(Mode::empty());
    if let Io::Stdio(stdio) = io {
        for (fd, number) in [(&stdio.stdin, 0), (&stdio.stdout, 1), (&stdio.stderr, 2)] {
            dup2(fd.as_raw_fd(), number).map_err(text("standard input and output"))?;
        }
    }
    Ok(())
}

fn become_container(
    order: &Order<'_>,
    namespaces: &Plan,
    owners: &Owners,
    console: Option<&OwnedFd>,
    told: &Channel<'_>,
) -> Result<(), String> {
    let spec = order.spec;
    begin(&order.io)?;
    if let Some(name) = &order.keyring {
        sys::join_session_keyring(name);
    }
    namespaces::join(&namespaces.joined).map_err(text("entering a namespace"))?;
    if namespaces.cgroup {
        match unshare(CloneFlags::CLONE_NEWCGROUP) {
            // Before Linux 4.6.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(text("making a cgroup namespace")(errno)),
        }
    }
    let numbers = Numbers::open().map_err(text("/proc/self/fd"))?;
    let parameters = open("/proc/sys", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map(sys::own)
        .map_err(text("/proc/sys"))?;
    let root = prepare_root(order)?;
    if let Some(owner) = namespaces.owner() {
        users::make_as(owner)?;
    }
    mounts::mount_all(order, &root, owners, &numbers)?;
    devices::make(spec, &root)?;
    mounts::protect(spec, &root, &numbers)?;
    if let Some(hooks) = &order.hooks {
        told.say(b'h', "");
        let pid = told.wait()?;
        chdir("/").map_err(text("/"))?;
        (hooks.inside)(pid)?;
    }
    if console.is_some() {
        prepare_console(&root)?;
    }
    mounts::finish_dev(spec, &root, &numbers)?;
    change_root(order, &root)?;
    drop(root);
    set_names(spec)?;
    set_parameters(spec, &parameters)?;
    drop((numbers, parameters));
    reopen_null()?;
    if let Some(console) = console {
        let (slave, path) = terminal::set_up(console)?;
        let bind = MsFlags::MS_BIND;
        mount(Some(path.as_str()), "/dev/console", None::<&str>, bind, None::<&str>)
            .map_err(text("showing the terminal as /dev/console"))?;
        terminal::take(&slave)?;
    }
    if spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true)) {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | mounts::root_flags()?;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(text("root.readonly"))?;
    }
    if let Some(users) = &namespaces.users {
        users.enter().map_err(text("entering the user namespace"))?;
        privileges::become_root()?;
    }
    let personality = spec.linux().as_ref().and_then(|linux| linux.personality().as_ref());
    set_personality(personality.map(|it| it.domain()))?;
    let process = spec.process().as_ref().ok_or("process is missing")?;
    confine(process)
}

/// Mounts of the machine reach the container's until its root is changed, and none of its own reach the machine.
fn prepare_root(order: &Order<'_>) -> Result<Root, String> {
    let propagation = order.spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().clone());
    let flags = match propagation.as_deref() {
        Some("private" | "rprivate") => MsFlags::MS_PRIVATE,
        _ => MsFlags::MS_SLAVE,
    };
    mount(None::<&str>, "/", None::<&str>, flags | MsFlags::MS_REC, None::<&str>)
        .map_err(text("separating mounts"))?;
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(order.rootfs), order.rootfs, None::<&str>, bind, None::<&str>).map_err(text("root.path"))?;
    let root = Root::open(order.rootfs).map_err(|error| error.to_string())?;
    root.refuse_linked_system_folders().map_err(|error| error.to_string())?;
    Ok(root)
}

/// A file for the terminal to be shown at.
fn prepare_console(root: &Root) -> Result<(), String> {
    root.make(Path::new("/dev/console"), Kind::File).map(drop).map_err(|error| error.to_string())
}

fn change_root(order: &Order<'_>, root: &Root) -> Result<(), String> {
    fchdir(root.as_raw_fd()).map_err(text("root.path"))?;
    if order.no_pivot {
        mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(text("moving the root"))?;
        chroot(".").map_err(text("changing the root"))?;
    } else {
        // The old root comes to lie on the new one, and is taken off (pivot_root(2)).
        pivot_root(".", ".").map_err(text("changing the root"))?;
        mount(None::<&str>, ".", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
            .map_err(text("separating the old root"))?;
        umount2(".", MntFlags::MNT_DETACH).map_err(text("leaving the old root"))?;
    }
    chdir("/").map_err(text("/"))?;
    let propagation = order.spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().clone());
    if propagation.is_some_and(|it| it.ends_with("unbindable")) {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_UNBINDABLE, None::<&str>)
            .map_err(text("linux.rootfsPropagation"))?;
    }
    Ok(())
}

fn set_names(spec: &Spec) -> Result<(), String> {
    if let Some(name) = spec.hostname().as_ref().filter(|name| !name.is_empty()) {
        sethostname(name).map_err(text("hostname"))?;
    }
    if let Some(name) = spec.domainname().as_ref().filter(|name| !name.is_empty()) {
        rustix::system::setdomainname(name.as_bytes()).map_err(|errno| format!("domainname: {errno}"))?;
    }
    Ok(())
}

/// Through the machine's `/proc/sys`, which shows the namespaces of whoever opens a file in it.
fn set_parameters(spec: &Spec, parameters: &OwnedFd) -> Result<(), String> {
    let all = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
    for (name, value) in all.into_iter().flatten() {
        let path = if name.contains('/') { name.clone() } else { name.replace('.', "/") };
        let failed = |errno: Errno| format!("linux.sysctl: {name}: {}", errno.desc());
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = openat(Some(parameters.as_raw_fd()), path.as_str(), flags, Mode::empty())
            .map(sys::own)
            .map_err(failed)?;
        nix::unistd::write(&file, value.as_bytes()).map_err(failed)?;
    }
    Ok(())
}

/// The machine's `/dev/null` as input or output would be a way to a file outside.
fn reopen_null() -> Result<(), String> {
    for number in 0..3 {
        let Ok(stat) = fstat(number) else { continue };
        let is_null =
            stat.st_mode & libc::S_IFMT == libc::S_IFCHR && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3);
        if is_null
            && let Ok(null) = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map(sys::own)
        {
            dup2(null.as_raw_fd(), number).map_err(text("/dev/null"))?;
        }
    }
    Ok(())
}

/// What uname(2) says, and how addresses are laid out (personality(2)).
fn set_personality(domain: Option<LinuxPersonalityDomain>) -> Result<(), String> {
    use nix::sys::personality::{Persona, set};
    /// `PER_LINUX32` (linux/personality.h), which the library does not know.
    const PER_LINUX32: i32 = 8;
    let persona = match domain {
        None => return Ok(()),
        Some(LinuxPersonalityDomain::PerLinux) => Persona::empty(),
        Some(LinuxPersonalityDomain::PerLinux32) => Persona::from_bits_retain(PER_LINUX32),
    };
    set(persona).map(drop).map_err(text("linux.personality"))
}

/// What the process may be, and where it is.
fn confine(process: &Process) -> Result<(), String> {
    let mask = process.user().umask().unwrap_or(UMASK);
    if mask > 0o777 {
        return Err(format!("process.user.umask: {mask} is more than 511"));
    }
    umask(Mode::from_bits_truncate(mask));
    privileges::set_limits(process)?;
    let cwd = process.cwd();
    // As root, who may see more; then as the user, whose network file system may let nobody else in.
    let entered = chdir(cwd.as_path());
    privileges::drop_to(process)?;
    if entered.is_err() {
        chdir(cwd.as_path()).map_err(|errno| format!("process.cwd: {}: {}", cwd.display(), errno.desc()))?;
    }
    // A folder outside of the root has no path here (CVE-2024-21626).
    match nix::unistd::getcwd() {
        Ok(path) if path.is_absolute() && !path.starts_with("/(unreachable)") => Ok(()),
        _ => Err(format!("process.cwd: {}: is outside of the container", cwd.display())),
    }
}

fn last(launch: &Launch, process: Option<&Process>, told: &Channel<'_>) -> i32 {
    let args = process.and_then(|process| process.args().clone()).unwrap_or_default();
    if let Err(reason) = launch.check(&args) {
        fail(told, &reason);
    }
    told.say(b'r', "");
    launch.go(&args)
}

//! Which namespaces a process gets: new ones in the clone, others' by setns(2).

use super::super::cgroup::place::Place;
use super::super::users::Mappings;
use super::{Failure, FailureKind, internal};
use crate::sys;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

/// Namespaces of a container.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// New with the clone.
    new: u64,
    /// New after it: its root is the cgroup that the process is in by then.
    pub cgroup: bool,
    /// Another's, joined by init.
    pub joined: Vec<Other>,
    /// Another's PID namespace, which is for children.
    pid: Option<Other>,
    /// A user namespace, entered last: until then everything is done by the machine's root.
    pub users: Option<Other>,
    /// The mappings of that one.
    pub mappings: Option<Mappings>,
}

/// A namespace of another's. The kernel is told its kind: a path that leads to one of another kind would put the
/// container's mounts, or its processes, somewhere else.
#[derive(Debug)]
pub(super) struct Other {
    kind: CloneFlags,
    file: File,
}

/// `CLONE_NEWTIME` (linux/sched.h), which the library does not know.
const CLONE_NEWTIME: libc::c_int = 0x80;

fn flag(kind: LinuxNamespaceType) -> Option<CloneFlags> {
    Some(match kind {
        LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
        LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
        LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
        LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
        LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        LinuxNamespaceType::User => CloneFlags::CLONE_NEWUSER,
        LinuxNamespaceType::Time => return None,
    })
}

impl Plan {
    /// What a configuration asks for.
    ///
    /// # Errors
    /// A namespace that is not there.
    pub fn of(spec: &Spec) -> Result<Self, String> {
        let mut plan = Self::default();
        let all = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
        for namespace in all {
            let kind = namespace.typ();
            let path = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty());
            let file = path
                .map(|path| File::open(path).map_err(|error| format!("namespace {}: {error}", path.display())))
                .transpose()?;
            let flag = flag(kind).ok_or_else(|| format!("namespace {kind:?}: not known here"))?;
            match (kind, file) {
                (LinuxNamespaceType::Pid, Some(file)) => plan.pid = Some(Other { kind: flag, file }),
                (LinuxNamespaceType::User, Some(file)) => plan.users = Some(Other { kind: flag, file }),
                (LinuxNamespaceType::User, None) => {
                    return Err("namespace user: a new one is not made here".to_owned());
                }
                (_, Some(file)) => plan.joined.push(Other { kind: flag, file }),
                (LinuxNamespaceType::Cgroup, None) => plan.cgroup = true,
                (_, None) => plan.new |= flag.bits() as u32 as u64,
            }
        }
        if plan.users.is_some() {
            let linux = spec.linux().as_ref();
            plan.mappings = linux.and_then(|linux| Mappings::of(linux.uid_mappings(), linux.gid_mappings()));
        }
        Ok(plan)
    }

    /// User and group 0 of the user namespace, as the machine has them: who makes folders, nodes and terminals for it.
    pub fn owner(&self) -> Option<(u32, u32)> {
        self.mappings.as_ref()?.root()
    }

    /// The user namespace, for mounts of its mappings.
    pub fn users_of(&self, mappings: &Mappings) -> Option<BorrowedFd<'_>> {
        let users = self.users.as_ref().filter(|_| self.mappings.as_ref() == Some(mappings));
        users.map(|users| users.file.as_fd())
    }

    /// Starts `inside` in them, born in the container's cgroup.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn clone_into(&self, place: &Place, inside: &dyn Fn() -> i32) -> Result<Pid, Failure> {
        if let (Some(cgroup), None) = (place.unified(), &self.pid) {
            match sys::clone_process(self.new, Some(cgroup), inside) {
                // Before Linux 5.7.
                Err(Errno::ENOSYS | Errno::EINVAL | Errno::E2BIG | Errno::EPERM) => {}
                cloned => return cloned.map_err(internal("making the container's process")),
            }
        }
        through(place, &self.pid.iter().collect::<Vec<_>>(), self.new, inside)
    }
}

/// Through a process between, which goes into the cgroups and namespaces, and whose child is the caller's.
fn through(place: &Place, joined: &[&Other], new: u64, inside: &dyn Fn() -> i32) -> Result<Pid, Failure> {
    let pid = place.in_child(|| {
        for other in joined {
            other.enter().map_err(internal("entering a namespace"))?;
        }
        let parent = CloneFlags::CLONE_PARENT.bits() as u32 as u64;
        let child = sys::clone_process(new | parent, None, inside);
        Ok(child.map_err(internal("making the container's process"))?.as_raw())
    })?;
    Ok(Pid::from_raw(pid))
}

/// The namespaces of a process that runs.
#[derive(Debug)]
pub(super) struct Joined(Vec<Other>);

/// In this order: who is in another user namespace may enter none of the machine's any more.
const JOINED: [(&str, CloneFlags); 8] = [
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("time", CloneFlags::from_bits_retain(CLONE_NEWTIME)),
    ("mnt", CloneFlags::CLONE_NEWNS),
    ("user", CloneFlags::CLONE_NEWUSER),
];

impl Joined {
    /// Opens them.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of(target: i32) -> Result<Self, Failure> {
        let mut files = Vec::new();
        for (name, kind) in JOINED {
            let own = std::fs::read_link(format!("/proc/self/ns/{name}"));
            let path = format!("/proc/{target}/ns/{name}");
            match (std::fs::read_link(&path), own) {
                // Kernels without it have neither.
                (Err(error), Err(_)) if error.kind() == std::io::ErrorKind::NotFound => {}
                (Ok(theirs), Ok(own)) if theirs == own => {}
                _ => {
                    let file = File::open(&path).map_err(|error| {
                        Failure::new(FailureKind::NotFound, format!("the container's process is gone: {error}"))
                    })?;
                    files.push(Other { kind, file });
                }
            }
        }
        Ok(Self(files))
    }

    /// There is a user namespace among them.
    pub fn has_users(&self) -> bool {
        self.0.iter().any(|other| other.kind == CloneFlags::CLONE_NEWUSER)
    }

    /// Starts `inside` in them, born in the cgroup.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn clone_into(&self, place: &Place, inside: &dyn Fn() -> i32) -> Result<Pid, Failure> {
        through(place, &self.0.iter().collect::<Vec<_>>(), 0, inside)
    }
}

/// Joins namespaces of others.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn join(others: &[Other]) -> Result<(), Errno> {
    others.iter().try_for_each(Other::enter)
}

impl Other {
    /// Enters it.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn enter(&self) -> Result<(), Errno> {
        setns(&self.file, self.kind)
    }
}

//! User namespaces (user_namespaces(7)), and mounts that show files with other owners (mount_setattr(2), ID-mapped
//! mounts).
//!
//! A service with one has a range of the machine's users to itself. Its files keep the numbers that they have without:
//! every mount is mapped, so that user 0 of the service owns on disk what user 0 owns.

use crate::shim::{Failure, FailureKind};
use crate::sys;
use caps::CapSet;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid, setfsgid, setfsuid};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Users of a service: images number theirs in 16 bits, `nobody` is 65534.
pub(crate) const IDS: u32 = 0x1_0000;

/// The first range: the lower bound of container users by systemd's table (UIDS-GIDS.md), above what machines and
/// directories give to people.
const FIRST: u32 = 0x8_0000;

/// First number of the `slot`th range, `None` beyond the numbers that are a `pid_t`'s too.
pub(crate) fn range(slot: u32) -> Option<u32> {
    let first = FIRST.checked_add(slot.checked_mul(IDS)?)?;
    (first <= i32::MAX as u32 - IDS).then_some(first)
}

/// The machine's number of a user or group of the range from `first` on; one beyond it is nobody there.
pub(crate) fn outside(first: u32, number: u32) -> u32 {
    first + number.min(IDS - 1)
}

/// Users and groups, inside and outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mappings {
    /// Users.
    pub users: Vec<LinuxIdMapping>,
    /// Groups.
    pub groups: Vec<LinuxIdMapping>,
}

impl Mappings {
    /// A service's: those from 0 on are those from `first` on.
    ///
    /// # Errors
    /// None that is known: every field is there.
    pub fn of_range(first: u32) -> Result<Self, Failure> {
        let mapping = LinuxIdMappingBuilder::default().container_id(0_u32).host_id(first).size(IDS).build();
        let mapping = mapping.map_err(|error| failed(error.to_string()))?;
        Ok(Self { users: vec![mapping], groups: vec![mapping] })
    }

    /// Those of a mount or of a container, `None` when there are none.
    pub fn of(users: &Option<Vec<LinuxIdMapping>>, groups: &Option<Vec<LinuxIdMapping>>) -> Option<Self> {
        let list = |of: &Option<Vec<LinuxIdMapping>>| of.clone().unwrap_or_default();
        let mappings = Self { users: list(users), groups: list(groups) };
        (!mappings.users.is_empty() || !mappings.groups.is_empty()).then_some(mappings)
    }

    /// The machine's numbers of user and group 0.
    pub fn root(&self) -> Option<(u32, u32)> {
        let of = |list: &[LinuxIdMapping]| list.iter().find(|it| it.container_id() == 0).map(|it| it.host_id());
        Some((of(&self.users)?, of(&self.groups)?))
    }

    /// Makes a user namespace with them, which lives as long as the descriptor.
    ///
    /// # Errors
    /// A kernel without them, or mappings that it does not take.
    pub fn namespace(&self) -> Result<OwnedFd, Failure> {
        let (gate, opened) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(refused_by("a pipe"))?;
        let child = sys::clone_process(libc::CLONE_NEWUSER as u32 as u64, None, || {
            // It is there for its namespace, until it is killed, or until nobody is left who would.
            let _ = nix::unistd::close(opened.as_raw_fd());
            while nix::unistd::read(gate.as_raw_fd(), &mut [0]) == Err(Errno::EINTR) {}
            0
        })
        .map_err(refused_by("this kernel makes no user namespace (CONFIG_USER_NS, user.max_user_namespaces)"))?;
        let made = self.fill(child);
        drop(opened);
        let _ = kill(child, Signal::SIGKILL);
        let _ = waitpid(child, None);
        made
    }

    fn fill(&self, child: Pid) -> Result<OwnedFd, Failure> {
        for (name, list) in [("uid_map", &self.users), ("gid_map", &self.groups)] {
            let line = |it: &LinuxIdMapping| format!("{} {} {}\n", it.container_id(), it.host_id(), it.size());
            let text: String = list.iter().map(line).collect();
            std::fs::write(format!("/proc/{child}/{name}"), &text).map_err(|error| {
                failed(format!("the kernel does not take {:?} as {name}: {error}", text.trim_end()))
            })?;
        }
        let path = format!("/proc/{child}/ns/user");
        File::open(&path).map(OwnedFd::from).map_err(|error| failed(format!("{path}: {error}")))
    }
}

/// A mount of `source` in which owners are as `namespace` has them; it is nowhere yet.
///
/// # Errors
/// A file system, or a kernel, that cannot do so.
pub(crate) fn mapped(source: &Path, recursive: bool, namespace: &OwnedFd) -> Result<OwnedFd, String> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let mount = rustix::mount::open_tree(CWD, source, flags)
        .map_err(|errno| format!("{}: {}", source.display(), Errno::from_raw(errno.raw_os_error()).desc()))?;
    sys::map_owners(&mount, namespace, recursive).map_err(|errno| match errno {
        Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP => format!(
            "{}: this kernel shows files of that file system with their own owners only (ID-mapped mounts: ext4 from \
             Linux 5.12, overlay from 5.19, tmpfs from 6.3; none of /proc, /sys and /dev)",
            source.display()
        ),
        errno => format!("{}: mapping owners: {}", source.display(), errno.desc()),
    })?;
    Ok(mount)
}

/// Puts a mount in its place.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn attach(mount: &OwnedFd, place: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", place, "", flags).map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

/// What is made from now on belongs to these; nothing else changes. Who is not root on files loses the capabilities that
/// are for files (capabilities(7), Effect of user ID changes), so they are taken back.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn make_as((uid, gid): (u32, u32)) -> Result<(), String> {
    let all = caps::read(None, CapSet::Permitted).map_err(|error| format!("capabilities: {error}"))?;
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
    caps::set(None, CapSet::Effective, &all).map_err(|error| format!("capabilities: {error}"))
}

/// Folders that are shown with mapped owners, in new folders of `around`.
pub(crate) struct Shown<'a> {
    around: &'a Path,
    namespace: &'a OwnedFd,
    /// What was shown, and where.
    known: Vec<(PathBuf, PathBuf)>,
}

impl<'a> Shown<'a> {
    /// Nothing yet.
    pub fn new(around: &'a Path, namespace: &'a OwnedFd) -> Self {
        Self { around, namespace, known: Vec::new() }
    }

    /// Where a folder is then: the folder around it is shown, once for all that are in it.
    ///
    /// # Errors
    /// A file system, or a kernel, that cannot do so.
    pub fn place_of(&mut self, path: &Path) -> Result<PathBuf, Failure> {
        let parent = path.parent().ok_or_else(|| failed(format!("{} has no folder around it", path.display())))?;
        let name = path.file_name().unwrap_or_default();
        if let Some((_, place)) = self.known.iter().find(|(known, _)| known == parent) {
            return Ok(place.join(name));
        }
        let place = self.around.join(format!("mapped-{}", self.known.len()));
        show(parent, &place, self.namespace)?;
        let moved = place.join(name);
        self.known.push((parent.to_owned(), place));
        Ok(moved)
    }
}

fn show(folder: &Path, place: &Path, namespace: &OwnedFd) -> Result<(), Failure> {
    match std::fs::create_dir(place) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(failed(format!("making {}: {error}", place.display())));
        }
        _ => {}
    }
    let mount = mapped(folder, false, namespace).map_err(refused)?;
    let target = File::open(place).map_err(|error| failed(format!("{}: {error}", place.display())))?;
    attach(&mount, &target.into()).map_err(refused_by("showing a folder with mapped owners"))
}

fn refused(reason: String) -> Failure {
    Failure::new(FailureKind::Refused, format!("userns_mode: {reason}"))
}

fn failed(reason: String) -> Failure {
    Failure::new(FailureKind::Internal, format!("user namespace: {reason}"))
}

fn refused_by(what: &'static str) -> impl FnOnce(Errno) -> Failure {
    move |errno| refused(format!("{what}: {}", errno.desc()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_apart_and_end() {
        assert_eq!(range(0), Some(524_288));
        assert_eq!(range(1), Some(524_288 + 65_536));
        let last = (0..).take_while(|slot| range(*slot).is_some()).last().expect("some");
        assert!(last > 10_000, "{last}");
        assert!(range(u32::MAX).is_none());
    }

    #[test]
    fn the_root_of_mappings_is_what_0_is() {
        let mappings = Mappings::of_range(700_000).expect("mappings");
        assert_eq!(mappings.root(), Some((700_000, 700_000)));
        assert_eq!(Mappings { users: Vec::new(), groups: mappings.groups }.root(), None);
        assert_eq!(Mappings::of(&None, &Some(Vec::new())), None);
    }
}

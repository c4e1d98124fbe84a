//! Mounts of a configuration, each on a descriptor: of a path that is resolved inside the root, and that nobody can
//! change meanwhile (CVE-2025-31133 and its kind).

use super::super::rootfs::{Kind, Root};
use super::super::users::{self, Mappings};
use super::namespaces::Plan;
use super::{Failure, Order, refused};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::fchdir;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Options of mount(8) and their flags: to set, or with `true` to clear.
const FLAGS: &[(&str, bool, MsFlags)] = &[
    ("ro", false, MsFlags::MS_RDONLY),
    ("rw", true, MsFlags::MS_RDONLY),
    ("nosuid", false, MsFlags::MS_NOSUID),
    ("suid", true, MsFlags::MS_NOSUID),
    ("nodev", false, MsFlags::MS_NODEV),
    ("dev", true, MsFlags::MS_NODEV),
    ("noexec", false, MsFlags::MS_NOEXEC),
    ("exec", true, MsFlags::MS_NOEXEC),
    ("sync", false, MsFlags::MS_SYNCHRONOUS),
    ("async", true, MsFlags::MS_SYNCHRONOUS),
    ("dirsync", false, MsFlags::MS_DIRSYNC),
    ("mand", false, MsFlags::MS_MANDLOCK),
    ("nomand", true, MsFlags::MS_MANDLOCK),
    ("noatime", false, MsFlags::MS_NOATIME),
    ("atime", true, MsFlags::MS_NOATIME),
    ("nodiratime", false, MsFlags::MS_NODIRATIME),
    ("diratime", true, MsFlags::MS_NODIRATIME),
    ("relatime", false, MsFlags::MS_RELATIME),
    ("norelatime", true, MsFlags::MS_RELATIME),
    ("strictatime", false, MsFlags::MS_STRICTATIME),
    ("nostrictatime", true, MsFlags::MS_STRICTATIME),
    ("silent", false, MsFlags::MS_SILENT),
    ("loud", true, MsFlags::MS_SILENT),
    ("remount", false, MsFlags::MS_REMOUNT),
    ("bind", false, MsFlags::MS_BIND),
    ("rbind", false, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
    ("defaults", true, MsFlags::empty()),
];

const PROPAGATIONS: &[(&str, MsFlags)] = &[
    ("private", MsFlags::MS_PRIVATE),
    ("rprivate", MsFlags::MS_PRIVATE.union(MsFlags::MS_REC)),
    ("slave", MsFlags::MS_SLAVE),
    ("rslave", MsFlags::MS_SLAVE.union(MsFlags::MS_REC)),
    ("shared", MsFlags::MS_SHARED),
    ("rshared", MsFlags::MS_SHARED.union(MsFlags::MS_REC)),
    ("unbindable", MsFlags::MS_UNBINDABLE),
    ("runbindable", MsFlags::MS_UNBINDABLE.union(MsFlags::MS_REC)),
];

/// Files of `/proc` that a bind mount may cover: containers are shown other numbers there (as runc's list).
const PROC_FILES: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Options for a whole tree of mounts (`rro` and the like).
pub(super) fn is_recursive(option: &str) -> bool {
    let known = |it: &str| FLAGS.iter().any(|(name, ..)| *name == it) || it == "symfollow" || it == "nosymfollow";
    !matches!(option, "rw" | "ro" | "rbind" | "remount" | "relatime")
        && option.strip_prefix('r').is_some_and(|rest| known(rest) && rest != "bind")
}

/// Options of a mount, sorted out.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    set: MsFlags,
    cleared: MsFlags,
    propagation: Vec<MsFlags>,
    copy_up: bool,
    /// Mounts below it have other owners too.
    maps_all: bool,
    data: Vec<String>,
}

impl Options {
    fn of(wanted: &Mount) -> Self {
        let mut options = Self {
            set: MsFlags::empty(),
            cleared: MsFlags::empty(),
            propagation: Vec::new(),
            copy_up: false,
            maps_all: false,
            data: Vec::new(),
        };
        for option in wanted.options().iter().flatten() {
            if let Some((_, clears, flags)) = FLAGS.iter().find(|(name, ..)| name == option) {
                let (to, from) = match clears {
                    true => (&mut options.cleared, &mut options.set),
                    false => (&mut options.set, &mut options.cleared),
                };
                *to |= *flags;
                *from &= !*flags;
            } else if let Some((_, flags)) = PROPAGATIONS.iter().find(|(name, _)| name == option) {
                options.propagation.push(*flags);
            } else if option == "tmpcopyup" {
                options.copy_up = true;
            } else if option == "idmap" || option == "ridmap" {
                options.maps_all = option == "ridmap";
            } else if !option.is_empty() {
                options.data.push(option.clone());
            }
        }
        // By type alone, as engines of old wrote it.
        if wanted.typ().as_deref() == Some("bind") && !options.set.contains(MsFlags::MS_BIND) {
            options.set |= MsFlags::MS_BIND;
        }
        options
    }
}

/// The machine's `/proc/self/fd`, as the place where mount(2) finds descriptors by their numbers. It is the working
/// folder while mounts are made, and needs no `/proc` of the container's.
#[derive(Debug)]
pub(super) struct Numbers(OwnedFd);

impl Numbers {
    /// Opens it.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn open() -> Result<Self, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open("/proc/self/fd", flags, Mode::empty()).map(|fd| Self(crate::sys::own(fd)))
    }

    fn enter(&self) -> Result<(), Errno> {
        fchdir(self.0.as_raw_fd())
    }
}

fn name(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(fd.as_raw_fd().to_string())
}

/// User namespaces that mounts take their owners from, one for each set of mappings.
#[derive(Debug, Default)]
pub(super) struct Owners(Vec<(Mappings, OwnedFd)>);

/// Sets of mappings in one configuration: each is a process and a namespace for the moment, and containers have one.
const MAX_OWNERS: usize = 16;

impl Owners {
    /// Makes what a configuration needs; the container's own is there already.
    ///
    /// # Errors
    /// More than is bearable, or what the kernel does not take.
    pub fn of(spec: &Spec, namespaces: &Plan) -> Result<Self, Failure> {
        let mut owners = Self::default();
        for mount in spec.mounts().iter().flatten() {
            let Some(mappings) = Mappings::of(mount.uid_mappings(), mount.gid_mappings()) else { continue };
            if owners.get(&mappings).is_some() {
                continue;
            }
            if owners.0.len() >= MAX_OWNERS {
                return Err(refused(format!(
                    "mounts: more than {MAX_OWNERS} different uidMappings and gidMappings"
                )));
            }
            let namespace = match namespaces.users_of(&mappings) {
                Some(own) => own.try_clone_to_owned().map_err(|error| refused(format!("mounts: {error}")))?,
                None => mappings.namespace()?,
            };
            owners.0.push((mappings, namespace));
        }
        Ok(owners)
    }

    fn get(&self, mappings: &Mappings) -> Option<&OwnedFd> {
        self.0.iter().find(|(known, _)| known == mappings).map(|(_, namespace)| namespace)
    }
}

/// Mounts everything that a configuration lists.
///
/// # Errors
/// The mount by its number and destination, and what the kernel said.
pub(super) fn mount_all(order: &Order<'_>, root: &Root, owners: &Owners, numbers: &Numbers) -> Result<(), String> {
    for (number, wanted) in order.spec.mounts().iter().flatten().enumerate() {
        one(order, wanted, root, owners, numbers)
            .map_err(|reason| format!("mounts[{number}]: {}: {reason}", wanted.destination().display()))?;
    }
    Ok(())
}

fn one(order: &Order<'_>, wanted: &Mount, root: &Root, owners: &Owners, numbers: &Numbers) -> Result<(), String> {
    let options = Options::of(wanted);
    let kind = wanted.typ().as_deref().unwrap_or_default();
    let text = |errno: Errno| errno.desc().to_owned();
    if kind == "cgroup" || kind == "cgroup2" {
        return cgroups(order, wanted, &options, root, numbers);
    }
    let bind = options.set.contains(MsFlags::MS_BIND);
    let source = wanted.source().clone().unwrap_or_default();
    let folder = !bind || source.is_dir();
    let inside = root
        .make(wanted.destination(), if folder { Kind::Folder } else { Kind::File })
        .map_err(|error| error.to_string())?;
    check_proc(&inside, kind)?;
    let target = root.open_place(&inside).map_err(|error| error.to_string())?;
    numbers.enter().map_err(text)?;
    if bind {
        match Mappings::of(wanted.uid_mappings(), wanted.gid_mappings()) {
            Some(mappings) => {
                let namespace = owners.get(&mappings).ok_or("uidMappings: no namespace was made for them")?;
                let all = options.maps_all || options.set.contains(MsFlags::MS_REC);
                let mount = users::mapped(&source, all, namespace)?;
                users::attach(&mount, &target).map_err(text)?;
            }
            None => {
                let flags = options.set & (MsFlags::MS_BIND | MsFlags::MS_REC);
                mount(Some(&source), &name(&target), None::<&str>, flags, None::<&str>)
                    .map_err(|errno| format!("{}: {}", source.display(), errno.desc()))?;
            }
        }
        let mounted = root.open_place(&inside).map_err(|error| error.to_string())?;
        change(&mounted, &options)?;
        return propagate(&mounted, &options);
    }
    let mut flags = options.set;
    if inside == Path::new("/dev") {
        // Nodes are made in it first.
        flags &= !MsFlags::MS_RDONLY;
    }
    let data = options.data.join(",");
    mount(Some(&source), &name(&target), Some(kind), flags, Some(data.as_str())).map_err(text)?;
    let mounted = root.open_place(&inside).map_err(|error| error.to_string())?;
    if options.copy_up {
        // The descriptor from before is what is covered now.
        super::super::copy_tree(&name(&target), &name(&mounted)).map_err(|error| format!("tmpcopyup: {error}"))?;
    }
    propagate(&mounted, &options)
}

/// Flags of a bind mount are those of its source until they are changed.
fn change(mounted: &OwnedFd, options: &Options) -> Result<(), String> {
    let plain = MsFlags::MS_BIND | MsFlags::MS_REC;
    if (options.set & !plain).is_empty() && options.cleared.is_empty() {
        return Ok(());
    }
    let present = flags_of(mounted)?;
    let wanted = (present & !options.cleared) | (options.set & !MsFlags::MS_REC);
    let flags = wanted | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    mount(None::<&str>, &name(mounted), None::<&str>, flags, None::<&str>)
        .map_err(|errno| format!("options: {}", errno.desc()))
}

/// The flags that a mount has now.
fn flags_of(mounted: &OwnedFd) -> Result<MsFlags, String> {
    use rustix::fs::StatVfsMountFlags as Flags;
    let present = rustix::fs::fstatvfs(mounted).map_err(|errno| errno.to_string())?.f_flag;
    let pairs = [
        (Flags::RDONLY, MsFlags::MS_RDONLY),
        (Flags::NOSUID, MsFlags::MS_NOSUID),
        (Flags::NODEV, MsFlags::MS_NODEV),
        (Flags::NOEXEC, MsFlags::MS_NOEXEC),
        (Flags::NOATIME, MsFlags::MS_NOATIME),
        (Flags::NODIRATIME, MsFlags::MS_NODIRATIME),
        (Flags::RELATIME, MsFlags::MS_RELATIME),
    ];
    Ok(pairs
        .into_iter()
        .filter(|(has, _)| present.contains(*has))
        .fold(MsFlags::empty(), |all, (_, flag)| all | flag))
}

/// The flags of this process's root.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn root_flags() -> Result<MsFlags, String> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = open("/", flags, Mode::empty()).map(crate::sys::own).map_err(|errno| errno.desc().to_owned())?;
    flags_of(&root)
}

fn propagate(mounted: &OwnedFd, options: &Options) -> Result<(), String> {
    for flags in &options.propagation {
        mount(None::<&str>, &name(mounted), None::<&str>, *flags, None::<&str>)
            .map_err(|errno| format!("propagation: {}", errno.desc()))?;
    }
    Ok(())
}

/// Nothing but the kernel's own file system is at `/proc`, and nothing but numbers in it is covered: a container could
/// be made to believe its runtime's writes went there.
fn check_proc(inside: &Path, kind: &str) -> Result<(), String> {
    let at = inside == Path::new("/proc");
    if (kind == "proc" || kind == "sysfs") && at != (kind == "proc") && inside.starts_with("/proc") {
        return Err(format!("{kind} is not mounted there"));
    }
    if at && kind != "proc" {
        return Err("only proc is mounted there".to_owned());
    }
    if !at && inside.starts_with("/proc") && !PROC_FILES.iter().any(|it| inside == Path::new(it)) {
        return Err("nothing is mounted inside of /proc but over files of numbers".to_owned());
    }
    Ok(())
}

/// Shows the container its own cgroups.
fn cgroups(
    order: &Order<'_>,
    wanted: &Mount,
    options: &Options,
    root: &Root,
    numbers: &Numbers,
) -> Result<(), String> {
    let text = |errno: Errno| errno.desc().to_owned();
    let place = |path: &Path| -> Result<OwnedFd, String> {
        let inside = root.make(path, Kind::Folder).map_err(|error| error.to_string())?;
        root.open_place(&inside).map_err(|error| error.to_string())
    };
    let fixed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    numbers.enter().map_err(text)?;
    let destination = wanted.destination();
    let read_only = options.set & MsFlags::MS_RDONLY;
    if super::super::cgroup::is_v2() && own_cgroups(order.spec) {
        let target = place(destination)?;
        let flags = fixed | read_only | (options.set & MsFlags::MS_RELATIME);
        return mount(Some("cgroup"), &name(&target), Some("cgroup2"), flags, None::<&str>).map_err(text);
    }
    let several = order.cgroups.len() > 1;
    if several {
        // Folders for the hierarchies are made in it.
        let target = place(destination)?;
        mount(Some("tmpfs"), &name(&target), Some("tmpfs"), fixed, Some("mode=755,size=64k")).map_err(text)?;
    }
    for (hierarchy, folder) in &order.cgroups {
        let path = if several { destination.join(hierarchy) } else { destination.to_owned() };
        let target = place(&path)?;
        mount(Some(folder), &name(&target), None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(text)?;
        let mounted = place(&path)?;
        let flags = fixed | read_only | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        mount(None::<&str>, &name(&mounted), None::<&str>, flags, None::<&str>).map_err(text)?;
        for controller in hierarchy.split(',').filter(|_| hierarchy.contains(',')) {
            let folder = place(destination)?;
            match nix::unistd::symlinkat(hierarchy.as_str(), Some(folder.as_raw_fd()), controller) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(text(errno)),
            }
        }
    }
    if several && !read_only.is_empty() {
        let target = place(destination)?;
        let flags = fixed | MsFlags::MS_RDONLY | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        mount(None::<&str>, &name(&target), None::<&str>, flags, None::<&str>).map_err(text)?;
    }
    Ok(())
}

fn own_cgroups(spec: &Spec) -> bool {
    let all = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    all.iter().any(|it| it.typ() == LinuxNamespaceType::Cgroup && it.path().is_none())
}

/// Covers what the container must not see, and protects what it must not write. What is not there needs nothing.
///
/// # Errors
/// The path, and what the kernel said.
pub(super) fn protect(spec: &Spec, root: &Root, numbers: &Numbers) -> Result<(), String> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    let text = |errno: Errno| errno.desc().to_owned();
    let there = |path: &str| -> Result<Option<(PathBuf, OwnedFd)>, String> {
        let inside = root.existing(Path::new(path)).map_err(|error| error.to_string())?;
        let Some(inside) = inside else { return Ok(None) };
        let inside = Path::new("/").join(inside);
        let fd = root.open_place(&inside).map_err(|error| error.to_string())?;
        Ok(Some((inside, fd)))
    };
    numbers.enter().map_err(text)?;
    for path in linux.readonly_paths().iter().flatten() {
        let failed = |reason: String| format!("linux.readonlyPaths: {path}: {reason}");
        let Some((inside, target)) = there(path).map_err(failed)? else { continue };
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(&name(&target)), &name(&target), None::<&str>, bind, None::<&str>)
            .map_err(|errno| failed(text(errno)))?;
        let mounted = root.open_place(&inside).map_err(|error| failed(error.to_string()))?;
        let flags =
            flags_of(&mounted).map_err(failed)? | MsFlags::MS_RDONLY | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        mount(None::<&str>, &name(&mounted), None::<&str>, flags, None::<&str>)
            .map_err(|errno| failed(text(errno)))?;
    }
    for path in linux.masked_paths().iter().flatten() {
        let failed = |reason: String| format!("linux.maskedPaths: {path}: {reason}");
        let Some((_, target)) = there(path).map_err(failed)? else { continue };
        let metadata = rustix::fs::fstat(&target).map_err(|errno| failed(errno.to_string()))?;
        let is_folder = rustix::fs::FileType::from_raw_mode(metadata.st_mode) == rustix::fs::FileType::Directory;
        let covered = match is_folder {
            // Nothing can be made in it.
            true => mount(
                Some("tmpfs"),
                &name(&target),
                Some("tmpfs"),
                MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
                Some("nr_blocks=1,nr_inodes=1"),
            ),
            false => {
                let null = null(root).map_err(failed)?;
                mount(Some(&name(&null)), &name(&target), None::<&str>, MsFlags::MS_BIND, None::<&str>)
            }
        };
        covered.map_err(|errno| failed(text(errno)))?;
    }
    Ok(())
}

/// The container's own `/dev/null`: the machine's would be changed by who changes its mode. It must be what it is called
/// (CVE-2025-31133).
fn null(root: &Root) -> Result<OwnedFd, String> {
    let null = root.open_place(Path::new("/dev/null")).map_err(|error| error.to_string())?;
    let stat = rustix::fs::fstat(&null).map_err(|errno| errno.to_string())?;
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::CharacterDevice if device == (1, 3) => Ok(null),
        _ => Err("/dev/null of the container is not the device of that name".to_owned()),
    }
}

/// `/dev` after its nodes were made.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn finish_dev(spec: &Spec, root: &Root, numbers: &Numbers) -> Result<(), String> {
    let dev = spec.mounts().iter().flatten().find(|mount| mount.destination() == Path::new("/dev"));
    let Some(options) = dev.map(Options::of) else { return Ok(()) };
    if options.set.contains(MsFlags::MS_BIND) || !options.set.contains(MsFlags::MS_RDONLY) {
        return Ok(());
    }
    numbers.enter().map_err(|errno| errno.desc().to_owned())?;
    let mounted = root.open_place(Path::new("/dev")).map_err(|error| error.to_string())?;
    change(&mounted, &options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn options(all: &[&str]) -> Options {
        let wanted = json!({ "destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": all });
        Options::of(&serde_json::from_value(wanted).expect("a mount"))
    }

    #[test]
    fn the_last_of_two_options_counts_and_the_rest_is_data() {
        let read = options(&["ro", "nosuid", "rw", "size=1k", "mode=700", "rprivate", "tmpcopyup"]);
        assert_eq!(read.set, MsFlags::MS_NOSUID);
        assert_eq!(read.cleared, MsFlags::MS_RDONLY);
        assert_eq!(read.data, ["size=1k", "mode=700"]);
        assert_eq!(read.propagation, [MsFlags::MS_PRIVATE | MsFlags::MS_REC]);
        assert!(read.copy_up);
    }

    #[test]
    fn options_for_a_tree_are_told_from_those_for_a_mount() {
        for option in ["rro", "rnosuid", "rrw", "rnoexec", "rrelatime", "ratime"] {
            assert!(is_recursive(option), "{option}");
        }
        for option in ["ro", "rw", "rbind", "remount", "relatime", "rprivate", "rshared", "size=1", "redirect"] {
            assert!(!is_recursive(option), "{option}");
        }
    }

    #[test]
    fn proc_is_the_kernels() {
        assert!(check_proc(Path::new("/proc"), "proc").is_ok());
        assert!(check_proc(Path::new("/proc/meminfo"), "bind").is_ok());
        assert!(check_proc(Path::new("/processes"), "tmpfs").is_ok());
        for (path, kind) in [("/proc", "bind"), ("/proc", "tmpfs"), ("/proc/self", "bind"), ("/proc/sys", "tmpfs")]
        {
            assert!(check_proc(Path::new(path), kind).is_err(), "{path} {kind}");
        }
    }
}

//! The file systems that are there before any partition is: the kernel's own, and those in memory.

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use std::ffi::CString;
use std::io;
use std::path::Path;

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub target: &'static str,
    /// The kernel's name for its kind.
    pub kind: &'static str,
    /// Who may do what.
    pub flags: MountFlags,
    /// The file system's own options.
    pub options: String,
    /// Without it the board is none.
    pub needed: bool,
}

const CLOSED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const NO_DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// All, in order. `memory_kib`: the machine's; in memory lies what is bounded by a share of it.
pub fn all(memory_kib: u64) -> Vec<Mount> {
    let needed = |target, kind, flags, options: &str| Mount {
        target,
        kind,
        flags,
        options: options.to_owned(),
        needed: true,
    };
    let wished = |target, kind, flags, options| Mount { needed: false, ..needed(target, kind, flags, options) };
    // A kernel's tmpfs takes half of the memory each; a board of 64 MB could be full with logs.
    let share =
        |of: u64| format!("mode=1777,size={}k,nr_inodes={}", memory_kib / of, (memory_kib / of / 4).max(1024));
    let run = format!("mode=755,size={}k", memory_kib / 6);
    vec![
        needed("/proc", "proc", CLOSED, ""),
        needed("/sys", "sysfs", CLOSED, ""),
        needed("/dev", "devtmpfs", MountFlags::NOSUID, "mode=755"),
        needed("/dev/pts", "devpts", MountFlags::NOSUID.union(MountFlags::NOEXEC), "gid=5,mode=620,ptmxmode=666"),
        needed("/dev/shm", "tmpfs", CLOSED, &share(8)),
        needed("/run", "tmpfs", NO_DEVICES, &run),
        needed("/tmp", "tmpfs", NO_DEVICES, &share(8)),
        // `favordynmods`: without it a process that changes its cgroup waits for a grace period of RCU.
        needed("/sys/fs/cgroup", "cgroup2", CLOSED, "nsdelegate,memory_recursiveprot,favordynmods"),
        wished("/sys/fs/bpf", "bpf", CLOSED, "mode=700"),
        wished("/sys/kernel/security", "securityfs", CLOSED, ""),
        wished("/sys/kernel/config", "configfs", CLOSED, ""),
        wished("/sys/fs/pstore", "pstore", CLOSED, ""),
    ]
}

/// Memory of the machine in KiB, from `/proc/meminfo` (proc(5)).
pub fn memory_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Mounts one, with fewer options on a kernel that does not know them all. One that is there already is left.
///
/// # Errors
/// What the kernel says.
pub fn make(wanted: &Mount) -> io::Result<()> {
    let target = Path::new(wanted.target);
    if is_mount_point(target) {
        return Ok(());
    }
    if !target.exists() {
        std::fs::create_dir_all(target)?;
    }
    let mut options = wanted.options.as_str();
    loop {
        let text = CString::new(options)?;
        match mount(wanted.kind, target, wanted.kind, wanted.flags, text.as_c_str()) {
            // The last is the newest.
            Err(rustix::io::Errno::INVAL) if options.contains(',') && wanted.kind == "cgroup2" => {
                options = options.rsplit_once(',').map_or("", |(fewer, _)| fewer);
            }
            mounted => return Ok(mounted?),
        }
    }
}

/// Whether something is mounted there: it is on another device than the folder that it is in.
pub fn is_mount_point(path: &Path) -> bool {
    let parent = path.parent().unwrap_or(path);
    match (rustix::fs::stat(path), rustix::fs::stat(parent)) {
        (Ok(own), Ok(above)) => own.st_dev != above.st_dev,
        _ => false,
    }
}

/// What is mounted stays within this namespace and those that are made from it.
///
/// # Errors
/// What the kernel says.
pub fn make_private() -> io::Result<()> {
    Ok(mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_memory_is_a_small_share_of_it() {
        for memory in [60_000_u64, 512_000, 8_000_000] {
            let sizes = all(memory).into_iter().filter(|it| it.kind == "tmpfs").map(|it| {
                let size = it.options.split(',').find_map(|word| word.strip_prefix("size=")?.strip_suffix('k'));
                size.expect("it has a size").parse::<u64>().expect("a number")
            });
            let (count, total) = sizes.fold((0, 0), |(count, total), size| (count + 1, total + size));
            assert_eq!(count, 3);
            assert!(total < memory / 2, "{total} of {memory}");
        }
    }

    #[test]
    fn nothing_but_the_devices_has_devices() {
        for mount in all(1 << 20).into_iter().filter(|it| it.kind != "devtmpfs" && it.kind != "devpts") {
            assert!(mount.flags.contains(NO_DEVICES), "{}", mount.target);
        }
    }

    #[test]
    fn memory_is_read() {
        assert_eq!(memory_kib("MemTotal:         443028 kB\nMemFree: 1 kB\n"), Some(443_028));
        assert_eq!(memory_kib("MemFree: 1 kB\n"), None);
    }
}

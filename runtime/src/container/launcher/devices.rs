//! Device nodes and links in the container's `/dev`.

use super::super::rootfs::{Kind, Root};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, makedev, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// Nodes that every container has, all `0666` root (config-linux.md, Default Devices).
const NODES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links that every container has (runtime-linux.md, Dev symbolic links).
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Makes what belongs into `/dev`, unless somebody else's `/dev` is shown there.
///
/// # Errors
/// The node, and what the kernel said.
pub(super) fn make(spec: &Spec, root: &Root) -> Result<(), String> {
    let bound = spec.mounts().iter().flatten().any(|mount| {
        let options = mount.options().as_deref().unwrap_or_default();
        mount.destination() == Path::new("/dev") && options.iter().any(|it| it == "bind" || it == "rbind")
    });
    if bound {
        return Ok(());
    }
    let folder = root.make_open(Path::new("/dev"), Kind::Folder).map_err(|error| error.to_string())?;
    for (name, major, minor) in NODES {
        node(&folder, OsStr::new(name), SFlag::S_IFCHR, (major, minor), 0o666, (0, 0))
            .map_err(|errno| format!("/dev/{name}: {}", errno.desc()))?;
    }
    let wanted = spec.linux().as_ref().and_then(|linux| linux.devices().as_ref());
    for device in wanted.into_iter().flatten() {
        one(device, root).map_err(|reason| format!("linux.devices: {}: {reason}", device.path().display()))?;
    }
    for (name, target) in
        LINKS.into_iter().chain(Path::new("/proc/kcore").exists().then_some(("core", "/proc/kcore")))
    {
        match symlinkat(target, Some(folder.as_raw_fd()), name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(format!("/dev/{name}: {}", errno.desc())),
        }
    }
    // The container's own devpts, whatever the image has there.
    let _ = unlinkat(Some(folder.as_raw_fd()), "ptmx", UnlinkatFlags::NoRemoveDir);
    match symlinkat("pts/ptmx", Some(folder.as_raw_fd()), "ptmx") {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(format!("/dev/ptmx: {}", errno.desc())),
    }
}

fn one(device: &LinuxDevice, root: &Root) -> Result<(), String> {
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::A => return Err("type a is for rules".to_owned()),
    };
    let numbers = (u64::try_from(device.major()).unwrap_or(0), u64::try_from(device.minor()).unwrap_or(0));
    let path = device.path();
    let parent = path.parent().ok_or("is no path of a file")?;
    let name = path.file_name().ok_or("is no path of a file")?;
    let folder = root.make_open(parent, Kind::Folder).map_err(|error| error.to_string())?;
    let mode = device.file_mode().unwrap_or(0o666);
    let owner = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    node(&folder, name, kind, numbers, mode, owner).map_err(|errno| errno.desc().to_owned())
}

/// One that is there already stays, as with runc: a file system that others see too may have it.
fn node(
    folder: &OwnedFd,
    name: &OsStr,
    kind: SFlag,
    (major, minor): (u64, u64),
    mode: u32,
    (uid, gid): (u32, u32),
) -> Result<(), Errno> {
    let at = Some(folder.as_raw_fd());
    let mode = Mode::from_bits_truncate(mode & 0o7777);
    match mknodat(at, name, kind, mode, makedev(major, minor)) {
        Err(Errno::EEXIST) => return Ok(()),
        made => made?,
    }
    if (uid, gid) != (0, 0) {
        fchownat(at, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        // Changing the owner takes set-user-ID bits away.
        fchmodat(at, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    Ok(())
}

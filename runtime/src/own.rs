//! This program's own file, which containers must not change.
//!
//! For the moment before its program runs, `/proc/PID/exe` of a container's process is this program; a container that
//! opened it could write to it later (CVE-2019-5736). So what makes containers runs from a mount of its own file that is
//! read-only, or, on kernels before 5.12, from a sealed copy in memory.

use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

const OWN: &str = "/proc/self/exe";

/// `MOUNT_ATTR_RDONLY` (mount_setattr(2)).
const READ_ONLY: u32 = 1;

/// Goes on as the same program from where nobody can write to it; returns when that is so already.
///
/// # Errors
/// When there is no such place.
pub fn protect() -> io::Result<()> {
    let own = File::open(OWN)?;
    let flags = rustix::fs::fstatvfs(&own)?.f_flag;
    let seals = fcntl(own.as_raw_fd(), FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate);
    let sealed = seals.is_ok_and(|seals| seals.contains(SealFlag::F_SEAL_WRITE));
    if flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) || sealed {
        return Ok(());
    }
    let words = |all: Vec<std::ffi::OsString>| -> Vec<CString> {
        all.into_iter().filter_map(|it| CString::new(it.into_vec()).ok()).collect()
    };
    let argv = words(std::env::args_os().collect());
    let pairs = std::env::vars_os().map(|(name, value)| {
        let mut pair = name;
        pair.push("=");
        pair.push(value);
        pair
    });
    let envp = words(pairs.collect());
    let place = mounted().or_else(|_| copied(own))?;
    Err(sys::execute(place.as_fd(), &argv, &envp).into())
}

/// A mount of the file alone, which nobody else sees.
fn mounted() -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount =
        rustix::mount::open_tree(CWD, OWN, flags).map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    sys::set_mount_attributes(&mount, READ_ONLY)?;
    Ok(mount)
}

fn copied(mut own: File) -> io::Result<OwnedFd> {
    let flags = MemFdCreateFlag::MFD_CLOEXEC | MemFdCreateFlag::MFD_ALLOW_SEALING;
    let mut copy = File::from(memfd_create(c"coracle", flags)?);
    io::copy(&mut own, &mut copy)?;
    let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(copy.as_raw_fd(), FcntlArg::F_ADD_SEALS(seals))?;
    Ok(copy.into())
}

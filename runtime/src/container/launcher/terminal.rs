//! A terminal in the container, whose master goes out through a socket.

use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect as connect_socket, sendmsg,
    socket,
};
use nix::sys::stat::Mode;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// File system of terminals (linux/magic.h).
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

/// Connects to the socket that wants the master, or another descriptor.
///
/// # Errors
/// Nobody listens there; a path of more than 107 bytes (unix(7)) is taken through its folder.
pub(crate) fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    match UnixAddr::new(path) {
        Ok(address) => connect_socket(fd.as_raw_fd(), &address)?,
        Err(_) => {
            let folder = path.parent().ok_or(Errno::ENOENT)?;
            let name = path.file_name().ok_or(Errno::ENOENT)?;
            let folder = open(folder, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map(sys::own)?;
            let short = format!("/proc/self/fd/{}/{}", folder.as_raw_fd(), name.to_string_lossy());
            connect_socket(fd.as_raw_fd(), &UnixAddr::new(short.as_str())?)?;
        }
    }
    Ok(fd)
}

/// Makes a terminal, sends its master, and makes its other end this session's. Returns that end's path.
///
/// # Errors
/// When the container has no devpts.
pub(super) fn set_up(console: &OwnedFd) -> Result<(OwnedFd, String), String> {
    let failed = |what: &'static str| move |errno: Errno| format!("terminal: {what}: {}", errno.desc());
    let master = open("/dev/pts/ptmx", OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty())
        .map(sys::own)
        .map_err(failed("/dev/pts/ptmx"))?;
    let kind = rustix::fs::fstatfs(&master).map_err(|errno| format!("terminal: /dev/pts: {errno}"))?;
    if kind.f_type as u64 != DEVPTS_SUPER_MAGIC {
        return Err("terminal: /dev/pts is no devpts: mount one there".to_owned());
    }
    let number = sys::unlock_terminal(&master).map_err(failed("unlocking"))?;
    let path = format!("/dev/pts/{number}");
    let slave = open(path.as_str(), OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty())
        .map(sys::own)
        .map_err(failed("opening it"))?;
    let rights = [master.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(console.as_raw_fd(), &[IoSlice::new(path.as_bytes())], &control, MsgFlags::MSG_NOSIGNAL, None)
        .map_err(failed("sending its master"))?;
    Ok((slave, path))
}

/// Makes a terminal this session's own, and standard input, output and error.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn take(slave: &OwnedFd) -> Result<(), String> {
    let failed = |errno: Errno| format!("terminal: {}", errno.desc());
    rustix::process::ioctl_tiocsctty(slave).map_err(|errno| format!("terminal: {errno}"))?;
    for number in 0..3 {
        nix::unistd::dup2(slave.as_raw_fd(), number).map_err(failed)?;
    }
    Ok(())
}

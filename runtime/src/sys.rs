//! The few system calls that need `unsafe`, each behind a safe or clearly conditioned function.
//!
//! Everything here runs in the single-threaded shim or in a worker that it forked.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid};
use std::ffi::CString;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Forks, runs `child` in the new process and leaves it with the returned code, without running exit handlers.
///
/// # Errors
/// What `fork(2)` returns, EAGAIN and ENOMEM mostly; EDEADLK when the caller has threads: the child could find the
/// allocator locked by a thread that does not exist in it.
pub fn fork_worker(child: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    if thread_count() != 1 {
        return Err(Errno::EDEADLK);
    }
    // SAFETY: the process has one thread (checked above), so the child owns every lock and may allocate.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = child();
            // SAFETY: `_exit` does not return and touches no memory of ours.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Number of threads of this process, 0 when `/proc` cannot be read.
fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// Leaves the process at once: no exit handlers, no flushing.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` does not return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Replaces this process by `path`.
///
/// # Errors
/// What `execve(2)` returns; there is no success to return.
pub fn execve(path: &CString, argv: &[CString], envp: &[CString]) -> Errno {
    match nix::unistd::execve(path, argv, envp) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

/// Takes ownership of a descriptor that was received from the kernel in a message.
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: called once for each descriptor of a SCM_RIGHTS message, which nobody else owns yet.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Makes orphaned descendants children of this process (`PR_SET_CHILD_SUBREAPER`, prctl(2)).
///
/// # Errors
/// EINVAL on kernels before 3.4.
pub fn become_subreaper() -> Result<(), Errno> {
    nix::sys::prctl::set_child_subreaper(true)
}

/// Borrows a descriptor by number.
///
/// The callers are launchers in a new process: the descriptor was handed down to them by number and stays open until
/// the process executes its program or ends.
pub fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: see above; a number that is not open would only give EBADF.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Closes every descriptor from `first` on.
pub fn close_descriptors_from(first: RawFd) {
    close_descriptors_between(first, RawFd::MAX);
}

/// Closes the descriptors `first..=last` (close_range(2), or one by one on kernels before 5.9).
pub fn close_descriptors_between(first: RawFd, last: RawFd) {
    if first > last {
        return;
    }
    // SAFETY: closes descriptors only; callers are processes about to execute or wait, which use none of them.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return;
    }
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")
        .map(|entries| entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
        .unwrap_or_default();
    for fd in open.into_iter().filter(|fd| (first..=last).contains(fd)) {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

/// Registers a descriptor with the tokio runtime. Needs one.
///
/// # Errors
/// What epoll_ctl(2) returns.
pub fn register(fd: OwnedFd) -> std::io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` answers the same descriptor as long as it lives, and `AsyncFd` owns it.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(std::io::Error::from)
}

/// Has the kernel begin to write a part of a file to the disk, without waiting for it (sync_file_range(2)).
///
/// # Errors
/// ESPIPE and ENOSYS where there is no such thing; EIO, ENOSPC when earlier writes failed.
pub fn begin_writeback(file: &std::fs::File, offset: u64, length: u64) -> std::io::Result<()> {
    let (offset, length) = (offset as libc::off64_t, length as libc::off64_t);
    // SAFETY: no memory is passed.
    let result = unsafe {
        libc::sync_file_range(std::os::fd::AsRawFd::as_raw_fd(file), offset, length, libc::SYNC_FILE_RANGE_WRITE)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

//! The few system calls that need `unsafe`, each behind a safe or clearly conditioned function.
//!
//! Everything here runs in the single-threaded shim or in a worker that it forked.
#![allow(unsafe_code)]

use crate::seccomp::Filter;
use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid};
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Forks, runs `child` in the new process and leaves it with the returned code, without running exit handlers.
///
/// # Errors
/// What `fork(2)` returns, EAGAIN and ENOMEM mostly; EDEADLK when the caller has threads: the child could find the
/// allocator locked by a thread that does not exist in it.
pub fn fork_worker(child: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    if !has_one_thread() {
        return Err(Errno::EDEADLK);
    }
    // SAFETY: the process has one thread (checked above), so the child owns every lock and may allocate.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            WORKER.store(true, Ordering::Relaxed);
            let code = child();
            // SAFETY: `_exit` does not return and touches no memory of ours.
            unsafe { libc::_exit(code) }
        }
    }
}

/// `struct clone_args` (linux/sched.h), as of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// As [`fork_worker`], in new namespaces (`CLONE_NEW…`, `CLONE_PARENT` of clone(2)), and born in a cgroup of the unified
/// hierarchy (`CLONE_INTO_CGROUP`).
///
/// # Errors
/// As for [`fork_worker`]; with a cgroup ENOSYS and E2BIG before Linux 5.7.
pub fn clone_process(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> i32,
) -> Result<Pid, Errno> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    const CLONE_PARENT: u64 = libc::CLONE_PARENT as u32 as u64;
    if !has_one_thread() {
        return Err(Errno::EDEADLK);
    }
    let mut arguments = CloneArguments {
        flags: flags | if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
        // Who has the caller's parent has the caller's signal.
        exit_signal: if flags & CLONE_PARENT == 0 { libc::SIGCHLD as u64 } else { 0 },
        cgroup: cgroup.map_or(0, |cgroup| cgroup.as_raw_fd() as u64),
        ..CloneArguments::default()
    };
    // SAFETY: without CLONE_VM the child has a copy of everything, and goes on on its copy of this stack. The process has
    // one thread (checked above), so the child owns every lock. What the C library remembers of the thread's own number
    // is the parent's in the child; it is used for nothing but signals to oneself, which nobody sends.
    let result = unsafe {
        libc::syscall(libc::SYS_clone3, std::ptr::from_mut(&mut arguments), size_of::<CloneArguments>())
    };
    let result = match Errno::result(result) {
        // Before Linux 5.3. The order of the five arguments differs between processors; all but the first are nothing.
        Err(Errno::ENOSYS) if cgroup.is_none() => {
            let nothing: libc::c_ulong = 0;
            let flags = (flags | arguments.exit_signal) as libc::c_ulong;
            // SAFETY: as above.
            Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, nothing, nothing, nothing, nothing) })
        }
        result => result,
    };
    match result? {
        0 => {
            WORKER.store(true, Ordering::Relaxed);
            let code = child();
            // SAFETY: `_exit` does not return and touches no memory of ours.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(Pid::from_raw(pid as i32)),
    }
}

/// This process is a fork of ours: it began with one thread, and workers start none. In a container's mount namespace
/// `/proc` would say nothing true.
static WORKER: AtomicBool = AtomicBool::new(false);

fn has_one_thread() -> bool {
    WORKER.load(Ordering::Relaxed) || std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
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

/// Gives this process a session keyring of its own (keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING`). Kernels without keys
/// have none to share.
pub fn join_session_keyring(name: &std::ffi::CStr) {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the kernel reads a string that ends in NUL, which lives beyond the call.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
}

/// A descriptor of a process, readable once it has ended (pidfd_open(2)).
///
/// # Errors
/// ESRCH when there is none, ENOSYS before Linux 5.3.
pub fn open_process(pid: i32) -> Result<OwnedFd, Errno> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(Errno::ESRCH)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

/// Sends a signal, by number: the kernel knows more of them than have names.
///
/// # Errors
/// ESRCH, EPERM, EINVAL; ENOSYS before Linux 5.1.
pub fn signal_process(process: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let nothing: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, nothing, 0) };
    Errno::result(result).map(drop)
}

/// Sends a signal by number to a process by number (kill(2)); its result.
pub fn kill_number(pid: i32, signal: i32) -> libc::c_int {
    // SAFETY: no memory is passed.
    unsafe { libc::kill(pid, signal) }
}

/// Sets attributes (`MOUNT_ATTR_*`) of a mount that was opened (mount_setattr(2)).
///
/// # Errors
/// ENOSYS before Linux 5.12.
pub fn set_mount_attributes(mount: &OwnedFd, set: u32) -> Result<(), Errno> {
    let attributes = libc::mount_attr { attr_set: set.into(), attr_clr: 0, propagation: 0, userns_fd: 0 };
    change_mount(mount, &attributes, 0)
}

/// Shows files of a mount that was opened, and is nowhere yet, with other owners: those that a user namespace has for
/// theirs (`MOUNT_ATTR_IDMAP`, mount_setattr(2)); `all`: also in the mounts below it.
///
/// # Errors
/// ENOSYS before Linux 5.12, EINVAL for a file system that cannot, EPERM when it is so already.
pub fn map_owners(mount: &OwnedFd, users: &OwnedFd, all: bool) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.as_raw_fd() as u64,
    };
    change_mount(mount, &attributes, if all { libc::AT_RECURSIVE } else { 0 })
}

fn change_mount(mount: &OwnedFd, attributes: &libc::mount_attr, flags: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the kernel reads an empty string and a structure of the size that it is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// A copy of a descriptor of another process, by its number there (pidfd_getfd(2)).
///
/// # Errors
/// EBADF when it has none of that number, EPERM without `CAP_SYS_PTRACE`, ENOSYS before Linux 5.6.
pub fn take_descriptor(process: BorrowedFd<'_>, number: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: no memory is passed; the descriptor that comes is nobody else's.
    unsafe {
        let result = Errno::result(libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0))?;
        Ok(OwnedFd::from_raw_fd(result as RawFd))
    }
}

/// A byte that other processes write through a file: read without a system call.
#[derive(Debug, Clone, Copy)]
pub struct SharedByte(&'static AtomicU8);

impl SharedByte {
    /// The first byte of a file, for as long as this process, and forks of it, run.
    ///
    /// # Errors
    /// As ftruncate(2) and mmap(2) say.
    pub fn of(file: &std::fs::File) -> Result<Self, Errno> {
        // Beyond the end of a file there is no memory.
        nix::unistd::ftruncate(file, 1)?;
        let (size, flags) = (rustix::param::page_size(), libc::MAP_SHARED);
        // SAFETY: a new mapping at a place of the kernel's choice; it is never unmapped, so the reference stays good.
        // Others change the byte, which is what an atomic one is for. Nobody makes the file shorter.
        unsafe {
            let place = libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ, flags, file.as_raw_fd(), 0);
            if place == libc::MAP_FAILED {
                return Err(Errno::last());
            }
            Ok(Self(&*place.cast::<AtomicU8>()))
        }
    }

    /// Somebody has written to it.
    pub fn is_set(self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }
}

/// The hard limit of a resource by the kernel's number (getrlimit(2)); `None` for one that it has not.
pub fn hard_limit(resource: usize) -> Option<u64> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let nothing: *const libc::rlimit64 = std::ptr::null();
    // SAFETY: the kernel writes one structure of this layout, the same on all machines, to `limit`.
    let result = unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, nothing, &raw mut limit) };
    (result == 0).then_some(limit.rlim_max)
}

/// Unlocks a terminal by its master, and answers its number (`TIOCSPTLCK`, `TIOCGPTN`, ioctl_tty(2)).
///
/// # Errors
/// ENOTTY when it is none.
pub fn unlock_terminal(master: &OwnedFd) -> Result<u32, Errno> {
    let (unlocked, mut number): (libc::c_int, libc::c_uint) = (0, 0);
    // SAFETY: the kernel reads one number and writes the other, which live beyond the calls.
    unsafe {
        Errno::result(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlocked))?;
        Errno::result(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN as _, &raw mut number))?;
    }
    Ok(number)
}

/// Sets a limit of a resource by the kernel's number (prlimit(2)).
///
/// # Errors
/// EPERM for a higher hard limit, EINVAL for a soft one above the hard one.
pub fn set_limit(resource: usize, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let nothing: *mut libc::rlimit64 = std::ptr::null_mut();
    // SAFETY: the kernel reads one structure of this layout, the same on all machines.
    Errno::result(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, nothing) }).map(drop)
}

/// Executes the file of a descriptor (execveat(2), `AT_EMPTY_PATH`). Returns only on failure.
pub fn execute(file: BorrowedFd<'_>, argv: &[CString], envp: &[CString]) -> Errno {
    let list = |all: &[CString]| -> Vec<*const libc::c_char> {
        all.iter().map(|it| it.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (list(argv), list(envp));
    // SAFETY: the kernel reads an empty path and two lists of strings that end in NULL, which live beyond the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    Errno::last()
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

/// Has the kernel ask a program at each system call of this thread and of what it starts, for ever (seccomp(2)).
///
/// # Errors
/// EACCES without `no_new_privs` and `CAP_SYS_ADMIN`, EINVAL and ENOSYS where the kernel has no filters.
pub fn load_filter(wanted: &Filter) -> Result<Option<OwnedFd>, Errno> {
    let program = &wanted.program;
    let flags = if wanted.log { libc::SECCOMP_FILTER_FLAG_LOG } else { 0 }
        | if wanted.notify { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    let length = u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let mut filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|it| libc::sock_filter { code: it.code, jt: it.jump_true, jf: it.jump_false, k: it.operand })
        .collect();
    let program = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel reads `len` instructions from `filter`, which lives beyond the call.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(&program))
    };
    let number = Errno::result(result)?;
    Ok(wanted.notify.then(|| own(number as RawFd)))
}

/// Whether the kernel has system call filters: it then looks for the program, which is nowhere (seccomp(2)).
pub fn has_filters() -> bool {
    let nowhere: *const libc::sock_fprog = std::ptr::null();
    // SAFETY: the kernel reads a program from nowhere, which fails and changes nothing.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, nowhere) };
    Errno::result(result) == Err(Errno::EFAULT)
}

// ---- bpf(2): what cgroups of v2 need for their device programs ----

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;

/// Programs of one cgroup (`BPF_CGROUP_MAX_PROGS`, include/linux/bpf-cgroup-defs.h of the kernel).
const MAX_PROGRAMS: usize = 64;

/// The parts of `union bpf_attr` that are used (include/uapi/linux/bpf.h of the kernel).
#[repr(C)]
#[derive(Default)]
struct LoadProgram {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct AttachProgram {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryPrograms {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    _unused: u32,
}

#[repr(C)]
#[derive(Default)]
struct ProgramById {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct AskProgram {
    program: u32,
    length: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
}

fn address<T>(of: *const T) -> u64 {
    of as usize as u64
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> Result<libc::c_long, Errno> {
    // SAFETY: `T` is one of the structures above, laid out as the kernel reads them for its command; what their
    // addresses point to is owned by the caller and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    Errno::result(result)
}

/// Loads a program for the devices of a cgroup, from encoded instructions.
///
/// # Errors
/// EINVAL without `CONFIG_CGROUP_BPF`, ENOSYS without `CONFIG_BPF_SYSCALL`; EPERM without the capability, and on kernels
/// before 5.11 when `RLIMIT_MEMLOCK` is used up.
pub fn load_device_program(program: &[u64]) -> Result<OwnedFd, Errno> {
    let mut attributes = LoadProgram {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        instructions: address(program.as_ptr()),
        license: address(c"Apache-2.0".as_ptr()),
        ..LoadProgram::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &mut attributes)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Has the kernel run a device program for a cgroup, beside those that are there and those of the cgroups above it.
///
/// # Errors
/// What bpf(2) returns.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attributes = AttachProgram {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &mut attributes).map(drop)
}

/// Takes a device program of a cgroup out of force.
///
/// # Errors
/// What bpf(2) returns.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attributes = AttachProgram {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: 0,
    };
    bpf(BPF_PROG_DETACH, &mut attributes).map(drop)
}

/// Opens a program by the kernel's id of it.
///
/// # Errors
/// ENOENT when it is gone, EPERM without the capability.
pub fn program_by_id(id: u32) -> Result<OwnedFd, Errno> {
    let mut attributes = ProgramById { id, ..ProgramById::default() };
    let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut attributes)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The ids of a cgroup's own device programs.
///
/// # Errors
/// What bpf(2) returns.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    let mut ids = [0_u32; MAX_PROGRAMS];
    let mut attributes = QueryPrograms {
        target: cgroup.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        ids: address(ids.as_mut_ptr()),
        count: MAX_PROGRAMS as u32,
        ..QueryPrograms::default()
    };
    bpf(BPF_PROG_QUERY, &mut attributes)?;
    Ok(ids.into_iter().take(attributes.count as usize).collect())
}

/// The kernel's id of a program.
///
/// # Errors
/// What bpf(2) returns.
pub fn program_id(program: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut info = ProgramInfo::default();
    let mut attributes = AskProgram {
        program: program.as_raw_fd() as u32,
        length: size_of::<ProgramInfo>() as u32,
        info: address(&raw mut info),
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info.id)
}

/// Registers a descriptor with the tokio runtime. Needs one.
///
/// # Errors
/// What epoll_ctl(2) returns.
pub fn register(fd: OwnedFd) -> std::io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` answers the same descriptor as long as it lives, and `AsyncFd` owns it.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(std::io::Error::from)
}

/// Waits until a registered descriptor tells something, and takes one read of it.
///
/// # Errors
/// When the descriptor is broken.
pub async fn heard(fd: &tokio::io::unix::AsyncFd<OwnedFd>, buffer: &mut [u8]) -> std::io::Result<()> {
    loop {
        let mut ready = fd.readable().await?;
        match nix::unistd::read(fd.get_ref().as_raw_fd(), buffer) {
            Ok(_) => return Ok(()),
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
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

/// Has the allocator use one heap for all threads (`M_ARENA_MAX`, mallopt(3)); musl's has one anyway.
pub fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: changes a setting of the allocator, which takes its own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Has the allocator give free memory back to the kernel (malloc_trim(3)); musl's does by itself.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks; releases only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the read-only pages of this program from memory; they are read again when they are used.
pub fn release_program() {
    // SAFETY: the callback keeps to what dl_iterate_phdr(3) asks of it.
    unsafe {
        libc::dl_iterate_phdr(Some(release_object), std::ptr::null_mut());
    }
}

/// Called for the program first (dl_iterate_phdr(3)); ends the iteration there.
unsafe extern "C" fn release_object(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the loader passes a valid object; its program headers are mapped as long as it is.
    let (base, headers) = unsafe {
        let object = &*object;
        if object.dlpi_phdr.is_null() {
            return 1;
        }
        (object.dlpi_addr as usize, std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)))
    };
    // What was written to, relocations too, is in writable segments and is no copy of the file.
    let read_only = headers.iter().filter(|it| it.p_type == libc::PT_LOAD && it.p_flags & libc::PF_W == 0);
    let page = rustix::param::page_size();
    for header in read_only {
        let start = (base + header.p_vaddr as usize).next_multiple_of(page);
        let end = (base + header.p_vaddr as usize + header.p_memsz as usize) / page * page;
        if start < end {
            // SAFETY: whole pages of a private mapping of a file that was never written to; they are read from the
            // file again when they are used. An error leaves everything as it is.
            unsafe {
                libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
            }
        }
    }
    1
}

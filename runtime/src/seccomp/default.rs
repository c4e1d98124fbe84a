//! What a container may ask of the kernel when its file says nothing.
//!
//! The set is that of Docker's default profile: what needs no privilege, and what a granted capability is for. Two
//! things are as in the profile of Podman: a call that nobody knew when this was written gives ENOSYS, so that a newer
//! libc falls back, and only a call that is known and refused gives EPERM.

use super::profile::{Action, Arch, Argument, Compare, Profile, Rule};

/// Allowed to everybody.
const ALLOWED: &[&str] = &[
    // Files by descriptor: read, write, place, size, room.
    "_llseek close close_range copy_file_range dup dup2 dup3 fadvise64 fadvise64_64 fallocate fcntl fcntl64 \
     fdatasync flock fsync ftruncate ftruncate64 ioctl lseek pread64 preadv preadv2 pwrite64 pwritev pwritev2 \
     read readahead readv sendfile sendfile64 splice sync sync_file_range syncfs tee truncate truncate64 vmsplice \
     write writev",
    // Names of files: make, find, move, remove.
    "access chdir creat faccessat faccessat2 fchdir getcwd getdents getdents64 link linkat mkdir mkdirat mknod \
     mknodat name_to_handle_at open openat openat2 readdir readlink readlinkat rename renameat renameat2 rmdir \
     symlink symlinkat umask unlink unlinkat",
    // What is known of files, and who may use them.
    "chmod chown chown32 fchmod fchmodat fchmodat2 fchown fchown32 fchownat fgetxattr flistxattr fremovexattr \
     fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 futimesat getxattr lchown lchown32 lgetxattr listxattr \
     llistxattr lremovexattr lsetxattr lstat lstat64 newfstatat removexattr setxattr stat stat64 statfs statfs64 \
     statx utime utimensat utimensat_time64 utimes",
    // Changes of files, told.
    "fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch",
    // Memory.
    "brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall \
     mmap mmap2 mprotect mremap msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect \
     process_mrelease remap_file_pages",
    // Waiting for descriptors.
    "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
     epoll_wait_old eventfd eventfd2 pipe pipe2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd \
     signalfd4 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64",
    // Input and output that goes on by itself, of the older kind.
    "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit",
    // Processes and threads: begin, wait, end, be found.
    "arch_prctl execve execveat exit exit_group fork get_robust_list get_thread_area getpgid getpgrp getpid \
     getppid getsid gettid kill pidfd_open pidfd_send_signal prctl process_vm_readv process_vm_writev ptrace \
     restart_syscall rseq set_robust_list set_thread_area set_tid_address setpgid setsid syscall tgkill tkill \
     vfork wait4 waitid waitpid",
    // Locks between threads.
    "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake",
    // Signals.
    "alarm pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
     rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaction sigaltstack signal sigpending sigprocmask \
     sigreturn sigsuspend",
    // Who the process is, and what it may do less.
    "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid \
     getresgid32 getresuid getresuid32 getuid getuid32 landlock_add_rule landlock_create_ruleset \
     landlock_restrict_self seccomp setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 \
     setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32",
    // Limits and turns.
    "getcpu getpriority getrlimit getrusage ioprio_get ioprio_set prlimit64 sched_get_priority_max \
     sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler \
     sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
     sched_setscheduler sched_yield setpriority setrlimit ugetrlimit",
    // Time, read and waited for.
    "adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
     clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create \
     timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 times",
    // Sockets that are there.
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 \
     recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair",
    // System V and POSIX messages, semaphores, shared memory, in a namespace of the container's own.
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
     mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt \
     shmget",
    // The machine, read.
    "getrandom sysinfo uname",
];

/// Allowed on one processor only.
const OF_ARCHITECTURE: &[(&[Arch], &str)] = &[
    (
        &[Arch::Arm, Arch::Aarch64],
        "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    ),
    (&[Arch::X86, Arch::X86_64], "modify_ldt"),
];

/// Allowed to who has the capability, refused to all others.
const OF_CAPABILITY: &[(&str, &str)] = &[
    ("BPF", "bpf"),
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    ("PERFMON", "perf_event_open"),
    (
        "SYS_ADMIN",
        "bpf fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount open_tree \
         perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYSLOG", "syslog"),
];

/// Known, and refused to everybody: keys are not in a namespace, the others are old, or attack the kernel.
const REFUSED: &str = "_sysctl add_key bdflush create_module get_kernel_syms keyctl kexec_file_load kexec_load migrate_pages \
     move_pages nfsservctl nice oldfstat oldlstat oldolduname oldstat olduname pciconfig_iobase pciconfig_read \
     pciconfig_write pivot_root query_module request_key sgetmask ssetmask swapoff swapon sysfs uselib \
     userfaultfd ustat vm86 vm86old";

/// Flags of clone(2) that make namespaces (include/uapi/linux/sched.h of the kernel).
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// Personalities (personality(2)) that only change how memory is laid out or what uname(2) says: Linux, 32 bits, both
/// with `UNAME26`, and the question which it is.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Address families whose sockets reach around the network namespace (vsock(7)) or into the kernel's cryptography.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// Those of these capabilities that change the profile, in an order of their own.
pub fn that_matter(capabilities: &[&str]) -> Vec<&'static str> {
    OF_CAPABILITY.iter().map(|(name, _)| *name).filter(|name| capabilities.contains(name)).collect()
}

/// The profile for who has these capabilities (names without `CAP_`).
pub fn profile(capabilities: &[&str]) -> Profile {
    let has = |name: &str| capabilities.contains(&name);
    let rule = |calls: &str, action: Action| Rule::of(calls, action);
    let refused = Action::Errno(libc::EPERM as u16);
    let mut rules: Vec<Rule> = ALLOWED.iter().map(|calls| rule(calls, Action::Allow)).collect();
    for (arches, calls) in OF_ARCHITECTURE {
        rules.push(Rule { arches: arches.to_vec(), ..rule(calls, Action::Allow) });
    }
    let (granted, missing): (Vec<_>, Vec<_>) = OF_CAPABILITY.iter().partition(|(name, _)| has(name));
    rules.extend(granted.iter().map(|(_, calls)| rule(calls, Action::Allow)));
    // What two capabilities are for is refused to who has neither.
    let allowed: Vec<&str> = granted.iter().flat_map(|(_, calls)| calls.split_whitespace()).collect();
    for (_, calls) in missing {
        let calls: Vec<&str> = calls.split_whitespace().filter(|call| !allowed.contains(call)).collect();
        rules.push(rule(&calls.join(" "), refused));
    }
    rules.push(rule(REFUSED, refused));
    let with = |calls: &str, action, index, compare| Rule {
        arguments: vec![Argument { index, compare }],
        ..rule(calls, action)
    };
    rules.extend(PERSONALITIES.map(|it| with("personality", Action::Allow, 0, Compare::Equal(it))));
    rules.push(rule("personality", refused));
    rules.extend([AF_ALG, AF_VSOCK].map(|family| with("socket", refused, 0, Compare::Equal(family))));
    rules.push(rule("socket", Action::Allow));
    if has("SYS_ADMIN") {
        rules.push(rule("clone clone3", Action::Allow));
    } else {
        rules.push(with("clone", Action::Allow, 0, Compare::MaskedEqual { mask: NEW_NAMESPACES, value: 0 }));
        rules.push(rule("clone", refused));
        // Its flags are in memory, where no filter reads: who asks for it falls back to clone(2).
        rules.push(rule("clone3", Action::Errno(libc::ENOSYS as u16)));
    }
    Profile { default: Action::Errno(libc::ENOSYS as u16), rules, log: false }
}

/* The least that a container costs: the kernel's work of create, start, exit and delete for the configuration of
 * `crun spec`, with nothing looked up, checked or written down. One round for each line on standard input; the
 * milliseconds of each go to standard output.
 *
 * floor ROOTFS DEVICE-PROGRAM FILTER: two files with instructions as they lie in memory. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CGROUP "/sys/fs/cgroup/coracle-floor"

struct arguments {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

static char device_program[65536], filter[65536];
static size_t device_length, filter_length;

static void must(int good, const char *what) {
    if (!good) {
        fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
        _exit(1);
    }
}

static size_t load(const char *path, char *into, size_t most) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    must(fd >= 0, path);
    ssize_t length = read(fd, into, most);
    must(length > 0, path);
    close(fd);
    return (size_t)length;
}

static void inside(const char *root) {
    static const char *masked_files[] = {"proc/kcore", "proc/keys", "proc/timer_list"};
    static const char *masked_folders[] = {"proc/acpi", "proc/scsi", "sys/firmware"};
    static const char *read_only[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"};
    static const struct { const char *name; int major, minor; } nodes[] = {
        {"dev/null", 1, 3}, {"dev/zero", 1, 5}, {"dev/full", 1, 7}, {"dev/random", 1, 8}, {"dev/urandom", 1, 9}, {"dev/tty", 5, 0},
    };
    const unsigned long plain = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    must(setsid() >= 0, "setsid");
    must(unshare(CLONE_NEWCGROUP) == 0, "cgroup namespace");
    must(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) == 0, "slave");
    must(mount(root, root, NULL, MS_BIND | MS_REC, NULL) == 0, "root");
    must(chdir(root) == 0, "chdir");
    must(mount("proc", "proc", "proc", 0, NULL) == 0, "proc");
    must(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k") == 0, "dev");
    must(mkdir("dev/pts", 0755) == 0 && mkdir("dev/shm", 0755) == 0 && mkdir("dev/mqueue", 0755) == 0, "mkdir");
    must(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5") == 0, "pts");
    must(mount("shm", "dev/shm", "tmpfs", plain, "mode=1777,size=65536k") == 0, "shm");
    must(mount("mqueue", "dev/mqueue", "mqueue", plain, NULL) == 0, "mqueue");
    must(mount("sysfs", "sys", "sysfs", plain | MS_RDONLY, NULL) == 0, "sys");
    must(mount("cgroup", "sys/fs/cgroup", "cgroup2", plain | MS_RELATIME | MS_RDONLY, NULL) == 0, "cgroup");
    umask(0);
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
        must(mknod(nodes[i].name, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)) == 0, nodes[i].name);
    must(symlink("/proc/self/fd", "dev/fd") == 0 && symlink("/proc/self/fd/0", "dev/stdin") == 0
        && symlink("/proc/self/fd/1", "dev/stdout") == 0 && symlink("/proc/self/fd/2", "dev/stderr") == 0
        && symlink("pts/ptmx", "dev/ptmx") == 0, "links");
    for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++) {
        if (access(read_only[i], F_OK) != 0)
            continue;
        must(mount(read_only[i], read_only[i], NULL, MS_BIND | MS_REC, NULL) == 0, read_only[i]);
        must(mount(NULL, read_only[i], NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) == 0, read_only[i]);
    }
    for (size_t i = 0; i < sizeof masked_files / sizeof *masked_files; i++)
        if (access(masked_files[i], F_OK) == 0)
            must(mount("dev/null", masked_files[i], NULL, MS_BIND, NULL) == 0, masked_files[i]);
    for (size_t i = 0; i < sizeof masked_folders / sizeof *masked_folders; i++)
        if (access(masked_folders[i], F_OK) == 0)
            must(mount("tmpfs", masked_folders[i], "tmpfs", MS_RDONLY, "nr_blocks=1,nr_inodes=1") == 0, masked_folders[i]);
    must(syscall(SYS_pivot_root, ".", ".") == 0, "pivot_root");
    must(mount(NULL, ".", NULL, MS_SLAVE | MS_REC, NULL) == 0, "old root");
    must(umount2(".", MNT_DETACH) == 0 && chdir("/") == 0, "leaving");
    must(sethostname("floor", 5) == 0, "hostname");
    must(mount(NULL, "/", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) == 0, "read-only");
    const uint64_t kept = 1u << 5 | 1u << 10 | 1u << 29;
    for (int capability = 0; capability <= 40; capability++)
        if (!(kept >> capability & 1))
            prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{(uint32_t)kept, (uint32_t)kept, 0}, {0, 0, 0}};
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
    must(syscall(SYS_capset, &header, data) == 0, "capset");
    struct sock_fprog program = {(unsigned short)(filter_length / sizeof(struct sock_filter)), (struct sock_filter *)filter};
    must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0, "seccomp");
    execl("/bin/true", "true", NULL);
    must(0, "/bin/true");
}

static void once(const char *root) {
    must(mkdir(CGROUP, 0755) == 0, CGROUP);
    int cgroup = open(CGROUP, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    must(cgroup >= 0, CGROUP);
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
    attributes.insns = (uintptr_t)device_program;
    attributes.insn_cnt = (uint32_t)(device_length / sizeof(struct bpf_insn));
    attributes.license = (uintptr_t)"Apache-2.0";
    int program = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes);
    must(program >= 0, "device program");
    memset(&attributes, 0, sizeof attributes);
    attributes.target_fd = (uint32_t)cgroup;
    attributes.attach_bpf_fd = (uint32_t)program;
    attributes.attach_type = BPF_CGROUP_DEVICE;
    attributes.attach_flags = BPF_F_ALLOW_MULTI;
    must(syscall(SYS_bpf, BPF_PROG_ATTACH, &attributes, sizeof attributes) == 0, "attach");
    struct arguments arguments;
    memset(&arguments, 0, sizeof arguments);
    arguments.flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET | CLONE_INTO_CGROUP;
    arguments.exit_signal = SIGCHLD;
    arguments.cgroup = (uint64_t)cgroup;
    pid_t child = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    must(child >= 0, "clone3");
    if (child == 0)
        inside(root);
    int status;
    must(waitpid(child, &status, 0) == child && status == 0, "wait");
    close(program);
    close(cgroup);
    must(rmdir(CGROUP) == 0, "rmdir");
}

int main(int count, char **words) {
    must(count == 4, "floor ROOTFS DEVICE-PROGRAM FILTER");
    device_length = load(words[2], device_program, sizeof device_program);
    filter_length = load(words[3], filter, sizeof filter);
    char line[16];
    while (fgets(line, sizeof line, stdin)) {
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        once(words[1]);
        clock_gettime(CLOCK_MONOTONIC, &end);
        printf("%.6f\n", (double)(end.tv_sec - begin.tv_sec) * 1e3 + (double)(end.tv_nsec - begin.tv_nsec) / 1e6);
        fflush(stdout);
    }
    return 0;
}

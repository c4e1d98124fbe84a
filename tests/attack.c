/* What a container may try against its machine. `attack NAME [ARGUMENT]` prints `yes`, or why not. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static int say(long good) {
    printf("%s\n", good >= 0 ? "yes" : strerror(errno));
    return good >= 0 ? 0 : 1;
}

/* Waits for a process whose program is not the container's, keeps its file open, and writes to it when it has ended. */
static long overwrite(void) {
    for (int round = 0; round < 200000; round++) {
        DIR *all = opendir("/proc");
        for (struct dirent *it; (it = readdir(all));) {
            char path[64], target[256];
            if (it->d_name[0] < '1' || it->d_name[0] > '9' || atoi(it->d_name) == getpid())
                continue;
            snprintf(path, sizeof path, "/proc/%s/exe", it->d_name);
            ssize_t length = readlink(path, target, sizeof target - 1);
            if (length <= 0)
                continue;
            target[length] = 0;
            /* Everything of the container's own is there. */
            if (!strncmp(target, "/bin/", 5))
                continue;
            int held = open(path, O_RDONLY);
            if (held < 0)
                continue;
            closedir(all);
            printf("held\n");
            fflush(stdout);
            snprintf(path, sizeof path, "/proc/self/fd/%d", held);
            for (int wait = 0; wait < 300; wait++) {
                int written = open(path, O_WRONLY);
                if (written >= 0 || errno != ETXTBSY)
                    return written;
                usleep(10000);
            }
            return -1;
        }
        closedir(all);
    }
    errno = ESRCH;
    return -1;
}

int main(int count, char **words) {
    const char *name = count > 1 ? words[1] : "", *argument = count > 2 ? words[2] : "";
    setvbuf(stdout, NULL, _IONBF, 0);
    if (!strcmp(name, "open"))
        return say(open(argument, O_RDONLY | O_NONBLOCK));
    if (!strcmp(name, "write"))
        return say(open(argument, O_WRONLY | O_NONBLOCK));
    if (!strcmp(name, "mknod"))
        return say(mknod("/tmp/node", S_IFCHR | 0600, makedev(10, 229)));
    if (!strcmp(name, "mount"))
        return say(mount("tmpfs", "/tmp", "tmpfs", 0, NULL));
    if (!strcmp(name, "remount"))
        return say(mount(NULL, "/sys", NULL, MS_REMOUNT | MS_BIND, NULL));
    if (!strcmp(name, "unshare"))
        return say(unshare(CLONE_NEWUSER));
    if (!strcmp(name, "ptrace"))
        return say(ptrace(PTRACE_SEIZE, atoi(argument), NULL, NULL));
    if (!strcmp(name, "memory")) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%s/mem", argument);
        return say(open(path, O_RDWR));
    }
    if (!strcmp(name, "keyring"))
        return say(syscall(SYS_add_key, "user", "coracle-attack", "x", 1, -3));
    if (!strcmp(name, "key-of-others"))
        return say(syscall(SYS_keyctl, 10, -3, "user", "coracle-of-the-machine", 0));
    if (!strcmp(name, "bpf")) {
        union bpf_attr attributes;
        memset(&attributes, 0, sizeof attributes);
        attributes.map_type = BPF_MAP_TYPE_ARRAY;
        attributes.key_size = 4, attributes.value_size = 4, attributes.max_entries = 1;
        return say(syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes));
    }
    if (!strcmp(name, "userfaultfd"))
        return say(syscall(SYS_userfaultfd, 0));
    if (!strcmp(name, "handle")) {
        struct { struct file_handle head; unsigned char rest[128]; } handle;
        handle.head.handle_bytes = sizeof handle.rest;
        int mount_id, folder = open("/bin", O_RDONLY | O_DIRECTORY);
        if (name_to_handle_at(AT_FDCWD, "/bin/busybox", &handle.head, &mount_id, 0) < 0)
            return say(-1);
        return say(open_by_handle_at(folder, &handle.head, O_RDONLY));
    }
    if (!strcmp(name, "overwrite"))
        return say(overwrite());
    if (!strcmp(name, "escape")) {
        /* Through a descriptor of the machine's, should one be left open. */
        for (int fd = 3; fd < 100; fd++)
            if (fchdir(fd) == 0 && access("etc/hostname-of-the-machine", F_OK) == 0)
                return say(0);
        errno = EBADF;
        return say(-1);
    }
    if (!strcmp(name, "inject"))
        return say(ioctl(0, TIOCSTI, "x"));
    if (!strcmp(name, "exchange")) {
        /* A folder and a link change places, for ever. */
        for (;;)
            syscall(SYS_renameat2, AT_FDCWD, argument, AT_FDCWD, words[3], 2);
    }
    fprintf(stderr, "attack: no %s\n", name);
    return 2;
}

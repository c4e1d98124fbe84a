#!/bin/busybox sh
# The first process of a virtual machine that runs suites of tests on a root of which it can only read.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
# They are in no order of what needs what.
more=yes; while [ -n "$more" ]; do more=; for module in $(find /modules -name '*.ko'); do insmod $module 2> /dev/null && more=yes; done; done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 host /host || echo "no 9p"
mount -t tmpfs -o size=80% none /over; mkdir /over/upper /over/work
mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work none /root || echo "no overlay"
mount -t proc none /root/proc; mount -t sysfs none /root/sys; mount -t devtmpfs none /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts -o mode=620,ptmxmode=666 none /root/dev/pts; mount -t tmpfs none /root/dev/shm
# The programs may be in /tmp, where nothing may be over them.
mount -t tmpfs -o size=70% none /root/run; mkdir /root/run/tests
# What programs of this machine are writing at this moment is in no state to be read.
mkdir -p /root/var/lib/containers; mount -t tmpfs none /root/var/lib/containers
mount -t cgroup2 none /root/sys/fs/cgroup
# As on any machine: who enters a mount namespace comes to its first root, and that is no initial ramdisk.
cd /root; mount --move . /
chroot . /bin/sh -c 'ip link set lo up'
suite() {
  echo "SUITE $1 begins, $(cut -d ' ' -f 1 /proc/uptime) s"
  chroot . /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/run/tests CORACLE_PROGRAM=$3 CARGO_MANIFEST_DIR=$4 \
    /bin/sh -c "cd $4 && timeout $5 $2 $6 --test-threads 1 --show-output"
  echo "SUITE $1: $?"
}

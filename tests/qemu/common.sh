# The beginning of every script that asks a board something. Answers are lines "TEST BOOT NAME: VALUE".
/usr/bin/busybox mkdir -p /tmp/bin && /usr/bin/busybox --install -s /tmp/bin
export PATH=/tmp/bin:/usr/bin:/usr/sbin
exec > /dev/console 2>&1
boot=$(($(cat /mnt/state/test-boot 2> /dev/null || echo 0) + 1))
echo $boot > /mnt/state/test-boot; sync
# A record of the kernel's log, which other records are not in the middle of; a long answer is none.
say() { echo "<4>TEST $boot $1" > /dev/kmsg 2> /dev/null || echo "TEST $boot $1"; }
up() { cut -d ' ' -f 1 /proc/uptime; }
cgroup() { cat /sys/fs/cgroup/system/$1/cgroup.procs; }
# Waits for a word in the answer of a command, for a bounded time.
until_says() { n=0; until $2 2> /dev/null | grep -q "$1"; do n=$((n + 1)); [ $n -gt 600 ] && return 1; sleep 0.2; done; }
private() { awk '/^Private_[CD]/ { kib += $2 } END { print kib + 0 }' /proc/$1/smaps_rollup; }
private_of_ours() { echo $(($(private 1) + $(private $(cgroup shim)) + $(private $(cgroup agent)))); }
ticks() { cat /proc/1/stat /proc/$(cgroup shim)/stat /proc/$(cgroup agent)/stat | awk '{ sum += $14 + $15 } END { print sum }'; }
# Without starting anything, so that what is measured is the board's own.
until [ -S /run/coracle/agent.sock ]; do sleep 0.1; done
say "agent: $(up)"
say "lacks: $(tr '\n' ';' < /run/coracle-init/lacks)"
cd /usr/share/board-test

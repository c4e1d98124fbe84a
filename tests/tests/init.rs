//! `coracle init` as the first process of a virtual machine: a real kernel, disks, a watchdog.

use anyhow::{Context, ensure};
use coracle_tests::guest::Guest;
use coracle_tests::image::Image;
use coracle_tests::needs;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of a card.
const CARD: u64 = 128 << 20;

/// A card with a state and a data partition that are smaller than it, as an image has them.
fn card(path: &Path) -> anyhow::Result<()> {
    let sfdisk =
        "label: gpt\nstart=2048,size=16384,name=coracle-state\nstart=18432,size=65536,name=coracle-data\n";
    let file = std::fs::File::create(path)?;
    // What an image is, before it is on a card.
    file.set_len((18432 + 65536 + 2048) * 512)?;
    let script = format!(
        "printf '{}' | sfdisk -q {p} && truncate -s {CARD} {p} && mke2fs -q -t ext4 -L coracle-state -E offset={} {p} 8m && mke2fs -q -t ext4 -L coracle-data -E offset={},resize=8g {p} 32m",
        sfdisk.replace('\n', "\\n"),
        2048 * 512,
        18432 * 512,
        p = path.display()
    );
    coracle_tests::board::run(Command::new("sh").arg("-c").arg(script)).map(drop)
}

const FIRST_BOOT: &str = r#"
until coracle status > /dev/null 2>&1; do sleep 0.2; done
echo "host: $(hostname)"
echo "machine-id: $(cat /etc/machine-id | wc -c) $(cmp /etc/machine-id /mnt/state/machine-id && echo same)"
echo "data: $(stat -f -c %T /mnt/data) $(df -m /mnt/data | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2)"
echo "partition: $(cat /sys/class/block/vda2/size)"
echo "lacks: $(cat /run/coracle-init/lacks)"
echo "controllers: $(cat /sys/fs/cgroup/cgroup.subtree_control)"
echo "own cgroup: $(cut -d : -f 3 /proc/1/cgroup) $(cut -d : -f 3 /proc/self/cgroup)"
echo "agent cgroup: $(cat /sys/fs/cgroup/system/agent/cgroup.procs | wc -l)"
echo "swap: $(grep -c zram /proc/swaps)"
echo "loopback: $(ip link show lo | grep -c UP)"
echo "modules: $(lsmod | grep -c -E '^(overlay|virtio_blk|virtio_net|zram) ')"
echo "helper: $(cat /proc/sys/kernel/modprobe) $(mount -t squashfs /dev/vda /tmp 2> /dev/null; lsmod | grep -c '^squashfs ')"
dmesg | grep 'coracle-init: no \|coracle-init: module\|zram'
echo "blocked: $(grep SigBlk /proc/self/status | cut -f 2)"
echo "threads: $(ls /proc/1/task | wc -l)"
echo "seed: $(stat -c %s /mnt/state/random-seed)"
mkdir /demo; cd /demo; cp /given/compose.yaml .
coracle import --name hello:1 /given/hello > /tmp/import 2>&1; echo "import: $?"
coracle up -d > /tmp/up 2>&1; echo "up: $?"; cat /tmp/up
before=$(coracle ps --json | grep -o '"pid":[0-9]*')
kill -9 $(cat /sys/fs/cgroup/system/agent/cgroup.procs); sleep 0.5
until coracle status > /dev/null 2>&1; do sleep 0.2; done
echo "adopted: $([ "$before" = "$(coracle ps --json | grep -o '"pid":[0-9]*')" ] && echo same)"
kill -9 $(cat /sys/fs/cgroup/system/shim/cgroup.procs)
for n in $(seq 100); do coracle ps --json > /tmp/ps 2>&1; grep -q '"state":"running"' /tmp/ps && break; sleep 0.3; done
echo "shim again: $(grep -c '"state":"running"' /tmp/ps) $(cat /sys/fs/cgroup/system/shim/cgroup.procs | wc -l)"
kill -SEGV 1; kill -9 1; sleep 0.2; echo "first process: $(cat /proc/1/comm)"
(sleep 0.1 & exec sleep 0.01); sleep 0.5; echo "zombies: $(ps -o stat | grep -c '^Z')"
for n in 1 2 3 4; do (sh -c 'sleep 0.3 & exit 0') & done; wait; sleep 1; echo "orphans: $(ps -o stat | grep -c '^Z')"
coracle exec one sh -c 'echo kept > /kept/file; sync'
dmesg | grep 'coracle-init: no \|coracle-init: module'
echo "log: $(dmesg | grep -c 'coracle-init: agent ended: SIGKILL')"
"#;

const SECOND_BOOT: &str = r#"
until coracle status > /dev/null 2>&1; do sleep 0.2; done
for n in $(seq 100); do coracle ps --json > /tmp/ps 2>&1; grep -q '"state":"running"' /tmp/ps && break; sleep 0.3; done
echo "running: $(grep -c '"state":"running"' /tmp/ps)"
echo "kept: $(coracle exec one cat /kept/file)"
echo "orderly: $(coracle exec one cat /kept/ended)"
echo "host: $(hostname)"
echo "clock: $([ $(date +%s) -ge $(cat /mnt/state/clock) ] && echo after)"
echo "seed: $(dmesg | grep -o 'random seed: [a-z]*')"
echo "data: $(dmesg | grep -c 'recovery complete\|recovering journal')"
echo "grown again: $(dmesg | grep -c 'has grown')"
"#;

fn lines(said: &str) -> BTreeMap<&str, &str> {
    said.lines().filter_map(|line| line.split_once(": ")).collect()
}

fn check(said: &str, wanted: &[(&str, &str)]) -> anyhow::Result<()> {
    let lines = lines(said);
    for (name, wanted) in wanted {
        let is = lines.get(name).with_context(|| format!("no {name}: {said}"))?;
        ensure!(is.trim() == *wanted, "{name}: {is:?}, not {wanted:?}\n{said}");
    }
    Ok(())
}

/// A card, and a release of one service that is put onto it.
struct Release {
    folder: tempfile::TempDir,
}

impl Release {
    fn new(compose: &str) -> anyhow::Result<Self> {
        let release = Self { folder: tempfile::tempdir()? };
        card(&release.path("card"))?;
        Image::busybox()?.with("Cmd", json!(["/bin/sh"])).write(&release.path("hello"))?;
        std::fs::write(release.path("compose.yaml"), compose)?;
        Ok(release)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn drive(&self) -> String {
        format!("file={},format=raw,if=virtio,cache=unsafe", self.path("card").display())
    }

    fn give(&self, guest: Guest) -> Guest {
        ["hello", "compose.yaml"].iter().fold(guest, |guest, name| guest.give(&self.path(name), name))
    }
}

#[test]
fn a_board_boots_grows_runs_a_release_and_comes_up_with_it_again() -> anyhow::Result<()> {
    needs!("qemu-system-x86_64", "busybox", "dpkg", "apt-cache", "sfdisk", "mke2fs");
    let release = Release::new(
        "name: demo\nservices:\n  one:\n    image: hello:1\n    pull_policy: never\n    network_mode: none\n    restart: always\n    command: [sh, -c, \"trap 'date > /dev/null; echo in order > /kept/ended; sync; exit 0' TERM; while :; do sleep 0.2; done\"]\n    volumes: [\"kept:/kept\"]\nvolumes: {kept: {}}\n",
    )?;
    let machine = |drive: &str| -> anyhow::Result<Guest> {
        let guest = Guest::new()?.init(&["squashfs", "zram", "lz4", "softdog"]).arguments(&["-drive", drive]);
        Ok(release.give(guest))
    };
    let said = machine(&release.drive())?.run(FIRST_BOOT)?;
    println!("{said}");
    let host = (*lines(&said).get("host").context("host")?).to_owned();
    ensure!(host.starts_with("coracle-") && host.len() == 15, "{host}");
    check(
        &said,
        &[
            ("machine-id", "33 same"),
            ("partition", &((CARD / 512) - 18432 - 33).to_string()),
            ("lacks", ""),
            ("own cgroup", "/init /system/script"),
            ("agent cgroup", "1"),
            ("swap", "1"),
            ("loopback", "1"),
            ("modules", "3"),
            ("helper", "/sbin/modprobe 1"),
            ("blocked", "0000000000000000"),
            ("threads", "1"),
            ("seed", "512"),
            ("import", "0"),
            ("up", "0"),
            ("adopted", "same"),
            ("shim again", "1 1"),
            ("first process", "init"),
            ("zombies", "0"),
            ("orphans", "0"),
            ("log", "1"),
        ],
    )?;
    let lines_of = lines(&said);
    let size: u64 = lines_of["data"].split(' ').nth(1).context("a size")?.parse()?;
    ensure!(size > 100, "the file system has {size} MiB");
    ensure!(["cpu", "io", "memory", "pids"].iter().all(|it| lines_of["controllers"].contains(it)));

    let said = machine(&release.drive())?.run(SECOND_BOOT)?;
    println!("{said}");
    check(
        &said,
        &[
            ("running", "1"),
            ("kept", "kept"),
            ("orderly", "in order"),
            ("host", &host),
            ("clock", "after"),
            ("seed", "random seed: counted"),
            ("data", "0"),
            ("grown again", "0"),
        ],
    )
}

const STORM: &str = r#"
until coracle status > /dev/null 2>&1; do sleep 0.2; done
cp -r /given /demo; cd /demo
coracle import --name hello:1 /given/hello > /tmp/import 2>&1
coracle up -d > /tmp/up 2>&1; echo "up: $?"
memory() { grep VmRSS /proc/1/status | tr -s '\t ' ' ' | cut -d ' ' -f 2; }
storm() { for n in $(seq $1); do (sleep 0.01 & true); (exec false); done; }
storm 100; sleep 0.5; before=$(memory)
storm 600; sleep 0.5; after=$(memory)
echo "memory: $([ $after -le $((before + 8)) ] && echo flat || echo $before $after)"
echo "zombies: $(ps -o stat | grep -c '^Z')"
echo "others: $(coracle ps --json | grep -c '"state":"running"')"
echo "failing: $(dmesg | grep -c 'coracle-init: failing ended') $(cat /sys/fs/cgroup/system/failing/cgroup.procs | wc -l)"
for n in 1 2 3 4 5; do
  until coracle status > /dev/null 2>&1; do sleep 0.1; done
  kill -9 $(cat /sys/fs/cgroup/system/agent/cgroup.procs); sleep 0.3
done
until coracle status > /dev/null 2>&1; do sleep 0.1; done
echo "safe: $(tr '\0' ' ' < /proc/$(cat /sys/fs/cgroup/system/agent/cgroup.procs)/cmdline | grep -c -- --safe)"
echo "goes on: $(coracle ps --json | grep -c '"state":"running"')"
coracle stop one > /tmp/stop 2>&1 & sleep 3; echo "no step: $(coracle ps --json | grep -c '"state":"running"')"
"#;

#[test]
fn ends_by_the_hundred_leave_the_first_process_as_it_was_and_a_failing_agent_gets_a_safe_mode()
-> anyhow::Result<()> {
    needs!("qemu-system-x86_64", "busybox", "dpkg", "apt-cache", "sfdisk", "mke2fs");
    let text = "name: demo\nservices: {one: {image: 'hello:1', pull_policy: never, network_mode: none, command: sleep 1000, restart: always}}\n";
    let release = Release::new(text)?;
    let words = release.drive();
    let guest = Guest::new()?.init(&[]).arguments(&["-drive", &words]).keeps("failing /bin/false");
    let said = release.give(guest).run(STORM)?;
    println!("{said}");
    check(
        &said,
        &[
            ("up", "0"),
            ("memory", "flat"),
            ("zombies", "0"),
            ("others", "1"),
            ("safe", "1"),
            ("goes on", "1"),
            ("no step", "1"),
        ],
    )?;
    let failing: Vec<u32> = lines(&said)["failing"].split(' ').filter_map(|it| it.parse().ok()).collect();
    // Pauses double, so a program that cannot run costs next to nothing.
    ensure!((3..20).contains(&failing[0]), "{failing:?}");
    Ok(())
}

const MISSING: &str = r#"
until coracle status > /dev/null 2>&1; do sleep 0.2; done
echo "state: $(grep -c '/mnt/state: there is no LABEL=coracle-state' /run/coracle-init/lacks)"
echo "data: $(grep -c '/mnt/data: there is no LABEL=elsewhere' /run/coracle-init/lacks)"
echo "in memory: $(stat -f -c %T /mnt/data)"
echo "ignored: $(dmesg | grep -c 'setting ignored: nonsense=1')"
echo "agent: $(coracle status > /dev/null 2>&1 && echo answers)"
echo "watchdog: $(ls /dev/watchdog0) $(cat /sys/class/watchdog/watchdog0/timeout 2> /dev/null)"
echo "fed: $(sleep 10; echo yes)"
echo "frozen: now"
echo 1 > /sys/fs/cgroup/init/cgroup.freeze
sleep 60
echo "bitten: no"
"#;

#[test]
fn what_is_missing_is_told_and_a_first_process_that_stands_still_is_reset() -> anyhow::Result<()> {
    needs!("qemu-system-x86_64", "busybox", "dpkg", "apt-cache");
    let guest = Guest::new()?
        .init(&["softdog"])
        .words("coracle.watchdog=6 coracle.data=LABEL=elsewhere coracle.nonsense=1");
    let said = guest.run_until_reset(MISSING)?;
    println!("{said}");
    check(
        &said,
        &[
            ("state", "1"),
            ("data", "1"),
            ("in memory", "tmpfs"),
            ("ignored", "1"),
            ("agent", "answers"),
            ("fed", "yes"),
            ("frozen", "now"),
        ],
    )?;
    ensure!(lines(&said)["watchdog"].starts_with("/dev/watchdog0"));
    ensure!(!lines(&said).contains_key("bitten"), "{said}");
    Ok(())
}

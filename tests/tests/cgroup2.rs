//! The kernel's second cgroup hierarchy, alone, in a virtual machine: limits, kills, and what is left.

use anyhow::{Context, ensure};
use coracle_tests::guest::Guest;
use coracle_tests::image::Image;
use coracle_tests::needs;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

const PROJECT: &str = r#"
name: demo
x-all: &all {image: "app:1", network_mode: none, stop_grace_period: 0s, restart: "no"}
services:
  limited:
    <<: *all
    command: sleep 1000
    mem_limit: 64m
    mem_reservation: 32m
    cpus: 0.5
    cpu_shares: 512
    cpuset: "1"
    pids_limit: 33
  eater: {<<: *all, mem_limit: 16m, command: tail /dev/zero}
  parent: {<<: *all, mem_limit: 16m, command: sh -c 'tail /dev/zero; sleep 1000'}
  checked: {<<: *all, mem_limit: 16m, command: sleep 1000, healthcheck: {test: tail /dev/zero, interval: 1s, retries: 1}}
  closed: {<<: *all, command: sleep 1000, cap_add: [MKNOD], volumes: ["kept:/kept"], devices: ["/dev/loop0:/dev/l:r"]}
  ruled: {<<: *all, command: sleep 1000, cap_add: [MKNOD], volumes: ["kept:/kept"], device_cgroup_rules: ["b 7:* rm", "c 1:* rwm"]}
  open: {<<: *all, command: sleep 1000, privileged: true, volumes: ["kept:/kept"], devices: ["/dev/loop0:/dev/l"]}
  forks: {<<: *all, pids_limit: 5, command: "sh -c 'for n in 1 2 3 4 5 6 7 8; do sleep 1000 & done; sleep 1000'"}
volumes: {kept: {}}
"#;

const SCRIPT: &str = r#"
coracle agent > /tmp/agent.log 2>&1 &
until coracle status > /dev/null 2>&1; do sleep 0.1; done
coracle import --name app:1 /given/layout > /dev/null 2>&1
cp -r /given/demo /demo; cd /demo
coracle up -d > /tmp/up 2>&1; echo "up: $?"
for n in 1 2 3 4 5 6 7 8 9 10; do coracle ps --json | grep -q last_oom_kill.:1 && break; sleep 0.5; done
sleep 1
echo "ps: $(coracle ps --json)"
cg=$(echo /sys/fs/cgroup/coracle/demo-limited-*)
for file in memory.max memory.low memory.swap.max cpu.max cpu.weight cpuset.cpus pids.max cgroup.controllers; do
  echo "$file: $(cat $cg/$file)"
done
echo "exec: $(coracle exec limited sh -c 'cat /proc/self/cgroup')"
echo "forks: $(coracle logs --no-log-prefix forks | tail -n 1)"
echo "stats: $(coracle stats --once --json | tr '\n' ' ')"
before=$(coracle ps --json | grep -o '"pid":[0-9]*' | tr '\n' ' ')
kill -9 $(pidof coracle | tr ' ' '\n' | while read pid; do grep -qa agent /proc/$pid/cmdline && echo $pid; done)
sleep 0.5
coracle agent >> /tmp/agent.log 2>&1 &
until coracle status > /dev/null 2>&1; do sleep 0.1; done
after=$(coracle ps --json | grep -o '"pid":[0-9]*' | tr '\n' ' ')
echo "pids: $before= $after"
mknod /var/lib/coracle/volumes/demo/kept/_data/outside b 7 1
mknod /var/lib/coracle/volumes/demo/kept/_data/memory c 1 1
for service in closed ruled open; do
  try() { what=$1; shift; coracle exec -T $service "$@" > /tmp/said 2>&1 && echo "$service $what: yes" || echo "$service $what: $(tail -n 1 /tmp/said)"; }
  try null sh -c 'echo > /dev/null && mknod /tmp/zero c 1 5 && head -c 1 /tmp/zero | wc -c'
  try make sh -c 'mknod /tmp/made b 7 2'
  try outside dd if=/kept/outside of=/dev/null count=0
  try write dd if=/dev/null of=/kept/outside count=0
  try memory head -c 1 /kept/memory
  try granted dd if=/dev/l of=/dev/null count=0
  try granted-write dd if=/dev/null of=/dev/l count=0
done
killed=$(coracle exec -T limited tail /dev/zero 2>&1); echo "exec killed: $? $killed"
mknod /dev/memory c 1 1
coracle up -d -f granted.yaml > /tmp/said 2>&1; echo "granted memory: $? $(grep -o 'devices: .*have it' /tmp/said | head -n 1)"
coracle down -f granted.yaml > /dev/null 2>&1
coracle up -d -f users.yaml > /tmp/said 2>&1; echo "users: $? $(grep -o 'userns_mode: .*own owners only' /tmp/said | head -n 1)"
coracle down -f users.yaml > /dev/null 2>&1
echo "below: $(ls -d /sys/fs/cgroup/coracle/demo-open-* 2> /dev/null) $(ls -d /sys/fs/cgroup/coracle.privileged/demo-open-* | wc -l)"
echo 48M > /sys/fs/cgroup/coracle/memory.max
coracle up -d -f more.yaml > /dev/null 2>&1
for n in 1 2 3 4 5 6 7 8 9 10; do coracle ps -f more.yaml | grep -q 'free .*exited' && break; sleep 0.5; done
echo "more: $(coracle ps -f more.yaml | grep free)"
coracle down -f more.yaml > /dev/null 2>&1
coracle down > /dev/null 2>&1; echo "down: $?"
echo "left: $(ls -d /sys/fs/cgroup/coracle*/*/ 2>/dev/null)"
echo "log: $(grep -c ERROR /tmp/agent.log)"
grep -h "WARN\|ERROR" /tmp/agent.log /run/coracle/shim.log
"#;

#[test]
fn limits_hold_and_kills_are_told_on_cgroup_v2() -> anyhow::Result<()> {
    needs!("qemu-system-x86_64", "busybox", "dpkg", "apt-cache");
    if std::env::consts::ARCH != "x86_64" {
        println!("skipped: the machine of the test is x86-64");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    Image::busybox()?.write(&folder.path().join("layout"))?;
    std::fs::create_dir(folder.path().join("demo"))?;
    std::fs::write(folder.path().join("demo/compose.yaml"), PROJECT)?;
    let more = "name: more\nservices: {free: {image: \"app:1\", network_mode: none, command: tail /dev/zero}}\n";
    std::fs::write(folder.path().join("demo/more.yaml"), more)?;
    let granted =
        "name: granted\nservices: {one: {image: \"app:1\", network_mode: none, devices: [/dev/memory]}}\n";
    std::fs::write(folder.path().join("demo/granted.yaml"), granted)?;
    let users = "name: users\nservices: {one: {image: \"app:1\", network_mode: none, userns_mode: auto, restart: \"no\"}}\n";
    std::fs::write(folder.path().join("demo/users.yaml"), users)?;
    let given = |name: &str| folder.path().join(name);
    let said = Guest::new()?.give(&given("layout"), "layout").give(&given("demo"), "demo").run(SCRIPT)?;
    println!("{said}");
    let lines: BTreeMap<&str, &str> = said.lines().filter_map(|line| line.split_once(": ")).collect();
    let is = |name: &str| lines.get(name).copied().with_context(|| format!("no {name}: {said}"));
    for (name, wanted) in [
        ("up", "0"),
        ("memory.max", "67108864"),
        ("memory.low", "33554432"),
        ("memory.swap.max", "67108864"),
        ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "1"),
        ("pids.max", "33"),
        ("exec", "0::/"),
        ("forks", "sh: can't fork: Resource temporarily unavailable"),
        ("down", "0"),
    ] {
        assert_eq!(is(name)?, wanted, "{name}");
    }
    let weight: u64 = is("cpu.weight")?.parse()?;
    ensure!((15..=25).contains(&weight), "512 of 1024 shares are a weight of {weight}");
    let services: Value = serde_json::from_str(is("ps")?)?;
    let services = &services["services"];
    ensure!(services["limited"]["state"] == "running", "{services}");
    ensure!(services["eater"]["exits"][0]["reason"] == "oom", "{services}");
    ensure!(services["parent"]["state"] == "running" && services["parent"]["oom_kills"] == 1, "{services}");
    ensure!(services["parent"]["last_oom_kill"].is_u64(), "the kernel tells at once: {services}");
    let check = services["checked"]["health_output"].as_str().unwrap_or_default();
    ensure!(check.starts_with("out of memory, limit 16.0 MiB, peak 16.0 MiB"), "{services}");
    let eater = services["eater"]["exits"][0]["detail"].as_str();
    assert_eq!(eater, Some("limit 16.0 MiB, peak 16.0 MiB"));
    for (service, allowed) in [
        ("closed", &["null", "granted"][..]),
        ("ruled", &["null", "make", "outside"]),
        ("open", &["null", "make", "outside", "write", "memory", "granted", "granted-write"]),
    ] {
        for what in ["null", "make", "outside", "write", "memory", "granted", "granted-write"] {
            // One of them has no such node.
            if service == "ruled" && what.starts_with("granted") {
                continue;
            }
            let said = is(&format!("{service} {what}"))?;
            let wanted = if allowed.contains(&what) { "yes" } else { "Operation not permitted" };
            ensure!(said.ends_with(wanted), "{service} {what}: {said}");
        }
    }
    assert_eq!(
        is("granted memory")?,
        "2 devices: /dev/memory is the machine's memory or its ports: only a privileged service may have it"
    );
    // A kernel (before 6.3) that maps no owners on a file system in memory.
    let users = is("users")?;
    ensure!(users.starts_with("2 userns_mode: /") && users.ends_with("own owners only"), "{users}");
    assert_eq!(
        is("below")?.trim(),
        "1",
        "what is forbidden to all others is not forbidden to privileged services"
    );
    let killed = is("exec killed")?;
    ensure!(killed.starts_with("137 ") && killed.contains("out of memory: limit 64.0 MiB"), "{killed}");
    ensure!(is("more")?.contains("out of memory: limit 48.0 MiB of /coracle, peak "), "{said}");
    let (before, after) = is("pids")?.split_once("= ").context("pids")?;
    ensure!(before.trim() == after.trim() && before.contains("\"pid\":"), "{before} and {after}");
    ensure!(lines.get("left").is_none_or(|left| left.is_empty()), "{said}");
    ensure!(is("stats")?.contains("67108864"), "{said}");
    Ok(())
}

const OCI: &str = r#"
mount -o remount,nsdelegate /sys/fs/cgroup
R="coracle oci --root /run/oci"
cd /given/box
$R run --detach one > /tmp/said 2>&1; echo "run: $? $(cat /tmp/said)"
cg=/sys/fs/cgroup/box
for file in io.max memory.max memory.high memory.swap.max memory.low pids.max cpu.weight cpu.max cpuset.cpus; do
  echo "$file: $(cat $cg/$file)"
done
echo "inside: $($R exec one cat /proc/self/cgroup /sys/fs/cgroup/pids.max | tr '\n' ' ')"
$R pause one; echo "paused: $(grep frozen $cg/cgroup.events) $($R state one | grep -o paused)"
$R resume one; echo "resumed: $(grep frozen $cg/cgroup.events) $($R state one | grep -o running)"
echo "events: $($R events --stats one)"
$R update --memory 48m --cpu-quota 20000 --cpu-period 100000 one; echo "updated: $(cat $cg/memory.max) $(cat $cg/cpu.max)"
try() { $R exec one sh -c ': < /dev/l' 2> /dev/null && echo yes || echo no; }
echo "device: $(try)"
echo '{"devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "b", "major": 7, "minor": 0, "access": "r"}]}' | $R update -r - one
echo "device allowed: $(try)"
echo '{"devices": [{"allow": false, "access": "rwm"}]}' | $R update -r - one
echo "device taken: $(try) $($R exec one sh -c 'echo > /dev/null && echo null')"
cat > /tmp/delegate <<'END'
mkdir /sys/fs/cgroup/leaf
for pid in $(cat /sys/fs/cgroup/cgroup.procs); do echo $pid > /sys/fs/cgroup/leaf/cgroup.procs; done 2> /dev/null
echo +pids > /sys/fs/cgroup/cgroup.subtree_control && echo "delegated: $(cat /sys/fs/cgroup/leaf/cgroup.controllers)"
echo max > /sys/fs/cgroup/pids.max 2> /dev/null && echo "own limit: raised" || echo "own limit: kept"
echo 0 > /sys/fs/cgroup/../cgroup.procs 2> /dev/null; echo "still in: $(cat /proc/self/cgroup)"
END
$R exec one sh -c "$(cat /tmp/delegate)"
$R kill one KILL; until $R state one | grep -q stopped; do sleep 0.1; done
$R delete one; echo "deleted: $? $(ls -d $cg 2> /dev/null)"
cd /given/many
$R run two; echo "many: $? $(ls -d /sys/fs/cgroup/many 2> /dev/null)"
echo "processes: $(ps | grep -c '[s]leep 12345')"
cd /given/box
for n in 1 2 3 4 5; do begin=$(cut -d ' ' -f 1 /proc/uptime); $R run --detach t$n > /dev/null; $R delete -f t$n; done
echo "restarted: $(ls /run/oci | wc -l)"
"#;

#[test]
fn the_oci_command_line_on_cgroup_v2() -> anyhow::Result<()> {
    needs!("qemu-system-x86_64", "busybox", "dpkg", "apt-cache");
    if std::env::consts::ARCH != "x86_64" {
        println!("skipped: the machine of the test is x86-64");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let write = |name: &str, change: &dyn Fn(&mut Value)| -> anyhow::Result<()> {
        let bundle = folder.path().join(name);
        coracle_tests::bundle::busybox(&bundle.join("rootfs"))?;
        let mut config = coracle_runtime::oci::template::config(false);
        config["process"]["terminal"] = json!(false);
        config["process"]["rlimits"] = json!([]);
        config["linux"]["cgroupsPath"] = json!(name);
        change(&mut config);
        Ok(std::fs::write(bundle.join("config.json"), config.to_string())?)
    };
    write("box", &|config| {
        config["process"]["args"] = json!(["sleep", "1000"]);
        config["linux"]["devices"] = json!([{ "path": "/dev/l", "type": "b", "major": 7, "minor": 0 }]);
        config["linux"]["resources"] = json!({
            "memory": { "limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20 },
            "cpu": { "shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0" },
            "pids": { "limit": 44 },
            "blockIO": { "throttleReadBpsDevice": [{ "major": 7, "minor": 0, "rate": 1_048_576 }],
                         "throttleWriteIOPSDevice": [{ "major": 7, "minor": 0, "rate": 77 }] },
            "unified": { "memory.high": "50331648" },
        });
        for mount in config["mounts"].as_array_mut().expect("mounts") {
            if mount["type"] == "cgroup" {
                mount["options"] = json!(["nosuid", "noexec", "nodev"]);
            }
        }
    })?;
    write("many", &|config| {
        config["process"]["args"] =
            json!(["sh", "-c", "for n in 1 2 3 4 5; do setsid sleep 12345 & done; exit 6"]);
        config["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|it| it["type"] != "pid");
    })?;
    let given = |name: &str| folder.path().join(name);
    let said = Guest::new()?.give(&given("box"), "box").give(&given("many"), "many").run(OCI)?;
    println!("{said}");
    let lines: BTreeMap<&str, &str> = said.lines().filter_map(|line| line.split_once(": ")).collect();
    for (name, wanted) in [
        ("run", "0 "),
        ("io.max", "7:0 rbps=1048576 wbps=max riops=max wiops=77"),
        ("memory.max", "67108864"),
        ("memory.high", "50331648"),
        ("memory.swap.max", "33554432"),
        ("memory.low", "33554432"),
        ("pids.max", "44"),
        ("cpu.weight", "20"),
        ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "0"),
        ("inside", "0::/ 44 "),
        ("paused", "frozen 1 paused"),
        ("resumed", "frozen 0 running"),
        ("updated", "50331648 20000 100000"),
        ("device", "no"),
        ("device allowed", "yes"),
        ("device taken", "no null"),
        ("delegated", "pids"),
        ("own limit", "kept"),
        ("still in", "0::/leaf"),
        ("deleted", "0 "),
        ("many", "6 "),
        ("processes", "0"),
        ("restarted", "0"),
    ] {
        let is = lines.get(name).with_context(|| format!("no {name}: {said}"))?;
        assert_eq!(is.trim_end(), wanted.trim_end(), "{name}");
    }
    let events: Value = serde_json::from_str(lines.get("events").context("events")?)?;
    ensure!(events["data"]["memory"]["usage"]["limit"] == 67_108_864, "{events}");
    ensure!(events["data"]["pressure"]["memory"]["some"]["total"].is_number(), "no pressure: {events}");
    Ok(())
}

/// systemd is the first process; its part of the work is done by systemd.
const SYSTEMD: &str = r#"
R="coracle oci --root /run/oci"
S="$R --systemd-cgroup"
cg=/sys/fs/cgroup/machine.slice/test-one.scope
gone() { for n in $(seq 100); do test -e $1 || break; sleep 0.1; done; test -e $1 && echo left || echo gone; }
cd /given/box
$S run --detach one > /dev/null; echo "run: $?"
echo "place: $(cut -d : -f 3 /proc/$($R state one | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')/cgroup)"
echo "scope: $(systemctl show test-one.scope -p ActiveState -p Slice -p Delegate -p KillSignal -p Description | sort | tr '\n' ' ')"
echo "beside: $(cd $cg && ls -d */ | tr '\n' ' ')"
limits() { cat $cg/container/memory.max $cg/container/pids.max $cg/container/cpu.max | tr '\n' ' '; }
echo "limits: $(limits)"
systemctl daemon-reload; echo "reloaded: $? $(limits)"
echo "device: $($R exec one sh -c 'head -c 1 < /dev/l > /dev/null 2>&1 && echo yes || echo no')"
$R update --memory 33554432 one; systemctl daemon-reload; echo "updated: $(cat $cg/container/memory.max)"
$R pause one; echo "paused: $($R state one | grep -c paused) $(systemctl is-active test-one.scope)"; $R resume one
$S create one > /tmp/twice 2>&1; echo "twice: $? $(systemctl is-active test-one.scope)"
$R delete -f one; echo "deleted: $? $(ls -d $cg 2> /dev/null)$(systemctl is-active test-one.scope)"
for n in 1 2 3 4 5; do $S run --detach one > /dev/null && $R delete -f one || echo failed; done; echo "again: $?"
$S run --detach one > /dev/null; systemctl stop test-one.scope; echo "stopped: $($R state one | grep -c stopped)"; $R delete one; echo "after: $?"
cd /given/short; $S run short; echo "short: $? $(gone /sys/fs/cgroup/system.slice/coracle-short.scope)"
cd /given/bad; $S run bad; echo "bad: $? $(gone /sys/fs/cgroup/machine.slice/test-bad.scope)"
cd /given/plain; $S run plain 2>&1 | sed 's/^/plain: /'; echo "left: $(ls /run/oci) $(systemctl list-units --type scope --all --no-legend | grep -vc init.scope)"
cd /given/box; for after in 0.01 0.02 0.04 0.06 0.08 0.1 0.15 0.2; do
timeout -s KILL $after coracle oci --root /run/oci --systemd-cgroup create killed > /dev/null 2>&1 < /dev/null; $R delete -f killed || echo "not deleted"; done
echo "killed: $(gone $cg) $(ls /run/oci)"
mkdir -p $cg/begin; $S run --detach one > /dev/null; echo "old folder: $? $(ls $cg | grep -c container)"
$R delete -f one; echo "old folder gone: $? $(gone $cg)"
ln -s /bin/coracle /bin/coracle-oci
P() { podman --conmon /bin/conmon --runtime /bin/coracle-oci "$@"; }
P run --rm --network none --memory 32m --name two --rootfs /given/short/rootfs \
  sh -c 'echo "inside $(cat /proc/self/cgroup)"; exit 5' 2>&1 | sed 's/^/podman: /'
P run -d --network none --memory 32m --name three --rootfs /given/short/rootfs sleep 1000 > /tmp/id
echo "podman place: $(cut -d : -f 3 /proc/$(P inspect -f '{{.State.Pid}}' three)/cgroup | sed "s/$(cat /tmp/id)/ID/")"
echo "podman exec: $(P exec three echo there)"
P rm -f -t 0 three > /dev/null; echo "podman rm: $? $(gone /sys/fs/cgroup/machine.slice/libpod-$(cat /tmp/id).scope)"
"#;

#[test]
fn systemd_is_asked_for_a_scope() -> anyhow::Result<()> {
    needs!("qemu-system-x86_64", "busybox", "dpkg", "apt-cache", "systemctl", "podman", "conmon");
    if std::env::consts::ARCH != "x86_64" {
        println!("skipped: the machine of the test is x86-64");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let write = |name: &str, path: &str, args: &[&str]| -> anyhow::Result<()> {
        let bundle = folder.path().join(name);
        coracle_tests::bundle::busybox(&bundle.join("rootfs"))?;
        let mut config = coracle_runtime::oci::template::config(false);
        config["process"]["terminal"] = json!(false);
        config["process"]["rlimits"] = json!([]);
        config["process"]["args"] = json!(args);
        config["linux"]["cgroupsPath"] = json!(path);
        config["linux"]["devices"] = json!([{ "path": "/dev/l", "type": "b", "major": 7, "minor": 0 }]);
        config["linux"]["resources"] = json!({
            "memory": { "limit": 64 << 20 }, "cpu": { "quota": 50_000, "period": 100_000 }, "pids": { "limit": 44 },
        });
        config["annotations"] = json!({ "org.systemd.property.KillSignal": "9" });
        Ok(std::fs::write(bundle.join("config.json"), config.to_string())?)
    };
    write("box", "machine.slice:test:one", &["sleep", "1000"])?;
    write("short", "", &["sh", "-c", "exit 6"])?;
    write("bad", "machine.slice:test:bad", &["/no/such/program"])?;
    write("plain", "/plain", &["true"])?;
    let given = |name: &str| folder.path().join(name);
    let mut guest =
        Guest::new()?.systemd().program(Path::new("/usr/bin/podman")).program(Path::new("/usr/bin/conmon"));
    for name in ["box", "short", "bad", "plain"] {
        guest = guest.give(&given(name), name);
    }
    let said = guest.run(SYSTEMD)?;
    println!("{said}");
    let lines: BTreeMap<&str, &str> = said.lines().filter_map(|line| line.split_once(": ")).collect();
    for (name, wanted) in [
        ("run", "0"),
        ("place", "/machine.slice/test-one.scope/container"),
        ("scope", "ActiveState=active Delegate=yes Description=container one KillSignal=9 Slice=machine.slice"),
        ("beside", "container/"),
        ("limits", "67108864 44 50000 100000"),
        ("reloaded", "0 67108864 44 50000 100000"),
        ("device", "no"),
        ("updated", "33554432"),
        ("paused", "1 active"),
        ("twice", "1 active"),
        ("deleted", "0 inactive"),
        ("again", "0"),
        ("stopped", "1"),
        ("after", "0"),
        ("short", "6 gone"),
        ("bad", "1 gone"),
        ("left", " 0"),
        ("killed", "gone"),
        ("old folder", "0 1"),
        ("old folder gone", "0 gone"),
        ("podman", "inside 0::/"),
        ("podman place", "/machine.slice/libpod-ID.scope/container"),
        ("podman exec", "there"),
        ("podman rm", "0 gone"),
    ] {
        let is = lines.get(name).with_context(|| format!("no {name}: {said}"))?;
        assert_eq!(is.trim(), wanted.trim(), "{name}: {said}");
    }
    let plain = lines.get("plain").context("plain")?;
    ensure!(plain.contains("linux.cgroupsPath") && plain.contains("SLICE:PREFIX:NAME"), "{plain}");
    Ok(())
}

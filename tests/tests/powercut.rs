//! F1: the power goes while images are pulled and services started, at any of the moments that a disk can tell apart.
//!
//! One virtual machine does the work while every write to its disk is recorded. Then disks are made as cuts would have
//! left them, and a second machine starts an agent on each. `CUTS=N` tries more of them, `SEED=N` others.

use anyhow::{Context, ensure};
use coracle_tests::board::{Board, run};
use coracle_tests::guest::Guest;
use coracle_tests::image::Image;
use coracle_tests::needs;
use coracle_tests::powercut::{Numbers, Record, image};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Bytes of the disk.
const DISK: u64 = 128 << 20;

/// Bytes that the record may grow to; only what is written takes room.
const RECORD: u64 = 8 << 30;

/// Cuts that every run of the tests looks at.
const CUTS: u64 = 24;

/// Seconds that a machine may need for one cut, translated and with a machine that is busy.
const SECONDS_PER_CUT: u64 = 40;

const FIRST: &str = r#"
name: demo
x-all: &all {network_mode: none, command: sleep 1000, restart: always, stop_grace_period: 0s, logging: {driver: local}}
services:
  one: {<<: *all, image: "10.0.2.2:5000/one:1", volumes: ["kept:/kept"], environment: {RELEASE: "1"}}
  two: {<<: *all, image: "10.0.2.2:5000/two:1"}
volumes: {kept: {}}
"#;

/// How the disk is mounted: the file system does not guess what was meant (ext4(5)), so what is not synced is lost.
const MOUNT: &str = "mount -t ext4 -o data=writeback,noauto_da_alloc,commit=1";

const RECORDING: &str = r#"
mkdir -p /var/lib/coracle && $MOUNT /dev/vda /var/lib/coracle || exit
coracle agent > /tmp/agent.log 2>&1 &
until coracle status > /dev/null 2>&1; do sleep 0.1; done
cp -r /given /demo; cd /demo
for release in first second; do
  coracle up -d --plain-http 10.0.2.2:5000 -f $release.yaml > /tmp/up 2>&1 || cat /tmp/up
  sleep 2
done
echo "ps: $(coracle ps --json)"
echo "layers: $(tree /var/lib/coracle/images/layers/* | tr '\n' ' ')"
echo "volume: $(tree /var/lib/coracle/volumes/demo/kept/_data)"
"#;

const CUT: &str = r#"
running() { coracle ps --json | grep -o '"state":"[a-z]*"' | grep -v running; [ "$(coracle ps --json | grep -o '"state":"running"' | wc -l)" = 2 ]; }
settle() { for n in $(seq 100); do running > /dev/null && return; sleep 0.2; done; echo "$cut waits: $(coracle ps --json)"; }
cp -r /given /demo; cd /demo; mkdir -p /var/lib/coracle
cut=0
while [ $cut -lt $COUNT ]; do
  losetup -o $((cut * $DISK)) /dev/loop0 /dev/vda || exit
  $MOUNT /dev/loop0 /var/lib/coracle || exit
  echo "$cut found: $(tree /var/lib/coracle/images/layers/* 2> /dev/null | tr '\n' ' ')"
  coracle agent > /tmp/agent.log 2>&1 &
  for n in $(seq 100); do coracle status > /dev/null 2>&1 && break; sleep 0.1; done
  case "$(coracle ps --json)" in
    *one*) settle; echo "$cut target: $(coracle exec one env | grep RELEASE)" ;;
    *) echo "$cut target: none" ;;
  esac
  coracle up -d --plain-http 10.0.2.2:5000 -f second.yaml > /tmp/up 2>&1 || { cat /tmp/up; cat /tmp/agent.log; }
  settle
  echo "$cut after: $(coracle exec one env | grep RELEASE)"
  echo "$cut volume: $(tree /var/lib/coracle/volumes/demo/kept/_data)"
  for n in $(seq 50); do [ $(ls /var/lib/coracle/images/images | wc -l) = 2 ] && break; sleep 0.2; done
  echo "$cut layers: $(tree /var/lib/coracle/images/layers/* | tr '\n' ' ')"
  grep -h 'broken\|ERROR\|panic' /tmp/agent.log | sed "s/^/$cut broken: /"
  coracle down > /dev/null 2>&1
  kill -9 $(pidof coracle); sleep 0.1
  umount /var/lib/coracle || echo "$cut broken: in use"
  losetup -d /dev/loop0
  rm -rf /run/coracle
  cut=$((cut + 1))
done
"#;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|it| it.parse().ok()).unwrap_or(otherwise)
}

/// Copies what is not zero.
fn copy_disk(from: &File, to: &File, offset: u64) -> anyhow::Result<()> {
    let mut block = vec![0; 1 << 16];
    for at in (0..DISK).step_by(block.len()) {
        from.read_exact_at(&mut block, at)?;
        if block.iter().any(|byte| *byte != 0) {
            to.write_all_at(&block, offset + at)?;
        }
    }
    Ok(())
}

/// `drive` of QEMU for a file, recorded or not.
fn drive<'a>(words: &'a mut Vec<String>, disk: &Path, record: Option<&Path>) -> Vec<&'a str> {
    let file = |node: &str, path: &Path| format!("driver=file,node-name={node},filename={}", path.display());
    words.extend(["-blockdev".into(), file("disk", disk)]);
    if let Some(record) = record {
        words.extend(["-blockdev".into(), file("record", record)]);
        words.extend(["-blockdev".into(), "driver=blklogwrites,node-name=both,file=disk,log=record".into()]);
    }
    let node = if record.is_some() { "both" } else { "disk" };
    words.extend(["-device".into(), format!("virtio-blk-pci,drive={node}")]);
    words.iter().map(String::as_str).collect()
}

/// `NAME: TEXT` lines.
fn lines(said: &str) -> BTreeMap<&str, &str> {
    said.lines().filter_map(|line| line.split_once(": ")).collect()
}

/// Digest by folder.
fn trees(text: &str) -> BTreeSet<(String, String)> {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.chunks(2).filter_map(|it| Some((it.get(1)?.to_string(), it.first()?.to_string()))).collect()
}

#[test]
fn whatever_a_power_cut_leaves_is_old_or_new_and_the_services_run() -> anyhow::Result<()> {
    needs!("qemu-system-x86_64", "busybox", "dpkg", "apt-cache", "mkfs.ext4", "docker-registry", "skopeo", "ip");
    if std::env::consts::ARCH != "x86_64" {
        println!("skipped: the machine of the test is x86-64");
        return Ok(());
    }
    let guest = Guest::new()?.network().program(Path::new(env!("CARGO_BIN_EXE_tree")));
    let mut board = Board::new()?;
    board.start_registry("")?;
    for (name, release) in [("one:1", 1), ("two:1", 1), ("one:2", 2)] {
        board.push(&image(Image::busybox()?, &name[..3], release), name)?;
    }
    let given = board.path().join("given");
    std::fs::create_dir(&given)?;
    std::fs::write(given.join("first.yaml"), FIRST)?;
    let second = FIRST.replace("one:1", "one:2").replace("RELEASE: \"1\"", "RELEASE: \"2\"");
    std::fs::write(given.join("second.yaml"), second)?;
    let machine = || {
        let given = ["first.yaml", "second.yaml"].map(|name| (given.join(name), name));
        given.iter().fold(guest.clone(), |guest, (path, name)| guest.give(path, name))
    };

    let (base, disk, record) = (board.path().join("base"), board.path().join("disk"), board.path().join("record"));
    File::create(&base)?.set_len(DISK)?;
    let whole = "lazy_itable_init=0,lazy_journal_init=0";
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", whole]).arg(&base))?;
    std::fs::copy(&base, &disk)?;
    File::create(&record)?.set_len(RECORD)?;
    let script = RECORDING.replace("$MOUNT", MOUNT);
    let mut words = Vec::new();
    let said = machine().arguments(&drive(&mut words, &disk, Some(&record))).run(&script)?;
    let is = lines(&said);
    ensure!(is.get("ps").is_some_and(|ps| ps.matches("\"state\":\"running\"").count() == 2), "{said}");
    let (layers, volume) = (trees(is["layers"]), is["volume"]);

    let record = Record::open(&record)?;
    let (count, seed) = (number("CUTS", CUTS), number("SEED", 1).max(1));
    let mut numbers = Numbers::new(seed);
    println!("{} flushes, {count} cuts, SEED={seed}", record.flushes());
    let (base, disk) = (File::open(&base)?, board.path().join("cuts"));
    let disks = File::create(&disk)?;
    disks.set_len(DISK * count)?;
    let mut cuts = Vec::new();
    for cut in 0..count {
        // Spread over the whole time; every third has nothing of what came after its flush.
        let share = record.flushes() / usize::try_from(count)?;
        let flush = usize::try_from(cut)? * record.flushes() / usize::try_from(count)? + numbers.below(share);
        let clean = cut % 3 == 0;
        copy_disk(&base, &disks, cut * DISK)?;
        record.replay(&disks, cut * DISK, record.before_flush(flush), || numbers.fate(clean))?;
        cuts.push((flush, clean));
    }
    let script =
        CUT.replace("$COUNT", &count.to_string()).replace("$DISK", &DISK.to_string()).replace("$MOUNT", MOUNT);
    let mut words = Vec::new();
    let said = machine()
        .longest(Duration::from_secs(60 + SECONDS_PER_CUT * count))
        .arguments(&drive(&mut words, &disk, None))
        .run(&script)?;
    let is = lines(&said);
    let mut wrong = String::new();
    for (cut, (flush, clean)) in cuts.iter().enumerate() {
        let at = |name: &str| is.get(format!("{cut} {name}").as_str()).copied().unwrap_or_default();
        let (found, after) = (trees(at("found")), trees(at("layers")));
        let right = [
            ("a layer that is there is whole", found.iter().all(|it| layers.contains(it))),
            ("the target is old or new", ["none", "RELEASE=1", "RELEASE=2"].contains(&at("target"))),
            ("the services run", at("after") == "RELEASE=2" && at("waits").is_empty()),
            ("all layers are there, and no others", after == layers),
            ("the volume is filled", at("volume") == volume),
            ("nothing is broken", at("broken").is_empty()),
        ];
        for (what, _) in right.iter().filter(|(_, holds)| !holds) {
            let _ = writeln!(wrong, "flush {flush}, clean {clean}: not so: {what}");
        }
    }
    let targets: BTreeMap<_, usize> = is.iter().filter(|(name, _)| name.ends_with("target")).fold(
        BTreeMap::new(),
        |mut targets, (_, target)| {
            *targets.entry(*target).or_default() += 1;
            targets
        },
    );
    println!("found as targets: {targets:?}");
    ensure!(wrong.is_empty(), "{wrong}\n{said}");
    ensure!(targets.len() > 1, "the cuts are before and after: {targets:?}");
    is.get("0 found").map(drop).context("a first cut")
}

//! From the kernel's hand to a board that is ready for its programs. Whatever is missing is said, and the rest goes on.

use crate::log::{Log, error, info, warning};
use crate::modules::{self, Index, Loader};
use crate::mounts::{self, Mount};
use crate::settings::{self, Settings};
use crate::storage::{self, Content};
use crate::{clock, files, random, swap, sys, watchdog};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount, mount_bind};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Where partitions are mounted.
pub const DATA: &str = "/mnt/data";
/// The device's own small files.
pub const STATE: &str = "/mnt/state";
/// Kernel and `config.json`.
pub const BOOT: &str = "/mnt/boot";

/// How long a partition is waited for: a card is there in a second, a USB disk in ten.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Bytes of the kernel's command line (`COMMAND_LINE_SIZE` is 4096 at most).
const MAX_COMMAND_LINE: u64 = 8192;

/// What a boot came to.
#[derive(Debug)]
pub struct Booted {
    /// What the image and the command line say.
    pub settings: Settings,
    /// Modules, for devices that come later.
    pub modules: Modules,
    /// What the board lacks, in words, for its status.
    pub lacks: Vec<String>,
}

/// Steps that every process with this number needs, before anything else.
pub fn first() {
    use rustix::fs::open;
    // An initial ramdisk may have no console node; descriptors 0 to 2 must be something before others are opened.
    let console = open("/dev/console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty())
        .or_else(|_| open("/dev/null", OFlags::RDWR, Mode::empty()));
    if let Ok(console) = console {
        let _ = rustix::stdio::dup2_stdin(&console);
        let _ = rustix::stdio::dup2_stdout(&console);
        let _ = rustix::stdio::dup2_stderr(&console);
    }
    rustix::process::umask(Mode::from_bits_truncate(0o022));
    let _ = std::env::set_current_dir("/");
    let _ = rustix::process::setsid();
}

/// Mounts what is the kernel's own.
pub fn mount_all() -> Vec<String> {
    let text = |path: &str| files::read_text(path, 64 * 1024).unwrap_or_default();
    // What is known of the memory is in /proc, which is the first.
    let before: Vec<Mount> = mounts::all(0).into_iter().take(1).collect();
    let mut lacks: Vec<String> = before.iter().filter_map(mount_one).collect();
    let memory = mounts::memory_kib(&text("/proc/meminfo")).unwrap_or(64 * 1024);
    lacks.extend(mounts::all(memory).iter().skip(1).filter_map(mount_one));
    lacks
}

fn mount_one(wanted: &Mount) -> Option<String> {
    let error = mounts::make(wanted).err()?;
    wanted.needed.then(|| format!("{}: {error}", wanted.target))
}

/// Everything up to the first program.
pub fn boot(log: &Log, mut lacks: Vec<String>) -> Booted {
    if let Err(error) = mounts::make_private() {
        lacks.push(format!("making mounts private: {error}"));
    }
    let (settings, command_line) = read_settings(log);
    let modules = Modules::read(&command_line);
    // What the initial ramdisk met on its way.
    let told = files::read_text(crate::early::SLOT, 4096).unwrap_or_default();
    lacks.extend(told.lines().skip(1).map(|lack| format!("root {lack}")));
    let mut booted = Booted { settings, modules, lacks };
    for lack in &booted.lacks {
        error!(log, "{lack}");
    }
    kernel_settings(log);
    cgroups(log, &mut booted);
    booted.modules.coldplug(log);
    for lack in kernel_lacks(Path::new("/proc")) {
        booted.lack(log, lack);
    }
    network(log);
    state(log, &mut booted);
    data(log, &mut booted);
    memory(log, &booted);
    if watchdog::has_bitten(Path::new("/sys")) {
        warning!(log, "the last boot was ended by the watchdog");
    }
    keep_last_words(log);
    booted
}

impl Booted {
    fn lack(&mut self, log: &Log, what: String) {
        error!(log, "{what}");
        self.lacks.push(what);
    }
}

/// Settings of the kernel that a board wants, and where it finds modules (kernel documentation, admin-guide/sysctl).
const KERNEL: &[(&str, &str)] = &[
    // A board that stands still is lost: it boots again, and pstore has why.
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    // Ctrl-Alt-Del is an orderly reboot: the kernel sends SIGINT.
    ("kernel/ctrl-alt-del", "0"),
    ("kernel/modprobe", MODPROBE),
    ("kernel/printk_devkmsg", "on"),
    ("kernel/dmesg_restrict", "1"),
    ("kernel/kptr_restrict", "1"),
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_symlinks", "1"),
    ("fs/protected_fifos", "1"),
    ("fs/protected_regular", "2"),
    ("net/ipv4/ip_forward", "1"),
    ("vm/page-cluster", "0"),
    ("vm/swappiness", "120"),
];

/// The program's name as the kernel's helper for modules.
pub const MODPROBE: &str = "/sbin/modprobe";

fn kernel_settings(log: &Log) {
    for (name, value) in KERNEL {
        if let Err(error) = std::fs::write(Path::new("/proc/sys").join(name), format!("{value}\n")) {
            // Not every kernel has all of them.
            info!(log, "{name}: {error}");
        }
    }
}

/// What a kernel must have for containers, and does not, once its modules are loaded.
fn kernel_lacks(proc: &Path) -> Vec<String> {
    let mut lacks = Vec::new();
    let kinds = files::read_text(proc.join("filesystems"), 64 * 1024).unwrap_or_default();
    if !kinds.lines().any(|line| line.split_whitespace().last() == Some("overlay")) {
        lacks.push("this kernel has no overlayfs (CONFIG_OVERLAY_FS): no container can start".to_owned());
    }
    for (name, option) in [("net", "NET_NS"), ("pid", "PID_NS"), ("ipc", "IPC_NS"), ("uts", "UTS_NS")] {
        if proc.join("self/ns").join(name).symlink_metadata().is_err() {
            lacks.push(format!("this kernel has no {name} namespaces (CONFIG_{option}): no container can start"));
        }
    }
    if !proc.join("sys/kernel/seccomp").exists() {
        let lack = "this kernel cannot filter system calls (CONFIG_SECCOMP_FILTER): no container can start";
        lacks.push(lack.to_owned());
    }
    lacks
}

/// Where the first process is in the hierarchy: controllers are handed down only from cgroups without processes.
const OWN_CGROUP: &str = "/sys/fs/cgroup/init";

fn cgroups(log: &Log, booted: &mut Booted) {
    let moved = std::fs::create_dir_all(OWN_CGROUP)
        .and_then(|()| std::fs::write(Path::new(OWN_CGROUP).join("cgroup.procs"), "0"));
    if let Err(error) = moved {
        booted.lack(log, format!("cgroups: {error}"));
        return;
    }
    let root = Path::new("/sys/fs/cgroup");
    let there = files::read_text(root.join("cgroup.controllers"), 4096).unwrap_or_default();
    for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
        if !there.split_whitespace().any(|it| it == controller) {
            let lack = format!("this kernel has no {controller} controller for cgroups");
            // Kernels without cpuset are common, and so are services that do not ask for it.
            match controller {
                "cpuset" => info!(log, "{lack}"),
                // Built in, and off unless the command line says otherwise, on many boards.
                "memory" => booted.lack(log, format!("{lack}, or it is off (cgroup_enable=memory)")),
                _ => booted.lack(log, lack),
            }
            continue;
        }
        if let Err(error) = std::fs::write(root.join("cgroup.subtree_control"), format!("+{controller}")) {
            booted.lack(log, format!("cgroup controller {controller}: {error}"));
        }
    }
}

/// The kernel's command line.
pub fn command_line() -> String {
    files::read_text("/proc/cmdline", MAX_COMMAND_LINE).unwrap_or_default()
}

/// Settings, and the kernel's command line.
pub fn read_settings(log: &Log) -> (Settings, String) {
    let command_line = command_line();
    let file = files::read_text(settings::FILE, settings::MAX_FILE).unwrap_or_default();
    let (settings, ignored) = Settings::read(&file, &command_line);
    for settings::Ignored(what) in ignored {
        warning!(log, "setting ignored: {what}");
    }
    (settings, command_line)
}

/// The kernel's modules.
#[derive(Debug)]
pub struct Modules {
    index: Index,
    folder: PathBuf,
    command_line: String,
}

impl Modules {
    /// Those of the running kernel.
    pub fn read(command_line: &str) -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let folder = modules::folder(&release);
        let text = files::read_text(folder.join(modules::INDEX), modules::MAX_INDEX).unwrap_or_default();
        Self { index: Index::parse(&text), folder, command_line: command_line.to_owned() }
    }

    /// What loads them, each once.
    pub fn loader(&self) -> Loader<'_> {
        Loader::new(&self.index, &self.folder, &self.command_line)
    }

    /// Drivers of the devices that are there, and of those that they bring.
    pub fn coldplug(&self, log: &Log) {
        /// A bus behind a bus behind a bus: each needs a look of its own.
        const ROUNDS: usize = 5;
        let mut loader = self.loader();
        for name in self.index.early() {
            if let Err(error) = loader.load(name) {
                warning!(log, "module {error}");
            }
        }
        let mut known = std::collections::BTreeSet::new();
        let mut rounds = 0;
        while rounds < ROUNDS {
            let names = modules::device_names(Path::new("/sys"));
            let new: Vec<&String> = names.difference(&known).collect();
            if new.is_empty() {
                break;
            }
            for name in new {
                if let Err(error) = loader.load(name) {
                    warning!(log, "module {error}");
                }
            }
            known = names;
            rounds += 1;
        }
        info!(log, "{} devices in {rounds} rounds, {} modules for them", known.len(), loader.count());
    }
}

/// Where dbus-daemon makes its socket.
const BUS: &str = "/run/dbus";

fn network(log: &Log) {
    use rustix::net::{AddressFamily, SocketType, socket};
    let up = socket(AddressFamily::INET, SocketType::DGRAM, None)
        .map_err(io::Error::from)
        .and_then(|socket| sys::loopback_up(socket.as_fd()));
    if let Err(error) = up {
        warning!(log, "loopback: {error}");
    }
    if let Err(error) = std::fs::create_dir_all(BUS) {
        warning!(log, "{BUS}: {error}");
    }
}

/// Waits for a partition that has one of these names, the wanted one first. A later one counts at once when no file
/// system is there any more, which has lost its own name then; else when the wanted one has had its time to come.
fn wait_for_any(sources: &[settings::Source], boot: &settings::Source) -> Option<(storage::Device, String)> {
    let begun = Instant::now();
    let find = |source: &settings::Source| {
        storage::find(Path::new("/sys"), source, boot).map(|device| (device, source.to_string()))
    };
    loop {
        let (wanted, others) = sources.split_first()?;
        if let Some(found) = find(wanted) {
            return Some(found);
        }
        let late = begun.elapsed() > LONGEST_WAIT;
        let nameless = |device: &storage::Device| matches!(storage::content(&device.node), Ok(None));
        if let Some(found) = others.iter().filter_map(find).find(|(device, _)| late || nameless(device)) {
            return Some(found);
        }
        if late {
            return None;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Waits for a partition: drivers find theirs when they like.
pub fn wait_for(source: &settings::Source, boot: &settings::Source) -> Option<storage::Device> {
    wait_for_any(std::slice::from_ref(source), boot).map(|(device, _)| device)
}

/// Mounts a partition, or memory in its place, so that whatever comes after finds a folder.
fn mount_or_memory(
    log: &Log,
    booted: &mut Booted,
    sources: &[settings::Source],
    device: Option<&storage::Device>,
    target: &str,
) -> Option<Content> {
    let mounted = match device {
        None => {
            let names: Vec<String> = sources.iter().map(ToString::to_string).collect();
            Err(io::Error::other(format!("there is no {}", names.join(" or "))))
        }
        Some(device) => check_and_mount(log, device, Path::new(target)),
    };
    let error = match mounted {
        Ok((content, repaired)) => {
            if let Some(how) = repaired {
                booted.lack(log, format!("{target}: it was damaged and is repaired ({how})"));
            }
            return Some(content);
        }
        Err(error) => error,
    };
    booted.lack(log, format!("{target}: {error}; what is written there is lost at the next boot"));
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let in_memory = std::fs::create_dir_all(target)
        .and_then(|()| Ok(mount("tmpfs", target, "tmpfs", flags, c"mode=700,size=25%")?));
    if let Err(error) = in_memory {
        booted.lack(log, format!("{target}: not even in memory: {error}"));
    }
    None
}

/// Where e2fsck(8) is, in images that have it.
const FSCK: &str = "/sbin/e2fsck";

/// How a file system is repaired: what is safe, then all (e2fsck(8)). Nobody comes to a board to answer questions, and
/// one that cannot be mounted is of no use as it is. All of it is looked at, whatever its superblock says. A first
/// superblock that is lost needs two: the journal is taken in one, and the rest in the other.
const REPAIRS: [&str; 3] = ["-fp", "-fy", "-fy"];

/// Bytes that are kept of what e2fsck(8) says: one that repairs much says as much.
const MAX_SAID: usize = 4096;

/// A file system that the kernel found damaged, or that cannot be mounted, is repaired first. It is never made anew: what
/// is on it is somebody's. With the content: how it was repaired, where it was.
fn check_and_mount(
    log: &Log,
    device: &storage::Device,
    target: &Path,
) -> io::Result<(Content, Option<&'static str>)> {
    let has_errors = matches!(storage::content(&device.node)?, Some(Content::Ext4(ext4)) if ext4.has_errors);
    let mut failed = match has_errors {
        true => io::Error::other("the kernel found it damaged"),
        false => match storage::mount_device(&device.node, target, false) {
            Ok(content) => return Ok((content, None)),
            Err(error) => error,
        },
    };
    if !Path::new(FSCK).exists() {
        return storage::mount_device(&device.node, target, false).map(|content| (content, None));
    }
    for how in REPAIRS {
        warning!(log, "{}: {failed}: {FSCK} {how}", device.node.display());
        let (ended, said) = repair(how, &device.node)?;
        for line in said.lines().filter(|line| !line.trim().is_empty()) {
            info!(log, "e2fsck: {line}");
        }
        // 1: repaired; 2: and the machine is to reboot, when the file system was mounted.
        if matches!(ended.code(), Some(0..=2)) {
            match storage::mount_device(&device.node, target, false) {
                Ok(content) => return Ok((content, Some(how))),
                Err(error) => failed = error,
            }
        } else {
            failed = io::Error::other(format!("{FSCK} {how}: {ended}"));
        }
    }
    Err(failed)
}

/// How it ended, and the begin of what it said.
fn repair(how: &str, node: &Path) -> io::Result<(ExitStatus, String)> {
    use io::Read;
    let (mut said, words) = io::pipe()?;
    let mut fsck = Command::new(FSCK);
    fsck.arg(how).arg(node).stdin(Stdio::null()).stdout(words.try_clone()?).stderr(words);
    let mut child = fsck.spawn()?;
    // It has the other ends of the pipe.
    drop(fsck);
    let (mut kept, mut piece) = (Vec::new(), [0; 512]);
    loop {
        let count = said.read(&mut piece)?;
        if count == 0 {
            break;
        }
        let room = MAX_SAID - kept.len();
        kept.extend_from_slice(&piece[..count.min(room)]);
    }
    Ok((child.wait()?, String::from_utf8_lossy(&kept).into_owned()))
}

fn state(log: &Log, booted: &mut Booted) {
    let sources = booted.settings.state.clone();
    let device = wait_for_any(&sources, &booted.settings.boot).map(|(device, _)| device);
    mount_or_memory(log, booted, &sources, device.as_ref(), STATE);
    let known = clock::known(booted.settings.built_unix_s, &Path::new(STATE).join("clock"));
    match known.decide() {
        (_, clock::Origin::Clock) => {}
        (time, origin) => match clock::set(time) {
            Ok(()) => info!(log, "clock set to {time} ({origin:?}): the time is not known yet"),
            Err(error) => booted.lack(log, format!("clock: {error}")),
        },
    }
    match random::load(&seed(), &clean()) {
        Ok(counted) => info!(log, "random seed: {}", if counted { "counted" } else { "mixed in" }),
        Err(error) => warning!(log, "random seed: {error}"),
    }
    if let Err(error) = identity(Path::new(STATE)) {
        booted.lack(log, format!("machine-id: {error}"));
    }
    let boot = booted.settings.boot.clone();
    if let Some(device) = storage::find(Path::new("/sys"), &boot, &boot)
        && let Err(error) = storage::mount_device(&device.node, Path::new(BOOT), false)
    {
        booted.lack(log, format!("{BOOT}: {error}"));
    }
}

/// The saved seed.
pub fn seed() -> PathBuf {
    Path::new(STATE).join("random-seed")
}

/// There when the last run ended in order.
pub fn clean() -> PathBuf {
    Path::new(STATE).join("random-seed.clean")
}

/// The machine's identity (machine-id(5)): made once, shown in `/etc`; the host's name is made from it.
fn identity(state: &Path) -> io::Result<()> {
    let path = state.join("machine-id");
    let known = files::read_text(&path, 64).unwrap_or_default();
    let is_id = |text: &str| text.len() == 32 && text.bytes().all(|it| it.is_ascii_hexdigit());
    let id = match known.trim() {
        known if is_id(known) => known.to_owned(),
        _ => {
            // A name, and no secret: the kernel gives it before its random numbers are good.
            let made = files::read_text("/proc/sys/kernel/random/uuid", 64)?.trim().replace('-', "");
            files::replace(&path, format!("{made}\n").as_bytes())?;
            made
        }
    };
    let name = files::read_text(state.join("hostname"), 64).unwrap_or_default();
    let name = match name.trim() {
        "" => format!("coracle-{}", &id[..7.min(id.len())]),
        name => name.to_owned(),
    };
    rustix::system::sethostname(name.as_bytes())?;
    if Path::new("/etc/machine-id").exists() {
        mount_bind(&path, "/etc/machine-id")?;
    }
    Ok(())
}

fn data(log: &Log, booted: &mut Booted) {
    let sources = booted.settings.data.clone();
    let (device, source) = wait_for_any(&sources, &booted.settings.boot).unzip();
    let source = source.unwrap_or_default();
    // Before it is mounted; a table that is not understood is no reason not to use what is there.
    match device.as_ref().map(storage::grow_partition) {
        Some(Ok(Some(bytes))) => info!(log, "{source} has grown to {} MiB", bytes >> 20),
        Some(Err(error)) => warning!(log, "{source} does not grow: {error}"),
        Some(Ok(None)) | None => {}
    }
    let mounted = mount_or_memory(log, booted, &sources, device.as_ref(), DATA);
    if let (Some(Content::Ext4(ext4)), Some(device)) = (mounted, device) {
        match storage::grow_file_system(&device.node, Path::new(DATA), &ext4) {
            Ok(true) => info!(log, "the file system of {source} has grown"),
            Ok(false) => {}
            Err(error) => warning!(log, "the file system of {source} does not grow: {error}"),
        }
    }
}

fn memory(log: &Log, booted: &Booted) {
    if booted.settings.zram_percent == 0 {
        return;
    }
    let mut loader = booted.modules.loader();
    let kib = mounts::memory_kib(&files::read_text("/proc/meminfo", 64 * 1024).unwrap_or_default()).unwrap_or(0);
    let bytes = kib * 1024 / 100 * u64::from(booted.settings.zram_percent);
    let begun = loader.load("zram").and_then(|_| swap::begin(Path::new("/sys"), bytes));
    match begun {
        Ok(()) => info!(log, "compressed swap of {} MiB", bytes >> 20),
        Err(error) => info!(log, "no compressed swap: {error}"),
    }
}

/// Files of last words that are kept.
const MOST_WORDS: usize = 8;
/// Bytes of each.
const MAX_WORDS: u64 = 64 * 1024;

/// Takes what the kernel kept of its last panic (pstore), so that there is room for the next.
fn keep_last_words(log: &Log) {
    let Ok(entries) = std::fs::read_dir("/sys/fs/pstore") else { return };
    for entry in entries.flatten() {
        let words = files::read_text(entry.path(), MAX_WORDS).unwrap_or_default();
        match keep_words(&entry.file_name().to_string_lossy(), &words) {
            Ok(()) => drop(std::fs::remove_file(entry.path())),
            Err(error) => warning!(log, "last words: {error}"),
        }
    }
}

/// Keeps words of an end in the state partition, the newest few.
///
/// # Errors
/// As the file system says.
pub fn keep_words(name: &str, words: &str) -> io::Result<()> {
    let folder = Path::new(STATE).join("last-words");
    std::fs::create_dir_all(&folder)?;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    files::replace(&folder.join(format!("{now}-{name}")), words.as_bytes())?;
    let mut names: Vec<_> = std::fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).collect();
    names.sort();
    for old in names.iter().rev().skip(MOST_WORDS) {
        std::fs::remove_file(old)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_can_run_no_container_says_why() {
        let proc = tempfile::tempdir().expect("a folder");
        let lacks = kernel_lacks(proc.path());
        assert_eq!(lacks.len(), 6, "{lacks:?}");
        for folder in ["self/ns", "sys/kernel/seccomp"] {
            std::fs::create_dir_all(proc.path().join(folder)).expect("made");
        }
        for name in ["net", "pid", "ipc", "uts"] {
            std::os::unix::fs::symlink(format!("{name}:[4026531840]"), proc.path().join("self/ns").join(name))
                .expect("linked");
        }
        std::fs::write(proc.path().join("filesystems"), "nodev\tsysfs\nnodev\toverlay\n\text4\n")
            .expect("written");
        assert_eq!(kernel_lacks(proc.path()), Vec::<String>::new());
        std::fs::write(proc.path().join("filesystems"), "nodev\toverlayish\n").expect("written");
        assert!(kernel_lacks(proc.path())[0].contains("CONFIG_OVERLAY_FS"));
    }
}

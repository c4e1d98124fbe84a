//! The cgroups of a container: made, limited, entered and removed by a worker ([`entry`]), read and killed by others.
//!
//! On cgroup v2 there is one hierarchy; on v1 and hybrid set-ups one for each controller, below `/sys/fs/cgroup`.
//!
//! **Invariant.** libcontainer touches no cgroup: a worker hides them from it.

pub mod device_program;
pub mod devices;
pub(crate) mod entry;
mod hierarchy;
pub(crate) mod limits;
mod oom;
pub(crate) mod place;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use limits::tasks;
pub use oom::{Kills, OomWatch, Shortage, oom_kills, shortage};

const MOUNT: &str = "/sys/fs/cgroup";

/// Rounds of killing before giving up on processes that cannot die (a stuck file system).
const KILL_ROUNDS: usize = 200;

/// Pause between two rounds: a killed process needs a moment to be gone.
const KILL_PAUSE: Duration = Duration::from_millis(5);

/// v1 controllers in which a container's processes are looked for, best first.
const V1_TRACKERS: &[&str] = &["pids", "freezer", "memory", "cpu", "devices"];

/// The folder that lists the processes of `cgroup`.
fn tracker(cgroup: &str) -> Option<PathBuf> {
    let relative = cgroup.trim_start_matches('/');
    if is_v2() {
        return Some(Path::new(MOUNT).join(relative));
    }
    let folder = |controller| Path::new(MOUNT).join(controller).join(relative);
    V1_TRACKERS.iter().map(folder).find(|folder| folder.is_dir())
}

/// One hierarchy for everything.
pub fn is_v2() -> bool {
    Path::new(MOUNT).join("cgroup.controllers").exists()
}

/// The folder of one controller for `cgroup`.
pub fn controller(cgroup: &str, name: &str) -> PathBuf {
    let relative = cgroup.trim_start_matches('/');
    if is_v2() { Path::new(MOUNT).join(relative) } else { Path::new(MOUNT).join(name).join(relative) }
}

/// The folders of a cgroup, with the names of their hierarchies' mount points; one on v2.
pub fn hierarchies(cgroup: &str) -> Vec<(String, PathBuf)> {
    let relative = cgroup.trim_start_matches('/');
    let Ok(found) = hierarchy::Hierarchies::read() else { return Vec::new() };
    if let Some(root) = found.unified() {
        return vec![(String::new(), root.join(relative))];
    }
    let name = |mount: &Path| mount.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
    found.v1().map(|it| (name(&it.mount), it.mount.join(relative))).collect()
}

/// Processes of a cgroup and of those below it.
pub fn all_processes(cgroup: &str) -> Vec<i32> {
    tracker(cgroup).map(|folder| processes(&folder)).unwrap_or_default()
}

/// Processes of `folder` and the cgroups below it.
fn processes(folder: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid > 0).collect();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(processes(&entry.path()));
        }
    }
    pids
}

/// Sends SIGKILL to every process of the cgroup, once; does not wait.
pub fn kill_all(cgroup: &str) {
    let Some(folder) = tracker(cgroup) else { return };
    if std::fs::write(folder.join("cgroup.kill"), "1").is_err() {
        kill_processes(&folder, 0);
    }
}

/// The file that freezes, what is written to it, and what it says then: `cgroup.freeze` of v2, `freezer.state` of v1.
fn freezer(cgroup: &str, frozen: bool) -> (PathBuf, &'static str) {
    match (is_v2(), frozen) {
        (true, true) => (controller(cgroup, "freezer").join("cgroup.freeze"), "1"),
        (true, false) => (controller(cgroup, "freezer").join("cgroup.freeze"), "0"),
        (false, true) => (controller(cgroup, "freezer").join("freezer.state"), "FROZEN"),
        (false, false) => (controller(cgroup, "freezer").join("freezer.state"), "THAWED"),
    }
}

/// Whether its processes are frozen.
pub fn is_frozen(cgroup: &str) -> bool {
    let (file, word) = freezer(cgroup, true);
    std::fs::read_to_string(file).is_ok_and(|text| text.trim() == word)
}

/// Freezes the processes of a cgroup, or lets them go on, and waits until it is so.
///
/// # Errors
/// When there is no freezer, or when it takes longer than a second.
pub fn freeze(cgroup: &str, frozen: bool) -> std::io::Result<()> {
    let (file, word) = freezer(cgroup, frozen);
    std::fs::write(&file, word)?;
    let done = || -> std::io::Result<bool> {
        if is_v2() {
            // `cgroup.freeze` says what is wanted, `cgroup.events` what is.
            let events = std::fs::read_to_string(file.with_file_name("cgroup.events"))?;
            return Ok(events.lines().any(|line| line == format!("frozen {word}")));
        }
        Ok(std::fs::read_to_string(&file)?.trim() == word)
    };
    for _ in 0..KILL_ROUNDS {
        if done()? {
            return Ok(());
        }
        if !is_v2() {
            // On v1 a task that is about to sleep can be missed (FREEZING): writing again gets it.
            std::fs::write(&file, word)?;
        }
        std::thread::sleep(KILL_PAUSE);
    }
    if frozen {
        // Half frozen is neither.
        let (file, word) = freezer(cgroup, false);
        std::fs::write(file, word)?;
    }
    Err(std::io::Error::from(std::io::ErrorKind::TimedOut))
}

fn kill_processes(folder: &Path, spared: i32) -> usize {
    let pids: Vec<i32> = processes(folder).into_iter().filter(|&pid| pid != spared).collect();
    for &pid in &pids {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    pids.len()
}

fn child(cgroup: &str, number: u64) -> Option<PathBuf> {
    tracker(cgroup).map(|folder| folder.join(format!("exec-{number}")))
}

/// Kills a command's processes, but not the reaper that is to reap them. Does not wait.
pub fn kill_child_but(cgroup: &str, number: u64, reaper: i32) {
    if let Some(folder) = child(cgroup, number) {
        kill_processes(&folder, reaper);
    }
}

/// Kills what is left of a command and removes its cgroup. Waits, bounded.
pub fn remove_child(cgroup: &str, number: u64) {
    let Some(folder) = child(cgroup, number) else {
        return;
    };
    for _ in 0..KILL_ROUNDS {
        kill_processes(&folder, 0);
        match std::fs::remove_dir(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => std::thread::sleep(KILL_PAUSE),
            _ => return,
        }
    }
}

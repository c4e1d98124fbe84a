//! Processes that the kernel killed because memory ran out: how many, and when there is another.

use super::{controller, is_v2};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::fs::inotify;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use tokio::io::unix::AsyncFd;

/// Bytes read at once: some hundred notices, which all say the same.
const BUFFER: usize = 4096;

/// Exit code of a process that SIGKILL ended, also as a shell tells it of its child.
const KILLED: i32 = 128 + 9;

/// Bytes that no limit has: v1 says so with the largest number of whole pages.
const NO_LIMIT: u64 = 1 << 62;

/// Number of processes of the cgroup that the kernel killed for want of memory.
///
/// From `memory.events` on v2 (Documentation/admin-guide/cgroup-v2.rst), `memory.oom_control` on v1.
pub fn oom_kills(cgroup: &str) -> u64 {
    let text = std::fs::read_to_string(controller(cgroup, "memory").join(file())).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .find_map(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// Memory that was not enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// The limit that was reached, bytes; `None`: the machine has no more.
    pub limit: Option<u64>,
    /// The cgroup above that has this limit; `None`: it is its own.
    pub above: Option<String>,
    /// Most bytes that the cgroup had; on v2 needs Linux 5.19.
    pub peak: Option<u64>,
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        match self.limit {
            Some(limit) => write!(f, "limit {}", mib(limit))?,
            None => f.write_str("the machine has no more")?,
        }
        if let Some(above) = &self.above {
            write!(f, " of {above}")?;
        }
        self.peak.map_or(Ok(()), |peak| write!(f, ", peak {}", mib(peak)))
    }
}

/// Whose memory ran out when the kernel killed a process of the cgroup: its own, or that of one above it.
pub fn shortage(cgroup: &str) -> Shortage {
    let number = |cgroup: &str, file: &str| -> Option<u64> {
        std::fs::read_to_string(controller(cgroup, "memory").join(file)).ok()?.trim().parse().ok()
    };
    let (limit_file, peak_file) = match is_v2() {
        true => ("memory.max", "memory.peak"),
        false => ("memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    };
    let own = cgroup.trim_matches('/');
    let chain = Path::new(own).ancestors().filter_map(Path::to_str).filter(|it| !it.is_empty());
    let reached = chain.into_iter().find_map(|it| {
        let limit = number(it, limit_file).filter(|limit| *limit < NO_LIMIT)?;
        was_reached(&controller(it, "memory")).then_some((it, limit))
    });
    Shortage {
        limit: reached.map(|(_, limit)| limit),
        above: reached.filter(|(it, _)| *it != own).map(|(it, _)| format!("/{it}")),
        peak: number(own, peak_file),
    }
}

/// Whether the cgroup's own limit was reached: `oom` of `memory.events.local` on v2, a failure count on v1.
fn was_reached(folder: &Path) -> bool {
    let files: &[(&str, &str)] = match is_v2() {
        true => &[("memory.events.local", "oom ")],
        false => &[("memory.failcnt", ""), ("memory.memsw.failcnt", "")],
    };
    files.iter().any(|(file, key)| {
        let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        text.lines().any(|line| line.strip_prefix(key).is_some_and(|count| count.trim() != "0"))
    })
}

fn file() -> &'static str {
    if is_v2() { "memory.events" } else { "memory.oom_control" }
}

/// How often the kernel had killed when a command began.
#[derive(Debug)]
pub struct Kills {
    cgroup: String,
    before: u64,
}

impl Kills {
    /// As it is now.
    pub fn of(cgroup: &str) -> Self {
        Self { cgroup: cgroup.to_owned(), before: oom_kills(cgroup) }
    }

    /// What was short, when a command that ended with this code was killed for it.
    ///
    /// The kernel counts by cgroup: with two commands killed at the same time, one of them from outside, both are told.
    pub fn killed(&self, code: i32) -> Option<Shortage> {
        let killed = code == KILLED && oom_kills(&self.cgroup) > self.before;
        killed.then(|| shortage(&self.cgroup))
    }
}

/// Ears for a cgroup that runs out of memory.
#[derive(Debug)]
pub struct OomWatch {
    fd: AsyncFd<OwnedFd>,
    /// v1: the kernel tells as long as this is open.
    _control: Option<File>,
}

impl OomWatch {
    /// Begins to listen. Needs a tokio runtime.
    ///
    /// # Errors
    /// ENOENT without a memory controller, EMFILE.
    pub fn listen(cgroup: &str) -> std::io::Result<Self> {
        let folder = controller(cgroup, "memory");
        let (fd, control) = if is_v2() {
            (notices_of(&folder.join(file()))?, None)
        } else {
            // Documentation/admin-guide/cgroup-v1/memory.rst, section 10.
            let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            let control = File::open(folder.join(file()))?;
            let line = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
            std::fs::write(folder.join("cgroup.event_control"), line)?;
            (OwnedFd::from(event), Some(control))
        };
        Ok(Self { fd: crate::sys::register(fd)?, _control: control })
    }

    /// Waits until the kernel says that memory ran out, or that the cgroup changed in another way.
    ///
    /// # Errors
    /// When the descriptor is broken.
    pub async fn wait(&self) -> std::io::Result<()> {
        crate::sys::heard(&self.fd, &mut [0; BUFFER]).await
    }
}

fn notices_of(path: &Path) -> std::io::Result<OwnedFd> {
    let notices = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&notices, path, inotify::WatchFlags::MODIFY)?;
    Ok(notices)
}

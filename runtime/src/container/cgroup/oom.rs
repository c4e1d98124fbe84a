//! Processes that the kernel killed because memory ran out: how many, and when there is another.

use super::{controller, is_v2};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::fs::inotify;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use tokio::io::unix::AsyncFd;

/// Bytes read at once: some hundred notices, which all say the same.
const BUFFER: usize = 4096;

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

fn file() -> &'static str {
    if is_v2() { "memory.events" } else { "memory.oom_control" }
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
        let mut buffer = [0; BUFFER];
        loop {
            let mut ready = self.fd.readable().await?;
            match nix::unistd::read(self.fd.get_ref().as_raw_fd(), &mut buffer) {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn notices_of(path: &Path) -> std::io::Result<OwnedFd> {
    let notices = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&notices, path, inotify::WatchFlags::MODIFY)?;
    Ok(notices)
}

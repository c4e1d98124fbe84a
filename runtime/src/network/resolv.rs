//! Hears when the host's name servers change: `/etc/resolv.conf` (resolv.conf(5)) is replaced by whoever manages the
//! network, often in a folder that a link leads to.

use rustix::fs::inotify;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::io::unix::AsyncFd;

/// Where a host says which servers it asks.
pub const FILE: &str = "/etc/resolv.conf";

/// Bytes of it that are read: it has three servers and a few names.
const MAX: u64 = 16 * 1024;

/// Bytes of notices that are read at once; what they say does not matter.
const BUFFER: usize = 4096;

/// What the host says now; nothing when it has no such file.
pub fn read() -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    // A host without a network has none.
    let _ = std::fs::File::open(FILE).and_then(|file| file.take(MAX).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The folder in which the file is replaced; none as long as a link leads nowhere.
pub fn folder() -> Option<PathBuf> {
    let path = std::fs::canonicalize(FILE).or_else(|_| {
        let target = Path::new("/etc").join(std::fs::read_link(FILE)?);
        std::fs::canonicalize(target.parent().unwrap_or(Path::new("/etc")))
            .map(|folder| folder.join("resolv.conf"))
    });
    path.ok()?.parent().map(Path::to_owned)
}

/// Ears for changes in a folder.
#[derive(Debug)]
pub struct Changes {
    fd: AsyncFd<OwnedFd>,
}

impl Changes {
    /// Begins to listen. Needs a tokio runtime.
    ///
    /// # Errors
    /// EMFILE, ENOSPC (inotify(7): too many watches), or no such folder.
    pub fn listen(folder: &Path) -> std::io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let what = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::DELETE;
        inotify::add_watch(&fd, folder, what)?;
        Ok(Self { fd: crate::sys::register(fd)? })
    }

    /// Waits until a file there was replaced, written or removed.
    ///
    /// # Errors
    /// When the descriptor is broken.
    pub async fn wait(&self) -> std::io::Result<()> {
        crate::sys::heard(&self.fd, &mut [0; BUFFER]).await
    }
}

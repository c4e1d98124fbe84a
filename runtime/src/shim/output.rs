//! Reading what containers and commands write, a bounded amount at a time.

use super::protocol::Stream;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes taken from one stream before the others get their turn: a service that writes without end cannot starve
/// the shim's other work.
pub const READ_TURN: usize = 64 * 1024;

/// Pipe capacity in bytes asked for: lets a container write on for a moment while the shim works elsewhere.
const PIPE_BYTES: i32 = 64 * 1024;

/// The shim's end of a container's stream.
#[derive(Debug)]
pub struct Source {
    /// Pipe or terminal, not blocking.
    pub fd: OwnedFd,
    /// Which stream it is.
    pub stream: Stream,
}

/// What one turn of reading found.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing more for now.
    Drained,
    /// There is more.
    More,
    /// All writers are gone.
    Ended,
}

/// Makes a pipe whose read end does not block.
///
/// # Errors
/// EMFILE and ENFILE.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&read)?;
    // A refusal only means the default capacity: no reason to fail.
    let _ = fcntl(write.as_raw_fd(), FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    Ok((read, write))
}

/// Makes reads return EAGAIN instead of waiting.
///
/// # Errors
/// EBADF only.
pub fn set_nonblocking(fd: &OwnedFd) -> Result<(), Errno> {
    let flags = OFlag::from_bits_truncate(fcntl(fd.as_raw_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

/// Reads up to [`READ_TURN`] bytes and hands them to `take`.
pub fn read_turn(source: &Source, buffer: &mut [u8], mut take: impl FnMut(&[u8])) -> Turn {
    let mut total = 0;
    while total < READ_TURN {
        match nix::unistd::read(source.fd.as_raw_fd(), buffer) {
            Ok(0) => return Turn::Ended,
            Ok(count) => {
                total += count;
                take(&buffer[..count]);
            }
            Err(Errno::EAGAIN) => return Turn::Drained,
            Err(Errno::EINTR) => {}
            // EIO is how a terminal says that its last user closed it (pty(7)).
            Err(_) => return Turn::Ended,
        }
    }
    Turn::More
}

/// Nanoseconds since 1970 by the system clock.
pub fn unix_now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds since boot, suspended time included (`CLOCK_BOOTTIME`): never set back.
pub fn boottime_now_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    now.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

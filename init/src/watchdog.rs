//! The hardware watchdog: it resets a board whose first process does not turn any more.
//!
//! It is fed as long as that loop turns, and no longer than a shutdown may take. What is wrong above it (the agent, the
//! data partition) has the ladder of [`crate::units`], which ends in an ordered reboot; a reboot that hangs ends here.

use crate::sys;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// An open watchdog.
#[derive(Debug)]
pub struct Watchdog {
    device: File,
    /// It is fed three times in its time limit.
    every: Duration,
    fed: Duration,
}

/// `WDIOF_CARDRESET` in linux/watchdog.h, in the file `bootstatus`.
const RESET_BY_WATCHDOG: u32 = 0x20;

impl Watchdog {
    /// Opens the first one, which starts it; `None`: there is none. The time limit is what the driver takes of `seconds`.
    ///
    /// # Errors
    /// When it is another's.
    pub fn open(seconds: u32, now: Duration) -> io::Result<Option<Self>> {
        let device = match File::options().write(true).open("/dev/watchdog0") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            device => device?,
        };
        let wanted = i32::try_from(seconds).unwrap_or(i32::MAX).max(1);
        // A driver with a limit of its own refuses more (Allwinner: 16 s), or cannot be told at all.
        let limits = [wanted, wanted.min(15), wanted.min(8)];
        let taken = limits.into_iter().find_map(|limit| sys::set_watchdog_timeout(device.as_fd(), limit).ok());
        let taken = taken.and_then(|it| u64::try_from(it).ok()).filter(|&it| it > 0).unwrap_or(8);
        let mut watchdog = Self { device, every: Duration::from_secs(taken) / 3, fed: now };
        watchdog.feed(now)?;
        Ok(Some(watchdog))
    }

    /// When it wants to be fed next.
    pub fn due(&self) -> Duration {
        self.fed + self.every
    }

    /// Feeds it, when it is time.
    ///
    /// # Errors
    /// What the driver says.
    pub fn feed(&mut self, now: Duration) -> io::Result<()> {
        self.fed = now;
        self.device.write_all(b"1")
    }
}

/// Whether the last boot was ended by the watchdog.
pub fn has_bitten(sys: &Path) -> bool {
    let path = sys.join("class/watchdog/watchdog0/bootstatus");
    let text = crate::files::read_text(path, 64).unwrap_or_default();
    text.trim().parse::<u32>().is_ok_and(|it| it & RESET_BY_WATCHDOG != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_by_the_watchdog_is_known() {
        let sys = tempfile::tempdir().expect("a folder");
        assert!(!has_bitten(sys.path()));
        let folder = sys.path().join("class/watchdog/watchdog0");
        std::fs::create_dir_all(&folder).expect("made");
        std::fs::write(folder.join("bootstatus"), "32\n").expect("written");
        assert!(has_bitten(sys.path()));
        std::fs::write(folder.join("bootstatus"), "0\n").expect("written");
        assert!(!has_bitten(sys.path()));
    }
}

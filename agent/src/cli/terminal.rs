//! Joins this terminal with one in a container.

use super::Failed;
use crate::exit::Code;
use nix::sys::termios::{self, SetArg, Termios};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

/// Bytes passed on at once.
const PIECE: usize = 4096;

/// The two terminals, joined until the command ends. Dropped, it gives this terminal back as it was.
pub struct Pump {
    saved: Option<Termios>,
    inner: OwnedFd,
    output: Option<JoinHandle<()>>,
}

/// Sets this terminal raw, and copies both ways in threads.
///
/// # Errors
/// EMFILE.
pub fn attach(terminal: OwnedFd) -> Result<Pump, Failed> {
    let stdin = std::io::stdin();
    let saved = termios::tcgetattr(stdin.as_fd()).ok();
    if let Some(saved) = &saved {
        let mut raw = saved.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)
            .map_err(|errno| Failed::new(Code::Internal, errno.desc()))?;
    }
    let mut from = File::from(terminal.try_clone()?);
    let mut to = File::from(terminal.try_clone()?);
    let output = std::thread::spawn(move || {
        let mut buffer = [0; PIECE];
        // EIO: the command and everything that it started have closed the terminal.
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut out = std::io::stdout().lock();
            if out.write_all(&buffer[..count]).and_then(|()| out.flush()).is_err() {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; PIECE];
        while let Ok(count @ 1..) = std::io::stdin().read(&mut buffer) {
            if to.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    });
    Ok(Pump { saved, inner: terminal, output: Some(output) })
}

impl Pump {
    /// Passes this terminal's size on; the kernel tells the programs (SIGWINCH).
    pub fn resize(&self) {
        if let Some((rows, columns)) = coracle_runtime::terminal::size(std::io::stdin().as_fd()) {
            // A terminal that is gone has no size.
            let _ = coracle_runtime::terminal::set_size(self.inner.as_fd(), rows, columns);
        }
    }

    /// Waits until everything that the command wrote is shown.
    pub fn show_the_rest(&mut self) {
        if let Some(output) = self.output.take() {
            let _ = output.join();
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            let _ = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, saved);
        }
    }
}

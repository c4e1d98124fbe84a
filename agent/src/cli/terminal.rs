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

/// The two terminals, joined until the command ends.
pub struct Pump {
    saved: Option<Termios>,
    output: JoinHandle<()>,
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
    if let Some((rows, columns)) = coracle_runtime::terminal::size(stdin.as_fd()) {
        // A size that cannot be set is a terminal of 24 lines.
        let _ = coracle_runtime::terminal::set_size(terminal.as_fd(), rows, columns);
    }
    let mut from = File::from(terminal.try_clone()?);
    let mut to = File::from(terminal);
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
    Ok(Pump { saved, output })
}

impl Pump {
    /// Shows what is left and gives the terminal back.
    pub fn finish(self) {
        let _ = self.output.join();
        if let Some(saved) = &self.saved {
            let _ = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, saved);
        }
    }
}

//! A container or a command in the foreground: its terminal, its signals, its exit code.

use super::Problem;
use crate::cli::terminal::{self, Pump};
use coracle_runtime::oci;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket};
use nix::unistd::Pid;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Folders of one process that may stand in the way of another: left by one of the same number that was killed.
const MAX_FOLDERS: u32 = 100;

/// A socket that a terminal comes from, in a folder of our own that is removed in the end.
#[derive(Debug)]
pub struct Console {
    folder: PathBuf,
    listener: OwnedFd,
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Console {
    /// Opens a socket.
    ///
    /// # Errors
    /// As the file system says.
    pub fn open() -> Result<Self, Problem> {
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let console = Self { folder: own_folder()?, listener };
        bind(console.listener.as_raw_fd(), &UnixAddr::new(&console.path())?)?;
        listen(&console.listener, Backlog::new(1)?)?;
        Ok(console)
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        self.folder.join("console")
    }

    /// Takes the terminal that was sent, and joins it with this process's.
    ///
    /// # Errors
    /// When none came.
    pub fn attach(&self) -> Result<Pump, Problem> {
        let connection = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        let terminal = coracle_runtime::terminal::receive(connection)?;
        let terminal = terminal.ok_or_else(|| Problem::new(1, "no terminal came from the container"))?;
        let pump = terminal::attach(terminal).map_err(|failed| Problem::new(1, failed.to_string()))?;
        pump.resize();
        Ok(pump)
    }
}

fn own_folder() -> std::io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let parent = std::env::temp_dir();
    for number in 0..MAX_FOLDERS {
        let path = parent.join(format!("coracle-console-{}-{number}", std::process::id()));
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| path),
        }
    }
    Err(std::io::Error::from(std::io::ErrorKind::AlreadyExists))
}

/// The signals of this process, kept from every thread of it: one that swallowed the end of the container would let
/// the wait for it go on for ever. So this comes before the terminal's threads, and after the container, which would
/// have been born with them blocked.
#[derive(Debug)]
pub struct Signals(SigSet);

impl Signals {
    /// Keeps them from now on.
    pub fn hold() -> Self {
        let signals = SigSet::all();
        // Fails for an unknown way of changing the mask alone.
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&signals), None);
        Self(signals)
    }

    /// Waits for a child, hands on the signals that come meanwhile, and answers its exit code.
    pub fn wait(&self, pid: i32, mut pump: Option<Pump>) -> i32 {
        let code = loop {
            if let Some(code) = oci::reap(pid, false) {
                break code;
            }
            match self.0.wait() {
                Ok(Signal::SIGCHLD) | Err(_) => {}
                Ok(Signal::SIGWINCH) => pump.iter().for_each(Pump::resize),
                Ok(signal) => {
                    // It may have ended meanwhile.
                    let _ = kill(Pid::from_raw(pid), signal);
                }
            }
        };
        pump.iter_mut().for_each(Pump::show_the_rest);
        code
    }
}

/// Reads a file that is given by name, or standard input for `-`; at most `most` bytes.
///
/// # Errors
/// As the file system says.
pub fn read(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().take(most).read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(path)?.take(most).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

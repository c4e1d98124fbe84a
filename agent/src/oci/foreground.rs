//! A container or a command in the foreground: its terminal, its signals, its exit code.

use super::Problem;
use crate::cli::terminal::{self, Pump};
use coracle_runtime::oci::OciError;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A socket that a terminal comes from.
#[derive(Debug)]
pub struct Console {
    folder: tempfile_name::Folder,
    listener: OwnedFd,
}

mod tempfile_name {
    use std::path::{Path, PathBuf};

    /// A folder of our own that is removed in the end.
    #[derive(Debug)]
    pub struct Folder(PathBuf);

    impl Folder {
        pub fn make() -> std::io::Result<Self> {
            use std::os::unix::fs::DirBuilderExt;
            let parent = std::env::temp_dir();
            for number in 0..100 {
                let path = parent.join(format!("coracle-console-{}-{number}", std::process::id()));
                match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                    made => return made.map(|()| Self(path)),
                }
            }
            Err(std::io::Error::from(std::io::ErrorKind::AlreadyExists))
        }

        pub fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

impl Console {
    /// Opens a socket.
    ///
    /// # Errors
    /// As the file system says.
    pub fn open() -> Result<Self, Problem> {
        let folder = tempfile_name::Folder::make()?;
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(listener.as_raw_fd(), &UnixAddr::new(&folder.path().join("console"))?)?;
        listen(&listener, Backlog::new(1)?)?;
        Ok(Self { folder, listener })
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("console")
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

/// Waits for a child, hands on the signals that come meanwhile, and answers its exit code.
///
/// # Errors
/// When it is no child.
pub fn wait(pid: i32, mut pump: Option<Pump>) -> Result<i32, OciError> {
    // Blocked now, and not before: the container would have been born with them blocked.
    let signals = SigSet::all();
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&signals), None);
    let code = loop {
        if let Some(code) = reap(pid) {
            break code;
        }
        match signals.wait() {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            Ok(Signal::SIGWINCH) => pump.iter().for_each(Pump::resize),
            Ok(signal) => drop_result(kill(Pid::from_raw(pid), signal)),
        }
    };
    pump.iter_mut().for_each(Pump::show_the_rest);
    Ok(code)
}

fn drop_result<T, E>(_: Result<T, E>) {}

/// Reaps everything that has ended; the code when `pid` is among it, 255 when it is nobody's child.
fn reap(pid: i32) -> Option<i32> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(ended, code)) if ended.as_raw() == pid => return Some(code),
            Ok(WaitStatus::Signaled(ended, signal, _)) if ended.as_raw() == pid => {
                return Some(128 + signal as i32);
            }
            Ok(WaitStatus::StillAlive) => return None,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return Some(255),
        }
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

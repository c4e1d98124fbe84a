//! Calls that are left to somebody else (`SCMP_ACT_NOTIFY`, seccomp_unotify(2)): who listens at `listenerPath` gets the
//! filter's descriptor.
//!
//! The process has it when its filter is loaded, and by then may not be able to make the calls that would hand it over:
//! they could be the ones that wait for an answer. So it does nothing but look at a byte of memory, while this side takes
//! the descriptor out of it and sends it.

use super::error::{OciError, errno, io};
use crate::container::launcher::terminal;
use crate::container::worker;
use crate::sys;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What the kernel calls the descriptor (kernel/seccomp.c).
const DESCRIPTOR: &str = "anon_inode:seccomp notify";

/// Looks for the descriptor, one in a millisecond: the process has nothing else to do before.
const MOST_LOOKS: usize = 10_000;

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listener {
    /// Their socket.
    path: PathBuf,
    /// What they want to be told with it.
    metadata: String,
}

impl Listener {
    /// As a filter's document has it (config-linux.md, `listenerPath`).
    ///
    /// # Errors
    /// A path that is not absolute.
    pub(super) fn of(filter: Option<&Value>) -> Result<Option<Self>, OciError> {
        let text = |name: &str| filter.and_then(|it| it[name].as_str()).unwrap_or_default();
        let path = Path::new(text("listenerPath"));
        if path.as_os_str().is_empty() {
            return Ok(None);
        }
        if !path.is_absolute() {
            return Err(refused(format!("{} is not absolute", path.display())));
        }
        Ok(Some(Self { path: path.to_owned(), metadata: text("listenerMetadata").to_owned() }))
    }

    /// Takes the descriptor from the process and sends it, and lets the process go on by `heard`. `state` is the
    /// container's; `report` tells why the process cannot load its filter.
    ///
    /// # Errors
    /// When nobody listens, or the process has no filter. It must be ended then.
    pub(super) fn hand_over(
        &self,
        pid: i32,
        mut heard: &File,
        report: &OwnedFd,
        state: &Value,
    ) -> Result<(), OciError> {
        let process = sys::open_process(pid).map_err(errno("opening the process (Linux 5.3)"))?;
        for _ in 0..MOST_LOOKS {
            if let Some(number) = find(pid) {
                let descriptor = sys::take_descriptor(process.as_fd(), number)
                    .map_err(errno("taking the filter's descriptor (Linux 5.6, CAP_SYS_PTRACE)"))?;
                self.send(pid, &descriptor, state).map_err(|errno| refused(errno.desc().to_owned()))?;
                return heard.write_all(&[1]).map_err(io("writing", Path::new("memory")));
            }
            let mut told = [PollFd::new(report.as_fd(), PollFlags::POLLIN)];
            match poll(&mut told, PollTimeout::from(1_u8)) {
                Ok(0) | Err(Errno::EINTR) => {}
                _ => {
                    worker::wait_until_running(report)?;
                    return Err(refused("the process ended before its filter was loaded".to_owned()));
                }
            }
        }
        Err(refused("the process did not load its filter".to_owned()))
    }

    /// The container process state (config-linux.md), with the descriptor.
    fn send(&self, pid: i32, descriptor: &OwnedFd, state: &Value) -> Result<(), Errno> {
        let document = json!({
            "ociVersion": super::VERSION, "fds": ["seccompFd"], "pid": pid, "metadata": self.metadata, "state": state,
        });
        let fd = terminal::connect(&self.path)?;
        let rights = [descriptor.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&rights)];
        let text = document.to_string();
        let mut sent = 0;
        while sent < text.len() {
            let control = if sent == 0 { &control[..] } else { &[] };
            let part = [IoSlice::new(&text.as_bytes()[sent..])];
            sent += sendmsg::<()>(fd.as_raw_fd(), &part, control, MsgFlags::MSG_NOSIGNAL, None)?;
        }
        Ok(())
    }
}

fn refused(reason: String) -> OciError {
    OciError::Refused { field: "linux.seccomp.listenerPath".to_owned(), reason }
}

/// Memory whose first byte says that the descriptor was taken.
///
/// # Errors
/// No memory.
pub(super) fn memory() -> Result<File, OciError> {
    let file = memfd_create(c"heard", MemFdCreateFlag::MFD_CLOEXEC).map_err(errno("making a file in memory"))?;
    Ok(File::from(file))
}

/// The descriptor's number in the process.
fn find(pid: i32) -> Option<i32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let mut of_filter =
        entries.filter(|it| std::fs::read_link(it.path()).is_ok_and(|to| to == Path::new(DESCRIPTOR)));
    of_filter.next()?.file_name().to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_named_by_an_absolute_path() {
        assert_eq!(Listener::of(None).expect("none"), None);
        assert_eq!(Listener::of(Some(&json!({ "listenerPath": "" }))).expect("none"), None);
        let listener =
            Listener::of(Some(&json!({ "listenerPath": "/s", "listenerMetadata": "m" }))).expect("read");
        assert_eq!(listener, Some(Listener { path: "/s".into(), metadata: "m".to_owned() }));
        let refused = Listener::of(Some(&json!({ "listenerPath": "s" }))).expect_err("refused").to_string();
        assert!(refused.contains("linux.seccomp.listenerPath"), "{refused}");
    }
}

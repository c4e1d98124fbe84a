//! Whoever started the agent and looks after it: `coracle init` on a board, systemd elsewhere. It is told in the
//! datagrams of sd_notify(3) that the agent is ready, and that its loop turns.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Between two signs of life, when nobody asks for more. The agent wakes for it, so it is long; `coracle init` gives up
/// after five minutes.
const EVERY: Duration = Duration::from_secs(60);

/// How the agent runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mode {
    /// Somebody else starts the shim, and starts it again.
    pub supervised: bool,
    /// No step of a plan is done: what runs goes on, and the agent answers.
    pub safe: bool,
    /// The image is ours: there are a boot partition and a state partition.
    pub board: bool,
}

/// Who is told.
#[derive(Debug)]
pub struct Supervisor {
    socket: UnixDatagram,
    address: SocketAddr,
    /// Between two signs of life.
    pub every: Duration,
}

impl Supervisor {
    /// From the environment; `None`: nobody looks after this agent.
    pub fn from_environment() -> Option<Self> {
        let path = std::env::var("NOTIFY_SOCKET").ok()?;
        let limit = std::env::var("WATCHDOG_USEC").ok().and_then(|it| it.parse().ok()).map(Duration::from_micros);
        match Self::new(&path, limit) {
            Ok(supervisor) => Some(supervisor),
            Err(error) => {
                tracing::warn!(%error, path, "NOTIFY_SOCKET cannot be used");
                None
            }
        }
    }

    /// At a path, or with `@` at an abstract name. `limit`: without a sign for so long the agent is given up.
    fn new(path: &str, limit: Option<Duration>) -> io::Result<Self> {
        let address = match path.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        // It has the time to listen; the agent has not to wait.
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address, every: limit.map_or(EVERY, |limit| (limit / 2).min(EVERY)) })
    }

    /// The agent listens.
    pub fn ready(&self) {
        self.tell(b"READY=1\n");
    }

    /// The loop turns.
    pub fn alive(&self) {
        self.tell(b"WATCHDOG=1\n");
    }

    fn tell(&self, words: &[u8]) {
        if let Err(error) = self.socket.send_to_addr(words, &self.address) {
            tracing::debug!(%error, "the supervisor does not listen");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisor_hears_in_a_folder_and_by_an_abstract_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let name = format!("coracle-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let sockets = [
            (path.to_string_lossy().into_owned(), UnixDatagram::bind(&path).expect("bound")),
            (format!("@{name}"), UnixDatagram::bind_addr(&address).expect("bound")),
        ];
        for (place, socket) in sockets {
            let supervisor = Supervisor::new(&place, None).expect("there");
            supervisor.ready();
            supervisor.alive();
            let mut words = [0; 64];
            for wanted in [&b"READY=1\n"[..], b"WATCHDOG=1\n"] {
                let count = socket.recv(&mut words).expect("told");
                assert_eq!(&words[..count], wanted);
            }
        }
    }

    #[test]
    fn a_sign_comes_twice_in_the_time_that_is_given() {
        let every = |limit: u64| Supervisor::new("/x", Some(Duration::from_secs(limit))).expect("a path").every;
        assert_eq!(every(10), Duration::from_secs(5));
        assert_eq!(every(1000), EVERY);
    }
}

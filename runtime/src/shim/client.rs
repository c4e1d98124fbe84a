//! The agent's end: requests with one reply each, and a stream of events.

use super::protocol::{ContainerStatus, LogPage, decode_reply};
use super::protocol::{Event, Failure, FromShim, LIST_PAGE, MAX_PACKET, Reply, Request, ToShim, VERSION};
use super::transport::{self, Received};
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

/// Events that wait for the agent before they are dropped and [`Event::Lost`] is told instead. A reconcile round
/// takes milliseconds; this covers some hundred containers ending at once.
const EVENT_QUEUE: usize = 256;

/// Why the shim could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No shim listens there.
    #[error("connecting to the shim at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Errno,
    },
    /// The connection broke.
    #[error("the shim closed the connection")]
    Closed,
    /// The packet could not be sent.
    #[error("sending to the shim")]
    Send(#[source] Errno),
    /// The message could not be encoded or was not understood.
    #[error("the shim's message is not understood")]
    Encoding(#[from] postcard::Error),
    /// Another protocol version.
    #[error("the shim speaks version {0} of the protocol, this program {VERSION}: restart the shim")]
    Version(u32),
    /// The shim refused or failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The shim answered something else than was asked.
    #[error("the shim gave an answer of another kind")]
    Unexpected,
}

type Answer = (Reply, Vec<OwnedFd>);
type Waiting = Arc<Mutex<Pending>>;

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    closed: bool,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
}

/// A handle to send requests with; clones share the connection.
#[derive(Debug, Clone)]
pub struct Client {
    socket: Arc<AsyncFd<OwnedFd>>,
    pending: Waiting,
}

/// A connection: the handle, the events, and the shim's process id.
#[derive(Debug)]
pub struct Connection {
    /// For requests.
    pub client: Client,
    /// Events with the descriptors beside them; ends when the shim is gone.
    pub events: mpsc::Receiver<Event>,
    /// Process id of the shim.
    pub shim_pid: i32,
}

impl Client {
    /// Connects to the shim and agrees on the protocol. Needs a tokio runtime.
    ///
    /// # Errors
    /// When no shim listens at `path`, or it speaks another version.
    pub async fn connect(path: &Path) -> Result<Connection, ClientError> {
        let connect = |source| ClientError::Connect { path: path.to_owned(), source };
        let fd = transport::connect_to(path).map_err(connect)?;
        let socket = Arc::new(crate::sys::register(fd).map_err(|_| connect(Errno::EMFILE))?);
        let pending = Waiting::default();
        let (sender, events) = mpsc::channel(EVENT_QUEUE);
        tokio::spawn(receive_all(Arc::clone(&socket), Arc::clone(&pending), sender));
        let client = Self { socket, pending };
        match client.ask(Request::Hello { version: VERSION }, &[]).await?.0 {
            Reply::Hello { version: VERSION, pid } => Ok(Connection { client, events, shim_pid: pid }),
            Reply::Hello { version, .. } => Err(ClientError::Version(version)),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Sends one request and waits for its reply.
    ///
    /// # Errors
    /// When the connection broke, or the shim answered [`Reply::Failed`].
    pub async fn ask(&self, request: Request, descriptors: &[RawFd]) -> Result<Answer, ClientError> {
        let (sender, receiver) = oneshot::channel();
        let sequence = self.register(sender)?;
        let packet = postcard::to_allocvec(&ToShim { sequence, request })?;
        loop {
            let mut ready = self.socket.writable().await.map_err(|_| ClientError::Closed)?;
            match transport::send(self.socket.get_ref(), &packet, descriptors) {
                Ok(()) => break,
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(ClientError::Send(errno)),
            }
        }
        let (reply, descriptors) = receiver.await.map_err(|_| ClientError::Closed)?;
        match reply {
            Reply::Failed(failure) => Err(failure.into()),
            reply => Ok((reply, descriptors)),
        }
    }

    /// Sends a request whose reply carries nothing.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn tell(&self, request: Request, descriptors: &[RawFd]) -> Result<(), ClientError> {
        match self.ask(request, descriptors).await?.0 {
            Reply::Done => Ok(()),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// All containers.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn list(&self) -> Result<Vec<ContainerStatus>, ClientError> {
        let mut all: Vec<ContainerStatus> = Vec::new();
        loop {
            let after = all.last().map(|container| container.id.clone()).unwrap_or_default();
            let (Reply::Containers(page), _) = self.ask(Request::List { after }, &[]).await? else {
                return Err(ClientError::Unexpected);
            };
            let last = page.len() < LIST_PAGE;
            all.extend(page);
            if last {
                return Ok(all);
            }
        }
    }

    /// A page of a container's log.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn read_log(&self, id: &str, from: u64) -> Result<LogPage, ClientError> {
        match self.ask(Request::ReadLog { id: id.to_owned(), from }, &[]).await?.0 {
            Reply::Log(page) => Ok(page),
            _ => Err(ClientError::Unexpected),
        }
    }

    fn register(&self, sender: oneshot::Sender<Answer>) -> Result<u64, ClientError> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.closed {
            return Err(ClientError::Closed);
        }
        pending.next += 1;
        let sequence = pending.next;
        pending.waiting.insert(sequence, sender);
        Ok(sequence)
    }
}

/// Hands replies to those who wait and events to the agent, until the shim is gone.
async fn receive_all(socket: Arc<AsyncFd<OwnedFd>>, pending: Waiting, events: mpsc::Sender<Event>) {
    let mut buffer = vec![0; MAX_PACKET];
    let mut lost = false;
    while let Some((packet, descriptors)) = receive_one(&socket, &mut buffer).await {
        match packet {
            FromShim::Reply { sequence, reply } => {
                let waiting = pending.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&sequence);
                if let Some(waiting) = waiting {
                    // An asker that gave up needs no answer.
                    let _ = waiting.send((reply, descriptors));
                }
            }
            FromShim::Event(event) => {
                if lost && events.try_send(Event::Lost).is_ok() {
                    lost = false;
                }
                lost |= events.try_send(event).is_err();
            }
        }
    }
    let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
    pending.closed = true;
    pending.waiting.clear();
}

async fn receive_one(socket: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> Option<(FromShim, Vec<OwnedFd>)> {
    loop {
        let mut ready = socket.readable().await.ok()?;
        match transport::receive(socket.get_ref(), buffer) {
            Ok(Received::Packet(length, descriptors)) => {
                return decode_reply(&buffer[..length]).ok().map(|packet| (packet, descriptors));
            }
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Ok(Received::Closed) | Err(_) => return None,
        }
    }
}

//! The shim's loop: one epoll set for clients, workers, output and ended children.

use super::children::{Children, Role};
use super::handover::{self, ContainerPiece, ExecPiece, Piece, STATE};
use super::output::{self, Source, Turn, boottime_now_ns, unix_now_ns};
use super::protocol::{
    ContainerStatus, Event, ExitStatus, Failure, FailureKind, FromShim, LIST_PAGE, MAX_PACKET, Reply, Request,
    Stream, VERSION, decode_request,
};
use super::ring::Ring;
use super::transport::{self, Received};
use crate::container::users;
use crate::container::worker::{self, Folders, Made, Output, Surroundings};
use crate::container::{ContainerSpec, ExecSpec, NetworkNamespace, Stdio};
use crate::{memory, sys};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket, socketpair};
use nix::unistd::Pid;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::ffi::CString;
use std::ops::Bound;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Workers at once. Each is a fork with a copy of the shim's page tables and does kernel work; more would only wait
/// for each other on a board with one to four cores. Further requests wait in a queue.
pub const MAX_WORKERS: usize = 8;

/// Requests that wait for a worker; then the agent is told to come again.
const MAX_QUEUE: usize = 256;

/// Connections at once: the agent, and one for each `exec` that somebody has open.
const MAX_CLIENTS: usize = 32;

/// Packets that wait for a client that does not read. Then it is cut off: it has lost its place anyway.
const MAX_UNSENT: usize = 64;

/// Output kept of a command whose output goes nowhere (a health check), bytes.
pub const MAX_EXEC_OUTPUT: usize = 4096;

/// Containers at once; bounds what the shim holds.
const MAX_CONTAINERS: usize = 1024;

/// Descriptors handled in one turn of the loop.
const EVENTS: usize = 32;

/// Why the shim cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A folder could not be made.
    #[error("making the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Another shim listens there.
    #[error("a shim listens at {} already", .0.display())]
    Running(PathBuf),
    /// What another program knew that was this process before cannot be read.
    #[error("what this process knew before")]
    State {
        /// What is wrong with it.
        #[source]
        source: std::io::Error,
    },
    /// A system call failed.
    #[error("{action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

fn system(action: &'static str) -> impl FnOnce(Errno) -> ServerError {
    move |source| ServerError::System { action, source }
}

/// What a descriptor in the epoll set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Token {
    Signals,
    Listener,
    Client(u64),
    Worker(u64),
    Output(u64),
}

#[derive(Debug)]
struct Client {
    fd: OwnedFd,
    subscribed: bool,
    unsent: VecDeque<Vec<u8>>,
    lost: bool,
}

/// Who is to be told what a worker did.
#[derive(Debug, Clone, Copy)]
struct Asker {
    client: u64,
    sequence: u64,
}

#[derive(Debug)]
enum Deed {
    Start { id: String, sources: Vec<Source> },
    Exec { id: String, number: u64, sources: Vec<Source>, limit: Option<Duration> },
    Delete { id: String },
    Sweep,
}

#[derive(Debug)]
struct Worker {
    pid: Pid,
    result: OwnedFd,
    asker: Option<Asker>,
    deed: Deed,
    deadline_ns: u64,
    timed_out: bool,
}

#[derive(Debug)]
struct Container {
    status: ContainerStatus,
    ring: Ring,
    open_streams: usize,
    announced: bool,
    starting: bool,
    keeps_log: bool,
    cgroup: String,
    terminal: Option<OwnedFd>,
    /// The machine's number of its user 0, when it has users of its own.
    first_user: Option<u32>,
}

#[derive(Debug)]
struct Exec {
    container: String,
    pid: Pid,
    output: Vec<u8>,
    open_streams: usize,
    exit: Option<ExitStatus>,
    deadline_ns: Option<u64>,
    timed_out: bool,
    contained: bool,
}

#[derive(Debug)]
enum Owner {
    Container(String),
    Exec(u64),
}

/// A message from a worker.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
enum Outcome {
    Made(i32),
    Done,
    Failed(Failure),
}

struct Queued {
    asker: Asker,
    request: Request,
    descriptors: Vec<OwnedFd>,
}

struct Shim {
    epoll: Epoll,
    folders: Folders,
    tokens: HashMap<u64, Token>,
    next_number: u64,
    listener: OwnedFd,
    signals: SignalFd,
    clients: BTreeMap<u64, Client>,
    workers: BTreeMap<u64, Worker>,
    queue: VecDeque<Queued>,
    children: Children,
    containers: BTreeMap<String, Container>,
    execs: BTreeMap<u64, Exec>,
    sources: BTreeMap<u64, (Source, Owner)>,
    namespaces: BTreeMap<String, OwnedFd>,
    buffer: Vec<u8>,
    /// When memory is given back, nanoseconds of the boot clock.
    tidy_ns: Option<u64>,
    ending: bool,
    folder: PathBuf,
    /// The program that it is to go on as.
    successor: Option<String>,
}

fn quiet_from_now_ns() -> u64 {
    boottime_now_ns() + memory::QUIET.as_nanos() as u64
}

/// Runs the shim on `folder/shim.sock` until it is told to end. The process must have one thread.
///
/// # Errors
/// When it cannot begin: a folder, the socket, another shim.
pub fn run(folder: &Path) -> Result<(), ServerError> {
    std::fs::create_dir_all(folder).map_err(|source| ServerError::Folder { path: folder.to_owned(), source })?;
    let shim = Shim::new(folder, listen_at(&folder.join("shim.sock"))?)?;
    tracing::info!(folder = %folder.display(), "shim listens");
    shim.run()
}

/// As [`run`], with what another program knew that was this process before: `state` is the descriptor that it was given.
///
/// # Errors
/// When what it knew cannot be read.
pub fn go_on(folder: &Path, state: RawFd) -> Result<(), ServerError> {
    let unfit = |source| ServerError::State { source };
    let mut pieces = handover::read(handover::taken(state).map_err(unfit)?.into()).map_err(unfit)?.into_iter();
    let Some(Piece::Begin { numbers, listener, .. }) = pieces.next() else {
        return Err(unfit(std::io::Error::other("it does not begin")));
    };
    let mut shim = Shim::new(folder, handover::taken(listener).map_err(unfit)?)?;
    shim.next_number = shim.next_number.max(numbers);
    for piece in pieces {
        shim.take(piece).map_err(unfit)?;
    }
    tracing::info!(folder = %folder.display(), containers = shim.containers.len(), "shim goes on as another program");
    shim.run()
}

impl Shim {
    fn run(mut self) -> Result<(), ServerError> {
        while !self.ending {
            self.turn()?;
        }
        Ok(())
    }

    fn new(folder: &Path, listener: OwnedFd) -> Result<Self, ServerError> {
        let folders = Folders {
            containers: folder.join("containers"),
            root: folder.join("root"),
            filters: folder.join("filters"),
        };
        for path in [&folders.containers, &folders.root] {
            std::fs::create_dir_all(path).map_err(|source| ServerError::Folder { path: path.clone(), source })?;
        }
        sys::become_subreaper().map_err(system("becoming the reaper"))?;
        let mask = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None).map_err(system("blocking signals"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(system("watching signals"))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system("making the epoll set"))?;
        let mut shim = Self {
            epoll,
            folders,
            tokens: HashMap::new(),
            next_number: 0,
            listener,
            signals,
            clients: BTreeMap::new(),
            workers: BTreeMap::new(),
            queue: VecDeque::new(),
            children: Children::default(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            sources: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            buffer: vec![0; MAX_PACKET],
            tidy_ns: Some(quiet_from_now_ns()),
            ending: false,
            folder: folder.to_owned(),
            successor: None,
        };
        let number = shim.token(Token::Signals);
        shim.epoll
            .add(&shim.signals, EpollEvent::new(EpollFlags::EPOLLIN, number))
            .map_err(system("watching signals"))?;
        let number = shim.token(Token::Listener);
        shim.epoll
            .add(&shim.listener, EpollEvent::new(EpollFlags::EPOLLIN, number))
            .map_err(system("watching the socket"))?;
        Ok(shim)
    }

    fn token(&mut self, token: Token) -> u64 {
        self.next_number += 1;
        self.tokens.insert(self.next_number, token);
        self.next_number
    }

    /// Number for the next thing, and its epoll key.
    fn number(&mut self, token: impl FnOnce(u64) -> Token) -> u64 {
        self.next_number += 1;
        self.tokens.insert(self.next_number, token(self.next_number));
        self.next_number
    }

    fn watch(&mut self, fd: impl AsFd, number: u64) -> Result<(), Errno> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, number))
    }

    fn turn(&mut self) -> Result<(), ServerError> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, self.timeout()) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(system("waiting for events")(errno)),
        };
        for event in &events[..count] {
            match self.tokens.get(&event.data()).copied() {
                Some(Token::Signals) => self.on_signals(),
                Some(Token::Listener) => self.on_connect(),
                Some(Token::Client(number)) => self.on_client(number, event.events()),
                Some(Token::Worker(number)) => self.on_worker(number),
                Some(Token::Output(number)) => self.on_output(number),
                None => {}
            }
        }
        self.enforce_deadlines();
        self.run_queue();
        if self.workers.is_empty()
            && let Some(program) = self.successor.take()
        {
            let Err(error) = self.hand_over(&program);
            tracing::error!(program, %error, "the shim stays the program that it is");
        }
        if self.tidy_ns.is_some_and(|at| at <= boottime_now_ns()) && self.workers.is_empty() {
            self.tidy_ns = None;
            memory::give_back();
        }
        Ok(())
    }

    /// Until the next deadline; for ever when there is none.
    fn timeout(&self) -> EpollTimeout {
        let workers = self.workers.values().filter(|worker| !worker.timed_out).map(|worker| worker.deadline_ns);
        let execs = self.execs.values().filter(|exec| !exec.timed_out).filter_map(|exec| exec.deadline_ns);
        // While there are workers, their end comes first.
        let tidy = self.tidy_ns.filter(|_| self.workers.is_empty());
        let Some(next) = workers.chain(execs).chain(tidy).min() else {
            return EpollTimeout::NONE;
        };
        let wait_ms = next.saturating_sub(boottime_now_ns()).div_ceil(1_000_000);
        EpollTimeout::try_from(i32::try_from(wait_ms).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::ZERO)
    }

    /// Becomes another program, with all that is known; connections end.
    fn hand_over(&mut self, program: &str) -> std::io::Result<Infallible> {
        let mut writer = handover::Writer::new()?;
        let listener = writer.keep(&self.listener)?;
        writer.write(&Piece::Begin { state: STATE, numbers: self.next_number, listener })?;
        for (name, fd) in &self.namespaces {
            let fd = writer.keep(fd)?;
            writer.write(&Piece::Namespace { name: name.clone(), fd })?;
        }
        for (id, container) in &self.containers {
            let status = ContainerStatus {
                log_next: container.ring.next(),
                log_dropped: container.ring.dropped(),
                ..container.status.clone()
            };
            let piece = ContainerPiece {
                status,
                sources: self
                    .keep_sources(&mut writer, |owner| matches!(owner, Owner::Container(it) if it == id))?,
                terminal: container.terminal.as_ref().map(|fd| writer.keep(fd)).transpose()?,
                keeps_log: container.keeps_log,
                cgroup: container.cgroup.clone(),
                first_user: container.first_user,
            };
            writer.write(&Piece::Container(Box::new(piece)))?;
            handover::write_ring(&mut writer, id, &container.ring)?;
        }
        for (&number, exec) in &self.execs {
            let piece = ExecPiece {
                number,
                container: exec.container.clone(),
                pid: exec.pid.as_raw(),
                output: exec.output.clone(),
                sources: self
                    .keep_sources(&mut writer, |owner| matches!(owner, Owner::Exec(it) if *it == number))?,
                exit: exec.exit,
                deadline_ns: exec.deadline_ns,
                timed_out: exec.timed_out,
                contained: exec.contained,
            };
            writer.write(&Piece::Exec(Box::new(piece)))?;
        }
        // Dropped when there is no other program after all.
        let (file, _kept) = writer.finish()?;
        let folder = self.folder.to_string_lossy().into_owned();
        let number = file.as_raw_fd().to_string();
        let words = [program, "shim", "--run", &folder, "--continue", &number].map(CString::new);
        let words = words.into_iter().collect::<Result<Vec<_>, _>>()?;
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok());
        Err(sys::execve(&words[0], &words, &environment.collect::<Vec<_>>()).into())
    }

    fn keep_sources(
        &self,
        writer: &mut handover::Writer,
        of: impl Fn(&Owner) -> bool,
    ) -> std::io::Result<Vec<(RawFd, Stream)>> {
        let sources = self.sources.values().filter(|(_, owner)| of(owner));
        sources.map(|(source, _)| Ok((writer.keep(&source.fd)?, source.stream))).collect()
    }

    /// Takes what another program knew.
    fn take(&mut self, piece: Piece) -> std::io::Result<()> {
        match piece {
            Piece::Namespace { name, fd } => {
                self.namespaces.insert(name, handover::taken(fd)?);
            }
            Piece::Container(piece) => {
                let id = piece.status.id.clone();
                if let Some(pid) = piece.status.pid {
                    // Of this process's children, none was reaped since it is this program.
                    let _ = self.children.claim(Pid::from_raw(pid), Role::Main(id.clone()));
                }
                let sources = handover::sources(&piece.sources)?;
                let container = Container {
                    ring: Ring::again(piece.status.log_next, piece.status.log_dropped),
                    status: piece.status,
                    open_streams: sources.len(),
                    announced: false,
                    starting: false,
                    keeps_log: piece.keeps_log,
                    cgroup: piece.cgroup,
                    terminal: piece.terminal.map(handover::taken).transpose()?,
                    first_user: piece.first_user,
                };
                self.containers.insert(id.clone(), container);
                for source in sources {
                    self.watch_output(source, Owner::Container(id.clone()));
                }
            }
            Piece::Record { id, record } => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.ring.put(record);
                }
            }
            Piece::Partial { id, stream, line } => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.ring.put_partial(stream, line);
                }
            }
            Piece::Exec(piece) => {
                let pid = Pid::from_raw(piece.pid);
                if piece.exit.is_none() {
                    let _ = self.children.claim(pid, Role::Exec(piece.number));
                }
                let sources = handover::sources(&piece.sources)?;
                let exec = Exec {
                    container: piece.container,
                    pid,
                    output: piece.output,
                    open_streams: sources.len(),
                    exit: piece.exit,
                    deadline_ns: piece.deadline_ns,
                    timed_out: piece.timed_out,
                    contained: piece.contained,
                };
                self.execs.insert(piece.number, exec);
                for source in sources {
                    self.watch_output(source, Owner::Exec(piece.number));
                }
            }
            Piece::Begin { .. } | Piece::End => {}
        }
        Ok(())
    }

    /// It will go on as another program, when nothing is under way.
    fn replace(&mut self, program: String, state: u32) -> Result<Reply, Failure> {
        if state != STATE {
            let reason = format!("it reads version {state} of what this shim knows, which is {STATE}");
            return Err(Failure::new(FailureKind::Refused, reason));
        }
        handover::is_runnable(&program)
            .map_err(|error| Failure::new(FailureKind::Refused, format!("{program}: {error}")))?;
        self.successor = Some(program);
        Ok(Reply::Done)
    }

    fn on_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGTERM | Signal::SIGINT) if self.running() == 0 => self.ending = true,
                // Containers run: only an explicit order from the agent ends them.
                Ok(Signal::SIGTERM | Signal::SIGINT) => tracing::warn!("signal ignored, containers run"),
                _ => {}
            }
        }
        for (role, exit) in self.children.reap(!self.workers.is_empty()) {
            match role {
                Role::Worker(number) => self.worker_ended(number),
                Role::Main(id) => self.main_ended(&id, exit),
                Role::Exec(number) => self.exec_ended(number, exit),
            }
        }
    }

    fn running(&self) -> usize {
        self.containers.values().filter(|container| container.status.pid.is_some() || container.starting).count()
    }

    fn main_ended(&mut self, id: &str, exit: ExitStatus) {
        if let Some(container) = self.containers.get_mut(id) {
            container.status.pid = None;
            container.status.exit = Some(exit);
            container.terminal = None;
            self.broadcast(&Event::Ended { id: id.to_owned() });
        }
    }

    fn exec_ended(&mut self, number: u64, exit: ExitStatus) {
        let Some(exec) = self.execs.get_mut(&number) else {
            return;
        };
        exec.exit = Some(exit);
        exec.deadline_ns = None;
        let (contained, id) = (exec.contained, exec.container.clone());
        if contained {
            self.sweep(number, &id);
        }
        self.finish_exec(number);
    }

    /// Tells the end of a command once its process and its output have ended.
    fn finish_exec(&mut self, number: u64) {
        let ready = self.execs.get(&number).is_some_and(|exec| exec.exit.is_some() && exec.open_streams == 0);
        let Some(exec) = ready.then(|| self.execs.remove(&number)).flatten() else {
            return;
        };
        let Some(exit) = exec.exit else { return };
        self.broadcast(&Event::ExecEnded { exec: number, exit, timed_out: exec.timed_out, output: exec.output });
    }

    // ---- clients ----

    fn on_connect(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        while let Ok(fd) = nix::sys::socket::accept4(self.listener.as_raw_fd(), flags) {
            let fd = sys::own(fd);
            if self.clients.len() >= MAX_CLIENTS {
                continue;
            }
            let number = self.number(Token::Client);
            if self.watch(&fd, number).is_ok() {
                self.clients
                    .insert(number, Client { fd, subscribed: false, unsent: VecDeque::new(), lost: false });
            }
        }
    }

    fn on_client(&mut self, number: u64, flags: EpollFlags) {
        if flags.contains(EpollFlags::EPOLLOUT) {
            self.send_unsent(number);
        }
        if !flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(client) = self.clients.get(&number) {
            match transport::receive(&client.fd, &mut buffer) {
                Ok(Received::Packet(length, descriptors)) => {
                    self.on_packet(number, &buffer[..length], descriptors)
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Ok(Received::Closed) | Err(_) => self.drop_client(number),
            }
        }
        self.buffer = buffer;
    }

    fn on_packet(&mut self, client: u64, packet: &[u8], descriptors: Vec<OwnedFd>) {
        // Bytes that are no message come from no agent: nothing can be answered.
        let Ok(message) = decode_request(packet) else {
            return self.drop_client(client);
        };
        let asker = Asker { client, sequence: message.sequence };
        if needs_worker(&message.request) {
            if self.queue.len() >= MAX_QUEUE {
                let failure = Failure::new(FailureKind::Conflict, "too many requests wait in the shim");
                return self.answer(asker, Reply::Failed(failure), &[]);
            }
            self.queue.push_back(Queued { asker, request: message.request, descriptors });
            return;
        }
        match self.handle(client, message.request, descriptors) {
            Ok((reply, descriptor)) => {
                let raw: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
                self.answer(asker, reply, &raw);
            }
            Err(failure) => self.answer(asker, Reply::Failed(failure), &[]),
        }
    }

    fn drop_client(&mut self, number: u64) {
        if let Some(client) = self.clients.remove(&number) {
            let _ = self.epoll.delete(&client.fd);
            self.tokens.remove(&number);
        }
    }

    fn answer(&mut self, asker: Asker, reply: Reply, descriptors: &[i32]) {
        let packet = FromShim::Reply { sequence: asker.sequence, reply };
        self.send(asker.client, &packet, descriptors);
    }

    fn broadcast(&mut self, event: &Event) {
        let subscribers: Vec<u64> =
            self.clients.iter().filter(|(_, client)| client.subscribed).map(|(&number, _)| number).collect();
        for number in subscribers {
            self.send(number, &FromShim::Event(event.clone()), &[]);
        }
    }

    fn send(&mut self, number: u64, message: &FromShim, descriptors: &[i32]) {
        let Ok(packet) = postcard::to_allocvec(message) else {
            return;
        };
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        let sent = if client.unsent.is_empty() {
            transport::send(&client.fd, &packet, descriptors)
        } else {
            Err(Errno::EAGAIN)
        };
        match sent {
            Ok(()) => {}
            Err(Errno::EAGAIN) if matches!(message, FromShim::Event(_)) => client.lost = true,
            // Descriptors cannot wait in the queue: whoever asked for one must read.
            Err(Errno::EAGAIN) if client.unsent.len() < MAX_UNSENT && descriptors.is_empty() => {
                client.unsent.push_back(packet);
            }
            Err(_) => return self.drop_client(number),
        }
        self.watch_writable(number);
    }

    fn watch_writable(&mut self, number: u64) {
        let Some(client) = self.clients.get(&number) else {
            return;
        };
        let mut flags = EpollFlags::EPOLLIN;
        if !client.unsent.is_empty() || client.lost {
            flags |= EpollFlags::EPOLLOUT;
        }
        let _ = self.epoll.modify(&client.fd, &mut EpollEvent::new(flags, number));
    }

    fn send_unsent(&mut self, number: u64) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        while let Some(packet) = client.unsent.front() {
            match transport::send(&client.fd, packet, &[]) {
                Ok(()) => drop(client.unsent.pop_front()),
                Err(Errno::EAGAIN) => return,
                Err(_) => return self.drop_client(number),
            }
        }
        if std::mem::take(&mut client.lost) {
            self.send(number, &FromShim::Event(Event::Lost), &[]);
        }
        self.watch_writable(number);
    }

    // ---- requests that are answered at once ----

    fn handle(
        &mut self,
        client: u64,
        request: Request,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<(Reply, Option<OwnedFd>), Failure> {
        let reply = match request {
            Request::Hello { .. } => Reply::Hello { version: VERSION, pid: std::process::id() as i32 },
            Request::Signal { id, signal } => self.signal(&id, signal)?,
            Request::SignalExec { exec, signal } => self.signal_exec(exec, signal)?,
            Request::KillAll { id } => self.kill_all(&id)?,
            Request::List { after } => Reply::Containers(self.list(after)),
            Request::ReadLog { id, from } => self.read_log(&id, from)?,
            Request::HoldNamespace { name } => self.hold_namespace(name, descriptors.pop())?,
            Request::DropNamespace { name } => {
                self.namespaces.remove(&name);
                Reply::Done
            }
            Request::GetNamespace { name } => {
                let held = self.namespaces.get(&name).and_then(|fd| fd.try_clone().ok());
                let fd = held.ok_or_else(|| not_found("namespace", &name))?;
                return Ok((Reply::Namespace, Some(fd)));
            }
            Request::ListNamespaces => Reply::Namespaces(self.namespaces.keys().cloned().collect()),
            Request::Subscribe => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.subscribed = true;
                }
                Reply::Done
            }
            Request::Shutdown if self.running() > 0 => {
                return Err(Failure::new(FailureKind::Conflict, "containers run"));
            }
            Request::Shutdown => {
                self.ending = true;
                Reply::Done
            }
            Request::Resize { id, rows, columns } => self.resize(&id, rows, columns)?,
            Request::Replace { program, state } => self.replace(program, state)?,
            Request::Start { .. } | Request::Exec { .. } | Request::Delete { .. } => {
                return Err(Failure::new(FailureKind::Internal, "the request needs a worker"));
            }
        };
        Ok((reply, None))
    }

    fn signal(&self, id: &str, signal: i32) -> Result<Reply, Failure> {
        let container = self.containers.get(id).ok_or_else(|| not_found("container", id))?;
        let Some(pid) = container.status.pid else {
            return Ok(Reply::Done);
        };
        send_signal(pid, signal)
    }

    fn signal_exec(&self, number: u64, signal: i32) -> Result<Reply, Failure> {
        let exec = self.execs.get(&number).ok_or_else(|| not_found("command", &number.to_string()))?;
        if exec.exit.is_some() { Ok(Reply::Done) } else { send_signal(exec.pid.as_raw(), signal) }
    }

    fn kill_all(&self, id: &str) -> Result<Reply, Failure> {
        let container = self.containers.get(id).ok_or_else(|| not_found("container", id))?;
        crate::container::cgroup::kill_all(&container.cgroup);
        match container.status.pid {
            Some(pid) => send_signal(pid, Signal::SIGKILL as i32),
            None => Ok(Reply::Done),
        }
    }

    fn list(&self, after: String) -> Vec<ContainerStatus> {
        let from = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
        let range = self.containers.range((from, Bound::Unbounded));
        range
            .map(|(_, container)| ContainerStatus {
                log_next: container.ring.next(),
                log_dropped: container.ring.dropped(),
                ..container.status.clone()
            })
            .take(LIST_PAGE)
            .collect()
    }

    fn read_log(&mut self, id: &str, from: u64) -> Result<Reply, Failure> {
        let container = self.containers.get_mut(id).ok_or_else(|| not_found("container", id))?;
        let mut page = container.ring.page(from);
        page.ended = container.open_streams == 0 && !container.starting;
        if page.next == container.ring.next() {
            container.announced = false;
        }
        Ok(Reply::Log(page))
    }

    fn hold_namespace(&mut self, name: String, fd: Option<OwnedFd>) -> Result<Reply, Failure> {
        let fd = fd.ok_or_else(|| Failure::new(FailureKind::Refused, "no descriptor came with the request"))?;
        if self.namespaces.len() >= MAX_CONTAINERS {
            return Err(Failure::new(FailureKind::Conflict, "too many namespaces"));
        }
        self.namespaces.insert(name, fd);
        Ok(Reply::Done)
    }

    fn resize(&self, id: &str, rows: u16, columns: u16) -> Result<Reply, Failure> {
        let terminal = self.containers.get(id).and_then(|container| container.terminal.as_ref());
        let terminal = terminal.ok_or_else(|| not_found("terminal of container", id))?;
        crate::terminal::set_size(terminal.as_fd(), rows, columns)
            .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
        Ok(Reply::Done)
    }

    // ---- requests that need a worker ----

    fn run_queue(&mut self) {
        while self.workers.len() < MAX_WORKERS && self.successor.is_none() {
            let Some(Queued { asker, request, mut descriptors }) = self.queue.pop_front() else {
                return;
            };
            let begun = match request {
                Request::Start { id, timeout } => self.begin_start(asker, id, timeout, descriptors.pop()),
                Request::Exec { id, spec, timeout, limit } => {
                    self.begin_exec(asker, &id, &spec, timeout, limit, descriptors)
                }
                Request::Delete { id, timeout } => self.begin_delete(asker, id, timeout),
                _ => Err(Failure::new(FailureKind::Internal, "the request needs no worker")),
            };
            if let Err(failure) = begun {
                self.answer(asker, Reply::Failed(failure), &[]);
            }
        }
    }

    fn begin_start(
        &mut self,
        asker: Asker,
        id: String,
        timeout: Duration,
        barrier: Option<OwnedFd>,
    ) -> Result<(), Failure> {
        let spec = worker::read_spec(&self.folders, &id)?;
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(Failure::new(
                FailureKind::Conflict,
                format!("{MAX_CONTAINERS} containers are held already"),
            ));
        }
        if self.containers.get(&id).is_some_and(|it| it.status.pid.is_some() || it.starting) {
            return Err(Failure::new(FailureKind::Conflict, format!("container {id} runs already")));
        }
        let namespace = match &spec.network {
            NetworkNamespace::Host => None,
            NetworkNamespace::Held(name) => {
                let fd = self.namespaces.get(name).ok_or_else(|| not_found("network namespace", name))?;
                Some(PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())))
            }
        };
        let (output, sources) = if spec.process.tty { (Output::Terminal, Vec::new()) } else { piped(None)? };
        let folders = self.folders.clone();
        let pids: HashMap<String, i32> =
            self.containers.iter().filter_map(|(id, it)| Some((id.clone(), it.status.pid?))).collect();
        let first_user = spec.own_users.then(|| self.free_users(&id)).transpose()?;
        self.remember_start(&spec, first_user);
        let job = move || {
            let pid_of = |id: &str| pids.get(id).copied();
            let around = Surroundings { network: namespace, first_user, barrier: barrier.as_ref() };
            worker::start(&folders, &spec, output, &around, pid_of).map(Some)
        };
        let forked = self.fork(Some(asker), timeout, Deed::Start { id: id.clone(), sources }, job);
        if forked.is_err() {
            self.start_failed(&id);
        }
        forked
    }

    /// First of a range of users that no other container has.
    fn free_users(&self, id: &str) -> Result<u32, Failure> {
        let others = self.containers.iter().filter(|(other, _)| *other != id);
        let taken: HashSet<u32> = others.filter_map(|(_, it)| it.first_user).collect();
        let free = (0..).map_while(users::range).find(|first| !taken.contains(first));
        free.ok_or_else(|| Failure::new(FailureKind::Conflict, "no range of users is left"))
    }

    /// A container that starts again keeps its log; a new one begins with an empty one.
    fn remember_start(&mut self, spec: &ContainerSpec, first_user: Option<u32>) {
        let status = ContainerStatus {
            id: spec.id.clone(),
            pid: None,
            started_boottime_ns: boottime_now_ns(),
            started_unix_ns: unix_now_ns(),
            exit: None,
            log_next: 0,
            log_dropped: 0,
        };
        let ring = self.containers.remove(&spec.id).map(|old| old.ring).unwrap_or_default();
        let container = Container {
            status,
            ring,
            open_streams: 0,
            announced: false,
            starting: true,
            cgroup: spec.cgroup.clone(),
            keeps_log: !spec.no_log,
            terminal: None,
            first_user,
        };
        self.containers.insert(spec.id.clone(), container);
    }

    fn begin_exec(
        &mut self,
        asker: Asker,
        id: &str,
        spec: &[u8],
        timeout: Duration,
        limit: Option<Duration>,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let exec: ExecSpec = serde_json::from_slice(spec)
            .map_err(|error| Failure::new(FailureKind::Refused, format!("description of the command: {error}")))?;
        let container = self.containers.get(id).ok_or_else(|| not_found("container", id))?;
        let Some(main_pid) = container.status.pid else {
            return Err(Failure::new(FailureKind::Conflict, format!("container {id} does not run")));
        };
        let (output, sources) = match descriptors.len() {
            _ if exec.tty => (Output::Terminal, Vec::new()),
            3 => (Output::Stdio(take_stdio(&mut descriptors)?), Vec::new()),
            _ => piped(None)?,
        };
        let number = self.number(Token::Worker);
        let (folders, id) = (self.folders.clone(), id.to_owned());
        let deed = Deed::Exec { id: id.clone(), number, sources, limit };
        let job = move || worker::exec(&folders, &id, &exec, output, main_pid, number).map(Some);
        self.tokens.remove(&number);
        self.fork(Some(asker), timeout, deed, job)
    }

    fn begin_delete(&mut self, asker: Asker, id: String, timeout: Duration) -> Result<(), Failure> {
        if self.containers.get(&id).is_some_and(|it| it.status.pid.is_some() || it.starting) {
            return Err(Failure::new(FailureKind::Conflict, format!("container {id} runs")));
        }
        let (folders, name) = (self.folders.clone(), id.clone());
        let job = move || worker::delete(&folders, &name).map(|()| None);
        self.fork(Some(asker), timeout, Deed::Delete { id }, job)
    }

    /// Kills what a command left behind and removes its cgroup.
    fn sweep(&mut self, number: u64, id: &str) {
        let Some(cgroup) = self.containers.get(id).map(|it| it.cgroup.clone()) else {
            return;
        };
        let job = move || {
            crate::container::cgroup::remove_child(&cgroup, number);
            Ok(None)
        };
        // When it cannot be forked now, deleting the container removes it.
        let _ = self.fork(None, SWEEP_TIMEOUT, Deed::Sweep, job);
    }

    fn fork(
        &mut self,
        asker: Option<Asker>,
        timeout: Duration,
        deed: Deed,
        job: impl FnOnce() -> Result<Option<Made>, Failure>,
    ) -> Result<(), Failure> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (result, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).map_err(no_worker)?;
        let pid = sys::fork_worker(|| run_job(job, &theirs)).map_err(no_worker)?;
        let number = self.number(Token::Worker);
        self.watch(&result, number).map_err(no_worker)?;
        // Cannot have ended unseen: children are reaped by this thread only, between two requests.
        let _ = self.children.claim(pid, Role::Worker(number));
        let deadline_ns = boottime_now_ns().saturating_add(timeout.as_nanos() as u64);
        self.workers.insert(number, Worker { pid, result, asker, deed, deadline_ns, timed_out: false });
        Ok(())
    }

    fn on_worker(&mut self, number: u64) {
        let Some(worker) = self.workers.get(&number) else {
            return;
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let received = transport::receive(&worker.result, &mut buffer);
        let outcome = match received {
            Ok(Received::Packet(length, mut descriptors)) => {
                let outcome = postcard::from_bytes::<Outcome>(&buffer[..length]);
                outcome.ok().map(|outcome| (outcome, descriptors.pop()))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {
                self.buffer = buffer;
                return;
            }
            Ok(Received::Closed) | Err(_) => None,
        };
        self.buffer = buffer;
        let Some(worker) = self.workers.remove(&number) else {
            return;
        };
        let _ = self.epoll.delete(&worker.result);
        self.tokens.remove(&number);
        let timed_out = worker.timed_out;
        let (outcome, terminal) = outcome.unwrap_or_else(|| {
            let failure = match timed_out {
                true => Failure::new(FailureKind::Timeout, "it took longer than allowed and was given up"),
                false => Failure::new(FailureKind::Internal, "the worker ended without an answer"),
            };
            (Outcome::Failed(failure), None)
        });
        self.finish(worker, outcome, terminal);
        if self.workers.is_empty() {
            self.children.forget_unclaimed();
        }
    }

    /// A worker that ended has sent its outcome before; the socket tells.
    fn worker_ended(&mut self, number: u64) {
        if self.workers.contains_key(&number) {
            self.on_worker(number);
        }
    }

    fn finish(&mut self, worker: Worker, outcome: Outcome, terminal: Option<OwnedFd>) {
        if !matches!(worker.deed, Deed::Exec { .. }) {
            // Health checks come too often for that.
            self.tidy_ns = Some(quiet_from_now_ns());
        }
        let reply = match (worker.deed, outcome) {
            (Deed::Start { id, sources }, Outcome::Made(pid)) => self.started(&id, pid, sources, terminal),
            (Deed::Start { id, .. }, Outcome::Failed(failure)) => {
                self.start_failed(&id);
                Reply::Failed(failure)
            }
            (Deed::Exec { id, number, sources, limit }, Outcome::Made(pid)) => {
                let reply = self.exec_started(&id, number, pid, sources, limit);
                if let (Some(asker), Some(terminal)) = (worker.asker, &terminal) {
                    return self.answer(asker, reply, &[terminal.as_raw_fd()]);
                }
                reply
            }
            (Deed::Delete { id }, Outcome::Done) => {
                self.containers.remove(&id);
                Reply::Done
            }
            (_, Outcome::Failed(failure)) => Reply::Failed(failure),
            (_, Outcome::Done | Outcome::Made(_)) => Reply::Done,
        };
        if let Some(asker) = worker.asker {
            self.answer(asker, reply, &[]);
        }
    }

    fn started(&mut self, id: &str, pid: i32, mut sources: Vec<Source>, terminal: Option<OwnedFd>) -> Reply {
        let exit = self.children.claim(Pid::from_raw(pid), Role::Main(id.to_owned()));
        if let Some(terminal) = &terminal
            && let Ok(copy) = terminal.try_clone()
            && output::set_nonblocking(&copy).is_ok()
        {
            sources.push(Source { fd: copy, stream: Stream::Stdout });
        }
        let Some(container) = self.containers.get_mut(id) else {
            return Reply::Started { pid };
        };
        container.starting = false;
        container.status.pid = Some(pid);
        container.terminal = terminal;
        container.open_streams = sources.len();
        for source in sources {
            self.watch_output(source, Owner::Container(id.to_owned()));
        }
        if let Some(exit) = exit {
            self.main_ended(id, exit);
        }
        Reply::Started { pid }
    }

    /// A container that never ran is not there; one that ran before keeps its log.
    fn start_failed(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.starting = false;
        crate::container::cgroup::kill_all(&container.cgroup);
        if container.ring.next() == 0 {
            self.containers.remove(id);
        }
    }

    fn exec_started(
        &mut self,
        id: &str,
        number: u64,
        pid: i32,
        sources: Vec<Source>,
        limit: Option<Duration>,
    ) -> Reply {
        let exit = self.children.claim(Pid::from_raw(pid), Role::Exec(number));
        let exec = Exec {
            container: id.to_owned(),
            pid: Pid::from_raw(pid),
            output: Vec::new(),
            open_streams: sources.len(),
            exit: None,
            deadline_ns: limit.map(|limit| boottime_now_ns().saturating_add(limit.as_nanos() as u64)),
            timed_out: false,
            contained: limit.is_some(),
        };
        self.execs.insert(number, exec);
        for source in sources {
            self.watch_output(source, Owner::Exec(number));
        }
        if let Some(exit) = exit {
            self.exec_ended(number, exit);
        }
        Reply::ExecStarted { exec: number, pid }
    }

    fn enforce_deadlines(&mut self) {
        let now = boottime_now_ns();
        for worker in self.workers.values_mut().filter(|it| !it.timed_out && it.deadline_ns <= now) {
            worker.timed_out = true;
            tracing::warn!(pid = worker.pid.as_raw(), deed = ?worker.deed, "worker is over its time");
            let _ = kill(worker.pid, Signal::SIGKILL);
        }
        let mut over = Vec::new();
        for (&number, exec) in &mut self.execs {
            if !exec.timed_out && exec.deadline_ns.is_some_and(|deadline| deadline <= now) {
                exec.timed_out = true;
                over.push((number, exec.container.clone(), exec.pid));
            }
        }
        for (number, id, pid) in over {
            if let Some(container) = self.containers.get(&id) {
                // The reaper stays until it has reaped what is killed here.
                crate::container::cgroup::kill_child_but(&container.cgroup, number, pid.as_raw());
            }
        }
    }

    // ---- output ----

    fn watch_output(&mut self, source: Source, owner: Owner) {
        let number = self.number(Token::Output);
        if self.watch(&source.fd, number).is_ok() {
            self.sources.insert(number, (source, owner));
        } else {
            self.stream_ended(&owner, source.stream);
        }
    }

    fn on_output(&mut self, number: u64) {
        let Some((source, owner)) = self.sources.get(&number) else {
            return;
        };
        let now = unix_now_ns();
        let (containers, execs) = (&mut self.containers, &mut self.execs);
        let turn = output::read_turn(source, &mut self.buffer, |bytes| match owner {
            Owner::Container(id) => {
                if let Some(container) = containers.get_mut(id).filter(|it| it.keeps_log) {
                    container.ring.write(source.stream, now, bytes);
                }
            }
            Owner::Exec(exec) => {
                if let Some(exec) = execs.get_mut(exec) {
                    let room = MAX_EXEC_OUTPUT - exec.output.len();
                    exec.output.extend_from_slice(&bytes[..room.min(bytes.len())]);
                }
            }
        });
        if let Owner::Container(id) = owner {
            let id = id.clone();
            self.announce(&id);
        }
        if turn == Turn::Ended
            && let Some((source, owner)) = self.sources.remove(&number)
        {
            let _ = self.epoll.delete(&source.fd);
            self.tokens.remove(&number);
            self.stream_ended(&owner, source.stream);
        }
    }

    fn announce(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if !container.announced {
            container.announced = true;
            self.broadcast(&Event::LogGrew { id: id.to_owned() });
        }
    }

    fn stream_ended(&mut self, owner: &Owner, stream: Stream) {
        match owner {
            Owner::Container(id) => {
                if let Some(container) = self.containers.get_mut(id) {
                    container.open_streams = container.open_streams.saturating_sub(1);
                    container.ring.finish(stream);
                    container.announced = false;
                }
                self.announce(id);
            }
            Owner::Exec(number) => {
                if let Some(exec) = self.execs.get_mut(number) {
                    exec.open_streams = exec.open_streams.saturating_sub(1);
                }
                self.finish_exec(*number);
            }
        }
    }
}

/// Time for removing what a command left behind.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(10);

fn needs_worker(request: &Request) -> bool {
    matches!(request, Request::Start { .. } | Request::Exec { .. } | Request::Delete { .. })
}

fn not_found(what: &str, name: &str) -> Failure {
    Failure::new(FailureKind::NotFound, format!("there is no {what} {name:?}"))
}

fn no_worker(errno: Errno) -> Failure {
    Failure::new(FailureKind::Internal, format!("starting a worker: {}", errno.desc()))
}

fn send_signal(pid: i32, signal: i32) -> Result<Reply, Failure> {
    let signal = Signal::try_from(signal)
        .map_err(|_| Failure::new(FailureKind::Refused, format!("{signal} is no signal number")))?;
    match kill(Pid::from_raw(pid), signal) {
        // Ended, not reaped yet: nothing to signal.
        Ok(()) | Err(Errno::ESRCH) => Ok(Reply::Done),
        Err(errno) => Err(Failure::new(FailureKind::Internal, format!("signalling {pid}: {}", errno.desc()))),
    }
}

/// Pipes for output that the shim reads, and nothing on standard input.
fn piped(stdin: Option<OwnedFd>) -> Result<(Output, Vec<Source>), Failure> {
    let null = || -> Result<OwnedFd, Errno> {
        let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC;
        nix::fcntl::open("/dev/null", flags, nix::sys::stat::Mode::empty()).map(sys::own)
    };
    let make = || -> Result<(Output, Vec<Source>), Errno> {
        let (out_read, stdout) = output::pipe()?;
        let (err_read, stderr) = output::pipe()?;
        let stdin = stdin.map_or_else(null, Ok)?;
        let sources =
            vec![Source { fd: out_read, stream: Stream::Stdout }, Source { fd: err_read, stream: Stream::Stderr }];
        Ok((Output::Stdio(Stdio { stdin, stdout, stderr }), sources))
    };
    make().map_err(|errno| Failure::new(FailureKind::Internal, format!("making pipes: {}", errno.desc())))
}

fn take_stdio(descriptors: &mut Vec<OwnedFd>) -> Result<Stdio, Failure> {
    match (descriptors.pop(), descriptors.pop(), descriptors.pop()) {
        (Some(stderr), Some(stdout), Some(stdin)) => Ok(Stdio { stdin, stdout, stderr }),
        _ => Err(Failure::new(FailureKind::Refused, "three descriptors are wanted")),
    }
}

/// In the worker: does the job and tells the outcome.
fn run_job(job: impl FnOnce() -> Result<Option<Made>, Failure>, shim: &OwnedFd) -> i32 {
    // The shim's mask is for the shim; signals must be able to end a worker and what it starts.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    let (outcome, terminal) = match job() {
        Ok(Some(made)) => (Outcome::Made(made.pid), made.terminal),
        Ok(None) => (Outcome::Done, None),
        Err(failure) => (Outcome::Failed(failure), None),
    };
    let packet = postcard::to_allocvec(&outcome).unwrap_or_default();
    let raw: Vec<_> = terminal.iter().map(AsRawFd::as_raw_fd).collect();
    i32::from(transport::send(shim, &packet, &raw).is_err())
}

/// Listens at `path`; a socket that nobody answers at is left from a crash and removed.
fn listen_at(path: &Path) -> Result<OwnedFd, ServerError> {
    if transport::connect_to(path).is_ok() {
        return Err(ServerError::Running(path.to_owned()));
    }
    let _ = std::fs::remove_file(path);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener =
        socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(system("making the socket"))?;
    let address = UnixAddr::new(path).map_err(system("naming the socket"))?;
    bind(listener.as_raw_fd(), &address).map_err(system("binding the socket"))?;
    listen(&listener, Backlog::new(8).unwrap_or(Backlog::MAXCONN)).map_err(system("listening"))?;
    Ok(listener)
}

//! The loop of the first process: it reaps, starts again, feeds the watchdog, loads drivers of what is plugged in, and
//! ends the machine when it is told.
//!
//! | signal | what it does |
//! |---|---|
//! | SIGINT (Ctrl-Alt-Del), SIGTERM | orderly reboot |
//! | SIGUSR2, SIGPWR | orderly power-off |
//! | SIGUSR1 | orderly halt |
//! | SIGHUP | agent and shim are started from the newest program, containers go on |
//! | SIGCHLD | reaps |
//!
//! Programs say how they are in the datagrams of sd_notify(3): `READY=1`, `WATCHDOG=1`.

use crate::boot::{self, Booted, DATA, STATE};
use crate::log::{Log, complain, error, info, warning};
use crate::shutdown::{Deed, Goal, LONGEST, Phase, Shutdown};
use crate::units::{LEAST_UPTIME, Ladder, Rung, SILENCE, State, Trial, Unit, WELL};
use crate::watchdog::Watchdog;
use crate::{clock, early, files, random, swap};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where programs say how they are.
const NOTIFY: &str = "/run/coracle-init/notify";
/// The agent's run folder.
const RUN: &str = "/run/coracle";
/// What the boot came to, for the agent's status: a line for each lack.
pub const LACKS: &str = "/run/coracle-init/lacks";

/// Bytes of a message of the kernel about a device (`UEVENT_BUFFER_SIZE` is 2048), and of a program about itself.
const MAX_MESSAGE: usize = 8192;

/// Events of the kernel that wait to be read: a hub with ten devices makes some hundred at once.
const EVENT_BUFFER: usize = 512 * 1024;

/// Saving the clock writes to both partitions; a card that takes longer hangs, and no slow one does.
const LONGEST_SAVE: Duration = Duration::from_secs(600);

/// Exit code of the child that saves the clock: a partition can be read, and no more.
pub const BROKEN: u8 = 3;

/// Before it is tried once more whether partitions can be written.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Bytes of the kernel's log that are kept when the board reboots for its agent's sake.
const LAST_WORDS: usize = 48 * 1024;

/// A program that is kept running.
struct Program {
    unit: Unit,
    command: Vec<String>,
    /// When it ended well it has done what it is for.
    once: bool,
}

/// Programs of the image's own, one a line: a name, and the command.
const PROGRAMS: &str = "/etc/coracle/programs";
/// Bytes of it.
const MAX_PROGRAMS: u64 = 16 * 1024;

const AGENT: &str = "agent";
const SHIM: &str = "shim";
/// Hands the agent what whoever built the image put beside the data.
const PRELOAD: &str = "preload";
/// Where that is.
const PRELOADED: &str = "/mnt/data/preload";
/// Speaks for radios, with keys.
const RADIO: &str = "radio";

/// Makes the network, in images that have one.
const MANAGER: &str = "/usr/sbin/NetworkManager";

/// Radios of the kernel (`net/wireless/sysfs.c`).
const RADIOS: &str = "/sys/class/ieee80211";

/// The board while it runs.
struct Board {
    log: Log,
    booted: Booted,
    programs: Vec<Program>,
    ladder: Ladder,
    safe: bool,
    /// The program that agent and shim are, where it is not the image's own.
    released: Option<PathBuf>,
    trial: Trial,
    /// The agent was told to end, to be another program.
    renewing: bool,
    /// The agent's last sign of life, since it was started.
    sign: Duration,
    watchdog: Option<Watchdog>,
    saver: Saver,
    /// State or data could not be written when the clock was saved last.
    broken: bool,
    shutdown: Option<Shutdown>,
    begun: Instant,
}

/// Saves the clock in a process of its own, which may hang.
#[derive(Debug)]
enum Saver {
    Due(Duration),
    Saving { pid: i32, since: Duration },
}

/// The first process of a board. Never returns: its end would be the kernel's.
pub fn run() -> ! {
    let begun = Instant::now();
    boot::first();
    let lacks = boot::mount_all();
    let log = Log::open();
    if early::is_here() {
        let reason = early::leave(&log);
        early::wait_and_reboot(&log, &reason);
    }
    info!(log, "{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    let signals = block_signals();
    // What is told to us from now on waits there.
    let mut board = Board::begin(log, lacks, begun);
    let ears = Ears::open(&board.log, signals);
    // Those that come later are heard.
    if std::fs::read_dir(RADIOS).is_ok_and(|mut entries| entries.next().is_some()) {
        board.radio();
    }
    loop {
        board.turn();
        ears.wait(&mut board);
    }
}

/// All of them are read, none interrupts.
fn block_signals() -> Option<SignalFd> {
    let all = SigSet::all();
    all.thread_block().ok()?;
    SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).ok()
}

impl Board {
    fn begin(log: Log, lacks: Vec<String>, begun: Instant) -> Self {
        let booted = boot::boot(&log, lacks);
        let text = booted.lacks.iter().map(|lack| format!("{lack}\n")).collect::<String>();
        let told = std::fs::create_dir_all(Path::new(LACKS).parent().unwrap_or(Path::new("/run")));
        if let Err(error) = told.and_then(|()| std::fs::write(LACKS, text)) {
            warning!(log, "{LACKS}: {error}");
        }
        let watchdog = match booted.settings.watchdog_s {
            0 => Ok(None),
            seconds => Watchdog::open(seconds, begun.elapsed()),
        };
        let watchdog = watchdog.unwrap_or_else(|error| {
            warning!(log, "watchdog: {error}");
            None
        });
        let reboots = files::read_text(reboots(), 16).unwrap_or_default().trim().parse().unwrap_or(0);
        Self {
            programs: programs(),
            ladder: Ladder::new(reboots),
            safe: false,
            released: released(),
            trial: Trial::default(),
            renewing: false,
            sign: Duration::ZERO,
            watchdog,
            // A board may reboot then, when it cannot write.
            saver: Saver::Due(LEAST_UPTIME),
            broken: false,
            shutdown: None,
            log,
            booted,
            begun,
        }
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Does what is due.
    fn turn(&mut self) {
        let now = self.now();
        self.feed(now);
        if self.shutdown.is_some() {
            self.go_down();
            return;
        }
        for at in 0..self.programs.len() {
            if self.programs[at].unit.is_due(now) {
                self.start(at);
            }
        }
        self.look_at_agent(now);
        self.save(now);
    }

    /// As long as this loop turns; but a shutdown has an end.
    fn feed(&mut self, now: Duration) {
        let hangs = self.shutdown.is_some_and(|it| now > it.begun + LONGEST);
        if let Some(watchdog) = self.watchdog.as_mut().filter(|it| !hangs && it.due() <= now)
            && let Err(error) = watchdog.feed(now)
        {
            warning!(self.log, "watchdog: {error}");
        }
    }

    fn start(&mut self, at: usize) {
        let now = self.now();
        let program = &mut self.programs[at];
        let name = program.unit.name.clone();
        let mut command = Command::new(own());
        let (first, rest) =
            program.command.split_first().map_or((None, &[][..]), |(first, rest)| (Some(first), rest));
        let other = self.released.as_ref().filter(|_| [AGENT, SHIM].contains(&name.as_str()));
        command.args(["init", "exec", &format!("/sys/fs/cgroup/system/{name}")]);
        command.args(other.map(|it| it.as_os_str()).or(first.map(std::ffi::OsStr::new))).args(rest);
        if name == AGENT && self.safe {
            command.arg("--safe");
        }
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("NOTIFY_SOCKET", NOTIFY);
        let words = std::fs::File::options().write(true).open("/dev/kmsg");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(words.map_or(Stdio::inherit(), Stdio::from));
        match command.spawn() {
            Ok(child) => {
                let pid = i32::try_from(child.id()).unwrap_or_default();
                program.unit.started(pid, now);
                if name == AGENT {
                    self.sign = now;
                }
            }
            Err(error) => {
                error!(self.log, "{name}: {error}");
                program.unit.ended(now);
            }
        }
    }

    /// An agent that says nothing is no agent; one that does for long enough is well.
    fn look_at_agent(&mut self, now: Duration) {
        let Some(program) = self.programs.iter().find(|it| it.unit.name == AGENT) else { return };
        let State::Running { pid, since } = program.unit.state else { return };
        if now > self.sign + SILENCE {
            error!(self.log, "the agent has said nothing for {} s: killing it", SILENCE.as_secs());
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            self.sign = now;
        } else if now > since + WELL && !self.broken && self.ladder != Ladder::default() && !self.safe {
            self.ladder.is_well();
            let _ = std::fs::remove_file(reboots());
        }
    }

    fn save(&mut self, now: Duration) {
        match self.saver {
            Saver::Due(at) if at <= now => {
                let child = Command::new(own()).args(["init", "save"]).env_clear().stdin(Stdio::null()).spawn();
                match child.map(|it| i32::try_from(it.id()).unwrap_or_default()) {
                    Ok(pid) => self.saver = Saver::Saving { pid, since: now },
                    Err(error) => {
                        warning!(self.log, "saving the clock: {error}");
                        self.saver = Saver::Due(now + clock::SAVED_EVERY);
                    }
                }
            }
            Saver::Saving { pid, since } if now > since + LONGEST_SAVE => {
                error!(self.log, "nothing can be written for {} s: rebooting", LONGEST_SAVE.as_secs());
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                self.saver = Saver::Due(now + clock::SAVED_EVERY);
                self.order(Goal::Reboot);
            }
            Saver::Due(_) | Saver::Saving { .. } => {}
        }
    }

    /// A process ended; whose it was.
    fn reaped(&mut self, pid: i32, code: Option<i32>, how: &str) {
        let now = self.now();
        if matches!(self.saver, Saver::Saving { pid: own, .. } if own == pid) {
            self.saved(code == Some(BROKEN.into()));
            return;
        }
        let well = code == Some(0);
        let Some(at) = self.programs.iter().position(|it| it.unit.pid() == Some(pid)) else { return };
        let program = &mut self.programs[at];
        let name = program.unit.name.clone();
        if self.shutdown.is_some() || program.once && well {
            program.unit.state = State::Off;
            return;
        }
        if name == AGENT && std::mem::take(&mut self.renewing) {
            info!(self.log, "the agent is started anew");
            program.unit.renew(now);
            return;
        }
        let pause = program.unit.ended(now);
        error!(self.log, "{name} ended: {how}; started again in {} ms", pause.as_millis());
        if [AGENT, SHIM].contains(&name.as_str()) && self.released.is_some() && self.trial.ended(now) {
            program.unit.renew(now);
            self.give_up();
            return;
        }
        if name != AGENT {
            return;
        }
        match self.ladder.ended(now) {
            Rung::Restart => self.safe = false,
            Rung::Safe => {
                self.safe = true;
                error!(self.log, "the agent ends again and again: it is started in safe mode");
            }
            Rung::Stay { at } => {
                self.safe = true;
                program.unit.state = State::Waiting { at };
                error!(self.log, "the agent ends again and again, and reboots did not help");
            }
            Rung::Reboot => {
                error!(self.log, "the agent ends again and again: the board reboots");
                if let Err(error) = self.reboot_counted() {
                    error!(self.log, "not rebooting: {}: {error}", reboots().display());
                    self.programs[at].unit.state = State::Waiting { at: now + SILENCE };
                }
            }
        }
    }

    /// A file system that the kernel found damaged can be read, and no more: it is repaired at the next boot, and nobody
    /// comes to boot the board. Full is not broken.
    fn saved(&mut self, broken: bool) {
        let now = self.now();
        let before = std::mem::replace(&mut self.broken, broken);
        self.saver = Saver::Due(now + if broken { LOOK_AGAIN } else { clock::SAVED_EVERY });
        if !broken || !before {
            return;
        }
        error!(self.log, "state or data cannot be written any more");
        if !self.ladder.may_reboot(now) {
            self.saver = Saver::Due(now + clock::SAVED_EVERY);
        } else if let Err(error) = self.reboot_counted() {
            error!(self.log, "not rebooting: {}: {error}", reboots().display());
            self.saver = Saver::Due(now + clock::SAVED_EVERY);
        }
    }

    /// Reboots, for what a reboot may help; a board that cannot count its reboots would never stop, and does not begin.
    fn reboot_counted(&mut self) -> io::Result<()> {
        let count = (self.ladder.reboots + 1).to_string();
        files::replace(&reboots(), count.as_bytes())?;
        keep_kernel_log(&self.log);
        self.order(Goal::Reboot);
        Ok(())
    }

    /// The image's own program takes the place of one that fails again and again.
    fn give_up(&mut self) {
        let lack = format!("{RELEASED} failed again and again: agent and shim are the image's own program again");
        error!(self.log, "{lack}");
        self.released = None;
        self.ladder.is_well();
        // For the agent that comes.
        let told = std::fs::File::options().append(true).create(true).open(LACKS);
        if let Err(error) = told.and_then(|mut file| file.write_all(format!("{lack}\n").as_bytes())) {
            warning!(self.log, "{LACKS}: {error}");
        }
        // The data partition may hang; that is a child's to wait for.
        let child = Command::new(own()).args(["init", "give-up"]).env_clear().stdin(Stdio::null()).spawn();
        if let Err(error) = child {
            warning!(self.log, "{RELEASED}: {error}");
        }
    }

    /// Agent and shim become the newest program.
    fn renew(&mut self) {
        if self.shutdown.is_some() {
            return;
        }
        (self.released, self.trial) = (released(), Trial::default());
        let name = self.released.as_deref().map_or("the image's own".into(), Path::to_string_lossy);
        info!(self.log, "agent and shim become {name}");
        // The agent takes the shim along, which goes on as the same process.
        self.renewing = self.pid_of(AGENT).is_some();
        self.signal_program(AGENT, Signal::SIGTERM);
    }

    /// The machine is to end. The first order counts.
    fn order(&mut self, goal: Goal) {
        if self.shutdown.is_some() {
            return;
        }
        info!(self.log, "{goal:?}: stopping everything");
        self.shutdown = Some(Shutdown::begin(goal, self.now()));
        // The machine goes down: services are stopped in their order.
        self.signal_program(AGENT, Signal::SIGPWR);
    }

    fn signal_program(&self, name: &str, signal: Signal) {
        let program = self.programs.iter().find(|it| it.unit.name == name);
        if let Some(pid) = program.and_then(|it| it.unit.pid()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn go_down(&mut self) {
        loop {
            let now = self.now();
            let Some(mut shutdown) = self.shutdown else { return };
            let deed = shutdown.step(self.is_empty(shutdown.phase), now);
            self.shutdown = Some(shutdown);
            match deed {
                Deed::Wait(_) => return,
                Deed::Ask(phase) => self.ask(phase, Signal::SIGTERM),
                Deed::Kill(phase) => {
                    warning!(self.log, "shutdown: {phase:?} took too long");
                    self.ask(phase, Signal::SIGKILL);
                    self.ask(shutdown.phase, Signal::SIGTERM);
                }
                Deed::End => self.end(shutdown.goal),
            }
        }
    }

    fn is_empty(&self, phase: Phase) -> bool {
        match phase {
            Phase::Agent => self.pid_of(AGENT).is_none(),
            Phase::Services => containers().is_empty(),
            Phase::Units => self.programs.iter().all(|it| it.unit.pid().is_none()),
            Phase::All => others().is_empty(),
            Phase::Done => true,
        }
    }

    fn pid_of(&self, name: &str) -> Option<i32> {
        self.programs.iter().find(|it| it.unit.name == name)?.unit.pid()
    }

    fn ask(&self, phase: Phase, signal: Signal) {
        let send = |pid: i32| {
            let _ = kill(Pid::from_raw(pid), signal);
        };
        match phase {
            Phase::Agent => self.signal_program(AGENT, signal),
            Phase::Services => containers().into_iter().for_each(send),
            Phase::Units => self.programs.iter().filter_map(|it| it.unit.pid()).for_each(send),
            Phase::All => others().into_iter().for_each(send),
            Phase::Done => {}
        }
    }

    /// Everything is stopped.
    fn end(&self, goal: Goal) -> ! {
        let mut command = Command::new(own());
        command.args(["init", "save"]).env_clear().stdin(Stdio::null());
        if let Ok(mut child) = command.spawn() {
            // It may hang; then the watchdog ends this.
            let _ = child.wait();
        }
        if let Err(error) = random::save(&boot::seed(), &boot::clean()) {
            warning!(self.log, "random seed: {error}");
        }
        swap::end();
        unmount_all(&self.log);
        rustix::fs::sync();
        info!(self.log, "{goal:?}");
        let command = match goal {
            Goal::Reboot => rustix::system::RebootCommand::Restart,
            Goal::PowerOff => rustix::system::RebootCommand::PowerOff,
            Goal::Halt => rustix::system::RebootCommand::Halt,
        };
        let failed = rustix::system::reboot(command);
        error!(self.log, "the kernel does not {goal:?}: {failed:?}");
        // It is not fed any more.
        loop {
            nix::unistd::pause();
        }
    }

    /// Until when nothing is due.
    fn next(&self) -> Duration {
        let programs = self.programs.iter().filter_map(|it| match it.unit.state {
            State::Waiting { at } => Some(at),
            State::Running { .. } | State::Off => None,
        });
        let saver = match self.saver {
            Saver::Due(at) => at,
            Saver::Saving { since, .. } => since + LONGEST_SAVE,
        };
        let agent = (self.pid_of(AGENT).is_some()).then_some(self.sign + SILENCE);
        let all = programs.chain(self.watchdog.as_ref().map(Watchdog::due)).chain(agent).chain([saver]);
        let next = all.min().unwrap_or(saver);
        match self.shutdown {
            // Whether containers are gone is looked at, because nobody tells.
            Some(_) => next.min(self.now() + Duration::from_millis(50)),
            None => next,
        }
    }

    fn told(&mut self, words: &[u8]) {
        let signs: [&[u8]; 2] = [b"WATCHDOG=1", b"READY=1"];
        if words.split(|&it| it == b'\n').any(|line| signs.contains(&line)) {
            self.sign = self.now();
        }
    }

    /// There is a radio to be spoken for.
    fn radio(&mut self) {
        let now = self.now();
        if let Some(program) = self.programs.iter_mut().find(|it| it.unit.name == RADIO) {
            program.unit.wanted(now);
        }
    }

    /// A device came.
    fn plugged(&mut self, message: &[u8]) {
        if !message.starts_with(b"add@") {
            return;
        }
        let field = |name: &[u8]| message.split(|&it| it == 0).find_map(|field| field.strip_prefix(name));
        if field(b"SUBSYSTEM=") == Some(b"ieee80211") && self.shutdown.is_none() {
            self.radio();
        }
        let name = field(b"MODALIAS=");
        if let Some(name) = name.and_then(|it| std::str::from_utf8(it).ok())
            && let Err(error) = self.booted.modules.loader().load(name)
        {
            warning!(self.log, "module {error}");
        }
    }
}

fn reboots() -> PathBuf {
    Path::new(STATE).join("agent-reboots")
}

/// Agent and shim, where they are not the image's own program: on the data partition, so that it outlives this boot.
pub const RELEASED: &str = "/mnt/data/coracle/program/coracle";

/// That program, when it is there.
fn released() -> Option<PathBuf> {
    let path = PathBuf::from(RELEASED);
    path.metadata().is_ok_and(|it| it.is_file()).then_some(path)
}

/// Puts aside a program that failed, so that it is not tried at the next boot.
pub fn give_up() -> u8 {
    let path = Path::new(RELEASED);
    let moved = std::fs::rename(path, path.with_extension("failed"))
        .and_then(|()| std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all());
    match moved {
        Ok(()) => 0,
        Err(error) => {
            complain(format_args!("{RELEASED}: {error}"));
            1
        }
    }
}

/// This program, whatever it was called as.
fn own() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| "/usr/bin/coracle".into())
}

/// Those that the image has.
fn programs() -> Vec<Program> {
    let program = |name: &str, command: &[&str]| {
        let command: Vec<String> = command.iter().map(|&it| it.to_owned()).collect();
        Path::new(&command[0]).exists().then(|| Program { unit: Unit::new(name), command, once: false })
    };
    // Of whoever built the image: a driver's helper, a console.
    let text = files::read_text(PROGRAMS, MAX_PROGRAMS).unwrap_or_default();
    let others = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (&name, command) =
            words.split_first().filter(|(name, command)| is_name(name) && !command.is_empty())?;
        program(name, command)
    });
    let own = own().to_string_lossy().into_owned();
    let data = format!("{DATA}/coracle");
    [
        program("dbus", &["/usr/bin/dbus-daemon", "--system", "--nofork", "--nopidfile"]),
        program("network", &[&own, "init", "network", MANAGER, "--no-daemon"])
            .filter(|_| Path::new(MANAGER).exists()),
        program(RADIO, &["/usr/sbin/wpa_supplicant", "-u"]).map(|it| Program { unit: Unit::off(RADIO), ..it }),
        program(SHIM, &[&own, "shim", "--run", RUN]),
        program(AGENT, &[&own, "agent", "--supervised", "--board", "--data", &data, "--run", RUN]),
        program(PRELOAD, &[&own, "preload", PRELOADED, "--data", &data, "--run", RUN])
            .filter(|_| Path::new(PRELOADED).exists())
            .map(|it| Program { once: true, unit: it.unit.of_one(), ..it }),
    ]
    .into_iter()
    .flatten()
    .chain(others)
    .collect()
}

/// A name of an image's own program: it is a cgroup's too, and none of ours.
fn is_name(name: &str) -> bool {
    let letters = name.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-');
    letters && !["dbus", "network", RADIO, SHIM, AGENT, PRELOAD].contains(&name)
}

/// Processes of containers.
fn containers() -> Vec<i32> {
    let mut pids = Vec::new();
    for folder in ["/sys/fs/cgroup/coracle", "/sys/fs/cgroup/coracle.privileged"] {
        processes(Path::new(folder), &mut pids);
    }
    pids
}

fn processes(folder: &Path, pids: &mut Vec<i32>) {
    let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|&pid| pid > 1));
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            processes(&entry.path(), pids);
        }
    }
}

/// All processes but the kernel's own, which have no program, and this one.
fn others() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|&pid| pid > 1 && std::fs::read_link(format!("/proc/{pid}/exe")).is_ok()).collect()
}

/// The innermost first, again and again, because one may be in use by another; what stays is made read-only.
fn unmount_all(log: &Log) {
    /// Mounts above mounts above mounts.
    const ROUNDS: usize = 8;
    let targets = || -> Vec<PathBuf> {
        let text = files::read_text("/proc/self/mountinfo", 1 << 20).unwrap_or_default();
        let of_disks =
            text.lines().filter(|line| line.split(" - ").nth(1).is_some_and(|it| it.contains(" /dev/")));
        let mut targets: Vec<PathBuf> = of_disks
            .filter_map(|line| Some(PathBuf::from(line.split(' ').nth(4)?.replace("\\040", " "))))
            .collect();
        targets.reverse();
        targets.retain(|it| it != Path::new("/"));
        targets
    };
    for _ in 0..ROUNDS {
        let mut moved = false;
        for target in targets() {
            moved |= rustix::mount::unmount(&target, rustix::mount::UnmountFlags::empty()).is_ok();
        }
        if !moved {
            break;
        }
    }
    for target in targets() {
        warning!(log, "{} is in use to the end", target.display());
        let _ = rustix::mount::mount_remount(&target, rustix::mount::MountFlags::RDONLY, c"");
    }
    let _ = rustix::mount::mount_remount("/", rustix::mount::MountFlags::RDONLY, c"");
}

/// The end of the kernel's log.
fn keep_kernel_log(log: &Log) {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let mut words = Vec::new();
    if let Ok(kmsg) = rustix::fs::open("/dev/kmsg", flags, rustix::fs::Mode::empty()) {
        let mut record = [0; MAX_MESSAGE];
        loop {
            match rustix::io::read(&kmsg, &mut record) {
                Ok(count) => words.extend_from_slice(&record[..count]),
                // Records were overwritten in the meantime.
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
            let surplus = words.len().saturating_sub(LAST_WORDS);
            words.drain(..surplus);
        }
    }
    if let Err(error) = boot::keep_words("reboot.kmsg", &String::from_utf8_lossy(&words)) {
        warning!(log, "last words: {error}");
    }
}

/// What the first process listens to.
struct Ears {
    signals: Option<SignalFd>,
    notify: Option<UnixDatagram>,
    events: Option<OwnedFd>,
}

impl Ears {
    fn open(log: &Log, signals: Option<SignalFd>) -> Self {
        let notify = UnixDatagram::bind(NOTIFY).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        let events = kernel_events();
        if let Err(error) = &notify {
            error!(log, "{NOTIFY}: {error}");
        }
        if let Err(error) = &events {
            error!(log, "events of the kernel: {error}");
        }
        Self { signals, notify: notify.ok(), events: events.ok() }
    }

    /// Waits until something happens or is due, and takes it.
    fn wait(&self, board: &mut Board) {
        let pause = board.next().saturating_sub(board.now());
        // Rounded up: a pause that is a little too short would be made again and again.
        let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let timeout = PollTimeout::try_from(i32::try_from(pause).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX);
        let fds = [
            self.signals.as_ref().map(AsFd::as_fd),
            self.notify.as_ref().map(AsFd::as_fd),
            self.events.as_ref().map(AsFd::as_fd),
        ];
        let mut polled: Vec<PollFd<'_>> =
            fds.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        let _ = poll(&mut polled, timeout);
        self.hear_signals(board);
        reap(board);
        if let Some(notify) = &self.notify {
            let mut words = [0; MAX_MESSAGE];
            while let Ok(count) = notify.recv(&mut words) {
                board.told(&words[..count]);
            }
        }
        if let Some(events) = &self.events {
            hear_kernel(events, board);
        }
    }

    fn hear_signals(&self, board: &mut Board) {
        let Some(signals) = &self.signals else { return };
        while let Ok(Some(signal)) = signals.read_signal() {
            match Signal::try_from(i32::try_from(signal.ssi_signo).unwrap_or_default()) {
                Ok(Signal::SIGINT | Signal::SIGTERM) => board.order(Goal::Reboot),
                Ok(Signal::SIGUSR2 | Signal::SIGPWR) => board.order(Goal::PowerOff),
                Ok(Signal::SIGUSR1) => board.order(Goal::Halt),
                Ok(Signal::SIGHUP) => board.renew(),
                _ => {}
            }
        }
    }
}

/// Until none is left: several ends make one signal.
fn reap(board: &mut Board) {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => {
                board.reaped(pid.as_raw(), Some(code), &format!("exit code {code}"))
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) => board.reaped(pid.as_raw(), None, signal.as_str()),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// Messages of the kernel about devices (`NETLINK_KOBJECT_UEVENT`, group 1).
fn kernel_events() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let events = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkKObjectUEvent)?;
    let _ = nix::sys::socket::setsockopt(&events, nix::sys::socket::sockopt::RcvBufForce, &EVENT_BUFFER);
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
    Ok(events)
}

fn hear_kernel(events: &OwnedFd, board: &mut Board) {
    let mut message = [0; MAX_MESSAGE];
    loop {
        match recvfrom::<NetlinkAddr>(events.as_raw_fd(), &mut message) {
            // Others may send here too; only the kernel's number is 0.
            Ok((count, Some(from))) if from.pid() == 0 => board.plugged(&message[..count]),
            Ok(_) => {}
            // Some were lost: whatever they were about is found at the next plug, or by who opens it.
            Err(Errno::ENOBUFS | Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

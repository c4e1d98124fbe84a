//! The agent's loop: look, plan, do what is ready, wait for something to happen.
//!
//! Everything runs on one thread; deeds are tasks that tell their end through one queue. Nothing polls: the loop
//! wakes for the shim's events, the end of a deed, an order, or the end of a pause.

pub mod keeper;
mod launch;
mod memory;
mod names;
mod observe;
mod orders;
mod probe;
mod record;
mod report;
mod resolv;
mod rules;
mod shim;

pub use coracle_runtime::shim::chain;
pub use launch::options;
pub use orders::{Order, Refusal, Taken};
pub use record::{Exit, Reason};
pub use shim::ensure as ensure_shim;

use crate::clock::{boot_now, unix_now};
use crate::current::{Current, Failed, Identity, KnownImage, LiveNetwork};
use crate::device::Device;
use crate::execute::{Context, Gate, Started, StepError};
use crate::paths::Paths;
use crate::plan::{self, Action, Plan};
use crate::status::Status;
use crate::supervisor::{Mode, Supervisor};
use crate::target::Target;
use coracle_runtime::image::{Progress, Store};
use coracle_runtime::network::subnet::Foreign;
use coracle_runtime::shim::{Client, ContainerStatus};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use record::Record;
use shim::Ears;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Messages that wait for the loop. Tasks wait when it is full; the loop empties it in milliseconds.
const QUEUE: usize = 64;

/// Pause after a step failed the first time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Longest pause after failures in a row, when trying again can help.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Pause when trying again does not help by itself: a registry may get the image later.
const STUCK_PAUSE: Duration = Duration::from_secs(900);

/// Time between two looks at the bytes of a pull: for people's eyes.
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);

/// Starts under way at once. The shim has eight workers; more starts would only wait there.
const MAX_STARTS: usize = 8;

/// Pulls under way at once: each has three threads and its buffers, and they share one network and one disk.
const MAX_PULLS: usize = 1;

/// What the loop waits for.
pub enum Message {
    /// A container ended, or events were lost: the shim must be looked at.
    ShimChanged,
    /// The shim is gone.
    ShimGone,
    /// A deed ended.
    Done {
        /// Its key.
        key: String,
        /// What became of it.
        outcome: Result<Outcome, StepError>,
    },
    /// A health check ended.
    Probe(probe::Probed),
    /// A container ran out of memory, maybe.
    OutOfMemory(String),
    /// Somebody wants something else.
    Order(Box<Order>, oneshot::Sender<Result<Taken, Refusal>>),
    /// Somebody removed the rule sets of these projects.
    RulesLost(Vec<String>),
    /// Routes or addresses of this machine changed, maybe only ours.
    RoutesTouched,
    /// The host's name servers changed, maybe.
    HostNamesTouched,
    /// Somebody removed firewall rules: are ours still there?
    RulesTouched,
    /// Rules that were lost again and again may be put back now.
    RulesDue,
    /// End; containers go on.
    End,
    /// The machine goes down: stop everything in order, then end.
    GoDown,
}

/// What a deed brought.
pub enum Outcome {
    /// An image.
    Pulled(Box<coracle_runtime::image::Image>),
    /// A start.
    Started(Started),
    /// Nothing to remember.
    Done,
}

/// A deed under way.
struct Running {
    action: Action,
    cancel: Arc<AtomicBool>,
    /// Of a start whose program may not run yet.
    gate: Option<Gate>,
    progress: Arc<Mutex<Option<Progress>>>,
}

/// A container on disk.
struct Known {
    identity: Identity,
    record: Record,
    /// It ended with 0 before this boot and is not to be run again.
    completed: bool,
}

/// The agent's state. One thread owns it.
pub struct Engine {
    context: Context,
    mode: Mode,
    /// The machine goes down: nothing is wanted any more, and the target stays for the next boot.
    going_down: bool,
    shim_pid: i32,
    /// What is wrong with the board.
    lacks: Vec<String>,
    target: Target,
    images: BTreeMap<String, KnownImage>,
    unnamed: BTreeSet<String>,
    remains: bool,
    stale: BTreeSet<String>,
    containers: BTreeMap<String, Known>,
    /// As the shim told last.
    shim: BTreeMap<String, ContainerStatus>,
    networks: BTreeMap<String, LiveNetwork>,
    foreign: Foreign,
    volumes: BTreeSet<(String, String)>,
    rules: BTreeMap<String, String>,
    rules_repaired: u64,
    losses: BTreeMap<String, rules::Losses>,
    /// Somebody will look again at rules that are not put back yet.
    rules_wait: bool,
    failures: BTreeMap<String, (Failed, crate::exit::Code)>,
    running: BTreeMap<String, Running>,
    running_sender: watch::Sender<BTreeSet<String>>,
    names: names::Servers,
    host_names: resolv::HostNames,
    probes: BTreeMap<String, probe::Handle>,
    oom_watches: BTreeMap<String, memory::Watch>,
    ears: Ears,
    status: watch::Sender<Rc<Status>>,
    order: u64,
    keeper: Rc<keeper::Keeper>,
}

/// What others hold of the engine.
#[derive(Clone)]
pub struct Handle {
    /// For orders.
    pub sender: mpsc::Sender<Message>,
    /// Newest snapshot.
    pub status: watch::Receiver<Rc<Status>>,
    /// Changes when some container wrote.
    pub logs: watch::Receiver<u64>,
    /// Images.
    pub store: Store,
    /// Folders.
    pub paths: Rc<Paths>,
    /// The shim, replaced when it was lost.
    pub client: Rc<RefCell<Client>>,
}

impl Handle {
    /// Gives an order and waits until it was taken.
    ///
    /// # Errors
    /// Why it was not taken.
    pub async fn order(&self, order: Order) -> Result<Taken, Refusal> {
        let (sender, receiver) = oneshot::channel();
        let ended = || Refusal::new(crate::exit::Code::Internal, "the agent ends");
        self.sender.send(Message::Order(Box::new(order), sender)).await.map_err(|_| ended())?;
        receiver.await.map_err(|_| ended())?
    }
}

/// The loop's state beside the engine's.
pub struct Loop {
    /// Held as long as this agent lives.
    _lock: Flock<File>,
    engine: Engine,
    receiver: mpsc::Receiver<Message>,
    client: Rc<RefCell<Client>>,
}

impl Loop {
    /// Connects to the shim (starting it when there is none), and reads what is on disk.
    ///
    /// # Errors
    /// When the folders cannot be used or no shim can be had.
    pub async fn new(paths: Paths, mode: Mode) -> anyhow::Result<(Self, Handle)> {
        use anyhow::Context as _;
        paths.make().with_context(|| format!("using {} and {}", paths.data.display(), paths.run.display()))?;
        let lock = only_agent(&paths)?;
        paths.empty_staging().context("emptying the staging folder")?;
        let store = Store::open(&paths.data.join("images"))?;
        let mut target = Target::load(&paths.target()).context("reading the target")?;
        crate::durable::keep_reserve(&paths.target());
        if observe::is_new_boot(&paths)
            && target.forget_stops_of_always()
            && let Err(error) = target.save(&paths.target())
        {
            // What is wanted is in memory; a full disk must not keep an agent from running what is there.
            tracing::error!(%error, "the target could not be written");
        }
        observe::remember_boot(&paths)?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let connection = shim::connect(&paths, mode).await?;
        let paths = Rc::new(paths);
        let (running_sender, running) = watch::channel(BTreeSet::new());
        let (status_sender, status) = watch::channel(Rc::new(Status::default()));
        let (log_sender, logs) = watch::channel(0);
        let ears = Ears { sender: sender.clone(), logs: log_sender, execs: Rc::default() };
        ears.listen(connection.events);
        let client = Rc::new(RefCell::new(connection.client.clone()));
        let context =
            Context { paths: Rc::clone(&paths), store: store.clone(), client: connection.client, running };
        let mut engine = Engine {
            context,
            mode,
            going_down: false,
            shim_pid: connection.shim_pid,
            target,
            images: BTreeMap::new(),
            unnamed: BTreeSet::new(),
            remains: false,
            stale: BTreeSet::new(),
            containers: BTreeMap::new(),
            shim: BTreeMap::new(),
            networks: BTreeMap::new(),
            foreign: Foreign::default(),
            volumes: BTreeSet::new(),
            rules: BTreeMap::new(),
            rules_repaired: 0,
            losses: BTreeMap::new(),
            rules_wait: false,
            failures: BTreeMap::new(),
            running: BTreeMap::new(),
            running_sender,
            names: names::Servers::default(),
            host_names: resolv::HostNames::default(),
            probes: BTreeMap::new(),
            oom_watches: BTreeMap::new(),
            ears,
            status: status_sender,
            keeper: Rc::new(keeper::Keeper::new(Rc::clone(&client))),
            order: 0,
            lacks: match mode.board {
                true => Device::default().take_up(|name| Ok(nix::unistd::sethostname(name)?)),
                false => Vec::new(),
            },
        };
        engine.read_disk()?;
        engine.remove_unwanted_logs();
        observe::watch_routes(sender.clone());
        engine.look_at_routes();
        engine.look_at_host_names();
        rules::watch_rules(sender.clone());
        let handle = Handle { sender, status, logs, store, paths, client: Rc::clone(&client) };
        tokio::task::spawn_local(keeper::run(handle.clone(), Rc::clone(&engine.keeper)));
        Ok((Self { _lock: lock, engine, receiver, client }, handle))
    }

    /// Runs until it is told to end. Containers go on.
    ///
    /// # Errors
    /// When no shim can be had any more.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut look = true;
        let supervisor = Supervisor::from_environment();
        let mut sign = supervisor.as_ref().map(|supervisor| {
            supervisor.ready();
            boot_now() + supervisor.every
        });
        let mut tidy = Some(boot_now() + coracle_runtime::memory::QUIET);
        loop {
            if look {
                self.engine.look_at_shim().await;
            }
            let plan = self.engine.turn();
            if self.engine.is_down(&plan) {
                return Ok(());
            }
            let alive = async {
                match sign {
                    Some(at) => tokio::time::sleep(at.saturating_sub(boot_now())).await,
                    None => std::future::pending().await,
                }
            };
            let wake = async {
                let pulls = self.engine.running.values().any(|it| matches!(it.action, Action::Pull { .. }));
                let pause = plan.wake.map(|until| until.saturating_sub(boot_now()));
                match (pause, pulls) {
                    (Some(pause), true) => tokio::time::sleep(pause.min(PROGRESS_PAUSE)).await,
                    (Some(pause), false) => tokio::time::sleep(pause).await,
                    (None, true) => tokio::time::sleep(PROGRESS_PAUSE).await,
                    (None, false) => std::future::pending().await,
                }
            };
            let quiet = async {
                match tidy {
                    Some(at) => tokio::time::sleep(at.saturating_sub(boot_now())).await,
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                message = self.receiver.recv() => message,
                () = wake => { look = false; continue }
                () = alive => {
                    sign = supervisor.as_ref().map(|supervisor| {
                        supervisor.alive();
                        boot_now() + supervisor.every
                    });
                    look = false;
                    continue
                }
                () = quiet => {
                    // Work that is under way tells its end.
                    tidy = None;
                    coracle_runtime::memory::give_back();
                    look = false;
                    continue
                }
            };
            look = false;
            let Some(mut message) = message else { return Ok(()) };
            // Everything that waits is taken before the next plan.
            loop {
                if matches!(message, Message::Done { .. } | Message::Order(..)) {
                    tidy = Some(boot_now() + coracle_runtime::memory::QUIET);
                }
                match message {
                    Message::End => return Ok(()),
                    Message::GoDown => {
                        tracing::info!("the machine goes down: stopping the services");
                        self.engine.going_down = true;
                    }
                    Message::ShimGone => {
                        self.reconnect().await?;
                        look = true;
                    }
                    message => look |= self.engine.take(message),
                }
                match self.receiver.try_recv() {
                    Ok(next) => message = next,
                    Err(_) => break,
                }
            }
        }
    }

    async fn reconnect(&mut self) -> anyhow::Result<()> {
        tracing::warn!("the shim is gone; starting another");
        let connection = shim::connect(&self.engine.context.paths, self.engine.mode).await?;
        self.engine.ears.listen(connection.events);
        *self.client.borrow_mut() = connection.client.clone();
        self.engine.context.client = connection.client;
        self.engine.shim_pid = connection.shim_pid;
        self.engine.stop_probes();
        Ok(())
    }
}

fn is_stop(action: &Action) -> bool {
    matches!(action, Action::Stop { .. })
}

impl Engine {
    /// Plans, does what is ready, tells the new status.
    fn turn(&mut self) -> Plan {
        let current = self.current();
        let plan = match self.going_down {
            true => plan::plan(&current, &self.target.all_stopped(), boot_now()),
            false => plan::plan(&current, &self.target, boot_now()),
        };
        for step in plan.steps.iter().filter(|step| step.is_ready()) {
            let may = if self.going_down { is_stop(&step.action) } else { !self.mode.safe };
            if may {
                self.launch(step, &current);
            }
        }
        self.cancel_unwanted(&plan);
        self.open_gates(&plan);
        self.update_names();
        self.update_probes();
        self.update_oom_watches();
        self.publish(&plan);
        plan
    }

    /// The machine goes down, and nothing is left to stop.
    fn is_down(&self, plan: &Plan) -> bool {
        self.going_down
            && !self.running.values().any(|it| is_stop(&it.action))
            && !plan.steps.iter().any(|step| is_stop(&step.action))
    }

    /// Takes one message; true when the shim must be looked at.
    fn take(&mut self, message: Message) -> bool {
        match message {
            Message::ShimChanged => true,
            Message::Done { key, outcome } => self.done(&key, outcome),
            Message::Probe(probed) => {
                self.probed(&probed);
                false
            }
            Message::OutOfMemory(id) => {
                self.note_oom_kills(&id);
                false
            }
            Message::Order(order, answer) => {
                let taken = self.take_order(*order);
                // Whoever asked may be gone.
                let _ = answer.send(taken);
                false
            }
            Message::RoutesTouched => {
                self.look_at_routes();
                self.look_at_host_names();
                false
            }
            Message::HostNamesTouched => {
                self.look_at_host_names();
                false
            }
            Message::RulesTouched => {
                self.check_rules();
                false
            }
            Message::RulesDue => {
                self.rules_wait = false;
                self.check_rules();
                false
            }
            Message::RulesLost(projects) => {
                self.rules_lost(&projects);
                false
            }
            Message::ShimGone | Message::GoDown | Message::End => true,
        }
    }

    fn done(&mut self, key: &str, outcome: Result<Outcome, StepError>) -> bool {
        let Some(running) = self.running.remove(key) else { return false };
        if matches!(running.action, Action::Pull { .. } | Action::RemoveImages { .. }) {
            self.read_images();
        }
        match outcome {
            Ok(outcome) => {
                tracing::debug!(step = key, "done");
                self.failures.remove(key);
                self.note_success(&running.action, outcome);
            }
            Err(error) => self.note_failure(key, &running, &error),
        }
        matches!(running.action, Action::Start { .. } | Action::Stop { .. } | Action::Remove { .. })
    }

    fn note_success(&mut self, action: &Action, outcome: Outcome) {
        let paths = Rc::clone(&self.context.paths);
        match (action, outcome) {
            (Action::Pull { image, .. }, Outcome::Pulled(pulled)) => {
                tracing::info!(%image, digest = %pulled.digest, "pulled");
                self.stale.remove(image);
            }
            (Action::MakeNetwork { bridge, .. }, _) => {
                self.networks.extend(action.made_network().map(|live| (bridge.clone(), live)));
            }
            (Action::MakeVolume { project, volume }, _) => {
                self.volumes.insert((project.clone(), volume.clone()));
            }
            (Action::RemoveVolumes { project }, _) => {
                self.volumes.retain(|(of, _)| of != project);
                self.target.purge.remove(project);
                self.save_target();
            }
            (Action::ApplyRules { project, rules }, _) => {
                self.rules.insert(project.clone(), rules.clone());
                observe::remember_rules(&paths, &self.rules);
            }
            (Action::RemoveRules { project }, _) => {
                self.rules.remove(project);
                observe::remember_rules(&paths, &self.rules);
            }
            (Action::Start { container, .. }, Outcome::Started(started)) => {
                self.note_started(container, &started);
            }
            (Action::Remove { container, .. }, _) => {
                self.containers.remove(container);
                self.shim.remove(container);
            }
            _ => {}
        }
    }

    fn note_started(&mut self, id: &str, started: &Started) {
        match started {
            Started::Running { pid } => tracing::info!(container = %id, pid, "started"),
            Started::NotRunnable { code, reason } => {
                tracing::warn!(container = %id, code, reason, "cannot be run");
                if let Some(known) = self.containers.get_mut(id) {
                    known.record.note_not_runnable(*code, reason, boot_now(), unix_now());
                }
                self.save_record(id);
            }
        }
    }

    fn note_failure(&mut self, key: &str, running: &Running, error: &StepError) {
        if running.cancel.load(Ordering::Relaxed) {
            return;
        }
        let reason = chain(error);
        tracing::warn!(step = key, reason, "failed");
        let count = self.failures.get(key).map_or(0, |(failed, _)| failed.count).saturating_add(1);
        let transient = error.is_transient();
        let pause = if transient {
            FIRST_PAUSE.saturating_mul(2_u32.saturating_pow((count - 1).min(10))).min(LONGEST_PAUSE)
        } else {
            STUCK_PAUSE
        };
        let failed = Failed { reason, count, until: boot_now() + pause, transient };
        self.failures.insert(key.to_owned(), (failed, error.exit_code()));
    }

    fn save_target(&self) {
        // A disk that takes no write now takes one later; what is wanted is in memory until then.
        if let Err(error) = self.target.save(&self.context.paths.target()) {
            tracing::error!(%error, "the target could not be written");
        }
    }

    /// Everything that a plan looks at.
    fn current(&self) -> Current {
        Current {
            images: self.images.clone(),
            unnamed: self.unnamed.clone(),
            remains: self.remains,
            stale: self.stale.clone(),
            containers: self.observed(),
            networks: self.networks.clone(),
            foreign: self.foreign.clone(),
            volumes: self.volumes.clone(),
            rules: self.rules.clone(),
            failures: self.failures.iter().map(|(key, (failed, _))| (key.clone(), failed.clone())).collect(),
        }
    }
}

/// What a second agent says.
pub const ANOTHER: &str = "another agent runs with these folders";

/// Two agents on one set of folders would undo each other's work.
fn only_agent(paths: &Paths) -> anyhow::Result<Flock<File>> {
    use anyhow::Context as _;
    let path = paths.run.join("agent.lock");
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => anyhow::bail!("{ANOTHER}: {}", paths.run.display()),
        Err((_, errno)) => Err(errno).with_context(|| format!("locking {}", path.display())),
    }
}

impl Running {
    fn bytes(&self) -> Option<(u64, u64)> {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.as_ref().map(|progress| (progress.done, progress.total))
    }
}

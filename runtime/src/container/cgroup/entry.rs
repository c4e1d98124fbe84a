//! Making a container's cgroups, and removing them. libcontainer touches none.

use super::device_program::{self, Instruction, MAX_RULES};
use super::devices::{FORBIDDEN, Rule};
use super::hierarchy::Hierarchies;
use super::limits::{self, Setting};
use super::place::Place;
use super::{KILL_PAUSE, KILL_ROUNDS, processes};
use crate::container::loss::Loss;
use crate::container::spec::Limits;
use crate::sys;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Controllers that are switched on for containers on v2, where the kernel has them.
const V2_CONTROLLERS: &[&str] = &["cpu", "cpuset", "io", "memory", "pids"];

/// Why a container has no cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The kernel lacks a controller.
    #[error(
        "{field}: this kernel has no {controller} controller for cgroups (boards often want cgroup_enable={controller} on the kernel's command line)"
    )]
    NoController {
        /// The field of the compose file.
        field: &'static str,
        /// The controller.
        controller: String,
    },
    /// The kernel does not take a value.
    #[error("{field}: the kernel does not take {value:?} for {file}: {source}")]
    Refused {
        /// The field of the compose file.
        field: &'static str,
        /// The file of the cgroup.
        file: String,
        /// What was written.
        value: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A cgroup could not be made, or not be entered.
    #[error("cgroup {}: {source}", path.display())]
    System {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel does not restrict devices.
    #[error(
        "devices: the kernel cannot keep the service from the other devices (CONFIG_CGROUP_BPF, or for cgroup v1 CONFIG_CGROUP_DEVICE), so it does not start: {source}"
    )]
    Devices {
        /// What the kernel said.
        source: io::Error,
    },
    /// More rules than a program takes.
    #[error("devices: {count} rules, at most {MAX_RULES} are taken")]
    TooManyRules {
        /// How many there are.
        count: usize,
    },
    /// Something runs in it already.
    #[error("cgroup {cgroup}: processes that are not of this container run in it")]
    InUse {
        /// Its path.
        cgroup: String,
    },
    /// The kind of cgroup has nothing for it.
    #[error("{field}: cgroup {version} has nothing for it, so it cannot be kept")]
    NoMeaning {
        /// The field.
        field: &'static str,
        /// `v1` or `v2`.
        version: &'static str,
    },
    /// A value that contradicts another.
    #[error("{field}: {reason}")]
    Contradiction {
        /// The field.
        field: &'static str,
        /// Why.
        reason: String,
    },
    /// No hierarchy is mounted.
    #[error("no cgroup hierarchy is mounted at /sys/fs/cgroup")]
    None,
}

pub(super) fn system(path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::System { path, source }
}

/// Cgroups that were made.
#[derive(Debug)]
pub struct Made {
    /// Where they are.
    pub place: Place,
    tasks: Option<(File, Setting)>,
}

impl Made {
    /// Limits the number of tasks: what makes the container needs some too, so this comes when it is made.
    ///
    /// # Errors
    /// When the kernel refuses the number.
    pub fn limit_tasks(&self) -> Result<(), CgroupError> {
        match &self.tasks {
            Some((file, setting)) => write_to(&mut &*file, setting),
            None => Ok(()),
        }
    }
}

/// Which devices the processes of a cgroup may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// Every device.
    All,
    /// These.
    Only(Vec<Rule>),
    /// All but these.
    AllBut(Vec<Rule>),
}

/// What is there in place of a new cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Present {
    /// Ours, left from the last start: what runs in it is killed.
    Ours,
    /// Perhaps somebody's: it is used when nothing runs in it.
    Foreign,
}

/// A cgroup as it is wanted.
#[derive(Debug, Clone)]
pub struct Order<'a> {
    /// Path below the hierarchies' roots.
    pub cgroup: &'a str,
    /// A cgroup on the way that was handed over, with all below it: what is above stays as it is (v2).
    pub delegated: Option<&'a str>,
    /// Settings, for v1 and for v2.
    pub settings: &'a dyn Settings,
    /// The limit on tasks.
    pub tasks: Option<Setting>,
    /// Devices.
    pub devices: Devices,
    /// Above it, memory and ports of the machine are forbidden to all that is below (v2).
    pub parent_forbids: bool,
    /// What may be there already.
    pub present: Present,
    /// What the kernel may lack.
    pub accepted: &'a [Loss],
}

impl Order<'_> {
    /// A lack that the device accepts is said, and passed over.
    fn bear(&self, result: Result<(), CgroupError>) -> Result<(), CgroupError> {
        let error = match result {
            Err(error) => error,
            done => return done,
        };
        match Loss::of_error(&error).filter(|loss| self.accepted.contains(loss)) {
            Some(loss) => {
                tracing::warn!(cgroup = self.cgroup, loss = loss.name(), %error, "runs without, as the device's settings accept");
                Ok(())
            }
            None => Err(error),
        }
    }

    /// The limit on tasks, open, where there is one.
    fn tasks(&self, folder: Option<&Path>) -> Result<Option<(File, Setting)>, CgroupError> {
        match tasks_file(self.tasks.as_ref(), folder) {
            Err(error) => self.bear(Err(error)).map(|()| None),
            tasks => tasks,
        }
    }
}

/// What becomes settings on the hierarchies that are mounted.
pub trait Settings: std::fmt::Debug {
    /// Files of the v1 hierarchies, in order.
    ///
    /// # Errors
    /// What v1 has nothing for.
    fn v1(&self) -> Result<Vec<Setting>, CgroupError>;
    /// Files of the unified hierarchy, in order.
    ///
    /// # Errors
    /// What v2 has nothing for.
    fn v2(&self) -> Result<Vec<Setting>, CgroupError>;
}

impl Settings for Limits {
    fn v1(&self) -> Result<Vec<Setting>, CgroupError> {
        Ok(limits::v1(self))
    }

    fn v2(&self) -> Result<Vec<Setting>, CgroupError> {
        for field in limits::without_meaning_on_v2(self) {
            tracing::warn!(field, "has no meaning on cgroup v2");
        }
        Ok(limits::v2(self))
    }
}

/// Makes the cgroups of a container and sets its limits and device rules.
///
/// # Errors
/// What is missing or refused, by the name of the field that wants it.
pub fn make(order: &Order<'_>) -> Result<Made, CgroupError> {
    let hierarchies = Hierarchies::read().map_err(system(Path::new("/proc/self/mountinfo")))?;
    let cgroup = order.cgroup;
    match order.present {
        Present::Ours => remove_in(&hierarchies, cgroup)?,
        Present::Foreign if !super::all_processes(cgroup).is_empty() => {
            return Err(CgroupError::InUse { cgroup: cgroup.to_owned() });
        }
        Present::Foreign => {}
    }
    let relative = cgroup.trim_start_matches('/');
    if let Some(root) = hierarchies.unified() {
        let settings = order.settings.v2()?;
        let folder = make_unified(root, relative, order.delegated, &settings)?;
        for setting in &settings {
            order.bear(set(&folder, setting))?;
        }
        if let (true, Some(parent)) = (order.parent_forbids, folder.parent()) {
            order.bear(restrict(parent, &device_program::forbid(&FORBIDDEN), Once::Ever))?;
        }
        if let Some(program) = program_for(&order.devices)? {
            order.bear(restrict(&folder, &program, Once::Each))?;
        }
        let tasks = order.tasks(Some(&folder))?;
        return Ok(Made { place: Place::open(Some(&folder), &[])?, tasks });
    }
    if hierarchies.v1().next().is_none() {
        return Err(CgroupError::None);
    }
    for hierarchy in hierarchies.v1() {
        make_v1(&hierarchy.mount, relative, hierarchy.controllers.iter().any(|name| name == "cpuset"))?;
    }
    let folder = |controller: &str| hierarchies.of_controller(controller).map(|root| root.join(relative));
    for setting in order.settings.v1()? {
        let folder = folder(&setting.controller).ok_or_else(|| missing(&setting));
        order.bear(folder.and_then(|folder| set(&folder, &setting)))?;
    }
    // The parent forbids nothing here: v1 would then refuse a rule with `*` that is about more than what is forbidden.
    // Memory and ports still need CAP_SYS_RAWIO.
    order.bear(restrict_v1(folder("devices").as_deref(), &order.devices))?;
    let folders: Vec<PathBuf> = hierarchies.v1().map(|it| it.mount.join(relative)).collect();
    let tasks = order.tasks(folder("pids").as_deref())?;
    Ok(Made { place: Place::open(None, &folders)?, tasks })
}

fn program_for(devices: &Devices) -> Result<Option<Vec<Instruction>>, CgroupError> {
    Ok(match devices {
        Devices::All => None,
        Devices::Only(rules) => Some(device_program::allow(checked(rules)?)),
        Devices::AllBut(rules) => Some(device_program::forbid(checked(rules)?)),
    })
}

/// On v1 there is a controller for devices, and a file that says what it keeps to.
fn restrict_v1(folder: Option<&Path>, devices: &Devices) -> Result<(), CgroupError> {
    match (folder, devices) {
        (_, Devices::All) => Ok(()),
        (None, _) => Err(CgroupError::NoController { field: "devices", controller: "devices".to_owned() }),
        (Some(folder), _) => {
            write_device_rules(folder, devices)?;
            let list = folder.join("devices.list");
            let said = std::fs::read_to_string(&list).map_err(system(&list))?;
            match devices {
                // All is allowed again where the kernel keeps no rules at all.
                Devices::Only(_) if said.lines().any(|line| line == "a *:* rwm") => {
                    Err(CgroupError::Devices { source: io::Error::other("the rules are not in force") })
                }
                _ => Ok(()),
            }
        }
    }
}

fn write_device_rules(folder: &Path, devices: &Devices) -> Result<(), CgroupError> {
    let (first, then, rules) = match devices {
        Devices::All => return Ok(()),
        Devices::Only(rules) => ("devices.deny", "devices.allow", rules),
        Devices::AllBut(rules) => ("devices.allow", "devices.deny", rules),
    };
    let (first, file) = (folder.join(first), folder.join(then));
    std::fs::write(&first, "a").map_err(system(&first))?;
    for rule in checked(rules)?.iter().map(Rule::to_string) {
        std::fs::write(&file, &rule).map_err(|source| CgroupError::Refused {
            field: "devices",
            file: then.to_owned(),
            value: rule,
            source,
        })?;
    }
    Ok(())
}

/// Changes the settings and the device rules of cgroups that are there. `devices`: `None` leaves them.
///
/// # Errors
/// As for [`enter_new`].
pub fn change(
    cgroup: &str,
    settings: &dyn Settings,
    tasks: Option<&Setting>,
    devices: Option<&Devices>,
) -> Result<(), CgroupError> {
    let hierarchies = Hierarchies::read().map_err(system(Path::new("/proc/self/mountinfo")))?;
    let relative = cgroup.trim_start_matches('/');
    if let Some(root) = hierarchies.unified() {
        let folder = root.join(relative);
        for setting in settings.v2()?.iter().chain(tasks) {
            set(&folder, setting)?;
        }
        return match devices {
            Some(devices) => replace_program(&folder, program_for(devices)?.as_deref()),
            None => Ok(()),
        };
    }
    let folder = |controller: &str| hierarchies.of_controller(controller).map(|root| root.join(relative));
    for setting in settings.v1()?.iter().chain(tasks) {
        set(&folder(&setting.controller).ok_or_else(|| missing(setting))?, setting)?;
    }
    match devices {
        Some(devices) => restrict_v1(folder("devices").as_deref(), devices),
        None => Ok(()),
    }
}

/// Puts a device program in place of the one that is in force, in one step.
fn replace_program(folder: &Path, program: Option<&[Instruction]>) -> Result<(), CgroupError> {
    let failed = |source: io::Error| CgroupError::Devices { source };
    let cgroup = File::open(folder).map_err(failed)?;
    let before = sys::device_programs(cgroup.as_fd()).map_err(|errno| failed(errno.into()))?;
    // The new one first: with both in force what either forbids is forbidden.
    if let Some(program) = program {
        restrict(folder, program, Once::Each)?;
    }
    for id in before {
        let program = sys::program_by_id(id).map_err(|errno| failed(errno.into()))?;
        sys::detach_device_program(cgroup.as_fd(), program.as_fd()).map_err(|errno| failed(errno.into()))?;
    }
    Ok(())
}

fn checked(rules: &[Rule]) -> Result<&[Rule], CgroupError> {
    if rules.len() > MAX_RULES { Err(CgroupError::TooManyRules { count: rules.len() }) } else { Ok(rules) }
}

/// How often a program is put in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Once {
    /// The cgroup is new.
    Each,
    /// The cgroup stays, and has the same program always.
    Ever,
}

/// Puts a device program in force, and sees that it is: v2 has no files for this.
fn restrict(folder: &Path, program: &[Instruction], once: Once) -> Result<(), CgroupError> {
    let attach = || -> io::Result<bool> {
        let cgroup = File::open(folder)?;
        if once == Once::Ever && !sys::device_programs(cgroup.as_fd())?.is_empty() {
            return Ok(true);
        }
        let program: Vec<u64> = program.iter().copied().map(Instruction::encode).collect();
        let program = load(&program)?;
        sys::attach_device_program(cgroup.as_fd(), program.as_fd())?;
        Ok(sys::device_programs(cgroup.as_fd())?.contains(&sys::program_id(program.as_fd())?))
    };
    match attach() {
        Ok(true) => Ok(()),
        Ok(false) => Err(CgroupError::Devices { source: io::Error::other("the program is not in force") }),
        Err(source) => Err(CgroupError::Devices { source }),
    }
}

/// Kernels before 5.11 count programs as locked memory of the caller, whose limit is raised for this moment.
fn load(program: &[u64]) -> io::Result<OwnedFd> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
    match sys::load_device_program(program) {
        Err(Errno::EPERM) => {
            let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
            setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?;
            let loaded = sys::load_device_program(program);
            setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard)?;
            Ok(loaded?)
        }
        loaded => Ok(loaded?),
    }
}

/// The cgroups of a container that runs; with a number a child of its own, which is made, so that everything that is
/// started there can be found again.
///
/// # Errors
/// When the kernel refuses.
pub fn place(cgroup: &str, number: Option<u64>) -> Result<Place, CgroupError> {
    let hierarchies = Hierarchies::read().map_err(system(Path::new("/proc/self/mountinfo")))?;
    let relative = cgroup.trim_start_matches('/');
    let child = number.and_then(|number| super::child(cgroup, number));
    if let Some(folder) = &child {
        std::fs::create_dir_all(folder).map_err(system(folder))?;
    }
    let own = |root: &Path| {
        let folder = root.join(relative);
        child.clone().filter(|child| child.starts_with(&folder)).unwrap_or(folder)
    };
    let v1: Vec<PathBuf> = hierarchies.v1().map(|it| own(&it.mount)).collect();
    Place::open(hierarchies.unified().map(own).as_deref(), &v1)
}

/// The cgroups of a container that runs, or one below them, which is made.
///
/// # Errors
/// When the name leads out of the container's, or the kernel refuses.
pub fn place_below(cgroup: &str, below: Option<&str>) -> Result<Place, CgroupError> {
    let below = below.unwrap_or_default().trim_matches('/');
    if below.split('/').any(|part| part == "..") {
        let reason = format!("{below:?} leads out of the container's cgroup");
        return Err(CgroupError::Contradiction { field: "--cgroup", reason });
    }
    let hierarchies = Hierarchies::read().map_err(system(Path::new("/proc/self/mountinfo")))?;
    let relative = cgroup.trim_start_matches('/');
    let own = |root: &Path| -> Result<PathBuf, CgroupError> {
        let folder = root.join(relative).join(below);
        if !below.is_empty() {
            std::fs::create_dir_all(&folder).map_err(system(&folder))?;
        }
        Ok(folder)
    };
    let v1: Vec<PathBuf> = hierarchies.v1().map(|it| own(&it.mount)).collect::<Result<_, CgroupError>>()?;
    Place::open(hierarchies.unified().map(own).transpose()?.as_deref(), &v1)
}

/// Kills what is in a container's cgroups and removes them. Waits, bounded.
///
/// # Errors
/// When something in them cannot die.
pub fn remove(cgroup: &str) -> Result<(), CgroupError> {
    let hierarchies = Hierarchies::read().map_err(system(Path::new("/proc/self/mountinfo")))?;
    remove_in(&hierarchies, cgroup)
}

fn remove_in(hierarchies: &Hierarchies, cgroup: &str) -> Result<(), CgroupError> {
    let relative = cgroup.trim_start_matches('/');
    let roots = hierarchies.unified().into_iter().chain(hierarchies.v1().map(|it| it.mount.as_path()));
    for folder in roots.map(|root| root.join(relative)).filter(|folder| folder.is_dir()) {
        let mut rounds = 0;
        while let Err(source) = remove_folder(&folder) {
            rounds += 1;
            if rounds > KILL_ROUNDS {
                return Err(CgroupError::System { path: folder, source });
            }
            for pid in processes(&folder) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(KILL_PAUSE);
        }
    }
    Ok(())
}

/// Cgroups are removed from the innermost outwards; their files go with them.
fn remove_folder(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_folder(&entry.path())?;
        }
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn make_unified(
    root: &Path,
    relative: &str,
    delegated: Option<&str>,
    settings: &[Setting],
) -> Result<PathBuf, CgroupError> {
    let given = root.join(delegated.unwrap_or_default().trim_start_matches('/'));
    let mut folder = root.to_owned();
    let wanted = |name: &str| V2_CONTROLLERS.contains(&name) || settings.iter().any(|it| it.controller == name);
    for name in relative.split('/') {
        if !folder.starts_with(&given) {
            folder.push(name);
            continue;
        }
        let present = std::fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
        for name in present.split_whitespace().filter(|name| wanted(name)) {
            // One that cannot be switched on is missed by the limit that wants it.
            let _ = std::fs::write(folder.join("cgroup.subtree_control"), format!("+{name}"));
        }
        folder.push(name);
        make_folder(&folder)?;
    }
    Ok(folder)
}

fn make_v1(root: &Path, relative: &str, cpuset: bool) -> Result<(), CgroupError> {
    let mut folder = root.to_owned();
    for name in relative.split('/') {
        let parent = folder.clone();
        folder.push(name);
        make_folder(&folder)?;
        if cpuset {
            // A new cpuset has neither processors nor memory, and takes no task.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let path = folder.join(file);
                let inherited = std::fs::read_to_string(parent.join(file)).map_err(system(&path))?;
                if std::fs::read_to_string(&path).map_err(system(&path))?.trim().is_empty() {
                    std::fs::write(&path, inherited.trim()).map_err(system(&path))?;
                }
            }
        }
    }
    Ok(())
}

fn make_folder(folder: &Path) -> Result<(), CgroupError> {
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(system(folder)(error)),
        _ => Ok(()),
    }
}

fn missing(setting: &Setting) -> CgroupError {
    CgroupError::NoController { field: setting.field, controller: setting.controller.to_string() }
}

fn set(folder: &Path, setting: &Setting) -> Result<(), CgroupError> {
    match open(folder, setting)? {
        Some(mut file) => write_to(&mut file, setting),
        None => Ok(()),
    }
}

fn open(folder: &Path, setting: &Setting) -> Result<Option<File>, CgroupError> {
    match File::options().write(true).open(folder.join(&*setting.file)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && setting.optional => {
            tracing::warn!(field = setting.field, file = %setting.file, "this kernel cannot limit it");
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing(setting)),
        Err(error) => Err(system(&folder.join(&*setting.file))(error)),
    }
}

fn write_to(file: &mut impl Write, setting: &Setting) -> Result<(), CgroupError> {
    file.write_all(setting.value.as_bytes()).map_err(|source| CgroupError::Refused {
        field: setting.field,
        file: setting.file.to_string(),
        value: setting.value.clone(),
        source,
    })
}

fn tasks_file(setting: Option<&Setting>, folder: Option<&Path>) -> Result<Option<(File, Setting)>, CgroupError> {
    let Some(setting) = setting else { return Ok(None) };
    let nowhere = Path::new("");
    Ok(open(folder.unwrap_or(nowhere), setting)?.map(|file| (file, setting.clone())))
}

/// Hides the hierarchies in this mount namespace: libcontainer then finds none to work on.
///
/// # Errors
/// When the kernel refuses the mount.
pub fn hide() -> io::Result<()> {
    let root = Path::new(super::MOUNT);
    // Takes all that is mounted below with it; EINVAL: nothing is mounted there.
    let _ = umount2(root, MntFlags::MNT_DETACH);
    for hierarchy in Hierarchies::read()?.all.iter().rev() {
        umount2(&hierarchy.mount, MntFlags::MNT_DETACH)?;
    }
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), root, Some("tmpfs"), flags, None::<&str>)?;
    Ok(())
}

//! The deeds of the shim's short-lived workers: start a container, run a command in it, delete it.
//!
//! A worker is a fork of the shim. It may block, change its folder, leak descriptors and die: it ends after one deed.

use super::accounts::{AccountError, Accounts, Identity, MAX_ACCOUNT_FILE};
use super::cgroup::devices::{self, Access, FORBIDDEN, Rule};
use super::cgroup::entry::{self, CgroupError, Devices, Order, Present};
use super::cgroup::tasks;
use super::filters::Filters;
use super::launcher;
use super::libcontainer::{Io, Launch, Stdio};
use super::loss::Loss;
use super::oci::{self, DeviceNode, Resolved};
use super::program::NotRunnable;
use super::rootfs::{self, Kind, Root, RootError};
use super::spec::{
    ContainerSpec, DeviceSpec, ExecSpec, NetworkNamespace, ProcessSpec, SPEC_FILE, Seccomp, SharedNamespace,
    SourceSpec,
};
use super::users::{self, Mappings};
use super::volume;
use crate::seccomp::Filter;
use crate::shim::{Failure, FailureKind};
use crate::sys;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::unistd::Pid;
use serde::Deserialize;
use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes of a container's description; a service with hundreds of mounts stays far below.
const MAX_SPEC: u64 = 1024 * 1024;

/// Folders of the shim, all on a tmpfs where there is one.
#[derive(Debug, Clone)]
pub struct Folders {
    /// One folder a container: description, bundle.
    pub containers: PathBuf,
    /// Empty; workers mount their container's root here, each in a mount namespace of its own.
    pub root: PathBuf,
    /// System call filters that were compiled before.
    pub filters: PathBuf,
}

/// What a worker made.
#[derive(Debug)]
pub struct Made {
    /// Process id on the host.
    pub pid: i32,
    /// The terminal's master.
    pub terminal: Option<OwnedFd>,
}

/// Where the process's output goes.
#[derive(Debug)]
pub enum Output {
    /// To these descriptors.
    Stdio(Stdio),
    /// To a terminal made in the container.
    Terminal,
}

fn internal(what: impl std::fmt::Display) -> impl FnOnce(Errno) -> Failure {
    move |errno| failure(errno, format!("{what}: {}", errno.desc()))
}

fn failure(errno: Errno, message: String) -> Failure {
    let kind = match errno {
        Errno::ENOSPC | Errno::EDQUOT => FailureKind::NoSpace,
        Errno::ENOENT => FailureKind::NotFound,
        _ => FailureKind::Internal,
    };
    Failure::new(kind, message)
}

fn io_failure(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    failure(errno, format!("{what} {}: {error}", path.display()))
}

impl From<RootError> for Failure {
    fn from(error: RootError) -> Self {
        match &error {
            RootError::System { source, .. } => failure(*source, error.to_string()),
            _ => Self::new(FailureKind::Refused, error.to_string()),
        }
    }
}

impl From<CgroupError> for Failure {
    fn from(error: CgroupError) -> Self {
        let kind = match &error {
            CgroupError::NoController { .. }
            | CgroupError::Refused { .. }
            | CgroupError::Devices { .. }
            | CgroupError::NoMeaning { .. }
            | CgroupError::Contradiction { .. }
            | CgroupError::TooManyRules { .. } => FailureKind::Refused,
            CgroupError::InUse { .. } | CgroupError::System { .. } | CgroupError::None => FailureKind::Internal,
        };
        let way_out = Loss::of_error(&error).map(Loss::way_out).unwrap_or_default();
        Self::new(kind, format!("{error}{way_out}"))
    }
}

impl From<AccountError> for Failure {
    fn from(error: AccountError) -> Self {
        Self::new(FailureKind::Refused, error.to_string())
    }
}

/// Reads the description of a container.
///
/// # Errors
/// When there is none, or it is not ours.
pub fn read_spec(folders: &Folders, id: &str) -> Result<ContainerSpec, Failure> {
    let path = folders.containers.join(id).join(SPEC_FILE);
    let mut text = Vec::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(MAX_SPEC).read_to_end(&mut text))
        .map_err(|error| io_failure("reading", &path, &error))?;
    let spec: ContainerSpec = serde_json::from_slice(&text)
        .map_err(|error| Failure::new(FailureKind::Refused, format!("{}: {error}", path.display())))?;
    if spec.id != id {
        return Err(Failure::new(FailureKind::Refused, format!("{}: describes {:?}", path.display(), spec.id)));
    }
    Ok(spec)
}

/// What a container is started with beside its description.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// Path of its network namespace.
    pub network: Option<PathBuf>,
    /// The machine's number of its user 0, when it has users of its own.
    pub first_user: Option<u32>,
    /// The program runs when a byte comes from here.
    pub barrier: Option<&'a OwnedFd>,
}

/// Creates and starts a container. `pid_of` finds the main process of another one.
///
/// # Errors
/// One line with the reason; nothing of the container is left then but what [`delete`] removes.
pub fn start(
    folders: &Folders,
    spec: &ContainerSpec,
    output: Output,
    around: &Surroundings<'_>,
    pid_of: impl Fn(&str) -> Option<i32>,
) -> Result<Made, Failure> {
    let mut possible = spec.clone();
    keep_available(&mut possible.process);
    bear_no_filters(&mut possible.process, &spec.accepted_losses)?;
    let spec = &possible;
    private_mounts()?;
    rootfs::mount_overlay(&spec.lower, &spec.upper, &spec.work, &folders.root)?;
    let root = Root::open(&folders.root)?;
    root.refuse_linked_system_folders()?;
    let accounts = read_accounts(&root)?;
    let identity = accounts.resolve(&spec.process.user, &spec.process.group_add)?;
    let mappings = around.first_user.map(Mappings::of_range).transpose()?;
    let users = mappings.map(|mappings| mappings.namespace()).transpose()?;
    let resolved = Resolved {
        targets: make_targets(&root, &folders.root, spec)?,
        root: folders.root.clone(),
        network: match &spec.network {
            NetworkNamespace::Host => None,
            NetworkNamespace::Held(_) => around.network.clone(),
        },
        pid: namespace_of(&spec.pid, "pid", &pid_of)?,
        ipc: namespace_of(&spec.ipc, "ipc", &pid_of)?,
        users: users.as_ref().zip(around.first_user).map(|(fd, first)| (path_of(fd), first)),
        devices: spec.devices.iter().map(device_node).collect::<Result<_, _>>()?,
        identity,
        unified_cgroup: super::cgroup::is_v2(),
        heat: heat_folders(Path::new("/sys/devices/system/cpu")),
    };
    make_working_folder(&root, spec)?;
    drop(root);
    if let (Some(users), Some(first)) = (&users, around.first_user) {
        remount_mapped(folders, spec, users, first)?;
        spec.files.iter().try_for_each(|file| give(&file.path, first))?;
    }
    launch_main(folders, spec, &resolved, output, around.barrier)
}

/// `cpuN/thermal_throttle`: how hot a processor was tells what others compute on it (moby GHSA-6fw5-f8r9-fgfm).
fn heat_folders(processors: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(processors).into_iter().flatten().flatten();
    let cpus = entries.filter(|entry| {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("cpu"));
        number.is_some_and(|number| number.bytes().all(|it| it.is_ascii_digit()) && !number.is_empty())
    });
    cpus.map(|entry| entry.path().join("thermal_throttle")).filter(|path| path.exists()).collect()
}

fn path_of(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Gives a file that the agent made for this start to the container's users: it lies in memory, where kernels before 6.3
/// map no owners.
fn give(file: &Path, first: u32) -> Result<(), Failure> {
    let failed = |error| io_failure("giving to the service's users", file, &error);
    let metadata = std::fs::symlink_metadata(file).map_err(failed)?;
    if metadata.uid() >= first {
        return Ok(());
    }
    let (uid, gid) = (users::outside(first, metadata.uid()), users::outside(first, metadata.gid()));
    std::os::unix::fs::lchown(file, Some(uid), Some(gid)).map_err(failed)
}

/// The root once more, now that it is ready, with owners as the container's users.
fn remount_mapped(folders: &Folders, spec: &ContainerSpec, users: &OwnedFd, first: u32) -> Result<(), Failure> {
    umount2(&folders.root, MntFlags::MNT_DETACH).map_err(internal("unmounting the root"))?;
    let bundle = folders.containers.join(&spec.id);
    let mut shown = users::Shown::new(&bundle, users);
    let lower = spec.lower.iter().map(|path| shown.place_of(path)).collect::<Result<Vec<_>, _>>()?;
    let (upper, work) = (shown.place_of(&spec.upper)?, shown.place_of(&spec.work)?);
    // The overlay works in its folders as who mounted it: a user that is there.
    users::make_as((first, first)).map_err(refused)?;
    let mounted = rootfs::mount_overlay(&lower, &upper, &work, &folders.root);
    users::make_as((0, 0)).map_err(refused)?;
    mounted.map_err(|error| match error {
        RootError::System { source: Errno::EINVAL, .. } => refused(
            "userns_mode: this kernel shows an image's files with their own owners only (overlay on ID-mapped mounts: \
             from Linux 5.19)"
                .to_owned(),
        ),
        error => error.into(),
    })
}

/// Makes the container's cgroups.
fn make_cgroups(spec: &ContainerSpec, nodes: &[DeviceNode]) -> Result<entry::Made, Failure> {
    let mut allowed: Vec<Rule> = devices::every_container().collect();
    for node in nodes {
        let rule = granted(node)?;
        if !spec.privileged && FORBIDDEN.iter().any(|it| it.is_node_of(rule)) {
            let reason = "is the machine's memory or its ports: only a privileged service may have it";
            return Err(refused(format!("devices: {} {reason}", node.path)));
        }
        allowed.push(rule);
    }
    for rule in &spec.device_rules {
        let rules = Rule::parse(rule);
        allowed.extend(rules.ok_or_else(|| refused(format!("device_cgroup_rules: {rule:?} is no rule")))?);
    }
    Ok(entry::make(&Order {
        cgroup: &spec.cgroup,
        delegated: None,
        settings: &spec.limits,
        tasks: Some(tasks(&spec.limits)),
        devices: if spec.privileged { Devices::All } else { Devices::Only(allowed) },
        parent_forbids: !spec.privileged,
        present: Present::Ours,
        accepted: &spec.accepted_losses,
    })?)
}

fn granted(node: &DeviceNode) -> Result<Rule, Failure> {
    let broken = || refused(format!("devices: {}: {:?} is not some of r, w, m", node.path, node.access));
    let access = Access::parse(&node.access).ok_or_else(broken)?;
    let kind = if node.kind == 'b' { devices::Kind::Block } else { devices::Kind::Character };
    // It is made from within.
    Ok(Rule::node(kind, node.major, node.minor, access.and_make()))
}

fn refused(message: String) -> Failure {
    Failure::new(FailureKind::Refused, message)
}

fn launch_main(
    folders: &Folders,
    spec: &ContainerSpec,
    resolved: &Resolved,
    output: Output,
    barrier: Option<&OwnedFd>,
) -> Result<Made, Failure> {
    let (report, report_write) = crate::shim::pipe().map_err(internal("making a pipe"))?;
    let (gate, gate_write) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(internal("making a pipe"))?;
    let launch = Launch {
        env: environment(&spec.process.env, &resolved.identity, spec.process.tty),
        reaper: spec.init,
        report: report_write.as_raw_fd(),
        gate: Some(gate.as_raw_fd()),
        filter: filter(folders, &spec.process)?,
        heard: None,
        borrows_admin: oci::borrows_admin(&spec.process),
        waiting: None,
    };
    let (io, console) = io_for(output, &folders.containers.join(&spec.id))?;
    let cgroups = make_cgroups(spec, &resolved.devices)?;
    let config = oci_spec::runtime::Spec::deserialize(&oci::config(spec, resolved))
        .map_err(|error| Failure::new(FailureKind::Internal, format!("the configuration: {error}")))?;
    let pid = launcher::create(
        &cgroups.place,
        &launcher::Order {
            spec: &config,
            rootfs: &resolved.root,
            launch: &launch,
            io,
            no_pivot: false,
            keyring: CString::new(format!("_ses.{}", spec.id)).ok(),
            cgroups: Vec::new(),
            hooks: None,
        },
    )?;
    let finish = || -> Result<(), Failure> {
        set_oom_score(pid, Some(spec.process.oom_score_adj))?;
        cgroups.limit_tasks()?;
        barrier.map_or(Ok(()), wait_for_release)
    };
    finish().inspect_err(|_| end(pid))?;
    drop((gate, gate_write, report_write));
    wait_until_running(&report)?;
    see_filter(pid, &spec.process)?;
    Ok(Made { pid, terminal: console.map(|socket| receive_terminal(&socket)).transpose()? })
}

/// Runs a command in a running container; one that is contained gets a cgroup of its own.
///
/// # Errors
/// One line with the reason.
pub fn exec(
    folders: &Folders,
    id: &str,
    exec: &ExecSpec,
    output: Output,
    main_pid: i32,
    number: u64,
) -> Result<Made, Failure> {
    let spec = read_spec(folders, id)?;
    let bundle = folders.containers.join(id);
    let mut process = oci::exec_process(&spec.process, exec);
    if exec.privileged {
        process.capabilities = all_capabilities();
        process.capabilities_of_user = all_capabilities();
        process.no_new_privileges = false;
    }
    keep_available(&mut process);
    bear_no_filters(&mut process, &spec.accepted_losses)?;
    let root = Root::open(Path::new(&format!("/proc/{main_pid}/root")))?;
    if exec.cwd.is_some() {
        rootfs::refuse_below_proc(Path::new(&process.cwd))?;
        if root.existing(Path::new(&process.cwd))?.is_none() {
            let reason = format!("working folder {} is not in the container", process.cwd);
            return Err(Failure::new(FailureKind::NotFound, reason));
        }
    }
    // The account files that a command sees are the container's present ones.
    let identity = read_accounts(&root)?.resolve(&process.user, &process.group_add)?;
    let config = oci_spec::runtime::Process::deserialize(&oci::process(&process, &identity))
        .map_err(|error| Failure::new(FailureKind::Internal, format!("the command's process: {error}")))?;
    let (report, report_write) = crate::shim::pipe().map_err(internal("making a pipe"))?;
    let (gate, gate_write) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(internal("making a pipe"))?;
    let launch = Launch {
        env: environment(&process.env, &identity, process.tty),
        reaper: exec.contained,
        report: report_write.as_raw_fd(),
        gate: Some(gate.as_raw_fd()),
        filter: filter(folders, &process)?,
        heard: None,
        borrows_admin: oci::borrows_admin(&process),
        waiting: None,
    };
    let (io, console) = io_for(output, &bundle)?;
    let place = entry::place(&spec.cgroup, exec.contained.then_some(number))?;
    let command = launcher::Command { target: main_pid, process: &config, personality: None, launch: &launch, io };
    let pid = launcher::exec(&place, &command)?;
    set_oom_score(pid, Some(spec.process.oom_score_adj)).inspect_err(|_| end(pid))?;
    let terminal = console.map(|socket| receive_terminal(&socket)).transpose()?;
    if let (Some(terminal), Some((rows, columns))) = (&terminal, exec.terminal_size) {
        // A size that cannot be set is no reason not to run.
        let _ = crate::terminal::set_size(terminal.as_fd(), rows, columns);
    }
    drop((gate, gate_write, report_write));
    wait_until_running(&report)?;
    see_filter(pid, &process)?;
    Ok(Made { pid, terminal })
}

/// Removes the cgroups of an ended container, libcontainer's state, and its folder.
///
/// # Errors
/// When something of it still runs.
pub fn delete(folders: &Folders, id: &str) -> Result<(), Failure> {
    let bundle = folders.containers.join(id);
    if let Ok(spec) = read_spec(folders, id) {
        entry::remove(&spec.cgroup)?;
    }
    match std::fs::remove_dir_all(&bundle) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_failure("removing", &bundle, &error)),
        _ => Ok(()),
    }
}

/// A mount namespace of the worker's own: what it mounts is gone with the container, and seen by nobody else.
pub(crate) fn private_mounts() -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(internal("making a mount namespace"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
        .map_err(internal("separating the mount namespace"))
}

fn read_accounts(root: &Root) -> Result<Accounts, Failure> {
    let read = |path: &str| -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        if let Some(file) = root.open_file(Path::new(path))? {
            file.take(MAX_ACCOUNT_FILE)
                .read_to_end(&mut bytes)
                .map_err(|error| io_failure("reading the image's", Path::new(path), &error))?;
        }
        Ok(bytes)
    };
    Ok(Accounts { passwd: read("/etc/passwd")?, group: read("/etc/group")? })
}

/// Makes every mount point that does not lie inside another mount, and fills new volumes from the image.
fn make_targets(root: &Root, root_path: &Path, spec: &ContainerSpec) -> Result<Vec<PathBuf>, Failure> {
    let mut targets = Vec::new();
    for mount in &spec.mounts {
        if let SourceSpec::Bind { path, .. } = &mount.source
            && path.starts_with("/sys/fs/cgroup")
        {
            let reason = format!("{}: cgroups of the host are not given to containers", path.display());
            return Err(Failure::new(FailureKind::Refused, reason));
        }
        let kind = match &mount.source {
            SourceSpec::Bind { path, .. } if !path.is_dir() => Kind::File,
            _ => Kind::Folder,
        };
        let target = make_target(root, Path::new(&mount.target), kind, &targets)?;
        if let SourceSpec::Volume { folder, fill: Some(marker), subpath } = &mount.source {
            let inside = root.existing(&target)?.map(|path| root_path.join(path));
            volume::fill(folder, marker, inside.as_deref())?;
            volume::make_subpath(folder, subpath)?;
        }
        targets.push(target);
    }
    for file in &spec.files {
        targets.push(make_target(root, Path::new(&file.target), Kind::File, &targets)?);
    }
    Ok(targets)
}

fn make_target(root: &Root, target: &Path, kind: Kind, earlier: &[PathBuf]) -> Result<PathBuf, Failure> {
    let system = ["/proc", "/sys", "/dev"].iter().any(|system| target.starts_with(system));
    if system || earlier.iter().any(|mount| target.starts_with(mount) && target != mount) {
        // The kernel's file systems, or inside another mount: it is made when that is there.
        return Ok(target.to_owned());
    }
    Ok(root.make(target, kind)?)
}

/// A missing working folder is made, as Docker does; one inside a volume is made in the volume.
fn make_working_folder(root: &Root, spec: &ContainerSpec) -> Result<(), Failure> {
    let cwd = Path::new(&spec.process.cwd);
    rootfs::refuse_below_proc(cwd)?;
    let covering = spec.mounts.iter().rev().find(|mount| cwd.starts_with(&mount.target));
    match covering.map(|mount| (&mount.source, cwd.strip_prefix(&mount.target))) {
        Some((SourceSpec::Volume { folder, subpath, .. }, Ok(inside))) => {
            Root::open(&folder.join(subpath))?.make(inside, Kind::Folder)?;
        }
        Some(_) => {}
        None => drop(root.make(cwd, Kind::Folder)?),
    }
    Ok(())
}

fn namespace_of(
    shared: &SharedNamespace,
    kind: &str,
    pid_of: &impl Fn(&str) -> Option<i32>,
) -> Result<Option<PathBuf>, Failure> {
    let SharedNamespace::Container(id) = shared else {
        return Ok(None);
    };
    let pid = pid_of(id).ok_or_else(|| {
        Failure::new(FailureKind::NotFound, format!("container {id} does not run, its {kind} namespace is wanted"))
    })?;
    Ok(Some(PathBuf::from(format!("/proc/{pid}/ns/{kind}"))))
}

fn device_node(device: &DeviceSpec) -> Result<DeviceNode, Failure> {
    let path = Path::new(&device.source);
    let metadata = std::fs::metadata(path).map_err(|error| io_failure("device", path, &error))?;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        _ => {
            return Err(Failure::new(
                FailureKind::Refused,
                format!("device {}: is no device node", path.display()),
            ));
        }
    };
    Ok(DeviceNode {
        path: device.target.clone(),
        kind,
        major: libc::major(metadata.rdev()),
        minor: libc::minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: device.permissions.clone(),
    })
}

fn environment(env: &[(String, String)], identity: &Identity, tty: bool) -> Vec<(String, String)> {
    let mut env = env.to_vec();
    for (name, value, wanted) in [("HOME", identity.home.as_str(), true), ("TERM", "xterm", tty)] {
        if wanted && !env.iter().any(|(known, _)| known == name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    env
}

fn all_capabilities() -> Vec<String> {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap");
    let last = last.ok().and_then(|text| text.trim().parse::<usize>().ok()).unwrap_or(40);
    super::CAPABILITIES.iter().take(last + 1).map(|&name| name.to_owned()).collect()
}

/// Capabilities of this process, without `CAP_`; `None` when they cannot be read: then the kernel says what it refuses.
pub(crate) fn available_capabilities() -> Option<Vec<String>> {
    let own = caps::read(None, caps::CapSet::Permitted).ok()?;
    Some(own.iter().map(|it| it.to_string().trim_start_matches("CAP_").to_owned()).collect())
}

/// Leaves out what this machine's root has not itself (a machine in a container of another engine, an old kernel): the
/// kernel would refuse everything for it.
fn keep_available(process: &mut ProcessSpec) {
    let Some(own) = available_capabilities() else { return };
    for names in [&mut process.capabilities, &mut process.capabilities_of_user] {
        names.retain(|name| {
            let has = own.contains(name);
            if !has {
                tracing::warn!(capability = %name, "this machine's root has it not, so the service has it not");
            }
            has
        });
    }
}

/// On a kernel without system call filters a process has none when the device accepts that, and else does not run.
fn bear_no_filters(process: &mut ProcessSpec, accepted: &[Loss]) -> Result<(), Failure> {
    if process.seccomp == Seccomp::Unconfined || sys::has_filters() {
        return Ok(());
    }
    if accepted.contains(&Loss::Seccomp) {
        tracing::warn!(loss = Loss::Seccomp.name(), "runs without, as the device's settings accept");
        process.seccomp = Seccomp::Unconfined;
        return Ok(());
    }
    let reason =
        "security_opt: this kernel has no system call filters (CONFIG_SECCOMP_FILTER), so it does not start";
    Err(refused(format!("{reason}{}", Loss::Seccomp.way_out())))
}

/// Ends a process that was made for nothing: what waits at a gate goes on when the gate is gone.
pub(crate) fn end(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// `None` leaves what was inherited.
pub(crate) fn set_oom_score(pid: i32, score: Option<i32>) -> Result<(), Failure> {
    let Some(score) = score else { return Ok(()) };
    let path = PathBuf::from(format!("/proc/{pid}/oom_score_adj"));
    std::fs::write(&path, score.to_string()).map_err(|error| io_failure("writing", &path, &error))
}

/// Waits for the byte that lets the program run.
fn wait_for_release(barrier: &OwnedFd) -> Result<(), Failure> {
    let mut byte = [0];
    loop {
        match nix::unistd::read(barrier.as_raw_fd(), &mut byte) {
            Ok(0) => return Err(Failure::new(FailureKind::Conflict, "the start was called off")),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(internal("waiting for the release")(errno)),
        }
    }
}

/// The filter of a process, if it has one.
fn filter(folders: &Folders, process: &ProcessSpec) -> Result<Option<Filter>, Failure> {
    let filters = Filters { folder: &folders.filters };
    filters.of(process).map_err(|reason| refused(format!("security_opt: seccomp profile: {reason}")))
}

/// Looks whether the filter is in force; a process without it does not go on.
fn see_filter(pid: i32, process: &ProcessSpec) -> Result<(), Failure> {
    if process.seccomp == Seccomp::Unconfined { Ok(()) } else { must_be_filtered(pid) }
}

/// Kills a process that has no system call filter.
pub(crate) fn must_be_filtered(pid: i32) -> Result<(), Failure> {
    // It may have ended already.
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return Ok(()) };
    // 2 is SECCOMP_MODE_FILTER (proc(5)); who has ended has none any more.
    let ended = status.lines().any(|line| line.starts_with("State:\tZ") || line.starts_with("State:\tX"));
    if ended || status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"])) {
        return Ok(());
    }
    end(pid);
    Err(Failure::new(FailureKind::Internal, "the system call filter is not in force, so it does not run"))
}

/// Waits until the program runs (the pipe closes at its execve) or says why it cannot.
pub(crate) fn wait_until_running(report: &OwnedFd) -> Result<(), Failure> {
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        crate::shim::wait_readable(report).map_err(internal("waiting for the program"))?;
        match nix::unistd::read(report.as_raw_fd(), &mut buffer) {
            Ok(0) if line.is_empty() => return Ok(()),
            Ok(0) => break,
            Ok(count) => line.extend_from_slice(&buffer[..count]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(internal("waiting for the program")(errno)),
        }
    }
    let reason = serde_json::from_slice::<NotRunnable>(&line);
    let (code, reason) =
        reason.map_or((126, "the program could not be run".to_owned()), |it| (it.code, it.reason));
    Err(Failure::new(FailureKind::NotRunnable { code }, reason))
}

fn io_for(output: Output, bundle: &Path) -> Result<(Io, Option<OwnedFd>), Failure> {
    match output {
        Output::Stdio(stdio) => Ok((Io::Stdio(stdio), None)),
        Output::Terminal => {
            let path = bundle.join(format!("console-{}", std::process::id()));
            let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
                .map_err(internal("making a console socket"))?;
            let address = UnixAddr::new(&path).map_err(internal(path.display()))?;
            bind(listener.as_raw_fd(), &address).map_err(internal(path.display()))?;
            listen(&listener, Backlog::new(1).unwrap_or(Backlog::MAXCONN)).map_err(internal(path.display()))?;
            Ok((Io::Terminal(path), Some(listener)))
        }
    }
}

/// Takes the terminal's master from the console socket; the sender has written it by now.
fn receive_terminal(listener: &OwnedFd) -> Result<OwnedFd, Failure> {
    let connection = nix::sys::socket::accept(listener.as_raw_fd()).map_err(internal("accepting the console"))?;
    let connection = crate::sys::own(connection);
    let received = crate::shim::receive_descriptor(&connection).map_err(internal("receiving the terminal"))?;
    received.ok_or_else(|| Failure::new(FailureKind::Internal, "no terminal came from the container"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heat_of_every_processor_that_tells_of_it_is_known() {
        let folder = tempfile::tempdir().expect("a folder");
        for path in ["cpu0/thermal_throttle", "cpu12/thermal_throttle", "cpu1", "cpufreq/thermal_throttle", "cpu"]
        {
            std::fs::create_dir_all(folder.path().join(path)).expect("made");
        }
        let mut found = heat_folders(folder.path());
        found.sort();
        assert_eq!(found, ["cpu0", "cpu12"].map(|cpu| folder.path().join(cpu).join("thermal_throttle")));
        assert!(heat_folders(Path::new("/none")).is_empty());
    }
}

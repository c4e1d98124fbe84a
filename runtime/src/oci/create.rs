//! Making a container from a bundle, up to where its program waits for `start`.
//!
//! A worker (a fork) does it: it goes into the container's cgroups and a mount namespace of its own, and ends. What it
//! made belongs to whoever reaps this process's children, as with runc.

use super::bundle::Bundle;
use super::error::{OciError, errno, io};
use super::hooks::{self, Moment};
use super::listener;
use super::process::{self, Prepared, Waits};
use super::resources;
use super::state::{Home, State, begin_of};
use super::systemd;
use crate::container;
use crate::container::cgroup::devices::{Access, Kind, Rule};
use crate::container::cgroup::entry::{self, CgroupError, Devices, Order, Present};
use crate::container::cgroup::place::Place;
use crate::container::filters::Filters;
use crate::container::launcher;
use crate::container::libcontainer::{self, Io, Launch, Making};
use crate::container::rootfs::{self, Root};
use crate::shim::{Failure, FailureKind, chain};
use crate::sys;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use oci_spec::runtime::{LinuxDeviceType, LinuxNamespaceType, LinuxResources};
use serde_json::{Value, json};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Name of the FIFO that lets the program run.
pub(super) const START: &str = "start";
/// Name of the FIFO that says why the program cannot run.
pub(super) const REPORT: &str = "report";

/// What `create` is told.
#[derive(Debug, Clone)]
pub struct Create<'a> {
    /// Folder of all containers.
    pub root: &'a Path,
    /// Name.
    pub id: &'a str,
    /// The bundle.
    pub bundle: &'a Bundle,
    /// Where the terminal's master is sent.
    pub console_socket: Option<&'a Path>,
    /// Written when the container is made.
    pub pid_file: Option<&'a Path>,
    /// Descriptors above 2 that the program gets.
    pub preserve_fds: u32,
    /// Only change the root (chroot(2)): for machines whose root is a ramdisk.
    pub no_pivot: bool,
    /// The caller's session keyring, not one of its own.
    pub no_new_keyring: bool,
    /// The cgroup is asked of systemd.
    pub systemd_cgroup: bool,
    /// The program that runs as `oci-helper`: this one.
    pub helper: &'a Path,
}

/// Makes a container.
///
/// # Errors
/// What is refused or failed; nothing is left of it then.
pub fn create(order: &Create<'_>) -> Result<State, OciError> {
    let home = Home::of(order.root, order.id)?;
    let bundle = order.bundle;
    check_terminal(&bundle.config["process"], order.console_socket)?;
    check_descriptors(order.preserve_fds)?;
    let filters = home.filters();
    let filters = Filters { folder: &filters };
    let process = process::prepare(&bundle.config["process"], bundle.config["linux"].get("seccomp"), filters)?;
    process.check_kernel()?;
    let none = LinuxResources::default();
    let linux = bundle.spec.linux().as_ref();
    let wanted = linux.and_then(|linux| linux.resources().as_ref()).unwrap_or(&none);
    let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
    let annotations = bundle.spec.annotations().as_ref();
    let scope = order.systemd_cgroup.then(|| systemd::Wanted::parse(path, order.id, annotations)).transpose()?;
    let cgroup = if scope.is_some() { String::new() } else { cgroup_path(path, order.id)? };
    let devices = devices(bundle, wanted)?;
    home.make()?;
    // Held until the container is there, or is given up.
    let scope = scope.map(|wanted| wanted.make()).transpose().inspect_err(|_| drop(home.remove()))?;
    let state = State {
        oci_version: super::VERSION.to_owned(),
        id: order.id.to_owned(),
        bundle: bundle.folder.clone(),
        rootfs: bundle.rootfs.clone(),
        annotations: annotations.cloned().unwrap_or_default().into_iter().collect(),
        created_unix_ns: crate::shim::unix_now_ns(),
        owner: nix::unistd::geteuid().as_raw(),
        cgroup: scope.as_ref().map_or(cgroup, systemd::Scope::container),
        scope: scope.as_ref().map(|scope| scope.cgroup().to_owned()),
        pid: 0,
        begun: 0,
        started: false,
        startable: bundle.config["process"]["args"].as_array().is_some_and(|args| !args.is_empty()),
        filtered: process.filter.is_some(),
        hooks: match &bundle.config["hooks"] {
            Value::Null => Value::Null,
            hooks => json!({ "hooks": hooks }),
        },
    };
    let made = make(order, &home, bundle, &state, &process, wanted, devices);
    made.inspect_err(|_| {
        // As if it had never been; poststop hooks end what others began (runtime.md, Lifecycle).
        hooks::run_all(&bundle.config, Moment::Poststop, &state.document(super::Status::Stopped));
        let _ = home.remove();
    })
}

fn make(
    order: &Create<'_>,
    home: &Home,
    bundle: &Bundle,
    state: &State,
    process: &Prepared,
    wanted: &LinuxResources,
    devices: Devices,
) -> Result<State, OciError> {
    home.write_file("config.json", bundle.config.to_string().as_bytes())?;
    home.write(state)?;
    for name in [START, REPORT] {
        nix::unistd::mkfifo(&home.folder.join(name), Mode::from_bits_truncate(0o600)).map_err(errno(name))?;
    }
    let cgroups = entry::make(&Order {
        cgroup: &state.cgroup,
        delegated: state.scope.as_deref(),
        settings: wanted,
        tasks: resources::tasks(wanted),
        devices,
        parent_forbids: false,
        present: Present::Foreign,
        accepted: &[],
    });
    if let Err(error @ CgroupError::InUse { .. }) = cgroups {
        // Somebody else's, who is not to be killed with it.
        return Err(error.into());
    }
    let made =
        cgroups.map_err(OciError::from).and_then(|cgroups| fill(order, home, bundle, state, process, &cgroups));
    made.inspect_err(|_| drop(entry::remove(&state.cgroup)))
}

/// Makes the container's process in its cgroups.
fn fill(
    order: &Create<'_>,
    home: &Home,
    bundle: &Bundle,
    state: &State,
    process: &Prepared,
    cgroups: &entry::Made,
) -> Result<State, OciError> {
    let heard = process.listener.as_ref().map(|_| listener::memory()).transpose()?;
    let with_byte = heard.as_ref().map(|heard| process.with_byte(heard)).transpose()?;
    let process = with_byte.as_ref().unwrap_or(process);
    let pid = match launcher::unsupported(&bundle.spec) {
        None => launch(order, home, bundle, state, process, &cgroups.place)?,
        Some(what) => {
            tracing::debug!(what, "is left to libcontainer");
            let space = Mounts::open()?;
            cgroups.place.in_child(|| worker(order, home, bundle, state, process, &space))?
        }
    };
    let begun = begin_of(pid).unwrap_or_default();
    let state = State { pid, begun, ..state.clone() };
    let finish = || -> Result<(), OciError> {
        if let (Some(listener), Some(heard)) = (&process.listener, &heard) {
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let report = nix::fcntl::open(&home.folder.join(REPORT), flags, Mode::empty()).map(sys::own);
            let document = state.document(super::Status::Creating);
            listener.hand_over(pid, heard, &report.map_err(errno("opening report"))?, &document)?;
        }
        container::worker::set_oom_score(pid, process.oom_score_adj)?;
        cgroups.limit_tasks()?;
        home.write(&state)?;
        if let Some(file) = order.pid_file {
            process::write_pid_file(file, pid)?;
        }
        Ok(())
    };
    finish().inspect_err(|_| container::worker::end(pid))?;
    Ok(state)
}

/// The mount namespace that a command began in, for hooks that run there.
#[derive(Debug)]
pub(super) struct Mounts(OwnedFd);

impl Mounts {
    pub(super) fn open() -> Result<Self, OciError> {
        let path = Path::new("/proc/self/ns/mnt");
        Ok(Self(std::fs::File::open(path).map_err(io("opening", path))?.into()))
    }

    /// A path to it that the worker's children can open too.
    fn path(&self, owner: u32) -> String {
        format!("/proc/{owner}/fd/{}", self.0.as_raw_fd())
    }
}

/// The usual shape.
fn launch(
    order: &Create<'_>,
    home: &Home,
    bundle: &Bundle,
    state: &State,
    process: &Prepared,
    place: &Place,
) -> Result<i32, OciError> {
    let (start, report) = (open_fifo(home, START)?, open_fifo(home, REPORT)?);
    let root = Root::open(&bundle.rootfs).map_err(Failure::from)?;
    make_working_folder(&root, bundle)?;
    let mut spec = bundle.spec.clone();
    spec.set_process(Some(process.typed()?));
    let launch = launch_of(order, bundle, state, process, (start.as_raw_fd(), report.as_raw_fd()));
    let mounts = spec.mounts().iter().flatten();
    let shown = mounts.into_iter().any(|it| matches!(it.typ().as_deref(), Some("cgroup" | "cgroup2")));
    let document = |pid: i32, moment: Moment| State { pid, ..state.clone() }.document(moment.status());
    let outside = |pid: i32| {
        let run = |moment| hooks::run(&bundle.config, moment, &document(pid, moment), &[]);
        run(Moment::Prestart)
            .and_then(|()| run(Moment::CreateRuntime))
            .map_err(|error| Failure::new(FailureKind::Refused, error.to_string()))
    };
    let inside = |pid: i32| {
        let moment = Moment::CreateContainer;
        hooks::run(&bundle.config, moment, &document(pid, moment), &[]).map_err(|error| error.to_string())
    };
    let moments = [Moment::Prestart, Moment::CreateRuntime, Moment::CreateContainer];
    let hooked = moments.into_iter().any(|moment| !hooks::of(&bundle.config, moment).is_empty());
    let pid = launcher::create(
        place,
        &launcher::Order {
            spec: &spec,
            rootfs: &bundle.rootfs,
            launch: &launch,
            io: Io::of(order.console_socket),
            no_pivot: order.no_pivot,
            keyring: (!order.no_new_keyring)
                .then(|| CString::new(format!("_ses.{}", order.id)).unwrap_or_default()),
            cgroups: if shown { container::cgroup::hierarchies(&state.cgroup) } else { Vec::new() },
            hooks: hooked.then_some(launcher::Hooks { outside: &outside, inside: &inside }),
        },
    )?;
    Ok(pid)
}

fn launch_of(
    order: &Create<'_>,
    bundle: &Bundle,
    state: &State,
    process: &Prepared,
    (start, report): (i32, i32),
) -> Launch {
    let at = Waits { report, gate: None, start: Some(start) };
    process.launch(order.preserve_fds, &at, hooks_inside(&bundle.config), state.document(super::Status::Created))
}

/// All other shapes, through libcontainer.
fn worker(
    order: &Create<'_>,
    home: &Home,
    bundle: &Bundle,
    state: &State,
    process: &Prepared,
    space: &Mounts,
) -> Result<i32, Failure> {
    if !order.no_new_keyring {
        sys::join_session_keyring(&CString::new(format!("_ses.{}", order.id)).unwrap_or_default());
    }
    let start = open_fifo(home, START)?;
    let report = open_fifo(home, REPORT)?;
    // Without a mount namespace the container is to have the machine's, with all that is mounted for it.
    let own_mounts = has_namespace(&bundle.config, LinuxNamespaceType::Mount);
    if own_mounts {
        separate_mounts(bundle.config["linux"]["rootfsPropagation"].as_str().unwrap_or_default())?;
    }
    let root = Root::open(&bundle.rootfs)?;
    root.refuse_linked_system_folders()?;
    make_working_folder(&root, bundle)?;
    let unified = container::cgroup::is_v2();
    let mut config = bundle.config.clone();
    let folder = home.folder.join("bundle");
    std::fs::create_dir(&folder).map_err(|error| failed("making", &folder, &error))?;
    fill_tmpfs(&mut config, &root, &bundle.rootfs, &home.folder)?;
    let cgroup_mount = convert_cgroup_mounts(&mut config, unified);
    sanitize(&mut config, bundle, process, &order_of_hooks(order, home, bundle, cgroup_mount, space));
    // libcontainer goes into a cgroup of this name: where they are hidden there is none, else the container's.
    config["linux"]["cgroupsPath"] = json!(if own_mounts { "/" } else { state.cgroup.as_str() });
    let file = folder.join("config.json");
    std::fs::write(&file, config.to_string()).map_err(|error| failed("writing", &file, &error))?;
    if own_mounts {
        entry::hide().map_err(|error| failed("hiding", Path::new("/sys/fs/cgroup"), &error))?;
    }
    let launch = launch_of(order, bundle, state, process, (start.as_raw_fd(), report.as_raw_fd()));
    let making = Making {
        id: order.id,
        root: &home.folder.join("runtime"),
        bundle: &folder,
        preserve_fds: order.preserve_fds as i32,
        no_pivot: order.no_pivot,
    };
    let made = libcontainer::create(&making, launch, Io::of(order.console_socket))
        .map_err(|error| Failure::new(FailureKind::Internal, chain(&error)))?;
    let pid = made.pid;
    // It goes on to where it waits for `start`.
    made.start()
        .map_err(|error| Failure::new(FailureKind::Internal, chain(&error)))
        .inspect_err(|_| container::worker::end(pid))?;
    Ok(pid)
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(FailureKind::Internal, format!("{what} {}: {error}", path.display()))
}

/// For reading and writing: so it opens without the other side, and never ends.
fn open_fifo(home: &Home, name: &str) -> Result<std::fs::File, Failure> {
    let path = home.folder.join(name);
    let opened = std::fs::File::options().read(true).write(true).open(&path);
    opened.map_err(|error| failed("opening", &path, &error))
}

/// A mount namespace of the worker's own. Mounts of the machine reach it; its own reach the machine only when the
/// configuration wants a shared root.
fn separate_mounts(propagation: &str) -> Result<(), Failure> {
    let system = |what: &'static str| {
        move |errno: nix::errno::Errno| Failure::new(FailureKind::Internal, format!("{what}: {}", errno.desc()))
    };
    unshare(CloneFlags::CLONE_NEWNS).map_err(system("making a mount namespace"))?;
    let shared = matches!(propagation, "shared" | "rshared");
    let (from, flags) = match shared {
        // What is hidden there must not be hidden for everybody.
        true => ("/sys", MsFlags::MS_PRIVATE),
        false => ("/", MsFlags::MS_SLAVE),
    };
    mount(None::<&str>, from, None::<&str>, flags | MsFlags::MS_REC, None::<&str>)
        .map_err(system("separating the mount namespace"))
}

/// Path below the hierarchies' roots. A relative one counts from there too (config-linux.md, Cgroups Path, leaves it to
/// the runtime).
fn cgroup_path(wanted: Option<&Path>, id: &str) -> Result<String, OciError> {
    let path = wanted.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(id));
    let refused = |reason: String| OciError::Refused { field: "linux.cgroupsPath".to_owned(), reason };
    let text = path.to_str().ok_or_else(|| refused("is not UTF-8".to_owned()))?;
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.is_empty() || parts.contains(&"..") {
        return Err(refused(format!("{text:?} is no path below the root of the hierarchy")));
    }
    Ok(format!("/{}", parts.join("/")))
}

/// Nodes that the configuration makes may be made; what may be done with them is for the rules to say.
fn devices(bundle: &Bundle, wanted: &LinuxResources) -> Result<Devices, OciError> {
    let mut devices = resources::device_access(wanted.devices().as_deref().unwrap_or_default())?;
    let nodes = bundle.spec.linux().as_ref().and_then(|linux| linux.devices().as_ref());
    if let Devices::Only(rules) = &mut devices {
        let make = Access::parse("m").unwrap_or(Access::ALL);
        for node in nodes.into_iter().flatten() {
            let kind = match node.typ() {
                LinuxDeviceType::B => Kind::Block,
                LinuxDeviceType::C | LinuxDeviceType::U => Kind::Character,
                LinuxDeviceType::A | LinuxDeviceType::P => continue,
            };
            let numbers = (u32::try_from(node.major()), u32::try_from(node.minor()));
            let (Ok(major), Ok(minor)) = numbers else {
                let reason =
                    format!("{}: {}:{} are no numbers", node.path().display(), node.major(), node.minor());
                return Err(OciError::Refused { field: "linux.devices".to_owned(), reason });
            };
            // One rule for a node: the program allows what one rule allows whole.
            match rules.iter_mut().find(|rule| rule.is_node_of(Rule::node(kind, major, minor, make))) {
                Some(rule) => rule.access = rule.access.with(make),
                None => rules.push(Rule::node(kind, major, minor, make)),
            }
        }
    }
    Ok(devices)
}

pub(super) fn check_terminal(process: &Value, console_socket: Option<&Path>) -> Result<(), OciError> {
    let terminal = process["terminal"] == Value::Bool(true);
    match (terminal, console_socket) {
        (true, None) => Err(OciError::Usage("process.terminal is set: --console-socket is wanted".to_owned())),
        (false, Some(_)) => {
            Err(OciError::Usage("--console-socket is given, but process.terminal is not set".to_owned()))
        }
        _ => Ok(()),
    }
}

/// Looked at before anything is opened: a number that is not open would become one of ours.
pub(super) fn check_descriptors(preserve: u32) -> Result<(), OciError> {
    /// Far beyond what engines hand down, and below the limit of open files.
    const MOST: u32 = 512;
    if preserve > MOST {
        return Err(OciError::Usage(format!("--preserve-fds {preserve}: at most {MOST}")));
    }
    match (3..3 + preserve).find(|number| !Path::new(&format!("/proc/self/fd/{number}")).exists()) {
        Some(number) => {
            Err(OciError::Usage(format!("--preserve-fds {preserve}: descriptor {number} is not open")))
        }
        None => Ok(()),
    }
}

/// A working folder that is missing is made, unless it lies in a mount.
fn make_working_folder(root: &Root, bundle: &Bundle) -> Result<(), Failure> {
    let cwd = Path::new(bundle.config["process"]["cwd"].as_str().unwrap_or("/"));
    rootfs::refuse_below_proc(cwd)?;
    let mounts = bundle.spec.mounts().iter().flatten();
    if mounts.into_iter().any(|mount| cwd.starts_with(mount.destination())) || cwd == Path::new("/") {
        return Ok(());
    }
    if root.existing(cwd)?.is_none() {
        root.make(cwd, rootfs::Kind::Folder)?;
    }
    Ok(())
}

/// A tmpfs that begins with what the image has at its place: libcontainer knows no such thing, so it is made here and
/// shown there.
fn fill_tmpfs(config: &mut Value, root: &Root, rootfs: &Path, home: &Path) -> Result<(), Failure> {
    let Some(mounts) = config["mounts"].as_array_mut() else { return Ok(()) };
    for (number, entry) in mounts.iter_mut().enumerate() {
        let options: Vec<String> = entry["options"]
            .as_array()
            .map(|all| all.iter().filter_map(|it| it.as_str().map(str::to_owned)).collect())
            .unwrap_or_default();
        if !options.iter().any(|it| it == "tmpcopyup") {
            continue;
        }
        let options: Vec<String> = options.into_iter().filter(|it| it != "tmpcopyup").collect();
        let destination = PathBuf::from(entry["destination"].as_str().unwrap_or_default());
        let (data, flags): (Vec<String>, Vec<String>) = options.into_iter().partition(|it| it.contains('='));
        let folder = home.join(format!("tmpfs-{number}"));
        std::fs::create_dir(&folder).map_err(|error| failed("making", &folder, &error))?;
        mount(Some("tmpfs"), &folder, Some("tmpfs"), MsFlags::empty(), Some(data.join(",").as_str()))
            .map_err(|errno| failed("mounting", &folder, &errno.into()))?;
        if let Some(inside) = root.existing(&destination)? {
            let source = rootfs.join(inside.strip_prefix("/").unwrap_or(&inside));
            container::copy_tree(&source, &folder).map_err(|error| failed("copying", &source, &error))?;
        }
        let mut options = vec!["bind".to_owned()];
        options.extend(flags);
        *entry = json!({ "destination": destination, "type": "bind", "source": folder, "options": options });
    }
    Ok(())
}

/// Mounts of type `cgroup`. With one hierarchy and a cgroup namespace the kernel shows the container its own; without,
/// the container's folder is shown, which the helper mounts: libcontainer would show it the machine's.
fn convert_cgroup_mounts(config: &mut Value, unified: bool) -> Option<Value> {
    let own = has_namespace(config, LinuxNamespaceType::Cgroup);
    let mounts = config["mounts"].as_array_mut()?;
    if unified && own {
        for mount in mounts.iter_mut().filter(|mount| mount["type"] == "cgroup") {
            mount["type"] = json!("cgroup2");
        }
        return None;
    }
    let at = mounts.iter().position(|mount| mount["type"] == "cgroup" || mount["type"] == "cgroup2")?;
    Some(mounts.remove(at))
}

/// A new namespace of this kind is wanted.
fn has_namespace(config: &Value, kind: LinuxNamespaceType) -> bool {
    let all = config["linux"]["namespaces"].as_array().map(Vec::as_slice).unwrap_or_default();
    let kind = kind.to_string();
    all.iter().any(|it| it["type"] == kind.as_str() && it.get("path").is_none_or(|path| path == ""))
}

/// What the helper is to do at the two moments, as hooks for libcontainer.
fn order_of_hooks(
    order: &Create<'_>,
    home: &Home,
    bundle: &Bundle,
    cgroup_mount: Option<Value>,
    space: &Mounts,
) -> Value {
    let owner = nix::unistd::getppid().as_raw() as u32;
    let has = |moment: Moment| !hooks::of(&bundle.config, moment).is_empty();
    let helper = |moment: &str, more: Value| {
        let text = json!({
            "moment": moment, "home": home.folder, "id": order.id, "mounts": space.path(owner),
            "rootfs": bundle.rootfs, "cgroupMount": more,
        });
        json!([{ "path": order.helper, "args": ["coracle", "oci-helper", text.to_string()] }])
    };
    let mut wanted = json!({});
    if has(Moment::Prestart) || has(Moment::CreateRuntime) || cgroup_mount.is_some() {
        wanted["createRuntime"] = helper("createRuntime", cgroup_mount.unwrap_or_default());
    }
    if has(Moment::CreateContainer) {
        wanted["createContainer"] = helper("createContainer", Value::Null);
    }
    wanted
}

/// Hooks that run inside are all that the container needs to know of its configuration.
fn hooks_inside(config: &Value) -> Value {
    json!({ "hooks": { "startContainer": hooks::of(config, Moment::StartContainer) } })
}

/// Takes out what is done here, so that libcontainer does not do it again.
fn sanitize(config: &mut Value, bundle: &Bundle, process: &Prepared, hooks: &Value) {
    config["root"]["path"] = json!(bundle.rootfs);
    config["process"] = process.document.clone();
    if let Some(config) = config.as_object_mut() {
        config.remove("hooks");
    }
    if let Some(linux) = config["linux"].as_object_mut() {
        linux.remove("resources");
        linux.remove("seccomp");
        if let Some(propagation) = linux.get("rootfsPropagation").and_then(Value::as_str) {
            // libcontainer's are all recursive, and it knows no other names.
            let name = propagation.strip_prefix('r').unwrap_or(propagation).to_owned();
            linux.insert("rootfsPropagation".to_owned(), json!(name));
        }
    }
    if hooks.as_object().is_some_and(|it| !it.is_empty()) {
        config["hooks"] = hooks.clone();
    }
}

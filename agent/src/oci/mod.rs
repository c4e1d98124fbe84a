//! `coracle oci`, and this program under a name like `coracle-oci`: the command line of an OCI runtime, as runc's.

mod foreground;
mod log;
mod options;
mod show;
mod update;

use crate::cli::output;
use coracle_runtime::oci::bundle::Bundle;
use coracle_runtime::oci::{self, Change, Create, Exec, OciError};
use foreground::{Console, Signals};
pub use options::Options;
use options::Usage;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

/// Bytes of a file with a process or with limits.
const MAX_FILE: u64 = 1024 * 1024;

/// This program, whatever it is called and wherever it is mounted.
const SELF: &str = "/proc/self/exe";

/// Why a command failed, with its exit code.
#[derive(Debug)]
pub struct Problem {
    code: i32,
    message: String,
}

impl Problem {
    fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<OciError> for Problem {
    fn from(error: OciError) -> Self {
        Self::new(1, error.to_string())
    }
}

impl From<Usage> for Problem {
    fn from(usage: Usage) -> Self {
        Self::new(1, usage.0)
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Self::new(1, error.to_string())
    }
}

impl From<nix::errno::Errno> for Problem {
    fn from(errno: nix::errno::Errno) -> Self {
        Self::new(1, errno.desc())
    }
}

/// Whether this program was called as an OCI runtime; then the arguments behind.
pub fn called() -> Option<Vec<OsString>> {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let arguments: Vec<OsString> = arguments.collect();
    if name.starts_with("coracle-oci") {
        return Some(arguments);
    }
    match arguments.split_first() {
        Some((first, rest)) if first == "oci" => Some(rest.to_vec()),
        _ => None,
    }
}

/// Whether this program was started as a hook of its own; then the code to leave with.
pub fn called_as_helper() -> Option<u8> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some("oci-helper") {
        return None;
    }
    Some(match oci::helper(&arguments.next().unwrap_or_default()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    })
}

/// Runs the command line; the process's exit code.
pub fn main(arguments: Vec<OsString>) -> u8 {
    let options = match Options::parse(arguments) {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("coracle-oci: {}", usage.0);
            return 1;
        }
    };
    let protected = match options.command.as_str() {
        "create" | "run" | "exec" => coracle_runtime::own::protect()
            .map_err(|error| Problem::new(1, format!("keeping this program from being changed: {error}"))),
        _ => Ok(()),
    };
    let done = begin_log(&options).and(protected).and_then(|()| run(&options));
    let code = done.unwrap_or_else(|problem| {
        let message = coracle_runtime::one_line(&problem.message);
        tracing::error!("{message}");
        // The log is for engines; people read this.
        if options.log.is_some() {
            eprintln!("{message}");
        }
        problem.code
    });
    let _ = std::io::stdout().flush();
    u8::try_from(code).unwrap_or(255)
}

fn begin_log(options: &Options) -> Result<(), Problem> {
    let file = match &options.log {
        Some(path) => std::fs::File::options()
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| Problem::new(1, format!("--log {}: {error}", path.display())))?,
        None => {
            use std::os::fd::AsFd;
            std::io::stderr().as_fd().try_clone_to_owned()?.into()
        }
    };
    let form = match (&options.log, options.log_json) {
        (_, true) => log::Form::Json,
        (Some(_), false) => log::Form::Text,
        (None, false) => log::Form::Plain,
    };
    log::begin(file, form, options.debug);
    Ok(())
}

fn run(options: &Options) -> Result<i32, Problem> {
    match options.command.as_str() {
        "create" => {
            let bundle = Bundle::load(&options.bundle)?;
            create(options, &bundle, options.console_socket.as_deref())?;
        }
        "start" => oci::start(&options.root, options.id(1)?)?,
        "run" => return run_container(options),
        "exec" => return exec(options),
        "state" => show::state(options)?,
        "kill" => {
            let signal = options.rest.get(1).map_or(Ok(libc::SIGTERM), |it| options::signal(it))?;
            oci::signal(&options.root, options.id(2)?, signal, options.all)?;
        }
        "delete" => oci::delete(&options.root, options.id(1)?, options.force)?,
        "pause" => oci::pause(&options.root, options.id(1)?)?,
        "resume" => oci::resume(&options.root, options.id(1)?)?,
        "list" => show::list(options)?,
        "ps" => show::processes(options)?,
        "events" => show::events(options)?,
        "update" => oci::update(&options.root, options.id(1)?, &update::resources(options)?)?,
        "features" => say!("{:#}", oci::features::document()),
        "spec" => spec(options)?,
        "version" => say!("coracle-oci version {}\nspec: {}", env!("CARGO_PKG_VERSION"), oci::VERSION),
        _ => output::write(format_args!("{}", show::HELP)),
    }
    Ok(0)
}

fn create(options: &Options, bundle: &Bundle, console_socket: Option<&Path>) -> Result<oci::State, Problem> {
    Ok(oci::create(&Create {
        root: &options.root,
        id: options.id(1)?,
        bundle,
        console_socket,
        pid_file: options.pid_file.as_deref(),
        preserve_fds: options.preserve_fds,
        no_pivot: options.no_pivot,
        no_new_keyring: options.no_new_keyring,
        systemd_cgroup: options.systemd_cgroup,
        helper: Path::new(SELF),
    })?)
}

/// `run`: create, start, wait, delete.
fn run_container(options: &Options) -> Result<i32, Problem> {
    let id = options.id(1)?;
    let bundle = Bundle::load(&options.bundle)?;
    let terminal = bundle.config["process"]["terminal"] == true;
    let console = match (&options.console_socket, terminal && !options.detach) {
        (None, true) => Some(Console::open()?),
        _ => None,
    };
    if !options.detach && !options.no_subreaper {
        oci::take_orphans()?;
    }
    let own = console.as_ref().map(Console::path);
    let state = create(options, &bundle, own.as_deref().or(options.console_socket.as_deref()))?;
    let signals = (!options.detach).then(Signals::hold);
    let started = || -> Result<Option<_>, Problem> {
        let pump = console.as_ref().map(Console::attach).transpose()?;
        oci::start(&options.root, id)?;
        Ok(pump)
    };
    let pump = match started() {
        Ok(pump) => pump,
        Err(problem) => {
            let _ = oci::delete(&options.root, id, true);
            return Err(problem);
        }
    };
    let Some(signals) = signals else { return Ok(0) };
    let code = signals.wait(state.pid, pump);
    if !options.keep {
        oci::delete(&options.root, id, true)?;
    }
    Ok(code)
}

fn exec(options: &Options) -> Result<i32, Problem> {
    // As runc: a command that could not be run is told from one that ended with 1.
    let failed = |error: OciError| Problem::new(255, format!("exec failed: {error}"));
    let id = options.id(usize::MAX)?;
    let process = match &options.process {
        Some(path) => {
            let text = foreground::read(path, MAX_FILE)?;
            let process: serde_json::Value = serde_json::from_slice(&text)
                .map_err(|error| Problem::new(1, format!("{}: {error}", path.display())))?;
            Some(process)
        }
        None => None,
    };
    let args: Vec<String> = options.rest[1..].iter().skip_while(|it| *it == "--").cloned().collect();
    if process.is_none() && args.is_empty() {
        return Err(Problem::new(1, "exec takes a container ID and a command"));
    }
    let terminal = process.as_ref().map_or(options.tty, |process| process["terminal"] == true);
    let console = match (&options.console_socket, terminal && !options.detach) {
        (None, true) => Some(Console::open()?),
        _ => None,
    };
    if !options.detach {
        oci::take_orphans()?;
    }
    let own = console.as_ref().map(Console::path);
    let order = Exec {
        root: &options.root,
        id,
        change: Change {
            process,
            args,
            env: options.env.clone(),
            cwd: options.cwd.clone(),
            user: options.user,
            groups: options.groups.clone(),
            capabilities: options.capabilities.clone(),
            terminal,
            no_new_privileges: options.no_new_privileges,
            apparmor: options.apparmor.clone(),
        },
        console_socket: own.as_deref().or(options.console_socket.as_deref()),
        pid_file: options.pid_file.as_deref(),
        preserve_fds: options.preserve_fds,
        ignore_paused: options.ignore_paused,
        cgroup: options.cgroup.as_deref(),
    };
    let pid = oci::exec(&order).map_err(failed)?;
    if options.detach {
        return Ok(0);
    }
    let signals = Signals::hold();
    let pump = console.as_ref().map(Console::attach).transpose()?;
    Ok(signals.wait(pid, pump))
}

/// `spec`: a configuration to begin with.
fn spec(options: &Options) -> Result<(), Problem> {
    let path = options.bundle.join("config.json");
    let text = format!("{:#}\n", oci::template::config(options.rootless));
    let mut file = std::fs::File::options().write(true).create_new(true).open(&path).map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::AlreadyExists => "exists already; remove it first".to_owned(),
            _ => error.to_string(),
        };
        Problem::new(1, format!("{}: {reason}", path.display()))
    })?;
    Ok(file.write_all(text.as_bytes())?)
}

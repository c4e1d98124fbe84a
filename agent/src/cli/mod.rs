//! The command line: words with the meaning that they have in Docker Compose.

#[macro_use]
pub(crate) mod output;

mod config;
mod exec;
mod help;
pub(crate) mod options;
mod preload;
mod progress;
mod self_update;
mod service;
pub(crate) mod table;
pub(crate) mod terminal;
mod up;
mod view;

use crate::control::ClientError;
use crate::engine::Refusal;
use crate::exit::Code;
use options::{Options, Usage};
use std::io::Write;
use std::os::fd::AsFd;

/// Why a command failed, with the code for the shell.
#[derive(Debug)]
pub struct Failed {
    code: Code,
    message: String,
}

impl Failed {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Usage> for Failed {
    fn from(usage: Usage) -> Self {
        Self::new(Code::Configuration, usage.0)
    }
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code, refusal.message)
    }
}

impl From<coracle_compose::Refusals> for Failed {
    fn from(refusals: coracle_compose::Refusals) -> Self {
        Self::new(Code::Configuration, refusals.to_string())
    }
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(refusal) => refusal.into(),
            error => Self::new(Code::Internal, crate::engine::chain(&error)),
        }
    }
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Code::Internal, format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        // Whoever reads our output had enough.
        let code = if error.kind() == std::io::ErrorKind::BrokenPipe { Code::Done } else { Code::Internal };
        Self::new(code, error.to_string())
    }
}

type Done = Result<Code, Failed>;

/// Runs the command that the arguments name; the process's exit code.
pub fn main() -> u8 {
    let result = dispatch();
    let _ = std::io::stdout().flush();
    match result {
        Ok(code) => code.number(),
        Err(Failed { code: Code::Done, .. }) => 0,
        Err(failed) => {
            for line in failed.message.lines() {
                // At once: where this is the kernel's log, each write is a record.
                let _ = std::io::stderr().write_all(format!("coracle: {line}\n").as_bytes());
            }
            failed.code.number()
        }
    }
}

fn dispatch() -> Done {
    let mut arguments = lexopt::Parser::from_env();
    let command = match arguments.next().map_err(Usage::from)? {
        Some(lexopt::Arg::Value(command)) => command.to_string_lossy().into_owned(),
        Some(lexopt::Arg::Long("version") | lexopt::Arg::Short('V')) => "version".to_owned(),
        Some(lexopt::Arg::Long("help") | lexopt::Arg::Short('h')) | None => "help".to_owned(),
        Some(other) => return Err(Usage::from(other.unexpected()).into()),
    };
    if command == "help" {
        let about = arguments.next().map_err(Usage::from)?;
        let about = match about {
            Some(lexopt::Arg::Value(about)) => about.to_string_lossy().into_owned(),
            _ => String::new(),
        };
        return help::print(&about);
    }
    if help::about(&command).is_none() {
        return Err(Failed::new(
            Code::Configuration,
            format!("there is no command {command:?}; see `coracle help`"),
        ));
    }
    let options = match Options::parse(&command, arguments)? {
        Some(options) => options,
        None => return help::print(&command),
    };
    run(&command, &options)
}

fn run(command: &str, options: &Options) -> Done {
    match command {
        "agent" => agent(options),
        "shim" => shim(options),
        "up" => up::up(options),
        "down" => service::down(options),
        "stop" | "start" | "restart" => service::order(command, options),
        "ps" => view::ps(options),
        "logs" => view::logs(options),
        "config" => config::config(options),
        "plan" => config::plan(options),
        "pull" => view::pull(options),
        "import" => view::import(options),
        "preload" => preload::preload(options),
        "images" => view::images(options),
        "df" => view::df(options),
        "inspect" => view::inspect(options),
        "status" => view::status(options),
        "self-update" => self_update::self_update(options),
        "stats" => view::stats(options),
        "top" => view::top(options),
        "exec" => exec::exec(options),
        "shutdown" => service::shutdown(options),
        "completion" => help::completion(options),
        _ => {
            say!("coracle {}", env!("CARGO_PKG_VERSION"));
            Ok(Code::Done)
        }
    }
}

/// Logs to standard error, or to what it is now: in a container's first moments descriptor 2 is the container's own,
/// and what libcontainer says there must not get into the container's log.
fn log_to_stderr() -> Result<(), Failed> {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let level = match std::env::var("CORACLE_LOG").as_deref() {
        Ok("debug") => LevelFilter::DEBUG,
        Ok("warn") => LevelFilter::WARN,
        _ => LevelFilter::INFO,
    };
    let theirs = if level == LevelFilter::DEBUG { level } else { LevelFilter::ERROR };
    let targets =
        Targets::new().with_default(level).with_target("libcontainer", theirs).with_target("libcgroups", theirs);
    let stderr = std::fs::File::from(std::io::stderr().as_fd().try_clone_to_owned()?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::sync::Mutex::new(stderr)).with_ansi(false);
    tracing_subscriber::registry().with(lines).with(targets).init();
    Ok(())
}

/// The shim has one thread: no runtime is made before it.
fn shim(options: &Options) -> Done {
    coracle_runtime::own::protect().map_err(|error| {
        Failed::new(Code::Internal, format!("keeping this program from being changed: {error}"))
    })?;
    log_to_stderr()?;
    let run = &options.paths.run;
    options
        .state
        .map_or_else(|| coracle_runtime::shim::run(run), |state| coracle_runtime::shim::go_on(run, state))
        .map_err(|error| Failed::new(Code::Internal, crate::engine::chain(&error)))?;
    Ok(Code::Done)
}

fn agent(options: &Options) -> Done {
    log_to_stderr()?;
    crate::run_agent(options.paths.clone(), options.mode)?;
    Ok(Code::Done)
}

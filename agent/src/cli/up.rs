//! `up`: hand the project to the agent, start one when there is none, and see it through.

use super::options::{Options, is_folder};
use super::progress::{Ending, follow};
use super::{Done, Failed, config, service, view};
use crate::control::{Agent, LogRequest, Reply, Request};
use crate::engine::ANOTHER;
use crate::exit::Code;
use crate::paths::Paths;
use crate::target::{Registries, Wanted};
use coracle_compose::Loaded;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Looks for an agent that was just started, and the pause between two: it checks its store before it listens.
const TRIES: u32 = 500;
const TRY_PAUSE: Duration = Duration::from_millis(20);

/// Bytes of the agent's log that are added to; a larger one is put aside when an agent starts. It lies in memory.
const MAX_LOG: u64 = 256 * 1024;

pub fn up(options: &Options) -> Done {
    let mut options = options.clone();
    take_folder(&mut options);
    let loaded = load(&options)?;
    if let Some(service) = loaded.needs_builder.first() {
        return Err(Failed::new(
            Code::Configuration,
            format!(
                "services.{service}.build: nothing is built here; build it elsewhere and give the service an image, or use --image {service}=REFERENCE"
            ),
        ));
    }
    let project = loaded.project.name.clone();
    let wanted = wanted(&options, loaded)?;
    let started_here = ensure_agent(&options.paths)?;
    let request = Request::Up { wanted: Box::new(wanted), recreate: options.recreate, pull: options.pull };
    let (order, steps) = match Agent::ask(&options.paths, &request)?.answer()? {
        Some(Reply::Taken { order, plan }) => (order, plan.steps),
        _ => return Err(Failed::new(Code::Internal, "the agent gave an answer of another kind")),
    };
    if !steps.iter().any(|step| step.concerns(&project)) {
        eprintln!("{project}: nothing to do");
    }
    let ending = if options.wait { Ending::Healthy } else { Ending::Settled };
    let code = follow(&options.paths, &project, order, ending)?;
    if options.detach || code != Code::Done {
        return Ok(code);
    }
    stay(&options, &project, started_here)
}

/// Shows logs until Ctrl-C, then stops the services.
fn stay(options: &Options, project: &str, started_here: bool) -> Done {
    let request = LogRequest { project: project.to_owned(), follow: true, ..LogRequest::default() };
    let mut agent = Agent::ask(&options.paths, &Request::Logs(request))?;
    let connection = agent.hang_up()?;
    service::on_interrupt(move || drop(connection.shutdown(std::net::Shutdown::Both)))?;
    let mut printer = view::LogPrinter::new(options);
    // Ends by Ctrl-C, or when no service runs any more.
    while let Ok(Some(reply)) = agent.answer() {
        if let Reply::Log(line) = reply {
            printer.print(&line)?;
        }
    }
    eprintln!("stopping {project}");
    let request = Request::Stop { project: project.to_owned(), services: Vec::new() };
    let code = service::give(&options.paths, project, &request)?;
    if started_here {
        // The shim ends too when nothing runs in another project.
        Agent::ask(&options.paths, &Request::Shutdown)?.answer()?;
    }
    Ok(code)
}

/// `up FOLDER`: a first argument that is a folder names the project.
pub fn take_folder(options: &mut Options) {
    if options.rest.first().is_some_and(|first| is_folder(first)) && options.files.is_empty() {
        options.folder = Some(PathBuf::from(options.rest.remove(0)));
    }
}

/// Loads the project, and prints what a reader should know.
pub fn load(options: &Options) -> Result<Loaded, Failed> {
    let loaded = coracle_compose::load(&config::load_options(options)?)?;
    for notice in &loaded.warnings {
        eprintln!("warning: {notice}");
    }
    crate::wanted::check_profiles(&loaded.project).map_err(|reason| Failed::new(Code::Configuration, reason))?;
    Ok(loaded)
}

/// The project as the agent takes it.
pub fn wanted(options: &Options, loaded: Loaded) -> Result<Wanted, Failed> {
    let registries = registries(options);
    let file = std::path::absolute(&loaded.file).unwrap_or(loaded.file);
    Ok(Wanted { project: loaded.project, file, registries, ..Wanted::default() })
}

/// How registries are reached.
pub fn registries(options: &Options) -> Registries {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker/config.json"));
    Registries {
        plain_http: options.plain_http.clone(),
        ca_files: options.ca_files.clone(),
        docker_config: options.docker_config.clone().or(home.filter(|path| path.exists())),
    }
}

/// Starts an agent in the background when none answers; true when it did.
pub fn ensure_agent(paths: &Paths) -> Result<bool, Failed> {
    if Agent::status(paths).is_ok() {
        return Ok(false);
    }
    paths.make().map_err(|error| {
        Failed::new(Code::Internal, format!("using {} and {}: {error}", paths.data.display(), paths.run.display()))
    })?;
    let mut child = spawn_agent(paths)?;
    for _ in 0..TRIES {
        if Agent::status(paths).is_ok() {
            return Ok(true);
        }
        if let Some(status) = child.try_wait()? {
            let text = std::fs::read_to_string(agent_log(paths)).unwrap_or_default();
            let last = text.lines().last().unwrap_or_default();
            if !last.contains(ANOTHER) {
                return Err(Failed::new(Code::Internal, format!("the agent ended at once ({status}): {last}")));
            }
            // One that was started at the same moment will answer, or is at its end.
            std::thread::sleep(TRY_PAUSE);
            child = spawn_agent(paths)?;
        }
        std::thread::sleep(TRY_PAUSE);
    }
    let log = agent_log(paths);
    Err(Failed::new(Code::Internal, format!("the agent does not answer; its log is {}", log.display())))
}

fn agent_log(paths: &Paths) -> PathBuf {
    paths.run.join("agent.log")
}

fn spawn_agent(paths: &Paths) -> Result<std::process::Child, Failed> {
    let log = agent_log(paths);
    if std::fs::metadata(&log).is_ok_and(|it| it.len() > MAX_LOG) {
        std::fs::rename(&log, log.with_extension("log.old"))?;
    }
    let child = Command::new(std::env::current_exe()?)
        .arg("agent")
        .arg("--data")
        .arg(&paths.data)
        .arg("--run")
        .arg(&paths.run)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::OpenOptions::new().append(true).create(true).open(&log)?)
        .process_group(0)
        .spawn()?;
    Ok(child)
}

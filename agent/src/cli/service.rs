//! Orders about a project that runs: `down`, `stop`, `start`, `restart`, `shutdown`.

use super::options::Options;
use super::progress::{Ending, follow};
use super::{Done, Failed, config, up};
use crate::control::{Agent, Reply, Request};
use crate::exit::Code;
use crate::paths::Paths;
use nix::sys::signal::{SigSet, Signal};

pub fn down(options: &Options) -> Done {
    let mut options = options.clone();
    up::take_folder(&mut options);
    let project = project_name(&options)?;
    let request = Request::Down { project: project.clone(), volumes: options.volumes };
    give(&options.paths, &project, &request)
}

pub fn order(command: &str, options: &Options) -> Done {
    let project = project_name(options)?;
    let services = options.rest.clone();
    let request = match command {
        "stop" => Request::Stop { project: project.clone(), services },
        "start" => Request::Start { project: project.clone(), services },
        _ => Request::Restart { project: project.clone(), services },
    };
    give(&options.paths, &project, &request)
}

pub fn shutdown(options: &Options) -> Done {
    Agent::ask(&options.paths, &Request::Shutdown)?.answer()?;
    Ok(Code::Done)
}

/// Gives an order and sees it through.
pub fn give(paths: &Paths, project: &str, request: &Request) -> Done {
    match Agent::ask(paths, request)?.answer()? {
        Some(Reply::Taken { order, .. }) => follow(paths, project, order, Ending::Settled),
        _ => Err(Failed::new(Code::Internal, "the agent gave an answer of another kind")),
    }
}

/// The project that is meant: named, that of the file here, or the only one that runs.
pub fn project_name(options: &Options) -> Result<String, Failed> {
    if let Some(project) = &options.project {
        return Ok(project.clone());
    }
    match coracle_compose::load(&config::load_options(options)?) {
        Ok(loaded) => Ok(loaded.project.name),
        Err(refusals) => {
            let named = !options.files.is_empty() || options.folder.is_some();
            let projects: Vec<String> = match Agent::status(&options.paths) {
                Ok(status) if !named => status.projects.into_keys().collect(),
                _ => Vec::new(),
            };
            match projects.as_slice() {
                [only] => Ok(only.clone()),
                [] => Err(refusals.into()),
                several => {
                    Err(Failed::new(Code::Configuration, format!("which project? -p {}", several.join(", -p "))))
                }
            }
        }
    }
}

/// Runs `work` in a thread at the first Ctrl-C or SIGTERM; the second one ends the program.
pub fn on_interrupt(work: impl FnOnce() + Send + 'static) -> Result<(), Failed> {
    let mask = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    mask.thread_block().map_err(|errno| Failed::new(Code::Internal, errno.desc()))?;
    std::thread::spawn(move || {
        if mask.wait().is_ok() {
            work();
        }
        if mask.wait().is_ok() {
            std::process::exit(130);
        }
    });
    Ok(())
}

//! `exec`: the command line talks to the shim itself, with its own descriptors; the agent only says which container.

use super::options::Options;
use super::service::project_name;
use super::{Done, Failed};
use crate::control::Agent;
use crate::exit::Code;
use coracle_runtime::container::ExecSpec;
use coracle_runtime::container::cgroup::Kills;
use coracle_runtime::shim::{Client, Event, Reply, Request};
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Time that the shim may take to begin the command.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(30);

pub fn exec(options: &Options) -> Done {
    let Some((service, args)) = options.rest.split_first().filter(|(_, args)| !args.is_empty()) else {
        return Err(Failed::new(Code::Configuration, "exec takes a service and a command"));
    };
    let project = project_name(options)?;
    let status = Agent::status(&options.paths)?;
    let container = status
        .projects
        .get(&project)
        .and_then(|project| project.services.get(service))
        .ok_or_else(|| Failed::new(Code::NotFound, format!("project {project} has no service {service}")))?;
    if container.pid.is_none() {
        return Err(Failed::new(Code::NotFound, format!("service {service} does not run")));
    }
    let tty = options.tty.unwrap_or_else(|| std::io::stdin().is_terminal() && std::io::stdout().is_terminal());
    let spec = ExecSpec {
        args: args.to_vec(),
        env: options.env.clone(),
        cwd: options.workdir.clone(),
        user: options.user.clone(),
        tty,
        terminal_size: coracle_runtime::terminal::size(std::io::stdin().as_fd()).filter(|_| tty),
        privileged: options.privileged,
        contained: false,
    };
    let request = Request::Exec {
        id: container.container.clone(),
        spec: serde_json::to_vec(&spec).map_err(anyhow::Error::from)?,
        timeout: BEGIN_TIMEOUT,
        limit: None,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let kills = Kills::of(&container.cgroup);
    let code = runtime.block_on(run(options, request, tty))?;
    if let Some(shortage) = kills.killed(code) {
        eprintln!("coracle: the command was killed, out of memory: {shortage}");
    }
    std::process::exit(code);
}

async fn run(options: &Options, request: Request, tty: bool) -> Result<i32, Failed> {
    let failed = |error: coracle_runtime::shim::ClientError| {
        use coracle_runtime::shim::{ClientError, FailureKind};
        match error {
            ClientError::Failed(failure) => match failure.kind {
                FailureKind::NotRunnable { code } => {
                    eprintln!("coracle: {}", failure.message);
                    std::process::exit(code);
                }
                FailureKind::NotFound => Failed::new(Code::NotFound, failure.message),
                FailureKind::Refused => Failed::new(Code::Configuration, failure.message),
                _ => Failed::new(Code::Internal, failure.message),
            },
            error => Failed::new(Code::Internal, crate::engine::chain(&error)),
        }
    };
    let mut connection = Client::connect(&options.paths.shim_socket()).await.map_err(failed)?;
    let client = connection.client.clone();
    client.tell(Request::Subscribe, &[]).await.map_err(failed)?;
    let stdio = [0, 1, 2];
    let descriptors: &[i32] = if tty { &[] } else { &stdio };
    let (reply, terminal) = client.ask(request, descriptors).await.map_err(failed)?;
    let Reply::ExecStarted { exec, .. } = reply else {
        return Err(Failed::new(Code::Internal, "the shim gave an answer of another kind"));
    };
    let mut pump = match terminal.into_iter().next() {
        Some(terminal) => Some(super::terminal::attach(terminal)?),
        None => None,
    };
    let mut resized = signal(SignalKind::window_change()).map_err(anyhow::Error::from)?;
    loop {
        let event = tokio::select! {
            event = connection.events.recv() => event,
            _ = resized.recv() => {
                pump.iter().for_each(super::terminal::Pump::resize);
                continue;
            }
        };
        match event {
            Some(Event::ExecEnded { exec: ended, exit, .. }) if ended == exec => {
                pump.iter_mut().for_each(super::terminal::Pump::show_the_rest);
                return Ok(exit.code);
            }
            Some(_) => {}
            None => break,
        }
    }
    Err(Failed::new(Code::Internal, "the shim is gone"))
}

//! What is: `ps`, `logs`, `images`, `pull`, `df`, `inspect`, `stats`, `top`.

use super::options::Options;
use super::service::project_name;
use super::{Done, Failed, config, table, up};
use crate::clock::{rfc3339, unix_now};
use crate::control::{Agent, ImageInfo, LogLine, LogRequest, Reply, Request};
use crate::current::Health;
use crate::exit::Code;
use crate::status::{ProjectStatus, ServiceStatus};
use crate::usage::{self, Usage};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

/// Between two looks of `stats`.
const STATS_PAUSE: Duration = Duration::from_secs(2);

/// Colours of service names on a terminal (ECMA-48 SGR 31 to 36).
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

fn json(value: &impl serde::Serialize) -> Result<(), Failed> {
    say!("{}", serde_json::to_string(value).map_err(anyhow::Error::from)?);
    Ok(())
}

/// The project and its services, those named or all.
fn project(options: &Options) -> Result<(String, ProjectStatus), Failed> {
    let name = project_name(options)?;
    let status = Agent::status(&options.paths)?;
    let mut project = status
        .projects
        .get(&name)
        .cloned()
        .ok_or_else(|| Failed::new(Code::NotFound, format!("there is no project {name}")))?;
    if let Some(unknown) = options.rest.iter().find(|service| !project.services.contains_key(*service)) {
        return Err(Failed::new(Code::NotFound, format!("project {name} has no service {unknown}")));
    }
    project.services.retain(|service, _| options.rest.is_empty() || options.rest.contains(service));
    Ok((name, project))
}

pub fn ps(options: &Options) -> Done {
    let mut options = options.clone();
    up::take_folder(&mut options);
    let (_, project) = project(&options)?;
    if options.json {
        json(&project)?;
        return Ok(Code::Done);
    }
    if options.services {
        project.services.keys().for_each(|name| say!("{name}"));
        return Ok(Code::Done);
    }
    if options.quiet {
        project.services.values().for_each(|service| say!("{}", service.container));
        return Ok(Code::Done);
    }
    let rows: Vec<Vec<String>> = project
        .services
        .iter()
        .map(|(name, service)| {
            vec![
                name.clone(),
                service.image.clone(),
                state(service),
                service.ports.join(", "),
                service.waits.join("; "),
            ]
        })
        .collect();
    table::print(&["SERVICE", "IMAGE", "STATE", "PORTS", "WAITS"], &rows);
    let status = Agent::status(&options.paths)?;
    status.notices.iter().for_each(|notice| say!("note: {notice}"));
    status.lacks.iter().for_each(|lack| say!("board: {lack}"));
    Ok(Code::Done)
}

fn state(service: &ServiceStatus) -> String {
    let health = match service.health {
        Health::None => "",
        Health::Starting => " (starting)",
        Health::Healthy => " (healthy)",
        Health::Unhealthy => " (unhealthy)",
    };
    match (service.state.as_str(), service.started, service.exits.last()) {
        ("running", Some(started), _) => {
            let again =
                if service.restarts > 0 { format!(", {} restarts", service.restarts) } else { String::new() };
            let killed = match service.last_oom_kill {
                Some(at) => {
                    let ago = table::span(unix_now().saturating_sub(at));
                    format!(", {} killed for want of memory, last {ago} ago", service.oom_kills)
                }
                None => String::new(),
            };
            format!("running {}{health}{again}{killed}", table::span(unix_now().saturating_sub(started)))
        }
        ("exited", _, Some(exit)) => {
            use crate::engine::Reason;
            let why = match exit.reason {
                Reason::Exited if exit.oom_kills > 0 => {
                    format!("exited {}, {} killed for want of memory", exit.code, exit.oom_kills)
                }
                Reason::Exited => format!("exited {}", exit.code),
                Reason::Oom => format!("exited {}, out of memory: {}", exit.code, exit.detail),
                Reason::Killed => format!("exited {}, killed", exit.code),
                Reason::Stopped => format!("stopped ({})", exit.code),
                Reason::NotRunnable => format!("cannot be run ({}): {}", exit.code, exit.detail),
            };
            format!("{why}, {} ago", table::span(unix_now().saturating_sub(exit.unix)))
        }
        (state, ..) => state.to_owned(),
    }
}

/// Prints log lines as people or programs want them.
pub struct LogPrinter {
    json: bool,
    prefix: bool,
    timestamps: bool,
    colours: bool,
    services: BTreeMap<String, u8>,
    /// A line whose end has not come, by service.
    open: Option<String>,
}

impl LogPrinter {
    /// As the options say.
    pub fn new(options: &Options) -> Self {
        Self {
            json: options.json,
            prefix: !options.no_prefix,
            timestamps: options.timestamps,
            colours: std::io::stdout().is_terminal(),
            services: BTreeMap::new(),
            open: None,
        }
    }

    /// Prints a line.
    pub fn print(&mut self, line: &LogLine) -> Result<(), Failed> {
        if self.json {
            say!("{}", serde_json::to_string(line).map_err(anyhow::Error::from)?);
            return Ok(());
        }
        if line.dropped > 0 {
            eprintln!("{}: {} bytes were dropped here", line.service, line.dropped);
        }
        let continued = self.open.take().is_some_and(|open| open == line.service && line.continues);
        let head = if continued { String::new() } else { self.head(line) };
        say!("{head}{}", line.text);
        Ok(())
    }

    fn head(&mut self, line: &LogLine) -> String {
        let mut head = String::new();
        if self.prefix {
            let count = self.services.len();
            let number = *self.services.entry(line.service.clone()).or_insert(count as u8);
            let colour = COLOURS[usize::from(number) % COLOURS.len()];
            head = match self.colours {
                true => format!("\x1b[{colour}m{} |\x1b[0m ", line.service),
                false => format!("{} | ", line.service),
            };
        }
        if self.timestamps {
            head = format!("{head}{} ", rfc3339(line.unix_ns, 9));
        }
        head
    }
}

pub fn logs(options: &Options) -> Done {
    let request = LogRequest {
        project: project_name(options)?,
        services: options.rest.clone(),
        follow: options.follow,
        tail: options.tail,
        since: options.since,
        until: options.until,
    };
    let mut agent = Agent::ask(&options.paths, &Request::Logs(request))?;
    let mut printer = LogPrinter::new(options);
    while let Some(reply) = agent.answer()? {
        if let Reply::Log(line) = reply {
            printer.print(&line)?;
        }
    }
    Ok(Code::Done)
}

pub fn pull(options: &Options) -> Done {
    let mut options = options.clone();
    let named = options.rest.first().is_some_and(|first| !config::is_path(first));
    let images = if named {
        options.rest.clone()
    } else {
        up::take_folder(&mut options);
        let project = up::load(&options)?.project;
        project.services.values().filter_map(|service| service.image.clone()).collect()
    };
    let registries = up::registries(&options);
    let started_here = up::ensure_agent(&options.paths)?;
    let result = show_pull(&options, &Request::Pull { images, registries });
    if started_here {
        Agent::ask(&options.paths, &Request::Shutdown)?.answer()?;
    }
    result
}

pub fn import(options: &Options) -> Done {
    let [path] = options.rest.as_slice() else {
        return Err(Failed::new(Code::Configuration, "import takes one archive or folder"));
    };
    let path = std::path::absolute(path)?;
    let started_here = up::ensure_agent(&options.paths)?;
    let result = show_pull(options, &Request::Import { path, name: options.name.clone() });
    if started_here {
        Agent::ask(&options.paths, &Request::Shutdown)?.answer()?;
    }
    result
}

pub fn show_pull(options: &Options, request: &Request) -> Done {
    let mut agent = Agent::ask(&options.paths, request)?;
    let live = std::io::stderr().is_terminal();
    while let Some(reply) = agent.answer()? {
        match reply {
            Reply::Progress { image, done, total } if live => {
                eprint!("\r\x1b[K{image} {}/{}", table::bytes(done), table::bytes(total));
            }
            Reply::Image(image) if options.json => json(&image)?,
            Reply::Image(image) => {
                if live {
                    eprint!("\r\x1b[K");
                }
                say!("{} {}", image.name, image.digest);
            }
            _ => {}
        }
    }
    Ok(Code::Done)
}

pub fn images(options: &Options) -> Done {
    let mut agent = Agent::ask(&options.paths, &Request::Images)?;
    let mut images: Vec<ImageInfo> = Vec::new();
    while let Some(reply) = agent.answer()? {
        if let Reply::Image(image) = reply {
            images.push(image);
        }
    }
    if options.json {
        json(&images)?;
        return Ok(Code::Done);
    }
    let short = |digest: &str| digest.trim_start_matches("sha256:").chars().take(12).collect::<String>();
    let rows: Vec<Vec<String>> = images
        .iter()
        .map(|image| {
            vec![
                image.name.clone(),
                short(&image.digest),
                image.platform.clone(),
                image.layers.to_string(),
                table::bytes(image.size),
            ]
        })
        .collect();
    table::print(&["IMAGE", "DIGEST", "PLATFORM", "LAYERS", "SIZE"], &rows);
    Ok(Code::Done)
}

pub fn df(options: &Options) -> Done {
    if options.free {
        let Some(Reply::Taken { .. }) = Agent::ask(&options.paths, &Request::Free)?.answer()? else {
            return Err(Failed::new(Code::Internal, "the agent gave an answer of another kind"));
        };
        wait_until_freed(options)?;
    }
    let Some(Reply::Usage(usage)) = Agent::ask(&options.paths, &Request::Usage)?.answer()? else {
        return Err(Failed::new(Code::Internal, "the agent gave an answer of another kind"));
    };
    if options.json {
        json(&usage)?;
        return Ok(Code::Done);
    }
    let sum = |list: &[(String, u64)]| list.iter().map(|(_, bytes)| bytes).sum::<u64>();
    let row = |what: &str, bytes: u64, detail: String| vec![what.to_owned(), table::bytes(bytes), detail];
    let mut rows = vec![row("layers", usage.images.layers, String::new())];
    for image in &usage.images.images {
        let name = image.names.first().unwrap_or(&image.digest);
        let detail = format!("and {} shared", table::bytes(image.shared));
        rows.push(row(&format!("  {name}"), image.own, detail));
    }
    rows.push(row("manifests", usage.images.blobs, String::new()));
    rows.push(row("writable layers", sum(&usage.containers), String::new()));
    usage.containers.iter().for_each(|(name, bytes)| rows.push(row(&format!("  {name}"), *bytes, String::new())));
    rows.push(row("volumes", sum(&usage.volumes), String::new()));
    usage.volumes.iter().for_each(|(name, bytes)| rows.push(row(&format!("  {name}"), *bytes, String::new())));
    rows.push(row("staging", usage.staging + usage.images.staging, String::new()));
    rows.push(row("other", usage.other, String::new()));
    rows.push(row("logs", sum(&usage.logs), "others are in memory".to_owned()));
    usage.logs.iter().for_each(|(name, bytes)| rows.push(row(&format!("  {name}"), *bytes, String::new())));
    rows.push(row("`df --free` frees", usage.freeable, String::new()));
    rows.push(row("free on the disk", usage.available, String::new()));
    table::print(&["WHAT", "BYTES", ""], &rows);
    Ok(Code::Done)
}

/// The removal is a step like others: it is waited for.
fn wait_until_freed(options: &Options) -> Result<(), Failed> {
    let mut agent = Agent::ask(&options.paths, &Request::Watch)?;
    let is_removal = |key: &str| key == "remove unused images";
    while let Some(Reply::Status(status)) = agent.answer()? {
        let planned = status.steps.iter().any(|step| is_removal(&step.action.key()));
        if !planned && !status.running.iter().any(|step| is_removal(&step.key)) {
            break;
        }
    }
    Ok(())
}

pub fn inspect(options: &Options) -> Done {
    let (name, project) = project(options)?;
    let status = Agent::status(&options.paths)?;
    let document = serde_json::json!({
        "project": name,
        "file": project.file,
        "services": project.services,
        "failures": status.failures,
        "rules_repaired": status.rules_repaired,
        "agent": { "version": status.version, "pid": status.pid, "shim_pid": status.shim_pid },
    });
    say!("{}", serde_json::to_string_pretty(&document).map_err(anyhow::Error::from)?);
    Ok(Code::Done)
}

/// Everything that the agent tells about itself, as JSON.
pub fn status(options: &Options) -> Done {
    json(&Agent::status(&options.paths)?)?;
    Ok(Code::Done)
}

pub fn stats(options: &Options) -> Done {
    let look = || -> Result<BTreeMap<String, Usage>, Failed> {
        let (_, project) = project(options)?;
        let running = project.services.into_iter().filter(|(_, service)| service.pid.is_some());
        Ok(running.map(|(name, service)| (name, usage::read(&service.cgroup))).collect())
    };
    let mut before = look()?;
    loop {
        let pause = if options.once { STATS_PAUSE / 4 } else { STATS_PAUSE };
        std::thread::sleep(pause);
        let now = look()?;
        let load = |name: &str, usage: &Usage| {
            let earlier = before.get(name).map_or(usage.cpu, |it| it.cpu);
            usage.cpu.saturating_sub(earlier).as_secs_f64() / pause.as_secs_f64() * 100.0
        };
        if options.json {
            let document: BTreeMap<&String, serde_json::Value> = now
                .iter()
                .map(|(name, usage)| {
                    let percent = load(name, usage);
                    (name, serde_json::json!({ "cpu_percent": percent, "usage": usage }))
                })
                .collect();
            json(&document)?;
        } else {
            let limit = |limit: Option<u64>| limit.map_or("-".to_owned(), table::bytes);
            let rows: Vec<Vec<String>> = now
                .iter()
                .map(|(name, usage)| {
                    vec![
                        name.clone(),
                        format!("{:.1}%", load(name, usage)),
                        table::bytes(usage.memory),
                        limit(usage.memory_limit),
                        usage.tasks.to_string(),
                    ]
                })
                .collect();
            if !options.once && std::io::stdout().is_terminal() {
                say_part!("\x1b[H\x1b[2J");
            }
            table::print(&["SERVICE", "CPU", "MEMORY", "LIMIT", "TASKS"], &rows);
        }
        if options.once {
            return Ok(Code::Done);
        }
        before = now;
    }
}

pub fn top(options: &Options) -> Done {
    let (_, project) = project(options)?;
    let mut rows = Vec::new();
    for (name, service) in &project.services {
        for process in usage::processes(&service.cgroup) {
            rows.push(vec![
                name.clone(),
                process.pid.to_string(),
                process.user.to_string(),
                table::bytes(process.memory),
                process.command,
            ]);
        }
    }
    table::print(&["SERVICE", "PID", "UID", "MEMORY", "COMMAND"], &rows);
    Ok(Code::Done)
}

//! Shows how far a project is: bytes and rates on a terminal, a line for each change elsewhere.

use super::Failed;
use crate::control::{Agent, Reply, Request};
use crate::exit::Code;
use crate::paths::Paths;
use crate::plan::{Step, Wait};
use crate::status::Status;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// When it is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// No step is left.
    Settled,
    /// Every service runs, and is healthy when it has a check; or ended with 0.
    Healthy,
}

/// Follows a project from an order on until it is as wanted, or cannot be.
pub fn follow(paths: &Paths, project: &str, order: u64, ending: Ending) -> Result<Code, Failed> {
    let mut agent = Agent::ask(paths, &Request::Watch)?;
    let mut screen = Screen::default();
    while let Some(reply) = agent.answer()? {
        let Reply::Status(status) = reply else { continue };
        if status.order < order {
            continue;
        }
        screen.show(project, &status);
        if let Some(code) = verdict(project, &status, ending, &mut screen) {
            return Ok(code);
        }
    }
    Err(Failed::new(Code::Internal, "the agent ended"))
}

fn verdict(project: &str, status: &Status, ending: Ending, screen: &mut Screen) -> Option<Code> {
    let problems: Vec<_> = status.problems.iter().filter(|problem| problem.project == project).collect();
    if !problems.is_empty() {
        problems.iter().for_each(|problem| screen.line(&problem.to_string()));
        return Some(Code::Configuration);
    }
    if let Some(stuck) = status.stuck(project) {
        let mut code = Code::Stuck;
        for step in stuck {
            screen.line(&explain(step));
            let failure = status.failures.iter().find(|failure| failure.key == step.action.key());
            code = failure.map_or(code, |failure| failure.code);
        }
        return Some(code);
    }
    if let Some(full) = status.without_space(project) {
        for step in full {
            screen.line(&format!(
                "{}; goes on by itself when there is space, `coracle df` shows what takes it",
                explain(step)
            ));
        }
        return Some(Code::NoSpace);
    }
    if !status.is_settled(project) {
        return None;
    }
    let services = status.projects.get(project).map(|it| &it.services);
    let services = services.into_iter().flatten().filter(|(_, service)| !service.stopped);
    for (name, service) in services {
        use crate::current::Health;
        let ready = match (service.state.as_str(), service.health) {
            ("running", Health::None | Health::Healthy) | ("exited", _) => true,
            ("running", Health::Unhealthy) if ending == Ending::Healthy => {
                screen.line(&format!("{name}: unhealthy: {}", service.health_output));
                return Some(Code::Stuck);
            }
            _ => ending == Ending::Settled,
        };
        if !ready {
            return None;
        }
        let failed = service.exit_code.is_some_and(|code| code != 0) && service.state == "exited";
        if failed {
            let last = service.exits.last();
            let why = last.map(|exit| exit.detail.clone()).filter(|it| !it.is_empty());
            let code = service.exit_code.unwrap_or_default();
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            screen.line(&format!("{name}: exited {code}{why}"));
            if ending == Ending::Healthy {
                return Some(Code::Stuck);
            }
        }
    }
    Some(Code::Done)
}

/// A step and what it waits for, for a person.
pub fn explain(step: &Step) -> String {
    let name = match &step.action {
        crate::plan::Action::Start { service, .. } => service.clone(),
        action => action.key(),
    };
    let waits: Vec<String> = step
        .waits
        .iter()
        .filter(|wait| !matches!(wait, Wait::After(_) | Wait::RunsAfter(_)) || step.waits.len() == 1)
        .map(ToString::to_string)
        .collect();
    if waits.is_empty() { name } else { format!("{name} {}", waits.join("; ")) }
}

/// What was shown already.
#[derive(Default)]
struct Screen {
    running: BTreeMap<String, (Instant, u64)>,
    told: BTreeSet<String>,
    live: bool,
}

impl Screen {
    fn show(&mut self, project: &str, status: &Status) {
        let running: BTreeSet<&str> = status.running.iter().map(|step| step.key.as_str()).collect();
        let ended: Vec<String> =
            self.running.keys().filter(|key| !running.contains(key.as_str())).cloned().collect();
        for key in ended {
            self.running.remove(&key);
            let failed = status.failures.iter().find(|failure| failure.key == key);
            match failed {
                Some(failure) => self.line(&format!("{key}: failed: {}", failure.reason)),
                None => self.line(&format!("{key}: done")),
            }
        }
        for step in &status.running {
            if !self.running.contains_key(&step.key) {
                self.running.insert(step.key.clone(), (Instant::now(), 0));
                if !step.key.starts_with("stop ") || step.bytes.is_some() {
                    continue;
                }
                self.line(&step.key);
            }
        }
        for step in status.pending(project) {
            let told = explain(step);
            let waits = step.waits.iter().any(|wait| !matches!(wait, Wait::After(_) | Wait::RunsAfter(_)));
            if waits && !self.told.contains(&step.action.key()) {
                self.told.insert(step.action.key());
                self.line(&told);
            }
        }
        if std::io::stderr().is_terminal() {
            self.show_bytes(status);
        }
    }

    fn show_bytes(&mut self, status: &Status) {
        let Some((step, (done, total))) =
            status.running.iter().find_map(|step| step.bytes.map(|bytes| (step, bytes)))
        else {
            return self.clear();
        };
        let Some((since, _)) = self.running.get(&step.key) else { return };
        let seconds = since.elapsed().as_secs_f64().max(0.001);
        let line = format!(
            "{} {}/{} {}/s",
            step.key,
            super::table::bytes(done),
            super::table::bytes(total),
            super::table::bytes((done as f64 / seconds) as u64)
        );
        self.live = true;
        // Nobody looks at a terminal that is gone.
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.live) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    fn line(&mut self, line: &str) {
        self.clear();
        eprintln!("{line}");
    }
}

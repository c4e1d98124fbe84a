//! What people want: orders change the target, whole or not at all.

use super::Engine;
use crate::clock::boot_now;
use crate::exit::Code;
use crate::plan::{self, Plan};
use crate::target::{Target, Wanted};
use coracle_runtime::image::Reference;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// An order.
#[derive(Debug)]
pub enum Order {
    /// A project is wanted.
    Up {
        /// The project.
        wanted: Box<Wanted>,
        /// All of its containers are made anew.
        recreate: bool,
        /// Its images are asked for again.
        pull: bool,
    },
    /// A project is not wanted any more.
    Down {
        /// The project.
        project: String,
        /// Its volumes go too.
        volumes: bool,
    },
    /// Services are stopped by hand; none named: all.
    Stop(String, Vec<String>),
    /// Services that were stopped by hand are wanted again.
    Start(String, Vec<String>),
    /// Services are stopped and started.
    Restart(String, Vec<String>),
    /// Images stay although no project wants them.
    Keep(Vec<String>),
    /// Images that nobody wants go, also those that were kept.
    Free,
    /// A plan for a project, without taking it.
    Plan(Box<Wanted>),
}

/// An order was taken.
#[derive(Debug)]
pub struct Taken {
    /// Its number.
    pub order: u64,
    /// The plan as it is then.
    pub plan: Plan,
}

/// Why an order was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For the shell.
    pub code: Code,
    /// For a person, one line or more.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl Engine {
    pub(super) fn take_order(&mut self, order: Order) -> Result<Taken, Refusal> {
        // What changed a moment ago may not have been told yet, and now ranges may be chosen.
        self.look_at_routes();
        if let Order::Plan(wanted) = order {
            let mut target = self.target.clone();
            put(&mut target, *wanted);
            let plan = plan::plan(&self.current(), &target, boot_now());
            return Ok(Taken { order: self.order, plan });
        }
        let mut target = self.target.clone();
        match order {
            Order::Up { wanted, recreate, pull } => self.up(&mut target, *wanted, recreate, pull)?,
            Order::Down { project, volumes } => down(&mut target, &project, volumes)?,
            Order::Stop(project, services) => {
                let (wanted, services) = chosen(&mut target, &project, services)?;
                wanted.stopped.extend(services);
            }
            Order::Start(project, services) => {
                let (wanted, services) = chosen(&mut target, &project, services)?;
                for service in services {
                    wanted.stopped.remove(&service);
                    if self.has_ended(&project, &service) {
                        wanted.rounds.entry(service).or_default().restart += 1;
                    }
                }
            }
            Order::Restart(project, services) => {
                let (wanted, services) = chosen(&mut target, &project, services)?;
                for service in services {
                    wanted.stopped.remove(&service);
                    wanted.rounds.entry(service).or_default().restart += 1;
                }
            }
            Order::Keep(images) => {
                target.kept.extend(images);
                self.read_images();
            }
            Order::Free => {
                target.kept.clear();
                self.read_images();
                self.remains = self.context.store.has_remains().unwrap_or(false);
            }
            Order::Plan(_) => {}
        }
        let plan = plan::plan(&self.current(), &target, boot_now());
        if target != self.target {
            target.save(&self.context.paths.target()).map_err(|error| match crate::durable::is_full(&error) {
                true => Refusal::new(
                    Code::NoSpace,
                    format!("the order could not be kept: {error}; `coracle df` shows what takes the space"),
                ),
                false => Refusal::new(Code::Internal, format!("the target could not be written: {error}")),
            })?;
            self.target = target;
        }
        // What failed before is tried at once: somebody has changed something.
        self.failures.clear();
        self.order += 1;
        Ok(Taken { order: self.order, plan })
    }

    fn up(&mut self, target: &mut Target, wanted: Wanted, recreate: bool, pull: bool) -> Result<(), Refusal> {
        let name = wanted.project.name.clone();
        let services: Vec<String> = wanted.project.services.keys().cloned().collect();
        crate::wanted::check_profiles(&wanted.project)
            .map_err(|reason| Refusal::new(Code::Configuration, reason))?;
        put(target, wanted);
        let problems = plan::plan(&self.current(), target, boot_now()).problems;
        let mine: Vec<String> = problems.iter().filter(|it| it.project == name).map(ToString::to_string).collect();
        if !mine.is_empty() {
            return Err(Refusal::new(Code::Configuration, mine.join("\n")));
        }
        let ended: BTreeSet<String> =
            services.iter().filter(|service| self.has_failed(&name, service)).cloned().collect();
        if let Some(wanted) = target.projects.get_mut(&name) {
            for service in &services {
                let round = wanted.rounds.entry(service.clone()).or_default();
                round.recreate += u64::from(recreate);
                round.restart += u64::from(ended.contains(service));
            }
            let always =
                |it: &&coracle_compose::Service| pull || it.pull_policy == coracle_compose::PullPolicy::Always;
            let images = wanted.project.services.values().filter(always);
            let images = images.filter_map(|service| crate::wanted::reference(service).ok());
            self.stale.extend(images.map(|it| it.to_string()).filter(|it| self.images.contains_key(it)));
        }
        Ok(())
    }

    /// Its last run ended by itself, and not well.
    fn has_failed(&self, project: &str, service: &str) -> bool {
        self.last_exit(project, service).is_some_and(|(code, ordered)| code != 0 && !ordered)
    }

    fn has_ended(&self, project: &str, service: &str) -> bool {
        self.last_exit(project, service).is_some_and(|(_, ordered)| !ordered)
    }

    fn last_exit(&self, project: &str, service: &str) -> Option<(i32, bool)> {
        let observed = self.observed();
        let container =
            observed.values().find(|it| it.identity.project == project && it.identity.service == service)?;
        match container.state {
            crate::current::State::Ended { code, ordered, .. } => Some((code, ordered)),
            _ => None,
        }
    }
}

/// Puts a project in place of its older self; orders that were given by hand stay in force.
fn put(target: &mut Target, mut wanted: Wanted) {
    let name = wanted.project.name.clone();
    if let Some(old) = target.projects.get(&name) {
        wanted.rounds = old.rounds.clone();
    }
    wanted.rounds.retain(|service, _| wanted.project.services.contains_key(service));
    for service in wanted.project.services.values() {
        if let Ok(reference) = crate::wanted::reference(service) {
            target.kept.remove(&reference.to_string());
        }
    }
    target.purge.remove(&name);
    target.projects.insert(name, wanted);
}

fn down(target: &mut Target, project: &str, volumes: bool) -> Result<(), Refusal> {
    if volumes {
        target.purge.insert(project.to_owned());
    }
    match target.projects.remove(project) {
        Some(wanted) => {
            // A board may have no network to fetch them again.
            let images = wanted.project.services.values().filter_map(|it| crate::wanted::reference(it).ok());
            target.kept.extend(images.map(|it: Reference| it.to_string()));
            Ok(())
        }
        None if volumes => Ok(()),
        None => Err(Refusal::new(Code::NotFound, format!("there is no project {project}"))),
    }
}

/// The project and the services named, or all of it.
fn chosen<'a>(
    target: &'a mut Target,
    project: &str,
    services: Vec<String>,
) -> Result<(&'a mut Wanted, Vec<String>), Refusal> {
    let wanted = target
        .projects
        .get_mut(project)
        .ok_or_else(|| Refusal::new(Code::NotFound, format!("there is no project {project}")))?;
    if services.is_empty() {
        let all = wanted.project.services.keys().cloned().collect();
        return Ok((wanted, all));
    }
    match services.iter().find(|service| !wanted.project.services.contains_key(*service)) {
        Some(unknown) => Err(Refusal::new(Code::NotFound, format!("project {project} has no service {unknown}"))),
        None => Ok((wanted, services)),
    }
}

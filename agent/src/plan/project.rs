//! One project: its services in order, then what is left over.

use super::network::Networks;
use super::{Action, Plan, Problem, Step, Wait};
use crate::current::{Container, Current, Health, Moment, State};
use crate::restart::{self, Verdict};
use crate::target::{Target, Wanted};
use crate::wanted::{self, Resolved};
use coracle_compose::{Condition, Dependency, MountSource, NetworkMode, PullPolicy, Service};
use std::collections::{BTreeMap, BTreeSet};

pub(super) struct Planner<'a> {
    pub current: &'a Current,
    pub target: &'a Target,
    pub now: Moment,
    pub steps: Vec<Step>,
    pub problems: Vec<Problem>,
    /// Containers that stay.
    pub kept: BTreeSet<String>,
    pub networks: Networks<'a>,
    /// Services that a stop is planned for, so that a step that needs them knows.
    replaced: BTreeSet<(String, String)>,
    /// Services that have ended and get other addresses, and so another network namespace.
    moved: BTreeSet<(String, String)>,
}

/// What became of a service earlier in the same plan.
struct Planned<'a> {
    resolved: Resolved,
    existing: Option<&'a Container>,
}

impl<'a> Planner<'a> {
    pub fn new(current: &'a Current, target: &'a Target, now: Moment) -> Self {
        Self {
            current,
            target,
            now,
            steps: Vec::new(),
            problems: Vec::new(),
            kept: BTreeSet::new(),
            networks: Networks::new(current, target),
            replaced: BTreeSet::new(),
            moved: BTreeSet::new(),
        }
    }

    /// Adds a step; one that failed waits out its pause.
    pub fn push(&mut self, action: Action, why: impl Into<String>, mut waits: Vec<Wait>) {
        let key = action.key();
        if let Some(failed) = self.current.failures.get(&key)
            && failed.until > self.now
        {
            let seconds = (failed.until - self.now).as_secs_f32().ceil();
            waits.push(Wait::Pause {
                until: failed.until,
                reason: format!("{}; try {} in {seconds} s", failed.reason, failed.count + 1),
                stuck: !failed.transient,
            });
        }
        self.steps.push(Step { action, why: why.into(), waits });
    }

    fn problem(&mut self, project: &str, service: &str, reason: impl Into<String>) {
        self.problems.push(Problem {
            project: project.to_owned(),
            service: service.to_owned(),
            reason: reason.into(),
        });
    }

    pub fn project(&mut self, name: &str, wanted: &'a Wanted) {
        let order = order(&wanted.project.services);
        self.pulls(name, wanted, &order);
        let mut planned: BTreeMap<&str, Planned<'a>> = BTreeMap::new();
        let mut stays = false;
        for service in &order {
            let owner = match &wanted.project.services[*service].network {
                NetworkMode::Service(owner) => match planned.get(owner.as_str()) {
                    Some(owner) => Some(owner.resolved.id.clone()),
                    None => {
                        stays |= self.keep_all_of(name, service);
                        continue;
                    }
                },
                _ => None,
            };
            match self.resolve(name, wanted, service, owner.as_deref()) {
                Some(resolved) => drop(planned.insert(service, self.settle(resolved))),
                None => stays |= self.keep_all_of(name, service),
            }
        }
        self.refuse_waits_without_check(name, wanted, &planned);
        if stays {
            self.networks.stay(name);
        }
        self.networks.wanted(name, wanted, &self.kept);
        let networks = self.networks.of_project(name);
        let addresses: BTreeMap<&str, _> = order
            .iter()
            .filter_map(|&service| {
                let attached = &wanted.project.services[service].network;
                match planned.get(service) {
                    Some(_) => Some((service, self.networks.addresses(name, service, attached))),
                    // Not replaced yet: its ports stay published.
                    None => Some((service, self.of_service(name, service).next()?.1.addresses.clone())),
                }
            })
            .collect();
        let published = self.networks.published(wanted, &addresses);
        let rules = self.rules(name, &networks, &published);
        for (service, it) in &planned {
            let elsewhere = |it: &&Container| !it.is_running() && it.addresses != addresses[service];
            if it.existing.filter(elsewhere).is_some_and(|it| !it.addresses.is_empty()) {
                self.moved.insert((name.to_owned(), (*service).to_owned()));
            }
        }
        for &service in &order {
            if let Some(it) = planned.get(service) {
                let mut waits = rules.clone();
                if self.moved.contains(&(name.to_owned(), service.to_owned())) {
                    let sharers = planned.iter().filter(|(sharer, it)| {
                        let is_running = it.existing.is_some_and(Container::is_running);
                        is_running && owner(wanted, sharer).is_some_and(|owner| owner == service)
                    });
                    waits.extend(sharers.map(|(_, it)| after_stop(&it.resolved.id)));
                }
                self.bring_up(name, wanted, service, it, addresses[service].clone(), waits);
            }
        }
    }

    /// Nobody becomes healthy without a check.
    fn refuse_waits_without_check(
        &mut self,
        project: &str,
        wanted: &Wanted,
        planned: &BTreeMap<&str, Planned<'a>>,
    ) {
        for (name, service) in &wanted.project.services {
            let in_vain = service.depends_on.iter().filter(|(other, dependency)| {
                let unchecked = planned.get(other.as_str()).is_some_and(|it| it.resolved.check.is_none());
                dependency.condition == Condition::ServiceHealthy && dependency.required && unchecked
            });
            for (other, _) in in_vain {
                let reason =
                    format!("waits for {other} to be healthy, and {other} has no health check: give it one");
                self.problem(project, name, reason);
            }
        }
    }

    /// A container of a service that cannot be resolved now goes on as it is; true when one runs.
    fn keep_all_of(&mut self, project: &str, service: &str) -> bool {
        let all: Vec<_> = self.of_service(project, service).collect();
        self.kept.extend(all.iter().map(|(id, _)| (*id).clone()));
        all.iter().any(|(_, container)| container.is_running())
    }

    fn of_service(&self, project: &str, service: &str) -> impl Iterator<Item = (&'a String, &'a Container)> {
        let containers = self.current.containers.iter();
        containers.filter(move |(_, it)| it.identity.project == project && it.identity.service == service)
    }

    fn pulls(&mut self, project: &str, wanted: &Wanted, order: &[&str]) {
        for &name in order {
            let service = &wanted.project.services[name];
            let Ok(image) = wanted::reference(service).map(|it| it.to_string()) else { continue };
            let known = self.current.images.contains_key(&image);
            let stale = self.current.stale.contains(&image) && service.pull_policy != PullPolicy::Never;
            if (known && !stale) || (!known && service.pull_policy == PullPolicy::Never) {
                continue;
            }
            let why = if known { "a newer one was asked for" } else { "is not in the store" };
            let action = Action::Pull { image, project: project.to_owned() };
            if !self.steps.iter().any(|step| step.action.key() == action.key()) {
                self.push(action, format!("the image of {name} {why}"), Vec::new());
            }
        }
    }

    fn resolve(&mut self, project: &str, wanted: &Wanted, name: &str, owner: Option<&str>) -> Option<Resolved> {
        let service = &wanted.project.services[name];
        let reference = match wanted::reference(service) {
            Ok(reference) => reference.to_string(),
            Err(reason) => {
                self.problem(project, name, reason);
                return None;
            }
        };
        let Some(image) = self.current.images.get(&reference) else {
            if service.pull_policy == PullPolicy::Never {
                self.problem(project, name, format!("may not pull {reference}, and it is not in the store"));
            } else {
                self.start_after_pull(project, name, &reference);
            }
            return None;
        };
        match wanted::resolve(wanted, name, image, owner) {
            Ok(resolved) => Some(resolved),
            Err(reason) => {
                self.problem(project, name, reason);
                None
            }
        }
    }

    /// Before the image is known, neither is the container; the plan still names what will follow.
    fn start_after_pull(&mut self, project: &str, service: &str, reference: &str) {
        let pull = Action::Pull { image: reference.to_owned(), project: project.to_owned() };
        let action = Action::Start {
            container: format!("{project}-{service}"),
            project: project.to_owned(),
            service: service.to_owned(),
            addresses: BTreeMap::new(),
            round: 0,
            again: false,
        };
        self.push(action, "the project wants it", vec![Wait::After(pull.key())]);
    }

    /// Keeps the container that is right, and orders all others of the service away.
    fn settle(&mut self, resolved: Resolved) -> Planned<'a> {
        let identity = &resolved.identity;
        let mut existing = None;
        let containers: Vec<_> = self.of_service(&identity.project, &identity.service).collect();
        for (id, container) in containers {
            let right = *id == resolved.id
                && container.identity.definition == identity.definition
                && container.identity.recreate >= identity.recreate;
            if right {
                existing = Some(container);
                self.kept.insert(id.clone());
            } else {
                self.replaced.insert((identity.project.clone(), identity.service.clone()));
            }
        }
        Planned { resolved, existing }
    }

    fn bring_up(
        &mut self,
        project: &str,
        wanted: &'a Wanted,
        name: &str,
        planned: &Planned<'a>,
        addresses: BTreeMap<String, std::net::Ipv4Addr>,
        mut waits: Vec<Wait>,
    ) {
        let service = &wanted.project.services[name];
        let round = wanted.round(name).restart;
        let id = planned.resolved.id.clone();
        let stop =
            |planner: &mut Self, why: &str| planner.stop(project, &id, why, planner.dependents(project, name));
        if !wanted.wants_running(name) {
            if planned.existing.is_some_and(Container::is_running) {
                stop(self, "it was stopped by hand");
            }
            return;
        }
        let (why, again) = match planned.existing {
            None => ("the project wants it", false),
            Some(container) => match &container.state {
                State::Running { .. } if container.round < round => {
                    return stop(self, "a restart was asked for");
                }
                State::Running { .. } if self.networks.moves(project).is_some() => {
                    let hidden = self.networks.moves(project).map(|it| it.to_string()).unwrap_or_default();
                    return stop(self, &format!("a network that it may be on hides {hidden}"));
                }
                State::Running { .. } if self.must_follow(project, service) => {
                    return stop(self, "a service that it must be restarted with is replaced");
                }
                State::Running { .. } if self.owner_moved(project, wanted, name) => {
                    return stop(self, "the service whose network it shares gets another address");
                }
                State::Running { .. } => return,
                State::Created => ("it does not run", false),
                State::Ended { .. } if container.round < round => ("a restart was asked for", false),
                State::Ended { ordered: true, .. } => ("it does not run", false),
                State::Ended { code, at, streak, .. } => {
                    match restart::judge(service.restart, *code, container.restarts) {
                        Verdict::Stay => return,
                        Verdict::Again { limit } => {
                            let until = *at + restart::pause(*streak);
                            if until > self.now {
                                waits.push(self.pause(until, *code, container.restarts, limit));
                            }
                            ("it ended and its restart policy wants it", true)
                        }
                    }
                }
            },
        };
        if planned.existing.is_none() {
            waits.extend(self.removals(project, name));
            waits.extend(self.volumes(project, service));
        }
        waits.extend(self.networks.waits(project, &service.network));
        waits.extend(self.dependencies(project, wanted, service));
        if self.owner_moved(project, wanted, name) {
            let owner = owner(wanted, name).unwrap_or_default();
            let stuck = self.of_service(project, owner).any(|(_, it)| match it.state {
                State::Ended { code, ordered: false, .. } => {
                    let restart = wanted.project.services[owner].restart;
                    it.round >= wanted.round(owner).restart
                        && restart::judge(restart, code, it.restarts) == Verdict::Stay
                }
                _ => false,
            });
            let missing = match stuck {
                true => "has ended, and its network is another one now: restart it",
                false => "gets another address",
            };
            waits.push(Wait::Dependency { service: owner.to_owned(), missing: missing.to_owned(), stuck });
        }
        let action = Action::Start {
            container: id,
            project: project.to_owned(),
            service: name.to_owned(),
            addresses,
            round,
            again,
        };
        self.push(action, why, waits);
    }

    fn pause(&self, until: Moment, code: i32, restarts: u32, limit: Option<u32>) -> Wait {
        let seconds = (until - self.now).as_secs_f32().ceil();
        let of = limit.map(|limit| format!(" of {}", limit + 1)).unwrap_or_default();
        let reason = format!("exited {code}; try {}{of} in {seconds} s", restarts + 2);
        Wait::Pause { until, reason, stuck: false }
    }

    /// `depends_on.restart`: it is stopped with what it depends on.
    fn must_follow(&self, project: &str, service: &Service) -> bool {
        service.depends_on.iter().any(|(name, dependency)| {
            dependency.restart && self.replaced.contains(&(project.to_owned(), name.clone()))
        })
    }

    fn owner_moved(&self, project: &str, wanted: &Wanted, service: &str) -> bool {
        owner(wanted, service).is_some_and(|owner| self.moved.contains(&(project.to_owned(), owner.to_owned())))
    }

    fn stop(&mut self, project: &str, id: &str, why: &str, after: Vec<Wait>) {
        let action = Action::Stop { container: id.to_owned(), project: project.to_owned() };
        self.push(action, why, after);
    }

    /// Running containers that are to be stopped before `service`, when they go too.
    fn dependents(&self, project: &str, service: &str) -> Vec<Wait> {
        let dependents = self.current.containers.iter().filter(|(id, container)| {
            container.is_running()
                && container.identity.project == project
                && container.identity.after.contains(service)
                && !self.stays(id, container)
        });
        dependents.map(|(id, _)| after_stop(id)).collect()
    }

    /// True when the container goes on running by this plan.
    fn stays(&self, id: &str, container: &Container) -> bool {
        let identity = &container.identity;
        let wanted = self.target.projects.get(&identity.project);
        self.kept.contains(id)
            && self.networks.moves(&identity.project).is_none()
            && wanted.is_some_and(|wanted| {
                wanted.wants_running(&identity.service)
                    && container.round >= wanted.round(&identity.service).restart
                    && !self.must_follow(&identity.project, &wanted.project.services[&identity.service])
            })
    }

    fn removals(&self, project: &str, service: &str) -> Vec<Wait> {
        let old = self.of_service(project, service).filter(|(id, _)| !self.kept.contains(*id));
        old.map(|(id, _)| after_removal(id)).collect()
    }

    fn volumes(&mut self, project: &str, service: &Service) -> Vec<Wait> {
        let mut waits = Vec::new();
        for mount in &service.mounts {
            let MountSource::Volume { name, .. } = &mount.source else { continue };
            if self.current.volumes.contains(&(project.to_owned(), name.clone())) {
                continue;
            }
            let action = Action::MakeVolume { project: project.to_owned(), volume: name.clone() };
            waits.push(Wait::After(action.key()));
            if !self.steps.iter().any(|step| step.action == action) {
                self.push(action, "a service mounts it", Vec::new());
            }
        }
        waits
    }

    fn rules(
        &mut self,
        project: &str,
        networks: &[coracle_runtime::network::firewall::Network],
        published: &[coracle_runtime::network::firewall::Published],
    ) -> Vec<Wait> {
        let makes = self.networks.take_makes(project);
        for (action, why, waits) in makes {
            self.push(action, why, waits);
        }
        if networks.is_empty() {
            return Vec::new();
        }
        let rules = coracle_runtime::network::firewall::render(project, networks, published);
        if self.current.rules.get(project) == Some(&rules) {
            return Vec::new();
        }
        let why = if self.current.rules.contains_key(project) {
            "its networks or ports change"
        } else {
            "it has networks"
        };
        let action = Action::ApplyRules { project: project.to_owned(), rules };
        let key = action.key();
        self.push(action, why, Vec::new());
        let under_way = self.steps.last().is_some_and(Step::is_ready);
        vec![if under_way { Wait::RunsAfter(key) } else { Wait::After(key) }]
    }

    fn dependencies(&self, project: &str, wanted: &Wanted, service: &Service) -> Vec<Wait> {
        let mut waits = Vec::new();
        let started = Dependency { condition: Condition::ServiceStarted, required: true, restart: false };
        let mut all: BTreeMap<String, Dependency> =
            coracle_compose::references(service).into_iter().map(|name| (name, started)).collect();
        all.extend(service.depends_on.iter().map(|(name, dependency)| (name.clone(), *dependency)));
        for (name, dependency) in all {
            if !wanted.project.services.contains_key(&name) {
                continue;
            }
            if let Some((missing, stuck)) = self.missing(project, wanted, &name, dependency.condition)
                && (!stuck || dependency.required)
            {
                waits.push(Wait::Dependency { service: name, missing, stuck });
            }
        }
        waits
    }

    /// What keeps a condition from holding; true when it will not come by itself.
    fn missing(&self, project: &str, wanted: &Wanted, name: &str, condition: Condition) -> Option<(String, bool)> {
        let service = &wanted.project.services[name];
        let not_wanted = !wanted.wants_running(name);
        let right = self.of_service(project, name).find(|(id, _)| self.kept.contains(*id));
        let Some((id, container)) = right else {
            let stuck = not_wanted || self.problems.iter().any(|it| it.project == project && it.service == name);
            return Some((if not_wanted { "stopped by hand" } else { "not started" }.to_owned(), stuck));
        };
        if container.is_running() && !self.stays(id, container) {
            return Some((if not_wanted { "stopped by hand" } else { "being restarted" }.to_owned(), not_wanted));
        }
        match (&container.state, condition) {
            (State::Created, _) => Some(("not started".to_owned(), not_wanted)),
            // It was stopped with the others, and comes up again before them.
            (State::Ended { ordered: true, .. }, Condition::ServiceStarted) if !not_wanted => {
                Some(("not started".to_owned(), false))
            }
            (State::Running { .. } | State::Ended { .. }, Condition::ServiceStarted) => None,
            (State::Running { health, .. }, Condition::ServiceHealthy) => match health {
                Health::Healthy => None,
                Health::Starting => Some(("not healthy yet".to_owned(), false)),
                Health::Unhealthy => Some(("unhealthy".to_owned(), true)),
                Health::None => Some(("has no health check".to_owned(), true)),
            },
            (State::Running { .. }, Condition::ServiceCompletedSuccessfully) => {
                Some(("still runs".to_owned(), false))
            }
            (State::Ended { code: 0, ordered: false, .. }, Condition::ServiceCompletedSuccessfully) => None,
            (State::Ended { code, at, streak, ordered }, _) => {
                if *ordered || not_wanted {
                    return Some(("stopped by hand".to_owned(), not_wanted));
                }
                match restart::judge(service.restart, *code, container.restarts) {
                    Verdict::Stay => Some((format!("exited {code}, will not be restarted"), true)),
                    Verdict::Again { limit } => {
                        let until = *at + restart::pause(*streak);
                        match self.pause(until.max(self.now), *code, container.restarts, limit) {
                            Wait::Pause { reason, .. } => Some((reason, false)),
                            _ => None,
                        }
                    }
                }
            }
        }
    }

    /// Stops and removes containers that no service wants, then their networks, rules and, by order, volumes.
    pub fn take_down_the_rest(&mut self) {
        let gone: Vec<(&String, &Container)> =
            self.current.containers.iter().filter(|(id, _)| !self.kept.contains(*id)).collect();
        for (id, container) in gone {
            let identity = &container.identity;
            let in_project = self
                .target
                .projects
                .get(&identity.project)
                .is_some_and(|wanted| wanted.project.services.contains_key(&identity.service));
            let why = if in_project { "its definition changed" } else { "no project wants it" };
            let mut waits = Vec::new();
            if container.is_running() {
                self.stop(&identity.project, id, why, self.dependents(&identity.project, &identity.service));
                waits.push(after_stop(id));
            }
            let action = Action::Remove { container: id.clone(), project: identity.project.clone() };
            self.push(action, why, waits);
        }
        for (action, why, waits) in self.networks.removals() {
            let runs = |id: &String| self.current.containers.get(id).is_some_and(Container::is_running);
            let waits = waits.iter().filter_map(|id| match self.kept.contains(id) {
                false => Some(after_removal(id)),
                true => runs(id).then(|| after_stop(id)),
            });
            let waits = waits.collect();
            self.push(action, why, waits);
        }
        for project in self.current.rules.keys() {
            let has_networks = self.networks.any_wanted(project);
            if !has_networks {
                let action = Action::RemoveRules { project: project.clone() };
                self.push(action, "the project has no networks", self.all_removals(project));
            }
        }
        for project in &self.target.purge {
            let has_volumes = self.current.volumes.iter().any(|(of, _)| of == project);
            if has_volumes && !self.target.projects.contains_key(project) {
                let action = Action::RemoveVolumes { project: project.clone() };
                self.push(action, "their removal was asked for", self.all_removals(project));
            }
        }
    }

    fn all_removals(&self, project: &str) -> Vec<Wait> {
        let containers = self
            .current
            .containers
            .iter()
            .filter(|(id, container)| container.identity.project == project && !self.kept.contains(*id));
        containers.map(|(id, _)| after_removal(id)).collect()
    }

    pub fn finish(mut self) -> Plan {
        let done = self.steps.is_empty() && self.problems.is_empty();
        if done && let Some(keep) = super::unused_images(self.current, self.target) {
            self.push(Action::RemoveImages { keep }, "nothing wants the others", Vec::new());
        }
        self.steps.sort_by_key(|step| step.action.phase());
        let pauses = self.steps.iter().flat_map(|step| &step.waits).filter_map(|wait| match wait {
            Wait::Pause { until, .. } => Some(*until),
            _ => None,
        });
        let wake = pauses.filter(|until| *until > self.now).min();
        Plan { steps: self.steps, problems: self.problems, notices: self.networks.notices, wake }
    }
}

/// The service whose network namespace `service` is in, when that is another's.
fn owner<'a>(wanted: &'a Wanted, service: &str) -> Option<&'a str> {
    let mut owner = None;
    let mut next = service;
    // The parser refuses cycles; more turns than services would be one.
    for _ in 0..wanted.project.services.len() {
        let NetworkMode::Service(name) = &wanted.project.services.get(next)?.network else { break };
        (owner, next) = (Some(name.as_str()), name);
    }
    owner
}

/// After a container has ended by a step of this plan.
fn after_stop(id: &str) -> Wait {
    Wait::After(format!("stop {id}"))
}

/// After a container is gone.
fn after_removal(id: &str) -> Wait {
    Wait::After(format!("remove {id}"))
}

/// Services in an order in which each comes after those it refers to; names decide otherwise.
pub(super) fn order(services: &BTreeMap<String, Service>) -> Vec<&str> {
    fn visit<'a>(name: &'a str, services: &'a BTreeMap<String, Service>, done: &mut Vec<&'a str>, depth: usize) {
        // The parser refuses cycles; a depth beyond their number would be one.
        if done.contains(&name) || depth > services.len() {
            return;
        }
        for other in coracle_compose::references(&services[name]) {
            if let Some((other, _)) = services.get_key_value(&other) {
                visit(other, services, done, depth + 1);
            }
        }
        done.push(name);
    }
    let mut done = Vec::new();
    for name in services.keys() {
        visit(name, services, &mut done, 0);
    }
    done
}

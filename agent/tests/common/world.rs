//! A world that the planner's steps are done in: no kernel, no clock, only data.

use coracle::current::{Container, Current, Health, KnownImage, Moment, State};
use coracle::plan::{Action, Plan, Wait, plan, stuck};
use coracle::target::{Target, Wanted};
use coracle::wanted;
use coracle_compose::{Condition, NetworkMode, Restart};
use coracle_runtime::image::{ImageConfig, digest_of};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Rounds after which a plan that does not become empty never will.
const ROUNDS: usize = 200;

/// What is, and what time it is.
pub struct World {
    pub current: Current,
    pub now: Moment,
    /// Decides which of the steps that are ready are slow. Zero: none is.
    pub luck: u64,
    /// Network namespaces that containers have or joined, by container: the addresses in it, and its number.
    namespaces: BTreeMap<String, (BTreeMap<String, Ipv4Addr>, u64)>,
}

impl World {
    pub fn new() -> Self {
        Self { current: Current::default(), now: Duration::from_secs(1000), luck: 0, namespaces: BTreeMap::new() }
    }

    pub fn plan(&self, target: &Target) -> Plan {
        plan(&self.current, target, self.now)
    }

    /// Does what is ready, lets time pass, until nothing is left to do; the rounds that it took.
    pub fn settle(&mut self, target: &mut Target) -> Result<usize, String> {
        for round in 0..ROUNDS {
            let plan = self.plan(target);
            let stuck = stuck(&plan.steps.iter().collect::<Vec<_>>());
            if plan.steps.iter().all(|step| step.is_another_try() || stuck.contains(&step.action.key())) {
                return Ok(round);
            }
            self.turn(target, &plan);
        }
        Err(format!("no end: {:#?}", self.plan(target)))
    }

    /// One round: steps that are ready are done, unless they are slow, then the containers go on.
    pub fn turn(&mut self, target: &mut Target, plan: &Plan) {
        let mut done: Vec<String> = Vec::new();
        let mut first = None;
        for step in plan.steps.iter().filter(|step| step.is_ready()) {
            let is_held =
                step.waits.iter().any(|wait| matches!(wait, Wait::RunsAfter(key) if !done.contains(key)));
            if is_held || self.is_slow() {
                first = first.or((!is_held).then_some(&step.action));
                continue;
            }
            self.apply(target, &step.action);
            done.push(step.action.key());
        }
        if let Some(action) = first.filter(|_| done.is_empty()) {
            self.apply(target, action);
        }
        self.live(target);
        self.now = plan.wake.unwrap_or(self.now).max(self.now + Duration::from_millis(10));
    }

    /// Xorshift (Marsaglia 2003).
    fn is_slow(&mut self) -> bool {
        self.luck ^= self.luck << 13;
        self.luck ^= self.luck >> 7;
        self.luck ^= self.luck << 17;
        self.luck & 1 == 1
    }

    /// Checks succeed, and jobs that somebody waits for end well.
    fn live(&mut self, target: &Target) {
        let now = self.now;
        for container in self.current.containers.values_mut() {
            let Some(wanted) = target.projects.get(&container.identity.project) else { continue };
            let name = &container.identity.service;
            let awaited = wanted.project.services.values().any(|service| {
                service
                    .depends_on
                    .get(name)
                    .is_some_and(|it| it.condition == Condition::ServiceCompletedSuccessfully)
            });
            match &mut container.state {
                State::Running { health, .. } if awaited && *health != Health::Starting => {
                    container.state = State::Ended { code: 0, at: now, streak: 1, ordered: false };
                }
                State::Running { health, .. } if *health == Health::Starting => *health = Health::Healthy,
                _ => {}
            }
        }
    }

    pub fn apply(&mut self, target: &mut Target, action: &Action) {
        let current = &mut self.current;
        match action {
            Action::Pull { image, .. } => {
                current.stale.remove(image);
                current.unnamed.remove(&image_of(image).digest);
                current.images.insert(image.clone(), image_of(image));
            }
            Action::MakeNetwork { bridge, range, .. } => {
                assert!(
                    current.networks.values().all(|live| !live.range.overlaps(range)),
                    "{range} is taken already"
                );
                current.networks.extend(action.made_network().map(|live| (bridge.clone(), live)));
            }
            Action::RemoveNetwork { bridge, project, network } => {
                // One that has ended gets another address when it is started again.
                let attached = |it: &&Container| {
                    it.is_running() && it.identity.project == *project && it.addresses.contains_key(network)
                };
                assert_eq!(current.containers.values().find(attached), None, "removed under a container");
                current.networks.remove(bridge);
            }
            Action::MakeVolume { project, volume } => {
                current.volumes.insert((project.clone(), volume.clone()));
            }
            Action::RemoveVolumes { project } => {
                assert!(!current.containers.values().any(|it| it.identity.project == *project));
                current.volumes.retain(|(of, _)| of != project);
                target.purge.remove(project);
            }
            Action::ApplyRules { project, rules } => {
                current.rules.insert(project.clone(), rules.clone());
            }
            Action::RemoveRules { project } => drop(current.rules.remove(project)),
            Action::Stop { container, .. } => {
                let it = current.containers.get_mut(container).expect("only what is there is stopped");
                assert!(it.is_running());
                it.state = State::Ended { code: 143, at: self.now, streak: 1, ordered: true };
            }
            Action::Remove { container, .. } => {
                let it = current.containers.remove(container).expect("only what is there is removed");
                assert!(!it.is_running(), "removed while it runs");
                self.namespaces.remove(container);
            }
            Action::Start { container, project, service, addresses, round, again } => {
                self.start(target, container, (project, service), addresses.clone(), (*round, *again));
            }
            Action::RemoveImages { keep } => {
                current.images.retain(|_, image| keep.contains(&image.digest));
                current.unnamed.retain(|digest| keep.contains(digest));
                current.remains = false;
            }
        }
    }

    fn start(
        &mut self,
        target: &Target,
        id: &str,
        (project, name): (&str, &str),
        addresses: BTreeMap<String, Ipv4Addr>,
        (round, again): (u64, bool),
    ) {
        let wanted = &target.projects[project];
        let service = &wanted.project.services[name];
        let reference = wanted::reference(service).expect("a reference").to_string();
        let image = &self.current.images[&reference];
        let owner = match &service.network {
            NetworkMode::Service(owner) => {
                let mut containers = self.current.containers.iter();
                let owner =
                    containers.find(|(_, it)| it.identity.service == *owner && it.identity.project == project);
                let (id, owner) = owner.expect("the owner is there");
                assert!(!matches!(owner.state, State::Created), "the owner was started");
                Some(id.clone())
            }
            _ => None,
        };
        let resolved = wanted::resolve(wanted, name, image, owner.as_deref()).expect("resolves");
        assert_eq!(resolved.id, id);
        let others = self.current.containers.iter().filter(|(other, _)| *other != id);
        for (other, it) in others.clone().filter(|(_, it)| it.identity.project == project) {
            assert!(it.identity.service != name || !it.is_running(), "{other} still runs");
            for (network, address) in &addresses {
                assert_ne!(it.addresses.get(network), Some(address), "{other} has the address");
            }
        }
        if let NetworkMode::Networks(attached) = &service.network {
            assert!(attached.keys().all(|network| addresses.contains_key(network)), "an address for each network");
            assert!(self.current.rules.contains_key(project), "rules come before containers");
        }
        let namespace = match &owner {
            Some(owner) => self.namespaces[owner].clone(),
            // The one that it had, unless it has other addresses.
            None => match self.namespaces.get(id) {
                Some(old) if old.0 == addresses => old.clone(),
                _ => (addresses.clone(), self.namespaces.values().map(|it| it.1).max().unwrap_or(0) + 1),
            },
        };
        self.namespaces.insert(id.to_owned(), namespace);
        let health = if resolved.check.is_some() { Health::Starting } else { Health::None };
        let restarts = self.current.containers.get(id).map_or(0, |it| it.restarts);
        let container = Container {
            identity: resolved.identity,
            state: State::Running { since: self.now, health },
            addresses,
            restarts: if again { restarts + 1 } else { 0 },
            round,
        };
        self.current.containers.insert(id.to_owned(), container);
    }

    /// The container of a service.
    pub fn container(&mut self, service: &str) -> Option<&mut Container> {
        self.current.containers.values_mut().find(|it| it.identity.service == service)
    }

    /// Everything that the target wants is there, and nothing else.
    pub fn check(&self, target: &Target) {
        for (project, wanted) in &target.projects {
            for name in wanted.project.services.keys() {
                let mut of_service = self
                    .current
                    .containers
                    .values()
                    .filter(|it| it.identity.project == *project && it.identity.service == *name);
                let container = of_service.next();
                assert!(of_service.next().is_none(), "one container for {name}");
                let Some(container) = container else {
                    assert!(!wanted.wants_running(name), "{name} has no container");
                    continue;
                };
                self.check_service(wanted, name, container);
            }
        }
        for container in self.current.containers.values() {
            let wanted = target.projects.get(&container.identity.project);
            assert!(
                wanted.is_some_and(|it| it.project.services.contains_key(&container.identity.service)),
                "{} is not wanted",
                container.identity.service
            );
        }
        for live in self.current.networks.values() {
            let wanted = &target.projects[&live.project];
            let used = wanted.project.services.values().any(
                |it| matches!(&it.network, NetworkMode::Networks(attached) if attached.contains_key(&live.name)),
            );
            assert!(used, "network {} is not used", live.name);
        }
    }

    fn check_service(&self, wanted: &Wanted, name: &str, container: &Container) {
        if !wanted.wants_running(name) {
            assert!(!container.is_running(), "{name} was stopped by hand");
            return;
        }
        let service = &wanted.project.services[name];
        let id_of = |service: &str| {
            let mut containers = self.current.containers.iter();
            containers.find(|(_, it)| it.identity.service == service).map(|(id, _)| id.clone()).unwrap_or_default()
        };
        if let NetworkMode::Service(owner) = &service.network
            && container.is_running()
        {
            let (own, of_owner) = (self.namespaces.get(&id_of(name)), self.namespaces.get(&id_of(owner)));
            assert_eq!(own, of_owner, "{name} is in the network namespace that {owner} had");
        }
        let ended = matches!(container.state, State::Ended { ordered: false, .. });
        let may_have_ended = !matches!(service.restart, Restart::Always | Restart::UnlessStopped);
        let another_try = ended && !may_have_ended;
        assert!(container.is_running() || (ended && may_have_ended) || another_try, "{name}: {container:?}");
        assert!(container.round >= wanted.round(name).restart);
        assert!(container.identity.recreate >= wanted.round(name).recreate);
    }
}

/// An image that runs something.
pub fn image_of(reference: &str) -> KnownImage {
    let config = ImageConfig { cmd: vec!["/run".to_owned()], ..ImageConfig::default() };
    KnownImage { digest: digest_of(reference.as_bytes()), config }
}

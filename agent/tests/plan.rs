//! The planner: whole plans as text, a folder for each case, and properties of all plans.
//!
//! A case has `before.yaml` (a project that is up, optional), `events.txt` (what happened since, optional),
//! `compose.yaml` (what is wanted; without it the project is taken down) and `plan.txt`, the plan that is expected.
//! `UPDATE_PLANS=1 cargo test -p coracle --test plan` writes the last one; read the difference before you commit it.

#[path = "common/world.rs"]
mod world;

use coracle::current::{Failed, Health, State};
use coracle::plan::Plan;
use coracle::target::{Target, Wanted};
use coracle_compose::{
    Attachment, Condition, Dependency, HealthCheck, HealthTest, Mount, MountSource, Network, NetworkMode, Port,
    Project, Protocol, Restart, Service,
};
use coracle_runtime::network::subnet::Range;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;
use world::World;

fn load(path: &Path) -> Option<Project> {
    let text = std::fs::read_to_string(path).ok()?;
    let options = coracle_compose::LoadOptions {
        project_name: Some("demo".to_owned()),
        ..coracle_compose::LoadOptions::default()
    };
    let loaded = coracle_compose::parse_str(&path.display().to_string(), &text, &options);
    Some(loaded.unwrap_or_else(|refusals| panic!("{refusals}")).project)
}

fn target(project: Option<Project>) -> Target {
    let wanted = project.map(|project| ("demo".to_owned(), Wanted { project, ..Wanted::default() }));
    Target { projects: wanted.into_iter().collect(), ..Target::default() }
}

/// `SERVICE ended CODE`, `SERVICE halted` (by order), `SERVICE unhealthy`, `SERVICE stopped`, `failed KEY`, `rules lost`, `remains`, `boot`,
/// `route RANGE`, `address RANGE`.
fn happen(world: &mut World, target: &mut Target, line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        [service, "ended", code] => {
            let state =
                State::Ended { code: code.parse().expect("a code"), at: world.now, streak: 1, ordered: false };
            world.container(service).expect("a container").state = state;
        }
        [service, "halted"] => {
            let state = State::Ended { code: 143, at: world.now, streak: 1, ordered: true };
            world.container(service).expect("a container").state = state;
        }
        [service, "unhealthy"] => {
            let state = State::Running { since: world.now, health: Health::Unhealthy };
            world.container(service).expect("a container").state = state;
        }
        [service, "stopped"] => {
            for wanted in target.projects.values_mut() {
                wanted.stopped.insert((*service).to_owned());
            }
        }
        [service, "restart"] => {
            for wanted in target.projects.values_mut() {
                wanted.rounds.entry((*service).to_owned()).or_default().restart += 1;
            }
        }
        ["failed", key @ ..] => {
            let failed = Failed {
                reason: "the registry is away".to_owned(),
                count: 2,
                until: world.now + Duration::from_secs(3),
                transient: true,
            };
            world.current.failures.insert(key.join(" "), failed);
        }
        ["rules", "lost"] => world.current.rules.clear(),
        ["remains"] => world.current.remains = true,
        ["boot"] => {
            world.current.networks.clear();
            world.current.rules.clear();
            for container in world.current.containers.values_mut() {
                container.state = State::Created;
                container.addresses.clear();
                container.round = 0;
            }
        }
        ["route", it] => world.current.foreign.routes.push(range(it)),
        ["address", it] => world.current.foreign.links.push(range(it)),
        _ => panic!("{line:?} is no event"),
    }
}

fn range(text: &str) -> Range {
    let (address, prefix) = text.split_once('/').expect("a range");
    Range::new(address.parse().expect("an address"), prefix.parse().expect("a length"))
}

fn text(plan: &Plan) -> String {
    let mut text = String::new();
    for step in &plan.steps {
        let _ = writeln!(text, "{}\n    because {}", step.action, step.why);
        for wait in &step.waits {
            let _ = writeln!(text, "    {wait}");
        }
    }
    for problem in &plan.problems {
        let _ = writeln!(text, "problem: {problem}");
    }
    for notice in &plan.notices {
        let _ = writeln!(text, "note: {notice}");
    }
    if text.is_empty() { "nothing\n".to_owned() } else { text }
}

#[test]
fn every_case_has_the_plan_that_is_written_beside_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans");
    let mut cases: Vec<_> = std::fs::read_dir(&folder).expect("cases").flatten().map(|it| it.path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    for case in cases {
        let mut world = World::new();
        let before = load(&case.join("before.yaml"));
        if before.is_some() {
            world.settle(&mut target(before)).expect("it comes up");
        }
        let mut wanted = target(load(&case.join("compose.yaml")));
        for line in std::fs::read_to_string(case.join("events.txt")).unwrap_or_default().lines() {
            happen(&mut world, &mut wanted, line);
        }
        let is = text(&world.plan(&wanted));
        let file = case.join("plan.txt");
        if std::env::var_os("UPDATE_PLANS").is_some() {
            std::fs::write(&file, is).expect("written");
            continue;
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(is, expected, "{}", case.display());
    }
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        Just(Condition::ServiceStarted),
        Just(Condition::ServiceHealthy),
        Just(Condition::ServiceCompletedSuccessfully)
    ]
}

fn restart() -> impl Strategy<Value = Restart> {
    prop_oneof![
        Just(Restart::No),
        Just(Restart::Always),
        Just(Restart::UnlessStopped),
        Just(Restart::OnFailure(Some(2)))
    ]
}

prop_compose! {
    /// A service that may depend on those before it.
    fn service(number: usize)(
        image in 1..3_u8,
        command in 0..2_u8,
        restart in restart(),
        networks in proptest::collection::btree_set(0..3_usize, 0..3),
        shares in proptest::option::weighted(0.2, 0..5_usize),
        depends in proptest::collection::btree_map(0..5_usize, (condition(), any::<bool>()), 0..3),
        volumes in proptest::collection::btree_set(0..2_usize, 0..2),
        port in proptest::option::of(8000..8003_u16),
        grace in 0..2_u64,
    ) -> Service {
        let network = match shares {
            Some(owner) if owner < number => NetworkMode::Service(NAMES[owner].to_owned()),
            _ if networks.is_empty() => NetworkMode::None,
            _ => NetworkMode::Networks(networks.iter().map(|it| (format!("n{it}"), Attachment::default())).collect()),
        };
        let depends_on = depends
            .into_iter()
            .filter(|(other, _)| *other < number)
            .map(|(other, (condition, restart))| {
                (NAMES[other].to_owned(), Dependency { condition, required: true, restart })
            })
            .collect();
        let published = matches!(network, NetworkMode::Networks(_)).then_some(port).flatten();
        Service {
            image: Some(format!("registry.example/app:{image}")),
            command: Some(vec![format!("/run{command}")]),
            restart,
            network,
            depends_on,
            stop_grace_period: Some(Duration::from_secs(grace)),
            healthcheck: Some(HealthCheck { test: Some(HealthTest::Shell("true".into())), ..HealthCheck::default() }),
            mounts: volumes
                .iter()
                .map(|it| Mount {
                    target: format!("/v{it}"),
                    read_only: false,
                    source: MountSource::Volume { name: format!("v{it}"), nocopy: false, subpath: String::new() },
                })
                .collect(),
            ports: published
                .into_iter()
                .map(|port| Port {
                    container: 80,
                    host: Some((port, port + 3)),
                    host_ip: None,
                    protocol: Protocol::Tcp,
                })
                .collect(),
            ..Service::default()
        }
    }
}

prop_compose! {
    fn wanted_project()(
        services in (service(0), service(1), service(2), service(3), service(4)),
        present in proptest::collection::btree_set(0..5_usize, 0..5),
        internal in any::<[bool; 3]>(),
        stopped in proptest::collection::btree_set(0..5_usize, 0..2),
        restarts in proptest::collection::vec((0..2_u64, 0..2_u64), 5),
    ) -> Option<Wanted> {
        if present.is_empty() {
            return None;
        }
        let all = [services.0, services.1, services.2, services.3, services.4];
        let mut kept: BTreeMap<String, Service> = BTreeMap::new();
        for (number, mut service) in all.into_iter().enumerate() {
            if !present.contains(&number) {
                continue;
            }
            service.depends_on.retain(|name, _| kept.contains_key(name));
            if let NetworkMode::Service(owner) = &service.network && !kept.contains_key(owner) {
                service.network = NetworkMode::None;
            }
            // What others wait to see completed is a job: it is not started again when it is.
            for (name, _) in service.depends_on.iter().filter(|(_, it)| it.condition == Condition::ServiceCompletedSuccessfully) {
                if let Some(job) = kept.get_mut(name) {
                    job.restart = Restart::No;
                }
            }
            kept.insert(NAMES[number].to_owned(), service);
        }
        let networks =
            internal.iter().enumerate().map(|(number, &internal)| {
                (format!("n{number}"), Network { internal, ..Network::default() })
            });
        let volumes = (0..2).map(|number| (format!("v{number}"), coracle_compose::Volume::default()));
        let project = Project {
            name: "demo".to_owned(),
            services: kept,
            networks: networks.collect(),
            volumes: volumes.collect(),
            ..Project::default()
        };
        Some(Wanted {
            rounds: NAMES.iter().zip(restarts).map(|(name, (restart, recreate))| {
                ((*name).to_owned(), coracle::target::Round { restart, recreate })
            }).collect(),
            stopped: stopped.iter().map(|&it| NAMES[it].to_owned()).collect(),
            project,
            ..Wanted::default()
        })
    }
}

fn of(wanted: Option<Wanted>) -> Target {
    Target { projects: wanted.map(|it| ("demo".to_owned(), it)).into_iter().collect(), ..Target::default() }
}

/// `PROPTEST_CASES` for a longer look.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|it| it.parse().ok()).unwrap_or(400)
}

/// Something that happens to a container, in numbers.
fn strike(world: &mut World, number: usize, what: u8) {
    let now = world.now;
    match what {
        0 => world.current.rules.clear(),
        1 => {
            let lost = world.current.images.pop_first();
            world.current.unnamed.extend(lost.map(|(_, image)| image.digest));
        }
        5 => world.current.remains = true,
        6 => world.current.foreign.links.extend(world.current.networks.values().nth(number).map(|it| it.range)),
        7 => world.current.foreign.routes.extend(world.current.networks.values().nth(number).map(|it| it.range)),
        _ => {
            let Some(container) = world.current.containers.values_mut().nth(number) else { return };
            match (&mut container.state, what) {
                (State::Running { .. }, 2) => {
                    container.state = State::Ended { code: 1, at: now, streak: 1, ordered: false };
                }
                (State::Running { .. }, 3) => {
                    container.state = State::Ended { code: 0, at: now, streak: 1, ordered: false };
                }
                (State::Running { health, .. }, _) => *health = Health::Unhealthy,
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn doing_the_plan_reaches_the_target_and_loses_no_volume(
        first in wanted_project(),
        rounds in 0..40_usize,
        strikes in proptest::collection::vec((0..5_usize, 0..8_u8), 0..4),
        second in wanted_project(),
        other in any::<bool>(),
        luck in any::<u64>(),
    ) {
        let second = if other { second } else { first.clone() };
        let mut world = World::new();
        world.luck = luck;
        let mut target = of(first);
        for _ in 0..rounds {
            let plan = world.plan(&target);
            world.turn(&mut target, &plan);
        }
        for (number, what) in strikes {
            strike(&mut world, number, what);
        }
        let volumes: BTreeSet<_> = world.current.volumes.clone();
        let mut target = of(second);
        // Nobody waits for what will not come: an unhealthy service is healthy again, a failed job was repaired.
        let mut settled = Err(String::new());
        for _ in 0..4 {
            settled = world.settle(&mut target);
            if settled.is_err() || !world.plan(&target).steps.iter().any(coracle::plan::Step::is_stuck) {
                break;
            }
            repair(&mut world, &mut target);
        }
        prop_assert!(settled.is_ok(), "{:?}", settled);
        let stuck = world.plan(&target).steps.iter().any(coracle::plan::Step::is_stuck);
        if !stuck {
            world.check(&target);
            let rest = world.plan(&target);
            prop_assert!(rest.steps.iter().all(coracle::plan::Step::is_another_try), "{:#?}", rest);
        }
        prop_assert!(volumes.is_subset(&world.current.volumes));
    }

    #[test]
    fn the_same_inputs_give_the_same_plan(first in wanted_project(), second in wanted_project()) {
        let mut world = World::new();
        let mut target = of(first);
        for _ in 0..5 {
            let plan = world.plan(&target);
            world.turn(&mut target, &plan);
        }
        let target = of(second);
        prop_assert_eq!(world.plan(&target), world.plan(&target));
    }
}

/// What a person does about services that others wait for in vain.
fn repair(world: &mut World, target: &mut Target) {
    for container in world.current.containers.values_mut() {
        match &mut container.state {
            State::Running { health, .. } if *health == Health::Unhealthy => *health = Health::Healthy,
            State::Ended { ordered: false, code, .. } if *code != 0 => {
                if let Some(wanted) = target.projects.get_mut(&container.identity.project) {
                    wanted.rounds.entry(container.identity.service.clone()).or_default().restart =
                        container.round + 1;
                }
            }
            // A job that others want healthy or started is started again.
            State::Ended { ordered: false, .. } => {
                if let Some(wanted) = target.projects.get_mut(&container.identity.project) {
                    wanted.rounds.entry(container.identity.service.clone()).or_default().restart =
                        container.round + 1;
                }
            }
            _ => {}
        }
    }
    for wanted in target.projects.values_mut() {
        wanted.stopped.clear();
    }
}

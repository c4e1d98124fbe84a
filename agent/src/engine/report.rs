//! The status that everybody sees.

use super::{Engine, Known};
use crate::logfile::Bounds;
use crate::plan::{Action, Plan, Wait};
use crate::status::{Failure, ProjectStatus, RunningStep, ServiceStatus, Status};
use coracle_compose::Service;
use std::rc::Rc;

impl Engine {
    pub(super) fn publish(&mut self, plan: &Plan) {
        let mut status = Status {
            steps: plan.steps.clone(),
            problems: plan.problems.clone(),
            notices: plan.notices.clone(),
            lacks: self.lacks.clone(),
            running: self
                .running
                .iter()
                .map(|(key, running)| RunningStep {
                    key: key.clone(),
                    project: running.action.project().cloned().unwrap_or_default(),
                    bytes: running.bytes(),
                })
                .collect(),
            failures: self
                .failures
                .iter()
                .map(|(key, (failed, code))| Failure {
                    key: key.clone(),
                    reason: failed.reason.clone(),
                    count: failed.count,
                    transient: failed.transient,
                    code: *code,
                })
                .collect(),
            order: self.order,
            rules_repaired: self.rules_repaired,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            shim_pid: self.shim_pid,
            ..Status::default()
        };
        for (name, wanted) in &self.target.projects {
            let services = wanted.project.services.iter().map(|(service, definition)| {
                let mut it = self.service(name, service, definition, plan);
                it.stopped = wanted.stopped.contains(service);
                (service.clone(), it)
            });
            let project = ProjectStatus { file: wanted.file.clone(), services: services.collect() };
            status.projects.insert(name.clone(), project);
        }
        // Containers of projects that are being taken down are still shown.
        for (id, known) in &self.containers {
            let identity = &known.identity;
            let project = status.projects.entry(identity.project.clone()).or_default();
            project
                .services
                .entry(identity.service.clone())
                .or_insert_with(|| self.of_container(id, known, ServiceStatus::default()));
        }
        status.projects.retain(|name, _| !name.is_empty());
        self.status.send_if_modified(|known| {
            let changed = **known != status;
            if changed {
                *known = Rc::new(status);
            }
            changed
        });
    }

    fn service(&self, project: &str, name: &str, service: &Service, plan: &Plan) -> ServiceStatus {
        let mut status = ServiceStatus {
            image: service.image.clone().unwrap_or_default(),
            state: "absent".to_owned(),
            log_files: Bounds::of(&service.logging),
            ..ServiceStatus::default()
        };
        let of_service =
            |(_, known): &(&String, &Known)| known.identity.project == project && known.identity.service == name;
        // During a replacement there are two for a moment: the one that runs counts.
        let mut containers: Vec<(&String, &Known)> = self.containers.iter().filter(of_service).collect();
        containers.sort_by_key(|(id, _)| self.shim.get(*id).is_none_or(|it| it.pid.is_none()));
        if let Some((id, known)) = containers.first() {
            status = self.of_container(id, known, status);
            status.ports = self.ports(project, &status);
        }
        let step = plan.steps.iter().find(|step| {
            matches!(&step.action, Action::Start { project: of, service, .. } if of == project && service == name)
        });
        if let Some(step) = step {
            status.waits = step.waits.iter().map(ToString::to_string).collect();
            status.stuck = step.is_stuck();
            let pulls = step.waits.iter().filter_map(|wait| match wait {
                Wait::After(key) | Wait::RunsAfter(key) => self.failures.get(key),
                _ => None,
            });
            for (failed, _) in pulls {
                status.waits.push(failed.reason.clone());
            }
        }
        for problem in plan.problems.iter().filter(|it| it.project == project && it.service == name) {
            status.waits.push(problem.reason.clone());
            status.stuck = true;
        }
        status
    }

    fn of_container(&self, id: &str, known: &Known, status: ServiceStatus) -> ServiceStatus {
        let record = &known.record;
        let shim = self.shim.get(id);
        let pid = shim.and_then(|it| it.pid);
        let last = record.last();
        let state = match (pid, last) {
            (Some(_), _) => "running",
            (None, Some(_)) => "exited",
            (None, None) if known.completed => "exited",
            (None, None) => "created",
        };
        ServiceStatus {
            container: id.to_owned(),
            image_digest: known.identity.image.clone(),
            state: state.to_owned(),
            exit_code: match pid {
                Some(_) => None,
                None => last.map(|exit| exit.code).or(known.completed.then_some(0)),
            },
            health: record.health,
            health_failures: record.health_failures,
            health_output: record.health_output.clone(),
            pid,
            started: shim.filter(|_| pid.is_some()).map(|it| it.started_unix_ns / 1_000_000_000),
            restarts: record.restarts,
            exits: record.exits.iter().cloned().collect(),
            addresses: record.addresses.clone(),
            log_dropped: shim.map_or(0, |it| it.log_dropped),
            cgroup: self.cgroup_of(id),
            oom_kills: record.oom_kills,
            last_oom_kill: record.last_oom_kill,
            ..status
        }
    }

    /// Read from the rules that are in force: what is shown is what holds.
    fn ports(&self, project: &str, status: &ServiceStatus) -> Vec<String> {
        let rules = self.rules.get(project).map(String::as_str).unwrap_or_default();
        coracle_runtime::network::firewall::published_for(rules, status.addresses.values().copied())
    }
}

//! From what is and what is wanted to steps. Pure: no clock, no files; the same inputs give the same plan.
//!
//! ```text
//! Current ─┐
//! Target  ─┼─> plan ─> [Step { action, why, waits }]     ready ones are done, then everything is looked at again
//! now     ─┘
//! ```
//!
//! A plan names every step up to the target, also those that wait. Nothing is taken down for a replacement that
//! cannot be made: a container stays until the image of its successor is there.

mod network;
mod project;
mod step;

pub(crate) use network::{bridge, first_network};
pub use step::{Action, Step, Wait, stuck};

use crate::current::{Current, Moment};
use crate::target::Target;
use project::Planner;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Steps in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Steps; those that are ready can be done at once, in any order.
    pub steps: Vec<Step>,
    /// What cannot be planned, and why.
    pub problems: Vec<Problem>,
    /// What somebody should know, and nothing is done about now.
    pub notices: Vec<String>,
    /// When time alone makes a step ready.
    pub wake: Option<Moment>,
}

/// Something that keeps a service from being planned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// Project.
    pub project: String,
    /// Service.
    pub service: String,
    /// One line.
    pub reason: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: service {} {}", self.project, self.service, self.reason)
    }
}

/// Decides what has to happen so that `current` becomes `target`.
pub fn plan(current: &Current, target: &Target, now: Moment) -> Plan {
    let mut planner = Planner::new(current, target, now);
    for (name, wanted) in &target.projects {
        planner.project(name, wanted);
    }
    planner.take_down_the_rest();
    planner.finish()
}

/// Images that no project wants and nobody asked to keep.
pub(crate) fn unused_images(current: &Current, target: &Target) -> Option<Vec<String>> {
    let mut keep: BTreeSet<String> = BTreeSet::new();
    for (reference, image) in &current.images {
        let wanted = target.projects.values().any(|wanted| {
            wanted
                .project
                .services
                .values()
                .any(|service| crate::wanted::reference(service).is_ok_and(|it| it.to_string() == *reference))
        });
        if wanted || target.kept.contains(reference) {
            keep.insert(image.digest.clone());
        }
    }
    keep.extend(current.containers.values().map(|container| container.identity.image.clone()));
    let mut images = current.images.values().map(|image| &image.digest).chain(&current.unnamed);
    let unused = current.remains || images.any(|digest| !keep.contains(digest));
    unused.then(|| keep.into_iter().collect())
}

//! Steps as data: what is done, why, and what it waits for.

use crate::current::{LiveNetwork, Moment};
use coracle_runtime::network::subnet::Range;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

/// One deed, so exact that its executor has nothing to choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Fetch an image.
    Pull {
        /// Full reference.
        image: String,
        /// The project whose registry settings count.
        project: String,
    },
    /// Make a bridge and answer names on it.
    MakeNetwork {
        /// Its name on the host.
        bridge: String,
        /// Project.
        project: String,
        /// Name in the project.
        network: String,
        /// Its range.
        range: Range,
        /// The bridge's address.
        gateway: Ipv4Addr,
        /// No way out.
        internal: bool,
        /// Digest of its definition.
        definition: String,
    },
    /// Remove a bridge.
    RemoveNetwork {
        /// Its name on the host.
        bridge: String,
        /// Project.
        project: String,
        /// Name in the project.
        network: String,
    },
    /// Make a named volume.
    MakeVolume {
        /// Project.
        project: String,
        /// Name in the project.
        volume: String,
    },
    /// Remove all volumes of a project.
    RemoveVolumes {
        /// Project.
        project: String,
    },
    /// Put a project's rule set in force.
    ApplyRules {
        /// Project.
        project: String,
        /// Text for nft(8).
        rules: String,
    },
    /// Remove a project's rule set.
    RemoveRules {
        /// Project.
        project: String,
    },
    /// Ask a container to end, and kill it after its grace time.
    Stop {
        /// Container id.
        container: String,
        /// Its project.
        project: String,
    },
    /// Remove an ended container with its writable layer.
    Remove {
        /// Container id.
        container: String,
        /// Its project.
        project: String,
    },
    /// Start a container; a new one is made first.
    Start {
        /// Container id.
        container: String,
        /// Project.
        project: String,
        /// Service.
        service: String,
        /// Addresses by network.
        addresses: BTreeMap<String, Ipv4Addr>,
        /// The order that this answers ([`crate::target::Round::restart`]).
        round: u64,
        /// By the restart policy, not by order.
        again: bool,
    },
    /// Remove images that nothing wants.
    RemoveImages {
        /// Digests of the images that stay.
        keep: Vec<String>,
    },
}

/// What a step waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wait {
    /// Another step of the plan, by [`Action::key`].
    After(String),
    /// As [`Wait::After`], but a container can be made meanwhile: only its program waits.
    RunsAfter(String),
    /// A service that it depends on.
    Dependency {
        /// The service.
        service: String,
        /// What is missing, one line.
        missing: String,
        /// It will not come by itself.
        stuck: bool,
    },
    /// The pause after a failure or an end.
    Pause {
        /// Until when, by the boot clock.
        until: Moment,
        /// Why, one line.
        reason: String,
        /// It failed in a way that trying again does not mend.
        stuck: bool,
    },
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What.
    pub action: Action,
    /// Why it is there.
    pub why: String,
    /// What it waits for.
    pub waits: Vec<Wait>,
}

impl Step {
    /// It can be done now, or begun at least ([`Step::is_held`]).
    pub fn is_ready(&self) -> bool {
        self.waits.iter().all(|wait| matches!(wait, Wait::RunsAfter(_)))
    }

    /// It must not come to its end yet.
    pub fn is_held(&self) -> bool {
        self.waits.iter().any(|wait| matches!(wait, Wait::RunsAfter(_)))
    }

    /// It waits for something that will not come by itself.
    pub fn is_stuck(&self) -> bool {
        self.waits.iter().any(|wait| match wait {
            Wait::Dependency { stuck, .. } | Wait::Pause { stuck, .. } => *stuck,
            Wait::After(_) | Wait::RunsAfter(_) => false,
        })
    }
}

impl Action {
    /// Place in a plan: taking down comes before bringing up.
    pub(super) fn phase(&self) -> u8 {
        match self {
            Self::Pull { .. } => 0,
            Self::Stop { .. } => 1,
            Self::Remove { .. } => 2,
            Self::RemoveRules { .. } | Self::RemoveNetwork { .. } | Self::RemoveVolumes { .. } => 3,
            Self::MakeNetwork { .. } | Self::MakeVolume { .. } => 4,
            Self::ApplyRules { .. } => 5,
            Self::Start { .. } => 6,
            Self::RemoveImages { .. } => 7,
        }
    }

    /// What is changed: two deeds about one thing are never under way at once.
    pub fn subject(&self) -> String {
        match self {
            Self::Pull { image, .. } => format!("image {image}"),
            Self::MakeNetwork { project, network, .. } | Self::RemoveNetwork { project, network, .. } => {
                format!("network {project}/{network}")
            }
            Self::MakeVolume { project, .. } | Self::RemoveVolumes { project } => format!("volumes of {project}"),
            Self::ApplyRules { project, .. } | Self::RemoveRules { project } => format!("rules of {project}"),
            Self::Stop { container, .. } | Self::Remove { container, .. } | Self::Start { container, .. } => {
                format!("container {container}")
            }
            Self::RemoveImages { .. } => "images".to_owned(),
        }
    }

    /// Names the deed: two steps of one key are never under way at once, and failures are counted by it.
    pub fn key(&self) -> String {
        match self {
            Self::Pull { image, .. } => format!("pull {image}"),
            Self::MakeNetwork { project, network, .. } => format!("make network {project}/{network}"),
            Self::RemoveNetwork { project, network, .. } => format!("remove network {project}/{network}"),
            Self::MakeVolume { project, volume } => format!("make volume {project}/{volume}"),
            Self::RemoveVolumes { project } => format!("remove volumes of {project}"),
            Self::ApplyRules { project, .. } | Self::RemoveRules { project } => format!("rules of {project}"),
            Self::Stop { container, .. } => format!("stop {container}"),
            Self::Remove { container, .. } => format!("remove {container}"),
            Self::Start { container, .. } => format!("start {container}"),
            Self::RemoveImages { .. } => "remove unused images".to_owned(),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeNetwork { range, internal, .. } => {
                write!(f, "{} {range}{}", self.key(), if *internal { " internal" } else { "" })
            }
            Self::Start { addresses, .. } => {
                f.write_str(&self.key())?;
                addresses.iter().try_for_each(|(network, address)| write!(f, " {network}={address}"))
            }
            Self::ApplyRules { .. } => write!(f, "apply {}", self.key()),
            Self::RemoveRules { .. } => write!(f, "remove {}", self.key()),
            _ => f.write_str(&self.key()),
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(key) => write!(f, "after: {key}"),
            Self::RunsAfter(key) => write!(f, "runs after: {key}"),
            Self::Dependency { service, missing, .. } => write!(f, "waits for {service}: {missing}"),
            Self::Pause { reason, .. } => f.write_str(reason),
        }
    }
}

impl Step {
    /// A start by the restart policy.
    pub fn is_another_try(&self) -> bool {
        matches!(self.action, Action::Start { again: true, .. })
    }

    /// True when the step belongs to a project.
    pub fn concerns(&self, name: &str) -> bool {
        self.action.concerns(name)
    }
}

impl Action {
    /// True when the deed belongs to a project.
    pub fn concerns(&self, name: &str) -> bool {
        self.project().is_some_and(|project| project == name)
    }

    /// The network that [`Action::MakeNetwork`] makes.
    pub fn made_network(&self) -> Option<LiveNetwork> {
        let Self::MakeNetwork { project, network, range, gateway, internal, definition, .. } = self else {
            return None;
        };
        Some(LiveNetwork {
            project: project.clone(),
            name: network.clone(),
            range: *range,
            gateway: *gateway,
            definition: definition.clone(),
            internal: *internal,
        })
    }

    /// The project that the deed belongs to.
    pub fn project(&self) -> Option<&String> {
        match self {
            Self::Pull { project, .. }
            | Self::MakeNetwork { project, .. }
            | Self::RemoveNetwork { project, .. }
            | Self::MakeVolume { project, .. }
            | Self::RemoveVolumes { project }
            | Self::ApplyRules { project, .. }
            | Self::RemoveRules { project }
            | Self::Stop { project, .. }
            | Self::Remove { project, .. }
            | Self::Start { project, .. } => Some(project),
            Self::RemoveImages { .. } => None,
        }
    }
}

/// Keys of the steps that will not become ready by themselves: those that are stuck, and those that wait for them.
pub fn stuck(steps: &[&Step]) -> BTreeSet<String> {
    let mut keys: BTreeSet<String> =
        steps.iter().filter(|step| step.is_stuck()).map(|step| step.action.key()).collect();
    loop {
        let service_is_stuck = |name: &String| {
            steps.iter().any(|step| {
                matches!(&step.action, Action::Start { service, .. } if service == name)
                    && keys.contains(&step.action.key())
            })
        };
        let waits_in_vain = |wait: &Wait| match wait {
            Wait::After(key) | Wait::RunsAfter(key) => keys.contains(key),
            Wait::Dependency { service, .. } => service_is_stuck(service),
            Wait::Pause { .. } => false,
        };
        let more: Vec<String> = steps
            .iter()
            .filter(|step| step.waits.iter().any(waits_in_vain))
            .map(|step| step.action.key())
            .filter(|key| !keys.contains(key))
            .collect();
        if more.is_empty() {
            return keys;
        }
        keys.extend(more);
    }
}

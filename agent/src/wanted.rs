//! What one service becomes on this device: which container, of which definition. Pure.

use crate::current::{Identity, KnownImage};
use crate::health::{self, Check};
use crate::target::Wanted;
use coracle_compose::{HealthCheck, Logging, NetworkMode, PullPolicy, Restart, Service};
use coracle_runtime::image::{Reference, digest_of};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Raised when the same description makes another container than before: then all are made anew.
const DEFINITION_VERSION: u32 = 1;

/// Hex digits of the definition in a container's id: two definitions of one service never share one in practice,
/// and `definition` is compared too.
const ID_DIGITS: usize = 8;

/// Time between the stop signal and SIGKILL when the file says nothing (Compose Specification).
const GRACE: Duration = Duration::from_secs(10);

/// SIGTERM.
const TERM: i32 = 15;

/// A service, resolved against its image.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The container's id.
    pub id: String,
    /// What is written about it on disk.
    pub identity: Identity,
    /// Its check.
    pub check: Option<Check>,
}

/// The full name of a service's image.
///
/// # Errors
/// Why the service has none, one line.
pub fn reference(service: &Service) -> Result<Reference, String> {
    match &service.image {
        Some(name) => name.parse().map_err(|error: coracle_runtime::image::ReferenceError| error.to_string()),
        None => Err("has a build and no image: build it elsewhere and name the image, or use --image".to_owned()),
    }
}

/// Resolves a service. `owner` is the container whose network it shares.
///
/// # Errors
/// Why no container can be made of it, one line.
pub fn resolve(wanted: &Wanted, name: &str, image: &KnownImage, owner: Option<&str>) -> Result<Resolved, String> {
    let project = &wanted.project;
    let service = project.services.get(name).ok_or("is not in the project")?;
    if arguments(service, image).is_empty() {
        return Err("has nothing to run: neither the image nor the file has a command or an entrypoint".to_owned());
    }
    if let Some(role) = service.cdi_devices.first() {
        return Err(format!("asks for the device {role}: this board has no device roles; name the node, /dev/…"));
    }
    let stop_signal = service.stop_signal.as_deref().or(image.config.stop_signal.as_deref());
    let stop_signal = match stop_signal {
        None => TERM,
        Some(text) => coracle_compose::signal_number(text).ok_or(format!("stop signal {text:?} is not known"))?,
    };
    let definition = definition(wanted, name, service, image, owner);
    let grace = service.stop_grace_period.unwrap_or(GRACE);
    Ok(Resolved {
        id: format!("{}-{name}-{}", project.name, &definition[..ID_DIGITS]),
        identity: Identity {
            project: project.name.clone(),
            service: name.to_owned(),
            definition,
            image: image.digest.clone(),
            after: coracle_compose::references(service),
            stop_signal,
            stop_grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
            privileged: service.privileged,
            recreate: wanted.round(name).recreate,
            created: 0,
        },
        check: health::check(service.healthcheck.as_ref(), image.config.healthcheck.as_ref()),
    })
}

/// Checks the system call profiles that services bring along.
///
/// # Errors
/// Service, field and why, one line.
pub fn check_profiles(project: &coracle_compose::Project) -> Result<(), String> {
    use coracle_runtime::seccomp::{self, Arch};
    let arches = Arch::of_this_machine();
    let reader = seccomp::Reader { capabilities: &[], kernel: (u32::MAX, 0), arches, notify: false };
    for (name, service) in &project.services {
        let Some(profile) = &service.seccomp else { continue };
        let compiled = reader
            .read(profile)
            .and_then(|(profile, arches)| seccomp::compile(&profile, &arches).map_err(|error| error.to_string()));
        compiled.map_err(|reason| format!("services.{name}.security_opt: seccomp profile: {reason}"))?;
    }
    Ok(())
}

/// Program and arguments: the file's entrypoint drops the image's command (Compose Specification, `entrypoint`).
pub fn arguments(service: &Service, image: &KnownImage) -> Vec<String> {
    let mut args = service.entrypoint.clone().unwrap_or_else(|| image.config.entrypoint.clone());
    match (&service.command, &service.entrypoint) {
        (Some(command), _) => args.extend(command.iter().cloned()),
        // A cleared entrypoint leaves the image's command; one that is set drops it.
        (None, Some(entrypoint)) if !entrypoint.is_empty() => {}
        (None, _) => args.extend(image.config.cmd.iter().cloned()),
    }
    args
}

/// Digest over what the container is made of. What the agent does around it (order, restarts, checks, ports) is left
/// out: it changes without a new container.
fn definition(wanted: &Wanted, name: &str, service: &Service, image: &KnownImage, owner: Option<&str>) -> String {
    let project = &wanted.project;
    let made_of = Service {
        image: None,
        has_build: false,
        restart: Restart::No,
        stop_signal: None,
        stop_grace_period: None,
        healthcheck: None::<HealthCheck>,
        depends_on: BTreeMap::new(),
        links: Vec::new(),
        ports: Vec::new(),
        expose: Vec::new(),
        labels: service.labels.clone(),
        pull_policy: PullPolicy::Missing,
        platform: None,
        scale: 1,
        logging: Logging { none: service.logging.none, ..Logging::default() },
        running: None,
        ..service.clone()
    };
    let networks: BTreeMap<&String, _> = match &service.network {
        NetworkMode::Networks(networks) => {
            networks.keys().filter_map(|it| Some((it, project.networks.get(it)?))).collect()
        }
        _ => BTreeMap::new(),
    };
    let grants = |grants: &[coracle_compose::FileGrant]| -> BTreeSet<String> {
        grants.iter().map(|grant| grant.source.clone()).collect()
    };
    let secrets: BTreeMap<String, _> =
        grants(&service.secrets).into_iter().map(|it| (it.clone(), project.secrets.get(&it))).collect();
    let configs: BTreeMap<String, _> =
        grants(&service.configs).into_iter().map(|it| (it.clone(), project.configs.get(&it))).collect();
    let parts = (DEFINITION_VERSION, name, &made_of, &image.digest, networks, secrets, configs, owner);
    let text = serde_json::to_vec(&parts).unwrap_or_default();
    digest_of(&text).trim_start_matches("sha256:").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_tells_only_what_differs_from_the_default() {
        let told = |service: &Service| serde_json::to_string(service).expect("a document");
        assert_eq!(told(&Service::default()), "{}");
        let service = Service { privileged: true, user: Some("app".to_owned()), ..Service::default() };
        assert_eq!(told(&service), r#"{"user":"app","privileged":true}"#);
    }
}

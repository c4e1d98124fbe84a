//! Steps become tasks: everything that a deed needs is gathered here, so that it reads nothing of the engine's.

use super::keeper::Kept;
use super::{Engine, Known, MAX_PULLS, MAX_STARTS, Message, Outcome, Running};
use crate::clock::unix_now;
use crate::current::{Current, Identity, LiveNetwork};
use crate::execute::{self, Context, Gate, Link, StartJob, StepError, blocking};
use crate::logfile::Bounds;
use crate::plan::{Action, Plan, Step, bridge, first_network};
use crate::settings::Settings;
use crate::target::Registries;
use crate::translate::{self, Parts};
use crate::wanted;
use coracle_compose::{Attachment, NetworkMode};
use coracle_runtime::image::{self, PullOptions, Reference, digest_of};
use coracle_runtime::network::namespace::Interface;
use coracle_runtime::network::{INTERFACE_PREFIX, MAX_INTERFACE};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

impl Engine {
    /// Begins a step unless it, or too many of its kind, are under way.
    pub(super) fn launch(&mut self, step: &Step, current: &Current) {
        let Step { action, why, .. } = step;
        let key = action.key();
        let subject = action.subject();
        let busy = self.running.values().any(|running| running.action.subject() == subject);
        if busy || !self.has_room_for(action) {
            return;
        }
        tracing::info!(step = %action, why, "begins");
        let mut running = Running {
            action: action.clone(),
            cancel: Arc::default(),
            gate: None,
            progress: Arc::new(Mutex::new(None)),
        };
        let context = self.context.clone();
        match action {
            Action::Pull { image, project } => {
                let options = self.target.projects.get(project).map(|it| options(&it.registries));
                let job = pull(context, image.clone(), options.unwrap_or_default(), &running);
                self.spawn(key.clone(), job);
            }
            Action::MakeNetwork { bridge, .. } => {
                let Some(live) = action.made_network() else { return };
                let (paths, bridge) = (context.paths.as_ref().clone(), bridge.clone());
                self.spawn(key.clone(), done(blocking(move || execute::make_network(&paths, &bridge, &live))));
            }
            Action::RemoveNetwork { bridge, .. } => {
                // Its name server holds the bridge's address.
                self.networks.remove(bridge);
                self.update_names();
                let (paths, bridge) = (context.paths.as_ref().clone(), bridge.clone());
                self.spawn(key.clone(), done(blocking(move || execute::remove_network(&paths, &bridge))));
            }
            Action::MakeVolume { project, volume } => {
                let folder = context.paths.volume(project, volume);
                let make = move || {
                    std::fs::create_dir_all(&folder)
                        .map_err(StepError::file(format!("making the volume {}", folder.display())))
                };
                self.spawn(key.clone(), done(blocking(make)));
            }
            Action::RemoveVolumes { project } => {
                let (paths, folder) = (context.paths.as_ref().clone(), context.paths.volumes(project));
                let remove = move || {
                    let action = format!("removing the volumes {}", folder.display());
                    paths.remove_folder(&folder).map_err(StepError::file(action))
                };
                self.spawn(key.clone(), done(blocking(remove)));
            }
            Action::ApplyRules { project, rules } => {
                let old = self.rules.get(project).cloned().unwrap_or_default();
                let (project, rules) = (project.clone(), rules.clone());
                self.spawn(key.clone(), done(blocking(move || execute::apply_rules(&project, &old, &rules))));
            }
            Action::RemoveRules { project } => {
                let old = self.rules.get(project).cloned().unwrap_or_default();
                let project = project.clone();
                self.spawn(key.clone(), done(blocking(move || execute::remove_rules(&project, &old))));
            }
            Action::Stop { container, .. } => {
                let identity = self.note_stop(container);
                let grace = Duration::from_millis(identity.stop_grace_ms);
                let job = execute::stop(context, container.clone(), identity.stop_signal, grace);
                self.spawn(key.clone(), done(job));
            }
            Action::Remove { container, .. } => {
                let attached = self.containers.get(container).map(|it| it.record.addresses.clone());
                let outer = attached.unwrap_or_default().keys().map(|it| outer_name(container, it)).collect();
                let (kept, keeper) = (self.kept_log(container), Rc::clone(&self.keeper));
                let remove = execute::remove(context, container.clone(), outer);
                let job = async move {
                    // Its log goes with it. A disk that takes no log is no reason to keep a container.
                    if let Some(kept) = kept
                        && let Err(error) = keeper.keep(&kept).await
                    {
                        tracing::warn!(container = %kept.id, error = super::chain(&error), "its log is not kept");
                    }
                    remove.await
                };
                self.spawn(key.clone(), done(job));
            }
            Action::Start { container, project, service, addresses, round, again } => {
                let job = self.start_job(container, project, service, addresses, current).and_then(|mut job| {
                    if step.is_held() {
                        let (gate, barrier) = Gate::new().map_err(|error| format!("making a pipe: {error}"))?;
                        (running.gate, job.barrier) = (Some(gate), Some(barrier));
                    }
                    Ok(job)
                });
                match job {
                    Ok(job) => {
                        self.note_start(container, &job.identity, addresses, *round, *again);
                        let job = async move { execute::start(context, job).await.map(Outcome::Started) };
                        self.spawn(key.clone(), job);
                    }
                    Err(reason) => {
                        self.spawn(key.clone(), async move { Err(StepError::Description(reason)) });
                    }
                }
            }
            Action::RemoveImages { keep } => {
                let keep: BTreeSet<String> = keep.iter().cloned().collect();
                let remove = move || {
                    let freed = context.store.remove_unused(&keep)?;
                    tracing::info!(bytes = freed.bytes, layers = freed.layers, images = freed.images, "removed");
                    Ok(())
                };
                self.spawn(key.clone(), done(blocking(remove)));
            }
        }
        self.running.insert(key, running);
    }

    /// Where a container's log is kept, when its service wants that.
    fn kept_log(&self, id: &str) -> Option<Kept> {
        let identity = &self.containers.get(id)?.identity;
        let wanted = self.target.projects.get(&identity.project)?;
        let bounds = Bounds::of(&wanted.project.services.get(&identity.service)?.logging)?;
        let folder = self.context.paths.log_folder(&identity.project, &identity.service);
        Some(Kept { id: id.to_owned(), folder, bounds })
    }

    fn has_room_for(&self, action: &Action) -> bool {
        let count = |is: fn(&Action) -> bool| self.running.values().filter(|it| is(&it.action)).count();
        match action {
            Action::Pull { .. } => count(|it| matches!(it, Action::Pull { .. })) < MAX_PULLS,
            Action::Start { .. } => count(|it| matches!(it, Action::Start { .. })) < MAX_STARTS,
            // Both hold the store's lock for long.
            Action::RemoveImages { .. } => count(|it| matches!(it, Action::Pull { .. })) == 0,
            _ => true,
        }
    }

    fn spawn(&self, key: String, job: impl Future<Output = Result<Outcome, StepError>> + 'static) {
        let sender = self.ears.sender.clone();
        tokio::task::spawn_local(async move {
            let outcome = job.await;
            // The loop is at its end: nobody needs to know.
            let _ = sender.send(Message::Done { key, outcome }).await;
        });
    }

    /// Ends pulls that the plan has no use for.
    pub(super) fn cancel_unwanted(&self, plan: &Plan) {
        for (key, running) in &self.running {
            let wanted = plan.steps.iter().any(|step| step.action.key() == *key);
            if matches!(running.action, Action::Pull { .. }) && !wanted {
                running.cancel.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Lets the programs of held starts run when the plan says that nothing is in their way any more. A start that is
    /// to wait for something else now is called off; it comes again.
    pub(super) fn open_gates(&mut self, plan: &Plan) {
        for (key, running) in &mut self.running {
            let Some(gate) = running.gate.take() else { continue };
            match plan.steps.iter().find(|step| step.action.key() == *key) {
                Some(step) if step.is_ready() && step.is_held() => running.gate = Some(gate),
                Some(step) if step.is_ready() => gate.open(),
                _ => running.cancel.store(true, Ordering::Relaxed),
            }
        }
    }

    fn note_stop(&mut self, id: &str) -> Identity {
        let Some(known) = self.containers.get_mut(id) else { return Identity::default() };
        known.record.stop_ordered = true;
        // How it is stopped is the file's newest word, not that of its making.
        let service = self
            .target
            .projects
            .get(&known.identity.project)
            .and_then(|wanted| Some((wanted, wanted.project.services.get(&known.identity.service)?)));
        let mut identity = known.identity.clone();
        if let Some((wanted, service)) = service
            && let Ok(reference) = wanted::reference(service)
            && let Some(image) = self.images.get(&reference.to_string())
            && let Ok(resolved) = wanted::resolve(wanted, &identity.service, image, None)
        {
            identity.stop_signal = resolved.identity.stop_signal;
            identity.stop_grace_ms = resolved.identity.stop_grace_ms;
        }
        self.save_record(id);
        identity
    }

    fn note_start(
        &mut self,
        id: &str,
        identity: &Identity,
        addresses: &BTreeMap<String, Ipv4Addr>,
        round: u64,
        again: bool,
    ) {
        self.containers.entry(id.to_owned()).or_insert_with(|| Known {
            identity: identity.clone(),
            record: super::Record::default(),
            completed: false,
        });
        let checked = self.check_of(id).is_some();
        if let Some(known) = self.containers.get_mut(id) {
            known.record.note_start(addresses.clone(), round, again, checked);
        }
        self.save_record(id);
    }

    /// A broken file gives nothing up, and keeps no service from starting that needs nothing of it.
    fn settings(&self) -> Settings {
        Settings::read(&self.context.paths).unwrap_or_else(|reason| {
            tracing::warn!(%reason, "the device's settings do not count");
            Settings::default()
        })
    }

    fn start_job(
        &self,
        id: &str,
        project: &str,
        service: &str,
        addresses: &BTreeMap<String, Ipv4Addr>,
        current: &Current,
    ) -> Result<StartJob, String> {
        let wanted = self.target.projects.get(project).ok_or("the project is gone")?;
        let definition = wanted.project.services.get(service).ok_or("the service is gone")?;
        let reference = wanted::reference(definition)?;
        let image = self.context.store.find(&reference).map_err(|error| error.to_string())?;
        let image = image.ok_or_else(|| format!("image {reference} is not in the store"))?;
        let known = self.images.get(&reference.to_string()).ok_or("the image is gone")?;
        let containers: BTreeMap<&str, &str> = current
            .containers
            .iter()
            .filter(|(other, it)| it.identity.project == project && *other != id)
            .map(|(other, it)| (it.identity.service.as_str(), other.as_str()))
            .collect();
        let owner = match &definition.network {
            NetworkMode::Service(owner) => containers.get(owner.as_str()).copied(),
            _ => None,
        };
        let mut identity = wanted::resolve(wanted, service, known, owner)?.identity;
        identity.created = unix_now();
        let networks: BTreeMap<&str, &LiveNetwork> = self
            .networks
            .values()
            .filter(|live| live.project == project)
            .map(|live| (live.name.as_str(), live))
            .collect();
        let host_resolv = coracle_runtime::network::resolv::read();
        let links = match &definition.network {
            NetworkMode::Networks(attached) => {
                Some(links(id, project, attached, first_network(&definition.network), addresses, &networks))
            }
            NetworkMode::None => Some(Vec::new()),
            NetworkMode::Host | NetworkMode::Service(_) => None,
        };
        let parts = Parts {
            wanted,
            identity: &identity,
            id,
            image: known,
            lower: self.context.store.layer_dirs(&image),
            addresses,
            networks,
            containers,
            host_resolv: &host_resolv,
            accepted_losses: self.settings().accepted_losses,
        };
        let made = translate::container(&self.context.paths, &parts)?;
        Ok(StartJob { made, identity, links, barrier: None })
    }
}

/// How a project's images are fetched.
pub fn options(registries: &Registries) -> PullOptions {
    let standard = PullOptions::default();
    let seconds =
        std::env::var("CORACLE_REGISTRY_TIMEOUT").ok().and_then(|it| it.parse().ok()).filter(|&it| it > 0);
    PullOptions {
        timeout: seconds.map_or(standard.timeout, Duration::from_secs),
        plain_http: registries.plain_http.clone(),
        ca_files: registries.ca_files.clone(),
        docker_config: registries.docker_config.clone(),
        ..standard
    }
}

fn pull(
    context: Context,
    image: String,
    options: PullOptions,
    running: &Running,
) -> impl Future<Output = Result<Outcome, StepError>> + 'static {
    let (cancel, progress): (Arc<AtomicBool>, _) = (Arc::clone(&running.cancel), Arc::clone(&running.progress));
    let work = move || {
        let reference: Reference = image.parse().map_err(image::Error::from)?;
        let tell = |now| *progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        Ok(image::pull(&context.store, &reference, &options, &cancel, &tell)?)
    };
    async move { blocking(work).await.map(|image| Outcome::Pulled(Box::new(image))) }
}

async fn done(job: impl Future<Output = Result<(), StepError>>) -> Result<Outcome, StepError> {
    job.await.map(|()| Outcome::Done)
}

/// The interfaces of a container: `eth0` on the first network, the others in order of their names.
fn links(
    id: &str,
    project: &str,
    attached: &BTreeMap<String, Attachment>,
    first: Option<&String>,
    addresses: &BTreeMap<String, Ipv4Addr>,
    networks: &BTreeMap<&str, &LiveNetwork>,
) -> Vec<Link> {
    let mut names: Vec<&String> = attached.keys().collect();
    names.sort_by_key(|name| (Some(*name) != first, *name));
    let present =
        names.into_iter().filter_map(|name| Some((name, *addresses.get(name)?, *networks.get(name.as_str())?)));
    // The way out leads through the first network that has one.
    let mut has_way_out = false;
    let links = present.enumerate().map(|(number, (name, address, live))| {
        let way_out = !live.internal && !has_way_out;
        has_way_out |= way_out;
        let outer = outer_name(id, name);
        Link {
            bridge: bridge(project, name),
            mac: attached[name].mac_address.as_deref().and_then(mac),
            interface: Interface {
                name: format!("{outer}i"),
                inner: format!("eth{number}"),
                address,
                range: live.range,
                gateway: way_out.then_some(live.gateway),
            },
            outer,
        }
    });
    links.collect()
}

/// Name of the outer end of a container's interface on a network.
pub(super) fn outer_name(id: &str, network: &str) -> String {
    let digest = digest_of(format!("{id}/{network}").as_bytes());
    // One shorter than a name may be: the inner end's first name has one letter more.
    let digits = MAX_INTERFACE - INTERFACE_PREFIX.len() - 2;
    format!("{INTERFACE_PREFIX}v{}", &digest["sha256:".len()..][..digits])
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text.split([':', '-']).filter_map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes.try_into().ok()
}

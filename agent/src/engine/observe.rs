//! Looking: at the disk once, at the shim after its events, at the network when it may have changed.

use super::record::Record;
use super::{Engine, Known, Message};
use crate::clock::boot_id;
use crate::current::{Container, Identity, KnownImage, LiveNetwork, State};
use crate::durable;
use crate::paths::Paths;
use coracle_compose::Restart;
use coracle_runtime::container::cgroup;
use coracle_runtime::network::firewall;
use coracle_runtime::network::links::Links;
use coracle_runtime::network::watch::Routes;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;

/// Marks a container that ended with 0 and is not to be run again, beside its identity.
const COMPLETED: &str = "completed";

/// True when nothing was remembered since the kernel was started.
pub fn is_new_boot(paths: &Paths) -> bool {
    std::fs::read_to_string(paths.run.join("boot")).ok().is_none_or(|known| known != boot_id())
}

/// Remembers this boot.
///
/// # Errors
/// As the file system says.
pub fn remember_boot(paths: &Paths) -> std::io::Result<()> {
    if is_new_boot(paths) {
        // A run folder on a disk keeps what is not true any more.
        for folder in ["state", "networks"] {
            for entry in std::fs::read_dir(paths.run.join(folder))?.flatten() {
                std::fs::remove_file(entry.path())?;
            }
        }
        let _ = std::fs::remove_file(paths.run.join("rules"));
        std::fs::write(paths.run.join("boot"), boot_id())?;
    }
    Ok(())
}

/// Remembers the rule sets, so that an agent that is restarted need not touch them.
pub fn remember_rules(paths: &Paths, rules: &BTreeMap<String, String>) {
    // Lost: then they are applied once more.
    let _ = durable::write_volatile(&paths.run.join("rules"), rules);
}

impl Engine {
    /// Reads what is on disk and in the run folder.
    pub(super) fn read_disk(&mut self) -> anyhow::Result<()> {
        let paths = self.context.paths.clone();
        self.read_images();
        for entry in std::fs::read_dir(paths.containers())?.flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            let identity = durable::read_json::<Identity>(&entry.path().join("identity.json"))?;
            let Some(identity) = identity else {
                tracing::warn!(container = %id, "unfinished container removed");
                paths.remove_folder(&entry.path())?;
                continue;
            };
            let record = durable::read_json::<Record>(&paths.state(&id))?.unwrap_or_default();
            let completed = entry.path().join(COMPLETED).exists();
            self.containers.insert(id, Known { identity, record, completed });
        }
        // Left by an agent that was killed between a container's folder and its record.
        for entry in std::fs::read_dir(paths.run.join("state"))?.flatten() {
            let id = entry.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if !self.containers.contains_key(&id) {
                std::fs::remove_file(entry.path())?;
            }
        }
        for project in std::fs::read_dir(paths.data.join("volumes"))?.flatten() {
            for volume in std::fs::read_dir(project.path())?.flatten() {
                let names = (project.file_name(), volume.file_name());
                self.volumes
                    .insert((names.0.to_string_lossy().into_owned(), names.1.to_string_lossy().into_owned()));
            }
        }
        self.read_networks(&paths)?;
        Ok(())
    }

    fn read_networks(&mut self, paths: &Paths) -> anyhow::Result<()> {
        let there: Vec<String> = Links::open()?.list()?.into_iter().map(|(_, name)| name).collect();
        for entry in std::fs::read_dir(paths.run.join("networks"))?.flatten() {
            let bridge = entry.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(live) =
                durable::read_json::<LiveNetwork>(&entry.path())?.filter(|_| there.contains(&bridge))
            {
                self.networks.insert(bridge, live);
            }
        }
        let rules: BTreeMap<String, String> = durable::read_json(&paths.run.join("rules"))?.unwrap_or_default();
        // Rules that somebody flushed meanwhile are put back.
        self.rules = rules.into_iter().filter(|(project, _)| firewall::is_in_force(project)).collect();
        Ok(())
    }

    pub(super) fn read_images(&mut self) {
        let store = &self.context.store;
        match store.images().and_then(|images| Ok((images, store.unnamed()?))) {
            Ok((images, unnamed)) => {
                self.unnamed = unnamed;
                self.images = images
                    .into_iter()
                    .map(|image| (image.reference, KnownImage { digest: image.digest, config: image.config }))
                    .collect();
            }
            Err(error) => tracing::error!(%error, "the image index cannot be read"),
        }
        // A pull that was broken off goes on from what it left; that goes by order, or with the next image that goes.
        self.remains = false;
    }

    /// Asks the shim what runs, and records what ended.
    pub(super) async fn look_at_shim(&mut self) {
        let list = match self.context.client.list().await {
            Ok(list) => list,
            Err(error) => {
                // Its end comes as a message of its own.
                tracing::warn!(%error, "the shim did not answer");
                return;
            }
        };
        self.shim = list.into_iter().map(|status| (status.id.clone(), status)).collect();
        let ids: Vec<String> = self.shim.keys().cloned().collect();
        for id in ids {
            self.record_end(&id);
        }
        let running =
            self.shim.iter().filter(|(_, status)| status.pid.is_some()).map(|(id, _)| id.clone()).collect();
        self.running_sender.send_if_modified(|known| {
            let changed = *known != running;
            *known = running;
            changed
        });
    }

    fn record_end(&mut self, id: &str) {
        let status = &self.shim[id];
        // The shim holds one that we do not know: our data folder is another one. It is stopped and removed.
        let known = self.containers.entry(id.to_owned()).or_insert_with(|| Known {
            identity: Identity { stop_signal: libc::SIGTERM, ..Identity::default() },
            record: Record::default(),
            completed: false,
        });
        let Some(exit) = &status.exit else { return };
        if known.record.ended_run == status.started_boottime_ns {
            return;
        }
        // Read now: the cgroup goes with the next start.
        let path = self.context.paths.cgroup_of(id, known.identity.privileged);
        let oom_kills = cgroup::oom_kills(&path);
        known.record.note_end(status, oom_kills, || cgroup::shortage(&path).to_string());
        let last = known.record.last().cloned();
        tracing::info!(container = %id, code = exit.code, reason = ?last.map(|it| it.reason), oom_kills, "ended");
        let ordered = known.record.stop_ordered;
        let identity = known.identity.clone();
        if exit.code == 0 && !ordered && self.is_one_shot(&identity) {
            self.mark_completed(id);
        }
        self.save_record(id);
    }

    fn is_one_shot(&self, identity: &Identity) -> bool {
        let service = self
            .target
            .projects
            .get(&identity.project)
            .and_then(|wanted| wanted.project.services.get(&identity.service));
        service.is_some_and(|service| matches!(service.restart, Restart::No | Restart::OnFailure(_)))
    }

    fn mark_completed(&mut self, id: &str) {
        let marker = self.context.paths.container(id).join(COMPLETED);
        // Unwritten, it is run once more after a boot.
        if let Err(error) = durable::write(&marker, b"", 0o600) {
            tracing::warn!(container = %id, %error, "its completion could not be written");
        }
        if let Some(known) = self.containers.get_mut(id) {
            known.completed = true;
        }
    }

    pub(super) fn save_record(&self, id: &str) {
        if let Some(known) = self.containers.get(id) {
            // Memory is full: then so is everything, and the record is kept in ours.
            if let Err(error) = durable::write_volatile(&self.context.paths.state(id), &known.record) {
                tracing::warn!(container = %id, %error, "its record could not be written");
            }
        }
    }

    /// Containers as the planner sees them.
    pub(super) fn observed(&self) -> BTreeMap<String, Container> {
        let containers = self.containers.iter().map(|(id, known)| {
            let record = &known.record;
            let container = Container {
                identity: known.identity.clone(),
                state: self.state(id, known),
                addresses: record.addresses.clone(),
                restarts: record.restarts,
                round: record.round,
            };
            (id.clone(), container)
        });
        containers.collect()
    }

    fn state(&self, id: &str, known: &Known) -> State {
        if let Some(status) = self.shim.get(id)
            && status.pid.is_some()
        {
            let since = Duration::from_nanos(status.started_boottime_ns);
            return State::Running { since, health: known.record.health };
        }
        match known.record.last() {
            Some(exit) => State::Ended {
                code: exit.code,
                at: Duration::from_nanos(exit.at_ns),
                streak: known.record.streak,
                ordered: exit.reason == super::Reason::Stopped,
            },
            None if known.completed => State::Ended { code: 0, at: Duration::ZERO, streak: 1, ordered: false },
            None => State::Created,
        }
    }
}

/// Pause after a change of routes before they are looked at: an interface that comes up makes several, ours too.
const ROUTES_PAUSE: Duration = Duration::from_secs(1);

/// Tells the loop when routes or addresses changed.
pub(super) fn watch_routes(sender: mpsc::Sender<Message>) {
    let routes = match Routes::listen() {
        Ok(routes) => routes,
        Err(error) => return tracing::warn!(%error, "networks that come later may collide with ours unseen"),
    };
    tokio::task::spawn_local(async move {
        while routes.wait().await.is_ok() {
            tokio::time::sleep(ROUTES_PAUSE).await;
            if sender.send(Message::RoutesTouched).await.is_err() {
                return;
            }
        }
    });
}

impl Engine {
    /// Looks which ranges this machine itself uses.
    pub(super) fn look_at_routes(&mut self) {
        match crate::execute::ranges_of_others() {
            Ok(foreign) => self.foreign = foreign,
            Err(error) => tracing::warn!(error = super::chain(&error), "the routes cannot be read"),
        }
    }
}

//! One name server for each network, with the names of the containers that run on it.

use super::Engine;
use crate::translate::name_servers;
use coracle_compose::{NetworkMode, Service};
use coracle_runtime::network::dns::{self, SharedZone, Zone};
use coracle_runtime::network::resolv;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError, RwLock};

/// Servers by bridge.
#[derive(Default)]
pub struct Servers(BTreeMap<String, Server>);

struct Server {
    zone: SharedZone,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Engine {
    /// Serves the names of every network as they are now.
    pub(super) fn update_names(&mut self) {
        let zones: BTreeMap<String, Zone> = self
            .networks
            .iter()
            .map(|(bridge, live)| (bridge.clone(), self.zone(&live.project, &live.name)))
            .collect();
        self.names.0.retain(|bridge, _| zones.contains_key(bridge));
        for (bridge, zone) in zones {
            let gateway = self.networks[&bridge].gateway;
            match self.names.0.get(&bridge) {
                Some(server) => {
                    let mut known = server.zone.write().unwrap_or_else(PoisonError::into_inner);
                    if *known != zone {
                        *known = zone;
                    }
                }
                None => drop(self.names.0.insert(bridge, Server::start(gateway, zone))),
            }
        }
    }

    fn zone(&self, project: &str, network: &str) -> Zone {
        let live = self.networks.values().find(|it| it.project == project && it.name == network);
        let mut zone = Zone {
            range: live.map(|it| it.range),
            internal: live.is_some_and(|it| it.internal),
            ..Zone::default()
        };
        let Some(wanted) = self.target.projects.get(project) else { return zone };
        for (id, known) in self.containers.iter().filter(|(_, known)| known.identity.project == project) {
            let runs = self.shim.get(id).is_some_and(|status| status.pid.is_some());
            let Some(service) = wanted.project.services.get(&known.identity.service) else { continue };
            let (Some(address), true) = (known.record.addresses.get(network), runs) else { continue };
            for name in names_of(&known.identity.service, service, network) {
                zone.names.entry(name.to_ascii_lowercase()).or_default().push(*address);
            }
            let servers = name_servers(service);
            if !servers.is_empty() {
                zone.servers.insert(*address, servers);
            }
        }
        zone
    }
}

/// The service's name, its aliases on that network, its host name, and its container name in Compose's form.
fn names_of(name: &str, service: &Service, network: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    if let NetworkMode::Networks(attached) = &service.network
        && let Some(attachment) = attached.get(network)
    {
        names.extend(attachment.aliases.iter().cloned());
    }
    names.extend(service.hostname.clone());
    names.sort();
    names.dedup();
    names
}

impl Server {
    fn start(gateway: Ipv4Addr, zone: Zone) -> Self {
        let zone: SharedZone = Arc::new(RwLock::new(zone));
        let served = Arc::clone(&zone);
        let task = tokio::task::spawn_local(async move {
            if let Err(error) = dns::serve(gateway, served, upstream).await {
                tracing::error!(%gateway, %error, "names are not served");
            }
        });
        Self { zone, task }
    }
}

/// The host's own name servers.
fn upstream() -> Vec<IpAddr> {
    dns::name_servers(&resolv::read())
}

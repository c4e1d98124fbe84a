//! Networks of a plan: which are there, which are made, and who has which address.

use super::{Action, Wait};
use crate::current::{Container, Current, LiveNetwork};
use crate::target::{Target, Wanted};
use coracle_compose::{Network, NetworkMode, Port, Protocol};
use coracle_runtime::image::digest_of;
use coracle_runtime::network::firewall;
use coracle_runtime::network::subnet::{self, Range};
use coracle_runtime::network::{INTERFACE_PREFIX, MAX_INTERFACE};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// Ports that a service without a wish gets: the dynamic range (RFC 6335 section 6).
const DYNAMIC: (u16, u16) = (49152, 65535);

pub(super) struct Networks<'a> {
    current: &'a Current,
    /// By bridge: there and right, or made by this plan.
    live: BTreeMap<String, LiveNetwork>,
    makes: Vec<(String, Action, String, Vec<Wait>)>,
    /// Bridges of this plan by project and name.
    bridges: BTreeMap<(String, String), String>,
    /// Addresses in use, those given by this plan too.
    taken: BTreeMap<String, Vec<Ipv4Addr>>,
    /// Host ports in use: protocol, port.
    ports: BTreeSet<(Protocol, u16)>,
    /// Bridges that get another range, and what they hide.
    moving: BTreeMap<String, Range>,
    /// Collisions that stay for now.
    pub notices: Vec<String>,
}

impl<'a> Networks<'a> {
    pub fn new(current: &'a Current, target: &Target) -> Self {
        let mut networks = Self {
            current,
            live: BTreeMap::new(),
            makes: Vec::new(),
            bridges: BTreeMap::new(),
            taken: BTreeMap::new(),
            ports: BTreeSet::new(),
            moving: BTreeMap::new(),
            notices: Vec::new(),
        };
        networks.find_collisions(target);
        networks
    }

    /// A network that hides one of this machine's own interfaces moves at once, because the machine may be cut off; one
    /// that hides another route moves when nothing of its project runs.
    fn find_collisions(&mut self, target: &Target) {
        for (bridge, live) in &self.current.networks {
            let foreign = &self.current.foreign;
            let link = subnet::collision(&live.range, &foreign.links);
            let Some(hidden) = link.or_else(|| subnet::collision(&live.range, &foreign.routes)) else { continue };
            let said = format!("network {}/{} {} hides {hidden}", live.project, live.name, live.range);
            let project = target.projects.get(&live.project).map(|it| &it.project);
            let definition = project.and_then(|it| it.networks.get(&live.name).cloned()).unwrap_or_default();
            let runs = |it: &Container| it.is_running() && it.identity.project == live.project;
            if definition.subnets.iter().any(|it| it.address.is_ipv4()) {
                self.notices.push(format!("{said}; the project's file asks for it"));
            } else if self.free_range(&live.project, &live.name).is_none() {
                self.notices.push(format!("{said}, and no other range is free"));
            } else if link.is_none() && self.current.containers.values().any(runs) {
                self.notices.push(format!("{said}; it gets another range when nothing of {} runs", live.project));
            } else {
                self.moving.insert(bridge.clone(), *hidden);
            }
        }
    }

    /// A container of the project that cannot be replaced now runs: its networks stay.
    pub fn stay(&mut self, project: &str) {
        self.moving.retain(|bridge, _| self.current.networks[bridge].project != project);
    }

    /// What a network of the project hides, when it gets another range.
    pub fn moves(&self, project: &str) -> Option<Range> {
        let mut moving = self.moving.iter();
        moving.find(|(bridge, _)| self.current.networks[*bridge].project == project).map(|(_, hidden)| *hidden)
    }

    /// Settles the networks that a project's services use. One that a container of `kept` is on stays as it is until
    /// that container can be replaced.
    pub fn wanted(&mut self, project: &str, wanted: &Wanted, kept: &BTreeSet<String>) {
        for (bridge, live) in &self.current.networks {
            let stays = |(id, it): (&String, &Container)| {
                kept.contains(id) && it.identity.project == live.project && it.addresses.contains_key(&live.name)
            };
            let moves = self.moving.contains_key(bridge);
            if live.project == project && !moves && self.current.containers.iter().any(stays) {
                self.bridges.insert((project.to_owned(), live.name.clone()), bridge.clone());
                self.live.insert(bridge.clone(), live.clone());
            }
        }
        for (name, definition) in used(wanted) {
            if !self.live.contains_key(&bridge(project, name)) {
                self.want(project, name, &definition);
            }
        }
    }

    fn want(&mut self, project: &str, name: &str, network: &Network) {
        let bridge = bridge(project, name);
        let digest = digest(network);
        self.bridges.insert((project.to_owned(), name.to_owned()), bridge.clone());
        let old = self.current.networks.get(&bridge);
        let moves = self.moving.contains_key(&bridge);
        if let Some(live) = old.filter(|live| live.definition == digest && !moves) {
            self.live.insert(bridge, live.clone());
            return;
        }
        let Some((range, gateway)) = self.range(project, name, network) else { return };
        let live = LiveNetwork {
            project: project.to_owned(),
            name: name.to_owned(),
            range,
            gateway,
            definition: digest.clone(),
            internal: network.internal,
        };
        self.live.insert(bridge.clone(), live);
        let waits = old.map(|_| Wait::After(format!("remove network {project}/{name}")));
        let why = match old {
            Some(_) if moves => "it gets another range",
            Some(_) => "its definition changed",
            None => "a service is on it",
        };
        let action = Action::MakeNetwork {
            bridge,
            project: project.to_owned(),
            network: name.to_owned(),
            range,
            gateway,
            internal: network.internal,
            definition: digest,
        };
        self.makes.push((project.to_owned(), action, why.to_owned(), waits.into_iter().collect()));
    }

    /// The file's range, else a free one; nothing when every range is taken.
    fn range(&self, project: &str, name: &str, network: &Network) -> Option<(Range, Ipv4Addr)> {
        for subnet in &network.subnets {
            if let IpAddr::V4(address) = subnet.address {
                let range = Range::new(address, subnet.prefix);
                let gateway = match subnet.gateway {
                    Some(IpAddr::V4(gateway)) => gateway,
                    _ => range.gateway(),
                };
                return Some((range, gateway));
            }
        }
        let range = self.free_range(project, name)?;
        Some((range, range.gateway()))
    }

    fn free_range(&self, project: &str, name: &str) -> Option<Range> {
        let foreign = &self.current.foreign;
        let mut taken = [&foreign.routes[..], &foreign.links].concat();
        taken.extend(self.current.networks.values().map(|it| it.range));
        taken.extend(self.live.values().map(|it| it.range));
        subnet::choose(&format!("{project}/{name}"), &taken)
    }

    /// The steps that make a project's networks, once.
    pub fn take_makes(&mut self, project: &str) -> Vec<(Action, String, Vec<Wait>)> {
        let (mine, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.makes).into_iter().partition(|(of, ..)| of == project);
        self.makes = others;
        mine.into_iter().map(|(_, action, why, waits)| (action, why, waits)).collect()
    }

    /// A project's networks as the firewall sees them.
    pub fn of_project(&self, project: &str) -> Vec<firewall::Network> {
        let mine = self.live.iter().filter(|(_, live)| live.project == project);
        mine.map(|(bridge, live)| firewall::Network {
            bridge: bridge.clone(),
            range: live.range,
            internal: live.internal,
        })
        .collect()
    }

    pub fn any_wanted(&self, project: &str) -> bool {
        self.live.values().any(|live| live.project == project)
    }

    /// Addresses of a service by network: the file's, those it had (a successor takes them over), else the lowest
    /// free ones.
    pub fn addresses(&mut self, project: &str, service: &str, mode: &NetworkMode) -> BTreeMap<String, Ipv4Addr> {
        let NetworkMode::Networks(attached) = mode else { return BTreeMap::new() };
        let mut addresses = BTreeMap::new();
        for (name, attachment) in attached {
            let Some(bridge) = self.bridges.get(&(project.to_owned(), name.clone())) else { continue };
            let Some(live) = self.live.get(bridge) else { continue };
            let on_it = || {
                let containers = self.current.containers.values();
                containers
                    .filter(|it| it.identity.project == project)
                    .filter_map(|it| Some((it.identity.service.as_str(), *it.addresses.get(name)?)))
            };
            let taken = self.taken.entry(bridge.clone()).or_insert_with(|| {
                let mut taken: Vec<Ipv4Addr> = on_it().map(|(_, address)| address).collect();
                taken.push(live.gateway);
                taken
            });
            let mut held = on_it().filter(|(of, address)| *of == service && live.range.contains(*address));
            let held = held.next().map(|(_, address)| address);
            let address = attachment.ipv4_address.or(held).or_else(|| subnet::free_address(&live.range, taken));
            if let Some(address) = address {
                taken.push(address);
                addresses.insert(name.clone(), address);
            }
        }
        addresses
    }

    /// Published ports of all services that have an address.
    pub fn published(
        &mut self,
        wanted: &Wanted,
        addresses: &BTreeMap<&str, BTreeMap<String, Ipv4Addr>>,
    ) -> Vec<firewall::Published> {
        let services = &wanted.project.services;
        let fixed = |port: &Port| port.host.filter(|(first, last)| first == last).map(|(first, _)| first);
        for port in services.values().flat_map(|service| &service.ports) {
            self.ports.extend(fixed(port).map(|host| (port.protocol, host)));
        }
        let mut published = Vec::new();
        for (name, addresses) in addresses {
            let service = &services[*name];
            let Some(address) = first_address(&service.network, addresses) else { continue };
            for port in &service.ports {
                let host = fixed(port).or_else(|| self.free_port(port));
                published.extend(host.map(|host| firewall::Published {
                    host_ip: port.host_ip,
                    host,
                    udp: port.protocol == Protocol::Udp,
                    address,
                    container: port.container,
                }));
            }
        }
        published
    }

    fn free_port(&mut self, port: &Port) -> Option<u16> {
        let (first, last) = port.host.unwrap_or(DYNAMIC);
        let free = (first..=last).find(|host| !self.ports.contains(&(port.protocol, *host)))?;
        self.ports.insert((port.protocol, free));
        Some(free)
    }

    /// Networks that must be made before a service on them starts.
    pub fn waits(&self, project: &str, mode: &NetworkMode) -> Vec<Wait> {
        let NetworkMode::Networks(attached) = mode else { return Vec::new() };
        let missing = attached.keys().filter(|name| {
            let bridge = bridge(project, name);
            match (self.live.get(&bridge), self.current.networks.get(&bridge)) {
                (Some(wanted), Some(there)) => wanted != there,
                _ => true,
            }
        });
        missing.map(|name| Wait::After(format!("make network {project}/{name}"))).collect()
    }

    /// Networks that go, and the containers that must be gone before.
    pub fn removals(&self) -> Vec<(Action, String, Vec<String>)> {
        let gone = self.current.networks.iter().filter(|(bridge, live)| {
            let moves = self.moving.contains_key(*bridge);
            self.live.get(*bridge).is_none_or(|wanted| moves || wanted.definition != live.definition)
        });
        gone.map(|(bridge, live)| {
            // One that moves takes everything along, also who shares a network namespace and has no address of its own.
            let moves = self.moving.contains_key(bridge);
            let attached = self.current.containers.iter().filter(|(_, it)| {
                it.identity.project == live.project && (moves || it.addresses.contains_key(&live.name))
            });
            let action = Action::RemoveNetwork {
                bridge: bridge.clone(),
                project: live.project.clone(),
                network: live.name.clone(),
            };
            let why = match (self.live.contains_key(bridge), self.moving.get(bridge)) {
                (true, Some(hidden)) => format!("it hides {hidden}"),
                (true, None) => "its definition changed".to_owned(),
                (false, _) => "no service is on it".to_owned(),
            };
            (action, why, attached.map(|(id, _)| id.clone()).collect())
        })
        .collect()
    }
}

/// Networks that a service is on, with their definitions.
fn used(wanted: &Wanted) -> BTreeMap<&String, Network> {
    let modes = wanted.project.services.values().map(|service| &service.network);
    let names = modes.filter_map(|mode| match mode {
        NetworkMode::Networks(attached) => Some(attached.keys()),
        _ => None,
    });
    names.flatten().map(|name| (name, wanted.project.networks.get(name).cloned().unwrap_or_default())).collect()
}

fn digest(network: &Network) -> String {
    digest_of(&serde_json::to_vec(network).unwrap_or_default())
}

/// The address that ports are published on: that of the network with the highest priority, else the first.
pub(crate) fn first_address(mode: &NetworkMode, addresses: &BTreeMap<String, Ipv4Addr>) -> Option<Ipv4Addr> {
    first_network(mode).and_then(|name| addresses.get(name)).copied()
}

/// The network with the highest priority, else the first by name.
pub(crate) fn first_network(mode: &NetworkMode) -> Option<&String> {
    let NetworkMode::Networks(attached) = mode else { return None };
    let best = attached.iter().min_by_key(|(name, attachment)| (-i64::from(attachment.priority), *name));
    best.map(|(name, _)| name)
}

/// Name of a network's bridge: the prefix and as much of a digest as an interface name holds.
pub(crate) fn bridge(project: &str, network: &str) -> String {
    let digest = digest_of(format!("{project}/{network}").as_bytes());
    let digits = MAX_INTERFACE - INTERFACE_PREFIX.len() - 1;
    format!("{INTERFACE_PREFIX}-{}", &digest["sha256:".len()..][..digits])
}

//! Making and removing networks.

use super::StepError;
use crate::current::LiveNetwork;
use crate::durable;
use crate::paths::Paths;
use coracle_runtime::network::INTERFACE_PREFIX;
use coracle_runtime::network::links::Links;
use coracle_runtime::network::subnet::Foreign;
use coracle_runtime::network::{conntrack, firewall};
use std::path::Path;

/// Makes a bridge, lets the kernel forward, and remembers the network until the next boot. Blocks.
///
/// # Errors
/// What the kernel refuses.
pub fn make_network(paths: &Paths, bridge: &str, network: &LiveNetwork) -> Result<(), StepError> {
    let mut links = Links::open()?;
    // One of an older definition, left by a removal that was cut short.
    links.remove(bridge)?;
    links.make_bridge(bridge, network.gateway, network.range.prefix)?;
    let settings = [
        ("/proc/sys/net/ipv4/ip_forward".to_owned(), "1"),
        // Ports published on 127.0.0.1 lead through the bridge; the rule set guards the way (`firewall`).
        (format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"), "1"),
        // A bridge needs no addresses of its own making.
        (format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6"), "1"),
    ];
    for (path, value) in &settings {
        let path = Path::new(path);
        // Written only when it differs: /proc/sys may be read-only where all is set already.
        let same = std::fs::read_to_string(path).is_ok_and(|it| it.trim() == *value);
        if !same && path.exists() {
            std::fs::write(path, value).map_err(StepError::file(format!("writing {}", path.display())))?;
        }
    }
    let file = paths.network(bridge);
    durable::write_volatile(&file, network).map_err(StepError::file(format!("writing {}", file.display())))
}

/// Removes a bridge. Blocks.
///
/// # Errors
/// What the kernel refuses.
pub fn remove_network(paths: &Paths, bridge: &str) -> Result<(), StepError> {
    Links::open()?.remove(bridge)?;
    let _ = std::fs::remove_file(paths.network(bridge));
    Ok(())
}

/// Puts a rule set in force in the place of `old`, and forgets the flows of UDP ports that were or are published.
/// Blocks.
///
/// # Errors
/// When the tool or the kernel refuses.
pub fn apply_rules(project: &str, old: &str, rules: &str) -> Result<(), StepError> {
    match old {
        "" => firewall::make(project, rules)?,
        _ => firewall::replace(project, rules)?,
    }
    let ports = [firewall::udp_ports(old), firewall::udp_ports(rules)].concat();
    conntrack::forget_udp(&ports)?;
    Ok(())
}

/// Removes a project's rule set, and the flows of its UDP ports. Blocks.
///
/// # Errors
/// When the tool or the kernel refuses.
pub fn remove_rules(project: &str, old: &str) -> Result<(), StepError> {
    firewall::remove(project)?;
    conntrack::forget_udp(&firewall::udp_ports(old))?;
    Ok(())
}

/// Ranges that the host itself uses, ours left out. Blocks for some microseconds.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn ranges_of_others() -> Result<Foreign, StepError> {
    let mut links = Links::open()?;
    let prefix = format!("{INTERFACE_PREFIX}-");
    let ours: Vec<u32> =
        links.list()?.into_iter().filter(|(_, name)| name.starts_with(&prefix)).map(|(index, _)| index).collect();
    Ok(links.ranges_in_use(&ours)?)
}

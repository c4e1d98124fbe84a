//! The rules of one project as text for nft(8): one table of its own, made or replaced in one transaction. Pure, but
//! for [`make`], [`replace`] and [`remove`], which hand the text to the tool.

use super::subnet::Range;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

/// A network as the firewall sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The bridge.
    pub bridge: String,
    /// Its range.
    pub range: Range,
    /// No way out.
    pub internal: bool,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Host address; `None`: all.
    pub host_ip: Option<IpAddr>,
    /// Host port.
    pub host: u16,
    /// UDP, else TCP.
    pub udp: bool,
    /// The container's address.
    pub address: Ipv4Addr,
    /// The port in the container.
    pub container: u16,
}

/// Why the rules are not in force.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The tool is not there.
    #[error("running nft: {0} (install the package nftables)")]
    Tool(#[source] std::io::Error),
    /// The tool refused.
    #[error("nft: {0}")]
    Refused(String),
}

/// Chains of a table: guard, forward, prerouting, output, postrouting.
const CHAINS: usize = 5;

/// Name of a project's table.
pub fn table(project: &str) -> String {
    format!("coracle_{}", project.replace('-', "."))
}

/// The whole rule set of a project: one table.
pub fn render(project: &str, networks: &[Network], published: &[Published]) -> String {
    let mut text = format!("table inet {} {{\n", table(project));
    chain(&mut text, "guard", "filter hook prerouting priority raw", |text| {
        // Bridges route 127.0.0.0/8 for ports published there; nobody else may use that way (CVE-2020-8558).
        for network in networks {
            let _ = writeln!(text, "iifname {:?} ip daddr 127.0.0.0/8 drop", network.bridge);
        }
    });
    chain(&mut text, "forward", "filter hook forward priority filter", |text| forward_rules(text, networks));
    chain(&mut text, "prerouting", "nat hook prerouting priority dstnat", |text| {
        let from_outside = published.iter().filter(|port| !port.host_ip.is_some_and(|ip| ip.is_loopback()));
        from_outside.for_each(|port| dnat_rule(text, port));
    });
    // Before nft 1.0.7 the name `dstnat` is known at prerouting alone.
    chain(&mut text, "output", "nat hook output priority -100", |text| {
        published.iter().for_each(|port| dnat_rule(text, port));
    });
    chain(&mut text, "postrouting", "nat hook postrouting priority srcnat", |text| {
        for Network { bridge, range, internal } in networks {
            if !internal {
                let _ = writeln!(text, "ip saddr {range} oifname != {bridge:?} masquerade");
            }
            // A container that calls its own published port, and the host that calls it by 127.0.0.1.
            let _ = writeln!(text, "ip saddr {range} oifname {bridge:?} ct status dnat masquerade");
            let _ = writeln!(text, "ip saddr 127.0.0.0/8 oifname {bridge:?} masquerade");
        }
    });
    text.push_str("}\n");
    text
}

fn chain(text: &mut String, name: &str, hook: &str, rules: impl FnOnce(&mut String)) {
    let _ = writeln!(text, "chain {name} {{ type {hook}; policy accept;");
    rules(text);
    text.push_str("}\n");
}

fn forward_rules(text: &mut String, networks: &[Network]) {
    // Those that isolate come first: a rule set that is cut short must not open anything.
    for Network { bridge, .. } in networks.iter().filter(|it| it.internal) {
        let _ = writeln!(text, "iifname {bridge:?} oifname != {bridge:?} drop");
        let _ = writeln!(text, "oifname {bridge:?} iifname != {bridge:?} drop");
    }
    for Network { bridge, .. } in networks.iter().filter(|it| !it.internal) {
        let _ = writeln!(text, "oifname {bridge:?} ct state established,related accept");
        let _ = writeln!(text, "oifname {bridge:?} ct status dnat accept");
        let _ = writeln!(text, "oifname {bridge:?} iifname != {bridge:?} drop");
    }
}

fn dnat_rule(text: &mut String, port: &Published) {
    let protocol = if port.udp { "udp" } else { "tcp" };
    let local = match port.host_ip {
        Some(IpAddr::V4(ip)) if !ip.is_unspecified() => format!("ip daddr {ip}"),
        // Published on an IPv6 address: not reachable over IPv4.
        Some(IpAddr::V6(ip)) if !ip.is_unspecified() => return,
        _ => "meta nfproto ipv4 fib daddr type local".to_owned(),
    };
    let _ =
        writeln!(text, "{local} {protocol} dport {} dnat ip to {}:{}", port.host, port.address, port.container);
}

/// Puts a project's first rule set in force. A table that is there already, left by somebody who forgot it, is
/// replaced.
///
/// # Errors
/// When the tool is not there or refuses.
pub fn make(project: &str, rules: &str) -> Result<(), FirewallError> {
    // A transaction that removes anything ends with a grace period of RCU, 10 ms and more: not worth it when there is
    // nothing to remove.
    match run(&format!("create table inet {}\n{rules}", table(project))) {
        Err(FirewallError::Refused(_)) => replace(project, rules),
        result => result,
    }
}

/// Puts a rule set in force in the place of another, in one transaction.
///
/// # Errors
/// As [`make`].
pub fn replace(project: &str, rules: &str) -> Result<(), FirewallError> {
    run(&format!("{}{rules}", removal(project)))
}

/// Naming the table first makes the removal succeed when it is not there.
fn removal(project: &str) -> String {
    let table = table(project);
    format!("table inet {table} {{}}\ndelete table inet {table}\n")
}

fn run(transaction: &str) -> Result<(), FirewallError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(FirewallError::Tool)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(transaction.as_bytes()).map_err(FirewallError::Tool)?;
    }
    let output = child.wait_with_output().map_err(FirewallError::Tool)?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(FirewallError::Refused(text.lines().next().unwrap_or("failed").to_owned()))
}

/// True when the kernel has the project's table with all of its chains.
pub fn is_in_force(project: &str) -> bool {
    let output = Command::new("nft")
        .args(["list", "table", "inet", &table(project)])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    output.is_ok_and(|it| {
        it.status.success() && String::from_utf8_lossy(&it.stdout).matches("chain ").count() == CHAINS
    })
}

/// UDP ports that a rule set of [`render`] publishes.
pub fn udp_ports(rules: &str) -> Vec<super::conntrack::Published> {
    let lines = rules.lines().filter(|line| line.contains(" udp dport "));
    lines
        .filter_map(|line| {
            let (local, rest) = line.split_once(" udp dport ")?;
            let address = local.strip_prefix("ip daddr ").and_then(|it| it.parse().ok());
            Some((address, rest.split(' ').next()?.parse().ok()?))
        })
        .collect()
}

/// Ports that a rule set of [`render`] publishes for some addresses, in Docker's form: `0.0.0.0:8080->80/tcp`.
pub fn published_for(rules: &str, addresses: impl Iterator<Item = Ipv4Addr>) -> Vec<String> {
    let addresses: Vec<Ipv4Addr> = addresses.collect();
    let lines = rules.lines().skip_while(|line| !line.starts_with("chain output ")).skip(1);
    let lines = lines.take_while(|line| *line != "}");
    lines
        .filter_map(|line| {
            let (local, rest) = line.split_once(" dport ")?;
            let (host, to) = rest.split_once(" dnat ip to ")?;
            let (address, container) = to.split_once(':')?;
            let address: Ipv4Addr = address.parse().ok()?;
            let protocol = local.rsplit(' ').next()?;
            let ip = local.strip_prefix("ip daddr ").and_then(|it| it.split(' ').next()).unwrap_or("0.0.0.0");
            addresses.contains(&address).then(|| format!("{ip}:{host}->{container}/{protocol}"))
        })
        .collect()
}

/// Removes a project's table; it may be gone already.
///
/// # Errors
/// As [`make`].
pub fn remove(project: &str) -> Result<(), FirewallError> {
    run(&removal(project))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> String {
        let network = |bridge: &str, third, internal| Network {
            bridge: bridge.to_owned(),
            range: Range::new(Ipv4Addr::new(10, 209, third, 0), 24),
            internal,
        };
        let port = |host_ip: Option<&str>, host, udp| Published {
            host_ip: host_ip.map(|ip| ip.parse().expect("an address")),
            host,
            udp,
            address: Ipv4Addr::new(10, 209, 1, 2),
            container: 80,
        };
        let ports =
            [port(None, 8080, false), port(Some("127.0.0.1"), 8081, false), port(Some("192.0.2.7"), 53, true)];
        render("my-app", &[network("cor1", 1, false), network("cor2", 2, true)], &ports)
    }

    fn chain_of(name: &str) -> String {
        let rules = rules();
        let start = rules.find(&format!("chain {name} ")).expect("a chain");
        rules[start..].lines().skip(1).take_while(|line| *line != "}").collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_port_on_loopback_is_for_the_host_alone() {
        assert!(!chain_of("prerouting").contains("8081"));
        assert!(chain_of("output").contains("ip daddr 127.0.0.1 tcp dport 8081 dnat ip to 10.209.1.2:80"));
        assert!(chain_of("guard").contains("iifname \"cor1\" ip daddr 127.0.0.0/8 drop"));
    }

    #[test]
    fn an_internal_network_is_isolated_first_and_never_masqueraded() {
        assert!(chain_of("forward").starts_with("iifname \"cor2\" oifname != \"cor2\" drop"));
        assert!(!chain_of("postrouting").contains("10.209.2.0/24 oifname != "));
    }

    #[test]
    fn published_ports_are_read_back_from_the_rules() {
        let mine = published_for(&rules(), [Ipv4Addr::new(10, 209, 1, 2)].into_iter());
        assert_eq!(mine, ["0.0.0.0:8080->80/tcp", "127.0.0.1:8081->80/tcp", "192.0.2.7:53->80/udp"]);
        assert!(published_for(&rules(), [Ipv4Addr::new(10, 209, 1, 3)].into_iter()).is_empty());
    }
}

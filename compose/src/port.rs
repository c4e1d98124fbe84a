//! `ports`: short and long syntax, ranges paired (Compose Specification, ports).

use crate::model::{Port, Protocol};
use crate::reader::Reader;
use crate::yaml::{Node, Value};
use std::net::IpAddr;

/// Ports that one service may publish.
const MAX_PORTS: usize = 4096;

/// Reads the list.
pub fn read(reader: &Reader<'_>, node: &Node, field: &str) -> Vec<Port> {
    let mut ports = Vec::new();
    for (index, node) in reader.sequence(node, field).iter().enumerate() {
        let field = format!("{field}[{index}]");
        let more: Vec<Port> = match &node.value {
            Value::Scalar { text, .. } => {
                short(text).map_err(|reason| reader.refuse(node.line, &field, reason)).unwrap_or_default()
            }
            _ => long(reader, node, &field).into_iter().collect(),
        };
        if let Some(ip) =
            more.iter().find_map(|port| port.host_ip.filter(|it| it.is_ipv6() && !it.is_unspecified()))
        {
            let reason = format!(
                "{ip} does not answer: containers have IPv4 addresses for now; leave the address out or give an IPv4 one"
            );
            reader.notice(node.line, &field, reason);
        }
        // What is written twice is one.
        for port in more {
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
    }
    if ports.len() > MAX_PORTS {
        reader.refuse(node.line, field, format!("{} ports, at most {MAX_PORTS} are published", ports.len()));
        ports.clear();
    }
    ports
}

/// `[IP:][HOST[-END]:]PORT[-END][/tcp|udp]`. Never read as a base-60 number.
pub fn short(text: &str) -> Result<Vec<Port>, String> {
    let wrong = || format!("{text:?} is no port: write HOST:CONTAINER, 127.0.0.1:8080:80 or 53:53/udp");
    let (rest, protocol) = match text.split_once('/') {
        Some((rest, "tcp")) => (rest, Protocol::Tcp),
        Some((rest, "udp")) => (rest, Protocol::Udp),
        Some((_, other)) => return Err(format!("protocol {other:?} is not supported: tcp or udp")),
        None => (text, Protocol::Tcp),
    };
    let (front, container) = rest.rsplit_once(':').map_or(("", rest), |(front, container)| (front, container));
    let (address, host) = match front.rsplit_once(':') {
        Some((address, host)) => (Some(address), host),
        None => (None, front),
    };
    let host_ip = match address {
        Some(address) => {
            let address = address.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(address);
            Some(address.parse::<IpAddr>().map_err(|_| format!("{address:?} is no address"))?)
        }
        None => None,
    };
    let (first, last) = range(container).ok_or_else(wrong)?;
    let host = if host.is_empty() { None } else { Some(range(host).ok_or_else(wrong)?) };
    spread((first, last), host, text)
        .map(|pairs| pairs.map(|(container, host)| Port { container, host, host_ip, protocol }).collect())
}

/// Pairs container ports with host ports: equal ranges one by one, or one container port with a range to choose from.
fn spread(
    container: (u16, u16),
    host: Option<(u16, u16)>,
    text: &str,
) -> Result<impl Iterator<Item = (u16, Option<(u16, u16)>)>, String> {
    let width = container.1 - container.0;
    if let Some((first, last)) = host
        && width > 0
        && last - first != width
    {
        return Err(format!("{text:?}: both ranges must have the same length"));
    }
    Ok((0..=width).map(move |offset| {
        let host =
            host.map(|(first, last)| if width == 0 { (first, last) } else { (first + offset, first + offset) });
        (container.0 + offset, host)
    }))
}

fn range(text: &str) -> Option<(u16, u16)> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|&port| port > 0);
    match text.split_once('-') {
        Some((first, last)) => Some((port(first)?, port(last)?)).filter(|(first, last)| first <= last),
        None => port(text).map(|port| (port, port)),
    }
}

fn long(reader: &Reader<'_>, node: &Node, field: &str) -> Vec<Port> {
    let (mut target, mut published, mut host_ip, mut protocol) =
        (None, String::new(), String::new(), "tcp".to_owned());
    for (key, node) in reader.mapping(node, field) {
        let field = format!("{field}.{key}");
        match key.as_str() {
            "target" => target = reader.text(node, &field),
            "published" => published = reader.text(node, &field).unwrap_or_default(),
            "host_ip" => host_ip = reader.text(node, &field).unwrap_or_default(),
            "protocol" => protocol = reader.text(node, &field).unwrap_or_default(),
            "mode" => {
                if node.text() != Some("host") && node.text() != Some("ingress") {
                    reader.refuse(node.line, &field, "is host or ingress; both mean the same here");
                }
            }
            "name" | "app_protocol" => reader.notice(node.line, &field, "has no effect"),
            _ => reader.unknown(node.line, &field, key, &["target", "published", "host_ip", "protocol", "mode"]),
        }
    }
    let Some(target) = target else {
        reader.refuse(node.line, field, "target is missing: the port in the container");
        return Vec::new();
    };
    let address = if host_ip.contains(':') {
        format!("[{host_ip}]:")
    } else if host_ip.is_empty() {
        host_ip
    } else {
        format!("{host_ip}:")
    };
    let host = if published.is_empty() && address.is_empty() { String::new() } else { format!("{published}:") };
    match short(&format!("{address}{host}{target}/{protocol}")) {
        Ok(ports) => ports,
        Err(reason) => {
            reader.refuse(node.line, field, reason);
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str) -> String {
        match short(text) {
            Ok(ports) => ports
                .iter()
                .map(|port| {
                    let host = port.host.map_or("any".to_owned(), |(a, b)| {
                        if a == b { a.to_string() } else { format!("{a}-{b}") }
                    });
                    let ip = port.host_ip.map_or(String::new(), |ip| format!("{ip} "));
                    format!(
                        "{ip}{host}>{}{}",
                        port.container,
                        if port.protocol == Protocol::Udp { "u" } else { "" }
                    )
                })
                .collect::<Vec<_>>()
                .join(","),
            Err(reason) => format!("refused: {reason}"),
        }
    }

    // docker/compose#3290, docker/compose#3109, containers/podman-compose#736
    #[test]
    fn ports_without_quotes_are_never_base_60() {
        assert_eq!(check("2222:22"), "2222>22");
        assert_eq!(check("22:22"), "22>22");
        assert_eq!(check("1:59"), "1>59");
        assert_eq!(check("80"), "any>80");
    }

    #[test]
    fn ranges_pair_up_or_offer_a_choice() {
        assert_eq!(check("8000-8002:80"), "8000-8002>80");
        assert_eq!(check("8000-8002:9000-9002/udp"), "8000>9000u,8001>9001u,8002>9002u");
        assert!(check("8000-8001:9000-9002").starts_with("refused"));
        assert_eq!(check("3000-3001"), "any>3000,any>3001");
    }

    #[test]
    fn host_addresses_are_taken() {
        assert_eq!(check("[::1]:8081:81"), "::1 8081>81");
        assert_eq!(check("127.0.0.1::53/udp"), "127.0.0.1 any>53u");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", ":", "0:1", "x", "70000", "1:2:3", "1/sctp", "5-3"] {
            assert!(check(text).starts_with("refused"), "{text} became {}", check(text));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "[0-9:./\\-\\[\\]tcpud]{0,24}|.{0,24}") { let _ = short(&text); }
    }
}

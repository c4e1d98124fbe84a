//! Names of services, on each bridge's own address (RFC 1035).
//!
//! Names of the zone are answered here for every type: a name that is there without a record of the wanted type is
//! NOERROR with no answer, never NXDOMAIN (RFC 2308 2.2), and is never forwarded. Everything else is asked of the
//! host's own name servers and passed back as it is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

/// Largest UDP message we take or pass on: EDNS clients ask for at most this (RFC 6891 6.2.5).
const MAX_UDP: usize = 4096;

/// Seconds that an answer may be kept: a restarted service has a new address at the next query.
const TTL: u32 = 1;

/// Questions that wait for an upstream server at once, per network; more are answered SERVFAIL.
const MAX_FORWARDED: usize = 64;

/// A server that is silent for this long gets no second chance; clients ask again themselves.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(4);

/// Time a TCP client may take for its question.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);

const TYPE_A: u16 = 1;
const TYPE_PTR: u16 = 12;
const CLASS_IN: u16 = 1;
const NOERROR: u8 = 0;
const FORMERR: u8 = 1;
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

/// Names of one network, in lower case, and their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    /// Addresses by name.
    pub names: BTreeMap<String, Vec<Ipv4Addr>>,
    /// The network's range: reverse questions for it are ours.
    pub range: Option<super::subnet::Range>,
    /// No way out: nothing is forwarded.
    pub internal: bool,
    /// Name servers of single clients, by their addresses, in place of the host's.
    pub servers: BTreeMap<Ipv4Addr, Vec<IpAddr>>,
}

/// A zone that changes while it is served.
pub type SharedZone = Arc<RwLock<Zone>>;

/// What to do with a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Send this.
    Reply(Vec<u8>),
    /// Ask an upstream server.
    Forward,
    /// Say nothing: it is no question.
    Drop,
}

/// Decides about one message. Pure.
pub fn answer(query: &[u8], zone: &Zone) -> Answer {
    if query.len() < 12 || query[2] & 0x80 != 0 {
        return Answer::Drop;
    }
    let Some(question) = Question::parse(query) else { return Answer::Reply(reply(query, 12, FORMERR, &[])) };
    if question.class != CLASS_IN {
        return Answer::Forward;
    }
    if let Some(addresses) = zone.names.get(&question.name) {
        let records = if question.kind == TYPE_A { addresses.as_slice() } else { &[] };
        return Answer::Reply(reply(query, question.end, NOERROR, records));
    }
    if question.kind == TYPE_PTR
        && let (Some(address), Some(range)) = (reverse(&question.name), zone.range)
        && range.contains(address)
    {
        return match zone.names.iter().find(|(_, addresses)| addresses.contains(&address)) {
            Some((name, _)) => Answer::Reply(pointer(query, question.end, name)),
            None => Answer::Reply(reply(query, question.end, NXDOMAIN, &[])),
        };
    }
    Answer::Forward
}

struct Question {
    name: String,
    kind: u16,
    class: u16,
    /// Where the question ends in the message.
    end: usize,
}

impl Question {
    /// The single question of a query; questions have no compressed names.
    fn parse(query: &[u8]) -> Option<Self> {
        if query[2] >> 3 & 0xf != 0 || query[4..6] != [0, 1] {
            return None;
        }
        let (mut name, mut at) = (String::new(), 12);
        loop {
            let length = usize::from(*query.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            if length > 63 || name.len() > 253 {
                return None;
            }
            let label = query.get(at..at + length)?;
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
            at += length;
        }
        let number = |at: usize| Some(u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]));
        Some(Self { name, kind: number(at)?, class: number(at + 2)?, end: at + 4 })
    }
}

/// `4.3.2.1.in-addr.arpa` (RFC 1035 3.5).
fn reverse(name: &str) -> Option<Ipv4Addr> {
    let mut parts: Vec<&str> = name.strip_suffix(".in-addr.arpa")?.split('.').collect();
    parts.reverse();
    parts.join(".").parse().ok()
}

/// Header and question of the query as an answer.
fn header(query: &[u8], question_end: usize, code: u8, answers: u16) -> Vec<u8> {
    let mut message = query[..question_end].to_vec();
    // Response, the query's opcode and RD; RA since we forward.
    message[2] = 0x80 | (query[2] & 0x79);
    message[3] = 0x80 | code;
    message[4..6].copy_from_slice(&u16::from(question_end > 12).to_be_bytes());
    message[6..8].copy_from_slice(&answers.to_be_bytes());
    message[8..12].fill(0);
    message
}

fn reply(query: &[u8], question_end: usize, code: u8, addresses: &[Ipv4Addr]) -> Vec<u8> {
    let mut message = header(query, question_end, code, addresses.len() as u16);
    for address in addresses {
        record(&mut message, TYPE_A, &address.octets());
    }
    message
}

fn pointer(query: &[u8], question_end: usize, name: &str) -> Vec<u8> {
    let mut message = header(query, question_end, NOERROR, 1);
    let mut data = Vec::new();
    for label in name.split('.') {
        data.push(label.len() as u8);
        data.extend_from_slice(label.as_bytes());
    }
    data.push(0);
    record(&mut message, TYPE_PTR, &data);
    message
}

/// A record whose name is the question's (a pointer to offset 12, RFC 1035 4.1.4).
fn record(message: &mut Vec<u8>, kind: u16, data: &[u8]) {
    message.extend_from_slice(&[0xc0, 12]);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&CLASS_IN.to_be_bytes());
    message.extend_from_slice(&TTL.to_be_bytes());
    message.extend_from_slice(&(data.len() as u16).to_be_bytes());
    message.extend_from_slice(data);
}

/// The failure a client gets when nobody could be asked.
fn failure(query: &[u8]) -> Vec<u8> {
    let end = Question::parse(query).map_or(12, |question| question.end);
    reply(query, end, SERVFAIL, &[])
}

/// Serves a zone on `address`, UDP and TCP, until its task is aborted. `upstream` says for each question that is not of
/// the zone which servers are asked now: a board's network may come later, or change.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: Ipv4Addr, zone: SharedZone, upstream: fn() -> Vec<IpAddr>) -> std::io::Result<()> {
    let udp = Arc::new(UdpSocket::bind((address, 53)).await?);
    let tcp = TcpListener::bind((address, 53)).await?;
    let server = Arc::new(Server { zone, upstream, permits: Semaphore::new(MAX_FORWARDED) });
    let mut buffer = vec![0; MAX_UDP];
    loop {
        tokio::select! {
            received = udp.recv_from(&mut buffer) => {
                if let Ok((length, from)) = received {
                    server.on_udp(&udp, buffer[..length].to_vec(), from).await;
                }
            }
            accepted = tcp.accept() => {
                if let Ok((stream, from)) = accepted {
                    let server = Arc::clone(&server);
                    tokio::spawn(async move {
                        // A client that breaks off is its own affair.
                        let _ = tokio::time::timeout(TCP_TIMEOUT, server.on_tcp(stream, from.ip())).await;
                    });
                }
            }
        }
    }
}

struct Server {
    zone: SharedZone,
    upstream: fn() -> Vec<IpAddr>,
    permits: Semaphore,
}

impl Server {
    fn decide(&self, query: &[u8]) -> Answer {
        answer(query, &self.zone.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn on_udp(self: &Arc<Self>, socket: &Arc<UdpSocket>, query: Vec<u8>, from: SocketAddr) {
        match self.decide(&query) {
            // A client that is gone needs no answer.
            Answer::Reply(reply) => drop(socket.send_to(&reply, from).await),
            Answer::Drop => {}
            Answer::Forward => {
                let (server, socket) = (Arc::clone(self), Arc::clone(socket));
                tokio::spawn(async move {
                    let reply = server.forward(&query, from.ip(), false).await.unwrap_or_else(|| failure(&query));
                    let _ = socket.send_to(&reply, from).await;
                });
            }
        }
    }

    async fn on_tcp(&self, mut stream: TcpStream, from: IpAddr) -> std::io::Result<()> {
        loop {
            let length = stream.read_u16().await?;
            let mut query = vec![0; length.into()];
            stream.read_exact(&mut query).await?;
            let reply = match self.decide(&query) {
                Answer::Reply(reply) => reply,
                Answer::Drop => return Ok(()),
                Answer::Forward => self.forward(&query, from, true).await.unwrap_or_else(|| failure(&query)),
            };
            stream.write_u16(reply.len() as u16).await?;
            stream.write_all(&reply).await?;
        }
    }

    /// The servers that are asked for a client.
    fn servers(&self, from: IpAddr) -> Vec<IpAddr> {
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        let own = if let IpAddr::V4(from) = from { zone.servers.get(&from) } else { None };
        match own {
            _ if zone.internal => Vec::new(),
            Some(own) => own.clone(),
            None => (self.upstream)(),
        }
    }

    async fn forward(&self, query: &[u8], from: IpAddr, tcp: bool) -> Option<Vec<u8>> {
        let _permit = self.permits.try_acquire().ok()?;
        for server in &self.servers(from) {
            let asked = async { if tcp { ask_tcp(*server, query).await } else { ask_udp(*server, query).await } };
            if let Ok(Ok(reply)) = tokio::time::timeout(UPSTREAM_TIMEOUT, asked).await {
                return Some(reply);
            }
        }
        None
    }
}

async fn ask_udp(server: IpAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    // A connected socket takes answers of this server alone.
    socket.connect((server, 53)).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_UDP];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if length >= 12 && buffer[..2] == query[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: IpAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((server, 53)).await?;
    stream.write_u16(query.len() as u16).await?;
    stream.write_all(query).await?;
    let mut reply = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

/// Name servers of a resolv.conf(5).
pub fn name_servers(text: &str) -> Vec<IpAddr> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    lines.filter_map(|rest| rest.trim().split('%').next()?.parse().ok()).take(3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.trim_end_matches('.').split('.') {
            message.push(label.len() as u8);
            message.extend_from_slice(label.as_bytes());
        }
        message.push(0);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&CLASS_IN.to_be_bytes());
        message
    }

    fn zone() -> Zone {
        let range = super::super::subnet::Range::new(Ipv4Addr::new(10, 209, 1, 0), 24);
        let names = [("db", 2), ("cache", 3)].map(|(name, host)| (name.to_owned(), vec![range.nth(host)]));
        Zone { names: names.into(), range: Some(range), ..Zone::default() }
    }

    /// Code, number of answers.
    fn check(name: &str, kind: u16) -> Option<(u8, u8)> {
        match answer(&query(name, kind), &zone()) {
            Answer::Reply(reply) => Some((reply[3] & 0xf, reply[7])),
            Answer::Forward => None,
            Answer::Drop => panic!("dropped"),
        }
    }

    // containers/aardvark-dns#679, docker/for-mac#5088, moby/moby#35118
    #[test]
    fn a_known_name_without_such_a_record_is_no_error_and_never_forwarded() {
        assert_eq!(check("db", TYPE_A), Some((NOERROR, 1)));
        for kind in [28, 15, 16, 65] {
            assert_eq!(check("db", kind), Some((NOERROR, 0)), "type {kind}");
        }
        assert_eq!(check("db.lan", TYPE_A), None);
        assert_eq!(check("nosuch", TYPE_A), None);
    }

    #[test]
    fn spelling_does_not_matter_and_is_echoed() {
        for name in ["DB.", "dB", "Cache"] {
            assert_eq!(check(name, TYPE_A), Some((NOERROR, 1)), "{name}");
        }
        let sent = query("dB", TYPE_A);
        let Answer::Reply(reply) = answer(&sent, &zone()) else { panic!() };
        assert_eq!(reply[12..sent.len()], sent[12..]);
        assert_eq!(reply[reply.len() - 4..], [10, 209, 1, 2]);
    }

    #[test]
    fn reverse_questions_for_our_range_stay_here() {
        assert_eq!(check("2.1.209.10.in-addr.arpa", TYPE_PTR), Some((NOERROR, 1)));
        assert_eq!(check("9.1.209.10.in-addr.arpa", TYPE_PTR), Some((NXDOMAIN, 0)));
        assert_eq!(check("8.8.8.8.in-addr.arpa", TYPE_PTR), None);
    }

    #[test]
    fn name_servers_are_read() {
        let text = "# c\nnameserver 192.0.2.1\n nameserver fe80::1%eth0\nsearch x\nnameserver x\n";
        assert_eq!(
            name_servers(text),
            ["192.0.2.1".parse::<IpAddr>().expect("v4"), "fe80::1".parse().expect("v6")]
        );
    }

    proptest! {
        #[test]
        fn any_message_is_answered(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Answer::Reply(reply) = answer(&bytes, &zone()) {
                prop_assert_eq!(&reply[..2], &bytes[..2]);
            }
            let _ = failure(&[&[0; 12][..], &bytes].concat());
        }
    }
}

//! Forgets UDP flows that remember an address which no container has any more (linux/netfilter/nfnetlink_conntrack.h).
//!
//! The kernel decides about NAT once for each flow; a sender that never pauses keeps the old decision alive for ever.

use super::links::LinkError;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

/// `NFNL_SUBSYS_CTNETLINK << 8` and `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;

/// Flag of attributes that hold others.
const NESTED: u16 = 0x8000;

const UDP: u8 = 17;

/// Bytes of one answer: the kernel fills at most this of a dump.
const BUFFER: usize = 32 * 1024;

/// Flows looked at: a board's table has some thousand at most (`nf_conntrack_max`); a table that is larger is looked
/// at in part, and the rest times out by itself.
const MAX_FLOWS: usize = 65536;

/// A published UDP port: host address (`None`: all) and host port.
pub type Published = (Option<IpAddr>, u16);

/// Deletes UDP flows whose original destination is one of `ports`, and nothing else; the number deleted.
///
/// # Errors
/// When the kernel cannot be asked. A kernel without conntrack has no flows.
pub fn forget_udp(ports: &[Published]) -> Result<usize, LinkError> {
    if ports.is_empty() {
        return Ok(0);
    }
    let failed = |what| move |errno| LinkError::System(what, errno);
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
            .map_err(failed("opening a netfilter socket"))?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed("binding a netfilter socket"))?;
    let mut stale = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let flows = match dump(&socket, family) {
            Ok(flows) => flows,
            // The module is not there.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT) => continue,
            Err(errno) => return Err(failed("listing flows")(errno)),
        };
        let wanted = flows.into_iter().filter(|flow| ports.iter().any(|port| flow.is_for(port)));
        stale.extend(wanted.map(|flow| (family, flow.tuple)));
    }
    for (family, tuple) in &stale {
        let body = attribute(CTA_TUPLE_ORIG | NESTED, tuple);
        match ask(&socket, DELETE, NLM_F_ACK, *family, &body).and_then(|()| acknowledged(&socket)) {
            // Timed out meanwhile.
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(failed("forgetting a flow")(errno)),
        }
    }
    Ok(stale.len())
}

struct Flow {
    /// The body of `CTA_TUPLE_ORIG`.
    tuple: Vec<u8>,
    protocol: u8,
    address: Option<IpAddr>,
    port: u16,
}

impl Flow {
    fn is_for(&self, (address, port): &Published) -> bool {
        let same_address = match address {
            Some(address) if !address.is_unspecified() => self.address == Some(*address),
            _ => true,
        };
        self.protocol == UDP && self.port == *port && same_address
    }

    fn parse(message: &[u8]) -> Option<Self> {
        // nfgenmsg before the attributes.
        let tuple = find(message.get(4..)?, CTA_TUPLE_ORIG)?;
        let (ip, proto) = (find(tuple, CTA_TUPLE_IP)?, find(tuple, CTA_TUPLE_PROTO)?);
        let v4 = find(ip, CTA_IP_V4_DST).and_then(|it| <[u8; 4]>::try_from(it).ok());
        let v6 = find(ip, CTA_IP_V6_DST).and_then(|it| <[u8; 16]>::try_from(it).ok());
        let address = v4.map(|it| Ipv4Addr::from(it).into()).or_else(|| v6.map(|it| Ipv6Addr::from(it).into()));
        Some(Self {
            protocol: *find(proto, CTA_PROTO_NUM)?.first()?,
            port: find(proto, CTA_PROTO_DST_PORT).and_then(|it| it.try_into().ok()).map_or(0, u16::from_be_bytes),
            address,
            tuple: tuple.to_vec(),
        })
    }
}

/// The first attribute of a kind.
fn find(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    while let Some(header) = bytes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let this = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let body = bytes.get(4..length)?;
        if this == kind {
            return Some(body);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

fn attribute(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&((4 + body.len()) as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn ask(socket: &OwnedFd, kind: u16, flags: u16, family: u8, body: &[u8]) -> Result<(), Errno> {
    let length = 16 + 4 + body.len();
    let mut message = Vec::with_capacity(length);
    message.extend_from_slice(&(length as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence and port: one question at a time on a socket of our own.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[family, 0, 0, 0]);
    message.extend_from_slice(body);
    send(socket.as_raw_fd(), &message, MsgFlags::empty()).map(drop)
}

fn dump(socket: &OwnedFd, family: u8) -> Result<Vec<Flow>, Errno> {
    ask(socket, GET, NLM_F_DUMP, family, &[])?;
    let mut flows = Vec::new();
    receive(socket, |message| {
        // More than may be kept are read all the same, so that the answer ends.
        if flows.len() < MAX_FLOWS {
            flows.extend(Flow::parse(message).filter(|flow| flow.protocol == UDP));
        }
        true
    })?;
    Ok(flows)
}

fn acknowledged(socket: &OwnedFd) -> Result<(), Errno> {
    receive(socket, |_| false)
}

/// Hands the bodies of messages to `take` until the answer ends or `take` has enough.
fn receive(socket: &OwnedFd, mut take: impl FnMut(&[u8]) -> bool) -> Result<(), Errno> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut bytes = &buffer[..count];
        while let Some(header) = bytes.get(..16) {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let body = bytes.get(16..length).ok_or(Errno::EBADMSG)?;
            match u16::from_ne_bytes([header[4], header[5]]) {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = body.get(..4).and_then(|it| it.try_into().ok()).map_or(0, i32::from_ne_bytes);
                    return if code == 0 { Ok(()) } else { Err(Errno::from_raw(-code)) };
                }
                _ if !take(body) => return Ok(()),
                _ => {}
            }
            bytes = bytes.get(length.max(16).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(protocol: u8, address: [u8; 4], port: u16) -> Flow {
        let ip = attribute(CTA_TUPLE_IP | NESTED, &attribute(CTA_IP_V4_DST, &address));
        let proto = [attribute(CTA_PROTO_NUM, &[protocol]), attribute(CTA_PROTO_DST_PORT, &port.to_be_bytes())];
        let tuple = [ip, attribute(CTA_TUPLE_PROTO | NESTED, &proto.concat())].concat();
        let message = [vec![2, 0, 0, 0], attribute(CTA_TUPLE_ORIG | NESTED, &tuple)].concat();
        Flow::parse(&message).expect("a flow")
    }

    // moby/moby#8795
    #[test]
    fn only_udp_flows_to_the_host_port_and_address_are_forgotten() {
        let bound = (Some("192.0.2.7".parse().expect("an address")), 5514);
        assert!(flow(17, [192, 0, 2, 7], 5514).is_for(&bound));
        assert!(!flow(17, [192, 0, 2, 8], 5514).is_for(&bound));
        assert!(!flow(17, [192, 0, 2, 7], 514).is_for(&bound));
        assert!(!flow(6, [192, 0, 2, 7], 5514).is_for(&bound));
        assert!(flow(17, [192, 0, 2, 8], 5514).is_for(&(None, 5514)));
    }

    #[test]
    fn broken_messages_are_no_flows() {
        for length in 0..40 {
            assert!(Flow::parse(&vec![0xff; length]).is_none());
            assert!(Flow::parse(&vec![0; length]).is_none());
        }
    }
}

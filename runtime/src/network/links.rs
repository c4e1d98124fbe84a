//! Interfaces, addresses and routes through rtnetlink(7). The only file that names the netlink crates.

use super::subnet::{Foreign, Range};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes of one answer: the kernel fills at most 32 KiB of a dump at once (rtnetlink's `netlink_dump`).
const BUFFER: usize = 64 * 1024;

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel refused.
    #[error("{0}: {reason}", reason = .1.desc())]
    System(&'static str, Errno),
    /// The socket failed.
    #[error("talking to the kernel's network")]
    Io(#[source] std::io::Error),
    /// No interface of that name.
    #[error("there is no interface {0}")]
    Missing(String),
    /// The answer was not understood.
    #[error("the kernel's answer is not understood")]
    Answer,
}

/// A connection to the kernel, in the namespace of the thread that opened it.
pub struct Links {
    socket: Socket,
    sequence: u32,
}

impl Links {
    /// Opens it.
    ///
    /// # Errors
    /// EMFILE.
    pub fn open() -> Result<Self, LinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(LinkError::Io)?;
        socket.bind_auto().map_err(LinkError::Io)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(LinkError::Io)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes a bridge with an address, and brings it up. One that is there already is taken.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn make_bridge(&mut self, name: &str, gateway: Ipv4Addr, prefix: u8) -> Result<u32, LinkError> {
        if self.index(name)?.is_none() {
            let mut link = LinkMessage::default();
            link.attributes = vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
            ];
            self.change("making a bridge", RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL, &[])?;
        }
        let index = self.index(name)?.ok_or_else(|| LinkError::Missing(name.to_owned()))?;
        self.add_address(index, gateway, prefix)?;
        self.set_up(index)?;
        Ok(index)
    }

    /// Makes a pair of interfaces: `outer` on the bridge, `inner` in the namespace.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn make_pair(
        &mut self,
        outer: &str,
        inner: &str,
        bridge: u32,
        namespace: &OwnedFd,
        mac: Option<[u8; 6]>,
    ) -> Result<(), LinkError> {
        let mut peer = LinkMessage::default();
        peer.attributes =
            vec![LinkAttribute::IfName(inner.to_owned()), LinkAttribute::NetNsFd(namespace.as_raw_fd())];
        peer.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        let mut link = LinkMessage::default();
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        link.attributes = vec![
            LinkAttribute::IfName(outer.to_owned()),
            LinkAttribute::Controller(bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.change(
            "making an interface pair",
            RouteNetlinkMessage::NewLink(link),
            NLM_F_CREATE | NLM_F_EXCL,
            &[],
        )?;
        self.let_packets_return(outer)
    }

    /// A container that calls its own published port gets its packet back through the port that it came from: with
    /// br_netfilter the bridge would drop it otherwise (hairpin mode, `IFLA_BRPORT_MODE`).
    fn let_packets_return(&mut self, port: &str) -> Result<(), LinkError> {
        let mut link = LinkMessage::default();
        link.header.index = self.index(port)?.ok_or_else(|| LinkError::Missing(port.to_owned()))?;
        link.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ])];
        self.change("setting a bridge port's hairpin mode", RouteNetlinkMessage::NewLink(link), 0, &[])
    }

    /// Removes an interface; it may be gone already.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn remove(&mut self, name: &str) -> Result<(), LinkError> {
        let Some(index) = self.index(name)? else { return Ok(()) };
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.change("removing an interface", RouteNetlinkMessage::DelLink(link), 0, &[Errno::ENODEV])
    }

    /// Index of an interface in the namespace of the calling thread, which is to be that of the connection. By
    /// ioctl(2): the answer to one about all interfaces is a kilobyte for each.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn index(&self, name: &str) -> Result<Option<u32>, LinkError> {
        match nix::net::if_::if_nametoindex(name) {
            Ok(index) => Ok(Some(index)),
            Err(Errno::ENODEV) => Ok(None),
            Err(errno) => Err(LinkError::System("looking for an interface", errno)),
        }
    }

    /// Index and name of every interface.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn list(&mut self) -> Result<Vec<(u32, String)>, LinkError> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let links = answers.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some((link.header.index, name.clone())),
                _ => None,
            }),
            _ => None,
        });
        Ok(links.collect())
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn set_up(&mut self, index: u32) -> Result<(), LinkError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.change("bringing an interface up", RouteNetlinkMessage::SetLink(link), 0, &[])
    }

    /// Renames an interface that is down.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn rename(&mut self, index: u32, name: &str) -> Result<(), LinkError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        self.change("renaming an interface", RouteNetlinkMessage::SetLink(link), 0, &[])
    }

    /// Adds an address; it may be there already.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), LinkError> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix;
        message.header.index = index;
        let broadcast = Ipv4Addr::from_bits(address.to_bits() | u32::MAX.checked_shr(prefix.into()).unwrap_or(0));
        message.attributes = vec![
            AddressAttribute::Local(IpAddr::V4(address)),
            AddressAttribute::Address(IpAddr::V4(address)),
            AddressAttribute::Broadcast(broadcast),
        ];
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.change("adding an address", RouteNetlinkMessage::NewAddress(message), flags, &[Errno::EEXIST])
    }

    /// Adds the default route.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn add_default_route(&mut self, index: u32, gateway: Ipv4Addr) -> Result<(), LinkError> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: AddressFamily::Inet,
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Boot,
            scope: RouteScope::Universe,
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        message.attributes =
            vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(index)];
        self.change(
            "adding the default route",
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_EXCL,
            &[],
        )
    }

    /// Ranges of all IPv4 routes of all tables and of all addresses, those of the interfaces in `ours` left out.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn ranges_in_use(&mut self, ours: &[u32]) -> Result<Foreign, LinkError> {
        let mut ask = RouteMessage::default();
        ask.header.address_family = AddressFamily::Inet;
        let mut routes = Vec::new();
        for message in self.dump(RouteNetlinkMessage::GetRoute(ask))? {
            let RouteNetlinkMessage::NewRoute(route) = message else { continue };
            let (mut destination, mut foreign) = (None, true);
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(*address),
                    RouteAttribute::Oif(index) => foreign &= !ours.contains(index),
                    _ => {}
                }
            }
            routes.extend(
                destination.filter(|_| foreign).map(|it| Range::new(it, route.header.destination_prefix_length)),
            );
        }
        let mut ask = AddressMessage::default();
        ask.header.family = AddressFamily::Inet;
        let mut links = Vec::new();
        for message in self.dump(RouteNetlinkMessage::GetAddress(ask))? {
            let RouteNetlinkMessage::NewAddress(address) = message else { continue };
            if ours.contains(&address.header.index) {
                continue;
            }
            links.extend(address.attributes.iter().filter_map(|attribute| match attribute {
                AddressAttribute::Address(IpAddr::V4(it)) => Some(Range::new(*it, address.header.prefix_len)),
                _ => None,
            }));
        }
        Ok(Foreign { routes, links })
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<u32, LinkError> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(LinkError::Io)?;
        Ok(self.sequence)
    }

    /// Asks for a change; errors in `accepted` are as good as success.
    fn change(
        &mut self,
        what: &'static str,
        message: RouteNetlinkMessage,
        flags: u16,
        accepted: &[Errno],
    ) -> Result<(), LinkError> {
        let sequence = self.send(message, flags | NLM_F_ACK)?;
        let mut result = Ok(());
        self.receive(sequence, |payload| match payload {
            NetlinkPayload::Error(error) => {
                let errno = Errno::from_raw(-error.raw_code());
                if error.code.is_some() && !accepted.contains(&errno) {
                    result = Err(LinkError::System(what, errno));
                }
                true
            }
            _ => false,
        })?;
        result
    }

    fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, LinkError> {
        let sequence = self.send(message, NLM_F_DUMP)?;
        let mut answers = Vec::new();
        let mut failed = None;
        self.receive(sequence, |payload| match payload {
            NetlinkPayload::InnerMessage(message) => {
                answers.push(message);
                false
            }
            NetlinkPayload::Error(error) => {
                failed = Some(Errno::from_raw(-error.raw_code()));
                true
            }
            NetlinkPayload::Done(_) => true,
            _ => false,
        })?;
        match failed {
            Some(errno) => Err(LinkError::System("asking the kernel's network", errno)),
            None => Ok(answers),
        }
    }

    /// Hands every answer to the request `sequence` to `take` until that says it was the last.
    fn receive(
        &mut self,
        sequence: u32,
        mut take: impl FnMut(NetlinkPayload<RouteNetlinkMessage>) -> bool,
    ) -> Result<(), LinkError> {
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            let length = self.socket.recv(&mut buffer, 0).map_err(LinkError::Io)?;
            let mut rest = buffer.get(..length).ok_or(LinkError::Answer)?;
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(|_| LinkError::Answer)?;
                let step = (message.header.length as usize).div_ceil(4) * 4;
                if message.header.sequence_number == sequence && take(message.payload) {
                    return Ok(());
                }
                rest = rest.get(step.max(16)..).unwrap_or_default();
            }
        }
    }
}

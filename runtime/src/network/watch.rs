//! Hears when somebody removes firewall rules (nfnetlink's multicast group of nf_tables, linux/netfilter/nfnetlink.h),
//! and when routes or addresses change (rtnetlink(7)).

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;

/// `NFNLGRP_NFTABLES` as a bit mask.
const GROUP: u32 = 1 << (7 - 1);

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u8 = 10;

/// `NFT_MSG_DELTABLE`, `NFT_MSG_DELCHAIN`, `NFT_MSG_DELRULE` (linux/netfilter/nf_tables.h).
const REMOVALS: [u8; 3] = [2, 5, 8];

/// Bytes of one message: the kernel sends at most a page at once here.
const BUFFER: usize = 8192;

/// Ears for removals, in the network namespace of the thread that made them.
#[derive(Debug)]
pub struct Removals {
    socket: AsyncFd<OwnedFd>,
}

impl Removals {
    /// Begins to listen. Needs a tokio runtime.
    ///
    /// # Errors
    /// EPERM, EMFILE, or a kernel without nf_tables.
    pub fn listen() -> std::io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
        Ok(Self { socket: crate::sys::register(fd)? })
    }

    /// Waits until something was removed, whosoever removed it.
    ///
    /// # Errors
    /// When the socket is broken.
    pub async fn wait(&self) -> std::io::Result<()> {
        let mut buffer = [0; BUFFER];
        loop {
            let mut ready = self.socket.readable().await?;
            match recv(self.socket.get_ref().as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(count) if removes(&buffer[..count]) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => ready.clear_ready(),
                // Messages were lost: one of them may have been a removal.
                Err(Errno::ENOBUFS) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV4_ROUTE` (linux/rtnetlink.h).
const ROUTE_GROUPS: u32 = 0x10 | 0x40;

/// Ears for changes of routes and addresses, in the network namespace of the thread that made them.
#[derive(Debug)]
pub struct Routes {
    socket: AsyncFd<OwnedFd>,
}

impl Routes {
    /// Begins to listen. Needs a tokio runtime.
    ///
    /// # Errors
    /// EMFILE.
    pub fn listen() -> std::io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, ROUTE_GROUPS))?;
        Ok(Self { socket: crate::sys::register(fd)? })
    }

    /// Waits until something changed, and takes everything that came so far.
    ///
    /// # Errors
    /// When the socket is broken.
    pub async fn wait(&self) -> std::io::Result<()> {
        let mut buffer = [0; BUFFER];
        let mut changed = false;
        loop {
            let mut ready = self.socket.readable().await?;
            match recv(self.socket.get_ref().as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                // Messages were lost: what they said is looked at anyway.
                Ok(_) | Err(Errno::ENOBUFS) => changed = true,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if changed => return Ok(()),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// True when one of the messages is a removal.
fn removes(mut bytes: &[u8]) -> bool {
    while let Some(header) = bytes.get(..16) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]).to_be_bytes();
        if kind[0] == SUBSYSTEM && REMOVALS.contains(&kind[1]) {
            return true;
        }
        bytes = bytes.get(length.max(16).next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: usize) -> Vec<u8> {
        let mut bytes = vec![0; 16 + body];
        bytes[..4].copy_from_slice(&(16 + body as u32).to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes
    }

    #[test]
    fn removals_are_told_from_additions() {
        let (new_table, del_rule) = (0x0a00, 0x0a08);
        assert!(!removes(&message(new_table, 8)));
        assert!(removes(&[message(new_table, 8), message(del_rule, 4)].concat()));
        assert!(!removes(&[0; 7]));
        assert!(!removes(&[0; 64]));
    }
}

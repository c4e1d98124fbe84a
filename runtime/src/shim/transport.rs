//! One packet with its descriptors, over a `SOCK_SEQPACKET` socket (unix(7)).

use super::protocol::{MAX_DESCRIPTORS, MAX_PACKET};
use crate::sys;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg,
    sendmsg, socket,
};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

/// What one receive brought.
#[derive(Debug)]
pub enum Received {
    /// A packet of that many bytes, with descriptors.
    Packet(usize, Vec<OwnedFd>),
    /// The other end is gone.
    Closed,
}

/// Sends one packet without blocking.
///
/// # Errors
/// EAGAIN when the other end does not read, EPIPE when it is gone, EMSGSIZE when the packet is too large.
pub fn send(fd: impl AsFd, packet: &[u8], descriptors: &[RawFd]) -> Result<(), Errno> {
    if packet.len() > MAX_PACKET {
        return Err(Errno::EMSGSIZE);
    }
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control: &[ControlMessage] = if descriptors.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(fd.as_fd().as_raw_fd(), &[IoSlice::new(packet)], control, flags, None).map(drop)
}

/// Receives one packet without blocking, into `buffer` of [`MAX_PACKET`] bytes.
///
/// # Errors
/// EAGAIN when there is none; EMSGSIZE when it was larger than allowed, or its descriptors were.
pub fn receive(fd: impl AsFd, buffer: &mut [u8]) -> Result<Received, Errno> {
    let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(fd.as_fd().as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            descriptors.extend(received.into_iter().map(sys::own));
        }
    }
    if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(Errno::EMSGSIZE);
    }
    if message.bytes == 0 {
        return Ok(Received::Closed);
    }
    Ok(Received::Packet(message.bytes, descriptors))
}

/// Connects to the shim's socket.
///
/// # Errors
/// ENOENT or ECONNREFUSED when no shim runs there.
pub fn connect_to(path: &Path) -> Result<OwnedFd, Errno> {
    let fd =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// Waits until there is something to read.
///
/// # Errors
/// ENOMEM.
pub fn wait_readable(fd: &OwnedFd) -> Result<(), Errno> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// Receives one descriptor over a stream socket, as console sockets send it.
///
/// # Errors
/// What recvmsg(2) returns.
pub fn receive_descriptor(fd: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    wait_readable(fd)?;
    match receive(fd, &mut [0; 4096])? {
        Received::Packet(_, mut descriptors) => Ok(descriptors.pop()),
        Received::Closed => Ok(None),
    }
}

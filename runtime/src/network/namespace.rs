//! Network namespaces: made in a thread of their own, held by descriptor (network_namespaces(7)).

use super::links::{LinkError, Links};
use super::subnet::Range;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

/// A new namespace with nothing in it but a loopback that is up.
///
/// # Errors
/// EPERM without the right, ENOSPC when the kernel's limit on namespaces is reached.
pub fn create() -> Result<OwnedFd, LinkError> {
    in_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| LinkError::System("making a network namespace", errno))?;
        let mut links = Links::open()?;
        let loopback = links.index("lo")?.ok_or(LinkError::Missing("lo".to_owned()))?;
        links.set_up(loopback)?;
        Ok(File::open("/proc/thread-self/ns/net").map_err(LinkError::Io)?.into())
    })
}

/// An interface of a container: its address, and where packets to elsewhere go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name outside until it is renamed inside.
    pub name: String,
    /// Name inside.
    pub inner: String,
    /// Address.
    pub address: Ipv4Addr,
    /// Range of the network.
    pub range: Range,
    /// The default route goes here; `None`: no default route on this one.
    pub gateway: Option<Ipv4Addr>,
}

/// Names, addresses and brings up the interfaces that were moved into `namespace`.
///
/// # Errors
/// What the kernel refuses.
pub fn configure(namespace: &OwnedFd, interfaces: &[Interface]) -> Result<(), LinkError> {
    in_thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| LinkError::System("entering the namespace", errno))?;
        let mut links = Links::open()?;
        for interface in interfaces {
            let index = links.index(&interface.name)?.ok_or_else(|| LinkError::Missing(interface.name.clone()))?;
            links.rename(index, &interface.inner)?;
            links.add_address(index, interface.address, interface.range.prefix)?;
            links.set_up(index)?;
            if let Some(gateway) = interface.gateway {
                links.add_default_route(index, gateway)?;
            }
        }
        Ok(())
    })
}

/// Ranges of the addresses in `namespace`.
///
/// # Errors
/// What the kernel refuses.
pub fn ranges(namespace: &OwnedFd) -> Result<Vec<Range>, LinkError> {
    in_thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| LinkError::System("entering the namespace", errno))?;
        Ok(Links::open()?.ranges_in_use(&[])?.links)
    })
}

/// A namespace belongs to a thread: a new one enters it and ends with it.
fn in_thread<T: Send>(work: impl FnOnce() -> Result<T, LinkError> + Send) -> Result<T, LinkError> {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(_) => Err(LinkError::System("working in a namespace", nix::errno::Errno::UnknownErrno)),
    })
}

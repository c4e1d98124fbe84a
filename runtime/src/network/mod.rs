//! Container networks: a bridge for each network of a project, a namespace for each container, addresses, names,
//! published ports.
//!
//! [`subnet`] and [`firewall`] decide and are pure; [`links`] and [`namespace`] act through rtnetlink(7),
//! [`conntrack`] and [`watch`] through nfnetlink; [`dns`]
//! answers on each bridge's own address.
//!
//! **Invariant.** Foreign interfaces, routes and firewall tables are never changed.

pub mod conntrack;
pub mod dns;
pub mod firewall;
pub mod links;
pub mod namespace;
pub mod resolv;
pub mod subnet;
pub mod watch;

/// Longest name of an interface (`IFNAMSIZ` less the terminator, linux/if.h).
pub const MAX_INTERFACE: usize = 15;

/// Begins every interface of ours, so that what a crash left can be found.
pub const INTERFACE_PREFIX: &str = "cor";

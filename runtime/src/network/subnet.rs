//! Choosing ranges and addresses. Pure.

use std::net::Ipv4Addr;

/// An IPv4 range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Range {
    /// Network address.
    pub address: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
}

/// Blocks that /24 ranges are taken from: parts of 10.0.0.0/8 that routers, VPNs and cloud networks seldom use.
/// balena's own 10.114.0.0/16 and the hotspots' 10.42.0.0/16 are not among them.
const BLOCKS: &[[u8; 2]] = &[[10, 209], [10, 217], [10, 233], [10, 241]];

/// Where they are taken from when a VPN has all of 10.0.0.0/8.
const OTHER_BLOCKS: &[[u8; 2]] = &[[172, 29], [172, 30]];

/// Routes shorter than this are default routes in disguise (a VPN's 0.0.0.0/1) and collide with nothing.
const SHORTEST_ROUTE: u8 = 8;

impl Range {
    /// The range that holds `address`.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { address: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix }
    }

    /// True when both have an address in common.
    pub fn overlaps(&self, other: &Range) -> bool {
        let common = mask(self.prefix.min(other.prefix));
        self.address.to_bits() & common == other.address.to_bits() & common
    }

    /// True when `address` lies in it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.overlaps(&Range::new(address, 32))
    }

    /// The address at `offset`.
    pub fn nth(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | (offset & !mask(self.prefix)))
    }

    /// The first address, which the bridge has.
    pub fn gateway(&self) -> Ipv4Addr {
        self.nth(1)
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

/// Ranges that are not ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Of routes.
    pub routes: Vec<Range>,
    /// Of the addresses of this machine's own interfaces: who hides one of them may cut the machine off.
    pub links: Vec<Range>,
}

/// A free /24 for the network `name`, away from everything in `taken`; the same each time when nothing changed.
pub fn choose(name: &str, taken: &[Range]) -> Option<Range> {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        // FNV-1a: spreads names; nothing secret depends on it.
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    [BLOCKS, OTHER_BLOCKS].into_iter().find_map(|blocks| {
        let count = blocks.len() * 256;
        let first = usize::try_from(hash % count as u64).unwrap_or(0);
        (0..count).map(|step| (first + step) % count).find_map(|index| {
            let [a, b] = blocks[index / 256];
            let range = Range::new(Ipv4Addr::new(a, b, (index % 256) as u8, 0), 24);
            collision(&range, taken).is_none().then_some(range)
        })
    })
}

/// The first of `taken` that has an address in common with `range`.
pub fn collision<'a>(range: &Range, taken: &'a [Range]) -> Option<&'a Range> {
    taken.iter().filter(|it| it.prefix >= SHORTEST_ROUTE).find(|it| it.overlaps(range))
}

/// The lowest free address of `range` behind its gateway.
pub fn free_address(range: &Range, taken: &[Ipv4Addr]) -> Option<Ipv4Addr> {
    let last = !mask(range.prefix);
    (2..last).map(|offset| range.nth(offset)).find(|address| !taken.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(text: &str) -> Range {
        let (address, prefix) = text.split_once('/').expect("a range");
        Range::new(address.parse().expect("an address"), prefix.parse().expect("a length"))
    }

    // balena-os/meta-balena#802, docker/for-linux#418
    #[test]
    fn a_range_never_collides_with_routes_and_ignores_disguised_default_routes() {
        let free = choose("demo_default", &[]).expect("free");
        assert_eq!(choose("demo_default", &[]), Some(free), "the same each time");
        let next = choose("demo_default", &[free]).expect("another");
        assert!(!next.overlaps(&free));
        assert_eq!(choose("demo_default", &[range("0.0.0.0/1"), range("128.0.0.0/1")]), Some(free));
        let beside = choose("x", &[range("10.0.0.0/8")]).expect("a range beside a VPN");
        assert!(range("172.16.0.0/12").overlaps(&beside));
        assert_eq!(choose("x", &[range("10.0.0.0/8"), range("172.16.0.0/12")]), None);
    }

    #[test]
    fn addresses_begin_behind_the_gateway() {
        let range = range("10.209.7.0/24");
        assert_eq!(range.gateway(), Ipv4Addr::new(10, 209, 7, 1));
        assert_eq!(free_address(&range, &[range.nth(2), range.nth(4)]), Some(range.nth(3)));
        let all: Vec<_> = (2..255).map(|offset| range.nth(offset)).collect();
        assert_eq!(free_address(&range, &all), None);
    }

    proptest! {
        #[test]
        fn chosen_ranges_are_disjoint_from_all_taken(taken in proptest::collection::vec((any::<u32>(), 8_u8..=32), 0..20), name in "[a-z]{1,9}") {
            let taken: Vec<Range> = taken.into_iter().map(|(address, prefix)| Range::new(address.into(), prefix)).collect();
            if let Some(range) = choose(&name, &taken) {
                prop_assert!(taken.iter().all(|it| !it.overlaps(&range)));
            }
        }
    }
}

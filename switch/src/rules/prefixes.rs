//! The longest of a set of prefixes that an address lies in, and from there on to the shorter ones.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;

use super::intervals::{Intervals, Point};

/// No prefix.
const NOBODY: u32 = u32::MAX;

/// An immutable set of prefixes of both families, numbered.
#[derive(Debug)]
pub(crate) struct Prefixes {
    nets: Box<[IpNet]>,
    /// For each prefix the longest one that it lies in.
    parents: Box<[u32]>,
    v4: Family<u32>,
    v6: Family<u128>,
}

/// For each interval of a family's addresses the longest prefix around it.
#[derive(Debug)]
struct Family<K> {
    intervals: Intervals<K>,
    innermost: Box<[u32]>,
}

impl<K: Point> Family<K> {
    /// `ranges` has the outer ones first.
    fn new(ranges: &[(K, K, u32)]) -> Self {
        let intervals = Intervals::new(ranges.iter().map(|&(first, last, _)| (first, last)));
        let mut innermost = vec![NOBODY; intervals.len()];
        for &(first, last, number) in ranges {
            innermost[intervals.locate(first)..=intervals.locate(last)].fill(number);
        }
        Self { intervals, innermost: innermost.into() }
    }

    #[inline]
    fn find(&self, at: K) -> u32 {
        if self.innermost.len() == 1 {
            return self.innermost[0];
        }
        self.innermost[self.intervals.locate(at)]
    }
}

impl Prefixes {
    /// The set; host bits are ignored and doubles dropped.
    pub(crate) fn new(nets: impl IntoIterator<Item = IpNet>) -> Self {
        let mut nets: Vec<_> = nets.into_iter().map(|net| net.trunc()).collect();
        // Outer ones before those within.
        nets.sort_unstable_by_key(|net| (net.addr(), net.prefix_len()));
        nets.dedup();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let mut parents = Vec::with_capacity(nets.len());
        let mut open: Vec<u32> = Vec::new();
        for (number, net) in (0..).zip(&nets) {
            while open.last().is_some_and(|&outer| !nets[outer as usize].contains(net)) {
                open.pop();
            }
            parents.push(open.last().copied().unwrap_or(NOBODY));
            open.push(number);
            match net {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits(), number)),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits(), number)),
            }
        }
        Self { nets: nets.into(), parents: parents.into(), v4: Family::new(&v4), v6: Family::new(&v6) }
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.nets.len()
    }

    /// The number of the longest prefix around an address.
    #[inline]
    pub(crate) fn longest(&self, address: IpAddr) -> Option<u32> {
        let number = match address {
            IpAddr::V4(v4) => self.v4.find(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.find(v6.to_bits()),
        };
        (number != NOBODY).then_some(number)
    }

    /// The numbers of all prefixes around an address, longest first: at most one for each length.
    #[inline]
    pub(crate) fn around(&self, address: IpAddr) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(self.longest(address), |&number| {
            let parent = self.parents[number as usize];
            (parent != NOBODY).then_some(parent)
        })
    }

    /// Whether some prefix holds the address.
    #[inline]
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.longest(address).is_some()
    }

    /// The number of a prefix that is one of the set.
    pub(crate) fn number(&self, net: IpNet) -> Option<u32> {
        let net = net.trunc();
        self.around(net.addr()).find(|&number| self.nets[number as usize] == net)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// Addresses and prefixes crowded enough to meet, of both families.
    pub(crate) fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0..4_u32, 0..8_u32)
                .prop_map(|(high, low)| Ipv4Addr::from_bits(10 << 24 | high << 16 | low).into()),
            (0..4_u128, 0..8_u128)
                .prop_map(|(high, low)| Ipv6Addr::from_bits(0xfd << 120 | high << 64 | low).into()),
            Just(Ipv4Addr::BROADCAST.into()),
            Just(Ipv6Addr::UNSPECIFIED.into()),
        ]
    }

    pub(crate) fn net() -> impl Strategy<Value = IpNet> {
        (address(), 0..=128_u8).prop_map(|(address, len)| {
            IpNet::new(address, if address.is_ipv4() { len % 33 } else { len }).expect("a prefix").trunc()
        })
    }

    proptest! {
        #[test]
        fn as_a_list_would_say(nets in proptest::collection::vec(net(), 0..30), at in address()) {
            let prefixes = Prefixes::new(nets.iter().copied());
            let mut expected: Vec<_> = nets.iter().filter(|net| net.contains(&at)).copied().collect();
            expected.sort_by_key(|net| std::cmp::Reverse(net.prefix_len()));
            expected.dedup();
            let found: Vec<_> = prefixes.around(at).map(|number| prefixes.nets[number as usize]).collect();
            prop_assert_eq!(found, expected);
            for &net in &nets {
                let number = prefixes.number(net).expect("is there");
                prop_assert_eq!(prefixes.nets[number as usize], net);
            }
        }
    }
}

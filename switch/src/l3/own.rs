//! Whether an address is one of the switch's own: asked for the source of every packet that belongs to no connection,
//! since nobody else may send from it (RFC 1812, section 5.3.7).
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::interface::Interface;

/// The addresses of one family, behind a filter that costs next to nothing: which last bytes of an address there are.
struct Addresses<A> {
    filter: [bool; 256],
    sorted: Box<[A]>,
}

impl<A> Default for Addresses<A> {
    fn default() -> Self {
        Self { filter: [false; 256], sorted: Box::default() }
    }
}

impl<A: Ord + Copy + Into<u128>> Addresses<A> {
    fn new(addresses: impl Iterator<Item = A>) -> Self {
        let mut sorted: Vec<A> = addresses.collect();
        sorted.sort_unstable();
        let mut filter = [false; 256];
        for &address in &sorted {
            filter[usize::from(address.into() as u8)] = true;
        }
        Self { filter, sorted: sorted.into_boxed_slice() }
    }

    #[inline(always)]
    fn may_have(&self, address: A) -> bool {
        self.filter[usize::from(address.into() as u8)]
    }

    #[inline(always)]
    fn has(&self, address: A) -> bool {
        self.may_have(address) && self.find(address)
    }

    #[cold]
    fn find(&self, address: A) -> bool {
        self.sorted.binary_search(&address).is_ok()
    }
}

/// The addresses of all interfaces, link-local ones included.
#[derive(Default)]
pub struct Own {
    v4: Addresses<u32>,
    v6: Addresses<u128>,
}

impl Own {
    /// Those of these interfaces.
    pub fn new(interfaces: &[Option<Arc<Interface>>]) -> Self {
        let all = || interfaces.iter().flatten();
        let v6 = |interface: &Arc<Interface>| -> Vec<u128> {
            let own = interface.v6().iter().map(|own| own.address);
            own.chain([interface.link_local]).collect()
        };
        Self {
            v4: Addresses::new(all().flat_map(|interface| interface.v4().iter().map(|own| own.address))),
            v6: Addresses::new(all().flat_map(v6)),
        }
    }

    /// Whether an IPv4 address is one of them.
    #[inline(always)]
    pub fn has_v4(&self, address: u32) -> bool {
        self.v4.has(address)
    }

    /// Whether an IPv4 address might be one of them: no is no.
    #[inline(always)]
    pub fn may_have_v4(&self, address: u32) -> bool {
        self.v4.may_have(address)
    }

    /// Whether an IPv6 address is one of them.
    #[inline(always)]
    pub fn has_v6(&self, address: u128) -> bool {
        self.v6.has(address)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_filter_hides_nothing(own in proptest::collection::btree_set(0..2000_u32, 0..20), asked in 0..2000_u32) {
            let own: BTreeSet<u32> = own;
            let addresses = Addresses::new(own.iter().copied());
            prop_assert_eq!(addresses.has(asked), own.contains(&asked));
            let wide = Addresses::new(own.iter().map(|&address| u128::from(address) << 64 | 0xab));
            prop_assert_eq!(wide.has(u128::from(asked) << 64 | 0xab), own.contains(&asked));
        }
    }
}

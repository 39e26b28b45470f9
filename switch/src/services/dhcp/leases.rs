//! Who has which address of a network, and until when.
//!
//! Found by address, by client identifier and by Ethernet address; deadlines in order, so that nothing is ever
//! searched for what has expired; counted per port. Seconds are those of whoever asks, from any origin.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::LEASES_MAX;
use super::message::hardware_identity;
use crate::packet::ethernet::Mac;

/// What an address is at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// About to be offered; it is being found out whether somebody uses it.
    Probing,
    /// Offered; the client has not asked for it yet.
    Offered,
    /// The client's.
    Bound,
    /// Was the client's, which gets it again if it comes back and nobody needed it meanwhile.
    Expired,
    /// In use by somebody who did not get it here.
    Declined,
}

impl State {
    /// The word of listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Probing => "probing",
            Self::Offered => "offered",
            Self::Bound => "bound",
            Self::Expired => "expired",
            Self::Declined => "declined",
        }
    }

    /// Whether nobody else can have the address.
    pub fn is_held(self) -> bool {
        self != Self::Expired
    }
}

/// An address of which account is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The client's Ethernet address.
    pub mac: Mac,
    /// The client's identifier.
    pub identity: Box<[u8]>,
    /// The name that the client gave, or was given.
    pub hostname: Option<String>,
    /// The port behind which the client is, or which is answerable for a declined address; `None` if not known.
    pub port: Option<u16>,
    /// What it is.
    pub state: State,
    /// The second at which that ends.
    pub expires: u64,
}

impl Lease {
    fn counts_for(&self) -> Option<u16> {
        self.port.filter(|_| self.state.is_held())
    }
}

/// All addresses of a network of which account is kept; at most [`LEASES_MAX`].
#[derive(Debug, Default)]
pub struct Leases {
    by_address: BTreeMap<Ipv4Addr, Lease>,
    by_client: HashMap<(Mac, Box<[u8]>), Ipv4Addr>,
    by_mac: HashMap<Mac, Ipv4Addr>,
    deadlines: BTreeSet<(u64, Ipv4Addr)>,
    per_port: HashMap<u16, u32>,
}

impl Leases {
    /// What is known of an address.
    pub fn get(&self, address: Ipv4Addr) -> Option<&Lease> {
        self.by_address.get(&address)
    }

    /// The address of a client: of an identifier at an Ethernet address, so that nobody gets another station's address
    /// by giving its identifier. A client without an identifier (its identity is then its Ethernet address) is the same
    /// as any client of its Ethernet address, and the other way round: firmware and operating system of one machine.
    pub fn find(&self, identity: &[u8], mac: Mac) -> Option<Ipv4Addr> {
        let hardware = hardware_identity(mac);
        let of_mac = || self.by_mac.get(&mac).filter(|_| *identity == *hardware);
        let known = self.by_client.get(&(mac, identity.into())).or_else(of_mac);
        known.or_else(|| self.by_client.get(&(mac, hardware.clone()))).copied()
    }

    /// Addresses that are held for stations behind a port.
    pub fn held_by(&self, port: u16) -> u32 {
        self.per_port.get(&port).copied().unwrap_or(0)
    }

    /// Puts a lease in the place of what was known of the address. Where the table is full, what expired first is
    /// forgotten; false, and nothing done, if nothing has.
    pub fn put(&mut self, address: Ipv4Addr, lease: Lease) -> bool {
        if self.by_address.len() >= LEASES_MAX && !self.by_address.contains_key(&address) {
            match self.oldest_expired(|_| true) {
                Some(oldest) => self.remove(oldest),
                None => return false,
            };
        }
        self.remove(address);
        if let Some(port) = lease.counts_for() {
            *self.per_port.entry(port).or_default() += 1;
        }
        // Who declined an address is not to be led back to it.
        if lease.state != State::Declined {
            self.by_client.insert((lease.mac, lease.identity.clone()), address);
            self.by_mac.insert(lease.mac, address);
        }
        self.deadlines.insert((lease.expires, address));
        self.by_address.insert(address, lease);
        true
    }

    /// Forgets an address.
    pub fn remove(&mut self, address: Ipv4Addr) -> Option<Lease> {
        let lease = self.by_address.remove(&address)?;
        self.deadlines.remove(&(lease.expires, address));
        let client = (lease.mac, lease.identity.clone());
        if self.by_client.get(&client) == Some(&address) {
            self.by_client.remove(&client);
        }
        if self.by_mac.get(&lease.mac) == Some(&address) {
            self.by_mac.remove(&lease.mac);
        }
        if let Some(port) = lease.counts_for()
            && let Some(count) = self.per_port.get_mut(&port)
        {
            *count -= 1;
            if *count == 0 {
                self.per_port.remove(&port);
            }
        }
        Some(lease)
    }

    /// The first second at which something ends.
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|&(second, _)| second)
    }

    /// An address whose time has come; the caller is to put or remove it.
    pub fn due(&self, now: u64) -> Option<Ipv4Addr> {
        self.deadlines.first().filter(|&&(second, _)| second <= now).map(|&(_, address)| address)
    }

    /// The address that expired first among those of which `suits` is true.
    pub fn oldest_expired(&self, suits: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        self.oldest(|address, lease| lease.state == State::Expired && suits(address))
    }

    /// The address whose deadline is next among those of which `suits` is true.
    pub fn oldest(&self, suits: impl Fn(Ipv4Addr, &Lease) -> bool) -> Option<Ipv4Addr> {
        let suits =
            |address: &Ipv4Addr| self.by_address.get(address).is_some_and(|lease| suits(*address, lease));
        self.deadlines.iter().map(|&(_, address)| address).find(suits)
    }

    /// All of them, by address.
    pub fn iter(&self) -> impl Iterator<Item = (Ipv4Addr, &Lease)> {
        self.by_address.iter().map(|(&address, lease)| (address, lease))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lease(n: u8, port: Option<u16>, state: State, expires: u64) -> Lease {
        let mac = Mac([2, 0, 0, 0, 0, n]);
        Lease { mac, identity: hardware_identity(mac), hostname: None, port, state, expires }
    }

    fn address(n: u8) -> Ipv4Addr {
        [10, 0, 3, n].into()
    }

    #[test]
    fn clients_are_found_by_identifier_and_by_address() {
        let mut leases = Leases::default();
        let duid = Box::<[u8]>::from(&b"\xffduid"[..]);
        let first = lease(1, None, State::Bound, 9);
        leases.put(address(1), first.clone());
        assert_eq!(leases.find(&first.identity, first.mac), Some(address(1)));
        assert_eq!(leases.find(&duid, first.mac), Some(address(1)), "known without identifier before");
        let second = Lease { identity: duid.clone(), ..lease(2, None, State::Bound, 9) };
        leases.put(address(2), second.clone());
        assert_eq!(leases.find(&hardware_identity(second.mac), second.mac), Some(address(2)), "firmware");
        assert_eq!(leases.find(b"\xffother", second.mac), None, "two identifiers are two clients");
        assert_eq!(
            leases.find(&duid, first.mac),
            Some(address(1)),
            "another station's identifier leads nowhere new"
        );
        leases.put(address(2), Lease { state: State::Declined, ..second.clone() });
        assert_eq!(leases.find(&duid, second.mac), None);
    }

    #[test]
    fn a_full_table_forgets_what_expired_first() {
        let mut leases = Leases::default();
        let at = |n: u32| Ipv4Addr::from(0x0a00_0000 + n);
        for n in 0..LEASES_MAX as u32 {
            let state = if n % 1000 == 7 { State::Expired } else { State::Bound };
            assert!(leases.put(at(n), lease(n as u8, None, state, 1_000_000 - u64::from(n))));
        }
        let expired = (0..LEASES_MAX).filter(|n| n % 1000 == 7).count() as u32;
        for n in 0..expired {
            assert!(leases.put(at(1 << 20 | n), lease(1, None, State::Bound, 1)), "{n}");
        }
        assert!(leases.get(at(7)).is_none());
        assert!(!leases.put(at(1 << 21), lease(1, None, State::Bound, 1)));
        assert!(leases.put(at(0), lease(1, None, State::Bound, 1)), "an address that is there may change");
        assert_eq!(leases.len(), LEASES_MAX);
    }

    proptest! {
        /// Whatever is put and removed, the indexes say what a walk over all leases says.
        #[test]
        fn indexes_agree(steps in proptest::collection::vec((0_u8..8, 0_u8..8, 0_u16..3, 0_usize..6, 0_u64..20), 1..200)) {
            let mut leases = Leases::default();
            let states = [State::Probing, State::Offered, State::Bound, State::Expired, State::Declined];
            for (at, client, port, state, expires) in steps {
                match states.get(state) {
                    Some(&state) => prop_assert!(leases.put(address(at), lease(client, port.checked_sub(1), state, expires))),
                    None => drop(leases.remove(address(at))),
                }
                for port in 0..3 {
                    let held = leases.iter().filter(|(_, l)| l.port == Some(port) && l.state.is_held()).count();
                    prop_assert_eq!(leases.held_by(port) as usize, held);
                }
                let mut deadlines: Vec<_> = leases.iter().map(|(address, lease)| (lease.expires, address)).collect();
                deadlines.sort_unstable();
                prop_assert_eq!(leases.deadlines.iter().copied().collect::<Vec<_>>(), deadlines);
                for ((mac, identity), address) in &leases.by_client {
                    prop_assert_eq!((&leases.by_address[address].identity, leases.by_address[address].mac), (identity, *mac));
                }
                for (mac, address) in &leases.by_mac {
                    prop_assert_eq!(leases.by_address[address].mac, *mac);
                }
            }
        }
    }
}

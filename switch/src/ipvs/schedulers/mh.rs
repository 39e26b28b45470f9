//! Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4) with Linux's hashes, weights and size of the table: every
//! server has an order of its own in which it wants the table's places, and they take turns. When one goes, most places
//! stay with whom they belonged to.
//!
//! The client's address, with `mh-port` also its port, tells the place. With `mh-fallback` others are tried if its server
//! cannot be used. A server that is set to weight 0 keeps its places by its last weight.
#![forbid(unsafe_code)]

use std::sync::{Arc, OnceLock};

use super::super::destination::Destination;
use super::super::service::Flow;
use super::super::spec::SchedulerFlags;
use super::hashing::{fold, half_sip};
use super::{has, usable};

/// Places of the table: Linux's default (`CONFIG_IP_VS_MH_TAB_INDEX` 12), a prime.
pub(super) const SIZE: usize = 4093;
/// Bits that a weight has at most.
const WEIGHT_BITS: u32 = 6;
const KEYS: [u64; 2] = [2_654_435_761, 2_654_446_892];
const FREE: u16 = u16::MAX;

/// The server of each place.
#[derive(Debug)]
pub(crate) enum Table {
    /// Nobody has a place.
    Empty,
    /// Up to 256 servers.
    Narrow(Box<[u8]>),
    /// More, and how many servers at the beginning of the list have no place.
    Wide(Box<[u16]>, usize),
}

/// A table that takes some 50 microseconds to work out: beforehand, or for the first connection.
#[derive(Debug, Default)]
pub(crate) struct Lazy(OnceLock<Table>);

impl Lazy {
    pub(super) fn is_there(&self) -> bool {
        self.0.get().is_some()
    }

    pub(super) fn get(&self, servers: &[Arc<Destination>]) -> Option<&Table> {
        if self.0.get().is_none() {
            // Whoever is first; nobody waits for another one's work.
            let _ = self.0.set(Table::new(servers));
        }
        self.0.get()
    }

    #[inline]
    pub(super) fn choose<'a>(
        &self,
        servers: &'a [Arc<Destination>],
        flow: &Flow,
        flags: SchedulerFlags,
    ) -> Option<&'a Arc<Destination>> {
        self.get(servers)?.choose(servers, flow, flags)
    }
}

/// How a server takes its places.
struct Taker {
    number: u16,
    next: usize,
    skip: usize,
    turns: i32,
}

fn gcd(mut a: i32, mut b: i32) -> i32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn hash(address: u32, port: u16, offset: usize, key: u64) -> usize {
    half_sip(address.wrapping_add(port.into()).wrapping_add(offset as u32), key) as usize
}

impl Table {
    /// Lets the servers take their places. There are places for the first [`SIZE`] servers that were added: Linux refuses
    /// further ones theirs, too.
    pub(super) fn new(servers: &[Arc<Destination>]) -> Self {
        let skipped = servers.len().saturating_sub(SIZE);
        let weights: Vec<i32> = servers.iter().skip(skipped).map(|server| server.last_weight()).collect();
        let divisor = weights.iter().copied().fold(0, |divisor, weight| gcd(divisor, weight.max(0)));
        let Some(largest) = weights.iter().max().and_then(|largest| largest.checked_div(divisor)) else {
            return Self::Empty;
        };
        // Weights of many bits lose their lowest ones.
        let shift = (32 - largest.leading_zeros()).saturating_sub(WEIGHT_BITS);
        let taker = |(number, (server, &weight)): (usize, (&Arc<Destination>, &i32))| {
            let turns = ((weight / divisor) >> shift).max(i32::from(weight != 0));
            let (address, port) = (fold(server.address()), server.port());
            (turns > 0).then(|| Taker {
                number: number as u16,
                next: hash(address, port, 0, KEYS[0]) % SIZE,
                skip: hash(address, port, 0, KEYS[1]) % (SIZE - 1) + 1,
                turns,
            })
        };
        let servers = servers.iter().skip(skipped).zip(&weights).enumerate();
        let mut takers: Vec<Taker> = servers.filter_map(taker).collect();
        let mut places = vec![FREE; SIZE];
        let mut left = SIZE;
        'all: loop {
            for taker in &mut takers {
                for _ in 0..taker.turns {
                    while places[taker.next] != FREE {
                        taker.next += taker.skip;
                        if taker.next >= SIZE {
                            taker.next -= SIZE;
                        }
                    }
                    places[taker.next] = taker.number;
                    left -= 1;
                    if left == 0 {
                        break 'all;
                    }
                }
            }
        }
        if weights.len() <= 256 {
            Self::Narrow(places.iter().map(|&number| number as u8).collect())
        } else {
            Self::Wide(places.into(), skipped)
        }
    }

    #[inline]
    fn at<'a>(&self, servers: &'a [Arc<Destination>], place: usize) -> Option<&'a Arc<Destination>> {
        match self {
            Self::Empty => None,
            Self::Narrow(places) => servers.get(usize::from(places[place])),
            Self::Wide(places, skipped) => servers.get(skipped + usize::from(places[place])),
        }
    }

    #[inline]
    pub(super) fn choose<'a>(
        &self,
        servers: &'a [Arc<Destination>],
        flow: &Flow,
        flags: SchedulerFlags,
    ) -> Option<&'a Arc<Destination>> {
        let port = if has(flags, SchedulerFlags::PORT) { flow.source_port } else { 0 };
        let place = |offset| hash(fold(flow.source), port, offset, KEYS[0]) % SIZE;
        let begin = place(0);
        let first = self.at(servers, begin)?;
        if usable(first) {
            return Some(first);
        }
        if !has(flags, SchedulerFlags::FALLBACK) {
            return None;
        }
        (0..SIZE)
            .filter_map(|offset| self.at(servers, place((offset + begin) % SIZE)))
            .find(|server| usable(server))
    }
}

//! Layer 3: what the switch does as a router between its bridges, and as a host of its own.
//!
//! [`Stage`] is a worker's own part. It is given those frames of a burst that go to an interface: by its address, or
//! because they go to everybody ([`Stage::receive`]). A routed packet's way: [`ordinary`], or [`forward`] (headers, connection),
//! [`first`] (what decides about a new connection), [`next_hop`], [`deliver`]. What is for the switch itself is in
//! [`local`] and [`group`], what it says of its own accord in [`answer`].
#![forbid(unsafe_code)]

mod announced;
mod answer;
pub mod arp;
mod balance;
pub mod bridged;
pub mod checks;
pub mod compose;
mod deliver;
mod encapsulate;
mod family;
mod first;
mod forward;
pub mod fragment;
mod group;
mod helper;
mod hold;
pub mod icmp;
pub mod interface;
pub mod limit;
mod local;
mod lost;
pub mod nd;
pub mod neighbour;
mod next_hop;
mod ordinary;
mod outbox;
pub mod own;
mod pieces;
pub mod reset;
pub mod route;
pub mod split;
pub mod table;
mod turn;
mod unusual;
mod way;

use std::hash::{BuildHasher, RandomState};

use vhost_backend::frame::{Burst, MAX_FRAME};

use crate::conntrack::{Local, V4, V6};
use crate::drops::DropReason;
use crate::members::Verdict;
use crate::packet::ethernet::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, TAG_LEN};
use crate::packet::offload::Finisher;
use crate::services;
use crate::stats::Direction;
use hold::Hold;
use interface::Interface;
use limit::{Limiter, Limits};
use lost::Lost;
use outbox::Outbox;
use pieces::Gathering;
use table::RouterTable;
use way::Ways;

/// Where the packet of an untagged frame begins.
const UNTAGGED: usize = ethernet::HEADER_LEN;

/// Frames that came to an interface, and from where.
pub struct Arrival<'a> {
    /// The router.
    pub router: &'a RouterTable,
    /// The interface.
    pub interface: &'a Interface,
    /// Number of the port that they came in by.
    pub port: u16,
    /// The tables' clock.
    pub now: u32,
    /// Takes what was dropped.
    pub counted: &'a Direction,
}

/// A worker's part of layer 3.
pub struct Stage {
    worker: usize,
    /// Where routed frames of the burst at hand leave.
    pub verdict: Verdict,
    ways: Ways,
    outbox: Outbox,
    /// Fragments whose first one has come.
    again: Outbox,
    gathering: Option<Gathering>,
    hold: Hold,
    lost: Lost,
    /// Room for a whole frame.
    scratch: Box<[u8]>,
    local: Local,
    limiter: Limiter,
    /// Cuts segments for tunnels.
    finisher: Finisher,
    random: u64,
}

impl Stage {
    /// For the worker of this number.
    pub fn new(worker: usize) -> Self {
        Self {
            worker,
            verdict: Verdict::default(),
            ways: Ways::default(),
            outbox: Outbox::default(),
            again: Outbox::default(),
            gathering: None,
            hold: Hold::default(),
            lost: Lost::default(),
            scratch: vec![0; MAX_FRAME].into_boxed_slice(),
            local: Local::new(worker),
            finisher: Finisher::new(),
            limiter: Limiter::new(Limits::default()),
            random: RandomState::new().hash_one(worker) | 1,
        }
    }

    /// Looks at the frames of `frames`: routes what is addressed to the interface, and hears what goes to everybody.
    /// Where frames are to leave is in [`Stage::verdict`] then; frames to everybody are not changed.
    pub fn receive(&mut self, burst: &mut Burst, frames: u64, at: &Arrival<'_>) {
        let left = self.ordinary::<V4>(burst, frames, at);
        let left = if left == 0 { 0 } else { self.ordinary::<V6>(burst, left, at) };
        if left != 0 {
            self.receive_others(burst, left, at);
        }
        self.end_ways(at);
    }

    /// As [`Stage::receive`] for frames that are not ordinary.
    #[cold]
    fn receive_others(&mut self, burst: &mut Burst, frames: u64, at: &Arrival<'_>) {
        let (mut v4, mut v6) = (0, 0);
        let mut left = frames;
        while left != 0 {
            let i = left.trailing_zeros() as usize;
            left &= left - 1;
            let head = burst.head(i);
            let Some((ethertype, network)) = in_vlan(head, at.interface.vlan) else { continue };
            if ethernet::destination(head) != at.interface.mac {
                self.overhear(burst, i, ethertype, network, at);
                continue;
            }
            if network != UNTAGGED && !burst.remove_tag(i) {
                at.counted.drop(DropReason::IpTruncated, 1);
                continue;
            }
            match ethertype {
                ETHERTYPE_IPV4 => v4 |= 1 << i,
                ETHERTYPE_IPV6 => v6 |= 1 << i,
                arp::ETHERTYPE_ARP => {
                    self.arp(burst.head(i), UNTAGGED, at);
                    // The answer to a probe of the DHCP server's.
                    if services::wants(burst.head(i)) {
                        self.punt(burst, i, at);
                    }
                }
                _ => at.counted.drop(DropReason::UnknownProtocol, 1),
            }
        }
        if v4 != 0 {
            self.route::<V4>(burst, v4, at);
        }
        if v6 != 0 {
            self.route::<V6>(burst, v6, at);
        }
    }

    /// The connections that this worker entered.
    pub fn connections(&mut self) -> &mut Local {
        &mut self.local
    }

    fn random(&mut self) -> u64 {
        // Xorshift; seeded from the system. Ports need not be secret, only unlike each other.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// The ethertype of a frame and where its packet begins, if it is one of `vlan` (0: untagged or priority-tagged).
#[inline]
fn in_vlan(head: &[u8], vlan: u16) -> Option<(u16, usize)> {
    match ethernet::ethertype(head) {
        ETHERTYPE_VLAN => {
            let tag = ethernet::word_at(head, UNTAGGED) & 0xfff;
            (tag == vlan).then(|| (ethernet::word_at(head, UNTAGGED + 2), UNTAGGED + TAG_LEN))
        }
        ethertype => (vlan == 0).then_some((ethertype, UNTAGGED)),
    }
}

//! Packets that stay on their bridge and meet the policy all the same: those of a bridge with a filter, as with Linux's
//! br_netfilter.
//!
//! Nothing is changed in them and nothing answered. IP packets from station to station have connections like routed ones;
//! those to groups are judged one by one; what a bridge needs to work (ARP, neighbour discovery, DHCP) and other
//! protocols pass. Fragments behind the first and ICMP errors pass as well: they are of no use without what was judged.
#![forbid(unsafe_code)]

use vhost_backend::frame::Burst;

use super::family::Routed;
use super::group::DHCP_SERVER;
use super::{Stage, nd};
use crate::conntrack::{Fate, Key, NewConnection, Packet, V4, V6};
use crate::drops::DropReason;
use crate::l3::table::RouterTable;
use crate::packet::ethernet::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::packet::headers::{Fragment, Headers};
use crate::packet::ip::UDP;
use crate::policy::rule::State;
use crate::policy::{NewFlow, Place};
use crate::rules::NONE;
use crate::stats::Direction;

/// The client's port of DHCP.
const DHCP_CLIENT: u16 = 68;

/// Frames of a bridge on their way from port to port.
pub struct Crossing<'a> {
    /// The router, whose policy and connections they meet.
    pub router: &'a RouterTable,
    /// Number of the bridge.
    pub bridge: u16,
    /// Where they came in.
    pub from: u16,
    /// Where they leave.
    pub to: u16,
    /// The tables' clock.
    pub now: u32,
    /// Takes what was dropped.
    pub counted: &'a Direction,
}

impl Stage {
    /// The frames of `frames` that may cross.
    pub fn filter(&mut self, burst: &Burst, frames: u64, over: &Crossing<'_>) -> u64 {
        if over.router.policy.is_empty() {
            return frames;
        }
        let mut passing = 0;
        let mut left = frames;
        while left != 0 {
            let i = left.trailing_zeros() as usize;
            left &= left - 1;
            let (ethertype, network) = ethernet::payload(burst.head(i));
            let judged = match ethertype {
                ETHERTYPE_IPV4 => self.cross::<V4>(burst, i, network, over),
                ETHERTYPE_IPV6 => self.cross::<V6>(burst, i, network, over),
                _ => Ok(()),
            };
            match judged {
                Ok(()) => passing |= 1 << i,
                Err(reason) => over.counted.drop(reason, 1),
            }
        }
        passing
    }

    fn cross<F: Routed>(
        &mut self,
        burst: &Burst,
        i: usize,
        network: usize,
        over: &Crossing<'_>,
    ) -> Result<(), DropReason> {
        let head = burst.head(i);
        let headers = Headers::parse(head, burst.frame_len(i), network, F::V6)?;
        let dhcp = headers.protocol == UDP && matches!(headers.destination_port, DHCP_SERVER | DHCP_CLIENT);
        if headers.fragment == Fragment::Later || headers.icmp_error || dhcp || nd::is_message(head, &headers)
        {
            return Ok(());
        }
        let key = Key::<F>::of(&headers, head);
        let bytes = burst.frame_len(i) as u64;
        if ethernet::destination(head).is_multicast() {
            return self.judge_crossing(&headers, head, State::New, bytes, over);
        }
        let table = over.router.conntrack.table::<F>();
        let packet = Packet::of(&headers, head);
        if let Some(half) = table.find(&key, table.hash(&key)) {
            match self.local.owner::<F>().update(table, half, &packet, over.now) {
                Fate::Accept => return Ok(()),
                Fate::Invalid => return Err(DropReason::CtInvalid),
                Fate::Renew => {}
            }
        }
        let loose = over.router.conntrack.shared.loose.load(std::sync::atomic::Ordering::Relaxed);
        let begun = packet.begin(&key, loose, over.now);
        let state = if begun.is_some() { State::New } else { State::Invalid };
        self.judge_crossing(&headers, head, state, bytes, over)?;
        let begun = begun.ok_or(DropReason::CtInvalid)?;
        let new = NewConnection {
            original: key,
            reply: key.reversed(),
            begun,
            port: over.from,
            next_hop: None,
            watched: false,
            related: false,
            balanced: None,
        };
        match self.local.owner::<F>().insert(table, &new, over.now) {
            Ok(half) => table.half(half).touch(over.now, headers.len),
            // Flooded to several ports, or by two workers at once: the first made it.
            Err(_) if table.find(&key, table.hash(&key)).is_some() => {}
            Err(refused) => return Err(super::first::reason(refused)),
        }
        Ok(())
    }

    fn judge_crossing(
        &self,
        headers: &Headers,
        head: &[u8],
        state: State,
        bytes: u64,
        over: &Crossing<'_>,
    ) -> Result<(), DropReason> {
        let place = |port| Place { port, bridge: over.bridge, interface: NONE };
        let flow = NewFlow {
            tuple: headers.tuple(head),
            state,
            from: place(over.from),
            to: place(over.to),
            published: false,
        };
        let decision = over.router.policy.decide(&flow, self.worker, bytes);
        if let Some(rule) = decision.log {
            over.router.log.note(rule, &flow, decision.verdict, bytes);
        }
        decision.drop_reason().map_or(Ok(()), Err)
    }
}

//! Packets that stay on their bridge and meet the policy all the same: those of a bridge with a filter, as with Linux's
//! br_netfilter.
//!
//! Nothing is changed in them; who is rejected is told, if the bridge has an interface. IP packets from station to station have connections like routed ones;
//! those to groups are judged one by one; what a bridge needs to work (ARP, neighbour discovery, DHCP) and other
//! protocols pass. Fragments behind the first and ICMP errors pass as well: they are of no use without what was judged.
#![forbid(unsafe_code)]

use std::sync::Arc;

use vhost_backend::frame::Burst;
use vhost_backend::net_header::NetHeader;

use super::answer::tell;
use super::compose::Link;
use super::family::Routed;
use super::group::DHCP_SERVER;
use super::icmp::Error;
use super::interface::Interface;
use super::{Stage, UNTAGGED, nd, reset};
use crate::conntrack::{Fate, Key, NewConnection, Packet, V4, V6};
use crate::drops::DropReason;
use crate::l2::fdb::Key as FdbKey;
use crate::l3::table::RouterTable;
use crate::packet::ethernet::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, TAG_LEN};
use crate::packet::headers::{Fragment, Headers};
use crate::packet::ip::{TCP, UDP};
use crate::packet::rewrite::set_macs;
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
                Err(reason) => {
                    over.counted.drop(reason, 1);
                    if reason == DropReason::PolicyReject {
                        self.tell_of_crossing(burst, i, ethertype == ETHERTYPE_IPV6, network, over);
                    }
                }
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

    /// Tells the sender of a rejected frame: with a reset of its connection, in the name of who was called, or by the
    /// bridge's interface with an ICMP error. Only where the bridge knows the station that was called: a frame that is
    /// flooded may yet be let through by another port.
    #[cold]
    fn tell_of_crossing(&mut self, burst: &Burst, i: usize, v6: bool, network: usize, over: &Crossing<'_>) {
        let head = burst.head(i);
        let tag = network - UNTAGGED;
        let vlan = if tag == 0 { 0 } else { ethernet::word_at(head, 14) & 0xfff };
        let here = |at: &&Arc<Interface>| at.table.number == over.bridge && at.vlan == vlan && at.up;
        let Some(interface) = over.router.interfaces.iter().flatten().find(here) else { return };
        let called = ethernet::destination(head);
        let known = interface.table.fdb.lookup(FdbKey::new(called.0, vlan), over.now);
        if tag > TAG_LEN || called.is_multicast() || known != Some(over.to) {
            return;
        }
        // A copy, without the tag.
        let Some(len) = burst.linearise(i, &mut self.scratch) else { return };
        self.scratch.copy_within(UNTAGGED - 2 + tag..len, UNTAGGED - 2);
        let frame = &mut self.scratch[..len - tag];
        let Ok(headers) = Headers::parse(frame, frame.len(), UNTAGGED, v6) else { return };
        if headers.protocol == TCP {
            self.outbox.put(interface.index, NetHeader::default(), reset::FRAME_LEN, |space| match v6 {
                true => reset::reset::<u128>(space, Link::answer(frame), frame, &headers),
                false => reset::reset::<u32>(space, Link::answer(frame), frame, &headers),
            });
        } else {
            // The error is the interface's own.
            let sender = ethernet::source(frame);
            set_macs(frame, interface.mac, sender);
            tell(&mut self.outbox, &mut self.limiter, interface, frame, &headers, Error::PortUnreachable);
        }
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

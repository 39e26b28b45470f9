//! A connection's first packet: everything is decided here, once, and written into the connection's entry.
//!
//! The order is that of netfilter's hooks: destination translation, routing, policy, source translation.
#![forbid(unsafe_code)]

use vhost_backend::frame::Burst;

use super::family::Routed;
use super::forward::{Item, Refusal};
use super::neighbour::Slot;
use super::next_hop::{along, path_to};
use super::route::Path;
use super::{Arrival, Stage, helper};
use crate::conntrack::{Key, NewConnection, Packet, Refused};
use crate::drops::DropReason;
use crate::l2::fdb::Key as FdbKey;
use crate::nat::{Leaving, Translation, Why};
use crate::packet::tuple::Tuple;
use crate::policy::rule::State;
use crate::policy::{NewFlow, Place, Verdict};
use crate::rules::NONE;

/// How often a connection is tried anew when another worker was faster.
pub(super) const TRIES: usize = 4;

impl Stage {
    /// Begins a connection with a packet, and sends it.
    #[cold]
    pub(super) fn first<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        F::admit(&item.key, at)?;
        let head = burst.head(item.i);
        let tuple = item.headers.tuple(head);
        let table = at.router.conntrack.table::<F>();
        let packet = Packet::of(&item.headers, head);
        let expectations = &at.router.conntrack.expectations;
        let expected = expectations.find(&tuple, at.now)?;
        let redirected = match expected {
            Some(_) => None,
            None => at.router.nat.destination(&tuple, at.interface.index).or_else(|| {
                let is_free = |reply: &Tuple| Key::answer(reply).is_some_and(|key| table.is_free(&key));
                at.router.nat.mapped(&tuple, at.interface.index, at.now, is_free)
            }),
        };
        if expected.is_none()
            && redirected.is_none()
            && !at.router.ipvs.is_idle()
            && let Some(chosen) = self.choose(burst, item, &tuple, at)?
        {
            return self.first_to(burst, item, &tuple, &chosen, at);
        }
        let new_destination = expected.map(|e| e.to).or(redirected.map(|to| (to.address, to.port)));
        let to = new_destination.map_or(tuple, |(destination, destination_port)| Tuple {
            destination,
            destination_port,
            ..tuple
        });
        let destination = F::from_ip(to.destination).ok_or(DropReason::NoRoute)?;
        // Before the lookup: what changes meanwhile makes the stamp void.
        let generation = at.router.fib.generation();
        let path = path_to::<F>(at, destination, item.hash);
        if new_destination.is_none() && matches!(path, Path::Local { .. }) {
            return Err(Refusal::Local);
        }
        let loose = at.router.conntrack.shared.loose.load(std::sync::atomic::Ordering::Relaxed);
        let begun = packet.begin(&item.key, loose, at.now);
        let state = match begun {
            None => State::Invalid,
            Some(_) if expected.is_some() => State::Related,
            Some(_) => State::New,
        };
        let hop = along(at, path, F::wide(destination))?;
        let slot = at.router.neighbours.slot(hop.adjacency).ok_or(DropReason::NoRoute)?;
        let (egress, next_hop) = (slot.interface(), slot.address().ip());
        let bytes = burst.frame_len(item.i) as u64;
        if at.router.policy.asks_where_to() && slot.usable_mac(at.now).is_none() {
            return self.wait_to_be_judged(burst, item, hop, slot, at);
        }
        self.judge(at, &to, place_of(at, egress, slot), redirected.is_some(), state, bytes)?;
        let Some(begun) = begun else { return Err(DropReason::CtInvalid.into()) };
        let leaving = Leaving {
            tuple: to,
            ingress: at.interface.index,
            egress,
            next_hop,
            redirected: redirected.is_some(),
            now: at.now,
        };
        let stamp = generation.wrapping_add(slot.version());
        let server = expected.and_then(|expected| self.server_of::<F>(&expected.master, at));
        // What a server announces comes from its clients; what clients announce comes from the server, and counts there.
        let server = server.filter(|server| server.address() == to.destination);
        for _ in 0..TRIES {
            let source = match expected {
                Some(_) => None,
                None => self.translate_source::<F>(&leaving, at)?,
            };
            let out = match expected.and_then(|e| e.from) {
                Some(from) => helper::source(table, from, &to).ok_or(DropReason::NatExhausted)?,
                None => {
                    source.map_or(to, |from| Tuple { source: from.address, source_port: from.port, ..to })
                }
            };
            let reply = Key::<F>::answer(&out.reversed()).ok_or(DropReason::NoRoute)?;
            let new = NewConnection {
                original: item.key,
                reply,
                begun,
                port: at.port,
                next_hop: Some((hop.adjacency, stamp)),
                watched: helper::watches(&to),
                related: expected.is_some(),
                balanced: None,
            };
            let new = match &server {
                Some(server) => {
                    self.with_server(new, server, &packet).ok_or(DropReason::BalanceServerGone)?
                }
                None => new,
            };
            match self.local.owner::<F>().insert(table, &new, at.now) {
                Ok(half) => {
                    for translation in [redirected, source].iter().flatten() {
                        at.router.nat.count(translation, self.worker, bytes);
                    }
                    if let Some(expected) = &expected {
                        expectations.fulfilled(expected);
                    }
                    if new.watched {
                        expectations.forget(&tuple);
                    }
                    table.half(half).touch(at.now, item.headers.len);
                    return self.carry(burst, item, half, at);
                }
                Err(refused) if refused != Refused::Exists => {
                    Self::without_server(&new, server.as_deref());
                    return Err(reason(refused).into());
                }
                Err(_) => {
                    Self::without_server(&new, server.as_deref());
                    // The same packet may have come by another worker a moment ago.
                    if let Some(half) = table.find(&item.key, item.hash) {
                        return self.established(burst, item, half, at);
                    }
                }
            }
        }
        Err(DropReason::CtBusy.into())
    }

    /// Whether the policy lets a connection's first packet go on.
    pub(super) fn judge(
        &mut self,
        at: &Arrival<'_>,
        to: &Tuple,
        egress: Place,
        published: bool,
        state: State,
        bytes: u64,
    ) -> Result<(), Refusal> {
        if at.router.policy.is_empty() {
            return Ok(());
        }
        let from = Place { port: at.port, bridge: at.interface.table.number, interface: at.interface.index };
        let flow = NewFlow { tuple: *to, state, from, to: egress, published };
        let decision = at.router.policy.decide(&flow, self.worker, bytes);
        if let Some(rule) = decision.log {
            at.router.log.note(rule, &flow, decision.verdict, bytes);
        }
        let Some(reason) = decision.drop_reason() else { return Ok(()) };
        Err(match decision.verdict {
            Verdict::Reject => Refusal::Reject(reason),
            _ => Refusal::Drop(reason),
        })
    }

    pub(super) fn translate_source<F: Routed>(
        &mut self,
        leaving: &Leaving,
        at: &Arrival<'_>,
    ) -> Result<Option<Translation>, Refusal> {
        let table = at.router.conntrack.table::<F>();
        let is_free = |reply: &Tuple| Key::answer(reply).is_some_and(|key| table.is_free(&key));
        let random = self.random();
        at.router.nat.source(leaving, is_free, random).map_err(|failure| {
            at.router.nat.count_failure(&failure, self.worker);
            match failure.why {
                Why::Exhausted => DropReason::NatExhausted,
                Why::NoAddress => DropReason::NatNoAddress,
                Why::Busy => DropReason::NatBusy,
            }
            .into()
        })
    }
}

/// Where a packet to a neighbour leaves. The port is known if the neighbour's MAC address is.
pub(super) fn place_of(at: &Arrival<'_>, egress: u16, slot: &Slot) -> Place {
    let Some(interface) = at.router.interface(egress) else {
        return Place { port: NONE, bridge: NONE, interface: egress };
    };
    let key = slot.usable_mac(at.now).map(|mac| FdbKey::new(mac.0, interface.vlan));
    let port = key.and_then(|key| interface.table.fdb.lookup(key, at.now));
    Place { port: port.unwrap_or(NONE), bridge: interface.table.number, interface: egress }
}

pub(super) fn reason(refused: Refused) -> DropReason {
    match refused {
        Refused::Exists | Refused::Busy => DropReason::CtBusy,
        Refused::Full => DropReason::CtFull,
        Refused::PortQuota => DropReason::CtPortQuota,
        Refused::HalfOpen => DropReason::CtHalfOpen,
    }
}

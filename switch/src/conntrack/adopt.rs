//! Connections that another director tells of ([`crate::ipvs::sync`]): entered without a packet, so that packets that
//! come here from now on find them.
//!
//! A worker does it, as it enters connections by packets, some at a time between two bursts. What the entry cannot know
//! is what both sides have acknowledged; as for connections picked up in their midst, resets are judged leniently.
#![forbid(unsafe_code)]

use super::balance::Balanced;
use super::key::{Family, Key};
use super::owner::{NewConnection, Owner};
use super::shared::Refused;
use super::state::{Phase, State};
use super::table::{Ref, Table};
use super::track::Begun;
use super::{Conntrack, Local, V4, V6};
use crate::ipvs::states::tcp;
use crate::packet::ip::{TCP, UDP};
use crate::packet::tuple::Tuple;

/// The port of connections that came in by none: it has no quota.
const NO_PORT: u16 = u16::MAX;

/// A connection that another director tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The client's packets as they come in.
    pub original: Tuple,
    /// Answers as they come in.
    pub reply: Tuple,
    /// Its server and state.
    pub balanced: Balanced,
    /// It is told of because it is ending: what is here for other servers is not to be touched.
    pub inactive: bool,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// It is entered.
    New,
    /// It was known, and is as it was told now; the caller's count of a new one is void.
    Known,
    /// Another connection has its addresses and ports, or there is no room; likewise.
    Not,
}

impl Conntrack {
    /// Enters a connection that another director tells of, or brings it up to date. The caller has counted it at its
    /// server.
    pub fn adopt(&self, local: &mut Local, announced: &Announced, now: u32) -> Entered {
        if announced.original.source.is_ipv4() {
            local.owner::<V4>().adopt(self.table(), announced, now)
        } else {
            local.owner::<V6>().adopt(self.table(), announced, now)
        }
    }
}

/// Where connection tracking has a connection in this state of IPVS'.
fn phase_of(protocol: u8, state: u8) -> Phase {
    match (protocol, state) {
        (TCP, tcp::ESTABLISHED) => Phase::Established,
        (TCP, tcp::FIN_WAIT) => Phase::FinWait,
        (TCP, tcp::CLOSE_WAIT) => Phase::CloseWait,
        (TCP, tcp::LAST_ACK) => Phase::LastAck,
        (TCP, tcp::TIME_WAIT) => Phase::TimeWait,
        (TCP, tcp::CLOSE) => Phase::Close,
        (TCP, tcp::SYN_RECV) => Phase::SynRecv,
        (TCP, _) => Phase::SynSent,
        (UDP, _) => Phase::UdpStream,
        _ => Phase::Generic,
    }
}

impl<F: Family> Owner<F> {
    fn adopt(&mut self, table: &Table<F>, announced: &Announced, now: u32) -> Entered {
        let keys = (Key::<F>::request(&announced.original), Key::<F>::answer(&announced.reply));
        let (Some(original), Some(reply)) = keys else { return Entered::Not };
        let Balanced { destination, state, .. } = announced.balanced;
        if let Some(half) = table.find(&original, table.hash(&original)) {
            let view = table.balance(half).filter(|_| !half.is_reply());
            if view.is_some_and(|view| view.destination == destination)
                && table.half(half.other()).key() == reply
            {
                self.follow_announced(table, half, state, now);
                return Entered::Known;
            }
            // The end of a connection whose place another one has taken meanwhile.
            if announced.inactive || !self.kill(table, half) {
                return Entered::Not;
            }
        }
        let status = if announced.balanced.one_way { 0 } else { State::SEEN_REPLY } | State::ASSURED;
        let phase = phase_of(original.protocol, state);
        let new = NewConnection {
            original,
            reply,
            begun: Begun::midway(phase, status),
            port: NO_PORT,
            next_hop: None,
            watched: false,
            related: false,
            balanced: Some(announced.balanced),
        };
        match self.insert(table, &new, now) {
            Ok(half) => {
                if original.protocol == TCP {
                    Self::settle(table, half.slot(), phase == Phase::Established);
                }
                Entered::New
            }
            Err(Refused::Exists | Refused::Busy | Refused::Full | Refused::PortQuota | Refused::HalfOpen) => {
                Entered::Not
            }
        }
    }

    /// A connection that is known has come so far, and lives.
    fn follow_announced(&mut self, table: &Table<F>, half: Ref, state: u8, now: u32) {
        let slot = half.slot();
        let protocol = table.half(half).key().protocol;
        table.half(half).renew(now);
        if protocol == TCP {
            self.move_to(table, slot, phase_of(protocol, state), now);
        }
        if table.set_balanced(slot, state, false) {
            self.shorten(table, slot, now);
        }
        table.mark(slot);
    }
}

//! What a balanced connection has beyond its two halves: the server that it was given, its state as IPVS counts it, the
//! template that keeps its client with that server.
//!
//! The records lie in an array beside the table, by the connections' places; pages of it exist where there were such
//! connections. Packets of settled connections never look there. Who balances is told of the end and the
//! changes of activity of a connection through [`Balancer`], per connection, not per packet.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use zerocopy::FromZeros;

use super::Conntrack;
use super::key::Family;
use super::shared::Shared;
use super::table::{Ref, Slot, Table};
use crate::ipvs::states::{self, Way};
use crate::packet::tuple::Tuple;

/// State of a record whose connection was removed.
const GONE: u8 = 0xff;
/// It does not count as active.
const INACTIVE: u8 = 1;
/// Answers have not been seen, and need not come this way.
const ONE_WAY: u8 = 2;

/// A connection that is given to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balanced {
    /// The server's number.
    pub destination: u32,
    /// Number of the template that it follows, 0 if none.
    pub template: u32,
    /// State after its first packet: see [`states`].
    pub state: u8,
    /// Whether answers go past the switch.
    pub one_way: bool,
    /// Whether packets to the server go through a tunnel.
    pub tunnel: bool,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The server's number.
    pub destination: u32,
    /// Number of the template, 0 if none.
    pub template: u32,
    /// The state.
    pub state: u8,
    /// The protocol.
    pub protocol: u8,
    /// Whether it counts as active.
    pub active: bool,
    /// Whether no answers were seen that might.
    pub one_way: bool,
}

/// A connection that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// What was known of it.
    pub view: View,
    /// Packets of client and server.
    pub packets: [u64; 2],
    /// Their bytes.
    pub bytes: [u64; 2],
}

/// Who gives connections to servers, as the table of connections needs to know it. Called by workers: nothing blocks.
pub trait Balancer: Send + Sync {
    /// Seconds that connections of a server live in a state.
    fn timeout(&self, destination: u32, protocol: u8, state: u8) -> u32;
    /// A connection counts as active from now on, or does not any more.
    fn activity(&self, destination: u32, active: bool);
    /// A connection that follows this template has been established.
    fn assure(&self, template: u32);
    /// A connection has ended.
    fn ended(&self, ended: &Ended);
    /// Whether a client's call that fits a connection is to begin another one in its place.
    fn renews(&self, view: &View) -> bool;
}

/// Of one connection.
#[derive(FromZeros)]
#[repr(C)]
pub(super) struct Record {
    destination: AtomicU32,
    template: AtomicU32,
    timeout: AtomicU32,
    /// State (bits 0 to 7), flags (8 to 15): one word, so that activity is counted exactly.
    state: AtomicU32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u32);

impl Word {
    fn new(state: u8, flags: u8) -> Self {
        Self(u32::from(state) | u32::from(flags) << 8)
    }
    fn state(self) -> u8 {
        self.0 as u8
    }
    fn flags(self) -> u8 {
        (self.0 >> 8) as u8
    }
    fn is_active(self) -> bool {
        self.flags() & INACTIVE == 0
    }
}

/// Places that an array for this many half entries has.
pub(super) fn places(halves: usize) -> usize {
    halves / 2
}

impl Record {
    /// Seconds that the connection lives without packets.
    pub(super) fn timeout(&self) -> u32 {
        self.timeout.load(Ordering::Relaxed)
    }

    /// Has it live so many seconds.
    pub(super) fn set_timeout(&self, seconds: u32) {
        self.timeout.store(seconds, Ordering::Relaxed);
    }

    /// The state.
    pub(super) fn state(&self) -> u8 {
        Word(self.state.load(Ordering::Relaxed)).state()
    }

    fn view(&self, word: Word, protocol: u8) -> View {
        View {
            destination: self.destination.load(Ordering::Relaxed),
            template: self.template.load(Ordering::Relaxed),
            state: word.state(),
            protocol,
            active: word.is_active(),
            one_way: word.flags() & ONE_WAY != 0,
        }
    }

    /// Which way a packet goes, as the director sees it.
    pub(super) fn way(&self, reply: bool) -> Way {
        match (reply, Word(self.state.load(Ordering::Relaxed)).flags() & ONE_WAY != 0) {
            (true, _) => Way::Out,
            (false, true) => Way::InOnly,
            (false, false) => Way::In,
        }
    }
}

impl Shared {
    fn balanced(&self, act: impl FnOnce(&dyn Balancer)) {
        if let Some(balancer) = self.balancer.get() {
            act(&**balancer);
        }
    }
}

impl<F: Family> Table<F> {
    pub(super) fn record(&self, slot: Slot) -> &Record {
        &self.records[slot.place() as usize]
    }

    /// What a balanced connection's record says; none if it is not balanced, or over.
    pub fn balance(&self, half: Ref) -> Option<View> {
        if !self.half(half).flags().balanced() {
            return None;
        }
        let record = self.record(half.slot());
        let word = Word(record.state.load(Ordering::Relaxed));
        (word.state() != GONE).then(|| record.view(word, self.half(half).key().protocol))
    }

    /// A connection with a server begins; nobody can see it yet, and who balances has counted it.
    pub(super) fn begin_balanced(&self, slot: Slot, new: &Balanced) {
        let protocol = self.first(slot).key().protocol;
        let active = states::is_active(protocol, new.state);
        let record = self.record(slot);
        let flags = if active { 0 } else { INACTIVE } | if new.one_way { ONE_WAY } else { 0 };
        record.destination.store(new.destination, Ordering::Relaxed);
        record.template.store(new.template, Ordering::Relaxed);
        record.state.store(Word::new(new.state, flags).0, Ordering::Relaxed);
        self.shared.balanced(|balancer| {
            let timeout = balancer.timeout(new.destination, protocol, new.state);
            record.timeout.store(timeout, Ordering::Relaxed);
        });
    }

    /// A connection with a server was removed; by whoever removed it, once.
    pub(super) fn end_balanced(&self, slot: Slot) {
        let (first, second) = (self.first(slot), self.second(slot));
        let record = self.record(slot);
        let word = Word(record.state.swap(GONE.into(), Ordering::AcqRel));
        if word.state() == GONE {
            return;
        }
        let ended = Ended {
            view: record.view(word, first.key().protocol),
            packets: [first.packets(), second.packets()],
            bytes: [first.bytes(), second.bytes()],
        };
        self.shared.balanced(|balancer| balancer.ended(&ended));
    }

    /// A connection is in this state now; whether it lives shorter than before. `answered`: a packet came back.
    pub(super) fn set_balanced(&self, slot: Slot, state: u8, answered: bool) -> bool {
        let protocol = self.first(slot).key().protocol;
        let record = self.record(slot);
        let active = states::is_active(protocol, state);
        let mut old = Word(record.state.load(Ordering::Relaxed));
        loop {
            if old.state() == GONE {
                return false;
            }
            let mut flags = old.flags() & !INACTIVE | if active { 0 } else { INACTIVE };
            if answered {
                flags &= !ONE_WAY;
            }
            let new = Word::new(state, flags);
            if new == old {
                break;
            }
            match record.state.compare_exchange_weak(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(other) => old = Word(other),
            }
        }
        let mut shorter = false;
        self.shared.balanced(|balancer| {
            let destination = record.destination.load(Ordering::Relaxed);
            let timeout = balancer.timeout(destination, protocol, state);
            shorter = timeout < record.timeout.swap(timeout, Ordering::Relaxed);
            if old.is_active() != active {
                balancer.activity(destination, active);
            }
            let template = record.template.load(Ordering::Relaxed);
            let proves = if matches!(protocol, crate::packet::ip::TCP | states::SCTP) {
                old.state() != state && states::is_established(protocol, state)
            } else {
                answered
            };
            if template != 0 && proves {
                balancer.assure(template);
            }
        });
        shorter
    }

    /// Whether a client's call that fits this balanced connection begins another one.
    pub(super) fn is_renewed(&self, half: Ref) -> bool {
        let Some(view) = self.balance(half) else { return false };
        let mut renewed = false;
        self.shared.balanced(|balancer| renewed = balancer.renews(&view));
        renewed
    }
}

/// A balanced connection as listings and daemons that copy it see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalancedRecord {
    /// What its record says.
    pub view: View,
    /// The client's packets as they come in.
    pub original: Tuple,
    /// Whom they reach, as answers have it.
    pub server: (IpAddr, u16),
    /// The client as the server sees it.
    pub client: (IpAddr, u16),
    /// Seconds that are left.
    pub remaining: u32,
    /// Seconds that its state gives it.
    pub timeout: u32,
    /// Packets of client and server.
    pub packets: [u64; 2],
    /// Their bytes.
    pub bytes: [u64; 2],
    /// Whether addresses are translated.
    pub translated: bool,
}

impl Conntrack {
    /// Says who balances; once, before the first such connection.
    pub fn set_balancer(&self, balancer: std::sync::Arc<dyn Balancer>) {
        // Only the first one counts.
        let _ = self.shared.balancer.set(balancer);
    }
}

/// What is to be listed of a connection.
pub(super) fn listed<F: Family>(table: &Table<F>, slot: Slot, now: u32) -> Option<BalancedRecord> {
    let view = table.balance(slot.original())?;
    let (first, second) = (table.first(slot), table.second(slot));
    let back = second.key();
    Some(BalancedRecord {
        view,
        original: first.key().tuple(),
        server: (F::to_ip(back.source), back.tuple().source_port),
        client: (F::to_ip(back.destination), back.tuple().destination_port),
        remaining: table.remaining(slot, now).unwrap_or(0),
        timeout: table.record(slot).timeout(),
        packets: [first.packets(), second.packets()],
        bytes: [first.bytes(), second.bytes()],
        translated: first.flags().any(),
    })
}

impl<F: Family> Table<F> {
    /// Gives a balanced connection the timeout in force.
    pub(super) fn retime(&self, slot: Slot) {
        let Some(view) = self.balance(slot.original()) else { return };
        self.shared.balanced(|balancer| {
            let timeout = balancer.timeout(view.destination, view.protocol, view.state);
            self.record(slot).timeout.store(timeout, Ordering::Relaxed);
        });
        self.mark(slot);
    }
}

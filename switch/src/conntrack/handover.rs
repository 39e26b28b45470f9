//! Connections that go on in another process: each as a record of fixed length, and back.
//!
//! A first copy is made while workers carry packets; [`Copies`] remembers a digest of each record's substance. What has to
//! be told again once they stand still is searched for among the connections that were marked since
//! ([`super::marks`]), so that takes as long as there were changes. What packets alone change (when a
//! connection was seen, how often, what it acknowledged) is as of the copy: it is at most a few seconds old, and made
//! good by the next packet. Both processes share a clock ([`crate::clock::go_on_from`]), so seconds mean the same.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::balance::Balanced;
use super::entry::Flags;
use super::key::{Family, Key, V4, V6};
use super::marks::GROUP;
use super::owner::{NewConnection, Owner};
use super::shared::Refused;
use super::state::{Phase, State};
use super::table::{CHUNK, Ref, Slot, Standing, Table};
use super::track::Begun;
use super::{Conntrack, Local};
use crate::rules::hash::mix;

/// Places that are looked at in one go: whole groups, as chunks are.
const STEP: u32 = 512;
const _: () = assert!(STEP.is_multiple_of(GROUP) && CHUNK.is_multiple_of(GROUP));
/// How often a lock is tried that another worker has.
const PATIENCE: u32 = 10_000;
/// Set in the place of a connection of IPv6.
const WIDE: u64 = 1 << 32;
/// What of a half's flags is not told by its keys.
const FLAGS: u8 = Flags::SETTLED | Flags::WATCHED | Flags::BALANCED | Flags::TUNNELLED;

/// A connection. All numbers are those of the process that tells, in the byte order of the machine that both share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Kept {
    /// Where it is in the teller's table: what later records of it are known by.
    pub place: u64,
    /// Bytes of both directions, the first packet's first; so all pairs here.
    pub bytes: [u64; 2],
    /// Their packets.
    pub packets: [u64; 2],
    /// Source and destination of the first packet, source and destination of answers, as they come in; those of IPv4
    /// in the last four bytes.
    pub addresses: [[u8; 16]; 4],
    /// The second (of 24 bits) when each direction was last seen.
    pub seen: [u32; 2],
    /// What each side has acknowledged.
    pub acks: [u32; 2],
    /// Phase, status and note: see [`State`].
    pub state: u32,
    /// Number of its server.
    pub destination: u32,
    /// Number of its template, 0 if none.
    pub template: u32,
    /// Seconds that its state as a balanced connection gives it.
    pub timeout: u32,
    /// That state (bits 0 to 7), whether answers go past the switch (bit 8), whether it counts as active (bit 9).
    pub balanced: u32,
    /// Ports in the order of the addresses.
    pub ports: [u16; 4],
    /// Number of the port by which it came in.
    pub ingress: u16,
    /// Window scales, and what is known of them: see [`super::entry::Half`].
    pub scales: [u8; 2],
    /// Flags of both halves that are not told by the addresses.
    pub flags: [u8; 2],
    /// The protocol.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// Zeros.
    pub spare: [u8; 4],
}

/// Bytes of a record.
pub const RECORD: usize = size_of::<Kept>();
const _: () = assert!(RECORD == 160);

/// Why a record cannot be one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a connection's record contradicts itself: {0}")]
pub struct Nonsense(&'static str);

impl Kept {
    fn of<F: Family>(table: &Table<F>, slot: Slot) -> Self {
        let (first, second) = (table.first(slot), table.second(slot));
        let (there, back) = (first.key(), second.key());
        let view = table.balance(slot.original());
        let mut kept = Self {
            place: u64::from(slot.place()) | if F::V6 { WIDE } else { 0 },
            bytes: [first.bytes(), second.bytes()],
            packets: [first.packets(), second.packets()],
            addresses: [there.source, there.destination, back.source, back.destination].map(F::to_bytes),
            seen: [first.seen(), second.seen()],
            acks: [first.ack(), second.ack()],
            state: table.noted(slot).0,
            ports: [there.source_port, there.destination_port, back.source_port, back.destination_port],
            ingress: table.holder(slot).port(),
            scales: [first.scale(), second.scale()],
            flags: [first, second].map(|half| half.flags().bits() & FLAGS),
            protocol: there.protocol,
            family: if F::V6 { 6 } else { 4 },
            ..Self::default()
        };
        if let Some(view) = view {
            kept.destination = view.destination;
            kept.template = view.template;
            kept.timeout = table.record(slot).timeout();
            kept.balanced =
                u32::from(view.state) | u32::from(view.one_way) << 8 | u32::from(view.active) << 9;
        }
        kept
    }

    /// What is told again when it has changed, in a word that is never 0.
    fn digest(&self) -> u64 {
        let wide = |bytes: &[u8; 16]| {
            let word = u128::from_ne_bytes(*bytes);
            [(word >> 64) as u64, word as u64]
        };
        let pair = |a: u32, b: u32| u64::from(a) << 32 | u64::from(b);
        let small = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
        let ports = self.ports.iter().fold(0, |word, &port| word << 16 | u64::from(port));
        let words = [
            ports,
            pair(self.state, self.destination),
            pair(self.template, self.timeout),
            pair(
                self.balanced,
                small([self.scales[0] & 0x4f, self.scales[1] & 0x4f, self.flags[0], self.flags[1]]),
            ),
            pair(self.ingress.into(), small([self.protocol, self.family, 0, 0])),
        ];
        let addresses = self.addresses.iter().flat_map(wide);
        addresses.chain(words).fold(0x9e37_79b9_7f4a_7c15, mix) | 1
    }

    /// Whether it was given to a server.
    pub fn is_balanced(&self) -> bool {
        self.flags[0] & Flags::BALANCED != 0
    }

    /// Whether it counts as active at its server.
    pub fn is_active(&self) -> bool {
        self.balanced >> 9 & 1 == 1
    }

    /// Checks what can be checked without a table.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), Nonsense> {
        if !matches!(self.family, 4 | 6) {
            return Err(Nonsense("its family is neither 4 nor 6"));
        }
        if (self.place & WIDE != 0) != (self.family == 6) || self.place >= 2 * WIDE {
            return Err(Nonsense("its place is of another family"));
        }
        if self.family == 4 && self.addresses.iter().any(|address| address[..12] != [0; 12]) {
            return Err(Nonsense("an address of IPv4 has more than four bytes"));
        }
        let same = self.addresses[..2] == self.addresses[2..] && self.ports[..2] == self.ports[2..];
        if same {
            return Err(Nonsense("both directions are the same"));
        }
        if State(self.state).phase() == Phase::Gone {
            return Err(Nonsense("its state is none"));
        }
        if self.flags.iter().any(|flags| flags & !FLAGS != 0) {
            return Err(Nonsense("unknown flags"));
        }
        let (first, second) = (self.flags[0] & Flags::BALANCED, self.flags[1] & Flags::BALANCED);
        if first != second || first == 0 && (self.balanced != 0 || self.template != 0) {
            return Err(Nonsense("it is half balanced"));
        }
        if self.balanced >> 10 != 0 || self.seen.iter().any(|&seen| seen >> 24 != 0) {
            return Err(Nonsense("a number is out of range"));
        }
        if self.packets.iter().any(|&packets| packets >> 40 != 0) {
            return Err(Nonsense("more packets than are counted"));
        }
        Ok(())
    }

    fn keys<F: Family>(&self) -> (Key<F>, Key<F>) {
        let key = |at: usize| Key {
            source: F::from_bytes(self.addresses[at]),
            destination: F::from_bytes(self.addresses[at + 1]),
            source_port: self.ports[at],
            destination_port: self.ports[at + 1],
            protocol: self.protocol,
        };
        (key(0), key(2))
    }
}

/// What was told of all connections: digests by place, 0 where nothing was.
#[derive(Debug, Default)]
pub struct Copies {
    v4: Vec<u64>,
    v6: Vec<u64>,
    /// All have been looked at once; from then on marks tell.
    begun: bool,
}

impl Conntrack {
    /// Shows all connections that were not told of, or have changed since, and the places of those that are no more.
    /// Workers may go on meanwhile; for a whole picture they must not. Stops where `show` or `gone` says so: `copies` are
    /// of no use then. Marks can be taken once, so there can be one hand-over at a time.
    pub fn changed<E>(
        &self,
        copies: &mut Copies,
        mut show: impl FnMut(&Kept) -> Result<(), E>,
        mut gone: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let all = !std::mem::replace(&mut copies.begun, true);
        self.changed_of(&self.v4, &mut copies.v4, all, &mut show, &mut gone)?;
        self.changed_of(&self.v6, &mut copies.v6, all, &mut show, &mut gone)
    }

    fn changed_of<F: Family, E>(
        &self,
        table: &Table<F>,
        told: &mut Vec<u64>,
        all: bool,
        show: &mut impl FnMut(&Kept) -> Result<(), E>,
        gone: &mut impl FnMut(u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let family = if F::V6 { WIDE } else { 0 };
        let places = table.places();
        told.resize(places as usize, 0);
        let mut groups = Vec::with_capacity((STEP / GROUP) as usize);
        let mut found = Vec::with_capacity(STEP as usize);
        for start in (0..places).step_by(STEP as usize) {
            let step = start / GROUP..places.min(start + STEP) / GROUP;
            // The mark first: what changes afterwards marks it again.
            groups.extend(step.filter(|&group| table.marks.take(group) || all));
            if groups.is_empty() {
                continue;
            }
            self.seated(|| {
                for place in groups.drain(..).flat_map(|group| group * GROUP..(group + 1) * GROUP) {
                    let slot = Slot::at(place);
                    let live = table.holder(slot).is(Standing::Live);
                    found.push((place, live.then(|| Kept::of(table, slot))));
                }
            });
            for (place, kept) in found.drain(..) {
                let told = &mut told[place as usize];
                // One that is just being removed has no state any more: it is gone.
                match kept.filter(|kept| kept.check().is_ok()) {
                    Some(kept) => {
                        let digest = kept.digest();
                        if std::mem::replace(told, digest) != digest {
                            show(&kept)?;
                        }
                    }
                    None if std::mem::take(told) != 0 => gone(u64::from(place) | family)?,
                    None => {}
                }
            }
        }
        Ok(())
    }
}

/// Where connections that were told of are here: a worker's.
#[derive(Debug, Default)]
pub struct Places {
    v4: Vec<u32>,
    v6: Vec<u32>,
    /// Connections that wait until another one has given up its addresses: that one has gone, and it was not told yet.
    waiting: HashMap<u64, Kept>,
    /// Those that waited, and were told anew or have gone meanwhile.
    dropped: Vec<Kept>,
}

impl Places {
    fn at(&mut self, place: u64) -> &mut u32 {
        let list = if place & WIDE != 0 { &mut self.v6 } else { &mut self.v4 };
        let at = (place & (WIDE - 1)) as usize;
        if list.len() <= at {
            list.resize(at + 1, u32::MAX);
        }
        &mut list[at]
    }

    /// Whether connections wait for others.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Connections of which nothing was entered, and nothing will be.
    pub fn take_dropped(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.dropped)
    }

    /// Nothing more is told: connections that still wait.
    pub fn end(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.waiting).into_values().collect()
    }

    /// What is known of a place, to be forgotten.
    fn take(&mut self, place: u64) -> u32 {
        self.dropped.extend(self.waiting.remove(&place));
        let list = if place & WIDE != 0 { &mut self.v6 } else { &mut self.v4 };
        let at = (place & (WIDE - 1)) as usize;
        list.get_mut(at).map_or(u32::MAX, |known| std::mem::replace(known, u32::MAX))
    }
}

/// Whose a place is, of so many workers.
pub fn worker_of(place: u64, workers: usize) -> usize {
    (place as u32 / CHUNK) as usize % workers.max(1)
}

impl Conntrack {
    /// Enters a connection as it was told, in the place of what was told of it before; it may have to wait for another
    /// one's end, which is told later. Who calls has checked it and
    /// counted it at its server, if it has one. Not for a worker that carries packets: it may take a while.
    ///
    /// # Errors
    /// There is no room.
    pub fn take_over(
        &self,
        local: &mut Local,
        places: &mut Places,
        kept: &Kept,
        now: u32,
    ) -> Result<(), Refused> {
        // Its packets are told anew: they are not counted twice.
        self.remove_told(local, places, kept.place, true);
        let half = if kept.family == 6 {
            local.owner::<V6>().take_over(self.table(), kept, now)
        } else {
            local.owner::<V4>().take_over(self.table(), kept, now)
        };
        match half {
            Ok(half) => *places.at(kept.place) = half.0,
            Err(Refused::Exists) => {
                places.waiting.insert(kept.place, *kept);
            }
            Err(refused) => return Err(refused),
        }
        Ok(())
    }

    /// Enters those that waited, as far as it goes; those for which there is no room.
    pub fn take_over_waiting(&self, local: &mut Local, places: &mut Places, now: u32) -> Vec<Kept> {
        let waiting = places.end();
        waiting.into_iter().filter(|kept| self.take_over(local, places, kept, now).is_err()).collect()
    }

    /// Removes a connection that is no more.
    pub fn give_up(&self, local: &mut Local, places: &mut Places, place: u64) {
        self.remove_told(local, places, place, false);
    }

    fn remove_told(&self, local: &mut Local, places: &mut Places, place: u64, uncounted: bool) {
        let known = places.take(place);
        if known != u32::MAX && place & WIDE != 0 {
            local.owner::<V6>().remove_told(self.table(), Ref(known), uncounted);
        } else if known != u32::MAX {
            local.owner::<V4>().remove_told(self.table(), Ref(known), uncounted);
        }
    }
}

impl<F: Family> Owner<F> {
    fn take_over(&mut self, table: &Table<F>, kept: &Kept, now: u32) -> Result<Ref, Refused> {
        let (original, reply) = kept.keys::<F>();
        let state = State(kept.state);
        let new = NewConnection {
            original,
            reply,
            begun: Begun::midway(state.phase(), state.status()),
            port: kept.ingress,
            next_hop: None,
            watched: kept.flags[0] & Flags::WATCHED != 0,
            related: false,
            balanced: kept.is_balanced().then_some(Balanced {
                destination: kept.destination,
                template: kept.template,
                state: kept.balanced as u8,
                one_way: kept.balanced >> 8 & 1 == 1,
                tunnel: kept.flags[0] & Flags::TUNNELLED != 0,
            }),
        };
        // Another worker that takes over may hold a lock, and lose its processor meanwhile.
        let mut entered = self.insert(table, &new, now);
        for _ in 0..PATIENCE {
            if entered != Err(Refused::Busy) {
                break;
            }
            std::thread::yield_now();
            entered = self.insert(table, &new, now);
        }
        let half = entered?;
        let slot = half.slot();
        table.set_noted(slot, state);
        if kept.is_balanced() {
            table.record(slot).set_timeout(kept.timeout);
        }
        for (at, half) in [table.first(slot), table.second(slot)].into_iter().enumerate() {
            half.restore(kept.flags[at], kept.scales[at], kept.acks[at], kept.bytes[at]);
            half.restore_seen(kept.packets[at], kept.seen[at]);
        }
        self.reschedule(table, slot, now);
        Ok(half)
    }

    fn remove_told(&mut self, table: &Table<F>, half: Ref, uncounted: bool) {
        if uncounted {
            table.half(half).forget_counts();
            table.half(half.other()).forget_counts();
        }
        for _ in 0..PATIENCE {
            if self.kill(table, half) {
                return;
            }
            std::thread::yield_now();
        }
    }
}

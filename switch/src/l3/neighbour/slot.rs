//! One neighbour: a cache line of atomics.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use zerocopy::FromZeros;

use super::{Address, Entry, Waiting};
use crate::packet::ethernet::Mac;

/// How sure we are of a neighbour; names and meaning as with `ip neighbour` (RFC 4861, 7.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum State {
    /// Asked for, no answer yet.
    Incomplete = 0x01,
    /// It answered lately.
    Reachable = 0x02,
    /// It answered some time ago; nobody needs to know.
    Stale = 0x04,
    /// It answered some time ago and is in use: it will be asked unless it gives a sign.
    Delay = 0x08,
    /// It is being asked whether it is still there.
    Probe = 0x10,
    /// It did not answer.
    Failed = 0x20,
    /// It is not to be asked.
    NoArp = 0x40,
    /// The operator said so.
    Permanent = 0x80,
}

impl State {
    /// The word of `ip neighbour`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Incomplete => "INCOMPLETE",
            Self::Reachable => "REACHABLE",
            Self::Stale => "STALE",
            Self::Delay => "DELAY",
            Self::Probe => "PROBE",
            Self::Failed => "FAILED",
            Self::NoArp => "NOARP",
            Self::Permanent => "PERMANENT",
        }
    }

    #[inline]
    fn of(bits: u8) -> Self {
        match bits {
            0x02 => Self::Reachable,
            0x04 => Self::Stale,
            0x08 => Self::Delay,
            0x10 => Self::Probe,
            0x20 => Self::Failed,
            0x40 => Self::NoArp,
            0x80 => Self::Permanent,
            _ => Self::Incomplete,
        }
    }
}

/// MAC address (bits 0 to 47, in memory order), state (48 to 55), and the lowest bits of the slot's version: a compare
/// and exchange fails on a slot that changed hands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Link(u64);

impl Link {
    const MAC: u64 = (1 << 48) - 1;
    const FRESH: u64 = (State::Reachable as u64
        | State::Delay as u64
        | State::Probe as u64
        | State::NoArp as u64
        | State::Permanent as u64)
        << 48;
    const USABLE: u64 = Self::FRESH | (State::Stale as u64) << 48;
    const FIXED: u64 = (State::NoArp as u64 | State::Permanent as u64) << 48;

    pub(super) fn unresolved(state: State) -> Self {
        Self((state as u64) << 48)
    }

    pub(super) fn resolved(mac: Mac, state: State) -> Self {
        let mut bytes = [0; 8];
        bytes[..6].copy_from_slice(&mac.0);
        Self(u64::from_le_bytes(bytes) | (state as u64) << 48)
    }

    fn version(self, version: u32) -> Self {
        Self(self.0 & ((1 << 56) - 1) | u64::from(version) << 56)
    }

    /// The same with another state; without a MAC address if that is one without.
    pub(super) fn with(self, state: State) -> Self {
        let mac = if matches!(state, State::Incomplete | State::Failed) { 0 } else { self.0 & Self::MAC };
        Self(self.0 >> 56 << 56 | (state as u64) << 48 | mac)
    }

    pub(super) fn resolve(self, mac: Mac, state: State) -> Self {
        Self(self.0 >> 56 << 56 | Self::resolved(mac, state).0)
    }

    #[inline]
    pub(super) fn mac(self) -> Mac {
        let b = self.0.to_le_bytes();
        Mac([b[0], b[1], b[2], b[3], b[4], b[5]])
    }

    #[inline]
    pub(super) fn state(self) -> State {
        State::of((self.0 >> 48) as u8)
    }

    /// It can be sent to, and nothing needs to be done about it.
    #[inline]
    pub(super) fn is_fresh(self) -> bool {
        self.0 & Self::FRESH != 0
    }

    /// It can be sent to.
    #[inline]
    pub(super) fn is_usable(self) -> bool {
        self.0 & Self::USABLE != 0
    }

    /// Nothing that is learned changes it.
    pub(super) fn is_fixed(self) -> bool {
        self.0 & Self::FIXED != 0
    }

    pub(super) fn is_of(self, version: u32) -> bool {
        (self.0 >> 56) as u8 == version as u8
    }
}

pub(super) const WAYS: usize = 8;

/// Tag (high half of the hash) and number of a slot plus one; 0 if empty.
#[derive(FromZeros)]
#[repr(C, align(64))]
pub(super) struct Bucket(pub(super) [AtomicU64; WAYS]);

const USED: u64 = 1 << 16;

/// A slot. The owner is zeroed, and the version changed, before anything else changes hands; it is written last.
#[derive(FromZeros)]
#[repr(C, align(64))]
pub struct Slot {
    high: AtomicU64,
    low: AtomicU64,
    /// Interface (bits 0 to 15), used (16), port that the entry is charged to (32 to 47).
    owner: AtomicU64,
    link: AtomicU64,
    version: AtomicU32,
    used: AtomicU32,
    confirmed: AtomicU32,
    /// When the state was entered, or in states of asking, when it was last asked.
    since: AtomicU32,
    updated: AtomicU32,
    probes: AtomicU32,
    spare: [AtomicU32; 2],
}

impl Slot {
    /// Changes whenever the slot goes to another neighbour.
    #[inline]
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether it is somebody's.
    #[inline]
    pub(super) fn is_used(&self) -> bool {
        self.owner.load(Ordering::Acquire) & USED != 0
    }

    /// Whether it is this neighbour's.
    #[inline]
    pub(super) fn holds(&self, interface: u16, address: Address) -> bool {
        let version = self.version();
        let owner = self.owner.load(Ordering::Acquire);
        let same = owner & (USED | 0xffff) == USED | u64::from(interface) && self.address() == address;
        // Still of that version, so all that was read belongs together.
        same && self.version() == version
    }

    /// The interface on whose link the neighbour is.
    #[inline]
    pub fn interface(&self) -> u16 {
        self.owner.load(Ordering::Acquire) as u16
    }

    /// The neighbour's address.
    #[inline]
    pub fn address(&self) -> Address {
        let high = self.high.load(Ordering::Acquire);
        let low = self.low.load(Ordering::Acquire);
        Address(u128::from(high) << 64 | u128::from(low))
    }

    /// Where to send what goes to the neighbour, if that is known; notes that it is used. One that was silent for long
    /// is asked soon whether it is still there ([`State::Delay`]).
    #[inline]
    pub fn usable_mac(&self, now: u32) -> Option<Mac> {
        let link = self.link();
        if self.used.load(Ordering::Relaxed) != now {
            self.used.store(now, Ordering::Relaxed);
        }
        if link.is_fresh() { Some(link.mac()) } else { self.wake(link, now) }
    }

    #[cold]
    fn wake(&self, link: Link, now: u32) -> Option<Mac> {
        (link.state() == State::Stale).then(|| {
            // Should another be faster, that is as well.
            self.change(link, link.with(State::Delay), now);
            link.mac()
        })
    }

    /// What to do with a packet, the neighbour's MAC address being unknown. One that did not answer is asked for again
    /// after a second.
    pub fn ask(&self, now: u32) -> Waiting {
        let link = self.link();
        match link.state() {
            State::Failed if self.since() == now => Waiting::Failed,
            State::Failed => match self.change(link, link.with(State::Incomplete), now) {
                true => {
                    self.set_probes(1);
                    Waiting::Ask
                }
                false => Waiting::Wait,
            },
            State::Incomplete => {
                let first = self.probes.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
                if first { Waiting::Ask } else { Waiting::Wait }
            }
            // It has just answered, or so: whoever asks knows better.
            _ => Waiting::Wait,
        }
    }

    #[inline]
    pub(super) fn link(&self) -> Link {
        Link(self.link.load(Ordering::Acquire))
    }

    /// Changes MAC address and state unless somebody else did.
    pub(super) fn change(&self, from: Link, to: Link, now: u32) -> bool {
        // Before the state, so that nobody judges the new state by the age of the old one.
        self.since.store(now, Ordering::Relaxed);
        self.link.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    #[inline]
    pub(super) fn confirm(&self, now: u32) {
        if self.confirmed.load(Ordering::Relaxed) != now {
            self.confirmed.store(now, Ordering::Relaxed);
        }
    }

    pub(super) fn renew(&self, now: u32) {
        self.updated.store(now, Ordering::Relaxed);
    }

    pub(super) fn set_probes(&self, probes: u32) {
        self.probes.store(probes, Ordering::Relaxed);
    }

    pub(super) fn probes(&self) -> u32 {
        self.probes.load(Ordering::Relaxed)
    }

    pub(super) fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn confirmed(&self) -> u32 {
        self.confirmed.load(Ordering::Relaxed)
    }

    pub(super) fn since(&self) -> u32 {
        self.since.load(Ordering::Relaxed)
    }

    pub(super) fn set_since(&self, now: u32) {
        self.since.store(now, Ordering::Relaxed);
    }

    pub(super) fn updated(&self) -> u32 {
        self.updated.load(Ordering::Relaxed)
    }

    /// Whose it is and what it is charged to. For the holder of the writer's lock.
    pub(super) fn owner(&self) -> Option<(u16, Address, u16)> {
        let owner = self.owner.load(Ordering::Acquire);
        (owner & USED != 0).then(|| (owner as u16, self.address(), (owner >> 32) as u16))
    }

    /// Gives the slot, which is nobody's, to a neighbour. For the holder of the writer's lock.
    pub(super) fn give(&self, (interface, address): (u16, Address), link: Link, port: u16, now: u32) {
        let version = self.version().wrapping_add(1).max(1);
        self.version.store(version, Ordering::Release);
        self.high.store((address.0 >> 64) as u64, Ordering::Release);
        self.low.store(address.0 as u64, Ordering::Release);
        for time in [&self.used, &self.confirmed, &self.since, &self.updated] {
            time.store(now, Ordering::Relaxed);
        }
        // Nobody has asked yet.
        self.probes.store(0, Ordering::Relaxed);
        self.link.store(link.version(version).0, Ordering::Release);
        self.owner.store(USED | u64::from(interface) | u64::from(port) << 32, Ordering::Release);
    }

    /// Gives it the times of an entry that was made elsewhere. For the holder of the writer's lock.
    pub(super) fn restore(&self, entry: &Entry, now: u32) {
        for (time, age) in [
            (&self.used, entry.used),
            (&self.confirmed, entry.confirmed),
            (&self.since, entry.confirmed.min(entry.used)),
            (&self.updated, entry.updated),
        ] {
            time.store(now.wrapping_sub(age), Ordering::Relaxed);
        }
        self.set_probes(entry.probes);
    }

    /// Takes the slot from its neighbour. For the holder of the writer's lock.
    pub(super) fn take(&self) {
        self.owner.store(0, Ordering::Release);
        self.version.store(self.version().wrapping_add(1).max(1), Ordering::Release);
    }

    /// For people; `None` if it is nobody's, or changed hands meanwhile.
    pub(super) fn entry(&self, now: u32) -> Option<Entry> {
        let version = self.version();
        let (interface, address, port) = self.owner()?;
        let link = self.link();
        let entry = Entry {
            interface,
            address: address.ip(),
            mac: link.is_usable().then(|| link.mac()),
            state: link.state(),
            port: (port != u16::MAX).then_some(port),
            used: now.wrapping_sub(self.used()),
            confirmed: now.wrapping_sub(self.confirmed()),
            updated: now.wrapping_sub(self.updated()),
            probes: if link.is_usable() && link.state() != State::Probe { 0 } else { self.probes() },
        };
        (self.version() == version && link.is_of(version)).then_some(entry)
    }
}

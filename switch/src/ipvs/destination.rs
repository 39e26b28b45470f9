//! A real server of a service while the switch runs: what was asked for, how many connections it has, its counters.
//!
//! Workers count connections here and read what may change; the control thread changes it. A deleted server with
//! connections lives on in its scope's trash and comes back, with its counts, if it is added again.
//!
//! What schedulers compare is changed first, posted on the board then, and looked at after the note was taken down: all
//! in one order that everybody agrees on (`SeqCst`), so that no change goes unseen.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;

use super::account::{Account, Stats};
use super::spec::{DestinationSpec, Forward, Tunnel, TunnelChecksum};

/// It belongs to its service.
const AVAILABLE: u32 = 1;
/// It has more connections than it wants.
const OVERLOADED: u32 = 2;
/// It was forgotten: nobody may begin a connection.
const GONE: u32 = 4;

/// As what a connection counts at its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// One that is in use ([`Destination::active`]).
    Active,
    /// One that begins or ends ([`Destination::inactive`]).
    Inactive,
    /// A template of persistence.
    Template,
}

/// A real server.
#[derive(Debug)]
pub struct Destination {
    id: u32,
    address: IpAddr,
    port: u16,
    account: Arc<Account>,
    /// Where the service's scheduler has it.
    slot: AtomicU32,
    flags: AtomicU32,
    weight: AtomicI32,
    /// The last weight that was not 0, or that it was added with.
    last_weight: AtomicI32,
    upper: AtomicU32,
    lower: AtomicU32,
    active: AtomicU32,
    inactive: AtomicU32,
    templates: AtomicU32,
    /// [`Forward`] in bits.
    forward: AtomicU64,
    /// The pool of [`Forward::FullNat`].
    pool: ArcSwapOption<(IpAddr, IpAddr)>,
    /// Its counters.
    pub stats: Stats,
    /// Since when (seconds) it has lain in the trash without a connection, 0 if it has some; the control thread's.
    idle_since: AtomicU32,
}

impl Destination {
    /// A server that belongs to nobody yet.
    pub(super) fn new(id: u32, address: IpAddr, port: u16, account: Arc<Account>) -> Self {
        Self {
            id,
            address,
            port,
            account,
            slot: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            weight: AtomicI32::new(0),
            last_weight: AtomicI32::new(0),
            upper: AtomicU32::new(0),
            lower: AtomicU32::new(0),
            active: AtomicU32::new(0),
            inactive: AtomicU32::new(0),
            templates: AtomicU32::new(0),
            forward: AtomicU64::new(0),
            pool: ArcSwapOption::empty(),
            stats: Stats::default(),
            idle_since: AtomicU32::new(0),
        }
    }

    /// Its number, which connections name it by ([`super::Ipvs::destination`]); no other one of any scope has it.
    #[inline]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its address.
    #[inline]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Its port; 0: the one that the client called.
    #[inline]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it shares with its service.
    #[inline]
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// How new connections reach it.
    pub fn forward(&self) -> Forward {
        unpack(self.forward.load(Ordering::Acquire), || self.pool.load().as_deref().copied())
    }

    /// Its weight.
    #[inline]
    pub fn weight(&self) -> i32 {
        self.weight.load(Ordering::SeqCst)
    }

    /// The last weight other than 0, as `mh` keeps its place by it.
    pub(super) fn last_weight(&self) -> i32 {
        self.last_weight.load(Ordering::Relaxed)
    }

    pub(super) fn upper(&self) -> u32 {
        self.upper.load(Ordering::Relaxed)
    }

    pub(super) fn set_slot(&self, slot: u32) {
        self.slot.store(slot, Ordering::SeqCst);
    }

    pub(super) fn idle_since(&self) -> u32 {
        self.idle_since.load(Ordering::Relaxed)
    }

    pub(super) fn set_idle_since(&self, seconds: u32) {
        self.idle_since.store(seconds, Ordering::Relaxed);
    }

    /// Whether it belongs to its service: it was not deleted.
    #[inline]
    pub fn is_available(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & AVAILABLE != 0
    }

    /// Whether it gets no new connections because it has too many.
    #[inline]
    pub fn is_overloaded(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & OVERLOADED != 0
    }

    /// Connections in use.
    #[inline]
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::SeqCst)
    }

    /// Connections that begin or end, and those of UDP.
    #[inline]
    pub fn inactive(&self) -> u32 {
        self.inactive.load(Ordering::SeqCst)
    }

    /// Templates of persistence.
    #[inline]
    pub fn templates(&self) -> u32 {
        self.templates.load(Ordering::Relaxed)
    }

    /// Whether a connection names it.
    pub(super) fn is_referred_to(&self) -> bool {
        let counts = [&self.active, &self.inactive, &self.templates];
        counts.iter().any(|count| count.load(Ordering::SeqCst) != 0)
    }

    fn counter(&self, counted: Counted) -> &AtomicU32 {
        match counted {
            Counted::Active => &self.active,
            Counted::Inactive => &self.inactive,
            Counted::Template => &self.templates,
        }
    }

    /// Counts a connection that begins (not one of [`Stats`]). `false`: the server was forgotten meanwhile, nothing was
    /// counted, and the connection may not have it.
    #[must_use]
    pub fn bind(&self, counted: Counted) -> bool {
        let counter = self.counter(counted);
        // Whoever forgets a server marks it first and looks at its counts then; both orders are seen by all.
        counter.fetch_add(1, Ordering::SeqCst);
        if self.flags.load(Ordering::SeqCst) & GONE != 0 {
            counter.fetch_sub(1, Ordering::SeqCst);
            return false;
        }
        let upper = self.upper.load(Ordering::Relaxed);
        if upper != 0 && self.connections() >= u64::from(upper) {
            self.flags.fetch_or(OVERLOADED, Ordering::SeqCst);
        }
        self.post();
        true
    }

    /// Takes a connection that has ended off the counts.
    pub fn unbind(&self, counted: Counted) {
        self.counter(counted).fetch_sub(1, Ordering::SeqCst);
        if self.is_overloaded() {
            let (upper, lower) = (self.upper.load(Ordering::Relaxed), self.lower.load(Ordering::Relaxed));
            let connections = self.connections();
            let relieved = match (lower, upper) {
                (0, 0) => true,
                (0, upper) => connections * 4 < u64::from(upper) * 3,
                (lower, _) => connections < u64::from(lower),
            };
            if relieved {
                self.flags.fetch_and(!OVERLOADED, Ordering::SeqCst);
            }
        }
        self.post();
    }

    /// An inactive connection becomes an active one.
    pub fn activate(&self) {
        self.active.fetch_add(1, Ordering::SeqCst);
        self.inactive.fetch_sub(1, Ordering::SeqCst);
        self.post();
    }

    /// An active connection becomes an inactive one.
    pub fn deactivate(&self) {
        self.inactive.fetch_add(1, Ordering::SeqCst);
        self.active.fetch_sub(1, Ordering::SeqCst);
        self.post();
    }

    fn connections(&self) -> u64 {
        u64::from(self.active()) + u64::from(self.inactive())
    }

    #[inline]
    fn post(&self) {
        self.account.board.post(&self.slot);
    }

    /// What was asked for.
    pub fn spec(&self) -> DestinationSpec {
        DestinationSpec {
            address: self.address,
            port: self.port,
            forward: self.forward(),
            weight: self.weight(),
            upper: self.upper.load(Ordering::Relaxed),
            lower: self.lower.load(Ordering::Relaxed),
        }
    }

    /// Takes over what is asked for now. `last_weight` is the one to remember; `relieve`: it is no longer overloaded.
    pub(super) fn update(&self, spec: &DestinationSpec, last_weight: i32, relieve: bool) {
        if let Forward::FullNat { first, last } = spec.forward {
            self.pool.store(Some(Arc::new((first, last))));
        }
        self.forward.store(pack(&spec.forward), Ordering::Release);
        self.weight.store(spec.weight, Ordering::SeqCst);
        self.last_weight.store(last_weight, Ordering::Relaxed);
        self.upper.store(spec.upper, Ordering::Relaxed);
        self.lower.store(spec.lower, Ordering::Relaxed);
        self.flags.fetch_or(AVAILABLE, Ordering::SeqCst);
        if relieve {
            self.flags.fetch_and(!OVERLOADED, Ordering::SeqCst);
        }
        self.post();
    }

    /// It was deleted.
    pub(super) fn withdraw(&self) {
        self.flags.fetch_and(!AVAILABLE, Ordering::SeqCst);
    }

    /// Marks it so that no connection can begin any more, unless one names it.
    pub(super) fn forget(&self) -> bool {
        self.flags.fetch_or(GONE, Ordering::SeqCst);
        if self.is_referred_to() {
            self.flags.fetch_and(!GONE, Ordering::SeqCst);
            return false;
        }
        true
    }
}

/// Kind in the lowest byte, tunnel in the next, checksum in the third, port above.
fn pack(forward: &Forward) -> u64 {
    let checksum = |checksum: TunnelChecksum| match checksum {
        TunnelChecksum::None => 0,
        TunnelChecksum::Full => 1 << 16,
        TunnelChecksum::Remote => 2 << 16,
    };
    match *forward {
        Forward::Masquerade => 0,
        Forward::Route => 1,
        Forward::Tunnel(Tunnel::Ipip) => 2,
        Forward::Tunnel(Tunnel::Gue { port, checksum: sum }) => {
            2 | 1 << 8 | checksum(sum) | u64::from(port) << 24
        }
        Forward::Tunnel(Tunnel::Gre { checksum: sum }) => 2 | 2 << 8 | checksum(sum),
        Forward::FullNat { .. } => 3,
    }
}

fn unpack(bits: u64, pool: impl FnOnce() -> Option<(IpAddr, IpAddr)>) -> Forward {
    let checksum = match bits >> 16 & 0xff {
        0 => TunnelChecksum::None,
        1 => TunnelChecksum::Full,
        _ => TunnelChecksum::Remote,
    };
    match (bits & 0xff, bits >> 8 & 0xff) {
        (0, _) => Forward::Masquerade,
        (1, _) => Forward::Route,
        (2, 0) => Forward::Tunnel(Tunnel::Ipip),
        (2, 1) => Forward::Tunnel(Tunnel::Gue { port: (bits >> 24) as u16, checksum }),
        (2, _) => Forward::Tunnel(Tunnel::Gre { checksum }),
        // The pool is stored before the kind.
        _ => pool().map_or(Forward::Masquerade, |(first, last)| Forward::FullNat { first, last }),
    }
}

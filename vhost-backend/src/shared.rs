//! What a port's control thread, the workers and the operator's questions share: the ring cells, which of them take
//! frames, the negotiated features, and what there is to say about the port.

#![forbid(unsafe_code)]

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU16, AtomicU64, Ordering},
};

use crate::{
    device::State,
    memory::GuestMap,
    ring::{RingCell, RingFault},
};

/// Entries of the steering table.
const STEERING: usize = 256;
/// An entry of it that names no pair.
const NOWHERE: u16 = u16::MAX;

/// Whether a frontend is connected; otherwise what is to be said about that.
enum Link {
    Connected,
    Waiting {
        reason: String,
        /// The last frontend, or its guest, broke the rules.
        broken: bool,
    },
}

pub(crate) struct Shared {
    /// Vring 2i is the guest's receive queue of pair i, vring 2i+1 its transmit queue.
    rings: Box<[RingCell]>,
    steering: [AtomicU16; STEERING],
    features: AtomicU64,
    link: Mutex<Link>,
    /// Only to ask whether it is poisoned. Nobody may keep a clone: the control thread unmaps.
    map: Mutex<Option<Arc<GuestMap>>>,
    changed: Arc<dyn Fn() + Send + Sync>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing below is left half done by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(queue_pairs: u16, changed: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self {
            rings: (0..2 * usize::from(queue_pairs)).map(|_| RingCell::new()).collect(),
            steering: [const { AtomicU16::new(NOWHERE) }; STEERING],
            features: AtomicU64::new(0),
            link: Mutex::new(Link::Waiting { reason: "not started yet".into(), broken: false }),
            map: Mutex::new(None),
            changed,
        }
    }

    /// All cells, by vring index.
    pub(crate) fn rings(&self) -> &[RingCell] {
        &self.rings
    }

    pub(crate) fn features(&self) -> u64 {
        self.features.load(Ordering::Relaxed)
    }

    pub(crate) fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::Relaxed);
    }

    /// Hands back the map that was there: to be dropped by the caller, a control thread, after the lock.
    pub(crate) fn set_map(&self, map: Option<Arc<GuestMap>>) -> Option<Arc<GuestMap>> {
        std::mem::replace(&mut *lock(&self.map), map)
    }

    pub(crate) fn connected(&self) {
        *lock(&self.link) = Link::Connected;
        self.publish();
    }

    pub(crate) fn waiting(&self, reason: String, broken: bool) {
        *lock(&self.link) = Link::Waiting { reason, broken };
        self.publish();
    }

    /// What is to be said about there being no frontend, and whether the last one broke the rules.
    pub(crate) fn waits(&self) -> Option<(String, bool)> {
        match &*lock(&self.link) {
            Link::Connected => None,
            Link::Waiting { reason, broken } => Some((reason.clone(), *broken)),
        }
    }

    /// The pair to deliver to; see [`crate::device::Device::steer`].
    #[inline]
    pub(crate) fn steer(&self, key: usize) -> Option<usize> {
        let pair = self.steering[key % STEERING].load(Ordering::Relaxed);
        (pair != NOWHERE).then_some(usize::from(pair))
    }

    /// Brings the steering table up to date and tells the switch. To be called after rings changed.
    ///
    /// A worker may see old and new entries side by side meanwhile; both name pairs that exist, and a ring that does
    /// not run takes nothing.
    pub(crate) fn publish(&self) {
        self.steer_anew();
        (self.changed)();
    }

    /// The first half of [`Shared::publish`].
    pub(crate) fn steer_anew(&self) {
        let active: Vec<u16> = (0u16..)
            .zip(self.rings.chunks(2))
            .filter(|(_, pair)| pair[0].is_active())
            .map(|(i, _)| i)
            .collect();
        for (i, entry) in self.steering.iter().enumerate() {
            let pair = if active.is_empty() { NOWHERE } else { active[i % active.len()] };
            entry.store(pair, Ordering::Relaxed);
        }
    }

    pub(crate) fn state(&self) -> (State, String) {
        if let Link::Waiting { reason, broken } = &*lock(&self.link) {
            let state = if *broken { State::Broken } else { State::Connecting };
            return (state, reason.clone());
        }
        let faults = self.rings.iter().enumerate().find_map(|(i, ring)| ring.fault().map(|fault| (i, fault)));
        if let Some((ring, fault)) = faults {
            return (State::Broken, format!("{}: {fault}", ring_name(ring)));
        }
        if lock(&self.map).as_ref().is_some_and(|map| map.poisoned()) {
            return (State::Broken, RingFault::MemoryGone.to_string());
        }
        let up = self.rings.chunks(2).filter(|pair| pair.iter().all(RingCell::is_active)).count();
        match (up, self.rings.len() / 2) {
            (0, _) => (State::Down, "the guest has not started its network device".into()),
            (up, all) if up == all => (State::Up, String::new()),
            (up, all) => (State::Up, format!("running with {up} of {all} queue pairs")),
        }
    }
}

/// How messages to operators call a vring.
pub(crate) fn ring_name(index: usize) -> String {
    let queue = if index.is_multiple_of(2) { "receive" } else { "transmit" };
    format!("ring {index} (the guest's {queue} queue {})", index / 2)
}

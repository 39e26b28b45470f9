//! Neighbours: who is where on the links of interfaces. Without ageing as yet.
#![forbid(unsafe_code)]
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::interface::Address;
use crate::packet::ethernet::Mac;

/// A neighbour.
#[derive(Default)]
pub struct Slot {
    high: AtomicU64,
    low: AtomicU64,
    meta: AtomicU64,
    mac: AtomicU64,
    version: AtomicU32,
    asked: AtomicU32,
}
/// What to do with a packet to a neighbour that is not known.
pub enum Waiting {
    /// It does not answer.
    Failed,
    /// Ask for it.
    Ask,
    /// It was asked for this second.
    Wait,
}
const USED: u64 = 1 << 32;
impl Slot {
    /// Changes when the slot becomes another neighbour's.
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }
    /// Its interface.
    pub fn interface(&self) -> u16 {
        self.meta.load(Ordering::Acquire) as u16
    }
    /// Its address.
    pub fn address(&self) -> Address {
        Address(
            u128::from(self.high.load(Ordering::Acquire)) << 64
                | u128::from(self.low.load(Ordering::Acquire)),
        )
    }
    fn used(&self) -> bool {
        self.meta.load(Ordering::Acquire) & USED != 0
    }
    /// Its MAC address, if it is known.
    pub fn usable_mac(&self, _now: u32) -> Option<Mac> {
        match self.mac.load(Ordering::Acquire) {
            0 => None,
            mac => Some(Mac::from_u64(mac)),
        }
    }
    /// Whether to ask for it now.
    pub fn ask(&self, now: u32) -> Waiting {
        if self.asked.swap(now, Ordering::Relaxed) == now { Waiting::Wait } else { Waiting::Ask }
    }
}
/// All neighbours.
pub struct Neighbours {
    slots: Box<[Slot]>,
    lock: Mutex<()>,
}
impl Neighbours {
    /// None.
    pub fn new(_e: Arc<crate::worker::epoch::Epochs>) -> Self {
        Self { slots: (0..4096).map(|_| Slot::default()).collect(), lock: Mutex::new(()) }
    }
    /// Forgets those of an interface.
    pub fn flush(&self, _i: Option<u16>, _p: bool) -> u64 {
        0
    }
    /// The neighbour of a number.
    pub fn slot(&self, a: u32) -> Option<&Slot> {
        self.slots.get(a as usize).filter(|s| s.used())
    }
    fn find(&self, i: u16, a: Address) -> Result<u32, Option<u32>> {
        let start = (a.0 as u32 ^ (a.0 >> 64) as u32 ^ u32::from(i) * 77) % 4096;
        for k in 0..64 {
            let at = (start + k) % 4096;
            let slot = &self.slots[at as usize];
            if !slot.used() {
                return Err(Some(at));
            }
            if slot.interface() == i && slot.address() == a {
                return Ok(at);
            }
        }
        Err(None)
    }
    /// The number of a neighbour.
    pub fn find_or_create(&self, i: u16, a: Address, _port: u16, _now: u32) -> Option<u32> {
        if let Ok(at) = self.find(i, a) {
            return Some(at);
        }
        let _guard = self.lock.lock().ok()?;
        match self.find(i, a) {
            Ok(at) => Some(at),
            Err(Some(at)) => {
                let slot = &self.slots[at as usize];
                slot.high.store((a.0 >> 64) as u64, Ordering::Release);
                slot.low.store(a.0 as u64, Ordering::Release);
                slot.version.fetch_add(1, Ordering::AcqRel);
                slot.meta.store(u64::from(i) | USED, Ordering::Release);
                Some(at)
            }
            Err(None) => None,
        }
    }
    /// Notes where a known neighbour is.
    pub fn update(&self, i: u16, a: Address, m: Mac, _c: bool, _now: u32) -> bool {
        if let Ok(at) = self.find(i, a) {
            self.slots[at as usize].mac.store(m.to_u64(), Ordering::Release);
        }
        true
    }
    /// Notes where a neighbour is, known or not.
    pub fn learn(&self, i: u16, a: Address, m: Mac, p: u16, now: u32) -> bool {
        if let Some(at) = self.find_or_create(i, a, p, now) {
            self.slots[at as usize].mac.store(m.to_u64(), Ordering::Release);
        }
        true
    }
}

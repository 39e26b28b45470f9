//! What `lblc` and `lblcr` remember of addresses: a table of bounded size in which workers find, enter and replace
//! without allocating; the control thread makes it larger when it fills.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::rules::hash::{mix, stable};

/// Addresses that share a place.
const WAYS: usize = 4;
/// The most addresses, as Linux keeps before it clears away.
const MOST: usize = 16_384;
/// How many a table of many addresses begins with.
const FEW: usize = 16;

#[derive(Debug)]
pub(super) struct Entry<T> {
    address: IpAddr,
    /// When it was last asked for, in seconds.
    used: u32,
    pub(super) value: T,
}

/// Values by address.
#[derive(Debug)]
pub(super) struct Cache<T> {
    entries: Box<[Option<Entry<T>>]>,
    used: usize,
}

impl<T> Cache<T> {
    /// For one address, or for `many`.
    pub(super) fn new(many: bool) -> Self {
        Self::sized(if many { FEW } else { 1 })
    }

    fn sized(size: usize) -> Self {
        Self { entries: (0..size).map(|_| None).collect(), used: 0 }
    }

    fn places(&self, address: IpAddr) -> std::ops::Range<usize> {
        let ways = WAYS.min(self.entries.len());
        let sets = self.entries.len() / ways;
        let set = (mix(stable(address), 7) >> 20) as usize % sets;
        set * ways..(set + 1) * ways
    }

    /// The value of an address; it counts as asked for.
    #[inline]
    pub(super) fn get(&mut self, address: IpAddr, now: u32) -> Option<&mut T> {
        let places = self.places(address);
        let entry = self.entries[places].iter_mut().flatten().find(|entry| entry.address == address)?;
        entry.used = now;
        Some(&mut entry.value)
    }

    /// Enters an address that is not there, if need be instead of the one that was not asked for the longest.
    pub(super) fn enter(&mut self, address: IpAddr, now: u32, value: T) {
        let places = self.places(address);
        let age =
            |entry: &Option<Entry<T>>| entry.as_ref().map_or(u32::MAX, |entry| now.wrapping_sub(entry.used));
        let oldest = self.entries[places].iter_mut().max_by_key(|entry| age(entry));
        if let Some(place) = oldest {
            self.used += usize::from(place.is_none());
            *place = Some(Entry { address, used: now, value });
        }
    }

    /// Takes over what another one has.
    pub(super) fn inherit(&mut self, old: Self, mut change: impl FnMut(T) -> T) {
        if old.entries.len() > self.entries.len() {
            *self = Self::sized(old.entries.len());
        }
        for entry in old.entries.into_iter().flatten() {
            self.enter(entry.address, entry.used, change(entry.value));
        }
    }

    /// Forgets what was not asked for within `expiration` seconds or is not to be kept, and makes room.
    pub(super) fn tick(&mut self, now: u32, expiration: u32, mut keep: impl FnMut(&mut T) -> bool) {
        for entry in &mut self.entries {
            if let Some(there) = entry
                && (now.wrapping_sub(there.used) > expiration || !keep(&mut there.value))
            {
                *entry = None;
                self.used -= 1;
            }
        }
        if self.entries.len() > 1 && self.entries.len() < MOST && self.used > self.entries.len() / 4 {
            let old = std::mem::replace(self, Self::sized((self.entries.len() * 4).min(MOST)));
            self.inherit(old, |value| value);
        }
    }
}

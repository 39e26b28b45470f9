//! A cheap hash for tables that only the operator fills: what packets bring is looked up, never stored, so nobody can
//! make its chains long.
#![forbid(unsafe_code)]

use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;

/// A hash map with [`Mixer`].
pub(crate) type Map<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<Mixer>>;
/// A hash set with [`Mixer`].
pub(crate) type Set<K> = std::collections::HashSet<K, BuildHasherDefault<Mixer>>;

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// One wide multiplication for each word.
#[derive(Clone, Copy, Default)]
pub(crate) struct Mixer(u64);

/// Mixes `word` into `state`: all bits of both decide on all bits of the result.
#[inline]
pub(crate) fn mix(state: u64, word: u64) -> u64 {
    let wide = u128::from(state ^ word ^ ODD) * u128::from(ODD ^ word.rotate_left(32) | 1);
    (wide >> 64) as u64 ^ wide as u64
}

/// A hash of an address that is the same in every run: what is chosen by it stays chosen.
pub(crate) fn stable(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => mix(4, u64::from(v4.to_bits())),
        IpAddr::V6(v6) => mix(mix(6, (v6.to_bits() >> 64) as u64), v6.to_bits() as u64),
    }
}

impl Hasher for Mixer {
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    #[inline]
    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }

    #[inline]
    fn write_u16(&mut self, n: u16) {
        self.write_u64(u64::from(n));
    }

    #[inline]
    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    #[inline]
    fn write_u64(&mut self, n: u64) {
        self.0 = mix(self.0, n);
    }

    #[inline]
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}

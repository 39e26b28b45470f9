//! Addresses as the tries see them: strings of bits, 32 for IPv4 and 128 for IPv6, the first bit highest.
#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::hash::Hash;

/// An address or a prefix of one, in host byte order.
pub trait Bits: Copy + Ord + Hash + Debug + Send + Sync + 'static {
    /// How many bits there are.
    const WIDTH: u32;

    /// The first 16 bits.
    fn first16(self) -> usize;
    /// The 8 bits that follow the first `depth`; `depth` is a multiple of 8 below [`Self::WIDTH`].
    fn byte(self, depth: u32) -> usize;
    /// How many leading bits two addresses share.
    fn common(self, other: Self) -> u32;
    /// Whether the first `len` bits of both are the same; `len` is 1 to [`Self::WIDTH`].
    fn shares(self, other: Self, len: u32) -> bool;
    /// The first `len` bits, the others zero.
    #[must_use]
    fn masked(self, len: u32) -> Self;
    /// As four words, the first bits first; a shorter address fills only the first.
    fn words(self) -> [u32; 4];
    /// What [`Self::words`] was made of, read one by one.
    fn from_words(word: impl Fn(usize) -> u32) -> Self;
}

macro_rules! shifts {
    () => {
        const WIDTH: u32 = Self::BITS;

        #[inline(always)]
        fn first16(self) -> usize {
            (self >> (Self::BITS - 16)) as usize
        }
        #[inline(always)]
        fn byte(self, depth: u32) -> usize {
            // The modulo is free, and without it a debug build would look for an overflow that cannot be.
            (self >> ((Self::BITS - 8).wrapping_sub(depth) % Self::BITS)) as usize & 0xff
        }
        #[inline(always)]
        fn common(self, other: Self) -> u32 {
            (self ^ other).leading_zeros()
        }
        #[inline(always)]
        fn shares(self, other: Self, len: u32) -> bool {
            (self ^ other) >> (Self::BITS.wrapping_sub(len) % Self::BITS) == 0
        }
        #[inline(always)]
        fn masked(self, len: u32) -> Self {
            if len == 0 { 0 } else { self & Self::MAX << (Self::BITS - len.min(Self::BITS)) }
        }
    };
}

impl Bits for u32 {
    shifts!();

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        [self, 0, 0, 0]
    }
    #[inline(always)]
    fn from_words(word: impl Fn(usize) -> u32) -> Self {
        word(0)
    }
}

impl Bits for u128 {
    shifts!();

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        [(self >> 96) as u32, (self >> 64) as u32, (self >> 32) as u32, self as u32]
    }
    #[inline(always)]
    fn from_words(word: impl Fn(usize) -> u32) -> Self {
        u128::from(word(0)) << 96
            | u128::from(word(1)) << 64
            | u128::from(word(2)) << 32
            | u128::from(word(3))
    }
}

//! The hashes of Linux's schedulers: a client of `sh`, `dh` or `mh` finds the same server here as behind Linux.
#![forbid(unsafe_code)]

use std::net::IpAddr;

/// An address in 32 bits: of IPv6, its four words are added without carry.
#[inline]
pub(super) fn fold(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            (bits >> 96) as u32 ^ (bits >> 64) as u32 ^ (bits >> 32) as u32 ^ bits as u32
        }
    }
}

/// The highest `bits` bits of a multiplicative hash, by the golden ratio (`hash_32`).
#[inline]
pub(super) fn hash_32(value: u32, bits: u32) -> u32 {
    value.wrapping_mul(0x61c8_8647) >> (32 - bits)
}

/// Of one 32-bit word, the lower half of SipHash-1-3 with the key `key` twice (`hsiphash` on 64-bit machines).
#[inline]
pub(super) fn half_sip(word: u32, key: u64) -> u32 {
    let mut v = [
        0x736f_6d65_7073_6575 ^ key,
        0x646f_7261_6e64_6f6d ^ key,
        0x6c79_6765_6e65_7261 ^ key,
        0x7465_6462_7974_6573 ^ key,
    ];
    // The message's one block: its length in bytes on top.
    let block = 4 << 56 | u64::from(word);
    v[3] ^= block;
    sip_round(&mut v);
    v[0] ^= block;
    v[2] ^= 0xff;
    for _ in 0..3 {
        sip_round(&mut v);
    }
    (v[0] ^ v[1] ^ v[2] ^ v[3]) as u32
}

#[inline]
fn sip_round(v: &mut [u64; 4]) {
    let [mut a, mut b, mut c, mut d] = *v;
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    *v = [a, b, c, d];
}

//! Ports of SCTP packets (RFC 9260, section 3.1), and the checksum when they change.
//!
//! The checksum is a CRC32c of the whole packet. A CRC is linear: what other ports add to it is the CRC of their
//! difference followed by as many zeros as the packet has bytes behind them, which is worked out without the packet, in
//! as many steps as the packet's length has bits. A wrong checksum stays wrong.
#![forbid(unsafe_code)]

use super::headers::{Fragment, Headers};

/// Bytes of the common header.
pub const HEADER_LEN: usize = 12;
/// Where the checksum lies in it.
const CHECKSUM: usize = 8;
/// Castagnoli's polynomial, the lowest bit first.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// Bits of the longest packet's length.
const LENGTHS: usize = 17;

/// What 2^n bytes of zeros make of each bit of a register.
static ZEROS: [[u32; 32]; LENGTHS] = zeros();

const fn zeros() -> [[u32; 32]; LENGTHS] {
    let mut all = [[0; 32]; LENGTHS];
    let mut bit = 0;
    while bit < 32 {
        let (mut register, mut step) = (1_u32 << bit, 0);
        while step < 8 {
            register = if register & 1 != 0 { register >> 1 ^ POLYNOMIAL } else { register >> 1 };
            step += 1;
        }
        all[0][bit] = register;
        bit += 1;
    }
    let mut n = 1;
    while n < LENGTHS {
        bit = 0;
        while bit < 32 {
            all[n][bit] = apply(&all[n - 1], apply(&all[n - 1], 1 << bit));
            bit += 1;
        }
        n += 1;
    }
    all
}

const fn apply(matrix: &[u32; 32], register: u32) -> u32 {
    let (mut left, mut sum) = (register, 0);
    while left != 0 {
        sum ^= matrix[left.trailing_zeros() as usize];
        left &= left - 1;
    }
    sum
}

/// A register after this many bytes of zeros.
fn after_zeros(mut register: u32, bytes: usize) -> u32 {
    for (n, matrix) in ZEROS.iter().enumerate() {
        if bytes >> n & 1 != 0 {
            register = apply(matrix, register);
        }
    }
    register
}

/// Puts ports into the packet whose headers were read from `head`. Of a packet in fragments the first one does not tell
/// how long all are, so that only ports that stay are right.
pub fn set_ports(head: &mut [u8], headers: &Headers, source: u16, destination: u16) {
    let at = usize::from(headers.transport);
    let len = at
        .checked_sub(usize::from(headers.network))
        .and_then(|before| (headers.len as usize).checked_sub(before))
        .filter(|&len| len >= HEADER_LEN);
    let Some(len) = len else { return };
    let Some(header) = head.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<HEADER_LEN>()) else {
        return;
    };
    let new = (u32::from(source) << 16 | u32::from(destination)).to_be_bytes();
    if header[..4] == new || headers.fragment == Fragment::Later {
        return;
    }
    let difference: [u8; 4] = std::array::from_fn(|n| header[n] ^ new[n]);
    header[..4].copy_from_slice(&new);
    let change = after_zeros(u32::from_le_bytes(difference), len);
    let field = &mut header[CHECKSUM..];
    let old = u32::from_le_bytes([field[0], field[1], field[2], field[3]]);
    field.copy_from_slice(&(old ^ change).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 9260, appendix A: bit by bit.
    fn crc(bytes: &[u8]) -> u32 {
        let mut register = u32::MAX;
        for &byte in bytes {
            register ^= u32::from(byte);
            for _ in 0..8 {
                register = if register & 1 != 0 { register >> 1 ^ POLYNOMIAL } else { register >> 1 };
            }
        }
        !register
    }

    #[test]
    fn the_polynomial_is_right() {
        assert_eq!(crc(b"123456789"), 0xe306_9283, "the check value of CRC-32C");
    }

    fn finish(packet: &mut [u8]) {
        packet[8..12].fill(0);
        let checksum = crc(packet).to_le_bytes();
        packet[8..12].copy_from_slice(&checksum);
    }

    proptest! {
        #[test]
        fn other_ports_have_the_right_checksum(
            mut packet in proptest::collection::vec(any::<u8>(), 12..1500), source: u16, destination: u16, flaw: u32,
        ) {
            finish(&mut packet);
            for (byte, flaw) in packet[8..12].iter_mut().zip(flaw.to_le_bytes()) {
                *byte ^= flaw;
            }
            let headers = Headers {
                v6: false, protocol: 132, ttl: 9, tcp_flags: 0, network: 14, transport: 34,
                len: 20 + packet.len() as u32, fragment: Fragment::None,
                source_port: 0, destination_port: 0, icmp_error: false,
            };
            let mut frame = [&[0; 34][..], &packet].concat();
            set_ports(&mut frame[..46], &headers, source, destination);
            let mut wanted = packet.clone();
            wanted[..2].copy_from_slice(&source.to_be_bytes());
            wanted[2..4].copy_from_slice(&destination.to_be_bytes());
            finish(&mut wanted);
            for (byte, flaw) in wanted[8..12].iter_mut().zip(flaw.to_le_bytes()) {
                *byte ^= flaw;
            }
            prop_assert_eq!(&frame[34..], wanted);
        }
    }
}

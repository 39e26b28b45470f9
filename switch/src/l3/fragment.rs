//! Virtual reassembly: later fragments are told which ports their packet's first fragment has, and nothing is put
//! together. What comes before the first fragment waits for it.
//!
//! Shared by all workers, since a packet's fragments may come by different queues. Memory is bounded and taken at the
//! start: so many packets and so many waiting fragments, of which one port has a share. Pieces that overlap are
//! refused (RFC 5722; RFC 3128): whoever decides by the first fragment's ports must not be shown others later.
//! Locks are per shard, held for one fragment, and never waited for long.
#![forbid(unsafe_code)]

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, TryLockError};

use vhost_backend::net_header::NetHeader;

use super::icmp;
use crate::conntrack;
use crate::drops::DropReason;
use crate::packet::embedded::Embedded;
use crate::packet::headers::Headers;
use crate::packet::ip::{IPV4_LEN, IPV6_LEN};

mod shard;

use shard::Shard;

/// Shards, each with its lock.
const SHARDS: usize = 16;
/// How often a shard's lock is tried before the fragment is dropped: a few microseconds.
const TRIES: usize = 500;
/// Most bytes of an IP packet.
const LONGEST: usize = 65535;

/// What a packet's fragments have in common. Only those that came by the same port belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    identification: u32,
    port: u16,
    /// 0 in IPv6, whose fragments are told apart without it.
    protocol: u8,
    v6: bool,
    source: u128,
    destination: u128,
}

/// Which bytes of its packet a fragment brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    key: Key,
    /// Offset of its first byte, a multiple of 8.
    from: usize,
    /// Offset behind its last byte.
    to: usize,
    /// It is not the last.
    more: bool,
}

impl Piece {
    /// Reads a fragment's place in its packet: `headers.fragment` is not `None`. `port` is where it came
    /// from.
    ///
    /// # Errors
    /// [`DropReason::FragmentInvalid`], [`DropReason::FragmentTooLong`].
    pub fn read(head: &[u8], headers: &Headers, port: u16) -> Result<Self, DropReason> {
        let network = usize::from(headers.network);
        let truncated = DropReason::IpTruncated;
        let (key, from, more, begins, header) = if headers.v6 {
            let at = fragment_header(head, headers).ok_or(truncated)?;
            let header: &[u8; 8] = head.get(at..).and_then(|rest| rest.first_chunk()).ok_or(truncated)?;
            let identification = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            let (source, destination) = headers.addresses_v6(head);
            let key = Key { identification, port, protocol: 0, v6: true, source, destination };
            let word = u16::from_be_bytes([header[2], header[3]]);
            (key, usize::from(word & 0xfff8), word & 1 != 0, at + 8, 0)
        } else {
            let ip: &[u8; IPV4_LEN] =
                head.get(network..).and_then(|rest| rest.first_chunk()).ok_or(truncated)?;
            let identification = u32::from(u16::from_be_bytes([ip[4], ip[5]]));
            let (source, destination) = headers.addresses_v4(head);
            let (source, destination) = (source.into(), destination.into());
            let protocol = headers.protocol;
            let key = Key { identification, port, protocol, v6: false, source, destination };
            let word = u16::from_be_bytes([ip[6], ip[7]]);
            let begins = usize::from(headers.transport);
            (key, usize::from(word & 0x1fff) * 8, word & 0x2000 != 0, begins, IPV4_LEN)
        };
        let len = (network + headers.len as usize).saturating_sub(begins);
        if len == 0 || more && len % 8 != 0 {
            return Err(DropReason::FragmentInvalid);
        }
        if from + len + header > LONGEST {
            return Err(DropReason::FragmentTooLong);
        }
        Ok(Self { key, from, to: from + len, more })
    }
}

/// Where the fragment header of an IPv6 packet is.
fn fragment_header(head: &[u8], headers: &Headers) -> Option<usize> {
    let network = usize::from(headers.network);
    let (mut next, mut at) = (*head.get(network + 6)?, network + IPV6_LEN);
    while matches!(next, 0 | 43 | 60) {
        let &[after, words, ..] = head.get(at..)? else { return None };
        next = after;
        at += 8 * (usize::from(words) + 1);
    }
    (next == 44).then_some(at)
}

/// What later fragments need to know of their first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct First {
    /// As in [`Headers`].
    pub source_port: u16,
    /// As in [`Headers`].
    pub destination_port: u16,
    /// IPv6: the transport's protocol, which may be behind more extension headers.
    pub protocol: u8,
    /// The type of an ICMP message.
    pub icmp: Option<u8>,
    /// The key of packets that go the way of an ICMP error, made of the packet that it quotes.
    pub quoted: Option<Quoted>,
}

/// A key of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quoted {
    /// In IPv4.
    V4(conntrack::Key4),
    /// In IPv6.
    V6(conntrack::Key6),
}

impl Quoted {
    /// What the error that `headers` were read from quotes, if it is one and can be read.
    fn of(head: &[u8], headers: &Headers) -> Option<Self> {
        let embedded = Embedded::parse(head, headers)?;
        if !embedded.checksum_good || embedded.headers.icmp_error {
            return None;
        }
        Some(match headers.v6 {
            true => Self::V6(conntrack::Key6::of(&embedded.headers, head).reversed()),
            false => Self::V4(conntrack::Key4::of(&embedded.headers, head).reversed()),
        })
    }
}

impl First {
    /// What the first fragment says.
    pub fn of(head: &[u8], headers: &Headers) -> Self {
        Self {
            source_port: headers.source_port,
            destination_port: headers.destination_port,
            protocol: headers.protocol,
            icmp: icmp::kind(head, headers),
            quoted: Quoted::of(head, headers),
        }
    }

    /// The headers of a later fragment with what it does not say itself.
    #[must_use]
    pub fn complete(&self, headers: &Headers) -> Headers {
        Headers {
            source_port: self.source_port,
            destination_port: self.destination_port,
            protocol: self.protocol,
            ..*headers
        }
    }
}

/// What becomes of a later fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on as part of the packet with this beginning.
    Pass(First),
    /// It is kept until the first fragment comes.
    Held,
}

/// All packets in fragments that are on their way through the switch.
pub struct Reassembly {
    hash: RandomState,
    shards: Box<[Mutex<Shard>]>,
}

impl Default for Reassembly {
    fn default() -> Self {
        Self::new()
    }
}

impl Reassembly {
    /// An empty table: 1,024 packets, 1,024 fragments that wait (pages are taken when they are used).
    pub fn new() -> Self {
        Self { hash: RandomState::new(), shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// A shard's lock, unless somebody keeps it for long.
    fn lock(&self, key: &Key) -> Option<MutexGuard<'_, Shard>> {
        let shard = &self.shards[self.hash.hash_one(key) as usize % SHARDS];
        for _ in 0..TRIES {
            match shard.try_lock() {
                Ok(guard) => return Some(guard),
                Err(TryLockError::Poisoned(error)) => return Some(error.into_inner()),
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
        None
    }

    /// A first fragment has come at `now` (seconds). Those that have waited for it are handed to `each`, in the order
    /// in which they came, to be put through [`Reassembly::later`] again after the first one. `lost` hears of
    /// fragments that had to go: port, reason, number.
    ///
    /// # Errors
    /// Why it is to be dropped: [`DropReason::FragmentOverlap`], [`DropReason::FragmentInvalid`],
    /// [`DropReason::FragmentNoRoom`].
    pub fn first(
        &self,
        piece: &Piece,
        first: First,
        now: u32,
        each: impl FnMut(&[u8], NetHeader),
        mut lost: impl FnMut(u16, DropReason, u64),
    ) -> Result<(), DropReason> {
        let mut shard = self.lock(&piece.key).ok_or(DropReason::FragmentNoRoom)?;
        shard.first(piece, first, now, each, &mut lost)
    }

    /// A later fragment has come. If it has to wait, `fill` writes the whole frame into the bytes that it is given,
    /// and says how long it is, or `None` if it is too long; `metadata` is kept with it.
    ///
    /// # Errors
    /// As for [`Reassembly::first`].
    pub fn later(
        &self,
        piece: &Piece,
        now: u32,
        metadata: NetHeader,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
        mut lost: impl FnMut(u16, DropReason, u64),
    ) -> Result<Fate, DropReason> {
        let mut shard = self.lock(&piece.key).ok_or(DropReason::FragmentNoRoom)?;
        shard.later(piece, now, metadata, fill, &mut lost)
    }

    /// Forgets what has waited for too long; to be called once a second by whoever has seen fragments.
    pub fn expire_all(&self, now: u32, mut lost: impl FnMut(u16, DropReason, u64)) {
        for shard in &self.shards {
            // Whoever holds the lock sees to what is old there himself.
            if let Ok(mut shard) = shard.try_lock() {
                shard.expire(now, &mut lost);
            }
        }
    }
}

#[cfg(test)]
mod tests;

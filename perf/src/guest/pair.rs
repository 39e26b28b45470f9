#![forbid(unsafe_code)]
//! One queue pair of the guest, driven frame by frame with every check that a careful driver makes.
//!
//! Meant for functional tests: whatever the device does wrong (a head that was never offered, a length beyond the
//! buffer, a frame cut short, a broken count) is an error that says so. The fast path is [`super::lane`].

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use vhost_backend::net_header::{LEGACY_NET_HEADER_LEN, NET_HEADER_LEN, NetHeader};

use super::memory::Memory;
use super::ring::{Descriptor, INDIRECT, NEXT, Ring, WRITE};
use super::{Frame, Options, features};

/// Descriptors in an indirect table.
pub(super) const TABLE: usize = 64;
/// Where the virtio-net header begins in a buffer, so that the frame begins on a cache line.
const ROOM: usize = 64 - NET_HEADER_LEN;

/// Equal buffers in the guest's memory. Strides are an odd number of cache lines, or their heads would all fall into
/// the same few sets of every cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffers {
    base: usize,
    stride: usize,
    /// Bytes in each, header included.
    pub(super) len: usize,
    pub(super) count: usize,
}

impl Buffers {
    fn new(base: usize, len: usize, count: usize) -> Self {
        let lines = (ROOM + len).div_ceil(64) | 1;
        Self { base, stride: lines * 64, len, count }
    }

    fn footprint(&self) -> usize {
        (self.stride * self.count).next_multiple_of(4096)
    }

    /// Offset of buffer `i` in memory: its header's first byte.
    #[inline]
    pub(super) fn at(&self, i: u32) -> usize {
        self.base + i as usize * self.stride + ROOM
    }
}

/// What a sent frame holds until the device is done with it.
#[derive(Default)]
struct Sent {
    descriptors: Vec<u16>,
    buffers: Vec<u32>,
}

/// Receive and transmit ring number `2n` and `2n + 1`, and their buffers.
pub(super) struct Pair {
    pub(super) memory: Arc<Memory>,
    pub(super) rx: Ring,
    pub(super) tx: Ring,
    pub(super) buffers: Buffers,
    /// Buffers that are neither offered for reception nor on their way.
    pub(super) free: Vec<u32>,
    /// Which buffer each receive descriptor has.
    pub(super) owner: Vec<u32>,
    /// Whether the device has the chain with this head.
    posted: Vec<bool>,
    /// Descriptors in a receive chain.
    chain: u16,
    tx_free: Vec<u16>,
    sent: Vec<Option<Sent>>,
    /// One indirect table for each transmit descriptor.
    pub(super) tables: usize,
    pub(super) header_len: usize,
    pub(super) mergeable: bool,
    pub(super) indirect: bool,
    piece: usize,
    split_header: bool,
}

impl Pair {
    fn buffer_count(options: &Options) -> usize {
        2 * usize::from(options.ring_size) + 256
    }

    /// Bytes of memory that a pair takes.
    pub(super) fn footprint(options: &Options) -> usize {
        2 * Ring::footprint(options.ring_size)
            + usize::from(options.ring_size) * TABLE * 16
            + Buffers::new(0, options.buffer_len, Self::buffer_count(options)).footprint()
            + 4096
    }

    /// A pair in fresh memory at the page-aligned offset `at`; nothing is offered yet.
    pub(super) fn new(memory: Arc<Memory>, at: usize, options: &Options, negotiated: u64) -> Result<Self> {
        let size = options.ring_size;
        let rx = Ring::new(memory.clone(), at, size, negotiated)?;
        let tx = Ring::new(memory.clone(), at + Ring::footprint(size), size, negotiated)?;
        let tables = at + 2 * Ring::footprint(size);
        let base = (tables + usize::from(size) * TABLE * 16).next_multiple_of(4096);
        let buffers = Buffers::new(base, options.buffer_len, Self::buffer_count(options));
        let mergeable = negotiated & features::MRG_RXBUF != 0;
        let header_len = if mergeable || negotiated & features::VERSION_1 != 0 {
            NET_HEADER_LEN
        } else {
            LEGACY_NET_HEADER_LEN
        };
        Ok(Self {
            memory,
            rx,
            tx,
            buffers,
            free: (u32::from(size)..buffers.count as u32).rev().collect(),
            owner: (0..u32::from(size)).collect(),
            posted: vec![false; usize::from(size)],
            chain: options.receive_chain,
            tx_free: (0..size).rev().collect(),
            sent: (0..size).map(|_| None).collect(),
            tables,
            header_len,
            mergeable,
            indirect: negotiated & features::INDIRECT_DESC != 0,
            piece: options.piece.min(options.buffer_len),
            split_header: options.split_header,
        })
    }

    /// Offers every receive buffer.
    pub(super) fn fill(&mut self) {
        let chain = self.chain.max(1);
        for id in 0..self.rx.size() / chain * chain {
            let more = id % chain + 1 < chain;
            self.rx.set_descriptor(
                id,
                Descriptor {
                    address: self.memory.guest_address(self.buffers.at(self.owner[usize::from(id)])),
                    len: self.buffers.len as u32,
                    flags: if more { WRITE | NEXT } else { WRITE },
                    next: if more { id + 1 } else { 0 },
                },
            );
            if id.is_multiple_of(chain) {
                self.rx.offer(id);
                self.posted[usize::from(id)] = true;
            }
        }
        self.rx.disable_interrupts();
        self.tx.disable_interrupts();
        self.rx.publish();
    }

    /// Takes back what the device has sent.
    fn reclaim(&mut self) -> Result<()> {
        let count = self.tx.used_count();
        ensure!(
            count <= self.tx.in_flight(),
            "the device completed {count} frames of {}",
            self.tx.in_flight()
        );
        for i in 0..count {
            let (id, _) = self.tx.used(i);
            let slot = self.sent.get_mut(id as usize).and_then(Option::take);
            let Some(sent) = slot else {
                bail!("the device completed transmit head {id}, which it does not have")
            };
            self.tx_free.extend(sent.descriptors);
            self.free.extend(sent.buffers);
        }
        self.tx.advance(count);
        Ok(())
    }

    /// Frames sent that the device has not completed.
    pub(super) fn unfinished(&mut self) -> Result<usize> {
        self.reclaim()?;
        Ok(usize::from(self.tx.size()) - self.tx_free.len())
    }

    /// Puts one frame on the transmit ring; [`Pair::flush`] shows it. False when there is no room now.
    pub(super) fn send(&mut self, header: &NetHeader, bytes: &[u8]) -> Result<bool> {
        self.reclaim()?;
        let mut whole = header.to_bytes()[..self.header_len].to_vec();
        whole.extend_from_slice(bytes);
        let split = if self.split_header { self.header_len } else { 0 };
        let pieces: Vec<&[u8]> = [&whole[..split]]
            .into_iter()
            .filter(|p| !p.is_empty())
            .chain(whole[split..].chunks(self.piece))
            .collect();
        let indirect = self.indirect && pieces.len() > 1 && pieces.len() <= TABLE;
        let descriptors = if indirect { 1 } else { pieces.len() };
        ensure!(
            descriptors <= usize::from(self.tx.size()),
            "a frame of {} pieces does not fit the ring",
            pieces.len()
        );
        ensure!(pieces.len() <= self.buffers.count, "a frame of {} pieces has no buffers", pieces.len());
        if self.tx_free.len() < descriptors || self.free.len() < pieces.len() {
            return Ok(false);
        }
        let mut sent = Sent {
            descriptors: self.tx_free.split_off(self.tx_free.len() - descriptors),
            buffers: self.free.split_off(self.free.len() - pieces.len()),
        };
        sent.descriptors.reverse();
        let head = sent.descriptors[0];
        let table = self.tables + usize::from(head) * TABLE * 16;
        for (i, piece) in pieces.iter().enumerate() {
            let at = self.buffers.at(sent.buffers[i]);
            self.memory.write(at, piece);
            let more = i + 1 < pieces.len();
            let next = match (more, indirect) {
                (false, _) => 0,
                (true, true) => i as u16 + 1,
                (true, false) => sent.descriptors[i + 1],
            };
            let descriptor = Descriptor {
                address: self.memory.guest_address(at),
                len: piece.len() as u32,
                flags: if more { NEXT } else { 0 },
                next,
            };
            if indirect {
                self.memory.write(table + 16 * i, &self.tx.table_entry(descriptor));
            } else {
                self.tx.set_descriptor(sent.descriptors[i], descriptor);
            }
        }
        if indirect {
            self.tx.set_descriptor(
                head,
                Descriptor {
                    address: self.memory.guest_address(table),
                    len: 16 * pieces.len() as u32,
                    flags: INDIRECT,
                    next: 0,
                },
            );
        }
        self.sent[usize::from(head)] = Some(sent);
        self.tx.offer(head);
        Ok(true)
    }

    /// Shows the device what was sent.
    pub(super) fn flush(&mut self) {
        self.tx.publish();
    }

    /// The next received frame, if there is one. Its buffers are offered again at the next [`Pair::refill`].
    pub(super) fn receive(&mut self) -> Result<Option<Frame>> {
        let waiting = self.rx.used_count();
        if waiting == 0 {
            return Ok(None);
        }
        ensure!(
            waiting <= self.rx.in_flight(),
            "the device used {waiting} buffers of {}",
            self.rx.in_flight()
        );
        let mut bytes = self.take_used(0)?;
        ensure!(bytes.len() > self.header_len, "a used buffer of {} bytes holds no frame", bytes.len());
        let mut head = [0; NET_HEADER_LEN];
        head[..self.header_len].copy_from_slice(&bytes[..self.header_len]);
        let header = NetHeader::from_bytes(&head);
        bytes.drain(..self.header_len);
        let mut taken = 1;
        if self.mergeable {
            ensure!(
                header.num_buffers >= 1 && header.num_buffers <= waiting,
                "num_buffers is {}, used buffers are {waiting}",
                header.num_buffers
            );
            while taken < header.num_buffers {
                bytes.extend(self.take_used(taken)?);
                taken += 1;
            }
        }
        self.rx.advance(taken);
        Ok(Some(Frame { header, bytes }))
    }

    /// Copies what is in the used chain `ahead` positions from here, and offers the chain again.
    fn take_used(&mut self, ahead: u16) -> Result<Vec<u8>> {
        let (id, len) = self.rx.used(ahead);
        let head = usize::try_from(id)?;
        ensure!(
            self.posted.get(head).copied().unwrap_or(false),
            "the device used receive head {id}, which it does not have"
        );
        let room = usize::from(self.chain) * self.buffers.len;
        let len = len as usize;
        ensure!(len <= room, "the device says it wrote {len} bytes into {room}");
        let mut bytes = vec![0; len];
        for (i, piece) in bytes.chunks_mut(self.buffers.len).enumerate() {
            self.memory.read(self.buffers.at(self.owner[head + i]), piece);
        }
        self.rx.offer(id as u16);
        Ok(bytes)
    }

    /// Shows the device the buffers that are free again.
    pub(super) fn refill(&mut self) {
        self.rx.publish();
    }
}

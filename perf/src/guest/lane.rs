#![forbid(unsafe_code)]
//! A queue pair at full speed: the generator's inner loops.
//!
//! Two ways of answering. **Forward**: a received buffer is sent back itself, with new MAC addresses and an empty
//! header, as testpmd's mac mode does; the frame's first lines travel from the switch's core to ours and back.
//! **Credit**: for each frame received a prepared one is sent, and only the received header is read; that takes the
//! guest nearly out of the measurement and is the only way for frames of several buffers.
//!
//! The device must complete transmit chains in the order in which they were offered, as every known backend does;
//! that is checked, not assumed. Nothing here allocates.

use anyhow::{Result, bail, ensure};
use vhost_backend::net_header::{NET_HEADER_LEN, NetHeader};

use super::pair::{Pair, TABLE};
use super::ring::{Descriptor, INDIRECT, NEXT};

/// Most frames in one turn of a lane.
pub const TURN: u16 = 64;
/// Bytes that forward mode writes: header and both MAC addresses.
const REWRITE: usize = NET_HEADER_LEN + 12;
/// Size of the pieces behind the head of a large prepared frame: a page, as Linux' socket buffers have them.
const PAGE: usize = 4096;
/// Large frames that are prepared; slots share them.
const LARGE_FRAMES: usize = 64;

/// How a lane answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With the received buffer, its MAC addresses rewritten.
    Forward,
    /// With a prepared frame for each received.
    Credit,
}

/// What a lane has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames received.
    pub received: u64,
    /// Bytes of them, without virtio-net headers.
    pub received_bytes: u64,
    /// Frames sent.
    pub sent: u64,
    /// Frames received and not answered, because the transmit ring was full.
    pub unanswered: u64,
    /// Turns that found frames.
    pub turns: u64,
    /// Kicks that the device wanted.
    pub kicks: u64,
}

/// One queue pair in the generator's hands.
pub struct Lane {
    pair: Pair,
    answer: Answer,
    rewrite: [u8; REWRITE],
    frame_len: usize,
    /// Which buffer each transmit slot has; unused for large frames.
    slots: Vec<u32>,
    /// What happened.
    pub counts: Counts,
}

impl Lane {
    /// Takes over a pair on which nothing is in flight and prepares `frame` (without virtio-net header) with `header`.
    /// Forward mode sends it as the first frames and from then on puts its MAC addresses on whatever it returns.
    pub(super) fn new(mut pair: Pair, answer: Answer, header: &NetHeader, frame: &[u8]) -> Result<Self> {
        ensure!(pair.unfinished()? == 0 && pair.tx.used_count() == 0, "frames are still on their way");
        ensure!(pair.header_len == NET_HEADER_LEN, "the generator needs VERSION_1 or mergeable buffers");
        ensure!(frame.len() >= 14, "a frame of {} bytes has no Ethernet header", frame.len());
        let mut rewrite = [0; REWRITE];
        rewrite[..NET_HEADER_LEN].copy_from_slice(&header.to_bytes());
        rewrite[NET_HEADER_LEN..].copy_from_slice(&frame[..12]);
        let large = frame.len() + NET_HEADER_LEN > pair.buffers.len;
        ensure!(!large || answer == Answer::Credit, "frames of several buffers need the credit way");
        let size = pair.tx.size();
        let slots = if large || answer == Answer::Forward {
            vec![0; usize::from(size)]
        } else {
            ensure!(pair.free.len() >= usize::from(size), "too few buffers");
            pair.free.split_off(pair.free.len() - usize::from(size))
        };
        pair.tx.offer_in_order();
        let mut lane =
            Self { pair, answer, rewrite, frame_len: frame.len(), slots, counts: Counts::default() };
        match answer {
            Answer::Credit if large => lane.prepare_large(header, frame)?,
            Answer::Credit => lane.prepare(header, frame),
            Answer::Forward => {
                for &buffer in &lane.pair.free {
                    lane.pair.memory.write(lane.pair.buffers.at(buffer), &header.to_bytes());
                    lane.pair.memory.write(lane.pair.buffers.at(buffer) + NET_HEADER_LEN, frame);
                }
            }
        }
        Ok(lane)
    }

    fn prepare(&mut self, header: &NetHeader, frame: &[u8]) {
        for slot in 0..self.pair.tx.size() {
            let at = self.pair.buffers.at(self.slots[usize::from(slot)]);
            self.pair.memory.write(at, &header.to_bytes());
            self.pair.memory.write(at + NET_HEADER_LEN, frame);
            self.pair.tx.set_descriptor(
                slot,
                Descriptor {
                    address: self.pair.memory.guest_address(at),
                    len: (NET_HEADER_LEN + frame.len()) as u32,
                    flags: 0,
                    next: 0,
                },
            );
        }
    }

    /// Large frames lie in runs of buffers of the pool: a head, then pages, described by an indirect table each.
    fn prepare_large(&mut self, header: &NetHeader, frame: &[u8]) -> Result<()> {
        ensure!(self.pair.indirect, "large frames need indirect descriptors");
        let piece = PAGE.min(self.pair.buffers.len);
        let mut whole = header.to_bytes().to_vec();
        whole.extend_from_slice(frame);
        let pieces: Vec<&[u8]> = whole.chunks(piece).collect();
        ensure!(pieces.len() <= TABLE, "a frame of {} pieces does not fit an indirect table", pieces.len());
        let frames = (self.pair.free.len() / pieces.len()).min(LARGE_FRAMES);
        ensure!(frames > 0, "too few buffers for a frame of {} pieces", pieces.len());
        for slot in 0..self.pair.tx.size() {
            let first = usize::from(slot) % frames * pieces.len();
            let table = self.pair.tables + usize::from(slot) * TABLE * 16;
            for (i, bytes) in pieces.iter().enumerate() {
                let at = self.pair.buffers.at(self.pair.free[first + i]);
                self.pair.memory.write(at, bytes);
                let more = i + 1 < pieces.len();
                let descriptor = Descriptor {
                    address: self.pair.memory.guest_address(at),
                    len: bytes.len() as u32,
                    flags: if more { NEXT } else { 0 },
                    next: if more { i as u16 + 1 } else { 0 },
                };
                let entry = self.pair.tx.table_entry(descriptor);
                self.pair.memory.write(table + 16 * i, &entry);
            }
            let address = self.pair.memory.guest_address(table);
            let len = 16 * pieces.len() as u32;
            self.pair.tx.set_descriptor(slot, Descriptor { address, len, flags: INDIRECT, next: 0 });
        }
        Ok(())
    }

    /// Takes back completed transmit slots. In forward mode their buffers become free.
    #[inline]
    fn reclaim(&mut self) -> Result<()> {
        let done = self.pair.tx.used_count();
        if done > self.pair.tx.in_flight() {
            bail!("the device completed {done} frames of {}", self.pair.tx.in_flight());
        }
        let first = self.pair.tx.next_in_order().wrapping_sub(self.pair.tx.in_flight());
        let mask = self.pair.tx.size() - 1;
        for i in 0..done {
            let slot = first.wrapping_add(i) & mask;
            let (id, _) = self.pair.tx.used(i);
            if id != u32::from(slot) {
                bail!(
                    "the device completed transmit head {id} before {slot}: the generator needs them in order"
                );
            }
            if self.answer == Answer::Forward {
                self.pair.free.push(self.slots[usize::from(slot)]);
            }
        }
        self.pair.tx.advance(done);
        Ok(())
    }

    /// Sends up to `count` prepared frames; says how many had room.
    pub fn transmit(&mut self, count: u16) -> Result<u16> {
        self.reclaim()?;
        let mut count = count.min(self.pair.tx.size() - self.pair.tx.in_flight());
        if self.answer == Answer::Forward {
            count = count.min(self.pair.free.len() as u16);
            let mut slot = self.pair.tx.next_in_order();
            for _ in 0..count {
                let buffer = self.pair.free.pop().expect("as many as were counted");
                let at = self.pair.buffers.at(buffer);
                self.pair.memory.write(at, &self.rewrite);
                self.slots[usize::from(slot)] = buffer;
                self.set_slot(slot, at, NET_HEADER_LEN + self.frame_len);
                slot = (slot + 1) & (self.pair.tx.size() - 1);
            }
        }
        self.pair.tx.offer_prefilled(count);
        self.counts.sent += u64::from(count);
        self.counts.kicks += u64::from(self.pair.tx.publish());
        Ok(count)
    }

    #[inline]
    fn set_slot(&mut self, slot: u16, at: usize, len: usize) {
        let address = self.pair.memory.guest_address(at);
        self.pair.tx.set_descriptor(slot, Descriptor { address, len: len as u32, flags: 0, next: 0 });
    }

    /// Receives up to [`TURN`] buffers and answers each frame; `send` false only counts them.
    #[inline]
    pub fn turn(&mut self, send: bool) -> Result<u16> {
        let waiting = self.pair.rx.used_count();
        if waiting == 0 {
            return Ok(0);
        }
        if waiting > self.pair.rx.size() {
            bail!("the device used {waiting} receive buffers of {}", self.pair.rx.size());
        }
        if send {
            self.reclaim()?;
        }
        let frames = match self.answer {
            Answer::Forward if send => self.forward(waiting.min(TURN))?,
            _ => self.credit(waiting, send)?,
        };
        self.counts.received += u64::from(frames);
        self.counts.turns += 1;
        self.counts.kicks += u64::from(self.pair.rx.publish());
        if send {
            self.counts.kicks += u64::from(self.pair.tx.publish());
        }
        Ok(frames)
    }

    #[inline]
    fn check(&self, id: u32, len: u32) -> Result<()> {
        if id >= u32::from(self.pair.rx.size()) || len as usize > self.pair.buffers.len {
            bail!("the device used receive head {id} with {len} bytes");
        }
        Ok(())
    }

    fn forward(&mut self, count: u16) -> Result<u16> {
        for i in 0..count {
            let (id, len) = self.pair.rx.used(i);
            self.check(id, len)?;
            let at = self.pair.buffers.at(self.pair.owner[id as usize]);
            self.pair.memory.prefetch(at);
            self.pair.memory.prefetch(at + NET_HEADER_LEN);
        }
        let mut room = (self.pair.tx.size() - self.pair.tx.in_flight()).min(self.pair.free.len() as u16);
        let mut slot = self.pair.tx.next_in_order();
        let mask = self.pair.tx.size() - 1;
        let mut sent = 0;
        for i in 0..count {
            let (id, len) = self.pair.rx.used(i);
            self.check(id, len)?;
            let buffer = self.pair.owner[id as usize];
            let at = self.pair.buffers.at(buffer);
            self.counts.received_bytes += u64::from(len) - NET_HEADER_LEN as u64;
            let mut head = [0; NET_HEADER_LEN];
            self.pair.memory.read(at, &mut head);
            if self.pair.mergeable && NetHeader::from_bytes(&head).num_buffers != 1 {
                bail!("a frame of {} buffers in forward mode", NetHeader::from_bytes(&head).num_buffers);
            }
            if room == 0 {
                self.counts.unanswered += 1;
            } else {
                room -= 1;
                self.pair.memory.write(at, &self.rewrite);
                self.slots[usize::from(slot)] = buffer;
                self.set_slot(slot, at, len as usize);
                slot = (slot + 1) & mask;
                sent += 1;
                let fresh = self.pair.free.pop().expect("as many as there was room");
                self.pair.owner[id as usize] = fresh;
                self.pair
                    .rx
                    .set_address(id as u16, self.pair.memory.guest_address(self.pair.buffers.at(fresh)));
            }
            self.pair.rx.offer(id as u16);
        }
        self.pair.rx.advance(count);
        self.pair.tx.offer_prefilled(sent);
        self.counts.sent += u64::from(sent);
        Ok(count)
    }

    fn credit(&mut self, waiting: u16, send: bool) -> Result<u16> {
        // All buffers of a frame appear at once, so whole frames are what is waiting.
        let look = waiting.min(TURN);
        for i in 0..look {
            let (id, len) = self.pair.rx.used(i);
            self.check(id, len)?;
            self.pair.memory.prefetch(self.pair.buffers.at(self.pair.owner[id as usize]));
        }
        let mut frames = 0;
        let mut taken = 0;
        while taken < look {
            let (id, len) = self.pair.rx.used(taken);
            self.check(id, len)?;
            let mut head = [0; NET_HEADER_LEN];
            self.pair.memory.read(self.pair.buffers.at(self.pair.owner[id as usize]), &mut head);
            let buffers = if self.pair.mergeable { NetHeader::from_bytes(&head).num_buffers } else { 1 };
            if buffers == 0 || buffers > waiting - taken {
                bail!("num_buffers is {buffers} with {} buffers used", waiting - taken);
            }
            self.counts.received_bytes += u64::from(len) - NET_HEADER_LEN as u64;
            self.pair.rx.offer(id as u16);
            for more in 1..buffers {
                let (id, len) = self.pair.rx.used(taken + more);
                self.check(id, len)?;
                self.counts.received_bytes += u64::from(len);
                self.pair.rx.offer(id as u16);
            }
            taken += buffers;
            frames += 1;
        }
        self.pair.rx.advance(taken);
        if send {
            let room = self.pair.tx.size() - self.pair.tx.in_flight();
            let answers = frames.min(room);
            self.pair.tx.offer_prefilled(answers);
            self.counts.sent += u64::from(answers);
            self.counts.unanswered += u64::from(frames - answers);
        }
        Ok(frames)
    }

    /// Frames sent that the device has not taken yet.
    pub fn in_flight(&self) -> u16 {
        self.pair.tx.in_flight()
    }
}

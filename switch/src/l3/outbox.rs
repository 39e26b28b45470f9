//! Frames that a worker made itself while it looked at a burst: answers, errors, fragments, questions to neighbours.
//!
//! They are written into memory of the worker and sent when the burst they answer is done with. Room is bounded: what
//! does not fit is refused, and whoever asked counts it.
#![forbid(unsafe_code)]

use vhost_backend::frame::{BURST, SNAPSHOT};
use vhost_backend::net_header::NetHeader;

use crate::packet::ethernet::Mac;

/// Bytes of all frames together.
const BYTES: usize = 256 * 1024;

/// A frame in the box.
#[derive(Clone, Copy, Debug)]
pub(super) struct Letter {
    /// Index of the interface that it leaves by.
    pub(super) interface: u16,
    /// Offload metadata.
    pub(super) header: NetHeader,
    at: usize,
    len: usize,
}

/// The box.
pub(super) struct Outbox {
    bytes: Box<[u8]>,
    used: usize,
    letters: Vec<Letter>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { bytes: vec![0; BYTES].into_boxed_slice(), used: 0, letters: Vec::with_capacity(BURST) }
    }
}

impl Outbox {
    /// Lets `write` make a frame of at most `room` bytes that leaves by `interface`; it says how long the frame became.
    /// False, and nothing kept, if there is no room or `write` made nothing.
    pub(super) fn put(
        &mut self,
        interface: u16,
        header: NetHeader,
        room: usize,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> bool {
        if self.letters.len() == BURST {
            return false;
        }
        let Some(space) = self.bytes.get_mut(self.used..self.used + room) else { return false };
        let Some(len) = write(space).filter(|&len| len > 0 && len <= room) else { return false };
        // Vec::with_capacity(BURST): this never allocates.
        self.letters.push(Letter { interface, header, at: self.used, len });
        self.used += len;
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.letters.is_empty()
    }

    /// The frames in the order in which they were put, each in its two parts: what a snapshot holds, and the rest.
    pub(super) fn letters(&self) -> impl Iterator<Item = (&Letter, &[u8], &[u8])> {
        self.letters.iter().map(|letter| {
            let frame = &self.bytes[letter.at..letter.at + letter.len];
            let (head, rest) = frame.split_at(letter.len.min(SNAPSHOT));
            (letter, head, rest)
        })
    }

    /// The address that a frame goes to.
    pub(super) fn destination(head: &[u8]) -> Mac {
        head.first_chunk().map_or(Mac::ZERO, |mac| Mac(*mac))
    }

    pub(super) fn clear(&mut self) {
        self.letters.clear();
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(outbox: &mut Outbox, len: usize, byte: u8) -> bool {
        outbox.put(3, NetHeader::default(), len, |space| {
            space.fill(byte);
            Some(len)
        })
    }

    #[test]
    fn frames_come_back_in_order_and_whole() {
        let mut outbox = Outbox::default();
        assert!(put(&mut outbox, 60, 1) && put(&mut outbox, 300, 2));
        assert!(!outbox.put(0, NetHeader::default(), 100, |_| None), "nothing made");
        let frames: Vec<_> = outbox.letters().map(|(_, head, rest)| [head, rest].concat()).collect();
        assert_eq!(frames, [vec![1; 60], vec![2; 300]]);
        outbox.clear();
        assert!(outbox.is_empty() && outbox.letters().next().is_none());
    }

    #[test]
    fn room_is_bounded_in_frames_and_bytes() {
        let mut outbox = Outbox::default();
        assert_eq!((0..BURST + 5).filter(|_| put(&mut outbox, 60, 0)).count(), BURST);
        outbox.clear();
        assert_eq!((0..BURST).filter(|_| put(&mut outbox, 65_000, 0)).count(), BYTES / 65_000);
    }
}

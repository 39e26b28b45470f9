//! Frames that a worker made itself while it looked at a burst: answers, errors, fragments, questions to neighbours.
//!
//! They are written into memory of the worker and sent when the burst they answer is done with. Room is bounded: what
//! does not fit is refused, and whoever asked counts it. A box of the same kind holds frames that came in and are to be
//! looked at again.
#![forbid(unsafe_code)]

use vhost_backend::frame::SNAPSHOT;
use vhost_backend::net_header::NetHeader;

use crate::packet::ethernet::Mac;
use crate::rules::NONE;

/// Bytes of all frames together: those of a burst of jumbo frames.
const BYTES: usize = 1024 * 1024;
/// Frames: the pieces of a burst of jumbo frames for a link of 1,500 bytes.
const LETTERS: usize = 512;

/// A frame in the box.
#[derive(Clone, Copy, Debug)]
pub(super) struct Letter {
    /// Index of the interface that it leaves by, or came to.
    pub(super) interface: u16,
    /// Number of the port that it came from, or by which it is to leave; [`NONE`] where the bridge is to find out.
    pub(super) port: u16,
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
        // Zeroed pages: memory is taken when it is used.
        Self { bytes: vec![0; BYTES].into_boxed_slice(), used: 0, letters: Vec::with_capacity(LETTERS) }
    }
}

impl Outbox {
    /// A box without any room, for the moment in which the real one is read.
    pub(super) fn none() -> Self {
        Self { bytes: Box::default(), used: 0, letters: Vec::new() }
    }

    /// Lets `write` make a frame of at most `room` bytes that leaves by `interface`; it says how long the frame became.
    /// False, and nothing kept, if there is no room or `write` made nothing.
    pub(super) fn put(
        &mut self,
        interface: u16,
        header: NetHeader,
        room: usize,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> bool {
        self.put_from(interface, NONE, header, room, write)
    }

    /// As [`Outbox::put`], for a frame that came to `interface` by `port`, or is to leave by it.
    pub(super) fn put_from(
        &mut self,
        interface: u16,
        port: u16,
        header: NetHeader,
        room: usize,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> bool {
        if self.letters.len() == LETTERS {
            return false;
        }
        let Some(space) = self.bytes.get_mut(self.used..self.used + room) else { return false };
        let Some(len) = write(space).filter(|&len| len > 0 && len <= room) else { return false };
        // Vec::with_capacity(LETTERS): this never allocates.
        self.letters.push(Letter { interface, port, header, at: self.used, len });
        self.used += len;
        true
    }

    /// Puts a copy of a frame.
    pub(super) fn put_whole(&mut self, interface: u16, header: NetHeader, frame: &[u8]) -> bool {
        self.put(interface, header, frame.len(), |space| {
            space.copy_from_slice(frame);
            Some(frame.len())
        })
    }

    /// Puts a copy of a frame that is for a station behind a port, if that is known.
    pub(super) fn put_behind(&mut self, interface: u16, port: Option<u16>, frame: &[u8]) -> bool {
        self.put_from(interface, port.unwrap_or(NONE), NetHeader::default(), frame.len(), |space| {
            space.copy_from_slice(frame);
            Some(frame.len())
        })
    }

    /// How many frames there are.
    pub(super) fn len(&self) -> usize {
        self.letters.len()
    }

    /// Takes back all frames but the first `len`.
    pub(super) fn truncate(&mut self, len: usize) {
        if let Some(first) = self.letters.get(len) {
            self.used = first.at;
            self.letters.truncate(len);
        }
    }

    /// Whether so little room is left that the frames had better be sent now.
    #[inline]
    pub(super) fn is_crowded(&self) -> bool {
        self.letters.len() > LETTERS / 4 || self.used > BYTES / 4
    }

    pub(super) fn is_empty(&self) -> bool {
        self.letters.is_empty()
    }

    /// The frames from number `from` on, in the order in which they were put, each in its two parts: what a snapshot
    /// holds, and the rest.
    pub(super) fn letters(&self, from: usize) -> impl Iterator<Item = (&Letter, &[u8], &[u8])> {
        self.letters.iter().skip(from).map(|letter| {
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
        let frames = |from| -> Vec<Vec<u8>> {
            outbox.letters(from).map(|(_, head, rest)| [head, rest].concat()).collect()
        };
        assert_eq!(frames(0), [vec![1; 60], vec![2; 300]]);
        assert_eq!(frames(1), [vec![2; 300]]);
        outbox.truncate(5);
        assert_eq!((outbox.len(), outbox.used), (2, 360));
        outbox.truncate(1);
        assert_eq!((outbox.len(), outbox.used), (1, 60));
        outbox.clear();
        assert!(outbox.is_empty() && outbox.letters(0).next().is_none());
    }

    #[test]
    fn room_is_bounded_in_frames_and_bytes() {
        let mut outbox = Outbox::default();
        assert_eq!((0..LETTERS + 5).filter(|_| put(&mut outbox, 60, 0)).count(), LETTERS);
        assert!(outbox.is_crowded());
        outbox.clear();
        assert!(!outbox.is_crowded());
        assert_eq!((0..LETTERS).filter(|_| put(&mut outbox, 65_000, 0)).count(), BYTES / 65_000);
        assert!(!put(&mut Outbox::none(), 1, 0));
    }
}

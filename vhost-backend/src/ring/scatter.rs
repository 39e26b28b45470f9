//! To the guest: one frame into the pieces of one or several chains.

use std::ptr;

use super::More;
use super::copy::copy_upto_128;
use crate::dirty::Track;
use crate::frame::{Burst, Segment};
use crate::net_header::{LEGACY_NET_HEADER_LEN, NET_HEADER_LEN};

/// A frame on its way into a guest's buffers.
pub(super) struct Scatter<'a> {
    source: Source<'a>,
    left: usize,
    header: [u8; NET_HEADER_LEN],
    header_len: usize,
    header_have: usize,
    /// Where the bytes of `num_buffers` were placed, and their guest addresses.
    count_at: [(*mut u8, u64); 2],
    written: usize,
}

impl<'a> Scatter<'a> {
    /// Frame `i` behind a header of `header_len` bytes.
    pub(super) fn new(burst: &'a Burst, i: usize, header_len: u8) -> Self {
        let frame = &burst.frames[i];
        let mut header = frame.header;
        header.num_buffers = 1;
        Self {
            source: Source::new(burst, i),
            left: frame.len as usize,
            header: header.to_bytes(),
            header_len: usize::from(header_len),
            header_have: 0,
            count_at: [(ptr::null_mut(), 0); 2],
            written: 0,
        }
    }

    /// Fills the next piece, which has guest address `gpa`. The driver may cut its buffers anywhere, also within the header.
    ///
    /// # Safety
    /// `len` bytes at `to` are mapped.
    #[inline(always)]
    pub(super) unsafe fn piece(&mut self, to: *mut u8, gpa: u64, len: u32, track: &mut impl Track) -> More {
        let before = self.written;
        let (mut to, mut room) = (to, len as usize);
        if self.header_have < self.header_len {
            let (have, n) = (self.header_have, room.min(self.header_len - self.header_have));
            // SAFETY: `room` mapped bytes at `to` per contract; `n` bytes of the header are left.
            unsafe { copy_upto_128(self.header.as_ptr().add(have), to, n) };
            for (at, byte) in self.count_at.iter_mut().zip(LEGACY_NET_HEADER_LEN..NET_HEADER_LEN) {
                if (have..have + n).contains(&byte) {
                    *at = (to.wrapping_add(byte - have), gpa + (byte - have) as u64);
                }
            }
            self.header_have += n;
            self.written += n;
            (to, room) = (to.wrapping_add(n), room - n);
        }
        let n = room.min(self.left);
        // SAFETY: `room` mapped bytes at `to`; the source has `left` bytes left.
        unsafe { self.source.copy_to(to, n) };
        self.left -= n;
        self.written += n;
        track.wrote(gpa, (self.written - before) as u32);
        if self.is_whole() && self.has_header() { More::No } else { More::Yes }
    }

    /// Whether the whole header has been placed.
    pub(super) fn has_header(&self) -> bool {
        self.header_have == self.header_len
    }

    /// Whether all bytes of the frame have been placed.
    pub(super) fn is_whole(&self) -> bool {
        self.left == 0
    }

    /// Bytes written since the last question.
    pub(super) fn take_written(&mut self) -> u32 {
        std::mem::take(&mut self.written) as u32
    }

    /// Writes into the header how many buffers the frame took.
    ///
    /// # Safety
    /// Buffers are mergeable, so that they have the long header, all of which has been placed ([`Scatter::has_header`]);
    /// the pieces are still mapped.
    pub(super) unsafe fn set_buffers(&self, buffers: u16, track: &mut impl Track) {
        for ((at, gpa), byte) in self.count_at.into_iter().zip(buffers.to_le_bytes()) {
            // SAFETY: both places were set when the header was placed.
            unsafe { at.write_volatile(byte) };
            track.wrote(gpa, 1);
        }
    }
}

/// The bytes of a frame, read in order.
struct Source<'a> {
    burst: &'a Burst,
    ptr: *const u8,
    room: usize,
    more_at: usize,
    more: usize,
    tail: Segment,
}

impl<'a> Source<'a> {
    fn new(burst: &'a Burst, i: usize) -> Self {
        let frame = &burst.frames[i];
        Self {
            burst,
            ptr: burst.snapshots[i].0.as_ptr(),
            room: usize::from(frame.head_len),
            more_at: usize::from(frame.more_at),
            more: usize::from(frame.more),
            tail: frame.tail,
        }
    }

    /// Copies the next `len` bytes to `to`.
    ///
    /// # Safety
    /// `len` bytes at `to` are writable; a frame that runs out of bytes copies fewer.
    unsafe fn copy_to(&mut self, mut to: *mut u8, mut len: usize) {
        while len > 0 {
            if self.room == 0 {
                let next = if !self.tail.is_empty() {
                    std::mem::replace(&mut self.tail, Segment::EMPTY)
                } else if self.more > 0 {
                    let next = self.burst.segments[self.more_at];
                    self.more_at += 1;
                    self.more -= 1;
                    next
                } else {
                    return;
                };
                self.ptr = next.ptr();
                self.room = next.len();
                continue;
            }
            let n = len.min(self.room);
            // SAFETY: `n` bytes are left at `ptr` (snapshot or a segment of the burst) and writable at `to`. A guest may
            // make its buffers overlap, so this is not `copy_nonoverlapping`.
            unsafe { ptr::copy(self.ptr, to, n) };
            self.ptr = self.ptr.wrapping_add(n);
            self.room -= n;
            to = to.wrapping_add(n);
            len -= n;
        }
    }
}

//! A burst of frames on their way from one port to others.
//!
//! A frame is a private copy of its first [`SNAPSHOT`] bytes plus a list of [`Segment`]s that still lie where the
//! sender put them (guest memory, or a worker's own receive buffer). Decisions are made on the snapshot, the snapshot
//! is what is sent, and the rest is copied once, from the sender's memory into the receiver's. A guest that rewrites
//! its buffer after the check gains nothing.
//!
//! Segments are raw and stay valid only while their source is held: the function that fills a burst lends it to a
//! closure ([`Burst::lend`]), which clears it before the memory is let go of, so safe code never sees a stale one.

use crate::net_header::NetHeader;

/// Most frames in one burst; egress sets are bit masks of one word.
pub const BURST: usize = 64;
/// Bytes at the head of each frame that are copied out before anybody looks at them.
pub const SNAPSHOT: usize = 128;
/// Segments that all frames of one burst may have together, beyond the first of each frame.
pub const SEGMENTS: usize = 2048;
/// Longest frame that any port may bring: a 64 KiB GSO frame with its Ethernet header and two VLAN tags.
pub const MAX_FRAME: usize = 65535 + 14 + 8;

/// Bytes of a VLAN tag, which stands behind the two addresses.
const TAG: usize = 4;
/// Bytes before it.
const BEFORE_TAG: usize = 12;

/// A piece of a frame in the sender's memory.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    ptr: *const u8,
    len: u32,
}

impl Segment {
    /// A piece of no bytes.
    pub const EMPTY: Self = Self { ptr: std::ptr::null(), len: 0 };

    /// Describes `len` bytes at `ptr`.
    ///
    /// # Safety
    /// The bytes must stay mapped and readable for as long as the burst that holds this segment is not cleared.
    /// They may change under the reader (guest memory does).
    #[inline]
    pub unsafe fn new(ptr: *const u8, len: u32) -> Self {
        Self { ptr, len }
    }

    /// Start of the bytes; only for copying out.
    #[inline]
    pub fn ptr(&self) -> *const u8 {
        self.ptr
    }

    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is nothing in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The first bytes of a frame, private to the worker.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Snapshot(pub [u8; SNAPSHOT]);

/// One frame: lengths, offload metadata, and where the bytes beyond the snapshot are.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Bytes of the whole frame, from the Ethernet header on: always the snapshot's and the segments' together.
    pub(crate) len: u32,
    /// Bytes that are in the snapshot.
    pub(crate) head_len: u16,
    /// Further segments in the burst's list, beyond `tail`.
    pub(crate) more: u16,
    /// Index of the first of them.
    pub(crate) more_at: u16,
    /// Offload metadata of the sender.
    pub(crate) header: NetHeader,
    /// The first piece beyond the snapshot.
    pub(crate) tail: Segment,
}

impl Frame {
    const EMPTY: Self = Self {
        len: 0,
        head_len: 0,
        more: 0,
        more_at: 0,
        header: NetHeader {
            flags: 0,
            gso_type: 0,
            hdr_len: 0,
            gso_size: 0,
            csum_start: 0,
            csum_offset: 0,
            num_buffers: 0,
        },
        tail: Segment::EMPTY,
    };
}

/// Up to [`BURST`] frames. Made once by a worker and used again and again.
pub struct Burst {
    pub(crate) len: usize,
    pub(crate) snapshots: Box<[Snapshot; BURST]>,
    pub(crate) frames: Box<[Frame; BURST]>,
    pub(crate) segments: Box<[Segment]>,
    pub(crate) segments_used: usize,
    pub(crate) totals: Totals,
    /// Bytes that a tag pushed out of a full snapshot.
    spilled: Box<[[u8; TAG]; BURST]>,
}

/// What is asked about a whole burst, summed up as it is filled.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) bytes: u64,
    pub(crate) longest: u32,
    pub(crate) offloads: u64,
}

impl Totals {
    /// Takes frame `i` in.
    #[inline(always)]
    pub(crate) fn add(&mut self, i: usize, len: u32, header: &NetHeader) {
        self.bytes += u64::from(len);
        self.longest = self.longest.max(len);
        self.offloads |= u64::from(!header.is_plain()) << i;
    }
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

impl Burst {
    /// An empty burst with all its memory.
    pub fn new() -> Self {
        Self {
            len: 0,
            snapshots: Box::new([Snapshot([0; SNAPSHOT]); BURST]),
            frames: Box::new([Frame::EMPTY; BURST]),
            segments: vec![Segment::EMPTY; SEGMENTS].into_boxed_slice(),
            segments_used: 0,
            totals: Totals::default(),
            spilled: Box::new([[0; TAG]; BURST]),
        }
    }

    /// Bytes of all frames.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.totals.bytes
    }

    /// Bytes of the longest frame.
    #[inline]
    pub fn longest(&self) -> usize {
        self.totals.longest as usize
    }

    /// A mask of the frames that came with offload metadata.
    #[inline]
    pub fn offloads(&self) -> u64 {
        self.totals.offloads
    }

    /// Number of frames.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no frame.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether another frame fits, whatever its number of segments.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.len == BURST
    }

    /// A mask with a bit for each frame.
    #[inline]
    pub fn all(&self) -> u64 {
        if self.len == BURST { u64::MAX } else { (1 << self.len) - 1 }
    }

    /// Bytes of frame `i`, from the Ethernet header on.
    ///
    /// # Panics
    /// This and the following: if there is no frame `i`.
    #[inline]
    pub fn frame_len(&self, i: usize) -> usize {
        self.frames[..self.len][i].len as usize
    }

    /// Offload metadata of frame `i`, as its sender gave it or as [`Burst::set_header`] put it right.
    #[inline]
    pub fn header(&self, i: usize) -> &NetHeader {
        &self.frames[..self.len][i].header
    }

    /// Replaces the offload metadata of frame `i`.
    #[inline]
    pub fn set_header(&mut self, i: usize, header: NetHeader) {
        self.frames[..self.len][i].header = header;
        self.totals.offloads = self.totals.offloads & !(1 << i) | u64::from(!header.is_plain()) << i;
    }

    /// The first `head_len` bytes of frame `i`.
    #[inline]
    pub fn head(&self, i: usize) -> &[u8] {
        let len = usize::from(self.frames[i].head_len).min(SNAPSHOT);
        &self.snapshots[i].0[..len]
    }

    /// The first `head_len` bytes of frame `i`, to rewrite.
    #[inline]
    pub fn head_mut(&mut self, i: usize) -> &mut [u8] {
        let len = usize::from(self.frames[i].head_len).min(SNAPSHOT);
        &mut self.snapshots[i].0[..len]
    }

    /// The whole snapshot of frame `i`; bytes beyond the frame's end are left over from earlier frames.
    #[inline]
    pub fn snapshot(&self, i: usize) -> &[u8; SNAPSHOT] {
        &self.snapshots[i].0
    }

    /// The whole snapshot of frame `i`, the number of its bytes that belong to the frame, and the frame's length.
    #[inline(always)]
    pub fn start(&self, i: usize) -> (&[u8; SNAPSHOT], usize, usize) {
        let frame = &self.frames[i];
        (&self.snapshots[i].0, usize::from(frame.head_len), frame.len as usize)
    }

    /// The whole snapshot of frame `i`, to rewrite.
    #[inline(always)]
    pub fn snapshot_mut(&mut self, i: usize) -> &mut [u8; SNAPSHOT] {
        &mut self.snapshots[i].0
    }

    /// The pieces of frame `i` beyond its snapshot, in order.
    #[inline]
    pub fn tail(&self, i: usize) -> impl Iterator<Item = Segment> + '_ {
        let frame = &self.frames[i];
        let at = usize::from(frame.more_at);
        std::iter::once(frame.tail)
            .filter(|s| !s.is_empty())
            .chain(self.segments[at..at + usize::from(frame.more)].iter().copied())
    }

    /// Appends a frame whose bytes are in one piece, copying the snapshot. Returns false when the burst is full or
    /// the frame is empty or longer than [`MAX_FRAME`].
    ///
    /// # Safety
    /// As for [`Segment::new`], over all of `len` bytes.
    #[inline]
    pub unsafe fn push_raw(&mut self, header: NetHeader, ptr: *const u8, len: usize) -> bool {
        if self.is_full() || len == 0 || len > MAX_FRAME {
            return false;
        }
        let head_len = len.min(SNAPSHOT);
        // SAFETY: the caller vouches for `len` bytes at `ptr`; the snapshot is SNAPSHOT bytes of our own.
        unsafe { std::ptr::copy_nonoverlapping(ptr, self.snapshots[self.len].0.as_mut_ptr(), head_len) };
        // SAFETY: the rest of what the caller vouches for.
        let tail = unsafe { Segment::new(ptr.add(head_len), (len - head_len) as u32) };
        self.totals.add(self.len, len as u32, &header);
        self.frames[self.len] =
            Frame { len: len as u32, head_len: head_len as u16, more: 0, more_at: 0, header, tail };
        self.len += 1;
        true
    }

    /// Copies frame `i` whole into `to` and returns its length, or `None` if `to` is too short.
    /// What comes from guest memory may change meanwhile; the copy is what counts from then on.
    pub fn linearise(&self, i: usize, to: &mut [u8]) -> Option<usize> {
        if self.frame_len(i) > to.len() {
            return None;
        }
        let head = self.head(i);
        to[..head.len()].copy_from_slice(head);
        let mut at = head.len();
        for segment in self.tail(i) {
            let room = to.get_mut(at..at + segment.len())?;
            // SAFETY: a segment in a burst is readable (contract of `Segment::new`), and `room` is as long as it.
            unsafe { std::ptr::copy_nonoverlapping(segment.ptr(), room.as_mut_ptr(), room.len()) };
            at += segment.len();
        }
        Some(at)
    }

    /// Takes the outermost VLAN tag off frame `i`; offload metadata moves along. False, and nothing changed, if the
    /// frame is too short to have one or its metadata points into what would be taken.
    pub fn remove_tag(&mut self, i: usize) -> bool {
        let head_len = usize::from(self.frames[i].head_len).min(SNAPSHOT);
        let Some(header) = self.header(i).moved(-(TAG as i16)) else { return false };
        if head_len < BEFORE_TAG + TAG + 2 {
            return false;
        }
        self.snapshots[i].0.copy_within(BEFORE_TAG + TAG..head_len, BEFORE_TAG);
        self.frames[i].head_len -= TAG as u16;
        self.frames[i].len -= TAG as u32;
        self.totals.bytes -= TAG as u64;
        self.set_header(i, header);
        true
    }

    /// Puts a VLAN tag (its four bytes as they go on the wire) into frame `i`; offload metadata moves along. False, and
    /// nothing changed, if the frame cannot grow.
    pub fn insert_tag(&mut self, i: usize, tag: [u8; TAG]) -> bool {
        let frame = self.frames[i];
        let head_len = usize::from(frame.head_len).min(SNAPSHOT);
        let Some(header) = frame.header.moved(TAG as i16) else { return false };
        if head_len < BEFORE_TAG + 2 || frame.len as usize + TAG > MAX_FRAME {
            return false;
        }
        if head_len + TAG > SNAPSHOT && !self.spill(i, head_len, SNAPSHOT - TAG) {
            return false;
        }
        let kept = head_len.min(SNAPSHOT - TAG);
        let snapshot = &mut self.snapshots[i].0;
        snapshot.copy_within(BEFORE_TAG..kept, BEFORE_TAG + TAG);
        snapshot[BEFORE_TAG..BEFORE_TAG + TAG].copy_from_slice(&tag);
        self.frames[i].head_len = (kept + TAG) as u16;
        self.frames[i].len += TAG as u32;
        self.totals.bytes += TAG as u64;
        self.totals.longest = self.totals.longest.max(self.frames[i].len);
        self.set_header(i, header);
        true
    }

    /// Moves the bytes `from..to` of frame `i`'s snapshot into a segment of their own in front of its others.
    fn spill(&mut self, i: usize, to: usize, from: usize) -> bool {
        let frame = self.frames[i];
        let (at, more) = (usize::from(frame.more_at), usize::from(frame.more));
        let new_at = self.segments_used;
        if new_at + 1 + more > self.segments.len() {
            return false;
        }
        self.spilled[i][..to - from].copy_from_slice(&self.snapshots[i].0[from..to]);
        self.segments[new_at] = frame.tail;
        self.segments.copy_within(at..at + more, new_at + 1);
        self.segments_used += 1 + more;
        // SAFETY: the bytes are in a box of this burst, which nobody else writes while the frame is in it.
        self.frames[i].tail = unsafe { Segment::new(self.spilled[i].as_ptr(), (to - from) as u32) };
        self.frames[i].more = (1 + more) as u16;
        self.frames[i].more_at = new_at as u16;
        true
    }

    /// Fills the (empty) burst with frames that lie in slices of the caller's, lends it to `consume`, and clears it.
    /// This is the safe way in, for frames that the switch made itself.
    pub fn with_slices<'a, R>(
        &mut self,
        fill: impl FnOnce(&mut Filler<'_, 'a>),
        consume: impl FnOnce(&mut Burst) -> R,
    ) -> R {
        self.clear();
        self.lend(|burst| {
            fill(&mut Filler { burst, _slices: std::marker::PhantomData });
            consume(burst)
        })
    }

    /// Calls `consume` with this burst and clears it afterwards, also when `consume` panics: whoever filled the burst
    /// may then let go of the memory that its segments lie in.
    ///
    /// Safe code could move the filled burst away with [`std::mem::swap`] and read it later. That aborts the process,
    /// since the memory must not be let go of then.
    #[inline]
    pub fn lend<R>(&mut self, consume: impl FnOnce(&mut Burst) -> R) -> R {
        struct Lent<'a> {
            burst: &'a mut Burst,
            segments: *const Segment,
        }
        impl Drop for Lent<'_> {
            #[inline]
            fn drop(&mut self) {
                // Two bursts that exist at the same time have different boxes.
                if self.burst.segments.as_ptr() != self.segments {
                    std::process::abort();
                }
                self.burst.clear();
            }
        }
        let lent = Lent { segments: self.segments.as_ptr(), burst: self };
        consume(lent.burst)
    }

    /// Forgets all frames and segments.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
        self.segments_used = 0;
        self.totals = Totals::default();
    }
}

/// Appends frames made of slices that outlive the burst's use; see [`Burst::with_slices`].
pub struct Filler<'b, 'a> {
    burst: &'b mut Burst,
    _slices: std::marker::PhantomData<&'a [u8]>,
}

impl<'a> Filler<'_, 'a> {
    /// Appends a frame of `head` (copied at once, at most [`SNAPSHOT`] bytes) followed by `rest` (read when sent).
    /// False, and nothing appended, if the burst is full, the head too long, or the frame empty or too long.
    pub fn push(&mut self, header: NetHeader, head: &[u8], rest: &'a [u8]) -> bool {
        let burst = &mut *self.burst;
        let len = head.len() + rest.len();
        if burst.is_full() || head.len() > SNAPSHOT || len == 0 || len > MAX_FRAME {
            return false;
        }
        burst.snapshots[burst.len].0[..head.len()].copy_from_slice(head);
        // SAFETY: `rest` is borrowed for 'a, which outlives the closures of `with_slices`; the burst is cleared there.
        let tail = unsafe { Segment::new(rest.as_ptr(), rest.len() as u32) };
        burst.totals.add(burst.len, len as u32, &header);
        burst.frames[burst.len] =
            Frame { len: len as u32, head_len: head.len() as u16, more: 0, more_at: 0, header, tail };
        burst.len += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net_header::NEEDS_CSUM;

    #[test]
    fn a_tag_goes_in_and_out_and_nothing_else_changes() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for (len, head) in [(60, 60), (126, 126), (130, 128), (1000, 128), (1000, 100)] {
            let mut burst = Burst::new();
            let header =
                NetHeader { flags: NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..NetHeader::default() };
            burst.with_slices(
                |filler| assert!(filler.push(header, &bytes[..head], &bytes[head..len])),
                |burst| {
                    let mut to = vec![0; 2000];
                    assert!(burst.insert_tag(0, [0x81, 0, 0x20, 7]));
                    let expected = [&bytes[..12], &[0x81, 0, 0x20, 7], &bytes[12..len]].concat();
                    assert_eq!(burst.linearise(0, &mut to), Some(len + 4));
                    assert_eq!(&to[..len + 4], &expected[..]);
                    assert_eq!((burst.header(0).csum_start, burst.bytes()), (38, len as u64 + 4));
                    assert!(burst.remove_tag(0));
                    assert_eq!(burst.linearise(0, &mut to), Some(len));
                    assert_eq!(&to[..len], &bytes[..len]);
                    assert_eq!((*burst.header(0), burst.bytes()), (header, len as u64));
                },
            );
        }
    }

    #[test]
    fn slices_come_back_whole_and_the_burst_is_empty_afterwards() {
        let bytes: Vec<u8> = (0..=255).cycle().take(3000).collect();
        let mut burst = Burst::new();
        burst.with_slices(
            |filler| {
                assert!(filler.push(NetHeader::default(), &bytes[..100], &bytes[100..]));
                assert!(
                    !filler.push(NetHeader::default(), &bytes[..SNAPSHOT + 1], &[]),
                    "head longer than a snapshot"
                );
                assert!(!filler.push(NetHeader::default(), &[], &[]), "empty");
            },
            |burst| {
                assert_eq!((burst.len(), burst.frame_len(0), burst.all()), (1, 3000, 1));
                assert_eq!(burst.head(0), &bytes[..100]);
                let mut to = vec![0; 4000];
                assert_eq!(burst.linearise(0, &mut to), Some(3000));
                assert_eq!(&to[..3000], &bytes[..]);
                assert_eq!(burst.linearise(0, &mut to[..2999]), None);
            },
        );
        assert!(burst.is_empty());
    }
}

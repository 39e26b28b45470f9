//! The receiving half of a packet socket: a ring of slots shared with the kernel (`PACKET_RX_RING`, `TPACKET_V2`; the
//! kernel's Documentation/networking/packet_mmap.rst).
//!
//! The kernel copies each frame into a slot when it arrives; the worker lends the slots to the pipeline as they are
//! and hands them back. Against `recvmmsg`, over a veth pair, that took the worker's part from 770 to 20 ns for a
//! frame of 64 bytes and from 850 to 75 ns for 1514 bytes (with the copy onwards), both sides together from 1.1 to
//! 0.55 us; and an empty ring costs a load, not a system call. Frames longer than a slot, that is GSO and jumbo
//! frames, are fetched by `recvmsg` in their turn (`PACKET_COPY_THRESH`): slots for 64 KiB would take some MiB for each
//! queue. `TPACKET_V3` packs frames by size, but holds them back until a block is full or a timer of a millisecond ends.
//!
//! The kernel takes the outer VLAN tag out of received frames and reports it beside them: it is put back here.

use std::{
    ffi::c_int,
    io,
    os::fd::{AsRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{
        AtomicBool, AtomicU32,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use nix::libc::{self, tpacket2_hdr};
use vhost_backend::{
    frame::{BURST, Burst, MAX_FRAME},
    net_header::{NEEDS_CSUM, NET_HEADER_LEN, NetHeader},
};

use super::{
    device::{HEADROOM, Lent, ReceiveBuffer},
    packet_socket::{HEADER, PacketSocket, get, set},
};

/// Bytes of a slot: a frame of 1514 bytes with tags and its headers, and a line more than 2 KiB, so that neighbours
/// begin in different sets of the caches.
const SLOT: usize = 2048 + 64;
/// Bytes of a block; the kernel lets no slot cross its end.
const BLOCK: usize = 64 << 10;
const SLOTS_PER_BLOCK: u32 = (BLOCK / SLOT) as u32;
const BLOCKS: usize = 16;
/// Slots of a ring, which takes 1 MiB: half a millisecond at a million frames a second.
const SLOTS: u32 = SLOTS_PER_BLOCK * BLOCKS as u32;
/// Where in its slot a frame begins: at a cache line.
const FRAME_AT: usize = 128;
/// Bytes of a VLAN tag.
const TAG: usize = 4;
/// Empty polls between two looks for a pending error: a device that went down leaves one, which would wake sleepers
/// for ever.
const ERROR_CHECK: u32 = 64;

/// A mapped ring and how far it was read.
pub(super) struct Ring {
    start: NonNull<u8>,
    /// Held while a burst refers to slots.
    busy: AtomicBool,
    /// The slot that the kernel fills next; changes only while `busy`.
    next: AtomicU32,
    empty_polls: AtomicU32,
}

// SAFETY: the memory is reached only by who holds `busy`.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    /// Makes and maps the ring of a socket that is not bound yet.
    pub(super) fn map(fd: &OwnedFd) -> io::Result<Self> {
        set(fd, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as c_int))?;
        set(fd, libc::PACKET_COPY_THRESH, &1_i32)?;
        // The kernel puts the network header at TPACKET_ALIGN(TPACKET2_HDRLEN + 16) plus this plus the virtio-net
        // header's length, and the Ethernet header 14 bytes before (tpacket_rcv).
        let aligned = (size_of::<tpacket2_hdr>() + size_of::<libc::sockaddr_ll>() + 16).next_multiple_of(16);
        let reserve = FRAME_AT + 14 - aligned - HEADER;
        set(fd, libc::PACKET_RESERVE, &(reserve as u32))?;
        let request = libc::tpacket_req {
            tp_block_size: BLOCK as u32,
            tp_block_nr: BLOCKS as u32,
            tp_frame_size: SLOT as u32,
            tp_frame_nr: SLOTS,
        };
        set(fd, libc::PACKET_RX_RING, &request)?;
        let start = mapped(fd)?;
        Ok(Self {
            start,
            busy: AtomicBool::new(false),
            next: AtomicU32::new(0),
            empty_polls: AtomicU32::new(0),
        })
    }

    /// Maps the ring of a socket that another process has made and read up to slot `next`.
    pub(super) fn adopt(fd: &OwnedFd, next: u32) -> io::Result<Self> {
        if next >= SLOTS {
            return Err(io::Error::other(format!("slot {next} of {SLOTS}")));
        }
        let start = mapped(fd)?;
        Ok(Self {
            start,
            busy: AtomicBool::new(false),
            next: AtomicU32::new(next),
            empty_polls: AtomicU32::new(0),
        })
    }

    /// The slot that the kernel fills next, when nobody reads.
    pub(super) fn position(&self) -> u32 {
        self.next.load(Relaxed)
    }

    /// Goes on at another slot; false if there is none of that number. For who alone has the ring.
    pub(super) fn set_position(&self, next: u32) -> bool {
        self.next.store(next.min(SLOTS - 1), Relaxed);
        next < SLOTS
    }

    #[inline]
    fn slot(&self, index: u32) -> *mut u8 {
        let at = (index / SLOTS_PER_BLOCK) as usize * BLOCK + (index % SLOTS_PER_BLOCK) as usize * SLOT;
        debug_assert!(index < SLOTS);
        // SAFETY: within the mapping for each `index` below SLOTS.
        unsafe { self.start.as_ptr().add(at) }
    }

    #[inline]
    fn status(&self, index: u32) -> &AtomicU32 {
        // SAFETY: the status is the first word of the slot, aligned to 64, and both sides access it atomically.
        unsafe { AtomicU32::from_ptr(self.slot(index).cast()) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: our own mapping, whole; nobody has it lent, for that takes a borrow.
        unsafe { libc::munmap(self.start.as_ptr().cast(), BLOCK * BLOCKS) };
    }
}

/// Maps a socket's ring.
fn mapped(fd: &OwnedFd) -> io::Result<NonNull<u8>> {
    // SAFETY: a fresh mapping at an address of the kernel's choice touches nobody's memory.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            BLOCK * BLOCKS,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(NonNull::new(start.cast()).expect("a mapping is never at address 0"))
}

/// The slots of a ring that a burst refers to: they go back to the kernel when this is dropped.
struct Slots<'a> {
    ring: &'a Ring,
    first: u32,
    count: u32,
}

impl Slots<'_> {
    #[inline]
    fn at(&self, i: u32) -> u32 {
        let index = self.first + i;
        if index < SLOTS { index } else { index - SLOTS }
    }
}

impl Drop for Slots<'_> {
    #[inline]
    fn drop(&mut self) {
        for i in 0..self.count {
            self.ring.status(self.at(i)).store(libc::TP_STATUS_KERNEL, Release);
        }
        self.ring.next.store(self.at(self.count), Relaxed);
        self.ring.busy.store(false, Release);
    }
}

impl PacketSocket {
    /// Lends up to a burst of frames that wait to `f`, if there is any, and clears the burst. Returns their number;
    /// 0 also while another thread is at it.
    pub(super) fn receive(
        &self,
        buffer: &mut ReceiveBuffer,
        burst: &mut Burst,
        f: impl FnOnce(&mut Burst),
    ) -> io::Result<usize> {
        burst.clear();
        if self.ring.busy.swap(true, Acquire) {
            return Ok(0);
        }
        // Dropped in the reverse order: first the burst is cleared, then the slots go back.
        let mut slots = Slots { ring: &self.ring, first: self.ring.next.load(Relaxed), count: 0 };
        let lent = Lent(burst);
        let mut used = 0;
        for _ in 0..BURST {
            let index = slots.at(slots.count);
            let status = self.ring.status(index).load(Acquire);
            if status & libc::TP_STATUS_USER == 0 {
                break;
            }
            let slot = self.ring.slot(index);
            // SAFETY: the slot is ours, by its status, until we give it back; the kernel has written its header.
            let info = unsafe { slot.cast::<tpacket2_hdr>().read() };
            let header_at = usize::from(info.tp_mac).wrapping_sub(HEADER);
            let (at, len) = (usize::from(info.tp_mac), info.tp_snaplen as usize);
            if info.tp_len > info.tp_snaplen {
                if status & libc::TP_STATUS_COPY == 0 {
                    self.overrun.fetch_add(1, Relaxed);
                } else if used + HEADROOM + MAX_FRAME > ReceiveBuffer::LEN {
                    break;
                } else {
                    // SAFETY: there is room for the longest frame at `used`, and `buffer` is borrowed until the
                    // burst is cleared.
                    used += unsafe { self.fetch_long(buffer.start().add(used + HEADROOM), &info, lent.0) };
                }
            } else if header_at < size_of::<tpacket2_hdr>() || at + len > SLOT {
                debug_assert!(false, "the kernel lays slots out otherwise than documented: {at} {len}");
                self.overrun.fetch_add(1, Relaxed);
            } else {
                // SAFETY: header and frame lie within the slot, which stays ours until after the burst is cleared.
                unsafe { self.push(slot.add(at), len, &info, lent.0) };
            }
            slots.count += 1;
        }
        let frames = lent.0.len();
        if frames > 0 {
            f(lent.0);
        } else if slots.count == 0
            && self.ring.empty_polls.fetch_add(1, Relaxed) % ERROR_CHECK == ERROR_CHECK - 1
        {
            // Reading the error clears it; that the device is down or gone is told by its watcher.
            get::<c_int>(&self.fd, libc::SOL_SOCKET, libc::SO_ERROR)?;
        }
        Ok(frames)
    }

    /// Fetches the frame that did not fit its slot to `to`, and appends it to the burst. Returns the bytes of the
    /// buffer that it takes.
    ///
    /// # Safety
    /// MAX_FRAME bytes from `to` on and HEADROOM bytes before it are writable and ours until `burst` is cleared.
    #[cold]
    unsafe fn fetch_long(&self, to: *mut u8, info: &tpacket2_hdr, burst: &mut Burst) -> usize {
        // SAFETY: plain data for which zeroes are valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        // SAFETY: the header is shorter than HEADROOM.
        let start = unsafe { to.sub(HEADER) };
        let mut piece = libc::iovec { iov_base: start.cast(), iov_len: HEADER + MAX_FRAME };
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        let got = loop {
            // SAFETY: the message names one piece, which is ours to write.
            let got = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
            if got >= 0 {
                break got as usize;
            }
            match nix::errno::Errno::last_raw() {
                // ENETDOWN is told once when the device goes down, in front of what still waits.
                libc::EINTR | libc::ENETDOWN => {}
                _ => {
                    self.overrun.fetch_add(1, Relaxed);
                    return 0;
                }
            }
        };
        if message.msg_flags & libc::MSG_TRUNC != 0 {
            self.oversize.fetch_add(1, Relaxed);
            return 0;
        }
        let len = got.saturating_sub(HEADER);
        // SAFETY: the kernel wrote the header and `len` bytes there.
        unsafe { self.push(to, len, info, burst) };
        (HEADROOM + len).next_multiple_of(64)
    }

    /// Appends a frame with the virtio-net header that stands in front of it and the tag that was taken out of it.
    ///
    /// # Safety
    /// `len` bytes from `frame` on and HEADER bytes before it are ours until `burst` is cleared.
    #[inline]
    unsafe fn push(&self, frame: *mut u8, len: usize, info: &tpacket2_hdr, burst: &mut Burst) {
        let mut header = [0; NET_HEADER_LEN];
        // SAFETY: the caller vouches for the header before the frame, which is not needed any more when the tag moves
        // into its place: it is longer than a tag.
        let pushed = unsafe {
            std::ptr::copy_nonoverlapping(frame.sub(HEADER), header.as_mut_ptr(), HEADER);
            let header = NetHeader::from_bytes(&header);
            match tag_of(info) {
                Some(tag) if len >= 12 => burst.push_raw(shift(header), insert_tag(frame, tag), len + TAG),
                _ => burst.push_raw(header, frame, len),
            }
        };
        if !pushed && len > 0 {
            self.oversize.fetch_add(1, Relaxed);
        }
    }
}

/// The VLAN tag (TPID, TCI) that the kernel took out of a frame.
#[inline]
fn tag_of(info: &tpacket2_hdr) -> Option<[u8; TAG]> {
    if info.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let tpid = if info.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0 {
        info.tp_vlan_tpid
    } else {
        libc::ETH_P_8021Q as u16
    };
    let ([a, b], [c, d]) = (tpid.to_be_bytes(), info.tp_vlan_tci.to_be_bytes());
    Some([a, b, c, d])
}

/// Moves the MAC addresses at `frame` forward and puts the tag behind them; returns where the frame begins now.
///
/// # Safety
/// 12 bytes from `frame` on and TAG bytes before it are exclusively ours.
#[inline]
unsafe fn insert_tag(frame: *mut u8, tag: [u8; TAG]) -> *mut u8 {
    // SAFETY: within what the caller vouches for; the regions overlap, hence `copy`.
    unsafe {
        let tagged = frame.sub(TAG);
        std::ptr::copy(frame, tagged, 12);
        std::ptr::copy_nonoverlapping(tag.as_ptr(), tagged.add(12), TAG);
        tagged
    }
}

/// The header of a frame that has become longer by a tag near its start.
#[inline]
fn shift(mut header: NetHeader) -> NetHeader {
    if header.flags & NEEDS_CSUM != 0 {
        header.csum_start = header.csum_start.saturating_add(TAG as u16);
    }
    if header.hdr_len != 0 {
        header.hdr_len = header.hdr_len.saturating_add(TAG as u16);
    }
    header
}

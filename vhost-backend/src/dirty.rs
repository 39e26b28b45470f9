//! The dirty log of a live migration: a bitmap that the frontend shares, a bit for each page of guest memory.
//!
//! vhost-user specification, section "Migration": bit n of the log (byte n / 8, its bit n % 8) stands for the 4 KiB at
//! guest address n * 4096. We set bits, the frontend takes them away while it copies pages. Whatever was written must be
//! visible before its bit is, or the frontend could take the bit, copy the page as it was, and never come back.
//!
//! The log is the frontend's memory: it may be too small, shrink under us or hold anything. What would fall outside of
//! it is a fault of the ring that wrote, and nobody else's business.

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering, fence},
    },
};

use vmm_sys_util::eventfd::EventFd;

use crate::{eventfd, frame::BURST, mapping::Mapping, memory::GuestMap, ring::RingFault};

/// Bytes of guest memory for which one bit of the log stands, as a power of two.
const PAGE_SHIFT: u32 = 12;
/// Longest log: the pages of all guest addresses that processors have, of 52 bits.
const LONGEST: u64 = 1 << (52 - PAGE_SHIFT - 3);
/// Ranges of pages that are noted before bits are set. A ring may note those of a whole burst before it writes them.
const NOTES: usize = 2 * BURST;

/// A log that a frontend shares, mapped.
pub struct DirtyLog {
    bits: *const AtomicU8,
    bytes: u64,
    mapping: Mapping,
    /// Where it is, for who goes on in our place.
    file: File,
    offset: u64,
}

// SAFETY: `bits` leads into `mapping`, which belongs to no thread, and is used for atomics only.
unsafe impl Send for DirtyLog {}
// SAFETY: as above.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// Maps `bytes` bytes from byte `offset` of `file` on (vhost-user: SET_LOG_BASE). A descriptor of it is
    /// kept.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn new(bytes: u64, offset: u64, file: &File) -> Result<Self, String> {
        if bytes == 0 || bytes > LONGEST {
            return Err(format!("dirty log: {bytes} bytes are not from 1 to {LONGEST}"));
        }
        let (mapping, at) = Mapping::new(bytes, offset, file).map_err(|e| format!("dirty log: {e}"))?;
        let file = file.try_clone().map_err(|e| format!("dirty log: {e}"))?;
        Ok(Self { bits: at.cast_const().cast(), bytes, mapping, file, offset })
    }

    /// What [`DirtyLog::new`] was told.
    pub(crate) fn parts(&self) -> (u64, u64, &File) {
        (self.bytes, self.offset, &self.file)
    }

    /// Whether the frontend has truncated the log, so that bits may have been lost.
    fn gone(&self) -> bool {
        self.mapping.poisoned()
    }

    /// Sets the bits of pages `first` to `last`. What was written to them must be visible already (a full fence).
    fn set(&self, first: u64, last: u64) -> Result<(), RingFault> {
        if last / 8 >= self.bytes {
            return Err(RingFault::LogTooSmall);
        }
        for page in first..=last {
            // SAFETY: `page / 8` is below the log's length, all of which is mapped; bytes have no alignment.
            let byte = unsafe { &*self.bits.add((page / 8) as usize) };
            let bit = 1 << (page % 8);
            // Mostly the bit is there already, and a locked instruction costs more than all the rest.
            if byte.load(Ordering::Relaxed) & bit == 0 {
                byte.fetch_or(bit, Ordering::Release);
            }
        }
        Ok(())
    }
}

/// What a ring has to log.
#[derive(Clone)]
pub struct Logging {
    /// Where to.
    pub log: Arc<DirtyLog>,
    /// Whether what is written into buffers is logged (`VHOST_F_LOG_ALL` among the features).
    pub data: bool,
    /// The guest address at which changes of the used ring are logged, if they are (`VHOST_VRING_F_LOG`).
    pub used: Option<u64>,
    /// Written to after bits were set (vhost-user: SET_LOG_FD).
    pub call: Option<Arc<EventFd>>,
}

impl Logging {
    /// Logs a change of the used ring: `len` bytes, `offset` bytes from where it begins.
    pub(crate) fn used_ring(&self, offset: u64, len: u64) -> Result<(), RingFault> {
        let Some(at) = self.used.filter(|_| len > 0) else { return Ok(()) };
        let first = at.checked_add(offset).ok_or(RingFault::LogTooSmall)?;
        let last = first.checked_add(len - 1).ok_or(RingFault::LogTooSmall)?;
        fence(Ordering::SeqCst);
        self.log.set(first >> PAGE_SHIFT, last >> PAGE_SHIFT)
    }

    /// Logs a change of `len` bytes of a packed ring, which lie at the frontend's address `user_addr`: for these the
    /// frontend names no guest address.
    pub(crate) fn ring(&self, map: &GuestMap, mut user_addr: u64, mut len: u64) -> Result<(), RingFault> {
        if self.used.is_none() {
            return Ok(());
        }
        fence(Ordering::SeqCst);
        while len > 0 {
            let (gpa, room) = map.guest_address(user_addr).ok_or(RingFault::RingNotMapped)?;
            let run = len.min(room);
            self.log.set(gpa >> PAGE_SHIFT, (gpa + run - 1) >> PAGE_SHIFT)?;
            user_addr += run;
            len -= run;
        }
        Ok(())
    }

    /// To be called when a burst has been logged.
    pub(crate) fn end(&self) -> Result<(), RingFault> {
        if let Some(call) = &self.call {
            eventfd::signal(call);
        }
        if self.log.gone() { Err(RingFault::LogGone) } else { Ok(()) }
    }
}

/// Who is told what a ring writes into guest memory. [`Untracked`] is compiled away.
pub(crate) trait Track {
    /// `len` bytes have been written at guest address `gpa`, into a buffer.
    fn wrote(&mut self, gpa: u64, len: u32);

    /// Everything that [`Track::wrote`] told is logged when this returns. To be called before the used ring says so.
    fn flush(&mut self) -> Result<(), RingFault>;

    /// `len` bytes have been written `offset` bytes from where the used ring begins.
    fn used_ring(&mut self, offset: u64, len: u64) -> Result<(), RingFault>;

    /// `len` bytes of a packed ring have been written, at the frontend's address `user_addr`.
    fn ring(&mut self, map: &GuestMap, user_addr: u64, len: u64) -> Result<(), RingFault>;
}

/// For rings that log nothing.
pub(crate) struct Untracked;

impl Track for Untracked {
    #[inline(always)]
    fn wrote(&mut self, _gpa: u64, _len: u32) {}

    #[inline(always)]
    fn flush(&mut self) -> Result<(), RingFault> {
        Ok(())
    }

    #[inline(always)]
    fn used_ring(&mut self, _offset: u64, _len: u64) -> Result<(), RingFault> {
        Ok(())
    }

    #[inline(always)]
    fn ring(&mut self, _map: &GuestMap, _user_addr: u64, _len: u64) -> Result<(), RingFault> {
        Ok(())
    }
}

/// What one burst has written: ranges of pages, noted until one fence makes all of it visible.
pub(crate) struct Dirty<'a> {
    logging: &'a Logging,
    notes: [(u64, u64); NOTES],
    len: usize,
    fault: Option<RingFault>,
}

impl<'a> Dirty<'a> {
    pub(crate) fn new(logging: &'a Logging) -> Self {
        Self { logging, notes: [(0, 0); NOTES], len: 0, fault: None }
    }

    fn set_noted(&mut self) {
        // Not a release: bits that are set already are only looked at.
        fence(Ordering::SeqCst);
        for &(first, last) in &self.notes[..self.len] {
            if let Err(fault) = self.logging.log.set(first, last) {
                self.fault = Some(fault);
            }
        }
        self.len = 0;
    }
}

impl Track for Dirty<'_> {
    #[inline]
    fn wrote(&mut self, gpa: u64, len: u32) {
        if !self.logging.data || len == 0 {
            return;
        }
        // Buffers lie in guest memory, so this cannot wrap; where it did, the log would be too small.
        let (first, last) = (gpa >> PAGE_SHIFT, gpa.saturating_add(u64::from(len) - 1) >> PAGE_SHIFT);
        if let Some(before) = self.notes[..self.len].last_mut()
            && (before.0..=before.1 + 1).contains(&first)
        {
            before.1 = before.1.max(last);
            return;
        }
        if self.len == NOTES {
            self.set_noted();
        }
        self.notes[self.len] = (first, last);
        self.len += 1;
    }

    fn flush(&mut self) -> Result<(), RingFault> {
        if self.len > 0 {
            self.set_noted();
        }
        self.fault.take().map_or(Ok(()), Err)
    }

    fn used_ring(&mut self, offset: u64, len: u64) -> Result<(), RingFault> {
        self.logging.used_ring(offset, len)
    }

    fn ring(&mut self, map: &GuestMap, user_addr: u64, len: u64) -> Result<(), RingFault> {
        self.logging.ring(map, user_addr, len)
    }
}

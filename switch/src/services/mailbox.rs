//! The letter boxes between workers and the service thread.
//!
//! Workers put copies of frames for the switch's own services into the [`Mailbox`]; the service thread puts the frames
//! that it made into [`Inject`], and a worker sends them. Both are queues of buffers that were allocated once: putting
//! a frame in takes no lock, no allocation, and is refused when no buffer is free. A guest gets no more than
//! [`CREDITS`] frames a second through, so it can neither fill the box nor keep the thread busy for its neighbours.
#![forbid(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::thread::Thread;

use crossbeam_queue::ArrayQueue;
use vhost_backend::frame::Burst;
use vhost_backend::net_header::NEEDS_CSUM;

use crate::members::MAX_PORTS;

/// Longest frame that either box takes, in bytes: messages to and from services fit in an ordinary Ethernet frame.
pub const FRAME_MAX: usize = 2048;
/// Frames that each box holds.
pub const LETTERS: usize = 512;
/// Frames that one port may put into the mailbox in a second.
pub const CREDITS: u8 = 32;

/// A frame in its buffer.
pub struct Letter {
    interface: u16,
    port: Option<u16>,
    checksum_pending: bool,
    len: usize,
    bytes: Box<[u8; FRAME_MAX]>,
}

impl Letter {
    fn blank() -> Box<Self> {
        let bytes = Box::new([0; FRAME_MAX]);
        Box::new(Self { interface: 0, port: None, checksum_pending: false, len: 0, bytes })
    }

    /// Index of the interface that the frame came to, or is to leave by.
    pub fn interface(&self) -> u16 {
        self.interface
    }

    /// Number of the port that the frame came from, or that the station it answers was heard at.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether the sender left the transport checksum to be filled in (virtio's NEEDS_CSUM).
    pub fn checksum_pending(&self) -> bool {
        self.checksum_pending
    }

    /// The frame, from the Ethernet header on.
    pub fn frame(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Buffers, free and full.
struct Boxes {
    free: ArrayQueue<Box<Letter>>,
    full: ArrayQueue<Box<Letter>>,
    dropped: AtomicU64,
}

impl Boxes {
    fn new() -> Self {
        let boxes = Self {
            free: ArrayQueue::new(LETTERS),
            full: ArrayQueue::new(LETTERS),
            dropped: AtomicU64::new(0),
        };
        for _ in 0..LETTERS {
            // There is room for each of them in either queue.
            let _ = boxes.free.push(Letter::blank());
        }
        boxes
    }

    fn put(&self, fill: impl FnOnce(&mut Letter) -> bool) -> bool {
        if let Some(mut letter) = self.free.pop() {
            if fill(&mut letter) {
                let _ = self.full.push(letter);
                return true;
            }
            let _ = self.free.push(letter);
        }
        self.dropped.fetch_add(1, Ordering::Relaxed);
        false
    }

    fn take(&self, read: impl FnOnce(&Letter)) -> bool {
        let Some(letter) = self.full.pop() else { return false };
        read(&letter);
        let _ = self.free.push(letter);
        true
    }
}

/// Frames on their way from the workers to the service thread.
pub struct Mailbox {
    boxes: Boxes,
    /// For each port, the frames that it may still send in this second.
    credits: Box<[AtomicU8]>,
    spent: AtomicBool,
    reader: OnceLock<Thread>,
}

impl Default for Mailbox {
    fn default() -> Self {
        Self {
            boxes: Boxes::new(),
            credits: (0..MAX_PORTS).map(|_| AtomicU8::new(CREDITS)).collect(),
            spent: AtomicBool::new(false),
            reader: OnceLock::new(),
        }
    }
}

impl Mailbox {
    /// Copies frame `i`, which came from `port` and concerns the interface of index `interface`, into the box and wakes
    /// the service thread. False, and counted here, if the port has had its share of this second, no buffer is free, or
    /// the frame is longer than [`FRAME_MAX`].
    pub fn punt(&self, interface: u16, port: u16, frame: &Burst, i: usize) -> bool {
        if !self.spend(port) {
            self.boxes.dropped.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let put = self.boxes.put(|letter| {
            letter.interface = interface;
            letter.port = Some(port);
            letter.checksum_pending = frame.header(i).flags & NEEDS_CSUM != 0;
            match frame.linearise(i, &mut letter.bytes[..]) {
                Some(len) => letter.len = len,
                None => return false,
            }
            true
        });
        if put && let Some(reader) = self.reader.get() {
            reader.unpark();
        }
        put
    }

    fn spend(&self, port: u16) -> bool {
        let Some(credit) = self.credits.get(usize::from(port)) else { return false };
        let spent =
            credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if !self.spent.load(Ordering::Relaxed) {
            self.spent.store(true, Ordering::Relaxed);
        }
        spent
    }

    /// Frames that were refused.
    pub fn dropped(&self) -> u64 {
        self.boxes.dropped.load(Ordering::Relaxed)
    }

    /// Names the thread that is to be woken; only the first call counts.
    pub(super) fn read_by(&self, thread: Thread) {
        let _ = self.reader.set(thread);
    }

    /// Lends the oldest frame to `read`; false if there is none.
    pub(super) fn take(&self, read: impl FnOnce(&Letter)) -> bool {
        self.boxes.take(read)
    }

    /// Whether some port has used some of its share.
    pub(super) fn needs_refill(&self) -> bool {
        self.spent.load(Ordering::Relaxed)
    }

    /// Gives every port its share of another second.
    pub(super) fn refill(&self) {
        self.spent.store(false, Ordering::Relaxed);
        for credit in &self.credits {
            if credit.load(Ordering::Relaxed) != CREDITS {
                credit.store(CREDITS, Ordering::Relaxed);
            }
        }
    }
}

/// Frames on their way from the service thread to the worker that sends them.
pub struct Inject {
    boxes: Boxes,
    waiting: AtomicUsize,
}

impl Default for Inject {
    fn default() -> Self {
        Self { boxes: Boxes::new(), waiting: AtomicUsize::new(0) }
    }
}

impl Inject {
    /// Whether there is nothing to send: one relaxed load.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Takes out at most `most` frames, oldest first, and lends each to `send`; how many there were. A frame is without
    /// VLAN tag, whatever the interface's VLAN; its checksums are complete. [`Letter::port`] says where the station that
    /// it answers was heard, if it goes to one station.
    pub fn drain(&self, most: usize, mut send: impl FnMut(&Letter)) -> usize {
        let mut taken = 0;
        while taken < most && self.boxes.take(&mut send) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            taken += 1;
        }
        taken
    }

    /// Puts a frame in. False, and counted, if no buffer is free or the frame is empty or longer than [`FRAME_MAX`].
    pub(crate) fn push(&self, interface: u16, port: Option<u16>, frame: &[u8]) -> bool {
        // Counted before it is there, so that whoever takes it never counts below zero.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let put = self.boxes.put(|letter| {
            let Some(room) = letter.bytes.get_mut(..frame.len()) else { return false };
            room.copy_from_slice(frame);
            (letter.interface, letter.port, letter.checksum_pending) = (interface, port, false);
            letter.len = frame.len();
            !frame.is_empty()
        });
        if !put {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        put
    }

    /// Frames that were refused.
    pub fn dropped(&self) -> u64 {
        self.boxes.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use vhost_backend::net_header::NetHeader;

    use super::*;

    fn with_frame(bytes: &[u8], header: NetHeader, consume: impl FnOnce(&Burst)) {
        let (head, rest) = bytes.split_at(bytes.len().min(100));
        Burst::new().with_slices(|filler| assert!(filler.push(header, head, rest)), |burst| consume(burst));
    }

    #[test]
    fn frames_arrive_whole_and_in_order() {
        let mailbox = Mailbox::default();
        let partial = NetHeader { flags: NEEDS_CSUM, ..NetHeader::default() };
        with_frame(&[1; 60], NetHeader::default(), |burst| assert!(mailbox.punt(3, 7, burst, 0)));
        with_frame(&[2; FRAME_MAX], partial, |burst| assert!(mailbox.punt(4, 1023, burst, 0)));
        let mut got = Vec::new();
        while mailbox.take(|l| got.push((l.interface(), l.port(), l.checksum_pending(), l.frame().to_vec())))
        {
        }
        assert_eq!(got, [(3, Some(7), false, vec![1; 60]), (4, Some(1023), true, vec![2; FRAME_MAX])]);
        with_frame(&[2; FRAME_MAX + 1], partial, |burst| assert!(!mailbox.punt(4, 7, burst, 0)));
        with_frame(&[2; 60], partial, |burst| assert!(!mailbox.punt(4, MAX_PORTS as u16, burst, 0)));
        assert_eq!(mailbox.dropped(), 2);
        assert!(!mailbox.take(|_| panic!("there is none")));
    }

    #[test]
    fn a_port_has_its_share_of_each_second_and_no_more() {
        let mailbox = Mailbox::default();
        assert!(!mailbox.needs_refill());
        with_frame(&[0; 60], NetHeader::default(), |burst| {
            let punt = |port| (0..1000).filter(|_| mailbox.punt(0, port, burst, 0)).count();
            assert_eq!((punt(1), punt(2)), (usize::from(CREDITS), usize::from(CREDITS)));
            assert!(mailbox.needs_refill());
            mailbox.refill();
            assert!(!mailbox.needs_refill());
            assert_eq!(punt(1), usize::from(CREDITS));
            for port in 100..200 {
                punt(port);
            }
        });
        let mut held = 0;
        while mailbox.take(|_| held += 1) {}
        assert_eq!(held, LETTERS, "more frames than buffers are refused");
    }

    #[test]
    fn many_workers_lose_and_double_nothing() {
        let mailbox = Mailbox::default();
        let (mut got, mut put) = (vec![0; 8], 0);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8_u8)
                .map(|worker| {
                    let mailbox = &mailbox;
                    scope.spawn(move || {
                        let mut put = 0;
                        for n in 0..2000_u16 {
                            with_frame(&[worker; 64], NetHeader::default(), |burst| {
                                put += usize::from(mailbox.punt(n, n % 1024, burst, 0));
                            });
                        }
                        put
                    })
                })
                .collect();
            let mut read = || while mailbox.take(|l| got[usize::from(l.frame()[0])] += 1) {};
            while !workers.iter().all(|worker| worker.is_finished()) {
                read();
            }
            read();
            put = workers.into_iter().map(|worker| worker.join().expect("a count")).sum();
        });
        assert_eq!(got.iter().sum::<usize>(), put);
        assert_eq!(mailbox.boxes.free.len(), LETTERS, "every buffer came back");
    }

    #[test]
    fn injected_frames_are_bounded_and_counted() {
        let inject = Inject::default();
        assert!(inject.is_empty());
        assert!(!inject.push(0, None, &[]) && !inject.push(0, None, &[0; FRAME_MAX + 1]));
        assert!(inject.is_empty());
        let put = (0..LETTERS + 5).filter(|&n| inject.push(n as u16, Some(1), &[n as u8; 300])).count();
        assert_eq!((put, inject.dropped()), (LETTERS, 7));
        assert!(!inject.is_empty());
        let mut order = Vec::new();
        assert_eq!(inject.drain(3, |l| order.push((l.interface(), l.frame().to_vec()))), 3);
        assert_eq!(order, [(0, vec![0; 300]), (1, vec![1; 300]), (2, vec![2; 300])]);
        assert_eq!(inject.drain(usize::MAX, |_| ()), LETTERS - 3);
        assert!(inject.is_empty());
    }
}

//! Ports: where frames come in and go out.
//!
//! Three kinds behind one face: a vhost-user device, a TAP device whose descriptor shunt holds, and a network device
//! that somebody else made. [`Port::receive`] lends a burst to the pipeline, [`Port::send`] takes the frames that are
//! to leave, after the checks and conversions that only the receiver's side can know: MTU and offloads.

pub mod assign;
pub mod bucket;
pub mod device;
pub mod guest_tap;
mod host_stack;
pub mod link;
pub mod netdev;
mod netlink;
pub mod netns;
mod packet_ring;
mod packet_socket;
pub mod tap;
mod watch;

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use crossbeam_utils::CachePadded;
use vhost_backend::device::Device;
use vhost_backend::frame::Burst;
use vhost_backend::net_header::NetHeader;
use vhost_backend::ring::Served;
use vhost_backend::ring::cell::Armed;
use vmm_sys_util::eventfd::EventFd;

use crate::clock;
use crate::config::spec::Limits;
use crate::drops::DropReason;
use crate::packet::fits;
use crate::packet::offload::{Capabilities, Finisher};
use crate::pipeline::ETHERNET_HEADER;
use crate::stats::{Direction, PortCounters, QueueCounters, Totals, total};
use bucket::Bucket;
use device::{ReceiveBuffer, Sent};
use netdev::Netdev;
use tap::Tap;

/// What a port is attached to.
pub enum Attachment {
    /// A guest's vhost-user device.
    Vhost(Arc<Device>),
    /// A TAP device of ours.
    Tap(Tap),
    /// Somebody else's network device.
    Netdev(Netdev),
}

/// Bytes that one worker needs to receive from and to send to any port.
#[derive(Default)]
pub struct Scratch {
    /// Frames of devices are read into it.
    pub buffer: ReceiveBuffer,
    /// Offloads are finished in it.
    pub finisher: Finisher,
}

/// Segments into which one burst may be cut for one receiver: more than 64 full GSO frames of 1500-byte segments make,
/// and little enough that a guest with tiny segments does not keep a worker from the others (some 200 us).
const SEGMENTS_PER_BURST: usize = 4096;

/// A port of the switch.
pub struct Port {
    number: u16,
    attachment: Attachment,
    mtu: AtomicU16,
    /// Bytes of the longest frame that leaves without a closer look: as the MTU says, 0 where there is a limit.
    watermark: AtomicU32,
    /// Towards whoever is behind the port.
    ingress: Bucket,
    /// From there.
    egress: Bucket,
    counters: Box<[CachePadded<PortCounters>]>,
    queue_counters: Box<[CachePadded<QueueCounters>]>,
}

/// A queue that cannot be read any more; its device is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

impl Port {
    /// A port with a set of counters for each of `workers` workers.
    pub fn new(number: u16, attachment: Attachment, mtu: u16, workers: usize) -> Self {
        let counters = (0..workers).map(|_| CachePadded::default()).collect();
        let mut port = Self {
            number,
            attachment,
            mtu: AtomicU16::new(mtu),
            watermark: AtomicU32::default(),
            ingress: Bucket::default(),
            egress: Bucket::default(),
            counters,
            queue_counters: Box::default(),
        };
        port.queue_counters = (0..port.queues()).map(|_| CachePadded::default()).collect();
        port.set_watermark();
        port
    }

    /// Changes how much may pass.
    pub fn set_limits(&self, limits: &Limits) {
        self.ingress.set(limits.ingress);
        self.egress.set(limits.egress);
        self.set_watermark();
    }

    /// Has frames looked at more closely before they leave if there is reason to.
    fn set_watermark(&self) {
        let longest =
            if self.ingress.is_limited() { 0 } else { u32::from(self.mtu()) + ETHERNET_HEADER as u32 };
        self.watermark.store(longest, Ordering::Relaxed);
    }

    /// Ticks until the buckets of its limits are full again, of what comes in and of what goes out.
    pub(crate) fn owed(&self, now: u64) -> [u64; 2] {
        [self.egress.owed(now), self.ingress.owed(now)]
    }

    /// Has them be full again so many ticks from now on.
    pub(crate) fn owe(&self, ticks: [u64; 2], now: u64) {
        self.egress.owe(ticks[0], now);
        self.ingress.owe(ticks[1], now);
    }

    /// The limit of what comes from whoever is behind the port, if there is one.
    #[inline]
    pub fn egress_limit(&self) -> Option<&Bucket> {
        Some(&self.egress).filter(|bucket| bucket.is_limited())
    }

    /// The number by which tables know it.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// What it is attached to.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Bytes that a frame to this port may have behind its Ethernet header.
    #[inline]
    pub fn mtu(&self) -> u16 {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Changes the MTU, of the device, too, where it is ours. A guest learns its MTU when it connects.
    ///
    /// # Errors
    /// The kernel refuses, or the device is somebody else's.
    pub fn change_mtu(&self, mtu: u16) -> Result<(), String> {
        match &self.attachment {
            Attachment::Vhost(_) => {}
            Attachment::Tap(tap) => tap.set_mtu(mtu).map_err(|error| error.to_string())?,
            Attachment::Netdev(netdev) => {
                let name = netdev.name();
                return Err(format!(
                    "the mtu of netdev {name:?} is its owner's: change it with 'ip link set {name} mtu {mtu}'"
                ));
            }
        }
        self.mtu.store(mtu, Ordering::Relaxed);
        self.set_watermark();
        Ok(())
    }

    /// Takes over what somebody else changed at the device.
    pub fn follow_device(&self) {
        let mtu = match &self.attachment {
            Attachment::Vhost(_) => return,
            Attachment::Tap(tap) => tap.mtu(),
            Attachment::Netdev(netdev) => netdev.mtu(),
        };
        self.mtu.store(u16::try_from(mtu).unwrap_or(u16::MAX), Ordering::Relaxed);
        self.set_watermark();
    }

    /// Receive queues (queue pairs of a guest, queues of a device), running or not.
    pub fn queues(&self) -> usize {
        match &self.attachment {
            Attachment::Vhost(device) => device.queue_pairs(),
            Attachment::Tap(tap) => tap.queues(),
            Attachment::Netdev(netdev) => netdev.queues(),
        }
    }

    /// What came in, all workers together.
    pub fn received(&self) -> Totals {
        let mut totals = total(&self.counters, |set| &set.rx);
        if let Attachment::Netdev(netdev) = &self.attachment {
            // Counted by the kernel, and by the socket that met them.
            for missed in (0..netdev.queues()).map(|queue| netdev.missed(queue)) {
                totals.dropped(DropReason::DeviceOverrun, missed.overrun);
                totals.dropped(DropReason::Oversized, missed.oversize);
            }
        }
        totals
    }

    /// What workers counted, in and out, all together.
    pub fn counted(&self) -> [Totals; 2] {
        [total(&self.counters, |set| &set.rx), total(&self.counters, |set| &set.tx)]
    }

    /// Adds what was counted elsewhere, in and out; before any worker counts here.
    pub fn restore(&self, counted: [(u64, u64, &BTreeMap<String, u64>); 2]) {
        if let Some(set) = self.counters.first() {
            for (side, (packets, bytes, drops)) in [&set.rx, &set.tx].into_iter().zip(counted) {
                side.restore(packets, bytes, drops);
            }
        }
    }

    /// What went out, all workers together.
    pub fn transmitted(&self) -> Totals {
        total(&self.counters, |set| &set.tx)
    }

    /// The receiving side's counters of one worker.
    #[inline]
    pub fn rx_counters(&self, worker: usize) -> &Direction {
        &self.counters[worker].rx
    }

    /// What a receive queue cost.
    #[inline]
    pub fn queue_counters(&self, queue: usize) -> &QueueCounters {
        &self.queue_counters[queue]
    }

    /// Lends what `queue` has received to `forward`, up to a burst. Returns how many frames that were.
    ///
    /// # Errors
    /// The device is gone and the queue must not be polled any more.
    #[inline]
    pub fn receive(
        &self,
        queue: usize,
        worker: usize,
        buffer: &mut ReceiveBuffer,
        burst: &mut Burst,
        forward: impl FnOnce(&mut Burst),
    ) -> Result<usize, Gone> {
        match &self.attachment {
            Attachment::Vhost(device) => {
                let served = device.from_guest(queue).serve(burst, forward);
                if served.empty + served.oversized > 0 {
                    self.count_unusable(worker, served);
                }
                Ok(served.frames)
            }
            Attachment::Tap(tap) => tap.receive(queue, buffer, burst, forward).map_err(|_| Gone),
            Attachment::Netdev(netdev) => netdev.receive(queue, buffer, burst, forward).map_err(|_| Gone),
        }
    }

    #[cold]
    fn count_unusable(&self, worker: usize, served: Served) {
        let rx = &self.counters[worker].rx;
        rx.drop(DropReason::Runt, served.empty as u64);
        rx.drop(DropReason::Oversized, served.oversized as u64);
    }

    /// Sends the frames of `mask`, in their order. `key` chooses the queue: the same key, the same queue.
    #[inline]
    pub fn send(&self, burst: &Burst, mask: u64, key: usize, worker: usize, finisher: &mut Finisher) {
        let tx = &self.counters[worker].tx;
        let mut mask = mask;
        if burst.longest() > self.watermark.load(Ordering::Relaxed) as usize {
            mask = self.admit(burst, mask, tx);
        }
        if mask & burst.offloads() != 0 {
            self.send_offloads(burst, mask, key, tx, finisher);
        } else if mask != 0 {
            self.place(burst, mask, key, tx);
        }
    }

    /// Of the frames of `mask`, those that fit the MTU and the limit; the others are counted as dropped.
    #[cold]
    fn admit(&self, burst: &Burst, mask: u64, tx: &Direction) -> u64 {
        let mtu = self.mtu();
        let mut fitting = mask;
        if burst.longest() > usize::from(mtu) + ETHERNET_HEADER {
            fitting &= !too_long(burst, mask, mtu);
            tx.drop(DropReason::MtuExceeded, u64::from((mask & !fitting).count_ones()));
        }
        if !self.ingress.is_limited() {
            return fitting;
        }
        let passed = self.ingress.admit(burst, fitting, clock::ticks());
        tx.drop(DropReason::RateLimit, u64::from((fitting & !passed).count_ones()));
        passed
    }

    /// Like `send` where some frames have offloads: what the receiver did not negotiate is finished in software.
    fn send_offloads(&self, burst: &Burst, mask: u64, key: usize, tx: &Direction, finisher: &mut Finisher) {
        let capabilities = self.capabilities();
        let accepted = |i: usize, header: &NetHeader| mask >> i & 1 == 0 || capabilities.accepts(header);
        let mut segments_left = SEGMENTS_PER_BURST;
        let mut from = 0;
        while from < burst.len() {
            // As far as the receiver takes everything as it is, at once.
            let end = (from..burst.len()).find(|&i| !accepted(i, burst.header(i))).unwrap_or(burst.len());
            let run = mask & (burst.all() >> from << from) & low_bits(end);
            if run != 0 {
                self.place(burst, run, key, tx);
            }
            if end < burst.len() {
                let segments = match usize::from(burst.header(end).gso_size) {
                    0 => 1,
                    size => burst.frame_len(end).div_ceil(size),
                };
                match segments_left.checked_sub(segments) {
                    None => tx.drop(DropReason::TooManySegments, 1),
                    Some(left) => {
                        segments_left = left;
                        let emit = |done: &Burst| self.place(done, done.all(), key, tx);
                        if !finisher.finish(burst, end, capabilities, emit) {
                            tx.drop(DropReason::OffloadFailed, 1);
                        }
                    }
                }
            }
            from = end + 1;
        }
    }

    /// What the receiver takes. Devices of the kernel finish what their far end does not take.
    fn capabilities(&self) -> Capabilities {
        match &self.attachment {
            Attachment::Vhost(device) => Capabilities::from_virtio_features(device.features()),
            Attachment::Tap(_) | Attachment::Netdev(_) => Capabilities::KERNEL,
        }
    }

    /// Hands frames to the receiver as they are, and counts.
    #[inline]
    fn place(&self, burst: &Burst, mask: u64, key: usize, tx: &Direction) {
        let sent = match &self.attachment {
            Attachment::Vhost(device) => {
                let Some(pair) = device.steer(key) else {
                    return tx.drop(DropReason::LinkDown, u64::from(mask.count_ones()));
                };
                let delivered = device.to_guest(pair).deliver(burst, mask);
                if delivered.sent != mask {
                    let count = |frames: u64| u64::from(frames.count_ones());
                    tx.drop(DropReason::NoBuffers, count(delivered.no_buffers));
                    tx.drop(DropReason::BufferTooSmall, count(delivered.too_small));
                    tx.drop(DropReason::LinkDown, count(delivered.stopped));
                    tx.drop(DropReason::RingBusy, count(delivered.busy));
                }
                delivered.sent
            }
            Attachment::Tap(tap) => count_device(tap.send(key % tap.queues(), burst, mask), tx),
            Attachment::Netdev(netdev) => count_device(netdev.send(key % netdev.queues(), burst, mask), tx),
        };
        if sent != 0 {
            tx.packets.add(u64::from(sent.count_ones()));
            tx.bytes.add(if sent == burst.all() { burst.bytes() } else { bytes(burst, sent) });
        }
    }

    /// Prepares `queue` for a sleeping worker: will something wake it when frames come?
    pub fn arm(&self, queue: usize) -> Armed {
        match &self.attachment {
            Attachment::Vhost(device) => device.from_guest(queue).arm(),
            Attachment::Tap(_) | Attachment::Netdev(_) => Armed::Kick,
        }
    }

    /// Undoes [`Port::arm`].
    pub fn disarm(&self, queue: usize) {
        if let Attachment::Vhost(device) = &self.attachment {
            device.from_guest(queue).disarm();
        }
    }

    /// Changes when [`Port::wake_descriptor`] does.
    #[inline]
    pub fn wake_generation(&self, queue: usize) -> u32 {
        match &self.attachment {
            Attachment::Vhost(device) => device.from_guest(queue).generation(),
            Attachment::Tap(_) | Attachment::Netdev(_) => 0,
        }
    }

    /// A descriptor that becomes readable when frames come to an armed `queue`.
    pub fn wake_descriptor(&self, queue: usize) -> Option<WakeDescriptor> {
        match &self.attachment {
            Attachment::Vhost(device) => device.from_guest(queue).kick().map(WakeDescriptor::Kick),
            Attachment::Tap(tap) => tap.queue_fd(queue).try_clone_to_owned().ok().map(WakeDescriptor::Device),
            Attachment::Netdev(netdev) => {
                netdev.queue_fd(queue).try_clone_to_owned().ok().map(WakeDescriptor::Device)
            }
        }
    }
}

/// A descriptor for a worker's epoll, kept open for as long as it is registered there.
pub enum WakeDescriptor {
    /// A guest's kick.
    Kick(Arc<EventFd>),
    /// A device's queue.
    Device(OwnedFd),
}

impl AsRawFd for WakeDescriptor {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Kick(kick) => kick.as_raw_fd(),
            Self::Device(queue) => queue.as_raw_fd(),
        }
    }
}

/// Bits below `n`, for `n` up to 64.
#[inline]
fn low_bits(n: usize) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

/// The frames of `mask` that do not fit the MTU.
#[cold]
fn too_long(burst: &Burst, mask: u64, mtu: u16) -> u64 {
    let mut refused = 0;
    for i in Bits(mask) {
        if !fits(burst.head(i), burst.frame_len(i), burst.header(i), mtu) {
            refused |= 1 << i;
        }
    }
    refused
}

#[inline]
fn bytes(burst: &Burst, mask: u64) -> u64 {
    Bits(mask).map(|i| burst.frame_len(i) as u64).sum()
}

fn count_device(sent: Sent, tx: &Direction) -> u64 {
    let count = |frames: u64| u64::from(frames.count_ones());
    tx.drop(DropReason::DeviceFull, count(sent.full));
    tx.drop(DropReason::LinkDown, count(sent.down));
    tx.drop(DropReason::DeviceRefused, count(sent.refused));
    sent.sent
}

/// The numbers of the bits that are set, lowest first.
struct Bits(u64);

impl Iterator for Bits {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let i = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(i)
    }
}

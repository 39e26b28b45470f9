#![forbid(unsafe_code)]
//! A queue pair that plays one end of many UDP flows at full speed.
//!
//! The inner end sends each frame with the addresses and ports of another flow; the outer end answers whatever comes
//! by swapping them, so what was translated on its way out comes back translated. Both look at every frame they get:
//! a wrong address, a TTL that was not lowered by one or an IPv4 header that does not add up is counted as wrong.
//! Nothing here allocates. Transmit chains must be completed in order, as for [`super::lane`].

use anyhow::{Result, bail, ensure};
use vhost_backend::net_header::{NET_HEADER_LEN, NetHeader};

use super::lane::{Counts, TURN};
use super::pair::Pair;
use super::ring::Descriptor;
use crate::frames::sum;

/// virtio-net header, Ethernet, IPv4 and UDP headers: what is written and read of each frame.
const HEAD: usize = NET_HEADER_LEN + 14 + 20 + 8;
/// Where each begins.
const IP: usize = NET_HEADER_LEN + 14;
const UDP: usize = IP + 20;
/// The TTL that senders set.
const TTL: u8 = 64;

/// Addresses of a flow, big-endian numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// IPv4 source.
    pub source: u32,
    /// IPv4 destination.
    pub destination: u32,
    /// UDP source port.
    pub source_port: u16,
    /// UDP destination port.
    pub destination_port: u16,
}

/// Which flows there are.
#[derive(Clone, Debug)]
pub struct Flows {
    /// How many before the first comes again; a power of two. 0: every frame is the first of a new flow.
    pub count: u64,
    /// Destinations to choose from; each flow has one.
    pub destinations: Vec<u32>,
}

/// Source addresses lie in 10.254.0.0/16.
pub const INNER: u32 = 0x0afe_0000;

impl Flows {
    /// The `n`th flow. Consecutive ones differ in everything; none comes twice among 12 million.
    #[inline]
    pub fn at(&self, n: u64) -> Flow {
        // An odd factor permutes the flows, so that their entries are not visited in the order of their making.
        let n = if self.count == 0 { n } else { n.wrapping_mul(0x9e37_79b1) & (self.count - 1) };
        let (port, host) = (n % 50_021, n / 50_021 + n % 251 * 256);
        Flow {
            source: INNER | (host as u32 & 0xffff),
            destination: self.destinations
                [(n.wrapping_mul(0x2545_f491) >> 8) as usize % self.destinations.len()],
            source_port: 10_000 + port as u16,
            destination_port: 2000,
        }
    }
}

/// Which end of the flows a lane plays.
#[derive(Clone, Debug)]
pub enum End {
    /// Begins flows.
    Inner(Flows),
    /// Answers. Sources it sees must lie in this network: address and mask.
    Outer {
        /// Address.
        network: u32,
        /// Mask.
        mask: u32,
    },
}

/// One queue pair at one end.
pub struct FlowLane {
    pair: Pair,
    end: End,
    /// Head of every frame sent, addresses zero.
    template: [u8; HEAD],
    /// Sums of what does not change: the IPv4 header, and the UDP datagram with its pseudo-header.
    ip_sum: u32,
    udp_sum: u32,
    frame_len: usize,
    expected_ttl: u8,
    slots: Vec<u32>,
    next: u64,
    /// What happened.
    pub counts: Counts,
    /// Frames received that the switch made wrong.
    pub wrong: u64,
}

/// What is asked of a frame on its way.
#[derive(Clone, Copy, Debug)]
pub struct Framing {
    /// Destination MAC address: the gateway's.
    pub gateway: [u8; 6],
    /// The guest's own.
    pub own: [u8; 6],
    /// Length without FCS.
    pub size: usize,
    /// Whether the switch must lower the TTL.
    pub routed: bool,
}

impl FlowLane {
    /// Takes over a pair on which nothing is in flight.
    pub(super) fn new(mut pair: Pair, end: End, framing: &Framing) -> Result<Self> {
        ensure!(pair.unfinished()? == 0 && pair.tx.used_count() == 0, "frames are still on their way");
        ensure!(pair.header_len == NET_HEADER_LEN, "the generator needs VERSION_1 or mergeable buffers");
        let size = framing.size.max(60);
        ensure!(size + NET_HEADER_LEN <= pair.buffers.len, "frames of {size} bytes do not fit the buffers");
        if let End::Inner(flows) = &end {
            ensure!(
                (flows.count == 0 || flows.count.is_power_of_two()) && !flows.destinations.is_empty(),
                "the number of flows must be a power of two, and there must be a destination"
            );
        }
        let mut frame = vec![0; NET_HEADER_LEN + size];
        frame[..NET_HEADER_LEN].copy_from_slice(&NetHeader::default().to_bytes());
        frame[NET_HEADER_LEN..][..6].copy_from_slice(&framing.gateway);
        frame[NET_HEADER_LEN + 6..][..6].copy_from_slice(&framing.own);
        frame[NET_HEADER_LEN + 12..][..2].copy_from_slice(&[0x08, 0x00]);
        frame[IP..][..10].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, TTL, 17]);
        frame[IP + 2..][..2].copy_from_slice(&((size - 14) as u16).to_be_bytes());
        let udp_len = (size - 34) as u16;
        frame[UDP + 4..][..2].copy_from_slice(&udp_len.to_be_bytes());
        for (n, byte) in frame[HEAD..].iter_mut().enumerate() {
            *byte = n as u8;
        }
        let ip_sum = sum(&frame[IP..UDP], 0);
        let udp_sum = sum(&frame[UDP..], 17 + u32::from(udp_len));
        let mut template = [0; HEAD];
        template.copy_from_slice(&frame[..HEAD]);

        let slots_wanted = usize::from(pair.tx.size());
        ensure!(pair.free.len() >= slots_wanted, "too few buffers");
        let slots = pair.free.split_off(pair.free.len() - slots_wanted);
        pair.tx.offer_in_order();
        for (slot, &buffer) in slots.iter().enumerate() {
            let at = pair.buffers.at(buffer);
            pair.memory.write(at, &frame);
            let (address, len) = (pair.memory.guest_address(at), frame.len() as u32);
            pair.tx.set_descriptor(slot as u16, Descriptor { address, len, flags: 0, next: 0 });
        }
        let expected_ttl = if framing.routed { TTL - 1 } else { TTL };
        Ok(Self {
            pair,
            end,
            template,
            ip_sum,
            udp_sum,
            frame_len: frame.len(),
            expected_ttl,
            slots,
            next: 0,
            counts: Counts::default(),
            wrong: 0,
        })
    }

    /// Frames sent that the device has not taken yet.
    pub fn in_flight(&self) -> u16 {
        self.pair.tx.in_flight()
    }

    /// Begins with flow 0 again.
    pub fn rewind(&mut self) {
        self.next = 0;
    }

    fn reclaim(&mut self) -> Result<()> {
        let done = self.pair.tx.used_count();
        if done > self.pair.tx.in_flight() {
            bail!("the device completed {done} frames of {}", self.pair.tx.in_flight());
        }
        let first = self.pair.tx.next_in_order().wrapping_sub(self.pair.tx.in_flight());
        let mask = self.pair.tx.size() - 1;
        for i in 0..done {
            let (id, _) = self.pair.tx.used(i);
            if id != u32::from(first.wrapping_add(i) & mask) {
                bail!(
                    "the device completed transmit head {id} out of order: the generator needs them in order"
                );
            }
        }
        self.pair.tx.advance(done);
        Ok(())
    }

    /// Writes a frame of this flow into a transmit slot.
    #[inline]
    fn fill(&mut self, slot: u16, flow: Flow) {
        let mut head = self.template;
        head[IP + 12..][..4].copy_from_slice(&flow.source.to_be_bytes());
        head[IP + 16..][..4].copy_from_slice(&flow.destination.to_be_bytes());
        head[UDP..][..2].copy_from_slice(&flow.source_port.to_be_bytes());
        head[UDP + 2..][..2].copy_from_slice(&flow.destination_port.to_be_bytes());
        let addresses = (flow.source >> 16)
            + (flow.source & 0xffff)
            + (flow.destination >> 16)
            + (flow.destination & 0xffff);
        let ip = !fold(self.ip_sum + addresses);
        let ports = u32::from(flow.source_port) + u32::from(flow.destination_port);
        let udp = match !fold(self.udp_sum + addresses + ports) {
            0 => 0xffff,
            udp => udp,
        };
        head[IP + 10..][..2].copy_from_slice(&ip.to_be_bytes());
        head[UDP + 6..][..2].copy_from_slice(&udp.to_be_bytes());
        self.pair.memory.write(self.pair.buffers.at(self.slots[usize::from(slot)]), &head);
    }

    /// The inner end begins, or goes on with, up to `count` flows; says how many had room.
    pub fn transmit(&mut self, count: u16) -> Result<u16> {
        self.reclaim()?;
        let End::Inner(_) = &self.end else { return Ok(0) };
        let count = count.min(self.pair.tx.size() - self.pair.tx.in_flight());
        self.prepare(count);
        self.counts.kicks += u64::from(self.pair.tx.publish());
        Ok(count)
    }

    /// Offers frames of the next `count` flows; there is room.
    #[inline]
    fn prepare(&mut self, count: u16) {
        let mask = self.pair.tx.size() - 1;
        let mut slot = self.pair.tx.next_in_order();
        for _ in 0..count {
            let End::Inner(flows) = &self.end else { return };
            let flow = flows.at(self.next);
            self.next += 1;
            self.fill(slot, flow);
            slot = (slot + 1) & mask;
        }
        self.pair.tx.offer_prefilled(count);
        self.counts.sent += u64::from(count);
    }

    /// Receives up to [`TURN`] frames and, if `answer`, sends one for each: the outer end an answer, the inner end
    /// the next flow's.
    #[inline]
    pub fn turn(&mut self, answer: bool) -> Result<u16> {
        let waiting = self.pair.rx.used_count();
        if waiting == 0 {
            return Ok(0);
        }
        if waiting > self.pair.rx.size() {
            bail!("the device used {waiting} receive buffers of {}", self.pair.rx.size());
        }
        let count = waiting.min(TURN);
        for i in 0..count {
            let (id, len) = self.pair.rx.used(i);
            if id >= u32::from(self.pair.rx.size()) || len as usize > self.pair.buffers.len {
                bail!("the device used receive head {id} with {len} bytes");
            }
            self.pair.memory.prefetch(self.pair.buffers.at(self.pair.owner[id as usize]));
        }
        self.reclaim()?;
        let mask = self.pair.tx.size() - 1;
        let mut slot = self.pair.tx.next_in_order();
        let mut room = self.pair.tx.size() - self.pair.tx.in_flight();
        let mut answers = 0;
        let outer = matches!(self.end, End::Outer { .. });
        for i in 0..count {
            let (id, len) = self.pair.rx.used(i);
            let mut head = [0; HEAD];
            self.pair.memory.read(self.pair.buffers.at(self.pair.owner[id as usize]), &mut head);
            self.counts.received_bytes += u64::from(len) - NET_HEADER_LEN as u64;
            let flow = read(&head);
            self.pair.rx.offer(id as u16);
            if head[IP - 2..IP] != [8, 0] {
                // The switch announces its addresses when a guest comes.
            } else if len as usize != self.frame_len || !self.sound(&head, flow) {
                self.wrong += 1;
            } else if answer && outer && room > 0 {
                let back = Flow {
                    source: flow.destination,
                    destination: flow.source,
                    source_port: flow.destination_port,
                    destination_port: flow.source_port,
                };
                self.fill(slot, back);
                slot = (slot + 1) & mask;
                room -= 1;
                answers += 1;
            }
        }
        self.pair.rx.advance(count);
        self.counts.received += u64::from(count);
        self.counts.turns += 1;
        self.counts.kicks += u64::from(self.pair.rx.publish());
        if outer {
            self.pair.tx.offer_prefilled(answers);
            self.counts.sent += u64::from(answers);
        } else if answer {
            self.prepare(count.min(room));
        }
        if answer {
            self.counts.kicks += u64::from(self.pair.tx.publish());
        }
        Ok(count)
    }

    /// Whether a received frame is what the switch should have made of it.
    #[inline]
    fn sound(&self, head: &[u8; HEAD], flow: Flow) -> bool {
        let addressed = match &self.end {
            End::Inner(_) => flow.destination & 0xffff_0000 == INNER && flow.source_port == 2000,
            End::Outer { network, mask } => flow.source & mask == *network && flow.destination_port == 2000,
        };
        let headed = head[IP..][..2] == [0x45, 0] && head[IP + 8] == self.expected_ttl;
        addressed && headed && sum(&head[IP..UDP], 0) == 0xffff
    }
}

#[inline]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[inline]
fn read(head: &[u8; HEAD]) -> Flow {
    let long = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let short = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    Flow {
        source: long(IP + 12),
        destination: long(IP + 16),
        source_port: short(UDP),
        destination_port: short(UDP + 2),
    }
}

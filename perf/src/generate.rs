#![forbid(unsafe_code)]
//! Traffic between guests of our own, from one thread on one core.
//!
//! Closed loop: every guest keeps a window of frames on their way, and answers each frame that it receives, as
//! testpmd does after `start tx_first`. Open loop: guests send whenever there is room, and count what they receive.
//! What is counted is what arrived, so a switch gains nothing by dropping.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use vhost_backend::net_header::NetHeader;

use crate::clock;
use crate::frames;
use crate::guest::{Answer, Connection, Counts, Guest, Lane, Options, TURN, features};

/// Longest frame that goes without segmentation offload here.
pub const LONGEST_PLAIN: usize = 9618;
/// Segment size that large frames ask for.
const MSS: u16 = 1448;

/// What traffic to make.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// Frame length without FCS; above [`LONGEST_PLAIN`] a TCP segmentation frame of this length is sent.
    pub size: usize,
    /// Frames that each queue pair of each guest keeps on their way.
    pub window: u16,
    /// How received frames are answered in the closed loop.
    pub answer: Answer,
    /// Whether every guest sends whatever has room, instead of answering.
    pub open: bool,
    /// The core of the thread that plays all guests.
    pub core: Option<usize>,
}

/// What the guests are like: the parts of [`Options`] that a run chooses.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Queue pairs of each guest.
    pub pairs: u16,
    /// Entries of each ring.
    pub ring_size: u16,
    /// Whether received frames may spread over buffers.
    pub mergeable: bool,
    /// Whether notifications are suppressed by index.
    pub event_idx: bool,
    /// Further feature bits, without which the guests refuse to start.
    pub features: u64,
    /// Whether the guests' memory is in 2 MiB pages.
    pub hugepages: bool,
    /// Whether the guests make the sockets, and the switch connects.
    pub listen: bool,
}

/// Result of one measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Seconds measured.
    pub seconds: f64,
    /// Frames a second that each guest received, in millions, in the order of the sockets.
    pub mpps: Vec<f64>,
    /// Their mean: "each way" with two guests.
    pub mpps_each_way: f64,
    /// Gigabits a second that each guest received, frames without FCS.
    pub gbps: Vec<f64>,
    /// Frames in a turn that found any.
    pub batch: f64,
    /// Share of the time in which the generator found frames to work on; near 1 means that the guests are the limit.
    pub generator_busy: f64,
    /// Generator's cycles for a frame received and answered.
    pub generator_cycles: f64,
    /// Kicks that the switch asked for, a second.
    pub kicks: f64,
    /// Times that traffic had died and was started again (lost frames).
    pub restarts: u64,
}

/// Connected guests with their lanes.
pub struct Generator {
    lanes: Vec<Lane>,
    /// Index of the first lane of each guest, and the end.
    bounds: Vec<usize>,
    traffic: Traffic,
    cycles_per_second: f64,
    _connections: Vec<Connection>,
}

impl Generator {
    /// Connects a guest to each socket. Guest n sends to guest n + 1, the last one to the first.
    pub fn connect(sockets: &[PathBuf], shape: &Shape, traffic: &Traffic) -> Result<Self> {
        ensure!(sockets.len() >= 2 && sockets.len() <= 250, "{} guests; 2 to 250 are wanted", sockets.len());
        let large = traffic.size > LONGEST_PLAIN;
        let mut wanted = features::VERSION_1 | features::INDIRECT_DESC | features::MQ | shape.features;
        if shape.mergeable || large {
            wanted |= features::MRG_RXBUF;
        }
        if shape.event_idx {
            wanted |= features::EVENT_IDX;
        }
        if large {
            wanted |= features::OFFLOADS;
        }
        let options = Options {
            pairs: shape.pairs,
            ring_size: shape.ring_size,
            buffer_len: if large { 4096 } else { (traffic.size + 12).next_multiple_of(2048) },
            features: wanted,
            required: shape.features
                | if large { features::HOST_TSO4 | features::GUEST_TSO4 | features::MRG_RXBUF } else { 0 },
            hugepages: shape.hugepages,
            ..Options::default()
        };
        let mut lanes = Vec::new();
        let mut bounds = vec![0];
        let mut connections = Vec::new();
        for (n, socket) in sockets.iter().enumerate() {
            let guest =
                if shape.listen { Guest::listen(socket, &options) } else { Guest::connect(socket, &options) };
            let guest = guest.with_context(|| format!("guest {n} on {}", socket.display()))?;
            let (from, to) = (n as u8 + 1, ((n + 1) % sockets.len()) as u8 + 1);
            let header =
                if large { frames::tcp_gso(from, to, traffic.size, MSS, 0).0 } else { NetHeader::default() };
            let answer = if large || traffic.open { Answer::Credit } else { traffic.answer };
            let (connection, its_lanes) = guest.into_lanes(answer, &header, |queue| {
                if large {
                    frames::tcp_gso(from, to, traffic.size, MSS, queue).1
                } else {
                    frames::udp(from, to, traffic.size, queue)
                }
            })?;
            connections.push(connection);
            lanes.extend(its_lanes);
            bounds.push(lanes.len());
        }
        let cycles_per_second = clock::cycles_per_second();
        Ok(Self { lanes, bounds, traffic: traffic.clone(), cycles_per_second, _connections: connections })
    }

    fn counts(&self) -> Vec<Counts> {
        self.lanes.iter().map(|lane| lane.counts).collect()
    }

    /// Runs the traffic for `warm_up` and then measures for `seconds`. Frames stay in flight afterwards, so that a
    /// further call goes on where this one ended.
    pub fn run(&mut self, warm_up: Duration, length: Duration) -> Result<Measured> {
        if let Some(core) = self.traffic.core {
            clock::pin(core).with_context(|| format!("cannot run on core {core}"))?;
        }
        let mut meter = Meter::default();
        self.drive(warm_up, &mut meter)?;
        let before = self.counts();
        let mut meter = Meter::default();
        let seconds = self.drive(length, &mut meter)?;
        let after = self.counts();
        Ok(self.evaluate(seconds, &before, &after, &meter))
    }

    fn evaluate(&self, seconds: f64, before: &[Counts], after: &[Counts], meter: &Meter) -> Measured {
        let guests = self.bounds.len() - 1;
        let of = |guest: usize, field: fn(&Counts) -> u64| -> u64 {
            (self.bounds[guest]..self.bounds[guest + 1]).map(|i| field(&after[i]) - field(&before[i])).sum()
        };
        let all = |field: fn(&Counts) -> u64| -> u64 { (0..guests).map(|guest| of(guest, field)).sum() };
        let mpps: Vec<f64> = (0..guests).map(|g| of(g, |c| c.received) as f64 / seconds / 1e6).collect();
        let received = all(|c| c.received);
        Measured {
            seconds,
            mpps_each_way: mpps.iter().sum::<f64>() / guests as f64,
            mpps,
            gbps: (0..guests).map(|g| of(g, |c| c.received_bytes) as f64 * 8.0 / seconds / 1e9).collect(),
            batch: received as f64 / all(|c| c.turns).max(1) as f64,
            generator_busy: meter.busy as f64 / (seconds * self.cycles_per_second),
            generator_cycles: meter.busy as f64 / received.max(1) as f64,
            kicks: all(|c| c.kicks) as f64 / seconds,
            restarts: meter.restarts,
        }
    }

    /// Drives all lanes for `length`; says how long it really was.
    fn drive(&mut self, length: Duration, meter: &mut Meter) -> Result<f64> {
        let start = Instant::now();
        let end = clock::cycles() + (length.as_secs_f64() * self.cycles_per_second) as u64;
        // Traffic that is silent for this long has been lost on its way; a thread that lost its processor for a while
        // must not look like that, for what is sent then comes on top of what is still there.
        let silence = (self.cycles_per_second * 0.25) as u64;
        let mut heard = 0;
        loop {
            let before = clock::cycles();
            if before >= end {
                break;
            }
            if self.round()? {
                heard = clock::cycles();
                meter.busy += heard - before;
            } else {
                for _ in 0..4 {
                    std::hint::spin_loop();
                }
                if before.wrapping_sub(heard) > silence && !self.traffic.open {
                    meter.restarts += u64::from(heard != 0);
                    heard = before;
                    self.start()?;
                }
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Puts a window of frames on their way on every lane.
    fn start(&mut self) -> Result<()> {
        for lane in &mut self.lanes {
            let window = self.traffic.window.saturating_sub(lane.in_flight());
            lane.transmit(window)?;
        }
        Ok(())
    }

    /// One turn of each lane; says whether any frame came or went.
    #[inline]
    fn round(&mut self) -> Result<bool> {
        let mut busy = false;
        for lane in &mut self.lanes {
            busy |= lane.turn(!self.traffic.open)? > 0;
            if self.traffic.open {
                busy |= lane.transmit(TURN)? > 0;
            }
        }
        Ok(busy)
    }
}

#[derive(Default)]
struct Meter {
    /// Cycles of rounds that found frames.
    busy: u64,
    restarts: u64,
}

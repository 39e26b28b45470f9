#![forbid(unsafe_code)]
//! Many flows between two guests of our own through a router, from one thread on one core.
//!
//! The inner guest's frames each belong to another flow; see [`crate::guest::FlowLane`]. Both ways: a window of
//! frames is on its way and each answer lets the next flow go. One way: the inner guest sends whatever has room, the
//! outer one counts, and notes how long nothing came.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::clock;
use crate::frames::mac;
use crate::guest::{Connection, End, FlowLane, Flows, Framing, Guest, Options, TURN, features};

/// What traffic to make.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// The flows.
    pub flows: Flows,
    /// Frame length without FCS.
    pub size: usize,
    /// Entries of each ring.
    pub ring: u16,
    /// Frames on their way, both ways together.
    pub window: u16,
    /// Whether nobody answers.
    pub one_way: bool,
    /// MAC address to which each end sends: inner, outer.
    pub gateways: [[u8; 6]; 2],
    /// The network from which the outer end must see every frame: address and mask.
    pub seen_from: (u32, u32),
    /// Whether the switch must lower the TTL.
    pub routed: bool,
    /// The core of the thread that plays both guests.
    pub core: Option<usize>,
}

/// Result of one measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Seconds measured.
    pub seconds: f64,
    /// Millions of frames a second that arrived at the outer end, and back at the inner end.
    pub mpps: [f64; 2],
    /// Share of the time in which the generator found frames to work on.
    pub generator_busy: f64,
    /// Frames in a turn that found any.
    pub batch: f64,
    /// Frames that arrived changed in a way that the switch must not change them.
    pub wrong: u64,
    /// Microseconds between turns in which the outer end received something: the 99.99th percentile and the longest.
    pub gap_us: [f64; 2],
    /// Times that traffic had died and was started again (lost frames).
    pub restarts: u64,
}

impl Measured {
    /// Frames a second, in millions, through the switch: the mean of both ways, or the one way there is.
    pub fn each_way(&self) -> f64 {
        if self.mpps[1] > 0.0 { (self.mpps[0] + self.mpps[1]) / 2.0 } else { self.mpps[0] }
    }
}

/// Two connected guests.
pub struct FlowGenerator {
    inner: FlowLane,
    outer: FlowLane,
    traffic: Traffic,
    cycles_per_second: f64,
    gaps: Delays,
    restarts: u64,
    _connections: [Connection; 2],
}

impl FlowGenerator {
    /// Connects a guest to each socket: the inner one has the address [`mac`]`(1)`, the outer one [`mac`]`(2)`.
    pub fn connect(sockets: [&Path; 2], traffic: &Traffic) -> Result<Self> {
        let options = Options {
            ring_size: traffic.ring,
            buffer_len: (traffic.size + 12).next_multiple_of(2048),
            features: features::VERSION_1 | features::INDIRECT_DESC | features::MRG_RXBUF,
            ..Options::default()
        };
        let framing = |end: usize| Framing {
            gateway: traffic.gateways[end],
            own: mac(end as u8 + 1),
            size: traffic.size,
            routed: traffic.routed,
        };
        let guest =
            |end: usize| Guest::connect(sockets[end], &options).with_context(|| format!("guest {end}"));
        let (first, second) = (guest(0)?, guest(1)?);
        let (inner_connection, inner) =
            first.into_flow_lane(End::Inner(traffic.flows.clone()), &framing(0))?;
        let (network, mask) = traffic.seen_from;
        let (outer_connection, outer) = second.into_flow_lane(End::Outer { network, mask }, &framing(1))?;
        let cycles_per_second = clock::cycles_per_second();
        Ok(Self {
            inner,
            outer,
            traffic: traffic.clone(),
            cycles_per_second,
            gaps: Delays::new(cycles_per_second),
            restarts: 0,
            _connections: [inner_connection, outer_connection],
        })
    }

    fn bind(&self) -> Result<()> {
        if let Some(core) = self.traffic.core {
            clock::pin(core).with_context(|| format!("cannot run on core {core}"))?;
        }
        Ok(())
    }

    /// Lets every flow pass at least once, both ways if they are answered, so that all of them are established.
    pub fn establish(&mut self, limit: Duration) -> Result<()> {
        self.bind()?;
        let flows = self.traffic.flows.count;
        let end = Instant::now() + limit;
        self.inner.rewind();
        let start = self.inner.counts.received;
        // A little more than once: what is on its way at the end belongs to the first ones again.
        while self.inner.counts.received - start < flows + 4 * u64::from(self.traffic.window) {
            self.drive(Duration::from_millis(100), false)?;
            ensure!(
                Instant::now() < end,
                "{} of {flows} flows were established in {} s",
                self.inner.counts.received - start,
                limit.as_secs()
            );
        }
        Ok(())
    }

    /// Runs the traffic for `warm_up` and then measures for `length`. Frames stay in flight afterwards.
    pub fn run(&mut self, warm_up: Duration, length: Duration) -> Result<Measured> {
        self.bind()?;
        self.drive(warm_up, self.traffic.one_way)?;
        let before =
            (self.inner.counts, self.outer.counts, self.inner.wrong + self.outer.wrong, self.restarts);
        self.gaps.clear();
        let (seconds, busy) = self.drive(length, self.traffic.one_way)?;
        let (inner, outer) = (self.inner.counts, self.outer.counts);
        let received = [outer.received - before.1.received, inner.received - before.0.received];
        let turns = outer.turns - before.1.turns + inner.turns - before.0.turns;
        Ok(Measured {
            seconds,
            mpps: received.map(|frames| frames as f64 / seconds / 1e6),
            generator_busy: busy as f64 / (seconds * self.cycles_per_second),
            batch: (received[0] + received[1]) as f64 / turns.max(1) as f64,
            wrong: self.inner.wrong + self.outer.wrong - before.2,
            gap_us: [self.gaps.percentile(0.9999), self.gaps.longest()],
            restarts: self.restarts - before.3,
        })
    }

    /// Sends a frame every `pace` from the inner guest while `go_on` says so: how long they took to the outer one. Sleeps
    /// in between, so that the machine is left to others.
    pub fn trickle(&mut self, pace: Duration, mut go_on: impl FnMut() -> bool) -> Result<Delays> {
        self.bind()?;
        let mut delays = Delays::new(self.cycles_per_second);
        let patience = (self.cycles_per_second * 1.0) as u64;
        while go_on() {
            let sent = clock::cycles();
            self.inner.transmit(1)?;
            loop {
                let arrived = self.outer.turn(false)?;
                let taken = clock::cycles() - sent;
                if arrived > 0 {
                    delays.note(taken);
                    break;
                }
                ensure!(taken < patience, "a frame was lost");
                std::hint::spin_loop();
            }
            self.inner.turn(false)?;
            std::thread::sleep(pace);
        }
        Ok(delays)
    }

    /// Drives both guests for `length`; says how long it was and how many cycles of it found frames.
    fn drive(&mut self, length: Duration, one_way: bool) -> Result<(f64, u64)> {
        let start = Instant::now();
        let end = clock::cycles() + (length.as_secs_f64() * self.cycles_per_second) as u64;
        let silence = (self.cycles_per_second * 0.25) as u64;
        let mut heard = 0;
        let mut busy = 0;
        let mut last = clock::cycles();
        loop {
            let before = clock::cycles();
            if before >= end {
                break;
            }
            let sent = if one_way { self.inner.transmit(TURN)? } else { 0 };
            let arrived = self.outer.turn(!one_way)?;
            let back = self.inner.turn(!one_way)?;
            let now = clock::cycles();
            if arrived > 0 {
                self.gaps.note(now - last);
                last = now;
            }
            if sent + arrived + back > 0 {
                heard = now;
                busy += now - before;
                continue;
            }
            for _ in 0..4 {
                std::hint::spin_loop();
            }
            if !one_way && before.wrapping_sub(heard) > silence {
                self.restarts += u64::from(heard != 0);
                heard = before;
                let window = self.traffic.window.saturating_sub(self.inner.in_flight());
                self.inner.transmit(window)?;
            }
        }
        Ok((start.elapsed().as_secs_f64(), busy))
    }
}

/// How long nothing came, or how long something took: a histogram with steps of 2 microseconds.
pub struct Delays {
    cycles_per_us: f64,
    steps: Vec<u64>,
    longest: u64,
}

impl Delays {
    const STEP_US: f64 = 2.0;

    fn new(cycles_per_second: f64) -> Self {
        Self { cycles_per_us: cycles_per_second / 1e6, steps: vec![0; 4096], longest: 0 }
    }

    fn clear(&mut self) {
        self.steps.fill(0);
        self.longest = 0;
    }

    #[inline]
    fn note(&mut self, cycles: u64) {
        let step = (cycles as f64 / self.cycles_per_us / Self::STEP_US) as usize;
        let last = self.steps.len() - 1;
        self.steps[step.min(last)] += 1;
        self.longest = self.longest.max(cycles);
    }

    /// The longest, in microseconds.
    pub fn longest(&self) -> f64 {
        self.longest as f64 / self.cycles_per_us
    }

    /// What `share` of them do not exceed, in microseconds.
    pub fn percentile(&self, share: f64) -> f64 {
        let all: u64 = self.steps.iter().sum();
        let mut left = (all as f64 * (1.0 - share)).round() as u64;
        for (step, &count) in self.steps.iter().enumerate().rev() {
            if count > left {
                return (step + 1) as f64 * Self::STEP_US;
            }
            left -= count;
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::guest::INNER;

    #[test]
    fn flows_are_as_many_as_they_should_be() {
        let flows = Flows { count: 1 << 16, destinations: (0..64).map(|n| 0x0afd_0000 + n).collect() };
        let key = |n| {
            let flow = flows.at(n);
            assert_eq!(flow.source & 0xffff_0000, INNER);
            (flow.source, flow.destination, flow.source_port)
        };
        let all: HashSet<_> = (0..1 << 16).map(key).collect();
        assert_eq!(all.len(), 1 << 16);
        assert_eq!(key(1 << 16), key(0));
        let fresh = Flows { count: 0, ..flows };
        let all: HashSet<_> = (0..3_000_000)
            .map(|n| {
                let flow = fresh.at(n);
                (flow.source, flow.destination, flow.source_port)
            })
            .collect();
        assert_eq!(all.len(), 3_000_000);
    }

    #[test]
    fn percentiles_count_from_the_longest() {
        let mut gaps = Delays::new(1e6);
        for _ in 0..9998 {
            gaps.note(1);
        }
        gaps.note(100);
        gaps.note(300);
        assert_eq!(gaps.percentile(0.9999), 102.0);
        assert_eq!(gaps.longest(), 300.0);
    }
}

#![forbid(unsafe_code)]
//! The table of connections as a worker uses it, burst by burst, without frames: for the instruction-count gates and
//! the benchmark of the table alone.

use std::sync::Arc;

use shunt_switch::conntrack::{Conntrack, Key4, Limits, Local, NewConnection, Packet, Ref, V4};
use shunt_switch::packet::ip::UDP;
use shunt_switch::worker::epoch::Epochs;

/// Packets looked up together.
pub const BURST: usize = 64;
/// Bytes that each packet counts for.
const BYTES: u32 = 50;

/// The key of the `n`th connection's first packet; sources lie in 10/8.
#[inline]
pub fn key(n: u64) -> Key4 {
    // An odd factor spreads consecutive ones over the table.
    let n = n.wrapping_mul(0x9e37_79b1) & 0xffff_ffff;
    Key4 {
        source: 0x0a00_0000 | (n >> 16) as u32,
        destination: 0xc633_6401,
        source_port: (n & 0xffff) as u16,
        destination_port: 53,
        protocol: UDP,
    }
}

/// The key of its answers: it is translated, so they go to another address than it came from.
#[inline]
pub fn answer(original: &Key4) -> Key4 {
    Key4 { destination: original.source ^ 0x0100_0000, ..original.reversed() }
}

/// Enters a connection, which came in by port 0.
#[inline]
pub fn enter(table: &Conntrack, local: &mut Local, original: Key4, now: u32) -> Option<Ref> {
    let begun = Packet { bytes: BYTES, tcp: None, sctp: None }.begin::<V4>(&original, true, now)?;
    let reply = answer(&original);
    let new = NewConnection {
        original,
        reply,
        begun,
        port: 0,
        next_hop: None,
        watched: false,
        related: false,
        balanced: None,
    };
    local.owner::<V4>().insert(&table.v4, &new, now).ok()
}

/// Looks up a burst in passes, as the pipeline does, and counts each packet; how many were found.
#[inline]
pub fn look_up(table: &Conntrack, keys: &[Key4], now: u32) -> usize {
    let mut hashes = [0; BURST];
    let mut halves: [Option<Ref>; BURST] = [None; BURST];
    let keys = &keys[..keys.len().min(BURST)];
    for (hash, key) in hashes.iter_mut().zip(keys) {
        *hash = table.v4.hash(key);
        table.v4.prefetch(*hash);
    }
    for (half, hash) in halves.iter_mut().zip(&hashes[..keys.len()]) {
        *half = table.v4.candidate(*hash);
        if let Some(half) = *half {
            table.v4.prefetch_half(half);
        }
    }
    let mut found = 0;
    for ((key, hash), half) in keys.iter().zip(&hashes).zip(&halves) {
        let half = half.filter(|half| table.v4.half(*half).matches(&key.compact()));
        if let Some(half) = half.or_else(|| table.v4.find(key, *hash)) {
            table.v4.half(half).touch(now, BYTES);
            found += 1;
        }
    }
    found
}

/// Tables for `workers`, in which one port may have all of `capacity` connections, and the seats.
pub fn new_table(capacity: u32, workers: usize) -> (Arc<Conntrack>, Arc<Epochs>) {
    let epochs = Arc::new(Epochs::new(workers + 1));
    let table = Conntrack::new(capacity, workers, 4, epochs.clone());
    table.shared.set_limits(Limits { entries: capacity, per_port: capacity, half_open: capacity });
    (Arc::new(table), epochs)
}

/// A table with its one worker.
pub struct Tracker {
    table: Arc<Conntrack>,
    epochs: Arc<Epochs>,
    local: Local,
    now: u32,
}

impl Tracker {
    /// With room for `capacity` connections.
    pub fn new(capacity: u32) -> Self {
        let (table, epochs) = new_table(capacity, 1);
        epochs.arrive(0);
        table.prepare();
        Self { table, epochs, local: Local::new(0), now: 1 }
    }

    /// Enters `count` connections from the `first` on; how many got in.
    #[inline(never)]
    pub fn enter(&mut self, first: u64, count: u64) -> u64 {
        let entered = (first..first + count)
            .filter(|&n| enter(&self.table, &mut self.local, key(n), self.now).is_some());
        entered.count() as u64
    }

    /// Looks up a burst of them; how many were found.
    #[inline(never)]
    pub fn look_up(&mut self, first: u64, count: usize) -> usize {
        let mut keys = [Key4::default(); BURST];
        for (n, key) in keys.iter_mut().enumerate() {
            *key = self::key(first + n as u64);
        }
        look_up(&self.table, &keys[..count.min(BURST)], self.now)
    }

    /// Lets seconds pass.
    pub fn pass(&mut self, seconds: u32) {
        self.now += seconds;
    }

    /// What a worker does once a turn.
    #[inline(never)]
    pub fn turn(&mut self) {
        self.epochs.quiesce(0);
        self.local.turn(&self.table, self.now);
    }

    /// Connections there are.
    pub fn count(&self) -> u32 {
        self.table.shared.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_entered_is_found_and_ends() {
        let mut tracker = Tracker::new(4096);
        assert_eq!(tracker.enter(0, 100), 100);
        assert_eq!(tracker.enter(0, 100), 0, "they are there");
        assert_eq!(tracker.look_up(10, 64), 64);
        assert_eq!(tracker.look_up(90, 64), 10);
        assert_eq!(tracker.count(), 100);
        for _ in 0..200 {
            tracker.pass(1);
            tracker.turn();
        }
        assert_eq!((tracker.count(), tracker.look_up(0, 64)), (0, 0));
    }
}

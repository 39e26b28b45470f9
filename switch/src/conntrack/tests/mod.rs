//! Tests of connection tracking as its users see it.

mod handover;
mod inbox;
mod index;
mod lifetimes;
mod limits;
mod listings;
mod model;
mod modelled;
mod tcp_life;
mod threads;

use std::sync::Arc;

use super::*;

/// Tables with their workers, all driven by one thread, at a time of its own.
struct World {
    conntrack: Conntrack,
    epochs: Arc<Epochs>,
    locals: Vec<Local>,
    now: u32,
}

impl World {
    fn new(capacity: u32, workers: usize) -> Self {
        let epochs = Arc::new(Epochs::new(workers + 1));
        for worker in 0..workers {
            epochs.arrive(worker);
        }
        Self {
            conntrack: Conntrack::new(capacity, workers, 16, epochs.clone()),
            epochs,
            locals: (0..workers).map(Local::new).collect(),
            now: 1000,
        }
    }

    /// Turns of all workers, enough for everything that is due now.
    fn turn(&mut self) {
        for _ in 0..self.conntrack.shared.count() / 64 + 4 {
            for (worker, local) in self.locals.iter_mut().enumerate() {
                self.epochs.quiesce(worker);
                local.turn(&self.conntrack, self.now);
            }
        }
    }

    /// Lets seconds pass, one by one.
    fn pass(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.now += 1;
            self.turn();
        }
    }

    fn insert<F: Family>(&mut self, worker: usize, new: &NewConnection<F>) -> Result<Ref, Refused> {
        self.locals[worker].owner::<F>().insert(self.conntrack.table::<F>(), new, self.now)
    }

    /// Enters what a packet without translation begins.
    fn begin(&mut self, worker: usize, key: Key4, packet: &Packet) -> Result<Ref, Refused> {
        let begun = packet.begin(&key, true, self.now).expect("something that can begin");
        let new = NewConnection { begun, ..plain(key, key.reversed()) };
        let half = self.insert(worker, &new)?;
        self.conntrack.v4.half(half).touch(self.now, packet.bytes);
        Ok(half)
    }

    fn find(&self, key: Key4) -> Option<Ref> {
        let hash = self.conntrack.v4.hash(&key);
        let found = self.conntrack.v4.find(&key, hash);
        // What is found is found by the quick search, too, and the other way round.
        assert_eq!(
            self.conntrack.v4.candidate(hash).filter(|&half| self
                .conntrack
                .v4
                .half(half)
                .matches(&key.compact())),
            found
        );
        found
    }

    /// A packet of a connection that there is.
    fn packet(&mut self, worker: usize, key: Key4, packet: &Packet) -> Fate {
        let half = self.find(key).expect("a connection");
        self.locals[worker].v4.update(&self.conntrack.v4, half, packet, self.now)
    }

    fn counter(&self, name: &str) -> u64 {
        self.conntrack.shared.totals().into_iter().find(|(known, _)| *known == name).expect("a counter").1
    }

    /// Slots that are free, at hand of a worker or in the pool, or were never used; and all.
    fn slots(&self) -> (u32, u32) {
        let table = &self.conntrack.v4;
        let at_hand: u32 = self.locals.iter().map(|local| local.v4.free_count()).sum();
        let (fresh, all) = table.slots();
        (at_hand + table.lent() + fresh, all)
    }
}

const UDP: Packet = Packet { bytes: 100, tcp: None, sctp: None };

fn key(protocol: u8, n: u32) -> Key4 {
    let destination_port = if protocol == 1 { 8 } else { 80 };
    Key4 {
        source: 0x0a00_0000 + (n >> 14),
        destination: 0xc000_0201,
        source_port: 1024 + (n & 0x3fff) as u16,
        destination_port,
        protocol,
    }
}

fn plain(original: Key4, reply: Key4) -> NewConnection<V4> {
    NewConnection {
        original,
        reply,
        begun: UDP.begin(&Key4 { protocol: 17, ..original }, true, 0).expect("UDP begins"),
        port: 1,
        next_hop: None,
        watched: false,
        related: false,
        balanced: None,
    }
}

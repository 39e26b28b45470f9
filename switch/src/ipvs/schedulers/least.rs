//! The first of the best of many servers without looking at all of them: a tournament that is played again only where
//! servers posted a change ([`super::board`]).
//!
//! The winner is the one that Linux's plain scan finds: the first in the list of those that nobody is better than.
#![forbid(unsafe_code)]

use std::marker::PhantomData;
use std::sync::Arc;

use super::super::destination::Destination;
use super::board::Board;

/// Up to so many servers looking at each is cheaper than keeping count.
pub(super) const SCANNED: usize = 8;

/// A server that takes no part.
pub(super) const OUT: u64 = u64::MAX;

/// What makes one server better than another.
pub(super) trait Measure {
    /// What a server is compared by, [`OUT`] if it may not be chosen.
    fn measure(server: &Destination) -> u64;
    /// Whether `a` is better than `b`; neither is [`OUT`].
    fn better(a: u64, b: u64) -> bool;
}

/// A load for each unit of weight: a fraction in 64 bits, compared exactly. The weight is above 0.
#[inline]
pub(super) fn load(connections: u64, weight: i32) -> u64 {
    connections.min((1 << 33) - 1) << 31 | u64::from(weight as u32 & 0x7fff_ffff)
}

/// Whether the load `a` is less than `b`.
#[inline]
pub(super) fn less(a: u64, b: u64) -> bool {
    const WEIGHT: u64 = 0x7fff_ffff;
    (a >> 31) * (b & WEIGHT) < (b >> 31) * (a & WEIGHT)
}

/// Linux's count of a server's connections: an active one weighs as much as 256 inactive ones.
#[inline]
pub(super) fn overhead(server: &Destination) -> u64 {
    (u64::from(server.active()) << 8) + u64::from(server.inactive())
}

/// The choice by looking at each server.
#[inline]
pub(super) fn scan<M: Measure>(servers: &[Arc<Destination>]) -> Option<&Arc<Destination>> {
    let mut best = OUT;
    let mut chosen = None;
    for server in servers {
        let measure = M::measure(server);
        if measure != OUT && (best == OUT || M::better(measure, best)) {
            (best, chosen) = (measure, Some(server));
        }
    }
    chosen
}

/// The tournament: servers are leaves, in the order of the list.
#[derive(Debug)]
pub(super) struct Least<M> {
    /// What each server was last seen with; as many as a power of two.
    measures: Box<[u64]>,
    /// The number of the winner below each inner node; node 1 is the root, the children of `n` are `2n` and `2n + 1`.
    winners: Box<[u32]>,
    measure: PhantomData<M>,
}

impl<M: Measure> Least<M> {
    /// Looks at all servers; few are not kept count of.
    pub(super) fn new(servers: &[Arc<Destination>]) -> Self {
        let size = if servers.len() <= SCANNED { 0 } else { servers.len().next_power_of_two() };
        let mut measures: Vec<u64> = servers.iter().map(|server| M::measure(server)).collect();
        measures.resize(size, OUT);
        let mut least =
            Self { measures: measures.into(), winners: vec![0; size].into(), measure: PhantomData };
        for node in (1..size).rev() {
            least.winners[node] = least.play(node);
        }
        least
    }

    #[inline]
    fn winner(&self, node: usize) -> usize {
        let size = self.winners.len();
        if node >= size { node - size } else { self.winners[node] as usize }
    }

    #[inline]
    fn play(&self, node: usize) -> u32 {
        let (left, right) = (self.winner(2 * node), self.winner(2 * node + 1));
        let (a, b) = (self.measures[left], self.measures[right]);
        let right_wins = b != OUT && (a == OUT || M::better(b, a));
        if right_wins { right as u32 } else { left as u32 }
    }

    #[inline]
    fn look(&mut self, at: usize, server: &Destination) {
        let measure = M::measure(server);
        if self.measures[at] == measure {
            return;
        }
        self.measures[at] = measure;
        let mut node = (self.winners.len() + at) / 2;
        while node > 0 {
            let winner = self.play(node);
            if self.winners[node] == winner && winner as usize != at {
                // Above, nothing depends on the one that changed.
                return;
            }
            self.winners[node] = winner;
            node /= 2;
        }
    }

    /// The choice, after a look at the servers that posted a change on `board`.
    #[inline]
    pub(super) fn choose<'a>(
        &mut self,
        servers: &'a [Arc<Destination>],
        board: Option<&Board>,
    ) -> Option<&'a Arc<Destination>> {
        if servers.len() <= SCANNED {
            return scan::<M>(servers);
        }
        if let Some(board) = board {
            board.take(|slots| {
                let first = slots.start.min(servers.len());
                let changed = &servers[first..slots.end.min(servers.len())];
                changed.iter().zip(first..).for_each(|(server, at)| self.look(at, server));
            });
        }
        let winner = self.winner(1);
        if self.measures[winner] == OUT { None } else { servers.get(winner) }
    }
}

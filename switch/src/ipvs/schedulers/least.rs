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

/// What makes one server better than another.
pub(super) trait Measure {
    /// A server that may not be chosen: no better than any.
    const OUT: u64;
    /// What a server is compared by.
    fn measure(server: &Destination) -> u64;
    /// Whether `a` is better than `b`.
    fn better(a: u64, b: u64) -> bool;
}

/// A load for each unit of weight: a fraction in 64 bits, compared exactly. The weight is above 0.
#[inline]
pub(super) fn load(connections: u64, weight: i32) -> u64 {
    connections.min((1 << 33) - 1) << 31 | u64::from(weight as u32 & 0x7fff_ffff)
}

/// More than any load.
pub(super) const ENDLESS: u64 = u64::MAX << 31;

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
    let mut best = M::OUT;
    let mut chosen = None;
    for server in servers {
        let measure = M::measure(server);
        if M::better(measure, best) {
            (best, chosen) = (measure, Some(server));
        }
    }
    chosen
}

/// A server and what it was last seen with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Player {
    measure: u64,
    number: usize,
}

/// The tournament: servers are leaves, in the order of the list.
#[derive(Debug)]
pub(super) struct Least<M> {
    /// The winner below each node: node 1 is the root, the children of `n` are `2n` and `2n + 1`, the leaves are the upper
    /// half.
    nodes: Box<[Player]>,
    measure: PhantomData<M>,
}

impl<M: Measure> Least<M> {
    /// Looks at all servers; few are not kept count of.
    pub(super) fn new(servers: &[Arc<Destination>]) -> Self {
        let size = if servers.len() <= SCANNED { 0 } else { servers.len().next_power_of_two() };
        let mut nodes = vec![Player { measure: M::OUT, number: 0 }; 2 * size];
        for (number, (node, server)) in nodes.iter_mut().skip(size).zip(servers).enumerate() {
            *node = Player { measure: M::measure(server), number };
        }
        for node in (1..size).rev() {
            nodes[node] = Self::play(nodes[2 * node], nodes[2 * node + 1]);
        }
        Self { nodes: nodes.into(), measure: PhantomData }
    }

    /// The better one, the left one of equals.
    #[inline]
    fn play(left: Player, right: Player) -> Player {
        if M::better(right.measure, left.measure) { right } else { left }
    }

    #[inline]
    fn look(&mut self, number: usize, server: &Destination) {
        let mut node = self.nodes.len() / 2 + number;
        let mut winner = Player { measure: M::measure(server), number };
        // As soon as a winner is the same as before, so are those above.
        while self.nodes[node] != winner {
            self.nodes[node] = winner;
            let other = self.nodes[node ^ 1];
            let (left, right) = if node & 1 == 0 { (winner, other) } else { (other, winner) };
            winner = Self::play(left, right);
            node /= 2;
            if node == 0 {
                return;
            }
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
                changed.iter().zip(first..).for_each(|(server, number)| self.look(number, server));
            });
        }
        let winner = self.nodes[1];
        if winner.measure == M::OUT { None } else { servers.get(winner.number) }
    }
}

//! Weighted round robin as Linux has it: rounds through the servers, in each of which those take part whose weight is at
//! least the round's; a round's weight is that of the one before less the greatest common divisor of all weights.
//!
//! Where Linux goes through round after round in which nobody takes part (a server of weight 2,147,483,647 that is
//! overloaded, besides one of weight 1), those rounds are left out here: the choice is the same.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::super::destination::Destination;
use super::Weights;

/// Where the rounds are.
#[derive(Debug, Default)]
pub(super) struct Mark {
    /// The server chosen last; `None`: a round begins.
    last: Option<u32>,
    /// The weight of this round.
    current: i32,
    /// The weight of the first round.
    first: i32,
    /// By how much it goes down.
    step: i32,
}

impl Mark {
    /// Begins with the first of `steps` and follows the others.
    pub(super) fn new(steps: &[Weights]) -> Self {
        let mut mark = Self { step: 1, ..Self::default() };
        if let Some((begin, changes)) = steps.split_first() {
            mark.measure(*begin);
            mark.current = mark.first;
            mark = mark.changed(changes);
        }
        mark
    }

    /// A round's weight is lowered so that the last round's is 1: a server whose weight falls meanwhile is not left out.
    fn measure(&mut self, weights: Weights) {
        self.last = None;
        self.step = weights.divisor;
        self.first = weights.largest - (weights.divisor - 1);
    }

    /// Where the rounds are after servers came, went or changed.
    pub(super) fn changed(mut self, steps: &[Weights]) -> Self {
        for &weights in steps {
            self.measure(weights);
            if self.current > self.first || self.current == 0 {
                self.current = self.first;
            } else if self.step > 1 {
                self.current = self.current / self.step * self.step + 1;
            }
        }
        self
    }

    #[inline]
    pub(super) fn choose<'a>(&mut self, servers: &'a [Arc<Destination>]) -> Option<&'a Arc<Destination>> {
        if self.first <= 0 {
            return None;
        }
        let begin = self.last.map_or(0, |last| last as usize + 1).min(servers.len());
        let (mut last_round, mut again, mut stop) = (false, false, usize::MAX);
        let mut from = begin;
        loop {
            let mut heaviest = 0;
            for (at, server) in servers.iter().enumerate().skip(from) {
                let weight = if server.is_overloaded() { 0 } else { server.weight() };
                if weight > 0 && weight >= self.current {
                    self.last = Some(at as u32);
                    return Some(server);
                }
                heaviest = heaviest.max(weight);
                if at == stop {
                    self.last = Some(at as u32);
                    return None;
                }
            }
            if from == 0 {
                self.skip(heaviest);
            }
            from = 0;
            self.current -= self.step;
            if self.current <= 0 {
                self.current = self.first;
                // All servers were asked for a weight of 1 or more.
                if last_round || self.last.is_none() {
                    self.last = None;
                    return None;
                }
                again = true;
            }
            last_round = self.current <= self.step;
            if let Some(last) = self.last
                && last_round
                && again
            {
                // The servers behind the beginning were asked before.
                stop = last as usize;
            }
        }
    }

    /// Leaves out the rounds above `heaviest`, but not the last one.
    fn skip(&mut self, heaviest: i32) {
        let lowest = (self.current - 1) % self.step + 1;
        let above = (self.current - heaviest).max(0);
        let rounds = above / self.step + i32::from(above % self.step != 0);
        let next =
            (i64::from(self.current) - i64::from(rounds) * i64::from(self.step)).max(lowest.into()) as i32;
        if next < self.current {
            self.current = next + self.step;
        }
    }
}

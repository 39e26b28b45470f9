//! What time does to neighbours (RFC 4861, 7.3; the kernel's `neigh_timer_handler` and its defaults).
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering;

use super::slot::{Slot, State};
use super::{Address, Neighbours};
use crate::packet::ethernet::Mac;

/// Times in seconds, and counts; the defaults are Linux's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Base of the time for which an answer is believed (`base_reachable_time`); half to one and a half of it is used.
    pub reachable: u32,
    /// How long a neighbour in use may give a sign before it is asked (`delay_first_probe_time`).
    pub delay: u32,
    /// Between two questions (`retrans_time`).
    pub retransmit: u32,
    /// Questions to the neighbour itself before it is given up (`ucast_solicit`).
    pub unicast_probes: u32,
    /// Questions to everybody before it is given up (`mcast_solicit`).
    pub multicast_probes: u32,
    /// Unused entries are kept for this long (`gc_stale_time`)...
    pub keep: u32,
    /// ...or longer while there are fewer than these (`gc_thresh1`).
    pub keep_count: u32,
    /// Entries that did not answer are kept for this long after their last use.
    pub keep_failed: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            reachable: 30,
            delay: 5,
            retransmit: 1,
            unicast_probes: 3,
            multicast_probes: 3,
            keep: 60,
            keep_count: 128,
            keep_failed: 15,
        }
    }
}

/// Seconds after which the believed time is drawn anew (the kernel's five minutes).
const DRAW: u32 = 300;

/// What [`Neighbours::tick`] wants to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask for a neighbour: ARP request or neighbour solicitation.
    Ask {
        /// Number of the interface.
        interface: u16,
        /// Whom.
        address: Address,
        /// Ask this station; `None`: everybody.
        mac: Option<Mac>,
    },
    /// Nobody answered: what waits for the neighbour is refused (ICMP host or address unreachable).
    Failed {
        /// Number of the interface.
        interface: u16,
        /// Who.
        address: Address,
    },
}

/// What is to become of an entry.
enum Fate {
    Keep,
    Drop,
    Ask(Option<Mac>),
    Fail,
}

fn passed(now: u32, since: u32) -> u32 {
    // A worker's clock may be a second ahead.
    (now.wrapping_sub(since) as i32).max(0) as u32
}

impl Neighbours {
    /// Ages all entries and appends what is to be done; to be called about once a second. Of those that are to be asked,
    /// `most` are at a time; the others keep their state until it is their turn.
    pub fn tick(&self, now: u32, most: usize, actions: &mut Vec<Action>) {
        if now.is_multiple_of(DRAW) {
            let base = self.timing.reachable.max(2);
            let random = RandomState::new().hash_one(now) % u64::from(base);
            self.reachable.store(base / 2 + random as u32, Ordering::Relaxed);
        }
        // Begins with the first of those that had to wait.
        let (first, high) = {
            let mut writer = self.lock();
            (std::mem::take(&mut writer.waiting), writer.high())
        };
        let mut left = most;
        let (begin, rest) = (first..high, 0..first.min(high));
        for range in [begin, rest] {
            for start in range.clone().step_by(1024) {
                // The lock is let go now and then, so that workers get at it.
                let mut writer = self.lock();
                for id in start..(start + 1024).min(range.end) {
                    let slot = &self.slots[id];
                    let Some((interface, address, _)) = slot.owner() else { continue };
                    let may_ask = left > 0;
                    match self.age(slot, now, may_ask) {
                        Fate::Keep => {}
                        Fate::Drop => self.release(&mut writer, id as u32),
                        Fate::Fail => actions.push(Action::Failed { interface, address }),
                        Fate::Ask(mac) => {
                            left -= 1;
                            actions.push(Action::Ask { interface, address, mac });
                            if left == 0 {
                                writer.waiting = id + 1;
                            }
                        }
                    }
                }
            }
        }
    }

    fn age(&self, slot: &Slot, now: u32, may_ask: bool) -> Fate {
        let link = slot.link();
        let timing = &self.timing;
        let in_state = passed(now, slot.since());
        let idle = passed(now, slot.used()).min(passed(now, slot.confirmed())).min(in_state);
        match link.state() {
            State::Permanent | State::NoArp => Fate::Keep,
            State::Reachable => {
                if passed(now, slot.confirmed()) > self.reachable.load(Ordering::Relaxed) {
                    let in_use = passed(now, slot.used()) <= timing.delay;
                    slot.change(link, link.with(if in_use { State::Delay } else { State::Stale }), now);
                }
                Fate::Keep
            }
            State::Stale if idle <= timing.keep || self.len() < timing.keep_count => Fate::Keep,
            State::Stale => Fate::Drop,
            State::Delay => {
                if may_ask && in_state >= timing.delay && slot.change(link, link.with(State::Probe), now) {
                    slot.set_probes(1);
                    return Fate::Ask(Some(link.mac()));
                }
                Fate::Keep
            }
            State::Incomplete | State::Probe => {
                if in_state < timing.retransmit {
                    return Fate::Keep;
                }
                let probing = link.state() == State::Probe;
                let most = if probing { timing.unicast_probes } else { timing.multicast_probes };
                if slot.probes() < most {
                    if !may_ask {
                        return Fate::Keep;
                    }
                    slot.set_probes(slot.probes() + 1);
                    slot.set_since(now);
                    return Fate::Ask(probing.then(|| link.mac()));
                }
                if slot.change(link, link.with(State::Failed), now) {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    return Fate::Fail;
                }
                Fate::Keep
            }
            State::Failed if idle <= timing.keep_failed => Fate::Keep,
            State::Failed => Fate::Drop,
        }
    }
}

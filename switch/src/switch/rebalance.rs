//! Queues spread anew by what they cost: when somebody asks, or by itself where that is switched on.
#![forbid(unsafe_code)]

use super::Switch;
use crate::clock;
use crate::config::document::Key;
use crate::config::{RebalanceChange, Rebalancing};
use crate::spread::load::Loads;
use crate::spread::{Placed, Plan, plan};
use crate::tables::{QueueId, Queues};

/// What is known for the next time that queues are spread anew.
pub(crate) struct Rebalancer {
    pub(crate) settings: Rebalancing,
    loads: Loads,
    /// Second of the tables' clock in which it was last looked whether something is to be done, or that was set.
    looked: u32,
    /// How often queues were moved without being asked.
    pub(crate) automatic: u64,
}

impl Rebalancer {
    pub(super) fn new(now: u32) -> Self {
        let settings = Rebalancing::default();
        Self { settings, loads: Loads::new(clock::cycles()), looked: now, automatic: 0 }
    }
}

impl Switch {
    /// All queues and the cycles that they have cost.
    fn costs(&self) -> impl Iterator<Item = (QueueId, u64)> + '_ {
        self.ports.values().flat_map(|member| {
            let port = member.port.number();
            (0..member.port.queues()).map(move |queue| {
                let busy = member.port.queue_counters(queue).busy_cycles.get();
                (QueueId { port, queue: queue as u16 }, busy)
            })
        })
    }

    /// All queues with what they cost of late, in no order.
    pub(crate) fn placed(&self) -> Vec<Placed> {
        let tables = self.assignment();
        let now = clock::cycles();
        let mut placed = Vec::new();
        for (worker, queues) in tables.queues.iter().enumerate() {
            for &queue in queues.iter() {
                let Some(entry) = tables.port(queue.port) else { continue };
                let busy = entry.port.queue_counters(usize::from(queue.queue)).busy_cycles.get();
                let load = self.rebalancer.loads.of(queue, busy, now);
                placed.push(Placed { queue, worker, pinned: false, load });
            }
        }
        for member in self.ports.values().filter(|member| !member.pins.is_empty()) {
            let port = member.port.number();
            for queue in placed.iter_mut().filter(|placed| placed.queue.port == port) {
                queue.pinned = member.pins.contains_key(&queue.queue.queue);
            }
        }
        placed
    }

    /// Seconds that the loads of [`Switch::placed`] were measured over.
    pub(crate) fn load_window(&self) -> f64 {
        let cycles_per_second = clock::cycles_per_us() as f64 * 1e6;
        self.rebalancer.loads.window(clock::cycles()) as f64 / cycles_per_second
    }

    /// Works out how queues would be spread by what they cost.
    pub fn plan_rebalance(&self) -> Plan {
        plan(&self.placed(), self.workers.len())
    }

    /// Moves queues to other workers; when it returns they are there.
    pub fn carry_out(&mut self, plan: &Plan) {
        if plan.moves.is_empty() {
            return;
        }
        let mut homes: Vec<Vec<QueueId>> =
            self.assignment().queues.iter().map(|queues| queues.to_vec()).collect();
        for step in &plan.moves {
            homes[step.from].retain(|queue| *queue != step.queue);
            homes[step.to].push(step.queue);
        }
        let homes: Vec<Queues> = homes.into_iter().map(Into::into).collect();
        self.publish_with(&homes);
    }

    /// Changes when queues are spread anew by themselves. The time until the next look begins anew.
    pub(crate) fn set_rebalancing(&mut self, change: RebalanceChange) {
        self.touch(Key::Rebalance);
        self.rebalancer.settings.change(change);
        self.rebalancer.looked = self.now();
    }

    /// To be called about once a second.
    pub(super) fn tick_rebalancer(&mut self) {
        let now = self.now();
        let mut loads = std::mem::take(&mut self.rebalancer.loads);
        loads.sample(clock::cycles(), clock::cycles_per_us() * 1_000_000, || self.costs());
        self.rebalancer.loads = loads;
        let settings = self.rebalancer.settings;
        if !settings.auto || now.saturating_sub(self.rebalancer.looked) < settings.interval {
            return;
        }
        self.rebalancer.looked = now;
        if self.workers.len() < 2 {
            return;
        }
        let plan = self.plan_rebalance();
        if !settings.asks_for(&plan) {
            return;
        }
        self.carry_out(&plan);
        self.rebalancer.automatic += 1;
        tracing::info!(
            "rebalanced: {} queues moved, the variance of the workers' loads is {:.0}% less",
            plan.moves.len(),
            plan.improvement()
        );
    }
}

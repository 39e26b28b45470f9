//! Spreading queues over workers by what they cost.
//!
//! The costliest queue first, each goes to the worker that has least so far (longest processing time first; at most a
//! third worse than the best there is: R. L. Graham, 1969), but stays where it is if that is about as good: a move costs
//! caches, and a queue that hops is of no use to anybody. Pinned queues stay, and so do those that cost nothing.
#![forbid(unsafe_code)]

use crate::tables::QueueId;

/// What a queue takes of a worker before it counts: a thousandth.
const NEGLIGIBLE: f64 = 0.001;
/// The part of a queue's cost that a worker may have more than the least loaded one and still keep the queue.
const SLACK: f64 = 0.1;

/// A queue, where it is, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placed {
    /// The queue.
    pub queue: QueueId,
    /// Number of its worker.
    pub worker: usize,
    /// Whether it is tied to that worker.
    pub pinned: bool,
    /// The part of a worker's time that it takes, 0 to 1.
    pub load: f64,
}

/// A queue that is to change its worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    /// The queue.
    pub queue: QueueId,
    /// Worker that has it.
    pub from: usize,
    /// Worker that is to get it.
    pub to: usize,
    /// The part of a worker's time that it takes, 0 to 1.
    pub load: f64,
}

/// What to move, and what comes of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Moves, the costliest first.
    pub moves: Vec<Move>,
    /// What the queues of each worker take of its time.
    pub before: Vec<f64>,
    /// The same after the moves, if queues cost then what they cost now.
    pub after: Vec<f64>,
}

impl Plan {
    /// By how many percent the moves lessen the variance of the workers' loads.
    pub fn improvement(&self) -> f64 {
        let before = variance(&self.before);
        if before <= f64::EPSILON { 0.0 } else { (before - variance(&self.after)) * 100.0 / before }
    }
}

fn variance(loads: &[f64]) -> f64 {
    let count = loads.len().max(1) as f64;
    let mean = loads.iter().sum::<f64>() / count;
    loads.iter().map(|load| (load - mean).powi(2)).sum::<f64>() / count
}

/// Spreads the queues over `workers` workers; no moves where they would make nothing better.
pub fn plan(placed: &[Placed], workers: usize) -> Plan {
    let movable = |queue: &Placed| !queue.pinned && queue.load >= NEGLIGIBLE;
    let mut before = vec![0.0; workers];
    let mut after = vec![0.0; workers];
    for queue in placed.iter().filter(|queue| queue.worker < workers) {
        before[queue.worker] += queue.load;
        if !movable(queue) {
            after[queue.worker] += queue.load;
        }
    }
    let mut costly: Vec<&Placed> = placed.iter().filter(|q| q.worker < workers && movable(q)).collect();
    costly.sort_by(|a, b| b.load.total_cmp(&a.load).then(a.queue.cmp(&b.queue)));
    let mut moves = Vec::new();
    for queue in costly {
        let least = (0..workers).min_by(|&a, &b| after[a].total_cmp(&after[b])).unwrap_or(queue.worker);
        let stays = after[queue.worker] <= after[least] + SLACK * queue.load;
        let to = if stays { queue.worker } else { least };
        after[to] += queue.load;
        if to != queue.worker {
            moves.push(Move { queue: queue.queue, from: queue.worker, to, load: queue.load });
        }
    }
    let plan = Plan { moves, before, after };
    if plan.improvement() > 0.0 {
        return plan;
    }
    Plan { moves: Vec::new(), after: plan.before.clone(), before: plan.before }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn placed(loads: &[(usize, f64)]) -> Vec<Placed> {
        let queue = |n: usize| QueueId { port: n as u16, queue: 0 };
        let place = |(n, &(worker, load)): (usize, &(usize, f64))| Placed {
            queue: queue(n),
            worker,
            pinned: false,
            load,
        };
        loads.iter().enumerate().map(place).collect()
    }

    #[test]
    fn two_busy_queues_on_one_worker_part() {
        let plan = plan(&placed(&[(0, 0.5), (0, 0.48), (1, 0.0)]), 2);
        assert_eq!(plan.moves.len(), 1);
        assert_eq!((plan.moves[0].queue.port, plan.moves[0].from, plan.moves[0].to), (1, 0, 1));
        assert!((plan.after[0] - 0.5).abs() < 1e-9 && (plan.after[1] - 0.48).abs() < 1e-9);
        assert!(plan.improvement() > 99.0);
    }

    #[test]
    fn what_is_balanced_stays_and_so_do_single_queues() {
        for loads in [
            &[(0, 0.5), (1, 0.49), (0, 0.48), (1, 0.5)][..],
            &[(0, 0.9), (1, 0.0), (1, 0.0005)],
            &[(0, 0.3), (0, 0.2), (1, 0.31), (1, 0.2)],
            &[],
        ] {
            assert_eq!(plan(&placed(loads), 2).moves, [], "{loads:?}");
        }
        assert_eq!(plan(&placed(&[(0, 0.5), (0, 0.5)]), 1).moves, []);
    }

    #[test]
    fn pinned_queues_stay_and_others_go_around_them() {
        let mut queues = placed(&[(0, 0.6), (0, 0.3)]);
        queues[0].pinned = true;
        let one = plan(&queues, 2);
        assert_eq!(one.moves.iter().map(|m| m.queue.port).collect::<Vec<_>>(), [1]);
        queues[1].pinned = true;
        assert_eq!(plan(&queues, 2).moves, []);
    }

    proptest! {
        #[test]
        fn plans_never_make_things_worse_and_lose_no_queue(
            loads in proptest::collection::vec((0usize..8, 0.0f64..0.3, any::<bool>()), 0..200),
        ) {
            let mut queues = placed(&loads.iter().map(|&(w, load, _)| (w, load)).collect::<Vec<_>>());
            for (queue, (_, _, pinned)) in queues.iter_mut().zip(&loads) {
                queue.pinned = *pinned;
            }
            let plan = plan(&queues, 8);
            let total = |loads: &[f64]| loads.iter().sum::<f64>();
            prop_assert!((total(&plan.before) - total(&plan.after)).abs() < 1e-6);
            prop_assert!(variance(&plan.after) <= variance(&plan.before) + 1e-9);
            let mut moved = queues.clone();
            for step in &plan.moves {
                let queue = moved.iter_mut().find(|q| q.queue == step.queue).expect("one of them");
                prop_assert!(!queue.pinned && queue.worker == step.from && step.to != step.from);
                queue.worker = step.to;
            }
            for worker in 0..8 {
                let sum: f64 = moved.iter().filter(|q| q.worker == worker).map(|q| q.load).sum();
                prop_assert!((sum - plan.after[worker]).abs() < 1e-6);
            }
            // Graham's bound, where nothing is pinned: the most loaded worker has no more than the mean and one queue,
            // beside the slack.
            if queues.iter().all(|q| !q.pinned) && !plan.moves.is_empty() {
                let most = plan.after.iter().copied().fold(0.0, f64::max);
                let largest = queues.iter().map(|q| q.load).fold(0.0, f64::max);
                prop_assert!(most <= total(&plan.after) / 8.0 + largest * (1.0 + SLACK) + 200.0 * NEGLIGIBLE);
            }
        }
    }
}

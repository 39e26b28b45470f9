//! Which worker receives from which queue: where new queues go ([`assign`]), and how queues are spread anew by what they
//! cost ([`plan`], from what [`load`] measured).
#![forbid(unsafe_code)]

pub mod load;
mod plan;

use std::collections::HashMap;

use crate::tables::{QueueId, Queues};

pub use plan::{Move, Placed, Plan, plan};

/// A queue, and the worker that it is tied to, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The queue.
    pub queue: QueueId,
    /// Number of the worker.
    pub pin: Option<usize>,
}

/// Gives every queue to a worker: pinned ones to theirs, those that have a home stay there, the others go to whoever has
/// fewest. So neither a new port nor a deleted one moves the queues of others. Ascending for each worker.
pub fn assign(claims: &[Claim], homes: &[Queues], workers: usize) -> Vec<Vec<QueueId>> {
    let listed = homes.iter().enumerate().take(workers);
    let homes: HashMap<QueueId, usize> =
        listed.flat_map(|(worker, list)| list.iter().map(move |&queue| (queue, worker))).collect();
    let mut assigned = vec![Vec::new(); workers];
    let mut homeless = Vec::new();
    for claim in claims {
        let pin = claim.pin.filter(|&worker| worker < workers);
        match pin.or_else(|| homes.get(&claim.queue).copied()) {
            Some(worker) => assigned[worker].push(claim.queue),
            None => homeless.push(claim.queue),
        }
    }
    for queue in homeless {
        if let Some(list) = assigned.iter_mut().min_by_key(|list| list.len()) {
            list.push(queue);
        }
    }
    assigned.iter_mut().for_each(|list| list.sort_unstable());
    assigned
}

/// The queues that have a worker before and another one after, ascending.
pub fn movers(before: &[Queues], after: &[Vec<QueueId>]) -> Vec<QueueId> {
    let mut movers = Vec::new();
    for (worker, list) in after.iter().enumerate() {
        let stays = |queue: &QueueId| before.get(worker).is_some_and(|old| old.binary_search(queue).is_ok());
        let had = |queue: &QueueId| before.iter().any(|old| old.binary_search(queue).is_ok());
        movers.extend(list.iter().filter(|queue| !stays(queue) && had(queue)));
    }
    movers.sort_unstable();
    movers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(port: u16, queue: u16, pin: Option<usize>) -> Claim {
        Claim { queue: QueueId { port, queue }, pin }
    }

    fn shared(lists: &[Vec<QueueId>]) -> Vec<Queues> {
        lists.iter().map(|list| list.clone().into()).collect()
    }

    #[test]
    fn queues_are_spread_evenly_and_pins_are_kept() {
        let mut claims: Vec<_> = (0..4).map(|queue| claim(1, queue, None)).collect();
        let first = assign(&claims, &[], 2);
        assert!(first.iter().all(|list| list.len() == 2));
        assert!(movers(&[], &first).is_empty(), "a new queue does not move");
        claims[0].pin = Some(1);
        claims[1].pin = Some(1);
        let second = assign(&claims, &shared(&first), 2);
        assert!(claims[..2].iter().all(|claim| second[1].contains(&claim.queue)));
        let moved: Vec<_> = claims[..2].iter().map(|c| c.queue).filter(|q| first[0].contains(q)).collect();
        assert_eq!(movers(&shared(&first), &second), moved);
        assert_eq!(moved.len(), 1, "of two queues one was there already");
        // A pin to a worker that is not there is none.
        claims[2].pin = Some(7);
        assert_eq!(assign(&claims, &shared(&second), 2), second);
    }

    #[test]
    fn neither_a_new_port_nor_a_deleted_one_moves_others() {
        let mut claims = vec![claim(1, 0, None), claim(2, 0, None), claim(3, 0, None), claim(4, 0, None)];
        let first = assign(&claims, &[], 2);
        claims.insert(0, claim(0, 0, None));
        let second = assign(&claims, &shared(&first), 2);
        assert!(movers(&shared(&first), &second).is_empty());
        claims.retain(|claim| !first[0].contains(&claim.queue) && claim.queue.port != 0);
        let third = assign(&claims, &shared(&second), 2);
        assert!(movers(&shared(&second), &third).is_empty());
        assert_eq!((third[0].len(), third[1].len()), (0, 2));
        claims.push(claim(5, 0, None));
        assert_eq!(
            assign(&claims, &shared(&third), 2)[0].len(),
            1,
            "a new queue goes where there are fewest"
        );
    }

    #[test]
    fn a_hundred_queues_of_a_port_go_over_eight_workers() {
        let claims: Vec<_> = (0..128).map(|queue| claim(9, queue, None)).collect();
        let lists = assign(&claims, &[], 8);
        assert!(lists.iter().all(|list| list.len() == 16 && list.is_sorted()));
    }
}

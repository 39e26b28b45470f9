//! What is configured, as workers see it: one immutable snapshot, replaced as a whole.
//!
//! A worker picks up the newest snapshot between two turns of its loop and says so; the control thread drops the old
//! one, and whatever only the old one held, after all workers have said so. No worker ever frees a port.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::l2::fdb::Fdb;
use crate::l3::table::RouterTable;
use crate::policy::guard::Guard;
use crate::port::Port;

/// A receive queue of a port, to be polled by one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId {
    /// Port number.
    pub port: u16,
    /// Queue (pair) of the port.
    pub queue: u16,
}

/// A bridge as the packet path needs it.
pub struct BridgeTable {
    /// Its number, among bridges.
    pub number: u16,
    /// Whether frames from port to port meet the policy.
    pub filter: bool,
    /// Who is where.
    pub fdb: Arc<Fdb>,
    /// The numbers of its ports, and of its interfaces ([`crate::members::interface_number`]).
    pub members: Box<[u16]>,
}

/// A port and the bridge that it belongs to.
#[derive(Clone)]
pub struct PortEntry {
    /// The port.
    pub port: Arc<Port>,
    /// Its bridge.
    pub bridge: Arc<BridgeTable>,
    /// Who it may send as; anybody if `None`.
    pub guard: Option<Arc<Guard>>,
}

/// The snapshot.
#[derive(Default)]
pub struct Tables {
    /// Ports by their numbers.
    pub ports: Vec<Option<PortEntry>>,
    /// For each worker, the queues that it polls.
    pub queues: Vec<Vec<QueueId>>,
    /// Layer 3, where there is an interface.
    pub router: Option<Arc<RouterTable>>,
}

impl Tables {
    /// The port of a number.
    #[inline]
    pub fn port(&self, number: u16) -> Option<&PortEntry> {
        self.ports.get(usize::from(number)).and_then(Option::as_ref)
    }
}

/// Spreads queues over workers: pinned ones to their worker, the others to whoever has fewest.
///
/// Queues that stay keep their worker where the balance allows it, since `previous` is asked first: adding a port does
/// not shuffle the others.
pub fn assign(
    queues: &[(QueueId, Option<usize>)],
    previous: &[Vec<QueueId>],
    workers: usize,
) -> Vec<Vec<QueueId>> {
    let mut assigned = vec![Vec::new(); workers];
    let free = queues.iter().filter(|(_, pin)| pin.is_none()).count();
    let pinned: Vec<usize> =
        (0..workers).map(|w| queues.iter().filter(|(_, pin)| *pin == Some(w)).count()).collect();
    for &(queue, pin) in queues {
        if let Some(worker) = pin.filter(|&worker| worker < workers) {
            assigned[worker].push(queue);
        }
    }
    // No worker gets more than an even share, unless pins alone exceed it.
    let share = (free + pinned.iter().sum::<usize>()).div_ceil(workers.max(1));
    let mut homeless = Vec::new();
    for &(queue, _) in queues.iter().filter(|(_, pin)| pin.is_none_or(|worker| worker >= workers)) {
        let home = previous.iter().position(|list| list.contains(&queue));
        match home.filter(|&worker| worker < workers && assigned[worker].len() < share) {
            Some(worker) => assigned[worker].push(queue),
            None => homeless.push(queue),
        }
    }
    for queue in homeless {
        if let Some(list) = assigned.iter_mut().min_by_key(|list| list.len()) {
            list.push(queue);
        }
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(port: u16, queue: u16) -> QueueId {
        QueueId { port, queue }
    }

    #[test]
    fn queues_are_spread_evenly_and_pins_are_kept() {
        let mut queues: Vec<_> = (0..4).map(|q| (queue(1, q), None)).collect();
        let first = assign(&queues, &[], 2);
        assert!(first.iter().all(|list| list.len() == 2));
        queues[0].1 = Some(1);
        queues[1].1 = Some(1);
        let second = assign(&queues, &first, 2);
        assert_eq!(second[1], [queue(1, 0), queue(1, 1)]);
        assert_eq!(second[0].len(), 2);
    }

    #[test]
    fn a_new_port_leaves_the_others_where_they_are() {
        let mut queues = vec![(queue(1, 0), None), (queue(2, 0), None)];
        let first = assign(&queues, &[], 2);
        queues.insert(0, (queue(0, 0), None));
        let second = assign(&queues, &first, 2);
        for worker in 0..2 {
            assert!(first[worker].iter().all(|q| second[worker].contains(q)));
        }
    }
}

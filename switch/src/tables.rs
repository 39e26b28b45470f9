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

/// The queues of one worker, in ascending order.
pub type Queues = Arc<[QueueId]>;

/// The snapshot.
#[derive(Default)]
pub struct Tables {
    /// Ports by their numbers.
    pub ports: Vec<Option<PortEntry>>,
    /// For each worker, the queues that it polls. The same memory as in the snapshot before if nothing has changed there.
    pub queues: Vec<Queues>,
    /// Layer 3, where there is an interface.
    pub router: Option<Arc<RouterTable>>,
}

impl Tables {
    /// A snapshot of nothing, for so many workers.
    pub fn empty(workers: usize) -> Self {
        Self { queues: vec![Queues::default(); workers], ..Self::default() }
    }

    /// The snapshot that follows `before`.
    pub fn new(
        ports: Vec<Option<PortEntry>>,
        queues: Vec<Vec<QueueId>>,
        router: Option<Arc<RouterTable>>,
        before: &Self,
    ) -> Self {
        let mut tables = Self { ports, queues: Vec::with_capacity(queues.len()), router };
        for (worker, list) in queues.into_iter().enumerate() {
            let kept = before.queues.get(worker).filter(|old| {
                old[..] == list[..] && old.iter().all(|queue| tables.same_port(before, queue.port))
            });
            tables.queues.push(kept.cloned().unwrap_or_else(|| list.into()));
        }
        tables
    }

    /// Whether a number means the same port in both.
    fn same_port(&self, other: &Self, number: u16) -> bool {
        match (self.port(number), other.port(number)) {
            (Some(a), Some(b)) => Arc::ptr_eq(&a.port, &b.port),
            _ => false,
        }
    }

    /// The port of a number.
    #[inline]
    pub fn port(&self, number: u16) -> Option<&PortEntry> {
        self.ports.get(usize::from(number)).and_then(Option::as_ref)
    }
}

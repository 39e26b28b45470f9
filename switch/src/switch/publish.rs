//! How what is configured reaches the workers, and how a queue goes from one worker to another.
//!
//! A snapshot is stored, its number raised, and all workers are waited for. A queue that changes its worker is nobody's
//! for a moment: the first of two snapshots takes it from the old worker, and only when that has said so (all that it
//! had fetched is delivered then) the second one gives it to the new one. What comes meanwhile waits in the queue. So
//! frames keep their order, and what only one worker may write has one writer at any time.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Switch;
use crate::config::Name;
use crate::router::live::{Around, Live};
use crate::services::Notice;
use crate::spread::{Claim, assign, movers};
use crate::tables::{BridgeTable, PortEntry, QueueId, Queues, Tables};

/// A worker that has not taken over a snapshot after this long is stuck, and the daemon says so.
const ADOPTION: Duration = Duration::from_secs(5);
/// A worker that is awake takes a snapshot over within a turn: for so long it is waited for without sleeping, since a
/// queue may have no worker meanwhile.
const SOON: Duration = Duration::from_micros(100);

impl Switch {
    /// The queues of each worker, as published last.
    pub(crate) fn assignment(&self) -> Arc<Tables> {
        self.shared.tables.load_full()
    }

    /// Whether nothing is to be published until somebody says that all is whole.
    pub(crate) fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// Gives all workers a snapshot of what is configured now, and waits until they use it. Queues stay where they are.
    pub(crate) fn publish(&mut self) {
        if self.held {
            return;
        }
        let homes = match &self.handed {
            Some(handed) => handed.homes(),
            None => self.shared.tables.load().queues.clone(),
        };
        self.publish_with(&homes);
    }

    /// As [`Switch::publish`], with queues at the workers of `homes` as far as they are not pinned elsewhere.
    pub(super) fn publish_with(&mut self, homes: &[Queues]) {
        let old = self.shared.tables.load_full();
        let claims = self.claims();
        self.follow_router();
        let ports = self.port_entries();
        let queues = assign(&claims, homes, self.workers.len());
        let moving = movers(&old.queues, &queues);
        let router = self.router_table(&ports);
        let entries = ports.entries;
        if !moving.is_empty() {
            let without = |list: &Vec<QueueId>| -> Vec<QueueId> {
                list.iter().copied().filter(|queue| moving.binary_search(queue).is_err()).collect()
            };
            let queues = queues.iter().map(without).collect();
            let tables = Tables::new(entries.clone(), queues, router.clone(), &self.shared.tables.load());
            self.hand_out(tables);
        }
        let tables = Tables::new(entries, queues, router, &self.shared.tables.load());
        if self.hand_out(tables) {
            // The last reference to what was removed is here, not at a worker.
            drop(old);
            self.router.rib.reclaim();
        } else {
            // Better a leak than memory freed under a worker that may come back: it still holds its own.
            std::mem::forget(old);
        }
    }

    /// All queues, and where each is tied to.
    fn claims(&self) -> Vec<Claim> {
        let mut claims = Vec::new();
        for member in self.ports.values() {
            let port = member.port.number();
            for queue in 0..member.port.queues() as u16 {
                let pin = member.pins.get(&queue).and_then(|&core| self.worker_on(core).ok());
                claims.push(Claim { queue: QueueId { port, queue }, pin });
            }
        }
        claims
    }

    fn port_entries(&self) -> Entries {
        let mut entries: Vec<Option<PortEntry>> = Vec::new();
        let mut bridges = BTreeMap::new();
        for (number, (name, bridge)) in self.bridges.iter().enumerate() {
            let members = self.ports_of(name.as_str());
            let ports = members.iter().map(|member| member.port.number());
            let interfaces = self.live.iter().flat_map(|live| live.members(name.as_str()));
            let table = Arc::new(BridgeTable {
                number: number as u16,
                filter: bridge.spec.filter,
                fdb: bridge.fdb.clone(),
                members: ports.chain(interfaces).collect(),
            });
            bridges.insert(*name, table.clone());
            for member in members {
                let number = usize::from(member.port.number());
                if entries.len() <= number {
                    entries.resize_with(number + 1, || None);
                }
                let interfaces = self.interfaces_on(name.as_str());
                let guard = self.guards.of(member.port.number(), &member.spec, interfaces);
                entries[number] = Some(PortEntry { port: member.port.clone(), bridge: table.clone(), guard });
            }
        }
        Entries { entries, bridges }
    }

    fn router_table(&self, made: &Entries) -> Option<Arc<crate::l3::table::RouterTable>> {
        let live = self.live.as_ref()?;
        let ports = self.ports.iter().map(|(name, member)| (*name, member.port.number())).collect();
        live.table(&self.router, &Around { bridges: &made.bridges, ports, now: self.now() })
    }

    /// Has all workers use a snapshot; false if one does not answer.
    fn hand_out(&self, tables: Tables) -> bool {
        let old = self.shared.tables.swap(Arc::new(tables));
        let number = self.shared.newest.raise();
        self.workers.iter().for_each(|worker| worker.wake());
        let start = Instant::now();
        for worker in &self.workers {
            while !worker.adopted.has(number) {
                match start.elapsed() {
                    waited if waited < SOON => std::thread::yield_now(),
                    waited if waited < ADOPTION => std::thread::sleep(Duration::from_micros(20)),
                    _ => {
                        tracing::error!("worker {} on core {} does not answer", worker.id, worker.core);
                        std::mem::forget(old);
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Brings what is in force at layer 3 up to what is configured.
    fn follow_router(&mut self) {
        let filters = self.bridges.values().any(|bridge| bridge.spec.filter);
        if self.live.is_none() && (filters || !self.router.interfaces.is_empty()) {
            let first = self.workers.first().cloned();
            let wake = Box::new(move || first.iter().for_each(|worker| worker.wake()));
            let guards = self.guards.clone();
            let notify = Box::new(move |notice: Notice| guards.hear(&notice));
            // What another process keeps is taken over when that has ended.
            let state = self.state.as_deref().filter(|_| self.handed.is_none());
            let capacity = self.router.tracking.capacity;
            match Live::new(self.workers.len(), capacity, &self.shared.epochs, state, wake, notify) {
                Ok(live) => {
                    self.router.tracking.apply(&live.conntrack.shared);
                    let first = self.workers.first().cloned();
                    self.directors.attach(&live, move || first.iter().for_each(|worker| worker.wake()));
                    self.live = Some(live);
                }
                Err(refusal) => tracing::error!("no layer 3: {refusal}"),
            }
        }
        let Some(mut live) = self.live.take() else { return };
        let up = self.interfaces_up();
        if let Err(refusal) = live.follow(&mut self.router, &|interface| up.contains(&interface.name)) {
            tracing::error!("layer 3 is not what is configured: {refusal}");
        }
        self.live = Some(live);
    }
}

/// What ports and bridges are in a snapshot.
struct Entries {
    entries: Vec<Option<PortEntry>>,
    bridges: BTreeMap<Name, Arc<BridgeTable>>,
}

//! The old process' side of what was learned: what has to be told, and what has to be told again.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::message::{Counted, Final, PortEnd, Record};
use super::port;
use crate::clock;
use crate::config::{Mac, Name};
use crate::conntrack::Conntrack;
use crate::conntrack::handover::{Copies, Kept, RECORD};
use crate::ipvs::account::Stats;
use crate::ipvs::destination::Destination;
use crate::ipvs::persistence::KeptTemplate;
use crate::ipvs::scope::Scope;
use crate::l3::neighbour;
use crate::nat::KeptMapping;
use crate::services::KeptLease;
use crate::stats::Totals;
use crate::switch::Switch;

/// Records in a message.
pub(super) const RECORDS: usize = 4096;
/// Connections in a message.
const CONNECTIONS: usize = 8192;

/// What was told so far.
#[derive(Default)]
pub(super) struct Told {
    pub(super) ports: HashMap<Name, u64>,
    servers: bool,
    stations: HashMap<(Name, Mac, u16), u16>,
    neighbours: HashMap<(u16, IpAddr), (Option<Mac>, neighbour::State)>,
    mappings: HashMap<(u8, (IpAddr, u16)), KeptMapping>,
    leases: HashMap<(Name, Ipv4Addr), KeptLease>,
    templates: HashMap<u32, KeptTemplate>,
}

/// The entries of a map that are no more; it forgets them.
fn gone<K: Copy + Eq + Hash, V>(told: &mut HashMap<K, V>, there: &HashSet<K>) -> Vec<K> {
    let gone: Vec<K> = told.keys().filter(|key| !there.contains(key)).copied().collect();
    gone.iter().for_each(|key| {
        told.remove(key);
    });
    gone
}

impl Told {
    /// What was learned, but for connections, and was not told or has changed since. What expires by itself is not told
    /// to be gone.
    pub(super) fn changed(&mut self, switch: &Switch) -> Vec<Record> {
        let mut records = Vec::new();
        if !std::mem::replace(&mut self.servers, true) {
            servers(switch, &mut records);
        }
        let now = switch.now();
        for bridge in switch.bridges.values() {
            for entry in bridge.fdb.entries(now).into_iter().filter(|entry| !entry.fixed) {
                let key = (bridge.spec.name, Mac(entry.key.mac()), entry.key.vlan());
                if self.stations.insert(key, entry.port) != Some(entry.port) {
                    let (bridge, mac, vlan) = key;
                    records.push(Record::Station { bridge, mac, vlan, port: entry.port, age: entry.age });
                }
            }
        }
        for mapping in switch.router.nat.mappings() {
            if self.mappings.insert((mapping.protocol, mapping.inside), mapping) != Some(mapping) {
                records.push(Record::Mapping(mapping));
            }
        }
        let there = switch.router.nat.mappings().iter().map(|one| (one.protocol, one.inside)).collect();
        for (protocol, inside) in gone(&mut self.mappings, &there) {
            records.push(Record::MappingGone { protocol, inside });
        }
        for template in switch.router.ipvs.templates.export(now) {
            if self.templates.insert(template.number, template) != Some(template) {
                records.push(Record::Template(template));
            }
        }
        let Some(live) = &switch.live else { return records };
        for entry in live.neighbours.entries(now).into_iter().filter(|entry| entry.mac.is_some()) {
            let told = (entry.mac, entry.state);
            if self.neighbours.insert((entry.interface, entry.address), told) != Some(told) {
                records.push(Record::Neighbour(entry));
            }
        }
        let leases = live.services.export();
        let there = leases.iter().map(|lease| (lease.interface, lease.address)).collect();
        for (interface, address) in gone(&mut self.leases, &there) {
            records.push(Record::LeaseGone { interface, address });
        }
        for lease in leases {
            let told = self.leases.insert((lease.interface, lease.address), lease.clone());
            // Times are in whole seconds of two clocks.
            let same = |told: &KeptLease| {
                told.expires.abs_diff(lease.expires) <= 2
                    && KeptLease { expires: lease.expires, ..told.clone() } == lease
            };
            if !told.as_ref().is_some_and(same) {
                records.push(Record::Lease(lease));
            }
        }
        records
    }
}

/// All real servers, by the numbers that connections name them by.
fn servers(switch: &Switch, records: &mut Vec<Record>) {
    let ipvs = &switch.router.ipvs;
    let containers = ipvs.container_names().into_iter().filter_map(|name| ipvs.container(&name));
    for scope in std::iter::once(Arc::clone(ipvs.global())).chain(containers) {
        let name = || Scope::name(&scope).map(str::to_owned);
        let in_use = |server: &Arc<Destination>| {
            server.active() > 0 || server.inactive() > 0 || server.templates() > 0
        };
        for server in scope.deleted().into_iter().filter(in_use) {
            records.push(Record::Deleted {
                scope: name(),
                service: server.account().key(),
                server: server.spec(),
                number: server.id(),
                counted: server.stats.export(),
            });
        }
        for service in scope.table.all() {
            let key = service.key();
            let view = service.view();
            let counted = |stats: &Stats| stats.export();
            if let Some(first) = view.destinations.first() {
                let counted = counted(&first.account().stats);
                records.push(Record::Service { scope: name(), service: key, counted });
            }
            for server in &view.destinations {
                records.push(Record::Server {
                    scope: name(),
                    service: key,
                    address: server.address(),
                    port: server.port(),
                    number: server.id(),
                    counted: counted(&server.stats),
                });
            }
        }
    }
}

/// Connections that were not told, or have changed since, a message's worth at a time, and the places of those that are
/// no more; how many of both.
pub(super) fn connections<E>(
    conntrack: &Conntrack,
    copies: &mut Copies,
    mut tell: impl FnMut(&[u8]) -> Result<(), E>,
    mut tell_gone: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<usize, E> {
    let mut count = 0;
    let mut batch: Vec<Kept> = Vec::with_capacity(CONNECTIONS);
    let mut gone: Vec<u64> = Vec::new();
    let show = |kept: &Kept| {
        count += 1;
        batch.push(*kept);
        if batch.len() < CONNECTIONS {
            return Ok(());
        }
        let told = tell(batch.as_bytes());
        batch.clear();
        told
    };
    conntrack.changed(copies, show, |place| {
        gone.push(place);
        Ok(())
    })?;
    // What is gone first: another one may have its addresses by now.
    for some in gone.chunks(CONNECTIONS * RECORD / 8) {
        tell_gone(some.as_bytes())?;
    }
    if !batch.is_empty() {
        tell(batch.as_bytes())?;
    }
    Ok(count + gone.len())
}

fn counted(totals: Totals) -> Counted {
    let drops = totals.drops.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect();
    Counted { packets: totals.packets, bytes: totals.bytes, drops }
}

/// The rest, when everything stands still.
pub(super) fn last(switch: &Switch) -> Final {
    let now = clock::ticks();
    let end = |(name, member): (&Name, &crate::switch::Member)| PortEnd {
        name: *name,
        positions: port::positions(member.port.attachment()),
        counted: member.port.counted().map(counted),
        owed: member.port.owed(now),
    };
    Final {
        ports: switch.ports.iter().map(end).collect(),
        expectations: switch
            .live
            .as_ref()
            .map(|live| live.conntrack.expectations.export())
            .unwrap_or_default(),
    }
}

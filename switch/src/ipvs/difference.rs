//! The changes that make one table of services another.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::draft::Change;
use super::scope::Replaced;
use super::spec::{DestinationSpec, ServiceKey, ServiceSpec};
use super::table::ServiceTable;
use crate::rules::hash::{Map, Set};

/// The changes from what `table` has to `wanted`, and how many of which kind. Doubles in `wanted` become changes that
/// are refused, as they would be on an empty table.
pub(super) fn difference(
    table: &ServiceTable,
    wanted: &[(ServiceSpec, Vec<DestinationSpec>)],
) -> (Vec<Change>, Replaced) {
    let mut changes = Vec::new();
    let mut replaced = Replaced::default();
    let keys: Set<ServiceKey> = wanted.iter().map(|(spec, _)| spec.key).collect();
    // What goes first makes room for what comes.
    for service in table.all() {
        if !keys.contains(&service.key()) {
            replaced.deleted += 1 + service.view().destinations.len();
            changes.push(Change::DeleteService(service.key()));
        }
    }
    let mut additions = Vec::new();
    let mut seen = Set::default();
    for (spec, servers) in wanted {
        let key = spec.key;
        let present = if seen.insert(key) { table.get(&key) } else { None };
        let Some(present) = present else {
            replaced.added += 1 + servers.len();
            additions.push(Change::AddService(spec.clone()));
            additions.extend(servers.iter().map(|server| Change::AddDestination(key, server.clone())));
            continue;
        };
        let view = present.view();
        if view.spec != *spec {
            replaced.edited += 1;
            changes.push(Change::EditService(spec.clone()));
        }
        let mut before: Map<(IpAddr, u16), DestinationSpec> = view
            .destinations
            .iter()
            .map(|server| ((server.address(), server.port()), server.spec()))
            .collect();
        let mut names = Set::default();
        for server in servers {
            let socket = (server.address, server.port);
            match before.remove(&socket).filter(|_| names.insert(socket)) {
                None => {
                    replaced.added += 1;
                    additions.push(Change::AddDestination(key, server.clone()));
                }
                Some(old) if old != *server => {
                    replaced.edited += 1;
                    changes.push(Change::EditDestination(key, server.clone()));
                }
                Some(_) => {}
            }
        }
        // In the order of the list, so that equal requests do equal things.
        for server in &view.destinations {
            if before.contains_key(&(server.address(), server.port())) {
                replaced.deleted += 1;
                changes.push(Change::DeleteDestination(key, server.address(), server.port()));
            }
        }
    }
    changes.append(&mut additions);
    (changes, replaced)
}

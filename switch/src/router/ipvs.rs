//! Virtual services, as the control socket and the configuration file change them.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::document::Key;
use crate::config::spec::{ContainerId, Invalid, container_id, server_view, service_view};
use crate::conntrack::record::Filter;
use crate::control::api;
use crate::ipvs::connection::Listed;
use crate::ipvs::draft::Change;
use crate::ipvs::error::{Error, Failed};
use crate::ipvs::scope::{Live, Replaced, Scope};
use crate::ipvs::settings::{Setting, Timeouts};
use crate::ipvs::spec::{DestinationSpec, ServiceKey, ServiceSpec};
use crate::refusal::Refusal;
use crate::switch::Switch;

/// Connections in a part of a listing.
const CONNECTIONS: usize = 8192;

/// A whole table: services with their servers.
pub type Table = Vec<(ServiceSpec, Vec<DestinationSpec>)>;

/// Why a table could not become another one.
#[derive(Debug)]
pub enum NotReplaced {
    /// The change of this number, from 0, describes nothing.
    NoDescription(usize),
    /// The change of this number is refused.
    Failed(Failed),
}

/// The table that changes describe; doubles and servers without a service are refused as on an empty table.
///
/// # Errors
/// The change that is refused.
fn described(changes: &[Change], limit: usize) -> Result<Table, NotReplaced> {
    let failed = |index, error| Err(NotReplaced::Failed(Failed { index, error }));
    let mut table: Table = Vec::new();
    let mut places: HashMap<ServiceKey, usize> = HashMap::new();
    let mut servers: HashSet<(usize, IpAddr, u16)> = HashSet::new();
    for (index, change) in changes.iter().enumerate() {
        let (key, server) = match change {
            Change::AddService(spec) => {
                if places.insert(spec.key, table.len()).is_some() {
                    return failed(index, Error::ServiceExists(spec.key));
                }
                table.push((spec.clone(), Vec::new()));
                (spec.key, None)
            }
            Change::AddDestination(key, spec) => {
                let Some(&place) = places.get(key) else { return failed(index, Error::NoSuchService(*key)) };
                if !servers.insert((place, spec.address, spec.port)) {
                    return failed(index, Error::DestinationExists(*key, spec.address, spec.port));
                }
                table[place].1.push(spec.clone());
                (*key, Some((spec.address, spec.port)))
            }
            _ => return Err(NotReplaced::NoDescription(index)),
        };
        if index >= limit {
            return failed(index, Error::Full { key, server, limit });
        }
    }
    Ok(table)
}

/// Which of the changes that describe a table an error is about.
fn culprit(changes: &[Change], error: &Error) -> usize {
    let about = |change: &Change| match (change, error) {
        (Change::AddDestination(_, spec), Error::Range { address, port, .. }) => {
            (spec.address, spec.port) == (*address, *port) && (spec.lower > spec.upper || spec.weight < 0)
        }
        (Change::AddService(spec), Error::Invalid { key, .. } | Error::ServiceExists(key)) => {
            spec.key == *key
        }
        _ => false,
    };
    changes.iter().position(about).unwrap_or(0)
}

/// Makes a table what changes describe, by the fewest changes; `about` hears of them before they are made.
///
/// # Errors
/// The change that is refused; nothing was changed then.
pub fn replace(
    scope: &Scope,
    changes: &[Change],
    about: impl FnOnce(&[Change]),
) -> Result<Replaced, NotReplaced> {
    let table = described(changes, scope.limit())?;
    let (fewest, replaced) = scope.difference(&table);
    about(&fewest);
    scope.apply(fewest).map(|()| replaced).map_err(|Failed { error, .. }| {
        NotReplaced::Failed(Failed { index: culprit(changes, &error), error })
    })
}

/// The entries of a listing.
pub fn entries(scope: &Scope, key: Option<&ServiceKey>, live: &Live) -> Result<Vec<api::IpvsEntry>, Error> {
    let services = match key {
        Some(key) => vec![scope.service(key, live).ok_or(Error::NoSuchService(*key))?],
        None => scope.services(live),
    };
    let mut entries = Vec::with_capacity(services.iter().map(|service| 1 + service.destinations.len()).sum());
    for service in &services {
        entries.push(api::IpvsEntry::Service(service_view(service)));
        entries.extend(service.destinations.iter().map(|server| api::IpvsEntry::Server(server_view(server))));
    }
    Ok(entries)
}

impl Switch {
    /// The table of a container, or the global one.
    ///
    /// # Errors
    /// The container has none.
    pub fn ipvs_scope(&self, container: Option<&str>) -> Result<Arc<Scope>, Refusal> {
        let Some(name) = container else { return Ok(Arc::clone(self.router.ipvs.global())) };
        let id = self.containers.id(name).ok();
        self.router
            .ipvs
            .container(id.as_ref().map_or(name, ContainerId::as_str))
            .ok_or_else(|| Refusal::new(format!("container {name:?} has no table of virtual services")))
    }

    /// The same; a container that has none gets one, also one that is not registered yet.
    ///
    /// # Errors
    /// It is no container's ID.
    pub fn ensure_ipvs_scope(&self, container: Option<&str>) -> Result<Arc<Scope>, Invalid> {
        let Some(name) = container else { return Ok(Arc::clone(self.router.ipvs.global())) };
        let id = match self.containers.id(name) {
            Ok(id) => id,
            Err(_) => container_id("container", name)?,
        };
        Ok(self.router.ipvs.ensure_container(id.as_str()))
    }

    /// Takes note of what changes of a table are about, before they are made.
    pub(crate) fn touch_services(&mut self, scope: &Scope, changes: &[Change]) {
        let of = scope.name().map(str::to_owned);
        // Changes of one service mostly follow each other.
        let mut last = None;
        for change in changes {
            match change {
                Change::AddService(ServiceSpec { key, .. })
                | Change::EditService(ServiceSpec { key, .. })
                | Change::DeleteService(key)
                | Change::AddDestination(key, _)
                | Change::EditDestination(key, _)
                | Change::DeleteDestination(key, ..) => {
                    if last.replace(*key) != Some(*key) {
                        self.touch(Key::Service(of.clone(), *key));
                    }
                }
                Change::Flush => {
                    let all = scope.table.all();
                    self.touch_all(all.iter().map(|service| Key::Service(of.clone(), service.key())));
                }
                Change::SetTimeouts(_) => self.touch(Key::IpvsTimeouts(of.clone())),
            }
        }
    }

    /// All tables, the global one first.
    pub fn ipvs_scopes(&self) -> Vec<api::IpvsScope> {
        let view = |scope: &Scope| api::IpvsScope {
            container: scope.name().map(str::to_owned),
            rules: scope.rules() as u64,
            limit: scope.limit() as u64,
        };
        let ipvs = &self.router.ipvs;
        let containers = ipvs.container_names().into_iter().filter_map(|name| ipvs.container(&name));
        std::iter::once(view(ipvs.global())).chain(containers.map(|scope| view(&scope))).collect()
    }

    /// What connections have counted that is not in servers' counters yet.
    pub fn ipvs_live(&self) -> Live {
        let live = |live: &crate::router::live::Live| self.router.ipvs.live(&live.conntrack, self.now());
        self.live.as_ref().map_or_else(Live::default, live)
    }

    /// Some thousands of a table's connections, from where a listing stands: 0 at its start.
    pub fn ipvs_connections(&self, scope: &Scope, next: u64) -> api::IpvsConnectionPage {
        let mut entries = Vec::new();
        let show = |listed: Listed| {
            entries.push(api::IpvsConnection {
                protocol: listed.protocol,
                client: listed.client.into(),
                called: listed.called.into(),
                server: listed.server.into(),
                state: listed.state.to_owned(),
                expires: listed.remaining,
                template: listed.template,
                packets: listed.packets,
                bytes: listed.bytes,
            });
        };
        let ipvs = &self.router.ipvs;
        let next = self
            .live
            .as_ref()
            .and_then(|live| ipvs.connections(&live.conntrack, scope, self.now(), next, CONNECTIONS, show));
        api::IpvsConnectionPage { entries, next }
    }

    /// Forgets connections whose original destination, or the server that they got in its place, is the one of
    /// `filter`; returns how many.
    ///
    /// # Errors
    /// A field of the filter breaks a rule.
    pub fn clean_connections(&mut self, filter: api::ConntrackFilter) -> Result<u64, Invalid> {
        let port = |name: &str| self.port_number(name);
        let first = Filter::new(&filter, &port)?;
        let server = (filter.dest.is_some() && filter.reply_source.is_none()).then(|| api::ConntrackFilter {
            reply_source: filter.dest.clone(),
            dest: None,
            dst_nat: true,
            ..filter
        });
        let second = server.map(|server| Filter::new(&server, &port)).transpose()?;
        let mut removed = self.flush_connections(&first);
        if let Some(second) = second {
            removed += self.flush_connections(&second);
        }
        Ok(removed)
    }

    /// What is set for a table.
    pub fn ipvs_settings(scope: &Scope) -> api::IpvsSettingsList {
        let settings = scope.settings();
        Setting::ALL.iter().map(|setting| (setting.name().to_owned(), settings.get(*setting))).collect()
    }

    /// How long connections are remembered.
    pub fn ipvs_timeouts(scope: &Scope) -> api::IpvsTimeouts {
        let Timeouts { tcp, tcp_fin, udp } = scope.settings().timeouts();
        api::IpvsTimeouts { tcp: tcp.into(), tcp_fin: tcp_fin.into(), udp: udp.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipvs::Ipvs;

    fn change(text: &str) -> Change {
        let asked: api::IpvsChange = serde_json::from_str(text).unwrap();
        Change::try_from(&asked).unwrap()
    }

    fn service(port: u16) -> Change {
        change(&format!(r#"{{"add-service":{{"service":"tcp:10.0.0.1:{port}","scheduler":"rr"}}}}"#))
    }

    fn server(port: u16, number: u8, weight: u32) -> Change {
        change(&format!(
            r#"{{"add-server":{{"service":"tcp:10.0.0.1:{port}","address":"10.1.0.{number}:80","weight":{weight}}}}}"#
        ))
    }

    #[test]
    fn a_table_becomes_what_is_described_by_the_difference() {
        let ipvs = Ipvs::default();
        let scope = ipvs.global();
        scope
            .apply([service(80), server(80, 1, 1), server(80, 2, 1), service(81), server(81, 1, 1)])
            .unwrap();
        let wanted = [service(80), server(80, 1, 5), server(80, 3, 1), service(82), server(82, 1, 1)];
        let replaced = replace(scope, &wanted, |_| ()).unwrap();
        assert_eq!((replaced.added, replaced.edited, replaced.deleted), (3, 1, 3));
        let again = replace(scope, &wanted, |_| ()).unwrap();
        assert_eq!((again.added, again.edited, again.deleted), (0, 0, 0));
        assert_eq!(scope.rules(), 5);
    }

    #[test]
    fn what_describes_no_table_is_refused_by_its_number() {
        let ipvs = Ipvs::default();
        let scope = ipvs.ensure_container("box");
        let refused = |changes: &[Change]| match replace(&scope, changes, |_| ()) {
            Err(NotReplaced::Failed(failed)) => failed,
            other => panic!("{other:?}"),
        };
        let doubled = refused(&[service(80), service(81), service(80)]);
        assert!(doubled.index == 2 && matches!(doubled.error, Error::ServiceExists(_)), "{doubled:?}");
        let strange = refused(&[service(80), server(81, 1, 1)]);
        assert!(strange.index == 1 && matches!(strange.error, Error::NoSuchService(_)), "{strange:?}");
        let twin = refused(&[service(80), server(80, 1, 1), server(80, 1, 2)]);
        assert!(twin.index == 2 && matches!(twin.error, Error::DestinationExists(..)), "{twin:?}");
        let mut range = server(80, 2, 1);
        if let Change::AddDestination(_, spec) = &mut range {
            spec.lower = 5;
        }
        let range = refused(&[service(80), server(80, 1, 1), range]);
        assert!(range.index == 2 && matches!(range.error, Error::Range { .. }), "{range:?}");
        assert!(matches!(
            replace(&scope, &[service(80), Change::Flush], |_| ()),
            Err(NotReplaced::NoDescription(1))
        ));
        let full: Vec<_> = (1..=20_001).map(service).collect();
        let full = refused(&full);
        assert!(full.index == 20_000 && matches!(full.error, Error::Full { limit: 20_000, .. }), "{full:?}");
        assert_eq!(scope.rules(), 0);
    }
}

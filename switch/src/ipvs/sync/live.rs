//! The balanced connections of the global scope as daemons see them: what a master tells of the table's records, and
//! what becomes of records that a backup hears.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use super::daemons::{Adopted, Connections, Show};
use super::message::{ConnectionFlags, Method, SyncConnection};
use super::spec::SyncSettings;
use super::timing::Look;
use crate::conntrack::Conntrack;
use crate::conntrack::adopt::Announced;
use crate::conntrack::balance::{Balanced, BalancedRecord};
use crate::ipvs::Ipvs;
use crate::ipvs::connection::{counted, port_of, protocol, scope_number};
use crate::ipvs::destination::{Counted, Destination};
use crate::ipvs::persistence::{Pattern, Template};
use crate::ipvs::service::Service;
use crate::ipvs::settings::Setting;
use crate::ipvs::spec::{Forward, ServiceKey};
use crate::ipvs::states;
use crate::ipvs::table::Asked;
use crate::packet::tuple::Tuple;

/// Connections that are shown before others get their turn.
const AT_ONCE: usize = 512;
/// Seconds that a template lives at most: persistence can be told no more.
const LONGEST: u32 = 31 * 86_400;
/// FTP's port.
const FTP: u16 = 21;
/// The state of a template under which a connection was established.
const ASSURED: u16 = 1;

/// The table of connections, once there is one.
struct Tables {
    conntrack: Arc<Conntrack>,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// The balanced connections.
pub struct LiveConnections {
    ipvs: Arc<Ipvs>,
    tables: OnceLock<Tables>,
    random: RandomState,
}

impl LiveConnections {
    /// Those of `ipvs`; none until [`LiveConnections::attach`] says where they are.
    pub fn new(ipvs: Arc<Ipvs>) -> Self {
        Self { ipvs, tables: OnceLock::new(), random: RandomState::new() }
    }

    /// Says where connections are, and how the worker is woken that enters new ones.
    pub fn attach(&self, conntrack: Arc<Conntrack>, wake: impl Fn() + Send + Sync + 'static) {
        // Only the first one counts: there is one table.
        let _ = self.tables.set(Tables { conntrack, wake: Box::new(wake) });
    }

    /// Does something with the server of a number, if it is of the global scope.
    fn server<T>(&self, number: u32, act: impl FnOnce(&Destination) -> Option<T>) -> Option<T> {
        let server = self.ipvs.destination(number);
        let server = server.as_deref()?;
        let global = std::ptr::eq(server.account().settings(), &**self.ipvs.global().settings());
        if global { act(server) } else { None }
    }

    fn show_templates(&self, now: u32, show: &mut Show<'_>) {
        // Few, and their table is not to be held while they are shown.
        let mut templates = Vec::new();
        self.ipvs.templates.list(now, |template| templates.push(template));
        for template in templates {
            self.server(template.destination, |server| {
                let ends = now.wrapping_add(template.remaining);
                let look = Look {
                    id: self.id(&(template.pattern.client, template.pattern.address, template.pattern.port)),
                    protocol: template.pattern.protocol,
                    state: u16::from(template.assured),
                    template: true,
                    under_template: false,
                    // Each new connection moves its end.
                    packets: u64::from(ends),
                    timeout: template.timeout,
                    age: template.timeout.saturating_sub(template.remaining),
                };
                show(&look, &|| describe_template(&template, server));
                Some(())
            });
        }
    }

    fn id(&self, known_by: &impl Hash) -> u64 {
        self.random.hash_one(known_by)
    }

    /// The service that a record is about.
    fn service(&self, connection: &SyncConnection) -> Option<Arc<Service>> {
        let table = &self.ipvs.global().table;
        if connection.protocol == 0 || connection.mark != 0 {
            let key = ServiceKey::Mark { mark: connection.mark, v6: connection.client.is_ipv6() };
            if let Some(service) = table.get(&key) {
                return Some(service);
            }
        }
        let (address, port) = (connection.service.ip(), connection.service.port());
        table.find(&Asked { protocol: protocol(connection.protocol)?, address, port, mark: 0 })
    }

    /// The server that a record names: by address and port, or by address alone where servers have no port of their own.
    fn find(&self, service: &Service, connection: &SyncConnection) -> Option<Arc<Destination>> {
        let view = service.view();
        let (address, port) = (connection.server.ip(), connection.server.port());
        let marked = matches!(service.key(), ServiceKey::Mark { .. });
        let wanted = if marked && connection.flags.method() != Some(Method::Masquerade) { 0 } else { port };
        let of_port = |port| {
            let mut servers = view.destinations.iter();
            servers.find(|server| server.address() == address && server.port() == port).cloned()
        };
        of_port(wanted).or_else(|| of_port(wanted ^ connection.service.port())).or_else(|| of_port(0))
    }

    fn adopt_template(&self, connection: &SyncConnection, server: &Destination) -> Adopted {
        let now = crate::clock::seconds();
        let address = match connection.protocol {
            0 => Ipv4Addr::from_bits(connection.mark).into(),
            _ => connection.service.ip(),
        };
        let pattern = Pattern {
            client: connection.client.ip(),
            address,
            protocol: connection.protocol,
            port: connection.service.port(),
            scope: scope_number(self.ipvs.global().settings()),
        };
        let (templates, over) = (&self.ipvs.templates, |server| self.ipvs.template_over(server));
        if let Ok(Some((number, destination, port))) = templates.follow(&pattern, now, over) {
            templates.release(number);
            if destination == server.id() && port == connection.server.port() {
                return Adopted::Yes;
            }
        }
        if !server.bind(Counted::Template) {
            return Adopted::Refused;
        }
        let place = (server.id(), connection.server.port());
        match templates.insert(&pattern, place, connection.timeout.clamp(1, LONGEST), now, over) {
            Ok(number) => {
                if connection.state == ASSURED {
                    templates.assure(number);
                }
                templates.release(number);
                self.ipvs.note_use();
                Adopted::Yes
            }
            Err(_) => {
                server.unbind(Counted::Template);
                Adopted::Refused
            }
        }
    }

    /// The template that a connection of a persistent service follows, if there is one for this server; 0 if not.
    fn follow(&self, connection: &SyncConnection, service: &Service, server: &Destination) -> u32 {
        let Some(persistence) = service.view().spec.persistence.filter(|persistence| !persistence.sip) else {
            return 0;
        };
        let service_port = port_of(&service.key());
        let own_port = connection.service.port() == service_port && service_port != FTP;
        let mut pattern = Pattern {
            client: persistence.client(connection.client.ip()),
            address: connection.service.ip(),
            protocol: connection.protocol,
            port: if own_port { service_port } else { 0 },
            scope: scope_number(self.ipvs.global().settings()),
        };
        if let ServiceKey::Mark { mark, .. } = service.key() {
            pattern.address = Ipv4Addr::from_bits(mark).into();
            (pattern.protocol, pattern.port) = (0, 0);
        }
        let (templates, now) = (&self.ipvs.templates, crate::clock::seconds());
        match templates.follow(&pattern, now, |server| self.ipvs.template_over(server)) {
            Ok(Some((number, destination, _))) if destination == server.id() => number,
            Ok(Some((number, ..))) => {
                templates.release(number);
                0
            }
            _ => 0,
        }
    }

    fn adopt_connection(
        &self,
        connection: &SyncConnection,
        service: &Service,
        server: &Destination,
        tables: &Tables,
    ) -> Option<Announced> {
        let forward = server.forward();
        let translated = matches!(forward, Forward::Masquerade | Forward::FullNat { .. });
        let original = Tuple {
            source: connection.client.ip(),
            destination: connection.service.ip(),
            protocol: connection.protocol,
            source_port: connection.client.port(),
            destination_port: connection.service.port(),
        };
        let mut there = original;
        if translated {
            (there.destination, there.destination_port) = (connection.server.ip(), connection.server.port());
        }
        match connection.source {
            Some(source) if source.ip().is_ipv4() == original.source.is_ipv4() => {
                (there.source, there.source_port) = (source.ip(), source.port());
            }
            // Without it nobody knows what the server sees.
            None if matches!(forward, Forward::FullNat { .. }) => return None,
            _ => {}
        }
        let balanced = Balanced {
            destination: server.id(),
            template: self.follow(connection, service, server),
            state: connection.state as u8,
            one_way: !translated,
            tunnel: matches!(forward, Forward::Tunnel(_)),
        };
        let announced = Announced {
            original,
            reply: there.reversed(),
            balanced,
            inactive: connection.flags.any(ConnectionFlags::INACTIVE),
        };
        self.ipvs.note_use();
        if self.ipvs.announced.put(announced, &tables.wake) {
            return Some(announced);
        }
        self.ipvs.templates.release(announced.balanced.template);
        None
    }
}

impl Connections for LiveConnections {
    fn walk(&self, show: &mut Show<'_>, rest: &mut dyn FnMut()) {
        let now = crate::clock::seconds();
        self.show_templates(now, show);
        rest();
        let Some(tables) = self.tables.get() else { return };
        let mut from = Some(0);
        // A page at a time: the table must not wait for whoever is shown it.
        let mut page = Vec::with_capacity(AT_ONCE);
        while let Some(place) = from {
            from = tables.conntrack.balanced_page(now, place, AT_ONCE, |record| page.push(record));
            for record in page.drain(..) {
                self.server(record.view.destination, |server| {
                    show(&self.look(&record), &|| describe(&record, server));
                    Some(())
                });
            }
            rest();
        }
    }

    fn settings(&self) -> SyncSettings {
        let settings = self.ipvs.global().settings();
        SyncSettings {
            threshold: settings.get(Setting::SyncThreshold),
            period: settings.get(Setting::SyncPeriod),
            refresh_period: settings.get(Setting::SyncRefreshPeriod),
            retries: settings.get(Setting::SyncRetries) as u8,
            templates_only: settings.is_on(Setting::SyncPersistMode),
        }
    }

    fn adopt(&self, connection: SyncConnection) -> Adopted {
        let no_port = connection.flags.any(ConnectionFlags::NO_CLIENT_PORT);
        if connection.engine.is_some() || connection.shifts.is_some() || no_port {
            // Known to nobody here: what SIP tells clients apart by, FTP's shifted numbers, FTP's expected connections.
            return Adopted::Refused;
        }
        let Some(service) = self.service(&connection) else { return Adopted::Refused };
        let Some(server) = self.find(&service, &connection) else { return Adopted::Refused };
        if connection.flags.is_template() {
            return self.adopt_template(&connection, &server);
        }
        let Some(tables) = self.tables.get() else { return Adopted::Refused };
        match self.adopt_connection(&connection, &service, &server, tables) {
            Some(_) => Adopted::Yes,
            None => Adopted::Refused,
        }
    }
}

impl LiveConnections {
    fn look(&self, record: &BalancedRecord) -> Look {
        Look {
            id: self.id(&record.original),
            protocol: record.view.protocol,
            state: record.view.state.into(),
            template: false,
            under_template: record.view.template != 0,
            packets: record.packets[0],
            timeout: record.timeout,
            age: record.timeout.saturating_sub(record.remaining),
        }
    }
}

impl Ipvs {
    /// Counts a connection that another director told of at its server, before it is entered; false if the server is
    /// no more, and the connection's template is let go of then.
    pub(crate) fn count_announced(&self, announced: &Announced) -> bool {
        let active = states::is_active(announced.original.protocol, announced.balanced.state);
        let server = self.destination(announced.balanced.destination);
        let counted = server.as_deref().is_some_and(|server| server.bind(counted(active)));
        if !counted {
            self.templates.release(announced.balanced.template);
        }
        counted
    }

    /// Takes that back: it was not entered.
    pub(crate) fn discount_announced(&self, announced: &Announced) {
        self.templates.release(announced.balanced.template);
        let active = states::is_active(announced.original.protocol, announced.balanced.state);
        if let Some(server) = self.destination(announced.balanced.destination).as_deref() {
            server.unbind(counted(active));
        }
    }
}

fn mark_of(server: &Destination) -> u32 {
    match server.account().key() {
        ServiceKey::Mark { mark, .. } => mark,
        ServiceKey::Address { .. } => 0,
    }
}

fn method(server: &Destination) -> u32 {
    let method = match server.forward() {
        Forward::Masquerade | Forward::FullNat { .. } => Method::Masquerade,
        Forward::Route => Method::Route,
        Forward::Tunnel(_) => Method::Tunnel,
    };
    method as u32
}

/// The record of a connection.
fn describe(record: &BalancedRecord, server: &Destination) -> Option<SyncConnection> {
    let tuple = record.original;
    let reached = if record.translated { record.server } else { (server.address(), tuple.destination_port) };
    let one_way = if record.view.one_way { ConnectionFlags::NO_OUTPUT } else { 0 };
    let inactive = if record.view.active { 0 } else { ConnectionFlags::INACTIVE };
    let client = SocketAddr::new(tuple.source, tuple.source_port);
    let seen: SocketAddr = record.client.into();
    Some(SyncConnection {
        protocol: record.view.protocol,
        flags: ConnectionFlags(method(server) | one_way | inactive),
        state: record.view.state.into(),
        client,
        service: SocketAddr::new(tuple.destination, tuple.destination_port),
        server: reached.into(),
        mark: mark_of(server),
        timeout: record.timeout,
        shifts: None,
        engine: None,
        source: (seen != client).then_some(seen),
    })
}

/// The record of a template; none of what SIP tells clients apart by.
fn describe_template(template: &Template, server: &Destination) -> Option<SyncConnection> {
    let Pattern { client, address, protocol, port, .. } = template.pattern;
    // A mark stands where an address of the client's family is.
    let address = match (address, client) {
        (IpAddr::V4(mark), IpAddr::V6(_)) => Ipv6Addr::from_bits(u128::from(mark.to_bits()) << 96).into(),
        (address, _) => address,
    };
    Some(SyncConnection {
        protocol,
        flags: ConnectionFlags(method(server) | ConnectionFlags::TEMPLATE | ConnectionFlags::INACTIVE),
        state: u16::from(template.assured),
        client: SocketAddr::new(client, 0),
        service: SocketAddr::new(address, port),
        server: SocketAddr::new(server.address(), template.port),
        mark: mark_of(server),
        timeout: template.timeout,
        shifts: None,
        engine: None,
        source: None,
    })
}

#[cfg(test)]
mod tests;

//! What becomes of servers' counts as connections begin, change and end, and what listings say of connections.
//!
//! The table of connections ([`crate::conntrack`]) tells it here. A connection's packets are counted in the connection
//! and added to its server and service when it ends; [`Ipvs::live`] has what is not added yet.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::Ipvs;
use super::account::Totals;
use super::destination::{Counted, Destination};
use super::scope::{Live, Scope};
use super::settings::{Setting, Settings};
use super::spec::ServiceKey;
use super::states::{self, SCTP};
use crate::conntrack::Conntrack;
use crate::conntrack::balance::{BalancedRecord, Balancer, Ended, View};
use crate::packet::ip::{TCP, UDP};

/// Tells scopes apart in templates: where the scope's settings lie.
pub(crate) fn scope_number(settings: &Settings) -> u32 {
    (std::ptr::from_ref(settings).addr() >> 4) as u32
}

/// A connection or template, as `ipvsadm -L -c` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The protocol; 0 of a template of a service by mark.
    pub protocol: u8,
    /// Seconds that are left.
    pub remaining: u32,
    /// The state's name.
    pub state: &'static str,
    /// The client; of a template the network, without a port.
    pub client: (IpAddr, u16),
    /// What it called; of a template of a service by mark the mark as an address of IPv4.
    pub called: (IpAddr, u16),
    /// The server.
    pub server: (IpAddr, u16),
    /// Whether it is a template.
    pub template: bool,
    /// Packets of client and server.
    pub packets: [u64; 2],
    /// Their bytes.
    pub bytes: [u64; 2],
}

impl Ipvs {
    fn with<T>(&self, destination: u32, act: impl FnOnce(&Destination) -> T) -> Option<T> {
        self.destination(destination).as_deref().map(act)
    }

    /// A template of this server is over.
    pub(crate) fn template_over(&self, destination: u32) {
        self.with(destination, |server| server.unbind(Counted::Template));
    }

    /// Removes templates that are over; to be called about once a second.
    pub(crate) fn sweep(&self, now: u32) {
        self.templates.sweep(now, |server| self.template_over(server));
    }

    /// What connections have counted that was not added to their servers yet, for all scopes. One walk of the table.
    pub fn live(&self, conntrack: &Conntrack, now: u32) -> Live {
        let mut live = Live::new();
        conntrack.balanced(now, |record| {
            let sum = live.entry(record.view.destination).or_default();
            *sum = sum.plus(totals(record.packets, record.bytes));
        });
        live
    }

    fn belongs(&self, destination: u32, scope: &Scope) -> bool {
        let same = |server: &Destination| std::ptr::eq(server.account().settings(), &**scope.settings());
        self.with(destination, same) == Some(true)
    }

    /// A part of a scope's connections: goes on where `from` stands (0 for the beginning), until `most` were shown or a
    /// few more, or many were looked at. Templates come with the first part. Returns where the next part begins.
    pub fn connections(
        &self,
        conntrack: &Conntrack,
        scope: &Scope,
        now: u32,
        from: u64,
        most: usize,
        mut show: impl FnMut(Listed),
    ) -> Option<u64> {
        if from == 0 {
            self.templates.list(now, |template| {
                if !self.belongs(template.destination, scope) {
                    return;
                }
                let Some(address) = self.with(template.destination, Destination::address) else { return };
                let pattern = template.pattern;
                show(Listed {
                    protocol: pattern.protocol,
                    remaining: template.remaining,
                    state: if template.assured { "ASSURED" } else { "NONE" },
                    client: (pattern.client, 0),
                    called: (pattern.address, pattern.port),
                    server: (address, template.port),
                    template: true,
                    packets: [0; 2],
                    bytes: [0; 2],
                });
            });
        }
        conntrack.balanced_page(now, from, most, |record| {
            if self.belongs(record.view.destination, scope)
                && let Some(listed) = self.listed(&record)
            {
                show(listed);
            }
        })
    }

    fn listed(&self, record: &BalancedRecord) -> Option<Listed> {
        let (protocol, tuple) = (record.view.protocol, record.original);
        let server = if record.translated {
            record.server
        } else {
            (self.with(record.view.destination, Destination::address)?, tuple.destination_port)
        };
        Some(Listed {
            protocol,
            remaining: record.remaining,
            state: states::name(protocol, record.view.state),
            client: (tuple.source, tuple.source_port),
            called: (tuple.destination, tuple.destination_port),
            server,
            template: false,
            packets: record.packets,
            bytes: record.bytes,
        })
    }
}

/// What a connection has counted.
fn totals(packets: [u64; 2], bytes: [u64; 2]) -> Totals {
    Totals {
        connections: 0,
        in_packets: packets[0],
        out_packets: packets[1],
        in_bytes: bytes[0],
        out_bytes: bytes[1],
    }
}

/// As what a connection counts.
pub(crate) fn counted(active: bool) -> Counted {
    if active { Counted::Active } else { Counted::Inactive }
}

impl Balancer for Ipvs {
    fn timeout(&self, destination: u32, protocol: u8, state: u8) -> u32 {
        let set = self.with(destination, |server| server.account().settings().timeouts());
        states::timeout(protocol, state, &set.unwrap_or_default())
    }

    fn activity(&self, destination: u32, active: bool) {
        self.with(destination, |server| if active { server.activate() } else { server.deactivate() });
    }

    fn assure(&self, template: u32) {
        self.templates.assure(template);
    }

    fn ended(&self, ended: &Ended) {
        if ended.view.template != 0 {
            self.templates.release(ended.view.template);
        }
        self.with(ended.view.destination, |server| {
            let totals = totals(ended.packets, ended.bytes);
            server.stats.add(totals);
            server.account().stats.add(totals);
            server.unbind(counted(ended.view.active));
        });
    }

    fn renews(&self, view: &View) -> bool {
        let (settings, weight) = {
            let server = self.destination(view.destination);
            let Some(server) = server.as_deref() else { return true };
            let settings = server.account().settings();
            let mode = settings.get(Setting::ConnReuseMode);
            ((mode, settings.is_on(Setting::ExpireNodestConn)), server.weight())
        };
        let (mode, expires) = settings;
        if expires && weight == 0 {
            return true;
        }
        if mode == 0 || view.template != 0 {
            return false;
        }
        match (view.protocol, view.state) {
            (TCP, states::tcp::TIME_WAIT | states::tcp::CLOSE) => true,
            (TCP, states::tcp::FIN_WAIT) => mode & 2 != 0 && view.one_way,
            (SCTP, states::sctp::CLOSED) => true,
            _ => false,
        }
    }
}

/// The protocol of a packet as services name it.
pub(crate) fn protocol(number: u8) -> Option<super::spec::Protocol> {
    use super::spec::Protocol;
    match number {
        TCP => Some(Protocol::Tcp),
        UDP => Some(Protocol::Udp),
        SCTP => Some(Protocol::Sctp),
        _ => None,
    }
}

/// The port that a service is known by, 0 for one by mark.
pub(crate) fn port_of(key: &ServiceKey) -> u16 {
    match key {
        ServiceKey::Address { port, .. } => *port,
        ServiceKey::Mark { .. } => 0,
    }
}

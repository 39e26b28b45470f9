//! Services and servers as they come from the daemon, ready to be sorted and printed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use shunt_switch::config::spec::service_key;
use shunt_switch::control::api::{IpvsEntry, IpvsServerEntry, IpvsServiceEntry};
use shunt_switch::ipvs::spec::{Protocol, ServiceKey};

/// A service.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    /// 0 where it is no mark's.
    pub(super) mark: u32,
    /// `None` of a mark's.
    pub(super) protocol: Option<Protocol>,
    /// Of a mark's: all zero, of its family.
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) entry: IpvsServiceEntry,
    pub(super) servers: Vec<Server>,
}

/// A server.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) entry: IpvsServerEntry,
}

impl Listed {
    /// The protocol's number; Linux gives none for marks.
    pub(super) fn protocol_number(&self) -> i32 {
        match self.protocol {
            None => 0,
            Some(Protocol::Tcp) => 6,
            Some(Protocol::Udp) => 17,
            Some(Protocol::Sctp) => 132,
        }
    }

    fn new(entry: IpvsServiceEntry) -> Option<Self> {
        let (mark, protocol, address, port) = match service_key(&entry.service).ok()? {
            ServiceKey::Address { protocol, address, port } => (0, Some(protocol), address, port),
            ServiceKey::Mark { mark, v6: false } => (mark, None, Ipv4Addr::UNSPECIFIED.into(), 0),
            ServiceKey::Mark { mark, v6: true } => (mark, None, Ipv6Addr::UNSPECIFIED.into(), 0),
        };
        Some(Self { mark, protocol, address, port, entry, servers: Vec::new() })
    }
}

/// Puts the entries of a listing together; `None` if they make no sense.
pub(super) fn assemble(entries: Vec<IpvsEntry>) -> Option<Vec<Listed>> {
    let mut services: Vec<Listed> = Vec::new();
    for entry in entries {
        match entry {
            IpvsEntry::Service(entry) => services.push(Listed::new(entry)?),
            IpvsEntry::Server(entry) => {
                let socket: std::net::SocketAddr = entry.address.parse().ok()?;
                let server = Server { address: socket.ip(), port: socket.port(), entry };
                services.last_mut()?.servers.push(server);
            }
        }
    }
    Some(services)
}

//! Why a change of virtual services was refused. The kinds are those that Linux tells apart by its error numbers; the
//! texts are shunt's own, `ipvsadm`'s are made from the kinds by the command line.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::spec::{Protocol, ServiceKey};

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `EEXIST` of a service.
    #[error("service {} exists already", Name(*.0))]
    ServiceExists(ServiceKey),
    /// `ESRCH`.
    #[error("there is no service {}", Name(*.0))]
    NoSuchService(ServiceKey),
    /// `EEXIST` of a real server.
    #[error("service {} has the server {} already", Name(*.0), Socket(*.1, *.2))]
    DestinationExists(ServiceKey, IpAddr, u16),
    /// `ENOENT` of a real server.
    #[error("service {} has no server {}", Name(*.0), Socket(*.1, *.2))]
    NoSuchDestination(ServiceKey, IpAddr, u16),
    /// `ERANGE`: a negative weight, or a lower threshold above the upper one.
    #[error("server {}: {why}", Socket(*.address, *.port))]
    Range {
        /// The server's address.
        address: IpAddr,
        /// Its port.
        port: u16,
        /// What is out of range.
        why: &'static str,
    },
    /// `EINVAL`.
    #[error("service {}: {why}", Name(*.key))]
    Invalid {
        /// The service.
        key: ServiceKey,
        /// What is wrong.
        why: &'static str,
    },
    /// The scope has as many rules (services and servers) as it may have.
    #[error("{}: {limit} services and servers are the most that this table holds", Refused(*.key, *.server))]
    Full {
        /// The service to be added, or whose server.
        key: ServiceKey,
        /// The server to be added.
        server: Option<(IpAddr, u16)>,
        /// How many there may be.
        limit: usize,
    },
}

/// A change of several that could not be made; none of them was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Failed {
    /// Which of the changes, from 0.
    pub index: usize,
    /// Why.
    pub error: Error,
}

/// An address and a port as people write them.
pub(crate) struct Socket(pub(crate) IpAddr, pub(crate) u16);

impl std::fmt::Display for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::net::SocketAddr::new(self.0, self.1).fmt(f)
    }
}

/// A service as people write it.
pub(crate) struct Name(pub(crate) ServiceKey);

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            ServiceKey::Address { protocol, address, port } => {
                let protocol = match protocol {
                    Protocol::Tcp => "tcp",
                    Protocol::Udp => "udp",
                    Protocol::Sctp => "sctp",
                };
                write!(f, "{protocol} {}", Socket(address, port))
            }
            ServiceKey::Mark { mark, v6 } => write!(f, "mark {mark}{}", if v6 { " (IPv6)" } else { "" }),
        }
    }
}

struct Refused(ServiceKey, Option<(IpAddr, u16)>);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.1 {
            Some((address, port)) => {
                write!(f, "server {} of service {}", Socket(address, port), Name(self.0))
            }
            None => write!(f, "service {}", Name(self.0)),
        }
    }
}

//! What a virtual service and a real server are, as somebody asked for them: plain values that the control thread, the
//! command line's requests and the packet path agree on. Names and limits are those of ipvsadm(8) and of Linux's
//! `IPVS` netlink family.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The transport protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, `-t`.
    Tcp,
    /// UDP, `-u`.
    Udp,
    /// SCTP, `--sctp-service`.
    Sctp,
}

/// What a service is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceKey {
    /// By protocol, address and port; port 0 means all ports (persistent services only).
    Address {
        /// The protocol.
        protocol: Protocol,
        /// The virtual address.
        address: IpAddr,
        /// The port, 0 for all.
        port: u16,
    },
    /// By the mark that packets bear (`-f`), in one family.
    Mark {
        /// The mark, not 0.
        mark: u32,
        /// IPv6 (`-6`).
        v6: bool,
    },
}

/// A scheduler, named as `-s` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheduler {
    /// Round robin.
    Rr,
    /// Weighted round robin.
    Wrr,
    /// Least connections.
    Lc,
    /// Weighted least connections.
    Wlc,
    /// Locality-based least connections.
    Lblc,
    /// The same with replication.
    Lblcr,
    /// Destination hashing.
    Dh,
    /// Source hashing.
    Sh,
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
    /// Weighted fail-over.
    Fo,
    /// Weighted overflow.
    Ovf,
    /// Maglev hashing.
    Mh,
    /// Power of two choices.
    Twos,
}

/// Flags of a scheduler (`-b`): their meaning is the scheduler's. Bit 0 is `flag-1` (`sh-fallback`, `mh-fallback`),
/// bit 1 `flag-2` (`sh-port`, `mh-port`), bit 2 `flag-3`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SchedulerFlags(pub u8);

impl SchedulerFlags {
    /// Where the chosen server cannot be used, another one is (`sh-fallback`, `mh-fallback`).
    pub const FALLBACK: u8 = 1;
    /// The source port is hashed, too (`sh-port`, `mh-port`).
    pub const PORT: u8 = 2;
}

/// Connections of a client stay with one server (`-p`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// Seconds that a template lives after its last connection.
    pub timeout: u32,
    /// Bits of a client's address that count (`-M`), as an address of the service's family. Linux takes any mask of
    /// IPv4, also one with holes; of IPv6 it is a prefix of 1 to 128 bits.
    pub mask: IpAddr,
    /// Whether the Call-ID of SIP tells clients apart (`--pe sip`).
    pub sip: bool,
}

impl Persistence {
    /// What counts of a client's address.
    pub fn client(&self, address: IpAddr) -> IpAddr {
        match (address, self.mask) {
            (IpAddr::V4(address), IpAddr::V4(mask)) => (address & mask).into(),
            (IpAddr::V6(address), IpAddr::V6(mask)) => (address & mask).into(),
            _ => address,
        }
    }
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// What it is known by.
    pub key: ServiceKey,
    /// Who chooses; none was named by its last `-E` if `None` is ever seen: Linux allows services without one.
    pub scheduler: Option<Scheduler>,
    /// The scheduler's flags.
    pub flags: SchedulerFlags,
    /// Persistence.
    pub persistence: Option<Persistence>,
    /// Each packet of UDP is scheduled alone (`-o`).
    pub one_packet: bool,
}

/// How a tunnel wraps packets (`--tun-type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tunnel {
    /// IP in IP (RFC 2003, RFC 2473), the default.
    Ipip,
    /// Generic UDP encapsulation to this port.
    Gue {
        /// `--tun-port`.
        port: u16,
        /// `--tun-nocsum`, `--tun-csum`, `--tun-remcsum`.
        checksum: TunnelChecksum,
    },
    /// GRE (RFC 2784).
    Gre {
        /// `--tun-nocsum`, `--tun-csum`.
        checksum: TunnelChecksum,
    },
}

/// What becomes of checksums in a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TunnelChecksum {
    /// The outer header has none.
    #[default]
    None,
    /// The outer header has one.
    Full,
    /// The inner one is offloaded to the receiver (GUE only).
    Remote,
}

/// How packets get to a real server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forward {
    /// Addresses are translated, `-m`.
    Masquerade,
    /// The link address alone is replaced, `-g`, the default.
    Route,
    /// Wrapped in another packet, `-i`.
    Tunnel(Tunnel),
    /// Destination and source are translated, the latter to an address of this range (shunt's own: for servers whose
    /// way back does not pass here).
    FullNat {
        /// The first address of the pool.
        first: IpAddr,
        /// The last one.
        last: IpAddr,
    },
}

/// A real server of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationSpec {
    /// Its address; tunnels may go over the other family.
    pub address: IpAddr,
    /// Its port. Other than the service's only when masqueraded.
    pub port: u16,
    /// How packets get there.
    pub forward: Forward,
    /// 0 to 2,147,483,647; at 0 it gets no new connections.
    pub weight: i32,
    /// Connections from which on it gets no new ones (`-x`); 0: no limit.
    pub upper: u32,
    /// Connections below which it gets new ones again (`-y`); 0: three quarters of `upper`.
    pub lower: u32,
}

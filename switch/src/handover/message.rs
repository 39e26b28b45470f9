//! What the two processes say to each other, in this order.
//!
//! | from | message | |
//! |---|---|---|
//! | old | `Hello` | which format it speaks |
//! | new | `Hello` | likewise; or `Refusal` |
//! | old | `Start`, `Things`, `ControlSocket`, `Port` for each, `Configure` | what to start with |
//! | new | `Done` | it is configured; nothing of it runs |
//! | old | `Records`, `Connections`, `Gone`, `Sync` | a first copy of what was learned; more than once |
//! | new | `Done` | |
//! | old | `Still` | it stands still; its workers' cores are the new one's |
//! | old | `Port`, `Records`, `Connections`, `Gone`, `Final` | what has changed |
//! | new | `Done` | it is ready |
//! | old | `Go` | from here on everything is the new process' |
//! | new | `Runs` | its workers carry packets |
//!
//! Either side may say `Refusal` instead, or end: until `Go` the old process goes on then as if nothing had been.
//! Payloads are JSON objects whose unknown fields are refused, but for connections, which are records of fixed length
//! ([`Kept`](crate::conntrack::handover::Kept)) whose length `Start` tells. Whoever changes any of this changes
//! [`FORMAT`].
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::port::{PortState, Positions};
use crate::config::document::{Entry, Key};
use crate::config::{Mac, Name, Rebalancing};
use crate::conntrack::expect::KeptExpectations;
use crate::ipvs::persistence::KeptTemplate;
use crate::ipvs::spec::{DestinationSpec, ServiceKey};
use crate::l3::neighbour;
use crate::nat::KeptMapping;
use crate::refusal::Refusal;
use crate::services::KeptLease;

/// The number of all that this file and what it names describes.
pub const FORMAT: u32 = 2;

/// Kinds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum Kind {
    Hello = 1,
    Refusal = 2,
    Done = 3,
    Start = 4,
    ControlSocket = 5,
    Port = 6,
    Configure = 7,
    Records = 8,
    Connections = 9,
    Gone = 10,
    Sync = 11,
    Final = 12,
    Go = 13,
    Things = 14,
    Still = 15,
    Runs = 16,
}

impl Kind {
    /// The kind of a number.
    pub fn of(number: u16) -> Option<Self> {
        use Kind::*;
        [
            Hello,
            Refusal,
            Done,
            Start,
            ControlSocket,
            Port,
            Configure,
            Records,
            Connections,
            Gone,
            Sync,
            Final,
            Go,
            Things,
            Still,
            Runs,
        ]
        .into_iter()
        .find(|kind| *kind as u16 == number)
    }
}

/// Who speaks. Fields may come, none may go: this is read by other versions, to refuse in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the program.
    pub version: String,
    /// Process.
    pub pid: u32,
}

impl Hello {
    /// Ours.
    pub fn own() -> Self {
        Self { format: FORMAT, version: env!("CARGO_PKG_VERSION").into(), pid: std::process::id() }
    }

    /// Whether the other one can be understood.
    ///
    /// # Errors
    /// It speaks another format.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.format == FORMAT {
            return Ok(());
        }
        Err(Refusal::new(format!(
            "shuntd {} hands over in format {}, shuntd {} in format {FORMAT}: restart instead (guests reconnect, connections are tracked anew)",
            self.version,
            self.format,
            env!("CARGO_PKG_VERSION"),
        )))
    }
}

/// Why it cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// One line.
    pub reason: String,
}

/// Numbers by which things are known in what is handed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Numbers {
    /// Of ports.
    pub ports: BTreeMap<Name, u16>,
    /// Of interfaces.
    pub interfaces: BTreeMap<Name, u16>,
    /// Interfaces that are up.
    pub up: BTreeSet<Name>,
    /// The queues of each worker: ports by their numbers, queues of them.
    pub queues: Vec<Vec<(u16, u16)>>,
}

/// What to start with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The numbers of what is configured.
    pub numbers: Numbers,
    /// The cores that may be used, the workers' among them.
    pub cores: Vec<usize>,
    /// What is kept in the state directory.
    pub kept: Kept,
    /// Servers that have failed their checks.
    pub failed: Vec<(ServiceKey, IpAddr, u16)>,
    /// When queues are spread anew by themselves.
    pub rebalancing: Rebalancing,
    /// When the tables' clock began to count: nanoseconds of the system's monotonic clock.
    pub began: u64,
    /// Bytes of a connection's record.
    pub connection: usize,
}

/// What is kept in the state directory; the lock of that comes along, if there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// What the configuration began with.
    pub base: Option<u64>,
    /// What could not be made at the start, and why.
    pub unmade: Vec<(Key, String)>,
    /// What people should know of the start.
    pub problems: Vec<String>,
}

/// Some of what is configured.
pub type Things = Vec<(Key, Entry)>;

/// The control socket; its listening socket and its lock come along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// Where it is.
    pub path: PathBuf,
}

/// A port; its descriptors come along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Its name.
    pub name: Name,
    /// What it is attached to.
    pub state: PortState,
}

/// Something that was learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Record {
    /// A station of a bridge.
    Station {
        /// The bridge.
        bridge: Name,
        /// Its address.
        mac: Mac,
        /// Its VLAN.
        vlan: u16,
        /// Number of the port that it is behind.
        port: u16,
        /// Seconds since it was seen.
        age: u32,
    },
    /// A neighbour of an interface.
    Neighbour(neighbour::Entry),
    /// An endpoint-independent mapping.
    Mapping(KeptMapping),
    /// Such a one that is no more.
    MappingGone {
        /// The protocol.
        protocol: u8,
        /// The client.
        inside: (IpAddr, u16),
    },
    /// A DHCP lease.
    Lease(KeptLease),
    /// Such a one that is no more.
    LeaseGone {
        /// The interface.
        interface: Name,
        /// The address.
        address: Ipv4Addr,
    },
    /// A real server that connections name by its number.
    Server {
        /// The container whose table it is in; none: the global one.
        scope: Option<String>,
        /// Its service.
        service: ServiceKey,
        /// Its address.
        address: IpAddr,
        /// Its port.
        port: u16,
        /// Its number.
        number: u32,
        /// What it has counted, and what was counted when counters were last zeroed.
        counted: [[u64; 5]; 2],
    },
    /// A real server that was deleted and has connections still.
    Deleted {
        /// The container whose table it was in; none: the global one.
        scope: Option<String>,
        /// Its service, which may have been deleted, too.
        service: ServiceKey,
        /// What was asked for it.
        server: DestinationSpec,
        /// Its number.
        number: u32,
        /// As with a server that is there.
        counted: [[u64; 5]; 2],
    },
    /// What a service has counted.
    Service {
        /// The container whose table it is in; none: the global one.
        scope: Option<String>,
        /// The service.
        service: ServiceKey,
        /// As with a server.
        counted: [[u64; 5]; 2],
    },
    /// A template of persistence.
    Template(KeptTemplate),
}

/// One direction's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counted {
    /// Frames.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// Drops by reason.
    pub drops: BTreeMap<String, u64>,
}

/// A port as it stands still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortEnd {
    /// Its name.
    pub name: Name,
    /// Where its rings stand.
    pub positions: Positions,
    /// What was counted in and out.
    pub counted: [Counted; 2],
    /// Ticks until the buckets of its limits are full again, in and out.
    pub owed: [u64; 2],
}

/// The rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Final {
    /// All ports.
    pub ports: Vec<PortEnd>,
    /// What connections have announced.
    pub expectations: KeptExpectations,
}

/// The new process carries packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runs {
    /// Since when: nanoseconds of the system's monotonic clock.
    pub since: u64,
}

/// Reads a payload.
///
/// # Errors
/// It is not what it should be.
pub fn read<T: DeserializeOwned>(what: &str, payload: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(payload).map_err(|error| Refusal::new(format!("the hand-over's {what}: {error}")))
}

/// Writes a payload.
///
/// # Errors
/// None that is known: all keys are texts.
pub fn write(value: &impl Serialize) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(value).map_err(|error| Refusal::new(format!("a hand-over message: {error}")))
}

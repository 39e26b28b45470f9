//! What daemon and client say to each other: one type per method, one per thing that is answered.
//!
//! Requests hold plain numbers and texts, so that a value out of bounds reaches the rule that names it
//! ([`crate::config::spec`]) and not a parser that speaks of types; the same types are the tables of the
//! configuration file. Field names of answers are part of the interface: fields may be added, never renamed.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{Mac, Name, Poll, Role};
use crate::stats::Totals;

/// A method of the control socket: its parameters are the type itself.
pub trait Method: Serialize + DeserializeOwned {
    /// `noun.verb`.
    const NAME: &'static str;
    /// What a success brings.
    type Answer: Serialize + DeserializeOwned;
}

macro_rules! methods {
    ($($request:ident = $name:literal -> $answer:ty;)*) => {
        $(impl Method for $request {
            const NAME: &'static str = $name;
            type Answer = $answer;
        })*

        /// The names of all methods.
        pub const METHODS: &[&str] = &[$($name),*];
    };
}

methods! {
    StatusShow = "status.show" -> Status;
    BridgeAdd = "bridge.add" -> Bridge;
    BridgeDel = "bridge.del" -> Done;
    BridgeList = "bridge.list" -> Vec<Bridge>;
    BridgeShow = "bridge.show" -> Bridge;
    PortAdd = "port.add" -> Port;
    PortDel = "port.del" -> Done;
    PortList = "port.list" -> Vec<Port>;
    PortShow = "port.show" -> Port;
    PortSet = "port.set" -> Port;
    FdbList = "fdb.list" -> FdbPage;
    FdbAdd = "fdb.add" -> Done;
    FdbDel = "fdb.del" -> Done;
    FdbFlush = "fdb.flush" -> Flushed;
    WorkerList = "worker.list" -> Vec<Worker>;
    StatsShow = "stats.show" -> Vec<PortStats>;
}

// ---- Requests ----

/// What the daemon is and how it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusShow {}

/// Makes a bridge. Also a `[[bridge]]` table of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeAdd {
    /// Its name.
    pub name: String,
    /// Seconds until a learned address is forgotten, 0 for never; 300 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ageing: Option<i64>,
    /// Most entries of its forwarding database, 1 to 1,048,576; 65,536 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fdb_limit: Option<i64>,
}

/// Removes a bridge that has no port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeDel {
    /// Its name.
    pub name: String,
}

/// All bridges, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeList {}

/// One bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeShow {
    /// Its name.
    pub name: String,
}

/// A queue that is to be received by the worker on a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Receive queue of the port, counted from 0.
    pub queue: i64,
    /// Core of a worker.
    pub core: i64,
}

/// Makes a port, attached to exactly one of `vhost_user`, `tap` and `netdev`. Also a `[[port]]` table of the
/// configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortAdd {
    /// Its name.
    pub name: String,
    /// The bridge that it joins.
    pub bridge: String,
    /// Path of a vhost-user socket: absolute, at most 107 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_user: Option<String>,
    /// With `vhost_user`: `server` (shunt listens; if not given) or `client`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// A TAP device to make or adopt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// With `tap` and `netdev`: the network namespace, a name or an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// With `tap`: the device stays when the port goes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub persist: bool,
    /// An existing network device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netdev: Option<String>,
    /// Queues or queue pairs, 1 to 128 (vhost-user) or 256; 1 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<i64>,
    /// MTU in bytes, 46 to 9600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
    /// Unicast MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Queues to bind to the workers of certain cores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
}

/// Removes a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortDel {
    /// Its name.
    pub name: String,
}

/// All ports, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortList {}

/// One port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortShow {
    /// Its name.
    pub name: String,
}

/// Changes a port; at least one of the fields beside the name must be given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSet {
    /// Its name.
    pub name: String,
    /// MTU in bytes, 46 to 9600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
    /// Queues to bind to the workers of certain cores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
    /// Queues that the switch shall place again as it likes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unpin: Vec<i64>,
}

/// Entries of the forwarding databases, a page at a time; see [`FdbPage`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbList {
    /// Of this bridge only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// What the page before gave as `next`; without it the listing starts, as of now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// Makes a static entry, or turns a learned one into a static one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbAdd {
    /// The bridge.
    pub bridge: String,
    /// Unicast MAC address.
    pub mac: String,
    /// The port behind which it is.
    pub port: String,
    /// VLAN identifier, 1 to 4094; 0 or not given means untagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<i64>,
}

/// Removes an entry, static or learned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbDel {
    /// The bridge.
    pub bridge: String,
    /// MAC address.
    pub mac: String,
    /// VLAN identifier, 1 to 4094; 0 or not given means untagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<i64>,
}

/// Removes what was learned; static entries stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbFlush {
    /// Of this bridge only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Behind this port only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

/// The workers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerList {
    /// Whether their counters start again at zero after this answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
}

/// What ports counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatsShow {
    /// Of this port only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

// ---- Answers ----

/// Nothing to tell but that it is done: `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// The daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Number of workers.
    pub workers: usize,
    /// Number of ports.
    pub ports: usize,
    /// Number of bridges.
    pub bridges: usize,
    /// How workers poll.
    pub poll: Poll,
}

/// A bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Its name.
    pub name: Name,
    /// Seconds until a learned address is forgotten; 0 for never.
    pub ageing: u32,
    /// Most entries of its forwarding database.
    pub fdb_limit: u32,
    /// Entries now, static ones among them.
    pub fdb_entries: u64,
    /// How often an address was seen at another port than before.
    pub fdb_moves: u64,
    /// How often an address was not learned because the database was full.
    pub fdb_refused: u64,
    /// Its ports, by name.
    pub ports: Vec<Name>,
}

/// What is behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A guest.
    #[serde(rename = "vhost-user")]
    VhostUser,
    /// A TAP device whose descriptor shunt holds.
    #[serde(rename = "tap")]
    Tap,
    /// An existing network device.
    #[serde(rename = "netdev")]
    Netdev,
}

impl Kind {
    /// The word of JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VhostUser => "vhost-user",
            Self::Tap => "tap",
            Self::Netdev => "netdev",
        }
    }
}

/// Whether a port can carry frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It can.
    Up,
    /// The device is down or gone, or the guest has no ring running.
    Down,
    /// Nobody is at the other end of the vhost-user socket yet, or again.
    Connecting,
    /// The other side broke the rules; it recovers when the other side starts anew.
    Broken,
}

impl State {
    /// The word of JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Connecting => "connecting",
            Self::Broken => "broken",
        }
    }
}

/// One direction of a port, since the port was made. `rx` is what came into the switch by the port, `tx` what left
/// by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Frames; a GSO frame counts as one.
    pub packets: u64,
    /// Bytes from the Ethernet header on.
    pub bytes: u64,
    /// Of the drops, those that a fault caused and not a decision or lack of room.
    pub errors: u64,
    /// Frames dropped, by reason; reasons that never happened are left out.
    pub drops: BTreeMap<String, u64>,
}

impl From<Totals> for Counters {
    fn from(totals: Totals) -> Self {
        Self {
            packets: totals.packets,
            bytes: totals.bytes,
            errors: totals.errors(),
            drops: totals.drops.into_iter().map(|(reason, n)| (reason.to_owned(), n)).collect(),
        }
    }
}

/// A queue and the core whose worker it was bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Receive queue, counted from 0.
    pub queue: u16,
    /// Core.
    pub core: u32,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name.
    pub name: Name,
    /// What is behind it.
    pub kind: Kind,
    /// The bridge that it belongs to.
    pub bridge: Name,
    /// Whether it can carry frames.
    pub state: State,
    /// Why it cannot; `null` while it can.
    pub reason: Option<String>,
    /// Address of the guest's or kernel's side where it is known, or else `null`.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u16,
    /// Queues or queue pairs that it was made with.
    pub queues: u16,
    /// Names of the features in force, in the spelling of their specification (`VIRTIO_NET_F_MRG_RXBUF`).
    pub features: Vec<String>,
    /// Into the switch.
    pub rx: Counters,
    /// Out of the switch.
    pub tx: Counters,
    /// Queues bound to cores.
    pub pins: Vec<Pinned>,
    /// Path of the vhost-user socket; `null` for other kinds.
    pub vhost_user: Option<PathBuf>,
    /// Who listens at that socket; `null` for other kinds.
    pub role: Option<Role>,
    /// The TAP or network device; `null` for vhost-user.
    pub device: Option<String>,
    /// Network namespace of the device; `null` where it is the daemon's own, and for other kinds.
    pub netns: Option<String>,
    /// Whether the TAP stays when the port goes.
    pub persist: bool,
}

/// An address that a bridge knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbEntry {
    /// The bridge.
    pub bridge: Name,
    /// The address.
    pub mac: Mac,
    /// VLAN identifier; 0 for untagged.
    pub vlan: u16,
    /// The port behind which it is.
    pub port: Name,
    /// Whether it was told and not learned; such an entry neither ages nor moves.
    #[serde(rename = "static")]
    pub fixed: bool,
    /// Seconds since it was last seen; 0 for a static entry.
    pub age_seconds: u32,
}

/// A page of [`FdbList`]. All pages of a listing show the moment of its first one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbPage {
    /// Entries of the whole listing.
    pub total: u64,
    /// Those of this page, sorted by bridge, VLAN and address over all pages.
    pub entries: Vec<FdbEntry>,
    /// What to ask the following page with, on the same connection; `null` after the last.
    pub next: Option<u64>,
}

/// What [`FdbFlush`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Number of entries that went.
    pub removed: u64,
}

/// A queue of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRef {
    /// The port.
    pub port: Name,
    /// Receive queue, counted from 0.
    pub queue: u16,
}

/// A worker. Its counters run since the start or the last reset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// Number, counted from 0.
    pub id: usize,
    /// The core that it is bound to; `null` when it is bound to none.
    pub core: Option<usize>,
    /// How it polls.
    pub poll: Poll,
    /// The queues that it receives from.
    pub queues: Vec<QueueRef>,
    /// Frames received.
    pub packets: u64,
    /// Polls that brought at least one frame.
    pub batches: u64,
    /// Processor cycles in such polls, divided by the frames; 0 before the first frame.
    pub busy_cycles_per_packet: f64,
    /// Share of its time without work, polling in vain or asleep: 0 to 1.
    pub idle_share: f64,
}

/// What a port counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStats {
    /// The port.
    pub port: Name,
    /// Into the switch.
    pub rx: Counters,
    /// Out of the switch.
    pub tx: Counters,
}

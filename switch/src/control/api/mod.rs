//! What daemon and client say to each other: one type per method, one per thing that is answered; a file per noun.
//!
//! Requests hold plain numbers and texts, so that a value out of bounds reaches the rule that names it
//! ([`crate::config::spec`]) and not a parser that speaks of types; the same types are the tables of the
//! configuration file. Field names of answers are part of the interface: fields may be added, never renamed.
#![forbid(unsafe_code)]

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A method of the control socket: its parameters are the type itself.
pub trait Method: Serialize + DeserializeOwned {
    /// `noun.verb`.
    const NAME: &'static str;
    /// What a success brings.
    type Answer: Serialize + DeserializeOwned;
}

/// Parameters of methods: those that a method does not have are refused.
macro_rules! parameters {
    ($($(#[$meta:meta])* pub struct $name:ident { $($fields:tt)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($fields)* }
    )*};
}

mod bridge;
mod check;
mod config;
mod conntrack;
mod container;
mod dhcp;
mod fdb;
mod interface;
mod ipvs;
mod nat;
mod neighbour;
mod policy;
mod port;
mod route;
mod status;
mod worker;

pub use bridge::*;
pub use check::*;
pub use config::*;
pub use conntrack::*;
pub use container::*;
pub use dhcp::*;
pub use fdb::*;
pub use interface::*;
pub use ipvs::*;
pub use nat::*;
pub use neighbour::*;
pub use policy::*;
pub use port::*;
pub use route::*;
pub use status::*;
pub use worker::*;

/// Has `$then!` work on the list of all methods: request, name, answer.
macro_rules! each_method {
    ($then:ident) => {
        $then! {
            StatusShow = "status.show" -> Status;
            DaemonUpgrade = "daemon.upgrade" -> Upgraded;
            BridgeAdd = "bridge.add" -> Bridge;
            BridgeDel = "bridge.del" -> Done;
            BridgeList = "bridge.list" -> Vec<Bridge>;
            BridgeShow = "bridge.show" -> Bridge;
            BridgeSet = "bridge.set" -> Bridge;
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
            WorkerRebalance = "worker.rebalance" -> Rebalance;
            WorkerSettings = "worker.settings" -> WorkerSettingsList;
            WorkerSet = "worker.set" -> WorkerSettingsList;
            StatsShow = "stats.show" -> Vec<PortStats>;
            InterfaceAdd = "interface.add" -> Interface;
            InterfaceDel = "interface.del" -> Done;
            InterfaceList = "interface.list" -> Vec<Interface>;
            InterfaceShow = "interface.show" -> Interface;
            InterfaceSet = "interface.set" -> Interface;
            RouteAdd = "route.add" -> Done;
            RouteDel = "route.del" -> Flushed;
            RouteList = "route.list" -> RoutePage;
            RouteGet = "route.get" -> RouteChoice;
            RouteLoad = "route.load" -> RouteLoaded;
            RouteFlush = "route.flush" -> Flushed;
            NeighbourList = "neighbour.list" -> NeighbourPage;
            NeighbourAdd = "neighbour.add" -> Done;
            NeighbourDel = "neighbour.del" -> Done;
            NeighbourFlush = "neighbour.flush" -> Flushed;
            MasqueradeAdd = "nat.add-masquerade" -> NatRule;
            SnatAdd = "nat.add-snat" -> NatRule;
            PublishAdd = "nat.add-publish" -> NatRule;
            OneToOneAdd = "nat.add-one-to-one" -> NatRule;
            NatDel = "nat.del" -> Done;
            NatList = "nat.list" -> Vec<NatRule>;
            ConntrackList = "conntrack.list" -> ConntrackPage;
            ConntrackCount = "conntrack.count" -> ConntrackSize;
            ConntrackFlush = "conntrack.flush" -> Flushed;
            ConntrackStats = "conntrack.stats" -> Vec<ConntrackCounters>;
            ConntrackTimeouts = "conntrack.timeouts" -> Timeouts;
            ConntrackSetTimeout = "conntrack.set-timeout" -> Timeouts;
            ConntrackLimits = "conntrack.limits" -> Limits;
            ConntrackSetLimit = "conntrack.set-limit" -> Limits;
            PolicyAdd = "policy.add" -> PolicyRule;
            PolicyDel = "policy.del" -> Done;
            PolicyList = "policy.list" -> Policy;
            PolicyFlush = "policy.flush" -> Flushed;
            PolicySet = "policy.set" -> Policy;
            DhcpSet = "dhcp.set" -> Dhcp;
            DhcpDel = "dhcp.del" -> Done;
            DhcpShow = "dhcp.show" -> Dhcp;
            DhcpReserve = "dhcp.reserve" -> Dhcp;
            DhcpUnreserve = "dhcp.unreserve" -> Dhcp;
            DhcpLeases = "dhcp.leases" -> Vec<Lease>;
            DhcpRelease = "dhcp.release" -> Flushed;
            IpvsApply = "ipvs.apply" -> IpvsApplied;
            IpvsList = "ipvs.list" -> IpvsPage;
            IpvsZero = "ipvs.zero" -> Done;
            IpvsShowTimeouts = "ipvs.timeouts" -> IpvsTimeouts;
            IpvsSettings = "ipvs.settings" -> IpvsSettingsList;
            IpvsSet = "ipvs.set" -> IpvsSettingsList;
            IpvsScopes = "ipvs.scopes" -> Vec<IpvsScope>;
            IpvsConnections = "ipvs.connections" -> IpvsConnectionPage;
            IpvsCleanup = "ipvs.cleanup" -> Flushed;
            IpvsDaemons = "ipvs.daemons" -> Vec<IpvsDaemon>;
            IpvsDaemonStart = "ipvs.start-daemon" -> Done;
            IpvsDaemonStop = "ipvs.stop-daemon" -> Done;
            CheckSet = "check.set" -> Done;
            CheckDel = "check.del" -> Done;
            CheckList = "check.list" -> Vec<Check>;
            ContainerAdd = "container.add" -> Container;
            ContainerList = "container.list" -> Vec<Container>;
            ContainerShow = "container.show" -> Container;
            ConfigShow = "config.show" -> ConfigPage;
            ConfigPart = "config.part" -> ConfigParts;
            ConfigCheck = "config.check" -> ConfigChecked;
            ConfigDiff = "config.diff" -> ConfigDifference;
            ConfigApply = "config.apply" -> ConfigDifference;
        }
    };
}
pub(crate) use each_method;

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
each_method!(methods);

/// Has `$then!` work on the list of those methods that wait for others: a QEMU, an agent. Requests of other connections
/// are answered meanwhile.
macro_rules! each_operation {
    ($then:ident) => {
        $then! {
            ContainerDel = "container.del" -> ContainerDeleted;
            KataAddInterface = "kata.add-iface" -> KataPlugged;
            KataDelInterface = "kata.del-iface" -> KataPlugged;
            KataListInterfaces = "kata.list-ifaces" -> Vec<KataListed>;
            KataAddRoute = "kata.add-route" -> KataRouted;
            KataDelRoute = "kata.del-route" -> KataRouted;
            KataListRoutes = "kata.list-routes" -> Vec<KataRoute>;
        }
    };
}
pub(crate) use each_operation;

macro_rules! operations {
    ($($request:ident = $name:literal -> $answer:ty;)*) => {
        $(impl Method for $request {
            const NAME: &'static str = $name;
            type Answer = $answer;
        })*

        /// The names of the methods that wait for others.
        pub const OPERATIONS: &[&str] = &[$($name),*];
    };
}
each_operation!(operations);

/// Nothing to tell but that it is done: `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// A page of a long listing. All pages of a listing show the moment of its first one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// Entries of the whole listing.
    pub total: u64,
    /// Those of this page.
    pub entries: Vec<T>,
    /// What to ask the following page with, on the same connection; `null` after the last.
    pub next: Option<u64>,
}

/// How much a request that may do many things at once has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Number of entries that went.
    pub removed: u64,
}

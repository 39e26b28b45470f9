//! Virtual services and their real servers.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::Page;

fn is_false(flag: &bool) -> bool {
    !flag
}

parameters! {
    /// A virtual service. Also an `[[ipvs]]` table of the configuration file, without its servers.
    pub struct IpvsService {
        /// What it is known by: `tcp:10.0.0.1:80`, `udp:[2001:db8::1]:53`, `sctp:10.0.0.1:36412`, `mark:5`, or
        /// `mark6:5` for packets of IPv6. Port 0 means all ports, with `persistent`.
        pub service: String,
        /// Who chooses a server: `rr`, `wrr`, `lc`, `wlc`, `lblc`, `lblcr`, `dh`, `sh`, `sed`, `nq`, `fo`, `ovf`, `mh`
        /// or `twos`; `none`: nobody. `wlc` if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub scheduler: Option<String>,
        /// Its flags: `sh-fallback`, `sh-port`, `mh-fallback`, `mh-port`, or `flag-1`, `flag-2`, `flag-3`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub flags: Vec<String>,
        /// Connections of a client stay with a server for so many seconds, 1 to 2,678,400.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub persistent: Option<i64>,
        /// Which clients are the same to `persistent`: a mask such as `255.255.255.0`, or bits of IPv6 (1 to 128).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub netmask: Option<String>,
        /// What tells clients apart beside their address: `sip`, with `persistent`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub pe: Option<String>,
        /// Each packet of UDP is scheduled alone.
        #[serde(default, skip_serializing_if = "is_false")]
        pub one_packet: bool,
    }

    /// A service by its name alone.
    pub struct IpvsKey {
        /// As in [`IpvsService`].
        pub service: String,
    }

    /// A real server.
    pub struct IpvsServer {
        /// Its service, as in [`IpvsService`].
        pub service: String,
        /// Its address and port: `10.1.0.1:80`, `[2001:db8::1]:80`.
        pub address: String,
        /// How packets get there: `masquerade`, `route` (not given), `tunnel` or `full-nat`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub forward: Option<String>,
        /// Its share, 0 to 2,147,483,647; 1 if not given. At 0 it gets no new connections.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub weight: Option<i64>,
        /// Connections from which on it gets no new ones; 0, or not given: no limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub upper: Option<i64>,
        /// Connections below which it gets new ones again; 0, or not given: three quarters of `upper`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub lower: Option<i64>,
        /// With `tunnel`: `ipip` (not given), `gue` or `gre`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tunnel: Option<String>,
        /// With `gue`: the UDP port, 1 to 65,535.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tunnel_port: Option<i64>,
        /// With `gue` and `gre`: `none` (not given), `full`, or for `gue` `remote`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tunnel_checksum: Option<String>,
        /// With `full-nat`: the addresses that clients' addresses become, `10.0.0.5-10.0.0.9`, or one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub pool: Option<String>,
    }

    /// A real server by its name alone.
    pub struct IpvsServerKey {
        /// Its service.
        pub service: String,
        /// Its address and port.
        pub address: String,
    }

    /// Seconds that connections are remembered; 0 leaves one as it is, otherwise 1 to 2,678,400.
    pub struct IpvsTimeouts {
        /// Established TCP connections.
        pub tcp: i64,
        /// TCP connections of which a side has finished.
        pub tcp_fin: i64,
        /// UDP.
        pub udp: i64,
    }

    /// Makes changes, all of them or none. Many changes come in several requests of one connection, all but the last
    /// with `more`; the last has them take effect.
    pub struct IpvsApply {
        /// The container whose table it is; not given: the global one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub container: Option<String>,
        /// The changes, in their order.
        pub changes: Vec<IpvsChange>,
        /// Whether more of them follow.
        #[serde(default, skip_serializing_if = "is_false")]
        pub more: bool,
        /// With the last request: the changes describe a whole table (only `add-service` and `add-server`), and the
        /// one that is there becomes it by the difference of both.
        #[serde(default, skip_serializing_if = "is_false")]
        pub replace: bool,
    }

    /// Services, each followed by its servers, in no order that means anything; servers in the order in which
    /// schedulers look at them.
    pub struct IpvsList {
        /// The container whose table it is; not given: the global one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub container: Option<String>,
        /// This service only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub service: Option<String>,
        /// The next page: what the answer before gave as `next`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub next: Option<u64>,
    }

    /// Has counters begin at 0.
    pub struct IpvsZero {
        /// The container whose table it is; not given: the global one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub container: Option<String>,
        /// Those of this service only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub service: Option<String>,
    }

    /// How long connections are remembered.
    pub struct IpvsShowTimeouts {
        /// The container whose table it is; not given: the global one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub container: Option<String>,
    }

    /// The settings of a table, by the names of Linux's sysctls.
    pub struct IpvsSettings {
        /// The container whose table it is; not given: the global one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub container: Option<String>,
    }

    /// Changes a setting.
    pub struct IpvsSet {
        /// The container whose table it is; not given: the global one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub container: Option<String>,
        /// Its name, such as `expire_nodest_conn`.
        pub name: String,
        /// Its value.
        pub value: i64,
    }

    /// The tables: the global one and containers'.
    pub struct IpvsScopes {}
}

/// One change, as one command of `ipvsadm` asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IpvsChange {
    /// `-A`.
    AddService(IpvsService),
    /// `-E`; what is not given is as if it were added anew.
    EditService(IpvsService),
    /// `-D`.
    DeleteService(IpvsKey),
    /// `-a`.
    AddServer(IpvsServer),
    /// `-e`; what is not given is as if it were added anew.
    EditServer(IpvsServer),
    /// `-d`.
    DeleteServer(IpvsServerKey),
    /// `-C`.
    Flush,
    /// `--set`.
    SetTimeouts(IpvsTimeouts),
}

/// What [`IpvsApply`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsApplied {
    /// Changes that wait for the rest.
    pub waiting: u64,
    /// Changes that took effect; with `replace`: services and servers added.
    pub changed: u64,
    /// With `replace`: services and servers edited.
    pub edited: u64,
    /// With `replace`: services and servers deleted.
    pub deleted: u64,
}

/// Counters of a service or a server; they are left out where all are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsStats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets to clients.
    pub out_packets: u64,
    /// Bytes from clients, of layer 3.
    pub in_bytes: u64,
    /// Bytes to clients.
    pub out_bytes: u64,
}

impl IpvsStats {
    /// Whether nothing was counted.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// An entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IpvsEntry {
    /// A service.
    Service(IpvsServiceEntry),
    /// A server of the last service before it.
    Server(IpvsServerEntry),
}

/// A page of a listing.
pub type IpvsPage = Page<IpvsEntry>;

/// A service as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsServiceEntry {
    /// What it is known by, as in [`IpvsService`].
    pub service: String,
    /// Who chooses; `none` if nobody.
    pub scheduler: String,
    /// The scheduler's flags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Seconds of persistence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent: Option<u32>,
    /// The mask of persistence, where not all bits count: an address, or of IPv6 a number of bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netmask: Option<String>,
    /// What tells clients apart beside their address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pe: Option<String>,
    /// Each packet of UDP is scheduled alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub one_packet: bool,
    /// Its counters.
    #[serde(default, skip_serializing_if = "IpvsStats::is_zero")]
    pub stats: IpvsStats,
}

/// A server as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsServerEntry {
    /// Its address and port.
    pub address: String,
    /// How packets get there: `masquerade`, `route`, `tunnel` or `full-nat`.
    pub forward: String,
    /// Its share.
    pub weight: i32,
    /// Connections from which on it gets no new ones; 0: no limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub upper: u32,
    /// Connections below which it gets new ones again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lower: u32,
    /// Of a tunnel: `ipip`, `gue` or `gre`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// The port of `gue`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_port: Option<u16>,
    /// Checksums of `gue` and `gre`: `none`, `full` or `remote`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_checksum: Option<String>,
    /// The addresses of `full-nat`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Connections in use.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub active: u32,
    /// Connections that begin or end.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub inactive: u32,
    /// Templates of persistence.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub templates: u32,
    /// Whether it gets no new connections because it has too many.
    #[serde(default, skip_serializing_if = "is_false")]
    pub overloaded: bool,
    /// Its counters.
    #[serde(default, skip_serializing_if = "IpvsStats::is_zero")]
    pub stats: IpvsStats,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Settings and their values.
pub type IpvsSettingsList = BTreeMap<String, u32>;

/// A table of services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsScope {
    /// The container's name; `null` for the global one.
    pub container: Option<String>,
    /// Services and servers in it.
    pub rules: u64,
    /// How many there may be.
    pub limit: u64,
}

parameters! {
    /// The sync daemons that run.
    pub struct IpvsDaemons {}

    /// Starts a sync daemon, which tells other directors of connections, or is told.
    pub struct IpvsDaemonStart {
        /// `master` or `backup`.
        pub role: String,
        /// The network interface, of the daemon's namespace.
        pub interface: String,
        /// The number that its messages bear, 0 to 255; 0 if not given.
        pub sync_id: Option<i64>,
        /// Longest message in bytes, 1 to 65,507; what a frame holds if not given.
        pub max_length: Option<i64>,
        /// Where messages go: a multicast group (224.0.0.81 if not given), or the other director's address.
        pub group: Option<String>,
        /// The UDP port, 1 to 65,535; 8848 if not given.
        pub port: Option<i64>,
        /// Hop limit of multicast messages, 1 to 255; 1 if not given.
        pub ttl: Option<i64>,
    }

    /// Stops a sync daemon.
    pub struct IpvsDaemonStop {
        /// `master` or `backup`.
        pub role: String,
    }

    /// Balanced connections, some thousands at a time.
    pub struct IpvsConnections {
        /// The container whose table balanced them; not given: the global one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub container: Option<String>,
        /// What the answer before gave as `next`; without it the listing starts. Connections come and go meanwhile.
        pub next: Option<u64>,
    }

    /// Forgets balanced and translated connections, as `conntrack -D` does.
    pub struct IpvsCleanup {
        /// The container that they come from, its ID or the beginning of it; not given: anybody's.
        pub container: Option<String>,
        /// Whom the client called, or the server that it got: an address or network.
        pub orig_dst: Option<String>,
        /// The client.
        pub orig_src: Option<String>,
        /// Source of the answers.
        pub reply_src: Option<String>,
        /// Destination of the answers.
        pub reply_dst: Option<String>,
        /// `tcp`, `udp`, ..., or a number.
        pub protonum: Option<String>,
        /// Port that the client called from.
        pub orig_port_src: Option<i64>,
        /// Port that the client called.
        pub orig_port_dst: Option<i64>,
        /// Port that the answers come from.
        pub reply_port_src: Option<i64>,
        /// Port that the answers go to.
        pub reply_port_dst: Option<i64>,
        /// `ipv4` or `ipv6`.
        pub family: Option<String>,
        /// State of TCP, such as `ESTABLISHED`.
        pub state: Option<String>,
    }
}

/// A sync daemon that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsDaemon {
    /// `master` or `backup`.
    pub role: String,
    /// The network interface.
    pub interface: String,
    /// The number that its messages bear.
    pub sync_id: u8,
    /// Longest message in bytes.
    pub max_length: u16,
    /// Where messages go to.
    pub group: IpAddr,
    /// The UDP port.
    pub port: u16,
    /// Hop limit.
    pub ttl: u8,
    /// What it has done so far, by name.
    pub counters: BTreeMap<String, u64>,
}

/// A balanced connection, or a template of persistence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsConnection {
    /// The protocol's number; 0 of templates of services by mark.
    pub protocol: u8,
    /// The client; of a template what of it counts, with port 0.
    pub client: SocketAddr,
    /// Whom it called; of a mark's template the mark, as an address.
    pub called: SocketAddr,
    /// Who serves it.
    pub server: SocketAddr,
    /// State, as `ipvsadm -L -c` names it.
    pub state: String,
    /// Seconds until it is forgotten.
    pub expires: u32,
    /// Whether it is a template.
    #[serde(default, skip_serializing_if = "is_false")]
    pub template: bool,
    /// Packets of the client and of the server.
    pub packets: [u64; 2],
    /// Their bytes.
    pub bytes: [u64; 2],
}

/// Some of the balanced connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsConnectionPage {
    /// Connections, in no order.
    pub entries: Vec<IpvsConnection>,
    /// What to ask for the following ones with; `null` after the last.
    pub next: Option<u64>,
}

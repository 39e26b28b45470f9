//! Bridges.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::config::Name;

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
    /// Whether frames from port to port of this bridge meet connection tracking and policy, too, as with the kernel's
    /// br_netfilter; not if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<bool>,
}

/// Changes a bridge; at least one of the fields beside the name must be given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeSet {
    /// Its name.
    pub name: String,
    /// Whether frames from port to port meet connection tracking and policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<bool>,
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
    /// Whether frames from port to port meet connection tracking and policy.
    pub filter: bool,
    /// The switch's interfaces on it, by name.
    pub interfaces: Vec<Name>,
}

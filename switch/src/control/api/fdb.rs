//! Forwarding databases.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::Page;
use crate::config::{Mac, Name};

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

/// A page of [`FdbList`], sorted by bridge, VLAN and address over all pages.
pub type FdbPage = Page<FdbEntry>;

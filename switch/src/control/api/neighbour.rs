//! Neighbours: the MAC addresses behind the IP addresses of a link.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Page;
use crate::config::{Mac, Name};

parameters! {
    /// Neighbours, a page at a time; see [`NeighbourPage`].
    pub struct NeighbourList {
        /// On this interface only.
        pub interface: Option<String>,
        /// What the page before gave as `next`; without it the listing starts, as of now.
        pub next: Option<u64>,
    }

    /// Makes a permanent entry, or a learned one permanent. Also a `[[neighbour]]` table of the configuration file.
    pub struct NeighbourAdd {
        /// The interface.
        pub interface: String,
        /// The neighbour's IP address.
        pub address: String,
        /// Its MAC address, a unicast one.
        pub mac: String,
    }

    /// Removes an entry, permanent or learned.
    pub struct NeighbourDel {
        /// The interface.
        pub interface: String,
        /// The neighbour's IP address.
        pub address: String,
    }

    /// Removes what was learned; permanent entries stay.
    pub struct NeighbourFlush {
        /// On this interface only.
        pub interface: Option<String>,
    }
}

/// A neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// The interface.
    pub interface: Name,
    /// Its IP address.
    pub address: IpAddr,
    /// Its MAC address; `null` while it is not known.
    pub mac: Option<Mac>,
    /// How far it can be relied upon, in the words of ip-neighbour(8).
    pub state: NeighbourState,
    /// Seconds since it was last confirmed; 0 for a permanent one.
    pub age_seconds: u32,
}

/// How far an entry can be relied upon (RFC 4861, 7.3.2; ip-neighbour(8)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum NeighbourState {
    /// Being asked for.
    Incomplete,
    /// Confirmed a short while ago.
    Reachable,
    /// Known, but not confirmed of late.
    Stale,
    /// In use again; about to be asked.
    Delay,
    /// Being asked whether it is still there.
    Probe,
    /// Did not answer.
    Failed,
    /// Told by somebody; neither asked nor forgotten.
    Permanent,
    /// Needs no asking.
    Noarp,
}

impl NeighbourState {
    /// The word of JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Incomplete => "INCOMPLETE",
            Self::Reachable => "REACHABLE",
            Self::Stale => "STALE",
            Self::Delay => "DELAY",
            Self::Probe => "PROBE",
            Self::Failed => "FAILED",
            Self::Permanent => "PERMANENT",
            Self::Noarp => "NOARP",
        }
    }
}

/// A page of [`NeighbourList`], sorted by interface and address over all pages.
pub type NeighbourPage = Page<Neighbour>;

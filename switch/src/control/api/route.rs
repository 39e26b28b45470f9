//! Routes.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Page;
use crate::config::{Name, RouteKind};

parameters! {
    /// Makes a static route, or one more way to a destination whose metric it shares (ECMP). Also a `[[route]]` table of
    /// the configuration file.
    pub struct RouteAdd {
        /// The destination: a network, an address, or `default`.
        pub prefix: String,
        /// The gateway.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub via: Option<String>,
        /// The interface.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub dev: Option<String>,
        /// Of several routes to a destination the usable one of the lowest metric is taken: 0 (if not given) to
        /// 4,294,967,295.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub metric: Option<i64>,
        /// `unicast` (if not given), `blackhole`, `unreachable` or `prohibit`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub kind: Option<String>,
        /// Whether the gateway is reached through `dev` although no network of its holds it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub onlink: bool,
    }

    /// Removes the static routes to a destination; what is given beside it must fit, too.
    pub struct RouteDel {
        /// The destination: a network, an address, or `default` (of both families, unless `via` tells which).
        pub prefix: String,
        /// Through this gateway only.
        pub via: Option<String>,
        /// Through this interface only.
        pub dev: Option<String>,
        /// With this metric only.
        pub metric: Option<i64>,
    }

    /// Routes, a page at a time; see [`RoutePage`].
    pub struct RouteList {
        /// What the page before gave as `next`; without it the listing starts, as of now.
        pub next: Option<u64>,
    }

    /// Which way a packet to an address goes, and why.
    pub struct RouteGet {
        /// The destination.
        pub address: String,
    }

    /// Many routes at once: all of them, or none when one is refused. A long list comes in several requests of one
    /// connection, all but the last with `more`; the last has them take effect.
    pub struct RouteLoad {
        /// Routes as for [`RouteAdd`].
        pub routes: Vec<RouteAdd>,
        /// Whether more of the list follow.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub more: bool,
        /// With the last request: whether the static routes that are there now go.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub replace: bool,
    }

    /// Removes all static routes.
    pub struct RouteFlush {
        /// Through this interface only.
        pub dev: Option<String>,
    }
}

/// Where a route comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteProtocol {
    /// An address of an interface.
    Kernel,
    /// Somebody who asked for it.
    Static,
}

impl RouteProtocol {
    /// The word of JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Static => "static",
        }
    }
}

/// A route, or one way of several that share prefix and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination.
    pub prefix: IpNet,
    /// The gateway; `null` where the destination is reached directly, or not at all.
    pub via: Option<IpAddr>,
    /// The interface; `null` where there is none.
    pub dev: Option<Name>,
    /// The metric.
    pub metric: u32,
    /// What happens to packets that take it.
    pub kind: RouteKind,
    /// Where it comes from.
    pub protocol: RouteProtocol,
    /// Whether it was told that the gateway is on the interface's link.
    pub onlink: bool,
    /// The address that the switch itself uses as source there: that of a connected route; otherwise `null`.
    pub source: Option<IpAddr>,
    /// Whether it is in use: usable, and no route of a lower metric before it.
    pub active: bool,
}

/// A page of [`RouteList`], sorted by prefix and metric over all pages.
pub type RoutePage = Page<Route>;

/// The answer to [`RouteGet`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteChoice {
    /// The destination that was asked for.
    pub address: IpAddr,
    /// What happens to packets there; `unreachable` when there is no route.
    pub kind: RouteKind,
    /// The route's destination; `null` when there is no route.
    pub prefix: Option<IpNet>,
    /// Its metric; `null` when there is no route.
    pub metric: Option<u32>,
    /// The ways among which flows are spread, as their gateways and interfaces; empty where nothing goes out.
    pub paths: Vec<RoutePath>,
    /// Whether the address is the switch's own.
    pub local: bool,
    /// Why this one, in a sentence.
    pub explanation: String,
}

/// A way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutePath {
    /// The gateway; `null` when the destination itself is on the interface's link.
    pub via: Option<IpAddr>,
    /// The interface.
    pub dev: Name,
    /// The switch's own address there; `null` if it has none of the family.
    pub source: Option<IpAddr>,
}

/// What [`RouteLoad`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteLoaded {
    /// Routes that wait for the rest of the list.
    pub waiting: u64,
    /// Routes that took effect.
    pub loaded: u64,
    /// Routes that went for them.
    pub removed: u64,
}

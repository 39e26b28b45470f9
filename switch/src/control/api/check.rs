//! Health checks of real servers.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

parameters! {
    /// Has the servers of a virtual service checked, in this way instead of another one. Also a `[[check]]` table of
    /// the configuration file.
    pub struct CheckSet {
        /// The service, as [`super::IpvsKey`] names it: `tcp:10.0.0.1:80`, `mark:5`.
        pub service: String,
        /// How: `tcp`, `http` or `udp`.
        pub kind: String,
        /// Another port than the server's in the service, 1 to 65,535. Must be given where the server has none.
        pub port: Option<i64>,
        /// The network interface of the daemon's namespace that questions leave by.
        pub interface: Option<String>,
        /// Seconds between two checks of a server, 1 to 86,400; 10 if not given.
        pub interval: Option<i64>,
        /// Seconds that an answer may take, 1 to 3600 and at most the interval; 1 if not given.
        pub timeout: Option<i64>,
        /// Good checks in a row that bring a server back, 1 to 1000; 1 if not given.
        pub rise: Option<i64>,
        /// Bad checks in a row that take a server out, 1 to 1000; 3 if not given.
        pub fall: Option<i64>,
        /// `http`: what is asked for; `/` if not given.
        pub path: Option<String>,
        /// `http`: the Host header; address and port if not given.
        pub host: Option<String>,
        /// `http`: good statuses, such as `200` or `200-299`; `200-399` if not given.
        pub status: Option<String>,
        /// `udp`: the text that is sent; nothing if not given.
        pub payload: Option<String>,
        /// `udp`: whether a server has to answer.
        pub reply: Option<bool>,
    }

    /// Checks the servers of a virtual service no longer; weights come back.
    pub struct CheckDel {
        /// The service.
        pub service: String,
    }

    /// All checks.
    pub struct CheckList {}
}

/// A check. Fields that its kind does not have are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The service.
    pub service: String,
    /// `tcp`, `http` or `udp`.
    pub kind: String,
    /// The port that is asked, if it is another one than the server's.
    pub port: Option<u16>,
    /// The network interface that questions leave by.
    pub interface: Option<String>,
    /// Seconds between two checks of a server.
    pub interval: u64,
    /// Seconds that an answer may take.
    pub timeout: u64,
    /// Good checks in a row that bring a server back.
    pub rise: u32,
    /// Bad checks in a row that take a server out.
    pub fall: u32,
    /// What is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The Host header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Good statuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The text that is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// Whether a server has to answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<bool>,
    /// Its servers.
    pub servers: Vec<CheckedServer>,
}

/// A server that is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedServer {
    /// Its address.
    pub address: IpAddr,
    /// Its port in the service.
    pub port: u16,
    /// Whether it is good; every server is taken for good until it fails.
    pub up: bool,
    /// Seconds since that changed, or since it is checked.
    pub since: u64,
    /// The weight that it gets back when it is good again; `null`: it has its own.
    pub weight: Option<i32>,
    /// What was wrong at the last check.
    pub error: Option<String>,
    /// Checks so far.
    pub checks: u64,
    /// Those that failed.
    pub failures: u64,
    /// Microseconds that the last one took.
    pub took: u64,
}

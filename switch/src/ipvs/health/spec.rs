//! What a health check is: plain values.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::ipvs::spec::ServiceKey;

/// Seconds between two checks of a server, where nothing else is said.
pub const INTERVAL: u32 = 10;
/// Seconds that a server may take to answer, where nothing else is said.
pub const TIMEOUT: u32 = 1;
/// Good checks in a row that bring a failed server back.
pub const RISE: u32 = 1;
/// Bad checks in a row that take a server out.
pub const FALL: u32 = 3;

/// How a server is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It must accept a TCP connection.
    Tcp,
    /// It must answer a GET request of HTTP/1.1 by a status in bounds.
    Http {
        /// Path and query, from the slash on.
        path: String,
        /// The Host header; the server's address if not given.
        host: Option<String>,
        /// The lowest and the highest status that is good.
        status: (u16, u16),
    },
    /// It must not tell that its UDP port is closed.
    Udp {
        /// What is sent.
        payload: Vec<u8>,
        /// Silence is bad, too.
        reply: bool,
    },
}

impl Probe {
    /// `tcp`, `http` or `udp`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http { .. } => "http",
            Self::Udp { .. } => "udp",
        }
    }
}

/// How the servers of a service are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSpec {
    /// The service.
    pub service: ServiceKey,
    /// How they are asked.
    pub probe: Probe,
    /// At which port; none: at the port that they have in the service.
    pub port: Option<u16>,
    /// By which network interface of the daemon's namespace; none: as the host's routes say.
    pub device: Option<String>,
    /// Between two checks of a server.
    pub interval: Duration,
    /// How long a check may take.
    pub timeout: Duration,
    /// Good checks in a row that bring a failed server back.
    pub rise: u32,
    /// Bad checks in a row that take a server out.
    pub fall: u32,
}

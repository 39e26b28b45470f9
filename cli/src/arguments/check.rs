//! Health checks of real servers.

use clap::{Args, Subcommand};

/// `check ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Check {
    /// Has the servers of a virtual service checked: who fails gets weight 0 until it is good again
    Set(Box<CheckSet>),
    /// Checks the servers of a virtual service no longer; weights come back
    Del {
        /// The service, such as tcp:10.0.0.1:80 or mark:5
        service: String,
    },
    /// Lists the checks and what they say of each server
    List,
}

/// `check set ...`
#[derive(Clone, Debug, Args)]
pub(crate) struct CheckSet {
    /// The service, such as tcp:10.0.0.1:80 or mark:5
    pub(crate) service: String,
    /// How servers are asked: tcp, http or udp
    pub(crate) kind: String,
    /// Ask this port [default: the server's in the service]
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    pub(crate) port: Option<i64>,
    /// Ask by this network interface of the daemon's namespace [default: as the host's routes say]
    #[arg(long, value_name = "IF")]
    pub(crate) interface: Option<String>,
    /// Seconds between two checks of a server, 1 to 86400 [default: 10]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub(crate) interval: Option<i64>,
    /// Seconds that an answer may take, 1 to 3600 [default: 1]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub(crate) timeout: Option<i64>,
    /// Good checks in a row that bring a server back, 1 to 1000 [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) rise: Option<i64>,
    /// Bad checks in a row that take a server out, 1 to 1000 [default: 3]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) fall: Option<i64>,
    /// http: what to ask for [default: /]
    #[arg(long, value_name = "PATH")]
    pub(crate) path: Option<String>,
    /// http: the Host header [default: address and port]
    #[arg(long, value_name = "NAME")]
    pub(crate) host: Option<String>,
    /// http: good statuses [default: 200-399]
    #[arg(long, value_name = "N|N-N")]
    pub(crate) status: Option<String>,
    /// udp: the text to send [default: nothing]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) payload: Option<String>,
    /// udp: a server has to answer; without it silence is good, and only a closed port is bad
    #[arg(long)]
    pub(crate) reply: bool,
}

//! Commands of virtual services beside those of ipvsadm.

use clap::{Args, Subcommand};

/// `ipvs ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Ipvs {
    /// Lists the tables: the global one and containers'
    Tables,
    /// Shows the settings of a table, by the names of Linux's sysctls
    Show {
        /// The container whose table it is [default: the global one]
        #[arg(long, value_name = "NAME")]
        container: Option<String>,
    },
    /// Changes a setting
    Set {
        /// Its name, such as expire_nodest_conn
        name: String,
        /// Its value: 0 and 1 for off and on, or a number
        #[arg(allow_negative_numbers = true)]
        value: i64,
        /// The container whose table it is [default: the global one]
        #[arg(long, value_name = "NAME")]
        container: Option<String>,
    },
    /// Forgets connections, balanced or translated, and says how many; without a filter all of them
    Cleanup(Cleanup),
}

/// `ipvs cleanup`: the filters of conntrack -D.
#[derive(Args, Clone, Debug)]
pub(crate) struct Cleanup {
    /// Whom clients called, or the server that they got: an address or network
    #[arg(short = 'd', long, visible_alias = "dst", value_name = "ADDRESS[/LENGTH]")]
    pub(crate) orig_dst: Option<String>,
    /// The client
    #[arg(short = 's', long, visible_alias = "src", value_name = "ADDRESS[/LENGTH]")]
    pub(crate) orig_src: Option<String>,
    /// Source of the answers
    #[arg(short = 'r', long, value_name = "ADDRESS[/LENGTH]")]
    pub(crate) reply_src: Option<String>,
    /// Destination of the answers
    #[arg(short = 'q', long, value_name = "ADDRESS[/LENGTH]")]
    pub(crate) reply_dst: Option<String>,
    /// tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(short = 'p', long, visible_alias = "proto", value_name = "PROTOCOL")]
    pub(crate) protonum: Option<String>,
    /// Port that the client called from
    #[arg(long, visible_alias = "sport", value_name = "PORT", allow_negative_numbers = true)]
    pub(crate) orig_port_src: Option<i64>,
    /// Port that the client called
    #[arg(long, visible_alias = "dport", value_name = "PORT", allow_negative_numbers = true)]
    pub(crate) orig_port_dst: Option<i64>,
    /// Port that the answers come from
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    pub(crate) reply_port_src: Option<i64>,
    /// Port that the answers go to
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    pub(crate) reply_port_dst: Option<i64>,
    /// ipv4 or ipv6
    #[arg(short = 'f', long, value_name = "FAMILY")]
    pub(crate) family: Option<String>,
    /// State of TCP, such as ESTABLISHED
    #[arg(long, value_name = "STATE")]
    pub(crate) state: Option<String>,
}

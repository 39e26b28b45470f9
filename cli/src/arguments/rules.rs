//! Translation, connections, policy.

use clap::{ArgAction, ArgGroup, Args, Subcommand};

use super::on_off;

/// `nat ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Nat {
    /// Sources become the address of the interface by which they leave
    #[command(subcommand)]
    Masquerade(Masquerade),
    /// Sources become given addresses
    #[command(subcommand)]
    Snat(Snat),
    /// Ports of guests are reached at addresses of the switch
    #[command(subcommand)]
    Publish(Publish),
    /// Addresses outside stand for addresses inside
    #[command(subcommand, name = "one-to-one")]
    OneToOne(OneToOne),
    /// Lists the rules with their counters
    List,
}

/// Which packets a rule for sources is for.
#[derive(Clone, Debug, Args)]
pub(crate) struct Leaving {
    /// The network that packets come from, or a single address
    #[arg(long, value_name = "CIDR")]
    pub(crate) source: String,
    /// Only what leaves by this interface
    #[arg(long, value_name = "IF")]
    pub(crate) out: Option<String>,
    /// Only what leaves by another interface than this one (iptables: ! -o)
    #[arg(long, value_name = "IF", conflicts_with = "out")]
    pub(crate) not_out: Option<String>,
    /// Only what does not go to this network (iptables: ! -d); may be given several times
    #[arg(long, value_name = "CIDR")]
    pub(crate) not_destination: Vec<String>,
    /// A guest's port has the same translation towards everybody, and everybody may answer to it
    #[arg(long)]
    pub(crate) endpoint_independent: bool,
}

/// `nat masquerade ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Masquerade {
    /// Makes a rule
    Add {
        #[command(flatten)]
        leaving: Leaving,
        /// Ports to choose from [default: the port is kept if it is free]
        #[arg(long, value_name = "PORT-PORT")]
        to_ports: Option<String>,
    },
    /// Deletes a rule
    Del(Id),
}

/// `nat snat ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Snat {
    /// Makes a rule
    Add {
        #[command(flatten)]
        leaving: Leaving,
        /// Addresses and ports to choose from; IPv6 in brackets where ports follow
        #[arg(long, value_name = "ADDR[-ADDR][:PORT-PORT]")]
        to: String,
    },
    /// Deletes a rule
    Del(Id),
}

/// `nat publish ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Publish {
    /// Makes a rule
    Add {
        /// tcp, udp or sctp
        #[arg(long, value_name = "tcp|udp|sctp")]
        proto: String,
        /// Where it is reached; 0.0.0.0, [::] or * for any of the switch's addresses
        #[arg(long, value_name = "ADDR:PORT[-PORT]")]
        listen: String,
        /// Where it is: as many ports
        #[arg(long, value_name = "ADDR:PORT[-PORT]")]
        to: String,
        /// Only what comes in by this interface
        #[arg(long = "in", value_name = "IF")]
        ingress: Option<String>,
    },
    /// Deletes a rule
    Del(Id),
}

/// `nat one-to-one ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum OneToOne {
    /// Makes a rule
    Add {
        /// The address or network outside
        #[arg(long, value_name = "CIDR")]
        outside: String,
        /// The address or network inside, as large
        #[arg(long, value_name = "CIDR")]
        inside: String,
        /// The interface behind which outside is [default: any]
        #[arg(long, value_name = "IF")]
        out: Option<String>,
    },
    /// Deletes a rule
    Del(Id),
}

/// The number of a rule.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Id {
    /// Its number, as 'list' shows it
    #[arg(allow_negative_numbers = true)]
    pub(crate) id: i64,
}

/// `conntrack ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Conntrack {
    /// Lists connections in the format of conntrack(8)
    List {
        #[command(flatten)]
        filter: Filter,
        /// Packets and bytes of each direction, too
        #[arg(long)]
        counters: bool,
    },
    /// Shows how many there are and may be
    Count,
    /// Forgets connections
    Flush {
        #[command(flatten)]
        filter: Filter,
    },
    /// Shows what happened to connections, by worker
    Stats,
    /// Shows how long connections are remembered, in seconds
    Timeouts,
    /// Changes how long connections in a state are remembered
    SetTimeout {
        /// The state, such as tcp_established; 'conntrack timeouts' lists them
        kind: String,
        /// Seconds
        #[arg(allow_negative_numbers = true)]
        seconds: i64,
    },
    /// Shows how many connections there may be
    Limits,
    /// Changes how many connections there may be
    #[command(group(ArgGroup::new("change").args(["limit", "port_quota", "half_open"]).required(true).multiple(true)))]
    SetLimit {
        /// Altogether; not more than the table was made for
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        limit: Option<i64>,
        /// Begun by one port
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        port_quota: Option<i64>,
        /// Of TCP, with a handshake that is not complete
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        half_open: Option<i64>,
    },
}

/// Which connections are meant; the short options are those of conntrack(8).
#[derive(Clone, Debug, Args)]
pub(crate) struct Filter {
    /// tcp, udp, icmp, icmpv6, sctp, or a number
    #[arg(short, long, value_name = "P", alias = "protonum")]
    pub(crate) proto: Option<String>,
    /// IP version
    #[arg(short, long, value_name = "ipv4|ipv6")]
    pub(crate) family: Option<String>,
    /// Source of the first packet, an address or network
    #[arg(short, long, value_name = "A", aliases = ["src", "orig-src"])]
    pub(crate) source: Option<String>,
    /// Destination of the first packet
    #[arg(short, long, value_name = "A", aliases = ["dst", "orig-dst"])]
    pub(crate) dest: Option<String>,
    /// Source of the answers
    #[arg(short, long, value_name = "A", alias = "reply-src")]
    pub(crate) reply_source: Option<String>,
    /// Destination of the answers
    #[arg(short = 'q', long, value_name = "A", alias = "reply-dst")]
    pub(crate) reply_dest: Option<String>,
    /// Source port of the first packet
    #[arg(long, value_name = "N", alias = "orig-port-src", allow_negative_numbers = true)]
    pub(crate) sport: Option<i64>,
    /// Destination port of the first packet
    #[arg(long, value_name = "N", alias = "orig-port-dst", allow_negative_numbers = true)]
    pub(crate) dport: Option<i64>,
    /// State of TCP, such as ESTABLISHED
    #[arg(long, value_name = "STATE")]
    pub(crate) state: Option<String>,
    /// Begun by this port of the switch
    #[arg(long, value_name = "NAME")]
    pub(crate) port: Option<String>,
    /// Only those whose source is translated
    #[arg(short = 'n', long)]
    pub(crate) src_nat: bool,
    /// Only those whose destination is translated
    #[arg(short = 'g', long)]
    pub(crate) dst_nat: bool,
}

/// `policy ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Policy {
    /// Makes a rule; the first that fits decides
    Add(Box<PolicyAdd>),
    /// Deletes a rule
    Del(Id),
    /// Lists the rules in their order, with their counters
    List,
    /// Deletes all rules
    Flush,
    /// Changes what holds where no rule fits
    #[command(subcommand)]
    Default(PolicyDefault),
    /// Closes bridges to each other, or opens them
    Isolation {
        /// on or off
        #[arg(value_name = "on|off", value_parser = on_off, action = ArgAction::Set)]
        isolation: bool,
    },
}

/// `policy default ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum PolicyDefault {
    /// For connections through the switch
    Forward {
        /// accept, drop or reject
        #[arg(value_name = "accept|drop|reject")]
        action: String,
    },
}

/// `policy add ...`
#[derive(Clone, Debug, Args)]
pub(crate) struct PolicyAdd {
    /// Its number, which is its place: 1 to 1000000 [default: behind the last, in tens]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) id: Option<i64>,
    /// Where it comes from: a port, bridge or interface (port:web, bridge:br0, interface:gw, or the name alone), switch,
    /// or networks; ! before one means all others
    #[arg(long, value_name = "PLACE|CIDR")]
    pub(crate) from: Option<String>,
    /// Where it goes, in the same way
    #[arg(long, value_name = "PLACE|CIDR")]
    pub(crate) to: Option<String>,
    /// The networks that it comes from, beside the place
    #[arg(long, value_name = "CIDR,...")]
    pub(crate) source: Option<String>,
    /// The networks that it goes to, beside the place
    #[arg(long, value_name = "CIDR,...", alias = "dest")]
    pub(crate) destination: Option<String>,
    /// tcp, udp, icmp, icmpv6, sctp, or a number
    #[arg(long, value_name = "P")]
    pub(crate) proto: Option<String>,
    /// Source ports, with tcp and udp
    #[arg(long, value_name = "PORT[-PORT],...")]
    pub(crate) sport: Option<String>,
    /// Destination ports, with tcp and udp
    #[arg(long, value_name = "PORT[-PORT],...")]
    pub(crate) dport: Option<String>,
    /// Type of a request of ICMP (8, 13, 15, 17) or ICMPv6 (128)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) icmp_type: Option<i64>,
    /// States of the connection: new, established, related, invalid
    #[arg(long, value_name = "STATE,...")]
    pub(crate) state: Option<String>,
    /// accept, drop, reject, or log, which logs and has the next rule decide
    #[arg(long, value_name = "accept|drop|reject|log", required_unless_present = "mark")]
    pub(crate) action: Option<String>,
    /// Mark packets for virtual services (ipvsadm -f N) and have the next rule decide
    #[arg(long, value_name = "N", conflicts_with = "action", allow_negative_numbers = true)]
    pub(crate) mark: Option<i64>,
    /// Log what it decides
    #[arg(long)]
    pub(crate) log: bool,
}

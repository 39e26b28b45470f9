//! The tree of commands.

mod check;
mod config;
mod dan;
mod ipvs;
mod kata;
mod l3;
mod rules;

use std::path::PathBuf;

use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand};
use clap_complete::Shell;

pub(crate) use check::{Check, CheckSet};
pub(crate) use config::Config;
pub(crate) use dan::{Dan, DanPut};
pub(crate) use ipvs::{Cleanup, Ipvs};
pub(crate) use kata::{Container, Document, KataIpvs, KataNetwork};
pub(crate) use l3::{Dhcp, Interface, Neighbour, Route, RouteAdd};
pub(crate) use rules::{
    Conntrack, Filter, Leaving, Masquerade, Nat, OneToOne, Policy, PolicyAdd, PolicyDefault, Publish, Snat,
};

/// Controls shuntd, the switch.
///
/// Exit status: 0 done; 1 refused by the daemon (the reason is on standard error); 2 wrong usage; 3 daemon not
/// reachable. Nothing but the answer goes to standard output.
#[derive(Debug, Parser)]
#[command(name = "shuntctl", version, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    /// Control socket of the daemon [default: your own daemon's if there is one, or else /run/shunt/control.sock]
    #[arg(long, value_name = "PATH", global = true, env = "SHUNT_CONTROL", hide_env_values = true)]
    pub(crate) control: Option<PathBuf>,
    /// Answer with one JSON document
    #[arg(short, long, global = true)]
    pub(crate) json: bool,
    /// What to do.
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// What a command is about.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Noun {
    /// Version, uptime, workers, ports, bridges
    Status,
    /// Restarts the daemon without loss: a new process goes on in its place
    ///
    /// Guests keep their connections to the switch, established connections go on, and for some milliseconds no packet
    /// is carried. If the new process cannot take over, the old one goes on and the reason is told.
    Upgrade {
        /// Program to start, instead of the daemon's own file as it is now; for root and the daemon's user only
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
    },
    /// Bridges: what ports are joined by
    #[command(subcommand)]
    Bridge(Bridge),
    /// Ports: guests and devices
    #[command(subcommand)]
    Port(Port),
    /// Forwarding databases: which address is behind which port
    #[command(subcommand)]
    Fdb(Fdb),
    /// Workers: the threads that move frames
    #[command(subcommand)]
    Worker(Worker),
    /// Interfaces: the switch's own presence on a bridge
    #[command(subcommand)]
    Interface(Interface),
    /// Routes: which way packets go
    #[command(subcommand)]
    Route(Route),
    /// Neighbours: which MAC address is behind which IP address
    #[command(subcommand)]
    Neighbour(Neighbour),
    /// Translation of addresses and ports
    #[command(subcommand)]
    Nat(Nat),
    /// Connections that pass the switch
    #[command(subcommand)]
    Conntrack(Conntrack),
    /// Policy: who may open connections to whom
    #[command(subcommand)]
    Policy(Policy),
    /// Addresses for guests: DHCP and router advertisements
    #[command(subcommand)]
    Dhcp(Dhcp),
    /// Health checks of real servers
    #[command(subcommand)]
    Check(Check),
    /// Virtual services, with the command line of ipvsadm(8): see `shuntctl ipvsadm -h`
    #[command(disable_help_flag = true)]
    Ipvsadm {
        /// What ipvsadm takes
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        words: Vec<String>,
    },
    /// Virtual services: what ipvsadm does not do
    #[command(subcommand)]
    Ipvs(Ipvs),
    /// Secure containers: a QEMU with its NICs, routes and virtual services
    #[command(subcommand)]
    Container(Container),
    /// NICs and routes of secure containers, as openEuler's Kata has them
    #[command(subcommand)]
    KataNetwork(KataNetwork),
    /// Virtual services of secure containers, as openEuler's Kata has them
    #[command(subcommand)]
    KataIpvs(KataIpvs),
    /// The whole configuration: shown, saved, checked, compared, applied
    #[command(subcommand)]
    Config(Config),
    /// Files by which Kata's runtime-rs learns of ports (directly attachable networks)
    #[command(subcommand)]
    Dan(Dan),
    /// Packets, bytes, errors and drops of ports, since they were made
    Stats {
        /// Of this port only
        port: Option<String>,
        /// Every drop with its reason
        #[arg(long)]
        drops: bool,
    },
    /// Prints a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Writes the manual pages of shuntctl and shuntd into a directory
    #[command(hide = true)]
    Man {
        /// An existing directory
        directory: PathBuf,
    },
}

/// `bridge ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Bridge {
    /// Makes a bridge
    Add {
        /// Its name: 1 to 15 letters, digits, _ - . beginning with a letter
        name: String,
        /// Forget a learned address after so many seconds, 1 to 1000000; 0: never [default: 300]
        #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
        ageing: Option<i64>,
        /// Entries of its forwarding database, 1 to 1048576 [default: 65536]
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        fdb_limit: Option<i64>,
        /// Have frames from port to port meet connection tracking and policy, as with br_netfilter [default: off]
        #[arg(long, value_name = "on|off", value_parser = on_off)]
        filter: Option<bool>,
    },
    /// Changes a bridge
    Set {
        /// Its name
        name: String,
        /// Have frames from port to port meet connection tracking and policy
        #[arg(long, value_name = "on|off", value_parser = on_off, action = ArgAction::Set)]
        filter: bool,
    },
    /// Deletes a bridge that has no ports
    Del {
        /// Its name
        name: String,
    },
    /// Lists the bridges
    List,
    /// Shows a bridge
    Show {
        /// Its name
        name: String,
    },
}

/// `port ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Port {
    /// Makes a port
    Add(PortAdd),
    /// Deletes a port
    Del {
        /// Its name
        name: String,
    },
    /// Lists the ports
    List,
    /// Shows a port
    Show {
        /// Its name
        name: String,
    },
    /// Changes a port
    #[command(group(ArgGroup::new("change")
        .args(["mtu", "worker", "guard", "allow_address", "revoke_address", "ingress_rate", "egress_rate"]).required(true).multiple(true)))]
    Set {
        /// Its name
        name: String,
        /// MTU in bytes, 46 to 9600
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        mtu: Option<i64>,
        /// Have a receive queue served by the worker on a core, or by any again; may be given several times
        #[arg(long, value_name = "QUEUE=CORE|any", value_parser = placement)]
        worker: Vec<Placement>,
        /// Let it send only from its own addresses
        #[arg(long, value_name = "on|off", value_parser = on_off)]
        guard: Option<bool>,
        /// An address or network that it may send from; may be given several times
        #[arg(long, value_name = "A")]
        allow_address: Vec<String>,
        /// One that it may send from no longer
        #[arg(long, value_name = "A")]
        revoke_address: Vec<String>,
        #[command(flatten)]
        limits: Limits,
    },
}

/// Rate limits of a port.
#[derive(Clone, Debug, Args)]
pub(crate) struct Limits {
    /// Bits per second that may reach whoever is behind the port, such as 500k, 10M, 2.5G; 0 or none: no limit
    #[arg(long, value_name = "RATE", value_parser = bits)]
    pub(crate) ingress_rate: Option<i64>,
    /// Bits of them that may come at once after a pause [default: a quarter of a second's, at least 64 KiB]
    #[arg(long, value_name = "BITS", value_parser = bits, requires = "ingress_rate")]
    pub(crate) ingress_burst: Option<i64>,
    /// Bits per second that may come from there
    #[arg(long, value_name = "RATE", value_parser = bits)]
    pub(crate) egress_rate: Option<i64>,
    /// Bits of them that may come at once after a pause
    #[arg(long, value_name = "BITS", value_parser = bits, requires = "egress_rate")]
    pub(crate) egress_burst: Option<i64>,
}

/// A number of bits: digits, perhaps a fraction, and `k`, `M`, `G` or `T` for powers of 1000.
fn bits(text: &str) -> Result<i64, String> {
    let wrong = || "it must be a number of bits such as 800000, 500k, 10M or 2.5G".to_owned();
    if text == "none" {
        return Ok(0);
    }
    let digits = text.trim_end_matches(['k', 'M', 'G', 'T']);
    let mut scale: i64 = match &text[digits.len()..] {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    if whole.is_empty() || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let mut sum = whole.parse::<i64>().ok().and_then(|whole| whole.checked_mul(scale)).ok_or_else(wrong)?;
    for digit in fraction.bytes() {
        scale /= 10;
        sum = sum.saturating_add(i64::from(digit - b'0') * scale);
    }
    Ok(sum)
}

/// `port add ...`
#[derive(Clone, Debug, Args)]
#[command(group(ArgGroup::new("attachment").args(["vhost_user", "tap", "netdev"]).required(true).multiple(false)))]
pub(crate) struct PortAdd {
    /// Its name: 1 to 15 letters, digits, _ - . beginning with a letter
    pub(crate) name: String,
    /// The bridge that it joins
    #[arg(long, value_name = "BR")]
    pub(crate) bridge: String,
    /// Attach a guest through this vhost-user socket: an absolute path of at most 107 bytes
    #[arg(long, value_name = "PATH")]
    pub(crate) vhost_user: Option<String>,
    /// Attach a TAP device, which is made unless it is there
    #[arg(long, value_name = "DEVICE")]
    pub(crate) tap: Option<String>,
    /// Attach an existing device: the TAP that QEMU holds, a veth, a NIC
    #[arg(long, value_name = "DEVICE")]
    pub(crate) netdev: Option<String>,
    /// With --vhost-user: server (shunt listens) or client (QEMU listens) [default: server]
    #[arg(long, value_name = "server|client", conflicts_with_all = ["tap", "netdev"])]
    pub(crate) role: Option<String>,
    /// Queues or queue pairs, 1 to 128 for vhost-user, 1 to 256 for devices [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) queues: Option<i64>,
    /// MTU in bytes, 46 to 9600
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "netdev")]
    pub(crate) mtu: Option<i64>,
    /// Unicast MAC address: with --vhost-user the guest's, as a static entry of the forwarding database; with --tap the
    /// device's own
    #[arg(long, value_name = "MAC", conflicts_with = "netdev")]
    pub(crate) mac: Option<String>,
    /// With --tap and --netdev: the network namespace of the device, a name or an absolute path
    #[arg(long, value_name = "NETNS", conflicts_with = "vhost_user")]
    pub(crate) netns: Option<String>,
    /// With --tap: the device stays when the port goes
    #[arg(long, conflicts_with_all = ["vhost_user", "netdev"])]
    pub(crate) persist: bool,
    /// Have a receive queue served by the worker on a core; may be given several times
    #[arg(long, value_name = "QUEUE=CORE", value_parser = placement)]
    pub(crate) worker: Vec<Placement>,
    /// Let it send only from its own addresses [default: once shunt has assigned it one]
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    pub(crate) guard: Option<bool>,
    /// An address or network that it may send from; may be given several times
    #[arg(long, value_name = "A")]
    pub(crate) allow_address: Vec<String>,
    #[command(flatten)]
    pub(crate) limits: Limits,
}

/// `fdb ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Fdb {
    /// Lists the known addresses
    List {
        /// Of this bridge only
        bridge: Option<String>,
    },
    /// Makes a static entry
    Add {
        /// The bridge
        bridge: String,
        /// A unicast MAC address
        mac: String,
        /// The port behind which it is
        port: String,
        /// VLAN identifier, 1 to 4094; 0: untagged [default: 0]
        #[arg(long, value_name = "V", allow_negative_numbers = true)]
        vlan: Option<i64>,
    },
    /// Deletes an entry
    Del {
        /// The bridge
        bridge: String,
        /// The MAC address
        mac: String,
        /// VLAN identifier, 1 to 4094; 0: untagged [default: 0]
        #[arg(long, value_name = "V", allow_negative_numbers = true)]
        vlan: Option<i64>,
    },
    /// Forgets what was learned; static entries stay
    Flush {
        /// Of this bridge only
        bridge: Option<String>,
        /// Behind this port only
        #[arg(long, value_name = "NAME")]
        port: Option<String>,
    },
}

/// `worker ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Worker {
    /// Lists the workers with what they did, and their queues with what these cost of late
    List {
        /// Afterwards let their counters start at zero
        #[arg(long)]
        reset: bool,
    },
    /// Spreads queues anew over the workers by what they cost of late; pinned ones stay
    Rebalance {
        /// Only say what would be moved
        #[arg(long)]
        dry_run: bool,
    },
    /// Shows when queues are spread anew without being asked
    Settings,
    /// Changes when queues are spread anew without being asked
    #[command(group(ArgGroup::new("change")
        .args(["auto", "interval", "load_threshold", "improvement_threshold"]).required(true).multiple(true)))]
    Set {
        /// Whether at all
        #[arg(long, value_name = "on|off", value_parser = on_off)]
        auto: Option<bool>,
        /// Seconds from one look to the next
        #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
        interval: Option<i64>,
        /// Percent of its time that the busiest worker must be busy at least
        #[arg(long, value_name = "PERCENT", allow_negative_numbers = true)]
        load_threshold: Option<i64>,
        /// Percent by which the variance of the workers' loads must become less at least
        #[arg(long, value_name = "PERCENT", allow_negative_numbers = true)]
        improvement_threshold: Option<i64>,
    },
}

/// Where a queue is to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Receive queue, counted from 0.
    pub(crate) queue: i64,
    /// Core of a worker; `None` for any.
    pub(crate) core: Option<i64>,
}

fn placement(text: &str) -> Result<Placement, String> {
    let rule = "it must be QUEUE=CORE, two numbers such as 0=3, or QUEUE=any";
    let (queue, core) = text.split_once('=').ok_or(rule)?;
    let core = match core {
        "any" => None,
        number => Some(number.parse().map_err(|_| rule)?),
    };
    Ok(Placement { queue: queue.parse().map_err(|_| rule)?, core })
}

/// Reads a switch.
fn on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it must be on or off".to_owned()),
    }
}

impl Noun {
    /// The command's words, for messages.
    pub(crate) fn words(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Upgrade { .. } => "upgrade",
            Self::Bridge(Bridge::Add { .. }) => "bridge add",
            Self::Bridge(Bridge::Set { .. }) => "bridge set",
            Self::Bridge(Bridge::Del { .. }) => "bridge del",
            Self::Bridge(Bridge::List) => "bridge list",
            Self::Bridge(Bridge::Show { .. }) => "bridge show",
            Self::Port(Port::Add(_)) => "port add",
            Self::Port(Port::Del { .. }) => "port del",
            Self::Port(Port::List) => "port list",
            Self::Port(Port::Show { .. }) => "port show",
            Self::Port(Port::Set { .. }) => "port set",
            Self::Fdb(Fdb::List { .. }) => "fdb list",
            Self::Fdb(Fdb::Add { .. }) => "fdb add",
            Self::Fdb(Fdb::Del { .. }) => "fdb del",
            Self::Fdb(Fdb::Flush { .. }) => "fdb flush",
            Self::Worker(Worker::List { .. }) => "worker list",
            Self::Worker(Worker::Rebalance { .. }) => "worker rebalance",
            Self::Worker(Worker::Settings) => "worker settings",
            Self::Worker(Worker::Set { .. }) => "worker set",
            Self::Interface(Interface::Add { .. }) => "interface add",
            Self::Interface(Interface::Del { .. }) => "interface del",
            Self::Interface(Interface::List) => "interface list",
            Self::Interface(Interface::Show { .. }) => "interface show",
            Self::Interface(Interface::Set { .. }) => "interface set",
            Self::Route(Route::Add(_)) => "route add",
            Self::Route(Route::Del { .. }) => "route del",
            Self::Route(Route::List) => "route list",
            Self::Route(Route::Get { .. }) => "route get",
            Self::Route(Route::Load { .. }) => "route load",
            Self::Route(Route::Flush { .. }) => "route flush",
            Self::Neighbour(Neighbour::List { .. }) => "neighbour list",
            Self::Neighbour(Neighbour::Add { .. }) => "neighbour add",
            Self::Neighbour(Neighbour::Del { .. }) => "neighbour del",
            Self::Neighbour(Neighbour::Flush { .. }) => "neighbour flush",
            Self::Nat(Nat::Masquerade(Masquerade::Add { .. })) => "nat masquerade add",
            Self::Nat(Nat::Masquerade(Masquerade::Del(_))) => "nat masquerade del",
            Self::Nat(Nat::Snat(Snat::Add { .. })) => "nat snat add",
            Self::Nat(Nat::Snat(Snat::Del(_))) => "nat snat del",
            Self::Nat(Nat::Publish(Publish::Add { .. })) => "nat publish add",
            Self::Nat(Nat::Publish(Publish::Del(_))) => "nat publish del",
            Self::Nat(Nat::OneToOne(OneToOne::Add { .. })) => "nat one-to-one add",
            Self::Nat(Nat::OneToOne(OneToOne::Del(_))) => "nat one-to-one del",
            Self::Nat(Nat::List) => "nat list",
            Self::Conntrack(Conntrack::List { .. }) => "conntrack list",
            Self::Conntrack(Conntrack::Count) => "conntrack count",
            Self::Conntrack(Conntrack::Flush { .. }) => "conntrack flush",
            Self::Conntrack(Conntrack::Stats) => "conntrack stats",
            Self::Conntrack(Conntrack::Timeouts) => "conntrack timeouts",
            Self::Conntrack(Conntrack::SetTimeout { .. }) => "conntrack set-timeout",
            Self::Conntrack(Conntrack::Limits) => "conntrack limits",
            Self::Conntrack(Conntrack::SetLimit { .. }) => "conntrack set-limit",
            Self::Policy(Policy::Add(_)) => "policy add",
            Self::Policy(Policy::Del(_)) => "policy del",
            Self::Policy(Policy::List) => "policy list",
            Self::Policy(Policy::Flush) => "policy flush",
            Self::Policy(Policy::Default(_)) => "policy default",
            Self::Policy(Policy::Isolation { .. }) => "policy isolation",
            Self::Dhcp(Dhcp::Show { .. }) => "dhcp show",
            Self::Dhcp(Dhcp::Set { .. }) => "dhcp set",
            Self::Dhcp(Dhcp::Del { .. }) => "dhcp del",
            Self::Dhcp(Dhcp::Reserve { .. }) => "dhcp reserve",
            Self::Dhcp(Dhcp::Unreserve { .. }) => "dhcp unreserve",
            Self::Dhcp(Dhcp::Leases { .. }) => "dhcp leases",
            Self::Dhcp(Dhcp::Release { .. }) => "dhcp release",
            Self::Check(Check::Set(_)) => "check set",
            Self::Check(Check::Del { .. }) => "check del",
            Self::Check(Check::List) => "check list",
            Self::Dan(Dan::Put(_)) => "dan put",
            Self::Dan(Dan::Show { .. }) => "dan show",
            Self::Dan(Dan::Del { .. }) => "dan del",
            Self::Config(Config::Show) => "config show",
            Self::Config(Config::Check { .. }) => "config check",
            Self::Config(Config::Diff { .. }) => "config diff",
            Self::Config(Config::Apply { .. }) => "config apply",
            Self::Config(Config::Save { .. }) => "config save",
            Self::Stats { .. } => "stats",
            Self::Completions { .. } => "completions",
            Self::Man { .. } => "man",
            Self::Ipvsadm { .. } => "ipvsadm",
            Self::Ipvs(Ipvs::Tables) => "ipvs tables",
            Self::Ipvs(Ipvs::Show { .. }) => "ipvs show",
            Self::Ipvs(Ipvs::Set { .. }) => "ipvs set",
            Self::Ipvs(Ipvs::Cleanup(_)) => "ipvs cleanup",
            Self::Container(Container::Add { .. }) => "container add",
            Self::Container(Container::Del { .. }) => "container del",
            Self::Container(Container::List) => "container list",
            Self::Container(Container::Show { .. }) => "container show",
            Self::KataNetwork(_) => "kata-network",
            Self::KataIpvs(_) => "kata-ipvs",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn numbers_of_bits() {
        for (text, number) in [
            ("0", 0),
            ("none", 0),
            ("500k", 500_000),
            ("2.5G", 2_500_000_000),
            ("1T", 1_000_000_000_000),
            ("1.0005k", 1000),
            ("5000000000", 5_000_000_000),
        ] {
            assert_eq!(bits(text), Ok(number), "{text}");
        }
        for bad in ["", "k", "1K", "1kM", "-1", "1e6", ".5M", "+1", "1 M", "99999999T"] {
            assert!(bits(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn placements() {
        assert_eq!(placement("0=3"), Ok(Placement { queue: 0, core: Some(3) }));
        assert_eq!(placement("1=any"), Ok(Placement { queue: 1, core: None }));
        for bad in ["", "0", "0=", "=1", "a=1", "0=b", "0=1=2"] {
            assert!(placement(bad).is_err(), "{bad}");
        }
    }
}

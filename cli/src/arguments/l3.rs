//! Interfaces, routes, neighbours, DHCP.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

use super::on_off;

/// `interface ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Interface {
    /// Makes an interface of the switch on a bridge
    Add {
        /// Its name: 1 to 15 letters, digits, _ - . beginning with a letter
        name: String,
        /// The bridge
        #[arg(long, value_name = "BR")]
        bridge: String,
        /// An address with the length of its network's prefix, such as 10.0.3.1/24; may be given several times
        #[arg(long, value_name = "CIDR", num_args = 1..)]
        address: Vec<String>,
        /// VLAN identifier, 1 to 4094; 0: untagged [default: 0]
        #[arg(long, value_name = "V", allow_negative_numbers = true)]
        vlan: Option<i64>,
        /// Unicast MAC address [default: one of its own]
        #[arg(long, value_name = "MAC")]
        mac: Option<String>,
        /// MTU in bytes, 68 to 9600 [default: 1500]
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        mtu: Option<i64>,
        /// Tell TCP connections that leave by it of no larger segments than its MTU carries
        #[arg(long)]
        clamp_mss: bool,
    },
    /// Deletes an interface, and the routes through it
    Del {
        /// Its name
        name: String,
    },
    /// Lists the interfaces
    List,
    /// Shows an interface
    Show {
        /// Its name
        name: String,
    },
    /// Changes an interface
    #[command(group(ArgGroup::new("change")
        .args(["add_address", "del_address", "mac", "mtu", "up", "down", "clamp_mss"]).required(true).multiple(true)))]
    Set {
        /// Its name
        name: String,
        /// An address to add; may be given several times
        #[arg(long, value_name = "CIDR", visible_alias = "address")]
        add_address: Vec<String>,
        /// An address to remove; may be given several times
        #[arg(long, value_name = "CIDR")]
        del_address: Vec<String>,
        /// Unicast MAC address
        #[arg(long, value_name = "MAC")]
        mac: Option<String>,
        /// MTU in bytes, 68 to 9600
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        mtu: Option<i64>,
        /// Set it up
        #[arg(long, conflicts_with = "down")]
        up: bool,
        /// Set it down; its routes give way
        #[arg(long)]
        down: bool,
        /// Tell TCP connections that leave by it of no larger segments than its MTU carries
        #[arg(long, value_name = "on|off", value_parser = on_off)]
        clamp_mss: Option<bool>,
    },
}

/// `route ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Route {
    /// Makes a static route, or one more way to a destination whose metric it shares
    Add(RouteAdd),
    /// Deletes the static routes to a destination; what is given beside it must fit, too
    Del {
        /// A network, an address, or default
        prefix: String,
        /// Through this gateway only
        #[arg(long, value_name = "ADDR")]
        via: Option<String>,
        /// Through this interface only
        #[arg(long, value_name = "IF")]
        dev: Option<String>,
        /// With this metric only
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        metric: Option<i64>,
    },
    /// Lists the routes
    List,
    /// Shows which way a packet goes, and why
    Get {
        /// Its destination
        address: String,
    },
    /// Makes many routes at once, or none if one is refused
    ///
    /// Each line is a route as 'ip route' prints it: [blackhole|unreachable|prohibit] PREFIX [via ADDR] [dev IF]
    /// [metric N] [onlink]. What else 'ip route' prints (proto, scope, src, linkdown) is read over; routes of proto
    /// kernel, empty lines and those that begin with # are left out.
    Load {
        /// The file, or - for standard input
        file: PathBuf,
        /// Have them take the place of all static routes
        #[arg(long)]
        replace: bool,
    },
    /// Deletes all static routes
    Flush {
        /// Through this interface only
        #[arg(long, value_name = "IF")]
        dev: Option<String>,
    },
}

/// `route add ...`
#[derive(Clone, Debug, Args)]
#[command(group(ArgGroup::new("way").args(["via", "dev", "blackhole", "unreachable", "prohibit"]).required(true).multiple(true)))]
pub(crate) struct RouteAdd {
    /// A network, an address, or default
    pub(crate) prefix: String,
    /// The gateway
    #[arg(long, value_name = "ADDR")]
    pub(crate) via: Option<String>,
    /// The interface
    #[arg(long, value_name = "IF")]
    pub(crate) dev: Option<String>,
    /// The lowest metric is taken, 0 to 4294967295 [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) metric: Option<i64>,
    /// The gateway is on the interface's link, whatever its networks
    #[arg(long, requires = "via", requires = "dev")]
    pub(crate) onlink: bool,
    /// Packets vanish
    #[arg(long, conflicts_with_all = ["via", "dev", "unreachable", "prohibit"])]
    pub(crate) blackhole: bool,
    /// Packets vanish, and their sender is told that the host is unreachable
    #[arg(long, conflicts_with_all = ["via", "dev", "prohibit"])]
    pub(crate) unreachable: bool,
    /// Packets vanish, and their sender is told that this is forbidden
    #[arg(long, conflicts_with_all = ["via", "dev"])]
    pub(crate) prohibit: bool,
}

/// `neighbour ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Neighbour {
    /// Lists the neighbours
    List {
        /// On this interface only
        interface: Option<String>,
    },
    /// Makes a permanent entry
    Add {
        /// The interface
        interface: String,
        /// The neighbour's IP address
        address: String,
        /// Its MAC address
        mac: String,
    },
    /// Deletes an entry
    Del {
        /// The interface
        interface: String,
        /// The neighbour's IP address
        address: String,
    },
    /// Forgets what was learned; permanent entries stay
    Flush {
        /// On this interface only
        interface: Option<String>,
    },
}

/// `dhcp ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Dhcp {
    /// Shows how an interface serves guests
    Show {
        /// The interface
        interface: String,
    },
    /// Serves DHCP or router advertisements on an interface, or changes how
    #[command(group(ArgGroup::new("change")
        .args(["range", "lease", "router", "dns", "add_dns", "del_dns", "domain", "mtu", "route", "ra", "per_port"]).required(true).multiple(true)))]
    Set {
        /// The interface
        interface: String,
        /// IPv4 addresses to give away
        #[arg(long, value_name = "A-B")]
        range: Option<String>,
        /// Seconds for which an address is given, 60 or more [default: 3600]
        #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
        lease: Option<i64>,
        /// The gateway that guests are told, or none [default: the interface's address]
        #[arg(long, value_name = "ADDR|none")]
        router: Option<String>,
        /// A name server that guests are told, IPv4 or IPv6, in the place of all before; may be given several times;
        /// none for none
        #[arg(long, value_name = "ADDR|none")]
        dns: Vec<String>,
        /// A name server that guests are told beside those of before; may be given several times
        #[arg(long, value_name = "ADDR")]
        add_dns: Vec<String>,
        /// A name server that guests are told no longer; may be given several times
        #[arg(long, value_name = "ADDR")]
        del_dns: Vec<String>,
        /// The domain that guests are told, or an empty text
        #[arg(long, value_name = "NAME")]
        domain: Option<String>,
        /// The MTU that guests are told [default: the interface's]
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        mtu: Option<i64>,
        /// A route that guests are told (option 121); may be given several times; none for none
        #[arg(long, value_name = "PREFIX=GATEWAY|none")]
        route: Vec<String>,
        /// Advertise routers for the interface's IPv6 networks (SLAAC)
        #[arg(long, value_name = "on|off", value_parser = on_off)]
        ra: Option<bool>,
        /// Most addresses that guests behind one port may have [default: 32]
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        per_port: Option<i64>,
    },
    /// Ends DHCP and router advertisements on an interface
    Del {
        /// The interface
        interface: String,
    },
    /// Reserves an address for a guest
    Reserve {
        /// The interface
        interface: String,
        /// The guest's MAC address
        mac: String,
        /// The IPv4 address
        address: String,
        /// The name that the guest is told
        #[arg(long, value_name = "H")]
        hostname: Option<String>,
    },
    /// Gives a reservation up
    Unreserve {
        /// The interface
        interface: String,
        /// The guest's MAC address
        mac: String,
    },
    /// Lists who has which address
    Leases {
        /// On this interface only
        interface: Option<String>,
    },
    /// Takes a lease away; the guest is not told
    Release {
        /// The interface
        interface: String,
        /// The IPv4 address
        address: String,
    },
}

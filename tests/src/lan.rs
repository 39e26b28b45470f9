//! Networks of the switch and hosts on them: network namespaces whose eth0 is a TAP port. A host costs some
//! milliseconds, so scenarios have as many as they like.

use crate::daemon::Shuntd;
use crate::host::Host;
use crate::netns::NetNs;

/// The bridge of the network `name`.
pub fn bridge_of(name: &str) -> String {
    format!("br-{name}")
}

impl Shuntd {
    /// Makes a bridge (see [`bridge_of`]) and the switch's own interface `name` on it, with these addresses (CIDR).
    #[track_caller]
    pub fn network(&self, name: &str, addresses: &[&str]) {
        self.ctl(&format!("bridge add {}", bridge_of(name)));
        let addresses: Vec<String> = addresses.iter().map(|cidr| format!("--address {cidr}")).collect();
        self.ctl(&format!("interface add {name} --bridge {} {}", bridge_of(name), addresses.join(" ")));
    }

    /// A namespace on a TAP port `name` of the network's bridge, whose device there is eth0, up and without address.
    #[track_caller]
    pub fn host(&self, name: &str, network: &str) -> NetNs {
        self.host_with(name, network, "")
    }

    /// As [`Shuntd::host`], with further `options` of `port add`.
    #[track_caller]
    pub fn host_with(&self, name: &str, network: &str, options: &str) -> NetNs {
        let netns = NetNs::new(name);
        let bridge = bridge_of(network);
        self.ctl(&format!("port add {name} --bridge {bridge} --tap eth0 --netns {} {options}", netns.id()));
        netns.sh("echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad");
        netns.up("eth0", None);
        netns
    }
}

impl NetNs {
    /// Gives eth0 an address (CIDR) and, if one is named, a default route.
    #[track_caller]
    pub fn join(&self, cidr: &str, gateway: Option<&str>) {
        let (family, options) = if cidr.contains(':') { ("-6", "nodad") } else { ("-4", "") };
        self.ip(&format!("address add {cidr} dev eth0 {options}"));
        if let Some(gateway) = gateway {
            self.ip(&format!("{family} route add default via {gateway} dev eth0"));
        }
    }

    /// MAC address of eth0.
    #[track_caller]
    pub fn mac(&self) -> String {
        self.sh("cat /sys/class/net/eth0/address")
    }

    /// Neither sends nor takes TCP segments larger than the MTU, nor checksums that are not done: what leaves and
    /// enters eth0 is what would be on a wire.
    #[track_caller]
    pub fn without_offloads(&self) {
        self.sh("ethtool -K eth0 tx off rx off tso off gso off gro off");
    }
}

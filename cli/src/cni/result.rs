//! Results, in the forms of the specification's versions 0.3.0 to 1.1.0.
//!
//! What was added later is left out of older ones; what 1.0.0 took away (`version` beside an address) is put back.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Versions that are spoken, oldest first.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The newest.
pub(crate) const NEWEST: &str = VERSIONS[VERSIONS.len() - 1];

/// Whether `version`, which is spoken, is `than` or newer.
pub(crate) fn at_least(version: &str, than: &str) -> bool {
    let place = |text: &str| VERSIONS.iter().position(|known| *known == text);
    place(version) >= place(than)
}

/// What an attachment is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Success {
    /// Devices on both sides.
    pub(crate) interfaces: Vec<Interface>,
    /// Addresses.
    pub(crate) ips: Vec<Ip>,
    /// Routes.
    pub(crate) routes: Vec<Route>,
    /// Name service.
    pub(crate) dns: Dns,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Interface {
    /// Its name.
    pub(crate) name: String,
    /// Its MAC address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) mac: String,
    /// MTU in bytes; since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    /// Path of the network namespace; empty: the host's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) sandbox: String,
    /// The socket behind it; since 1.1.0.
    #[serde(rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub(crate) socket_path: String,
    /// The PCI device; since 1.1.0.
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub(crate) pci_id: String,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Ip {
    /// The address with the length of its network's prefix.
    pub(crate) address: IpNet,
    /// The gateway there.
    #[serde(default)]
    pub(crate) gateway: Option<IpAddr>,
    /// Which device has it, by its place in the list.
    #[serde(default)]
    pub(crate) interface: Option<usize>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Route {
    /// Destinations.
    pub(crate) dst: IpNet,
    /// The next hop; if not given, a gateway of the addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gw: Option<IpAddr>,
    /// MTU on the way; since 1.1.0, as what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    /// Segment size that TCP announces there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) advmss: Option<u32>,
    /// Metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<u32>,
    /// Routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<u32>,
    /// `RT_SCOPE_`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<u8>,
}

impl Route {
    /// A route to `dst` by `gw`.
    pub(crate) fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Name service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Dns {
    /// Servers, the best first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) domain: String,
    /// Domains to search, the best first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) search: Vec<String>,
    /// Options of the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) options: Vec<String>,
}

impl Success {
    /// The document, as `version` has it.
    pub(crate) fn document(&self, version: &str) -> Value {
        let newest = at_least(version, "1.1.0");
        let interfaces: Vec<Interface> = self
            .interfaces
            .iter()
            .map(|full| match newest {
                true => full.clone(),
                false => {
                    Interface { mtu: None, socket_path: String::new(), pci_id: String::new(), ..full.clone() }
                }
            })
            .collect();
        let ips: Vec<Value> = self.ips.iter().map(|ip| ip.document(version)).collect();
        let routes: Vec<Route> = self
            .routes
            .iter()
            .map(|full| if newest { full.clone() } else { Route::new(full.dst, full.gw) })
            .collect();
        let mut document = json!({"cniVersion": version, "interfaces": interfaces, "ips": ips});
        if !routes.is_empty() {
            document["routes"] = json!(routes);
        }
        document["dns"] = json!(self.dns);
        document
    }
}

impl Ip {
    fn document(&self, version: &str) -> Value {
        let mut document = json!({"address": self.address});
        if !at_least(version, "1.0.0") {
            document["version"] = json!(if self.address.addr().is_ipv4() { "4" } else { "6" });
        }
        if let Some(gateway) = self.gateway {
            document["gateway"] = json!(gateway);
        }
        if let Some(interface) = self.interface {
            document["interface"] = json!(interface);
        }
        document
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of the specification's example, section "Add example".
    fn example() -> Value {
        json!({
            "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2}],
            "routes": [{"dst": "0.0.0.0/0"}],
            "interfaces": [
                {"name": "cni0", "mac": "00:11:22:33:44:55"},
                {"name": "veth3243", "mac": "55:44:33:22:11:11"},
                {"name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/var/run/netns/blue"}
            ],
            "dns": {"nameservers": ["10.1.0.1"]}
        })
    }

    #[test]
    fn the_specifications_example_is_read_and_written() {
        let success: Success = serde_json::from_value(example()).unwrap();
        let mut expected = example();
        for version in ["1.0.0", "1.1.0"] {
            expected["cniVersion"] = json!(version);
            assert_eq!(success.document(version), expected);
        }
        expected["ips"][0]["version"] = json!("4");
        for version in ["0.3.0", "0.3.1", "0.4.0"] {
            expected["cniVersion"] = json!(version);
            assert_eq!(success.document(version), expected);
        }
    }

    #[test]
    fn what_an_old_version_does_not_know_is_left_out() {
        let full = json!({
            "interfaces": [{"name": "e", "mtu": 1400, "socketPath": "/s", "pciID": "0:1", "sandbox": "/n"}],
            "ips": [{"address": "fd00::5/64", "version": "6"}],
            "routes": [{"dst": "::/0", "gw": "fd00::1", "mtu": 1300, "advmss": 1200, "priority": 5, "table": 9, "scope": 0}]
        });
        let success: Success = serde_json::from_value(full.clone()).unwrap();
        let newest = success.document("1.1.0");
        assert_eq!((&newest["interfaces"], &newest["routes"]), (&full["interfaces"], &full["routes"]));
        assert_eq!(newest["ips"], json!([{"address": "fd00::5/64"}]));
        let old = success.document("0.4.0");
        assert_eq!(old["interfaces"], json!([{"name": "e", "sandbox": "/n"}]));
        assert_eq!(old["routes"], json!([{"dst": "::/0", "gw": "fd00::1"}]));
        assert_eq!(old["ips"], json!([{"address": "fd00::5/64", "version": "6"}]));
    }

    #[test]
    fn versions_are_in_order() {
        assert!(at_least("1.1.0", "1.0.0") && at_least("0.4.0", "0.4.0") && !at_least("0.3.1", "0.4.0"));
    }
}

//! The way out through the host: what the host has to do so that it is one.
//!
//! A route through a gateway that can only be the host itself (its interface's bridge has a TAP device of the host and
//! no other port) needs the gateway's address on that device, forwarding, and a way back to the networks that are not
//! translated. What is missing is told as commands for the host's shell, or done when the daemon was asked to.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;

use super::Router;
use crate::config::spec::Attachment;
use crate::nat::rule::Rule;
use crate::refusal::Refusal;
use crate::switch::Switch;

/// Something that the host has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A device needs an address.
    Address { device: String, address: IpNet },
    /// Packets of a family have to be forwarded.
    Forward { v4: bool },
    /// A network is reached through the switch.
    Route { network: IpNet, via: IpAddr, device: String },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { device, address } => write!(f, "ip address add {address} dev {device}"),
            Self::Forward { v4: true } => f.write_str("sysctl -w net.ipv4.ip_forward=1"),
            Self::Forward { v4: false } => f.write_str("sysctl -w net.ipv6.conf.all.forwarding=1"),
            Self::Route { network, via, device } => {
                write!(f, "ip route add {network} via {via} dev {device}")
            }
        }
    }
}

impl Step {
    /// Does it.
    fn take(&self) -> Result<(), Refusal> {
        let refuse = |why: String| Refusal::new(format!("host-setup: '{self}' failed: {why}"));
        let file = match self {
            Self::Forward { v4: true } => "/proc/sys/net/ipv4/ip_forward",
            Self::Forward { v4: false } => "/proc/sys/net/ipv6/conf/all/forwarding",
            Self::Address { .. } | Self::Route { .. } => {
                let words = self.to_string();
                let mut words = words.split(' ');
                let mut command = Command::new(words.next().unwrap_or_default());
                let output = command.args(words).output().map_err(|error| refuse(error.to_string()))?;
                return match output.status.success() {
                    true => Ok(()),
                    false => Err(refuse(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
                };
            }
        };
        std::fs::write(file, "1\n").map_err(|error| refuse(error.to_string()))
    }
}

/// What is known of the host.
#[derive(Default)]
pub(crate) struct Host {
    /// Addresses by device.
    addresses: Vec<(String, IpAddr)>,
    /// Whether IPv4 is forwarded.
    forward_v4: bool,
    /// Whether IPv6 is forwarded.
    forward_v6: bool,
    /// Networks that are reached through a device.
    routes: Vec<(String, IpNet)>,
}

impl Host {
    /// Looks at the network namespace of this process.
    pub(crate) fn look() -> Self {
        let enabled = |file: &str| std::fs::read_to_string(file).is_ok_and(|text| text.trim() != "0");
        let mut addresses = Vec::new();
        for one in getifaddrs().into_iter().flatten() {
            let Some(address) = one.address else { continue };
            if let Some(v4) = address.as_sockaddr_in() {
                addresses.push((one.interface_name, IpAddr::V4(v4.ip())));
            } else if let Some(v6) = address.as_sockaddr_in6() {
                addresses.push((one.interface_name, IpAddr::V6(v6.ip())));
            }
        }
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        let mut routes = routes_v4(&read("/proc/net/route"));
        routes.extend(routes_v6(&read("/proc/net/ipv6_route")));
        Self {
            addresses,
            forward_v4: enabled("/proc/sys/net/ipv4/ip_forward"),
            forward_v6: enabled("/proc/sys/net/ipv6/conf/all/forwarding"),
            routes,
        }
    }
}

/// The kernel's list of IPv4 routes (proc(5)): addresses are hexadecimal in the machine's order.
fn routes_v4(text: &str) -> Vec<(String, IpNet)> {
    let route = |line: &str| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let address = |at: usize| {
            let number = u32::from_str_radix(words.get(at)?, 16).ok()?;
            Some(Ipv4Addr::from(number.to_ne_bytes()))
        };
        let network = IpNet::with_netmask(address(1)?.into(), address(7)?.into()).ok()?;
        Some(((*words.first()?).to_owned(), network))
    };
    text.lines().skip(1).filter_map(route).collect()
}

/// The kernel's list of IPv6 routes: 32 digits of the network, two of its length, the device last.
fn routes_v6(text: &str) -> Vec<(String, IpNet)> {
    let route = |line: &str| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let network = Ipv6Addr::from(u128::from_str_radix(words.first()?, 16).ok()?);
        let length = u8::from_str_radix(words.get(1)?, 16).ok()?;
        Some(((*words.last()?).to_owned(), IpNet::new(network.into(), length).ok()?))
    };
    text.lines().filter_map(route).collect()
}

impl Router {
    /// What the host still has to do. `taps` has the TAP device that is the only port of a bridge, by bridge.
    pub(crate) fn missing(&self, taps: &BTreeMap<&str, &str>, host: &Host) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        let mut need = |step: Step| {
            if !steps.contains(&step) {
                steps.push(step);
            }
        };
        for (out, via) in self.gateways() {
            let Some(&device) = taps.get(out.bridge.as_str()) else { continue };
            let Some(network) = out.network_of(via) else { continue };
            let device = device.to_owned();
            let v4 = via.is_ipv4();
            if !host.addresses.contains(&(device.clone(), via))
                && let Ok(address) = IpNet::new(via, network.prefix_len())
            {
                need(Step::Address { device: device.clone(), address });
            }
            if !(if v4 { host.forward_v4 } else { host.forward_v6 }) {
                need(Step::Forward { v4 });
            }
            let Some(own) = out.source_for(via) else { continue };
            for interface in self.interfaces.values().filter(|interface| interface.bridge != out.bridge) {
                for behind in interface.addresses.iter().map(IpNet::trunc) {
                    let link_local = matches!(behind, IpNet::V6(v6) if v6.addr().is_unicast_link_local());
                    let known = host.routes.contains(&(device.clone(), behind));
                    if behind.addr().is_ipv4() == v4 && !link_local && !known && !self.is_translated(&behind)
                    {
                        need(Step::Route { network: behind, via: own, device: device.clone() });
                    }
                }
            }
        }
        steps
    }

    /// Whether what comes from a network leaves it under other addresses.
    fn is_translated(&self, network: &IpNet) -> bool {
        self.nat.iter().any(|(_, rule, _)| match rule {
            Rule::Masquerade(rule) => rule.selector.source.contains(network),
            Rule::Snat(rule) => rule.selector.source.contains(network),
            Rule::Publish(_) | Rule::OneToOne(_) => false,
        })
    }
}

impl Switch {
    /// What the host still has to do to be the way out, as commands for its shell.
    pub(crate) fn host_commands(&self) -> Vec<String> {
        self.host_steps().iter().map(ToString::to_string).collect()
    }

    fn host_steps(&self) -> Vec<Step> {
        let mut taps = BTreeMap::new();
        for name in self.bridges.keys() {
            // With another port on the bridge the gateway may be anybody.
            if let [only] = self.ports_of(name)[..]
                && let Attachment::Tap { device, netns: None, .. } = &only.spec.attachment
            {
                taps.insert(name.as_str(), device.as_str());
            }
        }
        match taps.is_empty() || self.router.gateways().next().is_none() {
            true => Vec::new(),
            false => self.router.missing(&taps, &Host::look()),
        }
    }

    /// Does what the host still has to do to be the way out.
    ///
    /// # Errors
    /// What could not be done, and why.
    pub fn set_host_up(&mut self) -> Result<(), Refusal> {
        for step in self.host_steps() {
            tracing::info!("host-setup: {step}");
            step.take()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::router;
    use super::*;
    use crate::control::api;

    fn uplinked() -> Router {
        let mut router = router(&[("gw", &["10.0.3.1/24", "fd00::1/64"]), ("up", &["10.0.4.2/30"])]);
        for (prefix, via) in [("default", "10.0.4.1"), ("10.9.0.0/16", "10.0.3.9")] {
            let asked = api::RouteAdd { prefix: prefix.into(), via: Some(via.into()), ..Default::default() };
            router.add_route(&(&asked).try_into().unwrap()).unwrap();
        }
        router
    }

    fn told(router: &Router, host: &Host) -> Vec<String> {
        let taps = BTreeMap::from([("up", "shunt-up")]);
        router.missing(&taps, host).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_missing_is_told_as_commands() {
        let mut router = uplinked();
        assert_eq!(
            told(&router, &Host::default()),
            [
                "ip address add 10.0.4.1/30 dev shunt-up",
                "sysctl -w net.ipv4.ip_forward=1",
                "ip route add 10.0.3.0/24 via 10.0.4.2 dev shunt-up"
            ]
        );
        assert!(router.missing(&BTreeMap::new(), &Host::default()).is_empty(), "no TAP, no host");
        let mut host = Host { forward_v4: true, ..Host::default() };
        host.addresses.push(("shunt-up".into(), [10, 0, 4, 1].into()));
        assert_eq!(told(&router, &host), ["ip route add 10.0.3.0/24 via 10.0.4.2 dev shunt-up"]);
        let asked = api::MasqueradeAdd { source: "10.0.0.0/16".into(), ..Default::default() };
        router.add_nat((&asked).try_into().unwrap()).unwrap();
        assert!(told(&router, &host).is_empty(), "what is translated needs no way back");
        host.addresses[0].0 = "eth0".into();
        assert_eq!(told(&router, &host), ["ip address add 10.0.4.1/30 dev shunt-up"]);
    }

    #[test]
    fn the_kernels_lists_of_routes_are_read() {
        let v4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  up\t0003000A\t0204000A\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0\nbroken\n";
        let read = routes_v4(v4);
        if cfg!(target_endian = "little") {
            assert_eq!(read[1], ("up".into(), "10.0.3.0/24".parse().unwrap()));
        }
        assert_eq!((read.len(), read[0].1.prefix_len()), (2, 0));
        let v6 = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 \
                  00000000000000000000000000000000 00000100 00000001 00000000 00000001 up\nshort\n";
        assert_eq!(routes_v6(v6), [("up".to_owned(), "fd00::/64".parse().unwrap())]);
    }

    #[test]
    fn the_host_can_be_looked_at() {
        let host = Host::look();
        assert!(host.addresses.is_empty() || host.addresses.iter().all(|(device, _)| !device.is_empty()));
    }
}

//! Interfaces: names, addresses, and what may not overlap.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;

use super::Router;
use crate::config::spec::{InterfaceChange, InterfaceSpec, check_mtu};
use crate::config::{Mac, Name};
use crate::members::MAX_INTERFACES;
use crate::policy::rule::Zone;
use crate::refusal::Refusal;

/// An interface as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number, the same as long as it is there.
    pub index: u16,
    /// Its name.
    pub name: Name,
    /// The bridge on which it is.
    pub bridge: Name,
    /// Its addresses with the prefix lengths of their networks.
    pub addresses: Vec<IpNet>,
    /// VLAN identifier, or 0 for untagged.
    pub vlan: u16,
    /// Its MAC address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u16,
    /// Whether SYN segments that leave by it are told of no larger segments than the MTU carries.
    pub clamp_mss: bool,
    /// Whether it was not set down.
    pub enabled: bool,
}

impl Interface {
    /// Whether an address is its own.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.addr() == address)
    }

    /// The network of its own that holds an address.
    pub fn network_of(&self, address: IpAddr) -> Option<&IpNet> {
        self.addresses.iter().filter(|own| own.contains(&address)).max_by_key(|own| own.prefix_len())
    }

    /// The address that speaks for it towards another one: of the same network, or else its first of that family.
    pub fn source_for(&self, address: IpAddr) -> Option<IpAddr> {
        let family = |own: &&IpNet| own.addr().is_ipv4() == address.is_ipv4();
        self.network_of(address).or_else(|| self.addresses.iter().find(family)).map(IpNet::addr)
    }
}

/// A MAC address that stays the same from start to start and differs from machine to machine: locally administered, by
/// a hash (FNV-1a) of the machine's identity and the interface's place.
pub(super) fn own_mac(name: &Name, bridge: &Name, vlan: u16) -> Mac {
    let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
    let bytes = machine.iter().chain(name.as_bytes()).chain(b"@").chain(bridge.as_bytes());
    let hash = bytes.chain(&vlan.to_be_bytes()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [_, _, a, b, c, d, e, f] = hash.to_be_bytes();
    Mac([a & 0xfc | 0x02, b, c, d, e, f])
}

pub(super) fn unknown(name: &str) -> Refusal {
    Refusal::new(format!("interface {name:?} does not exist: 'shuntctl interface list' shows those that do"))
}

/// Whether a network exists once on each link, as that of fe80::.
fn is_per_link(network: &IpNet) -> bool {
    matches!(network.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local())
}

impl Router {
    /// The interface of a name.
    ///
    /// # Errors
    /// There is none.
    pub fn find_interface(&self, name: &str) -> Result<&Interface, Refusal> {
        self.interfaces.get(name).ok_or_else(|| unknown(name))
    }

    /// Adds an interface to a bridge that exists.
    ///
    /// # Errors
    /// The name, the MAC address or an address is taken, or a network overlaps that of another interface.
    pub fn add_interface(&mut self, spec: InterfaceSpec) -> Result<(), Refusal> {
        let name = spec.name;
        if self.interfaces.contains_key(&name) {
            return Err(Refusal::new(format!("interface {:?} exists already", name.as_str())));
        }
        let mac = spec.mac.unwrap_or_else(|| own_mac(&name, &spec.bridge, spec.vlan));
        self.refuse_mac(name, spec.bridge, mac)?;
        self.refuse_overlaps(name, &spec.addresses)?;
        self.refuse_neighbours(name, &spec.addresses)?;
        let taken = |index: &u16| self.interfaces.values().any(|other| other.index == *index);
        let handed = self.handed.get(&name).copied();
        let index =
            handed.or_else(|| (0..MAX_INTERFACES as u16).find(|index| !taken(index))).ok_or_else(|| {
                Refusal::new(format!("there are {MAX_INTERFACES} interfaces already, which is the limit"))
            })?;
        // It comes up when the switch has looked at its ports.
        self.rib.add_interface(index, name, false)?;
        if let Err(refusal) = self.readdress(index, &[], &spec.addresses) {
            self.rib.del_interface(index)?;
            return Err(refusal);
        }
        let interface = Interface {
            index,
            name,
            bridge: spec.bridge,
            addresses: spec.addresses,
            vlan: spec.vlan,
            mac,
            mtu: spec.mtu,
            clamp_mss: spec.clamp_mss,
            enabled: spec.up,
        };
        self.interfaces.insert(name, interface);
        Ok(())
    }

    /// Changes the addresses of an interface where routes are made of them.
    fn readdress(&mut self, index: u16, old: &[IpNet], new: &[IpNet]) -> Result<(), Refusal> {
        for gone in old.iter().filter(|address| !new.contains(address)) {
            self.rib.del_address(index, *gone)?;
        }
        let mut added = Vec::new();
        for address in new.iter().filter(|address| !old.contains(address)) {
            if let Err(refusal) = self.rib.add_address(index, *address) {
                for address in added {
                    self.rib.del_address(index, address)?;
                }
                for gone in old.iter().filter(|address| !new.contains(address)) {
                    self.rib.add_address(index, *gone)?;
                }
                return Err(refusal);
            }
            added.push(*address);
        }
        Ok(())
    }

    fn refuse_mac(&self, name: Name, bridge: Name, mac: Mac) -> Result<(), Refusal> {
        match self
            .interfaces
            .values()
            .find(|other| other.name != name && other.bridge == bridge && other.mac == mac)
        {
            Some(other) => {
                Err(Refusal::new(format!("mac {mac} belongs to interface {:?} already", other.name.as_str())))
            }
            None => Ok(()),
        }
    }

    /// A network that is reached by two interfaces is reached by neither: packets would take the one or the other.
    fn refuse_overlaps(&self, name: Name, addresses: &[IpNet]) -> Result<(), Refusal> {
        for address in addresses {
            for other in self.interfaces.values() {
                let theirs = other.name.as_str();
                if other.owns(address.addr()) && !is_per_link(address) {
                    let address = address.addr();
                    return Err(Refusal::new(format!(
                        "address {address} belongs to interface {theirs:?} already"
                    )));
                }
                if other.name == name || is_per_link(address) {
                    continue;
                }
                let overlaps =
                    |own: &&IpNet| own.contains(&address.network()) || address.contains(&own.network());
                if let Some(own) = other.addresses.iter().find(overlaps) {
                    let rule = "a network is reached by one interface only, put its guests on one bridge";
                    return Err(Refusal::new(format!(
                        "address {address} overlaps {own} of interface {theirs:?}: {rule}"
                    )));
                }
            }
        }
        Ok(())
    }

    fn refuse_neighbours(&self, name: Name, addresses: &[IpNet]) -> Result<(), Refusal> {
        match addresses.iter().find(|address| self.neighbours.contains_key(&(name, address.addr()))) {
            Some(address) => {
                let address = address.addr();
                Err(Refusal::new(format!(
                    "address {address} is that of a permanent neighbour there: delete it first"
                )))
            }
            None => Ok(()),
        }
    }

    /// Removes an interface; its neighbours, the routes through it and its DHCP go with it.
    ///
    /// # Errors
    /// No such interface, or a rule of translation or policy names it.
    pub fn del_interface(&mut self, name: &str) -> Result<(), Refusal> {
        let (name, index) = self.find_interface(name).map(|interface| (interface.name, interface.index))?;
        let policy = self.policy.naming(Zone::Interface(name));
        let user = match (self.nat.naming(name), policy) {
            (Some((id, rule)), _) => Some(format!("nat {} rule {id}", rule.kind())),
            (None, Some((id, _))) => Some(format!("policy rule {id}")),
            (None, None) => None,
        };
        if let Some(user) = user {
            let name = name.as_str();
            return Err(Refusal::new(format!("interface {name:?} is named by {user}: delete that first")));
        }
        self.rib.del_interface(index)?;
        self.interfaces.remove(&name);
        self.neighbours.retain(|(interface, _), _| *interface != name);
        self.dhcp.remove(&name);
        Ok(())
    }

    /// Changes an interface.
    ///
    /// # Errors
    /// No such interface or address; an address or MAC address that is taken; a network that overlaps another
    /// interface's; an MTU that its addresses do not allow; an address that its DHCP needs.
    pub fn set_interface(&mut self, name: &str, change: &InterfaceChange) -> Result<(), Refusal> {
        let mut changed = self.find_interface(name)?.clone();
        for address in &change.remove {
            if !changed.addresses.contains(address) {
                return Err(Refusal::new(format!("interface {name:?} has no address {address}")));
            }
        }
        changed.addresses.retain(|address| !change.remove.contains(address));
        if let Some(twice) = change.add.iter().find(|address| changed.owns(address.addr())) {
            let address = twice.addr();
            return Err(Refusal::new(format!("address {address} belongs to interface {name:?} already")));
        }
        let others: Vec<IpNet> = change
            .add
            .iter()
            .filter(|add| {
                // An address may come back with another prefix length in one request.
                !change.remove.iter().any(|gone| gone.addr() == add.addr())
            })
            .copied()
            .collect();
        self.refuse_overlaps(changed.name, &others)?;
        self.refuse_neighbours(changed.name, &change.add)?;
        changed.addresses.extend(&change.add);
        changed.mtu = change.mtu.unwrap_or(changed.mtu);
        check_mtu(changed.mtu, &changed.addresses)?;
        if let Some(mac) = change.mac {
            self.refuse_mac(changed.name, changed.bridge, mac)?;
            changed.mac = mac;
        }
        changed.enabled = change.up.unwrap_or(changed.enabled);
        changed.clamp_mss = change.clamp_mss.unwrap_or(changed.clamp_mss);
        if let Some(server) = self.dhcp.get(&changed.name) {
            server.check(&changed)?;
        }
        let old = self.find_interface(name)?.addresses.clone();
        self.readdress(changed.index, &old, &changed.addresses)?;
        self.interfaces.insert(changed.name, changed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{interface, router};
    use super::*;
    use crate::control::api;

    fn set(
        router: &mut Router,
        name: &str,
        change: impl FnOnce(&mut api::InterfaceSet),
    ) -> Result<(), String> {
        let mut asked = api::InterfaceSet { name: name.into(), ..api::InterfaceSet::default() };
        change(&mut asked);
        let change = InterfaceChange::try_from(&asked).unwrap();
        router.set_interface(name, &change).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn networks_of_two_interfaces_do_not_overlap() {
        let mut router = router(&[("a", &["10.0.0.1/16", "fe80::1/64", "fd00::1/64"])]);
        for (addresses, why) in [
            (&["10.0.3.1/24"][..], "address 10.0.3.1/24 overlaps 10.0.0.1/16 of interface \"a\""),
            (&["10.0.0.2/8"], "overlaps 10.0.0.1/16"),
            (&["10.0.0.1/32"], "address 10.0.0.1 belongs to interface \"a\" already"),
            (&["10.1.0.1/16", "fd00::2/64"], "address fd00::2/64 overlaps fd00::1/64"),
        ] {
            let refusal = router.add_interface(interface("b", addresses)).unwrap_err().to_string();
            assert!(refusal.contains(why), "{refusal}");
            assert!(router.find_interface("b").is_err());
        }
        router.add_interface(interface("b", &["10.1.0.1/16", "fe80::1/64"])).unwrap();
        assert!(
            router.add_interface(interface("b", &[])).unwrap_err().to_string().contains("exists already")
        );
        let macs: Vec<_> = router.interfaces.values().map(|interface| interface.mac).collect();
        assert!(macs[0] != macs[1] && macs.iter().all(|mac| mac.0[0] & 3 == 2));
    }

    #[test]
    fn a_change_is_whole_or_none() {
        let mut router = router(&[("a", &["10.0.0.1/24"]), ("b", &["10.0.1.1/24"])]);
        let before = router.interfaces.clone();
        type Change = fn(&mut api::InterfaceSet);
        let changes: [(Change, &str); 5] = [
            (|c| c.del_address = vec!["10.0.0.1/25".into()], "has no address"),
            (|c| c.add_address = vec!["10.0.0.1/25".into()], "belongs to interface \"a\" already"),
            (|c| c.add_address = vec!["10.0.9.1/24".into(), "10.0.1.9/24".into()], "overlaps"),
            (
                |c| {
                    c.mtu = Some(1000);
                    c.add_address = vec!["fd00::1/64".into()];
                },
                "IPv6 needs 1280",
            ),
            (
                |c| {
                    c.up = Some(false);
                    c.mac = Some("02:00:00:00:00:09".into());
                    c.add_address = vec!["10.0.1.9/24".into()];
                },
                "overlaps",
            ),
        ];
        for (change, why) in changes {
            let refusal = set(&mut router, "a", change).unwrap_err();
            assert!(refusal.contains(why), "{refusal}");
            assert_eq!(router.interfaces, before);
        }
        set(&mut router, "a", |c| {
            c.del_address = vec!["10.0.0.1/24".into()];
            c.add_address = vec!["10.0.0.1/25".into(), "10.0.0.2/25".into()];
            c.up = Some(false);
        })
        .unwrap();
        let changed = router.find_interface("a").unwrap();
        assert_eq!(
            changed.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.1/25", "10.0.0.2/25"]
        );
        assert!(!changed.enabled);
        assert!(set(&mut router, "none", |c| c.up = Some(true)).unwrap_err().contains("does not exist"));
    }

    #[test]
    fn what_names_an_interface_keeps_it() {
        let mut router = router(&[("a", &["10.0.0.1/24"])]);
        let asked =
            api::MasqueradeAdd { source: "10.9.0.0/16".into(), out: Some("a".into()), ..Default::default() };
        let id = router.add_nat((&asked).try_into().unwrap()).unwrap();
        let refusal = router.del_interface("a").unwrap_err().to_string();
        assert_eq!(
            refusal,
            format!("interface \"a\" is named by nat masquerade rule {id}: delete that first")
        );
        router.del_nat(id, None).unwrap();
        router.del_interface("a").unwrap();
        assert!(router.interfaces.is_empty());
    }
}

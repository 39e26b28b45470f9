//! Interfaces.
#![forbid(unsafe_code)]

use ipnet::IpNet;

use super::{
    Invalid, MTU_DEFAULT, MTU_MAX, MTU_MIN_IPV4, MTU_MIN_IPV6, Mac, Name, interface_address, mac, name,
    number, something, vlan,
};
use crate::control::api;

/// Most addresses of an interface.
pub const ADDRESSES_MAX: usize = 256;

/// An interface to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceSpec {
    /// Its name, unique among interfaces.
    pub name: Name,
    /// The bridge on which it is.
    pub bridge: Name,
    /// Its addresses with the prefix lengths of their networks; none twice, at most [`ADDRESSES_MAX`].
    pub addresses: Vec<IpNet>,
    /// VLAN identifier, 1 to 4094, or 0 for untagged.
    pub vlan: u16,
    /// Its MAC address; `None` has one made.
    pub mac: Option<Mac>,
    /// MTU in bytes: [`MTU_MIN_IPV4`] to [`MTU_MAX`], [`MTU_MIN_IPV6`] or more where it has an IPv6 address.
    pub mtu: u16,
    /// Whether SYN segments that leave by it are told of no larger segments than the MTU carries.
    pub clamp_mss: bool,
    /// Whether it is up, as far as the operator goes.
    pub up: bool,
}

/// What is to change at an interface; what is `None` or empty stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceChange {
    /// Addresses to add, none twice.
    pub add: Vec<IpNet>,
    /// Addresses to remove, none of which is to be added, too.
    pub remove: Vec<IpNet>,
    /// Its MAC address.
    pub mac: Option<Mac>,
    /// MTU in bytes. Whether its addresses allow it is checked by [`check_mtu`].
    pub mtu: Option<u16>,
    /// Whether it is to be up.
    pub up: Option<bool>,
    /// Whether SYN segments are told of no larger segments than the MTU carries.
    pub clamp_mss: Option<bool>,
}

fn addresses(field: &'static str, texts: &[String]) -> Result<Vec<IpNet>, Invalid> {
    let mut addresses: Vec<IpNet> = Vec::new();
    for text in texts {
        let address = interface_address(field, text)?;
        if addresses.iter().any(|other| other.addr() == address.addr()) {
            let address = address.addr();
            return Err(Invalid::new(field, format!("{field} {address} is given twice: once is enough")));
        }
        addresses.push(address);
    }
    if addresses.len() > ADDRESSES_MAX {
        let n = addresses.len();
        return Err(Invalid::new(
            field,
            format!("{field}: {n} addresses are too many: at most {ADDRESSES_MAX}"),
        ));
    }
    Ok(addresses)
}

fn mtu(value: i64) -> Result<u16, Invalid> {
    number("mtu", value, MTU_MIN_IPV4.into(), MTU_MAX.into())
}

/// Refuses an MTU that is too small for one of the addresses.
///
/// # Errors
/// Less than [`MTU_MIN_IPV6`] with an IPv6 address.
pub fn check_mtu(mtu: u16, addresses: &[IpNet]) -> Result<(), Invalid> {
    match addresses.iter().find(|address| matches!(address, IpNet::V6(_))) {
        Some(address) if mtu < MTU_MIN_IPV6 => Err(Invalid::new(
            "mtu",
            format!("mtu {mtu} is too small for address {address}: IPv6 needs {MTU_MIN_IPV6} or more"),
        )),
        _ => Ok(()),
    }
}

impl TryFrom<&api::InterfaceAdd> for InterfaceSpec {
    type Error = Invalid;

    fn try_from(asked: &api::InterfaceAdd) -> Result<Self, Invalid> {
        let spec = Self {
            name: name("name", &asked.name)?,
            bridge: name("bridge", &asked.bridge)?,
            addresses: addresses("address", &asked.address)?,
            vlan: vlan(asked.vlan)?,
            mac: asked.mac.as_deref().map(|text| mac("mac", text)).transpose()?,
            mtu: asked.mtu.map_or(Ok(MTU_DEFAULT), mtu)?,
            clamp_mss: asked.clamp_mss,
            up: asked.up.unwrap_or(true),
        };
        check_mtu(spec.mtu, &spec.addresses)?;
        Ok(spec)
    }
}

impl TryFrom<&api::InterfaceSet> for InterfaceChange {
    type Error = Invalid;

    fn try_from(asked: &api::InterfaceSet) -> Result<Self, Invalid> {
        let change = Self {
            add: addresses("add_address", &asked.add_address)?,
            remove: addresses("del_address", &asked.del_address)?,
            mac: asked.mac.as_deref().map(|text| mac("mac", text)).transpose()?,
            mtu: asked.mtu.map(mtu).transpose()?,
            up: asked.up,
            clamp_mss: asked.clamp_mss,
        };
        if let Some(both) = change.add.iter().find(|address| change.remove.contains(address)) {
            let message = format!("del_address: {both} is to be added, too: choose one");
            return Err(Invalid::new("del_address", message));
        }
        let fields = "add_address, del_address, mac, mtu, up and clamp_mss";
        something(change != Self::default(), "interface", &asked.name, fields)?;
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(
        change: impl FnOnce(&mut api::InterfaceAdd),
    ) -> Result<InterfaceSpec, (&'static str, String)> {
        let mut asked =
            api::InterfaceAdd { name: "gw".into(), bridge: "br0".into(), ..api::InterfaceAdd::default() };
        change(&mut asked);
        InterfaceSpec::try_from(&asked).map_err(|invalid| (invalid.field, invalid.to_string()))
    }

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let usual = interface(|_| ()).unwrap();
        assert_eq!((usual.vlan, usual.mac, usual.mtu, usual.clamp_mss), (0, None, 1500, false));
        assert!(usual.addresses.is_empty());
    }

    #[test]
    fn several_addresses_of_both_families_but_none_twice() {
        let addressed = |list: &[&str]| interface(|i| i.address = texts(list)).map(|i| i.addresses);
        let list = ["10.0.3.1/24", "10.0.3.2/24", "fd00::1/64"];
        assert_eq!(addressed(&list).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>(), list);
        assert_eq!(
            addressed(&["10.0.3.1/24", "10.0.3.1/16"]).unwrap_err(),
            ("address", "address 10.0.3.1 is given twice: once is enough".into())
        );
        assert!(addressed(&["10.0.3.0/24"]).unwrap_err().1.starts_with("address 10.0.3.0/24 is the first"));
        let many: Vec<_> = (0..257).map(|n| format!("10.0.{}.{}/16", n / 100, n % 100 + 1)).collect();
        assert!(interface(|i| i.address = many).unwrap_err().1.contains("257 addresses are too many"));
    }

    #[test]
    fn the_mtu_carries_what_the_addresses_need() {
        for (mtu, address, good) in [
            (68, "10.0.3.1/24", true),
            (67, "10.0.3.1/24", false),
            (9600, "fd00::1/64", true),
            (9601, "10.0.3.1/24", false),
            (1280, "fd00::1/64", true),
            (1279, "fd00::1/64", false),
        ] {
            let made = interface(|i| {
                i.mtu = Some(mtu);
                i.address = texts(&[address]);
            });
            assert_eq!(made.is_ok(), good, "{mtu} {address}");
        }
        assert_eq!(
            interface(|i| i.mtu = Some(67)).unwrap_err(),
            ("mtu", "mtu 67 is out of range: it must be 68 to 9600".into())
        );
        assert!(interface(|i| i.mac = Some("01:00:5e:00:00:01".into())).unwrap_err().1.contains("unicast"));
        assert_eq!(interface(|i| i.vlan = Some(4095)).unwrap_err().0, "vlan");
    }

    #[test]
    fn a_change_must_change_something() {
        let change = |asked: api::InterfaceSet| InterfaceChange::try_from(&asked).map_err(|e| e.to_string());
        let asked = api::InterfaceSet { name: "gw".into(), ..api::InterfaceSet::default() };
        assert!(change(asked.clone()).unwrap_err().contains("nothing is to change at interface \"gw\""));
        assert_eq!(change(api::InterfaceSet { up: Some(false), ..asked.clone() }).unwrap().up, Some(false));
        let both = api::InterfaceSet {
            add_address: texts(&["10.0.3.1/24"]),
            del_address: texts(&["10.0.3.1/24"]),
            ..asked
        };
        assert!(change(both).unwrap_err().contains("choose one"));
    }
}

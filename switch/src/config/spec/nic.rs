//! What commands have changed at the ports of containers' NICs, beside what the NICs say themselves.
#![forbid(unsafe_code)]

use ipnet::IpNet;

use super::port::{EGRESS, INGRESS, networks, pins};
use super::{DEVICE_QUEUES_MAX, Invalid, Limits, NicSpec, PortSpec, mtu, name, rate};
use crate::config::Name;
use crate::control::api;

/// What differs at the port of a NIC from what the NIC says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicPort {
    /// The NIC's device, after which its port is called.
    pub device: Name,
    /// MTU in bytes, where it is not the NIC's.
    pub mtu: Option<u16>,
    /// Queues that are to be received by the worker on a core; none twice, in their order.
    pub pins: Vec<(u16, u32)>,
    /// Whether it may send only from its own addresses; `None`: once shunt has assigned it one.
    pub guard: Option<bool>,
    /// Networks and addresses that it may send from beside those that shunt assigns, where they are not the NIC's.
    pub allow: Option<Vec<IpNet>>,
    /// How much may pass.
    pub limits: Limits,
}

impl NicPort {
    /// Nothing that the NIC would not say.
    pub fn of(device: Name) -> Self {
        Self { device, mtu: None, pins: Vec::new(), guard: None, allow: None, limits: Limits::default() }
    }

    /// What differs at a port, pinned so, from one that is as its NIC says.
    pub(crate) fn between(own: &PortSpec, now: &PortSpec, pins: impl Iterator<Item = (u16, u32)>) -> Self {
        let mut pins: Vec<(u16, u32)> = pins.collect();
        pins.sort_unstable();
        Self {
            device: now.name,
            mtu: now.mtu.filter(|_| now.mtu != own.mtu),
            pins,
            guard: now.guard,
            allow: (now.allow != own.allow).then(|| now.allow.clone()),
            limits: now.limits,
        }
    }

    /// A port that would be as its NIC says, with this on top.
    pub(crate) fn over(&self, own: PortSpec) -> PortSpec {
        PortSpec {
            mtu: self.mtu.or(own.mtu),
            pins: self.pins.clone(),
            guard: self.guard,
            allow: self.allow.clone().unwrap_or(own.allow),
            limits: self.limits,
            ..own
        }
    }

    /// Whether it can be said of a NIC.
    ///
    /// # Errors
    /// The NIC has no such queue, or an MTU that is not shunt's to change.
    pub fn check(&self, nic: &NicSpec) -> Result<(), Invalid> {
        if let Some((queue, _)) = self.pins.iter().find(|(queue, _)| *queue >= nic.pairs()) {
            let (device, pairs) = (self.device, nic.pairs());
            let rule = format!("NIC {device:?} has {pairs}, counted from 0");
            return Err(Invalid::new("pins", format!("pins: queue {queue} does not exist: {rule}")));
        }
        match (self.mtu, &nic.socket) {
            (Some(_), None) => Err(Invalid::new("mtu", "mtu goes with vhostUserSocket only: leave it out")),
            _ => Ok(()),
        }
    }
}

impl TryFrom<&api::NicPort> for NicPort {
    type Error = Invalid;

    fn try_from(asked: &api::NicPort) -> Result<Self, Invalid> {
        let mut pins = pins(&asked.pins, Some(DEVICE_QUEUES_MAX))?;
        pins.sort_unstable();
        Ok(Self {
            device: name("device", &asked.device)?,
            mtu: mtu(asked.mtu)?,
            pins,
            guard: asked.guard,
            allow: asked.allow_address.as_ref().map(|list| networks("allow_address", list)).transpose()?,
            limits: Limits {
                ingress: rate::rate(INGRESS, asked.ingress_rate, asked.ingress_burst)?.of(None),
                egress: rate::rate(EGRESS, asked.egress_rate, asked.egress_burst)?.of(None),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Result<NicPort, String> {
        let asked: api::NicPort = toml::from_str(&format!("device = \"tap0\"\n{text}")).unwrap();
        NicPort::try_from(&asked).map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn every_field_has_its_bounds() {
        for good in [
            "",
            "mtu = 46",
            "mtu = 9600",
            "ingress_rate = 8",
            "egress_rate = 1000000000000",
            "egress_rate = 0",
            "ingress_rate = 8\ningress_burst = 8",
            "pins = [{ queue = 255, core = 0 }]",
            "allow_address = []",
            "allow_address = [\"10.0.0.0/8\", \"fd00::1/128\"]",
            "guard = false",
        ] {
            assert!(asked(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("mtu = 45", "mtu 45 is out of range"),
            ("mtu = 9601", "mtu 9601 is out of range"),
            ("ingress_rate = 7", "ingress_rate 7 is out of range"),
            ("egress_rate = 1000000000001", "egress_rate 1000000000001 is out of range"),
            ("ingress_rate = 8\ningress_burst = 7", "ingress_burst 7 is out of range"),
            ("pins = [{ queue = 256, core = 0 }]", "queue 256 does not exist"),
            ("pins = [{ queue = -1, core = 0 }]", "queue -1 does not exist"),
            ("pins = [{ queue = 0, core = 0 }, { queue = 0, core = 1 }]", "is pinned twice"),
            ("allow_address = [\"10.0.0.1/8\"]", "has bits"),
            ("allow_address = [\"10.0.0.0/33\"]", "allow_address"),
        ] {
            let wrong = asked(bad).unwrap_err();
            assert!(wrong.contains(why) && wrong.lines().count() == 1, "{bad}: {wrong}");
        }
        assert!(toml::from_str::<api::NicPort>("device = \"tap0\"\nmtuu = 1").is_err());
        assert_eq!(asked("egress_rate = 0").unwrap(), NicPort::of("tap0".parse().unwrap()));
    }
}

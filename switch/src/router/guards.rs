//! Which ports are guarded, and as whom: what the operator says, and what the DHCP server has assigned.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::{IpNet, Ipv6Net};

use super::Interface;
use crate::config::spec::{Attachment, PortSpec};
use crate::l3::interface::link_local;
use crate::packet::ethernet::Mac;
use crate::policy::guard::{Guard, Identity};
use crate::services::Notice;
use crate::services::dhcp::Event;

/// Guards and leases by port number, shared with the service thread.
#[derive(Clone, Default)]
pub(crate) struct Guards(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    leases: BTreeMap<u16, BTreeSet<(Mac, Ipv4Addr)>>,
    guards: BTreeMap<u16, (Identity, Arc<Guard>)>,
}

impl Guards {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of an address that a client got or lost. The guard lets it through at once, and is at work from now on.
    pub(crate) fn hear(&self, notice: &Notice) {
        let mut state = self.lock();
        match notice.event {
            Event::Bound { mac, address, port: Some(port) } => {
                if let Some((_, guard)) = state.guards.get(&port)
                    && !guard.lease(mac, address)
                {
                    tracing::warn!("{mac} cannot use its lease of {address}: its port has too many leases");
                }
                state.leases.entry(port).or_default().insert((mac, address));
            }
            Event::Unbound { mac, address, port: Some(port) } => {
                if let Some((_, guard)) = state.guards.get(&port) {
                    guard.release(address);
                }
                if let Some(leases) = state.leases.get_mut(&port) {
                    leases.remove(&(mac, address));
                }
            }
            Event::Bound { .. } | Event::Unbound { .. } => {}
        }
    }

    /// Whether a port is guarded now, and which addresses were assigned behind it.
    pub(crate) fn at(&self, port: u16) -> (bool, Vec<Ipv4Addr>) {
        let state = self.lock();
        let active = state.guards.get(&port).is_some_and(|(_, guard)| guard.is_active());
        let leases = state.leases.get(&port).into_iter().flatten();
        (active, leases.map(|(_, address)| *address).collect::<BTreeSet<_>>().into_iter().collect())
    }

    /// Nobody has this number any more.
    pub(crate) fn forget(&self, port: u16) {
        let mut state = self.lock();
        state.leases.remove(&port);
        state.guards.remove(&port);
    }

    /// The guard of a port as it must be now. `interfaces`: those on its bridge.
    pub(crate) fn of<'a>(
        &self,
        port: u16,
        spec: &PortSpec,
        interfaces: impl Iterator<Item = &'a Interface> + Clone,
    ) -> Option<Arc<Guard>> {
        let mut state = self.lock();
        let Some(identity) = identity(spec, interfaces) else {
            state.guards.remove(&port);
            return None;
        };
        let old = state.guards.get(&port);
        let asked = spec.guard == Some(true);
        if let Some((known, guard)) = old
            && *known == identity
            && (guard.is_active() || !asked)
        {
            return Some(guard.clone());
        }
        // Whom a lease has put under guard stays so.
        let guard = Arc::new(Guard::new(&identity, asked || old.is_some_and(|(_, guard)| guard.is_active())));
        for (mac, address) in state.leases.get(&port).into_iter().flatten() {
            guard.lease(*mac, *address);
        }
        state.guards.insert(port, (identity, guard.clone()));
        Some(guard)
    }
}

/// Who a port is, if it is or may once be guarded: by the operator's word, or as soon as it is one guest that got its
/// address here.
fn identity<'a>(
    spec: &PortSpec,
    interfaces: impl Iterator<Item = &'a Interface> + Clone,
) -> Option<Identity> {
    // Behind a netdev there may be a whole network.
    let one_guest = !matches!(spec.attachment, Attachment::Netdev { .. });
    if !spec.guard.unwrap_or(one_guest) {
        return None;
    }
    let mut addresses = spec.allow.clone();
    if spec.guard.is_none() {
        // What a guest makes of router advertisements, and the link-local addresses that it invents.
        addresses.extend(
            interfaces
                .clone()
                .flat_map(|at| &at.addresses)
                .filter(|net| net.addr().is_ipv6())
                .map(IpNet::trunc),
        );
        addresses.push(IpNet::V6(Ipv6Net::new_assert([0xfe80, 0, 0, 0, 0, 0, 0, 0].into(), 10)));
    }
    // The switch's own, link-local ones included, which are what routers are known by.
    let reserved = interfaces
        .flat_map(|at| {
            let own = at.addresses.iter().map(IpNet::addr);
            own.chain([Ipv6Addr::from_bits(link_local(at.mac)).into()])
        })
        .collect::<Vec<IpAddr>>();
    Some(Identity {
        macs: spec.mac.into_iter().collect(),
        addresses: Some(addresses),
        reserved,
        server: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api;

    fn spec(change: impl FnOnce(&mut api::PortAdd)) -> PortSpec {
        let mut asked = api::PortAdd {
            name: "p".into(),
            bridge: "b".into(),
            vhost_user: Some("/run/p.sock".into()),
            ..api::PortAdd::default()
        };
        change(&mut asked);
        PortSpec::try_from(&asked).unwrap()
    }

    fn bound(port: u16) -> Notice {
        let event = Event::Bound { mac: MAC, address: [10, 0, 0, 7].into(), port: Some(port) };
        Notice { interface: 0, event }
    }

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

    fn from(address: [u8; 4], mac: Mac) -> Vec<u8> {
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2(mac.0, [4; 6])
            .ipv4(address, [192, 0, 2, 1], 64)
            .udp(1, 2)
            .write(&mut frame, &[])
            .unwrap();
        frame
    }

    #[test]
    fn a_guest_is_guarded_once_it_has_an_address() {
        let guards = Guards::default();
        let spec = spec(|_| {});
        let guard = guards.of(3, &spec, [].iter()).expect("a guard that waits");
        assert!(!guard.is_active());
        assert_eq!(guards.at(3), (false, Vec::new()));
        guards.hear(&bound(3));
        assert!(guard.is_active());
        assert_eq!(guards.at(3), (true, vec![[10, 0, 0, 7].into()]));
        assert!(guard.allows(&from([10, 0, 0, 7], MAC)).is_ok());
        assert!(guard.allows(&from([10, 0, 0, 8], MAC)).is_err());
        assert!(guard.allows(&from([10, 0, 0, 7], Mac([2; 6]))).is_err());
        assert!(Arc::ptr_eq(&guard, &guards.of(3, &spec, [].iter()).expect("the same")));
        // With other settings it still knows the lease.
        let allowed = PortSpec { allow: vec!["10.9.0.0/16".parse().unwrap()], ..spec.clone() };
        let guard = guards.of(3, &allowed, [].iter()).expect("a guard");
        assert!(guard.is_active() && guard.allows(&from([10, 0, 0, 7], MAC)).is_ok());
        guards.forget(3);
        assert!(!guards.of(3, &spec, [].iter()).expect("a guard that waits").is_active());
    }

    #[test]
    fn the_operator_decides_otherwise() {
        let guards = Guards::default();
        guards.hear(&bound(3));
        assert!(guards.of(3, &spec(|p| p.guard = Some(false)), [].iter()).is_none());
        let asked = spec(|p| {
            p.guard = Some(true);
            p.allow_address = vec!["10.9.0.0/16".into()];
        });
        let guard = guards.of(4, &asked, [].iter()).expect("a guard");
        assert!(guard.allows(&from([10, 9, 1, 1], MAC)).is_ok());
        assert!(guard.allows(&from([10, 0, 0, 7], MAC)).is_err());
        guards.hear(&bound(4));
        assert!(guard.allows(&from([10, 0, 0, 7], MAC)).is_ok(), "a lease counts at once");
    }
}

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
    changed: bool,
}

impl Guards {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of an address that a client got or lost. A guard that is there lets it through at once.
    pub(crate) fn hear(&self, notice: &Notice) {
        let mut state = self.lock();
        match notice.event {
            Event::Bound { mac, address, port: Some(port) } => {
                if let Some((_, guard)) = state.guards.get(&port) {
                    guard.lease(address);
                }
                state.changed |= state.leases.entry(port).or_default().insert((mac, address));
            }
            Event::Unbound { mac, address, port: Some(port) } => {
                if let Some((_, guard)) = state.guards.get(&port) {
                    guard.release(address);
                }
                let gone = state.leases.get_mut(&port).is_some_and(|leases| leases.remove(&(mac, address)));
                state.changed |= gone;
            }
            Event::Bound { .. } | Event::Unbound { .. } => {}
        }
    }

    /// Whether leases have changed since this was asked last.
    pub(crate) fn take_changed(&self) -> bool {
        std::mem::take(&mut self.lock().changed)
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
        let leases = state.leases.get(&port).cloned().unwrap_or_default();
        let Some(identity) = identity(spec, &leases, interfaces) else {
            state.guards.remove(&port);
            return None;
        };
        if let Some((known, guard)) = state.guards.get(&port)
            && *known == identity
        {
            return Some(guard.clone());
        }
        let guard = Arc::new(Guard::new(&identity));
        for (_, address) in &leases {
            guard.lease(*address);
        }
        state.guards.insert(port, (identity, guard.clone()));
        Some(guard)
    }
}

/// Who a port is, if it is to be guarded: by the operator's word, or since it is one guest that got its address here.
fn identity<'a>(
    spec: &PortSpec,
    leases: &BTreeSet<(Mac, Ipv4Addr)>,
    interfaces: impl Iterator<Item = &'a Interface> + Clone,
) -> Option<Identity> {
    // Behind a netdev there may be a whole network.
    let one_guest = !matches!(spec.attachment, Attachment::Netdev { .. });
    let asked = match spec.guard {
        Some(asked) => asked,
        None => one_guest && !leases.is_empty(),
    };
    if !asked {
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
    let macs: BTreeSet<Mac> = match spec.mac {
        Some(mac) => [mac].into(),
        None => leases.iter().map(|(mac, _)| *mac).collect(),
    };
    // The switch's own, link-local ones included, which are what routers are known by.
    let reserved = interfaces
        .flat_map(|at| {
            let own = at.addresses.iter().map(IpNet::addr);
            own.chain([Ipv6Addr::from_bits(link_local(at.mac)).into()])
        })
        .collect::<Vec<IpAddr>>();
    Some(Identity { macs: macs.into_iter().collect(), addresses: Some(addresses), reserved, server: false })
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
        assert!(guards.of(3, &spec, [].iter()).is_none());
        guards.hear(&bound(3));
        assert!(guards.take_changed() && !guards.take_changed());
        let guard = guards.of(3, &spec, [].iter()).expect("a guard");
        assert!(guard.allows(&from([10, 0, 0, 7], MAC)).is_ok());
        assert!(guard.allows(&from([10, 0, 0, 8], MAC)).is_err());
        assert!(guard.allows(&from([10, 0, 0, 7], Mac([2; 6]))).is_err());
        assert!(Arc::ptr_eq(&guard, &guards.of(3, &spec, [].iter()).expect("the same")));
        guards.forget(3);
        assert!(guards.of(3, &spec, [].iter()).is_none());
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

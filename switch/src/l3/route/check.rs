//! Whether a route can be: what [`Rib::add`] and [`Rib::load`] ask before they change anything.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::hops::MAX_PATHS;
use super::rib::{Link, MAX_ROUTES, Rib, host, listed, shown};
use super::spec::{Kind, Protocol, Route, Terms};
use crate::l3::interface::{is_link_local_v6, unfit};
use crate::refusal::Refusal;

/// Gateways that were found to be good with an interface or without, on-link or not, and their interfaces.
pub(super) type Gateways = HashMap<(IpAddr, Option<u16>, bool), u16>;

impl Rib {
    /// Why a route would wait, were it taken in on [`Terms::Kept`]; `None` if a command could ask for it.
    pub fn doubt(&self, route: Route) -> Option<Refusal> {
        self.check(route, Terms::New, None).err()
    }

    /// Completes and judges a route.
    pub(super) fn check(
        &self,
        mut route: Route,
        terms: Terms,
        found: Option<&mut Gateways>,
    ) -> Result<Route, Refusal> {
        route.prefix = route.prefix.trunc();
        route.protocol = Protocol::Static;
        let prefix = route.prefix;
        match prefix {
            _ if prefix.addr().is_multicast() => {
                return Err(Refusal::new(format!("route to {prefix}: multicast is not routed")));
            }
            IpNet::V6(net) if net.prefix_len() >= 10 && is_link_local_v6(net.addr().to_bits()) => {
                return Err(Refusal::new(format!("route to {prefix}: link-local addresses are not routed")));
            }
            _ => {}
        }
        match route.kind {
            Kind::Unicast => {}
            Kind::Local | Kind::Broadcast => {
                let kind = route.kind.as_str();
                return Err(Refusal::new(format!("a {kind} route comes with an interface's address only")));
            }
            kind if route.gateway.is_some() || route.interface.is_some() => {
                return Err(Refusal::new(format!(
                    "a {} route leads nowhere: it has neither gateway nor interface",
                    kind.as_str()
                )));
            }
            _ => {}
        }
        if let Some(index) = route.interface {
            self.link(index)?;
        }
        match (route.kind, route.gateway) {
            (Kind::Unicast, Some(gateway)) if terms == Terms::Kept && route.interface.is_some() => {
                refuse_strange_gateway(&route, gateway)?;
            }
            (Kind::Unicast, Some(gateway)) => {
                let key = (gateway, route.interface, route.onlink);
                let known = found.as_ref().and_then(|found| found.get(&key).copied());
                let interface = match known {
                    Some(interface) if prefix.addr().is_ipv4() == gateway.is_ipv4() => interface,
                    _ => self.find_gateway(&route, gateway)?,
                };
                if let Some(found) = found {
                    found.insert(key, interface);
                }
                route.interface = Some(interface);
            }
            (Kind::Unicast, None) if route.interface.is_none() => {
                return Err(Refusal::new(format!(
                    "route to {} needs a gateway (--via), an interface (--dev), or both",
                    shown(prefix)
                )));
            }
            _ if route.onlink => {
                return Err(Refusal::new("onlink says something of a gateway (--via), and there is none"));
            }
            _ => {}
        }
        Ok(route)
    }

    /// The interface through which a route's gateway is reached.
    fn find_gateway(&self, route: &Route, gateway: IpAddr) -> Result<u16, Refusal> {
        let refuse = |why: String| Err(Refusal::new(format!("gateway {gateway} {why}")));
        refuse_strange_gateway(route, gateway)?;
        for link in self.links.values() {
            if link.addresses.iter().any(|own| own.addr() == gateway) {
                return refuse(format!("is the switch's own address, of interface {:?}", link.name.as_str()));
            }
        }
        let link_local = matches!(gateway, IpAddr::V6(v6) if is_link_local_v6(v6.to_bits()));
        let Some(index) = route.interface else {
            if link_local {
                return refuse("is link-local: say on which interface (--dev)".into());
            }
            if route.onlink {
                return refuse("is to be on a link: say on which interface (--dev)".into());
            }
            // Of nested networks of one interface any will do; those of two are apart.
            let near = self.links.iter().find(|(_, link)| link.reaches(gateway));
            let Some((&index, link)) = near else {
                return refuse(
                    "is on no network of any interface: add an address of its network first, or name its interface with --dev and --onlink"
                        .into(),
                );
            };
            self.refuse_vague_gateway(link, gateway)?;
            return Ok(index);
        };
        let link = self.link(index)?;
        if !link_local && !route.onlink && !link.reaches(gateway) {
            let name = link.name.as_str();
            let list = listed(&link.addresses);
            return refuse(format!(
                "is on no network of interface {name:?} ({list}): add an address of its network first, or say --onlink"
            ));
        }
        self.refuse_vague_gateway(link, gateway)?;
        Ok(index)
    }

    /// A network or broadcast address is nobody's.
    fn refuse_vague_gateway(&self, link: &Link, gateway: IpAddr) -> Result<(), Refusal> {
        for own in link.addresses.iter().filter(|own| own.contains(&gateway) && gateway.is_ipv4()) {
            let net = IpNet::new_assert(gateway, own.prefix_len());
            if let Some(why) = unfit(&net) {
                return Err(Refusal::new(format!("gateway {net} {why}")));
            }
        }
        Ok(())
    }

    /// Whether a route contradicts those that are there, or there are too many.
    pub(super) fn refuse_conflict(&self, route: &Route, terms: Terms) -> Result<(), Refusal> {
        let family = if route.prefix.addr().is_ipv4() { self.v4.len() } else { self.v6.len() };
        if family >= MAX_ROUTES {
            return Err(Refusal::new(format!("there are {MAX_ROUTES} routes already, which is the limit")));
        }
        let equal = || self.records(route.prefix).iter().filter(|record| record.metric == route.metric);
        for record in equal() {
            let other = Route::of(route.prefix, record);
            let same = other.kind == route.kind
                && other.gateway == route.gateway
                && other.interface == route.interface;
            if same && record.protocol == Protocol::Static {
                return Err(Refusal::new(format!("route {} exists already", self.describe(&other))));
            }
            let kernel = record.protocol == Protocol::Kernel;
            if (kernel && terms == Terms::New) || (!kernel && other.kind != route.kind) {
                return Err(Refusal::new(format!(
                    "route {} has metric {} already: choose another metric",
                    self.describe(&other),
                    route.metric
                )));
            }
        }
        if equal().count() >= MAX_PATHS {
            return Err(Refusal::new(format!(
                "{} has {MAX_PATHS} routes of metric {} already, which is the limit",
                shown(route.prefix),
                route.metric
            )));
        }
        Ok(())
    }
}

/// Refuses what is nobody's gateway, whatever addresses there are.
fn refuse_strange_gateway(route: &Route, gateway: IpAddr) -> Result<(), Refusal> {
    let family = format!("is of another family than {}", route.prefix);
    let why = match gateway.is_ipv4() == route.prefix.addr().is_ipv4() {
        true => unfit(&host(gateway)),
        false => Some(family.as_str()),
    };
    why.map_or(Ok(()), |why| Err(Refusal::new(format!("gateway {gateway} {why}"))))
}

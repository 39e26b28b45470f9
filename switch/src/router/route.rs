//! Static and connected routes: what may be added, which is taken, and why.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Router;
use crate::config::spec::{RouteMatch, RouteSpec};
use crate::config::{Name, RouteKind};
use crate::control::api::{self, RouteProtocol};
use crate::refusal::Refusal;

/// Most static routes.
pub const ROUTES_MAX: usize = 4_194_304;
/// Most ways of one destination and metric.
pub(super) const PATHS_MAX: usize = 16;

/// What a list of routes did.
#[derive(Debug)]
pub struct Loaded {
    /// The routes, each with its interface.
    pub added: Vec<RouteSpec>,
    /// How many static routes made room for them.
    pub removed: u64,
}

/// Whether an interface is up, by its name: told by who knows about ports.
pub(crate) type Up<'a> = &'a dyn Fn(Name) -> bool;

impl Router {
    /// Adds a static route, or one more way of those that share prefix and metric; returns it with its interface.
    ///
    /// # Errors
    /// It is there; no such interface; a gateway that is the switch's own or that no interface reaches; of another kind
    /// than those that share prefix and metric.
    pub fn add_route(&mut self, spec: RouteSpec) -> Result<RouteSpec, Refusal> {
        self.check_route_room(1)?;
        let spec = self.resolve_route(spec)?;
        let routes = self.routes.get(&spec.prefix).map_or(&[][..], Vec::as_slice);
        refuse_twice(routes, &spec)?;
        self.insert_route(spec);
        Ok(spec)
    }

    /// Removes a route that was just added.
    pub(super) fn forget_route(&mut self, spec: &RouteSpec) {
        if let Some(routes) = self.routes.get_mut(&spec.prefix) {
            routes.retain(|route| route != spec);
            if routes.is_empty() {
                self.routes.remove(&spec.prefix);
            }
        }
    }

    /// Adds many routes, in the place of the static ones that are there if `replace`. All are added, or none.
    ///
    /// # Errors
    /// One of them is refused as by [`Self::add_route`]; its place in the list comes first.
    pub fn load_routes(&mut self, specs: Vec<RouteSpec>, replace: bool) -> Result<Loaded, (usize, Refusal)> {
        let old = if replace { std::mem::take(&mut self.routes) } else { BTreeMap::new() };
        let mut added = Vec::with_capacity(specs.len());
        for (index, spec) in specs.into_iter().enumerate() {
            match self.add_route(spec) {
                Ok(spec) => added.push(spec),
                Err(refusal) => {
                    if replace {
                        self.routes = old;
                    } else {
                        added.iter().for_each(|spec| self.forget_route(spec));
                    }
                    return Err((index, refusal));
                }
            }
        }
        Ok(Loaded { added, removed: old.values().map(|routes| routes.len() as u64).sum() })
    }

    fn check_route_room(&self, more: usize) -> Result<(), Refusal> {
        match self.routes.len() + more > ROUTES_MAX {
            true => Err(Refusal::new(format!(
                "there are {ROUTES_MAX} destinations of routes, which is the limit"
            ))),
            false => Ok(()),
        }
    }

    /// Finds the interface of a gateway.
    fn resolve_route(&self, spec: RouteSpec) -> Result<RouteSpec, Refusal> {
        let named = spec.dev.map(|name| self.find_interface(&name)).transpose()?;
        let Some(via) = spec.via else { return Ok(spec) };
        if let Some(own) = self.interfaces.values().find(|interface| interface.owns(via)) {
            let name = own.name.as_str();
            return Err(Refusal::new(format!(
                "via {via} is the switch's own address on interface {name:?}: a gateway is somebody else"
            )));
        }
        let link_local = matches!(via, IpAddr::V6(v6) if v6.is_unicast_link_local());
        match named {
            Some(_) if spec.onlink || link_local => Ok(spec),
            Some(interface) => match interface.network_of(via) {
                Some(_) => Ok(spec),
                None => {
                    let name = interface.name.as_str();
                    Err(Refusal::new(format!(
                        "via {via} cannot be reached: interface {name:?} has no network that holds it (onlink says that it is on the link all the same)"
                    )))
                }
            },
            None => match self.interfaces.values().find(|interface| interface.network_of(via).is_some()) {
                Some(interface) => Ok(RouteSpec { dev: Some(interface.name), ..spec }),
                None => Err(Refusal::new(format!(
                    "via {via} cannot be reached: no interface has a network that holds it"
                ))),
            },
        }
    }

    fn insert_route(&mut self, spec: RouteSpec) {
        let routes = self.routes.entry(spec.prefix).or_default();
        let at = routes.partition_point(|other| other.metric <= spec.metric);
        routes.insert(at, spec);
    }

    /// Removes the static routes that are meant; returns how many went.
    ///
    /// # Errors
    /// There is none.
    pub fn del_routes(&mut self, meant: &RouteMatch) -> Result<u64, Refusal> {
        let mut removed = 0;
        for prefix in &meant.prefixes {
            if let Some(routes) = self.routes.get_mut(prefix) {
                let before = routes.len();
                routes.retain(|route| !meant.fits(route));
                removed += (before - routes.len()) as u64;
                if routes.is_empty() {
                    self.routes.remove(prefix);
                }
            }
        }
        if removed > 0 {
            return Ok(removed);
        }
        let prefix = meant.prefixes.first().map(ToString::to_string).unwrap_or_default();
        let connected = self.interfaces.values().find(|interface| {
            interface
                .addresses
                .iter()
                .any(|own| own.prefix_len() > 0 && meant.prefixes.contains(&own.trunc()))
        });
        Err(Refusal::new(match connected {
            Some(interface) => format!(
                "route {prefix} comes with an address of interface {:?}: 'interface set {} --del-address' removes both",
                interface.name.as_str(),
                interface.name
            ),
            None => format!(
                "there is no such static route to {prefix}: 'shuntctl route list' shows those that there are"
            ),
        }))
    }

    /// Removes all static routes, or those through one interface; returns how many went.
    ///
    /// # Errors
    /// No such interface.
    pub fn flush_routes(&mut self, dev: Option<&str>) -> Result<u64, Refusal> {
        let dev = dev.map(|name| self.find_interface(name)).transpose()?.map(|interface| interface.name);
        let count = |router: &Self| router.routes.values().map(|routes| routes.len() as u64).sum::<u64>();
        let before = count(self);
        for routes in self.routes.values_mut() {
            routes.retain(|route| dev.is_some() && route.dev != dev);
        }
        self.routes.retain(|_, routes| !routes.is_empty());
        Ok(before - count(self))
    }

    /// Number of routes, connected ones among them.
    pub fn route_count(&self) -> usize {
        let connected: usize = self.interfaces.values().map(|interface| interface.addresses.len()).sum();
        connected + self.routes.values().map(Vec::len).sum::<usize>()
    }

    /// Whether a static route can be used now.
    fn usable(&self, route: &RouteSpec, up: Up<'_>) -> bool {
        route.kind != RouteKind::Unicast || route.dev.is_some_and(up)
    }

    /// All routes, connected ones among them, by prefix and metric.
    pub(crate) fn routes(&self, up: Up<'_>) -> Vec<api::Route> {
        let mut list = Vec::new();
        for interface in self.interfaces.values() {
            for own in &interface.addresses {
                list.push(api::Route {
                    prefix: own.trunc(),
                    via: None,
                    dev: Some(interface.name),
                    metric: 0,
                    kind: RouteKind::Unicast,
                    protocol: RouteProtocol::Kernel,
                    onlink: false,
                    source: Some(own.addr()),
                    active: up(interface.name),
                });
            }
        }
        let connected = list.len();
        for routes in self.routes.values() {
            let direct = list[..connected]
                .iter()
                .any(|route| route.active && routes.iter().any(|r| r.prefix == route.prefix));
            let best = routes.iter().filter(|route| self.usable(route, up)).map(|route| route.metric).min();
            list.extend(routes.iter().map(|route| api::Route {
                prefix: route.prefix,
                via: route.via,
                dev: route.dev,
                metric: route.metric,
                kind: route.kind,
                protocol: RouteProtocol::Static,
                onlink: route.onlink,
                source: None,
                active: !direct && best == Some(route.metric) && self.usable(route, up),
            }));
        }
        list.sort_by_key(|route| (route.prefix, route.metric, route.protocol == RouteProtocol::Static));
        list
    }

    /// Which way a packet to an address goes, and why.
    pub(crate) fn route_to(&self, address: IpAddr, up: Up<'_>) -> api::RouteChoice {
        let mut choice = api::RouteChoice {
            address,
            kind: RouteKind::Unreachable,
            prefix: None,
            metric: None,
            paths: Vec::new(),
            local: false,
            explanation: "there is no route to it, not even a default one".into(),
        };
        if let Some(own) = self.interfaces.values().find(|interface| interface.owns(address)) {
            choice.kind = RouteKind::Unicast;
            choice.local = true;
            choice.prefix = Some(address.into());
            choice.metric = Some(0);
            choice.explanation =
                format!("it is the switch's own address on interface {:?}", own.name.as_str());
            return choice;
        }
        let mut passed = Vec::new();
        for prefix in prefixes(address) {
            let connected =
                self.interfaces.values().find(|i| i.addresses.iter().any(|own| own.trunc() == prefix));
            if let Some(interface) = connected {
                if up(interface.name) {
                    choice.kind = RouteKind::Unicast;
                    choice.prefix = Some(prefix);
                    choice.metric = Some(0);
                    choice.paths = vec![api::RoutePath {
                        via: None,
                        dev: interface.name,
                        source: interface.source_for(address),
                    }];
                    let name = interface.name.as_str();
                    choice.explanation =
                        format!("interface {name:?} is in its network{}", passed_by(&passed));
                    return choice;
                }
                passed.push(format!("{prefix} of interface {:?}, which is down", interface.name.as_str()));
            }
            let Some(routes) = self.routes.get(&prefix) else { continue };
            let Some(best) = routes.iter().find(|route| self.usable(route, up)) else {
                passed.push(format!("{prefix}, whose interfaces are down"));
                continue;
            };
            let ways = routes.iter().filter(|route| route.metric == best.metric && self.usable(route, up));
            choice.kind = best.kind;
            choice.prefix = Some(prefix);
            choice.metric = Some(best.metric);
            choice.paths = ways
                .filter_map(|route| {
                    let dev = route.dev?;
                    let interface = self.interfaces.get(&dev)?;
                    Some(api::RoutePath {
                        via: route.via,
                        dev,
                        source: interface.source_for(route.via.unwrap_or(address)),
                    })
                })
                .collect();
            let lower = routes.iter().filter(|route| route.metric < best.metric).count();
            if lower > 0 {
                passed.push(format!("{lower} of a lower metric, whose interfaces are down"));
            }
            let spread = match choice.paths.len() {
                0 | 1 => String::new(),
                n => format!(", flows are spread over {n} ways"),
            };
            let metric = best.metric;
            choice.explanation =
                format!("the longest prefix that holds it, metric {metric}{spread}{}", passed_by(&passed));
            return choice;
        }
        choice.explanation.push_str(&passed_by(&passed));
        choice
    }
}

fn passed_by(passed: &[String]) -> String {
    match passed {
        [] => String::new(),
        _ => format!("; passed over: {}", passed.join(", ")),
    }
}

/// The networks that hold an address, the longest prefix first.
fn prefixes(address: IpAddr) -> impl Iterator<Item = IpNet> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    (0..=bits).rev().filter_map(move |length| IpNet::new(address, length).ok()).map(|network| network.trunc())
}

fn refuse_twice(routes: &[RouteSpec], spec: &RouteSpec) -> Result<(), Refusal> {
    let mut ways = 0;
    for other in routes.iter().filter(|other| other.metric == spec.metric) {
        let (prefix, metric) = (spec.prefix, spec.metric);
        if other.via == spec.via && other.dev == spec.dev && other.kind == spec.kind {
            return Err(Refusal::new(format!(
                "route {prefix} metric {metric} exists already with that gateway and interface"
            )));
        }
        if other.kind != RouteKind::Unicast || spec.kind != RouteKind::Unicast {
            let kind = other.kind.as_str();
            return Err(Refusal::new(format!(
                "route {prefix} metric {metric} exists already as a {kind} one: only unicast routes share a metric"
            )));
        }
        ways += 1;
    }
    match ways >= PATHS_MAX {
        true => Err(Refusal::new(format!(
            "route {} metric {} has {PATHS_MAX} ways already, which is the limit",
            spec.prefix, spec.metric
        ))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::router;
    use super::*;

    fn asked(text: &str) -> api::RouteAdd {
        let mut words = text.split(' ');
        let mut asked = api::RouteAdd { prefix: words.next().unwrap().into(), ..api::RouteAdd::default() };
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap().to_owned();
            match word {
                "via" => asked.via = Some(value()),
                "dev" => asked.dev = Some(value()),
                "metric" => asked.metric = Some(value().parse().unwrap()),
                "onlink" => asked.onlink = true,
                kind => asked.kind = Some(kind.into()),
            }
        }
        asked
    }

    fn add(router: &mut Router, text: &str) -> Result<(), String> {
        let spec = RouteSpec::try_from(&asked(text)).unwrap();
        router.add_route(spec).map(drop).map_err(|refusal| refusal.to_string())
    }

    fn two() -> Router {
        router(&[("a", &["10.0.0.1/24", "fd00::1/64"]), ("b", &["10.0.1.1/24"])])
    }

    fn del(text: &str) -> RouteMatch {
        let api::RouteAdd { prefix, via, dev, metric, .. } = asked(text);
        RouteMatch::try_from(&api::RouteDel { prefix, via, dev, metric }).unwrap()
    }

    #[test]
    fn gateways_are_on_a_link() {
        let mut router = two();
        for (text, why) in [
            (
                "default via 192.0.2.1",
                "via 192.0.2.1 cannot be reached: no interface has a network that holds it",
            ),
            ("default via 10.0.1.9 dev a", "via 10.0.1.9 cannot be reached: interface \"a\" has no network"),
            ("default via 10.0.0.1", "the switch's own address on interface \"a\""),
            ("default dev none", "interface \"none\" does not exist"),
        ] {
            let refusal = add(&mut router, text).unwrap_err();
            assert!(refusal.contains(why), "{refusal}");
        }
        assert!(router.routes.is_empty());
        for good in [
            "default via 10.0.0.9",
            "default via fd00::9",
            "10.9.0.0/16 via 192.0.2.1 dev b onlink",
            "fd01::/64 via fe80::9 dev b",
        ] {
            add(&mut router, good).unwrap();
        }
        let devs: Vec<_> = router.routes.values().map(|routes| routes[0].dev.unwrap().to_string()).collect();
        assert_eq!(devs, ["a", "b", "a", "b"]);
    }

    #[test]
    fn a_metric_is_shared_by_ways_but_not_by_kinds() {
        let mut router = two();
        add(&mut router, "default via 10.0.0.9").unwrap();
        add(&mut router, "default via 10.0.1.9").unwrap();
        add(&mut router, "default via 10.0.0.9 metric 5").unwrap();
        assert!(
            add(&mut router, "default via 10.0.1.9")
                .unwrap_err()
                .contains("exists already with that gateway")
        );
        assert!(
            add(&mut router, "default blackhole").unwrap_err().contains("exists already as a unicast one")
        );
        add(&mut router, "10.9.0.0/16 blackhole").unwrap();
        assert!(add(&mut router, "10.9.0.0/16 dev a").unwrap_err().contains("as a blackhole one"));
        add(&mut router, "10.9.0.0/16 dev a metric 1").unwrap();
        for n in 10..24 {
            add(&mut router, &format!("default via 10.0.0.{n}")).unwrap();
        }
        assert!(add(&mut router, "default via 10.0.0.99").unwrap_err().contains("16 ways already"));
    }

    #[test]
    fn deletion_takes_all_that_fit() {
        let mut router = two();
        for text in [
            "default via 10.0.0.9",
            "default via 10.0.1.9",
            "default via 10.0.0.9 metric 5",
            "::/0 via fd00::9",
        ] {
            add(&mut router, text).unwrap();
        }
        assert_eq!(router.del_routes(&del("default via 10.0.1.9")).unwrap(), 1);
        assert_eq!(router.del_routes(&del("default dev a metric 5")).unwrap(), 1);
        assert_eq!(router.del_routes(&del("default")).unwrap(), 2, "both families");
        assert!(router.del_routes(&del("default")).unwrap_err().to_string().contains("no such static route"));
        let refusal = router.del_routes(&del("10.0.0.0/24")).unwrap_err().to_string();
        assert!(refusal.contains("comes with an address of interface \"a\""), "{refusal}");
        add(&mut router, "10.9.0.0/16 dev a").unwrap();
        add(&mut router, "10.8.0.0/16 dev b").unwrap();
        assert_eq!(router.flush_routes(Some("b")).unwrap(), 1);
        assert_eq!(router.flush_routes(None).unwrap(), 1);
        assert!(router.flush_routes(Some("none")).is_err());
    }

    #[test]
    fn a_list_is_loaded_whole_or_not_at_all() {
        let mut router = two();
        add(&mut router, "default via 10.0.0.9").unwrap();
        let list = |texts: &[&str]| {
            texts.iter().map(|text| RouteSpec::try_from(&asked(text)).unwrap()).collect::<Vec<_>>()
        };
        let before = router.routes.clone();
        for bad in ["192.168.0.0/16 via 192.0.2.1", "10.9.0.0/16 via 10.0.0.9"] {
            let (index, _) = router.load_routes(list(&["10.9.0.0/16 via 10.0.0.9", bad]), true).unwrap_err();
            assert_eq!((index, &router.routes), (1, &before));
        }
        assert_eq!(router.load_routes(list(&["10.9.0.0/16 via 10.0.0.9"]), false).unwrap().removed, 0);
        assert_eq!(router.routes.len(), 2);
        assert_eq!(router.load_routes(list(&["10.8.0.0/16 via 10.0.0.9"]), true).unwrap().removed, 2);
        assert_eq!(router.routes.len(), 1);
    }

    #[test]
    fn longest_prefix_then_lowest_metric_of_what_is_up() {
        let mut router = two();
        for text in [
            "default via 10.0.0.9",
            "default via 10.0.1.9 metric 5",
            "10.9.0.0/16 via 10.0.0.8",
            "10.9.0.0/16 via 10.0.1.8",
            "10.9.9.0/24 prohibit",
        ] {
            add(&mut router, text).unwrap();
        }
        let get = |address: &str, up: Up<'_>| router.route_to(address.parse().unwrap(), up);
        let all: Up<'_> = &|_| true;
        let b_only: Up<'_> = &|name| name == "b";
        let vias = |choice: &api::RouteChoice| {
            choice.paths.iter().map(|p| p.via.unwrap().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(vias(&get("192.0.2.1", all)), ["10.0.0.9"]);
        let second = get("192.0.2.1", b_only);
        assert_eq!((vias(&second), second.metric), (vec!["10.0.1.9".to_owned()], Some(5)));
        assert!(second.explanation.contains("1 of a lower metric"), "{}", second.explanation);
        assert_eq!(vias(&get("10.9.1.1", all)), ["10.0.0.8", "10.0.1.8"]);
        assert_eq!(vias(&get("10.9.1.1", b_only)), ["10.0.1.8"]);
        assert_eq!(get("10.9.9.1", all).kind, RouteKind::Prohibit);
        let direct = get("10.0.0.77", all);
        assert_eq!(
            (direct.paths[0].via, direct.paths[0].source.unwrap().to_string().as_str()),
            (None, "10.0.0.1")
        );
        assert!(get("10.0.0.1", all).local);
        let none = get("2001:db8::1", all);
        assert_eq!((none.kind, none.prefix), (RouteKind::Unreachable, None));
        let active: Vec<_> = router
            .routes(b_only)
            .iter()
            .filter(|r| r.active)
            .map(|r| (r.prefix.to_string(), r.metric))
            .collect();
        assert_eq!(
            active,
            [
                ("0.0.0.0/0".into(), 5),
                ("10.0.1.0/24".into(), 0),
                ("10.9.0.0/16".into(), 0),
                ("10.9.9.0/24".to_owned(), 0)
            ]
        );
    }
}

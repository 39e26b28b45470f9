//! Static and connected routes in the words of control socket and configuration file; the table itself is the [`Rib`].
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Interface, Router};
use crate::config::spec::{RouteMatch, RouteSpec};
use crate::config::{Name, RouteKind};
use crate::control::api::{self, RouteProtocol};
use crate::l3::route::rib::{Kind, Loaded, Protocol, Rib, Route, Terms, Which};
use crate::l3::route::view::{Listed, Standing};
use crate::refusal::Refusal;

/// How many routes an explanation names that are passed over.
const NAMED: usize = 3;
/// Gateways that are told of one by one where routes wait for them.
const GATEWAYS_TOLD: usize = 16;

impl Router {
    /// Adds a static route, or one more way of those that share prefix and metric.
    ///
    /// # Errors
    /// It is there; no such interface; a gateway that is the switch's own or that no interface reaches; of another kind
    /// than those that share prefix and metric.
    pub fn add_route(&mut self, spec: &RouteSpec) -> Result<(), Refusal> {
        let route = completed(&self.interfaces, spec)?;
        self.rib.add(route, Terms::New).map(drop)
    }

    /// Adds a route that was saved, or stands in a file: see [`Terms::Kept`].
    ///
    /// # Errors
    /// As [`Self::add_route`], but for what it may wait for.
    pub(crate) fn add_kept_route(&mut self, spec: &RouteSpec) -> Result<(), Refusal> {
        let route = completed(&self.interfaces, spec)?;
        self.rib.add(route, Terms::Kept).map(drop)
    }

    /// What routes wait for, as lines for people: of those that share a gateway one is named.
    pub(crate) fn waiting_routes<'a>(&self, specs: impl IntoIterator<Item = &'a RouteSpec>) -> Vec<String> {
        let mut lines: BTreeMap<(Option<IpAddr>, Option<Name>), (String, usize)> = BTreeMap::new();
        for spec in specs {
            let Ok(route) = completed(&self.interfaces, spec) else { continue };
            let Some(why) = self.rib.doubt(route) else { continue };
            let line = || (format!("route {} waits: {why}", spec.prefix), 0);
            lines.entry((spec.via, spec.dev)).or_insert_with(line).1 += 1;
        }
        let gateways = lines.len();
        let line = |(line, count)| match count {
            1 => line,
            more => format!("{line}; so do {} more", more - 1),
        };
        let mut lines: Vec<String> = lines.into_values().take(GATEWAYS_TOLD).map(line).collect();
        if gateways > lines.len() {
            lines.push(format!("routes by {} more gateways wait, too", gateways - lines.len()));
        }
        lines
    }

    /// Adds many routes, in the place of the static ones that are there if `replace`. All are added, or none.
    ///
    /// # Errors
    /// One of them is refused as by [`Self::add_route`]; its place in the list comes first.
    pub fn load_routes(
        &mut self,
        specs: impl IntoIterator<Item = RouteSpec>,
        terms: Terms,
        replace: bool,
    ) -> Result<Loaded, (usize, Refusal)> {
        let Self { interfaces, rib, .. } = self;
        rib.load(specs.into_iter().map(|spec| completed(interfaces, &spec)), terms, replace)
    }

    /// Removes the static routes that are meant; returns how many went.
    ///
    /// # Errors
    /// There is none.
    pub fn del_routes(&mut self, meant: &RouteMatch) -> Result<usize, Refusal> {
        let interface = meant.dev.map(|name| number(&self.interfaces, name)).transpose()?;
        let (mut removed, mut refusal) = (0, None);
        for prefix in &meant.prefixes {
            let which = Which {
                prefix: Some(*prefix),
                gateway: meant.via,
                interface,
                metric: meant.metric,
                kind: None,
            };
            match self.rib.del(&which) {
                Ok(gone) => removed += gone.len(),
                Err(why) => refusal = refusal.or(Some(why)),
            }
        }
        match refusal {
            Some(refusal) if removed == 0 => Err(refusal),
            _ => Ok(removed),
        }
    }

    /// Removes all static routes, or those through one interface; returns how many went.
    ///
    /// # Errors
    /// No such interface.
    pub fn flush_routes(&mut self, dev: Option<&str>) -> Result<usize, Refusal> {
        let index = dev.map(|name| Ok::<_, Refusal>(self.find_interface(name)?.index)).transpose()?;
        Ok(self.rib.flush(index))
    }

    /// The gateways of static routes: interfaces and addresses, each once.
    pub(super) fn gateways(&self) -> impl Iterator<Item = (&Interface, IpAddr)> {
        self.rib.gateways().filter_map(|(index, via)| Some((self.numbered(index)?, via)))
    }

    fn numbered(&self, index: u16) -> Option<&Interface> {
        self.interfaces.get(&self.rib.interface_name(index)?)
    }

    /// All routes, connected ones among them, by prefix and metric.
    pub(crate) fn routes(&self) -> Vec<api::Route> {
        let mut list = Vec::with_capacity(self.rib.count());
        self.rib.each(&Which::default(), |listed| {
            if !matches!(listed.route.kind, Kind::Local | Kind::Broadcast) {
                list.push(shown(&self.rib, &listed));
            }
        });
        list.sort_by_key(|route| (route.prefix, route.metric, route.protocol == RouteProtocol::Static));
        list
    }

    /// A route in the words of requests.
    pub(super) fn shown_route(&self, listed: &Listed) -> api::Route {
        shown(&self.rib, listed)
    }

    /// Which way a packet to an address goes, and why.
    pub(crate) fn route_to(&self, address: IpAddr) -> api::RouteChoice {
        let mut choice = api::RouteChoice {
            address,
            kind: RouteKind::Unreachable,
            prefix: None,
            metric: None,
            paths: Vec::new(),
            local: false,
            explanation: String::new(),
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
        if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            choice.explanation = "it is link-local: each link has its own, and none is routed".into();
            return choice;
        }
        let explained = self.rib.get(address);
        let used: Vec<&Listed> = explained.used().collect();
        let Some(first) = used.first().map(|listed| listed.route) else {
            let why =
                "there is no route to it, not even a default one, so its sender is told \"unreachable\"";
            choice.explanation = format!("{why}{}", self.passed_by(&explained.routes, None));
            return choice;
        };
        choice.kind = kind(first.kind);
        choice.prefix = Some(first.prefix);
        choice.metric = Some(first.metric);
        choice.paths = used
            .iter()
            .filter(|listed| listed.route.kind == Kind::Unicast)
            .filter_map(|listed| {
                let interface = self.numbered(listed.route.interface?)?;
                let via = listed.route.gateway;
                let source = interface.source_for(via.unwrap_or(address));
                Some(api::RoutePath { via, dev: interface.name, source })
            })
            .collect();
        let passed = self.passed_by(&explained.routes, Some(&first));
        let name = || {
            let interface = first.interface.and_then(|index| self.numbered(index));
            interface.map_or("", |interface| interface.name.as_str())
        };
        choice.explanation = match (first.kind, first.protocol) {
            (Kind::Broadcast, _) => {
                format!("it means everybody on interface {:?}, and nothing is forwarded there", name())
            }
            (_, Protocol::Kernel) => {
                format!("interface {:?} is in its network{passed}", name())
            }
            (_, Protocol::Static) => {
                let spread = match choice.paths.len() {
                    0 | 1 => String::new(),
                    n => format!(", flows are spread over {n} ways"),
                };
                let metric = first.metric;
                format!("the longest prefix that holds it, metric {metric}{spread}{passed}")
            }
        };
        choice
    }

    /// Names what would have been taken, were it usable.
    fn passed_by(&self, routes: &[Listed], taken: Option<&Route>) -> String {
        let before = |route: &Route| {
            taken.is_none_or(|taken| {
                let length = route.prefix.prefix_len();
                length > taken.prefix.prefix_len()
                    || (length == taken.prefix.prefix_len() && route.metric <= taken.metric)
            })
        };
        let waits = |listed: &&Listed| {
            matches!(listed.standing, Standing::InterfaceDown | Standing::GatewayUnreachable)
        };
        let passed: Vec<&Listed> =
            routes.iter().filter(waits).filter(|listed| before(&listed.route)).collect();
        if passed.is_empty() {
            return String::new();
        }
        let name = |listed: &&Listed| format!("{} ({})", self.rib.describe(&listed.route), listed.standing);
        let names: Vec<_> = passed.iter().take(NAMED).map(name).collect();
        let more = match passed.len() - names.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("; passed over: {}{more}", names.join(", "))
    }
}

/// A route as the table takes it.
fn completed(interfaces: &BTreeMap<Name, Interface>, spec: &RouteSpec) -> Result<Route, Refusal> {
    Ok(Route {
        kind: match spec.kind {
            RouteKind::Unicast => Kind::Unicast,
            RouteKind::Blackhole => Kind::Blackhole,
            RouteKind::Unreachable => Kind::Unreachable,
            RouteKind::Prohibit => Kind::Prohibit,
        },
        gateway: spec.via,
        interface: spec.dev.map(|name| number(interfaces, name)).transpose()?,
        metric: spec.metric,
        onlink: spec.onlink,
        ..Route::to(spec.prefix)
    })
}

fn number(interfaces: &BTreeMap<Name, Interface>, name: Name) -> Result<u16, Refusal> {
    interfaces.get(&name).map(|interface| interface.index).ok_or_else(|| super::interface::unknown(&name))
}

fn kind(kind: Kind) -> RouteKind {
    match kind {
        Kind::Unicast | Kind::Local => RouteKind::Unicast,
        Kind::Blackhole | Kind::Broadcast => RouteKind::Blackhole,
        Kind::Unreachable => RouteKind::Unreachable,
        Kind::Prohibit => RouteKind::Prohibit,
    }
}

fn shown(rib: &Rib, listed: &Listed) -> api::Route {
    let route = &listed.route;
    let kernel = route.protocol == Protocol::Kernel;
    api::Route {
        prefix: route.prefix,
        via: route.gateway,
        dev: route.interface.and_then(|index| rib.interface_name(index)),
        metric: route.metric,
        kind: kind(route.kind),
        protocol: if kernel { RouteProtocol::Kernel } else { RouteProtocol::Static },
        onlink: route.onlink,
        source: listed.source.filter(|_| kernel),
        active: listed.standing == Standing::Active,
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
        router.add_route(&spec).map_err(|refusal| refusal.to_string())
    }

    fn two() -> Router {
        router(&[("a", &["10.0.0.1/24", "fd00::1/64"]), ("b", &["10.0.1.1/24"])])
    }

    fn listed(router: &Router) -> Vec<api::Route> {
        router.routes().into_iter().filter(|route| route.protocol == RouteProtocol::Static).collect()
    }

    /// Which of the interfaces are up.
    fn up(router: &mut Router, names: &[&str]) {
        for interface in router.interfaces.values() {
            router.rib.interface_state(interface.index, names.contains(&interface.name.as_str())).unwrap();
        }
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
                "gateway 192.0.2.1 is on no network of any interface: add an address of its network first",
            ),
            (
                "default via 10.0.1.9 dev a",
                "gateway 10.0.1.9 is on no network of interface \"a\" (10.0.0.1/24, fd00::1/64)",
            ),
            ("default via 10.0.0.1", "the switch's own address, of interface \"a\""),
            ("default dev none", "interface \"none\" does not exist"),
        ] {
            let refusal = add(&mut router, text).unwrap_err();
            assert!(refusal.contains(why), "{refusal}");
        }
        assert!(listed(&router).is_empty());
        for good in [
            "default via 10.0.0.9",
            "default via fd00::9",
            "10.9.0.0/16 via 192.0.2.1 dev b onlink",
            "fd01::/64 via fe80::9 dev b",
        ] {
            add(&mut router, good).unwrap();
        }
        let devs: Vec<_> = listed(&router).iter().map(|route| route.dev.unwrap().to_string()).collect();
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
                .contains("default via 10.0.1.9 dev b proto static exists already")
        );
        assert!(
            add(&mut router, "default blackhole")
                .unwrap_err()
                .contains("has metric 0 already: choose another")
        );
        add(&mut router, "10.9.0.0/16 blackhole").unwrap();
        assert!(add(&mut router, "10.9.0.0/16 dev a").unwrap_err().contains("choose another metric"));
        add(&mut router, "10.9.0.0/16 dev a metric 1").unwrap();
        for n in 10..24 {
            add(&mut router, &format!("default via 10.0.0.{n}")).unwrap();
        }
        assert!(
            add(&mut router, "default via 10.0.0.99").unwrap_err().contains("16 routes of metric 0 already")
        );
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
        assert!(router.del_routes(&del("default")).unwrap_err().to_string().contains("no route to default"));
        let refusal = router.del_routes(&del("10.0.0.0/24")).unwrap_err().to_string();
        assert!(
            refusal.contains(
                "route 10.0.0.0/24 dev a proto kernel scope link src 10.0.0.1 comes with an address"
            ),
            "{refusal}"
        );
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
        let before = listed(&router);
        for bad in ["192.168.0.0/16 via 192.0.2.1", "10.9.0.0/16 via 10.0.0.9"] {
            let (index, _) =
                router.load_routes(list(&["10.9.0.0/16 via 10.0.0.9", bad]), Terms::New, true).unwrap_err();
            assert_eq!((index, &listed(&router)), (1, &before));
        }
        assert_eq!(
            router.load_routes(list(&["10.9.0.0/16 via 10.0.0.9"]), Terms::New, false).unwrap().removed,
            0
        );
        assert_eq!(listed(&router).len(), 2);
        assert_eq!(
            router.load_routes(list(&["10.8.0.0/16 via 10.0.0.9"]), Terms::New, true).unwrap().removed,
            2
        );
        assert_eq!(listed(&router).len(), 1);
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
        let get = |router: &Router, address: &str| router.route_to(address.parse().unwrap());
        let vias = |choice: &api::RouteChoice| {
            choice.paths.iter().map(|p| p.via.unwrap().to_string()).collect::<Vec<_>>()
        };
        let none = get(&router, "10.0.0.77");
        assert_eq!((none.kind, none.prefix), (RouteKind::Unreachable, None), "nothing is up");
        assert!(
            none.explanation
                .contains("10.0.0.0/24 dev a proto kernel scope link src 10.0.0.1 (its interface is down)"),
            "{none:?}"
        );
        assert!(none.explanation.ends_with("b proto static metric 5 (its interface is down)"), "{none:?}");
        up(&mut router, &["a", "b"]);
        assert_eq!(vias(&get(&router, "192.0.2.1")), ["10.0.0.9"]);
        assert_eq!(vias(&get(&router, "10.9.1.1")), ["10.0.0.8", "10.0.1.8"]);
        assert_eq!(get(&router, "10.9.9.1").kind, RouteKind::Prohibit);
        let direct = get(&router, "10.0.0.77");
        assert_eq!(
            (direct.paths[0].via, direct.paths[0].source.unwrap().to_string().as_str()),
            (None, "10.0.0.1")
        );
        let everybody = get(&router, "10.0.0.255");
        assert_eq!((everybody.kind, everybody.paths.len()), (RouteKind::Blackhole, 0));
        assert!(everybody.explanation.contains("everybody"), "{everybody:?}");
        assert!(get(&router, "10.0.0.1").local);
        for (address, why) in [("2001:db8::1", "no route to it"), ("fe80::1", "link-local")] {
            let none = get(&router, address);
            assert_eq!((none.kind, none.prefix), (RouteKind::Unreachable, None));
            assert!(none.explanation.contains(why), "{none:?}");
        }
        up(&mut router, &["b"]);
        let second = get(&router, "192.0.2.1");
        assert_eq!((vias(&second), second.metric), (vec!["10.0.1.9".to_owned()], Some(5)));
        let why = "passed over: default via 10.0.0.9 dev a proto static (its interface is down)";
        assert!(second.explanation.ends_with(why), "{}", second.explanation);
        assert_eq!(vias(&get(&router, "10.9.1.1")), ["10.0.1.8"]);
        let active: Vec<_> =
            router.routes().iter().filter(|r| r.active).map(|r| (r.prefix.to_string(), r.metric)).collect();
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

    #[test]
    fn what_goes_with_an_interface_is_gone() {
        let mut router = two();
        for text in ["default via 10.0.0.9", "10.9.0.0/16 via 10.0.1.9", "10.8.0.0/16 blackhole"] {
            add(&mut router, text).unwrap();
        }
        assert_eq!(
            router.gateways().map(|(i, via)| format!("{} {via}", i.name)).collect::<Vec<_>>(),
            ["a 10.0.0.9", "b 10.0.1.9"]
        );
        assert_eq!(router.rib.count(), 6);
        router.del_interface("a").unwrap();
        let left: Vec<_> = router.routes().iter().map(|route| route.prefix.to_string()).collect();
        assert_eq!(left, ["10.0.1.0/24", "10.8.0.0/16", "10.9.0.0/16"]);
        assert_eq!((router.rib.count(), router.gateways().count()), (3, 1));
        // The number is given again, and nothing of the old one comes with it.
        router.add_interface(super::super::testing::interface("c", &["10.0.0.1/24"])).unwrap();
        assert_eq!(router.interfaces["c"].index, 0);
        assert_eq!(router.gateways().count(), 1);
    }
}

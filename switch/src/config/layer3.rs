//! The tables of the configuration file for layer 3: `[[interface]]`, `[[neighbour]]`, `[[route]]`, `[nat]`,
//! `[[policy]]`, `[forward]`, `[[dhcp]]`, `[[check]]`, `[conntrack]`, and those of
//! [`super::ipvs`].
//!
//! What contradicts itself (networks that overlap, rules for interfaces that are not there) is found before anything is made of
//! the file: the tables are first tried on a router of their own.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashSet};

use serde::Deserialize;
use toml::Spanned;

use super::document::{Conntrack, Forward};
use super::file::{Position, Source, moved};
use super::ipvs::IpvsConfig;
use super::spec::{
    DhcpChange, InterfaceSpec, Invalid, LimitChange, NeighbourSpec, Place, PolicyChange, PolicySpec,
    RouteSpec, nat_id, number,
};
use super::{BridgeSpec, Name, PortSpec};
use crate::conntrack::Timeout;
use crate::conntrack::timeouts::LONGEST;
use crate::control::api;
use crate::ipvs::health::CheckSpec;
use crate::l3::route::rib::Terms;
use crate::nat::rule::Rule;
use crate::refusal::Refusal;
use crate::router::{CONNECTIONS_DEFAULT, CONNECTIONS_MAX, CONNECTIONS_MIN, Router, Tracking, timeout_kind};

/// The tables as they stand in the file.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Tables {
    interface: Vec<Spanned<api::InterfaceAdd>>,
    neighbour: Vec<Spanned<api::NeighbourAdd>>,
    route: Vec<Spanned<api::RouteAdd>>,
    nat: NatTables,
    policy: Vec<Spanned<api::PolicyAdd>>,
    forward: Option<Spanned<Forward>>,
    dhcp: Vec<Spanned<api::DhcpSet>>,
    check: Vec<Spanned<api::CheckSet>>,
    ipvs: super::ipvs::Tables,
    conntrack: Option<Spanned<Conntrack>>,
}

impl Tables {
    /// Takes in what stands in a piece of the file so many bytes further on. Of what there is once at most it has nothing:
    /// that is cut out of no file.
    pub(super) fn append(&mut self, other: Self, by: usize) {
        self.neighbour.extend(other.neighbour.into_iter().map(|table| moved(table, by)));
        self.route.extend(other.route.into_iter().map(|table| moved(table, by)));
        self.policy.extend(other.policy.into_iter().map(|table| moved(table, by)));
        let NatTables { masquerade, snat, publish, one_to_one } = other.nat;
        self.nat.masquerade.extend(masquerade.into_iter().map(|table| moved(table, by)));
        self.nat.snat.extend(snat.into_iter().map(|table| moved(table, by)));
        self.nat.publish.extend(publish.into_iter().map(|table| moved(table, by)));
        self.nat.one_to_one.extend(one_to_one.into_iter().map(|table| moved(table, by)));
        self.ipvs.append(other.ipvs, by);
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct NatTables {
    masquerade: Vec<Spanned<api::MasqueradeAdd>>,
    snat: Vec<Spanned<api::SnatAdd>>,
    publish: Vec<Spanned<api::PublishAdd>>,
    one_to_one: Vec<Spanned<api::OneToOneAdd>>,
}

/// What holds for connections from the start on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConntrackSpec {
    /// What the table is made for.
    pub capacity: Option<u32>,
    /// Bounds within it.
    pub limits: LimitChange,
    /// Seconds for which connections are remembered.
    pub timeouts: Vec<(Timeout, u32)>,
}

/// Layer 3 as the file describes it; each thing with where it is described. Nothing contradicts anything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer3 {
    /// Interfaces.
    pub interfaces: Vec<(Position, InterfaceSpec)>,
    /// Permanent neighbours.
    pub neighbours: Vec<(Position, NeighbourSpec)>,
    /// Static routes.
    pub routes: Vec<(Position, RouteSpec)>,
    /// Rules of translation, with their numbers where they are given.
    pub nat: Vec<(Position, (Option<u32>, Rule))>,
    /// Rules of policy.
    pub policy: Vec<(Position, PolicySpec)>,
    /// What holds where no rule fits.
    pub forward: PolicyChange,
    /// DHCP and router advertisements.
    pub dhcp: Vec<(Position, DhcpChange)>,
    /// Health checks of real servers.
    pub checks: Vec<(Position, CheckSpec)>,
    /// Virtual services.
    pub ipvs: IpvsConfig,
    /// Bounds and timeouts of connections.
    pub conntrack: ConntrackSpec,
    /// What routes wait for, a line for people each.
    pub waiting: Vec<String>,
}

/// Checks the tables of one array one by one. `what` names one for messages.
pub(super) fn checked<T, S>(
    source: &Source<'_>,
    path: &[&str],
    list: &[Spanned<T>],
    what: impl Fn(&T) -> String,
    check: impl Fn(&T) -> Result<S, Invalid>,
) -> Result<Vec<(Position, S)>, Refusal> {
    let check = |(index, table): (usize, &Spanned<T>)| {
        let asked = table.get_ref();
        let spec = check(asked).map_err(|invalid| {
            let at = source.field(path, index, invalid.field, table.span());
            at.refuse(format_args!("{}: {invalid}", what(asked)))
        })?;
        Ok((source.position(table.span().start), spec))
    };
    list.iter().enumerate().map(check).collect()
}

impl Layer3 {
    pub(super) fn new(
        tables: &Tables,
        bridges: &[(Position, BridgeSpec)],
        ports: &[(Position, PortSpec)],
        source: &Source<'_>,
    ) -> Result<Self, Refusal> {
        let interfaces = checked(
            source,
            &["interface"],
            &tables.interface,
            |asked| format!("interface {:?}", asked.name),
            |asked| InterfaceSpec::try_from(asked),
        )?;
        let bridges: HashSet<Name> = bridges.iter().map(|(_, bridge)| bridge.name).collect();
        for (index, (_, interface)) in interfaces.iter().enumerate() {
            if !bridges.contains(&interface.bridge) {
                let at = source.field(&["interface"], index, "bridge", tables.interface[index].span());
                return Err(at.refuse(format_args!(
                    "interface {:?}: bridge {:?} does not exist: describe it in a [[bridge]] table of this file",
                    interface.name, interface.bridge
                )));
            }
        }
        let places = |name: &str| {
            let mut kinds = Vec::new();
            kinds.extend(ports.iter().any(|(_, port)| port.name == *name).then_some(Place::Port));
            kinds.extend(bridges.contains(name).then_some(Place::Bridge));
            let known = interfaces.iter().any(|(_, interface)| interface.name == *name);
            kinds.extend(known.then_some(Place::Interface));
            kinds
        };
        let policy = checked(
            source,
            &["policy"],
            &tables.policy,
            |_| "policy".to_owned(),
            |asked| {
                // What is said of a port outlives it, as long as it is plain that a port is meant.
                let names_port = |name: &str, place: &Option<String>| {
                    let place = place.as_deref().unwrap_or_default();
                    place.trim_start_matches('!').strip_prefix("port:") == Some(name)
                };
                let known = |name: &str| {
                    let mut kinds = places(name);
                    let named = names_port(name, &asked.from) || names_port(name, &asked.to);
                    if named && !kinds.contains(&Place::Port) {
                        kinds.push(Place::Port);
                    }
                    kinds
                };
                PolicySpec::new(asked, &known)
            },
        )?;
        let mut config = Self {
            neighbours: checked(
                source,
                &["neighbour"],
                &tables.neighbour,
                |asked| format!("neighbour {}", asked.address),
                |asked| NeighbourSpec::try_from(asked),
            )?,
            routes: checked(
                source,
                &["route"],
                &tables.route,
                |asked| format!("route {}", asked.prefix),
                |asked| RouteSpec::try_from(asked),
            )?,
            nat: rules(&tables.nat, source)?,
            policy,
            forward: forward(tables, source)?,
            dhcp: checked(
                source,
                &["dhcp"],
                &tables.dhcp,
                |asked| format!("dhcp {:?}", asked.interface),
                |asked| DhcpChange::try_from(asked),
            )?,
            checks: checked(
                source,
                &["check"],
                &tables.check,
                |asked| format!("check of {}", asked.service),
                |asked| CheckSpec::try_from(asked),
            )?,
            ipvs: IpvsConfig::new(&tables.ipvs, source)?,
            conntrack: conntrack(tables, source)?,
            interfaces,
            waiting: Vec::new(),
        };
        config.waiting = config.rehearse()?.waiting_routes(config.routes.iter().map(|(_, route)| route));
        Ok(config)
    }

    /// A router that carries nothing, with everything on it.
    ///
    /// # Errors
    /// What contradicts something else, with where it is described.
    pub fn rehearse(&self) -> Result<Router, Refusal> {
        let mut router = Router::new(1);
        self.conntrack.apply(&mut router)?;
        for (at, interface) in &self.interfaces {
            router.add_interface(interface.clone()).map_err(|refusal| at.refuse(refusal))?;
        }
        for (at, neighbour) in &self.neighbours {
            router.add_neighbour(*neighbour).map_err(|refusal| at.refuse(refusal))?;
        }
        let routes = self.routes.iter().map(|(_, route)| *route);
        let loaded = router.load_routes(routes, Terms::Kept, false);
        loaded.map_err(|(index, refusal)| self.route_at(index, &refusal))?;
        self.add_rules(&mut router)?;
        for (at, dhcp) in &self.dhcp {
            router.set_dhcp(dhcp.clone()).map_err(|refusal| at.refuse(refusal))?;
        }
        self.ipvs.apply(&router.ipvs)?;
        Ok(router)
    }

    /// The numbers that the file gives to rules of translation.
    pub fn nat_numbers(&self) -> BTreeSet<u32> {
        self.nat.iter().filter_map(|(_, (id, _))| *id).collect()
    }

    /// Adds the rules of translation and policy to a router.
    ///
    /// # Errors
    /// What cannot be added, with where it is described.
    pub fn add_rules(&self, router: &mut Router) -> Result<(), Refusal> {
        // Numbers that were asked for are not to be given to others.
        for (at, (id, rule)) in &self.nat {
            if let Some(id) = id {
                router.insert_nat(*id, rule.clone()).map_err(|refusal| at.refuse(refusal))?;
            }
        }
        for (at, (id, rule)) in &self.nat {
            if id.is_none() {
                router.add_nat(rule.clone()).map_err(|refusal| at.refuse(refusal))?;
            }
        }
        for (at, rule) in &self.policy {
            router.add_policy(rule.clone()).map_err(|refusal| at.refuse(refusal))?;
        }
        router.set_policy(self.forward);
        Ok(())
    }

    /// Says where the route stands that was refused as number `index`.
    pub fn route_at(&self, index: usize, refusal: &Refusal) -> Refusal {
        match self.routes.get(index) {
            Some((at, route)) => at.refuse(format_args!("route {}: {refusal}", route.prefix)),
            None => refusal.clone(),
        }
    }
}

type NumberedRule = (Option<u32>, Rule);

fn rules(nat: &NatTables, source: &Source<'_>) -> Result<Vec<(Position, NumberedRule)>, Refusal> {
    let mut rules = checked(
        source,
        &["nat", "masquerade"],
        &nat.masquerade,
        |asked| format!("masquerade {}", asked.source),
        |asked| Ok((nat_id(asked.id)?, Rule::try_from(asked)?)),
    )?;
    rules.extend(checked(
        source,
        &["nat", "snat"],
        &nat.snat,
        |asked| format!("snat {}", asked.source),
        |asked| Ok((nat_id(asked.id)?, Rule::try_from(asked)?)),
    )?);
    rules.extend(checked(
        source,
        &["nat", "publish"],
        &nat.publish,
        |asked| format!("publish {}", asked.listen),
        |asked| Ok((nat_id(asked.id)?, Rule::try_from(asked)?)),
    )?);
    rules.extend(checked(
        source,
        &["nat", "one-to-one"],
        &nat.one_to_one,
        |asked| format!("one-to-one {}", asked.outside),
        |asked| Ok((nat_id(asked.id)?, Rule::try_from(asked)?)),
    )?);
    Ok(rules)
}

fn forward(tables: &Tables, source: &Source<'_>) -> Result<PolicyChange, Refusal> {
    let Some(table) = &tables.forward else { return Ok(PolicyChange::default()) };
    let asked =
        api::PolicySet { forward: table.get_ref().default.clone(), isolation: table.get_ref().isolation };
    PolicyChange::try_from(&asked).map_err(|invalid| {
        // The table is called forward, its field default.
        let field = if invalid.field == "forward" { "default" } else { invalid.field };
        source.value(&["forward", field], table.span()).refuse(invalid)
    })
}

fn conntrack(tables: &Tables, source: &Source<'_>) -> Result<ConntrackSpec, Refusal> {
    let Some(table) = &tables.conntrack else { return Ok(ConntrackSpec::default()) };
    let asked = table.get_ref();
    let bound = |field: &'static str, value: Option<i64>, min, max| {
        let checked = value.map(|value| number(field, value, min, max)).transpose();
        checked.map_err(|invalid| source.value(&["conntrack", field], table.span()).refuse(invalid))
    };
    let capacity = bound("capacity", asked.capacity, CONNECTIONS_MIN, CONNECTIONS_MAX)?;
    // Unless it is said what the table is made for, it is made for its limit.
    let limit = match capacity {
        Some(capacity) => bound("limit", asked.limit, 1, capacity)?,
        None => bound("limit", asked.limit, CONNECTIONS_MIN, CONNECTIONS_MAX)?,
    };
    let limits = LimitChange {
        limit: limit.filter(|_| capacity.is_some()),
        port_quota: bound("port_quota", asked.port_quota, 1, u32::MAX)?,
        half_open: bound("half_open", asked.half_open, 1, u32::MAX)?,
    };
    let mut timeouts = Vec::new();
    for (name, seconds) in &asked.timeouts {
        let check = || Ok((timeout_kind(name)?, number("timeouts", *seconds, 1, LONGEST)?));
        let checked = check().map_err(|invalid: Invalid| {
            source.value(&["conntrack", "timeouts", name], table.span()).refuse(invalid)
        })?;
        timeouts.push(checked);
    }
    Ok(ConntrackSpec { capacity: capacity.or(limit), limits, timeouts })
}

impl ConntrackSpec {
    /// Has a router keep to this.
    ///
    /// # Errors
    /// Something that was checked before.
    pub fn apply(&self, router: &mut Router) -> Result<(), Refusal> {
        let mut tracking = Tracking::new(self.capacity.unwrap_or(CONNECTIONS_DEFAULT));
        tracking.set_limits(self.limits)?;
        for &(kind, seconds) in &self.timeouts {
            tracking.set_timeout(kind, seconds)?;
        }
        router.tracking = tracking;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;
    use super::*;
    use crate::policy::Verdict;

    const BASE: &str = "[[bridge]]\nname = \"br0\"\n[[interface]]\nname = \"gw\"\nbridge = \"br0\"\naddress = [\"10.0.3.1/24\", \"fd00::1/64\"]\n";

    #[test]
    fn a_whole_file_is_understood() {
        let text = format!(
            "{BASE}{}",
            r#"
            mtu = 9000
            clamp_mss = true
            [[neighbour]]
            interface = "gw"
            address = "10.0.3.9"
            mac = "52:54:00:00:00:09"
            [[route]]
            prefix = "default"
            via = "10.0.3.254"
            [[route]]
            prefix = "10.9.0.0/16"
            kind = "blackhole"
            metric = 5
            [[nat.masquerade]]
            source = "10.0.3.0/24"
            not_destination = ["10.0.3.0/24"]
            [[nat.publish]]
            proto = "tcp"
            listen = "*:8080"
            to = "10.0.3.16:80"
            in = "gw"
            [[nat.one-to-one]]
            outside = "192.0.2.1"
            inside = "10.0.3.17"
            [forward]
            default = "drop"
            isolation = true
            [[policy]]
            from = "gw"
            proto = "tcp"
            dport = "80,443"
            action = "accept"
            [[policy]]
            id = 5
            from = "bridge:br0"
            action = "log"
            [[dhcp]]
            interface = "gw"
            range = "10.0.3.2-10.0.3.253"
            ra = true
            reserve = [{ mac = "52:54:00:00:00:01", address = "10.0.3.16", hostname = "web" }]
            [[check]]
            service = "tcp:10.0.3.100:80"
            kind = "http"
            path = "/live"
            interval = 5
            [conntrack]
            limit = 1048576
            port_quota = 65536
            timeouts = { tcp_established = 86400, udp = 60 }
            "#
        );
        let layer3 = Config::parse(&text, None).unwrap().layer3;
        assert_eq!((layer3.interfaces[0].1.mtu, layer3.interfaces[0].1.clamp_mss), (9000, true));
        assert_eq!((layer3.neighbours.len(), layer3.routes.len(), layer3.nat.len()), (1, 2, 3));
        assert_eq!((layer3.policy.len(), layer3.dhcp[0].1.reserve.len()), (2, 1));
        assert_eq!((layer3.forward.forward, layer3.forward.isolation), (Some(Verdict::Drop), Some(true)));
        assert_eq!(
            (layer3.conntrack.capacity, layer3.conntrack.limits.port_quota),
            (Some(1_048_576), Some(65_536))
        );
        assert_eq!(layer3.conntrack.timeouts, [(Timeout::TcpEstablished, 86_400), (Timeout::Udp, 60)]);
        assert_eq!(layer3.checks[0].1.interval.as_secs(), 5);
        assert_eq!(layer3.routes[1].0.line, 17);
    }

    #[test]
    fn a_route_that_names_its_interface_waits_for_its_gateway() {
        let waiting = |rest: &str| {
            Config::parse(&format!("{BASE}{rest}"), None)
                .map(|config| config.layer3.waiting)
                .map_err(|refusal| refusal.to_string())
        };
        let via = |via: &str| format!("[[route]]\nprefix = \"default\"\nvia = \"{via}\"\ndev = \"gw\"\n");
        let lines = waiting(&via("10.0.4.9")).unwrap();
        assert_eq!(lines.len(), 1);
        assert!(
            lines[0]
                .starts_with("route 0.0.0.0/0 waits: gateway 10.0.4.9 is on no network of interface \"gw\""),
            "{lines:?}"
        );
        let two = via("10.0.4.9") + "[[route]]\nprefix = \"10.7.0.0/16\"\nvia = \"10.0.4.9\"\ndev = \"gw\"\n";
        assert!(waiting(&two).unwrap()[0].ends_with("; so do 1 more"));
        // One that has become the switch's own, or the network's broadcast address.
        for taken in ["10.0.3.1", "10.0.3.255"] {
            assert_eq!(waiting(&via(taken)).unwrap().len(), 1, "{taken}");
        }
        // Beside the route that came with an address.
        let beside = "[[route]]\nprefix = \"10.0.3.0/24\"\nvia = \"10.0.3.9\"\ndev = \"gw\"\n";
        assert_eq!(waiting(beside), Ok(Vec::new()));
        assert_eq!(waiting(&via("10.0.3.9")), Ok(Vec::new()));
        for (strange, why) in
            [("127.0.0.1", "is not the address of a host"), ("fd00::9", "is of another family")]
        {
            let refusal = waiting(&via(strange).replace("default", "10.7.0.0/16")).unwrap_err();
            assert!(refusal.contains(why), "{refusal}");
        }
        let gone = waiting(&via("10.0.4.9").replace("\"gw\"", "\"gone\"")).unwrap_err();
        assert!(gone.contains("interface \"gone\" does not exist"), "{gone}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (rest, expected) in [
            ("mtu = 67\n", "7:7: interface \"gw\": mtu 67 is out of range: it must be 68 to 9600"),
            ("mtu = 1000\n", "7:7: interface \"gw\": mtu 1000 is too small for address fd00::1/64"),
            ("mtu = \"1\"\n", "7:7: interface.mtu: invalid type: string \"1\", expected an integer"),
            ("mtus = 1\n", "7:1: unknown field \"mtus\", expected one of"),
            (
                "[[interface]]\nname = \"x\"\nbridge = \"y\"\n",
                "9:10: interface \"x\": bridge \"y\" does not exist: ",
            ),
            (
                "[[interface]]\nname = \"x\"\nbridge = \"br0\"\naddress = [\"10.0.3.9/25\"]\n",
                "7:1: address 10.0.3.9/25 overlaps 10.0.3.1/24 of interface \"gw\"",
            ),
            ("[[interface]]\nname = \"gw\"\nbridge = \"br0\"\n", "7:1: interface \"gw\" exists already"),
            (
                "[[route]]\nprefix = \"10.0.0.1/8\"\ndev = \"gw\"\n",
                "8:10: route 10.0.0.1/8: prefix 10.0.0.1/8 has bits",
            ),
            ("[[route]]\nprefix = \"default\"\n", "7:1: route default: route 0.0.0.0/0 leads nowhere"),
            (
                "[[route]]\nprefix = \"10.9.0.0/16\"\ndev = \"gw\"\n[[route]]\nprefix = \"default\"\nvia = \"10.9.0.1\"\n",
                "10:1: route 0.0.0.0/0: gateway 10.9.0.1 is on no network of any interface",
            ),
            ("[[nat.masquerade]]\nsource = \"x\"\n", "8:10: masquerade x: source \"x\" is no network"),
            (
                "[[nat.masquerade]]\nsource = \"10.0.0.0/8\"\nout = \"x\"\n",
                "7:1: interface \"x\" does not exist",
            ),
            ("[[nat.dnat]]\n", "7:7: unknown field \"dnat\""),
            (
                "[[nat.publish]]\nproto = \"tcp\"\nlisten = \"*:80-81\"\nto = \"10.0.3.5:80\"\n",
                "10:6: publish *:80-81: to \"10.0.3.5:80\" has 1 ports",
            ),
            (
                "[[nat.publish]]\nproto = \"tcp\"\nlisten = \"*:80\"\nto = \"10.0.3.5:80\"\n[[nat.publish]]\nproto = \"tcp\"\nlisten = \"10.0.3.1:80\"\nto = \"10.0.3.6:80\"\n",
                "11:1: tcp 10.0.3.1:80: already published",
            ),
            ("[[policy]]\naction = \"allow\"\n", "8:10: policy: action \"allow\" is unknown"),
            ("[[policy]]\naction = \"drop\"\nfrom = \"none\"\n", "9:8: policy: from \"none\" does not exist"),
            ("[forward]\ndefault = \"maybe\"\n", "8:11: forward \"maybe\" is unknown"),
            ("[forward]\n", "7:1: nothing of the policy is to change"),
            ("[[dhcp]]\ninterface = \"gw\"\nlease = 5\n", "9:9: dhcp \"gw\": lease 5 is out of range"),
            (
                "[[dhcp]]\ninterface = \"gw\"\nrange = \"10.0.4.2-10.0.4.9\"\n",
                "7:1: range 10.0.4.2-10.0.4.9 lies in no network of interface \"gw\"",
            ),
            (
                "[[check]]\nservice = \"tcp:10.0.3.100:80\"\nkind = \"icmp\"\n",
                "9:8: check of tcp:10.0.3.100:80: kind \"icmp\" is unknown: it must be tcp, http or udp",
            ),
            ("[conntrack]\nlimit = 5\n", "8:9: limit 5 is out of range: it must be 1024 to 16777216"),
            ("[conntrack]\ntimeouts = { tcp = 5 }\n", "8:20: kind \"tcp\" is unknown: it must be one of"),
            ("[conntrack]\ntimeouts = { udp = 0 }\n", "8:20: timeouts 0 is out of range"),
            (
                "[[neighbor]]\n",
                "7:3: unknown field \"neighbor\", expected one of daemon, bridge, port, fdb, container",
            ),
        ] {
            let text = format!("{BASE}{rest}");
            let message = Config::parse(&text, Some(Path::new("/etc/s.toml"))).unwrap_err().to_string();
            assert!(message.starts_with(&format!("/etc/s.toml:{expected}")), "{rest}\n{message}\n{expected}");
            assert!(!message.contains('\n'), "{message}");
        }
    }
}

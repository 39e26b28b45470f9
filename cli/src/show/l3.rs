//! Interfaces, routes, neighbours, DHCP.

use std::fmt::Write;

use shunt_switch::config::RouteKind;
use shunt_switch::control::api;

use super::{dash, duration, joined, properties, table};

/// `interface list`
pub(crate) fn interfaces(interfaces: &[api::Interface]) -> String {
    table(
        &["NAME", "BRIDGE", "VLAN", "STATE", "MTU", "MAC", "ADDRESSES"],
        &[2, 4],
        interfaces.iter().map(|interface| {
            vec![
                interface.name.to_string(),
                interface.bridge.to_string(),
                if interface.vlan == 0 { "-".to_owned() } else { interface.vlan.to_string() },
                interface.state.as_str().to_owned(),
                interface.mtu.to_string(),
                interface.mac.to_string(),
                joined(&interface.address),
            ]
        }),
    )
}

/// `interface show`
pub(crate) fn interface(interface: &api::Interface) -> String {
    let state = match &interface.reason {
        Some(reason) => format!("{}: {reason}", interface.state.as_str()),
        None => interface.state.as_str().to_owned(),
    };
    properties(&[
        ("name", interface.name.to_string()),
        ("bridge", interface.bridge.to_string()),
        ("vlan", if interface.vlan == 0 { String::new() } else { interface.vlan.to_string() }),
        ("state", state),
        ("mac", interface.mac.to_string()),
        ("mtu", interface.mtu.to_string()),
        ("addresses", joined(&interface.address)),
        ("clamp-mss", if interface.clamp_mss { "on".to_owned() } else { String::new() }),
    ])
}

/// `route list`: a million rows may come.
pub(crate) fn routes(routes: &[api::Route]) -> String {
    let prefixes: Vec<_> = routes.iter().map(prefix).collect();
    let vias: Vec<_> = routes.iter().map(|route| dash(route.via)).collect();
    let width =
        |texts: &[String], heading: &str| texts.iter().map(String::len).max().unwrap_or(0).max(heading.len());
    let (wide, via_wide) = (width(&prefixes, "PREFIX"), width(&vias, "VIA"));
    let mut text =
        format!("{:wide$}  {:via_wide$}  DEV                  METRIC  PROTO   STATE\n", "PREFIX", "VIA");
    for ((route, prefix), via) in routes.iter().zip(&prefixes).zip(&vias) {
        let dev = match route.kind {
            RouteKind::Unicast => dash(route.dev),
            kind => kind.as_str().to_owned(),
        };
        let (protocol, state) = (route.protocol.as_str(), if route.active { "active" } else { "unused" });
        let _ = writeln!(
            text,
            "{prefix:wide$}  {via:via_wide$}  {dev:<15}  {:>10}  {protocol:<6}  {state}",
            route.metric
        );
    }
    text
}

fn prefix(route: &api::Route) -> String {
    match (route.prefix.prefix_len(), route.prefix.addr().is_ipv4()) {
        (0, true) => "default".to_owned(),
        _ => route.prefix.to_string(),
    }
}

/// `route get`
pub(crate) fn route_choice(choice: &api::RouteChoice) -> String {
    let ways = choice.paths.iter().map(|path| {
        let via = path.via.map(|via| format!("via {via} ")).unwrap_or_default();
        let source = path.source.map(|source| format!(" src {source}")).unwrap_or_default();
        format!("{via}dev {}{source}", path.dev)
    });
    let ways: Vec<_> = ways.collect();
    let kind = if choice.local { "local".to_owned() } else { choice.kind.as_str().to_owned() };
    let mut list = vec![
        ("address", choice.address.to_string()),
        ("kind", kind),
        ("route", choice.prefix.map_or_else(|| "none".to_owned(), |prefix| prefix.to_string())),
        ("metric", choice.metric.map(|metric| metric.to_string()).unwrap_or_default()),
    ];
    list.extend(ways.into_iter().map(|way| ("way", way)));
    list.push(("because", choice.explanation.clone()));
    properties(&list)
}

/// `route load`
pub(crate) fn loaded(loaded: &api::RouteLoaded) -> String {
    match loaded.removed {
        0 => format!("{} routes loaded\n", loaded.loaded),
        removed => format!("{} routes loaded, {removed} removed\n", loaded.loaded),
    }
}

/// `neighbour list`
pub(crate) fn neighbours(neighbours: &[api::Neighbour]) -> String {
    let addresses: Vec<_> = neighbours.iter().map(|one| one.address.to_string()).collect();
    let wide = addresses.iter().map(String::len).max().unwrap_or(0).max("ADDRESS".len());
    let mut text = format!("INTERFACE        {:wide$}  MAC                STATE       AGE\n", "ADDRESS");
    for (one, address) in neighbours.iter().zip(&addresses) {
        let age = match one.state {
            api::NeighbourState::Permanent | api::NeighbourState::Noarp => "-".to_owned(),
            _ => format!("{} s", one.age_seconds),
        };
        let (interface, mac, state) = (one.interface, dash(one.mac), one.state.as_str());
        let _ = writeln!(text, "{interface:<15}  {address:wide$}  {mac:<17}  {state:<10}  {age}");
    }
    text
}

/// `dhcp show`
pub(crate) fn dhcp(dhcp: &api::Dhcp) -> String {
    let mut list = vec![
        ("interface", dhcp.interface.to_string()),
        ("range", dhcp.range.clone().unwrap_or_default()),
        (
            "leases",
            dhcp.range
                .as_ref()
                .map(|_| format!("{} of at most {}", dhcp.leases, dhcp.capacity))
                .unwrap_or_default(),
        ),
        ("lease", duration(dhcp.lease.into())),
        ("router", dash(dhcp.router)),
        ("dns", joined(&dhcp.dns)),
        ("domain", dhcp.domain.clone().unwrap_or_default()),
        ("mtu", dhcp.mtu.to_string()),
        ("routes", joined(&dhcp.route)),
        ("ra", if dhcp.ra { "on" } else { "off" }.to_owned()),
        ("per-port", format!("{} addresses at most", dhcp.per_port)),
        ("counted", counted(&dhcp.counters)),
    ];
    for one in &dhcp.reservations {
        let hostname = one.hostname.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        list.push(("reserved", format!("{} {}{hostname}", one.address, one.mac)));
    }
    properties(&list)
}

/// What a DHCP server has counted; what never happened is left out.
fn counted(counters: &api::DhcpCounters) -> String {
    let all = [
        (counters.requests, "requests"),
        (counters.offers, "offers"),
        (counters.acks, "acks"),
        (counters.naks, "naks"),
        (counters.conflicts, "conflicts"),
        (counters.malformed, "malformed"),
        (counters.refused, "refused"),
        (counters.exhausted, "without an address left"),
        (counters.port_limit, "above the share of a port"),
    ];
    let some: Vec<_> =
        all.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    some.join(", ")
}

/// `dhcp leases`
pub(crate) fn leases(leases: &[api::Lease]) -> String {
    table(
        &["INTERFACE", "ADDRESS", "MAC", "HOSTNAME", "STATE", "EXPIRES"],
        &[],
        leases.iter().map(|lease| {
            vec![
                lease.interface.to_string(),
                lease.address.to_string(),
                dash(lease.mac),
                dash(lease.hostname.as_ref()),
                lease.state.clone(),
                duration(lease.expires_seconds),
            ]
        }),
    )
}

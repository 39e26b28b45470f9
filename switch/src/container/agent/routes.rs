//! Which routes an agent is to be told of: its call replaces all that the guest has, but those that the kernel made.
//!
//! What its listing tells is not all there is to know: a route with a gateway is listed as one to `0.0.0.0` (or `::1`)
//! wherever it leads. Those of ours are recognised by gateway and NIC; others of that kind can only be default routes.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::message::Route;
use crate::config::spec::ContainerRoute;

/// RT_SCOPE_LINK.
const LINK: u64 = 253;

/// A route of ours as the agent wants it.
pub(super) fn wanted(route: &ContainerRoute) -> Route {
    let network = route.dest.network;
    let v6 = network.is_some_and(|network| network.addr().is_ipv6());
    Route {
        // All addresses are written as nothing.
        dest: network.filter(|network| network.prefix_len() > 0).map_or(String::new(), |n| n.to_string()),
        gateway: route.gateway.map_or(String::new(), |gateway| gateway.to_string()),
        device: route.device.to_string(),
        scope: if route.gateway.is_none() && !v6 { LINK } else { 0 },
        family: u64::from(v6),
        ..Route::default()
    }
}

/// Whether a listed route is one of ours.
fn is(listed: &Route, ours: &ContainerRoute) -> bool {
    if listed.device != ours.device.as_str() {
        return false;
    }
    match (listed.gateway.parse::<IpAddr>(), ours.gateway) {
        (Ok(listed), Some(ours)) => listed == ours,
        (Err(_), None) => {
            let text = listed.dest.parse::<ipnet::IpNet>().ok().map(|network| network.trunc());
            text == ours.dest.network
        }
        _ => false,
    }
}

/// All routes that are to be there: foreign ones as they are, then ours.
pub(super) fn merge(present: &[Route], before: &[ContainerRoute], now: &[ContainerRoute]) -> Vec<Route> {
    let foreign = present.iter().filter(|listed| !before.iter().any(|ours| is(listed, ours)));
    let foreign = foreign.filter(|listed| !now.iter().any(|ours| is(listed, ours)));
    let kept = foreign.map(|listed| {
        let mut route = listed.clone();
        if !route.gateway.is_empty() {
            let v6 = route.gateway.contains(':');
            route.dest = String::new();
            route.family = u64::from(v6);
        } else if route.dest.contains(':') {
            route.family = 1;
        }
        route
    });
    kept.chain(now.iter().map(wanted)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::KataRoute;

    fn ours(dest: &str, gateway: &str, device: &str) -> ContainerRoute {
        let text = |text: &str| Some(text.to_owned());
        let asked =
            KataRoute { dest: text(dest), gateway: text(gateway), device: text(device), unknown: None };
        ContainerRoute::try_from(&asked).unwrap()
    }

    fn listed(dest: &str, gateway: &str, device: &str) -> Route {
        Route { dest: dest.into(), gateway: gateway.into(), device: device.into(), ..Route::default() }
    }

    #[test]
    fn what_is_not_ours_stays() {
        let before = [ours("177.17.0.0/24", "172.16.0.9", "eth1"), ours("10.9.0.0/16", "", "eth1")];
        let present = [
            listed("0.0.0.0", "172.16.0.1", "eth0"),
            listed("172.16.0.0/16", "", "eth0"),
            // The first of ours, as the agent lists it.
            listed("0.0.0.0", "172.16.0.9", "eth1"),
            listed("10.9.0.0/16", "", "eth1"),
        ];
        let now = [ours("10.9.0.0/16", "", "eth1"), ours("default", "fd00::1", "eth1")];
        let all = merge(&present, &before, &now);
        let short: Vec<_> =
            all.iter().map(|r| (r.dest.as_str(), r.gateway.as_str(), r.device.as_str(), r.family)).collect();
        assert_eq!(
            short,
            [
                ("", "172.16.0.1", "eth0", 0),
                ("172.16.0.0/16", "", "eth0", 0),
                ("10.9.0.0/16", "", "eth1", 0),
                ("", "fd00::1", "eth1", 1),
            ]
        );
        assert_eq!(all[2].scope, LINK);
    }
}

//! Translation, connections, policy.

use std::fmt::Write;

use shunt_switch::control::api;

use super::{dash, joined, properties, table};

/// What `nat ... add` says: the number by which the rule is deleted.
pub(crate) fn nat_id(rule: &api::NatRule) -> String {
    format!("{}\n", rule.id)
}

/// `nat list`
pub(crate) fn nat(rules: &[api::NatRule]) -> String {
    let condition = |rule: &api::NatRule| {
        let mut words = Vec::new();
        words.extend(rule.source.map(|source| format!("from {source}")));
        words.extend(rule.proto.clone());
        words.extend(rule.listen.clone());
        words.extend(rule.outside.map(|outside| outside.to_string()));
        words.extend(rule.ingress.map(|name| format!("in {name}")));
        words.extend(rule.out.map(|name| format!("out {name}")));
        words.extend(rule.not_out.map(|name| format!("not out {name}")));
        words.extend(rule.not_destination.iter().map(|network| format!("not to {network}")));
        words.join(" ")
    };
    let becomes = |rule: &api::NatRule| {
        let mut words = Vec::new();
        words.extend(rule.to.clone());
        words.extend(rule.inside.map(|inside| inside.to_string()));
        words.extend(rule.to_ports.as_ref().map(|ports| format!("ports {ports}")));
        if rule.endpoint_independent {
            words.push("endpoint-independent".to_owned());
        }
        if words.is_empty() { "-".to_owned() } else { words.join(" ") }
    };
    table(
        &["ID", "KIND", "FOR", "TO", "CONNECTIONS", "EXHAUSTED"],
        &[0, 4, 5],
        rules.iter().map(|rule| {
            vec![
                rule.id.to_string(),
                rule.kind.as_str().to_owned(),
                condition(rule),
                becomes(rule),
                rule.connections.to_string(),
                rule.exhausted.to_string(),
            ]
        }),
    )
}

/// `policy list`
pub(crate) fn policy(policy: &api::Policy) -> String {
    let side = |place: Option<&String>, networks: Option<&String>| match (place, networks) {
        (None, None) => "any".to_owned(),
        _ => joined(place.into_iter().chain(networks)),
    };
    let proto = |rule: &api::PolicyRule| {
        let mut words = vec![rule.proto.clone().unwrap_or_else(|| "any".to_owned())];
        words.extend(rule.sport.as_ref().map(|ports| format!("sport {ports}")));
        words.extend(rule.dport.as_ref().map(|ports| format!("dport {ports}")));
        words.extend(rule.icmp_type.map(|kind| format!("type {kind}")));
        words.join(" ")
    };
    let what = |rule: &api::PolicyRule| {
        let action = rule.mark.map_or_else(|| rule.action.clone(), |mark| format!("mark {mark}"));
        if rule.log { format!("log,{action}") } else { action }
    };
    let mut rows: Vec<Vec<String>> = policy
        .rules
        .iter()
        .map(|rule| {
            vec![
                rule.id.to_string(),
                side(rule.from.as_ref(), rule.source.as_ref()),
                side(rule.to.as_ref(), rule.destination.as_ref()),
                proto(rule),
                dash(rule.state.as_ref()),
                what(rule),
                rule.packets.to_string(),
                rule.bytes.to_string(),
            ]
        })
        .collect();
    let mut last = |what: &str, action: &str, packets: u64| {
        let row = ["-", what, "any", "any", "-", action].map(str::to_owned);
        rows.push([&row[..], &[packets.to_string(), "-".to_owned()]].concat());
    };
    if policy.isolation {
        last("other bridges", "drop", policy.isolation_packets);
    }
    last("any", &policy.forward, policy.forward_packets);
    table(&["ID", "FROM", "TO", "PROTO", "STATE", "ACTION", "PACKETS", "BYTES"], &[0, 6, 7], rows.into_iter())
}

/// `conntrack stats`: as `conntrack -S` prints it, its own counters first.
pub(crate) fn conntrack_stats(workers: &[api::ConntrackCounters]) -> String {
    const FIRST: [&str; 8] =
        ["found", "invalid", "insert", "insert_failed", "drop", "early_drop", "error", "search_restart"];
    let mut text = String::new();
    for worker in workers {
        let _ = write!(text, "cpu={:<4}\t", worker.cpu);
        let known = FIRST.iter().map(|name| (*name, worker.counters.get(*name).copied().unwrap_or(0)));
        let others = worker.counters.iter().map(|(name, n)| (name.as_str(), *n));
        let others = others.filter(|(name, _)| !FIRST.contains(name));
        let words: Vec<_> = known.chain(others).map(|(name, n)| format!("{name}={n}")).collect();
        let _ = writeln!(text, "{}", words.join(" "));
    }
    text
}

/// `conntrack timeouts`
pub(crate) fn timeouts(timeouts: &api::Timeouts) -> String {
    let list: Vec<_> = timeouts.iter().map(|(kind, seconds)| (kind.as_str(), seconds.to_string())).collect();
    properties(&list)
}

/// `conntrack limits`
pub(crate) fn limits(limits: &api::Limits) -> String {
    properties(&[
        ("capacity", limits.capacity.to_string()),
        ("limit", limits.limit.to_string()),
        ("port-quota", limits.port_quota.to_string()),
        ("half-open", limits.half_open.to_string()),
    ])
}

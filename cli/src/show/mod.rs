//! Answers as people read them: columns without borders, or one line a property.

mod check;
mod container;
mod l3;
mod rules;
mod worker;

use std::fmt::Write;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use shunt_switch::control::api;

pub(crate) use check::checks;
pub(crate) use container::{container, containers};
pub(crate) use l3::{dhcp, interface, interfaces, leases, loaded, neighbours, route_choice, routes};
pub(crate) use rules::{conntrack_stats, limits, nat, nat_id, policy, timeouts};
pub(crate) use worker::{rebalance, worker_settings, workers};

/// Columns under their headings. Those in `numbers` are set flush right.
fn table(headings: &[&str], numbers: &[usize], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(headings);
    table.add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// One property a line; those without a value are left out.
fn properties(list: &[(&str, String)]) -> String {
    let width = list.iter().map(|(key, _)| key.len()).max().unwrap_or_default() + 2;
    let mut text = String::new();
    for (key, value) in list.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(text, "{key:width$}{value}");
    }
    text
}

fn joined<T: ToString>(list: impl IntoIterator<Item = T>) -> String {
    list.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(" ")
}

/// A value, or a dash where there is none.
fn dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn ageing(seconds: u32) -> String {
    if seconds == 0 { "never".into() } else { format!("{seconds} s") }
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes, seconds) =
        (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {seconds} s"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// `upgrade`
pub(crate) fn upgraded(upgraded: &api::Upgraded) -> String {
    let pause = upgraded.pause_microseconds as f64 / 1000.0;
    format!("process {} goes on; no packet was carried for {pause:.1} ms\n", upgraded.pid)
}

/// `status`
pub(crate) fn status(status: &api::Status) -> String {
    let mut text = properties(&[
        ("version", status.version.clone()),
        ("uptime", duration(status.uptime_seconds)),
        ("workers", format!("{} ({})", status.workers, status.poll)),
        ("bridges", status.bridges.to_string()),
        ("ports", status.ports.to_string()),
        ("interfaces", status.interfaces.to_string()),
        ("routes", status.routes.to_string()),
    ]);
    for problem in &status.problems {
        let _ = writeln!(text, "problem: {problem}");
    }
    if !status.host_commands.is_empty() {
        text.push_str("to be done on the host (or by 'shuntd --host-setup'):\n");
        for command in &status.host_commands {
            let _ = writeln!(text, "  {command}");
        }
    }
    text
}

/// `bridge list`
pub(crate) fn bridges(bridges: &[api::Bridge]) -> String {
    table(
        &["NAME", "PORTS", "AGEING", "FDB", "LIMIT"],
        &[1, 3, 4],
        bridges.iter().map(|bridge| {
            vec![
                bridge.name.to_string(),
                bridge.ports.len().to_string(),
                ageing(bridge.ageing),
                bridge.fdb_entries.to_string(),
                bridge.fdb_limit.to_string(),
            ]
        }),
    )
}

/// `bridge show`
pub(crate) fn bridge(bridge: &api::Bridge) -> String {
    properties(&[
        ("name", bridge.name.to_string()),
        ("ageing", ageing(bridge.ageing)),
        ("addresses", format!("{} of at most {}", bridge.fdb_entries, bridge.fdb_limit)),
        ("moves", bridge.fdb_moves.to_string()),
        ("not learned", format!("{} (database full)", bridge.fdb_refused)),
        ("ports", joined(&bridge.ports)),
        ("interfaces", joined(&bridge.interfaces)),
        ("filter", if bridge.filter { "on".to_owned() } else { String::new() }),
    ])
}

fn behind(port: &api::Port) -> String {
    match (&port.vhost_user, &port.device, &port.netns) {
        (Some(path), ..) => path.display().to_string(),
        (_, Some(device), Some(netns)) => format!("{device} in {netns}"),
        (_, Some(device), None) => device.clone(),
        _ => String::new(),
    }
}

/// `port list`
pub(crate) fn ports(ports: &[api::Port]) -> String {
    table(
        &["NAME", "BRIDGE", "KIND", "STATE", "QUEUES", "MTU", "MAC", "BEHIND"],
        &[4, 5],
        ports.iter().map(|port| {
            vec![
                port.name.to_string(),
                port.bridge.to_string(),
                port.kind.as_str().to_owned(),
                port.state.as_str().to_owned(),
                port.queues.to_string(),
                port.mtu.to_string(),
                port.mac.map_or_else(|| "-".to_owned(), |mac| mac.to_string()),
                behind(port),
            ]
        }),
    )
}

fn guard(port: &api::Port) -> String {
    let state = match port.guard {
        Some(true) => "on",
        Some(false) => return "off".to_owned(),
        None if port.guarded => "by lease",
        None => "",
    };
    let allowed = joined(&port.allow_address);
    let leased = match port.guarded && !port.leased_address.is_empty() {
        true => format!("leased {}", joined(&port.leased_address)),
        false => String::new(),
    };
    [state, leased.as_str(), allowed.as_str()]
        .iter()
        .filter(|part| !part.is_empty())
        .copied()
        .collect::<Vec<_>>()
        .join(", ")
}

/// A rate limit: bits per second, and how many may come at once.
fn limit(rate: Option<u64>, burst: Option<u64>) -> String {
    match (rate, burst) {
        (Some(rate), Some(burst)) => format!("{rate} bit/s, {burst} bit at once"),
        _ => String::new(),
    }
}

/// `port show`
pub(crate) fn port(port: &api::Port) -> String {
    let state = match &port.reason {
        Some(reason) => format!("{}: {reason}", port.state.as_str()),
        None => port.state.as_str().to_owned(),
    };
    let role = port.role.map(|role| format!(", {}", role.as_str())).unwrap_or_default();
    let persist = if port.persist { ", persistent" } else { "" };
    let direction = |counters: &api::Counters| {
        let mut text = format!("{} packets, {} bytes", counters.packets, counters.bytes);
        let dropped: u64 = counters.drops.values().sum();
        if dropped > 0 {
            let reasons: Vec<_> = counters.drops.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
            let _ = write!(text, ", {dropped} dropped ({})", reasons.join(", "));
        }
        text
    };
    properties(&[
        ("name", port.name.to_string()),
        ("bridge", port.bridge.to_string()),
        ("kind", format!("{}{role}{persist}", port.kind.as_str())),
        ("behind", behind(port)),
        ("state", state),
        ("mac", port.mac.map(|mac| mac.to_string()).unwrap_or_default()),
        ("mtu", port.mtu.to_string()),
        ("queues", port.queues.to_string()),
        ("pins", joined(port.pins.iter().map(|pin| format!("{}={}", pin.queue, pin.core)))),
        ("guard", guard(port)),
        ("ingress", limit(port.ingress_rate, port.ingress_burst)),
        ("egress", limit(port.egress_rate, port.egress_burst)),
        ("features", joined(&port.features)),
        ("rx", direction(&port.rx)),
        ("tx", direction(&port.tx)),
    ])
}

/// `fdb list`: a million rows may come, and all widths are known.
pub(crate) fn fdb(entries: &[api::FdbEntry]) -> String {
    let mut text = String::from("BRIDGE           MAC                VLAN  PORT             AGE\n");
    for entry in entries {
        let api::FdbEntry { bridge, mac, vlan, port, .. } = entry;
        let vlan = if *vlan == 0 { "-".to_owned() } else { vlan.to_string() };
        let age = if entry.fixed { "static".to_owned() } else { format!("{} s", entry.age_seconds) };
        let _ = writeln!(text, "{bridge:<15}  {mac}  {vlan:>4}  {port:<15}  {age}");
    }
    text
}

/// `fdb flush`
pub(crate) fn flushed(flushed: &api::Flushed) -> String {
    format!("{} entries removed\n", flushed.removed)
}

/// `stats`
pub(crate) fn stats(ports: &[api::PortStats]) -> String {
    let row = |port: &api::PortStats, direction: &str, counters: &api::Counters| {
        let dropped: u64 = counters.drops.values().sum();
        let numbers = [counters.packets, counters.bytes, counters.errors, dropped];
        [port.port.to_string(), direction.to_owned()]
            .into_iter()
            .chain(numbers.map(|n| n.to_string()))
            .collect()
    };
    table(
        &["PORT", "DIRECTION", "PACKETS", "BYTES", "ERRORS", "DROPS"],
        &[2, 3, 4, 5],
        ports.iter().flat_map(|port| [row(port, "rx", &port.rx), row(port, "tx", &port.tx)]),
    )
}

/// `stats --drops`
pub(crate) fn drops(ports: &[api::PortStats]) -> String {
    let rows = |port: &api::PortStats, direction: &str, counters: &api::Counters| {
        let (port, direction) = (port.port.to_string(), direction.to_owned());
        let row = |(reason, n): (&String, &u64)| {
            vec![port.clone(), direction.clone(), reason.clone(), n.to_string()]
        };
        counters.drops.iter().map(row).collect::<Vec<_>>()
    };
    table(
        &["PORT", "DIRECTION", "REASON", "DROPS"],
        &[3],
        ports.iter().flat_map(|port| [rows(port, "rx", &port.rx), rows(port, "tx", &port.tx)].concat()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_no_borders_and_no_trailing_blanks() {
        let rows = [["a", "1"], ["bcd", "200"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&["NAME", "N"], &[1], rows.into_iter()), "NAME    N\na       1\nbcd   200\n");
        assert_eq!(table(&["NAME", "N"], &[1], std::iter::empty()), "NAME  N\n");
    }

    #[test]
    fn properties_without_value_are_left_out() {
        let list = [("a", "1".to_owned()), ("none", String::new()), ("bc", "2".to_owned())];
        assert_eq!(properties(&list), "a     1\nbc    2\n");
    }

    #[test]
    fn durations() {
        let said: Vec<_> = [5, 65, 3600, 90_000].into_iter().map(duration).collect();
        assert_eq!(said, ["5 s", "1 min 5 s", "1 h 0 min", "1 d 1 h"]);
    }
}

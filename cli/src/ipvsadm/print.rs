//! Listings, rules and connections as ipvsadm prints them.

use std::io::{self, Write};
use std::net::IpAddr;

use shunt_switch::control::api::{IpvsConnection, IpvsDaemon, IpvsServerEntry, IpvsStats, IpvsTimeouts};
use shunt_switch::ipvs::spec::Protocol;

use super::command::Format;
use super::names::Names;
use super::table::{Listed, Server};

/// What stands above all listings of the whole table.
pub(super) const HEAD: &str = "IP Virtual Server version 1.2.1 (size=4096)\n";
/// The answer to `--version`.
pub(super) const VERSION: &str = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)\n";
/// Longest address with port that is printed.
const NAME: usize = 59;
/// Columns of a service and of a server of IPv4 in listings.
const SERVICE: usize = 33;
const SERVER: usize = 28;

fn cut(text: &mut String, length: usize) {
    if let Some((at, _)) = text.char_indices().nth(length) {
        text.truncate(at);
    }
}

/// `address:port`, in numbers or names.
fn place(address: IpAddr, port: u16, protocol: Option<Protocol>, numeric: bool, names: &mut Names) -> String {
    let (host, port) = match (numeric, protocol) {
        (true, _) => (address.to_string(), port.to_string()),
        (false, None) => (names.host_name(address), port.to_string()),
        (false, Some(protocol)) => (names.host_name(address), names.port_name(port, protocol)),
    };
    let mut text = if address.is_ipv4() { format!("{host}:{port}") } else { format!("[{host}]:{port}") };
    cut(&mut text, NAME);
    text
}

/// The column titles.
pub(super) fn title(out: &mut dyn Write, format: Format) -> io::Result<()> {
    const SECOND: &str = "  -> RemoteAddress:Port";
    let first = "Prot LocalAddress:Port";
    if format.stats {
        writeln!(
            out,
            "{first:<33} {:>8} {:>8} {:>8} {:>8} {:>8}",
            "Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"
        )?;
        writeln!(out, "{SECOND}")
    } else if format.rate {
        writeln!(
            out,
            "{first:<33} {:>8} {:>8} {:>8} {:>8} {:>8}",
            "CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"
        )?;
        writeln!(out, "{SECOND}")
    } else if format.thresholds {
        let [a, b, c, d] = ["Uthreshold", "Lthreshold", "ActiveConn", "InActConn"];
        writeln!(out, "{first:<33} {a:<10} {b:<10} {c:<10} {d:<10}\n{SECOND}")
    } else if format.templates {
        let [a, b, c, d] = ["Weight", "PersistConn", "ActiveConn", "InActConn"];
        writeln!(out, "{first:<33} {a:<9} {b:<11} {c:<10} {d:<10}\n{SECOND}")
    } else if format.tunnels {
        writeln!(out, "{first} Scheduler Flags")?;
        writeln!(out, "{SECOND:<33} Forward TunnelInfo    Weight ActiveConn InActConn")
    } else {
        writeln!(out, "{first} Scheduler Flags")?;
        writeln!(out, "{SECOND:<33} Forward Weight ActiveConn InActConn")
    }
}

/// A counter in nine columns: shortened where it would not fit, or longer where it is to be exact.
fn large(number: u64, exact: bool) -> String {
    if exact {
        return format!(" {number:>8}");
    }
    match number {
        ..100_000_000 => format!("{number:>9}"),
        100_000_000..1_000_000_000 => format!("{:>8}K", number / 1000),
        1_000_000_000..100_000_000_000 => format!("{:>8}M", number / 1_000_000),
        100_000_000_000..100_000_000_000_000 => format!("{:>8}G", number / 1_000_000_000),
        _ => format!("{:>8}T", number / 1_000_000_000_000),
    }
}

fn counters(stats: &IpvsStats) -> [u64; 5] {
    [stats.connections, stats.in_packets, stats.out_packets, stats.in_bytes, stats.out_bytes]
}

fn flags(listed: &Listed) -> String {
    // Of hashing schedulers only what has a name is shown.
    let named = matches!(listed.entry.scheduler.as_str(), "sh" | "mh");
    let shown = listed.entry.flags.iter().map(String::as_str).filter(|flag| !named || *flag != "flag-3");
    shown.collect::<Vec<_>>().join(",")
}

/// A service's name in rules.
fn service_option(listed: &Listed, numeric: bool, names: &mut Names) -> String {
    let option = match listed.protocol {
        None => {
            let v6 = if listed.address.is_ipv6() { " -6" } else { "" };
            return format!("-f {}{v6}", listed.mark.cast_signed());
        }
        Some(Protocol::Tcp) => "-t",
        Some(Protocol::Udp) => "-u",
        Some(Protocol::Sctp) => "--sctp-service",
    };
    format!("{option} {}", place(listed.address, listed.port, listed.protocol, numeric, names))
}

fn tunnel_rule(entry: &IpvsServerEntry) -> String {
    let sum = match entry.tunnel_checksum.as_deref() {
        Some("full") => "--tun-csum",
        Some("remote") => "--tun-remcsum",
        _ => "--tun-nocsum",
    };
    match (entry.tunnel.as_deref(), entry.tunnel_port) {
        (Some("gue"), Some(port)) => format!(" --tun-type gue --tun-port {port} {sum}"),
        (Some("gre"), _) => format!(" --tun-type gre {sum}"),
        (kind, _) => format!(" --tun-type {}", kind.unwrap_or("ipip")),
    }
}

/// A service and its servers as commands that would make them.
pub(super) fn rules(
    out: &mut dyn Write,
    listed: &Listed,
    numeric: bool,
    names: &mut Names,
) -> io::Result<()> {
    let service = service_option(listed, numeric, names);
    let entry = &listed.entry;
    write!(out, "-A {service} -s {}", entry.scheduler)?;
    if let Some(seconds) = entry.persistent {
        write!(out, " -p {seconds}")?;
        if let Some(mask) = &entry.netmask {
            write!(out, " -M {mask}")?;
        }
    }
    if let Some(engine) = &entry.pe {
        write!(out, " --pe {engine}")?;
    }
    if entry.one_packet {
        write!(out, " -o")?;
    }
    if !entry.flags.is_empty() {
        write!(out, " -b {}", flags(listed))?;
    }
    writeln!(out)?;
    for server in &listed.servers {
        let name = place(server.address, server.port, listed.protocol, numeric, names);
        let entry = &server.entry;
        let (way, more) = match entry.forward.as_str() {
            "masquerade" => ("-m".to_owned(), String::new()),
            "tunnel" => ("-i".to_owned(), tunnel_rule(entry)),
            "full-nat" => {
                (format!("--full-nat {}", entry.pool.as_deref().unwrap_or_default()), String::new())
            }
            _ => ("-g".to_owned(), String::new()),
        };
        writeln!(out, "-a {service} -r {name} {way} -w {}{more}", entry.weight)?;
    }
    Ok(())
}

fn forward(entry: &IpvsServerEntry) -> &'static str {
    match entry.forward.as_str() {
        "masquerade" => "Masq",
        "tunnel" => "Tunnel",
        "full-nat" => "FullNat",
        _ => "Route",
    }
}

fn tunnel(entry: &IpvsServerEntry) -> String {
    let sum = match entry.tunnel_checksum.as_deref() {
        Some("full") => "+c",
        Some("remote") => "r+c",
        _ => "-c",
    };
    match (entry.tunnel.as_deref(), entry.tunnel_port) {
        (Some("gue"), Some(port)) => format!("gue:{port}:{sum}"),
        (Some("gre"), _) => format!("gre:{sum}"),
        (Some(kind), _) => kind.to_owned(),
        (None, _) => "n/a".to_owned(),
    }
}

/// A service and its servers.
pub(super) fn service(
    out: &mut dyn Write,
    listed: &Listed,
    format: Format,
    names: &mut Names,
) -> io::Result<()> {
    let mut name = match listed.protocol {
        None => {
            let v6 = if listed.address.is_ipv6() { " IPv6" } else { "" };
            format!("FWM  {}{v6}", listed.mark.cast_signed())
        }
        Some(protocol) => {
            let kind = match protocol {
                Protocol::Tcp => "TCP",
                Protocol::Udp => "UDP",
                Protocol::Sctp => "SCTP",
            };
            let place = place(listed.address, listed.port, listed.protocol, format.numeric, names);
            format!("{kind:<4} {place}")
        }
    };
    if listed.protocol.is_some() && listed.address.is_ipv4() {
        cut(&mut name, SERVICE);
    }
    let entry = &listed.entry;
    if format.stats || format.rate {
        write!(out, "{name:<33}")?;
        for counter in counters(&entry.stats) {
            write!(out, "{}", large(counter, format.exact))?;
        }
    } else {
        write!(out, "{name} {}", entry.scheduler)?;
        if !entry.flags.is_empty() {
            write!(out, " ({})", flags(listed))?;
        }
        if let Some(seconds) = entry.persistent {
            write!(out, " persistent {seconds}")?;
            if let Some(mask) = &entry.netmask {
                write!(out, " mask {mask}")?;
            }
            if let Some(engine) = &entry.pe {
                write!(out, " pe {engine}")?;
            }
        }
        if entry.one_packet {
            write!(out, " ops")?;
        }
    }
    writeln!(out)?;
    listed.servers.iter().try_for_each(|one| server(out, listed, one, format, names))
}

fn server(
    out: &mut dyn Write,
    listed: &Listed,
    server: &Server,
    format: Format,
    names: &mut Names,
) -> io::Result<()> {
    let entry = &server.entry;
    let mut name = place(server.address, server.port, listed.protocol, format.numeric, names);
    if listed.address.is_ipv4() {
        cut(&mut name, SERVER);
    }
    let IpvsServerEntry { weight, upper, lower, active, inactive, templates, .. } = entry;
    if format.stats {
        write!(out, "  -> {name:<28}")?;
        for counter in counters(&entry.stats) {
            write!(out, "{}", large(counter, format.exact))?;
        }
        writeln!(out)
    } else if format.rate {
        let [connections, packets_in, packets_out, bytes_in, bytes_out] = counters(&entry.stats);
        write!(out, "  -> {name:<28} {connections:>8} {packets_in:>8} {packets_out:>8}")?;
        writeln!(out, "{}{}", large(bytes_in, format.exact), large(bytes_out, format.exact))
    } else if format.thresholds {
        writeln!(out, "  -> {name:<28} {upper:<10} {lower:<10} {active:<10} {inactive:<10}")
    } else if format.templates {
        writeln!(out, "  -> {name:<28} {weight:<9} {templates:<11} {active:<10} {inactive:<10}")
    } else if format.tunnels {
        let (way, tunnel) = (forward(entry), tunnel(entry));
        writeln!(out, "  -> {name:<28} {way:<7} {tunnel:<13} {weight:<6} {active:<10} {inactive:<10}")
    } else {
        let way = forward(entry);
        writeln!(out, "  -> {name:<28} {way:<7} {weight:<6} {active:<10} {inactive:<10}")
    }
}

/// The three timeouts.
pub(super) fn timeouts(out: &mut dyn Write, timeouts: &IpvsTimeouts) -> io::Result<()> {
    let IpvsTimeouts { tcp, tcp_fin, udp } = timeouts;
    writeln!(out, "Timeout (tcp tcpfin udp): {tcp} {tcp_fin} {udp}")
}

/// A sync daemon.
pub(super) fn daemon(out: &mut dyn Write, daemon: &IpvsDaemon) -> io::Result<()> {
    let IpvsDaemon { role, interface, sync_id, max_length, group, port, ttl, .. } = daemon;
    write!(out, "{role} sync daemon (mcast={interface}, syncid={sync_id}")?;
    writeln!(out, ", maxlen={max_length}, group={group}, port={port}, ttl={ttl})")
}

/// What stands above connections.
pub(super) fn connection_title(out: &mut dyn Write, format: Format) -> io::Result<()> {
    writeln!(out, "IPVS connection entries")?;
    let [state, source, called, server] = ["state", "source", "virtual", "destination"];
    write!(out, "pro expire {state:<11} {source:<18} {called:<18} ")?;
    match format.templates {
        true => writeln!(out, "{server:<18} {:<16} pe_data", "pe name"),
        false => writeln!(out, "{server}"),
    }
}

/// A connection.
pub(super) fn connection(
    out: &mut dyn Write,
    entry: &IpvsConnection,
    format: Format,
    names: &mut Names,
) -> io::Result<()> {
    let (name, protocol) = match entry.protocol {
        0 => ("IP".to_owned(), None),
        6 => ("TCP".to_owned(), Some(Protocol::Tcp)),
        17 => ("UDP".to_owned(), Some(Protocol::Udp)),
        132 => ("SCTP".to_owned(), Some(Protocol::Sctp)),
        other => (format!("IP_{other}"), None),
    };
    let mut at =
        |socket: std::net::SocketAddr| place(socket.ip(), socket.port(), protocol, format.numeric, names);
    let (client, called, server) = (at(entry.client), at(entry.called), at(entry.server));
    let expires = format!("{:02}:{:02}", entry.expires / 60, entry.expires % 60);
    writeln!(out, "{name:<3} {expires:<6} {:<11} {client:<18} {called:<18} {server}", entry.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_counters_are_shortened_or_exact() {
        for (number, short, exact) in [
            (0, "        0", "        0"),
            (99_999_999, " 99999999", " 99999999"),
            (100_000_000, "  100000K", " 100000000"),
            (999_999_999, "  999999K", " 999999999"),
            (1_000_000_000, "    1000M", " 1000000000"),
            (99_999_999_999, "   99999M", " 99999999999"),
            (100_000_000_000, "     100G", " 100000000000"),
            (100_000_000_000_000, "     100T", " 100000000000000"),
            (u64::MAX, "18446744T", " 18446744073709551615"),
        ] {
            assert_eq!((large(number, false).as_str(), large(number, true).as_str()), (short, exact));
        }
    }

    #[test]
    fn connections_are_printed_as_linux_prints_them() {
        let entry = IpvsConnection {
            protocol: 6,
            client: "10.0.1.2:40000".parse().unwrap(),
            called: "10.9.9.9:80".parse().unwrap(),
            server: "[2001:db8::1]:8080".parse().unwrap(),
            state: "ESTABLISHED".into(),
            expires: 899,
            template: false,
            packets: [1; 2],
            bytes: [1; 2],
        };
        let mut out = Vec::new();
        let format = Format { numeric: true, ..Format::default() };
        connection(&mut out, &entry, format, &mut Names::system()).unwrap();
        let line = "TCP 14:59  ESTABLISHED 10.0.1.2:40000     10.9.9.9:80        [2001:db8::1]:8080\n";
        assert_eq!(String::from_utf8(out).unwrap(), line);
    }
}

//! Lists of routes as `ip route` prints them, for `route load`.

use shunt_switch::control::api::RouteAdd;

/// A route and the line that it stands on, counted from 1.
pub(crate) struct Line {
    pub(crate) number: usize,
    pub(crate) route: RouteAdd,
}

/// Words of `ip route` that have a value and say nothing here.
const VALUED: &[&str] = &[
    "proto", "scope", "src", "table", "pref", "mtu", "advmss", "weight", "expires", "error", "hoplimit",
    "realm", "initcwnd", "initrwnd", "rtt", "window", "cwnd", "nhid", "tos", "dsfield", "users", "age",
];
/// Words without a value that say nothing here.
const PLAIN: &[&str] =
    &["linkdown", "dead", "pervasive", "offload", "trap", "rt_offload", "rt_trap", "cache", "notify"];
/// Kinds of routes that the kernel makes for itself.
const OWN: &[&str] = &["local", "broadcast", "multicast", "anycast"];

/// Reads a list. Its values are for the daemon to judge.
///
/// # Errors
/// The number of a line that is no route, and why.
pub(crate) fn parse(text: &str) -> Result<Vec<Line>, (usize, String)> {
    let mut lines: Vec<Line> = Vec::new();
    // A route whose ways follow, a line each.
    let mut open: Option<Line> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let mut words = line.split_ascii_whitespace().peekable();
        match words.peek() {
            None => continue,
            Some(word) if word.starts_with('#') || OWN.contains(word) => continue,
            Some(&"nexthop") => {
                words.next();
                let Some(destination) = &open else {
                    return Err((number, "nexthop follows no route".into()));
                };
                let route = read(words, destination.route.clone()).map_err(|why| (number, why))?;
                lines.extend(route.map(|route| Line { number, route }));
                continue;
            }
            Some(_) => (),
        }
        leads_somewhere(open.take(), &lines)?;
        let mut route = RouteAdd::default();
        if let Some(kind) =
            words.next_if(|word| ["unicast", "blackhole", "unreachable", "prohibit"].contains(word))
        {
            route.kind = Some(kind.to_owned()).filter(|kind| kind != "unicast");
        }
        let prefix = words.next().ok_or_else(|| (number, "the destination is missing".to_owned()))?;
        route.prefix = prefix.to_owned();
        let Some(route) = read(words, route).map_err(|why| (number, why))? else { continue };
        let line = Line { number, route };
        if line.route.kind.is_none() && line.route.via.is_none() && line.route.dev.is_none() {
            open = Some(line);
        } else {
            lines.push(line);
        }
    }
    leads_somewhere(open, &lines)?;
    Ok(lines)
}

/// Refuses a route of which neither its own line nor a later one said where it leads.
fn leads_somewhere(open: Option<Line>, lines: &[Line]) -> Result<(), (usize, String)> {
    match open {
        Some(open) if lines.last().is_none_or(|last| last.number <= open.number) => {
            Err((open.number, format!("route {} leads nowhere: via and dev are missing", open.route.prefix)))
        }
        _ => Ok(()),
    }
}

/// Reads the words behind a destination; `None` for a route that the kernel made for itself.
fn read<'a>(
    mut words: impl Iterator<Item = &'a str>,
    mut route: RouteAdd,
) -> Result<Option<RouteAdd>, String> {
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} lacks its value"));
        match word {
            "via" => {
                let address = value()?;
                // `via inet6 fe80::1` is how a gateway of the other family is printed.
                route.via =
                    Some(if matches!(address, "inet" | "inet6") { value()? } else { address }.to_owned());
            }
            "dev" => route.dev = Some(value()?.to_owned()),
            "metric" => {
                let number = value()?;
                route.metric = Some(number.parse().map_err(|_| format!("metric {number:?} is no number"))?);
            }
            "onlink" => route.onlink = true,
            "proto" if value()? == "kernel" => return Ok(None),
            "proto" => (),
            word if VALUED.contains(&word) => {
                value()?;
            }
            word if PLAIN.contains(&word) => (),
            word => return Err(format!("{word:?} is no word of a route: via, dev, metric and onlink are")),
        }
    }
    Ok(Some(route))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_back(text: &str) -> Vec<String> {
        let show = |line: Line| {
            let RouteAdd { prefix, via, dev, metric, kind, onlink } = line.route;
            let via = via.map(|via| format!(" via {via}")).unwrap_or_default();
            let dev = dev.map(|dev| format!(" dev {dev}")).unwrap_or_default();
            let metric = metric.map(|metric| format!(" metric {metric}")).unwrap_or_default();
            let kind = kind.map(|kind| format!("{kind} ")).unwrap_or_default();
            let onlink = if onlink { " onlink" } else { "" };
            format!("{}: {kind}{prefix}{via}{dev}{metric}{onlink}", line.number)
        };
        parse(text).unwrap_or_else(|(line, why)| panic!("{line}: {why}")).into_iter().map(show).collect()
    }

    #[test]
    fn what_ip_route_prints_is_understood() {
        let text = "default via 10.0.0.1 dev gw proto static metric 100 \n\
            10.0.0.0/24 dev gw proto kernel scope link src 10.0.0.5 \n\
            \n# a remark\n\
            blackhole 10.9.0.0/16 metric 5\n\
            unreachable fd00::/8 dev lo metric 1024 error -113 pref medium\n\
            local 10.0.0.5 dev gw table local\n\
            192.0.2.1 via 198.51.100.1 dev gw onlink linkdown\n\
            unicast fd01::/64 via fe80::1 dev gw metric 1024 pref medium\n";
        assert_eq!(
            read_back(text),
            [
                "1: default via 10.0.0.1 dev gw metric 100",
                "5: blackhole 10.9.0.0/16 metric 5",
                "6: unreachable fd00::/8 dev lo metric 1024",
                "8: 192.0.2.1 via 198.51.100.1 dev gw onlink",
                "9: fd01::/64 via fe80::1 dev gw metric 1024",
            ]
        );
    }

    #[test]
    fn several_ways_stand_on_lines_of_their_own() {
        let text = "default proto static metric 5 \n\
            \tnexthop via 10.0.0.1 dev gw weight 1 \n\
            \tnexthop via 10.0.1.1 dev wan weight 1 \n\
            10.1.0.0/16 dev gw\n";
        assert_eq!(
            read_back(text),
            [
                "2: default via 10.0.0.1 dev gw metric 5",
                "3: default via 10.0.1.1 dev wan metric 5",
                "4: 10.1.0.0/16 dev gw"
            ]
        );
    }

    #[test]
    fn what_is_no_route_is_named_with_its_line() {
        for (text, line, why) in [
            ("10.0.0.0/8 via", 1, "via lacks its value"),
            ("\n10.0.0.0/8 gateway 10.0.0.1", 2, "\"gateway\" is no word of a route"),
            ("10.0.0.0/8 via 10.0.0.1 metric x", 1, "metric \"x\" is no number"),
            ("10.0.0.0/8\n10.1.0.0/16 dev gw", 1, "leads nowhere"),
            ("10.1.0.0/16 dev gw\n10.0.0.0/8", 2, "leads nowhere"),
            ("nexthop via 10.0.0.1", 1, "follows no route"),
            ("blackhole", 1, "destination is missing"),
        ] {
            let (at, message) = parse(text).err().unwrap();
            assert!(at == line && message.contains(why), "{text}: {at}: {message}");
        }
    }
}

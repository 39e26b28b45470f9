//! The commands of layer 3: interfaces, routes, neighbours, DHCP.

use std::io::Read;
use std::path::Path;

use shunt_switch::control::api;

use crate::arguments::{Dhcp, Interface, Neighbour, Route, RouteAdd};
use crate::client::Failure;
use crate::{Asker, routes, show, silent};

/// Routes that are sent in one request: some 2 MiB.
const PART: usize = 20_000;
/// Longest list of routes, in bytes.
const LIST_MAX: u64 = 1 << 30;

impl Asker {
    pub(crate) fn interface(&mut self, command: &Interface) -> Result<String, Failure> {
        match command.clone() {
            Interface::Add { name, bridge, address, vlan, mac, mtu, clamp_mss } => self.ask(
                &api::InterfaceAdd { name, bridge, address, vlan, mac, mtu, clamp_mss, up: None },
                silent,
            ),
            Interface::Del { name } => self.ask(&api::InterfaceDel { name }, silent),
            Interface::List => self.ask(&api::InterfaceList {}, |list| show::interfaces(list)),
            Interface::Show { name } => self.ask(&api::InterfaceShow { name }, show::interface),
            Interface::Set { name, add_address, del_address, mac, mtu, up, down, clamp_mss } => {
                let up = if up || down { Some(up) } else { None };
                self.ask(
                    &api::InterfaceSet { name, add_address, del_address, mac, mtu, up, clamp_mss },
                    silent,
                )
            }
        }
    }

    pub(crate) fn route(&mut self, command: &Route) -> Result<String, Failure> {
        match command.clone() {
            Route::Add(route) => self.ask(&asked(route), silent),
            Route::Del { prefix, via, dev, metric } => {
                self.ask(&api::RouteDel { prefix, via, dev, metric }, silent)
            }
            Route::List => {
                let mut entries = Vec::new();
                let mut next = None;
                loop {
                    let page = self.client.ask(&api::RouteList { next })?;
                    entries.extend(page.entries);
                    next = page.next;
                    if next.is_none() {
                        return self.render(&entries, |entries| show::routes(entries));
                    }
                }
            }
            Route::Get { address } => self.ask(&api::RouteGet { address }, show::route_choice),
            Route::Load { file, replace } => self.load_routes(&file, replace),
            Route::Flush { dev } => self.ask(&api::RouteFlush { dev }, show::flushed),
        }
    }

    fn load_routes(&mut self, file: &Path, replace: bool) -> Result<String, Failure> {
        let name = if file == Path::new("-") { "standard input".into() } else { file.display().to_string() };
        let text = read(file).map_err(|why| Failure::Refused(format!("{name}: {why}"), None))?;
        let lines = routes::parse(&text).map_err(|(line, why)| {
            Failure::Refused(format!("{name}:{line}: {why}; nothing was changed"), None)
        })?;
        drop(text);
        let (mut numbers, mut parts) = (Vec::with_capacity(lines.len()), vec![Vec::new()]);
        for line in lines {
            numbers.push(line.number);
            if parts.last().is_none_or(|part| part.len() == PART) {
                parts.push(Vec::with_capacity(PART));
            }
            if let Some(part) = parts.last_mut() {
                part.push(line.route);
            }
        }
        let last = parts.len() - 1;
        let mut loaded = None;
        for (n, routes) in parts.into_iter().enumerate() {
            let request = api::RouteLoad { routes, more: n < last, replace: replace && n == last };
            let answer = self.client.ask(&request).map_err(|failure| match failure {
                // The daemon counts routes, people count lines.
                Failure::Refused(message, Some(index)) => {
                    let line = numbers.get(index as usize).copied().unwrap_or_default();
                    let message = message
                        .split_once(": ")
                        .and_then(|(_, rest)| rest.split_once(": "))
                        .map_or(message.as_str(), |(_, rest)| rest);
                    Failure::Refused(format!("{name}:{line}: {message}; nothing was changed"), None)
                }
                other => other,
            })?;
            loaded = Some(answer);
        }
        match loaded {
            Some(loaded) => self.render(&loaded, show::loaded),
            None => Ok(String::new()),
        }
    }

    pub(crate) fn neighbour(&mut self, command: &Neighbour) -> Result<String, Failure> {
        match command.clone() {
            Neighbour::List { interface } => {
                let mut entries = Vec::new();
                let mut next = None;
                loop {
                    let page = self.client.ask(&api::NeighbourList { interface: interface.clone(), next })?;
                    entries.extend(page.entries);
                    next = page.next;
                    if next.is_none() {
                        return self.render(&entries, |entries| show::neighbours(entries));
                    }
                }
            }
            Neighbour::Add { interface, address, mac } => {
                self.ask(&api::NeighbourAdd { interface, address, mac }, silent)
            }
            Neighbour::Del { interface, address } => {
                self.ask(&api::NeighbourDel { interface, address }, silent)
            }
            Neighbour::Flush { interface } => self.ask(&api::NeighbourFlush { interface }, show::flushed),
        }
    }

    pub(crate) fn dhcp(&mut self, command: &Dhcp) -> Result<String, Failure> {
        match command.clone() {
            Dhcp::Show { interface } => self.ask(&api::DhcpShow { interface }, show::dhcp),
            Dhcp::Set {
                interface,
                range,
                lease,
                router,
                dns,
                add_dns,
                del_dns,
                domain,
                mtu,
                route,
                ra,
                per_port,
            } => {
                let (dns, route) = (list(dns), list(route));
                let request = api::DhcpSet {
                    interface,
                    range,
                    lease,
                    router,
                    dns,
                    add_dns,
                    del_dns,
                    domain,
                    mtu,
                    route,
                    ra,
                    per_port,
                    ..api::DhcpSet::default()
                };
                self.ask(&request, silent)
            }
            Dhcp::Del { interface } => self.ask(&api::DhcpDel { interface }, silent),
            Dhcp::Reserve { interface, mac, address, hostname } => {
                self.ask(&api::DhcpReserve { interface, mac, address, hostname }, silent)
            }
            Dhcp::Unreserve { interface, mac } => self.ask(&api::DhcpUnreserve { interface, mac }, silent),
            Dhcp::Leases { interface } => {
                self.ask(&api::DhcpLeases { interface }, |leases| show::leases(leases))
            }
            Dhcp::Release { interface, address } => {
                self.ask(&api::DhcpRelease { interface, address }, show::flushed)
            }
        }
    }
}

/// What is not given stays; `none` alone empties the list.
fn list(given: Vec<String>) -> Option<Vec<String>> {
    match &given[..] {
        [] => None,
        [one] if one == "none" => Some(Vec::new()),
        _ => Some(given),
    }
}

fn asked(route: RouteAdd) -> api::RouteAdd {
    let kind = match (route.blackhole, route.unreachable, route.prohibit) {
        (true, ..) => Some("blackhole"),
        (_, true, _) => Some("unreachable"),
        (.., true) => Some("prohibit"),
        _ => None,
    };
    let RouteAdd { prefix, via, dev, metric, onlink, .. } = route;
    api::RouteAdd { prefix, via, dev, metric, kind: kind.map(str::to_owned), onlink }
}

fn read(file: &Path) -> Result<String, String> {
    let from: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::fs::File::open(file).map_err(|error| error.to_string())?)
    };
    let mut text = String::new();
    from.take(LIST_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > LIST_MAX {
        return Err(format!("longer than {LIST_MAX} bytes, which no list may be"));
    }
    Ok(text)
}

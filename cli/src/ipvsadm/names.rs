//! Names of ports and hosts: /etc/services and the system's resolver, each asked at most once for a name.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};

use shunt_switch::resolver;

use shunt_switch::ipvs::spec::Protocol;

const SERVICES: &str = "/etc/services";

/// Who is asked about hosts.
pub(crate) trait Hosts {
    /// The first IPv4 address of a host.
    fn address(&self, name: &str) -> Option<Ipv4Addr>;
    /// The name of an address.
    fn name(&self, address: IpAddr) -> Option<String>;
}

/// The system's resolver.
pub(crate) struct System;

impl Hosts for System {
    fn address(&self, name: &str) -> Option<Ipv4Addr> {
        // Neither a wrong IPv4 address nor an IPv6 one is the name of a host.
        if name.is_empty() || name.contains(':') || name.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return None;
        }
        (name, 0).to_socket_addrs().ok()?.find_map(|socket| match socket.ip() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
    }

    fn name(&self, address: IpAddr) -> Option<String> {
        resolver::name_of(address)
    }
}

#[derive(Default)]
struct Services {
    ports: HashMap<(Protocol, String), u16>,
    names: HashMap<(Protocol, u16), String>,
}

impl Services {
    /// Reads services(5). The first line that fits counts.
    fn read(text: &str) -> Self {
        let mut services = Self::default();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            let (Some(name), Some(number)) = (words.next(), words.next()) else { continue };
            let Some((port, protocol)) = number.split_once('/') else { continue };
            let protocol = match protocol {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                _ => continue,
            };
            let Ok(port) = port.parse::<u16>() else { continue };
            services.names.entry((protocol, port)).or_insert_with(|| name.to_owned());
            for name in std::iter::once(name).chain(words) {
                services.ports.entry((protocol, name.to_owned())).or_insert(port);
            }
        }
        services
    }
}

/// What is known of names.
pub(crate) struct Names {
    hosts: Box<dyn Hosts>,
    services: Option<Services>,
    addresses: HashMap<String, Option<Ipv4Addr>>,
    reverse: HashMap<IpAddr, Option<String>>,
}

impl Names {
    /// Those of this machine.
    pub(crate) fn system() -> Self {
        Self { hosts: Box::new(System), services: None, addresses: HashMap::new(), reverse: HashMap::new() }
    }

    #[cfg(test)]
    pub(crate) fn of(hosts: Box<dyn Hosts>, services: &str) -> Self {
        Self { hosts, services: Some(Services::read(services)), ..Self::system() }
    }

    fn services(&mut self) -> &Services {
        self.services.get_or_insert_with(|| {
            let text = std::fs::read(SERVICES).unwrap_or_default();
            Services::read(&String::from_utf8_lossy(&text))
        })
    }

    /// The port of a service. Those of SCTP have no names, as with ipvsadm.
    pub(crate) fn port(&mut self, name: &str, protocol: Protocol) -> Option<u16> {
        self.services().ports.get(&(protocol, name.to_owned())).copied()
    }

    /// A port by name, or as a number where it has none.
    pub(crate) fn port_name(&mut self, port: u16, protocol: Protocol) -> String {
        let name = self.services().names.get(&(protocol, port));
        name.map_or_else(|| port.to_string(), Clone::clone)
    }

    /// The IPv4 address of a host.
    pub(crate) fn address(&mut self, name: &str) -> Option<Ipv4Addr> {
        if let Some(known) = self.addresses.get(name) {
            return *known;
        }
        let address = self.hosts.address(name);
        self.addresses.insert(name.to_owned(), address);
        address
    }

    /// A host by name, or as an address where it has none.
    pub(crate) fn host_name(&mut self, address: IpAddr) -> String {
        let hosts = &self.hosts;
        let name = self.reverse.entry(address).or_insert_with(|| hosts.name(address));
        name.clone().unwrap_or_else(|| address.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_fits_names_a_service() {
        let text = "# a remark\nhttp 80/tcp www # web\nwww2 80/tcp\nhttp\t3080/tcp\ndomain 53/udp\nbad 99999/tcp\nworse\n";
        let services = Services::read(text);
        let port = |name: &str, protocol| services.ports.get(&(protocol, name.to_owned())).copied();
        assert_eq!((port("http", Protocol::Tcp), port("www", Protocol::Tcp)), (Some(80), Some(80)));
        assert_eq!((port("http", Protocol::Udp), port("domain", Protocol::Udp)), (None, Some(53)));
        assert_eq!((port("www2", Protocol::Tcp), port("bad", Protocol::Tcp)), (Some(80), None));
        assert_eq!(services.names[&(Protocol::Tcp, 80)], "http");
    }
}

//! Virtual services and real servers: from requests and tables of the file to plain values, and back for listings.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Invalid, number};
use crate::control::api;
use crate::ipvs::account::Totals;
use crate::ipvs::draft::Change;
use crate::ipvs::scope::{DestinationListing, ServiceListing};
use crate::ipvs::settings::{Setting, Timeouts};
use crate::ipvs::spec::{
    DestinationSpec, Forward, Persistence, Protocol, Scheduler, SchedulerFlags, ServiceKey, ServiceSpec,
    Tunnel, TunnelChecksum,
};
use crate::ipvs::sync::{DaemonConfig, DaemonSpec, Role};

/// Longest persistence and timeout in seconds: 31 days.
const LONGEST: u32 = 31 * 86_400;
/// The field that names an unknown scheduler or persistence engine; clients tell this refusal by it.
pub const SCHEDULER: &str = "scheduler";
/// The field of an unknown persistence engine.
pub const ENGINE: &str = "pe";

/// Schedulers by name.
pub(crate) const SCHEDULERS: &[(&str, Scheduler)] = &[
    ("rr", Scheduler::Rr),
    ("wrr", Scheduler::Wrr),
    ("lc", Scheduler::Lc),
    ("wlc", Scheduler::Wlc),
    ("lblc", Scheduler::Lblc),
    ("lblcr", Scheduler::Lblcr),
    ("dh", Scheduler::Dh),
    ("sh", Scheduler::Sh),
    ("sed", Scheduler::Sed),
    ("nq", Scheduler::Nq),
    ("fo", Scheduler::Fo),
    ("ovf", Scheduler::Ovf),
    ("mh", Scheduler::Mh),
    ("twos", Scheduler::Twos),
];

fn scheduler_name(scheduler: Option<Scheduler>) -> &'static str {
    let found = SCHEDULERS.iter().find(|(_, known)| Some(*known) == scheduler);
    found.map_or("none", |(name, _)| name)
}

fn scheduler(text: Option<&str>) -> Result<Option<Scheduler>, Invalid> {
    let text = text.unwrap_or("wlc");
    if text == "none" {
        return Ok(None);
    }
    let found = SCHEDULERS.iter().find(|(name, _)| *name == text);
    found.map(|(_, scheduler)| Some(*scheduler)).ok_or_else(|| {
        let names: Vec<_> = SCHEDULERS.iter().map(|(name, _)| *name).collect();
        let names = names.join(", ");
        Invalid::new(SCHEDULER, format!("scheduler {text:?} is unknown: it must be one of {names}"))
    })
}

/// Checks the name of a service.
///
/// # Errors
/// It is none.
pub fn service_key(text: &str) -> Result<ServiceKey, Invalid> {
    let refuse = || {
        let rule = "it must be tcp:, udp: or sctp: with address and port such as tcp:10.0.0.1:80, or mark:5, mark6:5";
        Invalid::new("service", format!("service {text:?} is none: {rule}"))
    };
    let (kind, name) = text.split_once(':').ok_or_else(refuse)?;
    let protocol = match kind {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        "mark" | "mark6" => {
            let mark = name.parse().ok().filter(|mark| *mark != 0).ok_or_else(refuse)?;
            return Ok(ServiceKey::Mark { mark, v6: kind == "mark6" });
        }
        _ => return Err(refuse()),
    };
    let (address, port) = socket(name).ok_or_else(refuse)?;
    Ok(ServiceKey::Address { protocol, address, port })
}

/// The name of a service, as [`service_key`] reads it.
pub fn service_name(key: &ServiceKey) -> String {
    match *key {
        ServiceKey::Address { protocol, address, port } => {
            let protocol = match protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            format!("{protocol}:{}", SocketAddr::new(address, port))
        }
        ServiceKey::Mark { mark, v6: false } => format!("mark:{mark}"),
        ServiceKey::Mark { mark, v6: true } => format!("mark6:{mark}"),
    }
}

fn socket(text: &str) -> Option<(IpAddr, u16)> {
    let socket: SocketAddr = text.parse().ok()?;
    // An address with a scope is none that packets bear.
    let plain = !text.contains('%');
    plain.then(|| (socket.ip(), socket.port()))
}

fn server_socket(text: &str) -> Result<(IpAddr, u16), Invalid> {
    socket(text).ok_or_else(|| {
        let rule = "it must be address and port such as 10.1.0.1:80 or [2001:db8::1]:80";
        Invalid::new("address", format!("address {text:?} is none of a server: {rule}"))
    })
}

fn is_v6(key: &ServiceKey) -> bool {
    match key {
        ServiceKey::Address { address, .. } => address.is_ipv6(),
        ServiceKey::Mark { v6, .. } => *v6,
    }
}

const fn flag_names(scheduler: Option<Scheduler>) -> [&'static str; 3] {
    match scheduler {
        Some(Scheduler::Sh) => ["sh-fallback", "sh-port", "flag-3"],
        Some(Scheduler::Mh) => ["mh-fallback", "mh-port", "flag-3"],
        _ => ["flag-1", "flag-2", "flag-3"],
    }
}

fn flags(names: &[String], scheduler: Option<Scheduler>) -> Result<SchedulerFlags, Invalid> {
    let mut flags = 0;
    for name in names {
        let own = flag_names(scheduler);
        let bit = own
            .iter()
            .position(|own| own == name)
            .or_else(|| flag_names(None).iter().position(|plain| plain == name));
        let bit = bit.ok_or_else(|| {
            let (known, of) = (own.join(", "), scheduler_name(scheduler));
            Invalid::new("flags", format!("flags {name:?} is none of scheduler {of}: there are {known}"))
        })?;
        flags |= 1 << bit;
    }
    Ok(SchedulerFlags(flags))
}

fn mask(text: Option<&str>, v6: bool) -> Result<IpAddr, Invalid> {
    let Some(text) = text else {
        return Ok(if v6 { Ipv6Addr::from_bits(u128::MAX).into() } else { Ipv4Addr::BROADCAST.into() });
    };
    let mask = match v6 {
        false => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        true => {
            let bits = text.parse::<u32>().ok().filter(|bits| (1..=128).contains(bits));
            bits.map(|bits| Ipv6Addr::from_bits(u128::MAX << (128 - bits)).into())
        }
    };
    mask.ok_or_else(|| {
        let rule = if v6 { "it must be 1 to 128 bits" } else { "it must be a mask such as 255.255.255.0" };
        Invalid::new("netmask", format!("netmask {text:?} is none of the service's family: {rule}"))
    })
}

impl TryFrom<&api::IpvsService> for ServiceSpec {
    type Error = Invalid;

    fn try_from(asked: &api::IpvsService) -> Result<Self, Invalid> {
        let key = service_key(&asked.service)?;
        let scheduler = scheduler(asked.scheduler.as_deref())?;
        let sip = match asked.pe.as_deref() {
            None => false,
            Some("sip") => true,
            Some(other) => {
                return Err(Invalid::new(ENGINE, format!("pe {other:?} is unknown: it must be sip")));
            }
        };
        let mask = mask(asked.netmask.as_deref(), is_v6(&key))?;
        let seconds = asked.persistent.map(|value| number("persistent", value, 1, LONGEST)).transpose()?;
        let persistence = seconds.map(|timeout| Persistence { timeout, mask, sip });
        if let ServiceKey::Address { protocol, port, .. } = key {
            if port == 0 && persistence.is_none() {
                let rule = "a service of all ports must be persistent";
                return Err(Invalid::new("service", format!("service {:?}: {rule}", asked.service)));
            }
            if asked.one_packet && protocol != Protocol::Udp {
                let rule = "packets are scheduled alone with udp and marks only";
                return Err(Invalid::new("one_packet", format!("service {:?}: {rule}", asked.service)));
            }
        }
        let flags = flags(&asked.flags, scheduler)?;
        Ok(Self { key, scheduler, flags, persistence, one_packet: asked.one_packet })
    }
}

fn checksum(text: Option<&str>) -> Result<TunnelChecksum, Invalid> {
    match text {
        None | Some("none") => Ok(TunnelChecksum::None),
        Some("full") => Ok(TunnelChecksum::Full),
        Some("remote") => Ok(TunnelChecksum::Remote),
        Some(other) => {
            let rule = "it must be none, full or remote";
            Err(Invalid::new("tunnel_checksum", format!("tunnel_checksum {other:?} is unknown: {rule}")))
        }
    }
}

fn tunnel(asked: &api::IpvsServer) -> Result<Tunnel, Invalid> {
    let sum = checksum(asked.tunnel_checksum.as_deref())?;
    let port = asked.tunnel_port.map(|port| number("tunnel_port", port, 1, 65_535)).transpose()?;
    let no = |field, what: &str| Err(Invalid::new(field, format!("{field} is not for a tunnel of {what}")));
    match asked.tunnel.as_deref() {
        None | Some("ipip") if port.is_some() => no("tunnel_port", "ipip"),
        None | Some("ipip") if asked.tunnel_checksum.is_some() => no("tunnel_checksum", "ipip"),
        None | Some("ipip") => Ok(Tunnel::Ipip),
        Some("gue") => match port {
            Some(port) => Ok(Tunnel::Gue { port, checksum: sum }),
            None => Err(Invalid::new("tunnel_port", "tunnel_port is missing: gue needs one")),
        },
        Some("gre") if port.is_some() => no("tunnel_port", "gre"),
        Some("gre") if sum == TunnelChecksum::Remote => no("tunnel_checksum \"remote\"", "gre"),
        Some("gre") => Ok(Tunnel::Gre { checksum: sum }),
        Some(other) => {
            let rule = "it must be ipip, gue or gre";
            Err(Invalid::new("tunnel", format!("tunnel {other:?} is unknown: {rule}")))
        }
    }
}

fn pool(text: Option<&str>) -> Result<Forward, Invalid> {
    let text = text.unwrap_or_default();
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<IpAddr>(), last.parse::<IpAddr>()) {
        (Ok(first), Ok(last)) if first.is_ipv4() == last.is_ipv4() && first <= last => {
            Ok(Forward::FullNat { first, last })
        }
        _ => {
            let rule = "full-nat needs the addresses that clients get, such as 10.0.0.5-10.0.0.9";
            Err(Invalid::new("pool", format!("pool {text:?} is no range of addresses: {rule}")))
        }
    }
}

impl TryFrom<&api::IpvsServer> for DestinationSpec {
    type Error = Invalid;

    fn try_from(asked: &api::IpvsServer) -> Result<Self, Invalid> {
        let (address, port) = server_socket(&asked.address)?;
        let tunnelled =
            asked.tunnel.is_some() || asked.tunnel_port.is_some() || asked.tunnel_checksum.is_some();
        let forward = match asked.forward.as_deref() {
            Some("tunnel") => Forward::Tunnel(tunnel(asked)?),
            Some("masquerade" | "route" | "full-nat") | None if tunnelled => {
                return Err(Invalid::new(
                    "tunnel",
                    "tunnel and what belongs to it go with forward \"tunnel\" only",
                ));
            }
            Some("full-nat") => pool(asked.pool.as_deref())?,
            Some("masquerade" | "route") | None if asked.pool.is_some() => {
                return Err(Invalid::new("pool", "pool goes with forward \"full-nat\" only"));
            }
            Some("masquerade") => Forward::Masquerade,
            Some("route") | None => Forward::Route,
            Some(other) => {
                let rule = "it must be masquerade, route, tunnel or full-nat";
                return Err(Invalid::new("forward", format!("forward {other:?} is unknown: {rule}")));
            }
        };
        let most = i32::MAX as u32;
        let threshold = |field, value: Option<i64>| number(field, value.unwrap_or(0), 0, most);
        Ok(Self {
            address,
            port,
            forward,
            weight: number("weight", asked.weight.unwrap_or(1), 0, most)?,
            upper: threshold("upper", asked.upper)?,
            lower: threshold("lower", asked.lower)?,
        })
    }
}

impl TryFrom<&api::IpvsTimeouts> for Timeouts {
    type Error = Invalid;

    fn try_from(asked: &api::IpvsTimeouts) -> Result<Self, Invalid> {
        Ok(Self {
            tcp: number("tcp", asked.tcp, 0, LONGEST)?,
            tcp_fin: number("tcp_fin", asked.tcp_fin, 0, LONGEST)?,
            udp: number("udp", asked.udp, 0, LONGEST)?,
        })
    }
}

impl TryFrom<&api::IpvsChange> for Change {
    type Error = Invalid;

    fn try_from(asked: &api::IpvsChange) -> Result<Self, Invalid> {
        Ok(match asked {
            api::IpvsChange::AddService(service) => Self::AddService(service.try_into()?),
            api::IpvsChange::EditService(service) => Self::EditService(service.try_into()?),
            api::IpvsChange::DeleteService(key) => Self::DeleteService(service_key(&key.service)?),
            api::IpvsChange::AddServer(server) => {
                Self::AddDestination(service_key(&server.service)?, server.try_into()?)
            }
            api::IpvsChange::EditServer(server) => {
                Self::EditDestination(service_key(&server.service)?, server.try_into()?)
            }
            api::IpvsChange::DeleteServer(server) => {
                let (address, port) = server_socket(&server.address)?;
                Self::DeleteDestination(service_key(&server.service)?, address, port)
            }
            api::IpvsChange::Flush => Self::Flush,
            api::IpvsChange::SetTimeouts(timeouts) => Self::SetTimeouts(timeouts.try_into()?),
        })
    }
}

/// Checks the name of a setting and its value.
///
/// # Errors
/// There is none of that name, or it cannot have this value.
pub fn ipvs_setting(name: &str, value: i64) -> Result<(Setting, u32), Invalid> {
    let setting = Setting::by_name(name).ok_or_else(|| {
        let names: Vec<_> = Setting::ALL.iter().map(|setting| setting.name()).collect();
        let names = names.join(", ");
        Invalid::new("name", format!("name {name:?} is unknown: it must be one of {names}"))
    })?;
    Ok((setting, number("value", value, 0, setting.most())?))
}

/// Checks what a sync daemon does.
///
/// # Errors
/// Neither master nor backup.
pub fn sync_role(text: &str) -> Result<Role, Invalid> {
    match text {
        "master" => Ok(Role::Master),
        "backup" => Ok(Role::Backup),
        _ => {
            let rule = "it must be master or backup";
            Err(Invalid::new("role", format!("role {text:?} is unknown: {rule}")))
        }
    }
}

impl TryFrom<&api::IpvsDaemonStart> for DaemonSpec {
    type Error = Invalid;

    fn try_from(asked: &api::IpvsDaemonStart) -> Result<Self, Invalid> {
        let group = asked.group.as_deref().map(|text| {
            text.parse::<IpAddr>().map_err(|_| Invalid::new("group", format!("group {text:?} is no address")))
        });
        Ok(Self {
            role: sync_role(&asked.role)?,
            interface: asked.interface.clone(),
            sync_id: number("sync_id", asked.sync_id.unwrap_or(0), 0, 255)?,
            max_length: asked.max_length.map(|value| number("max_length", value, 1, 65_507)).transpose()?,
            group: group.transpose()?,
            port: asked.port.map(|value| number("port", value, 1, 65_535)).transpose()?,
            ttl: asked.ttl.map(|value| number("ttl", value, 1, 255)).transpose()?,
        })
    }
}

/// A sync daemon as it is listed.
pub fn daemon_view(config: &DaemonConfig, counters: &[(&str, u64)]) -> api::IpvsDaemon {
    api::IpvsDaemon {
        role: config.role.to_string(),
        interface: config.interface.clone(),
        sync_id: config.sync_id,
        max_length: config.max_length,
        group: config.group,
        port: config.port,
        ttl: config.ttl,
        counters: counters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
    }
}

fn stats_view(totals: &Totals) -> api::IpvsStats {
    let Totals { connections, in_packets, out_packets, in_bytes, out_bytes } = *totals;
    api::IpvsStats { connections, in_packets, out_packets, in_bytes, out_bytes }
}

/// A service as it is listed.
pub fn service_view(listed: &ServiceListing) -> api::IpvsServiceEntry {
    api::IpvsServiceEntry { stats: stats_view(&listed.totals), ..service_entry(&listed.spec) }
}

/// A service that has counted nothing, as it is listed.
pub(crate) fn service_entry(spec: &ServiceSpec) -> api::IpvsServiceEntry {
    let ServiceSpec { key, scheduler, flags, persistence, one_packet } = spec;
    let names = flag_names(*scheduler);
    let flags = names.iter().enumerate().filter(|(bit, _)| flags.0 >> bit & 1 == 1);
    let netmask = persistence.and_then(|persistence| match persistence.mask {
        IpAddr::V4(Ipv4Addr::BROADCAST) => None,
        IpAddr::V4(mask) => Some(mask.to_string()),
        IpAddr::V6(mask) => Some(mask.to_bits().count_ones()).filter(|n| *n != 128).map(|n| n.to_string()),
    });
    api::IpvsServiceEntry {
        service: service_name(key),
        scheduler: scheduler_name(*scheduler).to_owned(),
        flags: flags.map(|(_, name)| (*name).to_owned()).collect(),
        persistent: persistence.map(|persistence| persistence.timeout),
        netmask,
        pe: persistence.filter(|persistence| persistence.sip).map(|_| "sip".to_owned()),
        one_packet: *one_packet,
        stats: api::IpvsStats::default(),
    }
}

fn checksum_view(checksum: TunnelChecksum) -> Option<String> {
    let name = match checksum {
        TunnelChecksum::None => "none",
        TunnelChecksum::Full => "full",
        TunnelChecksum::Remote => "remote",
    };
    Some(name.to_owned())
}

/// A server as it is listed.
pub fn server_view(listed: &DestinationListing) -> api::IpvsServerEntry {
    api::IpvsServerEntry {
        active: listed.active,
        inactive: listed.inactive,
        templates: listed.templates,
        overloaded: listed.overloaded,
        stats: stats_view(&listed.totals),
        ..server_entry(&listed.spec)
    }
}

/// A server that nobody uses, as it is listed.
pub(crate) fn server_entry(spec: &DestinationSpec) -> api::IpvsServerEntry {
    let mut entry = api::IpvsServerEntry {
        address: SocketAddr::new(spec.address, spec.port).to_string(),
        forward: String::new(),
        weight: spec.weight,
        upper: spec.upper,
        lower: spec.lower,
        tunnel: None,
        tunnel_port: None,
        tunnel_checksum: None,
        pool: None,
        active: 0,
        inactive: 0,
        templates: 0,
        overloaded: false,
        stats: api::IpvsStats::default(),
    };
    let forward = match &spec.forward {
        Forward::Masquerade => "masquerade",
        Forward::Route => "route",
        Forward::Tunnel(tunnel) => {
            let (name, port, checksum) = match *tunnel {
                Tunnel::Ipip => ("ipip", None, None),
                Tunnel::Gue { port, checksum } => ("gue", Some(port), checksum_view(checksum)),
                Tunnel::Gre { checksum } => ("gre", None, checksum_view(checksum)),
            };
            (entry.tunnel, entry.tunnel_port, entry.tunnel_checksum) = (Some(name.into()), port, checksum);
            "tunnel"
        }
        Forward::FullNat { first, last } => {
            entry.pool = Some(if first == last { first.to_string() } else { format!("{first}-{last}") });
            "full-nat"
        }
    };
    entry.forward = forward.into();
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_named_as_they_are_read() {
        for name in
            ["tcp:10.0.0.1:80", "udp:[2001:db8::1]:53", "sctp:10.0.0.1:0", "mark:5", "mark6:4294967295"]
        {
            assert_eq!(service_name(&service_key(name).unwrap()), name);
        }
        for name in [
            "",
            "tcp",
            "tcp:",
            "tcp:10.0.0.1",
            "icmp:10.0.0.1:80",
            "mark:0",
            "mark:-1",
            "mark:4294967296",
            "udp:[fe80::1%1]:80",
            "tcp:host:80",
            "tcp:10.0.0.1:65536",
        ] {
            assert_eq!(service_key(name).unwrap_err().field, "service", "{name}");
        }
    }

    #[test]
    fn services_are_checked() {
        let service = api::IpvsService { service: "tcp:10.0.0.1:80".into(), ..Default::default() };
        let spec = ServiceSpec::try_from(&service).unwrap();
        assert_eq!((spec.scheduler, spec.persistence), (Some(Scheduler::Wlc), None));
        let wrong = |change: &dyn Fn(&mut api::IpvsService)| {
            let mut service = service.clone();
            change(&mut service);
            ServiceSpec::try_from(&service).unwrap_err().field
        };
        assert_eq!(wrong(&|service| service.scheduler = Some("RR".into())), "scheduler");
        assert_eq!(wrong(&|service| service.flags = vec!["sh-port".into()]), "flags");
        assert_eq!(wrong(&|service| service.persistent = Some(0)), "persistent");
        assert_eq!(wrong(&|service| service.persistent = Some(i64::from(LONGEST) + 1)), "persistent");
        assert_eq!(wrong(&|service| service.netmask = Some("24".into())), "netmask");
        assert_eq!(wrong(&|service| service.pe = Some("x".into())), "pe");
        assert_eq!(wrong(&|service| service.one_packet = true), "one_packet");
        assert_eq!(wrong(&|service| service.service = "tcp:10.0.0.1:0".into()), "service");
    }

    #[test]
    fn servers_are_checked() {
        let server = api::IpvsServer { address: "10.1.0.1:80".into(), ..Default::default() };
        let spec = DestinationSpec::try_from(&server).unwrap();
        assert_eq!((spec.forward.clone(), spec.weight), (Forward::Route, 1));
        let wrong = |change: &dyn Fn(&mut api::IpvsServer)| {
            let mut server = server.clone();
            change(&mut server);
            DestinationSpec::try_from(&server).unwrap_err().field
        };
        assert_eq!(wrong(&|server| server.address = "10.1.0.1".into()), "address");
        assert_eq!(wrong(&|server| server.forward = Some("nat".into())), "forward");
        assert_eq!(wrong(&|server| server.weight = Some(-1)), "weight");
        assert_eq!(wrong(&|server| server.weight = Some(1 << 31)), "weight");
        assert_eq!(wrong(&|server| server.upper = Some(-1)), "upper");
        assert_eq!(wrong(&|server| server.tunnel = Some("gue".into())), "tunnel");
        assert_eq!(wrong(&|server| server.pool = Some("10.0.0.1".into())), "pool");
        let tunnel = |change: &dyn Fn(&mut api::IpvsServer)| {
            wrong(&|server| {
                server.forward = Some("tunnel".into());
                change(server);
            })
        };
        assert_eq!(tunnel(&|server| server.tunnel = Some("gue".into())), "tunnel_port");
        assert_eq!(tunnel(&|server| server.tunnel_port = Some(5)), "tunnel_port");
        assert_eq!(tunnel(&|server| server.tunnel_checksum = Some("full".into())), "tunnel_checksum");
        assert_eq!(tunnel(&|server| server.tunnel = Some("x".into())), "tunnel");
        assert_eq!(wrong(&|server| server.forward = Some("full-nat".into())), "pool");
    }
}

//! From what was checked back to the request that would make it, without what has its default.
//!
//! What these functions give is read back into an equal value by [`crate::config::spec`].
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::Nat;
use crate::config::spec::{
    AGEING_DEFAULT, Attachment, CONTAINER_BRIDGE, ContainerRoute, ContainerSpec, FDB_LIMIT_DEFAULT, Limits,
    MTU_DEFAULT, NicPort, NicSpec, Rate, TapOpen, check_view, nat_view, policy_view, server_entry,
    service_entry, service_name,
};
use crate::config::{BridgeSpec, Mac, PortSpec, Rebalancing, Role};
use crate::control::api::{self, NatKind};
use crate::ipvs::health::CheckSpec;
use crate::ipvs::spec::{DestinationSpec, ServiceKey, ServiceSpec};
use crate::ipvs::sync::DaemonSpec;
use crate::nat::rule::Rule;
use crate::policy::rule::Rule as PolicyRule;
use crate::router::{DhcpServer, Interface};
use crate::services::dhcp::{LEASE_DEFAULT, PER_PORT};

/// A value unless it is the default.
fn unless<T: PartialEq + Into<i64>>(value: T, default: T) -> Option<i64> {
    (value != default).then(|| value.into())
}

/// When queues are spread anew; `None` if that is as usual.
pub fn rebalance(settings: &Rebalancing) -> Option<api::WorkerSet> {
    let Rebalancing { auto, interval, load_threshold, improvement_threshold } = *settings;
    let usual = Rebalancing::default();
    let table = api::WorkerSet {
        auto: (auto != usual.auto).then_some(auto),
        interval: unless(interval, usual.interval),
        load_threshold: unless(load_threshold, usual.load_threshold),
        improvement_threshold: unless(improvement_threshold, usual.improvement_threshold),
    };
    (table != api::WorkerSet::default()).then_some(table)
}

/// A bridge.
pub fn bridge(spec: &BridgeSpec) -> api::BridgeAdd {
    api::BridgeAdd {
        name: spec.name.to_string(),
        ageing: unless(spec.ageing, AGEING_DEFAULT),
        fdb_limit: unless(spec.fdb_limit, FDB_LIMIT_DEFAULT),
        filter: spec.filter.then_some(true),
    }
}

/// A rate and its burst.
fn rate(limit: Option<Rate>) -> (Option<i64>, Option<i64>) {
    (limit.map(|rate| rate.bits.cast_signed()), limit.map(|rate| rate.burst.cast_signed()))
}

fn pin(queue: u16, core: u32) -> api::Pin {
    api::Pin { queue: queue.into(), core: core.into() }
}

/// A port whose queues are bound to processors as `pins` says.
pub fn port(spec: &PortSpec, pins: impl Iterator<Item = (u16, u32)>) -> api::PortAdd {
    // Whoever adds a field is told here what is missing.
    let PortSpec { name, bridge, attachment, queues, mtu, mac, pins: _, guard, allow, limits } = spec;
    let Limits { ingress, egress } = limits;
    let (ingress_rate, ingress_burst) = rate(*ingress);
    let (egress_rate, egress_burst) = rate(*egress);
    let mut port = api::PortAdd {
        name: name.to_string(),
        bridge: bridge.to_string(),
        vhost_user: None,
        role: None,
        tap: None,
        netns: None,
        persist: false,
        netdev: None,
        queues: unless(*queues, 1),
        mtu: mtu.map(i64::from),
        mac: mac.map(|mac| mac.to_string()),
        pins: pins.map(|(queue, core)| pin(queue, core)).collect(),
        guard: *guard,
        allow_address: allow.iter().map(ToString::to_string).collect(),
        ingress_rate,
        ingress_burst,
        egress_rate,
        egress_burst,
    };
    port.pins.sort_by_key(|pin| pin.queue);
    match attachment {
        Attachment::VhostUser { path, role } => {
            port.vhost_user = Some(path.display().to_string());
            port.role = (*role != Role::Server).then(|| role.as_str().to_owned());
        }
        Attachment::Tap { device, netns, persist } => {
            (port.tap, port.netns, port.persist) = (Some(device.clone()), netns.clone(), *persist);
        }
        Attachment::Netdev { device, netns } => {
            (port.netdev, port.netns) = (Some(device.clone()), netns.clone());
        }
    }
    port
}

/// A static entry of a forwarding database.
pub fn fdb(bridge: &str, vlan: u16, mac: Mac, port: &str) -> api::FdbAdd {
    let vlan = unless(vlan, 0);
    api::FdbAdd { bridge: bridge.to_owned(), mac: mac.to_string(), port: port.to_owned(), vlan }
}

/// An interface; `own`: the address that it has where none is asked for.
pub fn interface(interface: &Interface, own: Mac) -> api::InterfaceAdd {
    api::InterfaceAdd {
        name: interface.name.to_string(),
        bridge: interface.bridge.to_string(),
        address: interface.addresses.iter().map(ToString::to_string).collect(),
        vlan: unless(interface.vlan, 0),
        mac: (interface.mac != own).then(|| interface.mac.to_string()),
        mtu: unless(interface.mtu, MTU_DEFAULT),
        clamp_mss: interface.clamp_mss,
        up: (!interface.enabled).then_some(false),
    }
}

/// One way of a static route.
pub fn route(route: &api::Route) -> api::RouteAdd {
    let unicast = crate::config::RouteKind::Unicast;
    api::RouteAdd {
        prefix: route.prefix.to_string(),
        via: route.via.map(|via| via.to_string()),
        dev: route.dev.map(|dev| dev.to_string()),
        metric: unless(route.metric, 0),
        kind: (route.kind != unicast).then(|| route.kind.as_str().to_owned()),
        onlink: route.onlink,
    }
}

/// A rule of translation under its number.
pub fn nat(id: u32, rule: &Rule) -> Nat {
    let view = nat_view(id, rule, 0, 0);
    let id = Some(i64::from(id));
    let text = |value: Option<&dyn ToString>| value.map(ToString::to_string);
    let source = view.source.map(|source| source.to_string()).unwrap_or_default();
    let (out, not_out) = (view.out.map(|name| name.to_string()), view.not_out.map(|name| name.to_string()));
    let not_destination = view.not_destination.iter().map(ToString::to_string).collect();
    let endpoint_independent = view.endpoint_independent;
    match view.kind {
        NatKind::Masquerade => Nat::Masquerade(api::MasqueradeAdd {
            id,
            source,
            out,
            not_out,
            not_destination,
            to_ports: view.to_ports,
            endpoint_independent,
        }),
        NatKind::Snat => Nat::Snat(api::SnatAdd {
            id,
            source,
            out,
            not_out,
            not_destination,
            to: view.to.unwrap_or_default(),
            endpoint_independent,
        }),
        NatKind::Publish => Nat::Publish(api::PublishAdd {
            id,
            proto: view.proto.unwrap_or_default(),
            listen: view.listen.unwrap_or_default(),
            to: view.to.unwrap_or_default(),
            ingress: text(view.ingress.as_ref().map(|name| name as &dyn ToString)),
        }),
        NatKind::OneToOne => Nat::OneToOne(api::OneToOneAdd {
            id,
            outside: view.outside.map(|net| net.to_string()).unwrap_or_default(),
            inside: view.inside.map(|net| net.to_string()).unwrap_or_default(),
            out,
        }),
    }
}

/// A rule of policy under its number.
pub fn policy(id: u32, rule: &PolicyRule) -> api::PolicyAdd {
    let view = policy_view(id, rule, 0, 0);
    api::PolicyAdd {
        id: Some(id.into()),
        from: view.from,
        to: view.to,
        source: view.source,
        destination: view.destination,
        proto: view.proto,
        sport: view.sport,
        dport: view.dport,
        icmp_type: view.icmp_type.map(i64::from),
        state: view.state,
        action: view.action,
        mark: view.mark.map(i64::from),
        log: view.log,
    }
}

/// How an interface serves guests.
pub fn dhcp(server: &DhcpServer) -> api::DhcpSet {
    let texts = |list: &[IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let routes: Vec<String> = server.routes.iter().map(ToString::to_string).collect();
    api::DhcpSet {
        interface: server.interface.to_string(),
        range: server.range.map(|(first, last)| format!("{first}-{last}")),
        lease: unless(server.lease, LEASE_DEFAULT),
        router: server.router.map(|router| router.map_or("none".to_owned(), |router| router.to_string())),
        dns: (!server.dns.is_empty()).then(|| texts(&server.dns)),
        add_dns: Vec::new(),
        del_dns: Vec::new(),
        domain: server.domain.clone(),
        mtu: server.mtu.map(i64::from),
        route: (!routes.is_empty()).then_some(routes),
        ra: server.ra.then_some(true),
        per_port: unless(server.per_port, PER_PORT),
        reserve: server
            .reservations
            .iter()
            // Those of containers' NICs come with the containers.
            .filter(|one| one.told.is_none())
            .map(|one| api::ReserveAdd {
                mac: one.mac.to_string(),
                address: one.address.to_string(),
                hostname: one.hostname.clone(),
            })
            .collect(),
    }
}

/// A virtual service.
pub fn service(spec: &ServiceSpec) -> api::IpvsService {
    let view = service_entry(spec);
    api::IpvsService {
        service: view.service,
        scheduler: Some(view.scheduler),
        flags: view.flags,
        persistent: view.persistent.map(i64::from),
        netmask: view.netmask,
        pe: view.pe,
        one_packet: view.one_packet,
    }
}

/// A server of a virtual service.
pub fn server(key: &ServiceKey, spec: &DestinationSpec) -> api::IpvsServer {
    let view = server_entry(spec);
    api::IpvsServer {
        service: service_name(key),
        address: view.address,
        forward: (view.forward != "route").then_some(view.forward),
        weight: unless(view.weight, 1),
        upper: unless(view.upper, 0),
        lower: unless(view.lower, 0),
        tunnel: view.tunnel.filter(|kind| kind != "ipip"),
        tunnel_port: view.tunnel_port.map(i64::from),
        tunnel_checksum: view.tunnel_checksum.filter(|kind| kind != "none"),
        pool: view.pool,
    }
}

/// A container with these NICs.
pub fn container<'a>(spec: &ContainerSpec, nics: impl Iterator<Item = &'a NicSpec>) -> api::ContainerAdd {
    api::ContainerAdd {
        id: spec.id.to_string(),
        qmp: spec.qmp.as_ref().map(|path| path.display().to_string()),
        bridge: (spec.bridge != *CONTAINER_BRIDGE).then(|| spec.bridge.to_string()),
        role: (spec.role != Role::Server).then(|| spec.role.as_str().to_owned()),
        tap: (spec.tap != TapOpen::default()).then(|| spec.tap.as_str().to_owned()),
        agent: spec.agent.as_ref().map(ToString::to_string),
        nic: nics.map(NicSpec::view).collect(),
        route: spec.routes.iter().map(ContainerRoute::view).collect(),
    }
}

/// What differs at the port of a NIC from what the NIC says; `None` if nothing does.
pub fn nic(port: &NicPort) -> Option<api::NicPort> {
    let NicPort { device, mtu, pins, guard, allow, limits } = port;
    let (ingress_rate, ingress_burst) = rate(limits.ingress);
    let (egress_rate, egress_burst) = rate(limits.egress);
    let described = api::NicPort {
        device: device.to_string(),
        mtu: mtu.map(i64::from),
        pins: pins.iter().map(|(queue, core)| pin(*queue, *core)).collect(),
        guard: *guard,
        allow_address: allow.as_ref().map(|list| list.iter().map(ToString::to_string).collect()),
        ingress_rate,
        ingress_burst,
        egress_rate,
        egress_burst,
    };
    (*port != NicPort::of(*device)).then_some(described)
}

/// A health check.
pub fn check(spec: &CheckSpec) -> api::CheckSet {
    let view = check_view(spec, &[]);
    let seconds = |value: u64| i64::try_from(value).ok();
    api::CheckSet {
        service: view.service,
        kind: view.kind,
        port: view.port.map(i64::from),
        interface: view.interface,
        interval: seconds(view.interval),
        timeout: seconds(view.timeout),
        rise: Some(view.rise.into()),
        fall: Some(view.fall.into()),
        path: view.path,
        host: view.host,
        status: view.status,
        payload: view.payload.filter(|payload| !payload.is_empty()),
        reply: view.reply.filter(|reply| *reply),
    }
}

/// A sync daemon.
pub fn daemon(spec: &DaemonSpec) -> api::IpvsDaemonStart {
    api::IpvsDaemonStart {
        role: spec.role.to_string(),
        interface: spec.interface.clone(),
        sync_id: unless(spec.sync_id, 0),
        max_length: spec.max_length.map(i64::from),
        group: spec.group.map(|group| group.to_string()),
        port: spec.port.map(i64::from),
        ttl: spec.ttl.map(i64::from),
    }
}

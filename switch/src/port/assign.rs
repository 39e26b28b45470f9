//! What a device in a container's network namespace has: addresses and routes, as rtnetlink(7) gives and tells them.
//!
//! For who sets a container up beside the switch (the CNI plugin): a TAP port makes the device, this makes it usable.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::libc;

use super::device::{NET_ADMIN, OpenError};
use super::link::INFO;
use super::netlink::{Message, Netlink, Request, attribute, u32_value};
use super::netns::Netns;

/// Bytes of `struct ifaddrmsg` and `struct rtmsg`.
const ADDRESS: usize = 8;
const ROUTE: usize = 12;
/// `RTAX_` metrics of linux/rtnetlink.h.
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

/// A route over the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destinations.
    pub to: IpNet,
    /// The next hop, of the same family; `None`: they are on the link.
    pub via: Option<IpAddr>,
    /// MTU on the way, in bytes.
    pub mtu: Option<u32>,
    /// Segment size that TCP is to announce there, in bytes.
    pub advmss: Option<u32>,
    /// Metric: lower is preferred.
    pub priority: Option<u32>,
    /// Routing table; the main one if `None`.
    pub table: Option<u32>,
    /// `RT_SCOPE_`; link for what is on the link, universe otherwise.
    pub scope: Option<u8>,
}

/// A device as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its own MAC address.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Its addresses, each with the length of its network's prefix.
    pub addresses: Vec<IpNet>,
    /// Routes over it: destination and next hop.
    pub routes: Vec<(IpNet, Option<IpAddr>)>,
}

/// Looks a device up; `None` if there is none.
///
/// # Errors
/// The namespace cannot be entered, or the kernel does not answer.
pub fn look_up(netns: &Netns, device: &str) -> Result<Option<Device>, OpenError> {
    let failed = |e| OpenError::system(format!("look up device {device}"), NET_ADMIN, e);
    netns.run(|| find(device))?.map_err(failed)
}

fn find(name: &str) -> io::Result<Option<Device>> {
    let mut netlink = Netlink::open(0)?;
    let Some(link) = netlink.link_by_name(name)? else { return Ok(None) };
    let mut device =
        Device { mac: link.mac.unwrap_or_default(), mtu: link.mtu, up: link.is_up(), ..Device::default() };
    let dump = |kind, fixed: &[u8]| Request::new(kind, libc::NLM_F_DUMP, fixed);
    netlink.query(dump(libc::RTM_GETADDR, &[0; ADDRESS]), &mut |message| {
        device.addresses.extend(address_of(&message, link.index));
    })?;
    netlink.query(dump(libc::RTM_GETROUTE, &[0; ROUTE]), &mut |message| {
        device.routes.extend(route_of(&message, link.index));
    })?;
    Ok(Some(device))
}

/// The address of an `RTM_NEWADDR` if it belongs to the device.
fn address_of(message: &Message<'_>, index: u32) -> Option<IpNet> {
    let fixed = message.body.first_chunk::<ADDRESS>()?;
    let attributes = &message.body[ADDRESS..];
    // IPv4 has its own address in LOCAL and a peer's in ADDRESS, IPv6 usually only ADDRESS.
    let address = attribute(attributes, libc::IFA_LOCAL).or_else(|| attribute(attributes, libc::IFA_ADDRESS));
    (u32_value(&fixed[4..])? == index).then_some(())?;
    IpNet::new(ip(address?)?, fixed[1]).ok()
}

/// The route of an `RTM_NEWROUTE` if it leads over the device.
fn route_of(message: &Message<'_>, index: u32) -> Option<(IpNet, Option<IpAddr>)> {
    let fixed = message.body.first_chunk::<ROUTE>()?;
    let attributes = &message.body[ROUTE..];
    let (family, len, kind) = (i32::from(fixed[0]), fixed[1], fixed[7]);
    if kind != libc::RTN_UNICAST || attribute(attributes, libc::RTA_OIF).and_then(u32_value)? != index {
        return None;
    }
    let any = match family {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let to = attribute(attributes, libc::RTA_DST).map_or(Some(any), ip)?;
    Some((IpNet::new(to, len).ok()?, attribute(attributes, libc::RTA_GATEWAY).and_then(ip)))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(*bytes.first_chunk::<4>()?)),
        16 => Some(IpAddr::from(*bytes.first_chunk::<16>()?)),
        _ => None,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// Gives a device addresses and, in their order, routes. IPv6 is switched on at the device if it is to have an IPv6
/// address; duplicates are not looked for, since somebody has seen to it that there are none.
///
/// # Errors
/// There is no such device, or the kernel refuses an address or a route, which is named. What was done stays.
pub fn assign(netns: &Netns, device: &str, addresses: &[IpNet], routes: &[Route]) -> Result<(), OpenError> {
    netns.run(|| {
        let failed = |what: String, e: io::Error| {
            OpenError::system(format!("give device {device} {what}"), NET_ADMIN, e)
        };
        let mut netlink = Netlink::open(0).map_err(|e| failed("an address".into(), e))?;
        let link = netlink.link_by_name(device).map_err(|e| failed("an address".into(), e))?;
        let link = link.ok_or_else(|| OpenError::Missing {
            what: format!("device {device}"),
            hint: "it was removed while it was being set up",
        })?;
        if addresses.iter().any(|address| address.addr().is_ipv6()) {
            // Where the kernel has no IPv6, the address below is refused in clearer words.
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "0");
        }
        for address in addresses {
            let done = netlink.change(address_request(link.index, address));
            done.map_err(|e| failed(format!("the address {address}"), e))?;
        }
        for route in routes {
            let done = netlink.change(route_request(link.index, route));
            done.map_err(|e| {
                let via = route.via.map(|via| format!(" via {via}")).unwrap_or_default();
                failed(format!("the route {}{via}", route.to), e)
            })?;
        }
        Ok(())
    })?
}

fn address_request(index: u32, address: &IpNet) -> Request {
    let bytes = octets(address.addr());
    let mut fixed = [0; ADDRESS];
    (fixed[0], fixed[1]) = (family(address.addr()), address.prefix_len());
    fixed[4..].copy_from_slice(&index.to_ne_bytes());
    let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let request = Request::new(libc::RTM_NEWADDR, create, &fixed)
        .attribute(libc::IFA_LOCAL, &bytes)
        .attribute(libc::IFA_ADDRESS, &bytes);
    match address {
        IpNet::V4(v4) if v4.prefix_len() < 31 => {
            request.attribute(libc::IFA_BROADCAST, &v4.broadcast().octets())
        }
        IpNet::V4(_) => request,
        IpNet::V6(_) => request.attribute(libc::IFA_FLAGS, &libc::IFA_F_NODAD.to_ne_bytes()),
    }
}

fn route_request(index: u32, route: &Route) -> Request {
    let mut fixed = [0; ROUTE];
    (fixed[0], fixed[1]) = (family(route.to.addr()), route.to.prefix_len());
    let table = route.table.unwrap_or(libc::RT_TABLE_MAIN.into());
    fixed[4] = u8::try_from(table).unwrap_or(libc::RT_TABLE_UNSPEC);
    fixed[5] = libc::RTPROT_STATIC;
    let on_link = route.via.is_none() && route.to.addr().is_ipv4();
    fixed[6] = route.scope.unwrap_or(if on_link { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE });
    fixed[7] = libc::RTN_UNICAST;
    let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut request = Request::new(libc::RTM_NEWROUTE, create, &fixed)
        .attribute(libc::RTA_DST, &octets(route.to.network()))
        .attribute(libc::RTA_OIF, &index.to_ne_bytes())
        .attribute(libc::RTA_TABLE, &table.to_ne_bytes());
    if let Some(via) = route.via {
        request = request.attribute(libc::RTA_GATEWAY, &octets(via));
    }
    if let Some(priority) = route.priority {
        request = request.attribute(libc::RTA_PRIORITY, &priority.to_ne_bytes());
    }
    if route.mtu.is_some() || route.advmss.is_some() {
        request = request.nested(libc::RTA_METRICS, |mut metrics| {
            for (kind, value) in [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss)] {
                if let Some(value) = value {
                    metrics = metrics.attribute(kind, &value.to_ne_bytes());
                }
            }
            metrics
        });
    }
    request
}

/// Removes a device; whether there was one.
///
/// # Errors
/// The namespace cannot be entered, or the kernel refuses.
pub fn remove(netns: &Netns, device: &str) -> Result<bool, OpenError> {
    let failed = |e| OpenError::system(format!("remove device {device}"), NET_ADMIN, e);
    netns.run(|| {
        let mut netlink = Netlink::open(0).map_err(failed)?;
        let Some(link) = netlink.link_by_name(device).map_err(failed)? else { return Ok(false) };
        let mut fixed = [0; INFO];
        fixed[4..8].copy_from_slice(&link.index.to_ne_bytes());
        match netlink.change(Request::new(libc::RTM_DELLINK, 0, &fixed)) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            other => other.map(|()| true).map_err(failed),
        }
    })?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::tap::{Tap, TapConfig};

    /// A namespace of this thread's own, which ends with it.
    fn in_new_namespace(work: impl FnOnce(&Netns) + Send) {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may");
                    let path = format!("/proc/self/task/{}/ns/net", nix::unistd::gettid());
                    let netns = Netns::open(Some(std::path::Path::new(&path))).expect("our own");
                    work(&netns);
                })
                .join()
                .expect("no panic");
        });
    }

    fn route(to: &str, via: Option<&str>) -> Route {
        Route {
            to: to.parse().expect("a network"),
            via: via.map(|via| via.parse().expect("an address")),
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }

    #[test]
    fn what_a_device_is_given_it_has() {
        in_new_namespace(|netns| {
            assert_eq!(look_up(netns, "eth0").expect("the kernel answers"), None);
            let config = TapConfig {
                device: "eth0".into(),
                queues: 1,
                mtu: Some(1400),
                mac: Some([2, 0x42, 10, 1, 0, 5]),
                netns: None,
                persist: false,
            };
            let tap = Tap::open(&config).expect("a device");
            let addresses: Vec<IpNet> =
                ["10.1.0.5/16", "fd00::5/64"].iter().map(|text| text.parse().expect("valid")).collect();
            let routes = [
                route("0.0.0.0/0", Some("10.1.0.1")),
                route("192.0.2.0/24", None),
                Route { mtu: Some(1300), priority: Some(7), ..route("::/0", Some("fd00::1")) },
            ];
            assign(netns, "eth0", &addresses, &routes).expect("given");
            let seen = look_up(netns, "eth0").expect("the kernel answers").expect("there");
            assert_eq!((seen.mac, seen.mtu, seen.up), ([2, 0x42, 10, 1, 0, 5], 1400, true));
            assert!(addresses.iter().all(|address| seen.addresses.contains(address)), "{seen:?}");
            for wanted in &routes {
                assert!(seen.routes.contains(&(wanted.to, wanted.via)), "{wanted:?} in {seen:?}");
            }
            let message = assign(netns, "eth0", &[], &[route("198.51.100.0/24", Some("172.16.0.1"))])
                .expect_err("nobody reaches that gateway")
                .to_string();
            assert!(message.contains("the route 198.51.100.0/24 via 172.16.0.1"), "{message}");
            assert!(remove(netns, "eth0").expect("removed") && !remove(netns, "eth0").expect("gone"));
            assert!(assign(netns, "eth0", &addresses, &[]).expect_err("gone").to_string().contains("eth0"));
            drop(tap);
        });
    }
}

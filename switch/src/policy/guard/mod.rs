//! Anti-spoofing: a port may send only as who it is.
//!
//! Asked about every frame that a guarded port brings in, before anything else looks at it: Ethernet source, sender of
//! ARP (RFC 826, 5227), source of IPv4 and IPv6, what neighbour discovery claims (RFC 4861; fragments refused, RFC
//! 6980), the client's address within DHCP. Unless the port may serve, it cannot answer as a DHCP server or router
//! either (RFC 6105, 7113, 7610). Frames of other protocols pass with the right Ethernet source. The cost does not
//! depend on the number of addresses: the frame's snapshot, a hash or two.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ipnet::IpNet;

use crate::drops::DropReason;
use crate::l3::interface::link_local;
use crate::packet::ethernet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Mac, payload, source,
};
use crate::packet::ip::{ICMPV6, IPV4_LEN, IPV6_LEN, UDP};
use crate::rules::hash::Set;
use crate::rules::prefixes::Prefixes;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
/// Below it: the length of an 802.3 frame.
const ETHERTYPE_MIN: u16 = 0x0600;
/// Addresses at once that the DHCP server may have leased to one guarded port.
pub const LEASES_MAX: usize = 16;

const BOOTP_SERVER: u16 = 67;
const BOOTP_CLIENT: u16 = 68;
const DHCPV6_CLIENT: u16 = 546;
const DHCPV6_SERVER: u16 = 547;

const MLD_REPORT: u8 = 131;
const MLD_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const MLD2_REPORT: u8 = 143;

/// Who a port is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its MAC addresses, beside those of its leases; none: the first that it sends from, unless it has leases.
    pub macs: Vec<Mac>,
    /// Its addresses beside its leases, or prefixes of which it may take any; `None`: any. The link-local IPv6 address that follows from
    /// its MAC address (EUI-64) is always among them.
    pub addresses: Option<Vec<IpNet>>,
    /// Addresses that are somebody else's whatever `addresses` says: the switch's own.
    pub reserved: Vec<IpAddr>,
    /// Whether it may answer as a DHCP server and advertise itself as a router.
    pub server: bool,
}

/// A lease of a guarded port: the MAC address is written before the address, which is 0 where there is none.
#[derive(Debug, Default)]
struct Leased {
    address: AtomicU32,
    mac: AtomicU64,
}

/// The identity, compiled; immutable but for what is learned.
#[derive(Debug)]
pub struct Guard {
    /// Whether it is at work.
    active: AtomicBool,
    /// Sorted.
    macs: Box<[Mac]>,
    /// The MAC address that was sent from first, where `macs` says none; 0: nobody has sent yet.
    first: AtomicU64,
    any_address: bool,
    v4: Set<u32>,
    v6: Set<u128>,
    /// More than one address each.
    nets: Option<Prefixes>,
    reserved: Set<IpAddr>,
    server: bool,
    leases: [Leased; LEASES_MAX],
}

/// The result of a check.
type Checked = Result<(), DropReason>;

fn check(holds: bool, reason: DropReason) -> Checked {
    if holds { Ok(()) } else { Err(reason) }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn v4_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn v6_at(bytes: &[u8], at: usize) -> Option<u128> {
    bytes.get(at..)?.first_chunk().map(|bytes| u128::from_be_bytes(*bytes))
}

fn mac_at(bytes: &[u8], at: usize) -> Option<Mac> {
    bytes.get(at..)?.first_chunk().map(|bytes| Mac(*bytes))
}

impl Leased {
    /// Whose it is, if there is a lease.
    fn mac(&self) -> Option<u64> {
        (self.address.load(Ordering::Acquire) != 0).then(|| self.mac.load(Ordering::Relaxed))
    }
}

impl Guard {
    /// A guard of a port that is this, at work now (`active`) or from the port's first lease on.
    pub fn new(identity: &Identity, active: bool) -> Self {
        let mut macs = identity.macs.clone();
        macs.sort_unstable();
        macs.dedup();
        let addresses = identity.addresses.as_deref().unwrap_or_default();
        let (hosts, nets): (Vec<IpNet>, Vec<IpNet>) =
            addresses.iter().partition(|net| net.prefix_len() == net.max_prefix_len());
        let (mut v4, mut v6) = (Set::default(), Set::default());
        for host in hosts {
            match host.addr() {
                IpAddr::V4(host) => v4.insert(host.to_bits()),
                IpAddr::V6(host) => v6.insert(host.to_bits()),
            };
        }
        Self {
            active: active.into(),
            macs: macs.into(),
            first: AtomicU64::new(0),
            any_address: identity.addresses.is_none(),
            v4,
            v6,
            nets: (!nets.is_empty()).then(|| Prefixes::new(nets)),
            reserved: identity.reserved.iter().copied().collect(),
            server: identity.server,
            leases: std::array::from_fn(|_| Leased::default()),
        }
    }

    /// Whether frames are to be shown to it.
    #[inline]
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Allows an address that the DHCP server leases to a station at the port, and is at work from now on; to be called
    /// before the server's answer is sent, by one thread at a time. `false`: there are [`LEASES_MAX`] leases already.
    pub fn lease(&self, mac: Mac, address: Ipv4Addr) -> bool {
        let bits = address.to_bits();
        let place = |wanted: u32| self.leases.iter().find(|at| at.address.load(Ordering::Relaxed) == wanted);
        let lease = place(bits).or_else(|| place(0));
        if let Some(lease) = lease {
            lease.mac.store(mac.to_u64(), Ordering::Relaxed);
            lease.address.store(bits, Ordering::Release);
        }
        self.active.store(true, Ordering::Release);
        lease.is_some()
    }

    /// Takes a leased address back. The guard stays at work: who gives an address back is not free to take another.
    pub fn release(&self, address: Ipv4Addr) {
        for lease in &self.leases {
            let _ =
                lease.address.compare_exchange(address.to_bits(), 0, Ordering::Release, Ordering::Relaxed);
        }
    }

    /// Whether the port may send this frame, of which `head` are the first bytes (a snapshot).
    ///
    /// # Errors
    /// The reason to drop it.
    pub fn allows(&self, head: &[u8]) -> Result<(), DropReason> {
        let sender = source(head);
        check(self.has_mac(sender), DropReason::GuardMac)?;
        let (ethertype, at) = payload(head);
        let packet = head.get(at..).unwrap_or_default();
        match ethertype {
            ETHERTYPE_IPV4 => self.allows_v4(packet),
            ETHERTYPE_IPV6 => self.allows_v6(packet, sender),
            ETHERTYPE_ARP | ETHERTYPE_RARP => {
                check(self.arp(packet, sender).unwrap_or(false), DropReason::GuardArp)
            }
            // A third tag, or IP behind an 802.2 header (RFC 1042), to smuggle past what is looked at below.
            ETHERTYPE_VLAN | ETHERTYPE_QINQ => Err(DropReason::GuardAddress),
            ..ETHERTYPE_MIN => {
                check(!matches!(packet, [0xaa, 0xaa, 3, 0, 0, 0 | 0xf8, ..]), DropReason::GuardAddress)
            }
            _ => Ok(()),
        }
    }

    #[inline]
    fn has_mac(&self, mac: Mac) -> bool {
        let number = mac.to_u64();
        let listed = match *self.macs {
            [] => false,
            [only] => only == mac,
            ref macs => macs.binary_search(&mac).is_ok(),
        };
        listed || self.leases.iter().any(|at| at.mac() == Some(number)) || self.is_first(number)
    }

    /// Where nobody has said which MAC address is the port's: whether it is the one that it has sent from first. From
    /// now on it is, if there was none.
    fn is_first(&self, number: u64) -> bool {
        if !self.macs.is_empty() || self.leases.iter().any(|at| at.mac().is_some()) {
            return false;
        }
        match self.first.load(Ordering::Relaxed) {
            0 => {
                let was = self.first.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed);
                was.map_or_else(|was| was == number, |_| true)
            }
            first => first == number,
        }
    }

    fn has(&self, address: IpAddr) -> bool {
        if !self.reserved.is_empty() && self.reserved.contains(&address) {
            return false;
        }
        self.any_address
            || match address {
                IpAddr::V4(v4) => self.v4.contains(&v4.to_bits()) || self.is_leased(v4.to_bits()),
                IpAddr::V6(v6) => self.v6.contains(&v6.to_bits()),
            }
            || self.nets.as_ref().is_some_and(|nets| nets.contains(address))
    }

    fn is_leased(&self, address: u32) -> bool {
        address != 0 && self.leases.iter().any(|at| at.address.load(Ordering::Acquire) == address)
    }

    fn has_v4(&self, address: u32) -> bool {
        self.has(Ipv4Addr::from_bits(address).into())
    }

    fn has_v6(&self, address: u128, sender: Mac) -> bool {
        let ip = Ipv6Addr::from_bits(address).into();
        self.has(ip) || address == link_local(sender) && !self.reserved.contains(&ip)
    }

    /// Whether an ARP packet's sender is the frame's. 0.0.0.0 asks whether an address is free, or (RARP, as QEMU
    /// announces a guest that has moved) says nothing of addresses.
    fn arp(&self, packet: &[u8], sender: Mac) -> Option<bool> {
        let ethernet_and_ipv4 = packet.get(..6)? == [0, 1, 8, 0, 6, 4];
        let reply = word(packet, 6)? == 2;
        let address = v4_at(packet, 14)?;
        let known = if address == 0 { !reply } else { self.has_v4(address) };
        Some(ethernet_and_ipv4 && mac_at(packet, 8)? == sender && known)
    }

    fn allows_v4(&self, packet: &[u8]) -> Checked {
        let known = || -> Option<(u32, Option<&[u8]>)> {
            let header = packet.first_chunk::<IPV4_LEN>()?;
            let len = usize::from(header[0] & 0xf) * 4;
            let later = word(header, 6)? & 0x1fff != 0;
            let udp = header[9] == UDP && !later;
            let valid = header[0] >> 4 == 4 && len >= IPV4_LEN;
            valid.then_some((v4_at(header, 12)?, if udp { packet.get(len..) } else { None }))
        };
        let (address, udp) = known().ok_or(DropReason::GuardAddress)?;
        let ports = udp.and_then(|udp| Some((word(udp, 0)?, word(udp, 2)?)));
        if address == 0 {
            let everybody = v4_at(packet, 16) == Some(u32::MAX);
            check(everybody && ports == Some((BOOTP_CLIENT, BOOTP_SERVER)), DropReason::GuardAddress)?;
        } else {
            check(self.has_v4(address), DropReason::GuardAddress)?;
        }
        match (ports, udp) {
            (Some((BOOTP_SERVER, BOOTP_CLIENT)), _) => check(self.server, DropReason::GuardServer),
            // Only a server relays.
            (Some((BOOTP_CLIENT, BOOTP_SERVER)), Some(udp)) if !self.server => {
                check(self.is_client(udp).unwrap_or(false), DropReason::GuardMac)
            }
            _ => Ok(()),
        }
    }

    /// Whether a BOOTP request is for the port itself (RFC 2131, section 2): the hardware address within.
    fn is_client(&self, udp: &[u8]) -> Option<bool> {
        let bootp = udp.get(8..)?;
        let ethernet = bootp.get(1..3)? == [1, 6];
        Some(ethernet && self.has_mac(mac_at(bootp, 28)?))
    }

    fn allows_v6(&self, packet: &[u8], sender: Mac) -> Checked {
        let header = packet.first_chunk::<IPV6_LEN>().ok_or(DropReason::GuardAddress)?;
        let known = || Some((v6_at(header, 8)?, v6_at(header, 24)?));
        let (address, destination) = known().ok_or(DropReason::GuardAddress)?;
        check(header[0] >> 4 == 6, DropReason::GuardAddress)?;
        check(address == 0 || self.has_v6(address, sender), DropReason::GuardAddress)?;
        let upper = upper(packet).ok_or(DropReason::GuardNeighbour)?;
        let kind = match upper.protocol {
            ICMPV6 if !upper.later => upper.payload.first().copied(),
            _ => None,
        };
        if address == 0 {
            // Nobody yet: asks whether its address is free, for routers, and to hear groups (RFC 4862, 3590).
            let asks = matches!(
                kind,
                Some(NEIGHBOUR_SOLICITATION | ROUTER_SOLICITATION | MLD_REPORT | MLD_DONE | MLD2_REPORT)
            );
            check(asks && destination >> 120 == 0xff, DropReason::GuardAddress)?;
        }
        if upper.protocol == UDP && !upper.later && !self.server {
            let ports = word(upper.payload, 0).zip(word(upper.payload, 2));
            check(
                ports.is_some_and(|ports| ports != (DHCPV6_SERVER, DHCPV6_CLIENT)),
                DropReason::GuardServer,
            )?;
        }
        match kind {
            Some(kind @ ROUTER_SOLICITATION..=REDIRECT) => self.neighbour(kind, &upper, address == 0, sender),
            None if upper.protocol == ICMPV6 && !upper.later => Err(DropReason::GuardNeighbour),
            _ => Ok(()),
        }
    }

    /// Whether a message of neighbour discovery claims only what is the port's.
    fn neighbour(&self, kind: u8, upper: &Upper<'_>, nobody: bool, sender: Mac) -> Checked {
        check(!upper.fragment, DropReason::GuardNeighbour)?;
        if matches!(kind, ROUTER_ADVERTISEMENT | REDIRECT) {
            return check(self.server, DropReason::GuardServer);
        }
        let claimed = || -> Option<bool> {
            let target = || v6_at(upper.payload, 8);
            let claims = match kind {
                NEIGHBOUR_ADVERTISEMENT => self.has_v6(target()?, sender),
                NEIGHBOUR_SOLICITATION if nobody => self.has_v6(target()?, sender),
                _ => true,
            };
            let options = if kind == ROUTER_SOLICITATION { 8 } else { 24 };
            Some(claims && self.options(upper.payload.get(options..)?)?)
        };
        check(claimed().unwrap_or(false), DropReason::GuardNeighbour)
    }

    /// Whether the link-layer addresses among the options (RFC 4861, 4.6.1) are the port's; `None`: cut off.
    fn options(&self, mut options: &[u8]) -> Option<bool> {
        while let Some(&kind) = options.first() {
            let len = usize::from(*options.get(1)?) * 8;
            let option = options.get(..len).filter(|option| !option.is_empty())?;
            if matches!(kind, 1 | 2) && !self.has_mac(mac_at(option, 2)?) {
                return Some(false);
            }
            options = &options[len..];
        }
        Some(true)
    }
}

/// What is behind the headers of an IPv6 packet.
struct Upper<'a> {
    protocol: u8,
    /// From the transport header on, as far as it is at hand.
    payload: &'a [u8],
    fragment: bool,
    /// A later fragment, without a transport header.
    later: bool,
}

/// Walks the extension headers; `None`: they go on beyond the bytes at hand, so nobody knows what follows.
fn upper(packet: &[u8]) -> Option<Upper<'_>> {
    let len = usize::from(word(packet, 4)?) + IPV6_LEN;
    let packet = packet.get(..len.min(packet.len()))?;
    let (mut protocol, mut at) = (*packet.get(6)?, IPV6_LEN);
    let (mut fragment, mut later) = (false, false);
    // Ends: every header takes us at least 8 bytes on. 51: authentication, counted in words of 4.
    while matches!(protocol, 0 | 43 | 44 | 51 | 60) && !later {
        let header = packet.get(at..at + 4)?;
        at += match protocol {
            44 => {
                fragment = true;
                later = word(header, 2)? & 0xfff8 != 0;
                8
            }
            51 => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        protocol = header[0];
    }
    Some(Upper { protocol, payload: packet.get(at..)?, fragment, later })
}

//! Frames that go to everybody on a bridge and concern its interface: questions for its addresses, announcements,
//! clients that look for a server. They are flooded as well, so nothing here changes them.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};

use vhost_backend::frame::Burst;
use vhost_backend::net_header::NetHeader;

use super::arp::{self, Arp, Learn};
use super::forward::Refusal;
use super::interface::Address;
use super::nd::{self, Message};
use super::{Arrival, Stage, UNTAGGED, checks, icmp};
use crate::drops::DropReason;
use crate::packet::ethernet::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Mac};
use crate::packet::headers::{Fragment, Headers};
use crate::packet::ip::UDP;
use crate::packet::rewrite::{is_partial, set_macs};

/// The port of DHCP servers (RFC 2131).
pub(super) const DHCP_SERVER: u16 = 67;

impl Stage {
    /// Hears a frame to a group. What does not concern the interface is none of its business and not counted.
    pub(super) fn overhear(
        &mut self,
        burst: &Burst,
        i: usize,
        ethertype: u16,
        network: usize,
        at: &Arrival<'_>,
    ) {
        match ethertype {
            arp::ETHERTYPE_ARP => self.arp(burst.head(i), network, at),
            ETHERTYPE_IPV4 => {
                if let Ok(headers) = Headers::parse(burst.head(i), burst.frame_len(i), network, false)
                    && headers.protocol == UDP
                    && headers.destination_port == DHCP_SERVER
                {
                    match self.guard(burst, i, &headers, at) {
                        Ok(()) => self.punt(burst, i, at),
                        Err(refusal) => self.refuse_group(refusal, at),
                    }
                }
            }
            ETHERTYPE_IPV6 => {
                let head = burst.head(i);
                if let Ok(headers) = Headers::parse(head, burst.frame_len(i), network, true) {
                    if nd::is_message(head, &headers) {
                        self.neighbour_message(burst, i, &headers, at);
                    } else if headers.fragment == Fragment::None
                        && icmp::is_echo_request(head, &headers)
                        && ethernet::destination(head).is_multicast()
                    {
                        self.echo_of_group(burst, i, &headers, at);
                    }
                }
            }
            _ => {}
        }
    }

    /// Nobody is told about a packet to everybody.
    fn refuse_group(&self, refusal: Refusal, at: &Arrival<'_>) {
        if let Refusal::Drop(reason) | Refusal::Tell(reason, _) | Refusal::Reject(reason) = refusal {
            at.counted.drop(reason, 1);
        }
    }

    /// Answers an echo request to a group that the interface is in, from an address of its own (RFC 4443, section 4.2).
    fn echo_of_group(&mut self, burst: &Burst, i: usize, headers: &Headers, at: &Arrival<'_>) {
        let head = burst.head(i);
        let interface = at.interface;
        let (source, group) = headers.addresses_v6(head);
        if !matches!(group, nd::ALL_NODES | nd::ALL_ROUTERS) && !interface.solicited(group) {
            return;
        }
        let checked = match checks::host_v6(source, group) {
            Ok(()) if source == 0 || at.router.own.has_v6(source) => Err(DropReason::MartianSource.into()),
            checked => checked.map_err(Refusal::from),
        };
        if let Err(refusal) = checked.and_then(|()| self.guard(burst, i, headers, at)) {
            return self.refuse_group(refusal, at);
        }
        // The frame is flooded, too: the answer is made of a copy, without the tag.
        let tag = usize::from(headers.network) - UNTAGGED;
        let Some(metadata) = burst.header(i).moved(-(tag as i16)) else { return };
        let untagged = Headers {
            network: headers.network - tag as u16,
            transport: headers.transport - tag as u16,
            ..*headers
        };
        let partial = is_partial(&metadata, &untagged);
        let (from, link) = (interface.source_v6(source), ethernet::source(head));
        let written = self.outbox.put(interface.index, metadata, burst.frame_len(i), |space| {
            let len = burst.linearise(i, space)?;
            space.copy_within(UNTAGGED - 2 + tag.., UNTAGGED - 2);
            let frame = &mut space[..len - tag];
            icmp::echo_reply::<u128>(frame, &untagged, partial, from);
            set_macs(frame, link, interface.mac);
            Some(frame.len())
        });
        if !written {
            at.counted.drop(DropReason::AnswerDropped, 1);
        }
    }

    /// Lets the service thread have a frame.
    pub(super) fn punt(&mut self, burst: &Burst, i: usize, at: &Arrival<'_>) {
        if !at.router.mailbox.punt(at.interface.index, at.port, burst, i) {
            at.counted.drop(DropReason::ServiceBusy, 1);
        }
    }

    /// An ARP packet that begins at `network`.
    pub(super) fn arp(&mut self, head: &[u8], network: usize, at: &Arrival<'_>) {
        let Some(arp) = Arp::parse(head, network) else {
            return at.counted.drop(DropReason::ArpInvalid, 1);
        };
        let interface = at.interface;
        let verdict = arp.verdict(interface.mac, |address| {
            interface.owns_v4(address)
                || interface.may_stand_for_v4(address)
                    && at.router.nat.speaks_for(Ipv4Addr::from_bits(address).into())
        });
        self.learn(Address::v4(arp.sender), Some(arp.sender_mac), verdict.learn, at);
        if verdict.conflict {
            at.counted.drop(DropReason::AddressConflict, 1);
        }
        if verdict.reply {
            self.say(&arp.reply(interface.mac).frame(None), at);
        }
    }

    /// A message of neighbour discovery.
    pub(super) fn neighbour_message(&mut self, burst: &Burst, i: usize, headers: &Headers, at: &Arrival<'_>) {
        let head = burst.head(i);
        let message = match nd::parse(head, headers, is_partial(burst.header(i), headers)) {
            Ok(message) => message,
            Err(reason) => return at.counted.drop(reason, 1),
        };
        let interface = at.interface;
        let own = crate::packet::ethernet::source(head) == interface.mac;
        let verdict = message.verdict(own, |address| {
            interface.owns_v6(address)
                || interface.may_stand_for_v6(address)
                    && at.router.nat.speaks_for(Ipv6Addr::from_bits(address).into())
        });
        let (sender, mac) = message.sender();
        // Who is asked at his own MAC address need not tell it (RFC 4861, sections 4.4 and 7.2.5).
        let sent_from = || known(Address::v6(sender), ethernet::source(head), at);
        let mac = mac.or_else(sent_from);
        self.learn(Address::v6(sender), mac, verdict.learn, at);
        if verdict.conflict {
            at.counted.drop(DropReason::AddressConflict, 1);
        }
        match message {
            Message::Solicitation { target, source, mac } if verdict.reply => {
                let to = mac.filter(|_| source != 0 && !verdict.conflict).map(|mac| (source, mac));
                let (frame, len) = nd::advertisement(interface.mac, target, to);
                self.say(&frame[..len], at);
            }
            Message::RouterSolicitation { .. } => self.punt(burst, i, at),
            _ => {}
        }
    }

    fn learn(&mut self, address: Address, mac: Option<Mac>, learn: Learn, at: &Arrival<'_>) {
        let Some(mac) = mac else { return };
        let neighbours = &at.router.neighbours;
        let known = match learn {
            Learn::Nothing => return,
            Learn::Update { replaces: false, confirmed } => {
                neighbours.hear(at.interface.index, address, mac, confirmed, at.now)
            }
            Learn::Update { confirmed, .. } => {
                neighbours.update(at.interface.index, address, mac, confirmed, at.now)
            }
            Learn::Create => neighbours.learn(at.interface.index, address, mac, at.port, at.now),
        };
        let _ = known;
    }

    /// Puts an untagged frame of the interface's own into the outbox.
    pub(super) fn say(&mut self, frame: &[u8], at: &Arrival<'_>) {
        if !self.outbox.put_whole(at.interface.index, NetHeader::default(), frame) {
            at.counted.drop(DropReason::AnswerDropped, 1);
        }
    }
}

/// `mac`, if that is where a neighbour is known to be.
fn known(neighbour: Address, mac: Mac, at: &Arrival<'_>) -> Option<Mac> {
    let neighbours = &at.router.neighbours;
    let slot = neighbours.slot(neighbours.find(at.interface.index, neighbour)?)?;
    (slot.usable_mac(at.now) == Some(mac)).then_some(mac)
}

//! The last steps of a routed packet: its change, its next link's addresses, and the port that it leaves by.
#![forbid(unsafe_code)]

use vhost_backend::frame::Burst;

use super::family::Routed;
use super::forward::{Item, Refusal};
use super::icmp::Error;
use super::interface::Interface;
use super::neighbour::Slot;
use super::next_hop::Hop;
use super::{Arrival, Stage};
use crate::drops::DropReason;
use crate::l2::fdb::Key as FdbKey;
use crate::members::{Verdict, interface_index};
use crate::packet::ethernet::{ETHERTYPE_VLAN, Mac};
use crate::packet::headers::Headers;
use crate::packet::rewrite::{is_partial, set_macs};
use crate::packet::{ethernet, fits};

impl Stage {
    /// Changes a packet with `change` and sends it to its next hop.
    #[inline]
    pub(super) fn send_on<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        hop: Hop,
        at: &Arrival<'_>,
        change: impl FnOnce(&mut [u8], &Headers, bool),
    ) -> Result<(), Refusal> {
        let i = item.i;
        if item.headers.ttl <= 1 {
            return Err(Refusal::Tell(DropReason::TtlExceeded, Error::TimeExceeded));
        }
        let slot = at.router.neighbours.slot(hop.adjacency).ok_or(DropReason::NoRoute)?;
        let interface = at.router.interface(slot.interface()).ok_or(DropReason::NoRoute)?;
        if burst.frame_len(i) > usize::from(interface.mtu) + ethernet::HEADER_LEN
            && !fits(burst.head(i), burst.frame_len(i), burst.header(i), interface.mtu)
        {
            return self.too_long(burst, item, interface);
        }
        let partial = is_partial(burst.header(i), &item.headers);
        change(burst.head_mut(i), &item.headers, partial);
        self.hand_over(burst, i, hop, slot, interface, at)
    }

    /// Sends a packet that is ready but for its next link's addresses.
    #[inline]
    pub(super) fn hand_over(
        &mut self,
        burst: &mut Burst,
        i: usize,
        hop: Hop,
        slot: &Slot,
        interface: &Interface,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        match slot.usable_mac(at.now) {
            Some(mac) => {
                set_macs(burst.head_mut(i), mac, interface.mac);
                if interface.vlan != 0 && !burst.insert_tag(i, tag(interface.vlan)) {
                    return Err(DropReason::Oversized.into());
                }
                emit(interface, mac, 1 << i, at.now, &mut self.verdict);
                Ok(())
            }
            None => self.wait_for(burst, i, hop, slot, at),
        }
    }
}

impl Stage {
    /// A packet that is longer than its next link takes: fragmented, if its sender allows it.
    #[cold]
    fn too_long<F: Routed>(
        &mut self,
        _: &mut Burst,
        _: &Item<F>,
        interface: &Interface,
    ) -> Result<(), Refusal> {
        Err(Refusal::Tell(DropReason::FragmentationNeeded, Error::TooBig { mtu: interface.mtu.into() }))
    }
}

/// The tag of a VLAN as it goes on the wire.
pub(super) fn tag(vlan: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (ETHERTYPE_VLAN.to_be_bytes(), vlan.to_be_bytes());
    [a, b, c, d]
}

/// Lets frames leave by the port of `interface`'s bridge behind which `mac` is: by all ports if that is not known.
#[inline]
pub(super) fn emit(interface: &Interface, mac: Mac, frames: u64, now: u32, verdict: &mut Verdict) {
    let key = FdbKey::new(mac.0, interface.vlan);
    match if mac.is_multicast() { None } else { interface.table.fdb.lookup(key, now) } {
        Some(port) => verdict.send(frames, port),
        None => flood(interface, frames, verdict),
    }
}

#[cold]
fn flood(interface: &Interface, frames: u64, verdict: &mut Verdict) {
    for &port in interface.table.members.iter().filter(|&&member| interface_index(member).is_none()) {
        verdict.send(frames, port);
    }
}

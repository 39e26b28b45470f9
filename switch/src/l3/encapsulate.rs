//! Packets to servers behind tunnels: wrapped into others as frames of the switch's own making.
//!
//! The packet is copied, whole: its checksums are completed and segments cut, since nobody would do that within a
//! tunnel. A packet that does not fit is cut before it is wrapped, or its sender told what fits.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use vhost_backend::frame::Burst;
use vhost_backend::net_header::{NEEDS_CSUM, NetHeader};

use super::deliver::{put_each, shorten};
use super::family::Routed;
use super::forward::{Item, Refusal};
use super::icmp::Error;
use super::interface::Interface;
use super::next_hop::Hop;
use super::outbox::Outbox;
use super::{Arrival, Stage, UNTAGGED, hold};
use crate::drops::DropReason;
use crate::ipvs::spec::Tunnel;
use crate::packet::ethernet::Mac;
use crate::packet::offload::{Capabilities, complete};
use crate::packet::rewrite::{decrement_ttl, set_macs};
use crate::packet::tunnel::{Ends, Outer};

impl Stage {
    /// Sends a packet through a tunnel to `server`, whose way begins at `hop`.
    #[cold]
    pub(super) fn encapsulate<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        hop: Hop,
        tunnel: Tunnel,
        server: IpAddr,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        let i = item.i;
        if item.headers.ttl <= 1 {
            return Err(Refusal::Tell(DropReason::TtlExceeded, Error::TimeExceeded));
        }
        let slot = at.router.neighbours.slot(hop.adjacency).ok_or(DropReason::NoRoute)?;
        let interface = at.router.interface(slot.interface()).ok_or(DropReason::NoRoute)?;
        let ends = match server {
            IpAddr::V4(v4) => {
                let source = interface.source_v4(v4.to_bits()).ok_or(DropReason::NatNoAddress)?;
                Ends::V4(source, v4.to_bits())
            }
            IpAddr::V6(v6) => Ends::V6(interface.source_v6(v6.to_bits()), v6.to_bits()),
        };
        let random = self.random();
        let flow = item.hash as u16 ^ (item.hash >> 16) as u16;
        let outer = Outer { tunnel, ends, id: random as u16, flow };
        let mtu = interface.mtu.saturating_sub(outer.len() as u16);
        let whole = burst.frame_len(i) <= usize::from(mtu) + UNTAGGED || shorten(burst, item, mtu)?;
        let mac = slot.usable_mac(at.now);
        if mac.is_none() {
            self.ask_for(slot, at)?;
        }
        let original = *burst.snapshot(i);
        decrement_ttl(burst.head_mut(i), &item.headers);
        let end = UNTAGGED + item.headers.len as usize;
        let metadata = *burst.header(i);
        let Self { outbox, scratch, finisher, hold, .. } = self;
        let Some(mac) = mac else {
            // Whoever begins with more than fits will send it again.
            let waiting = hold::Waiting {
                adjacency: hop.adjacency,
                version: slot.version(),
                headers: item.headers,
                interface: at.interface.index,
                port: at.port,
                since: at.now,
                again: false,
            };
            let kept = whole
                && !metadata.is_gso()
                && hold.keep_frame(NetHeader::default(), &original, waiting, |space| {
                    outer.write(space, |space| {
                        let len = burst.linearise(i, space)?.min(end);
                        let frame = space.get_mut(..len)?;
                        (metadata.flags & NEEDS_CSUM == 0 || complete(frame, &metadata)).then_some(len)
                    })
                });
            return if kept { Ok(()) } else { Err(DropReason::NeighbourQueueFull.into()) };
        };
        if metadata.is_gso() {
            let before = outbox.len();
            let mut room = true;
            let done = finisher.finish(burst, i, Capabilities::NONE, |segments| {
                for n in 0..segments.len() {
                    room &= put(outbox, interface, mac, &outer, segments.frame_len(n), |space| {
                        segments.linearise(n, space)
                    });
                }
            });
            if !done || !room {
                outbox.truncate(before);
                return Err(DropReason::AnswerDropped.into());
            }
            return Ok(());
        }
        let len = burst.linearise(i, scratch).ok_or(DropReason::Oversized)?.min(end);
        let frame = &mut scratch[..len];
        if !whole {
            // Completes the checksum itself.
            return Ok(put_each(outbox, frame, &item.headers, &metadata, mtu, |outbox, piece| {
                let room = piece.head().len() + piece.payload.len();
                put(outbox, interface, mac, &outer, room, |space| piece.write(space))
            })?);
        }
        if metadata.flags & NEEDS_CSUM != 0 && !complete(frame, &metadata) {
            return Err(DropReason::BadOffload.into());
        }
        let done = put(outbox, interface, mac, &outer, len, |space| {
            space.get_mut(..len)?.copy_from_slice(frame);
            Some(len)
        });
        if done { Ok(()) } else { Err(DropReason::AnswerDropped.into()) }
    }
}

/// Puts a frame of at most `len` bytes that `write` writes, wrapped.
fn put(
    outbox: &mut Outbox,
    interface: &Interface,
    mac: Mac,
    outer: &Outer,
    len: usize,
    write: impl FnOnce(&mut [u8]) -> Option<usize>,
) -> bool {
    outbox.put(interface.index, NetHeader::default(), outer.len() + len, |space| {
        let len = outer.write(space, write)?;
        set_macs(space, mac, interface.mac);
        Some(len)
    })
}

//! What a worker does for layer 3 between two bursts: sends what it made itself, frees packets whose neighbour has
//! answered, carries out what the service thread wants sent, and lets its connections age.
#![forbid(unsafe_code)]

use vhost_backend::frame::{BURST, Burst};
use vhost_backend::net_header::NetHeader;

use super::arp::Arp;
use super::deliver::{emit, tag};
use super::forward::Refusal;
use super::hold::Outcome;
use super::interface::{Address, Interface};
use super::neighbour::{Slot, Waiting};
use super::next_hop::Hop;
use super::outbox::Outbox;
use super::table::RouterTable;
use super::{Arrival, Stage, nd};
use crate::drops::DropReason;
use crate::packet::rewrite::set_macs;

/// Frames of the service thread that are sent in one turn.
const INJECTED: usize = 16;

impl Stage {
    /// Keeps a packet until its neighbour's address is known, and asks for that.
    #[cold]
    pub(super) fn wait_for(
        &mut self,
        burst: &Burst,
        i: usize,
        hop: Hop,
        slot: &Slot,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        let version = slot.version();
        match slot.ask(at.now) {
            Waiting::Failed => {
                return Err(Refusal::Tell(DropReason::NeighbourFailed, super::icmp::Error::HostUnreachable));
            }
            Waiting::Ask => {
                if let Some(interface) = at.router.interface(slot.interface()) {
                    self.ask(interface, slot.address());
                }
            }
            Waiting::Wait => {}
        }
        if self.hold.keep(burst, i, hop.adjacency, version, at.now) {
            Ok(())
        } else {
            Err(DropReason::NeighbourQueueFull.into())
        }
    }

    /// Asks everybody on an interface for a neighbour's MAC address.
    fn ask(&mut self, interface: &Interface, address: Address) {
        let mut put = |frame: &[u8]| {
            // A full box: the next packet asks again.
            self.outbox.put(interface.index, NetHeader::default(), frame.len(), |space| {
                space.copy_from_slice(frame);
                Some(frame.len())
            });
        };
        if address.is_v4() {
            let target = address.0 as u32;
            if let Some(source) = interface.source_v4(target) {
                put(&Arp::request(interface.mac, source, target).frame(None));
            }
        } else {
            let (frame, len) =
                nd::solicitation(interface.mac, interface.source_v6(address.0), address.0, None);
            put(&frame[..len]);
        }
    }

    /// Whether [`Stage::turn`] has something to do at once.
    #[inline]
    pub fn is_pending(&self) -> bool {
        !self.outbox.is_empty() || !self.hold.is_empty()
    }

    /// For how many milliseconds a worker may sleep; -1: until somebody wakes it.
    pub fn patience(&self) -> i32 {
        match () {
            // A neighbour's answer may come by another worker.
            () if !self.hold.is_empty() => 1,
            () if !self.local.is_idle() => 1000,
            () => -1,
        }
    }

    /// Lets the worker's connections age; to be called when it holds no references into the tables.
    #[inline]
    pub fn age(&mut self, router: &RouterTable, now: u32) {
        self.local.turn(&router.conntrack, now);
    }

    /// Takes what the service thread wants sent; one worker does it.
    #[inline]
    pub fn take_injected(&mut self, router: &RouterTable) {
        if router.inject.is_empty() {
            return;
        }
        let outbox = &mut self.outbox;
        router.inject.drain(INJECTED, |letter| {
            let frame = letter.frame();
            // What does not fit is lost, as on a wire; its client asks again.
            outbox.put(letter.interface(), NetHeader::default(), frame.len(), |space| {
                space.copy_from_slice(frame);
                Some(frame.len())
            });
        });
    }

    /// Sends what the worker made itself and what needs to wait no longer; whether there was anything. `burst` is empty;
    /// `send` sends the frames of a mask by a port.
    #[cold]
    pub fn flush(
        &mut self,
        router: &RouterTable,
        burst: &mut Burst,
        now: u32,
        mut send: impl FnMut(&mut Burst, u16, u64),
    ) -> bool {
        self.release(router, now);
        if self.outbox.is_empty() {
            return false;
        }
        let (outbox, verdict) = (&self.outbox, &mut self.verdict);
        burst.with_slices(
            |filler| {
                for (letter, head, rest) in outbox.letters() {
                    // At most BURST letters, of at least one byte each: there is room.
                    filler.push(letter.header, head, rest);
                }
            },
            |burst| {
                for (i, (letter, head, _)) in outbox.letters().enumerate().take(BURST) {
                    let Some(interface) = router.interface(letter.interface) else { continue };
                    if interface.vlan == 0 || burst.insert_tag(i, tag(interface.vlan)) {
                        emit(interface, Outbox::destination(head), 1 << i, now, verdict);
                    }
                }
                while let Some((port, frames)) = verdict.take() {
                    send(burst, port, frames);
                }
            },
        );
        self.outbox.clear();
        true
    }

    /// Moves packets whose neighbour is known into the outbox, and gives up those that have waited for too long.
    fn release(&mut self, router: &RouterTable, now: u32) {
        if self.hold.is_empty() {
            return;
        }
        let outbox = &mut self.outbox;
        let found = |adjacency: u32, version: u32| {
            let slot = router.neighbours.slot(adjacency).filter(|slot| slot.version() == version)?;
            Some((slot.interface(), slot.usable_mac(now)?))
        };
        self.hold.release(
            now,
            |waiting, overdue| {
                let known = found(waiting.adjacency, waiting.version).is_some();
                if overdue || known { Outcome::Take } else { Outcome::Wait }
            },
            |waiting, frame| {
                let Some((index, mac)) = found(waiting.adjacency, waiting.version) else { return };
                let Some(interface) = router.interface(index) else { return };
                set_macs(frame, mac, interface.mac);
                outbox.put(index, waiting.header, frame.len(), |space| {
                    space.copy_from_slice(frame);
                    Some(frame.len())
                });
            },
        );
    }
}

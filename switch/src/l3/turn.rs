//! What a worker does for layer 3 between two bursts: sends what it made itself, frees packets whose neighbour has
//! answered, carries out what the service thread wants sent, and lets its connections age.
#![forbid(unsafe_code)]

use vhost_backend::frame::{BURST, Burst, SNAPSHOT};
use vhost_backend::net_header::NetHeader;

use super::answer::tell;
use super::arp::Arp;
use super::deliver::{emit, put_pieces, tag};
use super::family::Routed;
use super::forward::{Item, Refusal};
use super::hold::{self, Outcome};
use super::icmp::Error;
use super::interface::{Address, Interface};
use super::neighbour::{Slot, Waiting};
use super::next_hop::Hop;
use super::outbox::Outbox;
use super::table::RouterTable;
use super::{Arrival, Stage, nd};
use crate::drops::DropReason;
use crate::packet::fits;
use crate::packet::rewrite::set_macs;
use crate::rules::NONE;
use crate::stats::Direction;

/// Frames of the service thread that are sent in one turn.
const INJECTED: usize = 16;

impl Stage {
    /// Asks for a neighbour's address, unless that was in vain.
    #[cold]
    pub(super) fn ask_for(&mut self, slot: &Slot, at: &Arrival<'_>) -> Result<(), Refusal> {
        match slot.ask(at.now) {
            Waiting::Failed => {
                return Err(Refusal::Tell(DropReason::NeighbourFailed, Error::HostUnreachable));
            }
            Waiting::Ask => {
                if let Some(interface) = at.router.interface(slot.interface()) {
                    self.ask(interface, slot.address());
                }
            }
            Waiting::Wait => {}
        }
        Ok(())
    }

    /// Keeps a packet, which came with `original` in its first bytes, until its neighbour's address is known.
    #[cold]
    pub(super) fn wait<F: Routed>(
        &mut self,
        burst: &Burst,
        item: &Item<F>,
        hop: Hop,
        slot: &Slot,
        original: &[u8; SNAPSHOT],
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        self.keep(burst, item, hop, slot, original, false, at)
    }

    /// Lets a packet that nothing was decided about wait for its neighbour: the policy asks by which port it leaves.
    #[cold]
    pub(super) fn wait_to_be_judged<F: Routed>(
        &mut self,
        burst: &Burst,
        item: &Item<F>,
        hop: Hop,
        slot: &Slot,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        self.ask_for(slot, at)?;
        self.keep(burst, item, hop, slot, burst.snapshot(item.i), true, at)
    }

    #[expect(clippy::too_many_arguments, reason = "two ways to one place")]
    fn keep<F: Routed>(
        &mut self,
        burst: &Burst,
        item: &Item<F>,
        hop: Hop,
        slot: &Slot,
        original: &[u8; SNAPSHOT],
        again: bool,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        let waiting = hold::Waiting {
            adjacency: hop.adjacency,
            version: slot.version(),
            headers: item.headers,
            interface: at.interface.index,
            port: at.port,
            since: at.now,
            again,
        };
        if self.hold.keep(burst, item.i, original, waiting) {
            Ok(())
        } else {
            Err(DropReason::NeighbourQueueFull.into())
        }
    }

    /// Asks everybody on an interface for a neighbour's MAC address.
    fn ask(&mut self, interface: &Interface, address: Address) {
        let mut put = |frame: &[u8]| {
            // A full box: the next packet asks again.
            self.outbox.put_whole(interface.index, NetHeader::default(), frame);
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
        !self.outbox.is_empty() || !self.hold.is_empty() || !self.again.is_empty() || !self.lost.is_empty()
    }

    /// Whether what was made is so much that it had better be sent before the next burst.
    #[inline]
    pub fn is_crowded(&self) -> bool {
        self.outbox.is_crowded() || self.again.is_crowded()
    }

    /// For how many milliseconds a worker may sleep; -1: until somebody wakes it.
    pub fn patience(&self) -> i32 {
        match () {
            // A neighbour's answer may come by another worker.
            () if !self.hold.is_empty() => 1,
            () if !self.local.is_idle() || self.gathering.is_some() => 1000,
            () => -1,
        }
    }

    /// Lets the worker's connections age; to be called when it holds no references into the tables. Whether there is more
    /// of that to be done at once.
    #[inline]
    pub fn age(&mut self, router: &RouterTable, now: u32) -> bool {
        let behind = self.local.turn(&router.conntrack, now);
        if let Some(gathering) = self.gathering
            && gathering.looked != now
        {
            self.forget_fragments(router, gathering, now);
        }
        behind
    }

    /// Takes what the service thread wants sent; one worker does it.
    #[inline]
    pub fn take_injected(&mut self, router: &RouterTable) {
        if router.inject.is_empty() {
            return;
        }
        let outbox = &mut self.outbox;
        router.inject.drain(INJECTED, |letter| {
            // What does not fit is lost, as on a wire; its client asks again.
            outbox.put_behind(letter.interface(), letter.port(), letter.frame());
        });
    }

    /// Sends what the worker made itself and what needs to wait no longer; whether there was anything. `burst` is empty;
    /// `counted` has what a port has received counted, `send` sends the frames of a mask by a port.
    #[cold]
    pub fn flush<'a>(
        &mut self,
        router: &RouterTable,
        burst: &mut Burst,
        now: u32,
        counted: impl Fn(u16) -> Option<&'a Direction>,
        mut send: impl FnMut(&mut Burst, u16, u64),
    ) -> bool {
        self.release(router, now);
        let again = self.resume(router, burst, now, &counted, &mut send);
        self.lost.take(|port, reason, number| {
            if let Some(counted) = counted(port) {
                counted.drop(reason, number);
            }
        });
        if self.outbox.is_empty() {
            return again;
        }
        let (outbox, verdict) = (&self.outbox, &mut self.verdict);
        for from in (0..outbox.len()).step_by(BURST) {
            burst.with_slices(
                |filler| {
                    for (letter, head, rest) in outbox.letters(from).take(BURST) {
                        // At most BURST letters, of at least one byte each: there is room.
                        filler.push(letter.header, head, rest);
                    }
                },
                |burst| {
                    for (i, (letter, head, _)) in outbox.letters(from).enumerate().take(BURST) {
                        let Some(interface) = router.interface(letter.interface) else { continue };
                        if interface.vlan != 0 && !burst.insert_tag(i, tag(interface.vlan)) {
                            continue;
                        }
                        // Where a station was heard it is, whatever the bridge believes, unless the port has gone.
                        if letter.port != NONE && interface.table.members.contains(&letter.port) {
                            verdict.send(1 << i, letter.port);
                        } else {
                            emit(interface, Outbox::destination(head), 1 << i, now, verdict);
                        }
                    }
                    while let Some((port, frames)) = verdict.take() {
                        send(burst, port, frames);
                    }
                },
            );
        }
        self.outbox.clear();
        true
    }

    /// Moves packets whose neighbour is known into the outbox, and gives up those that have waited for too long: their
    /// senders are told (RFC 1812, section 3.3.2).
    fn release(&mut self, router: &RouterTable, now: u32) {
        if self.hold.is_empty() {
            return;
        }
        let Self { hold, outbox, again, limiter, lost, .. } = self;
        let found = |waiting: &hold::Waiting| {
            let slot = router.neighbours.slot(waiting.adjacency)?;
            let mac = slot.usable_mac(now).filter(|_| slot.version() == waiting.version)?;
            Some((router.interface(slot.interface())?, mac))
        };
        hold.release(
            now,
            |waiting, overdue| {
                if overdue || found(waiting).is_some() { Outcome::Take } else { Outcome::Wait }
            },
            |waiting, kept| {
                let headers = &waiting.headers;
                let Some((interface, mac)) = found(waiting) else {
                    lost.add(waiting.port, DropReason::NeighbourFailed, 1);
                    if let Some(interface) = router.interface(waiting.interface) {
                        tell(
                            outbox,
                            limiter,
                            interface,
                            kept.into_original(),
                            headers,
                            Error::HostUnreachable,
                        );
                    }
                    return;
                };
                if waiting.again {
                    let (from, port) = (waiting.interface, waiting.port);
                    let put = again.put_from(from, port, kept.header, kept.frame.len(), |space| {
                        space.copy_from_slice(kept.frame);
                        Some(kept.frame.len())
                    });
                    if !put {
                        lost.add(waiting.port, DropReason::NeighbourQueueFull, 1);
                    }
                    return;
                }
                set_macs(kept.frame, mac, interface.mac);
                let done = if fits(kept.frame, kept.frame.len(), &kept.header, interface.mtu) {
                    outbox.put_whole(interface.index, kept.header, kept.frame)
                } else {
                    put_pieces(outbox, interface, kept.frame, headers, &kept.header).is_ok()
                };
                if !done {
                    lost.add(waiting.port, DropReason::NeighbourQueueFull, 1);
                }
            },
        );
    }
}

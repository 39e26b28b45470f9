//! What the switch says about packets that it does not forward: ICMP errors, resets; and what happens to packets that
//! have to wait or are too long.
#![forbid(unsafe_code)]

use vhost_backend::frame::Burst;
use vhost_backend::net_header::NetHeader;

use super::compose::Link;
use super::deliver::emit;
use super::family::Routed;
use super::forward::Refusal;
use super::icmp::{self, Error};
use super::interface::Interface;
use super::limit::Limiter;
use super::outbox::Outbox;
use super::{Arrival, Stage, UNTAGGED, reset};
use crate::clock;
use crate::conntrack::{V4, V6};
use crate::drops::DropReason;
use crate::packet::headers::Headers;
use crate::packet::ip::TCP;

impl Stage {
    /// Drops a packet, or gives it to those who are responsible.
    #[cold]
    pub(super) fn refuse(
        &mut self,
        burst: &mut Burst,
        i: usize,
        headers: &Headers,
        refusal: Refusal,
        at: &Arrival<'_>,
    ) {
        match refusal {
            Refusal::Drop(reason) => at.counted.drop(reason, 1),
            Refusal::Renew => at.counted.drop(DropReason::BalanceServerGone, 1),
            Refusal::Tell(reason, error) => {
                at.counted.drop(reason, 1);
                self.report(burst, i, headers, error, at);
            }
            Refusal::Reject(reason) => {
                at.counted.drop(reason, 1);
                match (headers.protocol, headers.v6) {
                    (TCP, true) => self.reset::<V6>(burst, i, headers, at),
                    (TCP, false) => self.reset::<V4>(burst, i, headers, at),
                    _ => self.report(burst, i, headers, Error::PortUnreachable, at),
                }
            }
            Refusal::Local if headers.v6 => self.for_us::<V6>(burst, i, headers, at),
            Refusal::Local => self.for_us::<V4>(burst, i, headers, at),
        }
    }

    /// Sends an ICMP error about a packet that came in, if one may be sent.
    pub(super) fn report(
        &mut self,
        burst: &Burst,
        i: usize,
        headers: &Headers,
        error: Error,
        at: &Arrival<'_>,
    ) {
        if headers.v6 {
            self.report_in::<V6>(burst, i, headers, error, at);
        } else {
            self.report_in::<V4>(burst, i, headers, error, at);
        }
    }

    fn report_in<F: Routed>(
        &mut self,
        burst: &Burst,
        i: usize,
        headers: &Headers,
        error: Error,
        at: &Arrival<'_>,
    ) {
        let head = burst.head(i);
        let Some(source) = author::<F>(&mut self.limiter, at.interface, head, headers, error) else { return };
        let end = UNTAGGED + headers.len as usize;
        let whole = if end > head.len() { burst.linearise(i, &mut self.scratch) } else { None };
        let frame = whole.map_or(head, |len| &self.scratch[..len]);
        if !quote::<F>(&mut self.outbox, at.interface, source, frame, headers, error) {
            at.counted.drop(DropReason::AnswerDropped, 1);
        }
    }

    /// Answers a segment to a port at which nobody listens.
    pub(super) fn reset<F: Routed>(&mut self, burst: &Burst, i: usize, headers: &Headers, at: &Arrival<'_>) {
        let head = burst.head(i);
        let link = Link::answer(head);
        // A segment that must not be answered (a reset) makes no frame.
        self.outbox.put(at.interface.index, NetHeader::default(), reset::FRAME_LEN, |space| {
            reset::reset::<F::Address>(space, link, head, headers)
        });
    }

    /// Sends an answer that was made of the packet itself back to where it came from.
    pub(super) fn send_back(&mut self, burst: &mut Burst, i: usize, at: &Arrival<'_>) {
        let Link { destination, source } = Link::answer(burst.head(i));
        crate::packet::rewrite::set_macs(burst.head_mut(i), destination, source);
        if at.interface.vlan != 0 && !burst.insert_tag(i, super::deliver::tag(at.interface.vlan)) {
            return at.counted.drop(DropReason::AnswerDropped, 1);
        }
        emit(at.interface, destination, 1 << i, at.now, &mut self.verdict);
    }
}

/// Sends an ICMP error about the packet of a whole frame that came to an interface, if one may be sent.
pub(super) fn tell(
    outbox: &mut Outbox,
    limiter: &mut Limiter,
    interface: &Interface,
    frame: &[u8],
    headers: &Headers,
    error: Error,
) {
    // Without room it is lost, as any error may be.
    if headers.v6 {
        if let Some(source) = author::<V6>(limiter, interface, frame, headers, error) {
            quote::<V6>(outbox, interface, source, frame, headers, error);
        }
    } else if let Some(source) = author::<V4>(limiter, interface, frame, headers, error) {
        quote::<V4>(outbox, interface, source, frame, headers, error);
    }
}

/// The address that an error about a packet is sent from, if one may be sent now.
fn author<F: Routed>(
    limiter: &mut Limiter,
    interface: &Interface,
    head: &[u8],
    headers: &Headers,
    error: Error,
) -> Option<F::Address> {
    let (to, about) = F::addresses(headers, head);
    if !icmp::may_report(head, headers, error)
        || F::is_broadcast(interface, to)
        || F::is_broadcast(interface, about)
    {
        return None;
    }
    let source = F::source(interface, to)?;
    let now = clock::cycles() / clock::cycles_per_us();
    limiter.allow(error, F::number(to), now).then_some(source)
}

/// Puts an error about the packet of `frame`, of which as much is quoted as is there. False if there is no room.
fn quote<F: Routed>(
    outbox: &mut Outbox,
    interface: &Interface,
    source: F::Address,
    frame: &[u8],
    headers: &Headers,
    error: Error,
) -> bool {
    let link = Link::answer(frame);
    let packet = &frame[UNTAGGED..(UNTAGGED + headers.len as usize).min(frame.len())];
    outbox.put(interface.index, NetHeader::default(), icmp::FRAME_LEN, |space| {
        icmp::error::<F::Address>(space, link, source, packet, error)
    })
}

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
        let (to, about) = F::addresses(headers, head);
        if !icmp::may_report(head, headers, error)
            || F::is_broadcast(at.interface, to)
            || F::is_broadcast(at.interface, about)
        {
            return;
        }
        let Some(source) = F::source(at.interface, to) else { return };
        let now = clock::cycles() / clock::cycles_per_us();
        if !self.limiter.allow(error, F::number(to), now) {
            return;
        }
        let link = Link::answer(head);
        let packet = &head[UNTAGGED..(UNTAGGED + headers.len as usize).min(head.len())];
        let put = self.outbox.put(at.interface.index, NetHeader::default(), icmp::FRAME_LEN, |space| {
            icmp::error::<F::Address>(space, link, source, packet, error)
        });
        if !put {
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

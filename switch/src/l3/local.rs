//! Packets to the switch's own addresses: it answers pings, gives the service thread what services are for, and says of
//! everything else that nobody is there.
#![forbid(unsafe_code)]

use vhost_backend::frame::Burst;

use super::family::Routed;
use super::forward::Refusal;
use super::group::DHCP_SERVER;
use super::icmp::{self, Error};
use super::{Arrival, Stage, nd};
use crate::drops::DropReason;
use crate::packet::headers::{Fragment, Headers};
use crate::packet::ip::{ICMP, ICMPV6, TCP, UDP};
use crate::packet::rewrite::is_partial;
use crate::policy::Place;
use crate::policy::rule::State;

impl Stage {
    /// A packet to one of the switch's addresses.
    pub(super) fn for_us<F: Routed>(
        &mut self,
        burst: &mut Burst,
        i: usize,
        headers: &Headers,
        at: &Arrival<'_>,
    ) {
        let done = if headers.fragment == Fragment::None {
            self.guard(burst, i, headers, at)
        } else {
            self.gather_for_us::<F>(burst, i, headers, at)
        };
        match done {
            Ok(()) if headers.fragment == Fragment::None => self.serve::<F>(burst, i, headers, at),
            Ok(()) | Err(Refusal::Local) => {}
            Err(refusal) => self.refuse(burst, i, headers, refusal, at),
        }
    }

    /// Whether the policy lets a packet come to the switch itself. Neighbour discovery is no more its business than ARP.
    pub(super) fn guard(
        &mut self,
        burst: &Burst,
        i: usize,
        headers: &Headers,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        let head = burst.head(i);
        if !at.router.policy.guards_switch() || nd::is_message(head, headers) {
            return Ok(());
        }
        let bytes = burst.frame_len(i) as u64;
        self.judge(at, &headers.tuple(head), Place::SWITCH, false, State::New, bytes)
    }

    /// Answers a whole packet to one of the switch's addresses.
    fn serve<F: Routed>(&mut self, burst: &mut Burst, i: usize, headers: &Headers, at: &Arrival<'_>) {
        let head = burst.head(i);
        let (_, destination) = F::addresses(headers, head);
        match headers.protocol {
            ICMP | ICMPV6 if icmp::is_echo_request(head, headers) => {
                let partial = is_partial(burst.header(i), headers);
                icmp::echo_reply::<F::Address>(burst.head_mut(i), headers, partial, destination);
                self.send_back(burst, i, at);
            }
            ICMPV6 if nd::is_message(head, headers) => self.neighbour_message(burst, i, headers, at),
            ICMP | ICMPV6 => at.counted.drop(DropReason::LocalIcmp, 1),
            UDP if headers.destination_port == DHCP_SERVER => self.punt(burst, i, at),
            TCP => {
                at.counted.drop(DropReason::NoListener, 1);
                self.reset::<F>(burst, i, headers, at);
            }
            UDP => {
                at.counted.drop(DropReason::NoListener, 1);
                self.report(burst, i, headers, Error::PortUnreachable, at);
            }
            _ => {
                at.counted.drop(DropReason::NoListener, 1);
                self.report(burst, i, headers, Error::ProtocolUnreachable, at);
            }
        }
    }
}

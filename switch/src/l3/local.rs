//! Packets to the switch's own addresses: it answers pings, gives the service thread what services are for, and says of
//! everything else that nobody is there.
#![forbid(unsafe_code)]

use vhost_backend::frame::Burst;

use super::family::Routed;
use super::group::DHCP_SERVER;
use super::icmp::{self, Error};
use super::{Arrival, Stage, nd};
use crate::drops::DropReason;
use crate::packet::headers::{Fragment, Headers};
use crate::packet::ip::{ICMP, ICMPV6, TCP, UDP};
use crate::packet::rewrite::is_partial;

impl Stage {
    /// A packet to one of the switch's addresses.
    pub(super) fn for_us<F: Routed>(
        &mut self,
        burst: &mut Burst,
        i: usize,
        headers: &Headers,
        at: &Arrival<'_>,
    ) {
        let head = burst.head(i);
        let (_, destination) = F::addresses(headers, head);
        if headers.fragment != Fragment::None {
            // Nothing that the switch answers is that long.
            return at.counted.drop(DropReason::LocalFragment, 1);
        }
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

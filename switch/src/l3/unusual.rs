//! Packets that do not tell their connection by themselves: ICMP errors, which quote a packet of it, and fragments.
#![forbid(unsafe_code)]

use vhost_backend::frame::Burst;

use super::family::Routed;
use super::forward::{Item, Refusal};
use super::next_hop::next_hop;
use super::{Arrival, Stage};
use crate::conntrack::Key;
use crate::drops::DropReason;
use crate::packet::embedded::Embedded;
use crate::packet::headers::Fragment;
use crate::packet::rewrite::decrement_ttl;

impl Stage {
    /// Routes such a packet.
    #[cold]
    pub(super) fn unusual<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        if item.headers.fragment == Fragment::None {
            self.icmp_error(burst, item, at)
        } else {
            self.fragment(burst, item, at)
        }
    }

    /// An error about a packet of a connection goes to who sent that packet (state RELATED).
    pub(super) fn icmp_error<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        F::admit(&item.key, at)?;
        let head = burst.head(item.i);
        let embedded = Embedded::parse(head, &item.headers).ok_or(DropReason::CtInvalid)?;
        if !embedded.checksum_good || embedded.headers.icmp_error {
            return Err(DropReason::CtInvalid.into());
        }
        let table = at.router.conntrack.table::<F>();
        // What goes the error's way: answers to the quoted packet.
        let key = Key::<F>::of(&embedded.headers, head).reversed();
        let Some(found) = table.find(&key, table.hash(&key)) else {
            // Perhaps about something that the switch said itself.
            let hop = next_hop::<F>(at, item.key.destination, item.hash);
            return Err(hop
                .err()
                .filter(|refusal| *refusal == Refusal::Local)
                .unwrap_or(DropReason::CtInvalid.into()));
        };
        let half = table.half(found);
        let rewrite = half.rewrite();
        if half.flags().tunnelled() {
            return self.carry_through(burst, item, found, at);
        }
        let hop = if half.flags().balanced() {
            self.hop_of::<F>(found, item.hash, at)?
        } else {
            next_hop::<F>(at, rewrite.destination, item.hash)?
        };
        let translated = half.flags().any();
        self.send_on(burst, item, hop, at, |head, headers, partial| {
            if translated {
                embedded.translate(head, headers, partial, &rewrite);
            }
            decrement_ttl(head, headers);
        })
    }
}

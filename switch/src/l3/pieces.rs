//! Packets in fragments: which connection they belong to where there are connections, and those to the switch itself.
//!
//! [`super::fragment`] tells later fragments what their first one says, and keeps those that come before it. When it has
//! come, these go the same way as any other frame, between two bursts ([`Stage::resume`]).
#![forbid(unsafe_code)]

use vhost_backend::frame::{BURST, Burst};

use super::family::Routed;
use super::forward::{Item, Refusal};
use super::fragment::{Fate, First, Piece};
use super::icmp::{self, ECHO_V4, ECHO_V6};
use super::next_hop::{next_hop, path_to};
use super::outbox::Outbox;
use super::route::Path;
use super::table::RouterTable;
use super::{Arrival, Stage};
use crate::conntrack::{Key, V4, V6};
use crate::drops::DropReason;
use crate::packet::embedded::Embedded;
use crate::packet::ethernet::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::packet::headers::{Fragment, Headers};
use crate::packet::rewrite::{decrement_ttl, is_partial};
use crate::stats::Direction;

/// Seconds for which a worker that has seen a fragment looks after those that wait: longer than any waits.
const CARE: u32 = 62;

/// A worker that has seen fragments.
#[derive(Clone, Copy)]
pub(super) struct Gathering {
    /// Second of the last one.
    last: u32,
    /// Second in which it was looked for such as have waited for too long.
    pub(super) looked: u32,
}

impl Stage {
    /// Routes a fragment as its packet's connection wants it.
    #[cold]
    pub(super) fn fragment<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        let Some(first) = self.gather(burst, item.i, &item.headers, at)? else { return Ok(()) };
        let headers = first.complete(&item.headers);
        let key = Key::of_kind(&headers, burst.head(item.i), first.icmp);
        let table = at.router.conntrack.table::<F>();
        let item = Item::new(item.i, headers, key, table.hash(&key));
        let found = table.find(&item.key, item.hash);
        let done = match (headers.fragment, found) {
            (Fragment::Later, Some(half)) => {
                table.half(half).touch(at.now, headers.len);
                self.carry_any(burst, &item, half, at)
            }
            (Fragment::Later, None) if first.quoted.is_some() => self.piece_of_error(burst, &item, first, at),
            // To the switch itself, or of a packet that was refused.
            (Fragment::Later, None) => F::admit(&item.key, at).and_then(|()| {
                match path_to::<F>(at, item.key.destination, item.hash) {
                    Path::Local { .. } => Err(Refusal::Local),
                    _ => Err(DropReason::CtInvalid.into()),
                }
            }),
            _ if headers.icmp_error => self.icmp_error(burst, &item, at),
            (_, Some(half)) => self.established(burst, &item, half, at),
            (_, None) => self.first(burst, &item, at),
        };
        match done {
            Err(Refusal::Local) => self.piece_for_us::<F>(burst, item.i, &headers, first, at),
            done => done,
        }
    }

    /// A later fragment of an ICMP error goes where the first one went.
    fn piece_of_error<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        first: First,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        F::admit(&item.key, at)?;
        let table = at.router.conntrack.table::<F>();
        let key = first.quoted.and_then(F::quoted).ok_or(DropReason::CtInvalid)?;
        let half = table.find(&key, table.hash(&key)).map(|found| table.half(found));
        let rewrite = half.ok_or(DropReason::CtInvalid)?.rewrite();
        let hop = next_hop::<F>(at, rewrite.destination, item.hash)?;
        self.send_on(burst, item, hop, at, |head, headers, _| {
            Embedded::translate_later(head, headers, key.source, &rewrite);
            decrement_ttl(head, headers);
        })
    }

    /// What the first fragment of a fragment's packet says; `None` if this one waits for it.
    pub(super) fn gather(
        &mut self,
        burst: &Burst,
        i: usize,
        headers: &Headers,
        at: &Arrival<'_>,
    ) -> Result<Option<First>, DropReason> {
        let head = burst.head(i);
        let piece = Piece::read(head, headers, at.port)?;
        let looked = self.gathering.map_or(at.now, |gathering| gathering.looked);
        self.gathering = Some(Gathering { last: at.now, looked });
        let Self { again, lost, .. } = self;
        let reassembly = &at.router.reassembly;
        if headers.fragment == Fragment::Later {
            let fill = |space: &mut [u8]| burst.linearise(i, space);
            let lose = |port, reason, number| lost.add(port, reason, number);
            return match reassembly.later(&piece, at.now, *burst.header(i), fill, lose)? {
                Fate::Pass(first) => Ok(Some(first)),
                Fate::Held => Ok(None),
            };
        }
        let first = First::of(head, headers);
        let mut no_room = 0;
        let (interface, port) = (at.interface.index, at.port);
        reassembly.first(
            &piece,
            first,
            at.now,
            |frame, metadata| {
                let kept = again.put_from(interface, port, metadata, frame.len(), |space| {
                    space.copy_from_slice(frame);
                    Some(frame.len())
                });
                no_room += u64::from(!kept);
            },
            |port, reason, number| lost.add(port, reason, number),
        )?;
        if no_room > 0 {
            at.counted.drop(DropReason::FragmentNoRoom, no_room);
        }
        Ok(Some(first))
    }

    /// A fragment to one of the switch's addresses, where connections are not looked for.
    pub(super) fn gather_for_us<F: Routed>(
        &mut self,
        burst: &mut Burst,
        i: usize,
        headers: &Headers,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        let Some(first) = self.gather(burst, i, headers, at)? else { return Ok(()) };
        self.piece_for_us::<F>(burst, i, &first.complete(headers), first, at)
    }

    /// A fragment to one of the switch's addresses: nothing that is so long is answered but echo requests.
    fn piece_for_us<F: Routed>(
        &mut self,
        burst: &mut Burst,
        i: usize,
        headers: &Headers,
        first: First,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        self.guard(burst, i, headers, at)?;
        if first.icmp != Some(if headers.v6 { ECHO_V6 } else { ECHO_V4 }) {
            return Err(DropReason::LocalFragment.into());
        }
        let (_, destination) = F::addresses(headers, burst.head(i));
        let partial = is_partial(burst.header(i), headers);
        icmp::echo_reply::<F::Address>(burst.head_mut(i), headers, partial, destination);
        self.send_back(burst, i, at);
        Ok(())
    }

    /// Routes the fragments whose first one has come, whether there were any. `burst` is empty.
    pub(super) fn resume<'a>(
        &mut self,
        router: &RouterTable,
        burst: &mut Burst,
        now: u32,
        counted: &impl Fn(u16) -> Option<&'a Direction>,
        send: &mut impl FnMut(&mut Burst, u16, u64),
    ) -> bool {
        if self.again.is_empty() {
            return false;
        }
        // Nothing comes to this box meanwhile: there are no first fragments in it.
        let mut again = std::mem::replace(&mut self.again, Outbox::none());
        let mut from = 0;
        while let Some((origin, ..)) = again.letters(from).next() {
            let (interface, port) = (origin.interface, origin.port);
            let alike = again.letters(from).take(BURST);
            let alike = alike.take_while(|(letter, ..)| (letter.interface, letter.port) == (interface, port));
            let number = alike.count();
            burst.with_slices(
                |filler| {
                    for (letter, head, rest) in again.letters(from).take(number) {
                        filler.push(letter.header, head, rest);
                    }
                },
                |burst| {
                    // Otherwise one of them is gone, and its frames with it.
                    if let (Some(interface), Some(counted)) = (router.interface(interface), counted(port)) {
                        self.route_all(burst, &Arrival { router, interface, port, now, counted });
                    }
                    while let Some((port, frames)) = self.verdict.take() {
                        send(burst, port, frames);
                    }
                },
            );
            from += number;
        }
        again.clear();
        self.again = again;
        true
    }

    /// Routes all frames of a burst, which are untagged and addressed to the interface.
    fn route_all(&mut self, burst: &mut Burst, at: &Arrival<'_>) {
        let of_type = |ethertype| {
            let is = |&i: &usize| ethernet::ethertype(burst.head(i)) == ethertype;
            (0..burst.len()).filter(is).fold(0_u64, |frames, i| frames | 1 << i)
        };
        let (v4, v6) = (of_type(ETHERTYPE_IPV4), of_type(ETHERTYPE_IPV6));
        if v4 != 0 {
            self.route::<V4>(burst, v4, at);
        }
        if v6 != 0 {
            self.route::<V6>(burst, v6, at);
        }
        self.end_ways(at);
    }

    /// Forgets fragments that have waited for too long.
    #[cold]
    pub(super) fn forget_fragments(&mut self, router: &RouterTable, gathering: Gathering, now: u32) {
        let Self { lost, .. } = self;
        router.reassembly.expire_all(now, |port, reason, number| lost.add(port, reason, number));
        let over = now.wrapping_sub(gathering.last) > CARE;
        self.gathering = (!over).then_some(Gathering { looked: now, ..gathering });
    }
}

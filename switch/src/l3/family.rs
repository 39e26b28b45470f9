//! What routing does differently for IPv4 and IPv6, in one place: the rest is written once.
#![forbid(unsafe_code)]

use super::forward::Refusal;
use super::fragment::Quoted;
use super::interface::{Address, Interface};
use super::route::{Bits, Fib, NextHopSetId, Trie};
use super::{Arrival, checks, compose};
use crate::conntrack::{Family, Key, V4, V6};
use crate::drops::DropReason;
use crate::packet::rewrite;

/// A family of addresses that is routed.
pub(super) trait Routed: Family<Address: rewrite::Address + compose::Compose + Bits> {
    /// Whether the addresses may be those of a packet to be routed; "local" if they are those of one that is for the
    /// switch and could not be routed.
    fn admit(key: &Key<Self>, at: &Arrival<'_>) -> Result<(), Refusal>;
    /// Whether [`Routed::admit`] lets a packet with these addresses pass, however it calls it if not.
    fn may_pass(source: Self::Address, destination: Self::Address, at: &Arrival<'_>) -> bool;
    /// The next hops for an address.
    fn lookup(fib: &Fib, address: Self::Address) -> NextHopSetId;
    /// The family's routes.
    fn routes(fib: &Fib) -> &Trie<Self::Address>;
    /// As tables for both families compare it.
    fn wide(address: Self::Address) -> Address;
    /// The own address from which an interface talks to another one.
    fn source(interface: &Interface, to: Self::Address) -> Option<Self::Address>;
    /// Whether an address means everybody on the link of an interface.
    fn is_broadcast(interface: &Interface, address: Self::Address) -> bool;
    /// A number for the limiter of ICMP errors.
    fn number(address: Self::Address) -> u128;
    /// A key that was kept for either family, if it is of this one.
    fn quoted(key: Quoted) -> Option<Key<Self>>;
}

impl Routed for V4 {
    #[inline]
    fn admit(key: &Key<Self>, at: &Arrival<'_>) -> Result<(), Refusal> {
        checks::addresses_v4(key.source, key.destination)?;
        if at.router.own.has_v4(key.source) { Err(DropReason::MartianSource.into()) } else { Ok(()) }
    }

    #[inline(always)]
    fn may_pass(source: u32, destination: u32, at: &Arrival<'_>) -> bool {
        let own = &at.router.own;
        // One branch for nearly all packets.
        if checks::are_routable_v4(source, destination) & !own.may_have_v4(source) {
            return true;
        }
        checks::are_routable_v4(source, destination) && !own.has_v4(source)
    }

    #[inline]
    fn lookup(fib: &Fib, address: u32) -> NextHopSetId {
        fib.lookup_v4(address)
    }

    #[inline]
    fn routes(fib: &Fib) -> &Trie<u32> {
        fib.v4()
    }

    #[inline]
    fn wide(address: u32) -> Address {
        Address::v4(address)
    }

    fn source(interface: &Interface, to: u32) -> Option<u32> {
        interface.source_v4(to)
    }

    fn is_broadcast(interface: &Interface, address: u32) -> bool {
        interface.is_broadcast(address)
    }

    fn number(address: u32) -> u128 {
        address.into()
    }

    fn quoted(key: Quoted) -> Option<Key<Self>> {
        if let Quoted::V4(key) = key { Some(key) } else { None }
    }
}

impl Routed for V6 {
    #[inline]
    fn admit(key: &Key<Self>, at: &Arrival<'_>) -> Result<(), Refusal> {
        let routed = checks::addresses_v6(key.source, key.destination);
        if at.router.own.has_v6(key.source) {
            return Err(DropReason::MartianSource.into());
        }
        match routed {
            Err(DropReason::LinkLocal) if at.interface.owns_v6(key.destination) => Err(Refusal::Local),
            routed => Ok(routed?),
        }
    }

    #[inline(always)]
    fn may_pass(source: u128, destination: u128, at: &Arrival<'_>) -> bool {
        checks::addresses_v6(source, destination).is_ok() && !at.router.own.has_v6(source)
    }

    #[inline]
    fn lookup(fib: &Fib, address: u128) -> NextHopSetId {
        fib.lookup_v6(address)
    }

    #[inline]
    fn routes(fib: &Fib) -> &Trie<u128> {
        fib.v6()
    }

    #[inline]
    fn wide(address: u128) -> Address {
        Address::v6(address)
    }

    fn source(interface: &Interface, to: u128) -> Option<u128> {
        Some(interface.source_v6(to))
    }

    fn is_broadcast(_: &Interface, _: u128) -> bool {
        false
    }

    fn number(address: u128) -> u128 {
        address
    }

    fn quoted(key: Quoted) -> Option<Key<Self>> {
        if let Quoted::V6(key) = key { Some(key) } else { None }
    }
}

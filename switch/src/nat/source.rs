//! Masquerading, source translation to pools, one-to-one addresses, hairpins: what a packet's source becomes as it
//! leaves.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::destination::OneToOneNets;
use super::mappings::{Mappings, Table};
use super::own::Own;
use super::ports::{self, Scarce, reply};
use super::rule::{AddressRange, PortRange};
use super::{CLASH, Failure, HAIRPIN, Leaving, Translation, Why};
use crate::packet::ip::{TCP, UDP};
use crate::packet::tuple::Tuple;
use crate::rules::hash;
use crate::rules::prefixes::Prefixes;

/// How many addresses of a pool are tried for one connection.
const POOL_TRIES: u128 = 4;

/// Interfaces, as [`super::rule::Out`] names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutIndex {
    Any,
    Only(u16),
    Except(u16),
}

/// A masquerade or SNAT rule.
pub(super) struct Outbound {
    /// The pool; `None`: the egress interface's own address.
    pub(super) to: Option<AddressRange>,
    pub(super) ports: Option<PortRange>,
    pub(super) endpoint_independent: bool,
    pub(super) except: Option<Prefixes>,
    pub(super) slot: u32,
}

impl Outbound {
    fn allows(&self, port: u16) -> bool {
        self.ports.is_none_or(|ports| ports.contains(port))
    }
}

/// The rules for one source prefix, by interface; numbers are places in [`Sources::outbound`].
#[derive(Default)]
struct Node {
    /// For one interface each, sorted.
    only: Vec<(u16, u32)>,
    /// For every interface, or every one but one. At most two: what two such rules leave out is nothing.
    most: Vec<(Option<u16>, u32)>,
}

impl Node {
    fn add(&mut self, out: OutIndex, rule: u32) {
        let most = |except| (except, rule);
        match out {
            OutIndex::Only(interface) => {
                if let Err(at) = self.only.binary_search_by_key(&interface, |&(interface, _)| interface) {
                    self.only.insert(at, (interface, rule));
                }
            }
            OutIndex::Any => {
                if self.most.len() < 2 && !matches!(self.most[..], [(None, _)]) {
                    self.most.push(most(None));
                }
            }
            OutIndex::Except(interface) => {
                let useless = |first: Option<u16>| first.is_none_or(|first| first == interface);
                if self.most.len() < 2 && !self.most.first().is_some_and(|&(first, _)| useless(first)) {
                    self.most.push(most(Some(interface)));
                }
            }
        }
    }

    #[inline]
    fn find(&self, egress: u16) -> Option<u32> {
        if let Ok(at) = self.only.binary_search_by_key(&egress, |&(interface, _)| interface) {
            return Some(self.only[at].1);
        }
        self.most.iter().find(|(except, _)| *except != Some(egress)).map(|&(_, rule)| rule)
    }
}

pub(super) struct Sources {
    prefixes: Prefixes,
    nodes: Box<[Node]>,
    outbound: Box<[Outbound]>,
    inside: Option<Inside>,
    mappings: Arc<Mappings>,
    scarce: Arc<Scarce>,
    /// Whether some rule has mappings.
    independent: bool,
    /// The pools, sorted; none touches another.
    pools: Box<[AddressRange]>,
    /// Whether a destination may be translated, so that two connections may come to the same tuple.
    clashes: bool,
}

/// One-to-one rules by their inside prefixes.
struct Inside {
    prefixes: Prefixes,
    /// By the numbers of the prefixes.
    outside: Vec<(OneToOneNets, OutIndex, u32)>,
}

/// The same addresses in ranges that are sorted and apart.
fn united(mut ranges: Vec<AddressRange>) -> Box<[AddressRange]> {
    ranges.sort_unstable_by_key(|range| (range.first, range.last));
    let mut united: Vec<AddressRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match united.last_mut() {
            Some(last) if range.first <= last.last => last.last = last.last.max(range.last),
            _ => united.push(range),
        }
    }
    united.into()
}

impl Sources {
    /// `outbound`: rules in the order in which they were added, each with its prefix and interface. `one_to_one`:
    /// from inside to outside.
    pub(super) fn new(
        outbound: Vec<(ipnet::IpNet, OutIndex, Outbound)>,
        one_to_one: Vec<(OneToOneNets, OutIndex, u32)>,
        mappings: Arc<Mappings>,
        scarce: Arc<Scarce>,
        clashes: bool,
    ) -> Self {
        let prefixes = Prefixes::new(outbound.iter().map(|&(source, ..)| source));
        let mut nodes: Box<[Node]> = (0..prefixes.len()).map(|_| Node::default()).collect();
        for (rule, (source, out, _)) in (0..).zip(&outbound) {
            if let Some(node) = prefixes.number(*source).and_then(|number| nodes.get_mut(number as usize)) {
                node.add(*out, rule);
            }
        }
        let outbound: Box<[Outbound]> = outbound.into_iter().map(|(.., rule)| rule).collect();
        let independent = outbound.iter().any(|rule| rule.endpoint_independent);
        if independent {
            mappings.prepare();
        }
        let inside = (!one_to_one.is_empty()).then(|| {
            let prefixes = Prefixes::new(one_to_one.iter().map(|(nets, ..)| nets.from));
            let mut outside = one_to_one;
            outside.sort_unstable_by_key(|(nets, ..)| prefixes.number(nets.from));
            Inside { prefixes, outside }
        });
        let pools = united(outbound.iter().filter_map(|rule| rule.to).collect());
        Self { prefixes, nodes, outbound, inside, mappings, scarce, independent, pools, clashes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.outbound.is_empty() && self.inside.is_none()
    }

    pub(super) fn speaks_for(&self, address: IpAddr) -> bool {
        let after = self.pools.partition_point(|pool| pool.first <= address);
        self.pools[..after].last().is_some_and(|pool| pool.contains(address))
    }

    /// The rule for a packet, if there is one; `None` for an excepted destination, too.
    fn rule(&self, leaving: &Leaving) -> Option<&Outbound> {
        let tuple = &leaving.tuple;
        let mut around = self.prefixes.around(tuple.source);
        let rule = around.find_map(|number| self.nodes[number as usize].find(leaving.egress))?;
        let rule = &self.outbound[rule as usize];
        let excepted = rule.except.as_ref().is_some_and(|except| except.contains(tuple.destination));
        (!excepted).then_some(rule)
    }

    /// What the destination of a packet to the outside end of an endpoint-independent mapping becomes.
    pub(super) fn mapped(
        &self,
        tuple: &Tuple,
        ingress: u16,
        now: u32,
        mut is_free: impl FnMut(&Tuple) -> bool,
    ) -> Option<Translation> {
        if !self.independent || !matches!(tuple.protocol, TCP | UDP) {
            return None;
        }
        // Busy: whoever calls tries again.
        let table = self.mappings.lock()?;
        let (called, to) = (tuple.destination, tuple.destination_port);
        let (address, port) = table.behind(tuple.protocol, called, to, now, &mut is_free)?;
        drop(table);
        // As the rules are now.
        let mut around = self.prefixes.around(address);
        let rule = around.find_map(|number| self.nodes[number as usize].find(ingress))?;
        let rule = &self.outbound[rule as usize];
        let excepted = rule.except.as_ref().is_some_and(|except| except.contains(tuple.source));
        (rule.endpoint_independent && !excepted).then_some(Translation { address, port, slot: rule.slot })
    }

    /// The outside address of a source that has one.
    fn one_to_one(&self, leaving: &Leaving) -> Option<(IpAddr, u32)> {
        let inside = self.inside.as_ref()?;
        let number = inside.prefixes.longest(leaving.tuple.source)?;
        let &(nets, out, slot) = inside.outside.get(number as usize)?;
        let applies = match out {
            OutIndex::Any => leaving.egress != leaving.ingress,
            OutIndex::Only(interface) => leaving.egress == interface,
            OutIndex::Except(interface) => leaving.egress != interface,
        };
        applies.then(|| (nets.translate(leaving.tuple.source), slot))
    }

    pub(super) fn find(
        &self,
        leaving: &Leaving,
        mut is_free: impl FnMut(&Tuple) -> bool,
        random: u64,
        own: &Own,
    ) -> Result<Option<Translation>, Failure> {
        let tuple = &leaving.tuple;
        let own_address = |slot| {
            own.address(leaving.egress, leaving.next_hop, tuple.destination)
                .ok_or(Failure { why: Why::NoAddress, slot })
        };
        if leaving.redirected && leaving.ingress == leaving.egress {
            let address = own_address(HAIRPIN)?;
            return self.at(leaving, address, None, HAIRPIN, random, &mut is_free).map(Some);
        }
        if let Some((address, slot)) = self.one_to_one(leaving) {
            return self.at(leaving, address, None, slot, random, &mut is_free).map(Some);
        }
        let Some(rule) = self.rule(leaving) else {
            if !self.clashes && self.is_empty() || is_free(&tuple.reversed()) {
                return Ok(None);
            }
            return self.at(leaving, tuple.source, None, CLASH, random, &mut is_free).map(Some);
        };
        let pool = match rule.to {
            Some(to) => to,
            None => {
                let address = own_address(rule.slot)?;
                AddressRange { first: address, last: address }
            }
        };
        if rule.endpoint_independent {
            return self.independent(leaving, rule, pool, random, &mut is_free).map(Some);
        }
        self.pooled(leaving, rule, pool, random, &mut is_free).map(Some)
    }

    /// A free port at one address.
    fn at(
        &self,
        leaving: &Leaving,
        address: IpAddr,
        ports: Option<PortRange>,
        slot: u32,
        random: u64,
        is_free: &mut impl FnMut(&Tuple) -> bool,
    ) -> Result<Translation, Failure> {
        let Leaving { tuple, now, .. } = leaving;
        let thorough = !self.scarce.is_scarce(tuple, address, *now);
        match ports::find(tuple, address, ports, thorough, random, is_free) {
            Some(port) => Ok(Translation { address, port, slot }),
            None => {
                self.scarce.failed(tuple, address, *now);
                Err(Failure { why: Why::Exhausted, slot })
            }
        }
    }

    /// A free port at an address of a pool: the client's own address by preference.
    fn pooled(
        &self,
        leaving: &Leaving,
        rule: &Outbound,
        pool: AddressRange,
        random: u64,
        is_free: &mut impl FnMut(&Tuple) -> bool,
    ) -> Result<Translation, Failure> {
        let mut result = Err(Failure { why: Why::Exhausted, slot: rule.slot });
        for address in candidates(pool, leaving.tuple.source) {
            result = self.at(leaving, address, rule.ports, rule.slot, random, is_free);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// The address and port that this client's port has got before, or a new one that no other client's has.
    fn independent(
        &self,
        leaving: &Leaving,
        rule: &Outbound,
        pool: AddressRange,
        random: u64,
        is_free: &mut impl FnMut(&Tuple) -> bool,
    ) -> Result<Translation, Failure> {
        let tuple = &leaving.tuple;
        let slot = rule.slot;
        let Some(mut table) = self.mappings.lock() else {
            return Err(Failure { why: Why::Busy, slot });
        };
        if let Some((index, (address, port))) = table.find(tuple) {
            if pool.contains(address) && rule.allows(port) {
                let answer = reply(tuple, address, port);
                if is_free(&answer) {
                    table.used(index, answer, leaving.now, is_free);
                    return Ok(Translation { address, port, slot });
                }
                // A connection of somebody else, endpoint-dependent, has this very tuple. Better another port towards
                // this one destination than none.
                drop(table);
                return self.pooled(leaving, rule, pool, random, is_free);
            }
            // Of a rule that has changed.
            table.remove(index);
        }
        for address in candidates(pool, tuple.source) {
            let thorough = !self.scarce.is_scarce(tuple, address, leaving.now);
            let free = |answer: &Tuple| !is_taken(&table, answer) && is_free(answer);
            if let Some(port) = ports::find(tuple, address, rule.ports, thorough, random, free) {
                table.insert(tuple, address, port, leaving.now, is_free);
                return Ok(Translation { address, port, slot });
            }
            self.scarce.failed(tuple, address, leaving.now);
        }
        Err(Failure { why: Why::Exhausted, slot })
    }
}

/// Whether the address and port that an answer goes to are mapped.
fn is_taken(table: &Table, answer: &Tuple) -> bool {
    let sent = answer.reversed();
    table.is_taken(sent.protocol, sent.source, sent.source_port)
}

/// An address and port of a pool from which packets can be sent to where `tuple` goes, so that `is_free` holds for
/// their answers.
pub(crate) fn from_pool(
    tuple: &Tuple,
    (first, last): (IpAddr, IpAddr),
    random: u64,
    mut is_free: impl FnMut(&Tuple) -> bool,
) -> Option<(IpAddr, u16)> {
    let mut addresses = candidates(AddressRange { first, last }, tuple.source);
    addresses.find_map(|address| {
        ports::find(tuple, address, None, true, random, &mut is_free).map(|port| (address, port))
    })
}

/// The addresses of a pool in the order in which a client tries them. The same in every run.
fn candidates(pool: AddressRange, client: IpAddr) -> impl Iterator<Item = IpAddr> {
    let (first, size) = match (pool.first, pool.last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            (u128::from(first.to_bits()), u128::from(last.to_bits().saturating_sub(first.to_bits())) + 1)
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            (first.to_bits(), last.to_bits().saturating_sub(first.to_bits()).saturating_add(1))
        }
        // No such pool is accepted.
        _ => (0, 0),
    };
    let start = if size > 1 { u128::from(hash::stable(client)) % size } else { 0 };
    (0..POOL_TRIES.min(size)).map(move |step| {
        let address = first + (start + step) % size;
        match pool.first {
            IpAddr::V4(_) => Ipv4Addr::from_bits(address as u32).into(),
            IpAddr::V6(_) => Ipv6Addr::from_bits(address).into(),
        }
    })
}

//! The routing table of the control thread: everything that was asked for, whether it can be used now or not.
//!
//! An address brings its connected route and itself; a static route needs a gateway on a connected network, an
//! interface, or says that packets are to be dropped. Of the routes of a prefix the lowest metric that leads
//! somewhere is used, several of equal metric together. A route whose interface is down or whose gateway lost its
//! network stays and waits. The words are those of `ip route`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use ipnet::IpNet;

use super::check::Gateways;
use super::hops::{Hops, HopsWriter};
pub use super::spec::{Kind, Protocol, Route, Terms, Which};
use super::table::{Full, Key, Record, Scene, Table};
use super::trie::Builder;
use super::view::Standing;
use super::{Address, Fib, Path};
use crate::config::Name;
use crate::l3::interface::{MAX_INTERFACES, is_link_local_v6, unfit};
use crate::refusal::Refusal;

/// Most routes of a family, those that come with addresses among them.
pub const MAX_ROUTES: usize = 2_000_000;

/// What a list of routes did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// How many routes came.
    pub added: usize,
    /// How many static routes made room for them.
    pub removed: usize,
}

/// What the table knows of an interface.
pub(super) struct Link {
    pub(super) name: Name,
    pub(super) up: bool,
    pub(super) addresses: Vec<IpNet>,
    /// How many static routes lead through it.
    routes: usize,
}

/// The table.
pub struct Rib {
    fib: Arc<Fib>,
    pub(super) v4: Table<u32>,
    pub(super) v6: Table<u128>,
    hops: HopsWriter,
    pub(super) links: BTreeMap<u16, Link>,
    /// Gateways of static routes, and how many lead through each.
    gateways: BTreeMap<(u16, IpAddr), usize>,
    /// How many routes listings show: all but those of own and broadcast addresses.
    shown: usize,
}

/// A prefix as the table of its family has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    V4(Key<u32>),
    V6(Key<u128>),
}

pub(super) fn place(prefix: IpNet) -> Place {
    match prefix {
        IpNet::V4(net) => Place::V4((net.network().to_bits(), net.prefix_len())),
        IpNet::V6(net) => Place::V6((net.network().to_bits(), net.prefix_len())),
    }
}

pub(super) fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

impl Default for Rib {
    fn default() -> Self {
        Self::new()
    }
}

impl Rib {
    /// An empty table.
    pub fn new() -> Self {
        Self::with(Builder::new(), Builder::new())
    }

    fn with(v4: (super::Trie<u32>, Builder<u32>), v6: (super::Trie<u128>, Builder<u128>)) -> Self {
        let fib = Fib { v4: v4.0, v6: v6.0, hops: Hops::new(), generation: AtomicU32::new(1) };
        Self {
            fib: Arc::new(fib),
            v4: Table::new(v4.1),
            v6: Table::new(v6.1),
            hops: HopsWriter::new(),
            links: BTreeMap::new(),
            gateways: BTreeMap::new(),
            shown: 0,
        }
    }

    /// What workers ask. It is the same one for ever.
    pub fn fib(&self) -> Arc<Fib> {
        self.fib.clone()
    }

    /// Lets the room of what was replaced be used again. To be called when all workers have begun a new turn since
    /// the last change; until then the forwarding table only grows.
    pub fn reclaim(&mut self) {
        self.v4.reclaim();
        self.v6.reclaim();
        self.hops.reclaim();
    }

    /// How many routes there are, those of addresses included.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many routes there are without those of own and of broadcast addresses.
    pub fn count(&self) -> usize {
        self.shown
    }

    /// The gateways of static routes, each once, with the number of its interface. A million routes have a few.
    pub fn gateways(&self) -> impl Iterator<Item = (u16, IpAddr)> {
        self.gateways.keys().copied()
    }

    /// Bytes of the forwarding tables.
    pub fn bytes(&self) -> usize {
        self.v4.bytes() + self.v6.bytes()
    }

    // ---- interfaces ---------------------------------------------------------------------------------------------

    /// Makes an interface known.
    ///
    /// # Errors
    /// The number is taken or too high.
    pub fn add_interface(&mut self, index: u16, name: Name, up: bool) -> Result<(), Refusal> {
        if usize::from(index) >= MAX_INTERFACES {
            return Err(Refusal::new(format!(
                "there are {MAX_INTERFACES} interfaces already, which is the limit"
            )));
        }
        if let Some(link) = self.links.get(&index) {
            return Err(Refusal::new(format!("interface {index} is {:?} already", link.name)));
        }
        self.links.insert(index, Link { name, up, addresses: Vec::new(), routes: 0 });
        Ok(())
    }

    /// Forgets an interface, its addresses, and the static routes through it, which are returned.
    ///
    /// # Errors
    /// No such interface.
    pub fn del_interface(&mut self, index: u16) -> Result<Vec<Route>, Refusal> {
        self.link(index)?;
        let mut gone = self.take(|record| record.interface == Some(index));
        self.links.remove(&index);
        let (v4, v6) = split(&gone);
        self.settle_surely(&v4, &v6);
        gone.retain(|route| route.protocol == Protocol::Static);
        Ok(gone)
    }

    /// Notes that an interface came up or went down: its routes are used or give way. Own addresses stay.
    ///
    /// # Errors
    /// No such interface.
    pub fn interface_state(&mut self, index: u16, up: bool) -> Result<(), Refusal> {
        let link = self.link_mut(index)?;
        if link.up != up {
            link.up = up;
            self.resettle(index);
        }
        Ok(())
    }

    /// The name of an interface.
    pub fn interface_name(&self, index: u16) -> Option<Name> {
        self.links.get(&index).map(|link| link.name)
    }

    /// The addresses of an interface in the order in which they were added.
    pub fn addresses(&self, index: u16) -> &[IpNet] {
        self.links.get(&index).map_or(&[], |link| &link.addresses)
    }

    pub(super) fn link(&self, index: u16) -> Result<&Link, Refusal> {
        self.links.get(&index).ok_or_else(|| no_interface(index))
    }

    fn link_mut(&mut self, index: u16) -> Result<&mut Link, Refusal> {
        self.links.get_mut(&index).ok_or_else(|| no_interface(index))
    }

    /// Decides anew about everything that leads through an interface.
    fn resettle(&mut self, index: u16) {
        let of_it = |record: &Record| record.interface == Some(index);
        let (v4, v6) = (self.v4.keys(of_it), self.v6.keys(of_it));
        self.settle_surely(&v4, &v6);
    }

    // ---- addresses ----------------------------------------------------------------------------------------------

    /// Gives an interface an address: `net` is the address and the length of its network's prefix.
    ///
    /// # Errors
    /// No such interface, no address for a station, somebody has it, or its network overlaps with that of another
    /// interface.
    pub fn add_address(&mut self, index: u16, net: IpNet) -> Result<(), Refusal> {
        self.link(index)?;
        if let Some(why) = unfit(&net) {
            return Err(Refusal::new(format!("address {net} {why}")));
        }
        self.refuse_overlap(index, net)?;
        let mut routes = own_routes(index, net);
        // A second address of a network, and an address that is the broadcast address of another, find them there.
        routes.retain(|route| !self.records(route.prefix).contains(&route.record()));
        for route in &routes {
            self.insert(route);
        }
        if let Err(Full) = self.settle(&routes, false) {
            for route in &routes {
                self.remove(route.prefix, |record| *record == route.record());
            }
            self.forget(&routes);
            return Err(self.full());
        }
        self.link_mut(index)?.addresses.push(net);
        self.revive(index);
        Ok(())
    }

    /// Takes an address from an interface, and with the last of its network the connected route.
    ///
    /// # Errors
    /// No such interface, or it has no such address; the prefix must be the same.
    pub fn del_address(&mut self, index: u16, net: IpNet) -> Result<(), Refusal> {
        let link = self.link_mut(index)?;
        let Some(at) = link.addresses.iter().position(|own| *own == net) else {
            let list = listed(&link.addresses);
            return Err(Refusal::new(format!(
                "interface {:?} has no address {net}: {list}",
                link.name.as_str()
            )));
        };
        link.addresses.remove(at);
        let still: Vec<Route> = link.addresses.iter().flat_map(|own| own_routes(index, *own)).collect();
        let mut routes = own_routes(index, net);
        routes.retain(|route| !still.contains(route));
        for route in &routes {
            self.remove(route.prefix, |record| *record == route.record());
        }
        let (v4, v6) = split(&routes);
        self.settle_surely(&v4, &v6);
        self.revive(index);
        Ok(())
    }

    /// Gateways may have become reachable or lost their network.
    fn revive(&mut self, index: u16) {
        if self.links.get(&index).is_some_and(|link| link.routes > 0) {
            self.resettle(index);
        }
    }

    fn refuse_overlap(&self, index: u16, net: IpNet) -> Result<(), Refusal> {
        let link_local =
            |net: &IpNet| matches!(net, IpNet::V6(net) if is_link_local_v6(net.addr().to_bits()));
        for (&other, link) in &self.links {
            for own in &link.addresses {
                let name = link.name.as_str();
                let elsewhere = other != index;
                if own.addr() == net.addr() && !(elsewhere && link_local(&net)) {
                    return Err(Refusal::new(format!(
                        "address {} belongs to interface {name:?} already",
                        net.addr()
                    )));
                }
                let overlap = own.contains(&net.network()) || net.contains(&own.network());
                if overlap && elsewhere && !link_local(&net) {
                    return Err(Refusal::new(format!(
                        "address {net} overlaps with {own} of interface {name:?}: networks of two interfaces must be apart"
                    )));
                }
            }
        }
        Ok(())
    }

    // ---- routes -------------------------------------------------------------------------------------------------

    /// Adds a static route and returns it as it is now: the prefix without host bits, the interface found.
    ///
    /// # Errors
    /// Terms that it does not meet, an interface that does not exist, a route that exists or contradicts one of the same
    /// metric, or no room. Nothing is changed then.
    pub fn add(&mut self, route: Route, terms: Terms) -> Result<Route, Refusal> {
        let route = self.check(route, terms, None)?;
        self.refuse_conflict(&route, terms)?;
        self.insert(&route);
        self.enter(&[route], &[])?;
        Ok(route)
    }

    /// Adds many static routes at once, which costs far less than one by one, with `replace` in the place of those that
    /// are there; all or none. Addresses that both lists lead anywhere are led somewhere all the time.
    ///
    /// # Errors
    /// As [`Self::add`], or what the list has in the place of a route, with the place of one that cannot be added.
    pub fn load(
        &mut self,
        routes: impl IntoIterator<Item = Result<Route, Refusal>>,
        terms: Terms,
        replace: bool,
    ) -> Result<Loaded, (usize, Refusal)> {
        let mut found = Gateways::new();
        let mut checked = Vec::new();
        for (at, route) in routes.into_iter().enumerate() {
            match route.and_then(|route| self.check(route, terms, Some(&mut found))) {
                Ok(route) => checked.push((place(route.prefix), at, route)),
                Err(refusal) => return Err((at, refusal)),
            }
        }
        // In the order of the table, which is much faster than any other; equal prefixes in the order of the list.
        checked.sort_unstable_by_key(|(place, at, _)| (*place, *at));
        let gone = match replace {
            true => self.take(|record| record.protocol == Protocol::Static),
            false => Vec::new(),
        };
        let mut added = Vec::with_capacity(checked.len());
        for (_, at, route) in checked {
            if let Err(refusal) = self.refuse_conflict(&route, terms) {
                self.withdraw(&added, &gone);
                return Err((at, refusal));
            }
            self.insert(&route);
            added.push(route);
        }
        let last = added.len().saturating_sub(1);
        self.enter(&added, &gone).map_err(|refusal| (last, refusal))?;
        Ok(Loaded { added: added.len(), removed: gone.len() })
    }

    /// Removes all static routes, or those through one interface; returns how many.
    pub fn flush(&mut self, interface: Option<u16>) -> usize {
        let meant = |record: &Record| {
            record.protocol == Protocol::Static && (interface.is_none() || record.interface == interface)
        };
        let gone = self.take(meant);
        let (v4, v6) = split(&gone);
        self.settle_surely(&v4, &v6);
        gone.len()
    }

    /// Removes the static routes of a prefix that match, and returns them.
    ///
    /// # Errors
    /// No prefix given, or there is none that matches, or only such that go with their address.
    pub fn del(&mut self, which: &Which) -> Result<Vec<Route>, Refusal> {
        let prefix = which.prefix.ok_or("a route to delete is named by its prefix at least")?.trunc();
        let names = |record: &Record| record.protocol == Protocol::Static && which.names(record);
        let gone = self.remove(prefix, names);
        if gone.is_empty() {
            let kernel = self.records(prefix).iter().find(|record| which.names(record));
            return Err(match kernel {
                Some(record) => Refusal::new(format!(
                    "route {} comes with an address and goes with it: 'shuntctl interface set IF --del-address' removes both",
                    self.describe(&Route::of(prefix, record))
                )),
                None if self.records(prefix).is_empty() => {
                    Refusal::new(format!("no route to {}: 'shuntctl route list' shows all", shown(prefix)))
                }
                None => Refusal::new(format!(
                    "no route to {} has this gateway, interface, metric or kind: 'shuntctl route list' shows all",
                    shown(prefix)
                )),
            });
        }
        let (v4, v6) = split(&[Route::to(prefix)]);
        self.settle_surely(&v4, &v6);
        Ok(gone.iter().map(|record| Route::of(prefix, record)).collect())
    }

    // ---- tables -------------------------------------------------------------------------------------------------

    pub(super) fn records(&self, prefix: IpNet) -> &[Record] {
        match place(prefix) {
            Place::V4(key) => self.v4.of(key),
            Place::V6(key) => self.v6.of(key),
        }
    }

    fn insert(&mut self, route: &Route) {
        self.tally(&route.record(), true);
        match place(route.prefix) {
            Place::V4(key) => self.v4.insert(key, route.record()),
            Place::V6(key) => self.v6.insert(key, route.record()),
        }
    }

    fn remove(&mut self, prefix: IpNet, which: impl Fn(&Record) -> bool) -> Vec<Record> {
        let gone = match place(prefix) {
            Place::V4(key) => self.v4.remove(key, which),
            Place::V6(key) => self.v6.remove(key, which),
        };
        gone.iter().for_each(|record| self.tally(record, false));
        gone
    }

    /// Takes all records that are meant; to be settled by the caller.
    fn take(&mut self, which: impl Fn(&Record) -> bool) -> Vec<Route> {
        let mut gone = Vec::new();
        self.v4.take(&which, |key, record| gone.push(Route::of(net_v4(key), &record)));
        self.v6.take(&which, |key, record| gone.push(Route::of(net_v6(key), &record)));
        gone.iter().for_each(|route| self.tally(&route.record(), false));
        gone
    }

    /// Counts a record that comes or goes.
    fn tally(&mut self, record: &Record, comes: bool) {
        let count = |number: &mut usize| *number = if comes { *number + 1 } else { *number - 1 };
        if !matches!(record.kind, Kind::Local | Kind::Broadcast) {
            count(&mut self.shown);
        }
        let Some(index) = record.interface.filter(|_| record.protocol == Protocol::Static) else { return };
        if let Some(link) = self.links.get_mut(&index) {
            count(&mut link.routes);
        }
        if let Some(gateway) = record.gateway {
            let through = self.gateways.entry((index, gateway)).or_default();
            count(through);
            if *through == 0 {
                self.gateways.remove(&(index, gateway));
            }
        }
    }

    /// Puts new routes into effect, and that others are gone; if there is no room, all is as before.
    fn enter(&mut self, added: &[Route], gone: &[Route]) -> Result<(), Refusal> {
        let (v4, v6) = split_all(added, gone);
        self.settle_keys(&v4, &v6, false).map_err(|Full| {
            self.withdraw(added, gone);
            self.full()
        })
    }

    /// Takes out routes that were noted and are not in effect, and brings those back that had gone for them.
    fn withdraw(&mut self, added: &[Route], gone: &[Route]) {
        for route in added {
            self.remove(route.prefix, |record| *record == route.record());
        }
        gone.iter().for_each(|route| self.insert(route));
        // Of what did get into effect, nothing may stay; prefixes that had other routes keep those.
        let (v4, v6) = split_all(added, gone);
        self.settle_surely(&v4, &v6);
    }

    fn forget(&mut self, routes: &[Route]) {
        let (v4, v6) = split(routes);
        self.v4.forget(&v4);
        self.v6.forget(&v6);
    }

    fn full(&self) -> Refusal {
        Refusal::new(format!("the forwarding table is full: it holds {} routes", self.len()))
    }

    fn settle(&mut self, routes: &[Route], urgent: bool) -> Result<(), Full> {
        let (v4, v6) = split(routes);
        self.settle_keys(&v4, &v6, urgent)
    }

    /// For changes that must not fail: what is kept for them suffices.
    fn settle_surely(&mut self, v4: &[Key<u32>], v6: &[Key<u128>]) {
        if self.settle_keys(v4, v6, true).is_err() {
            tracing::error!(
                "the forwarding table is full: routes that should be gone or have changed are still used"
            );
        }
    }

    fn settle_keys(&mut self, v4: &[Key<u32>], v6: &[Key<u128>], urgent: bool) -> Result<(), Full> {
        let Self { fib, links, hops: writer, v4: table_v4, v6: table_v6, .. } = self;
        let path = |record: &Record| path_of(links, record).ok();
        let mut scene = Scene { trie: &fib.v4, hops: &fib.hops, writer, path, urgent };
        let changed_v4 = table_v4.settle(v4, &mut scene)?;
        let mut scene = Scene { trie: &fib.v6, hops: &fib.hops, writer: scene.writer, path, urgent };
        let changed_v6 = table_v6.settle(v6, &mut scene);
        if changed_v4 || changed_v6.is_ok_and(|changed| changed) {
            fib.bump();
        }
        changed_v6.map(|_| ())
    }
}

impl Link {
    pub(super) fn reaches(&self, gateway: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.contains(&gateway))
    }
}

/// Where a record leads, or why nowhere.
pub(super) fn path_of(links: &BTreeMap<u16, Link>, record: &Record) -> Result<Path, Standing> {
    let interface = record.interface.unwrap_or(u16::MAX);
    let link = || match links.get(&interface) {
        Some(link) if link.up => Ok(link),
        _ => Err(Standing::InterfaceDown),
    };
    match record.kind {
        Kind::Local => Ok(Path::Local { interface }),
        Kind::Broadcast => link().map(|_| Path::Broadcast { interface }),
        Kind::Blackhole => Ok(Path::Blackhole),
        Kind::Unreachable => Ok(Path::Unreachable),
        Kind::Prohibit => Ok(Path::Prohibit),
        Kind::Unicast => {
            let link = link()?;
            let Some(gateway) = record.gateway else { return Ok(Path::Connected { interface }) };
            let link_local = matches!(gateway, IpAddr::V6(v6) if is_link_local_v6(v6.to_bits()));
            if !record.onlink && !link_local && !link.reaches(gateway) {
                return Err(Standing::GatewayUnreachable);
            }
            Ok(Path::Via { interface, gateway: Address::from(gateway) })
        }
    }
}

/// The routes that come with an address: its network if others may be in it, itself, everybody.
fn own_routes(index: u16, net: IpNet) -> Vec<Route> {
    let link_local = matches!(net, IpNet::V6(net) if is_link_local_v6(net.addr().to_bits()));
    if link_local {
        // These mean something else on each link: whoever asks the table does not mean them.
        return Vec::new();
    }
    let kernel = |prefix: IpNet, kind: Kind| Route {
        kind,
        interface: Some(index),
        protocol: Protocol::Kernel,
        ..Route::to(prefix)
    };
    let mut routes = vec![kernel(host(net.addr()), Kind::Local)];
    if net.prefix_len() < net.max_prefix_len() {
        routes.push(kernel(net.trunc(), Kind::Unicast));
    }
    if let IpNet::V4(v4) = net
        && v4.prefix_len() <= 30
    {
        routes.push(kernel(host(v4.broadcast().into()), Kind::Broadcast));
    }
    routes
}

/// The prefixes of routes, sorted and each once, by family.
fn split(routes: &[Route]) -> (Vec<Key<u32>>, Vec<Key<u128>>) {
    split_all(routes, &[])
}

fn split_all(routes: &[Route], others: &[Route]) -> (Vec<Key<u32>>, Vec<Key<u128>>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for route in routes.iter().chain(others) {
        match place(route.prefix) {
            Place::V4(key) => v4.push(key),
            Place::V6(key) => v6.push(key),
        }
    }
    v4.sort_unstable();
    v4.dedup();
    v6.sort_unstable();
    v6.dedup();
    (v4, v6)
}

pub(super) fn net_v4((bits, len): Key<u32>) -> IpNet {
    IpNet::new_assert(IpAddr::from(bits.to_be_bytes()), len)
}

pub(super) fn net_v6((bits, len): Key<u128>) -> IpNet {
    IpNet::new_assert(IpAddr::from(bits.to_be_bytes()), len)
}

/// A prefix as `ip route` prints it.
pub(super) fn shown(prefix: IpNet) -> String {
    match prefix.prefix_len() {
        0 => "default".into(),
        len if len == prefix.max_prefix_len() => prefix.addr().to_string(),
        _ => prefix.to_string(),
    }
}

pub(super) fn listed(addresses: &[IpNet]) -> String {
    if addresses.is_empty() {
        return "it has none".into();
    }
    addresses.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ")
}

fn no_interface(index: u16) -> Refusal {
    Refusal::new(format!("interface {index} does not exist: 'shuntctl interface list' shows those that do"))
}

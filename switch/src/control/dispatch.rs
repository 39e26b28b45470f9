//! From a line to its answer: which method, its checks, what the switch does.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::api::{self, Method};
use super::rpc::{self, Error, Head, Id};
use crate::config::{BridgeSpec, PortChange, PortSpec, spec};
use crate::refusal::Refusal;
use crate::switch::Switch;

/// Entries in a page of a forwarding database: some 2 MiB, written in a few milliseconds.
pub const PAGE: usize = 16_384;
/// Listings of more than one page that are remembered at once; the oldest goes for a new one.
pub const LISTINGS_MAX: usize = 4;
/// Bits of a page's token that count pages; the others number the listing.
const PAGE_BITS: u32 = 16;

/// A listing of which pages are still to be asked for.
struct Listing {
    number: u64,
    connection: u64,
    entries: Vec<api::FdbEntry>,
}

/// Answers requests from a switch.
pub struct Dispatcher {
    switch: Rc<RefCell<Switch>>,
    listings: RefCell<VecDeque<Listing>>,
    listed: Cell<u64>,
}

impl Dispatcher {
    /// Answers from `switch`, which nobody else may borrow while a request is answered.
    pub fn new(switch: Rc<RefCell<Switch>>) -> Self {
        Self { switch, listings: RefCell::default(), listed: Cell::new(0) }
    }

    /// Does what a line from `connection` asks. The answer has its line feed; a notification has none.
    pub fn answer(&self, connection: u64, line: &[u8]) -> Option<Vec<u8>> {
        let head = match rpc::head(line) {
            Ok(head) => head,
            Err(error) => return Some(rpc::failure(&Id::Null, &error)),
        };
        let result = self.call(connection, &head, line);
        if let Err(error) = &result {
            tracing::debug!("{} refused: {}", head.method, error.message);
        }
        let id = head.id?;
        Some(result.unwrap_or_else(|error| rpc::failure(&id, &error)))
    }

    /// Forgets what was kept for a connection that has ended.
    pub fn forget(&self, connection: u64) {
        self.listings.borrow_mut().retain(|listing| listing.connection != connection);
    }

    fn call(&self, connection: u64, head: &Head, line: &[u8]) -> Result<Vec<u8>, Error> {
        let call = Call { head, line, switch: &mut self.switch.borrow_mut() };
        match head.method.as_str() {
            api::StatusShow::NAME => call.run(|switch, _: api::StatusShow| Ok(switch.status())),
            api::BridgeAdd::NAME => call.run(|switch, asked: api::BridgeAdd| {
                let bridge = BridgeSpec::try_from(&asked)?;
                switch.add_bridge(bridge)?;
                tracing::info!("bridge {} added", asked.name);
                Ok(switch.bridge(&asked.name)?)
            }),
            api::BridgeDel::NAME => call.run(|switch, asked: api::BridgeDel| {
                switch.del_bridge(&asked.name)?;
                tracing::info!("bridge {} deleted", asked.name);
                Ok(api::Done {})
            }),
            api::BridgeList::NAME => call.run(|switch, _: api::BridgeList| Ok(switch.bridges())),
            api::BridgeShow::NAME => {
                call.run(|switch, asked: api::BridgeShow| Ok(switch.bridge(&asked.name)?))
            }
            api::PortAdd::NAME => call.run(|switch, asked: api::PortAdd| {
                let port = PortSpec::try_from(&asked)?;
                let (kind, bridge) = (port.attachment.kind(), port.bridge);
                switch.add_port(port)?;
                tracing::info!("port {} added to bridge {bridge} ({})", asked.name, kind.as_str());
                Ok(switch.port(&asked.name)?)
            }),
            api::PortDel::NAME => call.run(|switch, asked: api::PortDel| {
                switch.del_port(&asked.name)?;
                tracing::info!("port {} deleted", asked.name);
                Ok(api::Done {})
            }),
            api::PortList::NAME => call.run(|switch, _: api::PortList| Ok(switch.ports())),
            api::PortShow::NAME => call.run(|switch, asked: api::PortShow| Ok(switch.port(&asked.name)?)),
            api::PortSet::NAME => call.run(|switch, asked: api::PortSet| {
                let change = PortChange::try_from(&asked)?;
                switch.set_port(&asked.name, change)?;
                tracing::info!("port {} changed", asked.name);
                Ok(switch.port(&asked.name)?)
            }),
            api::FdbList::NAME => {
                call.run(|switch, asked: api::FdbList| self.list(switch, connection, &asked))
            }
            api::FdbAdd::NAME => call.run(|switch, asked: api::FdbAdd| {
                let (mac, vlan) = (spec::mac("mac", &asked.mac)?, spec::vlan(asked.vlan)?);
                switch.fdb_add(&asked.bridge, mac, &asked.port, vlan)?;
                Ok(api::Done {})
            }),
            api::FdbDel::NAME => call.run(|switch, asked: api::FdbDel| {
                let (mac, vlan) = (spec::mac("mac", &asked.mac)?, spec::vlan(asked.vlan)?);
                switch.fdb_del(&asked.bridge, mac, vlan)?;
                Ok(api::Done {})
            }),
            api::FdbFlush::NAME => call.run(|switch, asked: api::FdbFlush| {
                let removed = switch.fdb_flush(asked.bridge.as_deref(), asked.port.as_deref())?;
                Ok(api::Flushed { removed })
            }),
            api::WorkerList::NAME => call.run(|switch, asked: api::WorkerList| {
                let workers = switch.workers();
                if asked.reset {
                    switch.reset_workers();
                }
                Ok(workers)
            }),
            api::StatsShow::NAME => call.run(|switch, asked: api::StatsShow| {
                let ports = match &asked.port {
                    Some(name) => vec![switch.port(name)?],
                    None => switch.ports(),
                };
                let stats = |port: api::Port| api::PortStats { port: port.name, rx: port.rx, tx: port.tx };
                Ok(ports.into_iter().map(stats).collect())
            }),
            other => Err(Error::new(
                rpc::METHOD_NOT_FOUND,
                format!("method {other:?} is unknown: there are {}", api::METHODS.join(", ")),
            )),
        }
    }

    fn list(&self, switch: &Switch, connection: u64, asked: &api::FdbList) -> Result<api::FdbPage, Error> {
        let Some(token) = asked.next else {
            let entries = switch.fdb(asked.bridge.as_deref())?;
            let number = self.listed.get() + 1;
            self.listed.set(number);
            let listing = Listing { number, connection, entries };
            let page = listing.page(0)?;
            if page.next.is_some() {
                let mut listings = self.listings.borrow_mut();
                listings.retain(|old| old.connection != connection);
                listings.truncate(LISTINGS_MAX - 1);
                listings.push_front(listing);
            }
            return Ok(page);
        };
        let mut listings = self.listings.borrow_mut();
        let (number, page) = (token >> PAGE_BITS, token as usize & ((1 << PAGE_BITS) - 1));
        let at =
            listings.iter().position(|listing| listing.number == number && listing.connection == connection);
        let at = at.ok_or_else(|| {
            Refusal::new(format!(
                "next {token} belongs to no listing of this connection: start the listing anew"
            ))
        })?;
        let page = listings[at].page(page)?;
        if page.next.is_none() {
            listings.remove(at);
        }
        Ok(page)
    }
}

impl Listing {
    fn page(&self, page: usize) -> Result<api::FdbPage, Refusal> {
        let (start, total) = (page * PAGE, self.entries.len());
        let end = total.min(start + PAGE);
        let entries = self.entries.get(start..end).ok_or("next is beyond the end of the listing")?.to_vec();
        let next = (end < total).then_some(self.number << PAGE_BITS | (page as u64 + 1));
        Ok(api::FdbPage { total: total as u64, entries, next })
    }
}

/// A request about to be done.
struct Call<'a> {
    head: &'a Head,
    line: &'a [u8],
    switch: &'a mut Switch,
}

impl Call<'_> {
    /// Reads the parameters as those of `M`, does it, and writes the answer.
    fn run<M: Method>(
        self,
        act: impl FnOnce(&mut Switch, M) -> Result<M::Answer, Error>,
    ) -> Result<Vec<u8>, Error> {
        let asked = rpc::params(self.head, self.line)?;
        let answer = act(self.switch, asked)?;
        match &self.head.id {
            Some(id) => rpc::success(id, &answer),
            None => Ok(Vec::new()),
        }
    }
}

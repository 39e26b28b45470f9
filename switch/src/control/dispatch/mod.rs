//! From a line to its answer: which method, its checks, what the switch does. A file per part of the switch.
#![forbid(unsafe_code)]

mod check;
mod config;
mod container;
mod ipvs;
mod l2;
mod l3;
mod listing;
mod rules;
mod services;
mod upgrade;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use super::api::{self, Method};
use super::rpc::{self, Error, Head, Id};
use crate::config::spec::RouteSpec;
use crate::switch::Switch;
use listing::Listings;
pub use upgrade::{Outcome, Upgrades, Wish};

/// Reads a line as a dispatcher does, and does nothing.
///
/// # Errors
/// What would be answered: no request, no such method, or parameters that are not the method's.
pub fn read(line: &[u8]) -> Result<(), Error> {
    let head = rpc::head(line)?;
    macro_rules! read {
        ($($request:ident = $name:literal -> $answer:ty;)*) => {
            match head.method.as_str() {
                $($name => rpc::params::<api::$request>(&head, line).map(drop),)*
                other => Err(unknown(other)),
            }
        };
    }
    api::each_method!(read)
}

fn unknown(method: &str) -> Error {
    let methods = [api::METHODS, api::OPERATIONS].concat().join(", ");
    Error::new(rpc::METHOD_NOT_FOUND, format!("method {method:?} is unknown: there are {methods}"))
}

/// Answers requests from a switch.
pub struct Dispatcher {
    switch: Rc<RefCell<Switch>>,
    listings: Listings,
    /// Lists of routes of which more is to come, by connection.
    loads: RefCell<HashMap<u64, Vec<RouteSpec>>>,
    /// Number of routes in them.
    loading: Cell<usize>,
    transactions: ipvs::Transactions,
    parts: config::Parts,
    turns: container::Turns,
    /// Wishes for a planned restart.
    pub upgrades: Rc<Upgrades>,
}

/// What a method works on.
struct At<'a> {
    switch: &'a mut Switch,
    dispatcher: &'a Dispatcher,
    /// The connection that asks.
    connection: u64,
}

/// A method as the switch does it.
trait Handle: Method {
    /// Checks the values, does it, and says what came of it.
    fn handle(self, at: &mut At<'_>) -> Result<Self::Answer, Error>;
}

impl Dispatcher {
    /// Answers from `switch`, which nobody else may borrow while a request is answered.
    pub fn new(switch: Rc<RefCell<Switch>>, upgrades: Rc<Upgrades>) -> Self {
        Self {
            switch,
            listings: Listings::default(),
            loads: RefCell::default(),
            loading: Cell::new(0),
            transactions: ipvs::Transactions::default(),
            parts: config::Parts::default(),
            turns: container::Turns::default(),
            upgrades,
        }
    }

    /// Does what a line from `connection` asks. The answer has its line feed; a notification has none.
    pub async fn answer(&self, connection: u64, line: &[u8]) -> Option<Vec<u8>> {
        let head = match rpc::head(line) {
            Ok(head) => head,
            Err(error) => return Some(rpc::failure(&Id::Null, &error)),
        };
        let result = match self.operate(&head, line).await {
            Some(result) => result,
            None => self.call(connection, &head, line),
        };
        if let Err(error) = &result {
            tracing::debug!("{} refused: {}", head.method, error.message);
        }
        let id = head.id?;
        Some(result.unwrap_or_else(|error| rpc::failure(&id, &error)))
    }

    /// Forgets what was kept for a connection that has ended.
    pub fn forget(&self, connection: u64) {
        self.listings.forget(connection);
        self.take_load(connection);
        self.transactions.take(connection);
        self.parts.forget(connection);
    }

    fn call(&self, connection: u64, head: &Head, line: &[u8]) -> Result<Vec<u8>, Error> {
        let mut switch = self.switch.borrow_mut();
        let at = At { switch: &mut switch, dispatcher: self, connection };
        macro_rules! dispatch {
            ($($request:ident = $name:literal -> $answer:ty;)*) => {
                match head.method.as_str() {
                    $($name => run::<api::$request>(at, head, line),)*
                    other => Err(unknown(other)),
                }
            };
        }
        api::each_method!(dispatch)
    }

    /// Keeps a part of a list of routes until the rest comes.
    fn keep_load(&self, connection: u64, part: Vec<RouteSpec>) -> u64 {
        self.loading.set(self.loading.get() + part.len());
        let mut loads = self.loads.borrow_mut();
        let load = loads.entry(connection).or_default();
        load.extend(part);
        load.len() as u64
    }

    /// What came of a list of routes so far; it is kept no longer.
    fn take_load(&self, connection: u64) -> Vec<RouteSpec> {
        let load = self.loads.borrow_mut().remove(&connection).unwrap_or_default();
        self.loading.set(self.loading.get() - load.len());
        load
    }
}

/// Whether a method only asks, or changes nothing that outlives the daemon.
fn is_question(method: &str) -> bool {
    let verb = method.split_once('.').map_or("", |(_, verb)| verb);
    matches!(
        verb,
        "show" | "list" | "get" | "count" | "stats" | "timeouts" | "limits" | "settings" | "scopes"
    ) || matches!(
        verb,
        "connections" | "daemons" | "leases" | "check" | "diff" | "part" | "zero" | "release" | "cleanup"
    ) || matches!(method, "conntrack.flush" | "fdb.flush" | "neighbour.flush")
}

/// Reads the parameters as those of `M`, does it, and writes the answer.
fn run<M: Handle>(mut at: At<'_>, head: &Head, line: &[u8]) -> Result<Vec<u8>, Error> {
    let asked: M = rpc::params(head, line)?;
    if !is_question(M::NAME) {
        at.switch.prepare_change(line.len())?;
    }
    let answer = asked.handle(&mut at);
    let saved = at.switch.commit();
    let answer = answer?;
    saved?;
    match &head.id {
        Some(id) => rpc::success(id, &answer),
        None => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::document::{Document, tests::WHOLE};

    /// Whoever adds a method says here what it makes: what outlives the daemon has a place in the configuration.
    #[test]
    fn what_every_method_makes_is_part_of_the_configuration() {
        // What is gone with the connections that it is about, or with the daemon.
        const PASSING: &[&str] = &["worker.rebalance", "config.apply", "daemon.upgrade"];
        const MAKES: &[(&str, &[&str])] = &[
            ("bridge", &["bridge"]),
            ("port", &["port", "nic"]),
            ("fdb", &["fdb"]),
            ("worker", &["rebalance"]),
            ("interface", &["interface"]),
            ("route", &["route"]),
            ("neighbour", &["neighbour"]),
            ("nat", &["nat"]),
            ("policy", &["policy", "forward"]),
            ("conntrack", &["conntrack"]),
            ("dhcp", &["dhcp"]),
            ("ipvs", &["ipvs service", "ipvs settings", "ipvs timeouts", "sync daemon"]),
            ("check", &["check"]),
            ("container", &["container"]),
            ("kata", &["container"]),
        ];
        let document = Document::parse(WHOLE, None).unwrap();
        let kinds: BTreeSet<&str> = document.entries.keys().map(|key| key.kind()).collect();
        let mut made = BTreeSet::new();
        for method in [api::METHODS, api::OPERATIONS].concat() {
            if is_question(method) || PASSING.contains(&method) || method.contains(".list-") {
                continue;
            }
            let family = method.split_once('.').unwrap().0;
            let makes = MAKES.iter().find(|(of, _)| *of == family);
            let (_, makes) = makes.unwrap_or_else(|| panic!("{method}: what does it make?"));
            made.extend(makes.iter().copied());
        }
        assert_eq!(made, kinds);
    }
}

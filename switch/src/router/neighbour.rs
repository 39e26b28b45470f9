//! Neighbours in force: the operator's entries, what was learned, and the questions that ageing asks.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Router;
use super::live::Live;
use crate::clock;
use crate::config::{Mac, Name};
use crate::control::api::{Neighbour, NeighbourState};
use crate::l3::arp::Arp;
use crate::l3::interface::{Address, Interface};
use crate::l3::nd;
use crate::l3::neighbour::{Action, State};
use crate::l3::table::RouterTable;

/// Questions of one second: half of what the way to the worker holds. The others wait for their turn.
const QUESTIONS: usize = 256;

/// The operator's entries as they were put in force.
pub(super) type Fixed = BTreeMap<(Name, IpAddr), Mac>;

impl Live {
    /// Makes the operator's entries what the router says.
    pub(super) fn follow_neighbours(&mut self, router: &Router) {
        if self.fixed == router.neighbours {
            return;
        }
        for ((name, address), _) in self.fixed.iter().filter(|(key, _)| !router.neighbours.contains_key(*key))
        {
            if let Some(index) = self.index(name) {
                self.neighbours.remove(index, Address::from(*address));
            }
        }
        for ((name, address), mac) in
            router.neighbours.iter().filter(|(key, mac)| self.fixed.get(key) != Some(mac))
        {
            let Some(index) = self.index(name) else { continue };
            if let Err(refusal) = self.neighbours.fix(index, Address::from(*address), *mac, clock::seconds())
            {
                tracing::error!("neighbour {address} on {name} is not in force: {refusal}");
            }
        }
        self.fixed.clone_from(&router.neighbours);
    }

    /// Ages the neighbours, and has a worker ask those who are to be asked; whether there are any.
    pub(super) fn age_neighbours(&self, table: &RouterTable, now: u32) -> bool {
        let mut actions = Vec::new();
        self.neighbours.tick(now, QUESTIONS, &mut actions);
        let inject = self.services.inject();
        for action in &actions {
            let Action::Ask { interface, address, mac } = *action else { continue };
            let Some(interface) = table.interface(interface) else { continue };
            with_question(interface, address, mac, |frame| {
                inject.push(interface.index, None, frame);
            });
        }
        !actions.is_empty()
    }

    /// Forgets an entry that was learned; false if there was none.
    pub(super) fn forget_neighbour(&self, interface: &str, address: IpAddr) -> bool {
        self.index(interface).is_some_and(|index| self.neighbours.remove(index, Address::from(address)))
    }

    /// Forgets what was learned on one interface or all; how much.
    pub(super) fn flush_neighbours(&self, interface: Option<&str>) -> u64 {
        match interface {
            Some(name) => self.index(name).map_or(0, |index| self.neighbours.flush(Some(index), false)),
            None => self.neighbours.flush(None, false),
        }
    }

    /// All entries of one interface or all, by interface and address.
    pub(super) fn list_neighbours(&self, interface: Option<&str>) -> Vec<Neighbour> {
        let entries = self.neighbours.entries(clock::seconds());
        let mut listed: Vec<Neighbour> = entries
            .into_iter()
            .filter_map(|entry| {
                let name = self.name(entry.interface)?;
                let fixed = matches!(entry.state, State::Permanent | State::NoArp);
                interface.is_none_or(|interface| name.as_str() == interface).then_some(Neighbour {
                    interface: name,
                    address: entry.address,
                    mac: entry.mac,
                    state: state(entry.state),
                    age_seconds: if fixed { 0 } else { entry.confirmed },
                })
            })
            .collect();
        listed.sort_unstable_by_key(|neighbour| (neighbour.interface, neighbour.address));
        listed
    }
}

/// Lends the frame that asks for a neighbour: everybody, or the station of `mac`.
fn with_question(interface: &Interface, address: Address, mac: Option<Mac>, send: impl FnOnce(&[u8])) {
    if address.is_v4() {
        let target = address.0 as u32;
        if let Some(source) = interface.source_v4(target) {
            send(&Arp::request(interface.mac, source, target).frame(mac));
        }
    } else {
        let source = interface.source_v6(address.0);
        let (frame, len) = nd::solicitation(interface.mac, source, address.0, mac);
        send(&frame[..len]);
    }
}

fn state(state: State) -> NeighbourState {
    match state {
        State::Incomplete => NeighbourState::Incomplete,
        State::Reachable => NeighbourState::Reachable,
        State::Stale => NeighbourState::Stale,
        State::Delay => NeighbourState::Delay,
        State::Probe => NeighbourState::Probe,
        State::Failed => NeighbourState::Failed,
        State::NoArp => NeighbourState::Noarp,
        State::Permanent => NeighbourState::Permanent,
    }
}

//! Who may talk to whom: the stateful firewall between ports, bridges and addresses.
//!
//! The control thread keeps a [`PolicySet`] and compiles it into an immutable [`Policy`] that workers ask about the first
//! packet of a connection ([`Policy::decide`]); packets of an accepted connection come here no more. The first rule
//! that matches decides, as in iptables' FORWARD chain, but no list is walked: every field of the packet names the set
//! of the rules that it fits (a bit each), and the first bit that all sets have in common is the rule (aggregated bit
//! vectors; Baboescu and Varghese, SIGCOMM 2001). A change compiles what came since the last compilation only
//! ([`layers`]).
//!
//! What no rule decides: what another connection announced passes, what was published passes, between isolated
//! bridges nothing passes, and for the rest the default holds.
#![forbid(unsafe_code)]

mod dimension;
mod engine;
pub mod guard;
mod layers;
pub mod log;
mod ranges;
pub mod rule;
mod set;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use self::layers::{Compiled, Layers};
use self::rule::{Action, State};
pub use self::set::{BuiltinHits, Numbers, PolicySet};
use crate::drops::DropReason;
use crate::packet::tuple::Tuple;
use crate::rules::hash::Set;
use crate::rules::{Hits, NONE, RuleId, SWITCH};

/// One end of a packet's way through the switch, in numbers of the packet path; [`NONE`] for what is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The port.
    pub port: u16,
    /// The bridge.
    pub bridge: u16,
    /// The interface.
    pub interface: u16,
}

impl Place {
    /// The switch itself: for packets to and from its own addresses.
    pub const SWITCH: Self = Self { port: NONE, bridge: NONE, interface: SWITCH };
}

/// The first packet of a connection, or one that belongs to none.
#[derive(Clone, Copy, Debug)]
pub struct NewFlow {
    /// Destination translated, source not yet.
    pub tuple: Tuple,
    /// What conntrack says of it.
    pub state: State,
    /// Where it came in.
    pub from: Place,
    /// Where it is to leave.
    pub to: Place,
    /// Whether [`crate::nat::Nat::destination`] has translated it.
    pub published: bool,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Accept,
    /// It is dropped silently.
    Drop,
    /// It is dropped and its sender told.
    Reject,
}

impl Verdict {
    /// The word of commands and listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
            Self::Reject => "reject",
        }
    }
}

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A rule.
    Rule(RuleId),
    /// Nobody forbade what an accepted connection announced.
    Related,
    /// Nobody forbade what was published.
    Published,
    /// The bridges are isolated from each other.
    Isolation,
    /// The default.
    Default,
}

/// The answer of [`Policy::decide`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub verdict: Verdict,
    /// Whose decision it is.
    pub by: By,
    /// The rule whose log line is wanted, the first if there are several.
    pub log: Option<RuleId>,
}

impl Decision {
    /// What the packet's drop is counted as; `None`: it passes.
    pub fn drop_reason(&self) -> Option<DropReason> {
        match (self.verdict, self.by) {
            (Verdict::Accept, _) => None,
            (_, By::Isolation) => Some(DropReason::PolicyIsolation),
            (Verdict::Drop, _) => Some(DropReason::PolicyDrop),
            (Verdict::Reject, _) => Some(DropReason::PolicyReject),
        }
    }
}

/// Counters of what decides where no rule does.
#[derive(Debug)]
struct Builtin {
    related: Hits,
    published: Hits,
    isolation: Hits,
    default: Hits,
}

/// The rules, compiled. Immutable but for counters.
pub struct Policy {
    layers: Layers,
    default: Verdict,
    isolated: Set<u16>,
    for_switch: bool,
    /// Whether a rule names a port that packets leave by.
    to_port: bool,
    /// Whether a rule marks packets.
    marks: bool,
    builtin: Arc<Builtin>,
}

impl Policy {
    /// Whether everything passes, without a rule that would count or log it: packets need not come here.
    pub fn is_empty(&self) -> bool {
        self.layers.len() == 0 && self.default == Verdict::Accept && self.isolated.len() < 2
    }

    /// Whether a rule may be about packets to the switch's own addresses: if not, [`decide`](Self::decide) need not be
    /// asked about these.
    pub fn guards_switch(&self) -> bool {
        self.for_switch
    }

    /// Whether it makes a difference by which port a packet leaves.
    pub fn asks_where_to(&self) -> bool {
        self.to_port
    }

    /// Decides, and counts for `worker` (only its thread may) a packet of `bytes` bytes.
    pub fn decide(&self, flow: &NewFlow, worker: usize, bytes: u64) -> Decision {
        let mut log = None;
        let mut decided = None;
        let visit = |rule: &Compiled| {
            if matches!(rule.action, Action::Mark(_)) {
                return true;
            }
            rule.hits.hit(worker, bytes);
            if rule.log || rule.action == Action::Log {
                log.get_or_insert(rule.order.1);
            }
            let verdict = match rule.action {
                Action::Log | Action::Mark(_) => return true,
                Action::Accept => Verdict::Accept,
                Action::Drop => Verdict::Drop,
                Action::Reject => Verdict::Reject,
            };
            decided = Some((verdict, By::Rule(rule.order.1)));
            false
        };
        self.visit(flow, visit);
        let (verdict, by) = decided.unwrap_or_else(|| self.otherwise(flow, worker, bytes));
        Decision { verdict, by, log }
    }

    /// Shows the rules that match, in their order, until `visit` has seen enough.
    fn visit(&self, flow: &NewFlow, visit: impl FnMut(&Compiled) -> bool) {
        match (flow.tuple.source, flow.tuple.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.layers.visit(flow, (source.to_bits(), destination.to_bits()), |layer| &layer.v4, visit);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.layers.visit(flow, (source.to_bits(), destination.to_bits()), |layer| &layer.v6, visit);
            }
            // No packet is both.
            _ => {}
        }
    }

    /// The mark that the first rule of [`Action::Mark`] gives a packet as it comes in, 0 if none does. Counts as
    /// [`Policy::decide`] does.
    pub fn mark(&self, flow: &NewFlow, worker: usize, bytes: u64) -> u32 {
        let mut found = 0;
        if self.marks {
            self.visit(flow, |rule| {
                let Action::Mark(mark) = rule.action else { return true };
                rule.hits.hit(worker, bytes);
                found = mark;
                false
            });
        }
        found
    }

    /// What holds where no rule decides.
    fn otherwise(&self, flow: &NewFlow, worker: usize, bytes: u64) -> (Verdict, By) {
        let builtin = &self.builtin;
        let (verdict, by, hits) = if flow.state == State::Related {
            (Verdict::Accept, By::Related, &builtin.related)
        } else if flow.published && flow.state != State::Invalid {
            (Verdict::Accept, By::Published, &builtin.published)
        } else if flow.from.bridge != flow.to.bridge
            && self.isolated.contains(&flow.from.bridge)
            && self.isolated.contains(&flow.to.bridge)
        {
            (Verdict::Drop, By::Isolation, &builtin.isolation)
        } else if flow.from.interface == SWITCH || flow.to.interface == SWITCH {
            // The default is one of forwarding.
            (Verdict::Accept, By::Default, &builtin.default)
        } else {
            (self.default, By::Default, &builtin.default)
        };
        hits.hit(worker, bytes);
        (verdict, by)
    }
}

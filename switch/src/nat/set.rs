//! The rules of translation as the control thread keeps them: checked against each other, numbered, counted.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::destination::{Destinations, OneToOneNets};
use super::mappings::{KeptMapping, LIMIT, Mappings};
use super::own::Own;
use super::ports::Scarce;
use super::rule::{OneToOne, Out, Publish, Rule, Selector, overlap};
use super::source::{OutIndex, Outbound, Sources};
use super::{CLASH, Cause, HAIRPIN, Interface, Nat};
use crate::config::name::Name;
use crate::refusal::Refusal;
use crate::rules::prefixes::Prefixes;
use crate::rules::{Hits, HitsTotal, NONE, RuleId};

/// Most rules of all kinds together.
const RULES_MAX: usize = 65_536;

struct Entry {
    rule: Rule,
    hits: Arc<Hits>,
}

/// What has been counted beside the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HitsOf {
    /// Connections to published ports from the server's own network.
    pub hairpin: HitsTotal,
    /// Connections whose source port changed since another connection had the same tuple.
    pub clash: HitsTotal,
    /// Endpoint-independent mappings now.
    pub mappings: usize,
}

/// All rules of translation.
pub struct RuleSet {
    rules: BTreeMap<RuleId, Entry>,
    last: RuleId,
    workers: usize,
    hairpin: Arc<Hits>,
    clash: Arc<Hits>,
    mappings: Arc<Mappings>,
    scarce: Arc<Scarce>,
    /// What was compiled last, and for which interfaces, while the rules are the same.
    compiled: Mutex<Option<(Vec<Interface>, Arc<Nat>)>>,
}

impl RuleSet {
    /// No rules, for a switch of `workers` workers.
    pub fn new(workers: usize) -> Self {
        Self {
            rules: BTreeMap::new(),
            last: 0,
            workers,
            hairpin: Arc::new(Hits::new(workers)),
            clash: Arc::new(Hits::new(workers)),
            mappings: Arc::new(Mappings::new(LIMIT)),
            scarce: Arc::new(Scarce::new()),
            compiled: Mutex::default(),
        }
    }

    /// Adds a rule, which applies from the next [`compile`](Self::compile) on, and gives it its number.
    ///
    /// Whether the interface that it names exists is for the caller to say; one that does not matches no packet.
    ///
    /// # Errors
    /// What is wrong with it, or which rule stands against it. Nothing has changed then.
    pub fn add(&mut self, rule: Rule) -> Result<RuleId, Refusal> {
        let rule = self.admitted(rule)?;
        // Numbers are not used again before all were.
        let mut free = (self.last.saturating_add(1)..=RuleId::MAX).chain(1..=RuleId::MAX);
        let id = free.find(|id| !self.rules.contains_key(id));
        let id = id.ok_or("there is no number left for a nat rule")?;
        self.last = id;
        self.enter(id, rule);
        Ok(id)
    }

    /// As [`add`](Self::add), under a number of the caller's choice.
    ///
    /// # Errors
    /// As there; the number is taken.
    pub fn insert(&mut self, id: RuleId, rule: Rule) -> Result<(), Refusal> {
        let rule = self.admitted(rule)?;
        if self.rules.contains_key(&id) {
            return Err(Refusal::new(format!("nat rule {id} exists already: choose another number")));
        }
        self.last = self.last.max(id);
        self.enter(id, rule);
        Ok(())
    }

    fn enter(&mut self, id: RuleId, rule: Rule) {
        self.changed();
        self.rules.insert(id, Entry { rule, hits: Arc::new(Hits::new(self.workers)) });
    }

    /// A rule that may come to the others.
    fn admitted(&self, rule: Rule) -> Result<Rule, Refusal> {
        let rule = rule.checked()?;
        if self.rules.len() >= RULES_MAX {
            return Err(Refusal::new(format!(
                "there are {RULES_MAX} rules already, and no more are possible"
            )));
        }
        for (id, Entry { rule: other, .. }) in &self.rules {
            against(&rule, *id, other)?;
        }
        Ok(rule)
    }

    /// Removes a rule, from the next [`compile`](Self::compile) on; connections that it made live on.
    ///
    /// `kind`: what [`Rule::kind`] must say, for a command that names it.
    ///
    /// # Errors
    /// There is no such rule.
    pub fn remove(&mut self, id: RuleId, kind: Option<&str>) -> Result<Rule, Refusal> {
        let Some(entry) = self.rules.get(&id) else {
            return Err(Refusal::new(format!("there is no nat rule {id}")));
        };
        if let Some(kind) = kind.filter(|&kind| kind != entry.rule.kind()) {
            return Err(Refusal::new(format!(
                "nat rule {id} is no {kind} rule but a {} rule",
                entry.rule.kind()
            )));
        }
        self.changed();
        self.rules
            .remove(&id)
            .map(|entry| entry.rule)
            .ok_or_else(|| Refusal::new(format!("there is no nat rule {id}")))
    }

    /// The rules with their numbers and counters, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (RuleId, &Rule, HitsTotal)> {
        self.rules.iter().map(|(id, entry)| (*id, &entry.rule, entry.hits.total()))
    }

    /// The rule of a number and its counters.
    pub fn get(&self, id: RuleId) -> Option<(&Rule, HitsTotal)> {
        self.rules.get(&id).map(|entry| (&entry.rule, entry.hits.total()))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The first rule that names an interface, which should not go before it.
    pub fn naming(&self, interface: Name) -> Option<(RuleId, &Rule)> {
        let mut rules = self.rules.iter().map(|(id, entry)| (*id, &entry.rule));
        rules.find(|(_, rule)| rule.interface() == Some(interface))
    }

    /// Endpoint-independent mappings, the longest unused first.
    pub fn mappings(&self) -> Vec<KeptMapping> {
        self.mappings.export()
    }

    /// Adds a mapping of another process; false if there is no room.
    pub fn restore_mapping(&self, kept: &KeptMapping) -> bool {
        self.mappings.restore(kept)
    }

    /// Forgets the mapping of a client's port.
    pub fn forget_mapping(&self, protocol: u8, inside: (IpAddr, u16)) {
        self.mappings.forget(protocol, inside);
    }

    /// What was counted beside the rules.
    pub fn hits(&self) -> HitsOf {
        HitsOf { hairpin: self.hairpin.total(), clash: self.clash.total(), mappings: self.mappings.len() }
    }

    /// What was compiled is of the past.
    fn changed(&mut self) {
        *self.compiled.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The snapshot for workers, compiled anew if rules, interfaces or their addresses have changed.
    pub fn snapshot(&self, interfaces: Vec<Interface>) -> Arc<Nat> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, nat)) = &*compiled
            && *of == interfaces
        {
            return nat.clone();
        }
        let nat = Arc::new(self.compile(&interfaces));
        *compiled = Some((interfaces, nat.clone()));
        nat
    }

    /// The rules, compiled for these interfaces.
    pub fn compile(&self, interfaces: &[Interface]) -> Nat {
        let indices: HashMap<Name, u16> = interfaces.iter().map(|at| (at.name, at.index)).collect();
        let index = |name: Name| indices.get(&name).copied();
        // A rule for an interface that is not there is for no packet, one for all but it is for every packet.
        let out = |out: &Out| match *out {
            Out::Any => Some(OutIndex::Any),
            Out::Only(name) => index(name).map(OutIndex::Only),
            Out::Except(name) => Some(index(name).map_or(OutIndex::Any, OutIndex::Except)),
        };
        let mut causes =
            vec![(Cause::Hairpin, Arc::clone(&self.hairpin)), (Cause::Clash, Arc::clone(&self.clash))];
        debug_assert_eq!((HAIRPIN, CLASH), (0, 1));
        let (mut publish, mut to_inside) = (Vec::new(), Vec::new());
        let (mut outbound, mut to_outside) = (Vec::new(), Vec::new());
        for (&id, entry) in &self.rules {
            let slot = causes.len() as u32;
            causes.push((Cause::Rule(id), Arc::clone(&entry.hits)));
            let mut outgoing = |selector: &Selector, to, ports, endpoint_independent| {
                let except =
                    (!selector.except.is_empty()).then(|| Prefixes::new(selector.except.iter().copied()));
                let rule = Outbound { to, ports, endpoint_independent, except, slot };
                outbound.extend(out(&selector.out).map(|out| (selector.source, out, rule)));
            };
            match &entry.rule {
                Rule::Masquerade(rule) => {
                    outgoing(&rule.selector, None, rule.ports, rule.endpoint_independent);
                }
                Rule::Snat(rule) => {
                    outgoing(&rule.selector, Some(rule.to), rule.ports, rule.endpoint_independent);
                }
                Rule::Publish(rule) => {
                    let ingress = rule.ingress.map_or(Some(NONE), index);
                    publish.extend(ingress.map(|ingress| (rule, ingress, slot)));
                }
                Rule::OneToOne(rule) => {
                    to_inside.push((rule, slot));
                    let nets = OneToOneNets { from: rule.inside, to: rule.outside };
                    to_outside.extend(out(&rule.out).map(|out| (nets, out, slot)));
                }
            }
        }
        let destinations = Destinations::new(&publish, &to_inside);
        let clashes = !destinations.is_empty();
        let (mappings, scarce) = (Arc::clone(&self.mappings), Arc::clone(&self.scarce));
        Nat {
            sources: Sources::new(outbound, to_outside, mappings, scarce, clashes),
            destinations,
            own: Own::new(interfaces),
            causes: causes.into(),
        }
    }
}

/// Whether a new rule can stand beside another.
fn against(rule: &Rule, id: RuleId, other: &Rule) -> Result<(), Refusal> {
    let refused = match (rule, other) {
        (Rule::Publish(rule), Rule::Publish(other)) if rule.clashes(other) => {
            published_twice(rule, id, other)
        }
        (Rule::OneToOne(rule), Rule::OneToOne(other)) => {
            let Some((what, net, taken)) = shared(rule, other) else { return Ok(()) };
            format!("{what} {net}: one-to-one rule {id} translates {taken} already")
        }
        (Rule::Masquerade(_) | Rule::Snat(_), Rule::Masquerade(_) | Rule::Snat(_)) => {
            let (Some(rule), Some(theirs)) = (selector(rule), selector(other)) else { return Ok(()) };
            if rule.source != theirs.source || rule.out != theirs.out {
                return Ok(());
            }
            format!(
                "source {} out of {}: {} rule {id} translates it already; remove that first",
                rule.source,
                rule.out,
                other.kind()
            )
        }
        _ => return Ok(()),
    };
    Err(Refusal::new(refused))
}

fn published_twice(rule: &Publish, id: RuleId, other: &Publish) -> String {
    format!(
        "{}: already published by publish rule {id} ({} to {} port {})",
        rule.listening(),
        other.listening(),
        other.to,
        other.to_ports
    )
}

fn shared(rule: &OneToOne, other: &OneToOne) -> Option<(&'static str, ipnet::IpNet, ipnet::IpNet)> {
    let pairs = [
        ("outside", rule.outside, other.outside),
        ("inside", rule.inside, other.inside),
        ("outside", rule.outside, other.inside),
        ("inside", rule.inside, other.outside),
    ];
    pairs.into_iter().find(|(_, net, other)| overlap(net, other))
}

fn selector(rule: &Rule) -> Option<&Selector> {
    match rule {
        Rule::Masquerade(rule) => Some(&rule.selector),
        Rule::Snat(rule) => Some(&rule.selector),
        Rule::Publish(_) | Rule::OneToOne(_) => None,
    }
}

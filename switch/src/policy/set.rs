//! The policy as the control thread keeps it: rules in their order, numbered and counted, and what holds without them.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;

use super::engine::{Engine, Fields, PlaceFields};
use super::layers::{Compiled, Layer, Layers};
use super::ranges::Ranges;
use super::rule::{Action, Addresses, RANGES_TOTAL_MAX, RULES_MAX, Rule, Side, State, Zone};
use super::{Builtin, Policy, Verdict};
use crate::config::name::Name;
use crate::nat::rule::PortRange;
use crate::refusal::Refusal;
use crate::rules::intervals::Point;
use crate::rules::{Hits, HitsTotal, RuleId, SWITCH};

/// The numbers of names on the packet path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Of ports.
    pub ports: HashMap<Name, u16>,
    /// Of bridges.
    pub bridges: HashMap<Name, u16>,
    /// Of interfaces.
    pub interfaces: HashMap<Name, u16>,
}

/// How often packets were decided without a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuiltinHits {
    /// Accepted: announced by an accepted connection.
    pub related: HitsTotal,
    /// Accepted: published.
    pub published: HitsTotal,
    /// Dropped between isolated bridges.
    pub isolation: HitsTotal,
    /// Decided by the default.
    pub default: HitsTotal,
}

struct Entry {
    rule: Rule,
    hits: Arc<Hits>,
}

/// Priority and number of a rule: its place among the others.
type Order = (u32, RuleId);

/// What names stand for; `None` for those that nothing has.
type Named = BTreeMap<Zone, Option<u16>>;

/// So many rules may come or go before everything is compiled anew, and twice the square root of their number more.
const FEW: usize = 32;

/// What was compiled last.
struct Made {
    base: Arc<Layer>,
    /// What the names in `base` stood for.
    of: Named,
    /// Rules that came since then, and rules of `base` that went.
    added: BTreeSet<Order>,
    gone: BTreeSet<Order>,
    /// The snapshot, and what the names stood for, while nothing has changed.
    policy: Option<(Named, Arc<Policy>)>,
}

/// All rules of the policy.
pub struct PolicySet {
    /// By priority, then number: the order in which they are asked.
    rules: BTreeMap<Order, Entry>,
    priorities: HashMap<RuleId, u32>,
    /// Prefixes and ranges of ports of all of them.
    ranges: usize,
    last: RuleId,
    workers: usize,
    default: Verdict,
    isolated: Vec<Name>,
    builtin: Arc<Builtin>,
    /// How many rules name a zone.
    named: BTreeMap<Zone, usize>,
    /// How many rules are about packets to a port.
    to_port: usize,
    /// How many rules mark packets.
    marks: usize,
    made: Mutex<Option<Made>>,
    /// Whether nothing has changed since [`PolicySet::rest`] asked.
    quiet: bool,
}

impl PolicySet {
    /// No rules, everything passes, for a switch of `workers` workers.
    pub fn new(workers: usize) -> Self {
        let hits = || Hits::new(workers);
        Self {
            rules: BTreeMap::new(),
            priorities: HashMap::new(),
            ranges: 0,
            last: 0,
            workers,
            default: Verdict::Accept,
            isolated: Vec::new(),
            named: BTreeMap::new(),
            to_port: 0,
            marks: 0,
            made: Mutex::default(),
            quiet: false,
            builtin: Arc::new(Builtin {
                related: hits(),
                published: hits(),
                isolation: hits(),
                default: hits(),
            }),
        }
    }

    /// Adds a rule, which applies from the next [`compile`](Self::compile) on, and gives it its number.
    ///
    /// Whether what it names exists is for the caller to say; what does not, no packet comes from or goes to.
    ///
    /// # Errors
    /// What is wrong with it. Nothing has changed then.
    pub fn add(&mut self, rule: Rule) -> Result<RuleId, Refusal> {
        let mut free = (self.last.saturating_add(1)..=RuleId::MAX).chain(1..=RuleId::MAX);
        let id = free.find(|id| !self.contains(*id)).ok_or("there is no number left for a policy rule")?;
        self.insert(id, rule)?;
        self.last = id;
        Ok(id)
    }

    /// As [`add`](Self::add), under a number of the caller's choice.
    ///
    /// # Errors
    /// As there; the number is taken.
    pub fn insert(&mut self, id: RuleId, rule: Rule) -> Result<(), Refusal> {
        let rule = rule.checked()?;
        if self.contains(id) {
            return Err(Refusal::new(format!(
                "policy rule {id} exists already: choose another number, or delete it first"
            )));
        }
        if self.rules.len() >= RULES_MAX {
            return Err(Refusal::new(format!(
                "there are {RULES_MAX} policy rules already, and no more are possible; one rule takes several prefixes \
                 and port ranges"
            )));
        }
        let ranges = self.ranges + rule.ranges();
        if ranges > RANGES_TOTAL_MAX {
            return Err(Refusal::new(format!(
                "all policy rules together would have {ranges} prefixes and port ranges: at most {RANGES_TOTAL_MAX}"
            )));
        }
        self.ranges = ranges;
        self.priorities.insert(id, rule.priority);
        for zone in [rule.from.zone, rule.to.zone] {
            *self.named.entry(zone).or_default() += 1;
        }
        self.to_port += usize::from(is_to_port(&rule));
        self.marks += usize::from(matches!(rule.action, Action::Mark(_)));
        if let Some(made) = self.changed() {
            made.added.insert((rule.priority, id));
        }
        let entry = Entry { hits: Arc::new(Hits::new(self.workers)), rule };
        self.rules.insert((entry.rule.priority, id), entry);
        Ok(())
    }

    /// Whether there is a rule of this number.
    pub fn contains(&self, id: RuleId) -> bool {
        self.priorities.contains_key(&id)
    }

    /// The rule of a number and its counters.
    pub fn get(&self, id: RuleId) -> Option<(&Rule, HitsTotal)> {
        let entry = self.rules.get(&(*self.priorities.get(&id)?, id))?;
        Some((&entry.rule, entry.hits.total()))
    }

    /// The rule that is asked last.
    pub fn last(&self) -> Option<(RuleId, &Rule)> {
        self.rules.last_key_value().map(|(&(_, id), entry)| (id, &entry.rule))
    }

    /// Removes all rules; returns how many there were.
    pub fn clear(&mut self) -> usize {
        self.ranges = 0;
        self.priorities.clear();
        self.named.clear();
        self.to_port = 0;
        self.marks = 0;
        *self.made.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        std::mem::take(&mut self.rules).len()
    }

    /// Removes a rule, from the next [`compile`](Self::compile) on; connections that it let pass live on.
    ///
    /// # Errors
    /// There is no such rule.
    pub fn remove(&mut self, id: RuleId) -> Result<Rule, Refusal> {
        let order = self.priorities.remove(&id).map(|priority| (priority, id));
        let Some((order, Entry { rule, .. })) = order.and_then(|order| self.rules.remove_entry(&order))
        else {
            return Err(Refusal::new(format!("there is no policy rule {id}")));
        };
        self.ranges -= rule.ranges();
        self.to_port -= usize::from(is_to_port(&rule));
        self.marks -= usize::from(matches!(rule.action, Action::Mark(_)));
        for zone in [rule.from.zone, rule.to.zone] {
            if let Some(count) = self.named.get_mut(&zone) {
                *count -= 1;
                if *count == 0 {
                    self.named.remove(&zone);
                }
            }
        }
        if let Some(made) = self.changed()
            && !made.added.remove(&order)
        {
            made.gone.insert(order);
        }
        Ok(rule)
    }

    /// The rules with their numbers and counters, in the order in which they are asked.
    pub fn iter(&self) -> impl Iterator<Item = (RuleId, &Rule, HitsTotal)> {
        self.rules.iter().map(|(&(_, id), entry)| (id, &entry.rule, entry.hits.total()))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The first rule that names this zone, which should not go before it.
    pub fn naming(&self, zone: Zone) -> Option<(RuleId, &Rule)> {
        let mut rules = self.rules.iter().map(|(&(_, id), entry)| (id, &entry.rule));
        rules.find(|(_, rule)| rule.from.zone == zone || rule.to.zone == zone)
    }

    /// What holds for forwarded packets that no rule decides.
    pub fn default_forward(&self) -> Verdict {
        self.default
    }

    /// Sets it.
    pub fn set_default_forward(&mut self, verdict: Verdict) {
        self.changed();
        self.default = verdict;
    }

    /// The bridges between which nothing passes unless a rule accepts it or it was published.
    pub fn isolated(&self) -> &[Name] {
        &self.isolated
    }

    /// Sets them, as Docker's isolation stages do for its networks: each of them still reaches every other bridge, so
    /// leave out the one of the way out.
    pub fn set_isolated(&mut self, mut bridges: Vec<Name>) {
        bridges.sort_unstable();
        bridges.dedup();
        if self.isolated != bridges {
            self.changed();
            self.isolated = bridges;
        }
    }

    /// What was decided without a rule.
    pub fn hits(&self) -> BuiltinHits {
        BuiltinHits {
            related: self.builtin.related.total(),
            published: self.builtin.published.total(),
            isolation: self.builtin.isolation.total(),
            default: self.builtin.default.total(),
        }
    }

    /// The snapshot that was made last is of the past.
    fn changed(&mut self) -> Option<&mut Made> {
        self.quiet = false;
        let made = self.made.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut()?;
        made.policy = None;
        Some(made)
    }

    /// What the names that occur here stand for.
    fn named(&self, numbers: &Numbers) -> Named {
        let number = |zone: &Zone| match zone {
            Zone::Port(name) => numbers.ports.get(name).copied(),
            Zone::Bridge(name) => numbers.bridges.get(name).copied(),
            Zone::Interface(name) => numbers.interfaces.get(name).copied(),
            Zone::Any | Zone::Switch => None,
        };
        let isolated = self.isolated.iter().map(|&name| Zone::Bridge(name));
        self.named.keys().copied().chain(isolated).map(|zone| (zone, number(&zone))).collect()
    }

    /// The snapshot for workers, made anew if rules or the numbers of what they name have changed. While few rules have
    /// come and gone since everything was compiled, only what has come is.
    pub fn snapshot(&self, numbers: &Numbers) -> Arc<Policy> {
        let named = self.named(numbers);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Made { policy: Some((of, policy)), .. }) = &*made
            && *of == named
        {
            return policy.clone();
        }
        // What is not named any more, no rule that is left names.
        let holds =
            |of: &Named| of.iter().all(|(zone, number)| named.get(zone).is_none_or(|now| now == number));
        let most = FEW + 2 * self.rules.len().isqrt();
        let new = match made.take() {
            Some(old) if old.added.len() + old.gone.len() <= most && holds(&old.of) => {
                let added = old.added.iter().filter_map(|order| self.rules.get_key_value(order));
                let recent = (!old.added.is_empty()).then(|| Self::layer(added, numbers));
                let layers = Layers::new(old.base.clone(), recent, old.gone.iter());
                let policy = Arc::new(self.around(layers, numbers));
                Made { policy: Some((named, policy)), ..old }
            }
            _ => {
                let base = Arc::new(Self::layer(self.rules.iter(), numbers));
                let policy = Arc::new(self.around(Layers::new(base.clone(), None, [].iter()), numbers));
                let (added, gone) = Default::default();
                Made { base, of: named.clone(), added, gone, policy: Some((named, policy)) }
            }
        };
        let policy = new.policy.as_ref().map(|(_, policy)| policy.clone());
        *made = Some(new);
        policy.unwrap_or_else(|| Arc::new(self.compile(numbers)))
    }

    /// To be called now and then: once nothing has changed from one call to the next, what came since everything was
    /// compiled is compiled with the rest by the next [`snapshot`](Self::snapshot), and this says so.
    pub fn rest(&mut self) -> bool {
        let quiet = std::mem::replace(&mut self.quiet, true);
        let made = self.made.get_mut().unwrap_or_else(PoisonError::into_inner);
        let layered = made.as_ref().is_some_and(|made| !made.added.is_empty() || !made.gone.is_empty());
        if quiet && layered {
            *made = None;
        }
        quiet && layered
    }

    /// The rules, compiled as a whole with these numbers.
    pub fn compile(&self, numbers: &Numbers) -> Policy {
        let base = Arc::new(Self::layer(self.rules.iter(), numbers));
        self.around(Layers::new(base, None, [].iter()), numbers)
    }

    /// What holds around the rules.
    fn around(&self, layers: Layers, numbers: &Numbers) -> Policy {
        let isolated = self.isolated.iter().filter_map(|name| numbers.bridges.get(name)).copied();
        Policy {
            layers,
            default: self.default,
            isolated: isolated.collect(),
            for_switch: self.named.contains_key(&Zone::Switch),
            to_port: self.to_port > 0,
            marks: self.marks > 0,
            builtin: Arc::clone(&self.builtin),
        }
    }

    fn layer<'a>(entries: impl Iterator<Item = (&'a Order, &'a Entry)>, numbers: &Numbers) -> Layer {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let mut rules = Vec::new();
        for (&order, Entry { rule, hits }) in entries {
            let place = rules.len() as u32;
            rules.push(Compiled { order, action: rule.action, log: rule.log, hits: Arc::clone(hits) });
            if rule.source.has(false) && rule.destination.has(false) {
                v4.push(fields(rule, place, numbers, v4_range));
            }
            if rule.source.has(true) && rule.destination.has(true) {
                v6.push(fields(rule, place, numbers, v6_range));
            }
        }
        v4.retain(|rule| !rule.is_empty());
        v6.retain(|rule| !rule.is_empty());
        Layer { rules: rules.into(), v4: Engine::new(&v4), v6: Engine::new(&v6) }
    }
}

fn is_to_port(rule: &Rule) -> bool {
    matches!(rule.to.zone, Zone::Port(_))
}

fn v4_range(net: &IpNet) -> Option<(u32, u32)> {
    match net {
        IpNet::V4(net) => Some((net.network().to_bits(), net.broadcast().to_bits())),
        IpNet::V6(_) => None,
    }
}

fn v6_range(net: &IpNet) -> Option<(u128, u128)> {
    match net {
        IpNet::V6(net) => Some((net.network().to_bits(), net.broadcast().to_bits())),
        IpNet::V4(_) => None,
    }
}

fn fields<K: Point>(
    rule: &Rule,
    place: u32,
    numbers: &Numbers,
    range: fn(&IpNet) -> Option<(K, K)>,
) -> Fields<K> {
    let states = [State::New, State::Established, State::Related, State::Invalid];
    let states = states.into_iter().filter(|&state| rule.states.contains(state));
    let state = match rule.states {
        super::rule::States::ALL => Ranges::All,
        _ => Ranges::of(states.map(|state| (state as u8, state as u8)).collect()),
    };
    let destination_port = match rule.icmp_type {
        // Where a query has its type.
        Some(kind) => Ranges::one(u16::from(kind), u16::from(kind)),
        None => ports(&rule.destination_ports),
    };
    Fields {
        place,
        source: addresses(&rule.source, range),
        destination: addresses(&rule.destination, range),
        source_port: ports(&rule.source_ports),
        destination_port,
        protocol: rule.protocol.map_or(Ranges::All, |protocol| Ranges::one(protocol, protocol)),
        state,
        from: place_fields(rule.from, numbers),
        to: place_fields(rule.to, numbers),
    }
}

fn addresses<K: Point>(addresses: &Addresses, range: fn(&IpNet) -> Option<(K, K)>) -> Ranges<K> {
    let within = match addresses.within.is_empty() {
        true => Ranges::All,
        false => Ranges::of(addresses.within.iter().filter_map(range).collect()),
    };
    within.without(&Ranges::of(addresses.except.iter().filter_map(range).collect()))
}

fn ports(ports: &[PortRange]) -> Ranges<u16> {
    match ports {
        [] => Ranges::All,
        ports => Ranges::of(ports.iter().map(|range| (range.first, range.last)).collect()),
    }
}

/// A side in numbers. What has no number matches nothing, and everything but it everything.
fn place_fields(side: Side, numbers: &Numbers) -> PlaceFields {
    let mut fields = PlaceFields { port: Ranges::All, bridge: Ranges::All, interface: Ranges::All };
    let one = |number: Option<&u16>| {
        let these = number.map_or(Ranges::These(Vec::new()), |&number| Ranges::one(number, number));
        if side.negated { these.complement() } else { these }
    };
    match side.zone {
        Zone::Any => {}
        Zone::Port(name) => fields.port = one(numbers.ports.get(&name)),
        Zone::Bridge(name) => fields.bridge = one(numbers.bridges.get(&name)),
        Zone::Interface(name) => fields.interface = one(numbers.interfaces.get(&name)),
        Zone::Switch => fields.interface = one(Some(&SWITCH)),
    }
    fields
}

//! The compiled rules in two layers: all of some moment, and the few that came since; of the first those that went since
//! are marked.
//!
//! A bit vector is compiled as a whole, which takes milliseconds for thousands of rules. Rules are added one at a time,
//! and each is to hold at once: so a change compiles only what came since the last whole compilation, and a packet asks
//! both layers, in the order of the rules of both. [`super::PolicySet`] decides when they become one again.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::NewFlow;
use super::engine::Engine;
use super::rule::Action;
use crate::rules::intervals::Point;
use crate::rules::{Hits, RuleId};

const BITS: usize = u64::BITS as usize;

/// A rule as a decision needs it.
pub(super) struct Compiled {
    /// Priority and number: lower ones are asked first.
    pub(super) order: (u32, RuleId),
    pub(super) action: Action,
    pub(super) log: bool,
    pub(super) hits: Arc<Hits>,
}

/// Rules that were compiled together.
pub(super) struct Layer {
    /// In their order.
    pub(super) rules: Box<[Compiled]>,
    pub(super) v4: Engine<u32>,
    pub(super) v6: Engine<u128>,
}

/// Both layers.
pub(super) struct Layers {
    base: Arc<Layer>,
    recent: Option<Layer>,
    /// A bit for each rule of `base` that is no more; nothing if there is none.
    gone: Box<[u64]>,
    len: usize,
}

impl Layers {
    /// What `gone` names in `base` is no rule any more; `recent` are in none of both.
    pub(super) fn new<'a>(
        base: Arc<Layer>,
        recent: Option<Layer>,
        gone: impl ExactSizeIterator<Item = &'a (u32, RuleId)>,
    ) -> Self {
        let added = recent.as_ref().map_or(0, |layer| layer.rules.len());
        let mut len = base.rules.len() + added;
        let mut bits = vec![0; if gone.len() == 0 { 0 } else { base.rules.len().div_ceil(BITS) }];
        for order in gone {
            if let Ok(place) = base.rules.binary_search_by_key(order, |rule| rule.order) {
                bits[place / BITS] |= 1 << (place % BITS);
                len -= 1;
            }
        }
        Self { base, recent, gone: bits.into(), len }
    }

    /// How many rules.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn is_there(&self, place: u32) -> bool {
        let place = place as usize;
        self.gone.get(place / BITS).is_none_or(|word| word >> (place % BITS) & 1 == 0)
    }

    /// Calls `visit` with the rules that a packet matches, in their order, while it says `true`. `engine` picks the
    /// family's.
    pub(super) fn visit<K: Point>(
        &self,
        flow: &NewFlow,
        ends: (K, K),
        engine: impl Fn(&Layer) -> &Engine<K>,
        mut visit: impl FnMut(&Compiled) -> bool,
    ) {
        let base = &self.base.rules;
        let old = engine(&self.base).search(flow, ends.0, ends.1).filter(|place| self.is_there(*place));
        let mut old = old.filter_map(|place| base.get(place as usize));
        let Some(recent) = &self.recent else {
            old.all(visit);
            return;
        };
        let mut new =
            engine(recent).search(flow, ends.0, ends.1).filter_map(|place| recent.rules.get(place as usize));
        let (mut first, mut second) = (old.next(), new.next());
        loop {
            let rule = match (first, second) {
                (Some(one), other) if other.is_none_or(|other| one.order < other.order) => {
                    first = old.next();
                    one
                }
                (_, Some(other)) => {
                    second = new.next();
                    other
                }
                _ => return,
            };
            if !visit(rule) {
                return;
            }
        }
    }

    /// Bytes that the engines take.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let layer = |layer: &Layer| layer.v4.bytes() + layer.v6.bytes();
        layer(&self.base) + self.recent.as_ref().map_or(0, layer)
    }
}

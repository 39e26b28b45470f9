//! The rules of one address family, field by field.
#![forbid(unsafe_code)]

use super::NewFlow;
use super::dimension::{Dimension, Rows};
use super::ranges::Ranges;
use crate::rules::intervals::Point;

/// Fields of a packet that rules look at.
const FIELDS: usize = 12;
const BITS: usize = u64::BITS as usize;

/// A rule as sets of values, for [`Engine`].
pub(super) struct Fields<K> {
    /// Its place among all rules, of both families.
    pub(super) place: u32,
    pub(super) source: Ranges<K>,
    pub(super) destination: Ranges<K>,
    pub(super) source_port: Ranges<u16>,
    pub(super) destination_port: Ranges<u16>,
    pub(super) protocol: Ranges<u8>,
    pub(super) state: Ranges<u8>,
    pub(super) from: PlaceFields,
    pub(super) to: PlaceFields,
}

/// One end of the way, for [`Fields`].
#[derive(Clone)]
pub(super) struct PlaceFields {
    pub(super) port: Ranges<u16>,
    pub(super) bridge: Ranges<u16>,
    pub(super) interface: Ranges<u16>,
}

impl PlaceFields {
    pub(super) fn is_empty(&self) -> bool {
        self.port.is_empty() || self.bridge.is_empty() || self.interface.is_empty()
    }
}

impl<K: Point> Fields<K> {
    /// Whether no packet matches.
    pub(super) fn is_empty(&self) -> bool {
        self.source.is_empty()
            || self.destination.is_empty()
            || self.source_port.is_empty()
            || self.destination_port.is_empty()
            || self.protocol.is_empty()
            || self.state.is_empty()
            || self.from.is_empty()
            || self.to.is_empty()
    }
}

/// A field that some rule looks at; `None`: none does.
type Field<K> = Option<Dimension<K>>;

/// The sets of rules for each field.
pub(super) struct Engine<K> {
    source: Field<K>,
    destination: Field<K>,
    protocol: Field<u8>,
    state: Field<u8>,
    numbers: [Field<u16>; 8],
    /// Words of a summary of all rules.
    stride: usize,
    /// The summary that has a one for each word of rules.
    all: Box<[u64]>,
    /// In each word of bits those that are rules.
    rules: usize,
    /// Places among the rules of both families.
    places: Box<[u32]>,
}

fn field<K: Point, R>(rules: &[R], pick: impl Fn(&R) -> &Ranges<K>) -> Field<K> {
    let ranges: Vec<_> = rules.iter().map(|rule| pick(rule).clone()).collect();
    if ranges.iter().all(|ranges| matches!(ranges, Ranges::All)) {
        return None;
    }
    Some(Dimension::new(&ranges))
}

impl<K: Point> Engine<K> {
    /// The engine for `rules`, in the order in which they are asked.
    pub(super) fn new(rules: &[Fields<K>]) -> Self {
        let words = rules.len().div_ceil(BITS);
        let stride = words.div_ceil(BITS);
        let all = (0..stride).map(|high| low_ones(words - high * BITS)).collect();
        Self {
            source: field(rules, |rule| &rule.source),
            destination: field(rules, |rule| &rule.destination),
            protocol: field(rules, |rule| &rule.protocol),
            state: field(rules, |rule| &rule.state),
            numbers: [
                field(rules, |rule| &rule.destination_port),
                field(rules, |rule| &rule.source_port),
                field(rules, |rule| &rule.from.port),
                field(rules, |rule| &rule.from.bridge),
                field(rules, |rule| &rule.from.interface),
                field(rules, |rule| &rule.to.port),
                field(rules, |rule| &rule.to.bridge),
                field(rules, |rule| &rule.to.interface),
            ],
            stride,
            all,
            rules: rules.len(),
            places: rules.iter().map(|rule| rule.place).collect(),
        }
    }

    /// The places of the rules that a packet matches, in their order.
    pub(super) fn search(&self, flow: &NewFlow, source: K, destination: K) -> Search<'_, K> {
        let mut rows = Chosen { rows: [None; FIELDS], len: 0 };
        if self.rules == 0 {
            return Search { engine: self, rows, high: 0, words: 0, word: 0, bits: 0 };
        }
        let numbers = [
            flow.tuple.destination_port,
            flow.tuple.source_port,
            flow.from.port,
            flow.from.bridge,
            flow.from.interface,
            flow.to.port,
            flow.to.bridge,
            flow.to.interface,
        ];
        rows.choose(&self.source, source);
        rows.choose(&self.destination, destination);
        for (field, value) in self.numbers.iter().zip(numbers) {
            rows.choose(field, value);
        }
        rows.choose(&self.protocol, flow.tuple.protocol);
        rows.choose(&self.state, flow.state as u8);
        Search { engine: self, rows, high: 0, words: 0, word: 0, bits: 0 }
    }

    /// Bytes that it takes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let numbers: usize = self.numbers.iter().flatten().map(Dimension::bytes).sum();
        let small: usize = [&self.protocol, &self.state].into_iter().flatten().map(Dimension::bytes).sum();
        let addresses: usize =
            [&self.source, &self.destination].into_iter().flatten().map(Dimension::bytes).sum();
        numbers + small + addresses + self.places.len() * 4
    }
}

/// A walk over the rules that a packet matches.
pub(super) struct Search<'a, K> {
    engine: &'a Engine<K>,
    rows: Chosen<'a>,
    /// The next word of the summary.
    high: usize,
    /// What is left of the one before it.
    words: u64,
    /// The word of rules at hand.
    word: usize,
    /// What is left of it.
    bits: u64,
}

impl<K: Point> Iterator for Search<'_, K> {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        let Self { engine, rows, high, words, word, bits } = self;
        loop {
            if *bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                *bits &= *bits - 1;
                return engine.places.get(*word * BITS + bit).copied();
            }
            if *words != 0 {
                *word = (*high - 1) * BITS + words.trailing_zeros() as usize;
                *words &= *words - 1;
                *bits = low_ones(engine.rules - *word * BITS);
                for (rows, row) in rows.iter() {
                    *bits &= rows.word(row, *word);
                    if *bits == 0 {
                        break;
                    }
                }
                continue;
            }
            if *high >= engine.stride {
                return None;
            }
            let at = *high;
            *words = rows.iter().fold(engine.all[at], |words, (rows, row)| words & rows.summary(row, at));
            *high += 1;
        }
    }
}

/// The sets that a packet's fields chose.
struct Chosen<'a> {
    rows: [Option<(&'a Rows, usize)>; FIELDS],
    len: usize,
}

impl<'a> Chosen<'a> {
    #[inline]
    fn choose<K: Point>(&mut self, field: &'a Field<K>, value: K) {
        if let Some(field) = field {
            self.rows[self.len] = Some(field.row(value));
            self.len += 1;
        }
    }

    #[inline]
    fn iter(&self) -> impl Iterator<Item = (&'a Rows, usize)> {
        self.rows[..self.len].iter().filter_map(|row| *row)
    }
}

/// A word with its lowest `n` bits set, all if there are not so many.
#[inline]
fn low_ones(n: usize) -> u64 {
    if n >= BITS { u64::MAX } else { (1 << n) - 1 }
}

//! One field of packets and, for each of its values, the set of the rules that the value fits.
//!
//! A set is a row of bits, one for each rule, in the order of rules. Rules that do not look at the field are in every
//! set: they are kept once, apart. Of the others only words that are not zero are kept, with one bit for each word
//! that says whether it is: rows are as short as the rules are specific.
#![forbid(unsafe_code)]

use super::ranges::Ranges;
use crate::rules::intervals::{Intervals, Point};

const BITS: usize = u64::BITS as usize;

/// The sets of one field, numbered as its intervals are.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Words of a summary: one bit for each word of a row.
    stride: usize,
    /// Rules that do not look at the field.
    careless: Box<[u64]>,
    careless_summary: Box<[u64]>,
    /// The summaries of all rows, one after the other.
    summaries: Box<[u64]>,
    /// Where the words of each row begin.
    offsets: Box<[u32]>,
    words: Box<[u64]>,
}

impl Rows {
    /// Which words of a row may be other than zero: one word of its summary.
    #[inline]
    pub(super) fn summary(&self, row: usize, word: usize) -> u64 {
        self.careless_summary[word] | self.summaries[row * self.stride + word]
    }

    /// One word of a row.
    #[inline]
    pub(super) fn word(&self, row: usize, word: usize) -> u64 {
        let summary = &self.summaries[row * self.stride..(row + 1) * self.stride];
        let (high, low) = (word / BITS, word % BITS);
        let careless = self.careless[word];
        if summary[high] >> low & 1 == 0 {
            return careless;
        }
        let before: u32 = summary[..high].iter().map(|word| word.count_ones()).sum();
        let rank = before + (summary[high] & ((1 << low) - 1)).count_ones();
        careless | self.words[self.offsets[row] as usize + rank as usize]
    }
}

/// A field: which interval a value lies in, and the sets.
#[derive(Debug)]
pub(super) struct Dimension<K> {
    intervals: Intervals<K>,
    rows: Rows,
}

impl<K: Point> Dimension<K> {
    /// The field of `rules`: for each, in their order, the values that fit it.
    pub(super) fn new(rules: &[Ranges<K>]) -> Self {
        let words = rules.len().div_ceil(BITS);
        let stride = words.div_ceil(BITS);
        let mut careless = vec![0; words];
        let mut edges = Vec::new();
        for (rule, ranges) in rules.iter().enumerate() {
            match ranges {
                Ranges::All => careless[rule / BITS] |= 1 << (rule % BITS),
                Ranges::These(ranges) => edges.extend(ranges.iter().map(|&range| (rule, range))),
            }
        }
        let intervals = Intervals::new(edges.iter().map(|&(_, range)| range));
        // Rules come and go at the beginnings of intervals.
        let mut changes: Vec<(u32, u32)> = Vec::with_capacity(edges.len() * 2);
        for &(rule, (first, last)) in &edges {
            changes.push((intervals.locate(first) as u32, rule as u32));
            changes.extend(last.next().map(|after| (intervals.locate(after) as u32, rule as u32)));
        }
        changes.sort_unstable();
        let mut rows = Rows {
            stride,
            careless_summary: summarise(&careless, stride),
            careless: careless.into(),
            ..Rows::default()
        };
        let (mut summaries, mut offsets, mut packed) = (Vec::new(), Vec::new(), Vec::new());
        let mut present = vec![0_u64; words];
        let mut summary = vec![0_u64; stride];
        let mut changes = changes.into_iter().peekable();
        for interval in 0..intervals.len() as u32 {
            while let Some((_, rule)) = changes.next_if(|&(at, _)| at == interval) {
                let word = rule as usize / BITS;
                present[word] ^= 1 << (rule as usize % BITS);
                let bit = 1 << (word % BITS);
                summary[word / BITS] = summary[word / BITS] & !bit | if present[word] == 0 { 0 } else { bit };
            }
            offsets.push(packed.len() as u32);
            summaries.extend_from_slice(&summary);
            for (high, &bits) in summary.iter().enumerate() {
                packed.extend(ones(bits).map(|low| present[high * BITS + low]));
            }
        }
        (rows.summaries, rows.offsets, rows.words) = (summaries.into(), offsets.into(), packed.into());
        Self { intervals, rows }
    }

    /// The set of a value.
    #[inline]
    pub(super) fn row(&self, value: K) -> (&Rows, usize) {
        (&self.rows, self.intervals.locate(value))
    }
}

#[cfg(test)]
impl Rows {
    fn bytes(&self) -> usize {
        (self.careless.len() + self.careless_summary.len() + self.summaries.len() + self.words.len()) * 8
            + self.offsets.len() * 4
    }
}

#[cfg(test)]
impl<K> Dimension<K> {
    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.rows.bytes() + self.rows.offsets.len() * size_of::<K>()
    }
}

/// The places of the ones of a word, lowest first.
#[inline]
fn ones(word: u64) -> impl Iterator<Item = usize> {
    let next = |&word: &u64| Some(word & (word - 1)).filter(|&word| word != 0);
    std::iter::successors((word != 0).then_some(word), next).map(|word| word.trailing_zeros() as usize)
}

fn summarise(words: &[u64], stride: usize) -> Box<[u64]> {
    let mut summary = vec![0; stride];
    for (place, &word) in words.iter().enumerate() {
        summary[place / BITS] |= u64::from(word != 0) << (place % BITS);
    }
    summary.into()
}

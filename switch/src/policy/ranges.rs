//! Sets of numbers as sorted, disjoint ranges.
#![forbid(unsafe_code)]

use crate::rules::intervals::Point;

/// A set of numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ranges<K> {
    /// All of them.
    All,
    /// These, sorted, neither touching nor overlapping; perhaps none.
    These(Vec<(K, K)>),
}

impl<K: Point> Ranges<K> {
    /// One range.
    pub(super) fn one(first: K, last: K) -> Self {
        Self::of(vec![(first, last)])
    }

    /// What is in some range.
    pub(super) fn of(mut ranges: Vec<(K, K)>) -> Self {
        ranges.retain(|(first, last)| first <= last);
        ranges.sort_unstable();
        let mut merged: Vec<(K, K)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if end.next().is_none_or(|next| first <= next) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        match merged[..] {
            [(first, last)] if first == K::MIN && last.next().is_none() => Self::All,
            _ => Self::These(merged),
        }
    }

    /// What is not in the set.
    pub(super) fn complement(&self) -> Self {
        let Self::These(ranges) = self else { return Self::These(Vec::new()) };
        let mut gaps = Vec::with_capacity(ranges.len() + 1);
        let mut next = Some(K::MIN);
        for &(first, last) in ranges {
            gaps.extend(next.zip(first.previous()).filter(|(start, end)| start <= end));
            next = last.next();
        }
        gaps.extend(next.map(|start| (start, K::MAX)));
        Self::of(gaps)
    }

    /// What is in this set and not in the other.
    pub(super) fn without(&self, other: &Self) -> Self {
        self.intersection(&other.complement())
    }

    /// What is in both.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let (mine, theirs) = match (self, other) {
            (Self::All, other) => return other.clone(),
            (mine, Self::All) => return mine.clone(),
            (Self::These(mine), Self::These(theirs)) => (mine, theirs),
        };
        let (mut i, mut j) = (0, 0);
        let mut common = Vec::new();
        while let (Some(&(a, b)), Some(&(c, d))) = (mine.get(i), theirs.get(j)) {
            if a.max(c) <= b.min(d) {
                common.push((a.max(c), b.min(d)));
            }
            if b < d { i += 1 } else { j += 1 }
        }
        Self::of(common)
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::These(ranges) if ranges.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Vec<(u8, u8)>> {
        let edge = prop_oneof![any::<u8>(), Just(0), Just(255)];
        proptest::collection::vec((edge.clone(), edge).prop_map(|(a, b)| (a.min(b), a.max(b))), 0..6)
    }

    fn has(set: &Ranges<u8>, n: u8) -> bool {
        match set {
            Ranges::All => true,
            Ranges::These(ranges) => ranges.iter().any(|&(a, b)| (a..=b).contains(&n)),
        }
    }

    proptest! {
        #[test]
        fn as_sets_of_numbers(a in ranges(), b in ranges()) {
            let (x, y) = (Ranges::of(a.clone()), Ranges::of(b));
            for n in 0..=255 {
                prop_assert_eq!(has(&x, n), a.iter().any(|&(first, last)| (first..=last).contains(&n)));
                prop_assert_eq!(has(&x.complement(), n), !has(&x, n));
                prop_assert_eq!(has(&x.without(&y), n), has(&x, n) && !has(&y, n));
                prop_assert_eq!(has(&x.intersection(&y), n), has(&x, n) && has(&y, n));
            }
            prop_assert_eq!(x.is_empty(), !(0..=255).any(|n| has(&x, n)));
            prop_assert_eq!(x.complement().complement(), x);
        }
    }
}

//! A line of numbers (addresses, ports) cut into intervals at every place where what rules say may change.
#![forbid(unsafe_code)]

/// A number that rules have ranges of.
pub(crate) trait Point: Copy + Ord {
    /// The smallest.
    const MIN: Self;
    /// The largest.
    const MAX: Self;
    /// The one after it; `None` after the largest.
    fn next(self) -> Option<Self>;
    /// The one before it; `None` before the smallest.
    fn previous(self) -> Option<Self>;
}

macro_rules! points {
    ($($number:ty)*) => {$(
        impl Point for $number {
            const MIN: Self = 0;
            const MAX: Self = <$number>::MAX;
            #[inline]
            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }
            #[inline]
            fn previous(self) -> Option<Self> {
                self.checked_sub(1)
            }
        }
    )*};
}
points! { u8 u16 u32 u128 }

/// The intervals, numbered from 0 in their order; together they cover every number.
#[derive(Debug)]
pub(crate) struct Intervals<K>(Box<[K]>);

impl<K: Point> Intervals<K> {
    /// The fewest intervals of which each range (both ends included) is made up wholly.
    pub(crate) fn new(ranges: impl IntoIterator<Item = (K, K)>) -> Self {
        let mut starts = vec![K::MIN];
        for (first, last) in ranges {
            starts.push(first);
            starts.extend(last.next());
        }
        starts.sort_unstable();
        starts.dedup();
        Self(starts.into())
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The interval that a number lies in.
    #[inline]
    pub(crate) fn locate(&self, at: K) -> usize {
        // The first interval begins at the smallest number.
        self.0.partition_point(|&start| start <= at).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn within_an_interval_no_range_begins_or_ends(
            ranges in proptest::collection::vec((any::<u8>(), any::<u8>()), 0..20)
        ) {
            let ranges: Vec<_> = ranges.iter().map(|&(a, b)| (a.min(b), a.max(b))).collect();
            let intervals = Intervals::new(ranges.iter().copied());
            let inside = |at: u8| ranges.iter().map(|&(a, b)| (a..=b).contains(&at)).collect::<Vec<_>>();
            prop_assert!(intervals.locate(0) == 0 && intervals.locate(255) == intervals.len() - 1);
            for at in 1..=255_u8 {
                let (before, here) = (intervals.locate(at - 1), intervals.locate(at));
                prop_assert!(here == before || here == before + 1);
                // Cut exactly where a range begins or the number after its end is.
                let cut = ranges.iter().any(|&(a, b)| a == at || b.checked_add(1) == Some(at));
                prop_assert_eq!(here != before, cut);
                if inside(at - 1) != inside(at) {
                    prop_assert_ne!(here, before);
                }
            }
        }
    }
}

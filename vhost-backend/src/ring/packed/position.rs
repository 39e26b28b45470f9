//! A place in a packed ring, with the lap that it belongs to (virtio 1.3, section 2.8.1).

#![forbid(unsafe_code)]

/// The bit of a position's 16 that tells the lap.
const WRAP: u16 = 1 << 15;

/// An index into the ring and the wrap counter's value there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) index: u16,
    pub(super) wrap: bool,
}

impl Position {
    /// A position from 15 bits of index and one of wrap counter, as the protocol and the event areas have it.
    #[inline]
    pub(super) fn decode(word: u16) -> Self {
        Self { index: word & !WRAP, wrap: word & WRAP != 0 }
    }

    #[inline]
    pub(super) fn encode(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }

    /// The next position.
    #[inline(always)]
    pub(super) fn next(self, size: u16) -> Self {
        let index = self.index + 1;
        if index == size { Self { index: 0, wrap: !self.wrap } } else { Self { index, ..self } }
    }

    /// The position `by` descriptors further on, at most one lap.
    #[inline(always)]
    pub(super) fn advance(self, by: u16, size: u16) -> Self {
        // At most 32,768 each.
        let index = u32::from(self.index) + u32::from(by);
        match index.checked_sub(u32::from(size)) {
            Some(rest) => Self { index: rest as u16, wrap: !self.wrap },
            None => Self { index: index as u16, wrap: self.wrap },
        }
    }

    /// How far ahead of this one `later` is, if it is at most one lap ahead; otherwise a number larger than `size`.
    #[inline]
    pub(super) fn distance(self, later: Self, size: u16) -> u16 {
        let lap = if self.wrap == later.wrap { 0 } else { u32::from(size) };
        (u32::from(later.index) + lap).wrapping_sub(u32::from(self.index)).min(u32::from(u16::MAX)) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_go_round_and_know_how_far_they_are_apart() {
        for size in [1, 2, 3, 7, 256, 1000, 32768] {
            let mut at = Position { index: size - 1, wrap: true };
            assert_eq!(Position::decode(at.encode()), at);
            for by in [0, 1, size / 2, size - 1, size] {
                let later = at.advance(by, size);
                if by == 1 {
                    assert_eq!(at.next(size), later);
                }
                assert!(later.index < size);
                assert_eq!(at.distance(later, size), by, "{at:?} and {by} of {size}");
                // Two laps are none.
                assert_eq!(at.advance(size, size).advance(size, size), at);
                if by > 0 && by < size {
                    assert!(later.distance(at, size) > size, "{later:?} is ahead of {at:?}");
                }
                at = later;
            }
        }
    }
}

//! Frames that were lost after the burst with which they came: counted here until the counters of their ports are at
//! hand.
#![forbid(unsafe_code)]

use crate::drops::DropReason;

/// Different ports and reasons that are told apart between two bursts.
const ENTRIES: usize = 32;

/// The numbers.
#[derive(Default)]
pub(super) struct Lost {
    entries: [Option<(u16, DropReason, u64)>; ENTRIES],
}

impl Lost {
    /// Notes lost frames that had come by a port.
    pub(super) fn add(&mut self, port: u16, reason: DropReason, number: u64) {
        for entry in &mut self.entries {
            match entry {
                Some((p, r, n)) if (*p, *r) == (port, reason) => *n += number,
                Some(_) => continue,
                None => *entry = Some((port, reason, number)),
            }
            return;
        }
        // More ports than that lose frames at once: what is missing is a number, not a frame.
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.entries[0].is_none()
    }

    /// Hands all numbers over.
    pub(super) fn take(&mut self, mut each: impl FnMut(u16, DropReason, u64)) {
        for (port, reason, number) in self.entries.iter_mut().map_while(Option::take) {
            each(port, reason, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_add_up_by_port_and_reason() {
        let mut lost = Lost::default();
        for (port, reason, number) in
            [(3, DropReason::NoRoute, 1), (4, DropReason::NoRoute, 2), (3, DropReason::NoRoute, 5)]
        {
            lost.add(port, reason, number);
        }
        assert!(!lost.is_empty());
        let mut all = Vec::new();
        lost.take(|port, reason, number| all.push((port, reason, number)));
        assert_eq!(all, [(3, DropReason::NoRoute, 6), (4, DropReason::NoRoute, 2)]);
        assert!(lost.is_empty());
        for port in 0..1000 {
            lost.add(port, DropReason::NoRoute, 1);
        }
        let mut count = 0;
        lost.take(|_, _, _| count += 1);
        assert_eq!(count, ENTRIES);
    }
}

//! What the control thread does with the connections: look at all of them, remove some.
//!
//! It takes a seat among the workers ([`crate::worker::epoch`]) for some hundred connections at a time, so that none
//! of them changes hands while it is looked at, and gives it up in between.
#![forbid(unsafe_code)]

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::Conntrack;
use super::balance::{self, BalancedRecord};
use super::key::Family;
use super::record::{Filter, Record};
use super::table::{Removed, Table};

/// Places that are looked at in one go.
const STEP: u32 = 512;
/// How often that for one part of a listing: half a million places, some ten milliseconds.
const STEPS_PER_PAGE: u32 = 1024;
/// How long a worker is given to take what was removed: a sleeping one wakes up once a second.
const PATIENCE: Duration = Duration::from_secs(2);

impl Conntrack {
    /// A part of a listing: goes on where `from` stands (0 for the beginning), until `most` connections or a few more
    /// were shown, or many more were looked at. Returns where the next part begins; `None` after the last. `now` is the
    /// tables' clock. Connections that begin or end meanwhile may be missed; none is shown twice.
    pub fn page(
        &self,
        filter: &Filter,
        now: u32,
        from: u64,
        most: usize,
        mut show: impl FnMut(Record),
    ) -> Option<u64> {
        // The second half of the numbers is for IPv6.
        const V6: u64 = 1 << 32;
        let (place, mut shown) = (from as u32, 0);
        let mut count = |record| {
            shown += 1;
            show(record);
            shown < most
        };
        if from < V6 {
            let next = self.page_family(&self.v4, filter, now, place, &mut count);
            return Some(next.map_or(V6, u64::from));
        }
        self.page_family(&self.v6, filter, now, place, &mut count).map(|next| V6 | u64::from(next))
    }

    fn page_family<F: Family>(
        &self,
        table: &Table<F>,
        filter: &Filter,
        now: u32,
        from: u32,
        show: &mut impl FnMut(Record) -> bool,
    ) -> Option<u32> {
        let (mut place, mut more) = (from, true);
        for _ in 0..STEPS_PER_PAGE {
            let next = self.seated(|| {
                table.scan(place, STEP, |slot| {
                    let record = Record::of(table, slot, now);
                    if filter.matches(&record) {
                        more &= show(record);
                    }
                })
            });
            place = next?;
            if !more {
                break;
            }
        }
        Some(place)
    }

    /// Removes the connections that the filter means; how many. `wake` is called with the number of a worker that has
    /// to take notice before it goes on. To be called without locks that a worker may want.
    pub fn flush(&self, filter: &Filter, now: u32, mut wake: impl FnMut(usize)) -> u64 {
        let flushed = self.flush_family(&self.v4, filter, now, &mut wake)
            + self.flush_family(&self.v6, filter, now, &mut wake);
        self.shared.counters(self.control_seat()).delete.add(flushed);
        flushed
    }

    fn flush_family<F: Family>(
        &self,
        table: &Table<F>,
        filter: &Filter,
        now: u32,
        wake: &mut impl FnMut(usize),
    ) -> u64 {
        let mut flushed = 0;
        let mut told = Vec::new();
        let mut from = Some(0);
        while let Some(place) = from {
            from = self.seated(|| {
                table.scan(place, STEP, |slot| {
                    if !filter.is_empty() && !filter.matches(&Record::of(table, slot, now)) {
                        return;
                    }
                    loop {
                        match table.remove(slot) {
                            Removed::Now(owner) => {
                                flushed += 1;
                                told.push((owner, slot));
                            }
                            Removed::Already => {}
                            Removed::Busy => {
                                std::thread::yield_now();
                                continue;
                            }
                        }
                        break;
                    }
                })
            });
            let deadline = Instant::now() + PATIENCE;
            for (owner, slot) in told.drain(..) {
                // A worker that does not listen will come across what was removed when its timeout is over.
                while !table.inbox(owner).post(slot.0) && Instant::now() < deadline {
                    wake(usize::from(owner));
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        }
        flushed
    }

    /// A part of the balanced connections, as [`Conntrack::page`] has it of all.
    pub fn balanced_page(
        &self,
        now: u32,
        from: u64,
        most: usize,
        mut show: impl FnMut(BalancedRecord),
    ) -> Option<u64> {
        const V6: u64 = 1 << 32;
        let mut shown = 0;
        let mut count = |record: BalancedRecord| {
            shown += 1;
            show(record);
            shown < most
        };
        if from < V6 {
            let next = self.balanced_family(&self.v4, now, from as u32, &mut count);
            return Some(next.map_or(V6, u64::from));
        }
        self.balanced_family(&self.v6, now, from as u32, &mut count).map(|next| V6 | u64::from(next))
    }

    fn balanced_family<F: Family>(
        &self,
        table: &Table<F>,
        now: u32,
        from: u32,
        show: &mut impl FnMut(BalancedRecord) -> bool,
    ) -> Option<u32> {
        let (mut place, mut more) = (from, true);
        for _ in 0..STEPS_PER_PAGE {
            let next = self.seated(|| {
                table.scan(place, STEP, |slot| {
                    if let Some(record) = balance::listed(table, slot, now) {
                        more &= show(record);
                    }
                })
            });
            place = next?;
            if !more {
                break;
            }
        }
        Some(place)
    }

    /// Calls `each` for all balanced connections.
    pub fn balanced(&self, now: u32, mut each: impl FnMut(BalancedRecord)) {
        let mut from = Some(0);
        while let Some(place) = from {
            from = self.balanced_page(now, place, usize::MAX, &mut each);
        }
    }

    /// Gives all balanced connections the timeouts that are in force now.
    pub fn retime(&self) {
        self.retime_family(&self.v4);
        self.retime_family(&self.v6);
    }

    fn retime_family<F: Family>(&self, table: &Table<F>) {
        let mut from = Some(0);
        while let Some(place) = from {
            from = self.seated(|| table.scan(place, STEP, |slot| table.retime(slot)));
        }
    }

    fn control_seat(&self) -> usize {
        self.shared.epochs.seats() - 1
    }

    /// Does something while nothing that it sees can change hands.
    pub(super) fn seated<T>(&self, look: impl FnOnce() -> T) -> T {
        struct Leave<'a>(&'a Conntrack);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.shared.epochs.leave(self.0.control_seat());
            }
        }
        let _one_at_a_time = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.epochs.arrive(self.control_seat());
        let _leave = Leave(self);
        look()
    }
}

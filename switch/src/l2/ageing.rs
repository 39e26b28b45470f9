//! A timer wheel for entries that live in numbered slots: expiry by appointment, not by scanning.
//!
//! Seconds are buckets, slots are links of intrusive lists, so nothing is allocated after the start. An entry that was
//! seen again is not moved: when its old appointment comes, its owner looks at it and makes a new one. A slot has at
//! most one appointment, whoever occupies it.
#![forbid(unsafe_code)]

/// Seconds that the wheel covers; a later appointment is kept at its edge and made anew from there.
const SPAN: u32 = 512;
const NONE: u32 = 0;
const END: u32 = 1;

/// The wheel.
pub struct Wheel {
    /// Per second of the span: first slot, as number plus 2, or `END`.
    heads: Box<[u32]>,
    /// Per slot: `NONE` without an appointment, else the next in its list, likewise.
    next: Box<[u32]>,
    /// The second up to which everything due was handed out.
    done: Option<u32>,
}

impl Wheel {
    /// A wheel for `slots` slots.
    pub fn new(slots: usize) -> Self {
        Self {
            heads: vec![END; SPAN as usize].into_boxed_slice(),
            next: vec![NONE; slots].into_boxed_slice(),
            done: None,
        }
    }

    /// Makes an appointment for `slot` at second `at`, unless it has one already.
    pub fn schedule(&mut self, slot: usize, at: u32, now: u32) {
        let done = *self.done.get_or_insert(now);
        if self.next[slot] != NONE {
            return;
        }
        // At the earliest in the next second that is handed out, at the latest one round later.
        let ahead = (at.wrapping_sub(done) as i32).clamp(1, SPAN as i32 - 1) as u32;
        let head = &mut self.heads[(done.wrapping_add(ahead) % SPAN) as usize];
        self.next[slot] = *head;
        *head = slot as u32 + 2;
    }

    /// A slot whose appointment has come by second `now`, and forgets the appointment. To be called until `None`.
    pub fn due(&mut self, now: u32) -> Option<usize> {
        let mut done = self.done?;
        if now.wrapping_sub(done) as i32 > SPAN as i32 {
            // Nobody asked for longer than a round: every list is due, and going round once visits them all.
            done = now.wrapping_sub(SPAN);
        }
        while (now.wrapping_sub(done) as i32) > 0 {
            let second = done.wrapping_add(1);
            let head = &mut self.heads[(second % SPAN) as usize];
            if *head != END {
                let slot = (*head - 2) as usize;
                *head = std::mem::replace(&mut self.next[slot], NONE);
                self.done = Some(done);
                return Some(slot);
            }
            done = second;
        }
        self.done = Some(done);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appointments_come_in_their_second_and_once() {
        let mut wheel = Wheel::new(10);
        wheel.schedule(3, 105, 100);
        wheel.schedule(4, 105, 100);
        wheel.schedule(4, 101, 100);
        assert_eq!(wheel.due(104), None);
        let mut both = [wheel.due(105), wheel.due(105)];
        both.sort();
        assert_eq!(both, [Some(3), Some(4)]);
        assert_eq!(wheel.due(2000), None);
    }

    #[test]
    fn a_distant_appointment_is_looked_at_earlier_and_a_late_caller_misses_none() {
        let mut wheel = Wheel::new(2);
        wheel.schedule(0, 5000, 0);
        assert_eq!(wheel.due(SPAN - 2), None);
        assert_eq!(wheel.due(SPAN - 1), Some(0));
        wheel.schedule(0, 600, SPAN - 1);
        wheel.schedule(1, 700, SPAN - 1);
        assert_eq!(
            [wheel.due(1_000_000), wheel.due(1_000_000), wheel.due(1_000_000)].map(|s| s.is_some()),
            [true, true, false]
        );
    }
}

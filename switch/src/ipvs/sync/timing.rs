//! When a master tells of a connection: the rules of Linux' `net.ipv4.vs.sync_*` settings, asked not at each packet but
//! when the connection is looked at, some times a second, with what has happened since the last look.
//!
//! Differences that follow from this: a connection that comes and goes between two looks is told of once, when it is
//! over; repetitions are at least a look apart; a template is told of at most once a look.
#![forbid(unsafe_code)]

use super::message::states_of;
use super::spec::SyncSettings;
use crate::packet::ip::{TCP, UDP};

/// IPVS' number of an established connection of SCTP. Of TCP it is 1.
const SCTP: u8 = 132;
const TCP_ESTABLISHED: u16 = 1;
const SCTP_ESTABLISHED: u16 = 8;
/// States that are told of: of TCP ESTABLISHED, FIN_WAIT, TIME_WAIT, CLOSE, CLOSE_WAIT; of SCTP ESTABLISHED and the
/// three SHUTDOWN states and CLOSED.
const TCP_TOLD: u16 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7;
const SCTP_TOLD: u16 = 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13;

/// A connection or template as the master sees it at a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// What it is known by; another one that takes its place later has had fewer packets.
    pub id: u64,
    /// Its protocol.
    pub protocol: u8,
    /// Its state by IPVS' numbers.
    pub state: u16,
    /// It is a template.
    pub template: bool,
    /// It is under a template.
    pub under_template: bool,
    /// Packets from the client so far (of templates: of all connections under it, or connections).
    pub packets: u64,
    /// Seconds that it lives without packets.
    pub timeout: u32,
    /// Seconds since its last packet.
    pub age: u32,
}

/// What the master remembers of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The state that was told, 0 before.
    state: u16,
    /// Repetitions of what was told last.
    retries: u8,
    /// Packets at the last look.
    seen: u64,
    /// When it would have ended, as of what was told.
    end: Option<u32>,
    /// The look at which it was there.
    pub(super) round: u32,
}

/// How many of the packets 1 to `packets` are at the threshold of their period.
fn thresholds(settings: &SyncSettings, packets: u64) -> u64 {
    let (period, threshold) = (u64::from(settings.period), u64::from(settings.threshold));
    match threshold {
        0 => packets / period,
        _ if threshold < period => (packets + period - threshold) / period,
        _ => 0,
    }
}

impl Told {
    /// Whether the connection is to be told of now (seconds); if so, it is taken for told.
    pub fn is_due(&mut self, settings: &SyncSettings, look: &Look, now: u32) -> bool {
        if look.packets < self.seen {
            // Another one in its place.
            *self = Self { round: self.round, ..Self::default() };
        }
        let before = std::mem::replace(&mut self.seen, look.packets);
        let changed = look.state != self.state;
        let mut retries = 0;
        if !look.template {
            if settings.templates_only && look.under_template {
                return false;
            }
            let (told, established) = match look.protocol {
                TCP => (TCP_TOLD, TCP_ESTABLISHED),
                SCTP => (SCTP_TOLD, SCTP_ESTABLISHED),
                UDP => (1, 0),
                _ => return false,
            };
            if look.state >= states_of(look.protocol) || told >> look.state & 1 == 0 {
                return false;
            }
            if changed && look.state != established {
                return self.tell(look, 0, now);
            }
        }
        // Linux asks at packets only.
        if look.packets <= before {
            return false;
        }
        if settings.refresh_period > 0
            && let Some(told) = self.end
        {
            let end = end(look, now);
            let least = settings.refresh_period.min((look.timeout / 2).max(10));
            if end.abs_diff(told) < least {
                let again = told.saturating_sub(look.timeout).saturating_add(settings.refresh_period / 8);
                if self.retries >= settings.retries || now < again {
                    return false;
                }
                retries = self.retries + 1;
            }
        }
        let due = if settings.period > 0 {
            look.template || thresholds(settings, look.packets) > thresholds(settings, before)
        } else {
            let threshold = u64::from(settings.threshold);
            settings.refresh_period > 0 || before < threshold && threshold <= look.packets
        };
        due && self.tell(look, retries, now)
    }

    fn tell(&mut self, look: &Look, retries: u8, now: u32) -> bool {
        // A repetition does not move the end that later looks compare with.
        let end = if retries > 0 { self.end } else { None };
        self.end = Some(end.unwrap_or(self::end(look, now)));
        self.state = look.state;
        self.retries = retries;
        true
    }
}

/// When it ends if no more packets come.
fn end(look: &Look, now: u32) -> u32 {
    now.saturating_sub(look.age).saturating_add(look.timeout)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn look(state: u16, packets: u64) -> Look {
        Look {
            id: 1,
            protocol: TCP,
            state,
            template: false,
            under_template: false,
            packets,
            timeout: 900,
            age: 0,
        }
    }

    /// Which packet counts of a series of looks at an established connection are told.
    fn told(settings: SyncSettings, looks: &[u64]) -> Vec<u64> {
        let mut told = Told::default();
        looks.iter().copied().filter(|&packets| told.is_due(&settings, &look(1, packets), 100)).collect()
    }

    #[test]
    fn a_connection_is_told_of_at_the_threshold_of_each_period() {
        let settings = SyncSettings::default();
        assert_eq!(told(settings, &[1, 2, 3, 4, 52, 53, 54, 103, 500]), [3, 53, 103, 500]);
        assert_eq!(told(settings, &[40, 45, 60, 60, 200]), [40, 60, 200]);
        let never = SyncSettings { threshold: 50, ..settings };
        assert!(told(never, &[10, 100, 1000]).is_empty());
        let zero = SyncSettings { threshold: 0, period: 10, ..settings };
        assert_eq!(told(zero, &[9, 10, 11, 19, 20]), [10, 20]);
        let once = SyncSettings { threshold: 3, period: 0, ..settings };
        assert_eq!(told(once, &[2, 5, 55, 1000]), [5]);
    }

    #[test]
    fn states_that_end_a_connection_are_told_at_once_and_once() {
        let settings = SyncSettings::default();
        let mut told = Told::default();
        let mut due = |state, packets| told.is_due(&settings, &look(state, packets), 100);
        for silent in [0, 2, 3, 8, 9, 10, 11, 500] {
            assert!(!due(silent, 1), "{silent}");
        }
        assert!(!due(1, 2));
        assert!(due(4, 4) && !due(4, 5) && due(5, 5) && !due(5, 6));
        // Established anew: at its threshold only.
        assert!(!due(1, 7) && due(1, 60));
        let mut sctp = Told::default();
        assert!(!sctp.is_due(&settings, &Look { protocol: SCTP, ..look(7, 3) }, 0));
        assert!(sctp.is_due(&settings, &Look { protocol: SCTP, ..look(9, 3) }, 0));
        assert!(!Told::default().is_due(&settings, &Look { protocol: 47, ..look(0, 3) }, 0));
    }

    #[test]
    fn another_connection_in_its_place_is_told_of_anew() {
        let mut told = Told::default();
        let mut due = |state, packets| told.is_due(&SyncSettings::default(), &look(state, packets), 100);
        assert!(due(1, 3) && due(5, 9) && !due(5, 9));
        assert!(!due(1, 2) && due(1, 3) && due(5, 4));
    }

    #[test]
    fn datagrams_have_one_state() {
        let settings = SyncSettings::default();
        let mut told = Told::default();
        let mut due = |packets| told.is_due(&settings, &Look { protocol: UDP, ..look(0, packets) }, 100);
        assert!(!due(2) && due(3) && !due(4) && due(53));
    }

    #[test]
    fn a_refresh_period_thins_out_and_repeats() {
        let settings = SyncSettings { period: 0, refresh_period: 80, retries: 2, ..SyncSettings::default() };
        let mut told = Told::default();
        let times: Vec<u32> = (0..250)
            .filter(|&second| told.is_due(&settings, &look(1, u64::from(second) + 1), 1000 + second))
            .collect();
        // At first, then twice again an eighth of 80 s later and after, then when the end has moved by 80 s.
        assert_eq!(times, [0, 10, 11, 80, 90, 91, 160, 170, 171, 240]);
        // A silent one is not repeated.
        let mut silent = Told::default();
        let times = (0..250).filter(|&second| silent.is_due(&settings, &look(1, 1), 1000 + second));
        assert_eq!(times.collect::<Vec<_>>(), [0]);
        // A short timeout is told each half of it, but each 10 seconds at most.
        let mut short = Told::default();
        let quick = |second: u32| Look { timeout: 8, ..look(1, u64::from(second) + 1) };
        let no_retries = SyncSettings { retries: 0, ..settings };
        let times = (0..31).filter(|&second| short.is_due(&no_retries, &quick(second), 1000 + second));
        assert_eq!(times.collect::<Vec<_>>(), [0, 10, 20, 30]);
    }

    #[test]
    fn templates_may_stand_for_their_connections() {
        let settings = SyncSettings { templates_only: true, ..SyncSettings::default() };
        let under = Look { under_template: true, ..look(1, 100) };
        assert!(!Told::default().is_due(&settings, &under, 0));
        assert!(Told::default().is_due(&SyncSettings::default(), &under, 0));
        let template = Look { template: true, protocol: 0, ..look(1, 1) };
        let mut told = Told::default();
        assert!(told.is_due(&settings, &template, 0));
        assert!(!told.is_due(&settings, &template, 1), "nothing new");
        assert!(told.is_due(&settings, &Look { packets: 2, ..template }, 1));
    }

    proptest! {
        /// However many packets pass between two looks: it is told if one of them is at the threshold.
        #[test]
        fn looks_miss_no_threshold(threshold in 0u32..70, period in 1u32..60, steps in prop::collection::vec(0u64..80, 1..50)) {
            let settings = SyncSettings { threshold, period, ..SyncSettings::default() };
            let (mut told, mut packets) = (Told::default(), 0);
            for step in steps {
                let plain = (packets + 1..=packets + step).any(|n| n % u64::from(period) == u64::from(threshold));
                packets += step;
                prop_assert_eq!(told.is_due(&settings, &look(1, packets), 7), plain);
            }
        }
    }
}

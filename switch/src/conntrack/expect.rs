//! Connections that others announced (state RELATED), and the connections whose data was changed for that.
//!
//! A small table behind a lock. Only first packets ask it, and only while somebody expects something; only packets
//! of connections with a helper ask for shifts. Whoever does not get the lock at once has the packet sent again.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::sequence::Shift;
use crate::packet::tuple::Tuple;

/// Most expectations, and most connections with shifts.
const ROOM: usize = 1024;
/// Seconds for which a connection is expected.
pub const PATIENCE: u32 = 300;
/// Ports that are tried for one that nobody else announced.
const PORTS: u16 = 64;

/// A connection that is expected, as its first packet comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// First packet's tuple of the connection that announced it, by which the two belong together.
    pub master: Tuple,
    /// Who will connect, from any port.
    pub source: IpAddr,
    /// To which address.
    pub destination: IpAddr,
    /// Protocol.
    pub protocol: u8,
    /// To which port.
    pub port: u16,
    /// Whom that is really for.
    pub to: (IpAddr, u16),
    /// The address that it is to seem to come from, if another.
    pub from: Option<IpAddr>,
    /// When it was announced.
    pub since: u32,
}

impl Expectation {
    fn fits(&self, tuple: &Tuple, now: u32) -> bool {
        (self.source, self.destination) == (tuple.source, tuple.destination)
            && (self.protocol, self.port) == (tuple.protocol, tuple.destination_port)
            && !self.is_over(now)
    }

    fn is_over(&self, now: u32) -> bool {
        now.wrapping_sub(self.since) as i32 > PATIENCE as i32
    }
}

#[derive(Default)]
struct Inner {
    expected: Vec<Expectation>,
    /// By the first packet's tuple: shifts of what goes its way, and of what comes back.
    shifts: HashMap<Tuple, [Shift; 2]>,
}

/// All that is expected, and all shifts by the first packet's tuple: for another process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptExpectations {
    /// Connections that are expected.
    pub expected: Vec<Expectation>,
    /// Shifts of what goes the first packet's way, and of what comes back.
    pub shifts: Vec<(Tuple, [Shift; 2])>,
}

/// The table.
#[derive(Default)]
pub struct Expectations {
    count: AtomicUsize,
    inner: Mutex<Inner>,
}

/// The table could not be asked, or has no room: the packet is to be dropped, and will be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable;

impl Expectations {
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> Result<T, Unavailable> {
        let mut inner = self.inner.try_lock().map_err(|_| Unavailable)?;
        let result = act(&mut inner);
        self.count.store(inner.expected.len(), Ordering::Release);
        Ok(result)
    }

    /// Everything, for another process; for the control thread.
    pub fn export(&self) -> KeptExpectations {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut shifts: Vec<_> = inner.shifts.iter().map(|(tuple, shifts)| (*tuple, *shifts)).collect();
        shifts.sort_unstable_by_key(|(tuple, _)| *tuple);
        KeptExpectations { expected: inner.expected.clone(), shifts }
    }

    /// Takes the place of what is here; as much as there is room for.
    pub fn restore(&self, kept: KeptExpectations) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.expected = kept.expected;
        inner.expected.truncate(ROOM);
        inner.shifts = kept.shifts.into_iter().take(ROOM).collect();
        self.count.store(inner.expected.len(), Ordering::Release);
    }

    /// How many connections are expected.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether none is.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Expects a connection, instead of what its master announced before; the port to announce, which is another one if
    /// somebody else announced that and `free_choice` allows it.
    ///
    /// # Errors
    /// There is no room, or no such port; or the table could not be asked.
    pub fn expect(&self, new: Expectation, free_choice: bool, now: u32) -> Result<u16, Unavailable> {
        self.with(|inner| {
            if let Some(same) = inner.expected.iter_mut().find(|known| {
                (known.master, known.to, known.source) == (new.master, new.to, new.source)
                    && known.destination == new.destination
            }) {
                // Announced once more, as when its segment is sent again.
                same.since = now;
                return Some(same.port);
            }
            inner.expected.retain(|known| known.master != new.master && !known.is_over(now));
            if inner.expected.len() >= ROOM {
                return None;
            }
            let tries = if free_choice { PORTS } else { 1 };
            let port = (0..tries).map(|step| new.port.wrapping_add(step).max(1024)).find(|&port| {
                let same = |known: &Expectation| {
                    (known.source, known.destination, known.port) == (new.source, new.destination, port)
                };
                !inner.expected.iter().any(same)
            })?;
            inner.expected.push(Expectation { port, since: now, ..new });
            Some(port)
        })?
        .ok_or(Unavailable)
    }

    /// Whether a first packet was expected.
    ///
    /// # Errors
    /// The table could not be asked.
    pub fn find(&self, tuple: &Tuple, now: u32) -> Result<Option<Expectation>, Unavailable> {
        if self.is_empty() {
            return Ok(None);
        }
        self.with(|inner| inner.expected.iter().find(|known| known.fits(tuple, now)).copied())
    }

    /// The expected connection has begun. If the table cannot be asked, it is expected for a while longer.
    pub fn fulfilled(&self, expectation: &Expectation) {
        let _ = self.with(|inner| inner.expected.retain(|known| known != expectation));
    }

    /// Notes or asks for the shifts of a connection, given its first packet's tuple: of what goes its way, and of what
    /// comes back. `alive` says whether a connection is still there, if room is needed.
    ///
    /// # Errors
    /// There is no room, or the table could not be asked.
    pub fn shifts<T>(
        &self,
        original: &Tuple,
        alive: impl Fn(&Tuple) -> bool,
        act: impl FnOnce(&mut [Shift; 2]) -> T,
    ) -> Result<T, Unavailable> {
        self.with(|inner| {
            let mut shifts = inner.shifts.get(original).copied().unwrap_or_default();
            let result = act(&mut shifts);
            if shifts.iter().all(Shift::is_none) {
                return Some(result);
            }
            if !inner.shifts.contains_key(original) && inner.shifts.len() >= ROOM {
                inner.shifts.retain(|tuple, _| alive(tuple));
                if inner.shifts.len() >= ROOM {
                    return None;
                }
            }
            inner.shifts.insert(*original, shifts);
            Some(result)
        })?
        .ok_or(Unavailable)
    }

    /// A connection begins: what is known under its tuple was another one's.
    pub fn forget(&self, original: &Tuple) {
        let _ = self.with(|inner| {
            inner.shifts.remove(original);
            inner.expected.retain(|known| known.master != *original);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(n: u8) -> Tuple {
        Tuple {
            source: [10, 0, 0, n].into(),
            destination: [192, 0, 2, 1].into(),
            protocol: 6,
            source_port: 2000,
            destination_port: 21,
        }
    }

    fn expectation(n: u8) -> Expectation {
        Expectation {
            master: tuple(n),
            source: [192, 0, 2, 1].into(),
            destination: [198, 51, 100, 1].into(),
            protocol: 6,
            port: 5000,
            to: ([10, 0, 0, n].into(), 5000),
            from: None,
            since: 100,
        }
    }

    fn data(port: u16) -> Tuple {
        Tuple {
            source: [192, 0, 2, 1].into(),
            destination: [198, 51, 100, 1].into(),
            protocol: 6,
            source_port: 20,
            destination_port: port,
        }
    }

    #[test]
    fn what_was_announced_is_expected_for_a_while() {
        let table = Expectations::default();
        assert_eq!(table.find(&data(5000), 100), Ok(None));
        assert_eq!(table.expect(expectation(1), true, 100), Ok(5000));
        assert_eq!(table.expect(expectation(1), true, 110), Ok(5000), "its segment was sent again");
        assert_eq!(table.len(), 1);
        let found = table.find(&data(5000), 410).expect("free").expect("expected");
        assert_eq!(found.to, ([10, 0, 0, 1].into(), 5000));
        assert_eq!(table.find(&data(5001), 110), Ok(None));
        assert_eq!(table.find(&data(5000), 411), Ok(None), "too late");
        table.fulfilled(&found);
        assert!(table.is_empty());
    }

    #[test]
    fn two_that_announce_the_same_port_get_two() {
        let table = Expectations::default();
        assert_eq!(table.expect(expectation(1), true, 100), Ok(5000));
        assert_eq!(table.expect(expectation(2), true, 100), Ok(5001));
        assert_eq!(table.expect(expectation(3), false, 100), Err(Unavailable));
        assert_eq!(
            table.find(&data(5001), 100).expect("free").expect("expected").to.0,
            IpAddr::from([10, 0, 0, 2])
        );
        // One master, one announcement.
        assert_eq!(
            table.expect(
                Expectation { port: 6000, to: ([10, 0, 0, 1].into(), 6000), ..expectation(1) },
                true,
                100
            ),
            Ok(6000)
        );
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn room_is_bounded_and_the_dead_make_way() {
        let table = Expectations::default();
        for n in 0..ROOM as u16 {
            let master = Tuple { source_port: n, ..tuple(1) };
            assert!(
                table.expect(Expectation { master, port: 2000 + n, ..expectation(1) }, true, 100).is_ok()
            );
            assert_eq!(table.shifts(&master, |_| true, |shifts| shifts[0].change(1, 4)), Ok(()));
        }
        let one_more = Tuple { source_port: 60_000, ..tuple(1) };
        assert_eq!(
            table.expect(Expectation { master: one_more, ..expectation(1) }, true, 100),
            Err(Unavailable)
        );
        assert_eq!(table.shifts(&one_more, |_| true, |shifts| shifts[0].change(1, 4)), Err(Unavailable));
        assert_eq!(table.shifts(&one_more, |_| true, |_| ()), Ok(()), "no shift needs no room");
        assert_eq!(
            table.shifts(&one_more, |tuple| tuple.source_port != 7, |shifts| shifts[0].change(1, 4)),
            Ok(())
        );
        assert!(table.expect(Expectation { master: one_more, ..expectation(1) }, true, 500).is_ok());
        assert_eq!(table.len(), 1);
        assert_eq!(table.shifts(&one_more, |_| true, |shifts| shifts[0].forth(5)), Ok(9));
        table.forget(&one_more);
        assert_eq!(table.shifts(&one_more, |_| true, |shifts| shifts[0].forth(5)), Ok(5));
    }
}

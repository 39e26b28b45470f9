//! Next hops: paths, and sets of paths of equal cost, in fixed places that workers read without a lock.
//!
//! Each path and each set exists once, however many prefixes lead to it, and counts them. What nobody leads to any more
//! is given to another only after [`HopsWriter::reclaim`], when no worker can still be on its way there.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use zerocopy::FromZeros;

use super::trie::VALUE_BITS;
use super::{Address, Path};

/// Most paths of equal cost to one prefix.
pub const MAX_PATHS: usize = 16;

/// Distinguishes sets of several paths from single paths, which are sets as well.
const SEVERAL: u32 = 1 << (VALUE_BITS - 1);
/// Most different paths, and most different sets of several.
const PATHS: usize = 1 << 20;
const SETS: usize = 1 << 18;

/// One path: kind (bits 0 to 7) and interface (16 to 31), gateway (high, low), the adjacency that somebody remembers.
#[derive(FromZeros)]
#[repr(C)]
struct PathWords([AtomicU64; 4]);

/// A set: how many, then their numbers.
#[derive(FromZeros)]
#[repr(C)]
struct SetWords([AtomicU32; 1 + MAX_PATHS]);

/// The tables. Path 0 is "no route".
pub(super) struct Hops {
    paths: Box<[PathWords]>,
    sets: Box<[SetWords]>,
}

const VIA: u64 = 1;
const CONNECTED: u64 = 2;
const LOCAL: u64 = 3;
const BROADCAST: u64 = 4;
const BLACKHOLE: u64 = 5;
const UNREACHABLE: u64 = 6;
const PROHIBIT: u64 = 7;

impl Hops {
    pub(super) fn new() -> Self {
        Self {
            paths: <[PathWords]>::new_box_zeroed_with_elems(PATHS).expect("memory for next hops"),
            sets: <[SetWords]>::new_box_zeroed_with_elems(SETS).expect("memory for sets of next hops"),
        }
    }

    /// The number of the path that a flow takes.
    #[inline(always)]
    pub(super) fn choose(&self, set: u32, hash: impl FnOnce() -> u32) -> u32 {
        if set & SEVERAL == 0 { set } else { self.choose_of_several(set, hash()) }
    }

    #[inline]
    fn choose_of_several(&self, set: u32, hash: u32) -> u32 {
        let words = &self.sets[(set & !SEVERAL) as usize % SETS].0;
        let count = words[0].load(Ordering::Acquire).min(MAX_PATHS as u32);
        let at = (u64::from(hash) * u64::from(count)) >> 32;
        words[1 + at as usize % MAX_PATHS].load(Ordering::Acquire)
    }

    #[inline(always)]
    pub(super) fn path(&self, path: u32) -> Path {
        let words = &self.paths[path as usize % PATHS].0;
        let kind = words[0].load(Ordering::Acquire);
        let interface = (kind >> 16) as u16;
        match kind & 0xff {
            VIA => {
                let high = words[1].load(Ordering::Acquire);
                let low = words[2].load(Ordering::Acquire);
                Path::Via { interface, gateway: Address(u128::from(high) << 64 | u128::from(low)) }
            }
            CONNECTED => Path::Connected { interface },
            LOCAL => Path::Local { interface },
            BROADCAST => Path::Broadcast { interface },
            BLACKHOLE => Path::Blackhole,
            UNREACHABLE => Path::Unreachable,
            PROHIBIT => Path::Prohibit,
            _ => Path::NoRoute,
        }
    }

    #[inline(always)]
    pub(super) fn hint(&self, path: u32) -> &AtomicU64 {
        &self.paths[path as usize % PATHS].0[3]
    }
}

/// All places are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoPlace;

/// Things that exist once each, their numbers and how many use them.
struct Register<T> {
    numbers: HashMap<T, u32>,
    /// By number: what it is, and how many use it; `None` if free.
    entries: Vec<Option<(T, u32)>>,
    free: Vec<u32>,
    retired: Vec<u32>,
    limit: usize,
}

impl<T: Clone + Eq + std::hash::Hash> Register<T> {
    fn new(limit: usize) -> Self {
        // Number 0 stands for nothing.
        Self { numbers: HashMap::new(), entries: vec![None], free: Vec::new(), retired: Vec::new(), limit }
    }

    /// The number of `thing`, one more user of it, and whether it is new.
    fn acquire(&mut self, thing: &T) -> Result<(u32, bool), NoPlace> {
        if let Some(&number) = self.numbers.get(thing) {
            if let Some((_, users)) = self.entries[number as usize].as_mut() {
                *users += 1;
            }
            return Ok((number, false));
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.entries.len() < self.limit => {
                self.entries.push(None);
                self.entries.len() as u32 - 1
            }
            None => return Err(NoPlace),
        };
        self.entries[number as usize] = Some((thing.clone(), 1));
        self.numbers.insert(thing.clone(), number);
        Ok((number, true))
    }

    /// One user less; what it was if that was the last.
    fn release(&mut self, number: u32) -> Option<T> {
        let entry = self.entries.get_mut(number as usize)?;
        let (_, users) = entry.as_mut()?;
        *users -= 1;
        if *users > 0 {
            return None;
        }
        let (thing, _) = entry.take()?;
        self.numbers.remove(&thing);
        self.retired.push(number);
        Some(thing)
    }

    fn reclaim(&mut self) {
        self.free.append(&mut self.retired);
    }
}

/// The control thread's side.
pub(super) struct HopsWriter {
    paths: Register<Path>,
    sets: Register<Vec<u32>>,
}

impl HopsWriter {
    pub(super) fn new() -> Self {
        Self { paths: Register::new(PATHS), sets: Register::new(SETS) }
    }

    /// The number of the set of `paths` (at most [`MAX_PATHS`]; more are left out), written if it is new; 0 for none.
    pub(super) fn acquire(&mut self, hops: &Hops, paths: &[Path]) -> Result<u32, NoPlace> {
        if let [only] = paths {
            // Nearly always.
            let (number, new) = self.paths.acquire(only)?;
            if new {
                write_path(&hops.paths[number as usize], only);
            }
            return Ok(number);
        }
        let mut numbers = Vec::with_capacity(paths.len().min(MAX_PATHS));
        for path in paths.iter().take(MAX_PATHS) {
            match self.paths.acquire(path) {
                Ok((number, new)) => {
                    if new {
                        write_path(&hops.paths[number as usize], path);
                    }
                    numbers.push(number);
                }
                Err(error) => {
                    self.release_paths(&numbers);
                    return Err(error);
                }
            }
        }
        if numbers.is_empty() {
            return Ok(0);
        }
        match self.sets.acquire(&numbers) {
            Ok((number, true)) => {
                let words = &hops.sets[number as usize].0;
                for (word, &path) in words[1..].iter().zip(&numbers) {
                    word.store(path, Ordering::Release);
                }
                words[0].store(numbers.len() as u32, Ordering::Release);
                Ok(number | SEVERAL)
            }
            Ok((number, false)) => {
                // The set holds its paths once, however many use it.
                self.release_paths(&numbers);
                Ok(number | SEVERAL)
            }
            Err(error) => {
                self.release_paths(&numbers);
                Err(error)
            }
        }
    }

    /// One prefix less leads to a set.
    pub(super) fn release(&mut self, set: u32) {
        if set & SEVERAL == 0 {
            self.paths.release(set);
        } else if let Some(paths) = self.sets.release(set & !SEVERAL) {
            self.release_paths(&paths);
        }
    }

    fn release_paths(&mut self, paths: &[u32]) {
        for &path in paths {
            self.paths.release(path);
        }
    }

    /// Lets the places of what was released be used again.
    pub(super) fn reclaim(&mut self) {
        self.paths.reclaim();
        self.sets.reclaim();
    }
}

fn write_path(words: &PathWords, path: &Path) {
    let (kind, interface, gateway) = match *path {
        Path::NoRoute => (0, 0, 0),
        Path::Via { interface, gateway } => (VIA, interface, gateway.0),
        Path::Connected { interface } => (CONNECTED, interface, 0),
        Path::Local { interface } => (LOCAL, interface, 0),
        Path::Broadcast { interface } => (BROADCAST, interface, 0),
        Path::Blackhole => (BLACKHOLE, 0, 0),
        Path::Unreachable => (UNREACHABLE, 0, 0),
        Path::Prohibit => (PROHIBIT, 0, 0),
    };
    let words = &words.0;
    words[1].store((gateway >> 64) as u64, Ordering::Release);
    words[2].store(gateway as u64, Ordering::Release);
    words[3].store(0, Ordering::Release);
    words[0].store(kind | u64::from(interface) << 16, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via(n: u32) -> Path {
        Path::Via { interface: n as u16, gateway: Address::v4(0x0a00_0000 + n) }
    }

    #[test]
    fn paths_are_shared_and_their_places_come_back_only_after_reclaim() {
        let (hops, mut writer) = (Hops::new(), HopsWriter::new());
        let one = writer.acquire(&hops, &[via(1)]).unwrap();
        assert_eq!(writer.acquire(&hops, &[via(1)]), Ok(one));
        assert_eq!(hops.path(one), via(1));
        writer.release(one);
        let other = writer.acquire(&hops, &[Path::Blackhole]).unwrap();
        assert_ne!(other, one, "still in use once");
        writer.release(one);
        let third = writer.acquire(&hops, &[Path::Prohibit]).unwrap();
        assert_ne!(third, one, "a worker may still look at it");
        assert_eq!(hops.path(one), via(1));
        writer.reclaim();
        assert_eq!(writer.acquire(&hops, &[Path::Unreachable]), Ok(one));
        assert_eq!(hops.path(one), Path::Unreachable);
        assert_eq!(hops.path(0), Path::NoRoute);
    }

    #[test]
    fn flows_spread_over_a_set_and_each_keeps_its_path() {
        let (hops, mut writer) = (Hops::new(), HopsWriter::new());
        let paths: Vec<_> = (1..=3).map(via).collect();
        let set = writer.acquire(&hops, &paths).unwrap();
        assert_eq!(writer.acquire(&hops, &paths), Ok(set));
        let mut counts = [0u32; 3];
        for n in 0..30_000u32 {
            let hash = n.wrapping_mul(2_654_435_761);
            let path = hops.path(hops.choose(set, || hash));
            assert_eq!(path, hops.path(hops.choose(set, || hash)));
            counts[paths.iter().position(|p| *p == path).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (9_000..11_000).contains(count)), "{counts:?}");
        writer.release(set);
        writer.release(set);
        writer.reclaim();
        assert!(writer.paths.numbers.is_empty() && writer.sets.numbers.is_empty());
        assert_eq!(writer.paths.free.len(), 3);
    }
}

//! All servers of all scopes by their numbers, so that a connection can name its server in four bytes.
//!
//! A number is given again only after its server was forgotten, and then as late as possible.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::{ArcSwapOption, Guard};

use super::destination::Destination;

const CHUNK: usize = 4096;
/// As many servers as there are numbers for: 16,777,216.
const CHUNKS: usize = 4096;

type Chunk = Box<[ArcSwapOption<Destination>]>;

/// Servers by number.
#[derive(Debug)]
pub(super) struct Registry {
    chunks: Box<[OnceLock<Chunk>]>,
    numbers: Mutex<Numbers>,
    /// How many services all scopes have.
    pub(super) services: AtomicUsize,
    /// To be called when servers were deleted.
    pub(super) withdrawn: OnceLock<Act>,
    /// To be called when timeouts were changed.
    pub(super) retimed: OnceLock<Act>,
}

/// Something to do.
pub(super) struct Act(pub(super) Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Act")
    }
}

#[derive(Debug, Default)]
struct Numbers {
    /// The first number that was never given.
    next: u32,
    /// Numbers of forgotten servers, the longest unused first.
    free: VecDeque<u32>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect(),
            numbers: Mutex::default(),
            services: AtomicUsize::new(0),
            withdrawn: OnceLock::new(),
            retimed: OnceLock::new(),
        }
    }
}

impl Registry {
    fn cell(&self, id: u32) -> Option<&ArcSwapOption<Destination>> {
        self.chunks.get(id as usize / CHUNK)?.get()?.get(id as usize % CHUNK)
    }

    /// The server of a number.
    #[inline]
    pub(super) fn get(&self, id: u32) -> Guard<Option<Arc<Destination>>> {
        self.cell(id).map_or_else(|| Guard::from_inner(None), ArcSwapOption::load)
    }

    /// Numbers a server and keeps it.
    pub(super) fn enter(&self, make: impl FnOnce(u32) -> Destination) -> Option<Arc<Destination>> {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        // Numbers rest for a while before they are given again.
        let id = if numbers.free.len() > 1024 || numbers.next as usize >= CHUNK * CHUNKS {
            numbers.free.pop_front()?
        } else {
            numbers.next += 1;
            numbers.next - 1
        };
        drop(numbers);
        self.chunks[id as usize / CHUNK]
            .get_or_init(|| (0..CHUNK).map(|_| ArcSwapOption::empty()).collect::<Vec<_>>().into());
        let destination = Arc::new(make(id));
        self.cell(id)?.store(Some(Arc::clone(&destination)));
        Some(destination)
    }

    /// How many more can be entered.
    pub(super) fn room(&self) -> usize {
        let numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        CHUNK * CHUNKS - numbers.next as usize + numbers.free.len()
    }

    /// Forgets a server.
    pub(super) fn remove(&self, id: u32) {
        if let Some(cell) = self.cell(id) {
            cell.store(None);
            self.numbers.lock().unwrap_or_else(PoisonError::into_inner).free.push_back(id);
        }
    }
}

//! Reserving hugepages of 2 MiB for a test, on machines that have room for them.

use std::fs;

use crate::progress;

const COUNT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// Hugepages that are free for the test; those that were added for it go when it is dropped.
pub struct Hugepages {
    added: u64,
}

impl Hugepages {
    /// Makes sure that `pages` are free. `None`, and said so, where they cannot be had.
    pub fn reserve(pages: u64) -> Option<Self> {
        let free = read(FREE)?;
        let before = read(COUNT)?;
        let missing = pages.saturating_sub(free);
        if missing > 0 {
            // Refused to an ordinary user; where memory is scattered the kernel gives fewer than asked for.
            let _ = fs::write(COUNT, (before + missing).to_string());
        }
        let reserved = Self { added: read(COUNT)?.saturating_sub(before) };
        if read(FREE)? < pages {
            progress!("SKIPPED: {pages} hugepages of 2 MiB are not to be had");
            return None;
        }
        Some(reserved)
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        if self.added > 0
            && let Some(now) = read(COUNT)
        {
            let _ = fs::write(COUNT, now.saturating_sub(self.added).to_string());
        }
    }
}

fn read(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

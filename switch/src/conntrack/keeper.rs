//! Makes the tables' memory ready ahead of need, on a thread of its own, so that no packet waits for the kernel to clear
//! pages: a huge page takes a few hundred microseconds.
#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};

use super::Conntrack;

/// How workers reach the thread.
#[derive(Default)]
pub(super) struct Keeper {
    thread: OnceLock<Thread>,
    asked: AtomicBool,
}

impl Keeper {
    /// Says that memory runs low. Wakes the thread, a system call, once for megabytes of connections.
    #[cold]
    pub(super) fn ask(&self) {
        if !self.asked.swap(true, Ordering::AcqRel)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

impl Conntrack {
    /// Starts the thread, which ends after the tables have gone. To be called once.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn keep(self: &Arc<Self>) -> io::Result<()> {
        let tables = Arc::downgrade(self);
        let work = move || {
            while let Some(tables) = tables.upgrade() {
                // Before looking, so that who asks from now on is heard.
                tables.shared.keeper.asked.store(false, Ordering::Release);
                tables.prepare();
                drop(tables);
                thread::park();
            }
        };
        let thread = thread::Builder::new().name("conntrack-pages".into()).spawn(work)?;
        let _: Result<(), Thread> = self.shared.keeper.thread.set(thread.thread().clone());
        Ok(())
    }
}

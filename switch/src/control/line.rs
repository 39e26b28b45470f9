//! Lines from a connection, bounded in length, in time and in memory.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use super::rpc::LINE_MAX;

/// How long a line may take from its first byte to its last.
pub const LINE_TIME: Duration = Duration::from_secs(10);
/// Bytes that every connection may keep without asking.
const SMALL: usize = 64 << 10;

/// Bytes that all connections together may keep for long lines.
#[derive(Clone, Debug)]
pub struct Budget(Rc<Cell<usize>>);

impl Budget {
    /// So many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Rc::new(Cell::new(bytes)))
    }
}

/// Why there is no further line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The peer closed; what it left without a line feed is no request.
    Closed,
    /// The line is longer than [`LINE_MAX`].
    TooLong,
    /// The line was not complete after [`LINE_TIME`].
    TooSlow,
    /// Long lines of other connections occupy the memory that there is for them.
    NoRoom,
}

/// The lines of a connection.
#[derive(Debug)]
pub struct Lines<R> {
    from: R,
    buffer: Vec<u8>,
    /// Where the present line begins, and up to where no line feed was found.
    start: usize,
    seen: usize,
    time: Duration,
    budget: Budget,
    /// Bytes taken from the budget.
    taken: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// The lines that come from `from`.
    pub fn new(from: R, budget: Budget) -> Self {
        Self { from, buffer: Vec::new(), start: 0, seen: 0, time: LINE_TIME, budget, taken: 0 }
    }

    /// The next line, without its line feed. Waits as long as the peer likes for its first byte.
    ///
    /// # Errors
    /// Why there is none; not to be called again then.
    pub async fn next(&mut self) -> Result<&[u8], Stop> {
        let mut deadline = None;
        loop {
            if let Some(length) = self.buffer[self.seen..].iter().position(|&b| b == b'\n') {
                let line = self.start..self.seen + length;
                if line.len() > LINE_MAX {
                    return Err(Stop::TooLong);
                }
                self.start = line.end + 1;
                self.seen = self.start;
                return Ok(&self.buffer[line]);
            }
            self.compact();
            if self.seen > LINE_MAX {
                return Err(Stop::TooLong);
            }
            if self.seen > 0 && deadline.is_none() {
                deadline = Some(Instant::now() + self.time);
            }
            self.make_room()?;
            let read = self.from.read_buf(&mut self.buffer);
            let read = match deadline {
                Some(deadline) => timeout_at(deadline, read).await.map_err(|_| Stop::TooSlow)?,
                None => read.await,
            };
            if !matches!(read, Ok(1..)) {
                return Err(Stop::Closed);
            }
        }
    }

    /// Drops the lines that were handed out, and the memory of long ones. What stays is the beginning of a line; it
    /// is moved once, however many lines came before it.
    fn compact(&mut self) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.seen = self.buffer.len();
        if self.taken > 0 && self.buffer.len() < SMALL {
            self.buffer.shrink_to(SMALL);
            self.give_back();
        }
    }

    /// Sees to it that there is room to read into, at most for the longest line and its line feed.
    fn make_room(&mut self) -> Result<(), Stop> {
        let capacity = self.buffer.capacity();
        if self.buffer.len() < capacity {
            return Ok(());
        }
        let wanted = (capacity * 2).clamp(4096, LINE_MAX + 1);
        let beyond = wanted.saturating_sub(SMALL);
        if beyond > self.taken {
            let left = self.budget.0.get().checked_sub(beyond - self.taken).ok_or(Stop::NoRoom)?;
            self.budget.0.set(left);
            self.taken = beyond;
        }
        self.buffer.reserve_exact(wanted - self.buffer.len());
        Ok(())
    }

    fn give_back(&mut self) {
        self.budget.0.set(self.budget.0.get() + self.taken);
        self.taken = 0;
    }
}

impl<R> Drop for Lines<R> {
    fn drop(&mut self) {
        self.budget.0.set(self.budget.0.get() + self.taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn lines_are_cut_and_what_is_left_is_none() {
        run(async {
            let mut lines = Lines::new(&b"one\n\ntwo\nrest"[..], Budget::new(0));
            assert_eq!(lines.next().await, Ok(&b"one"[..]));
            assert_eq!(lines.next().await, Ok(&b""[..]));
            assert_eq!(lines.next().await, Ok(&b"two"[..]));
            assert_eq!(lines.next().await, Err(Stop::Closed));
        });
    }

    #[test]
    fn the_longest_line_passes_and_gives_its_memory_back() {
        run(async {
            let mut text = vec![b'x'; LINE_MAX];
            text.extend_from_slice(b"\nnext\n");
            let budget = Budget::new(LINE_MAX);
            let input = text.clone();
            let mut lines = Lines::new(&input[..], budget.clone());
            assert_eq!(lines.next().await.map(<[u8]>::len), Ok(LINE_MAX));
            assert!(budget.0.get() < SMALL * 2);
            assert_eq!(lines.next().await, Ok(&b"next"[..]));
            assert_eq!(lines.next().await, Err(Stop::Closed));
            assert_eq!(budget.0.get(), LINE_MAX);
            text[LINE_MAX] = b'x';
            let mut lines = Lines::new(&text[..], budget.clone());
            assert_eq!(lines.next().await, Err(Stop::TooLong));
            drop(lines);
            assert_eq!(budget.0.get(), LINE_MAX);
        });
    }

    #[test]
    fn long_lines_share_a_budget() {
        run(async {
            let text = vec![b'x'; 1 << 20];
            let mut lines = Lines::new(&text[..], Budget::new(1 << 18));
            assert_eq!(lines.next().await, Err(Stop::NoRoom));
        });
    }

    #[test]
    fn half_a_line_is_not_waited_for() {
        run(async {
            let (mut to, from) = tokio::io::duplex(64);
            let mut lines = Lines::new(from, Budget::new(0));
            lines.time = Duration::from_millis(30);
            let idle = tokio::time::timeout(lines.time * 4, lines.next()).await;
            assert!(idle.is_err(), "between lines there is no hurry");
            let begun = Instant::now();
            tokio::io::AsyncWriteExt::write_all(&mut to, b"one\nhal").await.unwrap();
            assert_eq!(lines.next().await, Ok(&b"one"[..]));
            assert_eq!(lines.next().await, Err(Stop::TooSlow));
            assert!(begun.elapsed() >= Duration::from_millis(30));
        });
    }
}

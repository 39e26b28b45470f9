//! Work that waits for others, on a thread of its own, while the control thread goes on.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::refusal::Refusal;

/// Calls the work off and waits for its end if nobody waits for the result any more, as when the daemon ends: what was
/// begun is then undone before the program is gone.
struct Watch {
    called_off: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.called_off.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Does the work on a new thread. It is to look at its argument while it waits, and to end when that becomes true.
///
/// # Errors
/// The work's, or there is no thread to be had.
pub(crate) async fn run<T, F>(work: F) -> Result<T, Refusal>
where
    T: Send + 'static,
    F: FnOnce(&Arc<AtomicBool>) -> Result<T, Refusal> + Send + 'static,
{
    let called_off = Arc::<AtomicBool>::default();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let flag = called_off.clone();
    let thread = std::thread::Builder::new()
        .name("shunt-container".into())
        .spawn(move || {
            // Whoever does not wait any more does not want the result.
            let _ = sender.send(work(&flag));
        })
        .map_err(|e| Refusal::new(format!("no thread for the container: {e}")))?;
    let _watch = Watch { called_off, thread: Some(thread) };
    receiver.await.unwrap_or_else(|_| Err(Refusal::new("the work on the container was not finished")))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn who_goes_away_calls_the_work_off_and_waits_for_its_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (began, begun) = channel();
        let (ended, end) = channel();
        let work = run(move |called_off| {
            began.send(()).unwrap();
            while !called_off.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            ended.send(()).unwrap();
            Ok(())
        });
        runtime.block_on(async {
            let mut work = Box::pin(work);
            assert!(futures_poll(&mut work).await.is_none());
            begun.recv().unwrap();
            drop(work);
        });
        end.try_recv().expect("the work has ended before its caller went on");
    }

    /// Polls a future once.
    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}

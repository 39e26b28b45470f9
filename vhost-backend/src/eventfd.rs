//! Event descriptors that a frontend sends: made sure of before use, and signalled without ever waiting.
//!
//! A frontend shares the open file with us: it can clear O_NONBLOCK at any time and fill the counter, and a write(2)
//! would then wait for it (eventfd(2)). No check beforehand rules that out, and RWF_NOWAIT is refused by eventfds. The
//! kernel's own way of signalling (`eventfd_signal`) never waits: the counter stays at its end. A completed
//! asynchronous request (io_submit(2), IOCB_FLAG_RESFD) signals that way, so an interrupt is a read of no bytes from
//! /dev/null that completes on the spot. It costs half a microsecond more than a write.

use std::{
    cell::Cell,
    fs::{self, File},
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, RawFd},
    path::Path,
    ptr,
    sync::OnceLock,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vmm_sys_util::eventfd::EventFd;

/// Takes a descriptor as an eventfd, set to non-blocking: a full pipe or socket in its place would stop a worker.
///
/// # Errors
/// A sentence for the operator: it is something else.
pub(crate) fn from_frontend(file: File) -> Result<EventFd, String> {
    let is = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|e| format!("cannot tell what kind of descriptor was sent: {e}"))?;
    if is != Path::new("anon_inode:[eventfd]") {
        return Err(format!("the descriptor is {} and not an eventfd", is.display()));
    }
    let flags = fcntl(&file, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    flags
        .and_then(|flags| fcntl(&file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)))
        .map_err(|e| format!("cannot make the eventfd non-blocking: {e}"))?;
    // SAFETY: the descriptor was ours and is handed over whole.
    Ok(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) })
}

/// Adds one to the event's counter, and never waits: a counter at its end stays there.
#[inline]
pub(crate) fn signal(event: &EventFd) {
    // A thread that is ending has nobody left to interrupt.
    let _ = SIGNALLER.try_with(|signaller| signaller.signal(event));
}

thread_local! {
    static SIGNALLER: Signaller = Signaller::new();
}

/// Requests after which the completed ones are taken out of the context.
const LOT: u32 = 64;

/// linux/aio_abi.h, `struct iocb`, little-endian.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

/// `struct io_event` of the same header.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Completion {
    data: u64,
    request: u64,
    results: [i64; 2],
}

/// A thread's context of asynchronous requests; 0 if there is none to be had, and events are written then.
struct Signaller {
    context: libc::c_ulong,
    submitted: Cell<u32>,
}

/// The descriptor that is read from, process-wide.
fn null() -> Option<RawFd> {
    static NULL: OnceLock<Option<File>> = OnceLock::new();
    NULL.get_or_init(|| File::open("/dev/null").ok()).as_ref().map(AsRawFd::as_raw_fd)
}

impl Signaller {
    fn new() -> Self {
        let mut context: libc::c_ulong = 0;
        // The interpreter miri has no such requests.
        if !cfg!(miri) && null().is_some() {
            // SAFETY: a zeroed context of ours to be filled in. Fails, leaving zero, where the kernel has no such
            // requests or a filter forbids them.
            unsafe { libc::syscall(libc::SYS_io_setup, 2 * LOT, &raw mut context) };
        }
        Self { context, submitted: Cell::new(0) }
    }

    fn signal(&self, event: &EventFd) {
        const PREAD: u16 = 0;
        const RESULT_FD: u32 = 1;
        let Some(null) = null().filter(|_| self.context != 0) else {
            let _ = event.write(1);
            return;
        };
        let mut request = Request {
            opcode: PREAD,
            file: null as u32,
            flags: RESULT_FD,
            result_fd: event.as_raw_fd() as u32,
            ..Request::default()
        };
        let mut requests = [&raw mut request];
        let submitted = self.submitted.get() + 1;
        // SAFETY: one request, of no bytes, that has completed when the call returns: nothing refers to it afterwards.
        let mut submit =
            || unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, requests.as_mut_ptr()) };
        let full = submit() != 1 && io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
        if full || submitted == LOT {
            self.take_completions();
        }
        if full {
            submit();
        }
        self.submitted.set(submitted % LOT);
    }

    /// Makes room for further requests.
    #[cold]
    fn take_completions(&self) {
        let mut completions = [Completion::default(); 2 * LOT as usize];
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: room for as many completions as are asked for, and a time limit of none.
        unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0,
                completions.len(),
                completions.as_mut_ptr(),
                ptr::from_ref(&at_once),
            )
        };
    }
}

impl Drop for Signaller {
    fn drop(&mut self) {
        if self.context != 0 {
            // SAFETY: our context, and no request is under way.
            unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
        }
    }
}

/// The descriptor of an event, borrowed.
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the event owns it for as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Has the descriptor that `of` owns stand for what `by` is; what it stood for is closed.
pub(crate) fn replace(of: &impl AsRawFd, by: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: no memory is involved, both descriptors are owned by their borrowed owners, and the number that `of` owns
    // stays a valid descriptor of a socket throughout.
    let done = unsafe { libc::dup3(by.as_raw_fd(), of.as_raw_fd(), libc::O_CLOEXEC) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    /// Clears what `from_frontend` set, as its sender can at any time.
    fn make_blocking(event: &EventFd) {
        // SAFETY: an open descriptor and no memory.
        assert_eq!(unsafe { libc::fcntl(event.as_raw_fd(), libc::F_SETFL, 0) }, 0);
    }

    #[test]
    fn every_signal_counts() {
        let event = EventFd::new(0).unwrap();
        for _ in 0..1000 {
            signal(&event);
        }
        assert_eq!(event.read().unwrap(), 1000);
    }

    #[test]
    fn a_full_counter_that_blocks_its_writers_does_not_block_us() {
        let event = EventFd::new(0).unwrap();
        event.write(u64::MAX - 1).unwrap();
        make_blocking(&event);
        let theirs = event.try_clone().unwrap();
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || {
            for _ in 0..200 {
                signal(&event);
            }
            done.send(()).unwrap();
        });
        let in_time = ended.recv_timeout(Duration::from_secs(20));
        // Frees the thread, should it wait.
        let counted = theirs.read().unwrap();
        in_time.expect("signalling waits for the frontend");
        assert!(counted >= u64::MAX - 1);
    }

    #[test]
    fn only_eventfds_pass_and_they_do_not_block() {
        let eventfd = EventFd::new(0).unwrap();
        eventfd.write(u64::MAX - 1).unwrap();
        // SAFETY: a descriptor that nobody else owns.
        let file = unsafe { File::from_raw_fd(eventfd.try_clone().unwrap().into_raw_fd()) };
        let ours = from_frontend(file).unwrap();
        assert_eq!(ours.write(1).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);

        let error = from_frontend(File::open("/dev/null").unwrap()).unwrap_err();
        assert_eq!(error, "the descriptor is /dev/null and not an eventfd");
        let (pipe, _other) = nix::unistd::pipe().unwrap();
        assert!(from_frontend(pipe.into()).unwrap_err().contains("pipe:"));
    }
}

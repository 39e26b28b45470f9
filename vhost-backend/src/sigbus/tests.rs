use std::{fs::File, os::fd::AsRawFd, os::unix::process::ExitStatusExt, process::Command, thread};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;

const PAGE: usize = 4096;

/// Pages of a file that is empty: every access faults.
fn pages_of_nothing(pages: usize) -> (*mut u8, usize) {
    let file = File::from(memfd_create("nothing", MFdFlags::MFD_CLOEXEC).unwrap());
    let len = pages * PAGE;
    // SAFETY: a new mapping, of the kernel's choice of address.
    let base = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(base, libc::MAP_FAILED);
    (base.cast(), len)
}

#[test]
fn the_rest_of_the_range_becomes_zero_pages() {
    let (base, len) = pages_of_nothing(8);
    // SAFETY: the mapping is ours, used through raw pointers only and unmapped below, after the guard.
    let guard = unsafe { Guarded::new(base as usize, len, PAGE) }.unwrap();
    assert!(!guard.poisoned());
    let before = faults();
    // SAFETY: within the mapping; faults are answered.
    unsafe {
        assert_eq!(base.add(5 * PAGE + 17).read_volatile(), 0);
        base.add(7 * PAGE).write_volatile(3);
        assert_eq!(base.add(7 * PAGE).read_volatile(), 3);
    }
    assert!(guard.poisoned());
    assert_ne!(faults(), before);
    drop(guard);
    // SAFETY: our mapping, not used any more.
    unsafe { libc::munmap(base.cast(), len) };
}

#[test]
fn errno_survives_a_fault() {
    let (base, len) = pages_of_nothing(1);
    // SAFETY: as above.
    let guard = unsafe { Guarded::new(base as usize, len, PAGE) }.unwrap();
    // SAFETY: errno is this thread's; the access is within the guarded mapping.
    unsafe {
        *libc::__errno_location() = 77;
        base.read_volatile();
        assert_eq!(*libc::__errno_location(), 77);
    }
    drop(guard);
    // SAFETY: our mapping, not used any more.
    unsafe { libc::munmap(base.cast(), len) };
}

#[test]
fn threads_that_fault_while_others_come_and_go() {
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let (base, len) = pages_of_nothing(3);
                    // SAFETY: as above.
                    let guard = unsafe { Guarded::new(base as usize, len, PAGE) }.unwrap();
                    assert!(!guard.poisoned(), "a cell came back unclean");
                    // SAFETY: within the guarded mapping.
                    unsafe { base.add(PAGE).write_volatile(1) };
                    assert!(guard.poisoned());
                    drop(guard);
                    // SAFETY: our mapping, not used any more.
                    unsafe { libc::munmap(base.cast(), len) };
                }
            });
        }
    });
}

/// Set for the process that is to die.
const VICTIM: &str = "SIGBUS_TEST_VICTIM";

fn die_in_a_process_of_its_own(test: &str) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(VICTIM, "1")
        .output()
        .unwrap()
        .status;
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn a_fault_elsewhere_still_kills() {
    if std::env::var_os(VICTIM).is_none() {
        return die_in_a_process_of_its_own("sigbus::tests::a_fault_elsewhere_still_kills");
    }
    let (base, len) = pages_of_nothing(4);
    // SAFETY: the first half only; the process ends before it is unmapped.
    let _guard = unsafe { Guarded::new(base as usize, len / 2, PAGE) }.unwrap();
    // SAFETY: mapped, though it faults: that is the test.
    unsafe { base.add(len / 2).read_volatile() };
}

#[test]
fn a_signal_from_outside_still_kills() {
    if std::env::var_os(VICTIM).is_none() {
        return die_in_a_process_of_its_own("sigbus::tests::a_signal_from_outside_still_kills");
    }
    install().unwrap();
    // The standard library's handler, which was there before, takes the first one as a reason to step aside.
    for _ in 0..2 {
        // SAFETY: no memory involved.
        unsafe { libc::raise(libc::SIGBUS) };
    }
}

//! Event descriptors that a frontend sends: made sure of before a worker writes to one.

use std::{
    fs::{self, File},
    os::fd::{AsRawFd, FromRawFd, IntoRawFd},
    path::Path,
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

#[cfg(test)]
mod tests {
    use super::*;

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

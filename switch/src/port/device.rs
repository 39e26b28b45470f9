//! What TAP and netdev ports have in common: their errors, the outcome of a send, and a worker's receive memory.
//!
//! Frames of these ports are read by system calls, so they land in memory of the worker first. [`ReceiveBuffer`] is
//! that memory: one per worker, handed to each port in turn, lent to a [`Burst`](vhost_backend::frame::Burst) for the
//! length of one closure.

use std::{io, ptr::NonNull};

use nix::libc;
use vhost_backend::frame::{Burst, MAX_FRAME};

/// Why a device could not be opened: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A field of the configuration breaks a rule.
    #[error("{field} {value}: {rule}")]
    Invalid {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: String,
        /// The rule that it breaks.
        rule: String,
    },
    /// The device, the namespace or `/dev/net/tun` is missing.
    #[error("{what} does not exist: {hint}")]
    Missing {
        /// What is missing.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// The device exists and does not fit.
    #[error("device {device} {why}")]
    Unfit {
        /// Name of the device.
        device: String,
        /// What is the matter with it, and what to do.
        why: String,
    },
    /// The process lacks a privilege.
    #[error("{doing}: permission denied, needs {needs}")]
    Permission {
        /// What was tried.
        doing: String,
        /// The privilege.
        needs: &'static str,
    },
    /// The kernel refused for another reason.
    #[error("{doing}: {source}")]
    System {
        /// What was tried.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl OpenError {
    /// An error of the kernel; a lack of privilege is told as such.
    pub(super) fn system(
        doing: impl Into<String>,
        needs: &'static str,
        source: impl Into<io::Error>,
    ) -> Self {
        let (doing, source) = (doing.into(), source.into());
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Permission { doing, needs },
            _ => Self::System { doing, source },
        }
    }
}

/// The privilege for everything that changes a device.
pub(super) const NET_ADMIN: &str = "CAP_NET_ADMIN (run as root or grant it in the unit file)";

/// Checks a device name by the kernel's rule (`dev_valid_name`), and refuses `%`, which would make the kernel choose.
pub(super) fn check_name(name: &str) -> Result<(), OpenError> {
    let fits = (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control() || b"/:%".contains(&b));
    if fits {
        return Ok(());
    }
    Err(OpenError::Invalid {
        field: "device",
        value: format!("{name:?}"),
        rule: "a device name has 1 to 15 bytes, no white space and none of / : %".into(),
    })
}

/// What became of the frames that were to be sent, one bit a frame. The four masks are disjoint and together are the
/// mask that was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Taken by the device.
    pub sent: u64,
    /// Refused because a queue of the device or the socket was full.
    pub full: u64,
    /// Refused because the device is down or gone.
    pub down: u64,
    /// Refused for what the frame is: too long for the device, or offload metadata that the kernel does not accept.
    pub refused: u64,
}

impl Sent {
    /// Files the frame(s) of `bit` under the reason that `errno` stands for. `rest` are the frames not yet tried:
    /// when the reason concerns the device and not the frame they share its fate, without a system call each.
    /// Returns whether to go on.
    #[inline]
    pub(super) fn refuse(&mut self, errno: i32, bit: u64, rest: u64) -> bool {
        match errno {
            libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => self.full |= bit | rest,
            libc::EIO | libc::EBADFD | libc::ENETDOWN | libc::ENXIO | libc::ENODEV | libc::EFAULT => {
                self.down |= bit | rest;
            }
            _ => {
                self.refused |= bit;
                return true;
            }
        }
        false
    }
}

/// Bytes in front of each frame, for a header or a VLAN tag that the kernel hands over separately.
pub(super) const HEADROOM: usize = 64;

/// Worker-private memory that frames of TAP and netdev ports are read into: one per worker, reused for ever.
///
/// 512 KiB, to stay in the cache; what frames have not filled is not resident.
pub struct ReceiveBuffer {
    memory: NonNull<u8>,
}

impl ReceiveBuffer {
    /// Bytes of the memory.
    pub(super) const LEN: usize = 512 << 10;

    /// A buffer, not yet touched.
    ///
    /// # Panics
    /// If the address space is exhausted.
    pub fn new() -> Self {
        // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice touches nobody's memory.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert!(
            memory != libc::MAP_FAILED,
            "no address space for a receive buffer: {}",
            io::Error::last_os_error()
        );
        let memory = NonNull::new(memory.cast()).expect("a mapping is never at address 0");
        Self { memory }
    }

    /// Start of the memory, aligned to a page. Exclusive access goes with `&mut`.
    #[inline]
    pub(super) fn start(&mut self) -> *mut u8 {
        self.memory.as_ptr()
    }
}

impl Default for ReceiveBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for ReceiveBuffer {
    fn drop(&mut self) {
        // SAFETY: our own mapping, whole, and nobody holds a pointer into it: bursts are cleared before receive
        // functions return.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), Self::LEN) };
    }
}

// SAFETY: the memory is owned and reached only through `&mut self`.
unsafe impl Send for ReceiveBuffer {}

const _: () = assert!(ReceiveBuffer::LEN > 2 * (HEADROOM + MAX_FRAME), "a burst has room for some frames");

/// A burst while it refers to borrowed memory: cleared when that ends, in whatever way.
pub(super) struct Lent<'a>(pub(super) &'a mut Burst);

impl Drop for Lent<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_follow_the_kernels_rule() {
        for good in ["t", "tap0", "veth1234567890a", "a.b-c_d@e"] {
            check_name(good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "a b", "tap%d", "a:1", "sixteen-bytes-xx", "a\n"] {
            let line = check_name(bad).unwrap_err().to_string();
            assert!(line.starts_with("device ") && line.contains("1 to 15"), "{line}");
        }
    }

    #[test]
    fn a_refusal_of_the_device_takes_the_rest_along() {
        let mut sent = Sent::default();
        assert!(sent.refuse(libc::EINVAL, 1, 0b110), "the frame's own fault");
        assert!(!sent.refuse(libc::EAGAIN, 2, 0b100));
        assert_eq!(sent, Sent { sent: 0, full: 0b110, down: 0, refused: 1 });
    }
}

//! Who is at the other end of a connection, and whether they may be.
//!
//! The socket's mode (0660) already keeps out who is neither its owner nor in its group; this check holds even if
//! somebody changed the mode, or handed over an open descriptor.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// Who may ask: root, the daemon's own user, and members of the socket's group.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// The daemon's effective user.
    pub uid: u32,
    /// The socket's group.
    pub gid: u32,
}

impl Access {
    /// Whether the peer is root or the daemon's own user, and may have the daemon run programs.
    pub fn is_trusted(&self, socket: impl AsFd) -> bool {
        getsockopt(&socket, PeerCredentials).is_ok_and(|peer| peer.uid() == 0 || peer.uid() == self.uid)
    }

    /// Checks the peer of a connected Unix socket, as the kernel recorded it when it connected (unix(7)).
    ///
    /// # Errors
    /// One line with the peer's identity and the rule.
    pub fn check(&self, socket: impl AsFd) -> Result<(), String> {
        let peer = getsockopt(&socket, PeerCredentials)
            .map_err(|e| format!("the peer's identity is unknown: {e}"))?;
        let (uid, gid) = (peer.uid(), peer.gid());
        if uid == 0 || uid == self.uid || gid == self.gid {
            return Ok(());
        }
        let groups = peer_groups(&socket).map_err(|e| format!("the peer's groups are unknown: {e}"))?;
        if groups.contains(&self.gid) {
            return Ok(());
        }
        let Self { uid: own, gid: group } = self;
        Err(format!("uid {uid}, gid {gid} may not: only root, uid {own} and members of group {group} may"))
    }
}

/// The supplementary groups of the peer of a connected Unix socket (SO_PEERGROUPS, Linux 4.13).
#[allow(unsafe_code)]
fn peer_groups(socket: impl AsFd) -> Result<Vec<libc::gid_t>, Errno> {
    // A process has at most NGROUPS_MAX groups; most have a few.
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let size = size_of::<libc::gid_t>();
        let mut length = (groups.len() * size) as libc::socklen_t;
        // SAFETY: `groups` has `length` bytes that the kernel may write group numbers to, any value of which is
        // valid; `length` is a valid pointer for the call; the descriptor is borrowed for the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut length,
            )
        };
        let needed = length as usize / size;
        match Errno::result(result) {
            Ok(_) => {
                groups.truncate(needed);
                return Ok(groups);
            }
            Err(Errno::ERANGE) if needed > groups.len() => groups.resize(needed, 0),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nix::unistd::{getegid, geteuid, getgroups};

    use super::*;

    #[test]
    fn supplementary_groups_are_the_kernels() {
        let (a, _b) = UnixStream::pair().unwrap();
        let mut own: Vec<u32> = getgroups().unwrap().iter().map(|g| g.as_raw()).collect();
        let mut seen = peer_groups(&a).unwrap();
        own.sort_unstable();
        seen.sort_unstable();
        assert_eq!(seen, own);
    }

    #[test]
    fn own_user_and_group_may_ask() {
        let (a, _b) = UnixStream::pair().unwrap();
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        assert_eq!(Access { uid, gid: gid ^ 0x5555 }.check(&a), Ok(()));
        assert_eq!(Access { uid: uid ^ 0x5555, gid }.check(&a), Ok(()));
    }
}

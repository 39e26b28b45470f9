//! The names of addresses: what the system's resolver says (getnameinfo(3)). The other way round is
//! [`std::net::ToSocketAddrs`].

use std::ffi::CStr;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};

use nix::sys::socket::{SockaddrIn, SockaddrIn6, SockaddrLike};

/// Longest name (`NI_MAXHOST`).
const LONGEST: usize = 1025;

/// The name of an address; `None` if it has none, or nobody answers. May take as long as the resolver waits.
pub fn name_of(address: IpAddr) -> Option<String> {
    match SocketAddr::new(address, 0) {
        SocketAddr::V4(socket) => name(&v4(socket)),
        SocketAddr::V6(socket) => name(&v6(socket)),
    }
}

fn v4(socket: SocketAddrV4) -> SockaddrIn {
    socket.into()
}

fn v6(socket: SocketAddrV6) -> SockaddrIn6 {
    socket.into()
}

fn name(socket: &impl SockaddrLike) -> Option<String> {
    let mut host = [0u8; LONGEST];
    // SAFETY: `socket` is a socket address of the length that goes with it; `host` is writable for the length given,
    // and its bytes are of the size of `c_char`; no service is asked for. The call keeps none of the pointers.
    let status = unsafe {
        libc::getnameinfo(
            socket.as_ptr(),
            socket.len(),
            host.as_mut_ptr().cast(),
            LONGEST as libc::socklen_t,
            std::ptr::null_mut(),
            0,
            libc::NI_NAMEREQD,
        )
    };
    if status != 0 {
        return None;
    }
    CStr::from_bytes_until_nul(&host).ok()?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_a_name_where_hosts_has_one() {
        let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let listed = hosts.lines().any(|line| line.split_ascii_whitespace().eq(["127.0.0.1", "localhost"]));
        if listed {
            assert_eq!(name_of(IpAddr::from([127, 0, 0, 1])).as_deref(), Some("localhost"));
        }
        // Addresses for documentation have no name anywhere (RFC 5737).
        assert_eq!(name_of(IpAddr::from([192, 0, 2, 1])), None);
    }
}

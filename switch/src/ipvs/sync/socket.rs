//! The sockets of sync daemons, bound to a network interface of the process' namespace.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use super::spec::{DaemonConfig, DaemonError, Role};

/// Bytes that wait in a socket, if the system allows so many.
const BUFFER: usize = 4 << 20;

/// The socket of a daemon: of a master connected to the group, of a backup bound to it.
pub(super) fn open(config: &DaemonConfig) -> Result<UdpSocket, DaemonError> {
    let index = match nix::net::if_::if_nametoindex(config.interface.as_str()) {
        Ok(index) => index,
        Err(_) => return Err(DaemonError::NoSuchInterface(config.interface.clone())),
    };
    let failed = |action| move |source| DaemonError::System { role: config.role, action, source };
    let domain = Domain::for_address(target(config, index));
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).map_err(failed("open a socket"))?;
    socket
        .bind_device(Some(config.interface.as_bytes()))
        .map_err(failed("bind its socket to the interface"))?;
    match config.role {
        Role::Master => prepare_master(&socket, config, index).map_err(failed("send to the group"))?,
        Role::Backup => prepare_backup(&socket, config, index).map_err(failed("listen at the group"))?,
    }
    // Never wait in the system: there is a stop to be noticed.
    socket.set_nonblocking(true).map_err(failed("open a socket"))?;
    Ok(socket.into())
}

fn target(config: &DaemonConfig, index: u32) -> SocketAddr {
    match config.group {
        IpAddr::V4(group) => (group, config.port).into(),
        // Link-local groups and addresses mean something on an interface only.
        IpAddr::V6(group) => std::net::SocketAddrV6::new(group, config.port, 0, index).into(),
    }
}

fn prepare_master(socket: &Socket, config: &DaemonConfig, index: u32) -> io::Result<()> {
    // Not being able to is no reason to do without.
    let _ = socket.set_send_buffer_size(BUFFER);
    let ttl = u32::from(config.ttl);
    match config.group {
        IpAddr::V4(_) => {
            socket.set_multicast_ttl_v4(ttl)?;
            socket.set_multicast_loop_v4(false)?;
            let own = address_of(&config.interface).unwrap_or(Ipv4Addr::UNSPECIFIED);
            socket.bind(&SocketAddr::from((own, 0)).into())?;
        }
        IpAddr::V6(_) => {
            socket.set_multicast_if_v6(index)?;
            socket.set_multicast_hops_v6(ttl)?;
            socket.set_multicast_loop_v6(false)?;
        }
    }
    socket.connect(&target(config, index).into())
}

fn prepare_backup(socket: &Socket, config: &DaemonConfig, index: u32) -> io::Result<()> {
    let _ = socket.set_recv_buffer_size(BUFFER);
    socket.set_reuse_address(true)?;
    match config.group {
        IpAddr::V4(group) => {
            socket.bind(&target(config, index).into())?;
            if group.is_multicast() {
                socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(index))?;
            }
        }
        IpAddr::V6(group) => {
            socket.set_only_v6(true)?;
            socket.bind(&target(config, index).into())?;
            if group.is_multicast() {
                socket.join_multicast_v6(&Ipv6Addr::from(group.octets()), index)?;
            }
        }
    }
    Ok(())
}

/// The first address of an interface.
fn address_of(interface: &str) -> Option<Ipv4Addr> {
    nix::ifaddrs::getifaddrs()
        .ok()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_sockaddr_in().map(|address| address.ip()))
}

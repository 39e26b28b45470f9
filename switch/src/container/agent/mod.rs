//! A client of Kata's agent: what a NIC is called inside the guest, its addresses, and the guest's routes.
//!
//! ttrpc (containerd's PROTOCOL.md): a frame is ten bytes of header and a protobuf message; a call is answered once.
//! Calls are those of Kata Containers' `agent.proto`. The agent inside a guest is no friend of the host's: frames are
//! bounded, and each call has a deadline that counts from its beginning.

pub(crate) mod message;
mod routes;
#[cfg(test)]
pub(in crate::container) mod server;

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

use crate::config::spec::{AgentAddress, ContainerRoute, NicSpec};
use crate::refusal::Refusal;
use message::{Interface, IpAddress, List, Message, Request, Response, Route};

/// How long a call may take: the agent waits for the kernel to find a new device.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a wait looks whether it was called off.
const LOOK: Duration = Duration::from_millis(100);
/// Longest frame: ttrpc's own limit.
const FRAME: usize = 4 << 20;
/// How long the guest's kernel may take to find a new device, and how often the agent is asked meanwhile.
const PROBE: Duration = Duration::from_secs(15);
const PROBE_AGAIN: Duration = Duration::from_millis(200);
const HEADER: usize = 10;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const SERVICE: &str = "grpc.AgentService";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
enum Called {
    /// The agent said no.
    #[error("{0}")]
    Refused(String),
    /// It did not say anything that can be understood.
    #[error("{0}")]
    Lost(#[from] io::Error),
}

/// A connection to an agent.
pub(crate) struct Agent {
    /// Any stream socket: reads and writes are the same for all families.
    stream: UnixStream,
    address: AgentAddress,
    /// Identifier of the next call: odd ones are the client's.
    next: u32,
    called_off: Arc<AtomicBool>,
}

impl Agent {
    /// Connects.
    ///
    /// # Errors
    /// Nobody is there.
    pub(crate) fn connect(address: &AgentAddress, called_off: &Arc<AtomicBool>) -> Result<Self, Refusal> {
        let refuse = |why: &dyn std::fmt::Display| Refusal::new(format!("agent {address}: {why}"));
        let stream = match address {
            AgentAddress::Unix(path) => UnixStream::connect(path).map_err(|e| refuse(&e))?,
            AgentAddress::Hybrid(path, _) => UnixStream::connect(path).map_err(|e| refuse(&e))?,
            AgentAddress::Vsock(cid, port) => vsock(*cid, *port).map_err(|e| refuse(&e))?,
        };
        let mut agent = Self { stream, address: address.clone(), next: 1, called_off: called_off.clone() };
        if let AgentAddress::Hybrid(_, port) = address {
            agent.pass_on(*port).map_err(|e| refuse(&e))?;
        }
        Ok(agent)
    }

    /// Asks the machine monitor for a port of its guest, in the way of Firecracker and Cloud Hypervisor.
    fn pass_on(&mut self, port: u32) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        self.stream.set_write_timeout(Some(PATIENCE))?;
        self.stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') && line.len() < 64 {
            line.extend(self.read::<1>(deadline)?);
        }
        if line.starts_with(b"OK ") {
            return Ok(());
        }
        Err(io::Error::other(format!("nobody in the guest listens on port {port}")))
    }

    fn read<const N: usize>(&mut self, deadline: Instant) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, deadline)?;
        Ok(bytes)
    }

    fn fill(&mut self, mut to: &mut [u8], deadline: Instant) -> io::Result<()> {
        while !to.is_empty() {
            if self.called_off.load(Ordering::Relaxed) {
                return Err(io::Error::other("called off, since the daemon ends"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seconds = PATIENCE.as_secs();
                return Err(io::Error::other(format!("no answer within {seconds} s")));
            }
            self.stream.set_read_timeout(Some(left.min(LOOK)))?;
            match self.stream.read(to) {
                Ok(0) => return Err(io::Error::other("it closed the connection without an answer")),
                Ok(read) => to = &mut to[read..],
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn call<A: Message>(&mut self, method: &str, argument: &impl Message) -> Result<A, Called> {
        let response = self.transact(method, argument.encode())?;
        if response.status.code != 0 {
            let text = response.status.message.chars().filter(|c| !c.is_control()).take(300).collect();
            return Err(Called::Refused(text));
        }
        A::decode(&response.payload).map_err(|e| Called::Lost(io::Error::other(e)))
    }

    fn refuse(&self, method: &str, why: &Called) -> Refusal {
        Refusal::new(format!("agent {}: {method}: {why}", self.address))
    }

    fn ask<A: Message>(&mut self, method: &str, argument: &impl Message) -> Result<A, Refusal> {
        self.call(method, argument).map_err(|why| self.refuse(method, &why))
    }

    fn transact(&mut self, method: &str, payload: Vec<u8>) -> io::Result<Response> {
        let deadline = Instant::now() + PATIENCE;
        let request = Request {
            service: SERVICE.into(),
            method: method.into(),
            payload,
            timeout_nano: PATIENCE.as_nanos() as u64,
        };
        let (data, stream) = (request.encode(), self.next);
        self.next = self.next.wrapping_add(2);
        let mut frame = Vec::with_capacity(HEADER + data.len());
        frame.extend((data.len() as u32).to_be_bytes());
        frame.extend(stream.to_be_bytes());
        frame.extend([REQUEST, 0]);
        frame.extend(data);
        self.stream.set_write_timeout(Some(PATIENCE))?;
        self.stream.write_all(&frame)?;
        loop {
            let [a, b, c, d, e, f, g, h, kind, _] = self.read::<HEADER>(deadline)?;
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if length > FRAME {
                return Err(io::Error::other(format!(
                    "its frame of {length} bytes is longer than ttrpc allows"
                )));
            }
            let mut data = vec![0; length];
            self.fill(&mut data, deadline)?;
            if kind == RESPONSE && u32::from_be_bytes([e, f, g, h]) == stream {
                return Response::decode(&data).map_err(io::Error::other);
            }
        }
    }

    /// Has the agent find the NIC by its MAC address, name it, and give it its addresses and its MTU. The guest's
    /// kernel may take a while to find it itself. No path is given: what form agents want it in depends on their version.
    ///
    /// # Errors
    /// The agent says so, or nothing.
    pub(super) fn update_interface(&mut self, nic: &NicSpec) -> Result<(), Refusal> {
        let address = |network: &ipnet::IpNet| IpAddress {
            family: u64::from(network.addr().is_ipv6()),
            address: network.addr().to_string(),
            mask: network.prefix_len().to_string(),
        };
        let interface = Interface {
            device: nic.name.to_string(),
            name: nic.name.to_string(),
            addresses: nic.addresses.iter().map(address).collect(),
            mtu: nic.mtu.into(),
            mac: nic.mac.to_string(),
            ..Interface::default()
        };
        let argument = List(vec![interface]);
        let deadline = Instant::now() + PROBE;
        loop {
            match self.call::<Interface>("UpdateInterface", &argument) {
                Ok(_) => return Ok(()),
                Err(Called::Refused(_)) if Instant::now() < deadline => std::thread::sleep(PROBE_AGAIN),
                Err(error) => return Err(self.refuse("UpdateInterface", &error)),
            }
        }
    }

    /// The NICs inside the guest.
    ///
    /// # Errors
    /// The agent says so, or nothing.
    pub(crate) fn interfaces(&mut self) -> Result<Vec<Interface>, Refusal> {
        Ok(self.ask::<List<Interface>>("ListInterfaces", &List::<Interface>::default())?.0)
    }

    /// The routes inside the guest.
    ///
    /// # Errors
    /// The agent says so, or nothing.
    pub(super) fn routes(&mut self) -> Result<Vec<Route>, Refusal> {
        Ok(self.ask::<List<Route>>("ListRoutes", &List::<Route>::default())?.0)
    }

    /// Has the guest have these routes of ours, and keep those that are not: the agent's own call replaces all.
    /// `before` are ours as they were.
    ///
    /// # Errors
    /// The agent says so, or nothing.
    pub(super) fn set_routes(
        &mut self,
        before: &[ContainerRoute],
        wanted: &[ContainerRoute],
    ) -> Result<(), Refusal> {
        let present = self.routes()?;
        let all = routes::merge(&present, before, wanted);
        self.ask::<List<Route>>("UpdateRoutes", &List(vec![List(all)])).map(|_| ())
    }
}

fn vsock(cid: u32, port: u32) -> io::Result<UnixStream> {
    let fd: OwnedFd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &VsockAddr::new(cid, port))?;
    // A stream socket is one, whatever its family: std has no name for this one.
    Ok(UnixStream::from(fd))
}

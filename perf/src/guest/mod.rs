#![deny(unsafe_code)]
//! A guest of our own: a vhost-user frontend with a virtio-net driver behind it, in this process.
//!
//! It speaks to any vhost-user backend (shunt, Open vSwitch, testpmd) as QEMU and a guest's kernel would together,
//! with split or packed rings in a memfd. [`Guest`] is for functional tests: it sends and receives whole frames and complains
//! about whatever the device does wrong. [`Lane`] is the traffic generator's way, taken from a guest by
//! [`Guest::into_lanes`]. Specifications: virtio 1.3 sections 2.7 and 5.1, and QEMU's vhost-user document.

pub mod features;
mod flow;
mod lane;
mod memory;
mod pair;
mod ring;

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vhost_backend::net_header::NetHeader;

pub use flow::{End, Flow, FlowLane, Flows, Framing, INNER};
pub use lane::{Answer, Counts, Lane, TURN};
use memory::Memory;
use pair::Pair;

/// vhost-user's own feature bit: there are protocol features.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// What the guest is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Queue pairs.
    pub pairs: u16,
    /// Entries of each ring: a power of two up to 32,768.
    pub ring_size: u16,
    /// Bytes of each receive buffer, header included.
    pub buffer_len: usize,
    /// Descriptors chained to one receive buffer; more than 1 is how a guest without mergeable buffers takes large
    /// frames.
    pub receive_chain: u16,
    /// Feature bits that are accepted where the device offers them (see [`features`]).
    pub features: u64,
    /// Feature bits without which the guest refuses to start.
    pub required: u64,
    /// Most bytes of a sent frame in one descriptor.
    pub piece: usize,
    /// Whether a sent frame's virtio-net header has a descriptor of its own.
    pub split_header: bool,
    /// Whether the guest's memory is made of 2 MiB pages.
    pub hugepages: bool,
    /// How long the device may take for the whole handshake.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pairs: 1,
            ring_size: 256,
            buffer_len: 2048,
            receive_chain: 1,
            features: features::PLAIN,
            required: 0,
            piece: usize::MAX,
            split_header: false,
            hugepages: false,
            patience: Duration::from_secs(10),
        }
    }
}

/// A frame with its offload metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The virtio-net header.
    pub header: NetHeader,
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
}

/// The vhost-user connection; the device forgets the guest when it goes.
struct Session {
    frontend: Frontend,
    stream: UnixStream,
    /// Features that the device acknowledges one by one.
    acks: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Clones of the descriptor (the frontend's) do not keep the connection open.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// A running guest.
pub struct Guest {
    session: Session,
    pairs: Vec<Pair>,
    features: u64,
    memory: Arc<Memory>,
}

impl Guest {
    /// Connects to a listening switch and brings all queues up. Waits for the socket to appear.
    pub fn connect(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let path = path.as_ref();
        let deadline = Instant::now() + options.patience;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() >= deadline => {
                    return Err(e)
                        .with_context(|| format!("cannot connect to vhost-user socket {}", path.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        Self::on_stream(stream, options)
    }

    /// Listens at `path` and waits for the switch to connect (QEMU's `server=on`). The socket file goes afterwards.
    pub fn listen(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let path = path.as_ref();
        let listener =
            UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
        let accepted = Self::accept(&listener, options);
        std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
        accepted.with_context(|| format!("no switch came to {}", path.display()))
    }

    /// Waits for the switch on a socket that is already listening, and brings all queues up.
    pub fn accept(listener: &UnixListener, options: &Options) -> Result<Self> {
        let timeout = PollTimeout::try_from(options.patience).unwrap_or(PollTimeout::MAX);
        let ready = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout)?;
        ensure!(ready > 0, "nobody connected in {:?}", options.patience);
        let (stream, _) = listener.accept()?;
        Self::on_stream(stream, options)
    }

    /// Does the handshake on a connection.
    pub fn on_stream(stream: UnixStream, options: &Options) -> Result<Self> {
        ensure!(options.pairs >= 1 && options.pairs <= 128, "{} queue pairs", options.pairs);
        ensure!(
            options.ring_size.is_power_of_two() && options.ring_size >= 2 && options.ring_size <= 1 << 15,
            "ring size {} is not a power of two from 2 to 32768",
            options.ring_size
        );
        ensure!(
            options.buffer_len >= 64 && options.piece >= 1 && options.receive_chain >= 1,
            "buffers of {} bytes, pieces of {}, chains of {}",
            options.buffer_len,
            options.piece,
            options.receive_chain
        );
        // The frontend's reads have no time limit: a guard cuts the connection if the device keeps silent.
        let guard = stream.try_clone()?;
        let (done, cancelled) = mpsc::channel::<()>();
        let patience = options.patience;
        let watch = std::thread::spawn(move || {
            if cancelled.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = guard.shutdown(std::net::Shutdown::Both);
                return true;
            }
            false
        });
        let guest = Self::handshake(stream, options);
        drop(done);
        if watch.join().unwrap_or(false) {
            return guest.with_context(|| format!("the handshake took more than {patience:?}"));
        }
        guest
    }

    fn handshake(stream: UnixStream, options: &Options) -> Result<Self> {
        let rings = u64::from(options.pairs) * 2;
        let mut frontend = Frontend::from_stream(stream.try_clone()?, rings);
        frontend.set_owner().context("SET_OWNER")?;
        let offered = frontend.get_features().context("GET_FEATURES")?;
        let mut wanted = options.features;
        if options.pairs == 1 {
            wanted &= !features::MQ;
        }
        let negotiated = wanted & offered;
        ensure!(
            options.required & !negotiated == 0,
            "the device offers features {offered:#x}, which lack {:#x}",
            options.required & !offered
        );
        ensure!(offered & PROTOCOL_FEATURES != 0, "the device has no vhost-user protocol features");
        let protocol = frontend.get_protocol_features().context("GET_PROTOCOL_FEATURES")?
            & (VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK);
        frontend.set_protocol_features(protocol).context("SET_PROTOCOL_FEATURES")?;
        let acks = protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        if acks {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        frontend.set_features(negotiated | PROTOCOL_FEATURES).context("SET_FEATURES")?;

        let each = Pair::footprint(options);
        let len = each * usize::from(options.pairs);
        let memory = Arc::new(
            Memory::new(len, options.hugepages)
                .with_context(|| format!("cannot map {len} bytes of guest memory"))?,
        );
        share(&frontend, &memory)?;
        let mut pairs = Vec::new();
        for n in 0..options.pairs {
            let mut pair = Pair::new(memory.clone(), usize::from(n) * each, options, negotiated)?;
            pair.fill();
            pairs.push(pair);
        }
        let mut guest =
            Self { session: Session { frontend, stream, acks }, pairs, features: negotiated, memory };
        for n in 0..usize::from(options.pairs) {
            for index in [2 * n, 2 * n + 1] {
                guest.start_ring(index, guest.ring(index).first_base())?;
            }
        }
        for n in 0..options.pairs {
            guest.enable(n, true)?;
        }
        Ok(guest)
    }

    /// Shares all memory anew while the rings run, as a VMM does whose guest gets more: the device maps it again.
    pub fn remap(&self) -> Result<()> {
        share(&self.session.frontend, &self.memory)
    }

    fn ring(&self, index: usize) -> &ring::Ring {
        let pair = &self.pairs[index / 2];
        if index.is_multiple_of(2) { &pair.rx } else { &pair.tx }
    }

    fn start_ring(&mut self, index: usize, base: u16) -> Result<()> {
        let ring = self.ring(index);
        let frontend = &self.session.frontend;
        frontend
            .set_vring_num(index, ring.size())
            .with_context(|| format!("SET_VRING_NUM of ring {index}"))?;
        frontend.set_vring_base(index, base).with_context(|| format!("SET_VRING_BASE of ring {index}"))?;
        frontend
            .set_vring_addr(index, &ring.config())
            .with_context(|| format!("SET_VRING_ADDR of ring {index}"))?;
        frontend
            .set_vring_call(index, &ring.call)
            .with_context(|| format!("SET_VRING_CALL of ring {index}"))?;
        frontend
            .set_vring_kick(index, &ring.kick)
            .with_context(|| format!("SET_VRING_KICK of ring {index}"))?;
        // What was offered before the device had the descriptor deserves a kick, too.
        ring.kick.write(1)?;
        Ok(())
    }

    /// Enables or disables a queue pair, as a guest's `ethtool -L` does.
    pub fn enable(&mut self, pair: u16, on: bool) -> Result<()> {
        for index in [2 * usize::from(pair), 2 * usize::from(pair) + 1] {
            self.session
                .frontend
                .set_vring_enable(index, on)
                .with_context(|| format!("SET_VRING_ENABLE of ring {index}"))?;
        }
        Ok(())
    }

    /// Stops every ring and says where the device stood in each available ring (GET_VRING_BASE). After it the
    /// device may not touch the guest's memory.
    pub fn stop(&mut self) -> Result<Vec<u16>> {
        (0..2 * self.pairs.len())
            .map(|index| {
                let base = self.session.frontend.get_vring_base(index);
                Ok(base.with_context(|| format!("GET_VRING_BASE of ring {index}"))? as u16)
            })
            .collect()
    }

    /// Starts every ring again from what [`Guest::stop`] said.
    pub fn restart(&mut self, bases: &[u16]) -> Result<()> {
        ensure!(
            bases.len() == 2 * self.pairs.len(),
            "{} bases for {} rings",
            bases.len(),
            2 * self.pairs.len()
        );
        for (index, base) in bases.iter().enumerate() {
            self.start_ring(index, *base)?;
        }
        for pair in 0..self.pairs.len() {
            self.enable(pair as u16, true)?;
        }
        Ok(())
    }

    /// The virtio features in force.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether the device acknowledges requests one by one.
    pub fn has_acks(&self) -> bool {
        self.session.acks
    }

    /// Queue pairs.
    pub fn pairs(&self) -> u16 {
        self.pairs.len() as u16
    }

    /// A copy of all of the guest's memory, to compare with a later one.
    pub fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.memory.len()];
        self.memory.read(0, &mut bytes);
        bytes
    }

    /// Sends plain frames on the first queue pair; says how many had room.
    pub fn send(&mut self, frames: &[&[u8]]) -> Result<usize> {
        let mut sent = 0;
        for frame in frames {
            if !self.pairs[0].send(&NetHeader::default(), frame)? {
                break;
            }
            sent += 1;
        }
        self.pairs[0].flush();
        Ok(sent)
    }

    /// Sends a frame with its offload metadata on queue pair `pair`. False if there is no room now.
    pub fn send_on(&mut self, pair: u16, header: &NetHeader, frame: &[u8]) -> Result<bool> {
        let pair = &mut self.pairs[usize::from(pair)];
        let sent = pair.send(header, frame)?;
        pair.flush();
        Ok(sent)
    }

    /// Ring entries of frames sent on queue pair `pair` that the device has not completed.
    pub fn unfinished(&mut self, pair: u16) -> Result<usize> {
        self.pairs[usize::from(pair)].unfinished()
    }

    /// What has arrived on queue pair `pair`, with offload metadata.
    pub fn receive_on(&mut self, pair: u16) -> Result<Vec<Frame>> {
        let pair = &mut self.pairs[usize::from(pair)];
        let mut frames = Vec::new();
        while let Some(frame) = pair.receive()? {
            frames.push(frame);
        }
        pair.refill();
        Ok(frames)
    }

    /// What has arrived on all queue pairs.
    pub fn receive_frames(&mut self) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        for pair in 0..self.pairs() {
            frames.extend(self.receive_on(pair)?);
        }
        Ok(frames)
    }

    /// The bytes of what has arrived on all queue pairs.
    pub fn receive(&mut self) -> Result<Vec<Vec<u8>>> {
        Ok(self.receive_frames()?.into_iter().map(|f| f.bytes).collect())
    }

    /// Waits until `count` frames have arrived, sleeping on the device's interrupts; gives what came by the deadline
    /// if there were fewer. An interrupt that the device owes and does not send shows as missing frames.
    pub fn receive_until(&mut self, count: usize, within: Duration) -> Result<Vec<Frame>> {
        let deadline = Instant::now() + within;
        let mut frames = self.receive_frames()?;
        while frames.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let mut quiet = true;
            for pair in &mut self.pairs {
                quiet &= pair.rx.enable_interrupts();
            }
            if quiet {
                let mut fds: Vec<_> =
                    self.pairs.iter().map(|pair| PollFd::new(pair.rx.call_fd(), PollFlags::POLLIN)).collect();
                let timeout =
                    PollTimeout::try_from(left.max(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX);
                poll(&mut fds, timeout).context("waiting for an interrupt")?;
            }
            let woken = Instant::now() < deadline || !quiet;
            for pair in &mut self.pairs {
                pair.rx.disable_interrupts();
            }
            if !woken {
                break;
            }
            frames.extend(self.receive_frames()?);
        }
        Ok(frames)
    }

    /// Hands the queue pairs to the traffic generator. All that is returned must live until the traffic is over:
    /// the connection ends with the first, the rings with the second. `frame(n)` is what queue pair `n` sends.
    pub fn into_lanes(
        self,
        answer: Answer,
        header: &NetHeader,
        mut frame: impl FnMut(u16) -> Vec<u8>,
    ) -> Result<(Connection, Vec<Lane>)> {
        let lanes = self
            .pairs
            .into_iter()
            .enumerate()
            .map(|(n, pair)| Lane::new(pair, answer, header, &frame(n as u16)))
            .collect::<Result<_>>()?;
        Ok((Connection { _session: self.session }, lanes))
    }
}

impl Guest {
    /// Hands the first queue pair to the generator of flows; see [`Guest::into_lanes`].
    pub fn into_flow_lane(mut self, end: End, framing: &Framing) -> Result<(Connection, FlowLane)> {
        ensure!(self.pairs.len() == 1, "{} queue pairs for flows", self.pairs.len());
        let lane = FlowLane::new(self.pairs.remove(0), end, framing)?;
        Ok((Connection { _session: self.session }, lane))
    }
}

/// SET_MEM_TABLE with all of a guest's memory.
fn share(frontend: &Frontend, memory: &Memory) -> Result<()> {
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: memory.guest_base(),
        memory_size: memory.len() as u64,
        userspace_addr: memory.user_base(),
        mmap_offset: 0,
        mmap_handle: memory.fd(),
    };
    frontend.set_mem_table(&[region]).context("SET_MEM_TABLE").map(drop)
}

/// Keeps a guest's connection to the switch open.
pub struct Connection {
    _session: Session,
}

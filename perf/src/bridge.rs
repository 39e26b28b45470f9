#![forbid(unsafe_code)]
//! A bridge of shunt's own parts with guests of our own, all in this process and without a worker thread: what the
//! instruction-count gates and tests drive turn by turn.
//!
//! The parts are the real ones (vhost-user devices on sockets, ports, forwarding database, pipeline); only the loop
//! around them is here instead of in `shunt_switch::worker`, and does the same for one queue.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shunt_switch::l2::fdb::{Fdb, Key};
use shunt_switch::members::Verdict;
use shunt_switch::pipeline::{Ingress, classify};
use shunt_switch::port::{Attachment, Port, Scratch};
use shunt_tests::poll_for;
use tempfile::TempDir;
use vhost_backend::device::{Device, DeviceConfig, Role, State};
use vhost_backend::frame::Burst;
use vhost_backend::net_header::NetHeader;

use crate::frames::mac;
use crate::guest::{Guest, Options};

/// The tables' clock.
const NOW: u32 = 1;

/// Ports 0, 1, ... with a guest on each; guest n has the address [`mac`]`(n + 1)`.
pub struct Bridge {
    ports: Vec<Port>,
    members: Vec<u16>,
    /// The forwarding database, in which every guest is known.
    pub fdb: Fdb,
    /// The guests.
    pub guests: Vec<Guest>,
    burst: Burst,
    verdict: Verdict,
    scratch: Scratch,
    devices: Vec<Arc<Device>>,
    _dir: TempDir,
}

impl Bridge {
    /// Makes ports and guests and waits until every ring runs.
    pub fn new(guests: usize, options: &Options) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("shunt-bridge-").tempdir()?;
        let mut bridge = Self {
            ports: Vec::new(),
            members: Vec::new(),
            fdb: Fdb::new(1024, 300, guests),
            guests: Vec::new(),
            burst: Burst::new(),
            verdict: Verdict::default(),
            scratch: Scratch::default(),
            devices: Vec::new(),
            _dir: dir,
        };
        for n in 0..guests {
            let path = bridge._dir.path().join(format!("v{n}"));
            let config = DeviceConfig {
                name: format!("v{n}"),
                path: path.clone(),
                role: Role::Server,
                queue_pairs: options.pairs,
            };
            let device = Device::start(config, Arc::new(|| ()))?;
            bridge.guests.push(Guest::connect(&path, options)?);
            poll_for(Duration::from_secs(10), || (device.state().0 == State::Up).then_some(()))
                .with_context(|| format!("port {n} does not come up: {:?}", device.state()))?;
            let attachment = Attachment::Vhost(device.clone());
            bridge.ports.push(Port::new(n as u16, attachment, 9600, 1));
            bridge.members.push(n as u16);
            bridge.devices.push(device);
            bridge.fdb.learn(Key::new(mac(n as u8 + 1), 0), n as u16, NOW);
        }
        Ok(bridge)
    }

    /// Guest `from` sends `count` frames like this one. They wait in its ring.
    pub fn offer(&mut self, from: usize, count: usize, header: &NetHeader, frame: &[u8]) -> Result<()> {
        for n in 0..count {
            let sent = self.guests[from].send_on(0, header, frame)?;
            ensure!(sent, "guest {from} has room for {n} frames only");
        }
        Ok(())
    }

    /// What a worker does for queue 0 of port `port` in one turn: fetch, classify, place, give back.
    #[inline(never)]
    pub fn turn(&mut self, port: usize) -> usize {
        let from =
            Ingress { port: port as u16, fdb: &self.fdb, members: &self.members, guard: None, limit: None };
        let (ports, verdict, scratch) = (&self.ports, &mut self.verdict, &mut self.scratch);
        let finisher = &mut scratch.finisher;
        let counted = ports[port].rx_counters(0);
        let received = ports[port].receive(0, 0, &mut scratch.buffer, &mut self.burst, |burst| {
            classify(burst, &from, NOW, counted, verdict);
            while let Some((to, frames)) = verdict.take() {
                ports[usize::from(to)].send(burst, frames, 0, 0, finisher);
            }
        });
        received.unwrap_or(0)
    }

    /// The ring alone: fetches what waits at port `port`, does nothing with it, gives the buffers back.
    #[inline(never)]
    pub fn fetch(&mut self, port: usize) -> usize {
        self.devices[port].from_guest(0).serve(&mut self.burst, |_| ()).frames
    }

    /// The ring alone: copies `count` frames like this one to port `port`'s guest; says how many arrived.
    #[inline(never)]
    pub fn deliver(&mut self, port: usize, count: usize, frame: &[u8]) -> u32 {
        let (head, rest) = frame.split_at(frame.len().min(vhost_backend::frame::SNAPSHOT));
        let ring = self.devices[port].to_guest(0);
        self.burst.with_slices(
            |filler| {
                for _ in 0..count {
                    filler.push(NetHeader::default(), head, rest);
                }
            },
            |burst| ring.deliver(burst, burst.all()).sent.count_ones(),
        )
    }

    /// What port `port` counted: packets received from its guest and sent to it.
    pub fn counted(&self, port: usize) -> (u64, u64) {
        (self.ports[port].received().packets, self.ports[port].transmitted().packets)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        for device in &self.devices {
            device.stop();
        }
    }
}

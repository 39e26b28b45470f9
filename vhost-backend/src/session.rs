//! One vhost-user connection: the protocol's state, from the first message to the disconnect.
//!
//! Follows the vhost-user specification (QEMU's `docs/interop/vhost-user.rst`), sections "Ring states" and
//! "Front-end message types". The `vhost` crate reads, checks and answers the messages; this decides what they do.
//!
//! A ring runs from the moment that its size, addresses and kick descriptor (or the word that there is none), the
//! features and the memory are known, until GET_VRING_BASE, RESET_DEVICE or the end. Being enabled is apart from
//! that. Whatever else changes while it runs is done between two bursts, under the ring's lock, so that a message is
//! in force when it has been answered. An error ends the connection: the frontend does not know where we stand.

#![forbid(unsafe_code)]

mod handover;

use handover::Awaited;
pub(crate) use handover::{Handler, handler};

use std::{fs::File, io, sync::Arc};

use tracing::{debug, warn};
use vhost::{
    VhostUserMemoryRegionBase,
    vhost_user::{
        Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
        message::{
            VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
            VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
            VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
        },
    },
};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    dirty::{DirtyLog, Logging},
    eventfd, features,
    inflight::{Inflight, Shape},
    memory::{GuestMap, MAX_SLOTS, MemoryError},
    ring::{Ring, RingFault, RingSetup},
    shared::{Shared, ring_name},
};

/// Longest ring: virtio 1.3, section 2.7.
const MAX_RING: u32 = 32768;

/// How the guest says that there is something in a ring.
#[derive(Default)]
enum Kick {
    /// Not known yet: the ring does not run.
    #[default]
    Unknown,
    /// It does not; the ring is polled.
    Never,
    By(Arc<EventFd>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Addresses {
    desc: u64,
    avail: u64,
    used: u64,
}

/// What the frontend said about a ring.
#[derive(Default)]
struct Vring {
    size: u16,
    addresses: Option<Addresses>,
    /// Where to begin; while the ring runs, where it began.
    base: Option<u32>,
    kick: Kick,
    call: Option<EventFd>,
    err: Option<EventFd>,
    /// The guest address at which changes of the used ring are logged, if they are.
    log: Option<u64>,
    running: bool,
}

/// The state of one connection. Dropping it does not stop the rings: [`Session::end`] does.
pub(crate) struct Session {
    port: String,
    shared: Arc<Shared>,
    map: Arc<GuestMap>,
    features: Option<u64>,
    protocol_features: u64,
    vrings: Vec<Vring>,
    /// What the frontend keeps for us in case that we die.
    inflight: Option<Arc<Inflight>>,
    /// Where dirty pages are logged, once the frontend has said so.
    log: Option<Arc<DirtyLog>>,
    /// Written to after something was logged.
    log_call: Option<Arc<EventFd>>,
    failure: Option<String>,
    /// Messages that only tell the `vhost` crate what was agreed on elsewhere change nothing: see [`handover`].
    repeating: bool,
    /// What a session that was handed over waits with until it goes on.
    awaited: Option<Awaited>,
}

impl Session {
    pub(crate) fn new(port: &str, shared: Arc<Shared>) -> Self {
        let vrings = shared.rings().iter().map(|_| Vring::default()).collect();
        Self {
            port: port.to_owned(),
            shared,
            map: Arc::new(GuestMap::empty()),
            features: None,
            protocol_features: 0,
            vrings,
            inflight: None,
            log: None,
            log_call: None,
            failure: None,
            repeating: false,
            awaited: None,
        }
    }

    /// Whether SET_FEATURES has come with `VHOST_USER_F_PROTOCOL_FEATURES`.
    pub(crate) fn protocol_features_negotiated(&self) -> bool {
        self.features.is_some_and(|word| word & features::PROTOCOL_FEATURES != 0)
    }

    /// Whether the frontend may ask for answers to messages that have none of their own.
    pub(crate) fn replies(&self) -> bool {
        self.protocol_features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// Why the last message was refused, if one was.
    pub(crate) fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    /// Stops everything and lets go of the guest's memory.
    pub(crate) fn end(&mut self) {
        for cell in self.shared.rings() {
            cell.set_enabled(false);
            drop(cell.stop());
        }
        self.vrings.iter_mut().for_each(|vring| *vring = Vring::default());
        self.features = None;
        (self.inflight, self.log, self.log_call) = (None, None, None);
        self.shared.set_features(0);
        let old = self.shared.set_map(None);
        self.map = Arc::new(GuestMap::empty());
        self.shared.publish();
        drop(old);
    }

    /// Remembers why a message is refused, for the operator, and makes the error for the `vhost` crate.
    fn refuse(&mut self, why: impl Into<String>) -> Error {
        let why = why.into();
        self.failure = Some(why.clone());
        Error::ReqHandlerError(io::Error::other(why))
    }

    fn refuse_ring(&mut self, index: usize, why: impl std::fmt::Display) -> Error {
        self.refuse(format!("{}: {why}", ring_name(index)))
    }

    fn index(&mut self, index: u32) -> Result<usize> {
        let rings = self.vrings.len();
        match usize::try_from(index) {
            Ok(index) if index < rings => Ok(index),
            _ => {
                Err(self.refuse(format!("there is no ring {index}: this port has {rings}, numbered from 0")))
            }
        }
    }

    /// Whether the driver has chosen packed rings.
    fn packed(&self) -> bool {
        let awaited = self.awaited.as_ref().map(|awaited| awaited.features);
        self.features.or(awaited).is_some_and(Ring::is_packed)
    }

    fn shape(&self, message: &VhostUserInflight) -> Shape {
        Shape { queues: message.num_queues, size: message.queue_size, packed: self.packed() }
    }

    /// Starts a ring if it does not run and nothing is missing.
    fn start(&mut self, index: usize) -> std::result::Result<(), RingFault> {
        let (Some(features), Some(vring)) = (self.features, self.vrings.get_mut(index)) else {
            return Ok(());
        };
        let kick = match &vring.kick {
            Kick::Unknown => return Ok(()),
            Kick::Never => None,
            Kick::By(kick) => Some(kick.clone()),
        };
        let Some(at) = vring.addresses else { return Ok(()) };
        if vring.running || vring.size == 0 || self.map.regions() == 0 {
            return Ok(());
        }
        let setup = RingSetup {
            size: vring.size,
            desc: at.desc,
            avail: at.avail,
            used: at.used,
            base: vring.base,
            features,
            map: self.map.clone(),
            kick,
            call: again(&vring.call),
            err: again(&vring.err),
        };
        let mut ring = Ring::new(setup)?;
        let record = self
            .inflight
            .as_ref()
            .and_then(|all| all.region(index, self.vrings[index].size, Ring::is_packed(features)));
        if let Some(record) = record {
            ring.keep_record(record, features)?;
        }
        let vring = &mut self.vrings[index];
        vring.running = true;
        debug!(port = self.port, "{} starts at {:#x}", ring_name(index), ring.base());
        let ring = ring.with_logging(self.logging(index));
        self.shared.rings()[index].start(ring);
        // A device that died here may have given buffers back and not said so.
        if let Some(call) = &self.vrings[index].call {
            eventfd::signal(call);
        }
        Ok(())
    }

    /// What a ring has to log. Without a log there is nothing to do it in: QEMU starts rings in this state when it
    /// starts a device during a migration, and enables them when the log is there.
    fn logging(&self, index: usize) -> Option<Logging> {
        let log = self.log.clone()?;
        let data = self.features.is_some_and(|word| word & features::LOG_ALL != 0);
        let used = self.vrings[index].log;
        (data || used.is_some()).then(|| Logging { log, data, used, call: self.log_call.clone() })
    }

    /// Has a running ring log what it is to log from now on.
    fn update_logging(&mut self, index: usize) {
        if self.log.is_none() {
            // Nor was there ever one: no ring is touched.
            return;
        }
        let logging = self.logging(index);
        self.shared.rings()[index].set_logging(logging);
    }

    /// Starts a ring after a message about it; anything wrong with it is the message's fault.
    fn start_or_refuse(&mut self, index: usize) -> Result<()> {
        let started = self.start(index);
        self.shared.publish();
        started.map_err(|fault| self.refuse_ring(index, fault))
    }

    /// Stops a ring and remembers where. No worker touches it any more when this returns.
    fn stop(&mut self, index: usize) {
        let vring = &mut self.vrings[index];
        if let Some(ring) = self.shared.rings()[index].stop() {
            ring.end_record();
            vring.base = Some(ring.base());
            debug!(port = self.port, "{} stops at {:#x}", ring_name(index), ring.base());
        }
        vring.running = false;
    }

    /// Gives a new map to all rings. The old one dies here, on this thread, when no ring has it any more.
    fn use_map(&mut self, map: std::result::Result<GuestMap, MemoryError>) -> Result<()> {
        let map = Arc::new(map.map_err(|e| self.refuse(e.to_string()))?);
        for index in 0..self.vrings.len() {
            let moved = self.shared.rings()[index].control(|ring| ring.set_map(map.clone()));
            if let Some(Err(fault)) = moved {
                // A frontend that replaces a region takes it away first: wait for the ring's memory to come back.
                warn!(port = self.port, "{} stops with the memory it lay in: {fault}", ring_name(index));
                self.stop(index);
            }
        }
        self.map = map.clone();
        let old = self.shared.set_map(Some(map));
        for index in 0..self.vrings.len() {
            if let Err(fault) = self.start(index) {
                debug!(port = self.port, "{} still waits: {fault}", ring_name(index));
            }
        }
        self.shared.publish();
        drop(old);
        Ok(())
    }

    /// SET_VRING_ENABLE. QEMU sends it with multiqueue also before SET_FEATURES, so nothing is asked of those.
    pub(crate) fn enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let index = self.index(index)?;
        self.shared.rings()[index].set_enabled(enable);
        self.shared.publish();
        Ok(())
    }

    /// SET_LOG_FD: an eventfd for a frontend that wants to be woken when something is logged.
    pub(crate) fn set_log_fd(&mut self, file: Option<File>) -> Result<()> {
        self.log_call = file
            .map(eventfd::from_frontend)
            .transpose()
            .map_err(|why| self.refuse(format!("descriptor of the dirty log: {why}")))?
            .map(Arc::new);
        for index in 0..self.vrings.len() {
            self.update_logging(index);
        }
        Ok(())
    }

    fn event(&mut self, index: usize, what: &str, file: Option<File>) -> Result<Option<EventFd>> {
        file.map(eventfd::from_frontend)
            .transpose()
            .map_err(|why| self.refuse_ring(index, format!("{what} descriptor: {why}")))
    }
}

/// A second descriptor of the same event, for a ring that may be started more than once.
fn again(event: &Option<EventFd>) -> Option<EventFd> {
    let event = event.as_ref()?;
    event
        .try_clone()
        .inspect_err(|e| warn!("a guest will miss its interrupts, no descriptor for them: {e}"))
        .ok()
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    /// Deprecated; the specification recommends to disable all rings or to do nothing.
    fn reset_owner(&mut self) -> Result<()> {
        self.shared.rings().iter().for_each(|cell| cell.set_enabled(false));
        self.shared.publish();
        Ok(())
    }

    /// Back to how a new device is, but for memory, protocol features and the descriptors that QEMU sends only once.
    fn reset_device(&mut self) -> Result<()> {
        for index in 0..self.vrings.len() {
            self.shared.rings()[index].set_enabled(false);
            self.stop(index);
            let vring = &mut self.vrings[index];
            *vring = Vring { call: vring.call.take(), err: vring.err.take(), ..Vring::default() };
        }
        self.features = None;
        self.shared.set_features(0);
        self.shared.publish();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(features::offered())
    }

    fn set_features(&mut self, word: u64) -> Result<()> {
        if self.repeating {
            return Ok(());
        }
        let strange = word & !features::offered();
        if strange != 0 {
            let names = features::names(strange).join(", ");
            return Err(self.refuse(format!("the guest accepted features that were not offered: {names}")));
        }
        let before = self.features.replace(word);
        self.shared.set_features(word);
        if word & features::PROTOCOL_FEATURES == 0 {
            self.shared.rings().iter().for_each(|cell| cell.set_enabled(true));
        }
        // Logging is switched on running rings; whatever else changes, they start anew.
        let own = features::PROTOCOL_FEATURES | features::LOG_ALL;
        let same_for_rings = before.is_some_and(|before| (before ^ word) & !own == 0);
        for index in 0..self.vrings.len() {
            if same_for_rings {
                if before.is_some_and(|before| (before ^ word) & features::LOG_ALL != 0) {
                    self.update_logging(index);
                }
            } else {
                self.stop(index);
            }
            self.start(index).map_err(|fault| self.refuse_ring(index, fault))?;
        }
        self.shared.publish();
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let map = regions.iter().zip(&files).try_fold(GuestMap::empty(), |map, (region, file)| {
            map.with_region(
                region.guest_phys_addr,
                region.memory_size,
                region.user_addr,
                region.mmap_offset,
                file,
            )
        });
        self.use_map(map).map(|()| None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_SLOTS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let map = self.map.with_region(
            region.guest_phys_addr,
            region.memory_size,
            region.user_addr,
            region.mmap_offset,
            &file,
        );
        self.use_map(map).map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let map = self.map.without_region(region.guest_phys_addr, region.memory_size, region.user_addr);
        self.use_map(map)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let index = self.index(index)?;
        if num == 0 || num > MAX_RING || !(self.packed() || num.is_power_of_two()) {
            let kind = if self.packed() { "number" } else { "power of two" };
            let why = format!("size {num} is not a {kind} from 1 to {MAX_RING}");
            return Err(self.refuse_ring(index, why));
        }
        // MAX_RING fits.
        let size = num as u16;
        if self.vrings[index].size != size {
            self.stop(index);
            self.vrings[index].size = size;
        }
        self.start_or_refuse(index)
    }

    /// Repeated on a running ring, with the same addresses, to switch the logging of its used ring.
    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let index = self.index(index)?;
        let at = Addresses { desc: descriptor, avail: available, used };
        let size = self.vrings[index].size;
        if let (Some(features), true) = (self.features, self.map.regions() > 0 && size > 0) {
            let parts = Ring::parts(features, size);
            for (address, len) in [at.desc, at.avail, at.used].into_iter().zip(parts) {
                if self.map.user_range(address, len).is_none() {
                    let why = format!(
                        "address {address:#x} and {len} bytes from there are not all in guest memory"
                    );
                    return Err(self.refuse_ring(index, why));
                }
            }
        }
        if self.vrings[index].addresses != Some(at) {
            self.stop(index);
            self.vrings[index].addresses = Some(at);
        }
        let log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        if self.vrings[index].log != log {
            self.vrings[index].log = log;
            self.update_logging(index);
        }
        self.start_or_refuse(index)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let index = self.index(index)?;
        if !self.packed() && base > u32::from(u16::MAX) {
            return Err(self.refuse_ring(index, format!("base {base} does not fit a split ring's 16 bits")));
        }
        self.stop(index);
        self.vrings[index].base = Some(base);
        self.start_or_refuse(index)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let at = self.index(index)?;
        self.stop(at);
        let vring = &mut self.vrings[at];
        // Both come anew before the ring runs again.
        vring.kick = Kick::Unknown;
        vring.call = None;
        let base = vring.base.unwrap_or(0);
        self.shared.publish();
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let index = self.index(index.into())?;
        let kick = self.event(index, "kick", file)?.map(Arc::new);
        self.shared.rings()[index].control(|ring| ring.set_kick(kick.clone()));
        self.vrings[index].kick = kick.map_or(Kick::Never, Kick::By);
        self.start_or_refuse(index)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let index = self.index(index.into())?;
        let call = self.event(index, "call", file)?;
        let running = self.shared.rings()[index].control(|ring| ring.set_call(again(&call))).is_some();
        // An interrupt may have gone to the old descriptor, or nowhere: one too many does no harm.
        if let Some(call) = call.as_ref().filter(|_| running) {
            eventfd::signal(call);
        }
        self.vrings[index].call = call;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let index = self.index(index.into())?;
        let err = self.event(index, "error", file)?;
        self.shared.rings()[index].control(|ring| ring.set_err(again(&err)));
        self.vrings[index].err = err;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(features::offered_protocol())
    }

    fn set_protocol_features(&mut self, word: u64) -> Result<()> {
        if self.repeating {
            return Ok(());
        }
        let strange = word & !features::offered_protocol().bits();
        if strange != 0 {
            return Err(self.refuse(format!(
                "the frontend accepted protocol features that were not offered: {strange:#x}"
            )));
        }
        self.protocol_features = word;
        Ok(())
    }

    /// Queue pairs: this is how frontends read the number for a network device.
    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64 / 2)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.enable(index, enable)
    }

    /// A log that is too small for the guest is found out by the ring that writes beyond it. When this has been
    /// answered no ring uses the one before it any more: the frontend then reads that one for the last time.
    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let log = DirtyLog::new(log.mmap_size, log.mmap_offset, &file).map_err(|why| self.refuse(why))?;
        let old = self.log.replace(Arc::new(log));
        for index in 0..self.vrings.len() {
            self.update_logging(index);
        }
        self.shared.publish();
        drop(old);
        Ok(())
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let shape = self.shape(wanted);
        let file = Inflight::create(shape).map_err(|why| self.refuse(why))?;
        Ok((VhostUserInflight::new(shape.bytes(), 0, shape.queues, shape.size), file))
    }

    /// Rings that start from now on keep their records here.
    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let shape = self.shape(inflight);
        let map = Inflight::map(shape, inflight.mmap_size, inflight.mmap_offset, &file);
        self.inflight = Some(Arc::new(map.map_err(|why| self.refuse(why))?));
        Ok(())
    }

    // What follows belongs to protocol features that are not offered, or to other kinds of devices.

    fn get_config(&mut self, _offset: u32, _size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(self.refuse("the configuration space of a network device is the frontend's"))
    }

    fn set_config(&mut self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Err(self.refuse("the configuration space of a network device is the frontend's"))
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(self.refuse("this is a network device and not a GPU"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(self.refuse("shared objects are not supported"))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(self.refuse("transfer of the device's state is not supported"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(self.refuse("transfer of the device's state is not supported"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(self.refuse("shared memory regions are not supported"))
    }
}

#[cfg(test)]
mod tests;

//! A connection that goes on in another process: its state as plain values, and back.
//!
//! What is taken in goes through the same methods as a frontend's messages, with the same checks, in an order that
//! starts no ring: the features come last, in [`Session::go_on`]. The `vhost` crate keeps a record of its own of what
//! was negotiated; it is told by the messages that it would have heard ([`handler`]).

#![forbid(unsafe_code)]

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, PoisonError},
};

use tracing::debug;
use vhost::vhost_user::{
    BackendReqHandler, VhostUserBackendReqHandlerMut,
    message::{FrontendReq, VhostUserVringAddrFlags},
};

use super::{Kick, Session, features};
use crate::{
    dirty::DirtyLog,
    eventfd,
    handover::{
        Descriptors, HandoverError, InflightState, KickState, LogState, RegionState, RingState, SessionState,
    },
    inflight::{Inflight, Shape},
    memory::GuestMap,
    ring::{Ring, RingFault},
    shared::{Shared, ring_name},
};

/// What a session that was handed over waits with.
pub(super) struct Awaited {
    /// Features that the driver accepted.
    pub(super) features: u64,
    /// Of each ring, whether it ran, and what it was broken by.
    rings: Vec<(bool, Option<RingFault>)>,
}

/// What a session is served by.
pub(crate) type Handler = BackendReqHandler<Mutex<Session>>;

fn system(what: &'static str) -> impl Fn(io::Error) -> HandoverError {
    move |source| HandoverError::System { what, source }
}

impl Session {
    /// Describes the session of a connection. Rings are where they stand when nobody uses them meanwhile.
    pub(crate) fn export(
        &self,
        connection: impl AsFd,
        descriptors: &mut Descriptors,
    ) -> io::Result<SessionState> {
        let connection = descriptors.add(connection)?;
        let mut regions = Vec::with_capacity(self.map.regions());
        for (gpa, size, user_addr, offset, file) in self.map.parts() {
            regions.push(RegionState { gpa, size, user_addr, offset, file: descriptors.add(file)? });
        }
        let mut rings = Vec::with_capacity(self.vrings.len());
        for (vring, cell) in self.vrings.iter().zip(self.shared.rings()) {
            let mut event = |event: Option<&vmm_sys_util::eventfd::EventFd>| {
                event.map(|event| descriptors.add(eventfd::borrow(event))).transpose()
            };
            rings.push(RingState {
                size: vring.size,
                addresses: vring.addresses.map(|at| [at.desc, at.avail, at.used]),
                base: cell.position().or(vring.base),
                kick: match &vring.kick {
                    Kick::Unknown => KickState::Unknown,
                    Kick::Never => KickState::Never,
                    Kick::By(kick) => event(Some(kick))?.map_or(KickState::Never, KickState::By),
                },
                call: event(vring.call.as_ref())?,
                err: event(vring.err.as_ref())?,
                enabled: cell.is_enabled(),
                running: vring.running,
                fault: cell.fault().map(RingFault::code),
                log: vring.log,
            });
        }
        let inflight = |inflight: &Arc<Inflight>| {
            let (Shape { queues, size, packed }, offset, file) = inflight.parts();
            io::Result::Ok(InflightState { queues, size, packed, offset, file: descriptors.add(file)? })
        };
        let inflight = self.inflight.as_ref().map(inflight).transpose()?;
        let log = |log: &Arc<DirtyLog>| {
            let (bytes, offset, file) = log.parts();
            io::Result::Ok(LogState { bytes, offset, file: descriptors.add(file)? })
        };
        let log = self.log.as_ref().map(log).transpose()?;
        let log_call = self.log_call.as_deref().map(|call| descriptors.add(eventfd::borrow(call)));
        Ok(SessionState {
            connection,
            features: self.features,
            protocol_features: self.protocol_features,
            regions,
            rings,
            inflight,
            log,
            log_call: log_call.transpose()?,
        })
    }

    /// A session as it was described. No ring runs yet.
    pub(crate) fn resume(
        port: &str,
        shared: Arc<Shared>,
        state: &SessionState,
        descriptors: &mut Descriptors,
    ) -> Result<Self, HandoverError> {
        let mut session = Self::new(port, shared);
        if state.rings.len() != session.vrings.len() {
            return Err(HandoverError::Invalid(format!(
                "{} rings were handed over, the port has {}",
                state.rings.len(),
                session.vrings.len()
            )));
        }
        let rings = state.rings.iter().map(|ring| (ring.running, ring.fault.and_then(RingFault::from_code)));
        session.awaited = state.features.map(|features| Awaited { features, rings: rings.collect() });
        let mut map = GuestMap::empty();
        for region in &state.regions {
            let file = File::from(descriptors.take(region.file)?);
            map = map
                .with_region(region.gpa, region.size, region.user_addr, region.offset, &file)
                .map_err(|error| HandoverError::Invalid(error.to_string()))?;
        }
        if map.regions() > 0 {
            let taken = session.use_map(Ok(map));
            session.accepted(taken)?;
        }
        let taken = session.set_protocol_features(state.protocol_features);
        session.accepted(taken)?;
        if let Some(at) = &state.inflight {
            let file = File::from(descriptors.take(at.file)?);
            let shape = Shape { queues: at.queues, size: at.size, packed: at.packed };
            let record = Inflight::map(shape, shape.bytes(), at.offset, &file);
            session.inflight = Some(Arc::new(record.map_err(HandoverError::Invalid)?));
        }
        if let Some(at) = &state.log {
            let file = File::from(descriptors.take(at.file)?);
            let log = DirtyLog::new(at.bytes, at.offset, &file).map_err(HandoverError::Invalid)?;
            session.log = Some(Arc::new(log));
        }
        if let Some(place) = state.log_call {
            let taken = session.set_log_fd(Some(File::from(descriptors.take(place)?)));
            session.accepted(taken)?;
        }
        for (index, ring) in (0u32..).zip(&state.rings) {
            let taken = session.take_ring(index, ring, descriptors)?;
            session.accepted(taken)?;
            session.make_ready(ring, state.features);
        }
        if let Some(word) = state.features.filter(|word| word & !features::offered() != 0) {
            let names = features::names(word & !features::offered()).join(", ");
            return Err(HandoverError::Invalid(format!("features that are not offered: {names}")));
        }
        Ok(session)
    }

    /// Sees to it that a ring that ran is mapped already when it starts here: everybody waits then.
    fn make_ready(&self, ring: &RingState, features: Option<u64>) {
        let (Some([desc, avail, used]), true) = (ring.addresses, ring.running) else { return };
        let size = u64::from(ring.size);
        let (driver, device) =
            if features.is_some_and(Ring::is_packed) { (4, 4) } else { (6 + 2 * size, 6 + 8 * size) };
        for (at, len) in [(desc, 16 * size), (avail, driver), (used, device)] {
            self.map.make_ready(at, len);
        }
    }

    fn take_ring(
        &mut self,
        index: u32,
        ring: &RingState,
        descriptors: &mut Descriptors,
    ) -> Result<vhost::vhost_user::Result<()>, HandoverError> {
        let mut file = |place: Option<u32>| place.map(|place| descriptors.take(place)).transpose();
        let (call, err) = (file(ring.call)?, file(ring.err)?);
        let kick = match ring.kick {
            KickState::Unknown => None,
            KickState::Never => Some(None),
            KickState::By(place) => Some(file(Some(place))?),
        };
        let narrow = u8::try_from(index)
            .map_err(|_| HandoverError::Invalid(format!("there is no {}", ring_name(index as usize))))?;
        let as_file = |descriptor: Option<OwnedFd>| descriptor.map(File::from);
        Ok((|| {
            if ring.size != 0 {
                self.set_vring_num(index, ring.size.into())?;
            }
            if let Some([desc, avail, used]) = ring.addresses {
                let flags = match ring.log {
                    Some(_) => VhostUserVringAddrFlags::VHOST_VRING_F_LOG,
                    None => VhostUserVringAddrFlags::empty(),
                };
                self.set_vring_addr(index, flags, desc, used, avail, ring.log.unwrap_or(0))?;
            }
            if let Some(base) = ring.base {
                self.set_vring_base(index, base)?;
            }
            self.set_vring_call(narrow, as_file(call))?;
            self.set_vring_err(narrow, as_file(err))?;
            if let Some(kick) = kick {
                self.set_vring_kick(narrow, as_file(kick))?;
            }
            self.enable(index, ring.enabled)
        })())
    }

    /// What a message's handler said, as an error of the hand-over.
    fn accepted(&mut self, taken: vhost::vhost_user::Result<()>) -> Result<(), HandoverError> {
        taken
            .map_err(|error| HandoverError::Invalid(self.take_failure().unwrap_or_else(|| error.to_string())))
    }

    /// Where each ring stands.
    pub(crate) fn positions(&self) -> Vec<Option<u32>> {
        let rings = self.vrings.iter().zip(self.shared.rings());
        rings.map(|(vring, cell)| cell.position().or(vring.base)).collect()
    }

    /// Corrects where rings stand that do not run yet.
    pub(crate) fn set_positions(&mut self, positions: &[Option<u32>]) -> Result<(), HandoverError> {
        if positions.len() != self.vrings.len() {
            return Err(HandoverError::Invalid("a position for each ring is needed".into()));
        }
        for (index, position) in (0u32..).zip(positions) {
            if let Some(position) = *position {
                let taken = self.set_vring_base(index, position);
                self.accepted(taken)?;
            }
        }
        Ok(())
    }

    /// Starts the rings that ran, which interrupts their guests once: one too many does no harm, and one that got lost
    /// would. Of a session that was not handed over, nothing changes.
    pub(crate) fn go_on(&mut self) -> Result<(), HandoverError> {
        let Some(Awaited { features, rings }) = self.awaited.take() else { return Ok(()) };
        self.features = Some(features);
        self.shared.set_features(features);
        for (index, (running, fault)) in rings.into_iter().enumerate() {
            match self.start(index) {
                Err(fault) if running => {
                    let ring = ring_name(index);
                    return Err(HandoverError::Invalid(format!("{ring} does not run any more: {fault}")));
                }
                Err(fault) => debug!(port = self.port, "{} still waits: {fault}", ring_name(index)),
                Ok(()) => {}
            }
            if let Some(fault) = fault {
                self.shared.rings()[index].control(|ring| ring.set_fault(fault));
            }
        }
        self.shared.steer_anew();
        Ok(())
    }
}

/// Serves a session on a connection on which features have been negotiated before, elsewhere.
pub(crate) fn handler(
    stream: &UnixStream,
    session: &Arc<Mutex<Session>>,
    features: Option<u64>,
    protocol_features: u64,
) -> Result<Handler, HandoverError> {
    let repeating = |on: bool| session.lock().unwrap_or_else(PoisonError::into_inner).repeating = on;
    let (ours, mut theirs) = UnixStream::pair().map_err(system("socketpair"))?;
    let mut handler = BackendReqHandler::from_stream(ours, session.clone());
    repeating(true);
    let heard = repeat(&mut handler, &mut theirs, features, protocol_features);
    repeating(false);
    heard?;
    eventfd::replace(&handler, stream).map_err(system("dup3"))?;
    Ok(handler)
}

/// Has the handler hear what it would have heard. Answers stay in the pair, which is closed.
fn repeat(
    handler: &mut Handler,
    theirs: &mut UnixStream,
    features: Option<u64>,
    protocol_features: u64,
) -> Result<(), HandoverError> {
    const VERSION: u32 = 1;
    let mut tell = |request: FrontendReq, body: Option<u64>| {
        let size = if body.is_some() { 8 } else { 0 };
        let mut message = [request as u32, VERSION, size].map(u32::to_ne_bytes).concat();
        message.extend(body.into_iter().flat_map(u64::to_ne_bytes));
        theirs.write_all(&message).map_err(system("write"))?;
        handler.handle_request().map_err(|error| HandoverError::Invalid(error.to_string()))
    };
    tell(FrontendReq::GET_FEATURES, None)?;
    if let Some(word) = features {
        tell(FrontendReq::SET_FEATURES, Some(word))?;
    }
    tell(FrontendReq::SET_PROTOCOL_FEATURES, Some(protocol_features))
}

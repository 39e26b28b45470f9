//! A new process in the place of an old one, without loss: a planned restart.
//!
//! The old process starts the new one, which gets one end of a socket as its standard input, and tells it what is
//! configured ([`message`] has the whole conversation). The new one configures itself: its workers stand still, its
//! ports are made of what was handed over and stand still, too. Meanwhile the old one goes on, and tells a first copy of
//! what was learned: connections with their translations and servers, stations, neighbours, leases. Then it halts its
//! ports and workers, tells what has changed since and where the rings stand, and says `Go`; the new one's workers
//! begin. That time is all that guests may notice: some milliseconds.
//!
//! Until `Go` nothing of the old process is changed for good. If anything fails, it ends the new one, and its workers go
//! on where they stood. After `Go` it touches nothing any more, and ends without giving anything back.
//!
//! [`wire`] is the bytes, [`message`] what they say, [`port`] the ports in it; [`tell`] and [`hear`] are the two sides
//! of what was learned, [`predecessor`] and [`successor`] the two processes.

mod hear;
mod laps;
pub mod message;
pub mod port;
pub mod predecessor;
pub mod successor;
mod tell;
pub mod wire;

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use vhost_backend::handover::Descriptors;

use crate::config::{Name, PortSpec};
use crate::port::Attachment;
use crate::refusal::Refusal;
use crate::switch::attach::Changed;
use crate::tables::{QueueId, Queues};
use message::Numbers;
use port::PortState;

/// What a switch begins with that goes on in another process' place.
#[derive(Debug, Default)]
pub struct Handed {
    /// The numbers that ports and interfaces had there.
    pub(crate) numbers: Numbers,
    /// Cores that may be used: the control thread keeps off the workers' from the beginning.
    pub(crate) cores: Vec<usize>,
    /// Ports that are not made yet.
    pub(crate) ports: HashMap<Name, (PortState, Descriptors)>,
}

impl Handed {
    /// The queues of each worker there.
    pub(crate) fn homes(&self) -> Vec<Queues> {
        let queues =
            |list: &Vec<(u16, u16)>| list.iter().map(|&(port, queue)| QueueId { port, queue }).collect();
        self.numbers.queues.iter().map(queues).collect()
    }

    /// Goes on with a port.
    pub(crate) fn attach(&mut self, spec: &PortSpec, changed: Changed) -> Result<(Attachment, u16), Refusal> {
        let (state, mut descriptors) =
            self.ports.remove(&spec.name).ok_or_else(|| Refusal::new("it was not handed over"))?;
        port::resume(spec, &state, &mut descriptors, changed)
    }
}

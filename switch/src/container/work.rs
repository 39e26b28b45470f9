//! What is done for containers beside the control thread, on a thread of its own: QEMU and agents are waited for here.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::agent::Agent;
use super::hotplug::{self, Plug};
use crate::config::spec::{AgentAddress, ContainerRoute, NicSpec};
use crate::refusal::Refusal;

/// How long a guest may take to let go of a NIC when its container is forgotten.
const FAREWELL: Duration = Duration::from_secs(5);

/// What is to be done for a NIC beside the control thread.
#[derive(Debug)]
pub(crate) enum Work {
    /// Plug it in, and have the agent set it up.
    Plug { plug: Box<Plug>, nic: NicSpec, agent: Option<AgentAddress> },
    /// Take it out.
    Unplug { qmp: PathBuf, name: String },
    /// Nothing: shunt never plugged it in.
    Nothing,
}

impl Work {
    /// Does it. Says where the NIC is plugged in.
    ///
    /// # Errors
    /// It is not done, or it is undone.
    pub(crate) fn run(self, called_off: &Arc<AtomicBool>) -> Result<Option<String>, Refusal> {
        match self {
            Self::Nothing => Ok(None),
            Self::Unplug { qmp, name } => {
                hotplug::unplug(&qmp, &name, called_off, hotplug::RELEASE).map(|()| None)
            }
            Self::Plug { plug, mut nic, agent } => {
                let path = hotplug::plug(&plug, called_off)?;
                let Some(agent) = agent else { return Ok(Some(path)) };
                nic.pci = Some(path.clone());
                let told =
                    Agent::connect(&agent, called_off).and_then(|mut agent| agent.update_interface(&nic));
                let Err(refusal) = told else { return Ok(Some(path)) };
                // The guest did not get to know it: it is no use there.
                let fresh = Arc::default();
                match hotplug::unplug(&plug.qmp, &plug.name, &fresh, hotplug::RELEASE) {
                    Ok(()) => Err(refusal),
                    Err(left) => Err(Refusal::new(format!("{refusal}; not all could be undone: {left}"))),
                }
            }
        }
    }
}

/// NICs that are to be taken out when a container is forgotten.
pub(crate) struct Farewell {
    pub(super) qmp: Option<PathBuf>,
    pub(super) names: Vec<String>,
}

impl Farewell {
    /// Does it as far as it goes; says what did not.
    pub(crate) fn run(self, called_off: &Arc<AtomicBool>) -> Result<Vec<String>, Refusal> {
        let mut notes = Vec::new();
        let Some(qmp) = self.qmp else { return Ok(notes) };
        for name in &self.names {
            if let Err(refusal) = hotplug::unplug(&qmp, name, called_off, FAREWELL) {
                notes.push(format!("NIC {name} was not unplugged: {refusal}"));
                // What one tells of a QEMU that is not there need not be told of the others.
                if std::os::unix::net::UnixStream::connect(&qmp).is_err() {
                    break;
                }
            }
        }
        Ok(notes)
    }
}

/// Routes that an agent is to be told of.
pub(crate) struct Rerouting {
    pub(super) agent: Option<AgentAddress>,
    pub(super) before: Vec<ContainerRoute>,
    pub(super) after: Vec<ContainerRoute>,
    /// Those that are added or removed.
    pub(crate) changed: Vec<ContainerRoute>,
}

impl Rerouting {
    /// Tells the agent, if there is one.
    ///
    /// # Errors
    /// The agent does not do it.
    pub(crate) fn run(self, called_off: &Arc<AtomicBool>) -> Result<Self, Refusal> {
        if let Some(agent) = &self.agent {
            let mut agent = Agent::connect(agent, called_off)?;
            if let Err(refusal) = agent.set_routes(&self.before, &self.after) {
                // The guest's old routes went before the new ones were refused: those that were there come back.
                if let Err(again) = agent.set_routes(&self.after, &self.before) {
                    return Err(Refusal::new(format!("{refusal}; not all could be undone: {again}")));
                }
                return Err(refusal);
            }
        }
        Ok(self)
    }
}

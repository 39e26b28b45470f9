//! Secure containers. What waits for a QEMU or an agent does so beside the control thread, one operation a container at
//! a time; requests of other connections are answered meanwhile.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::super::api::{self, Method};
use super::super::rpc::{self, Error, Head};
use super::{At, Dispatcher, Handle, is_question};
use crate::config::spec::{ContainerId, ContainerRoute, ContainerRouteMatch, ContainerSpec, NicSpec};
use crate::container::agent::Agent;
use crate::container::job;
use crate::refusal::Refusal;

/// Whose turn it is, by container.
#[derive(Default)]
pub(super) struct Turns(RefCell<HashMap<ContainerId, Arc<Mutex<()>>>>);

impl Turns {
    /// Waits for a container's turn.
    async fn wait(&self, id: &ContainerId) -> OwnedMutexGuard<()> {
        let turn = self.0.borrow_mut().entry(id.clone()).or_default().clone();
        turn.lock_owned().await
    }

    /// Nobody needs the turn of a container any more that is gone, unless somebody waits for it.
    fn forget(&self, id: &ContainerId) {
        let mut turns = self.0.borrow_mut();
        // One is the map's, one that of who has the turn.
        if turns.get(id).is_some_and(|turn| Arc::strong_count(turn) <= 2) {
            turns.remove(id);
        }
    }
}

impl Handle for api::ContainerAdd {
    fn handle(self, at: &mut At<'_>) -> Result<api::Container, Error> {
        let spec = ContainerSpec::try_from(&self)?;
        let id = spec.id.clone();
        at.switch.add_container(spec)?;
        tracing::info!("container {id} registered");
        Ok(at.switch.container(id.as_str())?)
    }
}

impl Handle for api::ContainerList {
    fn handle(self, at: &mut At<'_>) -> Result<Vec<api::Container>, Error> {
        Ok(at.switch.all_containers())
    }
}

impl Handle for api::ContainerShow {
    fn handle(self, at: &mut At<'_>) -> Result<api::Container, Error> {
        Ok(at.switch.container(&self.id)?)
    }
}

/// A method that waits for others.
trait Operate: Method {
    /// Checks the values, does it, and says what came of it. The switch is borrowed only between two waits.
    async fn operate(self, dispatcher: &Dispatcher) -> Result<Self::Answer, Error>;
}

impl Dispatcher {
    /// Does what a request asks, if its method is one of those that wait.
    pub(super) async fn operate(&self, head: &Head, line: &[u8]) -> Option<Result<Vec<u8>, Error>> {
        macro_rules! dispatch {
            ($($request:ident = $name:literal -> $answer:ty;)*) => {
                match head.method.as_str() {
                    $($name => Some(run::<api::$request>(self, head, line).await),)*
                    _ => None,
                }
            };
        }
        api::each_operation!(dispatch)
    }

    /// Waits until nobody else works on a container.
    async fn turn(&self, asked: &str) -> Result<(ContainerId, OwnedMutexGuard<()>), Error> {
        let id = self.switch.borrow().containers.id(asked)?;
        let turn = self.turns.wait(&id).await;
        // It may be gone by now.
        self.switch.borrow().containers.find(id.as_str())?;
        Ok((id, turn))
    }
}

async fn run<M: Operate>(dispatcher: &Dispatcher, head: &Head, line: &[u8]) -> Result<Vec<u8>, Error> {
    let asked: M = rpc::params(head, line)?;
    if !is_question(M::NAME) {
        dispatcher.switch.borrow_mut().prepare_change(line.len())?;
    }
    let answer = asked.operate(dispatcher).await;
    // Nobody else has a turn between the last step of it and this.
    let saved = dispatcher.switch.borrow_mut().commit();
    let answer = answer?;
    saved?;
    match &head.id {
        Some(id) => rpc::success(id, &answer),
        None => Ok(Vec::new()),
    }
}

impl Operate for api::ContainerDel {
    async fn operate(self, at: &Dispatcher) -> Result<api::ContainerDeleted, Error> {
        let (id, _turn) = at.turn(&self.id).await?;
        let (_, farewell) = at.switch.borrow().begin_farewell(id.as_str())?;
        let notes = job::run(move |called_off| farewell.run(called_off)).await?;
        at.switch.borrow_mut().forget_container(&id);
        at.turns.forget(&id);
        tracing::info!("container {id} forgotten");
        Ok(api::ContainerDeleted { id: id.to_string(), notes })
    }
}

impl Operate for api::KataAddInterface {
    async fn operate(self, at: &Dispatcher) -> Result<api::KataPlugged, Error> {
        let nic = NicSpec::try_from(&self.interface)?;
        let name = nic.name;
        let (id, _turn) = at.turn(&self.container).await?;
        let work = at.switch.borrow_mut().begin_nic(id.as_str(), nic)?;
        let plugged = job::run(move |called_off| work.run(called_off)).await;
        let answer = at.switch.borrow_mut().end_nic(&id, name, plugged)?;
        let saved = at.switch.borrow_mut().save();
        let Err(refusal) = saved else { return Ok(answer) };
        // A NIC that the next start would know nothing of does not stay in the guest.
        let (work, _) = at.switch.borrow().begin_unplug(id.as_str(), &name)?;
        let undone = job::run(move |called_off| work.run(called_off)).await;
        at.switch.borrow_mut().drop_nic(&id, name);
        Err(match undone {
            Ok(_) => Refusal::new(format!("{refusal}; it is undone")),
            Err(left) => Refusal::new(format!("{refusal}; not all could be undone: {left}")),
        })?
    }
}

impl Operate for api::KataDelInterface {
    async fn operate(self, at: &Dispatcher) -> Result<api::KataPlugged, Error> {
        let name = self.interface.name.unwrap_or_default();
        let (id, _turn) = at.turn(&self.container).await?;
        let (work, nic) = at.switch.borrow().begin_unplug(id.as_str(), &name)?;
        job::run(move |called_off| work.run(called_off)).await?;
        at.switch.borrow_mut().drop_nic(&id, nic.name);
        Ok(api::KataPlugged { interface: None, notes: Vec::new() })
    }
}

impl Operate for api::KataListInterfaces {
    async fn operate(self, at: &Dispatcher) -> Result<Vec<api::KataListed>, Error> {
        let (id, _turn) = at.turn(&self.container).await?;
        let (agent, nics) = at.switch.borrow().container_nics(id.as_str())?;
        let inside = match agent {
            Some(agent) if !nics.is_empty() => {
                job::run(move |called_off| Agent::connect(&agent, called_off)?.interfaces()).await?
            }
            _ => Vec::new(),
        };
        let listed = nics.iter().map(|nic| {
            let mac = nic.mac.to_string();
            // As it is inside, where the agent knows it.
            match inside.iter().find(|inside| inside.mac.eq_ignore_ascii_case(&mac)) {
                Some(inside) => api::KataListed {
                    name: inside.name.clone(),
                    mac,
                    ip: inside.addresses.iter().map(|a| format!("{}/{}", a.address, a.mask)).collect(),
                    mtu: inside.mtu,
                },
                None => api::KataListed {
                    name: nic.name.to_string(),
                    mac,
                    ip: nic.addresses.iter().map(ToString::to_string).collect(),
                    mtu: nic.mtu.into(),
                },
            }
        });
        Ok(listed.collect())
    }
}

impl Operate for api::KataAddRoute {
    async fn operate(self, at: &Dispatcher) -> Result<api::KataRouted, Error> {
        let routes = self.route.iter().map(ContainerRoute::try_from).collect::<Result<Vec<_>, _>>()?;
        let (id, _turn) = at.turn(&self.container).await?;
        let change = at.switch.borrow().begin_routes(id.as_str(), routes)?;
        let done = job::run(move |called_off| change.run(called_off)).await?;
        let notes = at.switch.borrow_mut().end_routes(&id, &done);
        Ok(api::KataRouted { routes: done.changed.iter().map(ContainerRoute::view).collect(), notes })
    }
}

impl Operate for api::KataDelRoute {
    async fn operate(self, at: &Dispatcher) -> Result<api::KataRouted, Error> {
        let meant = self.route.iter().map(ContainerRouteMatch::try_from).collect::<Result<Vec<_>, _>>()?;
        let (id, _turn) = at.turn(&self.container).await?;
        let change = at.switch.borrow().begin_unroute(id.as_str(), &meant)?;
        let done = job::run(move |called_off| change.run(called_off)).await?;
        let notes = at.switch.borrow_mut().end_routes(&id, &done);
        Ok(api::KataRouted { routes: done.changed.iter().map(ContainerRoute::view).collect(), notes })
    }
}

impl Operate for api::KataListRoutes {
    async fn operate(self, at: &Dispatcher) -> Result<Vec<api::KataRoute>, Error> {
        let (id, _turn) = at.turn(&self.container).await?;
        Ok(at.switch.borrow().container_routes(id.as_str())?)
    }
}

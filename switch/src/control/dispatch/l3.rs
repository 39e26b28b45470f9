//! Interfaces, routes, neighbours.
#![forbid(unsafe_code)]

use super::super::api::{self, Done, Flushed};
use super::super::rpc::{Error, ErrorData};
use super::{At, Handle};
use crate::config::spec::{self, InterfaceChange, InterfaceSpec, NeighbourSpec, RouteMatch, RouteSpec};
use crate::l3::route::rib::{MAX_ROUTES, Terms};
use crate::refusal::Refusal;

impl Handle for api::InterfaceAdd {
    fn handle(self, at: &mut At<'_>) -> Result<api::Interface, Error> {
        at.switch.add_interface(InterfaceSpec::try_from(&self)?)?;
        tracing::info!("interface {} added to bridge {}", self.name, self.bridge);
        Ok(at.switch.interface(&self.name)?)
    }
}

impl Handle for api::InterfaceDel {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        at.switch.del_interface(&self.name)?;
        tracing::info!("interface {} deleted", self.name);
        Ok(Done {})
    }
}

impl Handle for api::InterfaceList {
    fn handle(self, at: &mut At<'_>) -> Result<Vec<api::Interface>, Error> {
        Ok(at.switch.interfaces())
    }
}

impl Handle for api::InterfaceShow {
    fn handle(self, at: &mut At<'_>) -> Result<api::Interface, Error> {
        Ok(at.switch.interface(&self.name)?)
    }
}

impl Handle for api::InterfaceSet {
    fn handle(self, at: &mut At<'_>) -> Result<api::Interface, Error> {
        at.switch.set_interface(&self.name, &InterfaceChange::try_from(&self)?)?;
        tracing::info!("interface {} changed", self.name);
        Ok(at.switch.interface(&self.name)?)
    }
}

impl Handle for api::RouteAdd {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        at.switch.add_route(RouteSpec::try_from(&self)?)?;
        tracing::info!("route {} added", self.prefix);
        Ok(Done {})
    }
}

impl Handle for api::RouteDel {
    fn handle(self, at: &mut At<'_>) -> Result<Flushed, Error> {
        let removed = at.switch.del_routes(&RouteMatch::try_from(&self)?)?;
        tracing::info!("route {} deleted", self.prefix);
        Ok(Flushed { removed })
    }
}

impl Handle for api::RouteList {
    fn handle(self, at: &mut At<'_>) -> Result<api::RoutePage, Error> {
        at.dispatcher.listings.page(at.connection, self.next, || Ok(at.switch.routes()))
    }
}

impl Handle for api::RouteGet {
    fn handle(self, at: &mut At<'_>) -> Result<api::RouteChoice, Error> {
        Ok(at.switch.route_to(spec::host("address", &self.address)?))
    }
}

impl Handle for api::RouteLoad {
    /// What is refused ends the whole list, also the parts that waited.
    fn handle(self, at: &mut At<'_>) -> Result<api::RouteLoaded, Error> {
        let mut list = at.dispatcher.take_load(at.connection);
        let before = list.len();
        if before + self.routes.len() + at.dispatcher.loading.get() > 2 * MAX_ROUTES {
            let message = format!(
                "more than {} routes are to be loaded at once: there may be {MAX_ROUTES} of each family",
                2 * MAX_ROUTES
            );
            return Err(Refusal::new(message).into());
        }
        list.reserve(self.routes.len());
        for (index, route) in self.routes.iter().enumerate() {
            list.push(
                RouteSpec::try_from(route)
                    .map_err(|invalid| in_list(before + index, Error::from(invalid)))?,
            );
        }
        if self.more {
            let waiting = at.dispatcher.keep_load(at.connection, list);
            return Ok(api::RouteLoaded { waiting, loaded: 0, removed: 0 });
        }
        let loaded = list.len() as u64;
        let removed = at
            .switch
            .load_routes(list, Terms::New, self.replace)
            .map_err(|(index, refusal)| in_list(index, Error::from(refusal)))?;
        tracing::info!("{loaded} routes loaded, {removed} removed");
        Ok(api::RouteLoaded { waiting: 0, loaded, removed })
    }
}

/// Says which route of a list, counted from 0 over all its parts, is refused.
fn in_list(index: usize, error: Error) -> Error {
    let message = format!("routes: number {}: {}", index + 1, error.message);
    let data = Some(ErrorData { field: "routes".into(), index: Some(index as u64), kind: None });
    Error { data, ..Error::new(error.code, message) }
}

impl Handle for api::RouteFlush {
    fn handle(self, at: &mut At<'_>) -> Result<Flushed, Error> {
        let removed = at.switch.flush_routes(self.dev.as_deref())?;
        tracing::info!("{removed} routes deleted");
        Ok(Flushed { removed })
    }
}

impl Handle for api::NeighbourList {
    fn handle(self, at: &mut At<'_>) -> Result<api::NeighbourPage, Error> {
        at.dispatcher
            .listings
            .page(at.connection, self.next, || at.switch.neighbours(self.interface.as_deref()))
    }
}

impl Handle for api::NeighbourAdd {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        at.switch.add_neighbour(NeighbourSpec::try_from(&self)?)?;
        Ok(Done {})
    }
}

impl Handle for api::NeighbourDel {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        at.switch.del_neighbour(&self.interface, spec::host("address", &self.address)?)?;
        Ok(Done {})
    }
}

impl Handle for api::NeighbourFlush {
    fn handle(self, at: &mut At<'_>) -> Result<Flushed, Error> {
        let removed = at.switch.flush_neighbours(self.interface.as_deref())?;
        Ok(Flushed { removed })
    }
}

//! Virtual services.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use super::super::api::{self, Done, Flushed};
use super::super::rpc::{Error, ErrorData};
use super::{At, Handle};
use crate::config::document::Key;
use crate::config::spec::{self, ENGINE, Invalid, SCHEDULER, service_key};
use crate::ipvs::draft::Change;
use crate::ipvs::error::{Error as Wrong, Failed};
use crate::ipvs::scope::Scope;
use crate::ipvs::spec::ServiceKey;
use crate::ipvs::sync::{DaemonError, DaemonSpec};
use crate::refusal::Refusal;
use crate::router::ipvs::{NotReplaced, entries, replace};

/// Changes that may wait for the rest of their transaction, of all connections together: those of a full table anew,
/// beside deleting the old one, and some more.
const WAITING_MAX: usize = 2_100_000;

/// Transactions of which more is to come.
#[derive(Default)]
pub(super) struct Transactions {
    by_connection: RefCell<HashMap<u64, Vec<Change>>>,
    waiting: Cell<usize>,
}

impl Transactions {
    /// What came of a transaction so far; it is kept no longer.
    pub(super) fn take(&self, connection: u64) -> Vec<Change> {
        let changes = self.by_connection.borrow_mut().remove(&connection).unwrap_or_default();
        self.waiting.set(self.waiting.get() - changes.len());
        changes
    }

    fn keep(&self, connection: u64, changes: Vec<Change>) -> u64 {
        let waiting = changes.len();
        self.waiting.set(self.waiting.get() + waiting);
        self.by_connection.borrow_mut().insert(connection, changes);
        waiting as u64
    }
}

/// A refusal of which a program can know the kind.
fn of_kind(kind: &str, error: impl Into<Error>) -> Error {
    let mut error = error.into();
    let data = error.data.get_or_insert_with(|| ErrorData { field: String::new(), index: None, kind: None });
    data.kind = Some(kind.to_owned());
    error
}

/// Says which change of a transaction, counted from 0 over all its parts, is refused.
fn in_list(index: usize, mut error: Error) -> Error {
    let data = error.data.get_or_insert_with(|| ErrorData { field: String::new(), index: None, kind: None });
    data.field = "changes".into();
    data.index = Some(index as u64);
    error
}

fn refused(wrong: &Wrong) -> Error {
    let kind = match wrong {
        Wrong::ServiceExists(_) => "service-exists",
        Wrong::NoSuchService(_) => "no-such-service",
        Wrong::DestinationExists(..) => "server-exists",
        Wrong::NoSuchDestination(..) => "no-such-server",
        Wrong::Range { .. } => "range",
        Wrong::Invalid { .. } => "invalid",
        Wrong::Full { .. } => "full",
    };
    of_kind(kind, Refusal::new(wrong.to_string()))
}

fn failed(failed: &Failed) -> Error {
    in_list(failed.index, refused(&failed.error))
}

/// A value that breaks a rule. Linux looks for the service before it looks for the scheduler.
fn invalid(asked: &api::IpvsChange, invalid: Invalid, scope: &Scope) -> Error {
    if invalid.field != SCHEDULER && invalid.field != ENGINE {
        return of_kind("value", invalid);
    }
    let known = |service: &api::IpvsService| {
        let key = service_key(&service.service).ok()?;
        Some((key, scope.table.get(&key).is_some()))
    };
    match asked {
        api::IpvsChange::AddService(service) => {
            if let Some((key, true)) = known(service) {
                return refused(&Wrong::ServiceExists(key));
            }
        }
        api::IpvsChange::EditService(service) => {
            if let Some((key, false)) = known(service) {
                return refused(&Wrong::NoSuchService(key));
            }
        }
        _ => (),
    }
    of_kind("no-such-scheduler", invalid)
}

impl Handle for api::IpvsApply {
    /// What is refused ends the whole transaction, also the parts that waited.
    fn handle(self, at: &mut At<'_>) -> Result<api::IpvsApplied, Error> {
        let transactions = &at.dispatcher.transactions;
        let mut changes = transactions.take(at.connection);
        let scope = at.switch.ensure_ipvs_scope(self.container.as_deref())?;
        let before = changes.len();
        let room = WAITING_MAX.saturating_sub(transactions.waiting.get() + before);
        if self.changes.len() > room {
            let text = format!("more than {WAITING_MAX} changes are to be made at once, which is the limit");
            return Err(in_list(before + room, Refusal::new(text).into()));
        }
        changes.reserve(self.changes.len());
        for (index, asked) in self.changes.iter().enumerate() {
            let change = Change::try_from(asked)
                .map_err(|wrong| in_list(before + index, invalid(asked, wrong, &scope)))?;
            changes.push(change);
        }
        drop(self.changes);
        if self.more {
            let waiting = transactions.keep(at.connection, changes);
            return Ok(api::IpvsApplied { waiting, ..Default::default() });
        }
        let count = changes.len();
        let applied = if self.replace {
            let about = |fewest: &[Change]| at.switch.touch_services(&scope, fewest);
            let replaced = replace(&scope, &changes, about).map_err(|refusal| match refusal {
                NotReplaced::Failed(refusal) => failed(&refusal),
                NotReplaced::NoDescription(index) => {
                    let text =
                        "only services and servers to be added describe a table that is to replace another";
                    in_list(index, Refusal::new(text).into())
                }
            })?;
            let (changed, edited, deleted) = (replaced.added, replaced.edited, replaced.deleted);
            api::IpvsApplied {
                waiting: 0,
                changed: changed as u64,
                edited: edited as u64,
                deleted: deleted as u64,
            }
        } else {
            at.switch.touch_services(&scope, &changes);
            scope.apply(changes).map_err(|refusal| failed(&refusal))?;
            api::IpvsApplied { changed: count as u64, ..Default::default() }
        };
        let of = scope.name().unwrap_or("all");
        tracing::info!("virtual services of {of}: {count} changes, {} rules now", scope.rules());
        Ok(applied)
    }
}

fn key(service: Option<&str>) -> Result<Option<ServiceKey>, Invalid> {
    service.map(service_key).transpose()
}

impl Handle for api::IpvsList {
    fn handle(self, at: &mut At<'_>) -> Result<api::IpvsPage, Error> {
        let key = key(self.service.as_deref())?;
        let scope = at.switch.ipvs_scope(self.container.as_deref())?;
        if let Some(key) = key.filter(|key| scope.table.get(key).is_none()) {
            return Err(refused(&Wrong::NoSuchService(key)));
        }
        at.dispatcher.listings.page(at.connection, self.next, || {
            let live = at.switch.ipvs_live();
            entries(&scope, key.as_ref(), &live).map_err(|wrong| Refusal::new(wrong.to_string()))
        })
    }
}

impl Handle for api::IpvsZero {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        let key = key(self.service.as_deref())?;
        let scope = at.switch.ipvs_scope(self.container.as_deref())?;
        scope.zero(key.as_ref(), &at.switch.ipvs_live()).map_err(|wrong| refused(&wrong))?;
        Ok(Done {})
    }
}

impl Handle for api::IpvsShowTimeouts {
    fn handle(self, at: &mut At<'_>) -> Result<api::IpvsTimeouts, Error> {
        let scope = at.switch.ipvs_scope(self.container.as_deref())?;
        Ok(crate::switch::Switch::ipvs_timeouts(&scope))
    }
}

impl Handle for api::IpvsSettings {
    fn handle(self, at: &mut At<'_>) -> Result<api::IpvsSettingsList, Error> {
        let scope = at.switch.ipvs_scope(self.container.as_deref())?;
        Ok(crate::switch::Switch::ipvs_settings(&scope))
    }
}

impl Handle for api::IpvsSet {
    fn handle(self, at: &mut At<'_>) -> Result<api::IpvsSettingsList, Error> {
        let (setting, value) = spec::ipvs_setting(&self.name, self.value)?;
        let scope = at.switch.ensure_ipvs_scope(self.container.as_deref())?;
        at.switch.touch(Key::IpvsSettings(scope.name().map(str::to_owned)));
        scope.settings().set(setting, value);
        tracing::info!("{} is {value}", setting.name());
        Ok(crate::switch::Switch::ipvs_settings(&scope))
    }
}

impl Handle for api::IpvsScopes {
    fn handle(self, at: &mut At<'_>) -> Result<Vec<api::IpvsScope>, Error> {
        Ok(at.switch.ipvs_scopes())
    }
}

impl Handle for api::IpvsConnections {
    fn handle(self, at: &mut At<'_>) -> Result<api::IpvsConnectionPage, Error> {
        let scope = at.switch.ipvs_scope(self.container.as_deref())?;
        Ok(at.switch.ipvs_connections(&scope, self.next.unwrap_or_default()))
    }
}

impl Handle for api::IpvsCleanup {
    fn handle(self, at: &mut At<'_>) -> Result<Flushed, Error> {
        let filter = api::ConntrackFilter {
            proto: self.protonum,
            family: self.family,
            source: self.orig_src,
            dest: self.orig_dst,
            reply_source: self.reply_src,
            reply_dest: self.reply_dst,
            sport: self.orig_port_src,
            dport: self.orig_port_dst,
            reply_sport: self.reply_port_src,
            reply_dport: self.reply_port_dst,
            state: self.state,
            ..api::ConntrackFilter::default()
        };
        let ports = match &self.container {
            Some(container) => at.switch.container_ports(container)?,
            None => Vec::new(),
        };
        let removed = match self.container {
            None => at.switch.clean_connections(filter)?,
            Some(_) => ports.into_iter().try_fold(0, |sum, port| {
                let filter = api::ConntrackFilter { port: Some(port.to_string()), ..filter.clone() };
                at.switch.clean_connections(filter).map(|removed| sum + removed)
            })?,
        };
        tracing::info!("{removed} connections forgotten");
        Ok(Flushed { removed })
    }
}

fn daemon(wrong: &DaemonError) -> Error {
    let kind = match wrong {
        DaemonError::Exists(_) => "daemon-exists",
        DaemonError::NotRunning(_) => "no-daemon",
        DaemonError::NoSuchInterface(_) => "no-such-interface",
        DaemonError::Invalid(_) => "invalid",
        DaemonError::System { .. } => "system",
    };
    of_kind(kind, Refusal::new(wrong.to_string()))
}

impl Handle for api::IpvsDaemons {
    fn handle(self, at: &mut At<'_>) -> Result<Vec<api::IpvsDaemon>, Error> {
        let daemons = at.switch.daemons();
        Ok(daemons.iter().map(|(config, counters)| spec::daemon_view(config, counters)).collect())
    }
}

impl Handle for api::IpvsDaemonStart {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        let asked = DaemonSpec::try_from(&self).map_err(|wrong| of_kind("value", wrong))?;
        at.switch.start_daemon(&asked).map_err(|wrong| daemon(&wrong))?;
        Ok(Done {})
    }
}

impl Handle for api::IpvsDaemonStop {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        let role = spec::sync_role(&self.role).map_err(|wrong| of_kind("value", wrong))?;
        at.switch.stop_daemon(role).map_err(|wrong| daemon(&wrong))?;
        Ok(Done {})
    }
}

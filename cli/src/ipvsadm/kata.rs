//! What openEuler's `kata-ipvs` makes of ipvsadm: bounds of its own, fewer commands, and translation (`-m`) as the
//! usual way to a server that is added alone.

use shunt_switch::control::api::{IpvsChange, IpvsServer, IpvsService};

use super::Stop;
use super::command::Command;

/// The schedulers that it names.
const SCHEDULERS: [&str; 10] = ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq"];
const WEIGHT_MAX: i64 = 65_535;
const PERSISTENCE_MAX: i64 = 2_678_400;
const TIMEOUT_MAX: i64 = 1_296_000;

fn bounded(what: &str, value: i64, least: i64, most: i64) -> Result<(), Stop> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Stop::usage(format!("{what} {value} is out of range: it must be {least} to {most}")))
}

fn service(service: &IpvsService) -> Result<(), Stop> {
    if let Some(scheduler) = &service.scheduler
        && !SCHEDULERS.contains(&scheduler.as_str())
    {
        let known = SCHEDULERS.join(", ");
        return Err(Stop::usage(format!("scheduler {scheduler:?} is unknown: it must be one of {known}")));
    }
    service.persistent.map_or(Ok(()), |seconds| bounded("persistent", seconds, 1, PERSISTENCE_MAX))
}

fn server(server: &IpvsServer) -> Result<(), Stop> {
    server.weight.map_or(Ok(()), |weight| bounded("weight", weight, 0, WEIGHT_MAX))
}

/// Checks a change against Kata's bounds.
///
/// # Errors
/// It is beyond one.
pub(super) fn check_change(change: &IpvsChange) -> Result<(), Stop> {
    match change {
        IpvsChange::AddService(asked) | IpvsChange::EditService(asked) => service(asked),
        IpvsChange::AddServer(asked) | IpvsChange::EditServer(asked) => server(asked),
        IpvsChange::SetTimeouts(asked) => {
            [("tcp", asked.tcp), ("tcp-fin", asked.tcp_fin), ("udp", asked.udp)]
                .into_iter()
                .try_for_each(|(what, seconds)| bounded(what, seconds, 0, TIMEOUT_MAX))
        }
        _ => Ok(()),
    }
}

/// Checks a command that stands in `--parameters`.
///
/// # Errors
/// It is none of Kata's, or beyond a bound.
pub(super) fn check(command: &Command) -> Result<(), Stop> {
    match command {
        Command::Change(change) => check_change(change),
        Command::List(..) | Command::Zero(_) | Command::Help | Command::Version => Ok(()),
        Command::Save(_) | Command::Restore { .. } | Command::StartDaemon(_) | Command::StopDaemon(_) => {
            Err(Stop::usage(
                "only services, servers, --list, --zero, --clear and --set can stand in --parameters",
            ))
        }
    }
}

//! Undoing an attachment, as DEL, GC and an ADD that failed do it.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use shunt_client::client::{Client, Failure};
use shunt_client::dan;
use shunt_switch::control::api::{self, NatKind, NatRule};
use shunt_switch::port::assign;
use shunt_switch::port::netns::Netns;

use super::config::Attachment;
use super::error::Error;
use super::store::{Publish, Record};

/// Whether a rule of the switch is this published port.
pub(crate) fn is_publish(rule: &NatRule, publish: &Publish) -> bool {
    let same = |field: &Option<String>, ours: &str| field.as_deref() == Some(ours);
    rule.kind == NatKind::Publish
        && same(&rule.proto, &publish.proto)
        && same(&rule.listen, &publish.listen)
        && same(&rule.to, &publish.to)
}

/// Whether a rule of the switch masquerades for this attachment.
pub(crate) fn is_masquerade(rule: &NatRule, record: &Record) -> bool {
    rule.kind == NatKind::Masquerade && rule.source.is_some_and(|source| record.masquerade.contains(&source))
}

/// Removes everything that was made for an attachment. What is gone already is passed over; every step is tried whatever
/// became of the others, the first error is told.
pub(crate) fn undo(record: &Record, client: &mut Client) -> Result<(), Error> {
    let steps = [
        unpublish(record, client),
        unreserve(record, client),
        leave_dan(record),
        remove_port(record, client),
        remove_device(record),
    ];
    steps.into_iter().collect()
}

fn unpublish(record: &Record, client: &mut Client) -> Result<(), Error> {
    if record.publish.is_empty() && record.masquerade.is_empty() {
        return Ok(());
    }
    for rule in client.ask(&api::NatList {})? {
        if is_masquerade(&rule, record) || record.publish.iter().any(|publish| is_publish(&rule, publish)) {
            gone_is_fine(
                client.ask(&api::NatDel { id: rule.id.into(), kind: Some(rule.kind.as_str().into()) }),
            )?;
        }
    }
    Ok(())
}

fn unreserve(record: &Record, client: &mut Client) -> Result<(), Error> {
    match (&record.interface, record.mac) {
        (Some(interface), Some(mac)) if record.reserved => gone_is_fine(
            client.ask(&api::DhcpUnreserve { interface: interface.clone(), mac: mac.to_string() }),
        ),
        _ => Ok(()),
    }
}

fn leave_dan(record: &Record) -> Result<(), Error> {
    match &record.dan {
        Some(directory) => dan::remove(&dan::path(directory, &record.container), &record.ifname)
            .map(|_| ())
            .map_err(Error::io),
        None => Ok(()),
    }
}

fn remove_port(record: &Record, client: &mut Client) -> Result<(), Error> {
    let there = client.ask(&api::PortList {})?.iter().any(|port| port.name == *record.port.as_str());
    if there {
        gone_is_fine(client.ask(&api::PortDel { name: record.port.clone() }))?;
    }
    let socket: Option<&PathBuf> = record.socket.as_ref();
    match socket.map_or(Ok(()), fs::remove_file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io(format!("cannot remove the socket of port {}: {error}", record.port)))
        }
        _ => Ok(()),
    }
}

fn remove_device(record: &Record) -> Result<(), Error> {
    if record.attachment != Attachment::HostTap {
        return Ok(());
    }
    let host = Netns::open(None).map_err(Error::io)?;
    assign::remove(&host, &record.port).map(|_| ()).map_err(Error::io)
}

/// What shuntd refuses to remove is not there: somebody was faster.
fn gone_is_fine<T>(answer: Result<T, Failure>) -> Result<(), Error> {
    match answer {
        Ok(_) | Err(Failure::Refused(..) | Failure::Known { .. }) => Ok(()),
        Err(failure) => Err(failure.into()),
    }
}

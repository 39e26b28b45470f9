//! Health checks: from requests and tables of the file to plain values, and back for listings.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::{Invalid, number, service_key, service_name};
use crate::control::api;
use crate::ipvs::health::spec::{FALL, INTERVAL, RISE, TIMEOUT};
use crate::ipvs::health::{CheckSpec, Probe, ServerHealth};
use crate::ipvs::spec::ServiceKey;

/// Bytes that a path, a host name or a payload may have.
const TEXT_MAX: usize = 1024;

impl TryFrom<&api::CheckSet> for CheckSpec {
    type Error = Invalid;

    fn try_from(asked: &api::CheckSet) -> Result<Self, Invalid> {
        let service = service_key(&asked.service)?;
        let count = |field, value: Option<i64>, max, default| {
            value.map_or(Ok(default), |value| number(field, value, 1, max))
        };
        let port = asked.port.map(|port| number("port", port, 1, 65_535)).transpose()?;
        if port.is_none() && matches!(service, ServiceKey::Address { port: 0, .. }) {
            let rule = "it must be given for a service of all ports, whose servers have none";
            return Err(Invalid::new("port", format!("port is missing: {rule}")));
        }
        let interval: u32 = count("interval", asked.interval, 86_400, INTERVAL)?;
        let timeout: u32 = count("timeout", asked.timeout, 3600, TIMEOUT)?;
        if timeout > interval {
            let rule = format!("it must be at most the interval, {interval}");
            return Err(Invalid::new("timeout", format!("timeout {timeout} is too long: {rule}")));
        }
        Ok(Self {
            service,
            probe: probe(asked)?,
            port,
            device: asked.interface.as_deref().map(device).transpose()?,
            interval: Duration::from_secs(interval.into()),
            timeout: Duration::from_secs(timeout.into()),
            rise: count("rise", asked.rise, 1000, RISE)?,
            fall: count("fall", asked.fall, 1000, FALL)?,
        })
    }
}

fn probe(asked: &api::CheckSet) -> Result<Probe, Invalid> {
    let given = [
        ("path", asked.path.is_some(), "http"),
        ("host", asked.host.is_some(), "http"),
        ("status", asked.status.is_some(), "http"),
        ("payload", asked.payload.is_some(), "udp"),
        ("reply", asked.reply.is_some(), "udp"),
    ];
    let kind = asked.kind.as_str();
    if !matches!(kind, "tcp" | "http" | "udp") {
        let rule = "it must be tcp, http or udp";
        return Err(Invalid::new("kind", format!("kind {kind:?} is unknown: {rule}")));
    }
    if let Some((field, _, of)) = given.into_iter().find(|(_, given, of)| *given && *of != kind) {
        return Err(Invalid::new(field, format!("{field} says nothing to a {kind} check: it is for {of}")));
    }
    Ok(match kind {
        "tcp" => Probe::Tcp,
        "http" => Probe::Http {
            path: path(asked.path.as_deref().unwrap_or("/"))?,
            host: asked.host.as_deref().map(|text| visible("host", text)).transpose()?,
            status: status(asked.status.as_deref().unwrap_or("200-399"))?,
        },
        _ => {
            let payload = asked.payload.as_deref().unwrap_or_default();
            if payload.len() > TEXT_MAX {
                let length = payload.len();
                let message = format!("payload of {length} bytes is too long: {TEXT_MAX} are the most");
                return Err(Invalid::new("payload", message));
            }
            Probe::Udp { payload: payload.into(), reply: asked.reply.unwrap_or(false) }
        }
    })
}

/// What stands in a line of HTTP: it must not end the line, nor the word.
fn visible(field: &'static str, text: &str) -> Result<String, Invalid> {
    let fine = (1..=TEXT_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fine {
        return Ok(text.to_owned());
    }
    let rule = format!("it must be 1 to {TEXT_MAX} visible characters of ASCII without blanks");
    Err(Invalid::new(field, format!("{field} {text:?} cannot be asked for: {rule}")))
}

fn path(text: &str) -> Result<String, Invalid> {
    if !text.starts_with('/') {
        return Err(Invalid::new("path", format!("path {text:?} must begin with \"/\"")));
    }
    visible("path", text)
}

fn status(text: &str) -> Result<(u16, u16), Invalid> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse().ok().filter(|status| (100..=599).contains(status));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        _ => {
            let rule = "it must be a status from 100 to 599, or two such as 200-299";
            Err(Invalid::new("status", format!("status {text:?} is none: {rule}")))
        }
    }
}

fn device(text: &str) -> Result<String, Invalid> {
    if (1..=15).contains(&text.len()) && !text.contains(['/', ' ', '\0']) {
        return Ok(text.to_owned());
    }
    let rule = "it must be 1 to 15 bytes without blank and slash";
    Err(Invalid::new("interface", format!("interface {text:?} is no name of a network interface: {rule}")))
}

/// A check as it is listed.
pub fn check_view(spec: &CheckSpec, servers: &[ServerHealth]) -> api::Check {
    let mut check = api::Check {
        service: service_name(&spec.service),
        kind: spec.probe.name().to_owned(),
        port: spec.port,
        interface: spec.device.clone(),
        interval: spec.interval.as_secs(),
        timeout: spec.timeout.as_secs(),
        rise: spec.rise,
        fall: spec.fall,
        path: None,
        host: None,
        status: None,
        payload: None,
        reply: None,
        servers: servers.iter().map(server_view).collect(),
    };
    match &spec.probe {
        Probe::Tcp => {}
        Probe::Http { path, host, status: (first, last) } => {
            check.path = Some(path.clone());
            check.host.clone_from(host);
            check.status = Some(if first == last { first.to_string() } else { format!("{first}-{last}") });
        }
        Probe::Udp { payload, reply } => {
            check.payload = Some(String::from_utf8_lossy(payload).into_owned());
            check.reply = Some(*reply);
        }
    }
    check
}

fn server_view(server: &ServerHealth) -> api::CheckedServer {
    let verdict = &server.verdict;
    api::CheckedServer {
        address: server.address,
        port: server.port,
        up: verdict.up,
        since: verdict.since.elapsed().as_secs(),
        weight: server.taken,
        error: verdict.error.clone(),
        checks: verdict.checks,
        failures: verdict.failures,
        took: u64::try_from(verdict.took.as_micros()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(rest: &str) -> Result<CheckSpec, String> {
        let text = format!(r#"{{"service":"tcp:10.0.0.1:80"{rest}}}"#);
        let asked: api::CheckSet = serde_json::from_str(&text).unwrap();
        CheckSpec::try_from(&asked).map_err(|invalid| format!("{}: {invalid}", invalid.field))
    }

    #[test]
    fn a_check_has_defaults_and_is_listed_as_it_was_asked_for() {
        let spec = asked(r#","kind":"tcp""#).unwrap();
        assert_eq!((spec.interval.as_secs(), spec.timeout.as_secs(), spec.rise, spec.fall), (10, 1, 1, 3));
        let http = asked(
            r#","kind":"http","path":"/live?x=1","host":"www","status":"204","port":8080,"interface":"eth0",
               "interval":5,"timeout":5,"rise":2,"fall":1"#,
        );
        let view = check_view(&http.unwrap(), &[]);
        assert_eq!((view.service.as_str(), view.kind.as_str()), ("tcp:10.0.0.1:80", "http"));
        assert_eq!((view.path.as_deref(), view.host.as_deref()), (Some("/live?x=1"), Some("www")));
        assert_eq!((view.status.as_deref(), view.port, view.fall), (Some("204"), Some(8080), 1));
        let udp = check_view(&asked(r#","kind":"udp","payload":"ping","reply":true"#).unwrap(), &[]);
        assert_eq!((udp.payload.as_deref(), udp.reply, udp.path), (Some("ping"), Some(true), None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (rest, expected) in [
            (r#","kind":"icmp""#, "kind: kind \"icmp\" is unknown: it must be tcp, http or udp"),
            (r#","kind":"tcp","path":"/""#, "path: path says nothing to a tcp check: it is for http"),
            (r#","kind":"http","reply":true"#, "reply: reply says nothing to a http check: it is for udp"),
            (r#","kind":"http","path":"live""#, "path: path \"live\" must begin with \"/\""),
            (r#","kind":"http","path":"/a b""#, "path: path \"/a b\" cannot be asked for: "),
            (r#","kind":"http","host":"a\r\nX: y""#, "host: host \"a\\r\\nX: y\" cannot be asked for: "),
            (r#","kind":"http","status":"200-100""#, "status: status \"200-100\" is none: "),
            (r#","kind":"http","status":"700""#, "status: status \"700\" is none: "),
            (r#","kind":"tcp","port":0"#, "port: port 0 is out of range: it must be 1 to 65535"),
            (r#","kind":"tcp","interval":0"#, "interval: interval 0 is out of range"),
            (
                r#","kind":"tcp","timeout":11"#,
                "timeout: timeout 11 is too long: it must be at most the interval, 10",
            ),
            (r#","kind":"tcp","interface":"a/b""#, "interface: interface \"a/b\" is no name"),
            (r#","kind":"tcp","fall":1001"#, "fall: fall 1001 is out of range"),
        ] {
            let message = asked(rest).unwrap_err();
            assert!(message.starts_with(expected), "{message}");
        }
        let any =
            api::CheckSet { service: "tcp:10.0.0.1:0".into(), kind: "tcp".into(), ..Default::default() };
        assert_eq!(CheckSpec::try_from(&any).unwrap_err().field, "port");
    }
}

//! A virtual service with its servers, and its line in the state file: in words like ipvsadm's, since twenty thousand of
//! them are written down before one command is answered.
#![forbid(unsafe_code)]

use std::fmt::{self, Display, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::config::spec::{SCHEDULERS, service_key, service_name};
use crate::ipvs::spec::{
    DestinationSpec, Forward, Persistence, SchedulerFlags, ServiceKey, ServiceSpec, Tunnel, TunnelChecksum,
};

/// A virtual service and its servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The service.
    pub spec: ServiceSpec,
    /// Its servers, in the order in which they were added.
    pub servers: Vec<DestinationSpec>,
}

/// `SERVICE -s SCHEDULER [-b FLAGS] [-p SECONDS MASK] [--sip] [-o]`, then for each server `-r ADDRESS:PORT`, the way
/// there, unless it is routed (`-m`, `-i KIND ...`, `-f FIRST LAST`), and what is not as usual of weight and thresholds
/// (`-w`, `-x`, `-y`).
impl Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServiceSpec { key, scheduler, flags, persistence, one_packet } = &self.spec;
        let scheduler = SCHEDULERS.iter().find(|(_, known)| Some(*known) == *scheduler);
        write!(f, "{} -s {}", service_name(key), scheduler.map_or("none", |(name, _)| name))?;
        if flags.0 != 0 {
            write!(f, " -b {}", flags.0)?;
        }
        if let Some(Persistence { timeout, mask, sip }) = persistence {
            write!(f, " -p {timeout} {mask}{}", if *sip { " --sip" } else { "" })?;
        }
        if *one_packet {
            f.write_str(" -o")?;
        }
        for DestinationSpec { address, port, forward, weight, upper, lower } in &self.servers {
            write!(f, " -r {}", SocketAddr::new(*address, *port))?;
            let sum = |checksum: &TunnelChecksum| *checksum as u8;
            match forward {
                Forward::Route => Ok(()),
                Forward::Masquerade => f.write_str(" -m"),
                Forward::Tunnel(Tunnel::Ipip) => f.write_str(" -i ipip"),
                Forward::Tunnel(Tunnel::Gue { port, checksum }) => {
                    write!(f, " -i gue {port} {}", sum(checksum))
                }
                Forward::Tunnel(Tunnel::Gre { checksum }) => write!(f, " -i gre {}", sum(checksum)),
                Forward::FullNat { first, last } => write!(f, " -f {first} {last}"),
            }?;
            for (word, value, usual) in [("-w", *weight as u32, 1), ("-x", *upper, 0), ("-y", *lower, 0)] {
                if value != usual {
                    write!(f, " {word} {value}")?;
                }
            }
        }
        Ok(())
    }
}

/// It is not what [`Service`] writes.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} describes no service")]
pub struct NoService(String);

impl FromStr for Service {
    type Err = NoService;

    fn from_str(text: &str) -> Result<Self, NoService> {
        read(text).ok_or_else(|| NoService(text.chars().take(200).collect()))
    }
}

fn read(text: &str) -> Option<Service> {
    let mut words = text.split(' ').peekable();
    let key = service_key(words.next()?).ok()?;
    let mut spec = ServiceSpec {
        key,
        scheduler: None,
        flags: SchedulerFlags::default(),
        persistence: None,
        one_packet: false,
    };
    let mut servers: Vec<DestinationSpec> = Vec::with_capacity(3);
    while let Some(word) = words.next() {
        match (word, servers.last_mut()) {
            ("-s", None) => {
                let name = words.next()?;
                let known = SCHEDULERS.iter().find(|(known, _)| *known == name);
                spec.scheduler = known.map(|(_, scheduler)| *scheduler);
                if known.is_none() && name != "none" {
                    return None;
                }
            }
            ("-b", None) => spec.flags = SchedulerFlags(words.next()?.parse().ok()?),
            ("-p", None) => {
                let (timeout, mask) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
                let sip = words.next_if_eq(&"--sip").is_some();
                spec.persistence = Some(Persistence { timeout, mask, sip });
            }
            ("-o", None) => spec.one_packet = true,
            ("-r", _) => {
                let socket: SocketAddr = words.next()?.parse().ok()?;
                servers.push(DestinationSpec {
                    address: socket.ip(),
                    port: socket.port(),
                    forward: Forward::Route,
                    weight: 1,
                    upper: 0,
                    lower: 0,
                });
            }
            ("-m", Some(server)) => server.forward = Forward::Masquerade,
            ("-i", Some(server)) => {
                server.forward = Forward::Tunnel(match words.next()? {
                    "ipip" => Tunnel::Ipip,
                    "gue" => {
                        Tunnel::Gue { port: words.next()?.parse().ok()?, checksum: checksum(words.next()?)? }
                    }
                    "gre" => Tunnel::Gre { checksum: checksum(words.next()?)? },
                    _ => return None,
                });
            }
            ("-f", Some(server)) => {
                let (first, last): (IpAddr, IpAddr) =
                    (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
                server.forward = Forward::FullNat { first, last };
            }
            ("-w", Some(server)) => server.weight = words.next()?.parse().ok()?,
            ("-x", Some(server)) => server.upper = words.next()?.parse().ok()?,
            ("-y", Some(server)) => server.lower = words.next()?.parse().ok()?,
            _ => return None,
        }
    }
    Some(Service { spec, servers })
}

fn checksum(word: &str) -> Option<TunnelChecksum> {
    [TunnelChecksum::None, TunnelChecksum::Full, TunnelChecksum::Remote].into_iter().find(|one| match word {
        "0" => *one == TunnelChecksum::None,
        "1" => *one == TunnelChecksum::Full,
        "2" => *one == TunnelChecksum::Remote,
        _ => false,
    })
}

impl Serialize for Service {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(48 + 32 * self.servers.len());
        // Into memory: it does not fail.
        let _ = write!(text, "{self}");
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Service {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Services in keys, by their names.
pub(super) mod key {
    use super::*;

    pub(in crate::config::document) fn serialize<S: Serializer>(
        key: &ServiceKey,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&service_name(key))
    }

    pub(in crate::config::document) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<ServiceKey, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        service_key(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_read_as_it_was_written() {
        for text in [
            "tcp:10.0.0.1:80 -s rr",
            "udp:[2001:db8::1]:0 -s sh -b 3 -p 300 ffff:ffff:: --sip -o -r [2001:db8::2]:53 -m -w 0 -x 9 -y 7",
            "mark:5 -s none -p 60 255.255.0.255 -r 10.1.0.1:0 -r 10.1.0.2:0 -w 2147483647 -r [fd00::1]:0 -i ipip",
            "mark6:4294967295 -s mh -b 2 -r 10.1.0.1:0 -i gue 6080 2 -x 5 -r 10.1.0.2:0 -i gre 1 -r 10.1.0.3:1 -f 10.0.0.5 10.0.0.9",
        ] {
            let service: Service = text.parse().unwrap();
            assert_eq!(service.to_string(), text);
            let json = serde_json::to_string(&service).unwrap();
            assert_eq!(serde_json::from_str::<Service>(&json).unwrap(), service);
        }
        for text in [
            "",
            "tcp:10.0.0.1",
            "tcp:10.0.0.1:80 -s RR",
            "tcp:10.0.0.1:80 -s",
            "tcp:10.0.0.1:80 -m",
            "tcp:10.0.0.1:80 -r 10.0.0.1",
            "tcp:10.0.0.1:80 -r 10.0.0.1:1 -s rr",
            "tcp:10.0.0.1:80 -r 10.0.0.1:1 -i gue 5",
            "tcp:10.0.0.1:80 -r 10.0.0.1:1 -i gre 3",
            "tcp:10.0.0.1:80 -r 10.0.0.1:1  -m",
            "tcp:10.0.0.1:80 -r 10.0.0.1:1 -w x",
        ] {
            let refusal = text.parse::<Service>().unwrap_err();
            assert!(refusal.to_string().ends_with("describes no service"), "{text}");
        }
    }
}

//! Secure containers, and Kata's `kata-network` in front of them.
//!
//! NICs and routes are the JSON of openEuler's Kata: keys in their spelling when written, in any case when read, none
//! twice. Texts and numbers are read as what they are and nothing else, but for masks, which come as either.

use std::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::Pin;
use crate::config::Name;

parameters! {
    /// Registers a secure container. Also a `[[container]]` table of the configuration file.
    pub struct ContainerAdd {
        /// Its ID; any unambiguous beginning of it serves in later requests.
        pub id: String,
        /// The socket of its QEMU's monitor (QMP); without it NICs cannot be plugged in.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub qmp: Option<String>,
        /// The bridge that its NICs join; `shunt0` if not given.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub bridge: Option<String>,
        /// Which side of vhost-user sockets shunt is: `server` (the default, QEMU connects) or `client` (QEMU listens).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub role: Option<String>,
        /// How QEMU gets at TAP devices: `descriptor` (the default, shunt opens them) or `name` (QEMU opens them).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub tap: Option<String>,
        /// The agent inside that speaks Kata's protocol: `PATH`, `unix:PATH`, `hvsock:PATH[:PORT]`, `vsock:CID[:PORT]`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub agent: Option<String>,
        /// NICs that its QEMU has already: ports are made for them, and nothing is plugged in.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub nic: Vec<KataInterface>,
        /// Routes inside.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub route: Vec<KataRoute>,
    }

    /// What differs at the port of a container's NIC from what the NIC says, as `port.set` changes it: a `[[nic]]` table
    /// of the configuration file.
    pub struct NicPort {
        /// The NIC's device, after which its port is called.
        pub device: String,
        /// MTU in bytes, where it is not the NIC's, 46 to 9600.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub mtu: Option<i64>,
        /// Queues to bind to the workers of certain cores.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub pins: Vec<Pin>,
        /// Whether the port may send only from its own addresses; if not given, it is so once shunt has assigned it one.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub guard: Option<bool>,
        /// IP addresses, or networks of them, that it may send from beside those that shunt assigns; those of the NIC, if
        /// not given.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub allow_address: Option<Vec<String>>,
        /// Bits per second that may reach the guest, 8 to 1,000,000,000,000; 0: no limit, as if not given.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub ingress_rate: Option<i64>,
        /// Bits of them that may come at once after a pause; a quarter of a second's, at least 524,288, if not given.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub ingress_burst: Option<i64>,
        /// Bits per second that may come from there, as `ingress_rate`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub egress_rate: Option<i64>,
        /// Bits of them that may come at once after a pause.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub egress_burst: Option<i64>,
    }

    /// Forgets a container: its NICs are taken out of its QEMU if that still answers, and their ports, its routes and
    /// its virtual services go.
    pub struct ContainerDel {
        /// Its ID, or the beginning of it.
        pub id: String,
    }

    /// All containers.
    pub struct ContainerList {}

    /// One container.
    pub struct ContainerShow {
        /// Its ID, or the beginning of it.
        pub id: String,
    }

    /// Plugs a NIC into a container and connects it: `kata-network add-iface`.
    pub struct KataAddInterface {
        /// The container's ID, or the beginning of it.
        pub container: String,
        /// The NIC.
        pub interface: KataInterface,
    }

    /// Takes a NIC out of a container: `kata-network del-iface`.
    pub struct KataDelInterface {
        /// The container's ID, or the beginning of it.
        pub container: String,
        /// The NIC, of which only `name` is looked at.
        pub interface: KataInterface,
    }

    /// The NICs of a container: `kata-network list-ifaces`.
    pub struct KataListInterfaces {
        /// The container's ID, or the beginning of it.
        pub container: String,
    }

    /// Adds routes inside a container, all or none: `kata-network add-route`.
    pub struct KataAddRoute {
        /// The container's ID, or the beginning of it.
        pub container: String,
        /// The routes.
        pub route: Vec<KataRoute>,
    }

    /// Removes routes inside a container: `kata-network del-route`.
    pub struct KataDelRoute {
        /// The container's ID, or the beginning of it.
        pub container: String,
        /// Which: `dest` is needed, what else is not given matches anything.
        pub route: Vec<KataRoute>,
    }

    /// The routes inside a container: `kata-network list-routes`.
    pub struct KataListRoutes {
        /// The container's ID, or the beginning of it.
        pub container: String,
    }
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its ID.
    pub id: String,
    /// The socket of its QEMU's monitor.
    pub qmp: Option<String>,
    /// The bridge of its NICs.
    pub bridge: Name,
    /// Which side of vhost-user sockets shunt is.
    pub role: String,
    /// How QEMU gets at TAP devices.
    pub tap: String,
    /// The agent inside.
    pub agent: Option<String>,
    /// Its NICs.
    pub nics: Vec<KataInterface>,
    /// Its routes, without those that addresses bring with them.
    pub routes: Vec<KataRoute>,
    /// Services and servers in its table.
    pub ipvs_rules: u64,
}

/// A container that is no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerDeleted {
    /// Its ID.
    pub id: String,
    /// Lines for people: NICs that its QEMU still has.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What was done to a NIC, and what its owner should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KataPlugged {
    /// The NIC with what was filled in; `null` when it was removed.
    pub interface: Option<KataInterface>,
    /// Lines for people.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What was done to routes, and what their owner should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KataRouted {
    /// The routes that were added or removed.
    pub routes: Vec<KataRoute>,
    /// Lines for people.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A NIC in a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KataListed {
    /// Its name in the container.
    pub name: String,
    /// Its MAC address.
    pub mac: String,
    /// Its addresses, with their prefix lengths.
    pub ip: Vec<String>,
    /// Its MTU.
    pub mtu: u64,
}

/// A NIC as Kata writes it. What is not given is not written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KataInterface {
    /// The host's NIC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The NIC in the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its addresses.
    #[serde(rename = "IPAddresses", skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<KataAddress>,
    /// Its MTU, 46 to 9600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
    /// Its MAC address.
    #[serde(rename = "hwAddr", skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Where it is plugged in: slot and function of the bridge, slot of the device, in hexadecimal.
    #[serde(rename = "pciAddr", skip_serializing_if = "Option::is_none")]
    pub pci: Option<String>,
    /// `tap` or `vhost-user`, in the answer to a removal that failed.
    #[serde(rename = "linkType", skip_serializing_if = "Option::is_none")]
    pub link_type: Option<String>,
    /// The vhost-user socket; none: a TAP device.
    #[serde(rename = "vhostUserSocket", skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Queue pairs; 0 or none: one pair without multiqueue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<i64>,
    /// The first key that is none of these.
    #[serde(skip)]
    pub unknown: Option<String>,
}

/// An address as Kata writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KataAddress {
    /// 2 for IPv4, 10 for IPv6, 0 where it is not said.
    #[serde(rename = "Family")]
    pub family: i64,
    /// The address.
    #[serde(rename = "Address")]
    pub address: String,
    /// The length of its network's prefix.
    #[serde(rename = "Mask")]
    pub mask: String,
    /// The first key that is none of these.
    #[serde(skip)]
    pub unknown: Option<String>,
}

/// A route as Kata writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KataRoute {
    /// `IP/MASK`, `IP` or `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dest: Option<String>,
    /// The gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The NIC in the container, or `lo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The first key that is none of these.
    #[serde(skip)]
    pub unknown: Option<String>,
}

/// Reads an object with keys in any case, none of them twice; a value of `null` is as if it were not there.
macro_rules! caseless {
    ($type:ident, $what:literal { $($key:literal => $field:ident: $read:ty => $into:expr;)* }) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Object;
                impl<'de> Visitor<'de> for Object {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }
                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<$type, A::Error> {
                        let mut read = $type::default();
                        let mut seen: Vec<String> = Vec::new();
                        while let Some(key) = map.next_key::<String>()? {
                            let lower = key.to_ascii_lowercase();
                            if seen.contains(&lower) {
                                let shown: String = key.chars().take(40).collect();
                                return Err(A::Error::custom(format_args!("field {shown:?} is there twice")));
                            }
                            match lower.as_str() {
                                $($key => {
                                    let within = |error: A::Error| A::Error::custom(format_args!("{key}: {error}"));
                                    if let Some(value) = map.next_value::<Option<$read>>().map_err(within)? {
                                        read.$field = $into(value);
                                    }
                                })*
                                _ => {
                                    map.next_value::<IgnoredAny>()?;
                                    read.unknown.get_or_insert(key);
                                }
                            }
                            // Unknown keys are not kept account of: there may be any number of them.
                            if read.unknown.is_none() {
                                seen.push(lower);
                            }
                        }
                        Ok(read)
                    }
                }
                deserializer.deserialize_map(Object)
            }
        }
    };
}

caseless!(KataInterface, "a NIC as an object" {
    "device" => device: String => Some;
    "name" => name: String => Some;
    "ipaddresses" => addresses: Vec<KataAddress> => |list| list;
    "mtu" => mtu: i64 => Some;
    "hwaddr" => mac: String => Some;
    "pciaddr" => pci: String => Some;
    "linktype" => link_type: String => Some;
    "vhostusersocket" => socket: String => Some;
    "queues" => queues: i64 => Some;
});

caseless!(KataAddress, "an address as an object" {
    "family" => family: i64 => |family| family;
    "address" => address: String => |address| address;
    "mask" => mask: Mask => |mask: Mask| mask.0;
});

caseless!(KataRoute, "a route as an object" {
    "dest" => dest: String => Some;
    "gateway" => gateway: String => Some;
    "device" => device: String => Some;
});

/// A mask: a text, or a number.
struct Mask(String);

impl<'de> Deserialize<'de> for Mask {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Mask;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mask as a text or a number")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Mask, E> {
                Ok(Mask(text.to_owned()))
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Mask, E> {
                Ok(Mask(number.to_string()))
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Mask, E> {
                Ok(Mask(number.to_string()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

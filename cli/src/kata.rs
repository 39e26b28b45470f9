//! openEuler's `kata-network` and `kata-ipvs`: their JSON, their outputs to the letter, their exit status.
//!
//! One JSON document goes to standard output whatever happens, `null` for what failed; why it did goes to standard
//! error. The grammar of the JSON is judged here, its values by the daemon.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shunt_switch::config::arguments::one_line;
use shunt_switch::config::spec::{ContainerRoute, NicSpec};
use shunt_switch::control::api::{self, KataInterface, KataRoute};
use shunt_switch::control::rpc;

use crate::arguments::{Container, Document, KataIpvs, KataNetwork};
use crate::client::{Client, Failure};
use crate::{Asker, REFUSED, UNREACHABLE, ipvsadm, print, show};

/// Longest JSON document, in bytes: a thousand routes take a tenth.
const DOCUMENT: u64 = 1 << 20;
/// How long the daemon may take: QEMU and guests have their own time limits, some of them one after the other.
const PATIENCE: Duration = Duration::from_secs(180);

/// How a command fails.
struct Failed {
    /// For standard output.
    document: String,
    status: u8,
    message: String,
}

impl Failed {
    fn refused(message: impl Into<String>) -> Self {
        Self { document: "null\n".into(), status: REFUSED, message: message.into() }
    }

    fn showing(self, document: &impl Serialize) -> Self {
        match line(document) {
            Ok(document) => Self { document, ..self },
            Err(_) => self,
        }
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        let status = if matches!(failure, Failure::Unreachable(_)) { UNREACHABLE } else { REFUSED };
        Self { status, ..Self::refused(failure.to_string()) }
    }
}

/// One line of JSON.
fn line(document: &impl Serialize) -> Result<String, Failed> {
    let mut text = serde_json::to_string(document).map_err(|e| Failed::refused(e.to_string()))?;
    text.push('\n');
    Ok(text)
}

/// Opens a file, or standard input for `-`.
fn open(path: &Path) -> Result<Box<dyn Read>, Failed> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(std::io::stdin()));
    }
    let file = File::open(path).map_err(|e| Failed::refused(format!("{}: {e}", path.display())))?;
    Ok(Box::new(file))
}

fn read(path: &Path) -> Result<Vec<u8>, Failed> {
    let mut text = Vec::new();
    let read = open(path)?.take(DOCUMENT + 1).read_to_end(&mut text);
    read.map_err(|e| Failed::refused(format!("{}: {e}", path.display())))?;
    if text.len() as u64 > DOCUMENT {
        return Err(Failed::refused(format!(
            "the JSON is longer than {DOCUMENT} bytes: it is none of a NIC or routes"
        )));
    }
    Ok(text)
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Failed> {
    serde_json::from_slice(text)
        .map_err(|e| Failed::refused(format!("the JSON is refused: {}", rpc::explain(&e))))
}

/// One route, or a list of them.
fn routes(text: &[u8]) -> Result<Vec<KataRoute>, Failed> {
    let routes: Vec<KataRoute> = match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => parse(text)?,
        _ => vec![parse(text)?],
    };
    if routes.is_empty() {
        return Err(Failed::refused("the JSON is a list of no routes: give one at least"));
    }
    // The daemon is not sent what it does not know.
    if let Some(strange) = routes.iter().find(|route| route.unknown.is_some()) {
        ContainerRoute::try_from(strange).map_err(|wrong| Failed::refused(wrong.to_string()))?;
    }
    Ok(routes)
}

fn note(verb: &str, notes: &[String]) {
    for note in notes {
        eprintln!("{verb}: note: {note}");
    }
}

/// Ends a command: its document, its message, its status.
fn end(command: &str, result: Result<String, Failed>) -> ExitCode {
    match result {
        Ok(text) => print(&text),
        Err(Failed { document, status, message }) => {
            // Why it failed is more than that it cannot be written.
            let mut output = std::io::stdout().lock();
            let _ = output.write_all(document.as_bytes()).and_then(|()| output.flush());
            eprintln!("{command}: {message}");
            ExitCode::from(status)
        }
    }
}

/// `kata-network`.
pub(crate) fn network(command: &KataNetwork, control: Option<&Path>) -> ExitCode {
    let verb = match command {
        KataNetwork::AddIface(_) => "kata-network add-iface",
        KataNetwork::DelIface(_) => "kata-network del-iface",
        KataNetwork::ListIfaces { .. } => "kata-network list-ifaces",
        KataNetwork::AddRoute(_) => "kata-network add-route",
        KataNetwork::DelRoute(_) => "kata-network del-route",
        KataNetwork::ListRoutes { .. } => "kata-network list-routes",
    };
    end(verb, run(command, control, verb))
}

fn run(command: &KataNetwork, control: Option<&Path>, verb: &str) -> Result<String, Failed> {
    let connect = || Client::connect_patiently(control, PATIENCE);
    match command {
        KataNetwork::AddIface(Document { id, file }) => {
            let interface: KataInterface = parse(&read(file)?)?;
            if interface.unknown.is_some() {
                NicSpec::try_from(&interface).map_err(|wrong| Failed::refused(wrong.to_string()))?;
            }
            let added = connect()?.ask(&api::KataAddInterface { container: id.clone(), interface })?;
            note(verb, &added.notes);
            line(&added.interface)
        }
        KataNetwork::DelIface(Document { id, file }) => {
            let interface: KataInterface = parse(&read(file)?)?;
            remove(&mut connect()?, id, interface, verb)
        }
        KataNetwork::ListIfaces { id } => {
            let listed = connect()?.ask(&api::KataListInterfaces { container: id.clone() })?;
            line(&Some(listed).filter(|listed| !listed.is_empty()))
        }
        KataNetwork::AddRoute(Document { id, file }) => {
            let route = routes(&read(file)?)?;
            let done = connect()?.ask(&api::KataAddRoute { container: id.clone(), route })?;
            note(verb, &done.notes);
            line(&done.routes)
        }
        KataNetwork::DelRoute(Document { id, file }) => {
            let route = routes(&read(file)?)?;
            let done = connect()?.ask(&api::KataDelRoute { container: id.clone(), route })?;
            note(verb, &done.notes);
            line(&done.routes)
        }
        KataNetwork::ListRoutes { id } => {
            let listed = connect()?.ask(&api::KataListRoutes { container: id.clone() })?;
            line(&Some(listed).filter(|listed| !listed.is_empty()))
        }
    }
}

/// Removes a NIC. What could not be removed is shown: as it is, or as it was asked for.
fn remove(client: &mut Client, id: &str, asked: KataInterface, verb: &str) -> Result<String, Failed> {
    let known = match client.ask(&api::ContainerShow { id: id.to_owned() }) {
        Err(Failure::Unreachable(why)) => return Err(Failure::Unreachable(why).into()),
        shown => {
            shown.ok().and_then(|container| container.nics.into_iter().find(|nic| nic.name == asked.name))
        }
    };
    let mut left = known.unwrap_or_else(|| asked.clone());
    let kind = if left.socket.is_some() { "vhost-user" } else { "tap" };
    (left.pci, left.link_type) = (None, Some(kind.to_owned()));
    left.addresses.iter_mut().for_each(|address| address.family = 0);
    let removed = client.ask(&api::KataDelInterface { container: id.to_owned(), interface: asked });
    let removed = removed.map_err(|failure| Failed::from(failure).showing(&left))?;
    note(verb, &removed.notes);
    line(&removed.interface)
}

/// `kata-ipvs`.
pub(crate) fn ipvs(command: &KataIpvs, control: Option<PathBuf>, json: bool) -> ExitCode {
    let failed = |verb: &str, Failed { status, message, .. }: Failed| {
        eprintln!("kata-ipvs {verb}: {message}");
        ExitCode::from(status)
    };
    match command {
        KataIpvs::Cleanup { parameters, id } => match cleanup(parameters, id, control.as_deref()) {
            Ok(text) => print(&text),
            Err(wrong) => failed("cleanup", wrong),
        },
        KataIpvs::Ipvsadm { parameters, restore, replace, id } => {
            let shown = Client::connect(control.as_deref())
                .and_then(|mut client| client.ask(&api::ContainerShow { id: id.clone() }));
            let container = match shown {
                Ok(container) => container,
                Err(failure) => return failed("ipvsadm", failure.into()),
            };
            let (words, input): (Vec<String>, Box<dyn BufRead>) = match restore {
                None => {
                    let words = parameters.iter().flat_map(|text| text.split_ascii_whitespace());
                    (words.map(str::to_owned).collect(), Box::new(Cursor::new([])))
                }
                Some(_) if container.ipvs_rules > 0 && !replace => {
                    let count = container.ipvs_rules;
                    return failed(
                        "ipvsadm",
                        Failed::refused(format!(
                            "the container has {count} rules already: clear them first (--parameters -C), or give --replace"
                        )),
                    );
                }
                Some(path) => {
                    let words = if *replace { vec!["--restore", "--replace"] } else { vec!["--restore"] };
                    match open(path) {
                        Ok(input) => {
                            let input = BufReader::with_capacity(1 << 16, input);
                            (words.into_iter().map(str::to_owned).collect(), Box::new(input))
                        }
                        Err(wrong) => return failed("ipvsadm", wrong),
                    }
                }
            };
            ipvsadm::run_for_kata(&words, container.id, restore.is_some(), input, control, json)
        }
    }
}

/// What `cleanup` takes.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Connections {
    #[arg(long)]
    orig_dst: String,
    #[arg(long)]
    protonum: String,
}

fn cleanup(parameters: &str, id: &str, control: Option<&Path>) -> Result<String, Failed> {
    let wanted = Connections::try_parse_from(parameters.split_ascii_whitespace()).map_err(|wrong| {
        Failed::refused(format!("{}: it takes --orig-dst ADDRESS --protonum tcp|udp", one_line(&wrong)))
    })?;
    if !matches!(wanted.protonum.as_str(), "tcp" | "udp") {
        let given = wanted.protonum;
        return Err(Failed::refused(format!(
            "protonum {given:?} is no protocol of services: it must be tcp or udp"
        )));
    }
    if wanted.orig_dst.parse::<std::net::IpAddr>().is_err() {
        let given = wanted.orig_dst;
        return Err(Failed::refused(format!(
            "orig-dst {given:?} is no IP address: it must be one such as 172.17.0.4"
        )));
    }
    let request = api::IpvsCleanup {
        container: Some(id.to_owned()),
        orig_dst: Some(wanted.orig_dst),
        protonum: Some(wanted.protonum),
        ..api::IpvsCleanup::default()
    };
    let flushed = Client::connect(control)?.ask(&request)?;
    Ok(format!("{} flow entries have been deleted\n", flushed.removed))
}

impl Asker {
    pub(crate) fn container(&mut self, command: &Container) -> Result<String, Failure> {
        match command.clone() {
            Container::Add { id, qmp, bridge, agent, role, tap } => {
                let request = api::ContainerAdd {
                    id,
                    qmp,
                    bridge,
                    agent,
                    role,
                    tap,
                    nic: Vec::new(),
                    route: Vec::new(),
                };
                self.ask(&request, crate::silent)
            }
            Container::Del { id } => {
                self.client.be_patient(PATIENCE)?;
                self.ask(&api::ContainerDel { id }, |deleted| {
                    note("shuntctl: container del", &deleted.notes);
                    String::new()
                })
            }
            Container::List => self.ask(&api::ContainerList {}, |list| show::containers(list)),
            Container::Show { id } => self.ask(&api::ContainerShow { id }, show::container),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(text: &str) -> Result<KataInterface, String> {
        parse(text.as_bytes()).map_err(|failed| failed.message)
    }

    #[test]
    fn keys_are_read_in_any_case_and_written_in_one() {
        let text = r#"{"Device":"tap-test","NAME":"eth-test","ipaddresses":[{"address":"172.16.0.3","MASK":16}],
                       "HWADDR":"02:42:20:6f:a3:69","mtu":1500,"vhostUserSocket":null,"queues":5}"#;
        let written = line(&interface(text).unwrap()).ok().unwrap();
        let same = r#"{"device":"tap-test","name":"eth-test","IPAddresses":[{"Family":0,"Address":"172.16.0.3","Mask":"16"}],"mtu":1500,"hwAddr":"02:42:20:6f:a3:69","queues":5}"#;
        assert_eq!(written.trim_end(), same);
        assert_eq!(interface(same), interface(text));
    }

    #[test]
    fn what_is_no_nic_is_refused_in_one_line() {
        for (text, why) in [
            (r#"{"device":"a","#, "EOF while parsing"),
            ("", "EOF while parsing"),
            (r#"{"mtu":1500,"mtu":1500}"#, "field \"mtu\" is there twice"),
            (r#"{"mtu":1500,"MTU":1500}"#, "field \"MTU\" is there twice"),
            (r#"{"IPAddresses":[{"address":"1.2.3.4","Address":"1.2.3.4"}]}"#, "is there twice"),
            (r#"{"mtu":"1500"}"#, "mtu: invalid type: string \"1500\", expected an integer"),
            (r#"{"mtu":1500.5}"#, "mtu: invalid type: floating point"),
            (r#"{"mtu":99999999999999999999}"#, "mtu: invalid"),
            (r#"{"name":5}"#, "name: invalid type: integer"),
            (r#"{"IPAddresses":{"address":"1.2.3.4"}}"#, "IPAddresses: invalid type: map"),
            (r#"{"IPAddresses":["1.2.3.4/8"]}"#, "IPAddresses: invalid type: string"),
            (r#"{"IPAddresses":[{"mask":[16]}]}"#, "mask: invalid type: sequence"),
            (r#"[]"#, "invalid type: sequence"),
            (r#"{} {}"#, "trailing characters"),
            ("{\"name\":\"\u{1}\"}", "control character"),
        ] {
            let message = interface(text).unwrap_err();
            assert!(message.contains(why), "{text}: {message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
        let deep = "[".repeat(100_000);
        assert!(interface(&format!("{{\"x\":{deep}")).unwrap_err().contains("EOF while parsing"));
        assert!(interface(&format!("{{\"IPAddresses\":{deep}")).is_err());
    }

    #[test]
    fn routes_come_alone_or_in_a_list() {
        let one = br#"{"dest":"default","gateway":"172.16.0.1","device":"eth-test"}"#;
        assert_eq!(routes(one).ok().unwrap().len(), 1);
        let two = [b" [".as_slice(), one, b",", one, b"]"].concat();
        assert_eq!(routes(&two).ok().unwrap().len(), 2);
        assert!(routes(b"[]").err().unwrap().message.contains("no routes"));
        assert!(routes(br#"{"dest":"default","via":"10.0.0.1"}"#).err().unwrap().message.contains("\"via\""));
    }
}

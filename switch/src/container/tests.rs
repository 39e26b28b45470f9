//! The agent's protocol against a small agent that speaks it from the other side, and containers by their beginnings.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::agent::message::{Interface, Route};
use super::agent::{Agent, server};
use super::{Container, Containers};
use crate::config::spec::{AgentAddress, ContainerRoute, ContainerSpec, NicSpec};
use crate::control::api;

fn nic(name: &str) -> NicSpec {
    let text = format!(
        r#"{{"device":"tap-{name}","name":"{name}","IPAddresses":[{{"address":"172.16.0.3","mask":"16"}},{{"address":"fd00::3","mask":64}}],"hwAddr":"02:42:20:6f:a3:69","mtu":1400}}"#
    );
    NicSpec::try_from(&serde_json::from_str::<api::KataInterface>(&text).unwrap()).unwrap()
}

fn route(dest: &str, gateway: &str) -> ContainerRoute {
    let asked = api::KataRoute {
        dest: Some(dest.into()),
        gateway: Some(gateway.into()),
        device: Some("eth-test".into()),
        unknown: None,
    };
    ContainerRoute::try_from(&asked).unwrap()
}

fn connect(address: &AgentAddress) -> Result<Agent, String> {
    Agent::connect(address, &Arc::default()).map_err(|refusal| refusal.to_string())
}

#[test]
fn an_agent_is_told_of_nics_and_routes() {
    let directory = tempfile::tempdir().unwrap();
    for hybrid in [false, true] {
        let path = directory.path().join(format!("{hybrid}.sock"));
        let inside = server::serve(&path, hybrid);
        let address = if hybrid { AgentAddress::Hybrid(path, 1024) } else { AgentAddress::Unix(path) };
        {
            let mut inside = inside.lock().unwrap();
            inside.blind = 2;
            inside.interfaces.push(Interface { name: "lo".into(), ..Interface::default() });
            inside.routes.push(Route {
                gateway: "10.0.2.2".into(),
                device: "eth0".into(),
                ..Route::default()
            });
        }
        let mut agent = connect(&address).unwrap();
        agent.update_interface(&nic("eth-test")).unwrap();
        let found = agent.interfaces().unwrap();
        assert_eq!(found.len(), 2);
        let addresses: Vec<_> =
            found[1].addresses.iter().map(|a| (a.family, a.address.as_str(), a.mask.as_str())).collect();
        assert_eq!(addresses, [(0, "172.16.0.3", "16"), (1, "fd00::3", "64")]);
        assert_eq!((found[1].name.as_str(), found[1].mtu), ("eth-test", 1400));
        assert_eq!(found[1].mac, "02:42:20:6f:a3:69");

        let first = [route("177.17.0.0/24", "172.16.0.9")];
        agent.set_routes(&[], &first).unwrap();
        let second = [first[0].clone(), route("default", "172.16.0.1")];
        agent.set_routes(&first, &second).unwrap();
        let have = |inside: &server::Inside| {
            inside
                .routes
                .iter()
                .map(|r| format!("{} via {} dev {}", r.dest, r.gateway, r.device))
                .collect::<Vec<_>>()
        };
        let both = [
            " via 10.0.2.2 dev eth0",
            "177.17.0.0/24 via 172.16.0.9 dev eth-test",
            " via 172.16.0.1 dev eth-test",
        ];
        assert_eq!(have(&inside.lock().unwrap()), both);
        // One that the guest's kernel refuses.
        let third = [second[0].clone(), second[1].clone(), route("10.0.0.0/8", "192.0.2.1")];
        let refusal = agent.set_routes(&second, &third).unwrap_err().to_string();
        assert!(refusal.contains("UpdateRoutes: Network is unreachable"), "{refusal}");
        agent.set_routes(&second, &[]).unwrap();
        assert_eq!(have(&inside.lock().unwrap()), both[..1]);
        assert_eq!(inside.lock().unwrap().calls[..3], ["UpdateInterface"; 3], "twice it was not there yet");
    }
}

/// Serves one connection with these bytes, whatever is asked.
fn liar(path: &std::path::Path, says: Vec<u8>) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let mut asked = [0; 4096];
        let _ = stream.read(&mut asked);
        let _ = stream.write_all(&says);
    });
}

#[test]
fn an_agent_that_lies_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let frame = |length: u32, stream: u32, kind: u8, data: &[u8]| {
        let mut frame = [length.to_be_bytes(), stream.to_be_bytes()].concat();
        frame.extend([kind, 0]);
        frame.extend(data);
        frame
    };
    for (number, (says, why)) in [
        (Vec::new(), "closed the connection"),
        (frame(100, 1, 2, b"short"), "closed the connection"),
        (frame(5 << 20, 1, 2, b""), "longer than ttrpc allows"),
        (frame(2, 1, 2, b"\xff\xff"), "cannot be understood"),
        (frame(4, 1, 2, b"\x12\x02\x0a\x05"), "cannot be understood"),
        (frame(9, 1, 2, b"\x0a\x07\x08\x05\x12\x03no\n"), "ListInterfaces: no"),
        // The answer to another call, then nothing.
        (frame(0, 3, 2, b""), "closed the connection"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = directory.path().join(format!("{number}.sock"));
        liar(&path, says);
        let refusal = connect(&AgentAddress::Unix(path)).unwrap().interfaces().unwrap_err().to_string();
        assert!(refusal.contains(why) && refusal.lines().count() == 1, "{number}: {refusal}");
    }
    let gone = directory.path().join("gone.sock");
    assert!(connect(&AgentAddress::Unix(gone.clone())).is_err());
    liar(&gone, b"NO 1\n".to_vec());
    let refusal = connect(&AgentAddress::Hybrid(gone, 1024)).err().unwrap();
    assert!(refusal.contains("nobody in the guest listens on port 1024"), "{refusal}");
}

#[test]
fn an_agent_that_says_nothing_is_left_when_it_is_called_off() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let called_off = Arc::new(AtomicBool::new(true));
    let mut agent = Agent::connect(&AgentAddress::Unix(path), &called_off).unwrap();
    assert!(agent.interfaces().unwrap_err().to_string().contains("called off"));
}

/// The kernel's own loopback of VM sockets, where it has one.
#[test]
fn an_agent_is_reached_over_vsock() {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket};
    use std::os::fd::AsRawFd;
    // VMADDR_CID_LOCAL; a port that is hardly used.
    let (cid, port) = (1, 0x6b61_0000 + std::process::id());
    let made = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    let listening = made.and_then(|fd| {
        bind(fd.as_raw_fd(), &VsockAddr::new(cid, port))?;
        listen(&fd, Backlog::new(1)?)?;
        Ok(fd)
    });
    let Ok(fd) = listening else {
        let refusal = connect(&AgentAddress::Vsock(cid, port)).err().unwrap();
        assert!(refusal.starts_with("agent vsock:1:"), "{refusal}");
        return;
    };
    let inside = server::serve_at(UnixListener::from(fd), false);
    inside.lock().unwrap().interfaces.push(Interface { name: "lo".into(), ..Interface::default() });
    assert_eq!(connect(&AgentAddress::Vsock(cid, port)).unwrap().interfaces().unwrap()[0].name, "lo");
}

#[test]
fn containers_are_found_by_unambiguous_beginnings() {
    let mut containers = Containers::default();
    for id in ["6ec7a98", "6ec7b00", "6ec7a98f", "web"] {
        let spec =
            ContainerSpec::try_from(&api::ContainerAdd { id: id.into(), ..Default::default() }).unwrap();
        containers.by_id.insert(spec.id.clone(), Container { spec, nics: Vec::new() });
    }
    for (asked, id) in [("6ec7a98", "6ec7a98"), ("6ec7a98f", "6ec7a98f"), ("6ec7b", "6ec7b00"), ("w", "web")]
    {
        assert_eq!(containers.id(asked).unwrap().as_str(), id);
    }
    let refused = |asked: &str| containers.id(asked).unwrap_err().to_string();
    assert!(refused("6ec7a").contains("is ambiguous: 6ec7a98 and 6ec7a98f begin so"));
    for asked in ["", "x", "webs", "6ec7a98fe"] {
        assert!(refused(asked).starts_with(&format!("container {asked} is not running")), "{asked}");
    }
}

/// A switch with a dispatcher, a QEMU that is none, and an agent, asked as over the control socket.
struct World {
    dispatcher: crate::control::dispatch::Dispatcher,
    runtime: tokio::runtime::Runtime,
    qmp: super::fake_qmp::Qmp,
    inside: Arc<std::sync::Mutex<server::Inside>>,
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        use crate::config::{Poll, Workers};
        let directory = tempfile::tempdir().unwrap();
        let options = crate::switch::Options {
            workers: Workers::Count(1),
            poll: Poll::Adaptive,
            state: None,
            handed: None,
        };
        let mut switch = crate::switch::Switch::start(options).unwrap();
        switch.configure(crate::config::Config::embedded(false).unwrap()).unwrap();
        let world = Self {
            dispatcher: crate::control::dispatch::Dispatcher::new(
                std::rc::Rc::new(switch.into()),
                std::rc::Rc::default(),
            ),
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
            qmp: super::fake_qmp::Qmp::start(&directory.path().join("qmp.sock")),
            inside: server::serve(&directory.path().join("agent.sock"), false),
            directory,
        };
        let at = |file: &str| world.directory.path().join(file).display().to_string();
        let add = serde_json::json!({"id": "6ec7", "qmp": at("qmp.sock"), "agent": at("agent.sock")});
        world.ask("container.add", &add).unwrap();
        world
    }

    fn ask(&self, method: &str, params: &serde_json::Value) -> Result<serde_json::Value, String> {
        let line =
            serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let answer = self.runtime.block_on(self.dispatcher.answer(1, line.as_bytes())).unwrap();
        let mut answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        match answer.get("error") {
            None => Ok(answer["result"].take()),
            Some(error) => Err(error["message"].as_str().unwrap().to_owned()),
        }
    }

    fn add(&self) -> Result<serde_json::Value, String> {
        let nic = serde_json::json!({
            "device": "tap-test", "name": "eth-test", "IPAddresses": [{"address": "172.16.0.3", "mask": "16"}],
            "hwAddr": "02:42:20:6f:a3:69", "mtu": 1400,
            "vhostUserSocket": self.directory.path().join("vhost-user1")
        });
        self.ask("kata.add-iface", &serde_json::json!({"container": "6", "interface": nic}))
    }

    fn routes(&self, method: &str, routes: serde_json::Value) -> Result<serde_json::Value, String> {
        self.ask(method, &serde_json::json!({"container": "6", "route": routes}))
    }
}

#[test]
fn an_agent_is_told_of_what_is_plugged_in_and_refuses_it_as_a_whole() {
    use super::fake_qmp::Fault;
    let world = World::new();
    let added = world.add().unwrap();
    assert_eq!(
        (&added["interface"]["pciAddr"], &added["notes"]),
        (&"01.0/00".into(), &serde_json::json!([]))
    );
    {
        let mut inside = world.inside.lock().unwrap();
        assert_eq!(inside.interfaces.len(), 1);
        assert_eq!((inside.interfaces[0].name.as_str(), inside.interfaces[0].mtu), ("eth-test", 1400));
        // What the guest has made of it is what is listed.
        inside.interfaces[0].mtu = 1300;
    }
    let listed = world.ask("kata.list-ifaces", &serde_json::json!({"container": "6"})).unwrap();
    assert_eq!(listed[0]["mtu"], 1300);
    let dhcp = world.ask("dhcp.show", &serde_json::json!({"interface": "shunt0"})).unwrap();
    assert_eq!(dhcp["reservations"], serde_json::json!([]), "an agent tells, not DHCP");

    let both = serde_json::json!([
        {"dest": "default", "gateway": "172.16.0.1", "device": "eth-test"}, {"dest": "192.0.2.0/24", "device": "lo"}
    ]);
    let routed = world.routes("kata.add-route", both.clone()).unwrap();
    assert_eq!((&routed["routes"], &routed["notes"]), (&both, &serde_json::json!([])));
    let have = || world.inside.lock().unwrap().routes.iter().map(|r| r.device.clone()).collect::<Vec<_>>();
    assert_eq!(have(), ["eth-test", "lo"]);
    world.routes("kata.del-route", serde_json::json!([{"dest": "default"}])).unwrap();
    assert_eq!(have(), ["lo"]);

    // One that is there no more when the NIC is to be set up: it is unplugged again.
    world
        .ask("kata.del-iface", &serde_json::json!({"container": "6", "interface": {"name": "eth-test"}}))
        .unwrap();
    std::fs::remove_file(world.directory.path().join("agent.sock")).unwrap();
    let refusal = world.add().unwrap_err();
    assert!(refusal.starts_with("agent unix:") && refusal.contains("No such file"), "{refusal}");
    assert_eq!(world.qmp.parts(), [] as [String; 0]);
    world.qmp.fault(Fault::Clings);
    let refusal = world.add().unwrap_err();
    assert!(refusal.contains("not all could be undone: the guest did not let go"), "{refusal}");
    assert_eq!(world.ask("port.list", &serde_json::json!({})).unwrap(), serde_json::json!([]));
}

//! Checks of real servers on the loopback interface.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::ipvs::Ipvs;
use crate::ipvs::spec::{DestinationSpec, Forward, Protocol, Scheduler, ServiceSpec};

const KEY: ServiceKey = ServiceKey::Address {
    protocol: Protocol::Tcp,
    address: IpAddr::V4(Ipv4Addr::new(10, 9, 9, 9)),
    port: 80,
};

fn service() -> ServiceSpec {
    ServiceSpec {
        key: KEY,
        scheduler: Some(Scheduler::Rr),
        flags: Default::default(),
        persistence: None,
        one_packet: false,
    }
}

fn server(port: u16, weight: i32) -> DestinationSpec {
    let address = Ipv4Addr::LOCALHOST.into();
    DestinationSpec { address, port, forward: Forward::Masquerade, weight, upper: 0, lower: 0 }
}

fn check(probe: Probe) -> CheckSpec {
    CheckSpec {
        service: KEY,
        probe,
        port: None,
        device: None,
        interval: Duration::from_millis(20),
        timeout: Duration::from_millis(500),
        rise: 2,
        fall: 2,
    }
}

fn http(status: (u16, u16)) -> Probe {
    Probe::Http { path: "/live".into(), host: None, status }
}

/// A scope with one service whose servers have these ports, checked in this way.
struct World {
    ipvs: Ipvs,
    health: Health,
    told: Arc<AtomicUsize>,
}

impl World {
    fn new(probe: Probe, ports: &[u16]) -> Self {
        let ipvs = Ipvs::default();
        ipvs.global().add_service(service()).unwrap();
        for &port in ports {
            ipvs.global().add_destination(KEY, server(port, 7)).unwrap();
        }
        let told = Arc::new(AtomicUsize::new(0));
        let count = told.clone();
        let mut health = Health::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        health.set(check(probe), ipvs.global()).unwrap();
        Self { ipvs, health, told }
    }

    fn weight(&self, port: u16) -> i32 {
        let listing = self.ipvs.global().service(&KEY, &Live::new()).unwrap();
        listing.destinations.iter().find(|server| server.spec.port == port).unwrap().spec.weight
    }

    fn verdict(&self, port: u16) -> ServerHealth {
        let (_, servers) = self.health.list().next().unwrap();
        servers.into_iter().find(|server| server.port == port).unwrap()
    }

    /// Waits until a server has this weight.
    fn until(&mut self, port: u16, weight: i32) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.health.tick(self.ipvs.global());
            if self.weight(port) == weight {
                return;
            }
            assert!(Instant::now() < deadline, "{port} is not {weight}: {:?}", self.verdict(port));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until so many more checks were made.
    fn checks(&mut self, port: u16, more: u64) {
        let target = self.verdict(port).verdict.checks + more;
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.verdict(port).verdict.checks < target {
            assert!(Instant::now() < deadline, "{:?}", self.verdict(port));
            self.health.tick(self.ipvs.global());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.health.tick(self.ipvs.global());
    }
}

/// An HTTP server that answers with a status, 0: with nothing at all.
struct Web {
    port: u16,
    status: Arc<AtomicU16>,
    asked: Arc<std::sync::Mutex<String>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Web {
    fn new(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (status, stop) = (Arc::new(AtomicU16::new(status)), Arc::new(AtomicBool::new(false)));
        let asked = Arc::<std::sync::Mutex<String>>::default();
        let (answer, end, heard) = (status.clone(), stop.clone(), asked.clone());
        let thread = std::thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let mut request = [0; 1024];
                let length = stream.read(&mut request).unwrap_or(0);
                *heard.lock().unwrap() = String::from_utf8_lossy(&request[..length]).into_owned();
                match answer.load(Ordering::SeqCst) {
                    0 => open.push(stream),
                    status => {
                        // A slow one: its answer comes in two parts.
                        let _ = stream.write_all(b"HTTP/1");
                        let _ = write!(stream, ".1 {status} Text\r\nContent-Length: 0\r\n\r\n");
                    }
                }
            }
        });
        Self { port, status, asked, stop, thread: Some(thread) }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().unwrap().join();
    }
}

#[test]
fn a_server_that_closes_its_port_is_taken_out_and_comes_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let good = other.local_addr().unwrap().port();
    let mut world = World::new(Probe::Tcp, &[port, good]);
    world.checks(port, 3);
    assert_eq!((world.weight(port), world.verdict(port).verdict.failures), (7, 0));
    drop(listener);
    world.until(port, 0);
    let health = world.verdict(port);
    assert_eq!((health.taken, health.verdict.up), (Some(7), false));
    assert_eq!(health.verdict.error.as_deref(), Some("connection refused"));
    assert_eq!(world.told.load(Ordering::SeqCst), 1);
    let again = TcpListener::bind(("127.0.0.1", port)).unwrap();
    world.until(port, 7);
    assert_eq!((world.verdict(port).taken, world.weight(good)), (None, 7));
    drop(again);
}

#[test]
fn the_status_of_an_answer_counts() {
    let web = Web::new(204);
    let mut world = World::new(http((200, 399)), &[web.port]);
    world.checks(web.port, 3);
    assert_eq!(world.weight(web.port), 7);
    let asked = web.asked.lock().unwrap().clone();
    assert!(asked.starts_with("GET /live HTTP/1.1\r\nHost: 127.0.0.1:"), "{asked}");
    for (bad, why) in [(500, "status 500 is not 200 to 399"), (0, "no answer within 0.5 s")] {
        web.status.store(bad, Ordering::SeqCst);
        world.until(web.port, 0);
        // If the server came too late for the probes that decided, later ones say what is meant.
        let end = Instant::now() + Duration::from_secs(60);
        while world.verdict(web.port).verdict.error.as_deref() != Some(why) {
            assert!(Instant::now() < end, "{:?} is not {why}", world.verdict(web.port).verdict.error);
            world.health.tick(world.ipvs.global());
            std::thread::yield_now();
        }
        web.status.store(200, Ordering::SeqCst);
        world.until(web.port, 7);
    }
}

#[test]
fn what_does_not_speak_http_is_bad() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let stop = Arc::new(AtomicBool::new(false));
    let end = stop.clone();
    let thread = std::thread::spawn(move || {
        for stream in listener.incoming() {
            if end.load(Ordering::SeqCst) {
                return;
            }
            let _ = stream.unwrap().write_all(&[b'x'; 4096]);
        }
    });
    let mut world = World::new(http((200, 399)), &[port]);
    world.until(port, 0);
    drop(world);
    stop.store(true, Ordering::SeqCst);
    let _ = std::net::TcpStream::connect(("127.0.0.1", port));
    thread.join().unwrap();
}

#[test]
fn a_closed_port_of_udp_is_bad_and_silence_if_an_answer_is_wanted() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let silent = Probe::Udp { payload: b"ping".to_vec(), reply: false };
    let mut world = World::new(silent, &[port]);
    world.checks(port, 2);
    assert_eq!(world.weight(port), 7);
    let mut payload = [0; 10];
    assert_eq!((socket.recv(&mut payload).unwrap(), &payload[..4]), (4, &b"ping"[..]));
    // Another check of the same service.
    let wanted = Probe::Udp { payload: b"ping".to_vec(), reply: true };
    world.health.set(check(wanted), world.ipvs.global()).unwrap();
    world.until(port, 0);
    let silent = Probe::Udp { payload: Vec::new(), reply: false };
    world.health.set(check(silent), world.ipvs.global()).unwrap();
    world.until(port, 7);
    drop(socket);
    world.until(port, 0);
    assert_eq!(world.verdict(port).verdict.error.as_deref(), Some("datagram refused"));
}

#[test]
fn what_an_operator_changes_is_respected() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut world = World::new(Probe::Tcp, &[port]);
    drop(listener);
    world.until(port, 0);
    // A new weight for a server that is out: it stays out, and comes back with that.
    world.ipvs.global().edit_destination(KEY, server(port, 3)).unwrap();
    world.until(port, 0);
    assert_eq!(world.verdict(port).taken, Some(3));
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    world.until(port, 3);
    // One that was drained by hand stays so.
    world.ipvs.global().edit_destination(KEY, server(port, 0)).unwrap();
    world.checks(port, 3);
    assert_eq!((world.weight(port), world.verdict(port).taken), (0, None));
    // Without a check, what was taken comes back.
    world.ipvs.global().edit_destination(KEY, server(port, 5)).unwrap();
    drop(listener);
    world.until(port, 0);
    assert!(
        world.health.remove(&KEY, world.ipvs.global()) && !world.health.remove(&KEY, world.ipvs.global())
    );
    assert_eq!(world.weight(port), 5);
    assert!(world.health.is_idle());
}

#[test]
fn servers_and_services_come_and_go() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut world = World::new(Probe::Tcp, &[]);
    world.ipvs.global().add_destination(KEY, server(port, 2)).unwrap();
    world.health.tick(world.ipvs.global());
    world.checks(port, 2);
    world.ipvs.global().delete_service(KEY).unwrap();
    world.health.tick(world.ipvs.global());
    assert!(world.health.list().next().unwrap().1.is_empty());
    world.ipvs.global().add_service(service()).unwrap();
    world.ipvs.global().add_destination(KEY, server(port, 2)).unwrap();
    world.health.tick(world.ipvs.global());
    drop(listener);
    world.until(port, 0);
}

#[test]
fn an_interface_that_is_not_there_is_said() {
    let mut world = World::new(Probe::Tcp, &[9]);
    let by = CheckSpec { device: Some("no-such-device".into()), ..check(Probe::Tcp) };
    world.health.set(by, world.ipvs.global()).unwrap();
    world.until(9, 0);
    let error = world.verdict(9).verdict.error.unwrap();
    assert!(error.starts_with("cannot ask by the interface \"no-such-device\": "), "{error}");
}

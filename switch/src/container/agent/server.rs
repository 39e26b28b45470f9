//! A small agent for tests: speaks the protocol from its other side, with a guest that is a list of NICs and routes.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::message::{Interface, List, Message, Request, Response, Route, Status};

/// The guest that the agent looks after.
#[derive(Debug, Default)]
pub(in crate::container) struct Inside {
    /// NICs that its kernel has found.
    pub(in crate::container) interfaces: Vec<Interface>,
    /// Routes.
    pub(in crate::container) routes: Vec<Route>,
    /// UpdateInterface finds nothing that often.
    pub(in crate::container) blind: usize,
    /// Names of the calls so far.
    pub(in crate::container) calls: Vec<String>,
}

/// Serves connections at `path`; with `hybrid`, each asks for port 1024 first.
pub(in crate::container) fn serve(path: &Path, hybrid: bool) -> Arc<Mutex<Inside>> {
    serve_at(UnixListener::bind(path).unwrap(), hybrid)
}

/// The same, at a socket of any family.
pub(in crate::container) fn serve_at(listener: UnixListener, hybrid: bool) -> Arc<Mutex<Inside>> {
    let inside = Arc::<Mutex<Inside>>::default();
    let guest = inside.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let guest = guest.clone();
            std::thread::spawn(move || connection(stream, hybrid, &guest));
        }
    });
    inside
}

fn connection(stream: UnixStream, hybrid: bool, inside: &Mutex<Inside>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    if hybrid {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line != "CONNECT 1024\n" {
            return None;
        }
        stream.write_all(b"OK 1073741824\n").ok()?;
    }
    loop {
        let mut header = [0; 10];
        reader.read_exact(&mut header).ok()?;
        let length = u32::from_be_bytes(header[..4].try_into().ok()?);
        let mut data = vec![0; length as usize];
        reader.read_exact(&mut data).ok()?;
        let request = Request::decode(&data).ok()?;
        let response = answer(&request, &mut inside.lock().unwrap_or_else(PoisonError::into_inner)).encode();
        header[..4].copy_from_slice(&(response.len() as u32).to_be_bytes());
        header[8] = 2;
        stream.write_all(&header).ok()?;
        stream.write_all(&response).ok()?;
    }
}

fn answer(request: &Request, inside: &mut Inside) -> Response {
    assert_eq!(request.service, "grpc.AgentService");
    assert!(request.timeout_nano > 0);
    inside.calls.push(request.method.clone());
    let fail = |message: &str| Response {
        status: Status { code: 13, message: message.into() },
        payload: Vec::new(),
    };
    let payload = match request.method.as_str() {
        "UpdateInterface" => {
            let mut asked = List::<Interface>::decode(&request.payload).unwrap().0;
            let asked = asked.remove(0);
            if inside.blind > 0 {
                inside.blind -= 1;
                return fail("Link not found");
            }
            inside.interfaces.retain(|interface| interface.mac != asked.mac);
            inside.interfaces.push(asked.clone());
            asked.encode()
        }
        "ListInterfaces" => List(inside.interfaces.clone()).encode(),
        "UpdateRoutes" => {
            let asked = List::<List<Route>>::decode(&request.payload).unwrap().0.remove(0);
            if asked.0.iter().any(|route| route.gateway == "192.0.2.1") {
                return fail("Network is unreachable");
            }
            inside.routes.clone_from(&asked.0);
            asked.encode()
        }
        "ListRoutes" => {
            // As the real one does it.
            let listed = inside.routes.iter().map(|route| Route {
                dest: if route.gateway.is_empty() { route.dest.clone() } else { "0.0.0.0".into() },
                ..route.clone()
            });
            List(listed.collect::<Vec<_>>()).encode()
        }
        _ => return fail("unimplemented"),
    };
    Response { status: Status::default(), payload }
}

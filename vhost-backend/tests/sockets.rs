//! What happens at a port's socket path.

mod common;

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::Path,
    time::{Duration, Instant},
};

use common::{Port, config, start};
use vhost_backend::device::{Device, DeviceError, Role, State};

fn refused(path: &Path, text: &str) {
    let error = start(path, Role::Server).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(text), "{error} does not say {text}");
}

#[test]
fn the_file_is_for_owner_and_group_and_goes_with_the_port() {
    let port = Port::server(1);
    let file = fs::symlink_metadata(&port.path).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o7777, 0o660);
    let Port { device, path, dir, .. } = port;
    drop(device);
    assert!(!path.exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing else was left there");
}

#[test]
fn somebody_elses_file_is_left_alone() {
    let port = Port::server(1);
    fs::remove_file(&port.path).unwrap();
    fs::write(&port.path, "precious").unwrap();
    port.device.stop();
    assert_eq!(fs::read(&port.path).unwrap(), b"precious");
    refused(&port.path, "exists and is not a socket");
    assert_eq!(fs::read(&port.path).unwrap(), b"precious");
    // Neither does a link lead anywhere.
    let link = port.dir.path().join("link");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    refused(&link, "exists and is not a socket");
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "std leaves the file behind");
    let device = start(&path, Role::Server).unwrap();
    UnixStream::connect(&path).unwrap();
    refused(&path, "is in use by a running process");
    drop(device);

    let listener = UnixListener::bind(&path).unwrap();
    let error = start(&path, Role::Server).map(|_| ()).unwrap_err();
    assert!(matches!(error, DeviceError::InUse(_)), "{error}");
    drop(listener);
}

#[test]
fn paths_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    refused(Path::new("s"), "socket path s is not absolute");
    refused(&dir.path().join("not/there"), "there is no directory");
    let fill = |len: usize| dir.path().join("x".repeat(len - dir.path().as_os_str().len() - 1));
    refused(&fill(108), "has 108 bytes; at most 107 are possible");
    drop(start(&fill(107), Role::Server).unwrap());
    // A client has the same rules, but the VMM may make the directory later.
    assert!(start(&fill(108), Role::Client).is_err());
    drop(start(&dir.path().join("not/there"), Role::Client).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn queue_pairs_have_bounds() {
    let dir = tempfile::tempdir().unwrap();
    for pairs in [0, 129, u16::MAX] {
        let made =
            Device::start(config(&dir.path().join("s"), Role::Server, pairs), std::sync::Arc::new(|| ()));
        assert!(matches!(made, Err(DeviceError::QueuePairs(n)) if n == pairs));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let port = Port::server(128);
    let mut vmm = port.vmm();
    vmm.boot();
    assert_eq!(port.state(), State::Up);
}

#[test]
fn frontends_that_come_and_go_are_not_served_in_a_hot_loop() {
    let port = Port::server(1);
    let began = Instant::now();
    for _ in 0..6 {
        // Served when it ends: the other end is closed only then.
        let stream = UnixStream::connect(&port.path).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
        assert_eq!(std::io::Read::read(&mut &stream, &mut [0]).unwrap(), 0);
    }
    // 10 + 20 + 40 + 80 + 160 ms between the six.
    assert!(began.elapsed() >= Duration::from_millis(310), "{:?}", began.elapsed());
}

#[test]
fn a_client_says_what_it_waits_for() {
    let port = Port::new(Role::Client, 1);
    port.wait_for_end("No such file or directory");
    let (state, reason) = port.device.state();
    assert_eq!(state, State::Connecting);
    assert!(reason.starts_with(&format!("connecting to {}", port.path.display())), "{reason}");
}

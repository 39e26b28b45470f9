//! One check of one server: a connection, a request, or a datagram. What a server sends is read to a bound.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::spec::{CheckSpec, Probe};

/// The longest status line of HTTP.
const STATUS_LINE: usize = 512;

/// Asks the server at `address`.
///
/// # Errors
/// Why it is taken for bad.
pub(super) async fn ask(check: &CheckSpec, address: SocketAddr) -> Result<(), String> {
    let device = check.device.as_deref();
    let asked = async {
        match &check.probe {
            Probe::Tcp => connect(address, device).await.map(drop),
            Probe::Http { path, host, status } => http(address, device, path, host.as_deref(), *status).await,
            Probe::Udp { payload, .. } => udp(address, device, payload).await,
        }
    };
    match (timeout(check.timeout, asked).await, &check.probe) {
        (Ok(answer), _) => answer,
        (Err(_), Probe::Udp { reply: false, .. }) => Ok(()),
        (Err(_), _) => Err(format!("no answer within {} s", check.timeout.as_secs_f32())),
    }
}

async fn connect(address: SocketAddr, device: Option<&str>) -> Result<TcpStream, String> {
    let open = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind_device(device.map(str::as_bytes))?;
        io::Result::Ok(socket)
    };
    let socket = open().map_err(|error| unasked(device, &error))?;
    socket.connect(address).await.map_err(|error| reason("connection", &error))
}

async fn http(
    address: SocketAddr,
    device: Option<&str>,
    path: &str,
    host: Option<&str>,
    status: (u16, u16),
) -> Result<(), String> {
    let mut stream = connect(address, device).await?;
    let host = host.map_or_else(|| address.to_string(), str::to_owned);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: shunt\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(|error| reason("request", &error))?;
    let (mut line, mut length) = ([0; STATUS_LINE], 0);
    while length < line.len() && !line[..length].contains(&b'\n') {
        match stream.read(&mut line[length..]).await.map_err(|error| reason("answer", &error))? {
            0 => break,
            read => length += read,
        }
    }
    let got = read_status(&line[..length]).ok_or("the answer is not HTTP")?;
    if (status.0..=status.1).contains(&got) {
        return Ok(());
    }
    Err(format!("status {got} is not {} to {}", status.0, status.1))
}

/// The status of a status line (RFC 9112 section 4).
fn read_status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|&byte| byte == b'\n').next()?;
    let rest = line.strip_prefix(b"HTTP/1.")?;
    let [minor, b' ', digits @ ..] = rest else { return None };
    let [a, b, c, end @ ..] = digits else { return None };
    let fine = minor.is_ascii_digit() && matches!(end.first(), None | Some(b' ' | b'\r'));
    let number = [a, b, c].into_iter().all(u8::is_ascii_digit);
    (fine && number)
        .then(|| [a, b, c].into_iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0')))
}

async fn udp(address: SocketAddr, device: Option<&str>, payload: &[u8]) -> Result<(), String> {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.map_err(|error| unasked(device, &error))?;
    socket.bind_device(device.map(str::as_bytes)).map_err(|error| unasked(device, &error))?;
    socket.connect(address).await.map_err(|error| reason("datagram", &error))?;
    socket.send(payload).await.map_err(|error| reason("datagram", &error))?;
    // Whatever it says, it is there.
    let mut answer = [0; 1];
    socket.recv(&mut answer).await.map(drop).map_err(|error| reason("datagram", &error))
}

fn reason(what: &str, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => format!("{what} refused"),
        ErrorKind::HostUnreachable => "no way to the host".to_owned(),
        ErrorKind::NetworkUnreachable => "no route to the network".to_owned(),
        ErrorKind::ConnectionReset => format!("{what} reset"),
        _ => format!("{what}: {error}"),
    }
}

fn unasked(device: Option<&str>, error: &io::Error) -> String {
    match device {
        Some(device) => format!("cannot ask by the interface {device:?}: {error}"),
        None => format!("cannot ask: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn status_lines_are_read() {
        assert_eq!(read_status(b"HTTP/1.1 200 OK\r\nServer: x\r\n"), Some(200));
        assert_eq!(read_status(b"HTTP/1.0 503\r\n"), Some(503));
        assert_eq!(read_status(b"HTTP/1.1 404"), Some(404));
        for bad in [
            &b""[..],
            b"HTTP/1.1",
            b"HTTP/2 200 OK",
            b"HTTP/1.1 20",
            b"HTTP/1.1 2000 OK",
            b"HTTP/1.x 200 OK",
            b"SSH-2.0-x\r\nHTTP/1.1 200",
            b"HTTP/1.1 2 0 OK",
        ] {
            assert_eq!(read_status(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = read_status(&bytes);
            let _ = read_status(&[b"HTTP/1.1 ".as_slice(), &bytes].concat());
        }
    }
}

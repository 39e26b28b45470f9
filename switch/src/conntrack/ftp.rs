//! What FTP's control connection says about the data connection to come (RFC 959, RFC 2428), read and written anew.
//!
//! A command or answer counts only where its line begins a segment and ends in it: everything else is data of
//! somebody, not FTP's. What the numbers mean is for the caller to judge.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

/// Port of control connections.
pub const PORT: u16 = 21;
/// Longest segment of a control connection that is read.
pub const LONGEST: usize = 512;
/// Longest text that [`Announcement::text`] writes.
pub const TEXT: usize = 64;

/// How an address is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Six numbers with commas: PORT, and the answer 227 to PASV.
    Commas,
    /// Family, address and port between delimiters: EPRT.
    Extended(u8),
    /// The port between delimiters: the answer 229 to EPSV.
    PortOnly(u8),
}

/// Where the other side is to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The address, if one is given.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// Where in the segment's data the text stands that says so.
    pub range: Range<usize>,
    /// How it is written.
    pub form: Form,
}

/// A text of bounded length.
pub struct Text {
    bytes: [u8; TEXT],
    len: usize,
}

impl Text {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

impl Announcement {
    /// What a client's segment announces: PORT or EPRT.
    pub fn of_client(data: &[u8]) -> Option<Self> {
        let line = line(data)?;
        if let Some(rest) = command(line, b"PORT ") {
            commas(line, rest).filter(|(_, end)| *end == line.len()).map(|(found, _)| found)
        } else {
            let rest = command(line, b"EPRT ")?;
            extended(line, rest).filter(|(_, end)| *end == line.len()).map(|(found, _)| found)
        }
    }

    /// What a server's segment announces: 227 or 229.
    pub fn of_server(data: &[u8]) -> Option<Self> {
        let line = line(data)?;
        if let Some(rest) = command(line, b"227 ") {
            // The words before the numbers are free; the numbers need not be in parentheses.
            let first = rest + line[rest..].iter().position(u8::is_ascii_digit)?;
            commas(line, first).map(|(found, _)| found)
        } else {
            let rest = command(line, b"229 ")?;
            let open = rest + line[rest..].iter().position(|&byte| byte == b'(')? + 1;
            let found = port_only(line, open)?;
            (line.get(found.range.end) == Some(&b')')).then_some(found)
        }
    }

    /// The text that announces `address` and `port` in the same form; none if the form cannot.
    pub fn text(&self, address: IpAddr, port: u16) -> Option<Text> {
        let mut text = Text { bytes: [0; TEXT], len: 0 };
        match (self.form, address) {
            (Form::Commas, IpAddr::V4(address)) => {
                let [a, b, c, d] = address.octets();
                let [high, low] = port.to_be_bytes();
                write!(text, "{a},{b},{c},{d},{high},{low}").ok()?;
            }
            (Form::Commas, IpAddr::V6(_)) => return None,
            (Form::Extended(delimiter), address) => {
                let (family, d) = (if address.is_ipv4() { 1 } else { 2 }, char::from(delimiter));
                write!(text, "{d}{family}{d}{address}{d}{port}{d}").ok()?;
            }
            (Form::PortOnly(delimiter), _) => {
                let d = char::from(delimiter);
                write!(text, "{d}{d}{d}{port}{d}").ok()?;
            }
        }
        Some(text)
    }
}

/// The first line without its end, if it ends here.
fn line(data: &[u8]) -> Option<&[u8]> {
    let end = data.iter().take(LONGEST).position(|&byte| byte == b'\n')?;
    data[..end].strip_suffix(b"\r")
}

/// Where the line goes on behind a command, whose letters may be of either case.
fn command(line: &[u8], word: &[u8]) -> Option<usize> {
    line.get(..word.len()).filter(|start| start.eq_ignore_ascii_case(word)).map(|_| word.len())
}

/// A decimal number of at most `max` at `at`, and where it ends.
fn number(line: &[u8], at: usize, max: u32) -> Option<(u32, usize)> {
    let digits = line.get(at..)?.iter().take(6).take_while(|byte| byte.is_ascii_digit()).count();
    let text = std::str::from_utf8(&line[at..at + digits]).ok()?;
    let value = text.parse().ok().filter(|&value| value <= max)?;
    Some((value, at + digits))
}

/// `a,b,c,d,e,f`.
fn commas(line: &[u8], start: usize) -> Option<(Announcement, usize)> {
    let (mut numbers, mut at) = ([0; 6], start);
    for (i, byte) in numbers.iter_mut().enumerate() {
        if i > 0 {
            at += usize::from(line.get(at) == Some(&b','));
        }
        let (value, end) = number(line, at, 255)?;
        (*byte, at) = (value as u8, end);
        if i < 5 && line.get(at) != Some(&b',') {
            return None;
        }
    }
    let [a, b, c, d, high, low] = numbers;
    let announcement = Announcement {
        address: Some(Ipv4Addr::new(a, b, c, d).into()),
        port: u16::from_be_bytes([high, low]),
        range: start..at,
        form: Form::Commas,
    };
    Some((announcement, at))
}

/// `|family|address|port|`, with any delimiter.
fn extended(line: &[u8], start: usize) -> Option<(Announcement, usize)> {
    let delimiter =
        *line.get(start).filter(|byte| byte.is_ascii_graphic() && !byte.is_ascii_alphanumeric())?;
    let (family, at) = number(line, start + 1, 2)?;
    let rest = line.get(at..)?.strip_prefix(&[delimiter])?;
    let len = rest.iter().position(|&byte| byte == delimiter)?;
    let address: IpAddr = std::str::from_utf8(&rest[..len]).ok()?.parse().ok()?;
    if family != if address.is_ipv4() { 1 } else { 2 } {
        return None;
    }
    let (port, end) = number(line, at + 1 + len + 1, 65_535)?;
    let closed = line.get(end) == Some(&delimiter);
    let form = Form::Extended(delimiter);
    let announcement =
        Announcement { address: Some(address), port: port as u16, range: start..end + 1, form };
    closed.then_some((announcement, end + 1))
}

/// `|||port|`.
fn port_only(line: &[u8], start: usize) -> Option<Announcement> {
    let delimiter =
        *line.get(start).filter(|byte| byte.is_ascii_graphic() && !byte.is_ascii_alphanumeric())?;
    if line.get(start..start + 3)? != [delimiter; 3] {
        return None;
    }
    let (port, end) = number(line, start + 3, 65_535)?;
    let form = Form::PortOnly(delimiter);
    let announcement = Announcement { address: None, port: port as u16, range: start..end + 1, form };
    (line.get(end) == Some(&delimiter)).then_some(announcement)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn server(text: &str) -> Option<(Option<IpAddr>, u16, &str)> {
        Announcement::of_server(text.as_bytes()).map(|found| (found.address, found.port, &text[found.range]))
    }

    fn client(text: &str) -> Option<(Option<IpAddr>, u16, &str)> {
        Announcement::of_client(text.as_bytes()).map(|found| (found.address, found.port, &text[found.range]))
    }

    #[test]
    fn all_four_forms_are_read() {
        let ten = Some(IpAddr::from([10, 0, 0, 2]));
        assert_eq!(client("PORT 10,0,0,2,200,10\r\n"), Some((ten, 51_210, "10,0,0,2,200,10")));
        assert_eq!(client("port 10,0,0,2,0,1\r\nLIST\r\n"), Some((ten, 1, "10,0,0,2,0,1")));
        assert_eq!(client("EPRT |1|10.0.0.2|6275|\r\n"), Some((ten, 6275, "|1|10.0.0.2|6275|")));
        let six = Some("fd00::2".parse().expect("an address"));
        assert_eq!(client("EPRT !2!fd00::2!5282!\r\n"), Some((six, 5282, "!2!fd00::2!5282!")));
        assert_eq!(
            server("227 Entering Passive Mode (10,0,0,2,200,10).\r\n"),
            Some((ten, 51_210, "10,0,0,2,200,10"))
        );
        assert_eq!(server("227 =10,0,0,2,200,10\r\n"), Some((ten, 51_210, "10,0,0,2,200,10")));
        assert_eq!(
            server("229 Entering Extended Passive Mode (|||6446|)\r\n"),
            Some((None, 6446, "|||6446|"))
        );
    }

    #[test]
    fn everything_else_announces_nothing() {
        for text in [
            "",
            "PORT 10,0,0,2,200,10",
            "PORT 10,0,0,2,200,10\n",
            "PORT 10,0,0,2,200,10 \r\n",
            "PORT 10,0,0,256,200,10\r\n",
            "PORT 10,0,0,2,200\r\n",
            "PORT 10,0,0,2,200,10,5\r\n",
            "PORT10,0,0,2,200,10\r\n",
            "X PORT 10,0,0,2,200,10\r\n",
            "STOR x\r\nPORT 10,0,0,2,200,10\r\n",
            "EPRT |1|10.0.0.2|65536|\r\n",
            "EPRT |2|10.0.0.2|6275|\r\n",
            "EPRT |1|10.0.0.2|6275\r\n",
            "EPRT 1110.0.0.216275|\r\n",
            "227 Entering Passive Mode (10,0,0,2,200,10).\r\n",
        ] {
            assert_eq!(client(text), None, "{text:?}");
        }
        for text in [
            "227 Entering Passive Mode\r\n",
            "226 (10,0,0,2,200,10)\r\n",
            "229 Entering Extended Passive Mode (||6446|)\r\n",
            "229 Entering Extended Passive Mode (|||6446)\r\n",
            "229 |||6446|\r\n",
            "PORT 10,0,0,2,200,10\r\n",
        ] {
            assert_eq!(server(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(a: [u8; 4], b: [u8; 16], port: u16, which in 0..4_usize) {
            let (v4, v6) = (IpAddr::from(a), IpAddr::from(b));
            let made = |form, text: &Text| {
                let body = std::str::from_utf8(text.bytes()).expect("text").to_owned();
                match form {
                    0 => Announcement::of_client(format!("PORT {body}\r\n").as_bytes()),
                    1 | 2 => Announcement::of_client(format!("EPRT {body}\r\n").as_bytes()),
                    _ => Announcement::of_server(format!("229 Entering ({body})\r\n").as_bytes()),
                }
            };
            let form = [Form::Commas, Form::Extended(b'|'), Form::Extended(b'|'), Form::PortOnly(b'|')][which];
            let address = if which == 2 { v6 } else { v4 };
            let text = Announcement { address: None, port: 0, range: 0..0, form }.text(address, port).expect("fits");
            let read = made(which, &text).expect("read");
            prop_assert_eq!((read.port, read.form), (port, form));
            prop_assert_eq!(read.address, (which != 3).then_some(address));
        }

        #[test]
        fn no_bytes_hurt(data in proptest::collection::vec(any::<u8>(), 0..200), which in 0..4_usize) {
            let start: &[u8] = [b"PORT ", b"EPRT ", b"227 (", b"229 ("][which];
            for data in [&data[..], &[start, &data, b"\r\n"].concat()] {
                for found in [Announcement::of_client(data), Announcement::of_server(data)].iter().flatten() {
                    prop_assert!(found.range.end <= data.len());
                }
            }
        }
    }
}

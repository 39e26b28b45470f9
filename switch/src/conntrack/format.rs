//! Connections in the words of conntrack(8) 1.4.7, for scripts that were written for it.
#![forbid(unsafe_code)]

use std::fmt::Write;

use super::record::{Record, Side};

/// One line, without its end; with the counters of both directions if wanted, as conntrack(8) prints them where
/// accounting is on.
pub fn line(record: &Record, counters: bool) -> String {
    let mut text = format!("{:<8} {} {} ", record.proto.name(), record.proto.0, record.timeout);
    // Writing into a string cannot fail.
    if let Some(state) = &record.state {
        let _ = write!(text, "{state} ");
    }
    side(&mut text, &record.original, counters);
    if !record.replied {
        text.push_str("[UNREPLIED] ");
    }
    side(&mut text, &record.reply, counters);
    if record.assured {
        text.push_str("[ASSURED] ");
    }
    text.push_str("mark=0 use=1");
    text
}

fn side(text: &mut String, side: &Side, counters: bool) {
    let _ = write!(text, "src={} dst={} ", side.source, side.dest);
    if let (Some(sport), Some(dport)) = (side.sport, side.dport) {
        let _ = write!(text, "sport={sport} dport={dport} ");
    }
    if let (Some(kind), Some(code), Some(id)) = (side.kind, side.code, side.id) {
        let _ = write!(text, "type={kind} code={code} id={id} ");
    }
    if counters {
        let _ = write!(text, "packets={} bytes={} ", side.packets, side.bytes);
    }
}

/// What conntrack(8) says on standard error after a listing (`shown`) or a flush (`deleted`).
pub fn trailer(entries: u64, done: &str) -> String {
    format!("conntrack v{} (shunt): {entries} flow entries have been {done}.", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::record::Protocol;

    fn tcp() -> Record {
        let side = |source: [u8; 4], dest: [u8; 4], sport, dport, packets| Side {
            source: source.into(),
            dest: dest.into(),
            sport: Some(sport),
            dport: Some(dport),
            kind: None,
            code: None,
            id: None,
            packets,
            bytes: packets * 60,
        };
        Record {
            proto: Protocol(6),
            timeout: 431_999,
            state: Some("ESTABLISHED".into()),
            original: side([10, 0, 0, 2], [10, 0, 0, 1], 22, 49431, 3),
            reply: side([10, 0, 0, 1], [10, 0, 0, 2], 49431, 22, 2),
            replied: true,
            assured: true,
            related: false,
            ingress: 1,
        }
    }

    #[test]
    fn lines_are_those_of_conntrack() {
        assert_eq!(
            line(&tcp(), false),
            "tcp      6 431999 ESTABLISHED src=10.0.0.2 dst=10.0.0.1 sport=22 dport=49431 \
             src=10.0.0.1 dst=10.0.0.2 sport=49431 dport=22 [ASSURED] mark=0 use=1"
        );
        assert_eq!(
            line(&Record { replied: false, assured: false, ..tcp() }, true),
            "tcp      6 431999 ESTABLISHED src=10.0.0.2 dst=10.0.0.1 sport=22 dport=49431 packets=3 bytes=180 \
             [UNREPLIED] src=10.0.0.1 dst=10.0.0.2 sport=49431 dport=22 packets=2 bytes=120 mark=0 use=1"
        );
        let mut ping = Record { proto: Protocol(1), timeout: 29, state: None, assured: false, ..tcp() };
        for (side, kind) in [(&mut ping.original, 8), (&mut ping.reply, 0)] {
            (side.sport, side.dport) = (None, None);
            (side.kind, side.code, side.id) = (Some(kind), Some(0), Some(7));
        }
        assert_eq!(
            line(&ping, false),
            "icmp     1 29 src=10.0.0.2 dst=10.0.0.1 type=8 code=0 id=7 \
             src=10.0.0.1 dst=10.0.0.2 type=0 code=0 id=7 mark=0 use=1"
        );
    }

    #[test]
    fn records_survive_json() {
        let json = serde_json::to_value(tcp()).expect("a record");
        assert_eq!(
            (&json["proto"], &json["sport"], &json["reply"]["dport"]),
            (&"tcp".into(), &22.into(), &22.into())
        );
        assert_eq!(serde_json::from_value::<Record>(json).expect("the same"), tcp());
    }
}

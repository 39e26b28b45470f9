//! Messages: round trips, what is refused, hostile input.
#![forbid(unsafe_code)]

use proptest::prelude::*;

use super::*;

fn connection() -> SyncConnection {
    SyncConnection {
        protocol: 6,
        flags: ConnectionFlags(0),
        state: 1,
        client: "10.0.1.2:40000".parse().unwrap(),
        service: "10.9.9.9:80".parse().unwrap(),
        server: "10.0.2.11:8080".parse().unwrap(),
        mark: 0,
        timeout: 900,
        shifts: None,
        engine: None,
        source: None,
    }
}

fn one(connection: &SyncConnection) -> Vec<u8> {
    let mut encoder = Encoder::new(7, 1472);
    assert!(encoder.push(connection));
    encoder.message().to_vec()
}

fn all(bytes: &[u8]) -> Vec<Result<SyncConnection, Fault>> {
    Message::parse(bytes).unwrap().connections().collect()
}

/// Changes bytes of the only connection, and the length if bytes are added at the end.
fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut message = one(&connection());
    message.resize(message.len().max(HEADER + at + bytes.len()), 0);
    message[HEADER + at..HEADER + at + bytes.len()].copy_from_slice(bytes);
    let (total, length) = (message.len() as u16, (message.len() - HEADER) as u16);
    message[2..4].copy_from_slice(&total.to_be_bytes());
    if at >= FIXED[0] {
        message[HEADER + 2..HEADER + 4].copy_from_slice(&length.to_be_bytes());
    }
    message
}

#[test]
fn a_message_is_laid_out_as_linux_lays_it_out() {
    let expected = [
        &[0, 7, 0, 44, 1, 1, 0, 0][..],
        &[0, 6, 0, 36, 0, 0, 0, 0],
        &[0, 1, 0x9c, 0x40, 0, 80, 0x1f, 0x90],
        &[0, 0, 0, 0, 0, 0, 3, 0x84],
        &[10, 0, 1, 2, 10, 9, 9, 9, 10, 0, 2, 11],
    ];
    assert_eq!(one(&connection()), expected.concat());
}

/// A message that a Linux 6.1 kernel sent: TCP translated, the same under a template of 10.0.1.0/24, IPv6, UDP routed and
/// tunnelled, under a mark's template, under one for all ports, and SIP's.
fn of_linux() -> Vec<u8> {
    let digits: Vec<u8> =
        include_str!("linux.hex").bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

#[test]
fn what_linux_says_is_understood_and_said_alike() {
    let bytes = of_linux();
    let message = Message::parse(&bytes).unwrap();
    assert_eq!((message.sync_id(), message.count()), (7, 20));
    let heard: Vec<_> = message.connections().map(Result::unwrap).collect();
    let tcp = SyncConnection {
        client: "10.0.1.2:32964".parse().unwrap(),
        server: "10.0.2.11:80".parse().unwrap(),
        ..connection()
    };
    assert_eq!(heard[0], tcp);
    let over = SyncConnection { flags: ConnectionFlags(0x100), state: 5, timeout: 120, ..tcp.clone() };
    assert_eq!(heard[1], over);
    let template = SyncConnection {
        flags: ConnectionFlags(ConnectionFlags::TEMPLATE | ConnectionFlags::INACTIVE),
        client: "10.0.1.0:0".parse().unwrap(),
        service: "10.9.9.9:81".parse().unwrap(),
        server: "10.0.2.12:80".parse().unwrap(),
        timeout: 300,
        ..tcp
    };
    assert_eq!(heard[3], template);
    assert_eq!((heard[6].service, heard[6].state), ("[fd00:9::9]:80".parse().unwrap(), 1));
    assert_eq!((heard[9].protocol, heard[9].flags.method()), (17, Some(Method::Route)));
    assert!(heard[9].flags.any(ConnectionFlags::NO_OUTPUT));
    assert_eq!(heard[10].flags.method(), Some(Method::Tunnel));
    let marked = &heard[12];
    assert_eq!((marked.protocol, marked.mark, marked.service), (0, 5, "0.0.0.5:0".parse().unwrap()));
    let sip = heard[19].engine.as_deref().unwrap();
    assert_eq!((&sip.name[..], &sip.data[..]), (&b"sip"[..], &b"a84b4c76e66710@client.example"[..]));
    let mut encoder = Encoder::new(7, 1472);
    assert!(heard.iter().all(|connection| encoder.push(connection)));
    assert_eq!(encoder.message(), bytes);
}

#[test]
fn messages_end_where_they_are_full() {
    let mut encoder = Encoder::new(0, 8 + 36 * 3 + 35);
    let connection = connection();
    assert!((0..3).all(|_| encoder.push(&connection)));
    assert!(!encoder.push(&connection));
    assert_eq!((encoder.count(), encoder.message().len()), (3, 8 + 36 * 3));
    encoder.clear();
    assert!(encoder.is_empty() && encoder.push(&connection));
    assert_eq!(all(encoder.message()), [Ok(connection.clone())]);
    // More than the header's number holds do not go in, however long messages may be.
    let mut long = Encoder::new(0, 65_507);
    assert_eq!((0..300).filter(|_| long.push(&connection)).count(), MOST);
    assert_eq!(all(long.message()).len(), MOST);
    // One that is too long for any message gets its own.
    assert!(Encoder::new(0, 1).push(&connection));
}

#[test]
fn what_cannot_be_told_is_not() {
    let mixed = SyncConnection { server: "[2001:db8::1]:80".parse().unwrap(), ..connection() };
    let named = |name: &[u8], data: &[u8]| SyncConnection {
        engine: Some(Box::new(Engine { name: name.to_vec(), data: data.to_vec() })),
        ..connection()
    };
    for bad in
        [mixed, named(b"", b"x"), named(&[b'x'; 17], b"x"), named(b"sip", b""), named(b"sip", &[0; 256])]
    {
        assert!(!Encoder::new(0, 1472).push(&bad), "{bad:?}");
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let good = one(&connection());
    let with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        Message::parse(&bad).map(|_| ()).unwrap_err()
    };
    assert_eq!(with(0, 1), Malformed::Version, "version 0 has its count here");
    assert_eq!(with(5, 2), Malformed::Version);
    assert_eq!(with(7, 1), Malformed::Version);
    assert_eq!(with(3, 45), Malformed::Length);
    assert_eq!(Message::parse(&good[..7]).unwrap_err(), Malformed::Short);
    assert_eq!(Message::parse(&good[..43]).unwrap_err(), Malformed::Length);
    assert_eq!(Message::parse(&[]).unwrap_err(), Malformed::Short);
}

#[test]
fn connections_that_lie_end_their_message() {
    let cases: &[(usize, &[u8], Malformed)] = &[
        (0, &[2], Malformed::Type),
        (0, &[1], Malformed::Truncated),
        (2, &[0x10, 36], Malformed::Type),
        (2, &[0, 35], Malformed::Truncated),
        (2, &[0, 0], Malformed::Truncated),
        (2, &[0x0f, 0xff], Malformed::Truncated),
        (36, &[1], Malformed::Parameter),
        (36, &[1, 0], Malformed::Parameter),
        (36, &[1, 24, 0], Malformed::Parameter),
        (36, &[1, 4, 0, 0, 0, 0], Malformed::Parameter),
        (36, &[3, 1, b's', 3, 1, b's'], Malformed::Parameter),
        (36, &[0x70, 5, 0, 80, 10, 0, 0], Malformed::Parameter),
        (36, &[[3, 17].as_slice(), &[b'x'; 17]].concat(), Malformed::Parameter),
    ];
    for (at, bytes, why) in cases {
        assert_eq!(all(&changed(*at, bytes)), [Err(Fault::Malformed(*why))], "{at} {bytes:?}");
    }
    // It claims more than it holds.
    let mut more = one(&connection());
    more[4] = 2;
    assert_eq!(all(&more), [Ok(connection()), Err(Fault::Malformed(Malformed::Truncated))]);
}

#[test]
fn connections_of_unknown_kinds_are_left_out_alone() {
    let cases: &[(usize, &[u8])] = &[
        (1, &[50]),
        (8, &[0, 11]),
        (1, &[17]),
        (7, &[4]),
        (36, &[9, 1, 0]),
        (36, &[0x30, 6, 0, 80, 10, 0, 0, 1]),
        (36, &[2, 1, b'x']),
    ];
    for (at, bytes) in cases {
        let mut message = changed(*at, bytes);
        message.resize(message.len().next_multiple_of(4), 0);
        message.extend_from_slice(&one(&connection())[HEADER..]);
        message[4] = 2;
        let total = (message.len() as u16).to_be_bytes();
        message[2..4].copy_from_slice(&total);
        assert_eq!(all(&message), [Err(Fault::Unknown), Ok(connection())], "{at} {bytes:?}");
    }
    // What may be skipped is.
    assert_eq!(all(&changed(36, &[0x49, 1, 0])), [Ok(connection())]);
    // A template's protocol and state are its own.
    let template = SyncConnection {
        protocol: 0,
        state: 1,
        flags: ConnectionFlags(ConnectionFlags::TEMPLATE),
        ..connection()
    };
    assert_eq!(all(&one(&template)), [Ok(template)]);
}

#[test]
fn flags_that_are_not_told_are_not_believed() {
    let all_bits = changed(4, &[0xff, 0xff, 0xff, 0xf8]);
    let read = all(&all_bits)[0].clone().unwrap();
    assert_eq!(read.flags.0, 0x1980, "bits of shifts come with the shifts only");
    assert_eq!(read.flags.method(), Some(Method::Masquerade));
}

fn ends() -> impl Strategy<Value = [SocketAddr; 3]> {
    prop_oneof![
        any::<[(u32, u16); 3]>().prop_map(|ends| ends.map(|(ip, port)| (Ipv4Addr::from(ip), port).into())),
        any::<[(u128, u16); 3]>().prop_map(|ends| ends.map(|(ip, port)| (Ipv6Addr::from(ip), port).into())),
    ]
}

fn shift() -> impl Strategy<Value = Shift> {
    any::<[u32; 3]>().prop_map(|[first, delta, previous]| Shift { first, delta, previous })
}

fn connections() -> impl Strategy<Value = SyncConnection> {
    let engine = (prop::collection::vec(any::<u8>(), 1..=16), prop::collection::vec(any::<u8>(), 1..=255));
    (
        ends(),
        (any::<u32>(), 0u32..4, any::<u32>(), any::<u32>(), any::<u16>()),
        prop_oneof![Just(6u8), Just(17), Just(132)],
        prop::option::of([shift(), shift()]),
        prop::option::of(engine),
        prop::option::of(ends()),
    )
        .prop_map(|(ends, (flags, method, mark, timeout, state), protocol, shifts, engine, source)| {
            let mut flags = flags & ConnectionFlags::KNOWN & !ConnectionFlags::METHOD | method;
            if shifts.is_none() {
                flags &= !ConnectionFlags::SEQUENCES;
            }
            SyncConnection {
                protocol,
                flags: ConnectionFlags(flags),
                state: state % states_of(protocol),
                client: ends[0],
                service: ends[1],
                server: ends[2],
                mark,
                timeout,
                shifts,
                engine: engine.map(|(name, data)| Box::new(Engine { name, data })),
                source: source.map(|ends| ends[0]),
            }
        })
}

proptest! {
    #[test]
    fn what_is_told_is_understood(told in prop::collection::vec(connections(), 1..40), longest in 8usize..4000) {
        let mut encoder = Encoder::new(42, longest);
        let mut heard = Vec::new();
        let mut read = |encoder: &mut Encoder| {
            let message = Message::parse(encoder.message()).unwrap();
            assert_eq!((message.sync_id(), message.count()), (42, encoder.count()));
            assert!(encoder.message().len() <= longest || encoder.count() == 1);
            heard.extend(message.connections().map(Result::unwrap));
            encoder.clear();
        };
        for connection in &told {
            if !encoder.push(connection) {
                read(&mut encoder);
                prop_assert!(encoder.push(connection));
            }
        }
        read(&mut encoder);
        prop_assert_eq!(heard, told);
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = bytes;
        if let Ok(message) = Message::parse(&bytes) {
            message.connections().for_each(drop);
        }
        // And with a header that passes.
        if bytes.len() >= HEADER {
            let total = (bytes.len() as u16).to_be_bytes();
            bytes[0] = 0;
            bytes[2..4].copy_from_slice(&total);
            bytes[5..8].copy_from_slice(&[1, 0, 0]);
            let message = Message::parse(&bytes).unwrap();
            prop_assert!(message.connections().count() <= message.count());
        }
    }

    #[test]
    fn damaged_messages_are_survived(
        told in prop::collection::vec(connections(), 1..5),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut encoder = Encoder::new(0, 4000);
        prop_assert!(told.iter().all(|connection| encoder.push(connection)));
        let mut bytes = encoder.message().to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(message) = Message::parse(&bytes) {
            for connection in message.connections().flatten() {
                // Whatever was understood can be told again.
                prop_assert!(Encoder::new(0, 4000).push(&connection));
            }
        }
    }
}

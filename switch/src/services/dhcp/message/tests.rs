use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A message of a client, byte by byte as RFC 2131 draws it.
fn request(options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; FIXED];
    bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
    bytes[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
    bytes[10] = 0x80;
    bytes[12..16].copy_from_slice(&[10, 0, 3, 9]);
    bytes[28..34].copy_from_slice(&[0x52, 0x54, 0, 1, 2, 3]);
    bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend(options);
    bytes
}

#[test]
fn a_request_is_read() {
    let options = [
        &[53, 1, 3, 50, 4, 10, 0, 3, 9, 54, 4, 10, 0, 3, 1, 0, 0, 51, 4, 0, 0, 2, 88][..],
        &[
            61, 7, 1, 0x52, 0x54, 0, 1, 2, 3, 12, 4, b'm', b'a', b'i', b'l', 55, 3, 1, 3, 6, 57, 2, 5, 0xdc,
            255, 9,
        ],
    ];
    let read = Request::parse(&request(&options.concat())).expect("good");
    let expected = Request {
        kind: Kind::Request,
        xid: 0xdead_beef,
        broadcast: true,
        ciaddr: [10, 0, 3, 9].into(),
        giaddr: Ipv4Addr::UNSPECIFIED,
        mac: Mac([0x52, 0x54, 0, 1, 2, 3]),
        requested: Some([10, 0, 3, 9].into()),
        server: Some([10, 0, 3, 1].into()),
        lease: Some(600),
        client: Some([1, 0x52, 0x54, 0, 1, 2, 3].into()),
        hostname: Some("mail".into()),
        parameters: Some([1, 3, 6].into()),
        size: 1472,
    };
    assert_eq!(read, expected);
    let none = Request { client: None, ..expected.clone() };
    assert_eq!(none.identity(), expected.identity(), "an identifier that is the address is none");
}

#[test]
fn options_are_joined_over_all_fields() {
    let mut bytes = request(&[53, 1, 1, 52, 1, 3, 55, 2, 1, 3, 255]);
    bytes[FILE][..6].copy_from_slice(&[55, 1, 6, 12, 1, b'a']);
    bytes[SNAME][..5].copy_from_slice(&[55, 1, 15, 255, 1]);
    let read = Request::parse(&bytes).expect("good");
    assert_eq!(read.parameters.as_deref(), Some(&[1, 3, 6, 15][..]));
    assert_eq!(read.hostname.as_deref(), Some("a"));
}

#[test]
fn what_is_wrong_has_a_name() {
    let with = |at: usize, byte: u8| {
        let mut bytes = request(&[53, 1, 1, 255]);
        bytes[at] = byte;
        Request::parse(&bytes).map(drop)
    };
    assert_eq!(with(11, 0), Ok(()));
    assert_eq!(with(0, 2), Err(BadMessage::NotRequest));
    assert_eq!(with(1, 6), Err(BadMessage::Hardware));
    assert_eq!(with(2, 16), Err(BadMessage::Hardware));
    assert_eq!(with(28, 0x53), Err(BadMessage::Hardware), "a group's address");
    assert_eq!(with(236, 0), Err(BadMessage::Cookie));
    for (options, error) in [
        (&[][..], BadMessage::Bootp),
        (&[255, 53, 1, 1], BadMessage::Bootp),
        (&[53, 1, 2], BadMessage::Kind),
        (&[53, 1, 0], BadMessage::Kind),
        (&[53, 1, 9], BadMessage::Kind),
        (&[53, 2, 1, 1], BadMessage::Length(53)),
        (&[53, 1, 1, 53, 1, 1], BadMessage::Length(53)),
        (&[53], BadMessage::Overrun(53)),
        (&[53, 1], BadMessage::Overrun(53)),
        (&[53, 1, 1, 50, 3, 1, 2, 3], BadMessage::Length(50)),
        (&[53, 1, 1, 61, 0], BadMessage::Length(61)),
        (&[53, 1, 1, 57, 1, 1], BadMessage::Length(57)),
    ] {
        assert_eq!(Request::parse(&request(options)), Err(error), "{options:?}");
    }
    let good = request(&[]);
    assert_eq!(Request::parse(&good[..239]), Err(BadMessage::Truncated));
    let long = [&[53, 1, 1, 61, 255][..], &[7; 255], &[61, 1, 7]].concat();
    assert_eq!(Request::parse(&request(&long)), Err(BadMessage::Length(61)));
}

#[test]
fn names_that_no_host_has_are_left_out() {
    for (name, taken) in
        [("web-1.example", true), ("a_b", true), ("", false), ("a b", false), ("\u{e4}", false)]
    {
        let options = [&[53, 1, 1, 12, name.len() as u8][..], name.as_bytes()].concat();
        let read = Request::parse(&request(&options)).expect("good");
        assert_eq!(read.hostname.as_deref(), taken.then_some(name));
    }
    let read = Request::parse(&request(&[53, 1, 1, 12, 2, b'a', 0])).expect("good");
    assert_eq!(read.hostname.as_deref(), Some("a"));
}

fn reply(options: Vec<(u8, Vec<u8>)>) -> Reply {
    Reply {
        kind: Kind::Offer,
        xid: 7,
        broadcast: true,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        yiaddr: [10, 0, 3, 9].into(),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        options,
    }
}

/// All options of a reply, as a client reads them.
fn read(message: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut options = Options::default();
    options.read(&message[FIXED..]).expect("well formed");
    let overload = options.byte(option::OVERLOAD).expect("one byte").unwrap_or(0);
    for (bit, range) in [(1, FILE), (2, SNAME)] {
        if overload & bit != 0 {
            options.read(&message[range]).expect("well formed");
        }
    }
    options
        .0
        .into_iter()
        .filter(|(code, _)| ![option::MESSAGE_TYPE, option::OVERLOAD].contains(code))
        .collect()
}

#[test]
fn a_reply_is_as_the_rfc_draws_it() {
    let (message, left_out) = reply(vec![(54, vec![10, 0, 3, 1])]).write(SIZE_MIN);
    assert!(left_out.is_empty());
    assert_eq!(message.len(), 300);
    assert_eq!(message[..12], [2, 1, 6, 0, 0, 0, 0, 7, 0, 0, 0x80, 0]);
    assert_eq!(message[16..20], [10, 0, 3, 9]);
    assert_eq!(message[28..34], [2, 0, 0, 0, 0, 1]);
    assert_eq!(message[236..250], [99, 130, 83, 99, 53, 1, 2, 54, 4, 10, 0, 3, 1, 255]);
    assert!(message[250..].iter().all(|&byte| byte == 0));
}

#[test]
fn what_does_not_fit_is_named() {
    let options: Vec<_> = (100..110).map(|code| (code, vec![code; 60])).collect();
    let (message, left_out) = reply(options.clone()).write(SIZE_MIN);
    assert!(message.len() <= SIZE_MIN);
    let written = read(&message);
    assert_eq!(written.len() + left_out.len(), options.len());
    assert_eq!(written.len(), 7, "four in the field, two in file, one in sname");
    assert!(options.iter().all(|option| written.contains(option) != left_out.contains(&option.0)));
    assert!(reply(options).write(SIZE_MAX).1.is_empty());
}

proptest! {
    #[test]
    fn no_bytes_hurt(bytes in vec(any::<u8>(), 0..600)) {
        let _ = Request::parse(&bytes);
    }

    #[test]
    fn neither_do_any_options(options in vec(any::<u8>(), 0..400), file in vec(any::<u8>(), 128), overload in 0_u8..4) {
        let mut bytes = request(&[53, 1, 1, 52, 1, overload]);
        bytes.extend(&options);
        bytes[FILE].copy_from_slice(&file);
        if let Ok(read) = Request::parse(&bytes) {
            prop_assert!((SIZE_MIN..=SIZE_MAX).contains(&read.size));
            prop_assert!(read.identity().len() <= 255);
        }
    }

    #[test]
    fn what_is_written_is_read_again(
        options in proptest::collection::btree_map(1_u8..52, vec(any::<u8>(), 1..400), 0..12), limit in 0_usize..2000
    ) {
        let options: Vec<_> = options.into_iter().collect();
        let (message, left_out) = reply(options.clone()).write(limit);
        prop_assert!(message.len() <= limit.clamp(SIZE_MIN, SIZE_MAX));
        let mut written = read(&message);
        written.sort();
        let kept: Vec<_> = options.into_iter().filter(|(code, _)| !left_out.contains(code)).collect();
        prop_assert_eq!(written, kept);
    }
}

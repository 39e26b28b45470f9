use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const HOST: Mac = Mac([2, 0, 0, 0, 0, 9]);

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

fn config(prefixes: &[&str]) -> Config {
    Config {
        mac: MAC,
        source: v6("fe80::ff:fe00:1"),
        mtu: Some(1400),
        prefixes: prefixes.iter().map(|net| net.parse().expect("a network")).collect(),
        dns: vec![v6("fd05::53")],
    }
}

/// Lets time pass from `from` to `to`; what was sent and when.
fn run(advertiser: &mut Advertiser, from: u64, to: u64) -> Vec<(u64, Due)> {
    let mut sent = Vec::new();
    let mut now = from;
    while now <= to {
        while let Some(due) = advertiser.poll(now) {
            sent.push((now, due));
        }
        let next = advertiser.next_deadline();
        assert!(next > now, "it says when to go on");
        now = next;
    }
    sent
}

/// The lifetime and the options of an advertisement, read by the definitions of the RFCs.
fn options(frame: &[u8]) -> (u16, Vec<Vec<u8>>) {
    let packet = SlicedPacket::from_ethernet(frame).expect("well formed");
    let Some(NetSlice::Ipv6(ip)) = &packet.net else { panic!("no IPv6") };
    assert_eq!(ip.header().hop_limit(), 255);
    assert_eq!(ip.header().source_addr(), v6("fe80::ff:fe00:1"));
    let Some(TransportSlice::Icmpv6(icmp)) = &packet.transport else { panic!("no ICMPv6") };
    assert_eq!(icmp.type_u8(), 134);
    let header = ip.header();
    assert!(icmp.is_checksum_valid(header.source(), header.destination()));
    let message = icmp.slice();
    let mut rest = &message[16..];
    let mut options = Vec::new();
    while !rest.is_empty() {
        let (option, next) = rest.split_at(usize::from(rest[1]) * 8);
        options.push(option.to_vec());
        rest = next;
    }
    (u16::from_be_bytes([message[6], message[7]]), options)
}

#[test]
fn what_is_said() {
    let mut advertiser = Advertiser::new(config(&["fd05::1/64", "fd06::1/112"]), 0, 1);
    let due = advertiser.poll(0).expect("at once");
    assert_eq!((due.port, &due.frame[..6]), (None, &[0x33, 0x33, 0, 0, 0, 1][..]));
    let (lifetime, options_) = options(&due.frame);
    let prefix = |len: u8, flags: u8, net: [u8; 2]| {
        let mut option = vec![3, 4, len, flags, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0];
        option.extend(net);
        option.resize(32, 0);
        option
    };
    let dns = [&[25, 3, 0, 0, 0, 0, 7, 8][..], &v6("fd05::53").octets()].concat();
    let expected = vec![
        vec![1, 1, 2, 0, 0, 0, 0, 1],
        vec![5, 1, 0, 0, 0, 0, 5, 0x78],
        prefix(64, 0xc0, [0xfd, 0x05]),
        prefix(112, 0x80, [0xfd, 0x06]),
        dns,
    ];
    assert_eq!((lifetime, options_), (1800, expected));
    assert_eq!(options(&advertiser.farewell()).0, 0);
    let most: Vec<_> = (0..100).map(|n| format!("fd05:{n:x}::1/64")).collect();
    let most = Config {
        dns: vec![v6("fd05::53"); 20],
        ..config(&most.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let frame = Advertiser::new(most, 0, 1).farewell();
    assert!(frame.len() <= 14 + 1280);
    assert_eq!(options(&frame).1.len(), 2 + 32 + 1);
}

#[test]
fn often_at_first_and_then_every_few_minutes() {
    let mut advertiser = Advertiser::new(config(&["fd05::1/64"]), 1000, 7);
    let times: Vec<u64> = run(&mut advertiser, 1000, 20_000_000).into_iter().map(|(at, _)| at).collect();
    assert_eq!(times[..3], [1000, 17_000, 33_000]);
    let pauses: Vec<u64> = times[2..].windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        pauses.len() > 30 && pauses.iter().all(|pause| (198_000..=600_000).contains(pause)),
        "{pauses:?}"
    );
    assert!(pauses.iter().max() > pauses.iter().min(), "not in step with others");
}

#[test]
fn who_asks_is_answered_soon() {
    let mut advertiser = Advertiser::new(config(&["fd05::1/64"]), 0, 7);
    run(&mut advertiser, 0, 100_000);
    let host = v6("fe80::9");
    for _ in 0..3 {
        advertiser.solicited(100_000, host, HOST, 4);
    }
    let sent = run(&mut advertiser, 100_000, 101_000);
    assert_eq!(sent.len(), 1, "one answer to a station that repeats itself");
    assert!(sent[0].0 <= 100_500 && sent[0].1.port == Some(4));
    assert_eq!(sent[0].1.frame[..6], HOST.0);
    // Without an address it is told with all others, but these not more often than every three seconds.
    advertiser.solicited(101_000, Ipv6Addr::UNSPECIFIED, HOST, 4);
    advertiser.solicited(101_100, Ipv6Addr::UNSPECIFIED, HOST, 4);
    let sent = run(&mut advertiser, 101_000, 103_000);
    assert!(sent.len() == 1 && sent[0].1.port.is_none() && sent[0].0 <= 101_500, "{sent:?}");
    let last = sent[0].0;
    advertiser.solicited(last + 100, Ipv6Addr::UNSPECIFIED, HOST, 4);
    let sent = run(&mut advertiser, last + 100, last + 10_000);
    assert!(sent.len() == 1 && (last + 3000..=last + 3500).contains(&sent[0].0), "{sent:?}");
}

#[test]
fn a_network_that_is_gone_is_told_of() {
    let mut advertiser = Advertiser::new(config(&["fd05::1/64", "fd06::1/64"]), 0, 7);
    run(&mut advertiser, 0, 100_000);
    advertiser.configure(config(&["fd05::1/64", "fd06::1/64"]), 100_000);
    assert!(run(&mut advertiser, 100_000, 110_000).is_empty(), "nothing new");
    advertiser.configure(config(&["fd05::1/64"]), 110_000);
    let sent = run(&mut advertiser, 110_000, 2_000_000);
    assert_eq!(sent[0].0, 110_000);
    let lifetimes = |frame: &[u8]| -> Vec<u8> {
        options(frame).1.iter().filter(|option| option[0] == 3).map(|option| option[6]).collect()
    };
    for (n, (_, due)) in sent.iter().enumerate() {
        let expected: &[u8] = if n < 3 { &[0x51, 0] } else { &[0x51] };
        assert_eq!(lifetimes(&due.frame), expected, "advertisement {n}");
    }
    advertiser.configure(config(&[]), 2_000_000);
    advertiser.configure(config(&["fd05::7/64"]), 2_000_001);
    let sent = run(&mut advertiser, 2_000_001, 2_010_000);
    assert_eq!(lifetimes(&sent[0].1.frame), [0x51], "it came back");
}

proptest! {
    /// However many ask, all are not told more often than every three seconds, and memory is bounded.
    #[test]
    fn floods_change_little(asks in proptest::collection::vec((0_u64..200, 0_u16..200), 0..500)) {
        let mut advertiser = Advertiser::new(config(&["fd05::1/64"]), 0, 7);
        let mut now = 0;
        let mut last = None;
        for (pause, station) in asks {
            now += pause;
            let address = match station {
                0..20 => Ipv6Addr::UNSPECIFIED,
                n => Ipv6Addr::from(0xfe80_u128 << 112 | u128::from(n)),
            };
            advertiser.solicited(now, address, HOST, station);
            prop_assert!(advertiser.waiting.len() <= WAITING);
            while let Some(due) = advertiser.poll(now) {
                if due.port.is_none() {
                    prop_assert!(last.is_none_or(|last| now >= last + APART));
                    last = Some(now);
                }
            }
        }
    }
}

//! Packets as no host of good standing sends them, made by scapy: what becomes of each, and under which name it is
//! counted when it is dropped.

use std::time::Duration;

use shunt_tests::{Shuntd, Station, is_root, wait_for};

const SOON: Duration = Duration::from_secs(5);

/// What should become of a packet that comes from inside.
enum Fate {
    /// It reaches the outside as a packet for which this Python condition holds.
    Passes(&'static str),
    /// It is counted at the inner port under this reason, and goes nowhere.
    Dropped(&'static str),
    /// The switch answers with a packet for which this condition holds.
    Answered(&'static str),
}
use Fate::{Answered, Dropped, Passes};

/// A station on each of two networks with the switch between them.
struct Lab {
    inside: Station,
    outside: Station,
    shuntd: Shuntd,
}

impl Lab {
    fn start(commands: &[&str]) -> Self {
        let shuntd = Shuntd::start();
        shuntd.ctl("policy default forward accept");
        shuntd.network("red", &["10.1.0.1/24", "fd01::1/64"]);
        shuntd.network("blue", &["10.2.0.1/24", "fd02::1/64"]);
        for command in commands {
            shuntd.ctl(command);
        }
        let mut inside = Station::new(shuntd.host("inside", "red"), &["10.1.0.2", "fd01::2"]);
        let mut outside = Station::new(shuntd.host("outside", "blue"), &["10.2.0.2", "fd02::2"]);
        for (station, interface) in [(&mut inside, "red"), (&mut outside, "blue")] {
            let gateway = shuntd.ctl(&format!("interface show {interface}"))["mac"].clone();
            station.define(&format!("GW = {gateway}\nE = Ether(src=MAC, dst=GW)"));
        }
        inside.define("A4 = IP(src='10.1.0.2', dst='10.2.0.2')\nA6 = IPv6(src='fd01::2', dst='fd02::2')");
        outside.define("B4 = IP(src='10.2.0.2', dst='10.1.0.2')\nB6 = IPv6(src='fd02::2', dst='fd01::2')");
        let mut lab = Self { inside, outside, shuntd };
        // Everybody is known to everybody before the odd ones come.
        for (packet, echo) in [
            ("E/A4/ICMP(id=1)", "ICMP in p and p[ICMP].id == 1"),
            ("E/A6/ICMPv6EchoRequest(id=1)", "ICMPv6EchoRequest in p and p[ICMPv6EchoRequest].id == 1"),
        ] {
            lab.inside.send(packet);
            lab.outside.expect(echo);
        }
        lab
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.shuntd.drops("inside", "rx", reason)
    }

    /// Sends each packet from inside and looks for its fate.
    #[track_caller]
    fn try_all(&mut self, cases: &[(&str, &str, Fate)]) {
        let mut wrong = Vec::new();
        for (name, packet, fate) in cases {
            let reason = if let Dropped(reason) = fate { reason } else { "" };
            let before = self.dropped(reason);
            self.outside.send("[]");
            self.inside.send(packet);
            match fate {
                Passes(condition) => {
                    if !self.outside.finds(condition, SOON) {
                        wrong.push(format!("{name}: did not pass with {condition}"));
                    }
                }
                Answered(condition) => {
                    if !self.inside.finds(condition, SOON) {
                        wrong.push(format!("{name}: was not answered with {condition}"));
                    }
                }
                Dropped(_) => {
                    let counted =
                        shunt_tests::poll_for(SOON, || (self.dropped(reason) > before).then_some(()));
                    // What is counted has been decided: nothing comes after it.
                    if counted.is_none() {
                        let drops = &self.shuntd.port("inside")["rx"]["drops"];
                        wrong.push(format!("{name}: was not dropped as {reason}, but {drops}"));
                    } else if self.outside.count("Raw in p and b'odd' in bytes(p)") > 0 {
                        wrong.push(format!("{name}: was counted as {reason} and yet passed"));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{} of {} went wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
        self.still_sound();
    }

    /// An ordinary packet passes, both ways, after everything.
    #[track_caller]
    fn still_sound(&mut self) {
        self.inside.send("E/A4/UDP(sport=1111, dport=2222)/b'sound'");
        self.outside.expect("UDP in p and p[UDP].dport == 2222 and p[IP].ttl == 63 and good(p, IP, UDP)");
        self.outside.send("E/B4/UDP(sport=3333, dport=4444)/b'sound'");
        self.inside.expect("UDP in p and p[UDP].dport == 4444 and p[IP].ttl == 63 and good(p, IP, UDP)");
    }
}

#[test]
fn ipv4_headers() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start(&[]);
    lab.try_all(&[
        ("plain", "E/A4/UDP(sport=1500, dport=1501)/b'odd'", Passes("UDP in p and p[IP].ttl == 63 and good(p, IP, UDP)")),
        (
            "zero checksum stays zero",
            "E/A4/UDP(sport=1500, dport=1501, chksum=0)/b'odd'",
            Passes("UDP in p and p[UDP].chksum == 0 and good(p, IP)"),
        ),
        (
            "a wrong transport checksum is the receiver's affair",
            "E/A4/UDP(sport=1500, dport=1501, chksum=0x1234)/b'odd'",
            Passes("UDP in p and p[UDP].chksum == 0x1234 and good(p, IP)"),
        ),
        (
            "options that ask nothing",
            "E/IP(src='10.1.0.2', dst='10.2.0.2', options=[IPOption(b'\\x01\\x01\\x01\\x00')])/UDP(sport=1500, dport=1501)/b'odd'",
            Passes("UDP in p and p[IP].ihl == 6 and good(p, IP, UDP)"),
        ),
        ("padding behind the packet", "bytes(E/A4/UDP(sport=1500, dport=1501)/b'odd') + b'\\x55' * 20", Passes("UDP in p and b'odd' in bytes(p)")),
        ("an unknown protocol", "E/IP(src='10.1.0.2', dst='10.2.0.2', proto=253)/b'odd'", Passes("IP in p and p[IP].proto == 253")),
        ("a wrong header checksum", "E/IP(src='10.1.0.2', dst='10.2.0.2', chksum=0x1234)/UDP(sport=1500, dport=1501)/b'odd'", Dropped("ip_checksum")),
        ("version 5", "E/IP(version=5, src='10.1.0.2', dst='10.2.0.2')/UDP(sport=1500, dport=1501)/b'odd'", Dropped("ip_header")),
        ("a header of 16 bytes", "E/IP(ihl=4, src='10.1.0.2', dst='10.2.0.2')/UDP(sport=1500, dport=1501)/b'odd'", Dropped("ip_header")),
        ("a header longer than the packet", "E/IP(ihl=15, src='10.1.0.2', dst='10.2.0.2', len=40)/UDP(sport=1500, dport=1501)/b'odd'", Dropped("ip_header")),
        ("longer than its frame", "E/IP(len=1000, src='10.1.0.2', dst='10.2.0.2')/UDP(sport=1500, dport=1501)/b'odd'", Dropped("ip_truncated")),
        ("shorter than its header", "E/IP(len=19, src='10.1.0.2', dst='10.2.0.2')/UDP(sport=1500, dport=1501)/b'odd'", Dropped("ip_header")),
        ("ten bytes of a header", "bytes(E/A4)[:24]", Dropped("ip_truncated")),
        (
            "TTL 1",
            "E/IP(src='10.1.0.2', dst='10.2.0.2', ttl=1)/UDP(sport=1500, dport=1501)/b'odd'",
            Answered(
                "ICMP in p and p[ICMP].type == 11 and p[ICMP].code == 0 and p[IP].src == '10.1.0.1' \
                 and p[UDPerror].sport == 1500 and p[IPerror].src == '10.1.0.2' and good(p, IP, ICMP)",
            ),
        ),
        (
            "source routing",
            "E/IP(src='10.1.0.2', dst='10.2.0.2', options=[IPOption_LSRR(routers=['10.2.0.9'])])/UDP(sport=1500, dport=1501)/b'odd'",
            Dropped("ip_source_route"),
        ),
    ]);
}

#[test]
fn addresses_that_nobody_may_have() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start(&[]);
    let sources = [
        "127.0.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "10.1.0.1",
        "10.2.0.1",
    ];
    for source in sources {
        let before = lab.dropped("martian_source");
        lab.inside.send(&format!("E/IP(src='{source}', dst='10.2.0.2')/UDP(sport=1500, dport=1501)/b'odd'"));
        wait_for(
            &format!("{source} as a source: {}", lab.shuntd.port("inside")["rx"]["drops"]),
            SOON,
            || (lab.dropped("martian_source") > before).then_some(()),
        );
    }
    for destination in ["127.0.0.1", "0.0.0.0", "240.0.0.1", "224.0.0.9"] {
        let before = lab.dropped("martian_destination");
        lab.inside
            .send(&format!("E/IP(src='10.1.0.2', dst='{destination}')/UDP(sport=1500, dport=1501)/b'odd'"));
        let what = format!("{destination} as a destination: {}", lab.shuntd.port("inside")["rx"]["drops"]);
        wait_for(&what, SOON, || (lab.dropped("martian_destination") > before).then_some(()));
    }
    for source in ["::1", "ff02::1", "fd01::1", "::"] {
        let before = lab.dropped("martian_source");
        lab.inside.send(&format!("E/IPv6(src='{source}', dst='fd02::2')/UDP(sport=1500, dport=1501)/b'odd'"));
        wait_for(
            &format!("{source} as a source: {}", lab.shuntd.port("inside")["rx"]["drops"]),
            SOON,
            || (lab.dropped("martian_source") > before).then_some(()),
        );
    }
    lab.try_all(&[
        ("land", "E/IP(src='10.2.0.2', dst='10.2.0.2')/TCP(flags='S')/b'odd'", Dropped("martian_source")),
        (
            "link-local beyond its link",
            "E/IPv6(src='fe80::2', dst='fd02::2')/UDP(sport=1500, dport=1501)/b'odd'",
            Dropped("link_local"),
        ),
        (
            "::1 as a destination",
            "E/IPv6(src='fd01::2', dst='::1')/UDP(sport=1500, dport=1501)/b'odd'",
            Dropped("martian_destination"),
        ),
    ]);
    assert_eq!(lab.outside.count("b'odd' in bytes(p)"), 0);
}

#[test]
fn ipv6_headers() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start(&[]);
    lab.try_all(&[
        ("plain", "E/A6/UDP(sport=1500, dport=1501)/b'odd'", Passes("UDP in p and p[IPv6].hlim == 63 and good(p, UDP)")),
        (
            "hop limit 1",
            "E/IPv6(src='fd01::2', dst='fd02::2', hlim=1)/UDP(sport=1500, dport=1501)/b'odd'",
            Answered("ICMPv6TimeExceeded in p and p[IPv6].src == 'fd01::1' and b'odd' in bytes(p) and good(p, ICMPv6TimeExceeded)"),
        ),
        (
            "destination options",
            "E/A6/IPv6ExtHdrDestOpt(options=[PadN(optdata=b'1234')])/UDP(sport=1500, dport=1501)/b'odd'",
            Passes("IPv6ExtHdrDestOpt in p and p[IPv6].hlim == 63 and UDP in p"),
        ),
        (
            "hop-by-hop options",
            "E/A6/IPv6ExtHdrHopByHop(options=[PadN(optdata=b'1234')])/UDP(sport=1500, dport=1501)/b'odd'",
            Passes("IPv6ExtHdrHopByHop in p and p[IPv6].hlim == 63 and UDP in p"),
        ),
        (
            "routing type 0 (RFC 5095)",
            "E/A6/IPv6ExtHdrRouting(addresses=['fd02::9'])/UDP(sport=1500, dport=1501)/b'odd'",
            Dropped("ip_source_route"),
        ),
        ("longer than its frame", "E/IPv6(src='fd01::2', dst='fd02::2', plen=1000)/UDP(sport=1500, dport=1501)/b'odd'", Dropped("ip_truncated")),
        ("version 5", "E/IPv6(version=5, src='fd01::2', dst='fd02::2')/UDP(sport=1500, dport=1501)/b'odd'", Dropped("ip_header")),
        (
            "too big",
            "E/A6/UDP(sport=1500, dport=1501)/(b'odd' * 480)",
            Passes("UDP in p and len(p) == 14 + 40 + 8 + 1440"),
        ),
    ]);
}

#[test]
fn fragments_are_forwarded_as_they_are() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start(&[]);
    lab.inside
        .define("pieces = [E/f for f in fragment(A4/UDP(sport=5, dport=6)/(b'odd' * 1000), fragsize=1000)]");
    for order in ["pieces", "pieces[::-1]"] {
        lab.outside.send("[]");
        lab.inside.send(order);
        for offset in ["0", "125", "250", "375"] {
            lab.outside
                .expect(&format!("IP in p and p[IP].frag == {offset} and p[IP].ttl == 63 and good(p, IP)"));
        }
    }
    lab.inside.define(
        "six = [E/f for f in fragment6(A6/IPv6ExtHdrFragment(id=9)/UDP(sport=5, dport=6)/(b'odd' * 1000), 1200)]",
    );
    lab.inside.send("six[::-1]");
    lab.outside
        .expect("IPv6ExtHdrFragment in p and p[IPv6ExtHdrFragment].offset == 0 and p[IPv6].hlim == 63");
    lab.outside.expect("IPv6ExtHdrFragment in p and p[IPv6ExtHdrFragment].m == 0");
    lab.still_sound();
}

#[test]
fn fragments_through_translation() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start(&[
        "nat masquerade add --source 10.1.0.0/24 --out blue",
        "nat masquerade add --source fd01::/64 --out blue",
    ]);
    // Each with an identification and a port of its own; every piece must carry the translated source.
    lab.inside.define(
        "def cut(n, size=1000):\n    whole = IP(src='10.1.0.2', dst='10.2.0.2', id=n)/UDP(sport=n, dport=6)/(b'odd' * 1000)\n    \
         return [E/f for f in fragment(whole, fragsize=size)]",
    );
    for (id, order) in
        [(101, "cut(101)"), (102, "cut(102)[::-1]"), (103, "[cut(103)[i] for i in (1, 0, 3, 2)]")]
    {
        lab.outside.send("[]");
        lab.inside.send(order);
        for offset in ["0", "125", "250", "375"] {
            lab.outside.expect(&format!(
                "IP in p and p[IP].src == '10.2.0.1' and p[IP].frag == {offset} and good(p, IP)"
            ));
        }
        assert_eq!(
            lab.outside.count("IP in p and p[IP].src == '10.1.0.2'"),
            0,
            "an untranslated piece of {id}"
        );
    }
    lab.inside.send(
        "[E/f for f in fragment6(A6/IPv6ExtHdrFragment(id=9)/UDP(sport=5, dport=6)/(b'odd' * 1000), 1200)][::-1]",
    );
    lab.outside
        .expect("IPv6ExtHdrFragment in p and p[IPv6ExtHdrFragment].offset == 0 and p[IPv6].src == 'fd02::1'");
    lab.outside
        .expect("IPv6ExtHdrFragment in p and p[IPv6ExtHdrFragment].m == 0 and p[IPv6].src == 'fd02::1'");

    lab.try_all(&[
        (
            "a first fragment without a whole transport header",
            "E/IP(src='10.1.0.2', dst='10.2.0.2', id=201, flags='MF', proto=17)/b'\\x00\\x05'",
            Dropped("transport_truncated"),
        ),
        (
            "beyond 65,535 bytes",
            "E/IP(src='10.1.0.2', dst='10.2.0.2', id=202, frag=8191, proto=17)/(b'odd' * 100)",
            Dropped("fragment_too_long"),
        ),
        (
            "overlapping pieces",
            "[E/IP(src='10.1.0.2', dst='10.2.0.2', id=203, flags='MF', proto=17)\
              /(b'\\x00\\x05\\x00\\x06\\x03\\xe8\\x00\\x00' + b'even' * 248), \
              E/IP(src='10.1.0.2', dst='10.2.0.2', id=203, frag=60, flags='MF', proto=17)/(b'odd' * 104)]",
            Dropped("fragment_overlap"),
        ),
    ]);
    // Pieces whose beginning never comes wait for a bounded time in a bounded place.
    lab.outside.send("[]");
    lab.inside.send("[cut(1000 + n)[1] for n in range(3000)]");
    lab.still_sound();
    assert_eq!(lab.outside.count("b'oddodd' in bytes(p)"), 0);
}

#[test]
fn errors_are_translated_with_what_they_quote() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start(&[
        "nat masquerade add --source 10.1.0.0/24 --out blue",
        "nat masquerade add --source fd01::/64 --out blue",
    ]);
    lab.inside.send("E/A4/UDP(sport=1500, dport=9)/b'question'");
    lab.outside.expect("UDP in p and p[UDP].dport == 9 and p[IP].src == '10.2.0.1'");
    // The outside cannot see the packet from here: it quotes what was on its wire.
    lab.outside.define("Q = IP(src='10.2.0.1', dst='10.2.0.2')/UDP(sport=1500, dport=9)/b'question'");
    for (kind, code) in [(3, 3), (3, 1), (11, 0), (12, 0)] {
        lab.outside.send(&format!("E/IP(src='10.2.0.2', dst='10.2.0.1')/ICMP(type={kind}, code={code})/Q"));
        lab.inside.expect(&format!(
            "ICMP in p and p[ICMP].type == {kind} and p[ICMP].code == {code} and p[IP].dst == '10.1.0.2' \
             and p[IPerror].src == '10.1.0.2' and p[UDPerror].sport == 1500 and good(p, IP, ICMP)"
        ));
    }
    lab.outside.send("E/IP(src='10.2.0.2', dst='10.2.0.1')/ICMP(type=3, code=4, nexthopmtu=1200)/Q");
    lab.inside.expect("ICMP in p and p[ICMP].code == 4 and p[ICMP].nexthopmtu == 1200 and good(p, IP, ICMP)");
    // From a router on the way, quoting eight bytes only.
    lab.outside.send("E/IP(src='10.2.0.77', dst='10.2.0.1')/ICMP(type=11)/bytes(Q)[:28]");
    lab.inside
        .expect("ICMP in p and p[IP].src == '10.2.0.77' and p[IP].dst == '10.1.0.2' and good(p, IP, ICMP)");

    // In pieces, of which only the first one says what it is about; also the wrong way round.
    lab.outside.define(
        "def pieces(n):\n    error = IP(src='10.2.0.77', dst='10.2.0.1', id=n)/ICMP(type=3, code=1)/Q/(b'odd' * 30)\n    \
         return [E/f for f in fragment(error, fragsize=80)]",
    );
    for (id, order) in [(201, "pieces(201)"), (202, "pieces(202)[::-1]")] {
        lab.inside.send("[]");
        lab.outside.send(order);
        for offset in [0, 10] {
            lab.inside.expect(&format!(
                "IP in p and p[IP].id == {id} and p[IP].frag == {offset} and p[IP].src == '10.2.0.77' \
                 and p[IP].dst == '10.1.0.2' and p[IP].ttl == 63 and good(p, IP)"
            ));
        }
    }

    lab.inside.send("E/A6/UDP(sport=1600, dport=9)/b'question'");
    lab.outside.expect("UDP in p and p[UDP].dport == 9 and p[IPv6].src == 'fd02::1'");
    lab.outside.send(
        "E/IPv6(src='fd02::2', dst='fd02::1')/ICMPv6DestUnreach(code=4)\
         /IPv6(src='fd02::1', dst='fd02::2')/UDP(sport=1600, dport=9)/b'question'",
    );
    lab.inside.expect("ICMPv6DestUnreach in p and p[IPv6].dst == 'fd01::2' and good(p, ICMPv6DestUnreach)");

    // Quotes of nothing that ever passed, of other errors, and of pieces of headers reach nobody.
    let before = lab.shuntd.port("outside")["rx"]["drops"].to_string();
    lab.outside.send(
        "[E/IP(src='10.2.0.2', dst='10.2.0.1')/ICMP(type=3, code=3)/IP(src='10.2.0.1', dst='10.2.0.2')/UDP(sport=9999, dport=9), \
          E/IP(src='10.2.0.2', dst='10.2.0.1')/ICMP(type=3, code=3)/bytes(Q)[:21], \
          E/IP(src='10.2.0.2', dst='10.2.0.1')/ICMP(type=3, code=3)/IP(src='10.2.0.1', dst='10.2.0.2')/ICMP(type=3, code=1)/Q]",
    );
    lab.still_sound_outwards();
    assert_eq!(lab.inside.count("ICMP in p and p[ICMP].type == 3"), 0);
    assert_ne!(lab.shuntd.port("outside")["rx"]["drops"].to_string(), before, "not counted");
}

impl Lab {
    /// As [`Lab::still_sound`] where the inside is translated and cannot be called.
    #[track_caller]
    fn still_sound_outwards(&mut self) {
        self.inside.send("E/A4/UDP(sport=1111, dport=2222)/b'sound'");
        self.outside.expect("UDP in p and p[UDP].dport == 2222 and p[IP].ttl == 63 and good(p, IP, UDP)");
    }
}

#[test]
fn connections_follow_tcp_and_not_whoever_guesses() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start(&["nat masquerade add --source 10.1.0.0/24 --out blue"]);
    lab.inside.define("T = A4/TCP(sport=4000, dport=80)");
    // A reset of nothing opens nothing.
    let before = lab.shuntd.connection_count();
    lab.inside.send("E/A4/TCP(sport=4999, dport=80, flags='R', seq=1)");
    lab.inside.send("E/A4/TCP(sport=4998, dport=80, flags='SF', seq=1)");
    lab.inside.send("E/A4/TCP(sport=4997, dport=80, flags=0, seq=1)");
    lab.inside.send("E/A4/UDP(sport=1111, dport=2222)/b'sound'");
    lab.outside.expect("UDP in p and p[UDP].dport == 2222");
    assert!(lab.shuntd.connection_count() <= before + 1, "flags that make no sense opened a connection");

    let state = |lab: &Lab| -> String {
        let all = lab.shuntd.connections("--proto tcp --source 10.1.0.2");
        let one = all.iter().find(|c| c["sport"] == "4000");
        one.and_then(|c| c["state"].as_str()).unwrap_or("none").to_owned()
    };
    lab.inside.send("E/A4/TCP(sport=4000, dport=80, flags='S', seq=1000)");
    lab.outside.expect("TCP in p and p[TCP].flags == 'S' and p[IP].src == '10.2.0.1' and good(p, IP, TCP)");
    assert_eq!(state(&lab), "SYN_SENT");
    lab.outside.define("R = IP(src='10.2.0.2', dst='10.2.0.1')");
    lab.outside.send("E/R/TCP(sport=80, dport=4000, flags='SA', seq=5000, ack=1001, window=1000)");
    lab.inside.expect("TCP in p and p[TCP].flags == 'SA' and p[IP].dst == '10.1.0.2' and good(p, IP, TCP)");
    assert_eq!(state(&lab), "SYN_RECV");
    lab.inside.send("E/A4/TCP(sport=4000, dport=80, flags='A', seq=1001, ack=5001, window=1000)");
    lab.outside.expect("TCP in p and p[TCP].flags == 'A' and good(p, TCP)");
    assert_eq!(state(&lab), "ESTABLISHED");
    // A reset from far outside of the window, as who does not see the connection would guess it.
    lab.outside.send("E/R/TCP(sport=80, dport=4000, flags='R', seq=900000000)");
    lab.inside.send("E/A4/UDP(sport=1111, dport=2222)/b'sound'");
    lab.outside.expect("UDP in p and p[UDP].dport == 2222");
    assert_eq!(state(&lab), "ESTABLISHED", "a guessed reset ended the connection");
    lab.outside.send("E/R/TCP(sport=80, dport=4000, flags='R', seq=5001)");
    lab.inside.expect("TCP in p and p[TCP].flags == 'R'");
    wait_for("the right reset to end it", SOON, || (state(&lab) == "CLOSE").then_some(()));
}

#[test]
fn who_floods_the_tables_fills_his_own_share_only() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start(&[
        "nat masquerade add --source 10.1.0.0/16 --out blue",
        "conntrack set-limit --port-quota 1000 --half-open 500",
    ]);
    // Half-open connections from one port stop at the limit; others go on.
    lab.inside.send("[E/A4/TCP(sport=1 + n, dport=80, flags='S') for n in range(3000)]");
    wait_for("the limit of half-open connections", SOON, || {
        let count = lab.shuntd.connections("--proto tcp").len();
        assert!(count <= 500, "{count} half-open connections");
        (count >= 400).then_some(())
    });
    lab.inside.send("[E/A4/UDP(sport=1 + n, dport=53)/b'odd' for n in range(3000)]");
    wait_for("the port's quota", SOON, || {
        let count = lab.shuntd.connection_count();
        assert!(count <= 1100, "{count} connections of one port");
        (count >= 900).then_some(())
    });
    lab.outside.send("E/IP(src='10.2.0.2', dst='10.1.0.2')/UDP(sport=5, dport=6)/b'sound'");
    lab.inside.expect("UDP in p and p[UDP].dport == 6");

    // Neighbours that nobody asked about are not learned.
    let neighbours = || lab.shuntd.ctl("neighbour list").as_array().map_or(0, Vec::len);
    let before = neighbours();
    lab.inside.send_more(
        "[Ether(src='02:00:00:00:%02x:%02x' % (n >> 8, n & 255), dst='ff:ff:ff:ff:ff:ff')\
         /ARP(op=2, hwsrc='02:00:00:00:%02x:%02x' % (n >> 8, n & 255), psrc='10.1.0.%d' % (10 + n % 200), pdst='10.1.0.1') \
         for n in range(1000)]",
    );
    lab.inside.send_more(
        "[Ether(src=MAC, dst='33:33:00:00:00:01')/IPv6(src='fd01::%x' % (n + 16), dst='ff02::1', hlim=255)\
         /ICMPv6ND_NA(tgt='fd01::%x' % (n + 16), O=1)/ICMPv6NDOptDstLLAddr(lladdr=MAC) for n in range(1000)]",
    );
    lab.inside.send_more(
        "Ether(src=MAC, dst='ff:ff:ff:ff:ff:ff')/ARP(op=1, hwsrc=MAC, psrc='10.1.0.2', pdst='10.1.0.1')",
    );
    lab.inside.expect("ARP in p and p[ARP].op == 2 and p[ARP].psrc == '10.1.0.1'");
    let after = neighbours();
    assert!(after <= before + 2, "{} neighbours appeared unasked", after - before);
}

#[test]
fn arp_and_neighbour_discovery_that_lies() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::start(&[]);
    // Somebody else's answer for the gateway, a group address as hardware address, a hop limit that came from afar.
    lab.inside.send(
        "[Ether(src=MAC, dst='ff:ff:ff:ff:ff:ff')/ARP(op=2, hwsrc=MAC, psrc='10.1.0.1', pdst='10.1.0.1'), \
          Ether(src=MAC, dst=GW)/ARP(op=2, hwsrc='01:00:5e:00:00:01', psrc='10.1.0.2', pdst='10.1.0.1'), \
          Ether(src=MAC, dst=GW)/ARP(op=2, hwsrc='ff:ff:ff:ff:ff:ff', psrc='10.1.0.2', pdst='10.1.0.1'), \
          Ether(src=MAC, dst=GW)/ARP(op=1, hwtype=7, hwsrc=MAC, psrc='10.1.0.2', pdst='10.1.0.1'), \
          bytes(Ether(src=MAC, dst=GW)/ARP(op=1, hwsrc=MAC, psrc='10.1.0.2', pdst='10.1.0.1'))[:30], \
          Ether(src=MAC, dst=GW)/IPv6(src='fd01::2', dst='fd01::1', hlim=254)\
          /ICMPv6ND_NA(tgt='fd01::2', O=1)/ICMPv6NDOptDstLLAddr(lladdr='02:00:00:00:00:66'), \
          Ether(src=MAC, dst=GW)/IPv6(src='fd01::2', dst='fd01::1', hlim=255)\
          /ICMPv6ND_NA(tgt='fd01::2', O=1)/ICMPv6NDOptDstLLAddr(lladdr='01:00:00:00:00:66')]",
    );
    lab.still_sound();
    let neighbours = lab.shuntd.ctl("neighbour list");
    for entry in neighbours.as_array().into_iter().flatten() {
        let mac = entry["mac"].as_str().unwrap_or("02:");
        assert!(
            !mac.starts_with("01:") && mac != "ff:ff:ff:ff:ff:ff" && mac != "02:00:00:00:00:66",
            "{entry}"
        );
    }
    // Questions for others are not answered, questions for the gateway are, whoever asks.
    lab.inside.send(
        "[Ether(src=MAC, dst='ff:ff:ff:ff:ff:ff')/ARP(op=1, hwsrc=MAC, psrc='10.1.0.2', pdst='10.1.0.99'), \
          Ether(src=MAC, dst='ff:ff:ff:ff:ff:ff')/ARP(op=1, hwsrc=MAC, psrc='0.0.0.0', pdst='10.1.0.1')]",
    );
    lab.inside
        .expect("ARP in p and p[ARP].op == 2 and p[ARP].psrc == '10.1.0.1' and p[ARP].pdst == '0.0.0.0'");
    assert_eq!(lab.inside.count("ARP in p and p[ARP].op == 2"), 0);
}

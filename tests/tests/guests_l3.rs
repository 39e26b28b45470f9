//! Two Linux guests that know nothing but DHCP: addresses, gateway and the way out are the switch's.

use std::time::Duration;

use shunt_tests::conntrack::entry;
use shunt_tests::{
    GuestSpec, Host, MUCH, Nic, Shuntd, Web, answers, boot_all, copy_intact, iperf, is_root, pings, seen_as,
};

const SOON: Duration = Duration::from_secs(20);

/// Gets an address with busybox' client, as an initramfs or a small container does.
#[track_caller]
fn lease(guest: &dyn Host) -> String {
    guest.sh(
        "cat >/tmp/lease <<'END'\n\
         #!/bin/sh\n\
         [ \"$1\" != bound ] || { ip address replace $ip/$mask dev eth0; ip route replace default via $router; }\n\
         END\n\
         chmod +x /tmp/lease; busybox udhcpc -f -q -n -t 10 -T 1 -i eth0 -s /tmp/lease",
    );
    let address = guest.sh("ip -4 -o address show dev eth0 | awk '{ print $4 }'");
    shunt_tests::progress!("{} has {address}", guest.name());
    address.split('/').next().unwrap_or_default().to_owned()
}

#[test]
fn guests_get_addresses_and_reach_the_outside() {
    if !is_root() {
        return;
    }
    // The embedded default, and a way out.
    let shuntd = Shuntd::start();
    shuntd.network("wan", &["198.51.100.15/24", "fd51::15/64"]);
    let outside = shuntd.host("outside", "wan");
    outside.join("198.51.100.2/24", None);
    outside.join("fd51::2/64", None);
    let [a, b] = ["a", "b"].map(|name| shuntd.vhost_port(name, ""));
    let [a, b] = boot_all([
        GuestSpec::new("a").nic(Nic::connects(&a)),
        GuestSpec::new("b").nic(Nic::connects(&b).without_tso()),
    ]);
    let (address_a, address_b) = (lease(&a), lease(&b));
    assert!(address_a.starts_with("10.0.3.") && address_b.starts_with("10.0.3.") && address_a != address_b);
    for guest in [&a, &b] {
        answers(guest, "10.0.3.1", SOON);
        answers(guest, "198.51.100.2", SOON);
        assert_eq!(pings(guest, "198.51.100.2", 10, "-s 1472 -M do"), 10);
        assert!(guest.sh("ping -c1 198.51.100.2").contains("ttl=63"));
    }
    assert_eq!(pings(&a, &address_b, 10, ""), 10);

    // Transfers through translation, with and without large segments.
    let server = Web::serve(&outside, 80, 4096);
    for guest in [&a, &b] {
        server.fetch_intact(guest, "198.51.100.2:80");
        assert_eq!(seen_as(guest, "198.51.100.2:80").as_deref(), Ok("198.51.100.15"));
        copy_intact(guest, &outside, "198.51.100.2", 8);
        for options in ["", "-R", "-P4", "-u -b 20M"] {
            assert!(iperf(guest, &outside, "198.51.100.2", 2, options).bytes > MUCH);
        }
    }
    copy_intact(&a, &b, &address_b, 8);

    // A server in a guest, published: from outside, from the other guest, from itself.
    let inner = Web::serve(&b, 5000, 2048);
    shuntd.ctl(&format!("nat publish add --proto tcp --listen 198.51.100.15:8080 --to {address_b}:5000"));
    inner.fetch_intact(&outside, "198.51.100.15:8080");
    inner.fetch_intact(&a, "198.51.100.15:8080");
    inner.fetch_intact(&b, "198.51.100.15:8080");
    assert_eq!(seen_as(&outside, "198.51.100.15:8080").as_deref(), Ok("198.51.100.2"));

    let connections = shuntd.connections("--proto tcp");
    let published = [("src", "198.51.100.2"), ("dst", "198.51.100.15"), ("reply_src", address_b.as_str())];
    assert!(entry(&connections, &published).is_some(), "{connections:?}");
    for guest in [&a, &b] {
        let errors = guest.sh("awk '/^Tcp:/ && $2 ~ /[0-9]/ { print $16 }' /proc/net/snmp");
        assert_eq!(errors, "0", "{}: TCP segments with wrong checksums", guest.name());
    }
}

#[test]
fn a_guest_speaks_ipv6_from_what_is_advertised() {
    if !is_root() {
        return;
    }
    let shuntd = Shuntd::start();
    shuntd.ctl("policy default forward accept");
    shuntd.network("wan", &["fd51::15/64"]);
    let outside = shuntd.host("outside", "wan");
    outside.join("fd51::2/64", None);
    shuntd.ctl("bridge add br-six");
    shuntd.ctl("interface add six --bridge br-six --address fd06::1/64");
    shuntd.ctl("dhcp set six --ra on");
    shuntd.ctl("nat masquerade add --source fd06::/64 --out wan");
    let socket = shuntd.path("g.sock");
    shuntd.ctl(&format!("port add g --bridge br-six --vhost-user {}", socket.display()));
    let guest = GuestSpec::new("g").nic(Nic::connects(&socket)).boot();
    shunt_tests::wait_for("an address by SLAAC", SOON, || {
        guest.sh("ip -6 -o address show dev eth0 scope global").contains("fd06::").then_some(())
    });
    answers(&guest, "fd06::1", SOON);
    answers(&guest, "fd51::2", SOON);
    copy_intact(&guest, &outside, "fd51::2", 8);
    for options in ["", "-R"] {
        assert!(iperf(&guest, &outside, "fd51::2", 2, options).bytes > MUCH);
    }
}

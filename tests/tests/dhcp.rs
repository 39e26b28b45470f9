//! Real DHCP clients and a kernel that hears router advertisements are content with what the switch gives them.

use std::time::Duration;

use shunt_tests::dhcp::{Client, Dhcp};
use shunt_tests::{Host, Shuntd, Station, answers, is_root, pings, wait_for};

const SOON: Duration = Duration::from_secs(30);

/// A namespace on a TAP port of the default bridge.
fn guest(shuntd: &Shuntd, name: &str) -> shunt_tests::NetNs {
    let netns = shunt_tests::NetNs::new(name);
    shuntd.ctl(&format!("port add {name} --bridge shunt0 --tap eth0 --netns {}", netns.id()));
    netns.up("eth0", None);
    netns
}

#[test]
fn the_embedded_default_serves_every_client_as_lxc_net_does() {
    if !is_root() {
        return;
    }
    let shuntd = Shuntd::start();
    let mut addresses = Vec::new();
    let mut running = Vec::new();
    for (index, client) in Client::ALL.into_iter().enumerate() {
        let host = guest(&shuntd, &format!("c{index}"));
        let dhcp = Dhcp::start(&host, client, "");
        let address = dhcp.address(&host);
        shunt_tests::progress!("{client:?} has {address}");
        let (ip, length) = address.split_once('/').expect("an address with its length");
        assert_eq!(length, "24");
        let last: u8 = ip.strip_prefix("10.0.3.").and_then(|n| n.parse().ok()).expect("of 10.0.3.0/24");
        assert!((2..=254).contains(&last), "{ip}");
        wait_for("the default route", SOON, || {
            host.sh("ip -4 route show default").contains("via 10.0.3.1").then_some(())
        });
        answers(&host, "10.0.3.1", SOON);
        addresses.push(ip.to_owned());
        running.push((host, dhcp));
    }
    for (host, _) in &running {
        for address in &addresses {
            assert_eq!(pings(host, address, 2, ""), 2);
        }
    }
    let leases = shuntd.ctl("dhcp leases");
    let leases = leases.as_array().expect("an array");
    assert_eq!(leases.len(), 3, "{leases:?}");
    for ((host, _), address) in running.iter().zip(&addresses) {
        let lease = leases.iter().find(|lease| lease["address"] == address.as_str());
        let lease = lease.unwrap_or_else(|| panic!("{address} is not in {leases:?}"));
        assert_eq!(lease["mac"], host.mac().as_str());
        assert_eq!(lease["state"], "bound");
    }
}

#[test]
fn options_reservations_and_the_same_address_after_a_restart() {
    if !is_root() {
        return;
    }
    let mut shuntd = Shuntd::start();
    let configure = |shuntd: &Shuntd| {
        shuntd.network("lan", &["10.5.0.1/24"]);
        shuntd.ctl(
            "dhcp set lan --range 10.5.0.100-10.5.0.200 --lease 600 --dns 10.5.0.53 --domain lan.example \
             --mtu 1400 --route 10.77.0.0/16=10.5.0.9",
        );
    };
    configure(&shuntd);
    let mail = shuntd.host("mail", "lan");
    let mac = mail.mac();
    shuntd.ctl(&format!("dhcp reserve lan {mac} 10.5.0.16 --hostname mail"));
    for (client, routes) in
        [(Client::Udhcpc, "10.77.0.0/16 10.5.0.9"), (Client::Dhclient, "16 10 77 10 5 0 9")]
    {
        let options = match client {
            Client::Dhclient => {
                let path = shuntd.path("dhclient.conf");
                let text = "option rfc3442-classless-static-routes code 121 = array of unsigned integer 8;\n\
                            request subnet-mask, broadcast-address, routers, domain-name, domain-name-servers, \
                            host-name, interface-mtu, rfc3442-classless-static-routes;\n";
                std::fs::write(&path, text).expect("a writable directory");
                format!("-cf {}", path.display())
            }
            _ => "-O domain -O search".to_owned(),
        };
        let dhcp = Dhcp::start(&mail, client, &options);
        let event = if client == Client::Udhcpc { "bound" } else { "BOUND" };
        let words = [
            "address=10.5.0.16 ",
            "routers=10.5.0.1 ",
            "dns=10.5.0.53 ",
            "mtu=1400 ",
            routes,
            "seconds=600 ",
            "hostname=mail ",
            "server=10.5.0.1 ",
            "domain=lan.example;",
        ];
        dhcp.event(event, &words);
        drop(dhcp);
    }

    // Anybody else gets an address of the range, and the same one again: after a release, and after a restart.
    let [one, two] = ["one", "two"].map(|name| shuntd.host_with(name, "lan", ""));
    let macs = [one.mac(), two.mac()];
    let mut firsts = Vec::new();
    for host in [&one, &two] {
        let dhcp = Dhcp::start(host, Client::Udhcpc, "-R");
        let address = dhcp.address(host);
        let last: u8 =
            address.strip_prefix("10.5.0.").and_then(|a| a.split('/').next()?.parse().ok()).expect("of lan");
        assert!((100..=200).contains(&last), "{address}");
        firsts.push(address);
    }
    assert_ne!(firsts[0], firsts[1]);
    let before = shuntd.ctl("dhcp leases lan");
    shuntd.kill();
    shuntd.launch();
    // What was configured is there again.
    let after = shuntd.ctl("dhcp leases lan");
    for address in &firsts {
        let ip = address.split('/').next().unwrap_or_default();
        assert!(before.to_string().contains(ip) && after.to_string().contains(ip), "{before} became {after}");
    }
    drop((one, two));
    for (index, mac) in macs.iter().enumerate() {
        let host = shuntd.host_with(&format!("again{index}"), "lan", &format!("--mac {mac}"));
        let dhcp = Dhcp::start(&host, Client::Dhclient, "");
        assert_eq!(dhcp.address(&host), firsts[index]);
    }
}

#[test]
fn renewals_wrong_requests_and_conflicts() {
    if !is_root() {
        return;
    }
    let shuntd = Shuntd::start();
    shuntd.network("lan", &["10.5.0.1/24"]);
    shuntd.ctl("dhcp set lan --range 10.5.0.100-10.5.0.101 --lease 60");
    // Who asks for an address of another network is told no, and then gets a right one.
    let host = shuntd.host("host", "lan");
    let dhcp = Dhcp::start(&host, Client::Udhcpc, "-r 192.168.7.7");
    let address = dhcp.address(&host);
    assert!(address.starts_with("10.5.0.10"), "{address}");
    // Half of the lease later it renews.
    dhcp.event("renew", &[&format!("address={} ", address.trim_end_matches("/24"))]);
    drop(dhcp);

    // An address that somebody uses without having asked is not given away.
    let (taken, free) = if address.contains("100") { ("100", "101") } else { ("101", "100") };
    assert!(host.sh("ip -4 address show dev eth0").contains(taken));
    let squatter = shuntd.host("squatter", "lan");
    squatter.join(&format!("10.5.0.{free}/24"), None);
    let late = shuntd.host("late", "lan");
    let dhcp = Dhcp::start(&late, Client::Udhcpc, "");
    wait_for("the squatter's address to be marked", SOON, || {
        let leases = shuntd.ctl("dhcp leases lan");
        leases
            .as_array()?
            .iter()
            .find(|l| l["address"] == format!("10.5.0.{free}").as_str() && l["mac"].is_null())
            .map(drop)
    });
    assert_eq!(late.sh("ip -4 -o address show dev eth0"), "", "{}", dhcp.words());
}

#[test]
fn a_kernel_takes_its_address_from_router_advertisements() {
    if !is_root() {
        return;
    }
    let shuntd = Shuntd::start();
    shuntd.network("lan", &["fd05::1/64", "10.5.0.1/24"]);
    shuntd.ctl("dhcp set lan --ra on --dns fd05::53 --mtu 1400");
    let host = shuntd.host("host", "lan");
    wait_for("an address by SLAAC", SOON, || {
        host.sh("ip -6 -o address show dev eth0 scope global").contains("fd05::").then_some(())
    });
    let route = wait_for("the default route", SOON, || {
        let routes = host.sh("ip -6 route show default");
        (!routes.is_empty()).then_some(routes)
    });
    assert!(route.contains("proto ra") && route.contains("via fe80::"), "{route}");
    assert!(
        route.contains("mtu 1400") || host.sh("cat /proc/sys/net/ipv6/conf/eth0/mtu") == "1400",
        "{route}"
    );
    answers(&host, "fd05::1", SOON);

    // The advertisement itself: asked for, it comes at once, with its name server.
    let mut station = Station::new(shuntd.host("station", "lan"), &[]);
    let mac = station.mac.clone();
    station.send(&format!(
        "Ether(src='{mac}', dst='33:33:00:00:00:02')/IPv6(src='fe80::1234', dst='ff02::2', hlim=255)\
         /ICMPv6ND_RS()/ICMPv6NDOptSrcLLAddr(lladdr='{mac}')"
    ));
    station.expect(
        "ICMPv6ND_RA in p and p[IPv6].hlim == 255 and p[ICMPv6NDOptRDNSS].dns == ['fd05::53'] \
         and p[ICMPv6NDOptPrefixInfo].prefix == 'fd05::' and p[ICMPv6NDOptPrefixInfo].prefixlen == 64 \
         and p[ICMPv6NDOptMTU].mtu == 1400 and good(p, ICMPv6ND_RA)",
    );

    // networkd takes address and name server, too.
    let other = shuntd.host("other", "lan");
    let networkd = Dhcp::start(&other, Client::Networkd, "");
    wait_for("networkd to take an address", SOON, || {
        other.sh("ip -6 -o address show dev eth0 scope global").contains("fd05::").then_some(())
    });
    answers(&other, "fd05::1", SOON);
    assert!(!networkd.words().to_lowercase().contains("invalid"), "{}", networkd.words());
}

#[test]
fn wrong_settings_are_refused() {
    let shuntd = Shuntd::start();
    shuntd.network("lan", &["10.5.0.1/24"]);
    for (command, word) in [
        ("dhcp set lan --range 10.6.0.1-10.6.0.9", "10.6.0"),
        ("dhcp set lan --range 10.5.0.9-10.5.0.2", "10.5.0."),
        ("dhcp set lan --range 10.5.0.1-10.5.0.9", "10.5.0.1"),
        ("dhcp set missing --range 10.5.0.2-10.5.0.9", "missing"),
        ("dhcp set lan --range 10.5.0.2-10.5.0.9 --lease 1", "lease"),
        ("dhcp reserve lan 02:00:00:00:00:01 10.9.0.1", "lan"),
    ] {
        let words: Vec<&str> = command.split_whitespace().collect();
        let refusal = match shuntd.try_ctl(&words) {
            Ok(value) => panic!("`{command}` was carried out: {value}"),
            Err(refusal) => refusal,
        };
        assert!(refusal.status == 1 || refusal.status == 2, "`{command}`: {refusal:?}");
        assert!(refusal.message.contains(word), "`{command}` does not name {word}: {refusal:?}");
    }
}

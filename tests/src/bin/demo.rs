//! `make demo`: two real guests on a fresh shuntd, shown while they talk. Everything is gone afterwards.

#![forbid(unsafe_code)]

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use shunt_tests::{Guest, GuestSpec, Host, NetNs, Nic, Shuntd, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

fn main() {
    heading("shuntd starts with one bridge, shunt0, and a gateway on it; two vhost-user ports join it");
    let shuntd = Shuntd::start();
    let sockets = ["a", "b"].map(|name| shuntd.vhost_port(name, ""));
    show(&shuntd, "port list");

    heading("two guests boot: QEMU, Debian's kernel, virtio-net");
    let specs = [("a", "10.0.3.11/24"), ("b", "10.0.3.12/24")];
    let mut guests = [0, 1]
        .map(|at| GuestSpec::new(specs[at].0).nic(Nic::connects(&sockets[at]).address(specs[at].1)).launch());
    let consoles = [0, 1].map(|at| Console::follow(&guests[at], specs[at].0));
    guests.iter_mut().for_each(Guest::wait_booted);
    let [a, b] = &guests;
    show(&shuntd, "port list");

    heading("guest a pings guest b");
    consoles[0].run(a, "ping -c5 -i0.5 10.0.3.12");

    heading("guest b measures TCP to guest a, then from it");
    let server = a.start("iperf3 -s", LIMIT);
    wait_for("guest a to listen", LIMIT, || (!a.sh("ss -Hltn sport = :5201").is_empty()).then_some(()));
    consoles[1].run(b, "iperf3 -c 10.0.3.11 -t5 --forceflush | grep -E 'Gbits|Mbits'");
    consoles[1].run(b, "iperf3 -c 10.0.3.11 -t5 -R --forceflush | grep -E 'Gbits|Mbits'");
    drop(server);

    let root = nix::unistd::geteuid().is_root();
    let neighbour = root.then(|| NetNs::new("demo"));
    if let Some(outside) = &neighbour {
        heading("a TAP port reaches a namespace of this machine");
        show(&shuntd, &format!("port add out --bridge shunt0 --tap tap0 --netns {}", outside.id()));
        outside.up("tap0", Some("10.0.3.13/24"));
        consoles[1].run(b, "ping -c3 -i0.5 10.0.3.13");
    } else {
        heading("not root: the TAP port to this machine is skipped");
    }
    let outside = root.then(|| the_outside(&shuntd, [a, b], &consoles));

    heading("what the switch knows");
    show(&shuntd, "port list");
    show(&shuntd, "fdb list shunt0");
    show(&shuntd, "worker list");
    consoles.into_iter().for_each(Console::end);
    drop((guests, neighbour, outside, shuntd));
    heading("guests, shuntd and their files are gone");
}

/// Layer 3: a second network, translation, a published port.
fn the_outside(shuntd: &Shuntd, [a, b]: [&Guest; 2], consoles: &[Console; 2]) -> NetNs {
    heading(
        "a second bridge is the outside: its host knows nothing of the guests, whose sources are translated",
    );
    show(shuntd, "bridge add wan");
    show(shuntd, "interface add wan --bridge wan --address 198.51.100.1/24");
    let outside = NetNs::new("outside");
    show(shuntd, &format!("port add outside --bridge wan --tap tap0 --netns {}", outside.id()));
    outside.up("tap0", Some("198.51.100.2/24"));
    for (at, guest) in [a, b].into_iter().enumerate() {
        guest.sh("ip route add default via 10.0.3.1");
        consoles[at].run(guest, "ping -c3 -i0.5 198.51.100.2");
    }

    heading("a port of guest a is published; the outside measures TCP to it");
    show(shuntd, "nat publish add --proto tcp --listen 198.51.100.1:5201 --to 10.0.3.11:5201");
    let server = a.start("iperf3 -s", LIMIT);
    wait_for("guest a to listen", LIMIT, || (!a.sh("ss -Hltn sport = :5201").is_empty()).then_some(()));
    println!("outside$ iperf3 -c 198.51.100.1 -t3");
    println!("{}", outside.sh("iperf3 -c 198.51.100.1 -t3 | grep -E 'Gbits|Mbits'"));
    drop(server);
    show(shuntd, "nat list");
    show(shuntd, "conntrack list --proto tcp");
    outside
}

fn heading(text: &str) {
    println!("\n\x1b[1m{text}\x1b[0m");
}

fn show(shuntd: &Shuntd, command: &str) {
    println!("$ shuntctl {command}");
    let words: Vec<&str> = command.split_whitespace().collect();
    match shuntd.ctl_text(&words) {
        Ok(text) => print!("{text}"),
        Err(refusal) => panic!("exit status {}: {}", refusal.status, refusal.message),
    }
}

/// A thread that prints what a guest writes on its console, while it comes.
struct Console {
    end: Arc<AtomicBool>,
    commands: Receiver<()>,
    thread: JoinHandle<()>,
}

/// What a command's output is followed by.
const MARK: &str = "(that was the command)";

impl Console {
    fn follow(guest: &Guest, name: &'static str) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let (done, commands) = channel();
        let (path, last) = (guest.console(), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            let mut offset = 0;
            loop {
                let ends = last.load(Ordering::Acquire);
                offset = print_lines(&path, offset, name, &done);
                if ends {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Self { end, commands, thread }
    }

    /// Runs a command on the guest with its output on the console, and waits until all of that is printed.
    fn run(&self, guest: &Guest, command: &str) {
        println!("{}$ {command}", guest.name());
        let output =
            guest.start(&format!("{{ {command} && echo '{MARK}'; }} >/dev/console 2>&1"), LIMIT).wait();
        assert!(output.ok(), "{}: `{command}` ended with {}", guest.name(), output.status);
        let printed = self.commands.recv_timeout(LIMIT);
        assert!(printed.is_ok(), "{}: the output of `{command}` does not end", guest.name());
    }

    fn end(self) {
        self.end.store(true, Ordering::Release);
        let _ = self.thread.join();
    }
}

/// Prints the whole lines behind `offset`, tells `done` of commands that have ended, and returns the offset behind the
/// last line.
fn print_lines(path: &PathBuf, offset: u64, name: &str, done: &Sender<()>) -> u64 {
    let mut text = Vec::new();
    let read = std::fs::File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(offset))?;
        file.read_to_end(&mut text)
    });
    let Some(end) = text.iter().rposition(|&byte| byte == b'\n').filter(|_| read.is_ok()) else {
        return offset;
    };
    for line in String::from_utf8_lossy(&text[..end]).lines() {
        let line = line.trim_end();
        if line == MARK {
            let _ = done.send(());
        } else {
            println!("  {name} | {line}");
        }
    }
    offset + end as u64 + 1
}

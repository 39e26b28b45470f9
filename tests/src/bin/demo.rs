//! `make demo`: two real guests on a fresh shuntd, shown while they talk. Everything is gone afterwards.

#![forbid(unsafe_code)]

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use shunt_tests::{Guest, GuestSpec, Host, NetNs, Nic, Shuntd, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

fn main() {
    heading("shuntd starts with one bridge, shunt0; two vhost-user ports join it");
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
    on_console(a, "ping -c5 -i0.5 10.0.3.12");

    heading("guest b measures TCP to guest a, then from it");
    let server = a.start("iperf3 -s", LIMIT);
    wait_for("guest a to listen", LIMIT, || (!a.sh("ss -Hltn sport = :5201").is_empty()).then_some(()));
    on_console(b, "iperf3 -c 10.0.3.11 -t5 --forceflush | grep -E 'Gbits|Mbits'");
    on_console(b, "iperf3 -c 10.0.3.11 -t5 -R --forceflush | grep -E 'Gbits|Mbits'");
    drop(server);

    let outside = nix::unistd::geteuid().is_root().then(|| NetNs::new("demo"));
    if let Some(outside) = &outside {
        heading("a TAP port reaches a namespace of this machine");
        show(&shuntd, &format!("port add out --bridge shunt0 --tap tap0 --netns {}", outside.id()));
        outside.up("tap0", Some("10.0.3.1/24"));
        on_console(b, "ping -c3 -i0.5 10.0.3.1");
    } else {
        heading("not root: the TAP port to this machine is skipped");
    }

    heading("what the switch knows");
    show(&shuntd, "port list");
    show(&shuntd, "fdb list shunt0");
    show(&shuntd, "worker list");
    consoles.into_iter().for_each(Console::end);
    drop((guests, outside, shuntd));
    heading("guests, shuntd and their files are gone");
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

/// Runs a command whose output goes to the guest's console, which [`Console`] shows while it comes.
fn on_console(guest: &Guest, command: &str) {
    println!("{}$ {command}", guest.name());
    let output = guest.start(&format!("{{ {command}; }} >/dev/console 2>&1"), LIMIT).wait();
    assert!(output.ok(), "{}: `{command}` ended with {}", guest.name(), output.status);
}

/// A thread that prints what a guest writes on its console.
struct Console {
    end: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Console {
    fn follow(guest: &Guest, name: &'static str) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let (path, last) = (guest.console(), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            let mut offset = 0;
            loop {
                let ends = last.load(Ordering::Acquire);
                offset = print_lines(&path, offset, name);
                if ends {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Self { end, thread }
    }

    fn end(self) {
        self.end.store(true, Ordering::Release);
        let _ = self.thread.join();
    }
}

/// Prints the whole lines behind `offset` and returns the offset behind them.
fn print_lines(path: &PathBuf, offset: u64, name: &str) -> u64 {
    let mut text = Vec::new();
    let read = std::fs::File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(offset))?;
        file.read_to_end(&mut text)
    });
    let Some(end) = text.iter().rposition(|&byte| byte == b'\n').filter(|_| read.is_ok()) else {
        return offset;
    };
    for line in String::from_utf8_lossy(&text[..end]).lines() {
        println!("  {name} | {}", line.trim_end_matches('\r'));
    }
    offset + end as u64 + 1
}

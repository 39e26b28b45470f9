//! Real Linux guests: QEMU under emulation, Debian's cloud kernel, an initramfs, and a command channel.
//!
//! Memory is a shared memfd, as vhost-user needs it. Commands go over a virtio-serial port to `tests/guest/agent`;
//! its few lines describe the protocol. A guest answers its first command about three seconds after its start.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::host::{Host, Job, Output};
use crate::nic::Nic;
use crate::process::{Process, tail};
use crate::qmp::Qmp;
use crate::tools::tool;
use crate::wait::wait_for;
use crate::{netns::NetNs, progress};

mod migrate;

pub use migrate::{Migration, Moved};

/// A boot takes three seconds on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// How often a guest is started whose QEMU dies of its own race, or whose Linux loses its clock.
const TRIES: u32 = 3;
/// An assertion of QEMU's emulation that fails now and then while a guest with several CPUs boots: one maps a device's memory
/// while another runs on the old map.
const RACE: &str = "iotlb_to_section";
/// What Linux says when its clock has stopped: under emulation the timer of an idle processor gets lost now and then, mostly
/// before there are drivers of any device.
const STALL: &str = "rcu_preempt detected stalls";
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable audit=0 \
                            random.trust_cpu=on net.ifnames=0";

/// What became of a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Boot {
    Up,
    /// QEMU is gone.
    Ended,
    /// The guest's clock has stopped.
    Stalled,
}

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    name: String,
    nics: Vec<Nic>,
    memory_mib: u32,
    slots: u32,
    cpus: u32,
    hugepages: bool,
    netns: Option<String>,
    machine: &'static str,
    spare_ports: u32,
}

impl GuestSpec {
    /// A guest with 256 MiB, one processor and no NIC.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            nics: Vec::new(),
            memory_mib: 256,
            slots: 0,
            cpus: 1,
            hugepages: false,
            netns: None,
            machine: "q35",
            spare_ports: 0,
        }
    }

    /// Adds a NIC; the first one is eth0.
    pub fn nic(mut self, nic: Nic) -> Self {
        self.cpus = self.cpus.max(nic.queue_pairs().min(2));
        self.nics.push(nic);
        self
    }

    /// Number of virtual processors, if not one, or two for several queues.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Room for so many DIMMs, up to 4 GiB in all, to be plugged in while it runs.
    pub fn dimm_slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// Memory from 2 MiB hugepages, which must be there.
    pub fn hugepages(mut self) -> Self {
        self.hugepages = true;
        self
    }

    /// QEMU's machine: `q35`, which it is otherwise, or `pc`, which has no root ports and therefore no NICs of ours.
    pub fn machine(mut self, machine: &'static str) -> Self {
        self.machine = machine;
        self
    }

    /// Adds root ports without a device, for hot-plug: `spare0`, `spare1`, ...
    pub fn spare_ports(mut self, ports: u32) -> Self {
        self.spare_ports = ports;
        self
    }

    /// Runs QEMU inside a namespace, where its TAP devices then are.
    pub fn within(mut self, netns: &NetNs) -> Self {
        self.netns = Some(netns.id().to_owned());
        self
    }

    /// MAC address of the `index`th NIC: made from the guest's name.
    pub fn mac(&self, index: usize) -> String {
        let hash =
            self.name.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        let [_, a, b, c] = hash.to_be_bytes();
        format!("52:54:{a:02x}:{b:02x}:{c:02x}:{index:02x}")
    }

    fn arguments(&self, dir: &std::path::Path) -> Vec<String> {
        let at = |file: &str| dir.join(file).display().to_string();
        let share = tool("qemu/usr/share/qemu").display().to_string();
        let memory = format!(
            "memory-backend-memfd,id=mem,size={}M,share=on{}",
            self.memory_mib,
            if self.hugepages { ",hugetlb=on,hugetlbsize=2M" } else { "" }
        );
        let mut argv: Vec<String> = ["nice", "-n", "5"].map(str::to_owned).to_vec();
        argv.push(tool("qemu/usr/bin/qemu-system-x86_64").display().to_string());
        let mut memory_size = format!("{}M", self.memory_mib);
        if self.slots > 0 {
            memory_size += &format!(",slots={},maxmem=4G", self.slots);
        }
        let cpus = self.cpus.to_string();
        let console = format!("file,id=console,path={}", at("console.log"));
        let qmp = format!("unix:{},server=on,wait=off", at("qmp.sock"));
        let agent = format!("socket,id=agent,path={},server=on,wait=off", at("agent.sock"));
        let kernel = tool("kernel/vmlinux").display().to_string();
        let initramfs = tool("initramfs.cpio").display().to_string();
        let machine = format!("{},memory-backend=mem", self.machine);
        let append = format!("{COMMAND_LINE} shunt.name={}", self.name);
        #[rustfmt::skip]
        let fixed = [
            "-L", &share, "-L", "/usr/share/seabios", "-name", &self.name,
            "-accel", "tcg,thread=multi,tb-size=128", "-cpu", "max", "-M", &machine,
            "-m", &memory_size, "-smp", &cpus, "-nodefaults", "-display", "none", "-object", &memory,
            "-chardev", &console, "-serial", "chardev:console", "-qmp", &qmp,
            "-device", "virtio-serial-pci", "-chardev", &agent, "-device", "virtserialport,chardev=agent,name=shunt.agent",
            "-device", "virtio-rng-pci", "-kernel", &kernel, "-initrd", &initramfs, "-append", &append,
        ];
        argv.extend(fixed.map(str::to_owned));
        for (index, nic) in self.nics.iter().enumerate() {
            argv.extend(nic.arguments(index, &self.mac(index)));
        }
        for port in 0..self.spare_ports {
            let slot = 64 + port;
            argv.push("-device".to_owned());
            argv.push(format!("pcie-root-port,id=spare{port},chassis={slot},slot={slot}"));
        }
        argv
    }

    /// Starts QEMU and returns at once; [`Guest::wait_booted`] waits.
    #[track_caller]
    pub fn launch(self) -> Guest {
        let dir = tempfile::Builder::new().prefix("shunt-guest-").tempdir();
        let dir = dir.unwrap_or_else(|e| panic!("no temporary directory: {e}"));
        let mut guest = Guest {
            spec: self,
            dir,
            process: None,
            channel: Arc::default(),
            writer: Mutex::new(None),
            next_job: AtomicU64::new(1),
            started: Instant::now(),
        };
        guest.launch();
        guest
    }

    /// Starts the guest and waits until it takes commands and has its addresses.
    #[track_caller]
    pub fn boot(self) -> Guest {
        let mut guest = self.launch();
        guest.wait_booted();
        guest
    }
}

/// Starts all guests at once and waits for all.
#[track_caller]
pub fn boot_all<const N: usize>(specs: [GuestSpec; N]) -> [Guest; N] {
    let mut guests = specs.map(GuestSpec::launch);
    for guest in &mut guests {
        guest.wait_booted();
    }
    guests
}

/// What the reader of the command channel shares with the guest's owner.
#[derive(Default)]
struct Channel {
    waiting: Mutex<HashMap<u64, Sender<Output>>>,
    boots: AtomicU64,
    /// How often the guest has moved: readers of what it has left behind end without ending its jobs.
    moves: AtomicU64,
}

impl Channel {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Sender<Output>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes answers apart until QEMU closes the socket.
    fn read(&self, stream: UnixStream) {
        let moves = self.moves.load(Ordering::Acquire);
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).into_owned();
            line.clear();
            // A reboot in the middle of an answer leaves half a line in front of the next one.
            let Some((_, head)) = text.rsplit_once("done ") else { continue };
            let words: Vec<&str> = head.split_whitespace().collect();
            let [job, status, length] = words[..] else { continue };
            let (Ok(job), Ok(status), Ok(length)) = (job.parse(), status.parse(), length.parse()) else {
                continue;
            };
            let mut body = vec![0; length];
            if stream.read_exact(&mut body).is_err() {
                break;
            }
            if job == 0 {
                self.waiting().clear(); // what ran before a reboot has no answer any more
                self.boots.fetch_add(1, Ordering::Release);
            } else if let Some(waiter) = self.waiting().remove(&job) {
                let _ = waiter.send(Output { status, text: String::from_utf8_lossy(&body).into_owned() });
            }
        }
        if moves == self.moves.load(Ordering::Acquire) {
            self.waiting().clear();
        }
    }
}

/// A running guest. Killed on drop, without ceremony: nothing in it is worth saving.
pub struct Guest {
    spec: GuestSpec,
    dir: TempDir,
    process: Option<Process>,
    channel: Arc<Channel>,
    writer: Mutex<Option<UnixStream>>,
    next_job: AtomicU64,
    started: Instant,
}

impl Guest {
    fn launch(&mut self) {
        for socket in self.spec.nics.iter().filter_map(Nic::listening_path) {
            let _ = std::fs::remove_file(socket);
        }
        for file in ["agent.sock", "qmp.sock", "console.log"] {
            let _ = std::fs::remove_file(self.dir.path().join(file));
        }
        self.started = Instant::now();
        let argv = self.spec.arguments(self.dir.path());
        let log = self.path("qemu.log");
        self.process = Some(Process::start(&self.spec.name, &argv, &log, self.spec.netns.as_deref()));
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn boots(&self) -> u64 {
        self.channel.boots.load(Ordering::Acquire)
    }

    /// Waits until the guest takes commands, then sets its addresses. A QEMU that dies of its own race meanwhile has another
    /// try, and so has a Linux whose clock stops.
    #[track_caller]
    pub fn wait_booted(&mut self) {
        let mut tries = 1;
        loop {
            let boot = if self.open_channel() { self.booted(1) } else { Boot::Ended };
            if boot == Boot::Up {
                break;
            }
            self.count_fault(boot, &mut tries);
            self.kill();
            self.launch();
        }
        self.configure_all();
    }

    /// Counts a boot that failed by a fault of the emulation, after which there is another try; any other failure, or one
    /// too many, is the test's.
    #[track_caller]
    fn count_fault(&self, boot: Boot, tries: &mut u32) {
        let (name, log) = (&self.spec.name, self.log());
        let known = boot == Boot::Stalled || log.contains(RACE);
        assert!(*tries < TRIES && known, "guest {name}: {boot:?} {log}");
        progress!("guest {name}: {boot:?} by a fault of the emulation ({RACE} or a lost timer): once more");
        *tries += 1;
    }

    fn is_alive(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::alive)
    }

    /// Connects to the guest's command channel; false if QEMU ended.
    #[track_caller]
    fn open_channel(&mut self) -> bool {
        let path = self.path("agent.sock");
        let what = format!("QEMU of {} to open its command channel", self.spec.name);
        let opened = wait_for(&what, BOOT_LIMIT, || match self.is_alive() {
            true => UnixStream::connect(&path).ok().map(Some),
            false => Some(None),
        });
        let Some(stream) = opened else { return false };
        let reader = stream.try_clone().unwrap_or_else(|e| panic!("cannot clone a socket: {e}"));
        self.channel = Arc::default();
        let channel = Arc::clone(&self.channel);
        std::thread::spawn(move || channel.read(reader));
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        true
    }

    /// Waits until the guest has come up so often, or never will.
    #[track_caller]
    fn booted(&mut self, boots: u64) -> Boot {
        let what = format!("guest {} to boot", self.spec.name);
        let stalls = |path| {
            std::fs::read(path).map_or(0, |text| String::from_utf8_lossy(&text).matches(STALL).count())
        };
        let before = stalls(self.console());
        wait_for(&what, BOOT_LIMIT, || {
            if !self.is_alive() {
                Some(Boot::Ended)
            } else if self.boots() >= boots {
                Some(Boot::Up)
            } else {
                (stalls(self.console()) > before).then_some(Boot::Stalled)
            }
        })
    }

    fn configure_all(&self) {
        for index in 0..self.spec.nics.len() {
            self.configure(index);
        }
        progress!("guest {} is up after {:.1} s", self.spec.name, self.started.elapsed().as_secs_f64());
    }

    fn configure(&self, index: usize) {
        let device = self.device(index);
        let mut script = format!("ip link set {device} up");
        if let Some(address) = self.spec.nics[index].cidr() {
            script += &format!("; ip address replace {address} dev {device}");
        }
        self.sh(&script);
    }

    /// The guest's name for its `index`th NIC.
    #[track_caller]
    pub fn device(&self, index: usize) -> String {
        let path = self.sh(&format!("grep -il {} /sys/class/net/*/address", self.mac(index)));
        path.split('/').nth(4).unwrap_or_else(|| panic!("no device in {path}")).to_owned()
    }

    /// MAC address of the `index`th NIC.
    pub fn mac(&self, index: usize) -> String {
        self.spec.mac(index)
    }

    /// The socket of QEMU's monitor, for whoever plugs things in.
    pub fn monitor(&self) -> PathBuf {
        self.path("qmp.sock")
    }

    /// QEMU's process id.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// The virtio feature bits that driver and device agreed on for the `index`th NIC, bit 0 first.
    #[track_caller]
    pub fn features(&self, index: usize) -> Vec<bool> {
        let bits = self.sh(&format!("cat /sys/class/net/{}/device/features", self.device(index)));
        bits.chars().map(|bit| bit == '1').collect()
    }

    /// Ends QEMU with SIGKILL, as when a host's memory runs out.
    pub fn kill(&mut self) {
        self.process = None;
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Starts a killed guest again with the same devices, and waits until it is up.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        self.launch();
        self.wait_booted();
    }

    /// Reboots the Linux inside while QEMU and its connections stay, and waits until it is up again.
    #[track_caller]
    pub fn reboot(&mut self) {
        let mut boots = self.boots();
        self.started = Instant::now();
        drop(self.start("reboot -f", Duration::from_secs(5)));
        let mut tries = 1;
        loop {
            let boot = self.booted(boots + 1);
            if boot == Boot::Up {
                break;
            }
            self.count_fault(boot, &mut tries);
            if boot == Boot::Stalled {
                self.qmp("system_reset", serde_json::json!({}));
            } else {
                self.restart();
                boots = self.boots();
                drop(self.start("reboot -f", Duration::from_secs(5)));
            }
        }
        self.configure_all();
    }

    /// Executes one QMP command.
    #[track_caller]
    pub fn qmp(&self, command: &str, arguments: Value) -> Value {
        let mut qmp = Qmp::connect(&self.path("qmp.sock")).unwrap_or_else(|e| panic!("{e}"));
        qmp.command(command, arguments).unwrap_or_else(|e| panic!("{}: {e}", self.spec.name))
    }

    /// The file that the guest's console is written to.
    pub fn console(&self) -> PathBuf {
        self.path("console.log")
    }

    /// The end of the guest's console and of QEMU's own words.
    pub fn log(&self) -> String {
        tail(&format!("console of {}", self.spec.name), &self.path("console.log"), 30)
            + &tail(&format!("QEMU of {}", self.spec.name), &self.path("qemu.log"), 30)
    }
}

impl Host for Guest {
    fn name(&self) -> &str {
        &self.spec.name
    }

    #[track_caller]
    fn start(&self, script: &str, limit: Duration) -> Job {
        let id = self.next_job.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = channel();
        self.channel.waiting().insert(id, sender);
        let line = format!("{id} {} {}\n", limit.as_secs().max(1), base64(script.as_bytes()));
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let written = writer.as_mut().map(|stream| stream.write_all(line.as_bytes()));
        assert!(
            matches!(written, Some(Ok(()))),
            "guest {} takes no commands\n{}",
            self.spec.name,
            self.log()
        );
        Job::in_guest(format!("{}: `{script}`", self.spec.name), limit, receiver)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |g, &b| g << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let value = (group >> (18 - 6 * digit)) as usize % 64;
            text.push(if digit <= chunk.len() { char::from(DIGITS[value]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_matches_the_vectors_of_rfc_4648() {
        let vectors = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (plain, encoded) in vectors.into_iter().chain([("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy")]) {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}

#![forbid(unsafe_code)]
//! What thousands of rules cost to load and to list, beside what they replace: the kernel's IPVS with ipvsadm, and
//! iptables with the rules that kube-proxy makes of as many services. And how long packets wait while they are loaded.
//!
//! No figure here is about a packet's cost: that does not depend on the rules (part `balance`).

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use shunt_tests::{GuestSpec, Host as _, NetNs};

use super::layer3::{on_its_core, traffic};
use super::report::median;
use super::{Arguments, Results, say};
use crate::flows::{Delays, FlowGenerator, Traffic};
use crate::peers::layer3;
use crate::peers::{Kind, Running, Site, Task, Wiring};

/// Services, with [`SERVERS`] each: 20,000 rules.
const SERVICES: u32 = 5000;
const SERVERS: u32 = 3;
/// The services of the book's figures for single rules.
const SINGLE: [u32; 3] = [0, 1000, 5000];
/// Between two packets while rules are loaded.
const PACE: Duration = Duration::from_micros(100);
/// Restores while packets flow, at least.
const RESTORES: u32 = 20;

/// What was found; milliseconds are medians of the rounds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Rules {
    /// 20,000 rules into an empty table by `shuntctl ipvsadm -R`, the program's start included.
    pub restore_ms: f64,
    /// As many others in their place: `-R --replace`.
    pub replace_ms: f64,
    /// `shuntctl ipvsadm -L -n` of all of them.
    pub list_ms: f64,
    /// Microseconds from a guest to the other through a service: median, 99.9th percentile, longest; nothing changes.
    pub calm_us: [f64; 3],
    /// The same while 20,000 rules are replaced over and over.
    pub loading_us: [f64; 3],
    /// The kernel's ipvsadm: restore and list; `None` where the kernel has no IPVS.
    pub kernel_ipvs_ms: Option<[f64; 2]>,
    /// The same in a guest, where there is one: restore, list, and how many times slower than here it counts in a shell.
    pub guest_ipvs: Option<[f64; 3]>,
    /// `iptables-restore` of kube-proxy's rules for as many services, all at once; `None` without iptables.
    pub iptables_restore_ms: Option<f64>,
    /// `iptables -A` of one rule with so many services loaded.
    pub iptables_add_ms: Vec<(u32, f64)>,
    /// One rule by `shuntctl ipvsadm -a` with 5,000 services loaded.
    pub add_ms: f64,
}

/// Services with three servers each, in ipvsadm's words; those of another `turn` have other servers, but for the first
/// service, which is in use.
fn table(turn: u32) -> String {
    let mut text = String::new();
    for n in 0..SERVICES {
        let service = format!("-u {}:{}", layer3::service(n), layer3::SERVICE_PORT);
        let _ = writeln!(text, "-A {service} -s rr");
        for m in 0..SERVERS {
            let server = layer3::server((n + turn * 7 * n.min(1)) * SERVERS + m);
            let _ = writeln!(text, "-a {service} -r {server}:{} -m -w 1", layer3::SERVICE_PORT);
        }
    }
    text
}

/// What kube-proxy makes of `services` in iptables mode: a rule for the service, one for each server with its share, one
/// that translates; 8 rules for three servers.
fn iptables(services: u32) -> String {
    let mut text = "*nat\n:KUBE-SERVICES - [0:0]\n".to_owned();
    for n in 0..services {
        let _ = writeln!(text, ":S{n} - [0:0]");
        for m in 0..SERVERS {
            let _ = writeln!(text, ":E{n}-{m} - [0:0]");
        }
    }
    for n in 0..services {
        let address = layer3::service(n);
        let port = layer3::SERVICE_PORT;
        let _ = writeln!(text, "-A KUBE-SERVICES -d {address}/32 -p udp -m udp --dport {port} -j S{n}");
        for m in 0..SERVERS {
            let share = match SERVERS - m {
                1 => String::new(),
                left => format!("-m statistic --mode random --probability {:.5} ", 1.0 / f64::from(left)),
            };
            let _ = writeln!(text, "-A S{n} {share}-j E{n}-{m}");
            let server = layer3::server(n * SERVERS + m);
            let _ = writeln!(text, "-A E{n}-{m} -p udp -j DNAT --to-destination {server}:{port}");
        }
        let _ = writeln!(text, "-A S{n} -j RETURN");
    }
    text + "COMMIT\n"
}

/// Runs a command with a file as its input; milliseconds.
pub(super) fn time(mut command: Command, input: Option<&Path>) -> Result<f64> {
    let words = format!("{command:?}");
    let input = match input {
        Some(path) => Stdio::from(File::open(path)?),
        None => Stdio::null(),
    };
    let start = Instant::now();
    let output = command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let output = output.with_context(|| words.clone())?;
    let taken = start.elapsed().as_secs_f64() * 1e3;
    ensure!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(taken)
}

/// A file with this text.
pub(super) fn file(dir: &Path, name: &str, text: &str) -> Result<std::path::PathBuf> {
    let path = dir.join(name);
    File::create(&path)?.write_all(text.as_bytes())?;
    Ok(path)
}

/// Measures; the result goes into `results.rules`.
pub(super) fn run(site: &Site, arguments: &Arguments, kinds: &[Kind], results: &mut Results) -> Result<()> {
    if !kinds.contains(&Kind::Shunt) {
        return Ok(());
    }
    let mut found = Rules::default();
    let tables = [file(&site.scratch, "rules-0", &table(0))?, file(&site.scratch, "rules-1", &table(1))?];
    let task = Task::Balance { services: 1, servers: 3, scheduler: "rr", limit: 262_144 };
    let mut running = Kind::Shunt.launch(site, &Wiring { busy: false, ..Wiring::layer3(task) })?;
    let control = running.sockets()[0].with_file_name("control.sock");
    let ipvsadm = |words: &[&str]| {
        let mut command = Command::new(site.programs.join("shuntctl"));
        command.arg("--control").arg(&control).arg("ipvsadm").args(words);
        command
    };
    let [mut restore, mut replace, mut list, mut add] = [const { Vec::new() }; 4];
    for _ in 0..arguments.rounds() {
        time(ipvsadm(&["-C"]), None)?;
        restore.push(time(ipvsadm(&["-R"]), Some(&tables[0]))?);
        replace.push(time(ipvsadm(&["-R", "--replace"]), Some(&tables[1]))?);
        list.push(time(ipvsadm(&["-L", "-n"]), None)?);
        let service = format!("{}:{}", layer3::service(SERVICES / 2), layer3::SERVICE_PORT);
        add.push(time(ipvsadm(&["-a", "-u", &service, "-r", "10.253.255.254:1", "-m"]), None)?);
    }
    [found.restore_ms, found.replace_ms, found.list_ms, found.add_ms] =
        [restore, replace, list, add].map(median);
    say(&format!(
        "20,000 rules: restored {:.1} ms, replaced {:.1} ms, listed {:.1} ms",
        found.restore_ms, found.replace_ms, found.list_ms
    ));
    let mut trickle = traffic(arguments, task, 64, vec![layer3::service(0).into()]);
    trickle.one_way = true;
    (found.calm_us, found.loading_us) = delays(site, arguments, &mut running, trickle, |turn| {
        time(ipvsadm(&["-R", "--replace"]), Some(&tables[turn as usize % tables.len()])).map(drop)
    })?;
    running.pause()?;
    match kernel(&tables[0]) {
        Ok(times) => found.kernel_ipvs_ms = Some(times),
        Err(why) => {
            let why = format!("{why:#}");
            let first = why.lines().next().unwrap_or_default();
            results.absent.push(format!("the kernel's IPVS on this machine: {first}"));
            found.guest_ipvs = guest(&tables[0])?;
        }
    }
    if let Err(why) = chains(&site.scratch, &mut found) {
        results.absent.push(format!("iptables: {why:#}"));
    }
    say(&format!("rules: {found:?}"));
    results.rules = Some(found);
    Ok(())
}

/// How long packets take while nothing changes, and while `load` runs again and again.
pub(super) fn delays(
    site: &Site,
    arguments: &Arguments,
    running: &mut Running,
    traffic: Traffic,
    load: impl Fn(u32) -> Result<()> + Sync,
) -> Result<([f64; 3], [f64; 3])> {
    let [inner, outer] = running.sockets() else { bail!("a router has two ports") };
    let mut generator = FlowGenerator::connect([inner, outer], &traffic)?;
    let length = Duration::from_secs(if arguments.is_quick() { 1 } else { 4 });
    let figures = |delays: Delays| [delays.percentile(0.5), delays.percentile(0.999), delays.longest()];
    let calm = on_its_core(site, || {
        let end = Instant::now() + length;
        generator.trickle(PACE, || Instant::now() < end)
    })?;
    let loaded = AtomicBool::new(false);
    let loading = std::thread::scope(|scope| {
        let loader = scope.spawn(|| {
            let done = (0..RESTORES).try_for_each(&load);
            loaded.store(true, Ordering::Release);
            done
        });
        let loading = on_its_core(site, || generator.trickle(PACE, || !loaded.load(Ordering::Acquire)));
        loader.join().map_err(|_| anyhow::anyhow!("the loader panicked"))??;
        loading
    })?;
    Ok((figures(calm), figures(loading)))
}

/// Restores and lists the table in a namespace of its own by the real ipvsadm.
fn kernel(table: &Path) -> Result<[f64; 2]> {
    let netns = NetNs::new("ipvs");
    let ipvsadm = |word: &[&str]| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns.id(), "ipvsadm"]).args(word);
        command
    };
    time(ipvsadm(&["-C"]), None)?;
    Ok([time(ipvsadm(&["-R"]), Some(table))?, time(ipvsadm(&["-L", "-n"]), None)?])
}

/// What a shell counts to see how fast a machine is.
const COUNT: &str = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";

/// As [`kernel`] in a Linux guest, emulated where the machine has no KVM; none without the tests' guest.
fn guest(table: &Path) -> Result<Option<[f64; 3]>> {
    if !super::guests::tools().join("initramfs.cpio").exists() {
        return Ok(None);
    }
    let guest = GuestSpec::new("ipvs").boot();
    // In pieces that a shell takes.
    guest.sh("modprobe -a ip_vs ip_vs_rr; : >/tmp/rules");
    let text = std::fs::read_to_string(table)?;
    for lines in text.lines().collect::<Vec<_>>().chunks(500) {
        guest.sh(&format!("cat >>/tmp/rules <<'END'\n{}\nEND", lines.join("\n")));
    }
    // Hundredths of a second.
    let clock = "read now idle </proc/uptime; echo ${now%.*}${now#*.}";
    let time = |work: &str| -> Result<f64> {
        let line =
            guest.start(&format!("{clock}; {work} >/dev/null; {clock}"), Duration::from_secs(300)).wait();
        let mut times = line.text.split_whitespace().map(str::parse::<f64>);
        match (times.next(), times.next()) {
            (Some(Ok(start)), Some(Ok(end))) => Ok((end - start) * 10.0),
            _ => bail!("{work}: {}", line.text),
        }
    };
    let [restore, list, count] = [time("ipvsadm -R </tmp/rules")?, time("ipvsadm -L -n")?, time(COUNT)?];
    let mut here = Command::new("busybox");
    here.args(["sh", "-c", COUNT]);
    Ok(Some([restore, list, count / self::time(here, None)?]))
}

/// kube-proxy's chains in a namespace of their own.
fn chains(dir: &Path, found: &mut Rules) -> Result<()> {
    let netns = NetNs::new("chains");
    let run = |words: &[&str]| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns.id()]).args(words);
        command
    };
    for services in SINGLE {
        let rules = file(dir, "chains", &iptables(services))?;
        let taken = time(run(&["iptables-restore"]), Some(&rules))?;
        if services == SERVICES {
            found.iptables_restore_ms = Some(taken);
        }
        let one = ["iptables", "-t", "nat", "-A", "KUBE-SERVICES", "-d", "10.0.0.1/32", "-j", "RETURN"];
        let mut times = Vec::new();
        for _ in 0..3 {
            times.push(time(run(&one), None)?);
        }
        found.iptables_add_ms.push((services, median(times)));
    }
    Ok(())
}

/// Three delays for people.
pub(super) fn microseconds([median, most, longest]: [f64; 3]) -> String {
    format!("{median:.0} / {most:.0} / {longest:.0} us")
}

/// As Markdown.
pub(super) fn markdown(found: &Rules) -> String {
    let mut text =
        "\n### 20,000 rules: 5,000 services with 3 servers\n\n| figure | value |\n|---|---|\n".to_owned();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "| {name} | {value} |");
    };
    row("shunt: restored", format!("{:.0} ms", found.restore_ms));
    row("shunt: replaced by as many others", format!("{:.0} ms", found.replace_ms));
    row("shunt: listed", format!("{:.0} ms", found.list_ms));
    row("shunt: one server more", format!("{:.1} ms", found.add_ms));
    row(
        "a packet's way through a service, nothing changing: median / 99.9 % / longest",
        microseconds(found.calm_us),
    );
    row("the same while they are replaced over and over", microseconds(found.loading_us));
    if let Some([restore, list]) = found.kernel_ipvs_ms {
        row("the kernel's IPVS: restored by ipvsadm", format!("{restore:.0} ms"));
        row("the kernel's IPVS: listed by ipvsadm", format!("{list:.0} ms"));
    }
    if let Some([restore, list, slower]) = found.guest_ipvs {
        let note = format!("a guest that counts {slower:.0} times slower");
        row(&format!("the kernel's IPVS in {note}: restored by ipvsadm"), format!("{restore:.0} ms"));
        row(&format!("the kernel's IPVS in {note}: listed by ipvsadm"), format!("{list:.0} ms"));
    }
    if let Some(restore) = found.iptables_restore_ms {
        row("iptables, kube-proxy's 40,000 rules for them: restored at once", format!("{restore:.0} ms"));
    }
    for (services, add) in &found.iptables_add_ms {
        row(&format!("iptables: one rule more, {services} services loaded"), format!("{add:.1} ms"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_have_as_many_rules_as_is_said() {
        assert_eq!(table(0).lines().count(), 20_000);
        assert_ne!(table(0), table(1));
        assert_eq!(iptables(SERVICES).lines().filter(|line| line.starts_with("-A")).count(), 40_000);
    }
}

#![forbid(unsafe_code)]
//! What `config apply` takes for a file with a thousand ports, and how long the packets of others wait meanwhile.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::layer3::traffic;
use super::report::median;
use super::rules::{delays, file, microseconds, time};
use super::{Arguments, Results, say};
use crate::peers::layer3;
use crate::peers::{Kind, Site, Task, Wiring};

/// Ports that come and go.
const PORTS: usize = 1000;

/// What was found; milliseconds are medians of the rounds, the start of `shuntctl` included.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Applied {
    /// A file with a thousand vhost-user ports more than there are.
    pub add_ms: f64,
    /// The same file again: nothing is to be done.
    pub same_ms: f64,
    /// The same file with another limit of one port.
    pub one_ms: f64,
    /// `config save` of all of it.
    pub save_ms: f64,
    /// The file without the thousand.
    pub delete_ms: f64,
    /// Microseconds from a guest to the other by the same switch: median, 99.9th percentile, longest; nothing changes.
    pub calm_us: [f64; 3],
    /// The same while the thousand come and go.
    pub applying_us: [f64; 3],
}

/// A configuration with a thousand ports more.
fn with_ports(base: &str, dir: &Path) -> String {
    let mut text = base.to_owned();
    for n in 0..PORTS {
        let path = dir.join(format!("p{n}.sock"));
        let _ = write!(
            text,
            "\n[[port]]\nname = \"many{n}\"\nbridge = \"many\"\nvhost_user = \"{}\"\n",
            path.display()
        );
    }
    text + "\n[[bridge]]\nname = \"many\"\n"
}

/// Measures; the result goes into `results.applied`.
pub(super) fn run(site: &Site, arguments: &Arguments, kinds: &[Kind], results: &mut Results) -> Result<()> {
    if !kinds.contains(&Kind::Shunt) {
        return Ok(());
    }
    let task = Task::Bridge;
    let mut running = Kind::Shunt.launch(site, &Wiring { busy: false, ..Wiring::layer3(task) })?;
    let control = running.sockets()[0].with_file_name("control.sock");
    let shuntctl = |words: &[&str]| {
        let mut command = Command::new(site.programs.join("shuntctl"));
        command.arg("--control").arg(&control).arg("config").args(words);
        command
    };
    let output = shuntctl(&["show"]).output()?;
    ensure!(output.status.success(), "config show: {}", String::from_utf8_lossy(&output.stderr));
    let base = String::from_utf8(output.stdout)?;
    let all = with_ports(&base, &site.scratch);
    let other = all.replacen("\"many\"\nvhost_user", "\"many\"\ningress_rate = 1000000000\nvhost_user", 1);
    ensure!(other != all, "no port to be changed");
    let [base, all, other] = [("base", &base), ("all", &all), ("other", &other)]
        .map(|(name, text)| file(&site.scratch, name, text));
    let (base, all, other) = (base?, all?, other?);
    let saved = site.scratch.join("saved");
    let [base, all, other, saved] = [&base, &all, &other, &saved].map(|path| path.display().to_string());
    let [mut add, mut same, mut one, mut save, mut delete] = [const { Vec::new() }; 5];
    for _ in 0..arguments.rounds() {
        add.push(time(shuntctl(&["apply", &all]), None)?);
        same.push(time(shuntctl(&["apply", &all]), None)?);
        one.push(time(shuntctl(&["apply", &other]), None)?);
        save.push(time(shuntctl(&["save", &saved]), None)?);
        delete.push(time(shuntctl(&["apply", &base]), None)?);
    }
    let [add_ms, same_ms, one_ms, save_ms, delete_ms] = [add, same, one, save, delete].map(median);
    let mut traffic = traffic(arguments, task, 64, layer3::destinations(1));
    traffic.one_way = true;
    let (calm_us, applying_us) = delays(site, arguments, &mut running, traffic, |turn| {
        time(shuntctl(&["apply", if turn % 2 == 0 { &all } else { &base }]), None).map(drop)
    })?;
    let found = Applied { add_ms, same_ms, one_ms, save_ms, delete_ms, calm_us, applying_us };
    say(&format!("{found:?}"));
    results.applied = Some(found);
    Ok(())
}

/// As Markdown.
pub(super) fn markdown(found: &Applied) -> String {
    let mut text = "\n### `config apply` with 1,000 ports\n\n| figure | value |\n|---|---|\n".to_owned();
    for (name, ms) in [
        ("1,000 vhost-user ports more", found.add_ms),
        ("the same file again", found.same_ms),
        ("one of them with another limit", found.one_ms),
        ("`config save`", found.save_ms),
        ("1,000 ports less", found.delete_ms),
    ] {
        let _ = writeln!(text, "| {name} | {ms:.0} ms |");
    }
    let calm = microseconds(found.calm_us);
    let _ = writeln!(text, "| a neighbour's packet, nothing changing: median / 99.9 % / longest | {calm} |");
    let applying = microseconds(found.applying_us);
    let _ = writeln!(text, "| the same while the 1,000 come and go | {applying} |");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_as_many_ports_as_is_said() {
        let text = with_ports("[[bridge]]\nname = \"b\"\n", Path::new("/run"));
        assert_eq!(text.matches("[[port]]").count(), PORTS);
        assert_eq!(text.matches("[[bridge]]").count(), 2);
    }
}

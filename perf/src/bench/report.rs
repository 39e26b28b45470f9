#![forbid(unsafe_code)]
//! Results as Markdown: per candidate best, median and spread, and ratios against the peers.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Results, Sample};

/// What the rounds of one candidate in one setting say together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Summary {
    /// Highest rate.
    pub(super) best: f64,
    /// Rate in the middle.
    pub(super) median: f64,
    /// Highest minus lowest rate, as a share of the median.
    pub(super) spread: f64,
    /// Fewest busy cycles a packet, and those in the middle.
    pub(super) cycles: Option<(f64, f64)>,
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

pub(super) fn summarise(samples: &[&Sample], rate: impl Fn(&Sample) -> f64) -> Summary {
    let rates: Vec<f64> = samples.iter().map(|s| rate(s)).collect();
    let cycles: Vec<f64> = samples.iter().filter_map(|s| s.busy_cycles).collect();
    let (best, worst) =
        (rates.iter().copied().fold(0.0, f64::max), rates.iter().copied().fold(f64::MAX, f64::min));
    let middle = median(rates);
    let fewest = cycles.iter().copied().fold(f64::MAX, f64::min);
    Summary {
        best,
        median: middle,
        spread: (best - worst) / middle,
        cycles: (!cycles.is_empty()).then(|| (fewest, median(cycles))),
    }
}

/// What samples must share to be compared: part, guests, queues, size, distance of the cores.
pub(super) type Setting = (&'static str, &'static str, u16, usize, Reverse<&'static str>);

/// Candidates in the order in which they were first measured, for each setting.
pub(super) fn settings(results: &Results) -> BTreeMap<Setting, Vec<(&'static str, Vec<&Sample>)>> {
    let mut settings: BTreeMap<Setting, Vec<(&'static str, Vec<&Sample>)>> = BTreeMap::new();
    for sample in results.samples.iter().filter(|s| s.cores() != "mixed") {
        let setting = (sample.part, sample.guests, sample.queues, sample.size, Reverse(sample.cores()));
        let group = settings.entry(setting).or_default();
        match group.iter_mut().find(|(name, _)| *name == sample.candidate) {
            Some((_, samples)) => samples.push(sample),
            None => group.push((sample.candidate, vec![sample])),
        }
    }
    settings
}

/// The median of shunt's rate over another candidate's in the same round: what was measured within seconds.
fn paired(
    candidates: &[(&'static str, Vec<&Sample>)],
    samples: &[&Sample],
    rate: impl Fn(&Sample) -> f64,
) -> Option<f64> {
    let (_, ours) = candidates.iter().find(|(name, _)| *name == "shunt")?;
    let ratios: Vec<f64> = samples
        .iter()
        .filter(|s| s.candidate != "shunt")
        .filter_map(|s| Some(rate(ours.iter().find(|o| o.round == s.round)?) / rate(s)))
        .collect();
    (!ratios.is_empty()).then(|| median(ratios))
}

/// Whether a part's rates are shown in Gbit/s.
pub(super) fn in_gigabits(part: &str) -> bool {
    !matches!(
        part,
        "vhost" | "packed" | "testpmd" | "adaptive" | "route" | "snat" | "balance" | "connections"
    )
}

fn heading(part: &str, guests: &str) -> String {
    let title = match (part, guests) {
        ("vhost", "forward") => "Two vhost-user ports, our own guests, each frame sent back (Mpps each way)",
        ("vhost", "credit") => "Two vhost-user ports, our own guests, prepared frames (Mpps each way)",
        ("packed", "forward") => {
            "Packed rings (shunt) beside packed in order and split ones, each frame sent back (Mpps each way)"
        }
        ("packed", _) => {
            "Packed rings (shunt) beside packed in order and split ones, prepared frames (Mpps each way)"
        }
        ("testpmd", _) => "Two vhost-user ports, testpmd's virtio-user guests (Mpps each way)",
        ("gso", _) => "65,214-byte TCP segmentation frames between our own guests (Gbit/s each way)",
        ("route", "flowgen") => "Routed, testpmd's flowgen, one way (Mpps)",
        ("route", flows) => {
            return format!("Routed, our own guests, {flows}, each frame answered (Mpps each way)");
        }
        ("snat", "flowgen") => "Source translated, testpmd's flowgen, 1,024 flows, one way (Mpps)",
        ("snat", flows) => {
            return format!(
                "Source translated, our own guests, {flows}, each frame answered (Mpps each way)"
            );
        }
        ("balance", "new") => {
            "Virtual services, masqueraded, each frame the first of a new connection, by scheduler (Mpps)"
        }
        ("balance", flows) => {
            return format!(
                "Virtual services, masqueraded, our own guests, {flows}, each frame answered (Mpps each way)"
            );
        }
        ("connections", _) => "Source translated, each frame the first of a new connection (Mpps)",
        ("adaptive", _) => "Adaptive beside busy polling, our own guests (Mpps each way)",
        ("tap", _) => "iperf3, one TCP connection between two TAP devices in two network namespaces (Gbit/s)",
        ("qemu", "TSO") => "iperf3, one TCP connection between two QEMU guests with TSO (Gbit/s)",
        ("qemu", _) => "iperf3, one TCP connection between two QEMU guests without TSO (Gbit/s)",
        (other, _) => other,
    };
    title.to_owned()
}

/// The tables.
pub(super) fn markdown(results: &Results) -> String {
    let mut text = String::new();
    let machine = &results.machine;
    let _ = writeln!(
        text,
        "{} ({} cores, TSC {} MHz{}), Linux {}; {}; load at the start {}.\n",
        machine.processor,
        machine.cores,
        machine.tsc_mhz,
        if machine.virtual_machine { ", a virtual machine" } else { "" },
        machine.kernel,
        machine.versions.join(", "),
        machine.load
    );
    let _ = writeln!(text, "Command: `{}`\n", results.command);
    for line in &results.absent {
        let _ = writeln!(text, "Not measured: {line}\n");
    }
    for line in &results.failures {
        let _ = writeln!(text, "Failed: {line}\n");
    }
    let mut last = None;
    for ((part, guests, queues, size, Reverse(cores)), candidates) in settings(results) {
        if last != Some((part, guests)) {
            last = Some((part, guests));
            let _ = writeln!(text, "\n### {}\n", heading(part, guests));
            text.push_str("| bytes | queues | cores | candidate | rounds | best | median | spread | busy cycles/packet: best | median | shunt/this: best | by round |\n");
            text.push_str("|---|---|---|---|---|---|---|---|---|---|---|---|\n");
        }
        let rate = |s: &Sample| if in_gigabits(part) { s.gbps } else { s.mpps };
        let ours = candidates.iter().find(|(name, _)| *name == "shunt").map(|(_, s)| summarise(s, rate));
        for (name, samples) in &candidates {
            let summary = summarise(samples, rate);
            let best = match &ours {
                Some(ours) if *name != "shunt" => format!("{:.2}", ours.best / summary.best),
                _ => String::new(),
            };
            let by_round =
                paired(&candidates, samples, rate).map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let cycles =
                |of: fn((f64, f64)) -> f64| summary.cycles.map_or(String::new(), |c| format!("{:.0}", of(c)));
            let _ = writeln!(
                text,
                "| {size} | {queues} | {cores} | {name} | {} | {:.2} | {:.2} | {:.0} % | {} | {} | {} | {} |",
                samples.len(),
                summary.best,
                summary.median,
                summary.spread * 100.0,
                cycles(|c| c.0),
                cycles(|c| c.1),
                best,
                by_round
            );
        }
    }
    if let Some(idle) = &results.idle {
        text.push_str(&super::idle::markdown(idle));
    }
    if let Some(changes) = &results.changes {
        text.push_str(&super::changes::markdown(changes));
    }
    if !results.workers.is_empty() {
        text.push_str(&super::workers::markdown(&results.workers));
    }
    if let Some(connections) = &results.connections {
        text.push_str(&super::connections::markdown(connections));
    }
    if let Some(hotplug) = &results.hotplug {
        text.push_str(&super::hotplug::markdown(hotplug));
    }
    if let Some(rules) = &results.rules {
        text.push_str(&super::rules::markdown(rules));
    }
    if let Some(takeover) = &results.takeover {
        text.push_str(&super::takeover::markdown(takeover));
    }
    if let Some(applied) = &results.applied {
        text.push_str(&super::config::markdown(applied));
    }
    if let Some(table) = &results.table {
        text.push_str(&super::table::markdown(table));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(mpps: f64, cycles: Option<f64>) -> Sample {
        Sample {
            part: "vhost",
            candidate: "shunt",
            guests: "forward",
            queues: 1,
            size: 64,
            round: 0,
            mpps,
            gbps: 0.0,
            busy_cycles: cycles,
            line_transfer: None,
            generator_busy: None,
        }
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let of = |candidate, round, mpps| Sample { candidate, round, ..sample(mpps, None) };
        let ours = [of("shunt", 0, 10.0), of("shunt", 1, 2.0), of("shunt", 2, 9.0)];
        let theirs = [of("other", 0, 5.0), of("other", 1, 1.0), of("other", 2, 3.0)];
        let candidates = [("shunt", ours.iter().collect()), ("other", theirs.iter().collect::<Vec<_>>())];
        assert_eq!(paired(&candidates, &candidates[1].1, |s| s.mpps), Some(2.0));
        assert_eq!(paired(&candidates, &candidates[0].1, |s| s.mpps), None);
    }

    #[test]
    fn a_summary_has_best_median_and_spread() {
        let samples =
            [sample(4.0, Some(100.0)), sample(5.0, None), sample(1.0, Some(50.0)), sample(4.0, None)];
        let summary = summarise(&samples.iter().collect::<Vec<_>>(), |s| s.mpps);
        assert_eq!(summary, Summary { best: 5.0, median: 4.0, spread: 1.0, cycles: Some((50.0, 75.0)) });
    }
}

#![forbid(unsafe_code)]
//! Bar charts as SVG: one group of bars a frame length, one colour a candidate, the median as the bar's end and the
//! best as a line above it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Results;
use super::report::{in_gigabits, settings, summarise};

const COLOURS: [(&str, &str); 4] =
    [("shunt", "#0b7a75"), ("ovs-dpdk", "#d97706"), ("testpmd-io", "#7c8794"), ("", "#3b5bdb")];
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 50.0;

struct Bar {
    candidate: &'static str,
    median: f64,
    best: f64,
}

/// The bars of one frame length.
type Group = (usize, Vec<Bar>);

fn colour(candidate: &str) -> &'static str {
    COLOURS
        .iter()
        .find(|(name, _)| *name == candidate || name.is_empty())
        .map_or("#000", |(_, colour)| colour)
}

/// File names and contents of the plots: rates and busy cycles by frame length, a pair for each kind of guests and
/// number of queues.
pub(super) fn plots(results: &Results) -> Vec<(String, String)> {
    let mut charts: BTreeMap<(&str, &str, u16, &str), [Vec<Group>; 2]> = BTreeMap::new();
    let all = settings(results);
    for (&(part, guests, queues, size, Reverse(cores)), candidates) in &all {
        let [rates, cycles] = charts.entry((part, guests, queues, cores)).or_default();
        let mut rate_bars = Vec::new();
        let mut cycle_bars = Vec::new();
        for (candidate, samples) in candidates {
            let summary = summarise(samples, |s| if in_gigabits(part) { s.gbps } else { s.mpps });
            rate_bars.push(Bar { candidate, median: summary.median, best: summary.best });
            if let Some((best, median)) = summary.cycles {
                cycle_bars.push(Bar { candidate, median, best });
            }
        }
        rates.push((size, rate_bars));
        cycles.push((size, cycle_bars));
    }
    let mut files = Vec::new();
    for ((part, guests, queues, cores), [rates, cycles]) in charts {
        let unit = if in_gigabits(part) { "Gbit/s each way" } else { "Mpps each way" };
        let plural = if queues == 1 { "" } else { "s" };
        let of = match cores {
            "" => format!("{part}, {guests} guests, {queues} queue{plural}"),
            cores => format!("{part}, {guests} guests, {queues} queue{plural}, cores {cores}"),
        };
        let file = format!(
            "{part}-{}-{queues}q{}{cores}",
            guests.replace(' ', "-"),
            if cores.is_empty() { "" } else { "-" }
        );
        files.push((
            format!("{file}-rate.svg"),
            chart(&format!("{unit}: {of}"), &rates, "line: best of the rounds"),
        ));
        if cycles.iter().any(|(_, bars)| !bars.is_empty()) {
            files.push((
                format!("{file}-cycles.svg"),
                chart(&format!("busy cycles a packet: {of}"), &cycles, "line: best (fewest)"),
            ));
        }
    }
    files
}

/// The next of 1, 2, 5, 10, ... at or above a fifth of `top`.
fn step(top: f64) -> f64 {
    let rough = (top / 5.0).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(rough)
}

fn chart(title: &str, groups: &[Group], legend: &str) -> String {
    let highest = groups.iter().flat_map(|(_, bars)| bars).map(|b| b.median.max(b.best)).fold(0.0, f64::max);
    let step = step(highest);
    let top = (highest / step).ceil().max(1.0) * step;
    let plot_height = HEIGHT - TOP - BOTTOM;
    let y = |value: f64| TOP + plot_height * (1.0 - value / top);
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\" font-weight=\"bold\">{title}</text>"
    );
    let mut line = 0.0;
    while line <= top * 1.0001 {
        let at = y(line);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - 10.0,
            LEFT - 6.0,
            at + 4.0,
            (line * 1000.0).round() / 1000.0
        );
        line += step;
    }
    let group_width = (WIDTH - LEFT - 10.0) / groups.len().max(1) as f64;
    for (g, (size, bars)) in groups.iter().enumerate() {
        let start = LEFT + g as f64 * group_width;
        let bar_width = (group_width * 0.8 / bars.len().max(1) as f64).min(48.0);
        let inset = (group_width - bar_width * bars.len() as f64) / 2.0;
        for (b, bar) in bars.iter().enumerate() {
            let x = start + inset + b as f64 * bar_width;
            let (at, best) = (y(bar.median), y(bar.best));
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{at:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>\
                 <line x1=\"{x:.1}\" y1=\"{best:.1}\" x2=\"{:.1}\" y2=\"{best:.1}\" stroke=\"#222\" stroke-width=\"2\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\">{}</text>",
                bar_width - 3.0,
                y(0.0) - at,
                colour(bar.candidate),
                x + bar_width - 3.0,
                x + bar_width / 2.0 - 1.5,
                at.min(best) - 4.0,
                short(bar.median)
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{size} B</text>",
            start + group_width / 2.0,
            HEIGHT - BOTTOM + 16.0
        );
    }
    let mut x = LEFT;
    let mut seen: Vec<&str> = Vec::new();
    for bar in groups.iter().flat_map(|(_, bars)| bars) {
        if !seen.contains(&bar.candidate) {
            seen.push(bar.candidate);
            let at = HEIGHT - 18.0;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"11\" height=\"11\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{at:.1}\">{}</text>",
                at - 10.0,
                colour(bar.candidate),
                x + 15.0,
                bar.candidate
            );
            x += 110.0;
        }
    }
    let _ =
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" fill=\"#555\">{legend}</text>\n</svg>", HEIGHT - 18.0);
    svg
}

fn short(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_numbers() {
        for (top, expected) in [(9.7, 2.0), (26.0, 10.0), (219.0, 50.0), (0.9, 0.2)] {
            assert!((step(top) - expected).abs() < 1e-9, "{top}: {}", step(top));
        }
    }
}

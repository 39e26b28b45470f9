//! Packets that a rule wants written to the log: from the workers, which may not write, to the control thread.
#![forbid(unsafe_code)]

use std::fmt;

use crossbeam_queue::ArrayQueue;

use super::{NewFlow, Verdict};
use crate::packet::tuple::Tuple;
use crate::rules::RuleId;

/// Lines that wait at most; who logs a flood sees its beginning.
const LINES: usize = 256;

/// A packet that a rule wants to be told about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logged {
    rule: RuleId,
    from: u16,
    to: u16,
    tuple: Tuple,
    verdict: Verdict,
    bytes: u64,
}

/// The queue. Lines for which there is no room are lost.
pub struct Log(ArrayQueue<Logged>);

impl Default for Log {
    fn default() -> Self {
        Self(ArrayQueue::new(LINES))
    }
}

impl Log {
    /// Notes the packet of a flow, on the packet path.
    #[cold]
    pub fn note(&self, rule: RuleId, flow: &NewFlow, verdict: Verdict, bytes: u64) {
        let (from, to) = (flow.from.interface, flow.to.interface);
        // Full: the log has more than anybody reads already.
        let _ = self.0.push(Logged { rule, from, to, tuple: flow.tuple, verdict, bytes });
    }

    /// Takes out what was noted, oldest first.
    pub fn drain(&self) -> impl Iterator<Item = Logged> {
        std::iter::from_fn(|| self.0.pop())
    }
}

impl Logged {
    /// The line, in the words of netfilter's LOG target. `name` tells an interface's name.
    pub fn line<'a>(&'a self, name: impl Fn(u16) -> Option<String> + 'a) -> impl fmt::Display + 'a {
        let Tuple { source, destination, protocol, source_port, destination_port } = self.tuple;
        let name = move |index| name(index).unwrap_or_default();
        format!(
            "policy rule {} {}: IN={} OUT={} SRC={source} DST={destination} LEN={} PROTO={protocol} SPT={source_port} DPT={destination_port}",
            self.rule,
            self.verdict.as_str(),
            name(self.from),
            name(self.to),
            self.bytes,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Place;
    use crate::policy::rule::State;

    #[test]
    fn lines_come_out_in_order_and_are_bounded() {
        let log = Log::default();
        let tuple = Tuple {
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 1, 2].into(),
            protocol: 6,
            source_port: 1000,
            destination_port: 22,
        };
        let place = |interface| Place { port: 0, bridge: 0, interface };
        let flow = NewFlow { tuple, state: State::New, from: place(0), to: place(1), published: false };
        for rule in 0..LINES as u32 + 10 {
            log.note(rule, &flow, Verdict::Drop, 60);
        }
        let lines: Vec<_> = log.drain().collect();
        assert_eq!(lines.len(), LINES);
        let name = |index| Some(format!("i{index}"));
        assert_eq!(
            lines[1].line(name).to_string(),
            "policy rule 1 drop: IN=i0 OUT=i1 SRC=10.0.0.1 DST=10.0.1.2 LEN=60 PROTO=6 SPT=1000 DPT=22"
        );
    }
}

//! How TCP segments move a connection from state to state, as nf_conntrack documents it: seen from between the two
//! sides, so that a segment that one side will ignore must not end what the other believes in.
//!
//! Windows are not enforced (`tcp_be_liberal`); only resets must be plausible (RFC 5961 has the reasons).
#![forbid(unsafe_code)]

use super::state::Phase;
use crate::packet::headers::tcp_flags::{ACK, FIN, RST, SYN};

const PSH: u8 = 0x08;
const URG: u8 = 0x20;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// What matters of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The flags of the header.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledged sequence number; means something with ACK only.
    pub ack: u32,
    /// Bytes of data.
    pub len: u32,
    /// Window scale option of a SYN.
    pub scale: Option<u8>,
}

/// A segment by the flag that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SYN alone.
    Syn,
    /// SYN and ACK.
    SynAck,
    /// FIN.
    Fin,
    /// ACK alone.
    Ack,
    /// RST.
    Rst,
}

/// What a segment does to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is in this state now.
    To(Phase),
    /// Nothing that we can be sure of: the segment may pass, the state stays.
    Ignore,
    /// The connection is over and this begins another.
    Renew,
    /// The segment does not fit.
    Invalid,
}

impl Segment {
    /// The decisive flag, or none for combinations that no TCP sends.
    #[inline]
    pub fn kind(&self) -> Option<Kind> {
        match self.flags & !(PSH | ECE | CWR) {
            flags if flags & !URG == SYN => Some(Kind::Syn),
            flags if flags == SYN | ACK => Some(Kind::SynAck),
            flags if flags == RST || flags == RST | ACK => Some(Kind::Rst),
            flags if flags & !URG == FIN | ACK => Some(Kind::Fin),
            flags if flags & !URG == ACK => Some(Kind::Ack),
            _ => None,
        }
    }

    /// The sequence number that the receiver expects next.
    pub fn end(&self) -> u32 {
        let flags = u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        self.seq.wrapping_add(self.len).wrapping_add(flags)
    }

    /// Whether the acknowledged sequence number means something.
    #[inline]
    pub fn has_ack(&self) -> bool {
        self.flags & ACK != 0
    }
}

/// The phase that a first segment begins; `loose` takes connections in their midst.
pub fn begin(kind: Kind, loose: bool) -> Option<Phase> {
    match kind {
        Kind::Syn => Some(Phase::SynSent),
        Kind::Ack if loose => Some(Phase::Established),
        _ => None,
    }
}

/// What a segment, on the way back or not, does to a connection.
pub fn next(phase: Phase, reply: bool, kind: Kind) -> Next {
    use Next::{Ignore, Invalid, Renew, To};
    use Phase::*;
    match (kind, phase) {
        (Kind::Rst, _) => To(Close),
        // Where the other side does not agree that the connection is over, it will say so.
        (Kind::Syn, TimeWait | Close) => Renew,
        (Kind::Syn, SynSent) => To(if reply { SynSent2 } else { SynSent }),
        (Kind::Syn, SynSent2) => To(SynSent2),
        (Kind::Syn, _) if reply => Invalid,
        // The client may have forgotten the connection, for instance by a restart; the server's answer will tell.
        (Kind::Syn, _) => Ignore,
        (Kind::SynAck, SynSent2) => To(SynRecv),
        (Kind::SynAck, SynSent) if reply => To(SynRecv),
        (Kind::SynAck, SynRecv) if !reply => To(SynRecv),
        (Kind::SynAck, _) if reply => Ignore,
        (Kind::SynAck, _) => Invalid,
        // An ACK to a SYN that was sent to somebody in the midst of another connection (RFC 793, figure 10).
        (Kind::Ack, SynSent | SynSent2) if reply => Ignore,
        (Kind::Ack | Kind::Fin, SynSent | SynSent2) => Invalid,
        (Kind::Ack, SynRecv) if reply => To(SynRecv),
        (Kind::Ack, SynRecv | Established) => To(Established),
        (Kind::Ack, FinWait | CloseWait) => To(CloseWait),
        (Kind::Ack, LastAck | TimeWait) => To(TimeWait),
        (Kind::Fin, SynRecv | Established) => To(FinWait),
        (Kind::Fin, FinWait | CloseWait | LastAck) => To(LastAck),
        (Kind::Fin, TimeWait) => To(TimeWait),
        (Kind::Ack | Kind::Fin, Close) => To(Close),
        _ => Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_of_flags_that_nobody_sends_have_no_kind() {
        let kind = |flags| Segment { flags, ..Segment::default() }.kind();
        assert_eq!(kind(SYN | ECE | CWR), Some(Kind::Syn), "ECN set-up");
        assert_eq!(kind(SYN | ACK | ECE), Some(Kind::SynAck));
        assert_eq!(kind(ACK | PSH | URG), Some(Kind::Ack));
        assert_eq!(kind(FIN | ACK | PSH), Some(Kind::Fin));
        assert_eq!((kind(RST), kind(RST | ACK)), (Some(Kind::Rst), Some(Kind::Rst)));
        for scan in
            [0, FIN, FIN | PSH | URG, SYN | FIN, SYN | RST, FIN | RST | ACK, 0xff, PSH, SYN | ACK | RST]
        {
            assert_eq!(kind(scan), None, "{scan:#x}");
        }
    }

    /// Runs segments, each from the original side (`>`) or back (`<`).
    fn run(segments: &[(char, Kind)]) -> Vec<Next> {
        let mut phase = Phase::SynSent;
        let step = |&(side, kind): &(char, Kind)| {
            let next = next(phase, side == '<', kind);
            if let Next::To(to) = next {
                phase = to;
            }
            next
        };
        segments.iter().map(step).collect()
    }

    #[test]
    fn a_connection_opens_talks_and_closes() {
        use Kind::{Ack, Fin, SynAck};
        use Next::To;
        use Phase::*;
        assert_eq!(
            run(&[('<', SynAck), ('>', Ack), ('<', Ack), ('>', Fin), ('<', Ack), ('<', Fin), ('>', Ack)]),
            [SynRecv, Established, Established, FinWait, CloseWait, LastAck, TimeWait].map(To)
        );
        assert_eq!(
            run(&[('<', SynAck), ('>', Ack), ('<', Fin), ('>', Fin), ('<', Ack)])[2..],
            [FinWait, LastAck, TimeWait].map(To),
            "both finish at once"
        );
    }

    #[test]
    fn two_that_call_each_other_meet() {
        use Kind::{Ack, Syn, SynAck};
        use Next::To;
        use Phase::*;
        assert_eq!(
            run(&[('<', Syn), ('>', SynAck), ('<', SynAck), ('>', Ack)]),
            [To(SynSent2), To(SynRecv), Next::Ignore, To(Established)]
        );
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        use Kind::{Ack, Fin, Syn, SynAck};
        assert_eq!(run(&[('>', Ack), ('<', Fin), ('>', SynAck)]), [Next::Invalid; 3]);
        assert_eq!(run(&[('<', Ack)]), [Next::Ignore], "a server in the midst of something else");
        assert_eq!(run(&[('<', SynAck), ('>', Ack), ('>', Syn)])[2], Next::Ignore);
        assert_eq!(run(&[('<', SynAck), ('>', Ack), ('<', Syn)])[2], Next::Invalid);
    }

    #[test]
    fn a_reset_closes_and_a_closed_connection_makes_way() {
        use Kind::{Ack, Rst, Syn};
        use Next::To;
        assert_eq!(
            run(&[('<', Rst), ('>', Ack), ('>', Syn)]),
            [To(Phase::Close), To(Phase::Close), Next::Renew]
        );
    }

    #[test]
    fn only_a_syn_begins_unless_loose() {
        assert_eq!(begin(Kind::Syn, false), Some(Phase::SynSent));
        assert_eq!((begin(Kind::Ack, false), begin(Kind::Ack, true)), (None, Some(Phase::Established)));
        for kind in [Kind::SynAck, Kind::Fin, Kind::Rst] {
            assert_eq!(begin(kind, true), None);
        }
    }

    #[test]
    fn every_case_is_decided() {
        for &phase in Phase::ALL {
            for reply in [false, true] {
                for kind in [Kind::Syn, Kind::SynAck, Kind::Fin, Kind::Ack, Kind::Rst] {
                    if let Next::To(to) = next(phase, reply, kind) {
                        assert!(!to.name().is_empty());
                    }
                }
            }
        }
    }
}

//! The states of balanced connections as Linux' IPVS has them, their names as `ipvsadm -L -c` prints them, and how long
//! a connection lives in each.
//!
//! They are not those of connection tracking, which follows both sides and is not told a lie: these follow what a
//! director sees, which is one side alone where servers answer past it, and decide which connections count as active.
//! Facts: `ip_vs_proto_tcp.c`, `ip_vs_proto_udp.c` and `ip_vs_proto_sctp.c` of Linux 6.1, and `struct ip_vs_sync_conn`,
//! in which states travel by these numbers.
#![forbid(unsafe_code)]

use super::settings::Timeouts;
use crate::packet::headers::tcp_flags::{ACK, FIN, RST, SYN};
use crate::packet::ip::{TCP, UDP};

pub use crate::packet::ip::SCTP;

/// Which way a packet goes, as a director sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From a client.
    In = 0,
    /// From a server.
    Out = 1,
    /// From a client whose server's answers go another way.
    InOnly = 2,
}

/// States of TCP, numbered as Linux numbers them.
pub mod tcp {
    /// Nothing known yet.
    pub const NONE: u8 = 0;
    /// Data flows.
    pub const ESTABLISHED: u8 = 1;
    /// The server has called.
    pub const SYN_SENT: u8 = 2;
    /// The client has called.
    pub const SYN_RECV: u8 = 3;
    /// The server has finished.
    pub const FIN_WAIT: u8 = 4;
    /// Both have finished.
    pub const TIME_WAIT: u8 = 5;
    /// Reset.
    pub const CLOSE: u8 = 6;
    /// The client has finished.
    pub const CLOSE_WAIT: u8 = 7;
    /// Both are finishing.
    pub const LAST_ACK: u8 = 8;
    /// A port is expected to be called.
    pub const LISTEN: u8 = 9;
    /// The server's answer was seen, by a director that defends itself.
    pub const SYNACK: u8 = 10;
}

const TCP_NAMES: [&str; 11] = [
    "NONE",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "SYNACK",
];

/// Seconds per state of TCP.
const TCP_SECONDS: [u32; 11] = [2, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120];

/// Per way, a row for SYN, FIN, ACK and RST each; in a row the state that follows each state.
const TCP_NEXT: [[[u8; 11]; 4]; 3] = {
    use tcp::{
        CLOSE as CL, CLOSE_WAIT as CW, ESTABLISHED as ES, FIN_WAIT as FW, LAST_ACK as LA, LISTEN as LI,
        SYN_RECV as SR, SYN_SENT as SS, TIME_WAIT as TW,
    };
    [
        [
            [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
            [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, TW],
            [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
            [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, SR],
        ],
        [
            [SS, ES, SS, SR, SS, SS, SS, SS, SS, LI, SR],
            [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
            [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
            [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
        ],
        [
            [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
            [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
            [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
            [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
        ],
    ]
};

/// States of SCTP, numbered as Linux numbers them.
pub mod sctp {
    /// Nothing known yet.
    pub const NONE: u8 = 0;
    /// The client has called once.
    pub const INIT1: u8 = 1;
    /// The client has called again.
    pub const INIT: u8 = 2;
    /// The server has answered.
    pub const COOKIE_SENT: u8 = 3;
    /// The client has echoed the cookie.
    pub const COOKIE_REPLIED: u8 = 4;
    /// The server has called.
    pub const COOKIE_WAIT: u8 = 5;
    /// The client has answered that.
    pub const COOKIE: u8 = 6;
    /// The server has echoed the cookie.
    pub const COOKIE_ECHOED: u8 = 7;
    /// Data flows.
    pub const ESTABLISHED: u8 = 8;
    /// The server wants to end.
    pub const SHUTDOWN_SENT: u8 = 9;
    /// The client wants to end.
    pub const SHUTDOWN_RECEIVED: u8 = 10;
    /// The server agrees to end.
    pub const SHUTDOWN_ACK_SENT: u8 = 11;
    /// The server has refused.
    pub const REJECTED: u8 = 12;
    /// Over.
    pub const CLOSED: u8 = 13;
}

const SCTP_NAMES: [&str; 14] = [
    "NONE",
    "INIT1",
    "INIT",
    "C-SENT",
    "C-REPLIED",
    "C-WAIT",
    "COOKIE",
    "C-ECHOED",
    "ESTABLISHED",
    "S-SENT",
    "S-RECEIVED",
    "S-ACK-SENT",
    "REJECTED",
    "CLOSED",
];

/// Seconds per state of SCTP: 61 is the longest retransmission timeout, and one.
const SCTP_SECONDS: [u32; 14] = [2, 4, 61, 61, 61, 61, 61, 61, 900, 61, 61, 61, 4, 61];

/// Rows of the table below: kinds of chunks.
const SCTP_EVENTS: usize = 10;
/// The row of an ABORT.
const ABORT_EVENT: u8 = 9;

/// The row of each type of chunk (RFC 9260, section 3.2); of those beyond, that of data.
const SCTP_EVENT: [u8; 15] = [0, 1, 2, 0, 0, 0, ABORT_EVENT, 5, 6, 8, 3, 4, 0, 0, 7];

/// Per way a row per kind of chunk: data, INIT, INIT ACK, COOKIE ECHO, COOKIE ACK, SHUTDOWN, SHUTDOWN ACK, SHUTDOWN
/// COMPLETE, ERROR, ABORT.
const SCTP_NEXT: [[[u8; 14]; SCTP_EVENTS]; 3] = {
    use sctp::{
        CLOSED as CL, COOKIE as CO, COOKIE_ECHOED as CE, COOKIE_REPLIED as CR, COOKIE_SENT as CS,
        COOKIE_WAIT as CW, ESTABLISHED as ES, INIT as IN, INIT1 as I1, REJECTED as RJ,
        SHUTDOWN_ACK_SENT as SA, SHUTDOWN_RECEIVED as SR, SHUTDOWN_SENT as SS,
    };
    [
        [
            [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
            [I1, IN, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, IN, IN],
            [CW, CW, CW, CS, CR, CO, CO, CE, ES, SS, SR, SA, RJ, CL],
            [CR, IN, IN, CR, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
            [ES, I1, IN, CS, CR, CW, CO, ES, ES, SS, SR, SA, RJ, CL],
            [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
            [CL, IN, IN, CS, CR, CW, CO, CE, ES, CL, SR, CL, RJ, CL],
            [CL, CL, CL, CS, CR, CW, CO, CE, ES, SS, SR, CL, RJ, CL],
            [CL, I1, IN, CS, CR, CW, CO, CL, ES, SS, SR, SA, RJ, CL],
            [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],
        ],
        [
            [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
            [CW, CW, CW, CW, CW, CW, CW, CW, ES, CW, CW, CW, CW, CW],
            [CS, CS, CS, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
            [CE, CE, CE, CE, CE, CE, CE, CE, ES, SS, SR, SA, RJ, CL],
            [ES, ES, ES, ES, ES, ES, ES, ES, ES, SS, SR, SA, RJ, CL],
            [SS, SS, SS, SS, SS, SS, SS, SS, SS, SS, SR, SA, RJ, CL],
            [SA, SA, SA, SA, SA, CW, CO, CE, ES, SA, SA, SA, RJ, CL],
            [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
            [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
            [CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL],
        ],
        [
            [ES, I1, IN, CS, CR, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
            [I1, IN, IN, IN, IN, IN, CO, CE, ES, SS, SR, SA, IN, IN],
            [CE, CE, CE, CE, CE, CE, CO, CE, ES, SS, SR, SA, RJ, CL],
            [ES, ES, ES, ES, ES, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
            [ES, I1, IN, ES, ES, CW, ES, ES, ES, SS, SR, SA, RJ, CL],
            [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
            [CL, IN, IN, CS, CR, CW, CO, CE, CL, CL, SR, CL, RJ, CL],
            [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, CL, CL, RJ, CL],
            [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
            [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],
        ],
    ]
};

/// Seconds that a connection of a protocol lives in a state.
pub fn timeout(protocol: u8, state: u8, set: &Timeouts) -> u32 {
    match (protocol, state) {
        (TCP, tcp::ESTABLISHED) => set.tcp,
        (TCP, tcp::FIN_WAIT) => set.tcp_fin,
        (TCP, state) => TCP_SECONDS.get(usize::from(state)).copied().unwrap_or(2),
        (SCTP, state) => SCTP_SECONDS.get(usize::from(state)).copied().unwrap_or(2),
        _ => set.udp,
    }
}

/// The state of a TCP connection after a segment with these flags, none of which decides if it is none of the four.
pub fn tcp_next(state: u8, way: Way, flags: u8) -> u8 {
    let row = match flags {
        flags if flags & RST != 0 => 3,
        flags if flags & SYN != 0 => 0,
        flags if flags & FIN != 0 => 1,
        flags if flags & ACK != 0 => 2,
        _ => return tcp::CLOSE,
    };
    TCP_NEXT[way as usize][row].get(usize::from(state)).copied().unwrap_or(tcp::CLOSE)
}

/// The state of an SCTP association after a packet that begins with these chunks (what follows the common header).
pub fn sctp_next(state: u8, way: Way, chunks: &[u8]) -> u8 {
    let Some(&[mut kind, _, high, low]) = chunks.first_chunk() else { return state };
    // An ABORT may follow what carries a cookie.
    let len = usize::from(u16::from_be_bytes([high, low]));
    if matches!(kind, 10 | 11) && len >= 4 && chunks.get(len.next_multiple_of(4)) == Some(&6) {
        kind = 6;
    }
    let event = SCTP_EVENT.get(usize::from(kind)).copied().unwrap_or(0);
    SCTP_NEXT[way as usize][usize::from(event)].get(usize::from(state)).copied().unwrap_or(sctp::CLOSED)
}

/// Whether a packet may begin an SCTP association for a service: its first chunk is INIT.
pub fn begins_sctp(chunks: &[u8]) -> bool {
    chunks.first() == Some(&1)
}

/// Whether a connection in this state counts as active (`ActiveConn`).
pub fn is_active(protocol: u8, state: u8) -> bool {
    match protocol {
        TCP => matches!(state, tcp::ESTABLISHED | tcp::SYN_SENT | tcp::SYN_RECV | tcp::SYNACK),
        SCTP => state == sctp::ESTABLISHED,
        _ => false,
    }
}

/// Whether data flows.
pub fn is_established(protocol: u8, state: u8) -> bool {
    match protocol {
        TCP => state == tcp::ESTABLISHED,
        SCTP => state == sctp::ESTABLISHED,
        _ => true,
    }
}

/// The state's name.
pub fn name(protocol: u8, state: u8) -> &'static str {
    let names: &[&'static str] = match protocol {
        TCP => &TCP_NAMES,
        SCTP => &SCTP_NAMES,
        UDP => &["UDP"],
        _ => &["NONE"],
    };
    names.get(usize::from(state)).copied().unwrap_or("ERR!")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ways: &[(Way, u8)]) -> Vec<&'static str> {
        let mut state = tcp::NONE;
        let step = |&(way, flags): &(Way, u8)| {
            state = tcp_next(state, way, flags);
            name(TCP, state)
        };
        ways.iter().map(step).collect()
    }

    #[test]
    fn a_masqueraded_connection_is_followed_on_both_sides() {
        use Way::{In, Out};
        let closed_by_client = [
            (In, SYN),
            (Out, SYN | ACK),
            (In, ACK),
            (Out, ACK),
            (In, FIN | ACK),
            (Out, FIN | ACK),
            (In, ACK),
        ];
        assert_eq!(
            run(&closed_by_client),
            ["SYN_RECV", "SYN_RECV", "ESTABLISHED", "ESTABLISHED", "CLOSE_WAIT", "TIME_WAIT", "TIME_WAIT"]
        );
        let closed_by_server =
            [(In, SYN), (Out, SYN | ACK), (In, ACK), (Out, FIN | ACK), (In, ACK), (In, FIN | ACK)];
        assert_eq!(run(&closed_by_server)[3..], ["FIN_WAIT", "FIN_WAIT", "TIME_WAIT"]);
        assert_eq!(run(&[(In, SYN), (Out, RST | ACK)]), ["SYN_RECV", "CLOSE"]);
    }

    #[test]
    fn a_director_that_sees_one_side_guesses_the_other() {
        use Way::InOnly;
        assert_eq!(
            run(&[(InOnly, SYN), (InOnly, ACK), (InOnly, FIN | ACK), (InOnly, ACK)]),
            ["SYN_RECV", "ESTABLISHED", "FIN_WAIT", "FIN_WAIT"]
        );
        assert_eq!(run(&[(InOnly, SYN), (InOnly, ACK), (InOnly, RST)])[2], "CLOSE");
        assert_eq!(run(&[(InOnly, SYN), (InOnly, ACK), (InOnly, 0)])[2], "CLOSE", "no flag at all");
    }

    #[test]
    fn an_association_is_followed() {
        let chunk = |kind: u8| [kind, 0, 0, 4];
        let mut state = sctp::NONE;
        let mut step = |way, kind| {
            state = sctp_next(state, way, &chunk(kind));
            name(SCTP, state)
        };
        assert_eq!(step(Way::In, 1), "INIT1");
        assert_eq!(step(Way::Out, 2), "C-SENT");
        assert_eq!(step(Way::In, 10), "C-REPLIED");
        assert_eq!(step(Way::Out, 11), "ESTABLISHED");
        assert_eq!(step(Way::In, 0), "ESTABLISHED");
        assert_eq!(step(Way::In, 7), "S-RECEIVED");
        assert_eq!(step(Way::Out, 8), "S-ACK-SENT");
        assert_eq!(step(Way::In, 14), "CLOSED");
        let both = [10, 0, 0, 6, 1, 2, 0, 0, 6, 0, 0, 4];
        assert_eq!(sctp_next(sctp::ESTABLISHED, Way::In, &both), sctp::CLOSED, "an ABORT behind a cookie");
        assert_eq!(sctp_next(sctp::ESTABLISHED, Way::In, &[1]), sctp::ESTABLISHED, "no chunk");
        assert_eq!(sctp_next(sctp::ESTABLISHED, Way::In, &chunk(200)), sctp::ESTABLISHED, "an unknown one");
    }

    #[test]
    fn states_have_linux_numbers_and_seconds() {
        let mut set = Timeouts::default();
        assert_eq!(
            (0..11).map(|state| timeout(TCP, state, &set)).collect::<Vec<_>>(),
            [2, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120]
        );
        assert_eq!((timeout(UDP, 0, &set), timeout(SCTP, sctp::ESTABLISHED, &set)), (300, 900));
        (set.tcp, set.udp) = (7, 9);
        assert_eq!((timeout(TCP, tcp::ESTABLISHED, &set), timeout(UDP, 0, &set)), (7, 9));
        assert_eq!((timeout(TCP, 77, &set), name(TCP, 77)), (2, "ERR!"), "no such state");
        assert!(is_active(TCP, tcp::SYN_RECV) && !is_active(TCP, tcp::TIME_WAIT) && !is_active(UDP, 0));
    }
}

//! What is known of a connection beyond its addresses, in one word: protocol state and status bits.
#![forbid(unsafe_code)]

use super::timeouts::Timeout;

macro_rules! states {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $timeout:ident;)*) => {
        /// Where a connection stands. The states of TCP are those of nf_conntrack; other protocols have one or two.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Phase {
            /// Removed.
            Gone = 0,
            $($(#[$doc])* $variant,)*
        }

        impl Phase {
            /// All phases of live connections.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            fn from_number(number: u8) -> Self {
                match number.checked_sub(1) {
                    Some(at) => Self::ALL.get(usize::from(at)).copied().unwrap_or(Self::Gone),
                    None => Self::Gone,
                }
            }

            /// The name that conntrack(8) prints, empty for protocols of which it prints none.
            pub fn name(self) -> &'static str {
                match self {
                    Self::Gone => "",
                    $(Self::$variant => $name,)*
                }
            }

            /// How long a connection in this phase lives without packets.
            #[inline]
            pub fn timeout(self) -> Timeout {
                match self {
                    Self::Gone => Timeout::Generic,
                    $(Self::$variant => Timeout::$timeout,)*
                }
            }
        }
    };
}

states! {
    /// TCP: a SYN was seen.
    SynSent = "SYN_SENT", TcpSynSent;
    /// TCP: SYNs of both sides crossed.
    SynSent2 = "SYN_SENT2", TcpSynSent;
    /// TCP: the SYN was answered.
    SynRecv = "SYN_RECV", TcpSynRecv;
    /// TCP: both sides talk.
    Established = "ESTABLISHED", TcpEstablished;
    /// TCP: one side has finished.
    FinWait = "FIN_WAIT", TcpFinWait;
    /// TCP: that was acknowledged.
    CloseWait = "CLOSE_WAIT", TcpCloseWait;
    /// TCP: both sides have finished.
    LastAck = "LAST_ACK", TcpLastAck;
    /// TCP: that was acknowledged.
    TimeWait = "TIME_WAIT", TcpTimeWait;
    /// TCP: reset.
    Close = "CLOSE", TcpClose;
    /// UDP, one packet or little more.
    UdpShort = "", Udp;
    /// UDP, both sides keep talking.
    UdpStream = "", UdpStream;
    /// A query of ICMP.
    Icmp = "", Icmp;
    /// A query of ICMPv6.
    Icmpv6 = "", Icmpv6;
    /// Any other protocol.
    Generic = "", Generic;
}

impl Phase {
    /// A TCP connection that is not established yet: what floods are made of.
    #[inline]
    pub fn is_half_open(self) -> bool {
        matches!(self, Self::SynSent | Self::SynSent2 | Self::SynRecv)
    }
}

/// Phase (bits 0 to 7), status (8 to 15), note (16 to 31).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(pub(super) u32);

impl State {
    /// Packets came back.
    pub const SEEN_REPLY: u8 = 1;
    /// It has proved to be a real conversation and is not dropped early.
    pub const ASSURED: u8 = 2;
    /// It belongs to another connection.
    pub const RELATED: u8 = 4;
    /// TCP: a SYN was let through that did not fit; its sequence number is in the note.
    pub(super) const ODD_SYN: u8 = 8;
    /// TCP: closed by a reset that its receiver may not believe.
    pub(super) const DOUBTED: u8 = 16;

    pub(super) fn new(phase: Phase, status: u8, note: u16) -> Self {
        Self(phase as u32 | u32::from(status) << 8 | u32::from(note) << 16)
    }

    /// Where it stands.
    #[inline]
    pub fn phase(self) -> Phase {
        Phase::from_number(self.0 as u8)
    }

    /// The status bits.
    #[inline]
    pub fn status(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Whether packets came back.
    #[inline]
    pub fn seen_reply(self) -> bool {
        self.status() & Self::SEEN_REPLY != 0
    }

    /// Whether it is not to be dropped early.
    #[inline]
    pub fn assured(self) -> bool {
        self.status() & Self::ASSURED != 0
    }

    /// Sixteen bits for the protocol: TCP, low bits of a sequence number; UDP, of the second when it began.
    #[inline]
    pub(super) fn note(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_fits_its_word() {
        assert_eq!(State(0).phase(), Phase::Gone);
        for &phase in Phase::ALL {
            let state = State::new(phase, State::ASSURED, 0xabcd);
            assert_eq!(
                (state.phase(), state.assured(), state.seen_reply(), state.note()),
                (phase, true, false, 0xabcd)
            );
        }
        assert_eq!(State(0xff).phase(), Phase::Gone, "no such number");
    }
}

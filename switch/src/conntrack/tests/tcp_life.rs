//! TCP connections from their SYN to their end, with the oddities in between.

use super::tcp::Segment;
use super::*;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A client and a server with a switch in between.
struct Talk {
    world: World,
    there: Key4,
}

pub(super) fn segment(flags: u8, seq: u32, ack: u32) -> Packet {
    Packet {
        bytes: 40,
        tcp: Some(Segment { flags, seq, ack, len: 0, scale: (flags & SYN != 0).then_some(7) }),
        sctp: None,
    }
}

impl Talk {
    fn syn() -> Self {
        let mut world = World::new(1000, 2);
        let there = key(6, 1);
        world.begin(0, there, &segment(SYN, 999, 0)).expect("room");
        Self { world, there }
    }

    fn established() -> Self {
        let mut talk = Self::syn();
        assert_eq!(talk.server(SYN | ACK, 4999, 1000), Fate::Accept);
        assert_eq!(talk.client(ACK, 1000, 5000), Fate::Accept);
        assert_eq!(talk.phase(), Some(Phase::Established));
        talk
    }

    fn client(&mut self, flags: u8, seq: u32, ack: u32) -> Fate {
        self.world.packet(0, self.there, &segment(flags, seq, ack))
    }

    /// The way back is another worker's.
    fn server(&mut self, flags: u8, seq: u32, ack: u32) -> Fate {
        self.world.packet(1, self.there.reversed(), &segment(flags, seq, ack))
    }

    fn phase(&self) -> Option<Phase> {
        let table = &self.world.conntrack.v4;
        let half = self.world.find(self.there)?;
        let state = table.state(half, self.world.now);
        let settled = state.phase() == Phase::Established && state.assured();
        for half in [half, half.other()] {
            assert_eq!(table.half(half).flags().settled(), settled);
        }
        let half_open = u32::from(state.phase().is_half_open());
        assert_eq!(self.world.conntrack.shared.half_open(), half_open);
        Some(state.phase())
    }

    /// Ends after exactly so many seconds of silence.
    fn ends_after(mut self, seconds: u32) {
        self.world.pass(seconds - 1);
        assert!(self.phase().is_some());
        self.world.pass(1);
        assert_eq!(self.phase(), None);
        assert_eq!(self.world.conntrack.shared.half_open(), 0);
    }
}

#[test]
fn each_state_has_its_timeout() {
    Talk::syn().ends_after(120);
    let mut answered = Talk::syn();
    answered.server(SYN | ACK, 4999, 1000);
    assert_eq!(answered.phase(), Some(Phase::SynRecv));
    answered.ends_after(60);
    Talk::established().ends_after(432_000);
    let mut finished = Talk::established();
    finished.client(FIN | ACK, 1000, 5000);
    assert_eq!(finished.phase(), Some(Phase::FinWait));
    finished.ends_after(120);
}

#[test]
fn an_orderly_end() {
    let mut talk = Talk::established();
    talk.world.pass(1000);
    talk.client(FIN | ACK, 1000, 5000);
    talk.server(ACK, 5000, 1001);
    assert_eq!(talk.phase(), Some(Phase::CloseWait));
    talk.server(FIN | ACK, 5000, 1001);
    assert_eq!(talk.phase(), Some(Phase::LastAck));
    talk.world.turn();
    talk.client(ACK, 1001, 5001);
    assert_eq!(talk.phase(), Some(Phase::TimeWait));
    talk.ends_after(120);
}

#[test]
fn a_last_ack_that_never_comes() {
    let mut talk = Talk::established();
    talk.client(FIN | ACK, 1000, 5000);
    talk.server(FIN | ACK, 5000, 1001);
    talk.ends_after(30);
}

#[test]
fn a_refused_call_leaves_nothing() {
    let mut talk = Talk::syn();
    assert_eq!(talk.server(RST | ACK, 0, 77_777), Fate::Invalid, "acknowledges what was never sent");
    assert_eq!(talk.server(RST, 0, 0), Fate::Invalid);
    assert_eq!(talk.phase(), Some(Phase::SynSent));
    assert_eq!(talk.server(RST | ACK, 0, 1000), Fate::Accept);
    assert_eq!(talk.phase(), None);
    assert_eq!(talk.world.conntrack.shared.half_open(), 0);
}

#[test]
fn a_guessed_reset_ends_nothing() {
    let mut talk = Talk::established();
    // The server acknowledged up to 1000, the client up to 5000.
    for seq in [4999, 5001 + (65_535 << 7), 900_000_000, 0] {
        assert_eq!(talk.server(RST, seq, 0), Fate::Invalid, "{seq}");
    }
    assert_eq!(talk.client(RST, 999, 0), Fate::Invalid);
    assert_eq!((talk.phase(), talk.world.counter("invalid")), (Some(Phase::Established), 5));
    assert_eq!(talk.server(RST, 5000, 0), Fate::Accept);
    assert_eq!(talk.phase(), Some(Phase::Close));
    talk.ends_after(10);
}

#[test]
fn a_reset_that_its_receiver_questions_is_taken_back() {
    let mut talk = Talk::established();
    assert_eq!(talk.server(RST, 5500, 0), Fate::Accept, "within the window, not exact");
    assert_eq!(talk.phase(), Some(Phase::Close));
    talk.world.pass(2);
    assert_eq!(talk.client(ACK, 1000, 5000), Fate::Accept, "a challenge");
    assert_eq!(talk.phase(), Some(Phase::Established));
    talk.world.pass(1000);
    assert_eq!(talk.server(RST, 5000, 0), Fate::Accept, "meant indeed");
    assert_eq!(talk.client(ACK, 1000, 5000), Fate::Accept);
    assert_eq!(talk.phase(), Some(Phase::Close), "for good");
    talk.ends_after(10);
}

#[test]
fn acknowledgements_of_settled_connections_move_the_window_on() {
    let mut talk = Talk::established();
    let half = talk.world.find(talk.there).expect("there");
    talk.world.conntrack.v4.half(half).touch_tcp(talk.world.now, 40, 1_000_000);
    assert_eq!(talk.server(RST, 5000, 0), Fate::Invalid, "old by now");
    assert_eq!(talk.server(RST, 1_000_000, 0), Fate::Accept);
}

#[test]
fn a_client_that_lost_its_memory_calls_again() {
    // The server has forgotten the connection as well: it answers the new SYN.
    let mut talk = Talk::established();
    assert_eq!(talk.client(SYN, 70_000, 0), Fate::Accept);
    assert_eq!(talk.phase(), Some(Phase::Established), "not believed yet");
    assert_eq!(talk.server(SYN | ACK, 80_000, 70_001), Fate::Accept);
    assert_eq!(talk.phase(), Some(Phase::SynRecv));
    assert_eq!(talk.client(ACK, 70_001, 80_001), Fate::Accept);
    assert_eq!(talk.phase(), Some(Phase::Established));
    assert_eq!(talk.client(RST, 1000, 0), Fate::Invalid, "the old numbers mean nothing");
    // The server remembers it: it says so, and the client resets what it does not know.
    let mut talk = Talk::established();
    assert_eq!(talk.client(SYN, 70_000, 0), Fate::Accept);
    assert_eq!(talk.server(ACK, 5000, 1000), Fate::Accept);
    assert_eq!(talk.client(RST, 1000, 0), Fate::Accept);
    assert_eq!(talk.phase(), Some(Phase::Close));
    assert_eq!(talk.client(SYN, 70_000, 0), Fate::Renew);
    assert_eq!(talk.phase(), None);
}

#[test]
fn a_tuple_can_be_used_again_after_the_end() {
    let mut talk = Talk::established();
    talk.client(FIN | ACK, 1000, 5000);
    talk.server(FIN | ACK, 5000, 1001);
    talk.client(ACK, 1001, 5001);
    assert_eq!(talk.phase(), Some(Phase::TimeWait));
    assert_eq!(talk.client(SYN, 50_000, 0), Fate::Renew);
    let there = talk.there;
    talk.world.begin(0, there, &segment(SYN, 50_000, 0)).expect("free at once");
    assert_eq!(talk.phase(), Some(Phase::SynSent));
}

#[test]
fn a_connection_is_picked_up_in_its_midst_if_allowed() {
    let there = key(6, 1);
    assert!(segment(ACK, 1, 1).begin(&there, false, 0).is_none());
    for flags in [SYN | ACK, FIN | ACK, RST, RST | ACK, 0, SYN | FIN] {
        assert!(segment(flags, 1, 1).begin(&there, true, 0).is_none(), "{flags:#x}");
    }
    let mut world = World::new(100, 2);
    world.begin(0, there, &segment(ACK, 1000, 5000)).expect("room");
    let mut talk = Talk { world, there };
    let half = talk.world.find(there).expect("there");
    assert!(
        !talk.world.conntrack.v4.state(half, talk.world.now).assured(),
        "who floods with ACKs gains nothing"
    );
    assert_eq!(talk.server(ACK, 5000, 1000), Fate::Accept);
    assert!(talk.world.conntrack.v4.state(half, talk.world.now).assured());
    assert_eq!(talk.phase(), Some(Phase::Established));
}

#[test]
fn headers_are_read_as_they_are_on_the_wire() {
    let mut frame = Vec::new();
    let options = [2, 4, 5, 0xb4, 1, 3, 3, 9, 4, 2, 0, 0];
    etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1000, 80, 0x0102_0304, 1000)
        .syn()
        .options_raw(&options)
        .expect("options")
        .write(&mut frame, b"early data")
        .expect("a packet");
    let headers = crate::packet::headers::Headers::parse(&frame, frame.len(), 14, false).expect("good");
    let packet = Packet::of(&headers, &frame);
    assert!(Packet::is_special(&headers) && Packet::acknowledged(&headers, &frame).is_none());
    let expected = Segment { flags: SYN, seq: 0x0102_0304, ack: 0, len: 10, scale: Some(9) };
    assert_eq!(packet, Packet { bytes: 62, tcp: Some(expected), sctp: None });
    // Options that promise more than there is.
    for (at, byte) in [(54, 99), (55, 0), (58, 3)] {
        let mut lying = frame.clone();
        lying[at] = byte;
        let packet = Packet::of(&headers, &lying);
        assert!(packet.tcp.is_some_and(|segment| segment.len == 10));
    }
    let mut lying = frame.clone();
    lying[46] = 0xf0;
    let headers = crate::packet::headers::Headers::parse(&lying, lying.len(), 14, false);
    assert_eq!(headers.map(|headers| Packet::of(&headers, &lying).tcp), Ok(None), "longer than the packet");
}

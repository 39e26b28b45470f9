//! What packets do to the state of their connection. Only packets that may change something come here: those of a
//! settled connection touch their half and are gone.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use super::entry::Half;
use super::key::{ANSWER, Family, Key};
use super::owner::Owner;
use super::state::{Phase, State};
use super::table::{Ref, Slot, Table};
use super::tcp::{self, Kind, Next, Segment};
use crate::ipvs::states::{self, Way};
use crate::packet::headers::tcp_flags::{ACK, FIN, RST, SYN};
use crate::packet::headers::{Fragment, Headers};
use crate::packet::ip::{ICMP, ICMPV6, TCP, UDP};

/// Data that a SYN may carry and a reset may leave unacknowledged.
const SYN_DATA: u32 = 1460;

/// The most that a helper's changes of text add up to, commonly.
const SHIFT: u32 = 1024;

/// Bytes of chunks that are looked at: the header of one, and of what may follow a short one.
const CHUNKS: usize = 8;
/// Bytes of SCTP's common header.
const SCTP_HEADER: usize = 12;

/// What tracking needs to know of a packet beyond its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Bytes of the IP packet.
    pub bytes: u32,
    /// The segment, if the packet is one of TCP and has its header.
    pub tcp: Option<Segment>,
    /// The beginning of SCTP's chunks, if it is a packet of that.
    pub sctp: Option<[u8; CHUNKS]>,
}

/// What happens to a packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes its way.
    Accept,
    /// It does not belong to its connection's state; counted.
    Invalid,
    /// Its connection was over and is removed: it begins a new one.
    Renew,
}

/// What a connection's first packet begins.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    pub(super) phase: Phase,
    pub(super) status: u8,
    pub(super) note: u16,
    segment: Option<Segment>,
}

impl Packet {
    /// Reads it from the head of a frame.
    #[inline]
    pub fn of(headers: &Headers, head: &[u8]) -> Self {
        let has_transport = headers.fragment != Fragment::Later;
        let tcp = headers.protocol == TCP && has_transport;
        let sctp = headers.protocol == states::SCTP && has_transport;
        Self {
            bytes: headers.len,
            tcp: if tcp { segment(headers, head) } else { None },
            sctp: if sctp { chunks(headers, head) } else { None },
        }
    }

    /// Whether it may change the state of a settled connection.
    #[inline(always)]
    pub fn is_special(headers: &Headers) -> bool {
        headers.tcp_flags & (SYN | FIN | RST) != 0
    }

    /// The number that a segment acknowledges, cheaply: for [`Half::touch_tcp`].
    #[inline(always)]
    pub fn acknowledged(headers: &Headers, head: &[u8]) -> Option<u32> {
        if headers.tcp_flags & ACK == 0 || headers.fragment == Fragment::Later {
            return None;
        }
        let at = usize::from(headers.transport) + 8;
        head.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_be_bytes(*bytes))
    }

    /// What it begins as the first packet of a connection; none if nothing can begin with it (state INVALID).
    pub fn begin<F: Family>(&self, key: &Key<F>, loose: bool, now: u32) -> Option<Begun> {
        let begun = |phase, note| Begun { phase, status: 0, note, segment: None };
        match key.protocol {
            TCP => {
                let segment = self.tcp?;
                let phase = tcp::begin(segment.kind()?, loose)?;
                Some(Begun { segment: Some(segment), ..begun(phase, 0) })
            }
            UDP => Some(begun(Phase::UdpShort, now as u16)),
            ICMP | ICMPV6 if key.destination_port == 0 || key.destination_port & ANSWER != 0 => None,
            ICMP => Some(begun(Phase::Icmp, 0)),
            ICMPV6 => Some(begun(Phase::Icmpv6, 0)),
            _ => Some(begun(Phase::Generic, 0)),
        }
    }
}

impl Begun {
    /// A connection that is in its midst, of which no packet is at hand.
    pub(super) fn midway(phase: Phase, status: u8) -> Self {
        Self { phase, status, note: 0, segment: None }
    }

    /// Whether it is one of TCP.
    pub(super) fn is_tcp(&self) -> bool {
        self.segment.is_some()
    }

    /// Where the connection begins.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn apply<F: Family>(&self, first: &Half<F>, second: &Half<F>) {
        if let Some(segment) = &self.segment {
            follow(segment, first, second);
        }
    }
}

/// The beginning of the first chunk, padded with zeros.
fn chunks(headers: &Headers, head: &[u8]) -> Option<[u8; CHUNKS]> {
    let from = usize::from(headers.transport) + SCTP_HEADER;
    let to = (usize::from(headers.network) + headers.len as usize).min(head.len());
    let bytes = head.get(from..to)?;
    let mut chunks = [0; CHUNKS];
    let len = bytes.len().min(CHUNKS);
    chunks[..len].copy_from_slice(&bytes[..len]);
    Some(chunks)
}

/// Reads a segment; none if its header lies.
fn segment(headers: &Headers, head: &[u8]) -> Option<Segment> {
    let at = usize::from(headers.transport);
    let header: &[u8; 20] = head.get(at..)?.first_chunk()?;
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let header_len = usize::from(header[12] >> 4) * 4;
    let before = (at - usize::from(headers.network)) as u32;
    let len = headers.len.checked_sub(before)?.checked_sub(header_len as u32)?;
    let flags = header[13];
    let scale =
        if flags & SYN != 0 { head.get(at + 20..at + header_len).and_then(window_scale) } else { None };
    Some(Segment { flags, seq: word(4), ack: word(8), len, scale })
}

/// The window scale among a SYN's options (RFC 7323, section 2.2).
fn window_scale(mut options: &[u8]) -> Option<u8> {
    loop {
        options = match *options {
            [3, 3, scale, ..] => return Some(scale),
            [1, ref rest @ ..] => rest,
            [0, ..] | [_] | [] => return None,
            [_, len, ..] => options.get(usize::from(len).max(2)..)?,
        };
    }
}

/// Notes what a segment tells about sequence numbers. `mine` is the half that it goes by.
fn follow<F: Family>(segment: &Segment, mine: &Half<F>, others: &Half<F>) {
    if segment.flags & SYN != 0 {
        mine.set_scale(segment.scale.unwrap_or(0));
        others.expect(segment.end(), true);
    } else if others.expects().is_none() {
        others.expect(segment.seq, true);
    }
    if segment.has_ack() && segment.flags & RST == 0 {
        mine.expect(segment.ack, segment.flags & SYN != 0);
    }
}

/// How a reset fits what its receiver expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reset {
    Exact,
    InWindow,
    Implausible,
}

fn judge_reset<F: Family>(segment: &Segment, mine: &Half<F>, others: &Half<F>) -> Reset {
    match (others.expects(), mine.expects()) {
        (Some(expected), _) if segment.seq == expected => Reset::Exact,
        (Some(expected), _) if segment.seq.wrapping_sub(expected) <= others.largest_window() => {
            Reset::InWindow
        }
        // A helper may have shifted the numbers a little.
        (Some(expected), _) if mine.flags().watched() && expected.wrapping_sub(segment.seq) <= SHIFT => {
            Reset::InWindow
        }
        (Some(_), _) => Reset::Implausible,
        // To a SYN: it must acknowledge it (RFC 793, section 3.4).
        (None, Some(sent)) if segment.has_ack() && sent.wrapping_sub(segment.ack) <= SYN_DATA => Reset::Exact,
        (None, Some(_)) => Reset::Implausible,
        (None, None) => Reset::InWindow,
    }
}

impl<F: Family> Owner<F> {
    /// Follows and counts a packet of the connection of `half`, unless the half is settled and the packet is not
    /// special ([`Packet::is_special`]), when [`Half::touch`] or [`Half::touch_tcp`] do.
    pub fn update(&mut self, table: &Table<F>, half: Ref, packet: &Packet, now: u32) -> Fate {
        let fate = if table.half(half).flags().balanced() {
            self.update_balanced(table, half, packet, now)
        } else {
            self.update_by_protocol(table, half, packet, now)
        };
        table.mark(half.slot());
        match fate {
            Fate::Accept => table.half(half).touch(now, packet.bytes),
            Fate::Invalid => table.shared.counters(self.worker()).invalid.add(1),
            Fate::Renew => {}
        }
        fate
    }

    fn update_by_protocol(&mut self, table: &Table<F>, half: Ref, packet: &Packet, now: u32) -> Fate {
        match &packet.tcp {
            Some(segment) => self.update_tcp(table, half, segment, now),
            None => {
                Self::update_other(table, half);
                Fate::Accept
            }
        }
    }

    /// A connection that was given to a server: it has the states of IPVS, too, and those alone while nobody has seen
    /// an answer that need not come this way.
    #[cold]
    fn update_balanced(&mut self, table: &Table<F>, half: Ref, packet: &Packet, now: u32) -> Fate {
        let slot = half.slot();
        let call = match (&packet.tcp, &packet.sctp) {
            (Some(segment), _) => segment.kind() == Some(Kind::Syn),
            (None, Some(chunks)) => states::begins_sctp(chunks),
            (None, None) => false,
        };
        if call && !half.is_reply() && table.is_renewed(half) {
            // Who is called and cannot be entered anew at once will be called again.
            return if self.kill(table, half) { Fate::Renew } else { Fate::Invalid };
        }
        let record = table.record(slot);
        let way = record.way(half.is_reply());
        let one_sided = !table.first(slot).flags().any();
        if one_sided && half.is_reply() {
            // Of a server whose gateway this is, although its answers need not come this way: as Linux' director, which
            // does not know them at all, we learn nothing from them.
            return Fate::Accept;
        }
        let fate = match &packet.tcp {
            _ if !one_sided => self.update_by_protocol(table, half, packet, now),
            Some(segment) => self.update_one_sided(table, half, segment, way, now),
            None => {
                Self::update_one_sided_other(table, slot);
                Fate::Accept
            }
        };
        if fate != Fate::Accept {
            return fate;
        }
        let old = record.state();
        let settled = is_settled_tcp(table.noted(slot));
        let state = match (&packet.tcp, &packet.sctp) {
            (Some(_), _) if settled => states::tcp::ESTABLISHED,
            (Some(segment), _) => states::tcp_next(old, way, segment.flags),
            (None, Some(chunks)) => states::sctp_next(old, way, chunks),
            // A later fragment, or a protocol of one state.
            (None, None) => old,
        };
        if table.set_balanced(slot, state, half.is_reply()) {
            self.shorten(table, slot, now);
        }
        Fate::Accept
    }

    /// A segment of a connection of which one side is seen: its phase follows the state that IPVS sees.
    fn update_one_sided(
        &mut self,
        table: &Table<F>,
        half: Ref,
        segment: &Segment,
        way: Way,
        now: u32,
    ) -> Fate {
        use states::tcp;
        let slot = half.slot();
        let next = match states::tcp_next(table.record(slot).state(), way, segment.flags) {
            tcp::SYN_RECV | tcp::SYN_SENT | tcp::NONE | tcp::LISTEN | tcp::SYNACK => Phase::SynSent,
            tcp::ESTABLISHED => Phase::Established,
            tcp::FIN_WAIT => Phase::FinWait,
            tcp::CLOSE_WAIT => Phase::CloseWait,
            tcp::LAST_ACK => Phase::LastAck,
            tcp::TIME_WAIT => Phase::TimeWait,
            _ => Phase::Close,
        };
        let changed = change_state(table, slot, |state| {
            let assured = if next == Phase::Established { State::ASSURED } else { 0 };
            State::new(next, state.status() | assured, state.note())
        });
        if let Some((old, new)) = changed {
            self.changed(table, slot, old, new, now);
        }
        Fate::Accept
    }

    /// A packet of another protocol whose answers go past the switch: there is nothing to wait for. Associations of SCTP
    /// are followed packet by packet.
    fn update_one_sided_other(table: &Table<F>, slot: Slot) {
        if table.first(slot).key().protocol != states::SCTP && !table.first(slot).flags().settled() {
            Self::settle(table, slot, true);
        }
    }

    /// UDP, ICMP, and whatever has no states: all that packets can tell is that there are answers. A reply half is
    /// settled by its first packet, as the other one was from the beginning.
    fn update_other(table: &Table<F>, half: Ref) {
        if !half.is_reply() {
            return;
        }
        let slot = half.slot();
        let changed = change_state(table, slot, |state| {
            let assured = if state.phase() == Phase::Generic { State::ASSURED } else { 0 };
            State::new(state.phase(), state.status() | State::SEEN_REPLY | assured, state.note())
        });
        // Associations of SCTP that were given to a server are followed to their end.
        let followed =
            table.first(slot).flags().balanced() && table.first(slot).key().protocol == states::SCTP;
        if changed.is_some() && !followed {
            Self::settle(table, slot, true);
        }
    }

    fn update_tcp(&mut self, table: &Table<F>, half: Ref, segment: &Segment, now: u32) -> Fate {
        let Some(kind) = segment.kind() else { return Fate::Invalid };
        let slot = half.slot();
        let (mine, others) = (table.half(half), table.half(half.other()));
        let mut state = table.noted(slot);
        loop {
            let mut phase = state.phase();
            let mut status = state.status();
            let mut note = state.note();
            if phase == Phase::Gone {
                // Removed this moment; the packet saw it alive.
                return Fate::Accept;
            }
            if status & State::DOUBTED != 0 && kind != Kind::Rst {
                // The reset was not believed.
                status &= !State::DOUBTED;
                phase = Phase::Established;
            }
            let reset = (kind == Kind::Rst).then(|| judge_reset(segment, mine, others));
            let mut anew = false;
            let next = match tcp::next(phase, half.is_reply(), kind) {
                Next::Invalid => return Fate::Invalid,
                Next::Renew if mine.flags().balanced() => {
                    // It is to stay with its server.
                    status &= !(State::ASSURED | State::SEEN_REPLY);
                    Phase::SynSent
                }
                // It will be sent again.
                Next::Renew if !self.kill(table, half) => return Fate::Invalid,
                Next::Renew => return Fate::Renew,
                Next::Ignore if kind == Kind::Syn => {
                    (status, note) = (status | State::ODD_SYN, segment.end() as u16);
                    phase
                }
                Next::Ignore
                    if kind == Kind::SynAck && status & State::ODD_SYN != 0 && segment.ack as u16 == note =>
                {
                    // The server agrees to begin anew, so it is us who have an old idea of the connection.
                    anew = true;
                    status &= !(State::ODD_SYN | State::ASSURED);
                    Phase::SynRecv
                }
                Next::Ignore => phase,
                Next::To(_) if reset == Some(Reset::Implausible) => return Fate::Invalid,
                Next::To(to) => {
                    if reset == Some(Reset::InWindow) && phase == Phase::Established {
                        // The receiver may ask whether it was meant (RFC 5961, section 3.2).
                        status |= State::DOUBTED;
                    }
                    to
                }
            };
            let replied_before = status & State::SEEN_REPLY != 0;
            if half.is_reply() {
                status |= State::SEEN_REPLY;
            }
            if next == Phase::Established
                && matches!(phase, Phase::SynRecv | Phase::Established)
                && status & State::SEEN_REPLY != 0
            {
                status |= State::ASSURED;
            }
            let new = State::new(next, status, note);
            if new != state {
                match table.second(slot).cold.compare_exchange(
                    state.0,
                    new.0,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => self.changed(table, slot, state, new, now),
                    Err(other) => {
                        state = State(other);
                        continue;
                    }
                }
            }
            if anew {
                // The SYN that was let through without being believed.
                mine.expect(segment.ack, true);
            }
            if kind != Kind::Syn || next.is_half_open() {
                follow(segment, mine, others);
            }
            if kind == Kind::Rst && !replied_before && !mine.flags().balanced() {
                // An answer that there is nobody: nothing to keep.
                self.kill(table, half);
            }
            return Fate::Accept;
        }
    }

    /// A TCP connection is in this phase, as somebody else knows.
    pub(super) fn move_to(&mut self, table: &Table<F>, slot: Slot, phase: Phase, now: u32) {
        let changed = change_state(table, slot, |state| State::new(phase, state.status(), state.note()));
        if let Some((old, new)) = changed {
            self.changed(table, slot, old, new, now);
        }
    }

    /// What follows from a change of a TCP connection's state.
    fn changed(&mut self, table: &Table<F>, slot: Slot, old: State, new: State, now: u32) {
        if is_settled_tcp(old) != is_settled_tcp(new) {
            Self::settle(table, slot, is_settled_tcp(new));
        }
        match (old.phase().is_half_open(), new.phase().is_half_open()) {
            (true, false) => table.shared.release_half_open(),
            (false, true) => table.shared.count_half_open(),
            _ => {}
        }
        let seconds = |state: State| table.shared.timeouts.get(state.phase().timeout());
        // The first look at a new connection comes early enough for the states of its beginning.
        if seconds(new) < seconds(old) && !matches!(new.phase(), Phase::SynRecv | Phase::SynSent2) {
            self.shorten(table, slot, now);
        }
    }
}

/// Whether ordinary segments of a TCP connection change nothing.
fn is_settled_tcp(state: State) -> bool {
    state.phase() == Phase::Established && state.assured()
}

/// Changes the state word of a live connection; old and new, if they differ.
fn change_state<F: Family>(
    table: &Table<F>,
    slot: Slot,
    change: impl Fn(State) -> State,
) -> Option<(State, State)> {
    let cell = &table.second(slot).cold;
    let mut old = State(cell.load(Ordering::Relaxed));
    loop {
        let new = change(old);
        if new == old || old.phase() == Phase::Gone {
            return None;
        }
        match cell.compare_exchange_weak(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return Some((old, new)),
            Err(other) => old = State(other),
        }
    }
}

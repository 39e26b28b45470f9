//! The ring engine against virtio-queue, the reference device: the same guest memory is given to both, and what they
//! read, write and say to the guest must be the same, byte for byte.

#[path = "common/features.rs"]
mod features;
#[path = "common/guest.rs"]
mod guest;

use features::{Features, features};
use guest::*;
use proptest::prelude::*;
use vhost_backend::frame::{BURST, Burst, MAX_FRAME, SNAPSHOT};
use vhost_backend::net_header::NetHeader;
use vhost_backend::ring::{Delivered, Served};
use virtio_queue::desc::split::VirtqUsedElem;
use virtio_queue::{Queue as Reference, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const RINGS: (u64, u64) = (0, 0x6_0000);
const TABLES: std::ops::Range<u64> = 0x1_0000..0x6_0000;
/// Two regions without a gap in guest addresses, then a gap, then one whose end is not at a page boundary.
const LOW: (u64, u64) = (0x1000_0000, 0x4_0000);
const HIGH: (u64, u64) = (0x1004_0000, 0x4_0000);
const FAR: (u64, u64) = (0x1_0000_0000, 0x2_0a30);
const REGIONS: [(u64, u64); 4] = [RINGS, LOW, HIGH, FAR];

/// Where a ring's indexes begin; often just before they wrap.
fn start() -> impl Strategy<Value = u16> {
    prop_oneof![any::<u16>(), 65500u16..=65535, Just(0)]
}

fn piece_len() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0u32..40,
        4 => 40u32..200,
        3 => 200u32..3000,
        1 => 3000u32..20_000,
    ]
}

/// The lengths of a chain's pieces, and from which of them on it is indirect.
type Chain = (Vec<u32>, Option<usize>);

fn chain() -> impl Strategy<Value = Chain> {
    let pieces = prop_oneof![
        3 => prop::collection::vec(60u32..1600, 1),
        1 => (40u32..1600).prop_map(|len| vec![12, len]),
        3 => prop::collection::vec(piece_len(), 1..12),
        1 => prop::collection::vec(0u32..8, 20..200),
    ];
    (pieces, prop::option::of(0usize..4))
}

/// Lets the reference stand where the ring does.
fn reference(queue: &Queue, memory: &GuestMemoryMmap, at: u16, event_idx: bool) -> Reference {
    let mut reference = Reference::new(queue.size).expect("size");
    let split = |addr: u64| (Some(addr as u32), Some((addr >> 32) as u32));
    let (low, high) = split(queue.desc);
    reference.set_desc_table_address(low, high);
    let (low, high) = split(queue.avail);
    reference.set_avail_ring_address(low, high);
    let (low, high) = split(queue.used);
    reference.set_used_ring_address(low, high);
    reference.set_event_idx(event_idx);
    reference.set_next_avail(at);
    reference.set_next_used(at);
    reference.set_ready(true);
    assert!(reference.is_valid(memory));
    reference.disable_notification(memory).expect("disable_notification");
    reference
}

fn assert_same_memory(guest: &Guest, memory: &GuestMemoryMmap) {
    for (i, region) in guest.regions.iter().enumerate() {
        let ours = guest.image(i);
        let mut theirs = vec![0; ours.len()];
        memory.read_slice(&mut theirs, GuestAddress(region.gpa)).expect("read");
        if let Some(at) = (0..ours.len()).find(|&at| ours[at] != theirs[at]) {
            panic!("memory differs from {:#x} on: {} != {}", region.gpa + at as u64, ours[at], theirs[at]);
        }
    }
    guest.check_canaries();
}

/// Takes space for buffers from LOW up, across the seam with HIGH, and from FAR.
struct Space {
    near: u64,
    far: u64,
}

impl Space {
    const NEAR_END: u64 = HIGH.0 + HIGH.1;
    const FAR_END: u64 = FAR.0 + FAR.1;

    /// Near space begins `before_seam` bytes before the seam.
    fn new(before_seam: u64) -> Self {
        Self { near: HIGH.0 - before_seam, far: FAR.0 }
    }

    /// `len` bytes that nobody else gets; `None` when there is no space left.
    fn unique(&mut self, len: u32, far: bool) -> Option<u64> {
        let (at, end) = if far { (&mut self.far, Self::FAR_END) } else { (&mut self.near, Self::NEAR_END) };
        let start = *at;
        let next = start + u64::from(len);
        (next <= end).then(|| *at = next).map(|()| start)
    }

    /// `len` bytes that others may get, too (fine for what is only read).
    fn shared(&mut self, len: u32, far: bool) -> u64 {
        self.unique(len, far).unwrap_or_else(|| {
            if far {
                self.far = FAR.0;
            } else {
                self.near = LOW.0 + 1;
            }
            self.unique(len, far).expect("no piece is longer than the space")
        })
    }
}

// ---- from the guest ---------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
struct Transmit {
    order: u32,
    start: u16,
    features: Features,
    chains: Vec<Chain>,
    /// Chains made available at a time.
    steps: Vec<u16>,
    event: u16,
    before_seam: u64,
    seed: u64,
}

fn transmit() -> impl Strategy<Value = Transmit> {
    (1u32..=10, start(), features(false), 0u64..LOW.1, any::<u64>())
        .prop_flat_map(|(order, start, features, before_seam, seed)| {
            let most = (1usize << order).min(300);
            (
                Just((order, start, features, before_seam, seed)),
                prop::collection::vec(chain(), 1..=most),
                prop::collection::vec(1u16..150, 1..8),
                0u16..100,
            )
        })
        .prop_map(|((order, start, features, before_seam, seed), chains, steps, event)| Transmit {
            order,
            start,
            features,
            chains,
            steps,
            event,
            before_seam,
            seed,
        })
}

/// What the reference says that a device should have seen of one chain.
fn reference_frame(
    memory: &GuestMemoryMmap,
    queue: &mut Reference,
    features: Features,
) -> (u16, NetHeader, Vec<u8>) {
    let chain = queue.pop_descriptor_chain(memory).expect("a chain is available");
    let head = chain.head_index();
    let mut bytes = Vec::new();
    for desc in chain.readable() {
        let old = bytes.len();
        bytes.resize(old + desc.len() as usize, 0);
        memory.read_slice(&mut bytes[old..], desc.addr()).expect("readable buffer");
    }
    let frame = bytes.split_off(features.header_len());
    let mut header = [0; 12];
    header[..10].copy_from_slice(&bytes[..10]);
    let header =
        if features.offloads { NetHeader::from_bytes(&header).meaningful() } else { NetHeader::default() };
    (head, header, frame)
}

fn check_transmit(plan: &Transmit) {
    let mut random = Random::new(plan.seed);
    let guest = Guest::new(&REGIONS);
    for region in 1..REGIONS.len() {
        guest.randomise(region, &mut random);
    }
    let queue = Queue::at(0x1000, 1 << plan.order);
    queue.reset(&guest, plan.start);
    queue.used_event(&guest).store(plan.start.wrapping_add(plan.event), std::sync::atomic::Ordering::Relaxed);

    let header_len = plan.features.header_len() as u32;
    let mut chains = Chains::new(queue, TABLES, &mut random);
    let mut space = Space::new(plan.before_seam);
    let mut made = 0u16;
    for (lens, indirect_from) in &plan.chains {
        let mut lens = lens.clone();
        if lens.iter().sum::<u32>() < header_len {
            lens.push(header_len);
        }
        let pieces: Vec<Piece> =
            lens.iter().map(|&len| (space.shared(len, random.below(4) == 0), len)).collect();
        // Leftovers beside no offload at all, which random bytes hardly ever are.
        if pieces[0].1 >= 2 && random.below(4) == 0 {
            guest.write(pieces[0].0, &[0; 2]);
        }
        if let Some(head) = chains.add(&guest, &pieces, false, *indirect_from) {
            queue.set_avail(&guest, plan.start.wrapping_add(made), head);
            made += 1;
        }
    }

    let memory = guest.reference();
    let mut reference = reference(&queue, &memory, plan.start, plan.features.event_idx);
    let (cell, wires) = queue.start(&guest, plan.features.bits(), plan.start);
    let mut burst = Burst::new();
    let mut steps = plan.steps.iter().cycle();
    let mut given = 0u16;
    let mut seen = plan.start;
    while given < made {
        given = (given + steps.next().expect("cycle")).min(made);
        let index = plan.start.wrapping_add(given);
        queue.avail_idx(&guest).store(index, std::sync::atomic::Ordering::Release);
        memory.write_obj(index, GuestAddress(queue.avail + 2)).expect("avail");
        while seen != index {
            let mut got = Vec::new();
            let served = cell.serve(&mut burst, |burst| {
                assert_eq!(burst.all().count_ones() as usize, burst.len());
                for i in 0..burst.len() {
                    let mut bytes = vec![0; burst.frame_len(i)];
                    assert_eq!(burst.linearise(i, &mut bytes), Some(bytes.len()));
                    assert_eq!(burst.head(i), &bytes[..burst.head(i).len()]);
                    assert_eq!(burst.head(i).len(), bytes.len().min(SNAPSHOT), "short snapshot");
                    got.push((*burst.header(i), bytes));
                }
            });
            assert!(burst.is_empty());
            assert_eq!(cell.fault(), None);
            assert_eq!(served.frames, got.len());
            let now = queue.used_idx(&guest).load(std::sync::atomic::Ordering::Acquire);
            let taken = now.wrapping_sub(seen);
            assert!(taken > 0 && usize::from(taken) <= BURST, "took {taken}");
            seen = now;

            let mut expected = Vec::new();
            let mut counted = Served::default();
            for _ in 0..taken {
                let (head, header, frame) = reference_frame(&memory, &mut reference, plan.features);
                reference.add_used(&memory, head, 0).expect("add_used");
                if frame.is_empty() {
                    counted.empty += 1;
                } else if frame.len() > MAX_FRAME {
                    counted.oversized += 1;
                } else {
                    expected.push((header, frame));
                }
            }
            counted.frames = expected.len();
            assert_eq!(served, counted);
            for (i, (ours, theirs)) in got.iter().zip(&expected).enumerate() {
                assert_eq!(ours.0, theirs.0, "header of frame {i}");
                assert!(ours.1 == theirs.1, "bytes of frame {i} of {} differ", theirs.1.len());
            }
            let wanted = reference.needs_notification(&memory).expect("needs_notification");
            assert_eq!(wires.called(), wanted, "interrupt after {taken} chains");
        }
        assert_eq!(cell.serve(&mut burst, |_| panic!("nothing is left")), Served::default());
        assert!(!wires.called(), "an interrupt for nothing");
    }
    assert_same_memory(&guest, &memory);
    let ring = cell.stop().expect("still there");
    assert_eq!(ring.base(), u32::from(plan.start.wrapping_add(made)));
}

// ---- to the guest -----------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
struct Receive {
    order: u32,
    start: u16,
    features: Features,
    chains: Vec<Chain>,
    bursts: Vec<Vec<(usize, usize, u64)>>,
    event: u16,
    before_seam: u64,
    seed: u64,
}

fn receive() -> impl Strategy<Value = Receive> {
    let frame_len = prop_oneof![
        6 => 1usize..1600,
        2 => 1600usize..9000,
        1 => 9000usize..=MAX_FRAME,
    ];
    let frame = (frame_len, 0usize..=SNAPSHOT, any::<u64>());
    let bursts = prop::collection::vec(prop::collection::vec(frame, 1..=BURST), 1..5);
    let receive_chain = prop_oneof![
        3 => prop::collection::vec(1526u32..2100, 1),
        2 => prop::collection::vec(12u32..300, 1),
        1 => (1520u32..2100).prop_map(|len| vec![12, len]),
        2 => prop::collection::vec(piece_len(), 1..12),
        1 => Just(vec![4096; 17]),
    ];
    let chain = (receive_chain, prop::option::of(0usize..4));
    (1u32..=10, start(), features(false), 0u64..LOW.1, any::<u64>())
        .prop_flat_map(move |(order, start, features, before_seam, seed)| {
            let most = (1usize << order).min(300);
            (
                Just((order, start, features, before_seam, seed)),
                prop::collection::vec(chain.clone(), 1..=most),
                bursts.clone(),
                0u16..100,
            )
        })
        .prop_map(|((order, start, features, before_seam, seed), chains, bursts, event)| Receive {
            order,
            start,
            features,
            chains,
            bursts,
            event,
            before_seam,
            seed,
        })
}

/// Places one frame as the specification says; true or the mask that tells why not.
fn reference_place(
    memory: &GuestMemoryMmap,
    queue: &mut Reference,
    features: Features,
    header: NetHeader,
    frame: &[u8],
) -> Result<(), fn(&mut Delivered) -> &mut u64> {
    let mut bytes = header.to_bytes()[..features.header_len()].to_vec();
    bytes.extend_from_slice(frame);
    let mut chains = Vec::new();
    let mut capacity = 0;
    while capacity < bytes.len() {
        let popped = queue.pop_descriptor_chain(memory);
        let too_small = !features.mergeable && !chains.is_empty();
        if too_small || popped.is_none() {
            for _ in 0..chains.len() + usize::from(popped.is_some()) {
                queue.go_to_previous_position();
            }
            return Err(if too_small { |d| &mut d.too_small } else { |d| &mut d.no_buffers });
        }
        let chain = popped.expect("asked above");
        let head = chain.head_index();
        let pieces: Vec<_> = chain.writable().map(|d| (d.addr(), d.len() as usize)).collect();
        capacity += pieces.iter().map(|(_, len)| len).sum::<usize>();
        chains.push((head, pieces));
    }
    if features.header_len() == 12 {
        bytes[10..12].copy_from_slice(&(chains.len() as u16).to_le_bytes());
    }
    let mut left = &bytes[..];
    for (head, pieces) in chains {
        let before = left.len();
        for (at, len) in pieces {
            let (now, later) = left.split_at(len.min(left.len()));
            memory.write_slice(now, at).expect("writable buffer");
            left = later;
        }
        queue.add_used(memory, head, (before - left.len()) as u32).expect("add_used");
    }
    Ok(())
}

/// Zeroes in both memories what the driver may not look at: what lies beyond the used length of its buffers. A device
/// may leave there what it likes; ours leaves pieces of frames that did not fit.
fn forget_unused(
    guest: &Guest,
    memory: &GuestMemoryMmap,
    pieces: &std::collections::HashMap<u16, Vec<Piece>>,
    used: &std::collections::HashMap<u16, u32>,
) {
    for (head, pieces) in pieces {
        let mut used = used.get(head).copied().unwrap_or(0);
        for &(addr, len) in pieces {
            let kept = used.min(len);
            used -= kept;
            let zeroes = vec![0; (len - kept) as usize];
            guest.write(addr + u64::from(kept), &zeroes);
            memory.write_slice(&zeroes, GuestAddress(addr + u64::from(kept))).expect("write");
        }
        assert_eq!(used, 0, "more was used than buffer {head} holds");
    }
}

fn check_receive(plan: &Receive) {
    let mut random = Random::new(plan.seed);
    let guest = Guest::new(&REGIONS);
    let queue = Queue::at(0x1000, 1 << plan.order);
    queue.reset(&guest, plan.start);
    queue.used_event(&guest).store(plan.start.wrapping_add(plan.event), std::sync::atomic::Ordering::Relaxed);

    let header_len = plan.features.header_len() as u32;
    let mut chains = Chains::new(queue, TABLES, &mut random);
    let mut space = Space::new(plan.before_seam);
    let mut made = 0u16;
    let mut buffers = std::collections::HashMap::new();
    for (lens, indirect_from) in &plan.chains {
        let mut lens = lens.clone();
        if lens.iter().sum::<u32>() < header_len {
            lens.push(header_len);
        }
        let far = random.below(4) == 0;
        let pieces: Option<Vec<Piece>> =
            lens.iter().map(|&len| Some((space.unique(len, far)?, len))).collect();
        let Some(pieces) = pieces else { continue };
        if let Some(head) = chains.add(&guest, &pieces, true, *indirect_from) {
            queue.set_avail(&guest, plan.start.wrapping_add(made), head);
            buffers.insert(head, pieces);
            made += 1;
        }
    }
    queue.avail_idx(&guest).store(plan.start.wrapping_add(made), std::sync::atomic::Ordering::Release);

    let memory = guest.reference();
    let mut reference = reference(&queue, &memory, plan.start, plan.features.event_idx);
    let (cell, wires) = queue.start(&guest, plan.features.bits(), plan.start);
    let mut bytes = vec![0; MAX_FRAME + BURST];
    random.fill(&mut bytes);
    let mut burst = Burst::new();
    for frames in &plan.bursts {
        let mask = random.next() | random.next();
        let header = |seed: u64| {
            NetHeader::from_bytes(&{
                let mut header = [0; 12];
                header[..8].copy_from_slice(&seed.to_le_bytes());
                header
            })
        };
        let before = queue.used_idx(&guest).load(std::sync::atomic::Ordering::Acquire);
        let delivered = burst.with_slices(
            |filler| {
                for (i, &(len, head, seed)) in frames.iter().enumerate() {
                    let (head, rest) = bytes[i..i + len].split_at(head.min(len));
                    assert!(filler.push(header(seed), head, rest));
                }
            },
            |burst| cell.deliver(burst, mask),
        );
        assert_eq!(cell.fault(), None);
        let mut expected = Delivered::default();
        for (i, &(len, _, seed)) in frames.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1) {
            let placed =
                reference_place(&memory, &mut reference, plan.features, header(seed), &bytes[i..i + len]);
            let what = match placed {
                Ok(()) => &mut expected.sent,
                Err(why) => why(&mut expected),
            };
            *what |= 1 << i;
        }
        assert_eq!(delivered, expected);
        let now = queue.used_idx(&guest).load(std::sync::atomic::Ordering::Acquire);
        assert_eq!(now, reference.next_used(), "used index");
        let wanted = now != before && reference.needs_notification(&memory).expect("needs_notification");
        assert_eq!(wires.called(), wanted, "interrupt after {} buffers", now.wrapping_sub(before));
    }

    let mut used = std::collections::HashMap::new();
    for i in 0..reference.next_used().wrapping_sub(plan.start) {
        let index = plan.start.wrapping_add(i);
        let (id, len) = queue.used_elem(&guest, index);
        let at = queue.used + 4 + 8 * u64::from(index & (queue.size - 1));
        let theirs: VirtqUsedElem = memory.read_obj(GuestAddress(at)).expect("used element");
        assert_eq!((id, len), (theirs.id(), theirs.len()), "used element {i}");
        used.insert(id as u16, len);
    }
    // Elements beyond the used index belong to the device: leave them out of the comparison.
    for index in 0..queue.size {
        let ahead = index.wrapping_sub(reference.next_used()) & (queue.size - 1);
        if usize::from(ahead) < usize::from(queue.size) - used.len() {
            let at = queue.used + 4 + 8 * u64::from(index);
            guest.write(at, &[0; 8]);
            memory.write_slice(&[0; 8], GuestAddress(at)).expect("write");
        }
    }
    forget_unused(&guest, &memory, &buffers, &used);
    assert_same_memory(&guest, &memory);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 96 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_from_the_guest_are_those_that_the_reference_sees(plan in transmit()) {
        check_transmit(&plan);
    }

    #[test]
    fn frames_to_the_guest_lie_where_the_reference_puts_them(plan in receive()) {
        check_receive(&plan);
    }
}

use proptest::prelude::*;
use vhost::vhost_user::message::{DescStateSplit, QueueRegionSplit};

use super::*;

const FEATURES_WORD: u64 = 1 << 32;

fn region(shape: Shape) -> (File, Region) {
    let file = Inflight::create(shape).unwrap();
    let all = Arc::new(Inflight::map(shape, shape.bytes(), 0, &file).unwrap());
    let region = all.region(usize::from(shape.queues - 1), shape.size, shape.packed).unwrap();
    (file, region)
}

#[test]
fn the_layouts_are_those_of_the_specification() {
    // The crate's head of a region ends with a pointer, which stands for the entries.
    assert_eq!(size_of::<QueueRegionSplit>() - 8, split::HEAD);
    assert_eq!(size_of::<DescStateSplit>(), split::ENTRY);
    let shape = |queues, size, packed| Shape { queues, size, packed };
    assert_eq!(shape(1, 1, false).bytes(), 64);
    assert_eq!(shape(2, 256, false).bytes(), 2 * (16 * 256 + 64));
    assert_eq!(shape(2, 256, true).bytes(), 2 * (32 * 256 + 64));
    for (shape, bytes, offset) in [
        (shape(0, 1, false), 64, 0),
        (shape(257, 1, false), 1 << 20, 0),
        (shape(1, 0, true), 64, 0),
        (shape(1, 32769, true), 1 << 24, 0),
        (shape(1, 256, false), 16 * 256, 0),
        (shape(1, 256, false), 16 * 256 + 64, 4),
        (shape(1, 256, false), 16 * 256 + 64, u64::MAX - 7),
    ] {
        let file = Inflight::create(Shape { queues: 256, size: 32768, packed: true }).unwrap();
        let refused = Inflight::map(shape, bytes, offset, &file).err().unwrap();
        assert!(refused.starts_with("record of what is in flight: "), "{refused}");
    }
}

#[test]
fn regions_are_for_queues_that_fit() {
    let shape = Shape { queues: 2, size: 256, packed: false };
    let file = Inflight::create(shape).unwrap();
    let all = Arc::new(Inflight::map(shape, shape.bytes(), 0, &file).unwrap());
    assert!(all.region(1, 128, false).is_some());
    assert!(all.region(2, 128, false).is_none());
    assert!(all.region(1, 512, false).is_none());
    assert!(all.region(1, 128, true).is_none());
}

#[test]
fn a_record_that_nobody_has_begun_is_empty_and_one_of_another_kind_is_refused() {
    let (_file, region) = region(Shape { queues: 3, size: 8, packed: false });
    assert_eq!(region.take_over(8, 77, FEATURES_WORD), Ok(vec![]));
    assert_eq!(region.half(split::USED_IDX).load(Ordering::Relaxed), 77);
    assert_eq!(region.half(DESC_NUM).load(Ordering::Relaxed), 8);
    region.half(VERSION_AT).store(2, Ordering::Relaxed);
    assert_eq!(region.take_over(8, 77, FEATURES_WORD), Err(RingFault::BadInflight));
    region.half(VERSION_AT).store(1, Ordering::Relaxed);
    region.half(DESC_NUM).store(9, Ordering::Relaxed);
    assert_eq!(region.take_over(8, 77, FEATURES_WORD), Err(RingFault::BadInflight));
}

#[test]
fn the_last_batch_of_another_device_counts_as_given_back() {
    let (_file, region) = region(Shape { queues: 1, size: 16, packed: false });
    region.take_over(16, 100, FEATURES_WORD).unwrap();
    // In flight: 3, 9, 4, 12, by age. The last batch is 9 and 12; it has been shown and not noted.
    for (head, counter) in [(3u16, 5), (9, 6), (4, 7), (12, 8)] {
        region.byte(region.entry(head)).store(1, Ordering::Relaxed);
        region.word(region.entry(head) + split::COUNTER).store(counter, Ordering::Relaxed);
    }
    region.half(split::LAST_BATCH_HEAD).store(9, Ordering::Relaxed);
    region.half(region.entry(9) + split::NEXT).store(12, Ordering::Relaxed);
    assert_eq!(region.take_over(16, 102, FEATURES_WORD), Ok(vec![3, 4]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// However often we die while we serve what another device left, each of its buffers is given back once, in the
    /// order of the counters; and what a frontend writes into the record breaks nothing.
    #[test]
    fn whoever_dies_while_resuming_leaves_the_rest(
        mut counters in prop::collection::btree_map(0u16..64, any::<u64>(), 0..40),
        used in any::<u16>(),
        lives in prop::collection::vec(0usize..9, 1..12),
        settles in any::<bool>(),
    ) {
        let (_file, region) = region(Shape { queues: 2, size: 64, packed: false });
        region.take_over(64, used, FEATURES_WORD).unwrap();
        for (&head, &counter) in &counters {
            region.byte(region.entry(head)).store(1, Ordering::Relaxed);
            region.word(region.entry(head) + split::COUNTER).store(counter, Ordering::Relaxed);
        }
        let mut used = used;
        for life in lives {
            let heads = region.take_over(64, used, FEATURES_WORD).unwrap();
            let mut expected: Vec<_> = counters.iter().map(|(&head, &counter)| (counter, head)).collect();
            expected.sort_unstable();
            prop_assert_eq!(&heads, &expected.iter().map(|&(_, head)| head).collect::<Vec<_>>());
            // So many go back before the end.
            for head in heads.iter().take(life) {
                counters.remove(head);
                used = used.wrapping_add(1);
            }
            if counters.is_empty() {
                if settles {
                    region.settle(&heads, used);
                }
                // The ring goes on with what is available, of which the record says nothing.
                used = used.wrapping_add(life as u16);
            }
        }
    }

    #[test]
    fn noise_in_a_record_is_refused_or_harmless(bytes in prop::collection::vec(any::<u8>(), 1088), used in any::<u16>()) {
        for packed in [false, true] {
            let shape = Shape { queues: 1, size: if packed { 32 } else { 64 }, packed };
            let (_file, region) = region(shape);
            for (i, &byte) in bytes.iter().enumerate().take(shape.bytes() as usize) {
                region.byte(i).store(byte, Ordering::Relaxed);
            }
            region.half(VERSION_AT).store(1, Ordering::Relaxed);
            region.half(DESC_NUM).store(shape.size, Ordering::Relaxed);
            if packed {
                if let Ok(Some(at)) = region.position(shape.size, FEATURES_WORD) {
                    prop_assert!(at & 0x7fff < shape.size);
                }
            } else if let Ok(heads) = region.take_over(shape.size, used, FEATURES_WORD) {
                let mut once = heads.clone();
                once.sort_unstable();
                once.dedup();
                prop_assert!(once.len() == heads.len() && heads.iter().all(|&head| head < shape.size));
            }
        }
    }
}

#[test]
fn a_packed_ring_is_left_as_it_was() {
    let (_file, region) = region(Shape { queues: 2, size: 8, packed: true });
    let position = |region: &Region| region.position(8, FEATURES_WORD);
    assert_eq!(position(&region), Ok(None), "nobody has begun it");
    assert_eq!(position(&region), Ok(Some(0x8000)));
    // To the next lap, then a lap whole.
    for at in [0x8006, 0x0003, 0x8003] {
        region.commit(at);
        assert_eq!(position(&region), Ok(Some(at)));
    }
    // Another device's buffers.
    region.byte(region.entry(5)).store(1, Ordering::Relaxed);
    assert_eq!(position(&region), Err(RingFault::BadInflight));
    region.end();
    assert_eq!(position(&region), Ok(None));
}

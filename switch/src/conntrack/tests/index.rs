//! The index alone.

use crate::conntrack::index::Index;

fn hash(n: u64) -> u64 {
    let wide = u128::from(n ^ 0x5851_f42d_4c95_7f2d).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    (wide >> 64) as u64 ^ wide as u64
}

fn place(index: &Index, n: u32) -> bool {
    let hash = hash(u64::from(n));
    index.place(&index.lock(hash, hash).expect("free"), hash, n)
}

#[test]
fn the_other_bucket_of_the_other_bucket_is_the_first() {
    let index = Index::new(1000);
    for n in 0..10_000 {
        let (tag, place) = (Index::tag(hash(n)), index.first(hash(n)));
        assert_eq!(index.other(index.other(place, tag), tag), place);
    }
}

#[test]
fn as_many_keys_as_promised_have_room() {
    for keys in [1u32, 2, 50, 1000, 200_000] {
        let index = Index::new(keys as usize);
        for n in 0..keys {
            assert!(place(&index, n), "{n} of {keys}");
        }
        for n in 0..keys {
            assert_eq!(index.find(hash(u64::from(n)), |found| found == n), Some(n), "{n} of {keys}");
            assert!(index.candidate(hash(u64::from(n))).is_some());
        }
        for n in (0..keys).rev() {
            let hash = hash(u64::from(n));
            let stripes = index.lock(hash, hash).expect("free");
            assert!(index.remove(&stripes, hash, n) && !index.remove(&stripes, hash, n));
        }
        assert_eq!(index.sample(0, usize::MAX).count(), 0);
    }
}

#[test]
fn coming_and_going_leaves_room() {
    for keys in [100, 3000] {
        let index = Index::new(keys as usize);
        for n in 0..100 * keys {
            if n >= keys {
                let gone = n - keys;
                let hash = hash(u64::from(gone));
                assert!(index.remove(&index.lock(hash, hash).expect("free"), hash, gone));
            }
            assert!(place(&index, n), "{n}, {keys} at a time");
        }
    }
}

#[test]
fn a_held_stripe_is_not_waited_for_forever() {
    let index = Index::new(100);
    let first = index.lock(hash(1), hash(2)).expect("free");
    assert!(index.lock(hash(1), hash(3)).is_none());
    assert!(index.lock(hash(4), hash(2)).is_none());
    drop(first);
    assert!(index.lock(hash(4), hash(2)).is_some());
    assert!(index.lock(hash(2), hash(2)).is_some());
}

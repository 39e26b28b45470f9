use std::os::{fd::AsRawFd, unix::fs::FileExt};

use nix::sys::memfd::{MFdFlags, memfd_create};
use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;

fn memfd(len: u64) -> File {
    let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

#[test]
fn addresses_lead_into_the_file() {
    let file = memfd(16 * PAGE);
    file.write_all_at(b"low", 2 * PAGE).unwrap();
    file.write_all_at(b"high", 9 * PAGE + 5).unwrap();
    let map = GuestMap::empty()
        .with_region(8 * PAGE, 4 * PAGE, 0x7000_0000, 8 * PAGE, &file)
        .unwrap()
        .with_region(0, 4 * PAGE, 0x6000_0000, 2 * PAGE, &file)
        .unwrap();
    drop(file);
    assert_eq!((map.regions(), map.size()), (2, 8 * PAGE));
    let mut hint = 77;
    let (low, rest) = map.translate(0, &mut hint).unwrap();
    assert_eq!((rest, hint), (4 * PAGE, 0));
    let (high, rest) = map.translate(9 * PAGE + 5, &mut hint).unwrap();
    assert_eq!((rest, hint), (3 * PAGE - 5, 1));
    // SAFETY: both were translated by a map that still lives.
    let bytes = unsafe {
        (std::slice::from_raw_parts(low, 3).to_vec(), std::slice::from_raw_parts(high, 4).to_vec())
    };
    assert_eq!((bytes.0.as_slice(), bytes.1.as_slice()), (&b"low"[..], &b"high"[..]));
    for gap in [4 * PAGE, 8 * PAGE - 1, 12 * PAGE, u64::MAX] {
        assert_eq!(map.translate(gap, &mut hint), None, "{gap:#x}");
    }
    assert_eq!(map.user_range(0x7000_0000 + PAGE + 5, 4), Some(high));
    assert_eq!(map.user_range(0x6000_0000, 4 * PAGE), Some(low));
    assert_eq!(map.user_range(0x6000_0000, 4 * PAGE + 1), None, "over the end of the region");
    assert_eq!(map.user_range(0x6000_0000 + 4 * PAGE, 0), None);
    assert_eq!(map.user_range(0x6000_0000, u64::MAX), None);
    assert_eq!(map.user_range(0, 1), None);
}

/// Reads through a pointer of a map that still lives.
fn bytes_at(at: *const u8, len: usize) -> Vec<u8> {
    // SAFETY: the tests ask only for what a living map has vouched for.
    unsafe { std::slice::from_raw_parts(at, len).to_vec() }
}

#[test]
fn rings_may_cross_regions_that_are_adjacent_for_the_frontend() {
    let (low, high) = (memfd(4 * PAGE), memfd(4 * PAGE));
    low.write_all_at(b"ab", 3 * PAGE - 2).unwrap();
    high.write_all_at(b"cdef", PAGE).unwrap();
    // Far apart for the guest, side by side for the frontend; the second begins within its file.
    let map = GuestMap::empty()
        .with_region(0, 2 * PAGE, 0x10_0000, PAGE, &low)
        .unwrap()
        .with_region(64 * PAGE, 2 * PAGE, 0x10_0000 + 2 * PAGE, PAGE, &high)
        .unwrap();
    let edge = 0x10_0000 + 2 * PAGE;
    let at = map.user_range(edge - 2, 6).unwrap();
    assert_eq!(bytes_at(at, 6), b"abcdef");
    // The same memory, not a copy, and the same place when asked again.
    // SAFETY: within what was just found.
    unsafe { at.add(3).write_volatile(b'X') };
    let mut byte = [0];
    high.read_exact_at(&mut byte, PAGE + 1).unwrap();
    assert_eq!(byte, *b"X");
    assert_eq!(map.user_range(edge - 1, 3), Some(at.wrapping_add(1)));
    assert!(map.user_range(0x10_0000, 4 * PAGE).is_some(), "both as a whole");
    assert_eq!(map.user_range(edge, 2 * PAGE + 1), None, "beyond the last one");
    assert_eq!(map.user_range(0x10_0000 - 1, 2), None, "before the first one");
    // A map without the region has no such place; the old one keeps it.
    let less = map.without_region(64 * PAGE, 2 * PAGE, edge).unwrap();
    assert_eq!(less.user_range(edge - 2, 6), None);
    assert_eq!(bytes_at(at, 2), b"ab");

    // And the file may shrink: its pages read as zeroes then, and the map is known to be spoilt.
    high.set_len(0).unwrap();
    assert_eq!(bytes_at(at.wrapping_add(2), 4), [0; 4]);
    assert!(map.poisoned());
}

#[test]
fn copies_cross_regions_that_are_adjacent_for_the_guest() {
    let (low, high) = (memfd(PAGE), memfd(PAGE));
    low.write_all_at(b"ab", PAGE - 2).unwrap();
    high.write_all_at(b"cd", 0).unwrap();
    let map = GuestMap::empty()
        .with_region(PAGE, PAGE, 0x7000_0000, 0, &high)
        .unwrap()
        .with_region(0, PAGE, 0x1000_0000, 0, &low)
        .unwrap();
    let mut bytes = [0; 4];
    assert!(map.copy_out(PAGE - 2, &mut bytes));
    assert_eq!(&bytes, b"abcd");
    assert!(!map.copy_out(2 * PAGE - 2, &mut bytes), "beyond the end");
    assert!(!map.copy_out(u64::MAX - 1, &mut bytes));
}

#[test]
fn a_new_map_shares_the_mappings_of_the_old() {
    let file = memfd(4 * PAGE);
    let one = GuestMap::empty().with_region(0, PAGE, 0x1000, 0, &file).unwrap();
    let two = one.with_region(PAGE, PAGE, 0x2000, PAGE, &file).unwrap();
    let (first, _) = one.translate(0, &mut 0).unwrap();
    assert_eq!(two.translate(0, &mut 0).unwrap().0, first);
    drop(one);
    let only_second = two.without_region(0, PAGE, 0x1000).unwrap();
    assert_eq!((only_second.regions(), only_second.translate(0, &mut 0)), (1, None));
    // SAFETY: `two` still holds the mapping.
    unsafe { first.write_volatile(9) };
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [9], "shared with the file");
}

#[test]
fn what_is_taken_away_must_be_there() {
    let file = memfd(PAGE);
    let map = GuestMap::empty().with_region(0, PAGE, 0x1000, 0, &file).unwrap();
    for (gpa, size, user_addr) in [(PAGE, PAGE, 0x1000), (0, PAGE / 2, 0x1000), (0, PAGE, 0x2000)] {
        let error = map.without_region(gpa, size, user_addr).unwrap_err();
        assert!(matches!(error, MemoryError::NoSuchRegion { .. }), "{error}");
    }
    assert_eq!(map.without_region(0, PAGE, 0x1000).unwrap().regions(), 0);
}

#[test]
fn impossible_regions_are_refused() {
    let file = memfd(4 * PAGE);
    let map = GuestMap::empty().with_region(2 * PAGE, 2 * PAGE, 0x1000, 0, &file).unwrap();
    let top = u64::MAX - PAGE + 1;
    let cases = [
        ((0, 0, 0x1000, 0), "is empty"),
        ((top, 2 * PAGE, 0x1000, 0), "beyond the end"),
        ((0, 2 * PAGE, top, 0), "beyond the end"),
        ((0, 2 * PAGE, 0x1000, top), "beyond the end"),
        ((1, PAGE, 0x1000, 0), "guest address 0x1 is not"),
        ((0, PAGE, 0x1001, 0), "frontend address 0x1001 is not"),
        ((0, PAGE, 0x1000, 0x800), "offset in the file 0x800 is not"),
        ((PAGE, 2 * PAGE, 0x1000, 0), "overlaps the one at 0x2000"),
        ((3 * PAGE, 2 * PAGE, 0x1000, 0), "overlaps the one at 0x2000"),
        ((0, 5 * PAGE, 0x1000, 0), "overlaps the one at 0x2000"),
        ((8 * PAGE, PAGE, 0x1000, 4 * PAGE), "has only 0x4000"),
        ((8 * PAGE, 5 * PAGE, 0x1000, 0), "has only 0x4000"),
        ((8 * PAGE, MAX_MEMORY, 0x1000, 0), "larger than"),
    ];
    for ((gpa, size, user_addr, offset), text) in cases {
        let error = map.with_region(gpa, size, user_addr, offset, &file).unwrap_err().to_string();
        assert!(error.contains(text), "{error} does not say {text}");
    }
    let null = File::options().read(true).write(true).open("/dev/zero").unwrap();
    assert!(matches!(map.with_region(0, PAGE, 0, 0, &null), Err(MemoryError::UnsuitableFile { .. })));
    let proc = File::open("/proc/self/maps").unwrap();
    assert!(map.with_region(0, PAGE, 0, 0, &proc).is_err());
    let read_only = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let error = map.with_region(0, PAGE, 0, 0, &read_only).unwrap_err().to_string();
    assert!(error.contains("mmap: Permission denied"), "{error}");
}

#[test]
fn slots_have_an_end() {
    let file = memfd(PAGE);
    let mut map = GuestMap::empty();
    for i in 0..MAX_SLOTS as u64 {
        map = map.with_region(2 * i * PAGE, PAGE, 0x1000, 0, &file).unwrap();
    }
    assert!(matches!(
        map.with_region(u64::MAX / 2 / PAGE * PAGE, PAGE, 0x1000, 0, &file),
        Err(MemoryError::TooMany)
    ));
}

#[test]
fn a_truncated_file_poisons_its_map_and_no_other() {
    let (file, other_file) = (memfd(4 * PAGE), memfd(PAGE));
    let map = GuestMap::empty().with_region(0, PAGE, 0x1000, 0, &file).unwrap();
    let map = map.with_region(PAGE, 3 * PAGE, 0x2000, PAGE, &file).unwrap();
    let other = GuestMap::empty().with_region(0, PAGE, 0x1000, 0, &other_file).unwrap();
    let (at, _) = map.translate(2 * PAGE, &mut 0).unwrap();
    // SAFETY: here and below: translated by a map that still lives.
    unsafe { at.write_volatile(1) };
    assert!(!map.poisoned() && !other.poisoned());
    file.set_len(2 * PAGE).unwrap();
    // SAFETY: as above.
    unsafe {
        assert_eq!(at.read_volatile(), 0);
        at.write_volatile(2);
        assert_eq!(at.read_volatile(), 2, "private memory by now");
    }
    assert!(map.poisoned() && !other.poisoned());
    let without = map.without_region(PAGE, 3 * PAGE, 0x2000).unwrap();
    assert!(!without.poisoned(), "the part that is left is whole");
    let with = without.with_region(PAGE, PAGE, 0x2000, PAGE, &file).unwrap();
    assert!(map.poisoned() && !with.poisoned(), "what is mapped afterwards is whole");
}

/// Needs a free huge page (`vm.nr_hugepages`); says so if there is none.
#[test]
fn huge_pages_can_begin_anywhere_and_be_taken_away() {
    const HUGE: u64 = 2 << 20;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    let file = match memfd_create("huge", flags) {
        Ok(fd) => File::from(fd),
        Err(e) => return eprintln!("no hugetlbfs here ({e}): not tested"),
    };
    file.set_len(2 * HUGE).unwrap();
    // Begins and ends within a huge page, as QEMU's piece of memory around 0xa0000 does.
    let map = GuestMap::empty().with_region(0xc0000, HUGE, 0x7f00_000c_0000, 0xc0000, &file).unwrap();
    let (at, rest) = map.translate(0xc0000, &mut 0).unwrap();
    assert_eq!((rest, at as u64 % HUGE), (HUGE, 0xc0000));
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
        .unwrap_or_default();
    let free: u64 = free.trim().parse().unwrap_or(0);
    if free > 0 {
        // SAFETY: translated by a map that still lives.
        unsafe { at.write_volatile(7) };
    } else {
        eprintln!("no free huge page: the access below faults at once");
    }
    file.set_len(0).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { at.read_volatile() }, 0);
    assert!(map.poisoned());
}

/// What a map says, told by walking the regions.
fn by_walking(regions: &[(u64, u64)], gpa: u64) -> Option<u64> {
    regions
        .iter()
        .find(|(start, size)| gpa >= *start && gpa - start < *size)
        .map(|(start, size)| size - (gpa - start))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn translation_agrees_with_walking(
        wanted in prop::collection::vec((0u64..64, 1u64..6), 1..20),
        asked in prop::collection::vec(0u64..72 * PAGE, 100),
        mut hint in any::<u32>(),
    ) {
        let file = memfd(6 * PAGE);
        let (mut map, mut regions) = (GuestMap::empty(), Vec::new());
        for (start, pages) in wanted {
            let (gpa, size) = (start * PAGE, pages * PAGE);
            let free = regions.iter().all(|&(g, s): &(u64, u64)| gpa + size <= g || g + s <= gpa);
            match map.with_region(gpa, size, 0x10_0000 + gpa, 0, &file) {
                Ok(larger) => { prop_assert!(free); map = larger; regions.push((gpa, size)); }
                Err(MemoryError::Overlap { .. }) => prop_assert!(!free),
                Err(e) => prop_assert!(false, "{e}"),
            }
        }
        for gpa in asked {
            let found = map.translate(gpa, &mut hint);
            prop_assert_eq!(found.map(|(_, rest)| rest), by_walking(&regions, gpa));
            let by_user = map.user_range(0x10_0000 + gpa, 1);
            prop_assert_eq!(found.map(|(at, _)| at), by_user);
        }
    }
}

use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::durable::simulated::{self, Allowed, Fault, Simulated};

const DIR: &str = "/state";

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn clock(seconds: u64) -> Clock {
    Clock { now: 5_000_000 + seconds, wall: UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds) }
}

fn lease(n: u8, expires: u64) -> Lease {
    let mac = Mac([2, 0, 0, 0, 0, n]);
    let hostname = n.is_multiple_of(2).then(|| format!("host{n}"));
    Lease { mac, identity: [255, n, 7].into(), hostname, port: None, state: State::Bound, expires }
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn at(n: u8) -> Ipv4Addr {
    [10, 0, 3, n].into()
}

/// Opens the store of a directory; what it had to tell.
fn open(directory: &TempDir, seconds: u64) -> (Store, Vec<String>) {
    let mut told = Vec::new();
    let store = Store::open(directory.path(), clock(seconds), &mut |text| told.push(text));
    (store, told)
}

fn quiet(text: String) {
    panic!("{text}");
}

fn files(directory: &TempDir) -> Vec<String> {
    let names = fs::read_dir(directory.path()).expect("a directory");
    let mut names: Vec<_> =
        names.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

#[test]
fn leases_survive_with_their_times() {
    let directory = directory();
    let (mut store, told) = open(&directory, 0);
    assert!(told.is_empty());
    let end = clock(3600).now;
    let changes = [
        (name("lan"), at(2), Some(lease(2, end))),
        (name("lan"), at(3), Some(lease(3, end))),
        (name("dmz"), at(2), Some(Lease { state: State::Expired, ..lease(4, end + 9) })),
    ];
    store.keep(changes, clock(0), &mut quiet);
    store.keep(
        [(name("lan"), at(3), None), (name("lan"), at(2), Some(lease(2, end + 60)))],
        clock(60),
        &mut quiet,
    );
    drop(store);
    let (store, told) = open(&directory, 100);
    assert!(told.is_empty(), "{told:?}");
    assert_eq!(store.leases_of(name("lan"), clock(100)), [(at(2), lease(2, end + 60))]);
    // The process' own seconds begin anew; those of the world went on.
    let other = Clock { now: 77, wall: clock(100).wall };
    assert_eq!(
        store.leases_of(name("dmz"), other),
        [(at(2), Lease { state: State::Expired, ..lease(4, 77 + 3509) })]
    );
    assert_eq!(files(&directory), [FILE, "dhcp-leases.lock"]);
}

#[test]
fn what_is_over_is_remembered_for_a_while() {
    let directory = directory();
    let (mut store, _) = open(&directory, 0);
    store.keep([(name("lan"), at(2), Some(lease(2, clock(60).now)))], clock(0), &mut quiet);
    drop(store);
    let week = 7 * 24 * 3600;
    let (store, _) = open(&directory, week);
    assert_eq!(store.leases_of(name("lan"), clock(week)), [(at(2), lease(2, clock(60).now))]);
    drop(store);
    assert!(open(&directory, week + 60).0.leases_of(name("lan"), clock(0)).is_empty());
}

#[test]
fn a_last_line_that_was_cut_off_is_left_out() {
    let directory = directory();
    let (mut store, _) = open(&directory, 0);
    for n in 2..5 {
        store.keep([(name("lan"), at(n), Some(lease(n, clock(60).now)))], clock(0), &mut quiet);
    }
    drop(store);
    let path = directory.path().join(FILE);
    let whole = fs::read(&path).expect("a file");
    let last = whole[..whole.len() - 1].iter().rposition(|&b| b == b'\n').expect("lines") + 1;
    for cut in [last + 1, last + 40, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).expect("a file");
        let (store, told) = open(&directory, 0);
        assert!(told.is_empty(), "{told:?}");
        let kept: Vec<_> =
            store.leases_of(name("lan"), clock(0)).into_iter().map(|(address, _)| address).collect();
        assert_eq!(kept, [at(2), at(3)], "cut at {cut}");
    }
    assert_eq!(files(&directory), [FILE, "dhcp-leases.lock"]);
}

#[test]
fn a_damaged_file_is_set_aside_and_what_can_be_read_stays() {
    let directory = directory();
    let path = directory.path().join(FILE);
    let (mut store, _) = open(&directory, 0);
    store.keep((2..5).map(|n| (name("lan"), at(n), Some(lease(n, clock(60).now)))), clock(0), &mut quiet);
    drop(store);
    let whole = fs::read(&path).expect("a file");
    let mut damaged = whole.clone();
    let second = whole.split(|&b| b == b'\n').take(2).map(|line| line.len() + 1).sum::<usize>();
    damaged[second + 30] ^= 1;
    for n in 1..3 {
        fs::write(&path, &damaged).expect("a file");
        let (store, told) = open(&directory, 0);
        let before = format!("{} is damaged (the checksum of line 3 is wrong): kept as ", path.display());
        let after = ", 2 leases could be read and stay in force";
        let aside = told[0].strip_prefix(&before).and_then(|rest| rest.strip_suffix(after)).expect("a name");
        assert!(aside.contains("/dhcp-leases.damaged-20"), "{told:?}");
        assert_eq!(fs::read(aside).expect("a file"), damaged);
        assert_eq!((told.len(), files(&directory).len()), (1, 2 + n));
        let kept: Vec<_> =
            store.leases_of(name("lan"), clock(0)).into_iter().map(|(address, _)| address).collect();
        assert_eq!(kept, [at(2), at(4)]);
    }
    fs::write(&path, "something else\n").expect("a file");
    let (store, told) = open(&directory, 0);
    assert!(told.len() == 1 && told[0].contains("line 1 is not its header"), "{told:?}");
    assert!(store.leases.is_empty());
    drop(store);
    assert!(open(&directory, 0).1.is_empty(), "a new file is there");
}

#[test]
fn history_does_not_grow_for_ever() {
    let directory = directory();
    let (mut store, _) = open(&directory, 0);
    for n in 0..20 {
        // As if the lease had been renewed a thousand times more.
        store.lines += 1000;
        store.keep([(name("lan"), at(2), Some(lease(2, clock(n).now)))], clock(n), &mut quiet);
    }
    drop(store);
    let lines = fs::read(directory.path().join(FILE)).expect("a file").split(|&b| b == b'\n').count();
    assert!(lines < 10, "{lines} lines for one lease");
}

#[test]
fn an_interface_is_forgotten_alone() {
    let directory = directory();
    let (mut store, _) = open(&directory, 0);
    let of = |interface| (name(interface), at(2), Some(lease(2, clock(60).now)));
    store.keep([of("lan"), of("dmz")], clock(0), &mut quiet);
    store.forget(name("lan"), clock(0), &mut quiet);
    drop(store);
    let (store, _) = open(&directory, 0);
    assert!(store.leases_of(name("lan"), clock(0)).is_empty());
    assert_eq!(store.leases_of(name("dmz"), clock(0)).len(), 1);
}

#[test]
fn a_directory_is_one_daemons() {
    let directory = directory();
    let (mut first, told) = open(&directory, 0);
    assert!(told.is_empty());
    let (mut second, told) = open(&directory, 0);
    assert!(told.len() == 1 && told[0].contains("another shuntd uses it"), "{told:?}");
    let lease = || Some(lease(2, clock(60).now));
    first.keep([(name("lan"), at(2), lease())], clock(0), &mut quiet);
    second.keep([(name("lan"), at(3), lease())], clock(0), &mut quiet);
    assert_eq!(second.leases_of(name("lan"), clock(0)).len(), 1, "in memory it works on");
    drop((first, second));
    let (store, _) = open(&directory, 0);
    assert_eq!(store.leases_of(name("lan"), clock(0)), [(at(2), lease().expect("one"))]);
}

#[test]
fn a_disk_that_takes_no_more_is_told_of_once_and_tried_again() {
    let disk = Simulated::default();
    let mut store = Store::open_on(Box::new(disk.clone()), Path::new(DIR), None, clock(0), &mut quiet);
    let mut told = Vec::new();
    let mut keep = |store: &mut Store, n: u8, seconds| {
        let change = (name("lan"), at(n), Some(lease(n, clock(9999).now)));
        store.keep([change], clock(seconds), &mut |text| told.push(text));
        told.len()
    };
    disk.fail(Some(Fault { from: disk.tried(), count: 1000, full: true }));
    assert_eq!(keep(&mut store, 2, 0), 1);
    assert_eq!(keep(&mut store, 3, 1), 1, "said once");
    assert_eq!(keep(&mut store, 4, 31), 1, "tried in vain");
    disk.fail(None);
    assert_eq!(keep(&mut store, 5, 62), 2, "said that it works again");
    assert!(told[0].contains("would be lost in a restart") && told[1].contains("kept again"), "{told:?}");
    drop(store);
    let store = Store::open_on(Box::new(disk), Path::new(DIR), None, clock(62), &mut quiet);
    assert_eq!(store.leases_of(name("lan"), clock(62)).len(), 4);
}

/// Addresses and who has them.
type Known = Vec<(Ipv4Addr, Lease)>;

/// A life of a store on a disk that fails as it is told to: what may be found after each operation.
fn live(disk: &Simulated) -> Allowed<Known> {
    let mut allowed = Allowed::default();
    let mut store = Store::open_on(Box::new(disk.clone()), Path::new(DIR), None, clock(0), &mut |_| ());
    // What may be on the disk.
    let mut may = vec![Known::new()];
    allowed.until(disk.ops(), &may, &may);
    for number in 0..24_u8 {
        let (n, second) = (number % 5, u64::from(number) * 40);
        let given = (number % 7 != 6).then(|| lease(n, clock(9999 + second).now));
        if number % 10 == 9 {
            // Mostly history, as after thousands of renewals.
            store.lines += 2 * HISTORY;
        }
        store.keep([(name("lan"), at(n), given)], clock(second), &mut |_| ());
        let now = store.leases_of(name("lan"), clock(0));
        let mut during = may.clone();
        during.push(now.clone());
        may = match store.failed {
            None => vec![now],
            // Nobody can know; but nothing comes back that was gone before it failed.
            Some(_) => during.clone(),
        };
        allowed.until(disk.ops(), &during, &may);
    }
    allowed
}

/// Who has which address after a loss of power.
fn found(left: Simulated, _: &str) -> Known {
    let store = Store::open_on(Box::new(left), Path::new(DIR), None, clock(0), &mut |_| ());
    store.leases_of(name("lan"), clock(0))
}

#[test]
fn power_may_go_at_any_moment() {
    simulated::power_may_go(40, live, found);
}

#[test]
fn any_operation_may_fail() {
    simulated::any_operation_may_fail(live, found);
}

proptest! {
    /// Any file is read without a panic, and the next start finds a good one.
    #[test]
    fn no_bytes_hurt(bytes in proptest::collection::vec(any::<u8>(), 0..300), header: bool) {
        let directory = directory();
        let start = if header { format!("{HEADER}\n") } else { String::new() };
        fs::write(directory.path().join(FILE), [start.as_bytes(), &bytes].concat()).expect("a file");
        drop(open(&directory, 0));
        prop_assert!(open(&directory, 0).1.is_empty());
    }

    /// A file cut off anywhere holds all lines before the cut; one with a bit turned says so or still holds all.
    #[test]
    fn accidents_cost_no_more_than_they_hit(cut in 0_usize..1200, bit in proptest::option::of(0_u32..8)) {
        let directory = directory();
        let (mut store, _) = open(&directory, 0);
        store.keep((0..5).map(|n| (name("lan"), at(n), Some(lease(n, clock(60).now)))), clock(0), &mut quiet);
        drop(store);
        let path = directory.path().join(FILE);
        let mut bytes = fs::read(&path).expect("a file");
        let at = cut % bytes.len();
        match bit {
            Some(bit) => bytes[at] ^= 1 << bit,
            None => bytes.truncate(at),
        }
        let before = bytes[..at].iter().filter(|&&b| b == b'\n').count();
        fs::write(&path, &bytes).expect("a file");
        let (store, told) = open(&directory, 0);
        let kept = store.leases_of(name("lan"), clock(0));
        prop_assert!(kept.iter().all(|(address, one)| *one == lease(address.octets()[3], clock(60).now)));
        match bit {
            Some(_) => prop_assert!(kept.len() >= 3, "{} with {told:?}", kept.len()),
            None => prop_assert_eq!(kept.len(), before.saturating_sub(1)),
        }
    }
}

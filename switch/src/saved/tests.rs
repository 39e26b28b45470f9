use super::*;
use crate::control::api;
use crate::durable::disk::Kernel;
use crate::durable::simulated::{self, Allowed, Simulated};

const DIR: &str = "/state";

/// A change of a thing: bridges, of different ages, that come and go.
fn change(number: usize) -> Change {
    let name = format!("br{}", number % 5);
    let bridge = api::BridgeAdd { name: name.clone(), ageing: Some(number as i64), ..Default::default() };
    let key = Key::Bridge(name.parse().unwrap());
    (key, (number % 7 != 6).then_some(Entry::Bridge(bridge)))
}

fn with(document: &Document, change: Change) -> Document {
    let mut document = document.clone();
    document.set(change.0, change.1);
    document
}

/// A life of a store on a disk that fails as it is told to: what may be found after each operation.
fn live(disk: &Simulated) -> Allowed<Document> {
    let (mut store, _) = Store::open(Box::new(disk.clone()), Path::new(DIR), None).unwrap();
    let mut allowed = Allowed::default();
    let none = Document::default();
    let mut now = none.clone();
    // What may be on the disk, first what is in force.
    let mut may = vec![none];
    for number in 0..24 {
        if number % 10 == 9 && store.begin_anew(&now).is_ok() {
            let before = std::mem::replace(&mut may, vec![now.clone()]);
            allowed.until(disk.ops(), &before, &may);
        }
        while store.is_broken() && store.begin(Some(7), &now).is_err() {
            allowed.until(disk.ops(), &may, &may);
            if disk.tried() > 400 {
                return allowed;
            }
        }
        allowed.until(disk.ops(), &may, &[now.clone()]);
        let change = change(number);
        let next = with(&now, change.clone());
        let during = [now.clone(), next.clone()];
        match store.reserve(100).and_then(|()| store.commit(vec![change])) {
            Ok(()) => {
                now = next;
                may = vec![now.clone()];
            }
            // It is refused; where it could not even be taken back nobody can know.
            Err(_) if store.is_broken() => may = during.to_vec(),
            Err(_) => may = vec![now.clone()],
        }
        allowed.until(disk.ops(), &during, &may);
    }
    allowed
}

/// What is in force after a loss of power.
fn found(left: Simulated, what: &str) -> Document {
    let bytes = left.read(&Path::new(DIR).join(FILE)).unwrap();
    let saved = bytes.as_ref().map(|bytes| read(bytes)).unwrap_or_default();
    assert!(!saved.damaged, "{what}: {:?}", saved.problems);
    saved.document.unwrap_or_default()
}

#[test]
fn power_may_go_at_any_moment() {
    simulated::power_may_go(100, live, found);
}

#[test]
fn any_operation_may_fail() {
    simulated::any_operation_may_fail(live, found);
}

/// A store with some history.
fn written(disk: &Simulated, changes: usize) -> Document {
    let (mut store, _) = Store::open(Box::new(disk.clone()), Path::new(DIR), None).unwrap();
    let mut now = Document::default();
    now.set(change(100).0, change(100).1);
    store.begin(Some(7), &now).unwrap();
    for number in 0..changes {
        now = with(&now, change(number));
        store.commit(vec![change(number)]).unwrap();
    }
    now
}

fn opened(disk: &Simulated) -> Saved {
    Store::open(Box::new(disk.clone()), Path::new(DIR), None).unwrap().1
}

#[test]
fn a_damaged_file_is_set_aside_and_what_stands_before_is_gone_on_with() {
    let path = Path::new(DIR).join(FILE);
    let lines = |bytes: &[u8]| {
        bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at).collect::<Vec<_>>()
    };
    // A transaction in the midst.
    let disk = Simulated::default();
    written(&disk, 6);
    disk.damage(&path, |bytes| {
        let at = lines(bytes)[4] + 30;
        bytes[at] ^= 1;
    });
    let saved = opened(&disk);
    let mut before = Document::default();
    before.set(change(100).0, change(100).1);
    let before = (0..3).fold(before, |document, number| with(&document, change(number)));
    assert_eq!(saved.document, Some(before));
    assert!(
        saved.problems[0].starts_with(
            "/state/state is damaged (line 6 is not what it was): kept as /state/state.damaged-20"
        ),
        "{:?}",
        saved.problems
    );
    assert_eq!(disk.names().len(), 1, "{:?}", disk.names());
    // The things that it begins with, and the header.
    for line in [0, 1] {
        let disk = Simulated::default();
        written(&disk, 6);
        disk.damage(&path, |bytes| {
            let at = if line == 0 { 20 } else { lines(bytes)[0] + 20 };
            bytes[at] ^= 1;
        });
        let saved = opened(&disk);
        assert!(
            saved.document.is_none() && saved.problems[0].contains("nothing of it could be read"),
            "{saved:?}"
        );
    }
    // An empty file is none of ours.
    let disk = Simulated::default();
    written(&disk, 1);
    disk.damage(&path, Vec::clear);
    assert!(opened(&disk).problems[0].contains("line 1 is not its header"));
}

#[test]
fn what_was_not_complete_is_cut_off() {
    let path = Path::new(DIR).join(FILE);
    for cut in 1..40 {
        let disk = Simulated::default();
        let now = written(&disk, 4);
        let next = Line::Transaction { number: 5, changes: vec![change(5)] }.text();
        disk.damage(&path, |bytes| bytes.extend(&next.as_bytes()[..next.len() - cut]));
        let (mut store, saved) = Store::open(Box::new(disk.clone()), Path::new(DIR), None).unwrap();
        assert_eq!((saved.document.as_ref(), saved.problems.len()), (Some(&now), 0));
        store.go_on(&saved).unwrap();
        store.commit(vec![change(6)]).unwrap();
        assert_eq!(opened(&disk).document, Some(with(&now, change(6))));
    }
}

#[test]
fn a_real_directory_keeps_what_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let held = durable::lock(dir.path(), FILE).unwrap();
    let (mut store, saved) = Store::open(Box::new(Kernel), dir.path(), Some(held)).unwrap();
    assert!(saved.document.is_none());
    store.begin(None, &Document::default()).unwrap();
    store.reserve(1000).unwrap();
    store.commit(vec![change(1)]).unwrap();
    let found = read(&std::fs::read(dir.path().join(FILE)).unwrap()).document.unwrap();
    assert_eq!(found, with(&Document::default(), change(1)));
    drop(store);
    durable::lock(dir.path(), FILE).unwrap();
}

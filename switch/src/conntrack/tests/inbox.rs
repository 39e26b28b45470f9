//! What others tell an owner.

use super::super::MESSAGES;
use super::super::inbox::Inbox;

#[test]
fn what_is_posted_is_taken_once_and_a_full_box_says_so() {
    let inbox = Inbox::new();
    for round in 0..3 {
        for n in 0..MESSAGES {
            assert!(inbox.post(n + round));
        }
        assert!(!inbox.post(1));
        for n in 0..MESSAGES {
            assert_eq!(inbox.take(), Some(n + round));
        }
        assert_eq!(inbox.take(), None);
    }
}

#[test]
fn threads_lose_nothing() {
    let inbox = Inbox::new();
    let mut seen = vec![false; 200_000];
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let inbox = &inbox;
            scope.spawn(move || {
                for n in 0..100_000 {
                    while !inbox.post(n * 2 + thread) {
                        std::thread::yield_now();
                    }
                }
            });
        }
        for _ in 0..200_000 {
            let number = loop {
                match inbox.take() {
                    Some(number) => break number as usize,
                    None => std::thread::yield_now(),
                }
            };
            assert!(!std::mem::replace(&mut seen[number], true), "{number} came twice");
        }
    });
}

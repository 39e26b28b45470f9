//! A line of a file: a checksum, a blank, a text.
#![forbid(unsafe_code)]

use std::fmt::Write;

/// What [`fnv`] begins with.
pub(crate) const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a over eight bytes at a time: against accidents, not against people.
pub(crate) fn fnv(seed: u64, bytes: &[u8]) -> u64 {
    let step = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(23);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(seed, |hash, word| step(hash, u64::from_le_bytes(*word)));
    rest.iter().fold(step(hash, bytes.len() as u64), |hash, &byte| step(hash, byte.into()))
}

/// Writes a line behind others.
pub(crate) fn write(to: &mut String, text: &str) {
    let _ = writeln!(to, "{:016x} {text}", fnv(SEED, text.as_bytes()));
}

/// The text of a line without its line feed; `None`: it is not what was written, or not all of it.
pub(crate) fn read(line: &[u8]) -> Option<&[u8]> {
    let (sum, text) = line.split_at_checked(17)?;
    let sum = u64::from_str_radix(std::str::from_utf8(sum).ok()?.strip_suffix(' ')?, 16).ok()?;
    (sum == fnv(SEED, text)).then_some(text)
}

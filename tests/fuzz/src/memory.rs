//! A guest's memory: two regions side by side in one file, with bytes around them that nobody may change.

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost_backend::memory::GuestMap;

/// Bytes of a region, and of what lies around.
pub const REGION: u64 = 0x4000;
const AROUND: u64 = 0x1000;
/// Guest address of the first region; the second follows it.
pub const GPA: u64 = 0x10_0000;
/// The frontend's address of the first region.
pub const USER: u64 = 0x7000_0000_0000;
const CANARY: u8 = 0xc7;

/// The file and where things are in it.
pub struct Memory {
    /// The memory: canary, first region, canary, second region, canary.
    pub file: File,
}

fn canary(n: u64) -> u64 {
    n * (AROUND + REGION)
}

/// A memfd of `len` zeroes.
pub fn memfd(len: u64) -> File {
    let file = File::from(memfd_create("shunt-fuzz", MFdFlags::MFD_CLOEXEC).expect("memfd_create"));
    file.set_len(len).expect("set_len");
    file
}

impl Memory {
    /// Zeroes.
    #[expect(clippy::new_without_default)]
    pub fn new() -> Self {
        let file = memfd(canary(2) + AROUND);
        for n in 0..3 {
            file.write_all_at(&[CANARY; AROUND as usize], canary(n)).expect("write");
        }
        Self { file }
    }

    /// Zeroes again.
    pub fn clear(&self) {
        for n in 0..2 {
            self.file.write_all_at(&[0; REGION as usize], canary(n) + AROUND).expect("write");
        }
    }

    /// The map of both regions.
    pub fn map(&self) -> GuestMap {
        let second = canary(1) + AROUND;
        GuestMap::empty()
            .with_region(GPA + REGION, REGION, USER + REGION, second, &self.file)
            .and_then(|map| map.with_region(GPA, REGION, USER, AROUND, &self.file))
            .expect("two regions")
    }

    /// Writes bytes at an offset into the regions, counted from the first; behind the second it goes on in the first.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let (mut at, mut bytes) = (at, bytes);
        while !bytes.is_empty() {
            let offset = at % (2 * REGION);
            let room = (REGION - offset % REGION) as usize;
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            let place = canary(offset / REGION) + AROUND + offset % REGION;
            self.file.write_all_at(now, place).expect("write");
            at += now.len() as u64;
            bytes = rest;
        }
    }

    /// Panics if anything was written outside of the regions.
    pub fn check(&self) {
        let mut bytes = [0; AROUND as usize];
        for n in 0..3 {
            self.file.read_exact_at(&mut bytes, canary(n)).expect("read");
            assert!(bytes.iter().all(|&byte| byte == CANARY), "memory outside of region {n} was written");
        }
    }
}

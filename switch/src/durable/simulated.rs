//! A file system in memory that keeps account of what is on its disk: every state that a loss of power may leave behind
//! can be looked at, and every operation can be made to fail.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{Disk, Output};

/// Bytes that reach the disk together.
const BLOCK: usize = 16;

/// What was done, in order.
#[derive(Clone, Debug)]
enum Op {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    SyncDirectory,
    Append(usize, Vec<u8>),
    Truncate(usize, u64),
    Sync(usize),
}

/// Which operation fails, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The number of the first one that fails.
    pub(crate) from: usize,
    /// How many fail.
    pub(crate) count: usize,
    /// ENOSPC, which only what takes room gets, or EIO for all.
    pub(crate) full: bool,
}

#[derive(Debug, Default)]
struct State {
    ops: Vec<Op>,
    /// Operations that were tried, also those that failed.
    tried: usize,
    fault: Option<Fault>,
    names: BTreeMap<PathBuf, usize>,
    files: Vec<Vec<u8>>,
}

/// The file system.
#[derive(Clone, Debug, Default)]
pub(crate) struct Simulated(Arc<Mutex<State>>);

/// An open file.
#[derive(Debug)]
struct Open(Simulated, usize);

/// Numbers that look random (xorshift64*).
#[derive(Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
    }
}

/// What may be found after so many operations.
#[derive(Debug)]
pub(crate) struct Allowed<T>(Vec<Vec<T>>);

impl<T> Default for Allowed<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone> Allowed<T> {
    /// Until now `during`, and from now on `after`.
    pub(crate) fn until(&mut self, ops: usize, during: &[T], after: &[T]) {
        while self.0.len() < ops {
            self.0.push(during.to_vec());
        }
        self.0.truncate(ops);
        self.0.push(after.to_vec());
    }
}

impl Simulated {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Operations so far that changed something.
    pub(crate) fn ops(&self) -> usize {
        self.state().ops.len()
    }

    /// Operations so far that were tried.
    pub(crate) fn tried(&self) -> usize {
        self.state().tried
    }

    pub(crate) fn fail(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.state()
            .names
            .keys()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect()
    }

    /// Changes bytes of a file behind everybody's back.
    pub(crate) fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let file = state.names[path];
        change(&mut state.files[file]);
    }

    /// What a machine may find that lost its power after so many operations. `mode` 0: only what had to be on the disk;
    /// 1: everything; others: something between, any of which a disk may choose.
    fn after_power_loss(&self, ops: usize, mode: usize, dice: &mut Dice) -> Self {
        let state = self.state();
        let mut names: BTreeMap<PathBuf, usize> = BTreeMap::new();
        let mut files: Vec<Vec<u8>> = vec![Vec::new(); state.files.len()];
        let mut waiting: Vec<Vec<Op>> = vec![Vec::new(); state.files.len()];
        let name = |names: &mut BTreeMap<PathBuf, usize>, known: &BTreeMap<PathBuf, usize>, op: &Op| match op
        {
            Op::Create(path, file) => drop(names.insert(path.clone(), *file)),
            Op::Rename(from, to) => {
                if let Some(file) = known.get(from) {
                    names.insert(to.clone(), *file);
                }
                names.remove(from);
            }
            _ => {}
        };
        // What the names really were when a rename was done.
        let mut real: BTreeMap<PathBuf, usize> = BTreeMap::new();
        let mut waiting_names: Vec<(Op, BTreeMap<PathBuf, usize>)> = Vec::new();
        for op in &state.ops[..ops] {
            match op {
                Op::Create(..) | Op::Rename(..) => {
                    waiting_names.push((op.clone(), real.clone()));
                    let known = real.clone();
                    name(&mut real, &known, op);
                }
                Op::SyncDirectory => {
                    for (op, known) in waiting_names.drain(..) {
                        name(&mut names, &known, &op);
                    }
                }
                Op::Append(file, _) | Op::Truncate(file, _) => waiting[*file].push(op.clone()),
                Op::Sync(file) => {
                    for op in waiting[*file].drain(..) {
                        apply(&mut files[*file], &op);
                    }
                }
            }
        }
        // Names reach the disk in any order, data blocks each on its own.
        for (op, known) in waiting_names {
            if mode == 1 || (mode > 1 && dice.roll(2) == 0) {
                name(&mut names, &known, &op);
            }
        }
        for (file, ops) in waiting.into_iter().enumerate() {
            for op in ops {
                match (&op, mode) {
                    (_, 0) => {}
                    (_, 1) => apply(&mut files[file], &op),
                    (Op::Append(_, bytes), _) => {
                        let written = dice.roll(bytes.len() + 1);
                        let keep = if dice.roll(2) == 0 { bytes.len() } else { written };
                        for block in bytes[..keep].chunks(BLOCK) {
                            match dice.roll(3) {
                                0 => files[file].extend(std::iter::repeat_n(0, block.len())),
                                _ => files[file].extend(block),
                            }
                        }
                    }
                    _ if dice.roll(2) == 0 => apply(&mut files[file], &op),
                    _ => {}
                }
            }
        }
        let after = State { names, files, ..State::default() };
        Self(Arc::new(Mutex::new(after)))
    }

    /// Takes account of an operation that is about to be done; what of it is done although it fails.
    fn admit(&self, takes_room: bool) -> Result<MutexGuard<'_, State>, (MutexGuard<'_, State>, io::Error)> {
        let mut state = self.state();
        let number = state.tried;
        state.tried += 1;
        match state.fault {
            Some(fault)
                if (fault.from..fault.from + fault.count).contains(&number)
                    && (takes_room || !fault.full) =>
            {
                let code = if fault.full { libc::ENOSPC } else { libc::EIO };
                Err((state, io::Error::from_raw_os_error(code)))
            }
            _ => Ok(state),
        }
    }

    fn plain(&self, takes_room: bool) -> io::Result<MutexGuard<'_, State>> {
        self.admit(takes_room).map_err(|(_, error)| error)
    }
}

fn apply(file: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Append(_, bytes) => file.extend(bytes),
        Op::Truncate(_, length) => file.truncate(*length as usize),
        _ => {}
    }
}

impl Output for Open {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (mut state, bytes, result) = match self.0.admit(true) {
            Ok(state) => (state, bytes, Ok(())),
            // Half of it is there.
            Err((state, error)) => (state, &bytes[..bytes.len() / 2], Err(error)),
        };
        state.files[self.1].extend(bytes);
        state.ops.push(Op::Append(self.1, bytes.to_vec()));
        result
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.0.plain(false)?;
        state.ops.push(Op::Sync(self.1));
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let mut state = self.0.plain(false)?;
        state.files[self.1].truncate(length as usize);
        state.ops.push(Op::Truncate(self.1, length));
        Ok(())
    }

    fn reserve(&mut self, _: u64, _: u64) -> io::Result<()> {
        self.0.plain(true).map(drop)
    }
}

impl Disk for Simulated {
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let state = self.state();
        Ok(state.names.get(path).map(|file| state.files[*file].clone()))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        let mut state = self.plain(true)?;
        let file = match state.names.get(path) {
            Some(&file) => {
                state.files[file].clear();
                state.ops.push(Op::Truncate(file, 0));
                file
            }
            None => {
                let file = state.files.len();
                state.files.push(Vec::new());
                state.names.insert(path.to_path_buf(), file);
                state.ops.push(Op::Create(path.to_path_buf(), file));
                file
            }
        };
        drop(state);
        Ok(Box::new(Open(self.clone(), file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        let state = self.plain(false)?;
        let file = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        drop(state);
        Ok(Box::new(Open(self.clone(), file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.plain(false)?;
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_path_buf(), file);
        state.ops.push(Op::Rename(from.to_path_buf(), to.to_path_buf()));
        Ok(())
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        let mut state = self.plain(false)?;
        state.ops.push(Op::SyncDirectory);
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.state().names.contains_key(path))
    }
}

/// Looks at every state that a loss of power during a life may leave behind: it must be one of those that are allowed.
/// `found` is what there is on such a disk; the text says which it is.
fn look<T: PartialEq + Debug>(
    disk: &Simulated,
    allowed: &Allowed<T>,
    seed: u64,
    what: &str,
    found: &impl Fn(Simulated, &str) -> T,
) {
    let mut dice = Dice(seed | 1);
    for (ops, allowed) in allowed.0.iter().enumerate() {
        for mode in 0..5 {
            let what = format!("{what}, {ops} operations, mode {mode}");
            let found = found(disk.after_power_loss(ops, mode, &mut dice), &what);
            assert!(allowed.contains(&found), "{what}: {found:?}\n{allowed:?}");
        }
    }
}

/// Has the power go at any moment of a life of a store, with so many seeds of chance.
pub(crate) fn power_may_go<T: PartialEq + Debug>(
    seeds: u64,
    live: impl Fn(&Simulated) -> Allowed<T>,
    found: impl Fn(Simulated, &str) -> T,
) {
    let disk = Simulated::default();
    let allowed = live(&disk);
    assert!(allowed.0.len() > 50, "{}", allowed.0.len());
    for seed in 0..seeds {
        look(&disk, &allowed, seed * 77, "no fault", &found);
    }
}

/// Has any operation of a life fail, or several, for good or not, and the power go besides.
pub(crate) fn any_operation_may_fail<T: PartialEq + Debug>(
    live: impl Fn(&Simulated) -> Allowed<T>,
    found: impl Fn(Simulated, &str) -> T,
) {
    let whole = Simulated::default();
    live(&whole);
    for from in 0..whole.tried() {
        for (count, full) in [(1, false), (1, true), (3, false), (6, true), (1000, true), (1000, false)] {
            let disk = Simulated::default();
            let fault = Fault { from, count, full };
            disk.fail(Some(fault));
            let allowed = live(&disk);
            look(&disk, &allowed, from as u64 * 31 + count as u64, &format!("{fault:?}"), &found);
        }
    }
}

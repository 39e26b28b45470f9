//! Mappings under the interpreter miri, which knows neither files in memory nor signals: memory of the heap, which
//! nobody can take away. What is done with it is the same, and that is what the interpreter checks. The test that plays
//! the guest has no mapping of its own then: it uses this one.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ffi::CStr,
    fs::File,
    io,
};

use super::{MapError, PAGE};

fn layout(len: usize) -> io::Result<Layout> {
    Layout::from_size_align(len, PAGE as usize).map_err(io::Error::other)
}

/// Zeros in the place of a file.
pub(super) fn map(_: &File, _: u64, len: usize) -> io::Result<*mut libc::c_void> {
    assert_ne!(len, 0);
    let layout = layout(len)?;
    // SAFETY: not of size zero.
    let base = unsafe { alloc_zeroed(layout) };
    if base.is_null() {
        handle_alloc_error(layout);
    }
    Ok(base.cast())
}

/// Gives it back.
///
/// # Safety
/// It is from [`map`], with its whole length, and nobody uses it any more.
pub(super) unsafe fn unmap(base: *mut libc::c_void, len: usize) {
    if let Ok(layout) = layout(len) {
        // SAFETY: as the caller says.
        unsafe { dealloc(base.cast(), layout) };
    }
}

/// There is nothing to be made ready.
pub(crate) fn make_ready(_: *mut u8, _: u64) {}

/// An empty file whose length is all that matters.
pub(crate) fn memory_file(name: &CStr) -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("{}-{}", name.to_string_lossy(), std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// As for a memfd.
pub(super) fn page_size(_: &File) -> Result<u64, MapError> {
    Ok(PAGE)
}

/// No file that anybody could truncate.
pub(super) struct Guarded;

impl Guarded {
    /// Does nothing.
    ///
    /// # Safety
    /// Always: it is unsafe because the one for files is.
    pub(super) unsafe fn new(_: usize, _: usize, _: usize) -> io::Result<Self> {
        Ok(Self)
    }

    pub(super) fn poisoned(&self) -> bool {
        false
    }
}

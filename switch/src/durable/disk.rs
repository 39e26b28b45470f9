//! The few things that are asked of a file system, so that tests can put one in its place that fails and forgets.
#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

/// A file that is written at its end.
pub(crate) trait Output: Debug + Send {
    /// Writes all of it at the end, or part of it and then fails.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Returns when everything that was written is on the disk.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts off what is beyond `length`.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// Sees to it that so many bytes more can be written without running out of room.
    fn reserve(&mut self, written: u64, bytes: u64) -> io::Result<()>;
}

/// A file system.
pub(crate) trait Disk: Debug + Send {
    /// The whole of a file; `None` if there is none.
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>>;
    /// An empty file in the place of what there is.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>>;
    /// A file that is there, to be written on.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Output>>;
    /// Gives a file another name, in the place of what bears it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Returns when the names in a directory are on the disk.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// Whether there is something of that name.
    fn exists(&self, path: &Path) -> io::Result<bool>;
}

/// The kernel's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel;

impl Output for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn reserve(&mut self, written: u64, bytes: u64) -> io::Result<()> {
        let (offset, length) = (written.cast_signed(), bytes.cast_signed());
        match fallocate(&*self, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length) {
            // What cannot be reserved may still be there when it is needed.
            Err(nix::Error::EOPNOTSUPP | nix::Error::ENOSYS) => Ok(()),
            other => Ok(other?),
        }
    }
}

impl Disk for Kernel {
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        if let Some(directory) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        // Written at its end wherever that is, as it must be when it was cut off.
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        let file = options.open(path)?;
        file.set_len(0)?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        Ok(Box::new(OpenOptions::new().append(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }
}

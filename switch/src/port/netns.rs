//! Work in a network namespace, given by name (`/run/netns/NAME`, as `ip netns` keeps them) or by path.
//!
//! A thread that entered a namespace stays there, so nobody's thread ever does: the work runs on a short-lived thread
//! of its own. Sockets and TAP descriptors opened there keep belonging to that namespace wherever they are used.
#![forbid(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};

use super::device::OpenError;

/// A network namespace that devices are opened in; keeps it alive.
#[derive(Debug)]
pub struct Netns {
    /// `None`: the namespace of this process.
    entry: Option<(PathBuf, File)>,
    /// Device and inode number of the namespace's file: the same for each way to name it.
    id: (u64, u64),
}

impl Netns {
    /// Opens the namespace `name`: a name in `/run/netns`, or a path when it has a `/`; `None` is our own.
    pub fn open(name: Option<&Path>) -> Result<Self, OpenError> {
        let Some(name) = name else {
            let own = std::fs::metadata("/proc/self/ns/net")
                .map_err(|e| OpenError::system("look up the own network namespace", "a mounted /proc", e))?;
            return Ok(Self { entry: None, id: (own.dev(), own.ino()) });
        };
        let path = if name.as_os_str().as_encoded_bytes().contains(&b'/') {
            name.to_path_buf()
        } else {
            Path::new("/run/netns").join(name)
        };
        let doing = || format!("netns {}", path.display());
        let file = File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => OpenError::Missing {
                what: doing(),
                hint: "give a name that `ip netns list` shows, or the path of a namespace file",
            },
            _ => OpenError::system(doing(), "read permission on that file", e),
        })?;
        let meta =
            file.metadata().map_err(|e| OpenError::system(doing(), "read permission on that file", e))?;
        let netns = Self { entry: Some((path, file)), id: (meta.dev(), meta.ino()) };
        netns.run(|| ())?;
        Ok(netns)
    }

    /// The namespace's file, if it is not our own namespace.
    pub(super) fn file(&self) -> Option<&File> {
        self.entry.as_ref().map(|(_, file)| file)
    }

    /// The namespace `name` by its file, which another process has opened; our own without one.
    pub(super) fn adopt(name: Option<&Path>, file: Option<File>) -> Result<Self, OpenError> {
        let (Some(name), Some(file)) = (name, file) else { return Self::open(name) };
        let doing = || format!("netns {}", name.display());
        let meta = file.metadata().map_err(|e| OpenError::system(doing(), "an open file", e))?;
        let netns = Self { entry: Some((name.to_path_buf(), file)), id: (meta.dev(), meta.ino()) };
        netns.run(|| ())?;
        Ok(netns)
    }

    /// Identifies the namespace within this boot.
    pub(super) fn id(&self) -> (u64, u64) {
        self.id
    }

    /// Whether the other one is the same namespace.
    pub fn is_same(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// Runs `work` in the namespace: here if it is our own, else on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, OpenError> {
        let Some((path, file)) = &self.entry else {
            return Ok(work());
        };
        let doing = || format!("enter network namespace {}", path.display());
        std::thread::scope(|scope| {
            let entered = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok::<_, nix::Error>(work())
            });
            let entered =
                entered.map_err(|e| OpenError::system("start a thread", "a higher limit of tasks", e))?;
            match entered.join() {
                Ok(Ok(done)) => Ok(done),
                Ok(Err(nix::Error::EINVAL)) => Err(OpenError::Invalid {
                    field: "netns",
                    value: path.display().to_string(),
                    rule: "must be the file of a network namespace".into(),
                }),
                Ok(Err(e)) => Err(OpenError::system(doing(), "CAP_SYS_ADMIN", e)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_wrong_namespace_is_named() {
        let line = Netns::open(Some(Path::new("no-such-namespace-here"))).unwrap_err().to_string();
        assert!(line.contains("/run/netns/no-such-namespace-here does not exist"), "{line}");
        if nix::unistd::geteuid().is_root() {
            let line = Netns::open(Some(Path::new("/dev/null"))).unwrap_err().to_string();
            assert_eq!(line, "netns /dev/null: must be the file of a network namespace");
        }
    }
}

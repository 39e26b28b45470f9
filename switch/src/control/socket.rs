//! The control socket as a file: made with mode 0660 in a directory that is made too, taken over when stale, refused
//! when live, gone afterwards.
//!
//! A lock file beside it (`.lock`), held as long as the daemon lives, decides who serves: the kernel lets go of it
//! however the holder ends, so two daemons that start at once cannot both take a stale socket for theirs.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::geteuid;
use vhost_backend::handover::Descriptors;

use super::paths;
use super::peer::Access;
use crate::config::spec::socket_path;
use crate::refusal::Refusal;

/// A listening control socket and its files, which go when it is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
    gid: u32,
    lock: PathBuf,
    locked: File,
    /// The files are ours to remove: not another process' still.
    ours: bool,
}

impl ControlSocket {
    /// Makes the socket at an absolute path, in non-blocking mode.
    ///
    /// # Errors
    /// The path breaks a rule, another process serves there, something else is there, or the kernel refuses.
    pub fn bind(path: &Path) -> Result<Self, Refusal> {
        let at = path.display();
        let refuse = |why: &dyn std::fmt::Display| Refusal::new(format!("control socket {at}: {why}"));
        let text = path.to_str().ok_or_else(|| refuse(&"the path must be UTF-8 text"))?;
        socket_path("control", text)?;
        if let Some(directory) = path.parent() {
            paths::make_directory(directory)?;
        }
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        let locked = take(&lock).map_err(|why| refuse(&why))?;
        let bound = remove_stale(path).and_then(|()| bind_at(path)).map_err(|why| {
            let _ = std::fs::remove_file(&lock);
            refuse(&why)
        })?;
        let (listener, inode, gid) = bound;
        Ok(Self { listener, path: path.to_path_buf(), inode, gid, lock, locked, ours: true })
    }

    /// Describes the socket for another process: its listening socket and its lock.
    ///
    /// # Errors
    /// No descriptors to be had.
    pub fn export(&self, descriptors: &mut Descriptors) -> std::io::Result<()> {
        descriptors.add(&self.listener)?;
        descriptors.add(&self.locked)?;
        Ok(())
    }

    /// The socket at a path, of which another process has handed over listening socket and lock; its files are that
    /// one's until [`ControlSocket::own`].
    ///
    /// # Errors
    /// What came along is something else.
    pub fn resume(path: &Path, descriptors: &mut Descriptors) -> Result<Self, Refusal> {
        let at = path.display();
        let refuse = |why: &dyn std::fmt::Display| Refusal::new(format!("control socket {at}: {why}"));
        let listener = UnixListener::from(descriptors.take(0).map_err(|e| refuse(&e))?);
        let locked = File::from(descriptors.take(1).map_err(|e| refuse(&e))?);
        let address = listener.local_addr().map_err(|e| refuse(&e))?;
        if address.as_pathname() != Some(path) {
            return Err(refuse(&"another socket was handed over"));
        }
        listener.set_nonblocking(true).map_err(|e| refuse(&e))?;
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        let (held, there) = (locked.metadata(), lock.symlink_metadata());
        if !matches!((&held, &there), (Ok(held), Ok(there)) if same(held, there)) {
            return Err(refuse(&"its lock was not handed over"));
        }
        let data = path.symlink_metadata().map_err(|e| refuse(&e))?;
        let (inode, gid) = ((data.dev(), data.ino()), data.gid());
        Ok(Self { listener, path: path.to_path_buf(), inode, gid, lock, locked, ours: false })
    }

    /// The files are ours from now on, and go when this is dropped.
    pub fn own(&mut self) {
        self.ours = true;
    }

    /// Another handle of the listening socket.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn listener(&self) -> std::io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// Who may ask at this socket.
    pub fn access(&self) -> Access {
        Access { uid: geteuid().as_raw(), gid: self.gid }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        // Somebody may have put another socket there meanwhile: that one is not ours to remove.
        if self.path.symlink_metadata().is_ok_and(|m| (m.dev(), m.ino()) == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
        let _ = std::fs::remove_file(&self.lock);
    }
}

fn take(lock: &Path) -> Result<File, String> {
    let trouble = |e: std::io::Error| format!("lock file {}: {e}", lock.display());
    loop {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(lock)
            .map_err(trouble)?;
        match file.try_lock() {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => {
                return Err(
                    "another shuntd serves there: end it, or choose another path with --control".into()
                );
            }
            Err(TryLockError::Error(e)) => return Err(trouble(e)),
        }
        // The holder before us may have removed the file between our opening and locking it.
        let ours = file.metadata().map_err(trouble)?;
        if lock.symlink_metadata().is_ok_and(|m| (m.dev(), m.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), String> {
    match path.symlink_metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.to_string()),
        Ok(data) if !data.file_type().is_socket() => {
            return Err(
                "there is a file that is no socket: remove it, or choose another path with --control".into(),
            );
        }
        Ok(_) => (),
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .map_err(|e| format!("there is a stale socket that cannot be removed: {e}")),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        _ => Err("another process listens there: end it, or choose another path with --control".into()),
    }
}

type Bound = (UnixListener, (u64, u64), u32);

fn bind_at(path: &Path) -> Result<Bound, String> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let bound = || -> Result<OwnedFd, nix::errno::Errno> {
        let descriptor = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // The file gets the mode of the unbound socket, less the umask: it is never open to others, not even briefly.
        fchmod(&descriptor, Mode::from_bits_truncate(0o660))?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&descriptor), &UnixAddr::new(path)?)?;
        Ok(descriptor)
    };
    let descriptor = bound().map_err(|e| format!("cannot be made: {}", e.desc()))?;
    let finish = || -> std::io::Result<Bound> {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        let data = path.symlink_metadata()?;
        listen(&descriptor, Backlog::new(128)?)?;
        Ok((UnixListener::from(descriptor), (data.dev(), data.ino()), data.gid()))
    };
    finish().map_err(|e| {
        let _ = std::fs::remove_file(path);
        format!("cannot be made: {e}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_with_its_directory_and_gone_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/control.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o660);
        assert_eq!(path.parent().unwrap().metadata().unwrap().mode() & 0o027, 0);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn stale_is_replaced_and_live_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.symlink_metadata().is_ok());
        let first = ControlSocket::bind(&path).unwrap();
        let message = ControlSocket::bind(&path).unwrap_err().to_string();
        assert!(message.contains("another shuntd serves there"), "{message}");
        UnixStream::connect(&path).unwrap();
        drop(first);
        let foreign = UnixListener::bind(&path).unwrap();
        let message = ControlSocket::bind(&path).unwrap_err().to_string();
        assert!(message.contains("another process listens there"), "{message}");
        drop(foreign);
        ControlSocket::bind(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        std::fs::write(&path, "precious").unwrap();
        let message = ControlSocket::bind(&path).unwrap_err().to_string();
        assert!(message.contains("no socket"), "{message}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        assert!(!directory.path().join("control.sock.lock").exists());
        let message = ControlSocket::bind(Path::new("control.sock")).unwrap_err().to_string();
        assert!(message.contains("not absolute"), "{message}");
    }

    #[test]
    fn anothers_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }
}

//! The Unix sockets of vhost-user ports: listening with care for what is at the path already, and connecting.

#![forbid(unsafe_code)]

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket,
            sockopt,
        },
        stat::{Mode, fchmod},
    },
};

use crate::device::DeviceError;

/// What the kernel takes as a Unix socket's path, without the final zero.
const MAX_PATH: usize = 107;
/// Owner and group may connect.
const MODE: u32 = 0o660;
/// Frontends that may wait while another one is served.
const BACKLOG: i32 = 8;

/// Checks a path before anything is done with it.
pub(crate) fn check_path(path: &Path) -> Result<(), DeviceError> {
    if !path.is_absolute() {
        return Err(DeviceError::RelativePath(path.into()));
    }
    let len = path.as_os_str().len();
    if len > MAX_PATH {
        return Err(DeviceError::LongPath { path: path.into(), len });
    }
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(DeviceError::Socket {
            path: path.into(),
            what: "use",
            source: io::ErrorKind::InvalidInput.into(),
        });
    }
    Ok(())
}

/// A listening socket; its file goes with it.
pub(crate) struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file: another one at the path is not ours to remove. `None` as long as nothing is.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`, mode 0660. A socket file that nobody listens at any more is replaced.
    pub(crate) fn bind(path: &Path) -> Result<Self, DeviceError> {
        check_path(path)?;
        let failed = |what| move |e: io::Error| DeviceError::Socket { path: path.into(), what, source: e };
        if let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) {
            return Err(DeviceError::NoDirectory { path: path.into(), directory: parent.into() });
        }
        clear(path)?;
        let socket = stream().map_err(failed("make"))?;
        // The file gets the socket's own mode, less the umask: at no time may more than owner and group connect.
        fchmod(&socket, Mode::from_bits_truncate(MODE)).map_err(|e| failed("set the mode of")(e.into()))?;
        let address = UnixAddr::new(path).map_err(|e| failed("use")(e.into()))?;
        match bind(socket.as_raw_fd(), &address) {
            Err(Errno::EADDRINUSE) => return Err(DeviceError::InUse(path.into())),
            bound => bound.map_err(|e| failed("bind")(e.into()))?,
        }
        let file = fs::symlink_metadata(path).map_err(failed("look at"))?;
        let listening =
            Self { listener: socket.into(), path: path.into(), file: Some((file.dev(), file.ino())) };
        // Now for what the umask took away. Listening comes last: until then nobody can connect.
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(failed("set the mode of"))?;
        let backlog = Backlog::new(BACKLOG).map_err(|e| failed("listen at")(e.into()))?;
        listen(&listening.listener, backlog).map_err(|e| failed("listen at")(e.into()))?;
        Ok(listening)
    }

    /// A socket that somebody else listens at, and goes on to until [`Listener::own`].
    pub(crate) fn adopt(listener: UnixListener, path: &Path) -> io::Result<Self> {
        let address = listener.local_addr()?;
        if address.as_pathname() != Some(path) {
            return Err(io::Error::other(format!("it does not listen at {}", path.display())));
        }
        Ok(Self { listener, path: path.into(), file: None })
    }

    /// The file at the path is ours from now on, and goes with the socket.
    pub(crate) fn own(&mut self) {
        let file = fs::symlink_metadata(&self.path).ok();
        self.file = self
            .file
            .or(file.filter(|file| file.file_type().is_socket()).map(|file| (file.dev(), file.ino())));
    }

    /// Another descriptor of the socket, without its file.
    pub(crate) fn try_clone(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// Takes the next connection, blocking in its turn; `None` if there is none after all.
    pub(crate) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                Ok(Some(stream))
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|file| Some((file.dev(), file.ino())) == self.file);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn stream() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}

/// Makes room at `path`, if what is there is a socket that nobody listens at.
fn clear(path: &Path) -> Result<(), DeviceError> {
    let failed = |what, source| DeviceError::Socket { path: path.into(), what, source };
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("look at", e)),
    };
    if !file.file_type().is_socket() {
        return Err(DeviceError::NotASocket(path.into()));
    }
    match self::connect_to(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove the stale", e)),
            _ => Ok(()),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // Connected, or told to wait: somebody is there.
        Ok(_) => Err(DeviceError::InUse(path.into())),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(DeviceError::InUse(path.into())),
        Err(e) => Err(failed("find out who uses", e)),
    }
}

/// Connects without waiting (`WouldBlock`: the other side does not accept right now). The stream blocks.
pub(crate) fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let socket = stream()?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Who is at the other end, for the log.
pub(crate) fn peer(stream: &UnixStream) -> String {
    match getsockopt(stream, sockopt::PeerCredentials) {
        Ok(credentials) => format!("process {}", credentials.pid()),
        Err(_) => "an unknown process".into(),
    }
}

/// Waits until `wanted` can be read (or has ended), `wake` can, or the time is up; says which of the two can.
pub(crate) fn wait(
    wanted: Option<BorrowedFd<'_>>,
    wake: BorrowedFd<'_>,
    timeout: Option<Duration>,
) -> io::Result<(bool, bool)> {
    let timeout = timeout
        .map_or(PollTimeout::NONE, |t| PollTimeout::try_from(t.as_millis()).unwrap_or(PollTimeout::MAX));
    let mut fds =
        [PollFd::new(wake, PollFlags::POLLIN), PollFd::new(wanted.unwrap_or(wake), PollFlags::POLLIN)];
    match poll(&mut fds, timeout) {
        Ok(_) => {
            let ready = |fd: &PollFd<'_>| fd.revents().is_none_or(|events| !events.is_empty());
            Ok((wanted.is_some() && ready(&fds[1]), ready(&fds[0])))
        }
        Err(Errno::EINTR) => Ok((false, false)),
        Err(e) => Err(e.into()),
    }
}

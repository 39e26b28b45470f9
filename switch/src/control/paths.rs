//! Where the control socket and the state are, unless somebody says otherwise: the same for daemon and client.
//!
//! root: `/run/shunt` and `/var/lib/shunt`. Anybody else: `$XDG_RUNTIME_DIR/shunt` and `$XDG_STATE_HOME/shunt`
//! (`~/.local/state/shunt`); without `XDG_RUNTIME_DIR`, `/tmp/shunt-UID`, which must be ours alone.
#![forbid(unsafe_code)]

use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::refusal::Refusal;

/// The control socket of root's daemon.
pub const SYSTEM_SOCKET: &str = "/run/shunt/control.sock";
/// The state of root's daemon.
pub const SYSTEM_STATE: &str = "/var/lib/shunt";
/// The socket's file name.
const SOCKET: &str = "control.sock";

fn absolute(variable: &str) -> Option<PathBuf> {
    // The XDG Base Directory Specification: a relative path there is to be ignored.
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The directory of last resort, for who has no home and no runtime directory.
fn temporary() -> PathBuf {
    PathBuf::from(format!("/tmp/shunt-{}", geteuid()))
}

fn users_socket() -> PathBuf {
    match absolute("XDG_RUNTIME_DIR") {
        Some(directory) => directory.join("shunt").join(SOCKET),
        None => temporary().join(SOCKET),
    }
}

/// The control socket that a daemon makes.
pub fn daemon_socket() -> PathBuf {
    if geteuid().is_root() { PathBuf::from(SYSTEM_SOCKET) } else { users_socket() }
}

/// The control socket that a client looks for: a user's own daemon if there is one, or else root's.
pub fn client_socket() -> PathBuf {
    let is_socket = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.file_type().is_socket());
    let (own, system) = (daemon_socket(), PathBuf::from(SYSTEM_SOCKET));
    if !is_socket(&own) && is_socket(&system) { system } else { own }
}

/// The directory that a daemon keeps its state in.
pub fn state_directory() -> PathBuf {
    if geteuid().is_root() {
        return PathBuf::from(SYSTEM_STATE);
    }
    match absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state"))) {
        Some(directory) => directory.join("shunt"),
        None => temporary().join("state"),
    }
}

/// Makes a directory, with those above it, unless it is there. Below `/tmp` what is there must belong to us and to
/// nobody else, lest another user lies in wait with it.
///
/// # Errors
/// It cannot be made, is no directory, or is somebody else's.
pub fn make_directory(path: &Path) -> Result<(), Refusal> {
    // Before anything is made in it, and once more when it is there.
    check_private(path)?;
    let fallback = path.ancestors().find(|p| *p == temporary());
    let mode = if fallback.is_some() { 0o700 } else { 0o750 };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|e| Refusal::new(format!("directory {} cannot be made: {e}", path.display())))?;
    fallback.map_or(Ok(()), private)
}

/// Refuses a directory of last resort that is not ours alone; a path elsewhere is not looked at.
///
/// # Errors
/// It is a link, somebody else's, or open to others.
pub fn check_private(path: &Path) -> Result<(), Refusal> {
    match path.ancestors().find(|p| *p == temporary()) {
        Some(directory) if directory.symlink_metadata().is_ok() => private(directory),
        _ => Ok(()),
    }
}

fn private(directory: &Path) -> Result<(), Refusal> {
    let at = directory.display();
    let data = directory.symlink_metadata().map_err(|e| Refusal::new(format!("directory {at}: {e}")))?;
    if !data.is_dir() || data.uid() != geteuid().as_raw() || data.mode() & 0o077 != 0 {
        let rule = "it must be a directory of your own with mode 0700: remove it, or set XDG_RUNTIME_DIR";
        return Err(Refusal::new(format!("directory {at} is not safe to use: {rule}")));
    }
    Ok(())
}

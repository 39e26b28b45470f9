//! Files that outlive the daemon, whatever becomes of it: what all of them do alike.
//!
//! A directory belongs to one daemon by a [`lock`]. A file is written beside the old one and takes its place ([`replace`]:
//! write, fsync, rename, fsync of the directory); what changes after that is appended in [`line`]s, each with its checksum,
//! and synchronised. A file that is damaged is set aside under another name ([`set_aside`]). All of it goes through a
//! [`Disk`], in whose place tests put one that fails and forgets (`simulated`).
#![forbid(unsafe_code)]

pub(crate) mod disk;
pub(crate) mod line;
#[cfg(test)]
pub(crate) mod simulated;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use disk::{Disk, Output};

/// Keeps a file of a state directory for one daemon, as long as the lock lives.
///
/// # Errors
/// Another daemon has it, or it cannot be written to.
pub(crate) fn lock(directory: &Path, file: &str) -> io::Result<File> {
    let path = directory.join(format!("{file}.lock"));
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.try_lock().map_err(|error| match error {
        std::fs::TryLockError::Error(error) => error,
        std::fs::TryLockError::WouldBlock => {
            io::Error::other("another shuntd uses it (shuntd --state-dir chooses)")
        }
    })?;
    Ok(file)
}

/// A file that could not be written in the place of another one.
#[derive(Debug)]
pub(crate) struct NotReplaced {
    /// Why.
    pub(crate) error: io::Error,
    /// Whether it has taken the place of the old one nevertheless, though perhaps not on the disk.
    pub(crate) renamed: bool,
}

/// Writes a file in the place of the one that is there: it is on the disk when this returns, to be appended to.
///
/// # Errors
/// It is not; the old one is as it was unless it was [`NotReplaced::renamed`].
pub(crate) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<Box<dyn Output>, NotReplaced> {
    let beside = path.with_extension("new");
    let write = || {
        let mut file = disk.create(&beside)?;
        file.append(bytes)?;
        file.sync()?;
        disk.rename(&beside, path)?;
        Ok(file)
    };
    let file = write().map_err(|error| NotReplaced { error, renamed: false })?;
    match sync_parent(disk, path) {
        Ok(()) => Ok(file),
        Err(error) => Err(NotReplaced { error, renamed: true }),
    }
}

fn sync_parent(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| disk.sync_directory(directory))
}

/// Renames a file to one that is kept for people: `FILE.KIND-TIME`.
///
/// # Errors
/// It cannot be renamed.
pub(crate) fn set_aside(disk: &dyn Disk, path: &Path, kind: &str) -> io::Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let name = format!("{file}.{kind}-{}", timestamp(now));
    let mut aside = path.with_file_name(&name);
    let mut number = 1;
    while disk.exists(&aside)? {
        number += 1;
        aside = path.with_file_name(format!("{name}-{number}"));
    }
    disk.rename(path, &aside)?;
    sync_parent(disk, path)?;
    Ok(aside)
}

/// A moment as `20260131T235959Z` (ISO 8601). Days become dates as in the proleptic Gregorian calendar, counted in eras
/// of 400 years that begin with March.
fn timestamp(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{date:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::disk::Kernel;
    use super::simulated::Simulated;
    use super::*;

    #[test]
    fn a_real_directory_belongs_to_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path(), "state").unwrap();
        assert!(lock(dir.path(), "state").unwrap_err().to_string().contains("another shuntd uses it"));
        let other = lock(dir.path(), "others").unwrap();
        drop((held, other));
        lock(dir.path(), "state").unwrap();
    }

    #[test]
    fn a_real_file_takes_the_place_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for text in ["one", "another"] {
            let mut file = replace(&Kernel, &path, text.as_bytes()).unwrap();
            file.append(b" more").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{text} more"));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::create_dir(dir.path().join("other.new")).unwrap();
        let why = replace(&Kernel, &dir.path().join("other"), b"").unwrap_err();
        assert!(!why.renamed, "{why:?}");
    }

    #[test]
    fn files_are_set_aside_under_names_of_their_own() {
        let disk = Simulated::default();
        let path = Path::new("/state/leases");
        for _ in 0..3 {
            replace(&disk, path, b"x").unwrap();
            let aside = set_aside(&disk, path, "replaced").unwrap();
            assert!(aside.to_str().unwrap().starts_with("/state/leases.replaced-20"), "{aside:?}");
        }
        assert_eq!(disk.names().len(), 3, "{:?}", disk.names());
        assert_eq!(timestamp(Duration::from_secs(0)), "19700101T000000Z");
        assert_eq!(timestamp(Duration::from_secs(951_827_696)), "20000229T123456Z");
        assert_eq!(timestamp(Duration::from_secs(1_798_761_599)), "20261231T235959Z");
    }
}

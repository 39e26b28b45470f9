//! Where the programs under test and the programs they are tested with are found.

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// Path of one of shunt's own programs: the environment variable `override_env`, else the build with the profile
/// `test-release` (optimised, with checks), which `make test` and `make build-test` make.
#[track_caller]
fn own(program: &str, override_env: &str) -> PathBuf {
    let path = std::env::var_os(override_env)
        .map_or_else(|| target().join("test-release").join(program), PathBuf::from);
    assert!(path.exists(), "{} does not exist; build it with `make build-test`", path.display());
    path
}

/// The daemon (`SHUNTD_BIN`).
#[track_caller]
pub fn shuntd() -> PathBuf {
    own("shuntd", "SHUNTD_BIN")
}

/// The command line client (`SHUNTCTL_BIN`).
#[track_caller]
pub fn shuntctl() -> PathBuf {
    own("shuntctl", "SHUNTCTL_BIN")
}

/// The CNI plugin (`SHUNT_CNI_BIN`).
#[track_caller]
pub fn shunt_cni() -> PathBuf {
    own("shunt-cni", "SHUNT_CNI_BIN")
}

/// A file in the tools directory that `scripts/setup-tests.sh` fills (`SHUNT_TEST_TOOLS`).
#[track_caller]
pub fn tool(file: &str) -> PathBuf {
    let path = std::env::var_os("SHUNT_TEST_TOOLS")
        .map_or_else(|| target().join("test-tools"), PathBuf::from)
        .join(file);
    assert!(path.exists(), "{} does not exist; run scripts/setup-tests.sh", path.display());
    path
}

//! Errors as CNI's specification wants them: a number, what it is, and the particulars.

use serde_json::{Value, json};
use shunt_client::client::Failure;

/// The version of the protocol does not fit.
pub(crate) const VERSION: u32 = 1;
/// A field of the configuration is not supported; the message names key and value.
pub(crate) const FIELD: u32 = 2;
/// The container is not known.
pub(crate) const CONTAINER: u32 = 3;
/// An environment variable is missing or wrong; the message names it.
pub(crate) const ENVIRONMENT: u32 = 4;
/// Something cannot be read or written.
pub(crate) const IO: u32 = 5;
/// What was read is not understood.
pub(crate) const DECODE: u32 = 6;
/// The configuration breaks a rule.
pub(crate) const CONFIG: u32 = 7;
/// It may work later.
pub(crate) const LATER: u32 = 11;
/// The plugin cannot serve ADD.
pub(crate) const UNAVAILABLE: u32 = 50;
/// The same, and containers that are there may be cut off.
pub(crate) const CUT_OFF: u32 = 51;
/// Ours: shuntd said no.
pub(crate) const REFUSED: u32 = 100;
/// Ours: an attachment is not as it was made.
pub(crate) const DIFFERENT: u32 = 101;
/// Ours: an IPAM plugin failed without saying how.
pub(crate) const DELEGATE: u32 = 102;

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Error {
    /// The number.
    pub(crate) code: u32,
    /// What it is, in few words.
    pub(crate) msg: String,
    /// The particulars; perhaps empty.
    pub(crate) details: String,
}

impl Error {
    /// An error of this number.
    pub(crate) fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// A configuration that breaks a rule.
    pub(crate) fn config(details: impl Into<String>) -> Self {
        Self::new(CONFIG, "invalid network configuration", details)
    }

    /// Something about the attachment is not as it was made.
    pub(crate) fn different(details: impl Into<String>) -> Self {
        Self::new(DIFFERENT, "the attachment is not as it was made", details)
    }

    /// A file or device that does not do what it should.
    pub(crate) fn io(details: impl ToString) -> Self {
        Self::new(IO, "I/O failure", details.to_string())
    }

    /// The document for standard output.
    pub(crate) fn document(&self, version: &str) -> Value {
        let mut document = json!({"cniVersion": version, "code": self.code, "msg": self.msg});
        if !self.details.is_empty() {
            document["details"] = json!(self.details);
        }
        document
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable(why) => Self::new(LATER, "shuntd is not reachable", why),
            refused => Self::new(REFUSED, "shuntd refused", refused.to_string()),
        }
    }
}

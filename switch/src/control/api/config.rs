//! The whole configuration: as a text, compared with another one, and made what another one says.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::Page;
use crate::config::document::Difference;

parameters! {
    /// All that is configured, as the lines of a configuration file, a page at a time.
    pub struct ConfigShow {
        /// What the page before gave as `next`; without it the listing starts, as of now.
        pub next: Option<u64>,
    }

    /// The beginning of the text of a configuration file that is too long for one request, or what follows it: the next
    /// `config.check`, `config.diff` or `config.apply` of the connection has the end.
    pub struct ConfigPart {
        /// The part.
        pub text: String,
    }

    /// Checks a configuration file as a start with it would, as far as that can be said without its devices.
    pub struct ConfigCheck {
        /// Its name, for messages.
        pub file: Option<String>,
        /// Its text.
        pub text: String,
    }

    /// What would have to change for the switch to be as a configuration file describes.
    pub struct ConfigDiff {
        /// Its name, for messages.
        pub file: Option<String>,
        /// Its text.
        pub text: String,
    }

    /// Makes the switch what a configuration file describes, wholly or not at all, and touches only what differs.
    pub struct ConfigApply {
        /// Its name, for messages.
        pub file: Option<String>,
        /// Its text.
        pub text: String,
    }
}

/// The lines of a configuration file, without their line feeds.
pub type ConfigPage = Page<String>;

/// A file of which more is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigParts {
    /// Bytes that wait for the rest.
    pub waiting: u64,
}

/// A file that is right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigChecked {
    /// Things that it describes.
    pub things: u64,
    /// What it describes and would not be in effect for now; one line each.
    #[serde(default)]
    pub notes: Vec<String>,
}

pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What differs, in an order in which it could be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigDifference {
    /// The things that differ; the first ones, where they are too many for an answer.
    pub changes: Vec<Difference>,
    /// How many more differ.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub further: u64,
    /// What the file says and nobody can change while the daemon runs, or would not be in effect for now; one line each.
    #[serde(default)]
    pub notes: Vec<String>,
}

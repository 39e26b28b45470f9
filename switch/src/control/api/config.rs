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

/// A file that is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigChecked {
    /// Things that it describes.
    pub things: u64,
}

/// What differs, in an order in which it could be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigDifference {
    /// The things that differ.
    pub changes: Vec<Difference>,
    /// What the file says and nobody can change while the daemon runs; one line each.
    #[serde(default)]
    pub notes: Vec<String>,
}

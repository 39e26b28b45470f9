//! The whole configuration.

use std::path::PathBuf;

use clap::Subcommand;

/// `config ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Config {
    /// Prints all that is configured as a configuration file (with --json: as JSON)
    Show,
    /// Checks a configuration file; no daemon is needed
    Check {
        /// The file, or - for standard input
        file: PathBuf,
    },
    /// Tells what would have to change for the switch to be as a file describes: + to be made, - to go, ~ to change
    Diff {
        /// The file, or - for standard input
        file: PathBuf,
    },
    /// Makes the switch what a file describes, wholly or not at all; what does not differ is not touched
    Apply {
        /// The file, or - for standard input
        file: PathBuf,
    },
    /// Writes all that is configured to a file
    Save {
        /// The file; one that is there is replaced as a whole
        file: PathBuf,
    },
}

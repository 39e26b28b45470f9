//! The text of a configuration file as a document.
#![forbid(unsafe_code)]

use std::path::Path;

use super::Document;
use crate::config::Config;
use crate::refusal::Refusal;

impl Document {
    /// What a configuration text describes; `path` is for messages.
    ///
    /// # Errors
    /// What is wrong, with its place.
    pub fn parse(text: &str, path: Option<&Path>) -> Result<Self, Refusal> {
        Config::parse(text, path)?.document()
    }
}

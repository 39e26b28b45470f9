//! The one-line answer to a request that cannot be done.
#![forbid(unsafe_code)]

use std::fmt;

/// Why a request was refused: one line for people that names what was wrong, the value, the rule, and what to do.
///
/// The text starts in lower case and has no full stop: whoever prints it puts the command or the file in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(String);

impl Refusal {
    /// A refusal with this text. Line breaks and other control characters, which a name or a path from outside may
    /// bring, become spaces: the message stays one line.
    pub fn new(text: impl Into<String>) -> Self {
        let mut text = text.into();
        if text.contains(char::is_control) {
            text = text.replace(char::is_control, " ");
        }
        Self(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&str> for Refusal {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_line() {
        assert_eq!(Refusal::new("port \"a\nb\x1b\": no").to_string(), "port \"a b \": no");
    }
}

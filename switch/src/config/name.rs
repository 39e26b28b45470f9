//! Names of ports, bridges and interfaces, and the rules for devices and namespaces of the kernel.
#![forbid(unsafe_code)]

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Most characters of a [`Name`]; the kernel's own limit for device names (IFNAMSIZ less the closing zero).
pub const NAME_MAX: usize = 15;

/// The rule for a [`Name`], as error messages state it.
pub const NAME_RULE: &str =
    "it must be 1 to 15 characters of letters, digits, \"_\", \"-\" and \".\", beginning with a letter";

/// A name of a port, bridge or interface: 1 to 15 ASCII letters, digits, `_`, `-`, `.`, beginning with a letter.
/// Copied like a number: long lists of names allocate nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    bytes: [u8; NAME_MAX],
    len: u8,
}

/// A text that breaks [`NAME_RULE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{NAME_RULE}")]
pub struct BadName;

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        // Only ASCII gets in.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        let starts_with_letter = text.as_bytes().first().is_some_and(u8::is_ascii_alphabetic);
        if text.len() > NAME_MAX || !starts_with_letter || !text.bytes().all(allowed) {
            return Err(BadName);
        }
        let mut bytes = [0; NAME_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { bytes, len: text.len() as u8 })
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // As the text itself: maps are asked by text, too.
        self.as_str().hash(state);
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Name;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Name, E> {
                text.parse().map_err(|rule| E::custom(format_args!("name {text:?}: {rule}")))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// Whether the kernel takes `text` as the name of a network device (`dev_valid_name`), of which `%` would make a
/// template: 1 to 15 bytes, none of them `/`, `:`, `%`, a blank or a control character, and not `.` or `..`.
pub fn is_device(text: &str) -> bool {
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    !text.is_empty() && text.len() <= NAME_MAX && text != "." && text != ".." && !text.contains(forbidden)
}

/// Whether `text` can name a network namespace: an absolute path, or a file name of at most 255 bytes (as
/// `ip netns add` makes them in `/run/netns`).
pub fn is_netns(text: &str) -> bool {
    let file_name = !text.contains('/') && text.len() <= 255 && text != "." && text != "..";
    let path = text.starts_with('/') && text.len() < libc::PATH_MAX as usize;
    !text.is_empty() && !text.contains(char::is_control) && (file_name || path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_rule() {
        for good in ["a", "Z9", "eth0.100", "vm-1_a", "abcdefghijklmno"] {
            let name: Name = good.parse().unwrap();
            assert_eq!(name.as_str(), good);
            assert_eq!(serde_json::from_str::<Name>(&serde_json::to_string(&name).unwrap()).unwrap(), name);
        }
        for bad in ["", "9a", "-a", ".a", "_a", "a b", "a/b", "abcdefghijklmnop", "é", "aé", "a\n", "a\0"] {
            assert_eq!(bad.parse::<Name>(), Err(BadName), "{bad:?}");
        }
    }

    #[test]
    fn names_sort_as_their_text() {
        let mut names: Vec<Name> = ["b", "a-b", "a", "ab", "B"].iter().map(|n| n.parse().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["B", "a", "a-b", "ab", "b"]);
    }

    #[test]
    fn devices_and_namespaces_follow_the_kernel() {
        for good in ["eth0", "0", "tap_é", "a@b"] {
            assert!(is_device(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a:1", "tap%d", "a b", "a\n", "abcdefghijklmnop"] {
            assert!(!is_device(bad), "{bad:?}");
        }
        for good in ["blue", "/proc/1/ns/net", "a.b"] {
            assert!(is_netns(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a\0", "/a\n"] {
            assert!(!is_netns(bad), "{bad:?}");
        }
    }
}

//! The parameters that come in environment variables.

use std::path::PathBuf;

use super::error::{ENVIRONMENT, Error};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Connect a container.
    Add,
    /// Disconnect it.
    Del,
    /// Is it connected as it was?
    Check,
    /// Disconnect all but those that are named.
    Gc,
    /// Could a container be connected?
    Status,
    /// Which versions are spoken?
    Version,
}

/// The parameters; what a command does not need may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    /// `CNI_CONTAINERID`.
    pub(crate) container: String,
    /// `CNI_NETNS`.
    pub(crate) netns: Option<String>,
    /// `CNI_IFNAME`.
    pub(crate) ifname: String,
    /// `CNI_ARGS`, pair by pair.
    pub(crate) args: Vec<(String, String)>,
    /// `CNI_PATH`.
    pub(crate) path: Vec<PathBuf>,
}

/// Whether a text may be a container's id or a network's name (specification, sections 1 and 3).
pub(crate) fn is_identifier(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && text.bytes().all(allowed)
}

/// Whether a text may be the name of a device (linux net/core/dev.c, `dev_valid_name`).
fn is_device(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

impl Environment {
    /// Reads the variables by `get` and checks those that the command needs.
    ///
    /// # Errors
    /// One is missing or wrong; all missing ones are named.
    pub(crate) fn read(get: impl Fn(&str) -> Option<String>) -> Result<(Command, Self), Error> {
        let get = |name| get(name).filter(|value| !value.is_empty());
        let command = match get("CNI_COMMAND").as_deref() {
            Some("ADD") => Command::Add,
            Some("DEL") => Command::Del,
            Some("CHECK") => Command::Check,
            Some("GC") => Command::Gc,
            Some("STATUS") => Command::Status,
            Some("VERSION") => Command::Version,
            Some(other) => {
                return wrong("CNI_COMMAND", other, "it must be ADD, DEL, CHECK, GC, STATUS or VERSION");
            }
            None => return missing(&["CNI_COMMAND"]),
        };
        let needed: &[&str] = match command {
            Command::Add | Command::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Command::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Command::Gc | Command::Status | Command::Version => &[],
        };
        let absent: Vec<&str> = needed.iter().filter(|name| get(name).is_none()).copied().collect();
        if !absent.is_empty() {
            return missing(&absent);
        }
        let text = |name| get(name).unwrap_or_default();
        let (container, ifname) = (text("CNI_CONTAINERID"), text("CNI_IFNAME"));
        if !needed.is_empty() {
            if !is_identifier(&container) {
                let rule = "letters, digits, \"_\", \".\" and \"-\", beginning with a letter or digit";
                return wrong("CNI_CONTAINERID", &container, rule);
            }
            if !is_device(&ifname) {
                return wrong("CNI_IFNAME", &ifname, "a device's name has 1 to 15 bytes, no blank, / or :");
            }
        }
        let args = text("CNI_ARGS");
        let args = args.split(';').filter(|pair| !pair.is_empty()).map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => wrong("CNI_ARGS", pair, "it must be pairs KEY=VALUE, separated by \";\""),
        });
        let args = args.collect::<Result<_, _>>()?;
        let path = text("CNI_PATH");
        let path = path.split(':').filter(|part| !part.is_empty()).map(PathBuf::from).collect();
        Ok((command, Self { container, netns: get("CNI_NETNS"), ifname, args, path }))
    }

    /// The value of a pair of `CNI_ARGS`.
    pub(crate) fn arg(&self, key: &str) -> Option<&str> {
        self.args.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

fn wrong<T>(name: &str, value: &str, rule: &str) -> Result<T, Error> {
    let what = format!("invalid environment variable {name}");
    Err(Error::new(ENVIRONMENT, what, format!("{name} is {value:?}: {rule}")))
}

fn missing<T>(names: &[&str]) -> Result<T, Error> {
    let what = format!("required environment variables missing: {}", names.join(", "));
    Err(Error::new(ENVIRONMENT, what, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<(Command, Environment), Error> {
        Environment::read(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "0a.b-c_d"),
        ("CNI_NETNS", "/run/netns/blue"),
        ("CNI_IFNAME", "eth0"),
    ];

    fn with(name: &'static str, value: &'static str) -> Result<(Command, Environment), Error> {
        read(&ADD.map(|(key, old)| (key, if key == name { value } else { old })))
    }

    #[test]
    fn what_is_needed_is_asked_for() {
        assert_eq!(read(&ADD).map(|(command, _)| command), Ok(Command::Add));
        for (pairs, named) in [
            (&[][..], "CNI_COMMAND"),
            (&[("CNI_COMMAND", "")], "CNI_COMMAND"),
            (&[("CNI_COMMAND", "ADD")], "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"),
            (&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "/x")], "CNI_CONTAINERID, CNI_IFNAME"),
            (&[("CNI_COMMAND", "CHECK"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "b")], "CNI_NETNS"),
        ] {
            let error = read(pairs).unwrap_err();
            assert_eq!(error.code, ENVIRONMENT);
            assert!(error.msg.ends_with(&format!(": {named}")), "{error:?}");
        }
        for command in ["GC", "STATUS", "VERSION"] {
            assert!(read(&[("CNI_COMMAND", command)]).is_ok());
        }
        let without_netns = [ADD[1], ADD[3], ("CNI_COMMAND", "DEL")];
        assert_eq!(read(&without_netns).map(|(_, environment)| environment.netns), Ok(None));
    }

    #[test]
    fn values_have_rules() {
        for (name, good) in
            [("CNI_IFNAME", "a23456789012345"), ("CNI_IFNAME", "..."), ("CNI_CONTAINERID", "7")]
        {
            assert!(with(name, good).is_ok(), "{good}");
        }
        for (name, bad) in [
            ("CNI_COMMAND", "add"),
            ("CNI_CONTAINERID", "-a"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_CONTAINERID", "ä"),
            ("CNI_IFNAME", "."),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "a:b"),
            ("CNI_IFNAME", "a b"),
            ("CNI_IFNAME", "a234567890123456"),
        ] {
            let error = with(name, bad).unwrap_err();
            assert_eq!(error.code, ENVIRONMENT);
            assert!(error.msg.contains(name) && error.details.contains(bad), "{error:?}");
        }
    }

    #[test]
    fn arguments_are_pairs() {
        let of = |args: &'static str| {
            let pairs: Vec<_> = ADD.into_iter().chain([("CNI_ARGS", args)]).collect();
            read(&pairs).map(|(_, environment)| environment)
        };
        let environment = of("IgnoreUnknown=1;IP=10.0.0.1;X=;;").unwrap();
        assert_eq!((environment.arg("IP"), environment.arg("X")), (Some("10.0.0.1"), Some("")));
        assert_eq!(environment.arg("MAC"), None);
        assert!(of("IP").unwrap_err().msg.contains("CNI_ARGS"));
    }
}

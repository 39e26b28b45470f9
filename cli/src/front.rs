//! Under which face the program was called: as `ipvsadm`, by a link of that name or by the word, or as itself.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// What came with a call of `ipvsadm`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Called {
    /// Its words.
    pub(crate) words: Vec<String>,
    /// The name to be used in messages.
    pub(crate) program: String,
    /// `--control` before the word, or SHUNT_CONTROL.
    pub(crate) control: Option<PathBuf>,
    /// `--json` before the word.
    pub(crate) json: bool,
}

/// The words of `ipvsadm`, if that is what was called: they are not for the grammar of the other commands.
pub(crate) fn ipvsadm(arguments: impl Iterator<Item = OsString>) -> Option<Called> {
    let mut arguments = arguments;
    let program = arguments.next()?;
    let text = |word: &OsStr| word.to_string_lossy().into_owned();
    let mut called = Called {
        words: Vec::new(),
        program: "ipvsadm".into(),
        control: std::env::var_os("SHUNT_CONTROL").map(PathBuf::from),
        json: false,
    };
    if Path::new(&program).file_name() == Some(OsStr::new("ipvsadm")) {
        called.program = text(&program);
        called.words = arguments.map(|word| text(&word)).collect();
        return Some(called);
    }
    loop {
        let word = text(&arguments.next()?);
        match word.as_str() {
            "ipvsadm" => break,
            "-j" | "--json" => called.json = true,
            "--control" => called.control = Some(arguments.next()?.into()),
            other => called.control = Some(other.strip_prefix("--control=")?.into()),
        }
    }
    called.words = arguments.map(|word| text(&word)).collect();
    Some(called)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Option<Called> {
        ipvsadm(line.split(' ').map(OsString::from))
    }

    #[test]
    fn ipvsadm_is_called_by_name_or_by_word() {
        for line in ["/usr/sbin/ipvsadm -L -n", "shuntctl ipvsadm -L -n", "shuntctl --json ipvsadm -L -n"] {
            assert_eq!(words(line).unwrap().words, ["-L", "-n"], "{line}");
        }
        let called = words("bin/shuntctl -j --control /run/s.sock ipvsadm --json ipvsadm").unwrap();
        assert_eq!((called.words.join(" ").as_str(), called.json), ("--json ipvsadm", true));
        assert_eq!((called.control, called.program), (Some("/run/s.sock".into()), "ipvsadm".into()));
        assert_eq!(words("shuntctl --control=/a ipvsadm").unwrap().control, Some("/a".into()));
        for line in ["shuntctl", "shuntctl status", "shuntctl --json status ipvsadm", "shuntctl --control"] {
            assert_eq!(words(line), None, "{line}");
        }
        assert_eq!(words("./ipvsadm").unwrap().program, "./ipvsadm");
    }
}

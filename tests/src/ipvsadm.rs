//! `ipvsadm` as `shuntctl` answers to it, and recordings of the real one.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::daemon::Shuntd;
use crate::tools;

/// A text's lines in order, for listings whose order means nothing.
pub fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// What a command line said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Exit status.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// In the form of recordings.
    pub fn recorded(&self) -> String {
        let err: String = self.err.lines().map(|line| format!("stderr: {line}\n")).collect();
        format!("{}{err}[rc={}]\n", self.out, self.status)
    }
}

impl Shuntd {
    /// Runs `shuntctl ipvsadm WORDS` with `input` at its standard input.
    #[track_caller]
    pub fn ipvsadm(&self, words: &[&str], input: &[u8]) -> Said {
        self.said(&tools::shuntctl(), &[&["ipvsadm"], words].concat(), input)
    }

    /// Runs `program`, which is shuntctl under some name, with `input` at its standard input.
    #[track_caller]
    pub fn said(&self, program: &Path, words: &[&str], input: &[u8]) -> Said {
        let mut child = Command::new(program)
            .env("SHUNT_CONTROL", self.path("control.sock"))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("shuntctl cannot be started: {e}"));
        let mut stdin = child.stdin.take();
        let output = std::thread::scope(|scope| {
            scope.spawn(|| {
                // Who has read enough closes.
                let _ = stdin.as_mut().map(|stdin| stdin.write_all(input));
                drop(stdin.take());
            });
            child.wait_with_output()
        });
        let output = output.unwrap_or_else(|e| panic!("shuntctl is lost: {e}"));
        Said {
            status: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The same for a line that must succeed; returns what it printed.
    #[track_caller]
    pub fn vs(&self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let said = self.ipvsadm(&words, b"");
        assert!(said.status == 0 && said.err.is_empty(), "ipvsadm {line}: {said:?}");
        said.out
    }
}

/// A command of a recording.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its words, without the program.
    pub words: Vec<String>,
    /// What it reads.
    pub input: String,
    /// What it says, as [`Said::recorded`].
    pub said: String,
}

/// The commands of a recording: `$ ipvsadm ...`, lines of output, `[rc=N]`.
pub fn recording(text: &str) -> Vec<Recorded> {
    let mut commands = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("### time of") {
            break;
        }
        let Some(command) = line.strip_prefix("$ ipvsadm") else { continue };
        let (command, more) = command.split_once(" <<EOF").map_or((command, false), |(line, _)| (line, true));
        let mut recorded = Recorded {
            words: command.split_whitespace().map(str::to_owned).collect(),
            input: String::new(),
            said: String::new(),
        };
        let append = |text: &mut String, line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        if more {
            lines
                .by_ref()
                .take_while(|line| *line != "EOF")
                .for_each(|line| append(&mut recorded.input, line));
        }
        for line in lines.by_ref() {
            append(&mut recorded.said, line);
            if line.starts_with("[rc=") {
                break;
            }
        }
        commands.push(recorded);
    }
    commands
}

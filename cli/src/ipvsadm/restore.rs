//! Rules from standard input: as one transaction, sent in parts while they are read, or line by line as ipvsadm does
//! it. No line, and no number of lines, takes more than a bounded amount of memory.

use std::io::{BufRead, ErrorKind, Read};

use shunt_switch::control::api::{IpvsApply, IpvsChange};

use super::command::{self, Command, Way};
use super::{Director, FAILED, Session, Stop, failed, is_of_server, kata, words};
use crate::client::Failure;

/// Longest line, in bytes.
const LINE: usize = 65_536;
/// Changes in a request: while the daemon reads one, the next one is made.
const PART: usize = 1024;

/// The lines of a stream, as words.
pub(super) struct Lines<R> {
    from: R,
    /// Number of the last line, from 1.
    pub(super) number: u32,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, number: 0, line: Vec::new() }
    }

    /// The words of the next line that has any, without `ipvsadm`.
    pub(super) fn next(&mut self) -> Result<Option<Vec<String>>, String> {
        loop {
            self.line.clear();
            let limit = LINE as u64 + 1;
            let read = self.from.by_ref().take(limit).read_until(b'\n', &mut self.line);
            match read {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("standard input cannot be read: {error}")),
                Ok(0) => return Ok(None),
                Ok(_) => (),
            }
            self.number = self.number.saturating_add(1);
            let number = self.number;
            let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
            if line.len() > LINE - 1 {
                return Err(format!("line {number}: it is longer than {} bytes, which no rule is", LINE - 1));
            }
            if line.contains(&0) {
                return Err(format!("line {number}: it has a zero byte, which no rule has"));
            }
            let Ok(text) = std::str::from_utf8(line) else {
                return Err(format!("line {number}: it is no UTF-8 text"));
            };
            let words = text.split([' ', '\t', '\r']).filter(|word| !word.is_empty() && *word != "ipvsadm");
            let words: Vec<_> = words.map(str::to_owned).collect();
            if !words.is_empty() {
                return Ok(Some(words));
            }
        }
    }
}

impl<D: Director> Session<'_, D> {
    /// Restores as one transaction. Returns the exit status.
    pub(super) fn restore(&mut self, input: &mut dyn BufRead, replace: bool) -> Result<u8, Stop> {
        let mut lines = Lines::new(input);
        // On which line each change stands, and whether it is one of a server.
        let mut places: Vec<(u32, bool)> = Vec::new();
        let mut due = false;
        loop {
            let part = self.part(&mut lines, &mut places);
            // What is said of earlier lines goes before what is wrong with these.
            if due {
                self.director.answer::<IpvsApply>().map_err(|failure| misplaced(failure, &places))?;
            }
            let (changes, more) = part?;
            let container = self.container.clone();
            let request = IpvsApply { container, changes, more, replace: replace && !more };
            self.director.send(&request).map_err(failed)?;
            if !more {
                let answer = self.director.answer::<IpvsApply>();
                return answer.map(|_| 0).map_err(|failure| misplaced(failure, &places));
            }
            due = true;
        }
    }

    /// The changes of the next lines, and whether more follow.
    fn part(
        &mut self,
        lines: &mut Lines<&mut dyn BufRead>,
        places: &mut Vec<(u32, bool)>,
    ) -> Result<(Vec<IpvsChange>, bool), Stop> {
        let mut part = Vec::with_capacity(PART);
        while part.len() < PART {
            let Some(words) = lines.next().map_err(Stop::usage)? else { return Ok((part, false)) };
            let change = self.restorable(&words).map_err(|stop| stop.at_line(lines.number))?;
            places.push((lines.number, is_of_server(&change)));
            part.push(change);
        }
        Ok((part, true))
    }

    fn restorable(&mut self, words: &[String]) -> Result<IpvsChange, Stop> {
        let line = command::read(words, &self.program, &mut self.names, Way::Route)?;
        if let (true, Command::Change(change)) = (self.kata, &line.command) {
            kata::check_change(change)?;
        }
        match line.command {
            Command::Change(change) if line.container.is_none() => Ok(change),
            _ => Err(Stop::usage(
                "only services, servers and --set can be restored together (--keep-going takes any command)",
            )),
        }
    }

    /// Restores line by line: what the kernel of ipvsadm would refuse is said, and the next line follows; what cannot
    /// be read ends it. The status is that of the last line.
    pub(super) fn restore_lines(&mut self, input: &mut dyn BufRead) -> Result<u8, Stop> {
        let mut lines = Lines::new(input);
        let mut status = 0;
        while let Some(words) = lines.next().map_err(Stop::usage)? {
            status = self.line(&words, None)?;
        }
        Ok(status)
    }
}

/// Why a transaction was refused, with the line that is to blame.
fn misplaced(failure: Failure, places: &[(u32, bool)]) -> Stop {
    let (message, kind, index) = match failure {
        Failure::Known { kind, message, index } => (message, Some(kind), index),
        Failure::Refused(message, index) => (message, None, index),
        other => return failed(other),
    };
    match index.and_then(|index| places.get(usize::try_from(index).ok()?)) {
        Some(&(line, of_server)) => {
            let known = kind.and_then(|kind| words(&kind, of_server));
            Stop::Exit(FAILED, known.map_or(message, str::to_owned)).at_line(line)
        }
        None => Stop::Exit(FAILED, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_words_between_blanks() {
        let text = b"  -A\t-t  x \r\n\n \nipvsadm -C\nipvsadm\n-L ipvsadm -n";
        let mut lines = Lines::new(&text[..]);
        let mut next = || lines.next().unwrap().map(|words| words.join("|"));
        assert_eq!(next().as_deref(), Some("-A|-t|x"));
        assert_eq!(next().as_deref(), Some("-C"));
        assert_eq!(next().as_deref(), Some("-L|-n"));
        assert_eq!(next(), None);
        assert_eq!(lines.number, 6);
    }

    #[test]
    fn what_is_no_line_is_named_by_its_number() {
        let long = [b"-C\n".as_slice(), &vec![b'x'; 1 << 20]].concat();
        let zero = b"-C\n\n-A\0\n".to_vec();
        let bytes = b"\xff\n".to_vec();
        for (text, message) in
            [(long, "line 2: it is longer"), (zero, "line 3: it has a zero"), (bytes, "line 1: it is no")]
        {
            let mut lines = Lines::new(&text[..]);
            let wrong = loop {
                match lines.next() {
                    Ok(words) => assert!(words.is_some(), "{message}"),
                    Err(wrong) => break wrong,
                }
            };
            assert!(wrong.starts_with(message), "{wrong}");
        }
        let longest = vec![b'x'; LINE - 1];
        assert_eq!(Lines::new(&longest[..]).next().unwrap().unwrap()[0].len(), LINE - 1);
    }
}

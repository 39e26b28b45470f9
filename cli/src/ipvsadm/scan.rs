//! The words of a command line, split as popt(3) splits them: its rules differ from those of every parser at hand. An
//! optional value is the next word unless that begins with a dash, `-x=3` is `-x 3`, options and other words mix, long
//! options are not abbreviated, and messages name the last word that was read.
//!
//! A table says which options there are; nothing here knows what they mean.

/// Whether an option has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// None.
    No,
    /// Always.
    Yes,
    /// If the next word does not begin with a dash.
    Maybe,
}

/// An option.
pub(crate) struct Known<T> {
    /// Its name behind two dashes.
    pub(crate) long: &'static str,
    /// Its letter behind one dash.
    pub(crate) short: Option<char>,
    pub(crate) value: Value,
    pub(crate) tag: T,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step<'a, T> {
    Option(T, Option<&'a str>),
    /// No further option.
    End,
    /// The word that is wrong, and why.
    Wrong(&'a str, &'static str),
}

/// Goes through words.
pub(crate) struct Scanner<'a, T: 'static> {
    known: &'static [Known<T>],
    words: &'a [String],
    next: usize,
    /// Letters of a word that are still to be read.
    letters: Option<&'a str>,
    /// `--` was read.
    plain: bool,
    /// Words that are no options.
    others: Vec<&'a str>,
    given: usize,
}

impl<'a, T: Copy> Scanner<'a, T> {
    pub(crate) fn new(known: &'static [Known<T>], words: &'a [String]) -> Self {
        Self { known, words, next: 0, letters: None, plain: false, others: Vec::new(), given: 0 }
    }

    /// The last word that was read.
    pub(crate) fn word(&self) -> &'a str {
        self.next.checked_sub(1).and_then(|last| self.words.get(last)).map_or("", String::as_str)
    }

    /// The next of the words that are no options; to be asked for after the last option.
    pub(crate) fn other(&mut self) -> Option<&'a str> {
        let word = self.others.get(self.given).copied();
        self.given += usize::from(word.is_some());
        word
    }

    /// The next option.
    pub(crate) fn step(&mut self) -> Step<'a, T> {
        loop {
            if let Some(letters) = self.letters.take() {
                return self.letter(letters);
            }
            let Some(word) = self.words.get(self.next) else { return Step::End };
            self.next += 1;
            if self.plain || !word.starts_with('-') || word == "-" {
                self.others.push(word);
            } else if word == "--" {
                self.plain = true;
            } else if let Some(long) = word.strip_prefix("--") {
                return self.long(long);
            } else {
                self.letters = Some(&word[1..]);
            }
        }
    }

    fn wrong(&self, why: &'static str) -> Step<'a, T> {
        Step::Wrong(self.word(), why)
    }

    fn long(&mut self, text: &'a str) -> Step<'a, T> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let Some(known) = self.known.iter().find(|known| known.long == name) else {
            return self.wrong("unknown option");
        };
        match (known.value, value) {
            (Value::No, Some(_)) => self.wrong("option does not take an argument"),
            (Value::No, None) => Step::Option(known.tag, None),
            (_, Some(value)) => Step::Option(known.tag, Some(value)),
            (_, None) => self.valued(known),
        }
    }

    fn letter(&mut self, letters: &'a str) -> Step<'a, T> {
        let mut rest = letters.chars();
        let letter = rest.next();
        let rest = rest.as_str();
        let Some(known) = self.known.iter().find(|known| known.short.is_some() && known.short == letter)
        else {
            return self.wrong("unknown option");
        };
        if known.value == Value::No {
            if rest.starts_with('=') {
                return self.wrong("option does not take an argument");
            }
            self.letters = Some(rest).filter(|rest| !rest.is_empty());
            return Step::Option(known.tag, None);
        }
        match rest {
            "" => self.valued(known),
            rest => Step::Option(known.tag, Some(rest.strip_prefix('=').unwrap_or(rest))),
        }
    }

    /// An option whose value is in the next word.
    fn valued(&mut self, known: &'static Known<T>) -> Step<'a, T> {
        match self.words.get(self.next) {
            None if known.value == Value::Maybe => Step::Option(known.tag, None),
            None => self.wrong("missing argument"),
            Some(word) if known.value == Value::Maybe && word.starts_with('-') => {
                Step::Option(known.tag, None)
            }
            Some(word) => {
                self.next += 1;
                Step::Option(known.tag, Some(word))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Known<char>] = &[
        Known { long: "list", short: Some('L'), value: Value::No, tag: 'L' },
        Known { long: "name", short: Some('n'), value: Value::Yes, tag: 'n' },
        Known { long: "persist", short: Some('p'), value: Value::Maybe, tag: 'p' },
    ];

    fn all(line: &[&str]) -> String {
        let words: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
        let mut scanner = Scanner::new(KNOWN, &words);
        let mut said = String::new();
        loop {
            match scanner.step() {
                Step::Option(tag, None) => said += &format!("{tag} "),
                Step::Option(tag, Some(value)) => said += &format!("{tag}={value:?} "),
                Step::Wrong(word, why) => return said + word + ": " + why,
                Step::End => break,
            }
        }
        while let Some(word) = scanner.other() {
            said += &format!("+{word} ");
        }
        said
    }

    #[test]
    fn words_are_split_as_popt_splits_them() {
        for (line, said) in [
            (&["-L", "-n", "x"][..], "L n=\"x\" "),
            (&["-Lnx"], "L n=\"x\" "),
            (&["-n=x", "--name=", "--name", "-L"], "n=\"x\" n=\"\" n=\"-L\" "),
            (&["-p", "-L", "-p", "5", "-p5", "-p"], "p L p=\"5\" p=\"5\" p "),
            (&["a", "-L", "-", "b", "--", "-L"], "L +a +- +b +-L "),
            (&["-LQ"], "L -LQ: unknown option"),
            (&["--lis"], "--lis: unknown option"),
            (&["--list=3"], "--list=3: option does not take an argument"),
            (&["-L=3"], "-L=3: option does not take an argument"),
            (&["-Ln"], "L -Ln: missing argument"),
            (&["-list"], "-list: unknown option"),
            (&[""], "+ "),
        ] {
            assert_eq!(all(line), said, "{line:?}");
        }
    }
}

//! Long configuration files, in pieces: a parser takes some fifty bytes of memory for each byte of TOML, which a file
//! with a million rules cannot have.
//!
//! The tables of which there are many stand one after the other under headers of their own (`[[route]]`). Runs of them are
//! parsed by themselves, about a mebibyte at a time; what is left, with blanks in their place, is parsed as a whole.
#![forbid(unsafe_code)]

use std::ops::Range;

/// Bytes of a file that is parsed as a whole, and of what else is in a longer one.
pub(super) const WHOLE: usize = 16 << 20;
/// Bytes of a run from which on the next table begins another one; longer tables are none of many.
pub(super) const RUN: usize = 1 << 20;
/// Most tables in runs: more than all routes of both families and all virtual services with their servers.
pub(super) const TABLES: usize = 6_000_000;
/// Headers of the tables of which there are many.
const MANY: &[&str] = &[
    "[[fdb]]",
    "[[neighbour]]",
    "[[route]]",
    "[[policy]]",
    "[[nat.masquerade]]",
    "[[nat.snat]]",
    "[[nat.publish]]",
    "[[nat.one-to-one]]",
    "[[ipvs.service]]",
    "[[ipvs.server]]",
];

/// A file that was cut.
pub(super) struct Pieces {
    /// Where the runs are, in their order; each begins with a header and ends before one, or with the file.
    pub(super) runs: Vec<Range<usize>>,
    /// The file with blanks in their place; `None`: there are no runs.
    pub(super) rest: Option<String>,
    /// How many tables are in runs.
    pub(super) tables: usize,
    /// Bytes of the rest that are none of these blanks.
    pub(super) left: usize,
}

/// Cuts a file that is longer than `whole` into runs of about `run` bytes.
pub(super) fn cut(text: &str, whole: usize, run: usize) -> Pieces {
    if text.len() <= whole {
        return Pieces { runs: Vec::new(), rest: None, tables: 0, left: text.len() };
    }
    let (mut runs, mut tables): (Vec<Range<usize>>, _) = (Vec::new(), 0);
    let mut headers = Headers { text: text.as_bytes(), at: 0 }.peekable();
    while let Some(start) = headers.next() {
        let end = headers.peek().copied().unwrap_or(text.len());
        if end - start > run || !is_many(&text[start..end]) {
            continue;
        }
        tables += 1;
        match runs.last_mut() {
            Some(last) if last.end == start && last.len() < run => last.end = end,
            _ => runs.push(start..end),
        }
    }
    let left = text.len() - runs.iter().map(ExactSizeIterator::len).sum::<usize>();
    let mut rest = String::with_capacity(text.len());
    for run in &runs {
        rest.push_str(&text[rest.len()..run.start]);
        rest.extend(std::iter::repeat_n(' ', run.len()));
    }
    rest.push_str(&text[rest.len()..]);
    Pieces { runs, rest: Some(rest), tables, left }
}

/// Whether a table is one of many, by its header.
fn is_many(table: &str) -> bool {
    let line = table.lines().next().unwrap_or_default().trim();
    let of_container = line.strip_prefix("[[ipvs.container.").is_some_and(|rest| {
        let id = rest.strip_suffix(".service]]").or_else(|| rest.strip_suffix(".server]]"));
        id.is_some_and(|id| id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')))
    });
    MANY.contains(&line) || of_container
}

/// The beginnings of lines with headers. In what is no TOML others may be taken for such: no piece of it is TOML, either.
struct Headers<'a> {
    text: &'a [u8],
    at: usize,
}

impl Headers<'_> {
    /// Goes to the end of a text that ends with `quote`; what is not ended on its line ends with that, unless it may have
    /// many.
    fn pass_text(&mut self, quote: &[u8], escapes: bool) {
        self.at += quote.len();
        while let Some(&byte) = self.text.get(self.at) {
            match byte {
                b'\\' if escapes => self.at += 2,
                b'\n' if quote.len() == 1 => return,
                _ if self.text[self.at..].starts_with(quote) => {
                    self.at += quote.len();
                    // Two more may belong to the text.
                    while quote.len() == 3 && self.text.get(self.at) == Some(&quote[0]) {
                        self.at += 1;
                    }
                    return;
                }
                _ => self.at += 1,
            }
        }
    }
}

impl Iterator for Headers<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        // Whether only blanks came before on this line, and where it begins.
        let (mut fresh, mut line) = (self.at == 0 || self.text.get(self.at - 1) == Some(&b'\n'), self.at);
        let (mut depth, mut found) = (0_usize, None);
        while let Some(&byte) = self.text.get(self.at) {
            match byte {
                b'\n' => {
                    self.at += 1;
                    if found.is_some() {
                        return found;
                    }
                    (fresh, line) = (depth == 0, self.at);
                    continue;
                }
                b' ' | b'\t' | b'\r' => {}
                b'#' => {
                    let rest = &self.text[self.at..];
                    self.at += rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                    continue;
                }
                b'"' | b'\'' => {
                    let three = [byte; 3];
                    let many = self.text[self.at..].starts_with(&three);
                    self.pass_text(if many { &three } else { &three[..1] }, byte == b'"');
                    fresh = false;
                    continue;
                }
                b'[' | b'{' => {
                    if fresh && byte == b'[' && found.is_none() {
                        found = Some(line);
                    }
                    depth += 1;
                    fresh = false;
                }
                b']' | b'}' => {
                    depth = depth.saturating_sub(1);
                    fresh = false;
                }
                _ => fresh = false,
            }
            self.at += 1;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_are_found_and_what_looks_like_one_is_none() {
        let text = "a = 1\n[[route]]\nx = [\n[1],\n[2]]\n  [b] # [c]\ny = \"\"\"\n[no]\n\\\"\"\" \"\"\"\"\nz = '''\n[no]\n'''\nw = \"[\\\"\"\n# [no]\nv = { a = [\n[3]] }\n['d\"']\nu = '[\\'\n[[\"e]\"]]\n";
        let found: Vec<&str> = Headers { text: text.as_bytes(), at: 0 }
            .map(|at| text[at..].lines().next().unwrap().trim())
            .collect();
        assert_eq!(found, ["[[route]]", "[b] # [c]", "['d\"']", "[[\"e]\"]]"]);
    }

    #[test]
    fn runs_are_cut_out_and_the_rest_stays_where_it_is() {
        let route = "[[route]]\nprefix = \"default\"\n";
        let text = format!(
            "{route}[b]\n[[ipvs.container.c-1.server]]\na = 1\n[[ipvs.container.\"c\".server]]\n[[policy]]\n{route}{route}{route}"
        );
        let Pieces { runs, rest, tables, left } = cut(&text, 10, 60);
        assert_eq!(tables, 6);
        let texts: Vec<&str> = runs.iter().map(|run| &text[run.clone()]).collect();
        let two = format!("[[policy]]\n{route}{route}");
        assert_eq!(texts, [route, "[[ipvs.container.c-1.server]]\na = 1\n", &two, route]);
        let rest = rest.unwrap();
        assert_eq!((rest.len(), rest.find("[b]"), left), (text.len(), text.find("[b]"), 34));
        assert_eq!(rest.split_whitespace().collect::<String>(), "[b][[ipvs.container.\"c\".server]]");
        assert_eq!(cut(&text, 1000, 60).runs.len(), 0);
        // One that is longer than a run may be.
        let long = format!("[[route]]\na = \"{}\"\n[[route]]\n", "x".repeat(100));
        let Pieces { runs, .. } = cut(&long, 10, 60);
        let [only] = &runs[..] else { panic!("{runs:?}") };
        assert_eq!(*only, long.len() - 10..long.len());
    }

    proptest! {
        #[test]
        fn any_text_is_cut_into_what_it_is_made_of(
            parts in prop::collection::vec("(\\[\\[route\\]\\]|\\[|\\]|\"|'''|\"\"\"|\\\\|\n|#|=|é| |a){0,12}", 0..40),
        ) {
            let text = parts.concat();
            let Pieces { runs, rest, left, .. } = cut(&text, 0, 20);
            let rest = rest.unwrap_or_else(|| text.clone());
            prop_assert_eq!(rest.len(), text.len());
            let (mut from, mut kept) = (0, 0);
            for run in runs {
                prop_assert_eq!(&rest[from..run.start], &text[from..run.start]);
                prop_assert!(text[run.clone()].trim_start().starts_with("[[route]]"));
                kept += run.start - from;
                from = run.end;
            }
            prop_assert_eq!(&rest[from..], &text[from..]);
            prop_assert_eq!(kept + text.len() - from, left);
        }
    }
}

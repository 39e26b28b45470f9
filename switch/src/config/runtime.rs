//! How many workers there are, where they run and how they poll.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;

/// Most workers.
pub const WORKERS_MAX: usize = 128;
/// Cores are numbered below this (the kernel's CPU_SETSIZE).
pub const CORES_MAX: usize = 1024;

/// The workers of a switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workers {
    /// So many (1 to [`WORKERS_MAX`]), one each on the highest-numbered cores that the process may use.
    Count(usize),
    /// One on each of these cores, bound to it; at least one, at most [`WORKERS_MAX`], none twice, each below
    /// [`CORES_MAX`]. Whether the machine has them and lets us is for who starts the workers to find out.
    Cores(Vec<usize>),
}

impl Default for Workers {
    fn default() -> Self {
        Self::Count(1)
    }
}

impl Workers {
    /// A number of workers, checked.
    pub fn count(n: i64) -> Result<Self, Refusal> {
        match usize::try_from(n) {
            Ok(n) if (1..=WORKERS_MAX).contains(&n) => Ok(Self::Count(n)),
            _ => Err(Refusal::new(format!("workers {n} is out of range: it must be 1 to {WORKERS_MAX}"))),
        }
    }

    /// A list of cores such as `1,3-5`, checked.
    pub fn cores(list: &str) -> Result<Self, Refusal> {
        let rule = format!(
            "it must be a list of core numbers below {CORES_MAX} and ranges of them such as \"1,3-5\", none twice"
        );
        let refusal = || Refusal::new(format!("cores {list:?} is no list of cores: {rule}"));
        let number = |text: &str| match text.parse::<usize>() {
            Ok(n) if n < CORES_MAX && text.bytes().all(|b| b.is_ascii_digit()) => Ok(n),
            _ => Err(refusal()),
        };
        let mut cores = Vec::new();
        for part in list.split(',') {
            let part = part.trim();
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(refusal());
            }
            for core in first..=last {
                if cores.contains(&core) {
                    return Err(refusal());
                }
                cores.push(core);
            }
        }
        if cores.len() > WORKERS_MAX {
            let n = cores.len();
            return Err(Refusal::new(format!(
                "cores {list:?} names {n} cores: there are at most {WORKERS_MAX} workers"
            )));
        }
        Ok(Self::Cores(cores))
    }

    /// How many workers these are.
    pub fn len(&self) -> usize {
        match self {
            Self::Count(n) => *n,
            Self::Cores(cores) => cores.len(),
        }
    }

    /// Never: there is always at least one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Poll {
    /// Polls on for a short while, then sleeps until a queue or a timer wakes it.
    #[default]
    Adaptive,
    /// Polls for ever.
    Busy,
}

impl Poll {
    /// The word of command line, configuration and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Busy => "busy",
        }
    }
}

impl fmt::Display for Poll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Poll {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text {
            "adaptive" => Ok(Self::Adaptive),
            "busy" => Ok(Self::Busy),
            _ => Err(Refusal::new(format!("poll {text:?} is unknown: it must be \"adaptive\" or \"busy\""))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_lists() {
        assert_eq!(Workers::cores("1,3-5").unwrap(), Workers::Cores(vec![1, 3, 4, 5]));
        assert_eq!(Workers::cores("0").unwrap(), Workers::Cores(vec![0]));
        assert_eq!(Workers::cores("7, 2").unwrap(), Workers::Cores(vec![7, 2]));
        assert_eq!(Workers::cores("0-127").unwrap().len(), 128);
        for bad in
            ["", ",", "1,", "a", "-1", "1-", "5-3", "1,1", "1-3,2", "1024", "0-4294967295", "+1", "1-2-3"]
        {
            let message = Workers::cores(bad).unwrap_err().to_string();
            assert!(message.contains(&format!("cores {bad:?}")) && message.contains("must be"), "{message}");
        }
        assert!(Workers::cores("0-128").unwrap_err().to_string().contains("at most 128 workers"));
    }

    #[test]
    fn counts_and_polls() {
        assert_eq!(Workers::count(2).unwrap(), Workers::Count(2));
        assert_eq!(
            Workers::count(0).unwrap_err().to_string(),
            "workers 0 is out of range: it must be 1 to 128"
        );
        assert!(Workers::count(129).is_err() && Workers::count(-1).is_err());
        assert_eq!("busy".parse::<Poll>().unwrap(), Poll::Busy);
        assert!("lazy".parse::<Poll>().unwrap_err().to_string().contains("\"lazy\""));
    }
}

//! The command line of `shuntd`, and what becomes of it, the environment and the file together.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::Parser;

use super::{Config, Poll, Workers};
use crate::control::paths;
use crate::refusal::Refusal;

/// What is logged unless somebody says otherwise.
const LOG_DEFAULT: &str = "info";

/// A userspace L2/L3 switch for the virtual machines of secure containers.
///
/// Without --config it starts with one bridge without ports, shunt0, and on it a gateway 10.0.3.1/24 that gives guests
/// addresses and translates what they send elsewhere. Everything else is made with shuntctl, or described in the
/// configuration file. A command-line option beats the environment, which beats the file. SIGTERM, SIGINT and
/// SIGHUP end it cleanly.
///
/// Exit status: 0 after a clean end; 1 if it cannot start (the reason is on standard error); 2 for wrong usage.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "shuntd", version)]
pub struct Arguments {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Control socket [default: /run/shunt/control.sock; for an ordinary user $XDG_RUNTIME_DIR/shunt/control.sock]
    #[arg(long, value_name = "PATH", env = "SHUNT_CONTROL", hide_env_values = true)]
    pub control: Option<PathBuf>,
    /// Directory for what outlives the daemon [default: /var/lib/shunt; for an ordinary user $XDG_STATE_HOME/shunt]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Number of workers, each on a core of its own [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "cores", allow_hyphen_values = true, value_parser = workers)]
    pub workers: Option<Workers>,
    /// Cores of the workers, one worker each, such as 1,3-5
    #[arg(long, value_name = "LIST", allow_hyphen_values = true, value_parser = Workers::cores)]
    pub cores: Option<Workers>,
    /// What a worker does without work: adaptive (sleep after a while) or busy (poll for ever) [default: adaptive]
    #[arg(long, value_name = "adaptive|busy")]
    pub poll: Option<Poll>,
    /// Set the host up as the way out: the address of the TAP device, forwarding, routes back. Without --config a TAP
    /// device shunt-up with 10.0.4.1/30 is made for it
    #[arg(long)]
    pub host_setup: bool,
    /// Take over from the running daemon whose socket is standard input; it starts this itself ('shuntctl upgrade')
    #[arg(long, hide = true)]
    pub take_over: bool,
    /// What is logged to standard error: error, warn, info, debug, trace, off, or MODULE=LEVEL,... [default: info]
    #[arg(long, value_name = "LEVEL", env = "SHUNT_LOG", hide_env_values = true, value_parser = log)]
    pub log: Option<String>,
}

fn workers(text: &str) -> Result<Workers, Refusal> {
    let number = text.parse().map_err(|_| Refusal::new("it must be a number of 1 to 128"))?;
    Workers::count(number)
}

/// Checks what is to be logged: a level, or levels of modules.
///
/// # Errors
/// A word that is neither.
pub fn log(text: &str) -> Result<String, Refusal> {
    let is_level = |word: &str| matches!(word, "error" | "warn" | "info" | "debug" | "trace" | "off");
    let is_module = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-'))
    };
    let good = |part: &str| match part.split_once('=') {
        Some((module, level)) => is_module(module) && is_level(level),
        None => is_level(part),
    };
    if text.split(',').all(good) {
        return Ok(text.to_owned());
    }
    let rule = "it must be error, warn, info, debug, trace or off, or a list of those and of MODULE=LEVEL";
    Err(Refusal::new(format!("log {text:?} is no level: {rule}")))
}

/// How the daemon is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The workers.
    pub workers: Workers,
    /// How they poll.
    pub poll: Poll,
    /// What is logged, in the words that [`log`] checks.
    pub log: String,
    /// The control socket.
    pub control: PathBuf,
    /// The directory for state, and whether somebody asked for it.
    pub state: (PathBuf, bool),
    /// Whether the host is to be set up as the way out.
    pub host_setup: bool,
}

impl Settings {
    /// Joins command line (and environment) and file.
    ///
    /// # Errors
    /// The file's words for the log are wrong.
    pub fn new(arguments: Arguments, config: &Config) -> Result<Self, Refusal> {
        let from_file = match &config.log {
            Some((at, text)) => Some(log(text).map_err(|refusal| at.refuse(refusal))?),
            None => None,
        };
        let workers = arguments.cores.or(arguments.workers).or_else(|| config.workers.clone());
        let given = |path: Option<PathBuf>| path.filter(|path| !path.as_os_str().is_empty());
        let state = given(arguments.state_dir);
        let asked = state.is_some();
        Ok(Self {
            workers: workers.unwrap_or_default(),
            poll: arguments.poll.or(config.poll).unwrap_or_default(),
            log: arguments.log.or(from_file).unwrap_or_else(|| LOG_DEFAULT.to_owned()),
            control: given(arguments.control).unwrap_or_else(paths::daemon_socket),
            state: (state.unwrap_or_else(paths::state_directory), asked),
            host_setup: arguments.host_setup,
        })
    }
}

/// What clap has to say about a wrong command line, in one line.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let mut words = first.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some(tip) = text.split("\n\n").find_map(|part| part.trim_start().strip_prefix("tip: ")) {
        words = format!("{words}; {}", tip.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments, String> {
        Arguments::try_parse_from([&["shuntd"], words].concat()).map_err(|e| one_line(&e))
    }

    #[test]
    fn the_tree_is_sound() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn options_beat_the_file() {
        let file = "[daemon]\nworkers = 2\npoll = \"busy\"\nlog = \"debug\"\n";
        let config = Config::parse(file, None).unwrap();
        let plain = Settings::new(Arguments::default(), &config).unwrap();
        assert_eq!((plain.workers, plain.poll, plain.log.as_str()), (Workers::Count(2), Poll::Busy, "debug"));
        let words = ["--cores", "1,3", "--poll", "adaptive", "--log", "warn", "--state-dir", "/s"];
        let settings = Settings::new(parse(&words).unwrap(), &config).unwrap();
        assert_eq!(settings.workers, Workers::Cores(vec![1, 3]));
        assert_eq!((settings.poll, settings.log.as_str()), (Poll::Adaptive, "warn"));
        assert_eq!(settings.state, (PathBuf::from("/s"), true));
    }

    #[test]
    fn wrong_options_are_told_in_one_line() {
        for (words, expected) in [
            (&["--workers", "0"][..], "workers 0 is out of range: it must be 1 to 128"),
            (&["--workers", "-1"], "workers -1 is out of range"),
            (&["--workers", "x"], "invalid value 'x' for '--workers <N>': it must be a number of 1 to 128"),
            (&["--cores", "3-1"], "cores \"3-1\" is no list of cores"),
            (&["--poll", "lazy"], "poll \"lazy\" is unknown"),
            (&["--log", "loud"], "log \"loud\" is no level"),
            (&["--workers", "1", "--cores", "1"], "cannot be used with"),
            (
                &["--wrkers", "1"],
                "unexpected argument '--wrkers' found; a similar argument exists: '--workers'",
            ),
        ] {
            let message = parse(words).unwrap_err();
            assert!(message.contains(expected) && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn a_wrong_log_in_the_file_is_named_with_its_line() {
        let config = Config::parse("[daemon]\nlog = \"loud\"\n", None).unwrap();
        let message = Settings::new(Arguments::default(), &config).unwrap_err().to_string();
        assert!(message.starts_with("embedded configuration:2:7: log \"loud\" is no level"), "{message}");
    }
}

//! Requests of the control socket and the configuration file: read and judged, not carried out.

#![forbid(unsafe_code)]

use shunt_switch::config::Config;
use shunt_switch::control::dispatch;
use shunt_switch::control::rpc::{Id, failure};

/// One text, as a line of the control socket and as a configuration file.
pub fn run(data: &[u8]) {
    if let Err(error) = dispatch::read(data) {
        told(&error.message);
        let line = failure(&Id::Null, &error);
        assert!(line.ends_with(b"}\n") && line.iter().filter(|&&byte| byte == b'\n').count() == 1);
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Err(refusal) = Config::parse(text, None)
    {
        told(&refusal.to_string());
    }
}

/// What is said to people is one line, and says something.
fn told(message: &str) {
    assert!(!message.trim().is_empty() && !message.contains(['\n', '\r', '\0', '\u{1b}']), "{message:?}");
}

//! QEMU's machine protocol: one JSON object a line, each command answered in turn, events in between.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// One connection to a QEMU.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects and leaves the negotiation mode.
    pub fn connect(path: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut qmp = Self { stream: BufReader::new(stream), events: Vec::new() };
        let greeting = qmp.read(Duration::from_secs(20))?;
        if greeting.get("QMP").is_none() {
            return Err(format!("no QMP greeting: {greeting}"));
        }
        qmp.command("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn read(&mut self, limit: Duration) -> Result<Value, String> {
        let limit = limit.max(Duration::from_millis(1));
        self.stream.get_ref().set_read_timeout(Some(limit)).map_err(|e| e.to_string())?;
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err("QMP connection closed".to_owned()),
            Ok(_) => serde_json::from_str(&line).map_err(|e| format!("{line}: {e}")),
            Err(e) => Err(format!("QMP: {e}")),
        }
    }

    /// Executes `name` and returns its value.
    pub fn command(&mut self, name: &str, arguments: Value) -> Result<Value, String> {
        let text = json!({"execute": name, "arguments": arguments}).to_string() + "\n";
        self.stream.get_mut().write_all(text.as_bytes()).map_err(|e| format!("QMP {name}: {e}"))?;
        loop {
            let mut answer = self.read(Duration::from_secs(20))?;
            if answer.get("event").is_some() {
                self.events.push(answer);
            } else if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            } else {
                return Err(format!("QMP {name}: {answer}"));
            }
        }
    }

    /// Waits for an event, which may have come already.
    pub fn event(&mut self, name: &str, limit: Duration) -> Result<Value, String> {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(at));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("no QMP event {name}"));
            }
            let message = self.read(left)?;
            if message.get("event").is_some() {
                self.events.push(message);
            }
        }
    }
}

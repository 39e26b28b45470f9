//! Another plugin's addresses: the delegated execution of an IPAM plugin (specification, section 4).

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::environment::Environment;
use super::error::{CONFIG, DECODE, DELEGATE, Error, IO};
use super::result::Success;

/// An IPAM plugin with what it is to be called with.
pub(crate) struct Ipam<'a> {
    program: PathBuf,
    input: &'a [u8],
}

impl<'a> Ipam<'a> {
    /// Finds the plugin `kind` in `CNI_PATH`; `input` is the whole configuration.
    ///
    /// # Errors
    /// It is in none of those directories.
    pub(crate) fn find(kind: &str, environment: &Environment, input: &'a [u8]) -> Result<Self, Error> {
        let program =
            environment.path.iter().map(|directory| directory.join(kind)).find(|path| path.is_file());
        program.map(|program| Self { program, input }).ok_or_else(|| {
            let path: Vec<_> = environment.path.iter().map(|path| path.display().to_string()).collect();
            let details =
                format!("ipam.type {kind:?} is in none of the directories of CNI_PATH ({})", path.join(", "));
            Error::new(CONFIG, "no such IPAM plugin", details)
        })
    }

    /// Executes it with `command` in the environment that we have; its standard error is ours.
    ///
    /// # Errors
    /// It cannot be executed, or fails; its own number and words are passed on.
    fn run(&self, command: &str) -> Result<Vec<u8>, Error> {
        let name = self.program.display();
        let failed =
            |error: std::io::Error| Error::new(IO, format!("cannot execute {name}"), error.to_string());
        let mut child = Command::new(&self.program)
            .env("CNI_COMMAND", command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(self.input) {
                // It need not read all of it.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => (),
                other => other.map_err(failed)?,
            }
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let told: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        let text = |key: &str| told.as_ref()?.get(key)?.as_str().map(str::to_owned);
        let code = told.as_ref().and_then(|told| told.get("code")?.as_u64()?.try_into().ok());
        let msg = text("msg").unwrap_or_else(|| format!("{} without a word", output.status));
        Err(Error::new(
            code.unwrap_or(DELEGATE),
            format!("{name}: {msg}"),
            text("details").unwrap_or_default(),
        ))
    }

    /// Gets addresses. If that fails, what may have been taken is given back.
    ///
    /// # Errors
    /// The plugin fails, or its answer is not understood or holds no address.
    pub(crate) fn add(&self) -> Result<Success, Error> {
        let name = self.program.display();
        let answer = self.run("ADD").and_then(|output| {
            let result: Success = serde_json::from_slice(&output).map_err(|e| {
                Error::new(DECODE, format!("the result of {name} is not understood"), e.to_string())
            })?;
            match result.ips.is_empty() {
                true => Err(Error::new(DELEGATE, format!("{name} gave no address"), "")),
                false => Ok(result),
            }
        });
        answer.inspect_err(|_| {
            let _ = self.run("DEL");
        })
    }

    /// Has it do anything that gives no result: `DEL`, `CHECK`, `GC`, `STATUS`.
    ///
    /// # Errors
    /// It fails.
    pub(crate) fn have(&self, command: &str) -> Result<(), Error> {
        self.run(command).map(|_| ())
    }
}

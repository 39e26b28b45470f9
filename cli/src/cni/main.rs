//! `shunt-cni`: the plugin by which container runtimes connect containers to shunt, after the specification 1.1 of the
//! Container Network Interface, and of it the versions from 0.3.0 on.
//!
//! A call is one command in the environment, one configuration on standard input, one document on standard output. What
//! is made for a container is written down before it is made (`store`), so that DEL and GC undo all of it however a call
//! ended; ADD undoes itself when it fails.
#![forbid(unsafe_code)]

mod call;
mod check;
mod config;
mod environment;
mod error;
mod ipam;
mod make;
mod pool;
mod result;
mod store;
mod undo;

use std::io::{Read, Write};
use std::process::ExitCode;

use call::Call;
use config::Config;
use environment::{Command, Environment};
use error::{DECODE, Error, VERSION};
use result::{NEWEST, VERSIONS, at_least};
use serde_json::{Value, json};

/// Most bytes of a configuration.
const INPUT_MAX: u64 = 16 << 20;

fn main() -> ExitCode {
    if let Some(word) = std::env::args().nth(1) {
        let version = env!("CARGO_PKG_VERSION");
        let spoken = VERSIONS.join(", ");
        return match word.as_str() {
            "--version" => {
                print(&format!("shunt-cni {version}\nCNI protocol versions supported: {spoken}\n"), true)
            }
            _ => {
                eprintln!(
                    "shunt-cni: called by container runtimes, with CNI_COMMAND and a configuration on standard \
                     input; see docs/cni.md"
                );
                ExitCode::from(2)
            }
        };
    }
    let (version, outcome) = serve();
    match outcome {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(document)) => print(&format!("{document:#}\n"), true),
        Err(error) => print(&format!("{:#}\n", error.document(&version)), false),
    }
}

/// Writes the answer; a runtime that does not hear of a success takes it for a failure.
fn print(text: &str, success: bool) -> ExitCode {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) if success => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("shunt-cni: the answer cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The version to answer in, and the answer.
fn serve() -> (String, Result<Option<Value>, Error>) {
    let mut version = NEWEST.to_owned();
    let outcome = (|| {
        let (command, environment) = Environment::read(|name| std::env::var(name).ok())?;
        let mut input = Vec::new();
        std::io::stdin()
            .lock()
            .take(INPUT_MAX + 1)
            .read_to_end(&mut input)
            .map_err(|error| Error::io(format!("cannot read the configuration: {error}")))?;
        if input.len() as u64 > INPUT_MAX {
            let details = format!("it is longer than {INPUT_MAX} bytes");
            return Err(Error::new(DECODE, "failed to decode the network configuration", details));
        }
        if command == Command::Version {
            return Ok(Some(versions(&input)));
        }
        if let Some(known) = config::version_of(&input) {
            version = known.to_owned();
        }
        let config = Config::read(&input)?;
        let since = match command {
            Command::Check => "0.4.0",
            Command::Gc | Command::Status => "1.1.0",
            Command::Add | Command::Del | Command::Version => "0.3.0",
        };
        if !at_least(config.version(), since) {
            let details = format!("the configuration's is {}, the command is of {since}", config.version());
            return Err(Error::new(VERSION, "incompatible CNI version", details));
        }
        let call = Call { environment: &environment, config: &config, input: &input };
        match command {
            Command::Add => call.add().map(|success| Some(success.document(config.version()))),
            Command::Del => call.del().map(|()| None),
            Command::Check => call.check().map(|()| None),
            Command::Gc => call.gc().map(|()| None),
            Command::Status => call.status().map(|()| None),
            Command::Version => Ok(None),
        }
    })();
    (version, outcome)
}

/// The answer to VERSION: the version that was asked in, whatever it is, and those that are spoken.
fn versions(input: &[u8]) -> Value {
    let asked: Option<Value> = serde_json::from_slice(input).ok();
    let asked = asked.as_ref().and_then(|document| document.get("cniVersion")?.as_str()).unwrap_or(NEWEST);
    json!({"cniVersion": asked, "supportedVersions": VERSIONS})
}

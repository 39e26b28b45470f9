//! The whole configuration.
#![forbid(unsafe_code)]

use std::path::Path;

use super::super::api;
use super::super::rpc::Error;
use super::{At, Handle};
use crate::config::Config;
use crate::refusal::Refusal;

fn read(file: Option<&String>, text: &str) -> Result<Config, Refusal> {
    Config::parse(text, Some(Path::new(file.map_or("configuration", String::as_str))))
}

/// What of a file has no effect on a daemon that runs.
fn notes(config: &Config) -> Vec<String> {
    let daemon = config.workers.is_some() || config.poll.is_some() || config.log.is_some();
    let note = "[daemon] says how a daemon starts: it changes nothing now";
    daemon.then(|| note.to_owned()).into_iter().collect()
}

impl Handle for api::ConfigShow {
    fn handle(self, at: &mut At<'_>) -> Result<api::ConfigPage, Error> {
        at.dispatcher.listings.page(at.connection, self.next, || {
            let text = at.switch.configuration().to_toml()?;
            Ok(text.lines().map(str::to_owned).collect())
        })
    }
}

impl Handle for api::ConfigCheck {
    fn handle(self, _: &mut At<'_>) -> Result<api::ConfigChecked, Error> {
        let document = read(self.file.as_ref(), &self.text)?.document()?;
        Ok(api::ConfigChecked { things: document.entries.len() as u64 })
    }
}

impl Handle for api::ConfigDiff {
    fn handle(self, at: &mut At<'_>) -> Result<api::ConfigDifference, Error> {
        let config = read(self.file.as_ref(), &self.text)?;
        let notes = notes(&config);
        let (present, wanted) = at.switch.wanted(&config)?;
        Ok(api::ConfigDifference { changes: present.difference(&wanted), notes })
    }
}

impl Handle for api::ConfigApply {
    fn handle(self, at: &mut At<'_>) -> Result<api::ConfigDifference, Error> {
        let config = read(self.file.as_ref(), &self.text)?;
        let changes = at.switch.apply_configuration(&config)?;
        tracing::info!("configuration applied: {} things changed", changes.len());
        Ok(api::ConfigDifference { changes, notes: notes(&config) })
    }
}

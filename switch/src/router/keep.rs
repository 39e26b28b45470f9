//! What is configured outlives the daemon: what has changed is written down before whoever asked for it hears of it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use super::reconcile::{Failed, Wanted};
use crate::config::document::{Difference, Document, Entry, Key};
use crate::config::file::UPLINK;
use crate::config::{Config, Name};
use crate::durable;
#[cfg(test)]
use crate::durable::disk::Disk;
use crate::durable::disk::Kernel;
use crate::l3::route::rib::Which;
use crate::refusal::Refusal;
use crate::saved::{self, Change, Saved, Store};
use crate::switch::Switch;

/// How long what could not be made at the start waits before it is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Bytes that a change may have beyond those of its request.
const BEYOND: u64 = 256 << 10;

/// What is kept, and what is not yet.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    store: Option<Store>,
    /// What things were before they were touched, since the last commit.
    touched: Vec<Change>,
    known: HashSet<Key>,
    /// Things that are configured and could not be made at the start.
    unmade: BTreeMap<Key, (Entry, Refusal)>,
    tried: Option<Instant>,
    /// What people should know of the start.
    problems: Vec<String>,
    /// Why nothing can be saved now.
    failing: Option<String>,
    /// Changes are not looked at: they are those of the start.
    starting: bool,
}

impl Keeper {
    pub(crate) fn new() -> Self {
        Self { starting: true, ..Self::default() }
    }

    /// What was touched since the last commit, as it was.
    pub(crate) fn touched(&self) -> &[Change] {
        &self.touched
    }

    fn clear(&mut self) -> Vec<Change> {
        self.known.clear();
        std::mem::take(&mut self.touched)
    }
}

impl Switch {
    /// Takes note of a thing that is about to change, or to come or go. To be called before.
    pub(crate) fn touch(&mut self, key: Key) {
        if self.keeper.starting || self.keeper.known.contains(&key) {
            return;
        }
        let before = self.kept(&key);
        self.keeper.known.insert(key.clone());
        self.keeper.touched.push((key, before));
    }

    /// The same of many.
    pub(crate) fn touch_all(&mut self, keys: impl Iterator<Item = Key>) {
        if !self.keeper.starting {
            keys.for_each(|key| self.touch(key));
        }
    }

    /// The same of a thing that has just been made, and was not there before.
    pub(crate) fn touch_new(&mut self, key: Key) {
        if !self.keeper.starting && self.keeper.known.insert(key.clone()) {
            self.keeper.touched.push((key, None));
        }
    }

    /// The same of DHCP on an interface.
    pub(crate) fn touch_dhcp(&mut self, interface: &str) {
        if let Some(name) = self.router.interfaces.get(interface).map(|interface| interface.name) {
            self.touch(Key::Dhcp(name));
        }
    }

    /// The same of ports, and of what goes with them.
    pub(crate) fn touch_ports(&mut self, names: &[Name]) {
        if self.keeper.starting {
            return;
        }
        let numbers: HashSet<u16> =
            names.iter().filter_map(|name| Some(self.ports.get(name)?.port.number())).collect();
        let keys: Vec<Key> = self.fixed_addresses(|number| numbers.contains(&number)).collect();
        keys.into_iter().chain(names.iter().copied().map(Key::Port)).for_each(|key| self.touch(key));
    }

    /// The same of an interface.
    pub(crate) fn touch_interface(&mut self, name: &str) {
        let Some(interface) = self.router.interfaces.get(name) else { return };
        let (name, index) = (interface.name, interface.index);
        let of_it = self.router.neighbours.keys().filter(|(interface, _)| *interface == name);
        let mut keys: Vec<Key> = of_it.map(|(name, address)| Key::Neighbour(*name, *address)).collect();
        if !self.keeper.starting {
            keys.extend(self.router.route_keys(&Which { interface: Some(index), ..Which::default() }));
        }
        keys.extend([Key::Interface(name), Key::Dhcp(name)]);
        keys.into_iter().for_each(|key| self.touch(key));
    }

    /// The same of static routes.
    pub(crate) fn touch_routes(&mut self, which: &Which) {
        if !self.keeper.starting {
            self.router.route_keys(which).into_iter().for_each(|key| self.touch(key));
        }
    }

    /// A thing as it is kept: as it is, or as it is to be when it can be made.
    fn kept(&self, key: &Key) -> Option<Entry> {
        let unmade = || self.keeper.unmade.get(key).map(|(entry, _)| entry.clone());
        self.describe(key).or_else(unmade)
    }

    /// All that is configured, also what could not be made at the start.
    pub fn configuration(&self) -> Document {
        let mut document = self.document();
        for (key, (entry, _)) in &self.keeper.unmade {
            document.entries.entry(key.clone()).or_insert_with(|| entry.clone());
        }
        document
    }

    /// What people should know: what is not as it should be.
    pub(crate) fn problems(&self) -> Vec<String> {
        let keeper = &self.keeper;
        let failing = keeper.failing.iter().map(|why| format!("changes are refused: {why}"));
        let unmade = keeper.unmade.values().map(|(_, why)| format!("{why}; it is tried again"));
        failing.chain(keeper.problems.iter().cloned()).chain(unmade).collect()
    }

    /// Forgets a thing that could not be made at the start; false if there is none of that key.
    pub(crate) fn forget_unmade(&mut self, key: &Key) -> bool {
        if !self.keeper.unmade.contains_key(key) {
            return false;
        }
        self.touch(key.clone());
        self.keeper.unmade.remove(key).is_some()
    }

    // ---- start --------------------------------------------------------------------------------------------------

    /// Configures a switch that has just been started: as it was when it ended, or, where it never ran or `file` says
    /// something else than the last time, as `file` says (or else the configuration that is embedded in the program).
    ///
    /// # Errors
    /// The file cannot be had as a whole, or another daemon uses the state directory.
    pub fn begin(&mut self, file: Option<Config>, uplink: bool) -> Result<(), Refusal> {
        let directory = self.state.clone();
        let refuse = |path: &Path| {
            let path = path.to_path_buf();
            move |error: std::io::Error| Refusal::new(format!("state-dir {}: {error}", path.display()))
        };
        let opened = match &directory {
            None => None,
            Some(path) => {
                let lock = durable::lock(path, saved::FILE).map_err(refuse(path))?;
                Some(Store::open(Box::new(Kernel), path, Some(lock)).map_err(refuse(path))?)
            }
        };
        self.begin_with(opened, file, uplink)
    }

    /// The same on a file system of a test's own.
    #[cfg(test)]
    pub(crate) fn begin_on(
        &mut self,
        disk: Box<dyn Disk>,
        directory: &Path,
        file: Option<Config>,
    ) -> Result<(), Refusal> {
        let opened = Store::open(disk, directory, None).map_err(|error| Refusal::new(error.to_string()))?;
        self.begin_with(Some(opened), file, false)
    }

    fn begin_with(
        &mut self,
        opened: Option<(Store, Saved)>,
        file: Option<Config>,
        uplink: bool,
    ) -> Result<(), Refusal> {
        let described = file.as_ref().map(Config::document).transpose()?;
        let (mut store, mut saved) = opened.unzip();
        let before = saved.as_ref().and_then(|saved| saved.base);
        let base = described.as_ref().map(saved::fingerprint).or(before);
        let mut document = None;
        if let Some(saved) = &mut saved {
            self.keeper.problems.append(&mut saved.problems);
            document = saved.document.take();
        }
        let stale = document.is_some() && base != before && document != described;
        if let Some(store) = store.as_mut().filter(|_| stale) {
            let aside = store.set_aside("replaced").map_err(|error| not_saved(store, &error))?;
            self.keeper.problems.push(format!(
                "the configuration file is another one than at the last start: what was configured then, and changed by commands, is kept as {}",
                aside.display()
            ));
            document = None;
        }
        let restored = document.is_some();
        match document {
            Some(mut document) => {
                if uplink && !document.entries.contains_key(&Key::Bridge(uplink_bridge()?)) {
                    for (key, entry) in Document::parse(UPLINK, None)?.entries {
                        document.entries.entry(key).or_insert(entry);
                    }
                }
                self.restore(document);
            }
            None => self.configure(file.map_or_else(|| Config::embedded(uplink), Ok)?)?,
        }
        for problem in &self.keeper.problems {
            tracing::warn!("{problem}");
        }
        for (_, why) in self.keeper.unmade.values() {
            tracing::error!("{why}; it is tried again");
        }
        if let Some(mut store) = store {
            let begun = store.begin(base, &self.configuration()).or_else(|error| match &saved {
                // What is there is as good, but for its length.
                Some(saved) if restored && base == before => store.go_on(saved).map_err(|_| error),
                _ => Err(error),
            });
            if let Err(error) = begun {
                self.note_failing(&store, &error);
            }
            self.keeper.store = Some(store);
        }
        self.keeper.starting = false;
        Ok(())
    }

    /// Makes what was saved, as far as it goes: what cannot be made now is kept, and tried again.
    fn restore(&mut self, document: Document) {
        let mut wanted: Wanted =
            document.entries.into_iter().map(|(key, entry)| (key, Some(entry))).collect();
        let failed = self.reconcile(wanted.clone(), false);
        let mut why: BTreeMap<Key, Refusal> = failed.into_iter().collect();
        wanted.retain(|key, entry| self.describe(key) != *entry);
        for (key, entry) in wanted {
            let refusal =
                why.remove(&key).unwrap_or_else(|| Refusal::new(format!("{key}: it is not as it was saved")));
            if let Some(entry) = entry {
                self.keeper.unmade.insert(key, (entry, refusal));
            }
        }
        self.keeper.tried = Some(Instant::now());
    }

    /// To be called about once a second: makes what could not be made before, and keeps the file short.
    pub(crate) fn tick_keeper(&mut self) {
        if !self.keeper.unmade.is_empty() && self.keeper.tried.is_none_or(|tried| tried.elapsed() > RETRY) {
            self.keeper.tried = Some(Instant::now());
            self.retry();
        }
        let broken = self.keeper.store.as_ref().is_some_and(|store| store.is_broken() || store.is_long());
        if broken && self.keeper.touched.is_empty() {
            let _ = self.write_anew();
        }
    }

    fn retry(&mut self) {
        let wanted: Wanted =
            self.keeper.unmade.iter().map(|(key, (entry, _))| (key.clone(), Some(entry.clone()))).collect();
        let mut why: BTreeMap<Key, Refusal> = BTreeMap::new();
        for (key, entry) in wanted {
            why.extend(self.reconcile(Wanted::from([(key, entry)]), false));
        }
        let keys: Vec<Key> = self.keeper.unmade.keys().cloned().collect();
        for key in keys {
            if self.describe(&key).is_some() {
                tracing::info!("{key} could be made now");
                self.keeper.unmade.remove(&key);
            } else if let (Some(why), Some(kept)) = (why.remove(&key), self.keeper.unmade.get_mut(&key)) {
                kept.1 = why;
            }
        }
        // Nothing has changed of what is kept.
        self.keeper.clear();
    }

    // ---- commands -----------------------------------------------------------------------------------------------

    /// Sees to it that a change that a request of so many bytes asks for can be saved.
    ///
    /// # Errors
    /// It could not.
    pub fn prepare_change(&mut self, bytes: usize) -> Result<(), Refusal> {
        if self.keeper.store.as_ref().is_some_and(Store::is_broken) {
            self.write_anew()?;
        }
        let Some(store) = &mut self.keeper.store else { return Ok(()) };
        store.reserve(8 * bytes as u64 + BEYOND).map_err(|error| not_saved(store, &error))
    }

    /// Has the disk keep what has changed since the last time.
    ///
    /// # Errors
    /// It does not: what has changed is undone.
    pub fn commit(&mut self) -> Result<(), Refusal> {
        let Err(refusal) = self.save() else { return Ok(()) };
        let before = self.keeper.clear();
        let left = self.undo(before);
        if self.keeper.store.as_ref().is_some_and(Store::is_broken) {
            let _ = self.write_anew();
        }
        Err(match left.first() {
            None => Refusal::new(format!("{refusal}; it is undone")),
            Some((_, why)) => Refusal::new(format!("{refusal}; not all could be undone: {why}")),
        })
    }

    /// The same for who undoes it in a way of its own, with [`Self::commit`] at the end.
    ///
    /// # Errors
    /// The disk does not keep it: everything is as it was before this was called.
    pub(crate) fn save(&mut self) -> Result<(), Refusal> {
        if self.keeper.touched.is_empty() {
            return Ok(());
        }
        let changes: Vec<Change> = self
            .keeper
            .touched
            .iter()
            .filter_map(|(key, before)| {
                let now = self.kept(key);
                (now != *before).then(|| (key.clone(), now))
            })
            .collect();
        if let Some(mut store) = self.keeper.store.take_if(|_| !changes.is_empty()) {
            let written = store.commit(changes);
            match &written {
                Ok(()) => self.keeper.failing = None,
                Err(error) => self.note_failing(&store, error),
            }
            let written = written.map_err(|error| not_saved(&store, &error));
            self.keeper.store = Some(store);
            written?;
        }
        self.keeper.clear();
        let made: Vec<Key> =
            self.keeper.unmade.keys().filter(|key| self.describe(key).is_some()).cloned().collect();
        made.iter().for_each(|key| {
            self.keeper.unmade.remove(key);
        });
        Ok(())
    }

    /// Has things be as they were.
    fn undo(&mut self, before: Vec<Change>) -> Vec<Failed> {
        let failed = self.reconcile(before.into_iter().collect(), false);
        self.keeper.clear();
        for (_, why) in &failed {
            tracing::error!("cannot be undone: {why}");
        }
        failed
    }

    fn write_anew(&mut self) -> Result<(), Refusal> {
        let document = self.configuration();
        let Some(mut store) = self.keeper.store.take() else { return Ok(()) };
        let written = store.begin_anew(&document);
        let result = match written {
            Ok(()) => {
                if self.keeper.failing.take().is_some() {
                    tracing::info!("{}: changes are saved again", store.path().display());
                }
                Ok(())
            }
            Err(error) => {
                self.note_failing(&store, &error);
                Err(not_saved(&store, &error))
            }
        };
        self.keeper.store = Some(store);
        result
    }

    fn note_failing(&mut self, store: &Store, error: &std::io::Error) {
        let why = not_saved(store, error).to_string();
        if self.keeper.failing.as_ref() != Some(&why) {
            tracing::error!("{why}");
        }
        self.keeper.failing = Some(why);
    }

    /// Makes the switch what a configuration describes; tells what was done for it.
    ///
    /// # Errors
    /// Something cannot be made; everything is as it was then.
    pub fn apply_configuration(&mut self, config: &Config) -> Result<Vec<Difference>, Refusal> {
        let (present, wanted) = self.wanted(config)?;
        let changes = present.difference(&wanted);
        let keys: Vec<Key> = present.differing(&wanted).into_iter().cloned().collect();
        for key in &keys {
            self.touch(key.clone());
            if !wanted.entries.contains_key(key) {
                self.keeper.unmade.remove(key);
            }
        }
        let target: Wanted = keys.iter().map(|key| (key.clone(), wanted.entries.get(key).cloned())).collect();
        let failed = self.reconcile(target, true);
        let Some((_, why)) = failed.into_iter().next() else { return Ok(changes) };
        let before = self.keeper.clear();
        let left = self.undo(before);
        Err(match left.first() {
            None => Refusal::new(format!("{why}; nothing was changed")),
            Some((_, left)) => Refusal::new(format!("{why}; not all could be undone: {left}")),
        })
    }

    /// What there is and what a configuration describes.
    ///
    /// # Errors
    /// The configuration contradicts itself.
    pub fn wanted(&self, config: &Config) -> Result<(Document, Document), Refusal> {
        let present = self.configuration();
        let given: BTreeSet<u32> = config.layer3.nat_numbers();
        let wanted = present.numbered(config.document()?, &given);
        Ok((present, wanted))
    }
}

fn uplink_bridge() -> Result<Name, Refusal> {
    "uplink".parse().map_err(|rule| Refusal::new(format!("{rule}")))
}

fn not_saved(store: &Store, error: &std::io::Error) -> Refusal {
    Refusal::new(format!("it cannot be saved to {}: {error}", store.path().display()))
}

mod handed;
#[cfg(test)]
mod tests;

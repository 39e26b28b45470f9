//! Live migration: a guest moves from one QEMU to another while it runs.

use std::os::unix::net::UnixStream;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{BOOT_LIMIT, Guest, GuestSpec};
use crate::nic::Nic;
use crate::process::Process;
use crate::progress;
use crate::qmp::Qmp;
use crate::wait::wait_for;

const LIMIT: Duration = Duration::from_secs(120);

/// A migration under way. The guest still runs where it was.
pub struct Migration {
    spec: GuestSpec,
    dir: TempDir,
    process: Process,
    agent: UnixStream,
    started: Instant,
}

/// How a migration went.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    /// How long the guest stood still.
    pub downtime: Duration,
    /// How often the pages that had been written meanwhile were collected.
    pub rounds: u64,
}

impl Guest {
    /// Starts a second QEMU whose NICs are `nics`, otherwise like those of this guest, and begins to copy the guest's
    /// memory there. [`Guest::finish_migration`] waits for the end.
    #[track_caller]
    pub fn start_migration(&self, nics: Vec<Nic>) -> Migration {
        let dir = tempfile::Builder::new().prefix("shunt-guest-").tempdir();
        let dir = dir.unwrap_or_else(|e| panic!("no temporary directory: {e}"));
        let mut spec = self.spec.clone();
        spec.nics = nics;
        let mut argv = spec.arguments(dir.path());
        argv.extend(["-incoming".to_owned(), "defer".to_owned()]);
        let log = dir.path().join("qemu.log");
        let process = Process::start(&spec.name, &argv, &log, spec.netns.as_deref());
        let started = Instant::now();
        let name = &spec.name;
        let agent = wait_for(&format!("the other QEMU of {name} to open its channel"), BOOT_LIMIT, || {
            UnixStream::connect(dir.path().join("agent.sock")).ok()
        });
        let mut qmp = wait_for(&format!("the other QEMU of {name} to open QMP"), BOOT_LIMIT, || {
            Qmp::connect(&dir.path().join("qmp.sock")).ok()
        });
        let uri = json!({"uri": format!("unix:{}", dir.path().join("migration.sock").display())});
        qmp.command("migrate-incoming", uri.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
        // Whoever emulates its processors on a busy machine has little of them to copy with.
        self.qmp("migrate-set-parameters", json!({"downtime-limit": 1000, "max-bandwidth": 1u64 << 30}));
        self.qmp("migrate", uri);
        Migration { spec, dir, process, agent, started }
    }

    /// Waits until the guest runs in the other QEMU, and ends the one that it has left. Jobs go on.
    #[track_caller]
    pub fn finish_migration(&mut self, migration: Migration) -> Moved {
        let Migration { spec, dir, process, agent, started } = migration;
        let name = &spec.name;
        let info = wait_for(&format!("{name} to have moved"), LIMIT, || {
            let info = self.qmp("query-migrate", json!({}));
            match info["status"].as_str() {
                Some("completed") => Some(info),
                Some("failed" | "cancelled") => panic!("{name} did not move: {info}"),
                _ => None,
            }
        });
        let reader = agent.try_clone().unwrap_or_else(|e| panic!("cannot clone a socket: {e}"));
        self.channel.moves.fetch_add(1, Ordering::AcqRel);
        let channel = self.channel.clone();
        std::thread::spawn(move || channel.read(reader));
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(agent);
        self.process = Some(process);
        self.dir = dir;
        self.spec = spec;
        wait_for(&format!("{} to run again", self.spec.name), LIMIT, || {
            (self.qmp("query-status", json!({}))["status"] == "running").then_some(())
        });
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let moved = Moved {
            downtime: Duration::from_millis(number(&info["downtime"])),
            rounds: number(&info["ram"]["dirty-sync-count"]),
        };
        let (all, still) = (started.elapsed().as_secs_f64(), moved.downtime.as_millis());
        progress!(
            "{} has moved in {all:.1} s, {} rounds, stood still for {still} ms",
            self.spec.name,
            moved.rounds
        );
        moved
    }
}

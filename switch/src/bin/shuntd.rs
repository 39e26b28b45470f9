//! The daemon: reads its configuration, starts a switch, serves the control socket until it is told to stop.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use shunt_switch::config::arguments::{Arguments, Settings, one_line};
use shunt_switch::config::{Config, Workers};
use shunt_switch::control::api::Upgraded;
use shunt_switch::control::dispatch::{Upgrades, Wish};
use shunt_switch::control::socket::ControlSocket;
use shunt_switch::control::{paths, server};
use shunt_switch::handover::predecessor;
use shunt_switch::handover::successor::Successor;
use shunt_switch::refusal::Refusal;
use shunt_switch::switch::{Options, Switch};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

fn main() -> ExitCode {
    shunt_switch::memory::share_allocator();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(wrong) if wrong.use_stderr() => {
            eprintln!("shuntd: {}", one_line(&wrong));
            return ExitCode::from(2);
        }
        Err(help) => {
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => {
            eprintln!("shuntd: {refusal}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Refusal> {
    let predecessor = if arguments.take_over { Some(Successor::greet()?) } else { None };
    // What another process hands over is in force; of the file only what concerns the process itself.
    let loaded = arguments.config.as_deref().map(Config::load).transpose().and_then(|file| {
        let settings = Settings::new(arguments, file.as_ref().unwrap_or(&Config::embedded(false)?))?;
        Ok((file, settings))
    });
    let (file, settings) = loaded.map_err(|refusal| match &predecessor {
        Some(predecessor) => predecessor.refuse(refusal),
        None => refusal,
    })?;
    start_log(&settings.log)?;
    raise_descriptor_limit();
    let state = prepare_state(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Refusal::new(format!("cannot start: {e}")))?;
    let tasks = tokio::task::LocalSet::new();
    // From here on a signal is a wish to end cleanly, also in the middle of starting.
    let mut signals = runtime.block_on(async { Signals::new() })?;
    let (socket, switch) = match predecessor {
        Some(predecessor) => take_over(predecessor, &settings, state),
        None => {
            // The socket comes first: a second daemon is turned away before it touches anybody's ports.
            let socket = ControlSocket::bind(&settings.control)?;
            (socket, start_switch(&settings, state, file)?)
        }
    };
    let switch = Rc::new(RefCell::new(switch));

    tell_ready(&settings, &switch.borrow());
    let result = tasks.block_on(&runtime, serve(&socket, switch.clone(), &mut signals));
    if let Ok(End::HandedOver) = result {
        // Sockets, devices, guests and state are another process' by now: nothing is to be given back.
        std::process::exit(0);
    }
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    // Connections first, then ports with their sockets and devices, then our own socket: whoever finds that gone
    // finds everything gone.
    drop(tasks);
    drop(switch);
    drop(socket);
    if let End::Signal(reason) = result? {
        tracing::info!("stopped by {reason}");
    }
    Ok(())
}

/// Why serving ended.
enum End {
    /// This signal came.
    Signal(&'static str),
    /// Another process goes on.
    HandedOver,
}

/// Goes on in the place of the process that started this one.
fn take_over(predecessor: Successor, settings: &Settings, state: Option<PathBuf>) -> (ControlSocket, Switch) {
    let options = options(settings, state);
    predecessor.take_over(settings, options).unwrap_or_else(|refusal| {
        eprintln!("shuntd: not taken over: {refusal}");
        // At once: what is here of sockets and devices is still the other one's.
        std::process::exit(1);
    })
}

/// Hands everything over to a new process, if somebody wishes so; whether it took it.
async fn hand_over(
    wish: Wish,
    socket: &ControlSocket,
    switch: &Rc<RefCell<Switch>>,
    upgrades: &Upgrades,
) -> bool {
    let binary = wish.binary.unwrap_or_else(predecessor::own_binary);
    tracing::info!("handing over to a new process of {}", binary.display());
    let result = predecessor::hand_over(socket, switch, binary).await;
    let handed = result.is_ok();
    let result = result.map(|done| {
        tracing::info!("process {} goes on; no packet was carried for {:?}", done.pid, done.pause);
        let _ = sd_notify::notify(&[NotifyState::MainPid(done.pid)]);
        Upgraded {
            pid: done.pid,
            pause_microseconds: done.pause.as_micros().min(u128::from(u64::MAX)) as u64,
        }
    });
    let (passed, told) = oneshot::channel();
    if wish.done.send((result, passed)).is_ok() {
        let _ = tokio::time::timeout(Duration::from_secs(1), told).await;
    }
    if !handed {
        upgrades.end();
    }
    handed
}

/// Serves until a signal comes; says which.
async fn serve(
    socket: &ControlSocket,
    switch: Rc<RefCell<Switch>>,
    signals: &mut Signals,
) -> Result<End, Refusal> {
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Half the time that systemd allows, as sd_watchdog_enabled(3) recommends.
    let patience = sd_notify::watchdog_enabled().map(|allowed| allowed / 2);
    let mut barked = Instant::now();
    let mut watchdog = interval(patience.unwrap_or(Duration::from_secs(3600)).max(Duration::from_millis(1)));
    watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let changes = switch.borrow().changes();
    let upgrades = Rc::<Upgrades>::default();
    let serving = server::serve(socket, switch.clone(), upgrades.clone());
    tokio::pin!(serving);
    loop {
        tokio::select! {
            reason = signals.next() => return Ok(End::Signal(reason)),
            wish = upgrades.next() => {
                tokio::select! {
                    // Giving up ends the new process.
                    reason = signals.next() => return Ok(End::Signal(reason)),
                    handed = hand_over(wish, socket, &switch, &upgrades) => if handed {
                        return Ok(End::HandedOver);
                    }
                }
            }
            _ = second.tick() => switch.borrow_mut().tick(),
            () = changes.notified() => switch.borrow_mut().follow_ports(),
            _ = watchdog.tick(), if patience.is_some() => {
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
                tracing::trace!("watchdog told after {:?}", barked.elapsed());
                barked = Instant::now();
            }
            result = &mut serving => {
                result.map_err(|e| Refusal::new(format!("control socket {}: {e}", socket.path().display())))?;
            }
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Refusal> {
        let watch = |kind| signal(kind).map_err(|e| Refusal::new(format!("cannot watch signals: {e}")));
        Ok(Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
            hangup: watch(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

fn options(settings: &Settings, state: Option<PathBuf>) -> Options {
    Options { workers: settings.workers.clone(), poll: settings.poll, state, handed: None }
}

fn start_switch(
    settings: &Settings,
    state: Option<PathBuf>,
    file: Option<Config>,
) -> Result<Switch, Refusal> {
    let mut switch = Switch::start(options(settings, state))?;
    switch.step_aside();
    // A refusal drops the switch, and with it whatever was made before.
    switch.begin(file, settings.host_setup)?;
    if settings.host_setup {
        switch.set_host_up()?;
    }
    Ok(switch)
}

fn tell_ready(settings: &Settings, switch: &Switch) {
    let status = switch.status();
    let bridges =
        switch.bridges().iter().map(|bridge| bridge.name.to_string()).collect::<Vec<_>>().join(", ");
    let workers = match &settings.workers {
        Workers::Count(n) => format!("workers: {n}"),
        Workers::Cores(cores) => format!("workers on cores {cores:?}"),
    };
    tracing::info!(
        "shuntd {}, {workers} ({}), ports: {}, bridges: {bridges}",
        status.version,
        status.poll,
        status.ports
    );
    if !may_administer_network() {
        tracing::info!("without CAP_NET_ADMIN: vhost-user ports work, TAP and netdev ports are refused");
    }
    let path = settings.control.display();
    let command = if settings.control == paths::client_socket() {
        "shuntctl status".to_owned()
    } else {
        format!("shuntctl --control {path} status")
    };
    tracing::info!("ready, control socket {path}: try '{command}'");
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&format!("control socket {path}"))]);
}

/// Whether CAP_NET_ADMIN (number 12, capability.h) is in force.
fn may_administer_network() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set >> 12 & 1 == 1)
}

/// Makes the directory for what outlives the daemon; `None` if there is none to be had.
fn prepare_state(settings: &Settings) -> Result<Option<PathBuf>, Refusal> {
    let (directory, asked) = &settings.state;
    match paths::make_directory(directory) {
        Err(refusal) if *asked => Err(Refusal::new(format!("state-dir: {refusal}"))),
        Err(refusal) => {
            tracing::warn!("nothing can be kept from one start to the next: {refusal}");
            Ok(None)
        }
        Ok(()) => Ok(Some(directory.clone())),
    }
}

/// A port with many queues has hundreds of descriptors: takes as many as the hard limit allows.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn start_log(words: &str) -> Result<(), Refusal> {
    let filter = EnvFilter::try_new(words).map_err(|e| Refusal::new(format!("log {words:?}: {e}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let terminal = std::io::stderr().is_terminal();
    // systemd sets this for a process whose standard error is the journal.
    if std::env::var_os("JOURNAL_STREAM").is_some() && !terminal {
        builder.with_ansi(false).event_format(Journal).init();
    } else {
        builder.with_ansi(terminal).with_target(false).init();
    }
    Ok(())
}

/// Lines for the journal: the priority in front, as sd-daemon(3) has it; the journal knows time and process.
struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut to: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        write!(to, "<{priority}>")?;
        context.field_format().format_fields(to.by_ref(), event)?;
        writeln!(to)
    }
}

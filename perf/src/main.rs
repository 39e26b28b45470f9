#![forbid(unsafe_code)]
//! `shunt-perf`: traffic generator and benchmark.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use shunt_perf::generate::{Generator, Shape, Traffic};
use shunt_perf::guest::{Answer, features};

#[derive(Parser)]
#[command(name = "shunt-perf", version, about = "Traffic generator and benchmark of shunt")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make traffic between guests of our own on listening vhost-user sockets, and measure it
    Generate(GenerateArguments),
    /// Measure shunt beside its peers
    Bench(shunt_perf::bench::Arguments),
    /// Say how many cycles a cache line takes from one core to another, again and again
    Distance {
        /// The first core
        #[arg(default_value_t = 0)]
        first: usize,
        /// The second core
        #[arg(default_value_t = 1)]
        second: usize,
        /// How often
        #[arg(long, default_value_t = 10)]
        repeat: u32,
    },
    /// Record the instruction counts of the last run of the gates as the new standard
    GatesUpdate {
        /// Where gungraun saved its summaries
        #[arg(default_value = "target/gungraun")]
        dir: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum AnswerArgument {
    /// Send each received buffer back with new addresses
    Forward,
    /// Send a prepared frame for each received
    Credit,
}

#[derive(clap::Args)]
struct GenerateArguments {
    /// vhost-user sockets of the switch: two or more
    #[arg(required = true, num_args = 2..)]
    sockets: Vec<PathBuf>,
    /// Bytes of each frame without FCS; above 9618 TCP segmentation frames
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Queue pairs of each guest
    #[arg(long, default_value_t = 1)]
    queues: u16,
    /// Entries of each ring
    #[arg(long, default_value_t = 256)]
    ring: u16,
    /// Frames that each queue keeps on their way
    #[arg(long, default_value_t = 128)]
    window: u16,
    /// How frames are answered
    #[arg(long, value_enum, default_value = "forward")]
    answer: AnswerArgument,
    /// Send whatever has room instead of answering
    #[arg(long)]
    open: bool,
    /// Core of the generator's thread
    #[arg(long)]
    core: Option<usize>,
    /// Seconds to measure
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Measurements, one after another
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Without mergeable receive buffers
    #[arg(long)]
    no_mergeable: bool,
    /// With event indexes
    #[arg(long)]
    event_idx: bool,
    /// With packed rings
    #[arg(long)]
    packed: bool,
    /// With rings that are used in order
    #[arg(long)]
    in_order: bool,
    /// Make the sockets and wait for the switch
    #[arg(long)]
    listen: bool,
    /// Guest memory in 2 MiB pages
    #[arg(long)]
    hugepages: bool,
}

fn generate(arguments: GenerateArguments) -> Result<()> {
    let shape = Shape {
        pairs: arguments.queues,
        ring_size: arguments.ring,
        mergeable: !arguments.no_mergeable,
        event_idx: arguments.event_idx,
        features: [(arguments.packed, features::RING_PACKED), (arguments.in_order, features::IN_ORDER)]
            .into_iter()
            .fold(0, |word, (on, bit)| if on { word | bit } else { word }),
        hugepages: arguments.hugepages,
        listen: arguments.listen,
    };
    let traffic = Traffic {
        size: arguments.size,
        window: arguments.window,
        answer: match arguments.answer {
            AnswerArgument::Forward => Answer::Forward,
            AnswerArgument::Credit => Answer::Credit,
        },
        open: arguments.open,
        core: arguments.core,
    };
    let mut generator = Generator::connect(&arguments.sockets, &shape, &traffic)?;
    for _ in 0..arguments.repeat {
        let measured =
            generator.run(Duration::from_millis(300), Duration::from_secs_f64(arguments.seconds))?;
        println!("{}", serde_json::to_string(&measured)?);
    }
    Ok(())
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Generate(arguments) => generate(arguments),
        Command::Bench(arguments) => shunt_perf::bench::run(&arguments),
        Command::Distance { first, second, repeat } => {
            for _ in 0..repeat {
                println!("{:.0}", shunt_perf::clock::line_transfer(first, second)?);
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        }
        Command::GatesUpdate { dir } => {
            for (name, count) in shunt_perf::gates::update(&dir)? {
                println!("{name}: {count} instructions");
            }
            Ok(())
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("shunt-perf: {why:#}");
            ExitCode::FAILURE
        }
    }
}

//! Workers: what they did, which queues they have, and what is to become of these.

use std::fmt::Write;

use shunt_switch::control::api;

use super::{joined, properties, table};

/// `worker list`
pub(crate) fn workers(workers: &[api::Worker]) -> String {
    table(
        &["ID", "CORE", "POLL", "PACKETS", "BATCHES", "CYCLES/PACKET", "IDLE", "LONGEST TURN", "QUEUES"],
        &[0, 1, 3, 4, 5, 6, 7],
        workers.iter().map(|worker| {
            vec![
                worker.id.to_string(),
                worker.core.map_or_else(|| "-".to_owned(), |core| core.to_string()),
                worker.poll.to_string(),
                worker.packets.to_string(),
                worker.batches.to_string(),
                format!("{:.1}", worker.busy_cycles_per_packet),
                format!("{:.1}%", worker.idle_share * 100.0),
                format!("{:.0} us", worker.longest_turn_us),
                joined(worker.queues.iter().map(queue)),
            ]
        }),
    )
}

/// A queue with what it costs, if that shows in whole percents, and whether it is tied to its worker.
fn queue(queue: &api::QueueRef) -> String {
    let mut text = format!("{}:{}", queue.port, queue.queue);
    if queue.load >= 0.005 {
        let _ = write!(text, "={:.0}%", queue.load * 100.0);
    }
    if queue.pinned {
        text.push_str(",pinned");
    }
    text
}

/// `worker rebalance`
pub(crate) fn rebalance(rebalance: &api::Rebalance) -> String {
    let share =
        |loads: &[f64], id: usize| format!("{:.1}%", loads.get(id).copied().unwrap_or_default() * 100.0);
    if rebalance.moves.is_empty() {
        return "nothing to move: no queue is better off at another worker\n".to_owned();
    }
    let mut text = table(
        &["QUEUE", "LOAD", "FROM", "TO"],
        &[1, 2, 3],
        rebalance.moves.iter().map(|step| {
            vec![
                format!("{}:{}", step.port, step.queue),
                format!("{:.1}%", step.load * 100.0),
                step.from.to_string(),
                step.to.to_string(),
            ]
        }),
    );
    text.push('\n');
    text.push_str(&table(
        &["WORKER", "BEFORE", "AFTER"],
        &[0, 1, 2],
        (0..rebalance.before.len())
            .map(|id| vec![id.to_string(), share(&rebalance.before, id), share(&rebalance.after, id)]),
    ));
    let what = if rebalance.done { "moved" } else { "would be moved" };
    let _ = writeln!(
        text,
        "\n{} queues {what}, by their loads of the last {:.0} s: {:.0}% less variance",
        rebalance.moves.len(),
        rebalance.window,
        rebalance.improvement
    );
    text
}

/// `worker settings`
pub(crate) fn worker_settings(settings: &api::WorkerSettingsList) -> String {
    properties(&[
        ("auto", if settings.auto { "on" } else { "off" }.to_owned()),
        ("interval", format!("{} s", settings.interval)),
        ("load-threshold", format!("{}%", settings.load_threshold)),
        ("improvement-threshold", format!("{}%", settings.improvement_threshold)),
        ("rebalanced", settings.rebalanced.to_string()),
    ])
}

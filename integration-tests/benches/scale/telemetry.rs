//! What it costs the coordinator to tell of all that it does: nowhere, to a collector, to one that hears of all stages too, and
//! to one that never answers, in turn. The collector is on this machine as well, and takes its own time there.

use crate::{
    cluster::{Cluster, Size},
    figures::{
        Figures,
        Target::{AtMost, None as Info},
        mean,
    },
    load::{Load, Sample},
};
use integration_tests::Collector;
use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

const BASES: usize = 32;
/// Four of five share a base's steps.
const PLACES: u32 = 160;
/// About as long as a picture takes; then for the loop to settle.
const RAMP: Duration = Duration::from_secs(14);
const SETTLED: Duration = Duration::from_secs(8);
const MEASURED: Duration = Duration::from_secs(30);
/// Each way so often, as the machine is not the same from minute to minute.
const ROUNDS: usize = 2;
/// What a coordinator may grow by in a round beyond what it grows by where it tells nothing, as its cache fills.
const GROWTH_MIB: f64 = 16.0;

/// What comes of one round.
struct Round {
    /// Milliseconds of the coordinator's processor time a picture.
    cost: f64,
    /// What it grew by while it was measured.
    grown_mib: f64,
    failed: usize,
}

pub(crate) async fn run() -> Figures {
    let collector = Collector::start().expect("integration-tests/telemetry/setup.sh was run");
    // It takes connections and never reads from them.
    let deaf = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let deaf = format!("http://{}", deaf.local_addr().expect("an address"));
    let collector = collector.endpoint();
    let ways = [
        ("nothing", None, None),
        ("the coordinator tells a collector", None, Some(&collector)),
        ("all tell a collector", Some(&collector), Some(&collector)),
        ("the coordinator tells one that never answers", None, Some(&deaf)),
    ];
    let mut rounds = [const { Vec::new() }; 4];
    for number in 1..=ROUNDS {
        for ((way, of_stages, of_coordinator), rounds) in ways.iter().zip(&mut rounds) {
            let (of_stages, of_coordinator) = (variable(*of_stages), variable(*of_coordinator));
            let cluster = Cluster::start_with(Size::of(BASES), &of_stages, &of_coordinator).await;
            let round = round(&cluster).await;
            eprintln!("round {number}, {way}: {:.2} ms a picture", round.cost);
            rounds.push(round);
        }
    }
    let mut figures = Figures::default();
    let costs = rounds.each_ref().map(|rounds| mean(rounds.iter().map(|round| round.cost)));
    let grown = |rounds: &[Round]| rounds.iter().map(|round| round.grown_mib).fold(f64::MIN, f64::max);
    let usual = grown(&rounds[0]);
    for ((way, of_stages, of_coordinator), (rounds, cost)) in ways.iter().zip(rounds.iter().zip(costs)) {
        figures.add(format!("{way}: coordinator's processor time a picture"), cost, "ms", Info);
        let rise = 100.0 * (cost / costs[0] - 1.0);
        let target = if of_coordinator.is_some() && of_stages.is_none() { AtMost(10.0) } else { Info };
        figures.add(format!("{way}: rise of it"), rise, "%", target);
        let target = if of_coordinator.is_some() { AtMost((usual + GROWTH_MIB).round()) } else { Info };
        figures.add(format!("{way}: its memory grew by, at most"), grown(rounds), "MiB", target);
        let failed: usize = rounds.iter().map(|round| round.failed).sum();
        figures.add(format!("{way}: requests that were not answered"), failed as f64, "", AtMost(0.0));
    }
    figures
}

/// What a process is told of a collector, or nothing.
fn variable(endpoint: Option<&String>) -> Vec<(&str, &str)> {
    endpoint.map(|endpoint| ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())).into_iter().collect()
}

async fn round(cluster: &Cluster) -> Round {
    let load = Load::new(cluster.clients(), 4);
    let mut running = load.closed(PLACES, RAMP);
    tokio::time::sleep(RAMP + SETTLED).await;
    let (from, seconds, mib) = (Instant::now(), cluster.coordinator_seconds(), cluster.coordinator_mib());
    tokio::time::sleep(MEASURED).await;
    let (to, seconds) = (Instant::now(), cluster.coordinator_seconds() - seconds);
    let grown_mib = cluster.coordinator_mib() - mib;
    load.stop();
    while running.join_next().await.is_some() {}
    let samples = load.samples();
    let is_in = |sample: &&Sample| sample.ended() >= from && sample.ended() <= to;
    let pictures = samples.iter().filter(is_in).filter(|sample| sample.answered()).count();
    let failed = samples.iter().filter(|sample| !sample.answered()).count();
    Round { cost: seconds / pictures as f64 * 1e3, grown_mib, failed }
}

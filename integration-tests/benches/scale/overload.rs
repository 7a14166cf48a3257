//! Half as many requests again as the cluster can do.

use crate::{
    cluster::{Cluster, Size},
    figures::{
        Figures,
        Target::{AtLeast, AtMost, None as Info},
        quantile,
    },
    load::{Load, Outcome, Sample},
};
use sdxl_proto::v1::Stage;
use std::time::{Duration, Instant};

const PLACES: u32 = 320;
/// About as long as a picture takes.
const RAMP: Duration = Duration::from_secs(14);
/// Of each part: for queues to fill, and then measured.
const WARM_UP: Duration = Duration::from_secs(30);
const CAPACITY: Duration = Duration::from_secs(50);
const MEASURED: Duration = Duration::from_secs(110);
/// Over twice what a picture takes in full batches.
const DEADLINE: Duration = Duration::from_secs(30);
/// The flooding tenant's load before its flood and in it, and the other's, over capacity.
const USUAL: f64 = 0.8;
const FLOOD: f64 = 1.5;
const SMALL: f64 = 0.01;
const STAGES: [Stage; 4] = [Stage::TextEncoder, Stage::BaseUnet, Stage::Refiner, Stage::Vae];

pub(crate) async fn run() -> Figures {
    let mut figures = Figures::default();
    let cluster = Cluster::start(Size::of(64)).await;
    eprintln!("{:?} and a coordinator are ready; a closed loop ...", cluster.size);
    let (capacity, full) = capacity(&cluster).await;
    figures.add("capacity: pictures a second", capacity, "", Info);

    eprintln!("{capacity:.1} pictures a second; {:.0} % of that ...", USUAL * 100.0);
    let usual = part(&cluster, 11, capacity, USUAL).await;
    eprintln!("{:.0} % of it ...", FLOOD * 100.0);
    let flood = part(&cluster, 12, capacity, FLOOD).await;

    let goodput =
        flood.ended.iter().filter(|sample| sample.in_time()).count() as f64 / MEASURED.as_secs_f64();
    let sent = flood.sent.len() as f64 / MEASURED.as_secs_f64();
    figures.add("flood: requests over capacity", 100.0 * sent / capacity, "%", Info);
    figures.add("flood: goodput over capacity", 100.0 * goodput / capacity, "%", AtLeast(95.0));
    let refused = || flood.sent.iter().filter(|sample| sample.refused());
    let median = quantile(refused().map(ms), 0.5);
    figures.add("flood: time to refusal, median", median, "ms", Info);
    let to_refusal = quantile(refused().map(ms), 0.99);
    figures.add("flood: refused", refused().count() as f64, "", Info);
    figures.add("flood: time to refusal, 99th percentile", to_refusal, "ms", AtMost(20.0));
    let silent = refused().filter(|s| matches!(s.outcome, Outcome::Refused { says_when: false })).count();
    figures.add("flood: refused without RetryInfo", silent as f64, "", AtMost(0.0));
    admitted(&mut figures, "usual", &usual.sent);
    admitted(&mut figures, "flood", &flood.sent);
    let p95 = |part: &Part| quantile(part.of("small").filter(|s| s.answered()).map(ms), 0.95);
    let refused = flood.of("small").filter(|sample| !sample.answered()).count();
    figures.add("small tenant: requests in the flood", flood.of("small").count() as f64, "", Info);
    figures.add("small tenant: of them not answered", refused as f64, "", Info);
    figures.add("small tenant: 95th percentile before the flood", p95(&usual) / 1e3, "s", Info);
    figures.add("small tenant: 95th percentile in the flood", p95(&flood) / 1e3, "s", Info);
    for stage in STAGES {
        let p95 = |part: &Part| quantile(part.of("small").filter_map(|s| s.at(stage)), 0.95) / 1e3;
        let name = stage.as_str_name();
        figures.add(format!("small tenant: of it at {name}, before the flood"), p95(&usual), "s", Info);
        figures.add(format!("small tenant: of it at {name}, in the flood"), p95(&flood), "s", Info);
    }
    figures.add("anyone: 95th percentile in the closed loop, where all batches are full", full, "s", Info);
    let rise = 100.0 * (p95(&flood) / p95(&usual) - 1.0);
    figures.add("small tenant: rise of it", rise, "%", AtMost(20.0));
    figures
}

/// What was taken on, and how much of it was not answered within its deadline, or a twentieth of it more.
fn admitted(figures: &mut Figures, when: &str, sent: &[Sample]) {
    let taken = || sent.iter().filter(|sample| !sample.refused());
    let late = taken().filter(|sample| !sample.in_time()).count();
    let missed = taken().filter(|s| !s.answered() || s.latency > DEADLINE.mul_f64(1.05)).count();
    figures.add(format!("{when}: taken on"), taken().count() as f64, "", Info);
    figures.add(
        format!("{when}: latency of what was taken on, median"),
        quantile(taken().map(ms), 0.5) / 1e3,
        "s",
        Info,
    );
    figures.add(
        format!("{when}: the same, 99th percentile"),
        quantile(taken().map(ms), 0.99) / 1e3,
        "s",
        Info,
    );
    figures.add(format!("{when}: taken on and late"), late as f64, "", Info);
    figures.add(format!("{when}: late by over 5 %, or given up"), missed as f64, "", AtMost(0.0));
    // What was late, and where its time went.
    for sample in taken().filter(|sample| !sample.in_time()) {
        let at = STAGES.map(|stage| sample.at(stage).unwrap_or(f64::NAN) / 1e3);
        eprintln!(
            "{when}: late: {:?} after {:.1} s, at its stages {at:.1?} s",
            sample.tenant,
            ms(sample) / 1e3
        );
    }
    let mut failures = std::collections::BTreeMap::new();
    for sample in sent {
        if let Outcome::Failed(code, message) = &sample.outcome {
            failures.entry(format!("{code:?}")).or_insert((0, message)).0 += 1;
        }
    }
    for (code, (count, message)) in failures {
        eprintln!("{when}: {count} ended with {code}, the first with {message:?}");
    }
}

fn ms(sample: &Sample) -> f64 {
    sample.latency.as_secs_f64() * 1e3
}

/// Pictures a second of a closed loop, and the 95th percentile of their latencies in seconds.
async fn capacity(cluster: &Cluster) -> (f64, f64) {
    let load = Load::new(cluster.clients(), 10);
    let mut running = load.closed(PLACES, RAMP);
    tokio::time::sleep(WARM_UP).await;
    let from = Instant::now();
    tokio::time::sleep(CAPACITY).await;
    let to = Instant::now();
    load.stop();
    let samples = load.samples();
    assert!(samples.iter().all(Sample::answered), "a closed loop without deadlines is answered");
    while running.join_next().await.is_some() {}
    let window = || samples.iter().filter(|sample| sample.ended() >= from && sample.ended() <= to);
    let seconds = (to - from).as_secs_f64();
    (window().count() as f64 / seconds, quantile(window().map(ms), 0.95) / 1e3)
}

/// What was sent after the warm-up, and what ended as long after it as that was sent for.
struct Part {
    sent: Vec<Sample>,
    ended: Vec<Sample>,
}

impl Part {
    fn of(&self, tenant: &'static str) -> impl Iterator<Item = &Sample> {
        self.sent.iter().filter(move |sample| sample.tenant == tenant)
    }
}

/// Two tenants, the big one with so much of the capacity.
async fn part(cluster: &Cluster, seed: u64, capacity: f64, big: f64) -> Part {
    let load = Load::new(cluster.clients(), seed);
    let from = Instant::now() + WARM_UP;
    let to = from + MEASURED;
    let open = |tenant, share: f64| load.open(tenant, share * capacity, WARM_UP + MEASURED, Some(DEADLINE));
    tokio::join!(open("big", big), open("small", SMALL));
    let samples = load.samples();
    let filtered = |when: fn(&Sample) -> Instant| {
        samples.iter().filter(|sample| when(sample) >= from && when(sample) <= to).cloned().collect()
    };
    Part { sent: filtered(|sample| sample.due), ended: filtered(Sample::ended) }
}

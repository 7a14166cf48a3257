//! What a picture costs the coordinator, alone and on a cluster whose bottleneck never rests.

use crate::{
    cluster::{Cluster, Size, processors},
    figures::{
        Figures,
        Target::{AtLeast, AtMost, None as Info},
        mean, quantile,
    },
    load::{Load, Outcome, Sample, To},
};
use sdxl_proto::v1::Stage;
use std::time::{Duration, Instant};

/// Of the low load: a twelfth of what the cluster can do.
const LOW_RATE: f64 = 2.0;
/// Of each part of it, through the coordinator and past it by turns, so that both find the machine in the same state.
const LOW_TIME: Duration = Duration::from_secs(15);
const LOW_ROUNDS: u64 = 3;
/// Before it, for every replica to have made pictures: as many at a time as there are bases, for twice as long as they take.
const WARM_UP: Duration = Duration::from_secs(10);
/// Of the high load: five a base, four of which share its steps.
const PLACES: u32 = 320;
/// About as long as a picture takes.
const RAMP: Duration = Duration::from_secs(14);
/// Answers after which the memory is looked at; between the first and the last all else is measured.
const MARKS: [usize; 3] = [1000, 5000, 10_000];

/// The low load alone.
pub(crate) async fn latency() -> Figures {
    let mut figures = Figures::default();
    low(&mut figures, &Cluster::start(Size::of(64)).await).await;
    figures
}

/// A low load, by turns through the coordinator and past it: so low that no picture waits for another.
async fn low(figures: &mut Figures, cluster: &Cluster) -> Vec<Sample> {
    eprintln!("{:?} and a coordinator are ready; a low load ...", cluster.size);
    let warm = Load::new(cluster.clients(), 100);
    let mut running = warm.closed(u32::try_from(cluster.size.bases).expect("few"), WARM_UP / 2);
    tokio::time::sleep(WARM_UP).await;
    warm.stop();
    while running.join_next().await.is_some() {}
    let (mut through, mut past) = (Vec::new(), Vec::new());
    for round in 0..LOW_ROUNDS {
        let ways = [To::Coordinator(cluster.clients()), To::Stages(Box::new(cluster.direct().await))];
        for (to, samples) in ways.into_iter().zip([&mut through, &mut past]) {
            let load = Load::to(to, 101 + round);
            load.open("", LOW_RATE, LOW_TIME, None).await;
            samples.extend(load.samples());
        }
    }
    for (share, name) in [(None, "mean"), (Some(0.5), "median")] {
        let of = |samples: &[Sample]| {
            let values = samples.iter().filter_map(Sample::added_ms);
            share.map_or_else(|| mean(values.clone()), |share| quantile(values.clone(), share))
        };
        let target = if share.is_none() { AtMost(3.0) } else { Info };
        let added = of(&through) - of(&past);
        figures.add(format!("low load: latency that the coordinator adds, {name}"), added, "ms", target);
    }
    beyond(figures, "low load, through the coordinator", &through);
    beyond(figures, "low load, past it", &past);
    let lag = quantile(through.iter().map(|sample| sample.lag.as_secs_f64() * 1e3), 0.5);
    figures.add("low load: sent late by, median", lag, "ms", Info);
    let empty = quantile(cluster.empty_calls_ms().await.into_iter(), 0.5);
    figures.add("low load: a call without content, median", empty, "ms", Info);
    through.extend(past);
    through
}

pub(crate) async fn run() -> Figures {
    let mut figures = Figures::default();
    let cluster = Cluster::start(Size::of(64)).await;
    let low = low(&mut figures, &cluster).await;

    let high = Load::new(cluster.clients(), 2);
    let mut running = high.closed(PLACES, RAMP);
    let (mut memory, mut before, mut after) = (Vec::new(), None, None);
    for mark in MARKS {
        until(&high, mark).await;
        memory.push((mark, cluster.coordinator_mib()));
        let meters = (Instant::now(), cluster.coordinator_seconds(), cluster.busy().await, processors());
        if before.is_none() { before = Some(meters) } else { after = Some(meters) }
    }
    high.stop();
    while running.join_next().await.is_some() {}
    let ((from, cpu_before, busy_before, all_before), (to, cpu_after, busy_after, all_after)) =
        before.zip(after).expect("more than one mark");

    let samples = high.samples();
    let window: Vec<_> = samples.iter().filter(|s| s.ended() >= from && s.ended() <= to).cloned().collect();
    let pictures = window.iter().filter(|sample| sample.answered()).count() as f64;
    let seconds = (to - from).as_secs_f64();
    figures.add("high load: pictures a second", pictures / seconds, "", Info);
    for ((stage, before), (_, after)) in busy_before.into_iter().zip(busy_after) {
        let target = if stage == "base-unet" { AtLeast(95.0) } else { Info };
        figures.add(format!("high load: {stage} busy"), 100.0 * (after - before) / seconds, "%", target);
    }
    let cost = (cpu_after - cpu_before) / pictures * 1e3;
    figures.add("high load: coordinator's processor time a picture", cost, "ms", AtMost(5.0));
    beyond(&mut figures, "high load", &window);
    let used = 100.0 * (all_after.0 - all_before.0) / (all_after.1 - all_before.1);
    figures.add("high load: processors in use, by whomever", used, "%", Info);
    let first = memory[0].1;
    for (mark, mib) in memory {
        let target = if mark == MARKS[0] { Info } else { AtMost((first * 1.1).round()) };
        figures.add(format!("coordinator's memory after {mark} pictures"), mib, "MiB", target);
    }
    let failed = low.iter().chain(&samples).filter(|sample| !sample.answered());
    figures.add("requests that were not answered", failed.count() as f64, "", AtMost(0.0));
    figures
}

/// Waits until so many requests have ended.
async fn until(load: &Load, ended: usize) {
    let mut told = load.ended() / 1000;
    while load.ended() < ended {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if load.ended() / 1000 > told {
            told = load.ended() / 1000;
            eprintln!("{} pictures", told * 1000);
        }
    }
}

/// Latency beyond what the stages account for, and where it arises.
fn beyond(figures: &mut Figures, when: &str, samples: &[Sample]) {
    let of_all = || samples.iter().filter_map(Sample::added_ms);
    figures.add(format!("{when}: latency beyond the stages' time, mean"), mean(of_all()), "ms", Info);
    for (name, share) in [("median", 0.5), ("95th percentile", 0.95)] {
        let value = quantile(of_all(), share);
        figures.add(format!("{when}: latency beyond the stages' time, {name}"), value, "ms", Info);
    }
    for (stage, name) in [
        (Stage::TextEncoder, "text-encoder"),
        (Stage::BaseUnet, "base-unet"),
        (Stage::Refiner, "refiner"),
        (Stage::Vae, "vae"),
    ] {
        let hop = samples.iter().filter_map(|sample| {
            let Outcome::Answered(timings) = &sample.outcome else { return None };
            let timing = timings.iter().find(|timing| timing.stage() == stage)?;
            let of = |time: Option<prost_types::Duration>| Duration::try_from(time?).ok();
            let total = of(timing.total_time)?.as_secs_f64();
            Some((total - of(timing.queue_time)?.as_secs_f64() - of(timing.run_time)?.as_secs_f64()) * 1e3)
        });
        figures.add(format!("{when}: of it in the call of {name}"), mean(hop), "ms", Info);
    }
    let elsewhere: Vec<_> = samples.iter().filter_map(Sample::between_and_within_ms).collect();
    if !elsewhere.is_empty() {
        let between = mean(elsewhere.iter().map(|(between, _)| *between));
        figures.add(format!("{when}: of it between client and coordinator"), between, "ms", Info);
        let within = mean(elsewhere.iter().map(|(_, within)| *within));
        figures.add(format!("{when}: of it in the coordinator, in no call"), within, "ms", Info);
    }
}

//! The figures: what `--json` prints, and what the tables are made of. Times are in seconds.

use super::{
    baseline::Baseline,
    call::{Outcome, Sample, Timing},
    load::{Load, Pace, Run, WarmUp},
    quantiles::Quantiles,
};
use sdxl_core::{Priority, StageKind};
use sdxl_runtime::rpc::status_name;
use serde::Serialize;
use std::collections::BTreeMap;
use tonic::Code;

/// What is known before the load.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) endpoint: String,
    pub(super) model: String,
    pub(super) seed: u64,
    pub(super) load: Load,
    /// Ready replicas of each stage.
    pub(super) replicas: BTreeMap<StageKind, u32>,
    /// What was seen before the load.
    pub(super) baseline: Baseline,
}

/// All figures of one load.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) endpoint: String,
    pub(super) model: String,
    /// Makes the same load again.
    pub(super) seed: u64,
    /// Whether a person ended it early.
    pub(super) interrupted: bool,
    pub(super) load: LoadReport,
    /// The measured time.
    pub(super) measured_s: f64,
    pub(super) requests: Requests,
    pub(super) throughput: Throughput,
    pub(super) goodput: Goodput,
    /// Requests by gRPC code.
    pub(super) outcomes: BTreeMap<&'static str, u64>,
    /// The first message with each code but OK.
    pub(super) messages: BTreeMap<&'static str, String>,
    /// How much later than planned requests were sent: what the client itself adds.
    pub(super) lag_s: Option<Quantiles>,
    /// Of requests that were answered.
    pub(super) latency_s: Option<Quantiles>,
    /// Of requests that were answered.
    pub(super) slowdown: Option<Quantiles>,
    /// Latency of requests that ended with RESOURCE_EXHAUSTED.
    pub(super) time_to_refusal_s: Option<Quantiles>,
    pub(super) text_encoder: TextEncoder,
    pub(super) stages: Vec<StageReport>,
    pub(super) by_size: Vec<Group>,
    pub(super) by_tenant: Vec<Group>,
    pub(super) by_priority: Vec<Group>,
}

/// The load that was asked for, and the rate that it came to.
#[derive(Debug, Serialize)]
pub(super) struct LoadReport {
    /// "open" or "closed".
    pub(super) mode: &'static str,
    /// Requests a second that were asked for, of an open loop.
    pub(super) requested_rate: Option<f64>,
    /// Requests a second that were sent, of an open loop: less than asked for where the client is too slow.
    pub(super) achieved_rate: Option<f64>,
    /// Of a closed loop.
    pub(super) concurrency: Option<usize>,
    pub(super) warm_up_s: Option<f64>,
    pub(super) warm_up_requests: Option<u64>,
}

/// Counts of the requests that came after the warm-up.
#[derive(Debug, Serialize)]
pub(super) struct Requests {
    /// All.
    pub(super) arrived: u64,
    /// Not sent, because too many were in flight.
    pub(super) dropped: u64,
    /// Given up after `--timeout`.
    pub(super) no_answer: u64,
    /// Cut off by Ctrl-C.
    pub(super) unfinished: u64,
}

/// Of what was answered in the measured time.
#[derive(Debug, Serialize)]
pub(super) struct Throughput {
    pub(super) requests_per_s: f64,
    pub(super) pictures_per_s: f64,
    /// Denoising steps of base and refiner.
    pub(super) steps_per_s: f64,
}

/// Pictures of requests that were answered in whole before their deadlines.
#[derive(Debug, Serialize)]
pub(super) struct Goodput {
    /// Of those that came in the measured time.
    pub(super) pictures_per_s: f64,
    /// Of the pictures that were asked for in the measured time; those that Ctrl-C cut off do not count.
    pub(super) share: Option<f64>,
}

/// How many answered requests needed the text encoder; caches had the texts of the others.
#[derive(Debug, Serialize)]
pub(super) struct TextEncoder {
    pub(super) requests: u64,
    pub(super) calls: u64,
}

/// One stage's work; `queue`, `run` and `total` are of each call.
#[derive(Debug, Serialize)]
pub(super) struct StageReport {
    pub(super) stage: &'static str,
    /// Ready at the load's start.
    pub(super) replicas: u32,
    pub(super) calls: usize,
    /// Sum of run times over replicas x measured time; `None` where either is 0.
    pub(super) utilisation: Option<f64>,
    pub(super) queue_s: Option<Quantiles>,
    pub(super) run_s: Option<Quantiles>,
    pub(super) total_s: Option<Quantiles>,
}

/// Requests that have something in common.
#[derive(Debug, Serialize)]
pub(super) struct Group {
    /// A size as `HEIGHTxWIDTH`, or a name; empty for the tenant that has none.
    pub(super) name: String,
    pub(super) requests: u64,
    pub(super) answered: u64,
    pub(super) refused: u64,
    /// The share of the requests that were answered before their deadlines.
    pub(super) in_time: f64,
    pub(super) latency_s: Option<Quantiles>,
    pub(super) slowdown: Option<Quantiles>,
}

impl Report {
    /// The figures of `run`.
    pub(super) fn new(setup: &Setup, run: &Run) -> Self {
        let mut baseline = setup.baseline.clone();
        for sample in &run.samples {
            baseline.learn(sample.work.size, sample.timings());
        }
        let figures = Figures {
            run,
            baseline,
            measured: run.samples.iter().filter(|sample| sample.measured).collect(),
            window: run.samples.iter().filter(|s| s.ended() >= run.from && s.ended() <= run.to).collect(),
        };
        figures.report(setup)
    }
}

/// What the figures are made of.
struct Figures<'a> {
    run: &'a Run,
    baseline: Baseline,
    /// What was sent in the measured time.
    measured: Vec<&'a Sample>,
    /// What ended in the measured time.
    window: Vec<&'a Sample>,
}

impl Figures<'_> {
    fn report(&self, setup: &Setup) -> Report {
        let (measured, run) = (&self.measured, self.run);
        let dropped = count(measured, |s| matches!(s.outcome, Outcome::Dropped));
        let no_answer = count(measured, |s| matches!(s.outcome, Outcome::NoAnswer));
        let arrived = measured.len() as u64 + run.unfinished;
        let seconds = run.sent_until.saturating_sub(run.from).as_secs_f64();
        let (outcomes, messages) = outcomes(measured);
        let sent = measured.iter().filter(|s| !matches!(s.outcome, Outcome::Dropped));
        Report {
            endpoint: setup.endpoint.clone(),
            model: setup.model.clone(),
            seed: setup.seed,
            interrupted: run.interrupted,
            load: load(&setup.load, (seconds > 0.0).then(|| (arrived - dropped) as f64 / seconds)),
            measured_s: run.seconds(),
            requests: Requests { arrived, dropped, no_answer, unfinished: run.unfinished },
            throughput: self.throughput(),
            goodput: self.goodput(),
            outcomes,
            messages,
            lag_s: Quantiles::of(sent.map(|s| s.lag.as_secs_f64())),
            latency_s: latency(measured, answered),
            slowdown: self.slowdown(measured),
            time_to_refusal_s: latency(measured, refused),
            text_encoder: TextEncoder {
                requests: count(measured, answered),
                calls: count(measured, |s| {
                    s.timings().iter().any(|t| t.stage == StageKind::TextEncoder && t.run > 0.0)
                }),
            },
            stages: self.stages(&setup.replicas),
            by_size: self.groups(|s| format!("{}x{}", s.work.size.height, s.work.size.width)),
            by_tenant: self.groups(|s| s.work.tenant.name().to_owned()),
            by_priority: self.groups(|s| Priority::name(s.work.priority).to_owned()),
        }
    }

    fn throughput(&self) -> Throughput {
        let steps = self.window.iter().flat_map(|s| s.timings()).map(|t| f64::from(t.steps));
        Throughput {
            requests_per_s: self.a_second(count(&self.window, answered) as f64),
            pictures_per_s: self.a_second(sum(self.window.iter().map(|s| pictures(s)))),
            steps_per_s: self.a_second(sum(steps)),
        }
    }

    fn goodput(&self) -> Goodput {
        let good =
            |samples: &[&Sample]| -> f64 { sum(samples.iter().filter(|s| s.in_time()).map(|s| pictures(s))) };
        let asked = sum(self.measured.iter().map(|s| f64::from(s.work.num_images)));
        Goodput {
            pictures_per_s: self.a_second(good(&self.window)),
            share: (asked > 0.0).then(|| good(&self.measured) / asked),
        }
    }

    fn a_second(&self, count: f64) -> f64 {
        let seconds = self.run.seconds();
        if seconds > 0.0 { count / seconds } else { 0.0 }
    }

    /// Latency over what each request would have taken alone.
    fn slowdown(&self, samples: &[&Sample]) -> Option<Quantiles> {
        Quantiles::of(samples.iter().filter_map(|sample| {
            let alone = self.baseline.alone(sample.work.size, sample.timings())?;
            Some(sample.latency.as_secs_f64() / alone)
        }))
    }

    fn stages(&self, replicas: &BTreeMap<StageKind, u32>) -> Vec<StageReport> {
        let report = |stage: StageKind| {
            let replicas = replicas.get(&stage).copied().unwrap_or_default();
            let calls = calls(&self.measured, stage);
            if replicas == 0 && calls.is_empty() {
                return None;
            }
            let run = sum(self::calls(&self.window, stage).iter().map(|t| t.run));
            let most = f64::from(replicas) * self.run.seconds();
            let of = |value: fn(&Timing) -> f64| Quantiles::of(calls.iter().map(|t| value(t)));
            Some(StageReport {
                stage: stage.name(),
                replicas,
                calls: calls.len(),
                utilisation: (most > 0.0).then(|| run / most),
                queue_s: of(|t| t.queue),
                run_s: of(|t| t.run),
                total_s: of(|t| t.total),
            })
        };
        StageKind::ALL.into_iter().filter_map(report).collect()
    }

    fn groups(&self, name: impl Fn(&Sample) -> String) -> Vec<Group> {
        let mut groups: BTreeMap<String, Vec<&Sample>> = BTreeMap::new();
        for sample in &self.measured {
            groups.entry(name(sample)).or_default().push(sample);
        }
        let group = |(name, samples): (String, Vec<&Sample>)| Group {
            name,
            requests: samples.len() as u64,
            answered: count(&samples, answered),
            refused: count(&samples, refused),
            in_time: count(&samples, Sample::in_time) as f64 / samples.len() as f64,
            latency_s: latency(&samples, answered),
            slowdown: self.slowdown(&samples),
        };
        groups.into_iter().map(group).collect()
    }
}

fn load(load: &Load, achieved_rate: Option<f64>) -> LoadReport {
    let (mode, requested_rate, concurrency) = match load.pace {
        Pace::Open { rate, .. } => ("open", Some(rate), None),
        Pace::Closed { concurrency } => ("closed", None, Some(concurrency)),
    };
    let (warm_up_s, warm_up_requests) = match load.warm_up {
        WarmUp::Time(time) => (Some(time.as_secs_f64()), None),
        WarmUp::Requests(requests) => (None, Some(requests)),
    };
    let achieved_rate = achieved_rate.filter(|_| requested_rate.is_some());
    LoadReport { mode, requested_rate, achieved_rate, concurrency, warm_up_s, warm_up_requests }
}

/// How many requests ended with each code, and what the first said.
fn outcomes(samples: &[&Sample]) -> (BTreeMap<&'static str, u64>, BTreeMap<&'static str, String>) {
    let (mut outcomes, mut messages) = (BTreeMap::new(), BTreeMap::new());
    for sample in samples {
        let code = match &sample.outcome {
            Outcome::Answered { .. } => Code::Ok,
            Outcome::Failed { code, message } => {
                messages.entry(status_name(*code)).or_insert_with(|| message.clone());
                *code
            }
            Outcome::NoAnswer | Outcome::Dropped => continue,
        };
        *outcomes.entry(status_name(code)).or_default() += 1;
    }
    (outcomes, messages)
}

/// A stage's calls that ran; texts that a cache had were none.
fn calls<'a>(samples: &[&'a Sample], stage: StageKind) -> Vec<&'a Timing> {
    let timings = samples.iter().flat_map(|sample| sample.timings());
    timings.filter(|t| t.stage == stage && (t.run > 0.0 || stage != StageKind::TextEncoder)).collect()
}

fn count(samples: &[&Sample], is: impl Fn(&Sample) -> bool) -> u64 {
    samples.iter().filter(|sample| is(sample)).count() as u64
}

/// From 0: the sum of no numbers is -0 in Rust, which looks odd in a table.
fn sum(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |sum, value| sum + value)
}

fn latency(samples: &[&Sample], is: fn(&Sample) -> bool) -> Option<Quantiles> {
    Quantiles::of(samples.iter().filter(|sample| is(sample)).map(|sample| sample.latency.as_secs_f64()))
}

fn answered(sample: &Sample) -> bool {
    matches!(sample.outcome, Outcome::Answered { .. })
}

fn refused(sample: &Sample) -> bool {
    matches!(sample.outcome, Outcome::Failed { code: Code::ResourceExhausted, .. })
}

fn pictures(sample: &Sample) -> f64 {
    match sample.outcome {
        Outcome::Answered { pictures, .. } => pictures.into(),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests;

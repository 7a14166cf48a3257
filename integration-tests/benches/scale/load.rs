//! Requests in a closed loop or an open one, and what came of each.

use super::direct::Direct;
use integration_tests::Clients;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sdxl_proto::v1::{self, RequestTiming, StageTiming};
use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::sleep_until};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

/// Denoising steps of a picture, drawn anew for each, so that pictures do not stay in step.
pub(crate) const STEPS: Range<u32> = 20..31;
/// The base's part of them: with four times as many bases as refiners these are less busy.
pub(crate) const SPLIT: f32 = 0.88;

/// How a request ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Answered(Vec<StageTiming>),
    /// RESOURCE_EXHAUSTED, with a RetryInfo or without.
    Refused {
        says_when: bool,
    },
    Failed(Code, String),
}

/// A request that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) tenant: &'static str,
    pub(crate) due: Instant,
    /// How much later than that it was sent.
    pub(crate) lag: Duration,
    /// From `due` to its end.
    pub(crate) latency: Duration,
    pub(crate) deadline: Option<Duration>,
    pub(crate) outcome: Outcome,
    /// What a coordinator says of the request as a whole.
    pub(crate) request: Option<RequestTiming>,
}

impl Sample {
    pub(crate) fn ended(&self) -> Instant {
        self.due + self.latency
    }

    pub(crate) fn answered(&self) -> bool {
        matches!(self.outcome, Outcome::Answered(_))
    }

    pub(crate) fn refused(&self) -> bool {
        matches!(self.outcome, Outcome::Refused { .. })
    }

    /// Answered, before its deadline where it has one.
    pub(crate) fn in_time(&self) -> bool {
        self.answered() && self.deadline.is_none_or(|deadline| self.latency <= deadline)
    }

    /// What a stage says that its picture waited and ran there, in milliseconds.
    pub(crate) fn at(&self, stage: v1::Stage) -> Option<f64> {
        let Outcome::Answered(timings) = &self.outcome else { return None };
        let times = timings
            .iter()
            .filter(|timing| timing.stage() == stage)
            .flat_map(|timing| [timing.queue_time, timing.run_time])
            .filter_map(|time| time.and_then(|time| Duration::try_from(time).ok()));
        Some(times.map(|time| time.as_secs_f64()).sum::<f64>() * 1e3)
    }

    /// Latency since it was sent, less what the stages say that it waited and ran there, in milliseconds. It has one
    /// picture, so all its calls follow each other.
    pub(crate) fn added_ms(&self) -> Option<f64> {
        let Outcome::Answered(timings) = &self.outcome else { return None };
        let of = |time: Option<prost_types::Duration>| time.and_then(|t| Duration::try_from(t).ok());
        let at_stages: f64 = timings
            .iter()
            .flat_map(|timing| [of(timing.queue_time), of(timing.run_time)])
            .flatten()
            .map(|time| time.as_secs_f64())
            .sum();
        Some(((self.latency - self.lag).as_secs_f64() - at_stages) * 1e3)
    }

    /// What of that has passed before its request arrived in the coordinator and since the answer was made there, and what has
    /// passed in the coordinator while no stage was called; in milliseconds.
    pub(crate) fn between_and_within_ms(&self) -> Option<(f64, f64)> {
        let Outcome::Answered(timings) = &self.outcome else { return None };
        let of = |time: Option<prost_types::Duration>| Some(Duration::try_from(time?).ok()?.as_secs_f64());
        let total = of(self.request?.total_time)?;
        let called: f64 = timings.iter().filter_map(|timing| of(timing.total_time)).sum();
        Some((((self.latency - self.lag).as_secs_f64() - total) * 1e3, (total - called) * 1e3))
    }
}

/// Who makes the pictures.
pub(crate) enum To {
    /// A coordinator, over these connections by turns.
    Coordinator(Vec<Clients>),
    /// The stages, which are called by the client itself; there are no tenants and no deadlines then.
    Stages(Box<Direct>),
}

/// Sends requests and keeps what comes of them.
pub(crate) struct Load {
    to: To,
    seed: u64,
    sent: AtomicU64,
    samples: Mutex<Vec<Sample>>,
    over: AtomicBool,
}

impl Load {
    /// Requests to a coordinator over `clients` by turns; each `seed` has prompts of its own.
    pub(crate) fn new(clients: Vec<Clients>, seed: u64) -> Arc<Self> {
        Self::to(To::Coordinator(clients), seed)
    }

    /// The same to whomever.
    pub(crate) fn to(to: To, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            to,
            seed,
            sent: AtomicU64::new(0),
            samples: Mutex::default(),
            over: AtomicBool::new(false),
        })
    }

    /// How many have ended.
    pub(crate) fn ended(&self) -> usize {
        self.samples.lock().expect("no caller panicked").len()
    }

    /// All that have ended.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.samples.lock().expect("no caller panicked").clone()
    }

    /// Sends no more.
    pub(crate) fn stop(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// `places` requests at a time until it is stopped; the places are taken one after the other over `ramp`, so that
    /// the cluster's batches do not begin all at once.
    pub(crate) fn closed(self: &Arc<Self>, places: u32, ramp: Duration) -> JoinSet<()> {
        let mut running = JoinSet::new();
        for place in 0..places {
            let (load, begin) = (Arc::clone(self), Instant::now() + ramp / places * place);
            running.spawn(async move {
                sleep_until(begin.into()).await;
                while !load.over.load(Ordering::Relaxed) {
                    load.send("", None, Instant::now()).await;
                }
            });
        }
        running
    }

    /// `rate` requests a second of a tenant, as a Poisson process, for `time`, whether or not others are done; returns
    /// when all have ended.
    pub(crate) async fn open(
        self: &Arc<Self>,
        tenant: &'static str,
        rate: f64,
        time: Duration,
        deadline: Option<Duration>,
    ) {
        let mut draws = StdRng::seed_from_u64(self.seed ^ tenant.len() as u64);
        let (started, mut at, mut running) = (Instant::now(), 0.0, JoinSet::new());
        loop {
            let unit: f64 = draws.random();
            at -= (1.0 - unit).ln() / rate;
            if at > time.as_secs_f64() || self.over.load(Ordering::Relaxed) {
                break;
            }
            let due = started + Duration::from_secs_f64(at);
            sleep_until(due.into()).await;
            let load = Arc::clone(self);
            running.spawn(async move { load.send(tenant, deadline, due).await });
        }
        while running.join_next().await.is_some() {}
    }

    async fn send(&self, tenant: &'static str, deadline: Option<Duration>, due: Instant) {
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let lag = due.elapsed();
        let answer = match &self.to {
            To::Coordinator(clients) => {
                let clients = &clients[usize::try_from(number).expect("few requests") % clients.len()];
                let request = self.terms(number, tenant, deadline, due);
                let answer = clients.images().generate(request).await.map(tonic::Response::into_inner);
                answer.map(|answer| (answer.timings, answer.request_timing))
            }
            To::Stages(direct) => direct.picture(self.seed, number).await.map(|timings| (timings, None)),
        };
        let latency = due.elapsed();
        let (outcome, request) = match answer {
            Ok((timings, request)) => (Outcome::Answered(timings), request),
            Err(status) => (failed(&status), None),
        };
        let sample = Sample { tenant, due, lag, latency, deadline, outcome, request };
        self.samples.lock().expect("no caller panicked").push(sample);
    }

    fn terms(
        &self,
        number: u64,
        tenant: &'static str,
        deadline: Option<Duration>,
        due: Instant,
    ) -> Request<v1::GenerateRequest> {
        let mut request = Request::new(self.request(number));
        if !tenant.is_empty() {
            request.metadata_mut().insert("sdxl-tenant", tenant.parse().expect("a name"));
        }
        if let Some(deadline) = deadline {
            // Not by set_timeout: tonic's client would end the call itself then.
            let left = deadline.saturating_sub(due.elapsed()).as_millis();
            request.metadata_mut().insert("grpc-timeout", format!("{left}m").parse().expect("a time"));
        }
        request
    }

    fn request(&self, number: u64) -> v1::GenerateRequest {
        let mut draws = StdRng::seed_from_u64(self.seed << 32 | number);
        v1::GenerateRequest {
            prompt: format!("picture {number} of {}", self.seed),
            width: 1024,
            height: 1024,
            num_inference_steps: draws.random_range(STEPS),
            seed: Some(draws.random()),
            refiner: Some(v1::Refiner {
                mode: Some(v1::refiner::Mode::DenoisingSplit(SPLIT)),
                ..v1::Refiner::default()
            }),
            ..v1::GenerateRequest::default()
        }
    }
}

fn failed(status: &Status) -> Outcome {
    if status.code() == Code::ResourceExhausted {
        return Outcome::Refused { says_when: status.get_details_retry_info().is_some() };
    }
    Outcome::Failed(status.code(), status.message().to_owned())
}

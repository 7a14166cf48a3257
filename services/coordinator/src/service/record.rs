//! The one log line of a request. Prompts are never in it.

use crate::pipeline::{GenerateError, Lookups, Outcome};
use sdxl_core::{Classify, ErrorClass, Plan};
use sdxl_proto::convert;
use sdxl_runtime::{Deadline, metrics::catalogue};
use std::time::{Duration, Instant};
use tracing::{Span, info};

/// A call ends so much before its deadline, that its answer still gets through: it is the deadline's doing all the same.
const EARLIER: Duration = Duration::from_millis(10);

/// What asked for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A call that waits for it.
    Call,
    /// A job, which may ask again.
    Job,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Job => "job",
        }
    }
}

/// What asked for a request, and when: its timings count from then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(super) kind: Kind,
    pub(super) at: Instant,
}

impl Arrival {
    /// Of what asks now.
    pub(crate) fn now(kind: Kind) -> Self {
        Self { kind, at: Instant::now() }
    }
}

/// A request at work; its line is written when it is dropped.
#[derive(Debug)]
pub(super) struct Record {
    kind: Kind,
    /// The request's own, which learns how it ended.
    span: Span,
    started: Instant,
    deadline: Option<Deadline>,
    /// As height x width.
    size: String,
    pictures: usize,
    /// Of all pictures.
    steps: usize,
    queue_time: Duration,
    run_time: Duration,
    cache: Lookups,
    outcome: Option<&'static str>,
    error: Option<String>,
}

impl Record {
    pub(super) fn start(kind: Kind, deadline: Option<Deadline>) -> Self {
        Self {
            kind,
            span: Span::current(),
            started: Instant::now(),
            deadline,
            size: String::new(),
            pictures: 0,
            steps: 0,
            queue_time: Duration::ZERO,
            run_time: Duration::ZERO,
            cache: Lookups::default(),
            outcome: None,
            error: None,
        }
    }

    pub(super) fn planned(&mut self, plan: &Plan) {
        self.size = format!("{}x{}", plan.size.height, plan.size.width);
        self.pictures = plan.seeds.len();
        self.steps = self.pictures * usize::try_from(plan.steps()).unwrap_or(0);
    }

    pub(super) fn done(&mut self, outcome: &Outcome) {
        self.outcome = Some("ok");
        self.cache = outcome.cache;
        for timing in &outcome.timings {
            self.queue_time += convert::duration_or_zero(timing.queue_time);
            self.run_time += convert::duration_or_zero(timing.run_time);
        }
    }

    pub(super) fn failed(&mut self, error: &GenerateError) {
        self.outcome = Some(match error.class() {
            ErrorClass::InvalidRequest
            | ErrorClass::NotFound
            | ErrorClass::AlreadyExists
            | ErrorClass::Unauthenticated
            | ErrorClass::PermissionDenied
            | ErrorClass::FailedPrecondition => "invalid",
            ErrorClass::Overloaded => "refused",
            ErrorClass::DeadlineExceeded => "deadline",
            ErrorClass::Cancelled => "cancelled",
            ErrorClass::Unavailable | ErrorClass::Internal => "failed",
        });
        self.error = Some(error.to_string());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Without an end of its own it was dropped by whoever asked.
        let is_late = self.deadline.is_some_and(|deadline| deadline.remaining() < EARLIER);
        let given_up = if is_late { "deadline" } else { "cancelled" };
        let outcome = self.outcome.unwrap_or(given_up);
        self.measure(outcome);
        info!(
            parent: &self.span,
            outcome,
            error = self.error,
            size = self.size,
            pictures = self.pictures,
            steps = self.steps,
            elapsed_ms = milliseconds(self.started.elapsed()),
            queue_ms = milliseconds(self.queue_time),
            run_ms = milliseconds(self.run_time),
            cache_hits = self.cache.hits,
            cache_misses = self.cache.misses,
            "request"
        );
    }
}

impl Record {
    fn measure(&self, outcome: &'static str) {
        self.span.record("outcome", outcome);
        if matches!(outcome, "deadline" | "failed") {
            self.span.record("otel.status_code", "ERROR");
        }
        let labels = || [self.kind.name().into(), outcome.into()];
        catalogue::REQUESTS.add(1, labels());
        catalogue::REQUEST_DURATION.record_in(&self.span, self.started.elapsed().as_secs_f64(), labels());
        if outcome == "ok" {
            catalogue::PICTURES.add(self.pictures as u64, []);
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

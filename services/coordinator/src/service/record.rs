//! The one log line of a request. Prompts are never in it.

use crate::pipeline::{GenerateError, Lookups, Outcome};
use sdxl_core::{Classify, ErrorClass, Plan};
use sdxl_proto::convert;
use sdxl_runtime::Deadline;
use std::time::{Duration, Instant};
use tracing::info;

/// A request at work; its line is written when it is dropped.
#[derive(Debug)]
pub(super) struct Record {
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
    pub(super) fn start(deadline: Option<Deadline>) -> Self {
        Self {
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
        let given_up = if self.deadline.is_some_and(Deadline::passed) { "deadline" } else { "cancelled" };
        info!(
            outcome = self.outcome.unwrap_or(given_up),
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

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

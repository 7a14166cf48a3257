//! What is told of runs and steps: their spans, and metrics.
//!
//! A run is in its caller's trace. What several runs share, a batch, is a span in the trace of the first of them that is
//! sampled, with links to all; each of the others names it in the event of its step.

use crate::error::StageError;
use sdxl_core::{Classify, ErrorClass, Size, StageKind};
use sdxl_runtime::{
    metrics::{Shapes, catalogue},
    propagation::{self, SpanRef, Value},
    telemetry,
};
use std::{borrow::Cow, cell::RefCell, time::Duration};
use tracing::{Span, field::Empty, info_span};

/// How a run can end.
const OUTCOMES: [&str; 6] = ["ok", "invalid", "deadline", "cancelled", "handed_over", "failed"];

/// A stage's runs that have not ended yet are there as 0, so that the first that does is seen as a change.
pub(super) fn begin(stage: StageKind) {
    for outcome in OUTCOMES {
        catalogue::RUNS.add(0, [stage.name().into(), outcome.into()]);
    }
}

/// A run's spans, from its being submitted to its end.
#[derive(Debug)]
pub(super) struct RunSpan {
    span: Span,
    of: SpanRef,
    /// While it waits.
    queue: Option<Span>,
}

impl RunSpan {
    /// Of a run that is submitted in the current span.
    pub(super) fn new() -> Self {
        let span = info_span!(
            "run",
            queue_ms = Empty,
            run_ms = Empty,
            outcome = Empty,
            otel.status_code = Empty,
            "error.type" = Empty,
        );
        let queue = info_span!(parent: &span, "queue");
        Self { of: SpanRef::of(&span), span, queue: Some(queue) }
    }

    /// It has left the queue.
    pub(super) fn begun(&mut self, queue_time: Duration) {
        self.queue = None;
        self.span.record("queue_ms", milliseconds(queue_time));
    }

    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// How it ended, after so long on the device.
    pub(super) fn ended(&self, stage: StageKind, outcome: &'static str, run_time: Duration) {
        debug_assert!(OUTCOMES.contains(&outcome), "{outcome} did not begin at 0");
        self.span.record("run_ms", milliseconds(run_time));
        self.span.record("outcome", outcome);
        // A span ends when it was last left, and while it was in batches it was not entered.
        self.span.in_scope(|| ());
        if matches!(outcome, "deadline" | "failed") {
            self.span.record("otel.status_code", "ERROR");
            self.span.record("error.type", outcome);
        }
        catalogue::RUNS.add(1, [stage.name().into(), outcome.into()]);
    }
}

/// How a run ended that ended with `error`.
pub(super) fn outcome(error: &StageError) -> &'static str {
    match error {
        StageError::Draining => "handed_over",
        error => match error.class() {
            ErrorClass::InvalidRequest => "invalid",
            ErrorClass::DeadlineExceeded => "deadline",
            _ => "failed",
        },
    }
}

/// What tells of the steps of one stage.
#[derive(Debug)]
pub(super) struct Steps {
    stage: StageKind,
    shapes: Shapes,
}

impl Steps {
    pub(super) fn new(stage: StageKind) -> Self {
        Self { stage, shapes: Shapes::default() }
    }

    pub(super) fn stage(&self) -> StageKind {
        self.stage
    }

    /// The span of a step that these runs take together: their batch's, or the one run's own where its steps are events.
    pub(super) fn span<'a>(&self, runs: impl Iterator<Item = &'a RunSpan> + Clone) -> StepSpan {
        let together = runs.clone().count();
        let Some(first) = runs.clone().find(|run| run.of.is_sampled()).or_else(|| runs.clone().next()) else {
            return StepSpan { span: RefCell::new(Span::none()), of: None };
        };
        if !first.of.is_sampled() || (together == 1 && !telemetry::detail().steps) {
            let span = if together == 1 { first.span.clone() } else { Span::none() };
            return StepSpan { span: RefCell::new(span), of: None };
        }
        let name = if together == 1 { "step" } else { "batch" };
        let span =
            info_span!(parent: &first.span, "step", otel.name = name, stage = %self.stage, batch = together);
        if together > 1 {
            runs.for_each(|run| propagation::link(&span, &run.of, "member"));
        }
        StepSpan { of: Some(SpanRef::of(&span)), span: RefCell::new(span) }
    }

    /// A step was done by so many runs together, in pictures of one size.
    pub(super) fn done(&mut self, size: Size, together: usize, time: Duration) {
        let stage: Cow<'static, str> = self.stage.name().into();
        let size = if size == Size::new(0, 0) { "none".into() } else { self.shapes.label(size) };
        let labels = [stage.clone(), size, power_of_two(together).into()];
        catalogue::STEP_DURATION.record(time.as_secs_f64(), labels);
        #[expect(clippy::cast_precision_loss, reason = "some dozens at most")]
        catalogue::STEP_BATCH.record(together as f64, [stage]);
    }
}

/// The span of one step.
#[derive(Debug)]
pub(super) struct StepSpan {
    span: RefCell<Span>,
    /// Where it is the step's own.
    of: Option<SpanRef>,
}

impl StepSpan {
    pub(super) fn in_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        let span = self.span.borrow().clone();
        span.in_scope(work)
    }

    /// The step is known to be done: later than it was begun, where the device is ahead.
    pub(super) fn is_over(&self) {
        // A span ends when it was last left, and is sent when nobody has it.
        self.span.replace(Span::none()).in_scope(|| ());
    }

    /// Notes the step in a run that took it, its `step`th, with so many others.
    pub(super) fn note(&self, run: &RunSpan, step: usize, together: usize, time: Duration) {
        if !run.of.is_sampled() || (together == 1 && self.of.is_some()) {
            return;
        }
        let number = |n: usize| Value::I64(i64::try_from(n).unwrap_or(i64::MAX));
        let ms = Value::F64(time.as_secs_f64() * 1000.0);
        let said = [("step", number(step)), ("batch", number(together)), ("step_ms", ms)];
        match &self.of {
            None => propagation::event(&run.span, "step", said),
            Some(batch) => {
                let [step, batch_size, ms] = said;
                let span = ("batch_span_id", Value::from(batch.span_id()));
                propagation::event(&run.span, "step", [step, batch_size, ms, span]);
            }
        }
    }
}

/// The next power of two, up to 64: a label.
fn power_of_two(count: usize) -> &'static str {
    match count {
        0 | 1 => "1",
        2 => "2",
        3 | 4 => "4",
        5..=8 => "8",
        9..=16 => "16",
        17..=32 => "32",
        _ => "64",
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

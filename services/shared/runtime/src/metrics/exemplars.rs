//! Examples of what is in a histogram's buckets, by trace. The SDK keeps none, so those of `/metrics` are kept here; by
//! OTLP there are none.

use opentelemetry::{StringValue, trace::TraceContextExt};
use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The most series of one histogram that have examples.
const SERIES: usize = 256;

/// A value and the span that it is of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Exemplar {
    pub(super) trace_id: String,
    pub(super) span_id: String,
    pub(super) value: f64,
    /// In seconds since 1970.
    pub(super) at: f64,
}

/// By the values of the labels, and by bucket.
type Kept = HashMap<Vec<StringValue>, HashMap<usize, Exemplar>>;

/// The last of each bucket of each series.
#[derive(Debug)]
pub(super) struct Exemplars(LazyLock<Mutex<Kept>>);

impl Exemplars {
    pub(super) const fn new() -> Self {
        Self(LazyLock::new(Mutex::default))
    }

    /// Keeps `value` of the series with these labels, if its trace is sampled.
    pub(super) fn keep<const N: usize>(
        &self,
        span: &Span,
        value: f64,
        bounds: &[f64],
        labels: &[StringValue; N],
    ) {
        let context = span.context();
        let of = context.span().span_context().clone();
        if !of.is_sampled() {
            return;
        }
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let (trace_id, span_id) = (of.trace_id().to_string(), of.span_id().to_string());
        let bucket = bounds.iter().position(|bound| value <= *bound).unwrap_or(bounds.len());
        let mut kept = self.lock();
        if kept.len() < SERIES || kept.contains_key(labels.as_slice()) {
            let series = kept.entry(labels.to_vec()).or_default();
            series.insert(bucket, Exemplar { trace_id, span_id, value, at });
        }
    }

    /// That of a bucket, if there is one.
    pub(super) fn of(&self, labels: &[StringValue], bucket: usize) -> Option<Exemplar> {
        self.lock().get(labels)?.get(&bucket).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing that holds it can leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Instruments: a name, a unit, labels, and what is made of them at the first use.

use super::exemplars::Exemplars;
use opentelemetry::{KeyValue, StringValue, global, metrics as otel};
use std::{borrow::Cow, sync::OnceLock};
use tracing::Span;

/// What a metric is.
#[derive(Debug)]
pub struct Metric {
    /// As OTLP has it; at `/metrics` dots are underscores, and the unit and `total` follow.
    pub name: &'static str,
    /// As UCUM writes it: `s`, `By`, or what is counted in braces.
    pub unit: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// The names of its labels, whose values come in the same order. Each has few values.
    pub labels: &'static [&'static str],
    /// How it is measured.
    pub kind: Kind,
}

/// How a metric is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// What only grows.
    Counter,
    /// What goes up and down.
    Gauge,
    /// How values are distributed over buckets with these upper bounds.
    Histogram(&'static [f64]),
}

impl Kind {
    /// As Prometheus names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// The scope of all instruments.
const METER: &str = "sdxl";

impl Metric {
    fn attributes<const N: usize>(&self, values: [Cow<'static, str>; N]) -> [KeyValue; N] {
        debug_assert_eq!(self.labels.len(), N, "{} has labels {:?}", self.name, self.labels);
        let mut names = self.labels.iter();
        values
            .map(|value| KeyValue::new(names.next().copied().unwrap_or("unnamed"), StringValue::from(value)))
    }

    /// Its name at `/metrics`, without what follows for a counter or the parts of a histogram.
    #[must_use]
    pub fn exposed_name(&self) -> String {
        let name = self.name.replace('.', "_");
        let unit = match self.unit {
            "s" => "_seconds",
            "By" => "_bytes",
            _ => "",
        };
        format!("{name}{unit}")
    }
}

/// What only grows.
#[derive(Debug)]
pub struct Counter {
    metric: &'static Metric,
    instrument: OnceLock<otel::Counter<u64>>,
}

impl Counter {
    pub(super) const fn new(metric: &'static Metric) -> Self {
        Self { metric, instrument: OnceLock::new() }
    }

    /// Adds to the series with these labels.
    pub fn add<const N: usize>(&self, count: u64, labels: [Cow<'static, str>; N]) {
        let instrument = self.instrument.get_or_init(|| {
            let meter = global::meter(METER);
            let counter = meter.u64_counter(self.metric.name);
            counter.with_unit(self.metric.unit).with_description(self.metric.help).build()
        });
        instrument.add(count, &self.metric.attributes(labels));
    }

    /// Has sums that are kept elsewhere read whenever somebody asks, until the process ends.
    pub fn observe(&self, read: impl Fn(&Emit<'_, f64>) + Send + Sync + 'static) {
        let metric = self.metric;
        let meter = global::meter(METER);
        let counter = meter.f64_observable_counter(metric.name);
        counter
            .with_unit(metric.unit)
            .with_description(metric.help)
            .with_callback(move |observer| read(&Emit { metric, observer }))
            .build();
    }

    pub(super) fn metric(&self) -> &'static Metric {
        self.metric
    }
}

/// What goes up and down, read whenever somebody asks.
#[derive(Debug)]
pub struct Gauge {
    metric: &'static Metric,
}

impl Gauge {
    pub(super) const fn new(metric: &'static Metric) -> Self {
        Self { metric }
    }

    /// Has values read until the process ends.
    pub fn observe(&self, read: impl Fn(&Emit<'_, f64>) + Send + Sync + 'static) {
        let metric = self.metric;
        let meter = global::meter(METER);
        let gauge = meter.f64_observable_gauge(metric.name);
        gauge
            .with_unit(metric.unit)
            .with_description(metric.help)
            .with_callback(move |observer| read(&Emit { metric, observer }))
            .build();
    }

    pub(super) fn metric(&self) -> &'static Metric {
        self.metric
    }
}

/// Where values that are read go to.
#[expect(missing_debug_implementations, reason = "an observer has none")]
pub struct Emit<'a, T> {
    metric: &'static Metric,
    observer: &'a dyn otel::AsyncInstrument<T>,
}

impl Emit<'_, f64> {
    /// The value of the series with these labels.
    pub fn value<const N: usize>(&self, value: f64, labels: [Cow<'static, str>; N]) {
        self.observer.observe(value, &self.metric.attributes(labels));
    }
}

/// How values are distributed.
#[derive(Debug)]
pub struct Histogram {
    metric: &'static Metric,
    bounds: &'static [f64],
    instrument: OnceLock<otel::Histogram<f64>>,
    exemplars: Exemplars,
}

impl Histogram {
    pub(super) const fn new(metric: &'static Metric) -> Self {
        let bounds = match metric.kind {
            Kind::Histogram(bounds) => bounds,
            Kind::Counter | Kind::Gauge => &[],
        };
        Self { metric, bounds, instrument: OnceLock::new(), exemplars: Exemplars::new() }
    }

    /// Takes a value into the series with these labels.
    pub fn record<const N: usize>(&self, value: f64, labels: [Cow<'static, str>; N]) {
        self.take(value, &self.metric.attributes(labels));
    }

    /// The same, and keeps the trace of `span`, if that is sampled, as the last example of such a value.
    pub fn record_in<const N: usize>(&self, span: &Span, value: f64, labels: [Cow<'static, str>; N]) {
        let attributes = self.metric.attributes(labels);
        self.take(value, &attributes);
        self.exemplars.keep(span, value, self.bounds, &attributes.map(|attribute| attribute.value.into()));
    }

    fn take(&self, value: f64, attributes: &[KeyValue]) {
        let instrument = self.instrument.get_or_init(|| {
            let meter = global::meter(METER);
            let histogram = meter.f64_histogram(self.metric.name);
            histogram
                .with_unit(self.metric.unit)
                .with_description(self.metric.help)
                .with_boundaries(self.bounds.to_vec())
                .build()
        });
        instrument.record(value, attributes);
    }

    pub(super) fn metric(&self) -> &'static Metric {
        self.metric
    }

    pub(super) fn exemplars(&self) -> &Exemplars {
        &self.exemplars
    }
}

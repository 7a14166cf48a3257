//! Metrics as Prometheus reads them: its own text format, or OpenMetrics, which has room for exemplars.

use super::{catalogue, exemplars::Exemplar, instrument::Metric};
use http::{HeaderMap, header};
use opentelemetry::{KeyValue, StringValue};
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, HistogramDataPoint, MetricData, ResourceMetrics};
use std::{
    collections::BTreeMap,
    fmt::{self, Display, Write},
};

/// How the text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Version 0.0.4.
    Prometheus,
    /// Version 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What the caller wants.
    pub(super) fn accepted(headers: &HeaderMap) -> Self {
        let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if accepted.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The text of all that was collected, metric by metric in the order of their names.
pub(super) fn text(collected: &ResourceMetrics, format: Format) -> String {
    let mut page = Page { text: String::new(), format };
    page.target(collected);
    let data: BTreeMap<_, _> = collected
        .scope_metrics()
        .flat_map(|scope| scope.metrics())
        .filter_map(|metric| Some((metric.name(), (catalogue::named(metric.name())?, metric.data()))))
        .collect();
    for (metric, data) in data.into_values() {
        page.metric(metric, data);
    }
    if format == Format::OpenMetrics {
        page.text.push_str("# EOF\n");
    }
    page.text
}

struct Page {
    text: String,
    format: Format,
}

impl Page {
    /// A line; writing to a string cannot fail.
    fn line(&mut self, line: fmt::Arguments<'_>) {
        let _ = self.text.write_fmt(line);
        self.text.push('\n');
    }

    /// What the process says of itself.
    fn target(&mut self, collected: &ResourceMetrics) {
        let attributes: Vec<_> =
            collected.resource().iter().map(|(k, v)| KeyValue::new(k.clone(), v.clone())).collect();
        if attributes.is_empty() {
            return;
        }
        let (family, kind) = match self.format {
            Format::Prometheus => ("target_info", "gauge"),
            Format::OpenMetrics => ("target", "info"),
        };
        self.line(format_args!("# HELP {family} {}", catalogue::TARGET_HELP));
        self.line(format_args!("# TYPE {family} {kind}"));
        self.line(format_args!("target_info{} 1", Labels::new(attributes.iter(), None)));
    }

    fn metric(&mut self, metric: &Metric, data: &AggregatedMetrics) {
        let name = metric.exposed_name();
        let total = if metric.kind.name() == "counter" { "_total" } else { "" };
        let family = match self.format {
            Format::Prometheus => format!("{name}{total}"),
            Format::OpenMetrics => name.clone(),
        };
        self.line(format_args!("# HELP {family} {}", metric.help));
        self.line(format_args!("# TYPE {family} {}", metric.kind.name()));
        if self.format == Format::OpenMetrics && matches!(metric.unit, "s" | "By") {
            let unit = if metric.unit == "s" { "seconds" } else { "bytes" };
            self.line(format_args!("# UNIT {family} {unit}"));
        }
        let name = format!("{name}{total}");
        match data {
            AggregatedMetrics::F64(data) => self.points(metric, &name, data),
            AggregatedMetrics::U64(data) => self.points(metric, &name, data),
            AggregatedMetrics::I64(data) => self.points(metric, &name, data),
        }
    }

    fn points<T: Copy + Display>(&mut self, metric: &Metric, name: &str, data: &MetricData<T>) {
        match data {
            MetricData::Sum(sum) => {
                for point in sum.data_points() {
                    self.sample(name, point.attributes(), &point.value());
                }
            }
            MetricData::Gauge(gauge) => {
                for point in gauge.data_points() {
                    self.sample(name, point.attributes(), &point.value());
                }
            }
            MetricData::Histogram(histogram) => {
                for point in histogram.data_points() {
                    self.histogram(metric, name, point);
                }
            }
            // None of ours is one.
            MetricData::ExponentialHistogram(_) => {}
        }
    }

    fn sample<'a>(&mut self, name: &str, labels: impl Iterator<Item = &'a KeyValue>, value: &dyn Display) {
        self.line(format_args!("{name}{} {value}", Labels::new(labels, None)));
    }

    fn histogram<T: Copy + Display>(&mut self, metric: &Metric, name: &str, point: &HistogramDataPoint<T>) {
        let exemplars = catalogue::exemplars(metric).filter(|_| self.format == Format::OpenMetrics);
        // The SDK has them in an order of its own.
        let values: Vec<StringValue> = metric
            .labels
            .iter()
            .filter_map(|label| point.attributes().find(|attribute| attribute.key.as_str() == *label))
            .map(|attribute| attribute.value.clone().into())
            .collect();
        let bounds = point.bounds().map(Some).chain([None]);
        let mut count = 0;
        for (bucket, (bound, inside)) in bounds.zip(point.bucket_counts()).enumerate() {
            count += inside;
            let bound = bound.map_or("+Inf".to_owned(), decimal);
            let labels = Labels::new(point.attributes(), Some(("le", &bound)));
            let exemplar = exemplars.and_then(|exemplars| exemplars.of(&values, bucket));
            let exemplar = exemplar.map(|exemplar| exemplar.to_string()).unwrap_or_default();
            self.line(format_args!("{name}_bucket{labels} {count}{exemplar}"));
        }
        let labels = Labels::new(point.attributes(), None);
        self.line(format_args!("{name}_sum{labels} {}", point.sum()));
        self.line(format_args!("{name}_count{labels} {}", point.count()));
    }
}

/// A bound as OpenMetrics wants it: with a point, so that a series keeps its name.
fn decimal(bound: f64) -> String {
    format!("{bound:?}")
}

impl Display for Exemplar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace_id, span_id, value, at } = self;
        write!(f, " # {{trace_id=\"{trace_id}\",span_id=\"{span_id}\"}} {value} {at:.3}")
    }
}

/// Labels in braces, in the order of their names; nothing where there are none.
struct Labels(String);

impl Labels {
    fn new<'a>(attributes: impl Iterator<Item = &'a KeyValue>, last: Option<(&str, &str)>) -> Self {
        let mut pairs: Vec<(String, String)> = attributes
            .map(|KeyValue { key, value, .. }| (label(key.as_str()), escaped(&value.as_str())))
            .collect();
        pairs.sort_unstable();
        pairs.dedup_by(|later, first| later.0 == first.0);
        pairs.extend(last.map(|(name, value)| (name.to_owned(), value.to_owned())));
        Self(pairs.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect::<Vec<_>>().join(","))
    }
}

impl Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "{{{}}}", self.0) }
    }
}

/// A name as labels may have one, whatever it is elsewhere.
fn label(name: &str) -> String {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name }
}

fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests;

//! Metrics: instruments that are defined once ([`catalogue`]), and go out by OTLP and at `/metrics` alike.
//!
//! Before [`crate::telemetry::init`], and in tests without it, nothing is recorded.

pub mod catalogue;
mod exemplars;
mod exposition;
mod instrument;
mod shapes;

pub use instrument::{Counter, Emit, Gauge, Histogram, Kind, Metric};
pub use shapes::Shapes;

use exposition::Format;
use http::{HeaderMap, HeaderValue, Response, header};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    metrics::{
        InstrumentKind, ManualReader, Pipeline, Temporality, data::ResourceMetrics, reader::MetricReader,
    },
};
use std::{
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};
use tonic::body::Body;

/// Where they are read by Prometheus.
pub(crate) const PATH: &str = "/metrics";

/// The process's own, once there is telemetry.
static READER: OnceLock<Reader> = OnceLock::new();

/// What reads all instruments when Prometheus asks. Clones read the same ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reader(Arc<ManualReader>);

impl Reader {
    /// The one that `/metrics` of this process asks from now on.
    pub(crate) fn installed() -> Self {
        READER.get_or_init(Self::default).clone()
    }
}

impl MetricReader for Reader {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(metrics)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

/// All that was measured so far, in the format that the caller asks for.
pub(crate) fn page(headers: &HeaderMap) -> Response<Body> {
    let format = Format::accepted(headers);
    let mut metrics = ResourceMetrics::default();
    if let Some(reader) = READER.get() {
        // Fails only while the process ends; what there is of it is nothing then.
        let _ = reader.collect(&mut metrics);
    }
    let text = exposition::text(&metrics, format);
    let mut response = Response::new(Body::new(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response
}

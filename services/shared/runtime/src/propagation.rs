//! W3C trace context, from the caller and to the next server.

use http::HeaderMap;
pub use opentelemetry::Value;
use opentelemetry::{
    KeyValue, global,
    propagation::{Extractor, Injector},
    trace::{SpanContext, TraceContextExt},
};
use std::collections::HashMap;
use tonic::metadata::{MetadataKey, MetadataMap};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The header that names a trace.
const TRACEPARENT: &str = "traceparent";

/// Makes `span` a child of the span that the caller's `traceparent` names, if there is one. Must come before the span
/// is entered. [`crate::server::serve`] does it for each call.
pub fn accept(headers: &HeaderMap, span: &Span) {
    let parent = global::get_text_map_propagator(|p| p.extract(&Headers(headers)));
    if parent.span().span_context().is_valid() {
        // Fails only where there is no telemetry to take part in.
        let _ = span.set_parent(parent);
    }
}

/// Whether the caller names a trace of its own.
pub(crate) fn has_trace(headers: &HeaderMap) -> bool {
    headers.contains_key(TRACEPARENT)
}

/// Writes `traceparent` and `tracestate` of the current span into `request`, so that the next server continues its
/// trace.
pub fn inject<T>(request: &mut tonic::Request<T>) {
    let context = Span::current().context();
    global::get_text_map_propagator(|p| p.inject_context(&context, &mut Metadata(request.metadata_mut())));
}

/// The trace that `span` belongs to, as 32 hexadecimal digits; all zeros where there is no telemetry.
#[must_use]
pub fn trace_id(span: &Span) -> String {
    span.context().span().span_context().trace_id().to_string()
}

/// `span` as a `traceparent`, to be kept for whoever goes on with its work; `None` where there is no telemetry.
#[must_use]
pub fn traceparent(span: &Span) -> Option<String> {
    let mut carrier = HashMap::new();
    let context = span.context();
    global::get_text_map_propagator(|p| p.inject_context(&context, &mut carrier));
    carrier.remove(TRACEPARENT)
}

/// Makes `span` a child of a span that was kept by [`traceparent`]. Must come before the span is entered.
pub fn go_on(traceparent: &str, span: &Span) {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let parent = global::get_text_map_propagator(|p| p.extract(&carrier));
    if parent.span().span_context().is_valid() {
        // Fails only where there is no telemetry to take part in.
        let _ = span.set_parent(parent);
    }
}

/// A span that may have ended, for others to name.
#[derive(Clone, Debug)]
pub struct SpanRef(SpanContext);

impl SpanRef {
    /// Of `span`.
    #[must_use]
    pub fn of(span: &Span) -> Self {
        Self(span.context().span().span_context().clone())
    }

    /// Whether anybody will read of it.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.0.is_sampled()
    }

    /// In hexadecimal.
    #[must_use]
    pub fn span_id(&self) -> String {
        self.0.span_id().to_string()
    }
}

/// Notes in `span` that it has to do with another, as `relation` says: of a call, what it replaces.
pub fn link(span: &Span, to: &SpanRef, relation: &'static str) {
    span.add_link_with_attributes(to.0.clone(), vec![KeyValue::new("sdxl.link", relation)]);
}

/// Notes in `span` that something happened just now. Unlike an event of `tracing` it is in no log.
pub fn event<const N: usize>(span: &Span, name: &'static str, attributes: [(&'static str, Value); N]) {
    span.add_event(name, attributes.into_iter().map(|(key, value)| KeyValue::new(key, value)).collect());
}

/// Says something of `span` in traces. Unlike a field of `tracing` it is in no log.
pub fn attribute(span: &Span, name: &'static str, value: impl Into<Value>) {
    span.set_attribute(name, value);
}

/// Makes `span` a child of another for traces alone: the other may end before it.
pub fn follow(span: &Span, parent: &Span) {
    // Fails only where there is no telemetry to take part in.
    let _ = span.set_parent(parent.context());
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|v| v.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct Metadata<'a>(&'a mut MetadataMap);

impl Injector for Metadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::testing;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_passes_through() {
        let _guard = testing::subscriber();
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", PARENT.parse().unwrap());
        let span = tracing::info_span!("call");
        accept(&headers, &span);
        assert_eq!(trace_id(&span), "0af7651916cd43dd8448eb211c80319c");

        let mut request = tonic::Request::new(());
        span.in_scope(|| inject(&mut request));
        let handed_on = request.metadata().get("traceparent").unwrap().to_str().unwrap();
        assert!(handed_on.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{handed_on}");
        assert!(!handed_on.contains("b7ad6b7169203331"), "the parent is now the span of ours: {handed_on}");
    }

    #[test]
    fn work_that_is_kept_goes_on_in_its_trace() {
        let _guard = testing::subscriber();
        let span = tracing::info_span!("call");
        let kept = traceparent(&span).unwrap();
        let later = tracing::info_span!(parent: None, "job");
        go_on(&kept, &later);
        assert_eq!(trace_id(&later), trace_id(&span));
        let other = tracing::info_span!(parent: None, "job");
        go_on("no traceparent", &other);
        assert_ne!(trace_id(&other), trace_id(&span));
    }

    #[test]
    fn without_a_caller_a_trace_begins() {
        let _guard = testing::subscriber();
        let span = tracing::info_span!("call");
        accept(&HeaderMap::new(), &span);
        let id = trace_id(&span);
        assert_eq!(id.len(), 32);
        assert_ne!(id, "0".repeat(32));
    }
}

use super::*;
use crate::{
    metrics::{Metric, catalogue as named, instrument::Kind, page},
    telemetry::testing,
};
use http::HeaderValue;
use opentelemetry::trace::TraceContextExt;
use std::collections::BTreeSet;
use tracing_opentelemetry::OpenTelemetrySpanExt;

async fn read(accept: &'static str) -> String {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
    let mut body = page(&headers).into_body();
    let mut text = Vec::new();
    while let Some(frame) =
        std::future::poll_fn(|cx| http_body::Body::poll_frame(std::pin::Pin::new(&mut body), cx)).await
    {
        text.extend_from_slice(frame.unwrap().data_ref().unwrap());
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn both_formats_say_what_was_measured() {
    testing::metrics();
    let _guard = testing::subscriber();
    let span = tracing::info_span!("request");
    let trace = span.context().span().span_context().trace_id().to_string();
    named::RESUMES.add(2, ["vae".into()]);
    named::REDIS_UP.observe(|emit| emit.value(1.0, []));
    named::STAGE_DURATION.record(0.3, ["vae".into()]);
    named::STAGE_DURATION.record_in(&span, 0.04, ["vae".into()]);
    named::REDIS_DURATION.record(1e6, ["a\"b".into(), "ok".into()]);

    let text = read("text/plain").await;
    for line in [
        "# TYPE target_info gauge",
        "# HELP sdxl_resumes_total Units of work that went on at another replica after a loss.",
        "# TYPE sdxl_resumes_total counter",
        "sdxl_resumes_total{stage=\"vae\"} 2",
        "# TYPE sdxl_redis_up gauge",
        "sdxl_redis_up 1",
        "# TYPE sdxl_stage_duration_seconds histogram",
        "sdxl_stage_duration_seconds_bucket{stage=\"vae\",le=\"0.025\"} 0",
        "sdxl_stage_duration_seconds_bucket{stage=\"vae\",le=\"0.05\"} 1",
        "sdxl_stage_duration_seconds_bucket{stage=\"vae\",le=\"+Inf\"} 2",
        "sdxl_stage_duration_seconds_sum{stage=\"vae\"} 0.33999999999999997",
        "sdxl_stage_duration_seconds_count{stage=\"vae\"} 2",
        "db_client_operation_duration_seconds_bucket{db_operation_name=\"a\\\"b\",outcome=\"ok\",le=\"320.0\"} 0",
    ] {
        assert!(text.lines().any(|said| said == line), "{line}\nis not in\n{text}");
    }
    assert!(!text.contains("trace_id"), "the old format has no room for it\n{text}");

    let text = read("application/openmetrics-text; version=1.0.0,text/plain;q=0.5").await;
    for line in
        ["# TYPE sdxl_resumes counter", "# UNIT sdxl_stage_duration_seconds seconds", "# TYPE target info"]
    {
        assert!(text.lines().any(|said| said == line), "{line}\nis not in\n{text}");
    }
    let examples: Vec<_> = text.lines().filter(|line| line.contains(&trace)).collect();
    assert_eq!(examples.len(), 1, "one bucket has it\n{text}");
    assert!(
        examples[0]
            .starts_with("sdxl_stage_duration_seconds_bucket{stage=\"vae\",le=\"0.05\"} 1 # {trace_id=")
    );
    assert!(text.ends_with("\n# EOF\n"));
}

#[test]
fn no_two_metrics_share_a_name() {
    let exposed: BTreeSet<_> = named::all().map(Metric::exposed_name).collect();
    assert_eq!(exposed.len(), named::all().count());
    assert!(named::all().all(|metric| metric.kind != Kind::Histogram(&[])));
}

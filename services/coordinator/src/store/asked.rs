//! What is told of a question to Redis: how long it took, and a span where it is part of something that is traced.

use super::StoreError;
use redis::{Arg, Cmd};
use sdxl_runtime::metrics::catalogue;
use std::time::Instant;
use tracing::{Instrument, Span, field::Empty, info_span};

/// The command's first word, as `MGET`.
pub(super) fn name(command: &Cmd) -> String {
    match command.args_iter().next() {
        Some(Arg::Simple(name)) => String::from_utf8_lossy(name).to_ascii_uppercase(),
        _ => String::new(),
    }
}

/// Asks, and tells of it.
///
/// # Errors
/// Those of `question`.
pub(super) async fn asked<T>(
    name: String,
    question: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let span = span(&name);
    let started = Instant::now();
    let answer = question.instrument(span.clone()).await;
    if matches!(answer, Err(StoreError::Gone)) {
        span.record("otel.status_code", "ERROR");
        return answer;
    }
    let outcome = if answer.is_ok() { "ok" } else { "error" };
    if let Err(error) = &answer {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", error.code().unwrap_or("connection"));
    }
    catalogue::REDIS_DURATION.record(started.elapsed().as_secs_f64(), [name.into(), outcome.into()]);
    answer
}

/// None for what is asked beside all requests, again and again.
fn span(name: &str) -> Span {
    if Span::current().is_none() {
        return Span::none();
    }
    info_span!(
        "redis",
        otel.name = name,
        otel.kind = "client",
        otel.status_code = Empty,
        db.system.name = "redis",
        db.operation.name = name,
        "error.type" = Empty,
    )
}

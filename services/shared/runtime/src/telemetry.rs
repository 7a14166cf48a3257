//! Logs and traces. Logs go to standard error, as standard output belongs to the line that names the listener.

use crate::args::{LogFormat, TelemetryArgs};
use anyhow::Context;
use opentelemetry::{global, trace::TracerProvider};
use opentelemetry_otlp::{OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, SpanExporter};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use std::{env, io, time::Duration};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt,
};

/// How long the end of a process may wait for the last spans to be sent.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Sends what is left of the traces when dropped, within three seconds. Keep it until the end of `main`, inside the
/// runtime.
#[derive(Debug)]
#[must_use = "traces stop when the guard is dropped"]
pub struct TelemetryGuard(SdkTracerProvider);

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!("the last spans were not sent: {error}");
        }
    }
}

/// Sets up logs and traces of this process, once. `service` is its name in traces, as `sdxl-vae`.
///
/// Spans are sent by OTLP over gRPC if `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set
/// (the other `OTEL_…` variables are heeded by the exporter). Without one there are spans all the same, so that each
/// request has a trace id that log lines and answers can name. Must be called in a tokio runtime of more than one
/// thread.
///
/// # Errors
/// Where the filter cannot be parsed, the exporter's settings make no sense, or there is a subscriber already.
pub fn init(service: &'static str, args: &TelemetryArgs) -> anyhow::Result<TelemetryGuard> {
    // What kube's watcher complains of we say ourselves, once and not each second; a filter that names it is heeded.
    let directives = format!("kube_runtime=error,{}", args.log);
    let filter =
        EnvFilter::try_new(&directives).with_context(|| format!("--log: {:?} is not a filter", args.log))?;
    let mut provider =
        SdkTracerProvider::builder().with_resource(Resource::builder().with_service_name(service).build());
    // The opentelemetry crates read these by themselves, but fall back to localhost where both are missing.
    if [OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT]
        .iter()
        .any(|name| env::var_os(name).is_some_and(|value| !value.is_empty()))
    {
        let exporter =
            SpanExporter::builder().with_tonic().build().context("cannot set up the trace exporter")?;
        provider = provider.with_batch_exporter(exporter);
    }
    let provider = provider.build();
    global::set_text_map_propagator(TraceContextPropagator::new());

    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match args.log_format {
        LogFormat::Human => lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(true).boxed(),
    };
    Registry::default()
        .with(lines.with_filter(filter))
        .with(spans(&provider))
        .try_init()
        .context("telemetry is already set up")?;
    Ok(TelemetryGuard(provider))
}

/// Spans whatever the log filter is: a quieter log must not take the trace ids away.
///
/// Nothing is done when a span is entered or left, which a request's are for each of its messages: no clocks of how long
/// they were idle, no threads, and no current context beside tracing's own, from which all propagation comes.
fn spans<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("sdxl"))
        .with_context_activation(false)
        .with_tracked_inactivity(false)
        .with_threads(false)
        .with_filter(LevelFilter::INFO)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Traces of the current thread without an exporter, for as long as the guard lives.
    pub(crate) fn subscriber() -> tracing::subscriber::DefaultGuard {
        global::set_text_map_propagator(TraceContextPropagator::new());
        let provider = SdkTracerProvider::builder().build();
        tracing::subscriber::set_default(Registry::default().with(spans(&provider)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_filter_is_named() {
        let args = TelemetryArgs { log: "sdxl=loud".to_owned(), log_format: LogFormat::Human };
        let error = init("test", &args).unwrap_err();
        assert!(error.to_string().contains("sdxl=loud"), "{error}");
    }
}

//! Logs, traces and metrics. Logs go to standard error, as standard output belongs to the line that names the listener.

mod levels;

use crate::{
    args::{LogFormat, TelemetryArgs},
    metrics::{Reader, catalogue},
};
use anyhow::Context;
use levels::Levels;
use opentelemetry::{KeyValue, global, trace::TracerProvider};
use opentelemetry_otlp::{
    MetricExporter, OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_METRICS_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, SpanExporter,
};
use opentelemetry_sdk::{
    Resource,
    metrics::SdkMeterProvider,
    propagation::TraceContextPropagator,
    trace::{IdGenerator, RandomIdGenerator, Sampler, SdkTracerProvider},
};
use std::{env, fs, io, sync::OnceLock, time::Duration};
use tokio::task::JoinSet;
use tracing_subscriber::{
    Layer, Registry, filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt,
};

/// How long the end of a process may wait for the last spans to be sent.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// What traces hold beside the usual.
#[derive(Clone, Copy, Debug, Default)]
pub struct Detail {
    /// Steps as spans.
    pub steps: bool,
    /// Prompts.
    pub prompts: bool,
}

static DETAIL: OnceLock<Detail> = OnceLock::new();

/// What the command line asks of traces; nothing more than usual before [`init`].
#[must_use]
pub fn detail() -> Detail {
    DETAIL.get().copied().unwrap_or_default()
}

/// Sends what is left of traces and metrics when dropped, within three seconds each. Keep it until the end of `main`,
/// inside the runtime.
#[derive(Debug)]
#[must_use = "traces and metrics stop when the guard is dropped"]
pub struct TelemetryGuard {
    traces: SdkTracerProvider,
    metrics: SdkMeterProvider,
    _levels: JoinSet<()>,
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Err(error) = self.traces.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!("the last spans were not sent: {error}");
        }
        if let Err(error) = self.metrics.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!("the last metrics were not sent: {error}");
        }
    }
}

/// Sets up logs, traces and metrics of this process, once. `service` is its name in them, as `sdxl-vae`, unless
/// `OTEL_SERVICE_NAME` gives another.
///
/// Spans and metrics are sent by OTLP over gRPC if `OTEL_EXPORTER_OTLP_ENDPOINT`, or the variable of the one or the other, is
/// set, and `OTEL_SDK_DISABLED`, `OTEL_TRACES_EXPORTER=none` and `OTEL_METRICS_EXPORTER=none` do not forbid it (the other
/// `OTEL_…` variables are heeded by the SDK). Without one there are spans all the same, so that each request has a trace id
/// that log lines and answers can name. Must be called in a tokio runtime of more than one thread.
///
/// # Errors
/// Where the filter cannot be read or parsed, an exporter's settings make no sense, or there is a subscriber already.
pub fn init(service: &'static str, args: &TelemetryArgs) -> anyhow::Result<TelemetryGuard> {
    let (levels, filter) = Levels::new(args)?;
    let resource = resource(service);
    let traces = tracer_provider(resource.clone())?;
    let metrics = meter_provider(resource)?;
    global::set_text_map_propagator(TraceContextPropagator::new());
    global::set_meter_provider(metrics.clone());
    let _ = DETAIL.set(Detail { steps: args.trace_steps, prompts: args.trace_prompts });
    catalogue::PROCESS_MEMORY.observe(|emit| {
        if let Some(bytes) = resident_bytes() {
            emit.value(bytes, []);
        }
    });

    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match args.log_format {
        LogFormat::Human => lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(true).boxed(),
    };
    Registry::default()
        .with(lines.with_filter(filter))
        .with(spans(&traces))
        .try_init()
        .context("telemetry is already set up")?;
    Ok(TelemetryGuard { traces, metrics, _levels: levels.follow() })
}

/// Bytes of memory that this process holds, where the system says so.
#[must_use]
pub fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024.0)
}

/// What this process is to whoever collects. Replicas of a stage are told apart.
fn resource(service: &'static str) -> Resource {
    let named = |name: &str| variable("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|value| value.contains(name));
    let mut builder =
        Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if variable("OTEL_SERVICE_NAME").is_none() && !named("service.name=") {
        builder = builder.with_service_name(service);
    }
    if !named("service.instance.id=") {
        let id = RandomIdGenerator::default().new_trace_id().to_string();
        builder = builder.with_attribute(KeyValue::new("service.instance.id", id));
    }
    builder.build()
}

/// The crates of OpenTelemetry read these variables by themselves, but fall back to localhost where all are missing.
fn is_sent(endpoint: &str, exporter: &str) -> bool {
    let is_off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || variable(exporter).is_some_and(|value| value == "none");
    !is_off && [endpoint, OTEL_EXPORTER_OTLP_ENDPOINT].into_iter().any(|name| variable(name).is_some())
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn tracer_provider(resource: Resource) -> anyhow::Result<SdkTracerProvider> {
    let mut provider = SdkTracerProvider::builder().with_resource(resource);
    if is_sent(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, "OTEL_TRACES_EXPORTER") {
        let exporter = SpanExporter::builder().with_tonic().build();
        provider = provider.with_batch_exporter(exporter.context("cannot set up the trace exporter")?);
    } else {
        // Nothing is recorded that nobody will read, but a caller's wish goes on to the next server.
        provider = provider.with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOff)));
    }
    Ok(provider.build())
}

fn meter_provider(resource: Resource) -> anyhow::Result<SdkMeterProvider> {
    let mut provider = SdkMeterProvider::builder().with_resource(resource).with_reader(Reader::installed());
    if is_sent(OTEL_EXPORTER_OTLP_METRICS_ENDPOINT, "OTEL_METRICS_EXPORTER") {
        let exporter = MetricExporter::builder().with_tonic().build();
        provider = provider.with_periodic_exporter(exporter.context("cannot set up the metric exporter")?);
    }
    Ok(provider.build())
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

    /// What is measured from now on is at `/metrics`.
    pub(crate) fn metrics() {
        global::set_meter_provider(meter_provider(resource("test")).unwrap());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_filter_is_named() {
        let args = TelemetryArgs {
            log: "sdxl=loud".to_owned(),
            log_from: None,
            log_format: LogFormat::Human,
            trace_steps: false,
            trace_prompts: false,
        };
        let error = init("test", &args).unwrap_err();
        assert!(format!("{error:#}").starts_with("--log: \"sdxl=loud\" is not a filter"), "{error:#}");
    }
}

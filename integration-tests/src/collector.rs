//! A real OpenTelemetry Collector, which writes what it gets into a file.

use crate::{
    cluster::Cluster,
    kubernetes::root,
    process::{self, Server},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long it may take to start or to end, or a server to end, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two exports of a process's spans. A process sends the rest when it ends, so that one which is killed has sent
/// nothing, and not the end of something whose beginning nobody hears of.
const SCHEDULE: Duration = Duration::from_secs(300);

/// A collector on a port of its own. It ends when this is dropped.
#[derive(Debug)]
pub struct Collector {
    port: u16,
    folder: tempfile::TempDir,
    process: Child,
}

/// A span that it got.
#[derive(Clone, Debug)]
pub struct Span {
    /// In hexadecimal, as the next two.
    pub trace_id: String,
    /// Its own.
    pub id: String,
    /// Of its parent; empty for a root.
    pub parent: String,
    /// What it is called.
    pub name: String,
    /// Of which `service.name`.
    pub service: String,
    /// In nanoseconds since 1970, from beginning to end.
    pub time: (u64, u64),
    /// Its attributes, as text.
    pub attributes: BTreeMap<String, String>,
    /// Whether its status is an error.
    pub is_error: bool,
    /// The names of its events.
    pub events: Vec<String>,
    /// The spans that it is linked to.
    pub links: Vec<String>,
}

impl Span {
    /// An attribute; nothing where it is absent.
    #[must_use]
    pub fn get(&self, attribute: &str) -> &str {
        self.attributes.get(attribute).map_or("", String::as_str)
    }
}

impl Collector {
    /// Starts one and waits until it listens. `None`, and a line that says so, where it is not built; unless
    /// `TELEMETRY_TESTS=required` says that it has to be.
    ///
    /// # Panics
    /// Where it has to be and is not, or does not start.
    #[must_use]
    pub fn start() -> Option<Self> {
        let binary = binary()?;
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let folder = tempfile::tempdir().expect("a folder for the collector");
        let config = folder.path().join("config.yaml");
        let file = folder.path().join("telemetry.json");
        let text = include_str!("collector.yaml").replace("PORT", &port.to_string());
        fs::write(&config, text.replace("FILE", &file.display().to_string())).expect("a config");
        let log = fs::File::create(folder.path().join("log")).expect("a log");
        let process = Command::new(binary)
            .arg(format!("--config=file:{}", config.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the collector runs");
        let collector = Self { port, folder, process };
        collector.listens();
        Some(collector)
    }

    fn listens(&self) {
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < end, "the collector does not listen:\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Where OTLP goes.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What processes are told of it.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, String)> {
        let schedule = SCHEDULE.as_millis().to_string();
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.endpoint()),
            ("OTEL_BSP_SCHEDULE_DELAY", schedule.clone()),
            ("OTEL_METRIC_EXPORT_INTERVAL", schedule),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// Ends the cluster's processes that still run, the coordinator first, and then itself: all that they had to say is in
    /// the file then. What it got, as JSON, export by export.
    ///
    /// # Panics
    /// Where one of them does not end, or what was written is no JSON.
    #[must_use]
    pub fn end(mut self, cluster: &Cluster) -> Vec<Value> {
        for server in cluster.servers() {
            if server.wait(Duration::ZERO).is_none() {
                server.signal(Signal::TERM);
                assert!(server.wait(PATIENCE).is_some(), "it does not end\n{}", Server::stderr(server));
            }
        }
        let id = i32::try_from(self.process.id()).expect("a process id");
        kill_process(Pid::from_raw(id).expect("not 0"), Signal::TERM).expect("the process is ours");
        process::wait(&mut self.process, PATIENCE).expect("the collector ends when it is told to");
        let text = fs::read_to_string(self.folder.path().join("telemetry.json")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The one that `integration-tests/telemetry/setup.sh` builds.
fn binary() -> Option<PathBuf> {
    let binary = root().join("target/telemetry-tools/otelcol");
    if binary.exists() {
        return Some(binary);
    }
    let missing = format!("{} is missing: run integration-tests/telemetry/setup.sh first", binary.display());
    let required = std::env::var("TELEMETRY_TESTS").is_ok_and(|word| word == "required");
    assert!(!required, "{missing}");
    println!("skipped: {missing}");
    None
}

/// All spans of what a collector got.
#[must_use]
pub fn spans(got: &[Value]) -> Vec<Span> {
    let mut spans = Vec::new();
    for of_process in got.iter().flat_map(|export| list(&export["resourceSpans"])) {
        let resource = attributes(&of_process["resource"]["attributes"]);
        let service = resource.get("service.name").cloned().unwrap_or_default();
        for span in list(&of_process["scopeSpans"]).iter().flat_map(|scope| list(&scope["spans"])) {
            spans.push(self::span(span, &service));
        }
    }
    spans
}

/// The names of all metrics of what a collector got.
#[must_use]
pub fn metric_names(got: &[Value]) -> Vec<String> {
    let of_processes = got.iter().flat_map(|export| list(&export["resourceMetrics"]));
    let scopes = of_processes.flat_map(|process| list(&process["scopeMetrics"]));
    let metrics = scopes.flat_map(|scope| list(&scope["metrics"]));
    metrics.map(|metric| text(&metric["name"])).collect()
}

fn span(span: &Value, service: &str) -> Span {
    let nanoseconds = |field: &str| text(&span[field]).parse().expect("a time");
    Span {
        trace_id: text(&span["traceId"]),
        id: text(&span["spanId"]),
        parent: text(&span["parentSpanId"]),
        name: text(&span["name"]),
        service: service.to_owned(),
        time: (nanoseconds("startTimeUnixNano"), nanoseconds("endTimeUnixNano")),
        attributes: attributes(&span["attributes"]),
        is_error: span["status"]["code"] == 2,
        events: list(&span["events"]).iter().map(|event| text(&event["name"])).collect(),
        links: list(&span["links"]).iter().map(|link| text(&link["spanId"])).collect(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn attributes(pairs: &Value) -> BTreeMap<String, String> {
    let pairs = list(pairs).iter().map(|pair| {
        let value = pair["value"].as_object().and_then(|value| value.values().next());
        let value = value.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        (text(&pair["key"]), value.unwrap_or_default())
    });
    pairs.collect()
}

//! A real Prometheus that scrapes the servers of a test and watches for alerts, and promtool.

use crate::{kubernetes::root, leash::Leashed, process::Server};
use serde_json::Value;
use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};

/// How long it may take to start or to answer, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The namespace that it says all servers are in, as Prometheus's operator would.
pub const NAMESPACE: &str = "live";

/// `prometheus` or `promtool`. `None`, and a line that says so, where it is not there; unless `TELEMETRY_TESTS=required` says
/// that it has to be.
///
/// # Panics
/// Where it has to be and is not.
#[must_use]
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = root().join("target").join(name);
    if path.exists() {
        return Some(path);
    }
    let missing = format!("{} is missing: run integration-tests/telemetry/promtool.sh first", path.display());
    let required = std::env::var("TELEMETRY_TESTS").is_ok_and(|word| word == "required");
    assert!(!required, "{missing}");
    println!("skipped: {missing}");
    None
}

/// A Prometheus on a port of its own of loopback, which scrapes each second and thinks twice in it. It ends when this is
/// dropped, or when the test process does.
#[derive(Debug)]
pub struct Prometheus {
    port: u16,
    folder: PathBuf,
    _process: Leashed,
}

impl Prometheus {
    /// Starts one with a file of rules, and waits until it has scraped each of the servers and asked what each rule asks.
    /// `None` without [`tool`].
    ///
    /// # Panics
    /// Where it does not start, or does not take the rules; with its log.
    #[must_use]
    pub fn start<'a>(rules: &str, servers: impl Iterator<Item = &'a Server>) -> Option<Self> {
        let program = tool("prometheus")?;
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let targets: Vec<_> = servers.map(|server| server.address().trim_start_matches("http://")).collect();
        let config = serde_json::json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{
                "job_name": "sdxl",
                "static_configs": [{"targets": targets, "labels": {"namespace": NAMESPACE}}],
            }],
        });
        let folder = tempfile::Builder::new().prefix("sdxl-prometheus-").tempdir().expect("a folder").keep();
        fs::write(folder.join("rules.yaml"), rules).expect("rules");
        fs::write(folder.join("config.yaml"), config.to_string()).expect("a configuration");
        let process = Leashed::start(
            &program,
            &folder,
            Some(&folder),
            [
                "--config.file=config.yaml".to_owned(),
                "--storage.tsdb.path=data".to_owned(),
                format!("--web.listen-address=127.0.0.1:{port}"),
                "--log.level=warn".to_owned(),
            ],
        );
        let prometheus = Self { port, folder, _process: process };
        prometheus.until("it has scraped all servers", |prometheus| {
            let listens = TcpStream::connect(("127.0.0.1", port)).is_ok();
            listens && prometheus.query("up == 1").len() == targets.len()
        });
        // The time before the first is that of the year 1.
        prometheus.until("it has asked all that the rules ask", |prometheus| {
            let groups = list(&prometheus.get("rules")["data"]["groups"]);
            let rules: Vec<_> = groups.iter().flat_map(|group| list(&group["rules"])).collect();
            let is_asked =
                |rule: &Value| rule["lastEvaluation"].as_str().is_some_and(|at| !at.starts_with("0001"));
            !rules.is_empty() && rules.iter().all(is_asked)
        });
        Some(prometheus)
    }

    /// Waits until something is so.
    ///
    /// # Panics
    /// Where it is not so in time; with the log.
    pub fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so(self) {
            let log = || fs::read_to_string(self.folder.join("prometheus.log")).unwrap_or_default();
            assert!(Instant::now() < end, "it never comes that {what}:\n{}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What an expression is at this moment: its series, each with `metric` and `value`; none before it is ready.
    #[must_use]
    pub fn query(&self, expression: &str) -> Vec<Value> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        list(&self.get(&format!("query?query={encoded}"))["data"]["result"])
    }

    /// The alerts that are pending or firing, each with `labels`, `annotations` and `state`.
    #[must_use]
    pub fn alerts(&self) -> Vec<Value> {
        list(&self.get("alerts")["data"]["alerts"])
    }

    /// Waits until an alert fires, and returns it.
    ///
    /// # Panics
    /// Where it does not in time; with what does.
    #[must_use]
    pub fn fires(&self, name: &str) -> Value {
        let is_it = |alert: &Value| alert["labels"]["alertname"] == name && alert["state"] == "firing";
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(alert) = self.alerts().into_iter().find(is_it) {
                return alert;
            }
            assert!(Instant::now() < end, "{name} does not fire; but {:#?}", self.alerts());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn get(&self, path: &str) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        write!(stream, "GET /api/v1/{path} HTTP/1.0\r\nhost: localhost\r\n\r\n").expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        // It says so in words while it is starting.
        if head.contains(" 503 ") {
            return Value::Null;
        }
        assert!(head.contains(" 200 "), "{path}: {answer}");
        serde_json::from_str(body).expect("JSON")
    }
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

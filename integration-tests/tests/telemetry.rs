//! Traces and metrics that a real collector gets, and what comes of it where there is none.

use integration_tests::{
    Cluster, ClusterConfig, Collector, Profile, Server, Span,
    collector::{metric_names, spans},
    fox, process,
};
use rustix::process::Signal;
use sdxl_proto::v1;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::Mutex;
use tonic::Code;

/// Held by what measures times and by what keeps all processors busy.
static ALONE: Mutex<()> = Mutex::const_new(());

const LIMIT: Duration = Duration::from_secs(120);

/// Devices whose steps take 25 ms.
fn config(profile: &Profile, collector: &Collector) -> ClusterConfig {
    ClusterConfig {
        base_unets: 2,
        patience: 30,
        variables: collector.variables(),
        ..ClusterConfig::simulated(profile.path())
    }
}

/// How much a counter or a histogram's count has come to, over all series of that name that hold `label`.
fn counted(server: &Server, name: &str, label: &str) -> f64 {
    let text = server.metrics("text/plain");
    let lines = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
    });
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

fn traced_python(cluster: &Cluster, collector: &Collector) -> Command {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = here.parent().unwrap().join(".venv/bin/python");
    assert!(python.exists(), "{} is missing: run integration-tests/python/setup.sh first", python.display());
    let mut command = Command::new(python);
    command.arg(here.join("python/traced.py"));
    command.args([cluster.coordinator.address().trim_start_matches("http://"), &collector.endpoint()]);
    command
}

/// Waits until a base replica is some steps into its work, and kills it.
fn kill_a_base_at_work(cluster: &Cluster) {
    let end = Instant::now() + LIMIT;
    loop {
        let steps = |base: &&Server| {
            counted(base, "sdxl_step_duration_seconds_count", "base-unet") >= 8.0
                && counted(base, "sdxl_device_runs", "state=\"active\"") > 0.0
        };
        if let Some(base) = cluster.base_unets.iter().find(steps) {
            return base.kill();
        }
        assert!(Instant::now() < end, "no base is at work\n{}", cluster.stderr());
        thread::sleep(Duration::from_millis(5));
    }
}

/// How much of `whole` lies under the `parts`, as a share.
fn covered(whole: (u64, u64), parts: impl Iterator<Item = (u64, u64)>) -> f64 {
    let mut parts: Vec<_> = parts.map(|(from, to)| (from.max(whole.0), to.min(whole.1))).collect();
    parts.sort_unstable();
    let (mut sum, mut end) = (0, whole.0);
    for (from, to) in parts {
        sum += to.saturating_sub(from.max(end));
        end = end.max(to);
    }
    sum as f64 / (whole.1 - whole.0) as f64
}

fn listed(spans: &[Span]) -> String {
    let mut spans: Vec<_> = spans.iter().collect();
    spans.sort_by_key(|span| span.time.0);
    let first = spans.first().map_or(0, |span| span.time.0);
    let line = |span: &&Span| {
        let ms = |at: u64| (at - first) as f64 / 1e6;
        let (from, to) = (ms(span.time.0), ms(span.time.1));
        format!("{from:9.1} {to:9.1} {} {} < {} {}", span.id, span.service, span.parent, span.name)
    };
    spans.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn named<'a>(spans: &'a [Span], service: &str, name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.service == service && span.name == name).collect()
}

#[test]
fn one_trace_from_the_client_to_the_last_byte() {
    let _alone = ALONE.blocking_lock();
    let Some(collector) = Collector::start() else { return };
    let profile = Profile::quick(0.025);
    let cluster = Cluster::start(&config(&profile, &collector));
    let command = traced_python(&cluster, &collector);
    let output = thread::scope(|scope| {
        let client = scope.spawn(|| process::run(command, LIMIT));
        kill_a_base_at_work(&cluster);
        client.join().unwrap()
    });
    let Output { status, stdout, stderr } = &output;
    assert!(status.success(), "{}\n{}", String::from_utf8_lossy(stderr), cluster.stderr());
    let said: Value = serde_json::from_slice(stdout).unwrap();
    assert_eq!((&said["pictures"], said["resumes"].as_u64() > Some(0)), (&Value::from(3), true), "{said}");
    assert_eq!(said["trace_id"], said["answered_trace_id"]);

    let got = collector.end(&cluster);
    let spans = spans(&got);
    let list = listed(&spans);
    println!("{list}");
    let traces: BTreeSet<_> = spans.iter().map(|span| span.trace_id.as_str()).collect();
    assert_eq!(traces, BTreeSet::from([said["trace_id"].as_str().unwrap()]), "one trace\n{list}");
    let roots: Vec<_> = spans.iter().filter(|span| span.parent.is_empty()).collect();
    assert_eq!(roots.len(), 1, "one root\n{list}");
    let root = roots[0];
    assert_eq!(root.service, "python-client");
    let ids: BTreeSet<_> = spans.iter().map(|span| span.id.as_str()).collect();
    let orphans: Vec<_> =
        spans.iter().filter(|s| !s.parent.is_empty() && !ids.contains(s.parent.as_str())).collect();
    assert!(orphans.is_empty(), "orphans: {orphans:#?}\n{list}");

    every_hop_is_there(&spans, &list);
    nothing_ends_before_its_parts(&spans, &list);
    the_resume_is_there(&spans, &list);
    batches_are_linked(&spans, &list);
    let below = spans.iter().filter(|span| span.id != root.id).map(|span| span.time);
    let share = covered(root.time, below);
    assert!(share >= 0.98, "{share} of the request's time has spans\n{list}");
    let generate = named(&spans, "sdxl-coordinator", "generate")[0];
    let inside = ["sdxl-coordinator", "generate"];
    let stages = spans.iter().filter(|span| span.parent == generate.id && span.name != inside[1]);
    let share = covered(generate.time, stages.map(|span| span.time));
    assert!(share >= 0.98, "{share} of its time is accounted for by admission and stages\n{list}");

    let metrics: BTreeSet<_> = metric_names(&got).into_iter().collect();
    for name in ["sdxl.requests", "sdxl.resumes", "sdxl.step.duration", "rpc.server.call.duration"] {
        assert!(metrics.contains(name), "{name} is not among {metrics:?}");
    }
    assert!(!format!("{got:?}").contains("red fox"), "prompts are not recorded");
}

fn every_hop_is_there(spans: &[Span], list: &str) {
    for (service, name, count) in [
        ("sdxl-coordinator", "sdxl.v1.ImageGenerationService/Generate", 1),
        ("sdxl-coordinator", "generate", 1),
        ("sdxl-coordinator", "admit", 1),
        ("sdxl-coordinator", "encode", 1),
        ("sdxl-coordinator", "denoise", 6),
        ("sdxl-coordinator", "decode", 3),
        ("sdxl-text-encoder", "sdxl.v1.TextEncoderService/Encode", 1),
        ("sdxl-refiner", "sdxl.v1.DenoiserService/Denoise", 3),
        ("sdxl-refiner", "queue", 3),
        ("sdxl-refiner", "run", 3),
        ("sdxl-vae", "sdxl.v1.VaeService/Decode", 3),
        ("sdxl-vae", "encode picture", 3),
    ] {
        assert_eq!(named(spans, service, name).len(), count, "{service}: {name}\n{list}");
    }
    let bases = named(spans, "sdxl-base-unet", "run");
    assert!(bases.len() >= 3, "the killed one's are lost, those of the other are there\n{list}");
    assert!(
        bases.iter().all(|run| run.events.iter().any(|event| event == "step")),
        "steps are events\n{list}"
    );
    let encode = named(spans, "sdxl-coordinator", "encode")[0];
    assert_eq!((encode.get("cache.hits"), encode.get("cache.misses") > "0"), ("0", true), "{encode:?}");
    assert_eq!(named(spans, "sdxl-coordinator", "generate")[0].get("outcome"), "ok");
}

fn nothing_ends_before_its_parts(spans: &[Span], list: &str) {
    for part in spans {
        let whole = spans.iter().find(|span| span.id == part.parent && span.service == part.service);
        let late = whole.is_some_and(|whole| part.time.1 > whole.time.1 + 50_000_000);
        assert!(!late, "{} {} goes on after what it is a part of\n{list}", part.name, part.id);
    }
}

fn the_resume_is_there(spans: &[Span], list: &str) {
    let hops = named(spans, "sdxl-coordinator", "sdxl.v1.DenoiserService/Denoise");
    let lost: Vec<_> = hops.iter().filter(|hop| hop.is_error).collect();
    assert!(!lost.is_empty(), "the call to the killed replica\n{list}");
    for lost in lost {
        let next = hops.iter().find(|hop| hop.links.contains(&lost.id));
        let next = next.unwrap_or_else(|| panic!("nothing replaces {lost:?}\n{list}"));
        assert_eq!((next.get("attempt"), &next.parent), ("2", &lost.parent));
        assert!(!next.is_error && next.get("server.port") != lost.get("server.port"), "{next:?}");
    }
}

fn batches_are_linked(spans: &[Span], list: &str) {
    let batches: Vec<_> = spans.iter().filter(|span| span.name == "batch").collect();
    assert!(!batches.is_empty(), "three pictures on one replica share steps\n{list}");
    for batch in batches {
        let runs: Vec<_> = spans.iter().filter(|span| batch.links.contains(&span.id)).collect();
        assert_eq!(runs.len().to_string(), batch.get("batch"), "each is there\n{list}");
        assert!(runs.iter().all(|run| run.name == "run" && run.service == batch.service), "{batch:?}");
    }
}

/// Long enough for each of its ends to come first.
fn long() -> v1::GenerateRequest {
    v1::GenerateRequest { width: 128, height: 128, num_inference_steps: 1000, ..fox() }
}

fn within(limit: Duration, request: v1::GenerateRequest) -> tonic::Request<v1::GenerateRequest> {
    let mut request = tonic::Request::new(request);
    request.set_timeout(limit);
    request
}

/// One request for each way to end, in an order in which each comes about; the last kills the only base replica.
async fn end_in_every_way(cluster: &Cluster) {
    let clients = cluster.clients();
    let mut images = clients.images();
    let code = |answer: Result<tonic::Response<v1::GenerateResponse>, tonic::Status>| {
        answer.map_or_else(|status| status.code(), |_| Code::Ok)
    };
    // Of whose work nothing is known yet, so that it is taken on. As a stream, for whose end tonic's client has no timer.
    let mut late = images.generate_stream(within(Duration::from_secs(1), long())).await.unwrap().into_inner();
    let status = loop {
        match late.message().await {
            Ok(said) => assert!(said.is_some(), "a thousand steps take 25 s"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    let short = v1::GenerateRequest { num_inference_steps: 4, ..long() };
    assert_eq!(code(images.generate(short).await), Code::Ok);
    let wrong = v1::GenerateRequest { width: 100, ..long() };
    assert_eq!(code(images.generate(wrong).await), Code::InvalidArgument);
    let answer = images.generate(within(Duration::from_secs(2), long())).await;
    assert_eq!(code(answer), Code::ResourceExhausted, "a thousand steps take 25 s");

    let mut events = images.generate_stream(long()).await.unwrap().into_inner();
    while events.message().await.unwrap().is_some_and(|said| match said.event {
        Some(v1::generate_stream_response::Event::Progress(progress)) => progress.steps_done < 2,
        _ => true,
    }) {}
    // The one that was late is given up by the coordinator, which to the stage may look the same.
    let cancelled = || counted(&cluster.base_unets[0], "sdxl_runs_total", "\"cancelled\"");
    let before = cancelled();
    drop(events);
    until(|| counted(&cluster.coordinator, "sdxl_requests_total", "\"cancelled\"") == 1.0, cluster);
    until(|| cancelled() == before + 1.0, cluster);

    let failing = tokio::spawn(async move { images.generate(long()).await });
    until(|| counted(&cluster.base_unets[0], "sdxl_device_runs", "\"active\"") == 1.0, cluster);
    cluster.base_unets[0].kill();
    assert_eq!(code(failing.await.unwrap()), Code::Unavailable);
}

fn until(is_so: impl Fn() -> bool, cluster: &Cluster) {
    let end = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < end, "it is never so\n{}", cluster.stderr());
        thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_end_in_traces_metrics_and_logs_as_they_ended() {
    let Some(collector) = Collector::start() else { return };
    let profile = Profile::quick(0.025);
    let mut config = ClusterConfig { base_unets: 1, patience: 0, ..config(&profile, &collector) };
    config.variables.push(("SDXL_LOG_FORMAT".to_owned(), "json".to_owned()));
    let cluster = Cluster::start(&config);
    end_in_every_way(&cluster).await;
    let statuses = BTreeMap::from([
        ("ok", ("OK", false)),
        ("invalid", ("INVALID_ARGUMENT", false)),
        ("refused", ("RESOURCE_EXHAUSTED", false)),
        ("deadline", ("DEADLINE_EXCEEDED", true)),
        ("cancelled", ("CANCELLED", false)),
        ("failed", ("UNAVAILABLE", true)),
    ]);
    for outcome in statuses.keys() {
        let label = format!("outcome=\"{outcome}\"");
        for name in ["sdxl_requests_total", "sdxl_request_duration_seconds_count"] {
            assert_eq!(counted(&cluster.coordinator, name, &label), 1.0, "{name}: {outcome}");
        }
    }
    let log = cluster.coordinator.stderr();
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let got = spans(&collector.end(&cluster));
    let list = listed(&got);
    for (outcome, (status, is_error)) in statuses {
        let requests: Vec<_> =
            got.iter().filter(|s| s.name == "generate" && s.get("outcome") == outcome).collect();
        assert_eq!(requests.len(), 1, "{outcome}\n{list}");
        let request = requests[0];
        assert_eq!(request.is_error, is_error, "{outcome}: {request:?}");
        let call = got.iter().find(|span| span.id == request.parent).unwrap();
        assert_eq!((call.get("rpc.response.status_code"), call.is_error), (status, is_error), "{outcome}");
        let said: Vec<_> = lines.iter().filter(|line| line["outcome"] == outcome).collect();
        assert_eq!(said.len(), 1, "one line: {outcome}\n{log}");
        assert!(said[0].to_string().contains(&request.trace_id), "it names its trace: {}", said[0]);
    }
}

/// Enough for all that waits for a collector to be full: 2048 spans in each process.
const FILLING: usize = 400;
/// After that so many more do not make a process larger by more than this.
const FURTHER: usize = 800;
const GROWTH: u64 = 8 << 20;

async fn without_a_collector(endpoint: String) {
    let _alone = ALONE.lock().await;
    let profile = Profile::quick(0.001);
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "50".to_owned()),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let cluster = Cluster::start(&ClusterConfig { variables, ..ClusterConfig::simulated(profile.path()) });
    let pictures = async |count: usize| {
        let mut images = cluster.clients().images();
        for seed in 0..count {
            let request = v1::GenerateRequest { seed: Some(seed as u64), width: 128, height: 128, ..fox() };
            images.generate(request).await.unwrap();
        }
    };
    let memory = || cluster.servers().map(Server::resident_bytes).collect::<Vec<_>>();
    pictures(FILLING).await;
    let before = memory();
    pictures(FURTHER).await;
    for (before, after) in before.into_iter().zip(memory()) {
        assert!(after < before + GROWTH, "{before} bytes, and {after} after {FURTHER} pictures");
    }
    for server in cluster.servers() {
        server.signal(Signal::TERM);
        let ended = server.wait(Duration::from_secs(60)).expect("it ends all the same");
        assert!(ended.success(), "{ended:?}\n{}", server.stderr());
    }
}

#[tokio::test]
async fn where_no_collector_listens_nothing_waits_for_it_and_nothing_grows() {
    // It was free a moment ago, and is not given out again so soon.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    without_a_collector(format!("http://{free}")).await;
}

#[tokio::test]
async fn where_a_collector_never_answers_nothing_waits_for_it_and_nothing_grows() {
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    without_a_collector(format!("http://{}", deaf.local_addr().unwrap())).await;
}

//! `/metrics` of a real cluster: what is documented is there, and what is there is documented.

use integration_tests::{Cluster, ClusterConfig, Made, Redis, fox};
use sdxl_proto::v1;
use std::{
    collections::BTreeSet,
    io::Write,
    ops::Not,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(60);

/// Metrics' names at `/metrics`, from the tables of `docs/metrics.md`.
fn documented() -> BTreeSet<String> {
    let rows = include_str!("../../docs/metrics.md").lines().filter(|line| line.starts_with('|'));
    let names = rows.filter_map(|row| row.split('|').nth(2)?.trim().strip_prefix('`')?.strip_suffix('`'));
    names.map(str::to_owned).collect()
}

/// Names with a TYPE line.
fn exposed(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    lines.filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect()
}

/// `promtool check metrics`, where it is there; unless `TELEMETRY_TESTS=required` says that it has to be.
fn promtool_finds_nothing(text: &str) {
    let promtool = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        let missing = "promtool is missing: run integration-tests/telemetry/promtool.sh first";
        assert!(std::env::var("TELEMETRY_TESTS").is_ok_and(|word| word == "required").not(), "{missing}");
        return println!("skipped: {missing}");
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let found = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&found.stdout) + String::from_utf8_lossy(&found.stderr);
    assert!(found.status.success() && said.trim().is_empty(), "{said}\n{text}");
}

async fn a_job(cluster: &Cluster) {
    let mut jobs = cluster.clients().jobs();
    let request = v1::SubmitJobRequest { request: Some(fox()), ..Default::default() };
    let job = jobs.submit_job(request).await.unwrap().into_inner().job.unwrap();
    let end = Instant::now() + LIMIT;
    loop {
        let request = v1::GetJobRequest { job_id: job.id.clone(), include_images: false };
        let job = jobs.get_job(request).await.unwrap().into_inner().job.unwrap();
        if job.state() == v1::JobState::Succeeded {
            return;
        }
        assert!(Instant::now() < end, "{job:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn every_metric_is_documented_and_every_documented_one_is_there() {
    let redis = Redis::start();
    let coordinator_flags = vec!["--redis".to_owned(), redis.url()];
    let cluster = Cluster::start(&ClusterConfig { coordinator_flags, ..ClusterConfig::new(&Made::pico()) });
    let refiner = v1::Refiner { mode: Some(v1::refiner::Mode::DenoisingSplit(0.8)), ..Default::default() };
    let request = v1::GenerateRequest { refiner: Some(refiner), num_inference_steps: 5, ..fox() };
    cluster.clients().images().generate(request).await.unwrap();
    a_job(&cluster).await;

    let mut there = BTreeSet::new();
    for server in cluster.servers() {
        let text = server.metrics("text/plain");
        promtool_finds_nothing(&text);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let value = line.rsplit_once(' ').map(|(_, value)| value.parse::<f64>());
            assert!(matches!(value, Some(Ok(value)) if value >= 0.0), "{line}");
        }
        there.extend(exposed(&text));
        let open = server.metrics("application/openmetrics-text; version=1.0.0");
        assert!(open.ends_with("# EOF\n"), "{open}");
    }
    let documented = documented();
    let unknown: Vec<_> = there.difference(&documented).collect();
    let absent: Vec<_> = documented.difference(&there).collect();
    assert!(unknown.is_empty() && absent.is_empty(), "not documented: {unknown:?}; not there: {absent:?}");
    let text = cluster.coordinator.metrics("text/plain");
    for line in [
        "sdxl_requests_total{kind=\"call\",outcome=\"ok\"} 1",
        "sdxl_requests_total{kind=\"job\",outcome=\"ok\"} 1",
        "sdxl_jobs_total{state=\"succeeded\"} 1",
        "sdxl_stage_replicas{stage=\"base-unet\",state=\"ready\"} 1",
        "sdxl_stage_outstanding_seconds{stage=\"base-unet\"} 0",
        "sdxl_redis_up 1",
    ] {
        assert!(text.lines().any(|said| said == line), "{line}\nis not in\n{text}");
    }
}

//! `/metrics` of a real cluster: what is documented is there, and what is there is documented.

use integration_tests::{Cluster, ClusterConfig, Documented, Made, Profile, Redis, fox, prometheus};
use rustix::process::Signal;
use sdxl_proto::v1;
use std::{
    collections::BTreeSet,
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(60);

/// Names with a TYPE line.
fn exposed(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    lines.filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect()
}

/// `promtool check metrics`, where it is there.
fn promtool_finds_nothing(text: &str) {
    let Some(promtool) = prometheus::tool("promtool") else { return };
    let mut promtool = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
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
    let documented: BTreeSet<_> = Documented::all().into_iter().map(|metric| metric.name).collect();
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

/// Whoever follows a replica's health often sees first that it is gone, and did not count it.
#[tokio::test]
async fn a_replica_that_is_lost_while_idle_is_counted_and_one_that_was_told_to_end_is_not() {
    let profile = Profile::quick(0.001);
    let cluster =
        Cluster::start(&ClusterConfig { base_unets: 3, ..ClusterConfig::simulated(profile.path()) });
    let says = |line: &str| cluster.coordinator.metrics("text/plain").lines().any(|said| said == line);
    let comes = async |line: &str| {
        let end = Instant::now() + LIMIT;
        while !says(line) {
            assert!(Instant::now() < end, "{line}\nis not in\n{}", cluster.coordinator.metrics("text/plain"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    comes("sdxl_stage_replicas{stage=\"base-unet\",state=\"ready\"} 3").await;
    cluster.base_unets[0].signal(Signal::TERM);
    assert!(cluster.base_unets[0].wait(LIMIT).is_some_and(|status| status.success()));
    comes("sdxl_stage_replicas{stage=\"base-unet\",state=\"ready\"} 2").await;
    assert!(says("sdxl_replica_ejections_total{stage=\"base-unet\"} 0"), "it was told to end");
    cluster.base_unets[1].kill();
    comes("sdxl_stage_replicas{stage=\"base-unet\",state=\"ready\"} 1").await;
    comes("sdxl_replica_ejections_total{stage=\"base-unet\"} 1").await;
}

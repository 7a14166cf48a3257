//! A real Prometheus over a real cluster.

use crate::chart::{panels, queries, rendered};
use integration_tests::{
    Clients, Cluster, ClusterConfig, Made, Profile, Prometheus, Redis, Server, fox, prometheus::NAMESPACE,
};
use sdxl_proto::v1::{GenerateRequest, GetJobRequest, JobState, Refiner, SubmitJobRequest, refiner::Mode};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::{task::JoinSet, time::sleep};
use tonic_health::pb::health_check_response::ServingStatus;

const LIMIT: Duration = Duration::from_secs(60);

/// The chart's alerts with times so short that it is soon over, and its own thresholds. `None` without helm. On a busy machine a
/// scrape may fail for being late, which is no reason for an alert yet.
fn alerts() -> Option<String> {
    rendered(json!({"window": "20s", "for": "3s", "runbook": "https://example.com/operations.md"}))
}

/// More than what shares are taken of.
const CALLERS: u64 = 30;

fn request(seed: u64, steps: u32) -> GenerateRequest {
    GenerateRequest { seed: Some(seed), width: 128, height: 128, num_inference_steps: steps, ..fox() }
}

/// Of a step. All callers come while the first step is being done.
const STEP: f64 = 0.2;

/// Requests that would take minutes and have a second, all of them before anything is known of how long steps take.
async fn miss_deadlines(clients: &Clients) {
    let mut callers = JoinSet::new();
    for seed in 0..CALLERS {
        let mut images = clients.images();
        callers.spawn(async move {
            let mut request = tonic::Request::new(request(seed, 1000));
            request.set_timeout(Duration::from_secs(1));
            let mut events = images.generate_stream(request).await?.into_inner();
            while events.message().await?.is_some() {}
            Ok::<_, tonic::Status>(())
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.unwrap().unwrap_err();
    }
}

/// Requests whose bases are killed at work, all but the last, and which end well.
async fn lose_replicas(cluster: &Cluster, clients: &Clients) -> JoinSet<()> {
    let mut callers = JoinSet::new();
    for seed in 0..CALLERS {
        let mut images = clients.images();
        callers.spawn(async move { drop(images.generate(request(seed, 10)).await.unwrap()) });
    }
    for base in &cluster.base_unets[1..] {
        until_at_work(base).await;
        base.kill();
    }
    callers
}

/// Waits until a base has several runs on its device.
async fn until_at_work(base: &Server) {
    let end = Instant::now() + LIMIT;
    let active = |text: &str| {
        let line =
            text.lines().find(|line| line.starts_with("sdxl_device_runs{") && line.contains("\"active\""));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok()).unwrap_or(0.0)
    };
    while active(&base.metrics("text/plain")) < 4.0 {
        assert!(Instant::now() < end, "{}", base.metrics("text/plain"));
        sleep(Duration::from_millis(10)).await;
    }
}

fn annotation<'a>(alert: &'a Value, name: &str) -> &'a str {
    alert["annotations"][name].as_str().unwrap_or_else(|| panic!("{alert}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_fire_when_deadlines_are_missed_replicas_lost_and_redis_gone() {
    let Some(rules) = alerts() else { return };
    let (profile, redis) = (Profile::quick(STEP), Redis::start());
    let flags = ["--redis", &redis.url(), "--retries-per-second", "100"].map(str::to_owned);
    let cluster = Cluster::start(&ClusterConfig {
        base_unets: 4,
        patience: 30,
        coordinator_flags: flags.to_vec(),
        ..ClusterConfig::simulated(profile.path())
    });
    let Some(prometheus) = Prometheus::start(&rules, cluster.servers()) else { return };
    let began = Instant::now();
    let fires = |name: &str, labels: &[(&str, &str)]| {
        let alert = prometheus.fires(name);
        println!("{:5.1} s: {name}: {}", began.elapsed().as_secs_f64(), annotation(&alert, "description"));
        assert_eq!(alert["labels"]["namespace"], NAMESPACE);
        assert!(labels.iter().all(|(label, value)| alert["labels"][label] == *value), "{alert}");
        let place = format!("https://example.com/operations.md#{}", name.to_lowercase());
        assert_eq!(annotation(&alert, "runbook_url"), place);
        alert
    };

    let firing = prometheus.alerts().into_iter().filter(|alert| alert["state"] == "firing");
    assert_eq!(firing.collect::<Vec<_>>(), Vec::<Value>::new(), "nothing has happened");
    let clients = cluster.clients();
    assert_eq!(clients.health().await, Some(ServingStatus::Serving), "it is connected");
    miss_deadlines(&clients).await;
    let missed = fires("SdxlDeadlinesMissed", &[("severity", "warning")]);
    let share: f64 = annotation(&missed, "description").split('%').next().unwrap().parse().unwrap();
    assert!((5.0..=100.0).contains(&share), "{missed}");

    let callers = lose_replicas(&cluster, &clients).await;
    let base = ("stage", "base-unet");
    // Before the callers have their answers: by then it may be over.
    fires("SdxlResumeStorm", &[("severity", "critical"), base]);
    fires("SdxlReplicasEjected", &[("severity", "warning"), base]);
    callers.join_all().await;
    let names = |alerts: &[Value]| alerts.iter().map(|alert| alert["labels"].to_string()).collect::<String>();
    let before = names(&prometheus.alerts());
    assert!(!before.contains("SdxlStageWithoutReplica") && !before.contains("SdxlRedisGone"), "{before}");

    cluster.base_unets[0].kill();
    drop(redis);
    fires("SdxlStageWithoutReplica", &[("severity", "critical"), base]);
    fires("SdxlRedisGone", &[("severity", "critical")]);
    cluster.coordinator.kill();
    fires("SdxlCoordinatorsGone", &[("severity", "critical")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_has_something_to_show_and_a_healthy_cluster_is_left_in_peace() {
    let Some(rules) = alerts() else { return };
    let redis = Redis::start();
    let coordinator_flags = vec!["--redis".to_owned(), redis.url()];
    let cluster = Cluster::start(&ClusterConfig { coordinator_flags, ..ClusterConfig::new(&Made::pico()) });
    let Some(prometheus) = Prometheus::start(&rules, cluster.servers()) else { return };
    let (mut images, mut jobs) = (cluster.clients().images(), cluster.clients().jobs());
    let submitted = SubmitJobRequest { request: Some(fox()), ..Default::default() };
    let job_id = jobs.submit_job(submitted).await.unwrap().into_inner().job.unwrap().id;
    let end = Instant::now() + LIMIT;
    let mut empty: Vec<String>;
    let mut seed = 0;
    loop {
        let refiner = Refiner { mode: Some(Mode::DenoisingSplit(0.5)), ..Default::default() };
        images.generate(GenerateRequest { seed: Some(seed), refiner: Some(refiner), ..fox() }).await.unwrap();
        seed += 1;
        let panels = panels();
        let shows = |panel: &Value| {
            queries(panel).all(|(query, _)| {
                let query = query.replace("$__rate_interval", "20s").replace("$namespace", NAMESPACE);
                let series = prometheus.query(&query);
                series.iter().any(|series| series["value"][1] != "NaN")
            })
        };
        empty = panels.iter().filter(|panel| !shows(panel)).map(|panel| panel["title"].to_string()).collect();
        if empty.is_empty() {
            break;
        }
        assert!(Instant::now() < end, "nothing in {empty:?}");
    }
    let request = GetJobRequest { job_id, include_images: false };
    let job = jobs.get_job(request).await.unwrap().into_inner().job.unwrap();
    assert_eq!(job.state(), JobState::Succeeded);
    println!("{} panels show something after {seed} requests", panels().len());
    // In so short a window the requests above were a queue that grows.
    prometheus.until("nothing is amiss", |it| it.alerts().is_empty());
}

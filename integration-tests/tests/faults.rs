//! Processes that die, hang, stop and fill up, and callers that go away.

use integration_tests::{Clients, Cluster, ClusterConfig, Made, Server, fox};
use rustix::process::Signal;
use sdxl_proto::v1;
use std::time::{Duration, Instant};
use tonic::{Code, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;

/// Far more work than any test waits for.
fn endless() -> v1::GenerateRequest {
    v1::GenerateRequest { width: 256, height: 256, num_inference_steps: 1000, ..fox() }
}

fn one_at_a_time() -> ClusterConfig {
    let denoiser_flags = ["--max-active", "1"].map(str::to_owned).to_vec();
    ClusterConfig { denoiser_flags, ..ClusterConfig::new(&Made::pico()) }
}

/// Starts a stream and reads it until a picture's first step is done.
async fn under_way(clients: &Clients, request: v1::GenerateRequest) -> Streaming<v1::GenerateStreamResponse> {
    let mut events = clients.images().generate_stream(request).await.unwrap().into_inner();
    while let Some(event) = events.message().await.unwrap() {
        if let Some(v1::generate_stream_response::Event::Progress(progress)) = event.event
            && progress.steps_done > 0
        {
            return events;
        }
    }
    panic!("the stream ended before the first step");
}

/// Reads a stream to its end, which is to be an error.
async fn failure(mut events: Streaming<v1::GenerateStreamResponse>) -> Status {
    loop {
        match events.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended well"),
            Err(status) => return status,
        }
    }
}

/// Kills `server` and asserts that `call` says so within a second.
async fn unavailable_within_a_second(server: &Server, call: impl Future<Output = Status>) {
    server.kill();
    let killed = Instant::now();
    let status = call.await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}: {status}", killed.elapsed());
}

#[tokio::test]
async fn a_killed_denoiser_is_unavailable() {
    let cluster = Cluster::start(&ClusterConfig::new(&Made::pico()));
    let events = under_way(&cluster.clients(), endless()).await;
    unavailable_within_a_second(&cluster.base_unets[0], failure(events)).await;
    let status = cluster.clients().images().generate(fox()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "nobody is left: {status}");
    assert!(cluster.clients().becomes(ServingStatus::NotServing, Duration::from_secs(10)).await);
}

#[tokio::test]
async fn a_killed_refiner_is_unavailable() {
    let cluster = Cluster::start(&ClusterConfig::new(&Made::pico()));
    let mode = Some(v1::refiner::Mode::Strength(0.999));
    let refiner = Some(v1::Refiner { mode, num_inference_steps: 1000, ..Default::default() });
    let request = v1::GenerateRequest { refiner, num_inference_steps: 1, ..endless() };
    let mut events = cluster.clients().images().generate_stream(request).await.unwrap().into_inner();
    loop {
        let event = events.message().await.unwrap().expect("the refiner has a thousand steps to do");
        if let Some(v1::generate_stream_response::Event::Progress(progress)) = event.event
            && progress.stage() == v1::Stage::Refiner
        {
            break;
        }
    }
    unavailable_within_a_second(cluster.refiner.as_ref().unwrap(), failure(events)).await;
    cluster.clients().images().generate(fox()).await.expect("the base needs no refiner");
}

/// The other stages are too quick to be caught at work: they are halted first.
#[tokio::test]
async fn a_killed_text_encoder_or_vae_is_unavailable() {
    for stage in [v1::Stage::TextEncoder, v1::Stage::Vae] {
        let cluster = Cluster::start(&ClusterConfig::new(&Made::pico()));
        let server = if stage == v1::Stage::Vae { &cluster.vaes[0] } else { &cluster.text_encoder };
        server.signal(Signal::STOP);
        let clients = cluster.clients();
        let call = tokio::spawn(async move { clients.images().generate(fox()).await.unwrap_err() });
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(!call.is_finished(), "the request waits for {stage:?}");
        unavailable_within_a_second(server, async { call.await.unwrap() }).await;
    }
}

#[tokio::test]
async fn with_another_replica_a_kill_costs_only_what_ran_there() {
    let config = ClusterConfig { base_unets: 2, ..ClusterConfig::new(&Made::pico()) };
    let cluster = Cluster::start(&config);
    let clients = cluster.clients();
    let expected = clients.images().generate(fox()).await.unwrap().into_inner().images;
    cluster.base_unets[0].kill();
    for i in 0..6 {
        // The first may have been sent to the dead one; that the connection broke is known at once.
        let answer = clients.images().generate(fox()).await;
        match answer {
            Ok(answer) => assert_eq!(answer.into_inner().images[0].data, expected[0].data),
            Err(status) => assert!(i == 0 && status.code() == Code::Unavailable, "request {i}: {status}"),
        }
    }
    assert_eq!(clients.health().await, Some(ServingStatus::Serving));
}

/// How long a request of one step waits at a denoiser that does one thing at a time, and how long its step takes.
async fn wait_at(server: &Server, scheduler: Option<v1::SchedulerConfig>) -> (Duration, Duration) {
    let mut events =
        Clients::new(server.address()).denoiser().denoise(one_step(scheduler)).await.unwrap().into_inner();
    while let Some(event) = events.message().await.unwrap() {
        if let Some(v1::denoise_response::Event::Result(result)) = event.event {
            let time = |d: Option<prost_types::Duration>| d.unwrap().try_into().unwrap();
            return (time(result.queue_time), time(result.run_time));
        }
    }
    panic!("the stream ended without a result");
}

fn one_step(scheduler: Option<v1::SchedulerConfig>) -> v1::DenoiseRequest {
    let size = Some(v1::Size { height: 256, width: 256 });
    v1::DenoiseRequest {
        size,
        scheduler,
        num_inference_steps: 1,
        end_step: 1,
        guidance_scale: 5.0,
        conditioning: Some(zeros(size)),
        negative_conditioning: Some(zeros(size)),
        start: Some(v1::denoise_request::Start::Noise(v1::SeededNoise { seed: 1, draws_before: 0 })),
        ..Default::default()
    }
}

fn zeros(size: Option<v1::Size>) -> v1::Conditioning {
    v1::Conditioning {
        original_size: size,
        crops_coords_top_left: Some(v1::CropCoords::default()),
        target_size: size,
        ..Default::default()
    }
}

async fn scheduler_of(server: &Server) -> Option<v1::SchedulerConfig> {
    let answer = Clients::new(server.address()).stage().get_stage(v1::GetStageRequest {}).await.unwrap();
    match answer.into_inner().details {
        Some(v1::get_stage_response::Details::Denoiser(details)) => details.scheduler,
        other => panic!("{other:?}"),
    }
}

/// A denoiser that works on one request at a time starts the next as soon as the one before is done or given up: so
/// the next one's queue time tells how long the abandoned work went on.
#[tokio::test]
async fn when_the_caller_goes_the_denoiser_is_idle_within_one_step() {
    let cluster = Cluster::start(&one_at_a_time());
    let base = &cluster.base_unets[0];
    let scheduler = scheduler_of(base).await;
    let (_, step) = wait_at(base, scheduler).await;
    for _ in 0..3 {
        let events = under_way(&cluster.clients(), endless()).await;
        drop(events);
        // The time that the message takes on its way through the coordinator is no step.
        tokio::time::sleep(Duration::from_millis(30)).await;
        let (waited, _) = wait_at(base, scheduler).await;
        assert!(waited < step * 2 + Duration::from_millis(20), "waited {waited:?}, a step takes {step:?}");
    }
}

#[tokio::test]
async fn when_the_deadline_passes_the_denoiser_is_idle_within_one_step() {
    let cluster = Cluster::start(&one_at_a_time());
    let base = &cluster.base_unets[0];
    let scheduler = scheduler_of(base).await;
    let (_, step) = wait_at(base, scheduler).await;
    let mut request = tonic::Request::new(endless());
    request.set_timeout(Duration::from_millis(500));
    let start = Instant::now();
    let status = cluster.clients().images().generate(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    assert!(start.elapsed() < Duration::from_millis(500) + step * 2 + Duration::from_millis(500));
    let (waited, _) = wait_at(base, scheduler).await;
    assert!(waited < step * 2 + Duration::from_millis(20), "waited {waited:?}, a step takes {step:?}");
}

#[tokio::test]
async fn a_stage_told_to_stop_finishes_its_work_and_takes_no_more() {
    let cluster = Cluster::start(&ClusterConfig { base_unets: 2, ..ClusterConfig::new(&Made::pico()) });
    let request = v1::GenerateRequest { num_inference_steps: 40, width: 192, height: 192, ..fox() };
    let clients = cluster.clients();
    let expected = clients.images().generate(request.clone()).await.unwrap().into_inner();
    let mut events = under_way(&clients, request.clone()).await;
    for base in &cluster.base_unets {
        base.signal(Signal::TERM);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let refused = Clients::new(cluster.base_unets[0].address()).denoiser().denoise(one_step(None)).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    let mut pictures = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        if let Some(v1::generate_stream_response::Event::Image(image)) = event.event {
            pictures.push(image.image.unwrap().data);
        }
    }
    assert!(pictures == [expected.images[0].data.clone()]);
    for base in &cluster.base_unets {
        let status = base.wait(Duration::from_secs(5)).expect("the stage ends once its work is done");
        assert_eq!(status.code(), Some(0), "{}", base.stderr());
    }
}

#[tokio::test]
async fn a_coordinator_told_to_stop_finishes_its_requests() {
    let cluster = Cluster::start(&ClusterConfig::new(&Made::pico()));
    let request = v1::GenerateRequest { num_inference_steps: 40, width: 192, height: 192, ..fox() };
    let mut events = under_way(&cluster.clients(), request).await;
    cluster.coordinator.signal(Signal::TERM);
    let mut pictures = 0;
    while let Some(event) = events.message().await.unwrap() {
        if let Some(v1::generate_stream_response::Event::Image(_)) = event.event {
            pictures += 1;
        }
    }
    assert_eq!(pictures, 1);
    let status = cluster.coordinator.wait(Duration::from_secs(5)).expect("the coordinator ends");
    assert_eq!(status.code(), Some(0), "{}", cluster.coordinator.stderr());
}

#[tokio::test]
async fn a_full_stage_says_so_at_once() {
    let flags = ["--max-active", "1", "--queue-depth", "1"].map(str::to_owned).to_vec();
    let cluster =
        Cluster::start(&ClusterConfig { denoiser_flags: flags, ..ClusterConfig::new(&Made::pico()) });
    let running = under_way(&cluster.clients(), endless()).await;
    let waiting = cluster.clients().images().generate_stream(endless()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let start = Instant::now();
    let status = cluster.clients().images().generate(endless()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    assert!(tonic_types::StatusExt::get_details_retry_info(&status).is_some(), "it says when to try again");
    drop((running, waiting));
}

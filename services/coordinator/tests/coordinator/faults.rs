//! Callers that go, and replicas that die.

use crate::{
    cluster::{Cluster, Layout, cat, refined},
    fake::{Fake, Fate, Script},
};
use sdxl_core::StageKind;
use sdxl_proto::v1::{
    GenerateRequest, Stage, StageTiming, denoise_request::Start, generate_stream_response::Event,
    refiner::Mode,
};
use std::time::{Duration, Instant};
use tonic::Code;

const LONG: Duration = Duration::from_secs(60);
/// A step of the fakes takes a minute, so whatever ends sooner did not wait for one.
const PROMPT: Duration = Duration::from_millis(500);

fn slow(stage: StageKind) -> Script {
    Script::new(stage).step_time(LONG)
}

#[tokio::test]
async fn a_caller_that_hangs_up_frees_the_denoisers() {
    let cluster = Cluster::start(Layout::bases([slow(StageKind::BaseUnet)])).await;
    let mut client = cluster.client();
    let caller =
        tokio::spawn(async move { client.generate(GenerateRequest { num_images: 3, ..cat() }).await });
    cluster.base_unet[0].running(3).await;
    let hung_up = Instant::now();
    caller.abort();
    cluster.base_unet[0].running(0).await;
    assert!(hung_up.elapsed() < PROMPT, "{:?}", hung_up.elapsed());
}

#[tokio::test]
async fn a_stream_that_is_dropped_frees_the_denoisers() {
    let cluster = Cluster::start(Layout::bases([slow(StageKind::BaseUnet)])).await;
    let mut stream = cluster.client().generate_stream(cat()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    cluster.base_unet[0].running(1).await;
    let hung_up = Instant::now();
    drop(stream);
    cluster.base_unet[0].running(0).await;
    assert!(hung_up.elapsed() < PROMPT, "{:?}", hung_up.elapsed());
}

/// Kills a replica at work and checks what the caller hears.
async fn killed(mut cluster: Cluster, request: GenerateRequest, victim: fn(&mut Cluster) -> &mut Fake) {
    let mut client = cluster.client();
    let caller = tokio::spawn(async move {
        let result = client.generate(request).await;
        (result, Instant::now())
    });
    let fake = victim(&mut cluster);
    fake.running(1).await;
    let died = Instant::now();
    fake.kill();
    let address = fake.address.to_string();
    let (result, heard) = caller.await.unwrap();
    let status = result.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains(&address), "{}", status.message());
    assert!(heard - died < Duration::from_secs(1), "{:?}", heard - died);
}

#[tokio::test]
async fn a_base_unet_that_dies_is_named_within_a_second() {
    let cluster = Cluster::start(Layout::bases([slow(StageKind::BaseUnet)])).await;
    killed(cluster, cat(), |cluster| &mut cluster.base_unet[0]).await;
}

#[tokio::test]
async fn a_refiner_that_dies_is_named_within_a_second() {
    let layout = Layout { refiner: vec![slow(StageKind::Refiner)], ..Layout::default() };
    let cluster = Cluster::start(layout).await;
    killed(cluster, refined(Mode::DenoisingSplit(0.5)), |cluster| &mut cluster.refiner[0]).await;
}

#[tokio::test]
async fn a_text_encoder_that_dies_is_named_within_a_second() {
    let layout = Layout { text_encoder: vec![slow(StageKind::TextEncoder)], ..Layout::default() };
    let cluster = Cluster::start(layout).await;
    killed(cluster, cat(), |cluster| &mut cluster.text_encoder[0]).await;
}

#[tokio::test]
async fn a_vae_that_dies_is_named_within_a_second() {
    let layout = Layout { vae: vec![slow(StageKind::Vae)], ..Layout::default() };
    let cluster = Cluster::start(layout).await;
    killed(cluster, cat(), |cluster| &mut cluster.vae[0]).await;
}

#[tokio::test]
async fn one_lost_picture_gives_the_others_up() {
    let scripts = [slow(StageKind::BaseUnet), slow(StageKind::BaseUnet)];
    let layout = Layout { retries_per_second: 0, ..Layout::bases(scripts) };
    let mut cluster = Cluster::start(layout).await;
    ready(&cluster, 1, 2).await;
    let mut client = cluster.client();
    let caller =
        tokio::spawn(async move { client.generate(GenerateRequest { num_images: 2, ..cat() }).await });
    cluster.base_unet[0].running(1).await;
    cluster.base_unet[1].running(1).await;
    cluster.base_unet[0].kill();
    assert_eq!(caller.await.unwrap().unwrap_err().code(), Code::Unavailable);
    cluster.base_unet[1].running(0).await;
}

#[tokio::test]
async fn without_a_replica_the_stage_is_named_at_once() {
    let mut cluster = Cluster::start(Layout::default()).await;
    cluster.vae[0].kill();
    let gone = tonic_health::pb::health_check_response::ServingStatus::NotServing;
    cluster.becomes(gone, Duration::from_secs(2)).await;
    let status = cluster.generate(cat()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "vae: no replica is ready"));
}

fn base() -> Script {
    Script::new(StageKind::BaseUnet)
}

async fn ready(cluster: &Cluster, stage: usize, count: u32) {
    while cluster.model().await.unwrap().stages[stage].ready_replicas != count {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What the base spent on the only picture.
fn base_timing(timings: &[StageTiming]) -> &StageTiming {
    timings.iter().find(|t| t.stage() == Stage::BaseUnet).unwrap()
}

/// The step that a fake was asked to begin at, of a checkpoint.
fn resumed_at(fake: &Fake) -> Vec<u32> {
    let seen = fake.log.denoises.lock().unwrap();
    seen.iter()
        .filter_map(|seen| match &seen.request.start {
            Some(Start::Checkpoint(checkpoint)) => Some(checkpoint.step),
            _ => None,
        })
        .collect()
}

/// One replica meets its fate after five steps, the other one does the rest.
async fn survived(fate: Fate, from: u32) {
    let cluster = Cluster::start(Layout::bases([base().fate(5, fate), base()])).await;
    ready(&cluster, 1, 2).await;
    // Whichever is asked first; both ways end well, and one of two meets the fate.
    for _ in 0..2 {
        let request = GenerateRequest { num_inference_steps: 9, ..cat() };
        let answer = cluster.generate(request).await.unwrap();
        let timing = base_timing(&answer.timings);
        assert_eq!(timing.steps, 9);
        if timing.resumes == 1 {
            assert_eq!(resumed_at(&cluster.base_unet[1]), [from]);
            assert_eq!(timing.steps_repeated, 5 - from);
            assert_eq!(timing.replica, cluster.base_unet[1].address.to_string());
            return;
        }
        cluster.base_unet[1].running(0).await;
    }
    panic!("nothing was survived");
}

#[tokio::test]
async fn a_run_on_a_replica_that_stops_goes_on_from_its_last_checkpoint() {
    survived(Fate::Stop, 4).await;
}

#[tokio::test]
async fn a_run_that_is_handed_over_loses_no_step() {
    survived(Fate::HandOver, 5).await;
}

#[tokio::test]
async fn a_run_on_a_replica_that_hangs_goes_on_elsewhere() {
    survived(Fate::Hang, 4).await;
}

#[tokio::test]
async fn steps_are_told_together_where_nobody_hears_of_each() {
    let cluster = Cluster::start(Layout::bases([base().together()])).await;
    let request = GenerateRequest { num_inference_steps: 9, ..cat() };
    let answer = cluster.generate(request.clone()).await.unwrap();
    assert_eq!(base_timing(&answer.timings).steps, 9);
    let (events, error) = cluster.stream(request).await;
    assert!(error.is_none(), "{error:?}");
    let told =
        events.iter().filter(|event| matches!(event, Event::Progress(p) if p.stage() == Stage::BaseUnet));
    assert_eq!(told.count(), 9);
    let seen = cluster.base_unet[0].log.denoises.lock().unwrap();
    let intervals: Vec<_> = seen.iter().map(|seen| seen.request.progress_interval).collect();
    assert_eq!(intervals, [2, 1], "as many as from one checkpoint to the next, or each");
}

#[tokio::test]
async fn what_is_lost_of_steps_that_are_told_together_is_made_again() {
    let cluster = Cluster::start(Layout::bases([base().together().fate(5, Fate::Hang), base()])).await;
    ready(&cluster, 1, 2).await;
    for _ in 0..2 {
        let request = GenerateRequest { num_inference_steps: 9, ..cat() };
        let answer = cluster.generate(request).await.unwrap();
        let timing = base_timing(&answer.timings);
        if timing.resumes == 1 {
            // The fifth step was done, and nobody had heard of it yet.
            let lost = &timing.lost_attempts[0];
            assert_eq!((lost.steps, timing.steps, timing.steps_repeated), (4, 9, 0));
            assert_eq!(resumed_at(&cluster.base_unet[1]), [4]);
            return;
        }
        cluster.base_unet[1].running(0).await;
    }
    panic!("nothing was survived");
}

#[tokio::test]
async fn a_run_on_a_replica_that_dies_goes_on_elsewhere() {
    let script = base().step_time(Duration::from_millis(50));
    let mut cluster = Cluster::start(Layout::bases([script.clone(), script])).await;
    ready(&cluster, 1, 2).await;
    let mut client = cluster.client();
    let request = GenerateRequest { num_inference_steps: 20, ..cat() };
    let caller = tokio::spawn(async move { client.generate(request).await });
    while cluster.base_unet.iter().all(|fake| fake.denoises() == 0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    let victim = usize::from(cluster.base_unet[1].denoises() == 1);
    cluster.base_unet[victim].kill();
    let answer = caller.await.unwrap().unwrap().into_inner();
    let timing = base_timing(&answer.timings);
    assert_eq!((timing.steps, timing.resumes), (20, 1));
    assert!(timing.steps_repeated <= 2, "{timing:?}");
    let from = resumed_at(&cluster.base_unet[1 - victim]);
    assert!(from.len() == 1 && from[0] >= 2 && from[0].is_multiple_of(2), "{from:?}");
}

#[tokio::test]
async fn a_picture_whose_vae_dies_is_decoded_by_another() {
    let vae = Script::new(StageKind::Vae);
    let layout = Layout { vae: vec![slow(StageKind::Vae), vae], ..Layout::default() };
    let mut cluster = Cluster::start(layout).await;
    ready(&cluster, 2, 2).await;
    for _ in 0..2 {
        let mut client = cluster.client();
        let caller = tokio::spawn(async move { client.generate(cat()).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        if !caller.is_finished() {
            cluster.vae[0].kill();
            assert!(caller.await.unwrap().is_ok());
            return;
        }
    }
    panic!("the slow one was never asked");
}

#[tokio::test]
async fn work_that_was_begun_waits_for_a_replica() {
    let layout = Layout { patience: Duration::from_secs(20), ..Layout::bases([base().step_time(STEP)]) };
    let mut cluster = Cluster::start(layout).await;
    let mut client = cluster.client();
    let request = GenerateRequest { num_inference_steps: 20, ..cat() };
    let caller = tokio::spawn(async move { client.generate(request).await });
    cluster.base_unet[0].running(1).await;
    tokio::time::sleep(STEP * 6).await;
    cluster.base_unet[0].kill();
    let address = cluster.base_unet[0].address;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let again = Fake::start_at(base(), address);
    assert_eq!(caller.await.unwrap().unwrap().into_inner().images.len(), 1);
    assert_eq!(resumed_at(&again).len(), 1);
}

const STEP: Duration = Duration::from_millis(50);

#[tokio::test]
async fn without_budget_nothing_is_begun_anew() {
    let scripts = [base().fate(3, Fate::Stop), base().fate(3, Fate::Stop)];
    let layout = Layout { retries_per_second: 0, ..Layout::bases(scripts) };
    let cluster = Cluster::start(layout).await;
    let status = cluster.generate(GenerateRequest { num_inference_steps: 9, ..cat() }).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().ends_with("the cluster's budget for retries is spent"), "{}", status.message());
}

#[tokio::test]
async fn a_request_that_never_gets_on_is_given_up() {
    let scripts = (0..8).map(|_| base().fate(1, Fate::Stop));
    let cluster = Cluster::start(Layout::bases(scripts)).await;
    ready(&cluster, 1, 8).await;
    let status = cluster.generate(GenerateRequest { num_inference_steps: 9, ..cat() }).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let asked: usize = cluster.base_unet.iter().map(Fake::denoises).sum();
    assert_eq!(asked, 6, "the first and five more");
}

#[tokio::test]
async fn a_slow_replica_gets_less() {
    let (slow, quick) = (base().step_time(Duration::from_millis(80)), base());
    let cluster = Cluster::start(Layout::bases([slow, quick])).await;
    ready(&cluster, 1, 2).await;
    // Both have to be seen at work first.
    let two = GenerateRequest { num_images: 2, ..cat() };
    cluster.generate(two).await.unwrap();
    for _ in 0..3 {
        cluster.generate(GenerateRequest { num_images: 4, ..cat() }).await.unwrap();
    }
    let [slow, quick] = [cluster.base_unet[0].denoises(), cluster.base_unet[1].denoises()];
    assert!(slow < quick, "{slow} and {quick}");
}

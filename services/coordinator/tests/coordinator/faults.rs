//! Callers that go, and replicas that die.

use crate::{
    cluster::{Cluster, Layout, cat, refined},
    fake::{Fake, Script},
};
use sdxl_core::StageKind;
use sdxl_proto::v1::{GenerateRequest, refiner::Mode};
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
    let mut cluster = Cluster::start(Layout::bases(scripts)).await;
    while cluster.model().await.unwrap().stages[1].ready_replicas < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
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

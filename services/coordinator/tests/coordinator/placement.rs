//! Who gets the work.

use crate::{
    cluster::{Cluster, Layout, cat},
    fake::Script,
};
use sdxl_core::StageKind;
use sdxl_proto::v1::{GenerateRequest, get_stage_response::Details};
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

fn base() -> Script {
    Script::new(StageKind::BaseUnet)
}

#[tokio::test]
async fn pictures_of_one_request_spread_over_the_replicas() {
    let script = base().step_time(Duration::from_millis(20));
    let cluster = Cluster::start(Layout::bases([script.clone(), script.clone(), script])).await;
    all_ready(&cluster, 3).await;
    cluster.generate(GenerateRequest { num_images: 3, ..cat() }).await.unwrap();
    let each: Vec<_> = cluster.base_unet.iter().map(crate::fake::Fake::denoises).collect();
    assert_eq!(each, [1, 1, 1]);
    assert_eq!(cluster.text_encoder[0].log.encodes.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_large_picture_weighs_more_than_two_small_ones() {
    let script = base().step_time(Duration::from_secs(60));
    let cluster = Cluster::start(Layout::bases([script.clone(), script])).await;
    all_ready(&cluster, 2).await;
    let start = |side: u32| {
        let mut client = cluster.client();
        tokio::spawn(
            async move { client.generate(GenerateRequest { width: side, height: side, ..cat() }).await },
        )
    };
    let mut tasks = vec![start(1024)];
    while cluster.base_unet.iter().all(|fake| fake.denoises() == 0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let large = usize::from(cluster.base_unet[1].denoises() == 1);
    for count in 1..=3 {
        tasks.push(start(128));
        cluster.base_unet[1 - large].running(count).await;
    }
    assert_eq!(cluster.base_unet[large].denoises(), 1);
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_full_replica_is_passed_over() {
    let full = base().refuse(Status::resource_exhausted("64 requests are waiting"));
    let cluster = Cluster::start(Layout::bases([full.clone(), base(), full])).await;
    all_ready(&cluster, 3).await;
    for _ in 0..3 {
        cluster.generate(cat()).await.unwrap();
    }
    assert_eq!(cluster.base_unet[1].denoises(), 3);
    assert!(
        cluster.base_unet[0].denoises() + cluster.base_unet[2].denoises() > 0,
        "the full ones were asked"
    );
}

#[tokio::test]
async fn a_replica_that_begins_to_drain_is_passed_over() {
    let draining = base().refuse(Status::unavailable("this server is shutting down"));
    let cluster = Cluster::start(Layout::bases([draining, base()])).await;
    all_ready(&cluster, 2).await;
    for _ in 0..2 {
        cluster.generate(cat()).await.unwrap();
    }
    assert!(cluster.base_unet[0].denoises() > 0, "the one that drains was asked");
    assert_eq!(cluster.base_unet[1].denoises(), 2);
}

#[tokio::test]
async fn if_all_are_full_the_caller_hears_when_to_try_again() {
    let mut details = ErrorDetails::new();
    details.set_retry_info(Some(Duration::from_secs(3)));
    let status = Status::with_error_details(Code::ResourceExhausted, "full", details);
    let cluster = Cluster::start(Layout::bases([base().refuse(status.clone()), base().refuse(status)])).await;
    all_ready(&cluster, 2).await;
    let status = cluster.generate(cat()).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::ResourceExhausted, "base-unet: every replica is full")
    );
    assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_secs(3)));
    assert_eq!((cluster.base_unet[0].denoises(), cluster.base_unet[1].denoises()), (1, 1), "once each");
}

#[tokio::test]
async fn a_replica_of_another_stage_or_revision_gets_nothing() {
    let first = base();
    let mut vae = Script::new(StageKind::Vae);
    vae.info.revision = first.info.revision.clone();
    let cluster = Cluster::start(Layout::bases([first, vae])).await;
    // Time for the wrong one to have been asked what it is.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..4 {
        cluster.generate(cat()).await.unwrap();
    }
    assert_eq!((cluster.base_unet[0].denoises(), cluster.base_unet[1].denoises()), (4, 0));

    let cluster = Cluster::start(Layout::bases([base(), base().revision("another")])).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..4 {
        cluster.generate(cat()).await.unwrap();
    }
    let mut each = [cluster.base_unet[0].denoises(), cluster.base_unet[1].denoises()];
    each.sort_unstable();
    assert_eq!(each, [0, 4], "whichever was ready first");
}

#[tokio::test]
async fn stages_that_contradict_each_other_serve_nothing_and_say_why() {
    let mut wide = base();
    let Some(Details::Denoiser(details)) = &mut wide.info.details else { panic!() };
    details.cross_attention_dim = 2048;
    let cluster = Cluster::start_cold(Layout::bases([wide])).await;
    let line =
        "the stages contradict each other: cross_attention_dim is 64 in text-encoder and 2048 in base-unet";
    for _ in 0..200 {
        let status = cluster.generate(cat()).await.unwrap_err();
        if status.code() == Code::FailedPrecondition {
            assert_eq!(status.message(), line);
            let health = cluster.health("").await.unwrap();
            assert_eq!(health, tonic_health::pb::health_check_response::ServingStatus::NotServing);
            return;
        }
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the contradiction was not found");
}

async fn all_ready(cluster: &Cluster, count: u32) {
    for _ in 0..500 {
        if cluster.model().await.unwrap().stages[1].ready_replicas == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not all base-unets became ready");
}

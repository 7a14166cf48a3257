//! `GetModel`.

use crate::{
    cluster::{Cluster, Layout, cat, refined},
    fake::Script,
};
use sdxl_core::StageKind;
use sdxl_proto::v1::{Limits, SchedulerKind, Size, Stage, get_stage_response::Details, refiner::Mode};
use tonic::Code;

#[tokio::test]
async fn it_is_put_together_from_the_stages() {
    let cluster = Cluster::start(Layout::with_refiner()).await;
    let model = cluster.model().await.unwrap();
    assert_eq!((model.model.as_str(), model.revision.len()), ("tiny", 64));
    assert_eq!(model.default_size, Some(Size { height: 128, width: 128 }));
    assert_eq!(model.default_num_inference_steps, 50);
    let buckets = [Size { height: 128, width: 128 }, Size { height: 96, width: 160 }];
    assert_eq!(model.training_buckets, buckets);
    assert_eq!(model.schedulers().collect::<Vec<_>>(), [SchedulerKind::Euler, SchedulerKind::Ddim]);
    let scheduler = model.default_scheduler.unwrap();
    assert_eq!((scheduler.kind(), scheduler.beta_start), (SchedulerKind::Euler, Some(0.00085)));
    assert!(model.has_refiner);
    let limits = Limits {
        min_side: 64,
        max_side: 2048,
        side_multiple: 8,
        max_num_inference_steps: 1000,
        max_num_images: 16,
        max_clip_skip: 3,
    };
    assert_eq!(model.limits, Some(limits));
    let stages: Vec<_> =
        model.stages.iter().map(|s| (s.stage(), s.revision.as_str(), s.ready_replicas)).collect();
    let expected = [
        (Stage::TextEncoder, "text-encoder-1", 1),
        (Stage::BaseUnet, "base-unet-1", 1),
        (Stage::Refiner, "refiner-1", 1),
        (Stage::Vae, "vae-1", 1),
    ];
    assert_eq!(stages, expected);
}

#[tokio::test]
async fn the_revision_is_that_of_all_stages() {
    let one = Cluster::start(Layout::default()).await.model().await.unwrap().revision;
    let same = Cluster::start(Layout::default()).await.model().await.unwrap().revision;
    let vae = vec![Script::new(StageKind::Vae).revision("vae-2")];
    let other = Cluster::start(Layout { vae, ..Layout::default() }).await.model().await.unwrap().revision;
    assert_eq!(one, same);
    assert_ne!(one, other);
}

#[tokio::test]
async fn a_refiner_without_its_conditioner_is_none() {
    let mut encoder = Script::new(StageKind::TextEncoder);
    let Some(Details::TextEncoder(details)) = &mut encoder.info.details else { panic!() };
    details.conditioners.truncate(1);
    let cluster = Cluster::start(Layout { text_encoder: vec![encoder], ..Layout::with_refiner() }).await;
    assert!(!cluster.model().await.unwrap().has_refiner);
    let status = cluster.generate(refined(Mode::Strength(0.5))).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    cluster.generate(cat()).await.unwrap();
}

#[tokio::test]
async fn it_is_unavailable_until_each_stage_was_seen() {
    // A vae in the base-unet's place is never one.
    let cluster = Cluster::start_cold(Layout::bases([Script::new(StageKind::Vae)])).await;
    let expected = "the cluster is starting: no replica of base-unet has been ready yet";
    for _ in 0..200 {
        let status = cluster.model().await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        if status.message() == expected {
            assert_eq!(cluster.generate(cat()).await.unwrap_err().message(), expected);
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the other stages were not seen");
}

//! `grpc.health.v1`, and the end.

use crate::{
    cluster::{Cluster, Layout, cat},
    fake::{Fake, Script},
};
use sdxl_core::StageKind;
use std::time::Duration;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus::{NotServing, Serving};

#[tokio::test]
async fn every_service_is_serving_or_none() {
    let cluster = Cluster::start(Layout::default()).await;
    for service in ["", "sdxl.v1.ImageGenerationService", "sdxl.v1.ModelService"] {
        assert_eq!(cluster.health(service).await.unwrap(), Serving, "{service}");
    }
    assert_eq!(cluster.health("sdxl.v1.Nothing").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn it_follows_each_needed_stage() {
    let mut cluster = Cluster::start(Layout::with_refiner()).await;
    let fakes: [fn(&mut Cluster) -> &mut Fake; 4] =
        [|c| &mut c.text_encoder[0], |c| &mut c.base_unet[0], |c| &mut c.refiner[0], |c| &mut c.vae[0]];
    for (stage, fake) in StageKind::ALL.into_iter().zip(fakes) {
        fake(&mut cluster).kill();
        cluster.becomes(NotServing, Duration::from_secs(2)).await;
        assert_eq!(cluster.health("sdxl.v1.ModelService").await.unwrap(), NotServing);
        let address = fake(&mut cluster).address;
        *fake(&mut cluster) = Fake::start_at(Script::new(stage), address);
        cluster.becomes(Serving, Duration::from_secs(5)).await;
        cluster.generate(cat()).await.unwrap();
    }
}

#[tokio::test]
async fn a_stage_that_says_not_serving_gets_no_work() {
    let cluster = Cluster::start(Layout::default()).await;
    cluster.base_unet[0].health.set_not_serving().await;
    cluster.becomes(NotServing, Duration::from_secs(2)).await;
    let status = cluster.generate(cat()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "base-unet: no replica is ready"));
    assert_eq!(cluster.model().await.unwrap().stages[1].ready_replicas, 0, "still known");
    cluster.base_unet[0].health.set_serving().await;
    cluster.becomes(Serving, Duration::from_secs(2)).await;
    cluster.generate(cat()).await.unwrap();
}

#[tokio::test]
async fn one_of_two_is_enough() {
    let script = Script::new(StageKind::BaseUnet);
    let mut cluster = Cluster::start(Layout::bases([script.clone(), script])).await;
    while cluster.model().await.unwrap().stages[1].ready_replicas < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.base_unet[0].kill();
    while cluster.model().await.unwrap().stages[1].ready_replicas == 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(cluster.health("").await.unwrap(), Serving);
    for _ in 0..3 {
        cluster.generate(cat()).await.unwrap();
    }
    assert_eq!(cluster.base_unet[1].denoises(), 3);
}

#[tokio::test]
async fn a_coordinator_that_is_told_to_stop_finishes_what_it_has() {
    let slow = Script::new(StageKind::BaseUnet).step_time(Duration::from_millis(150));
    let cluster = Cluster::start(Layout::bases([slow])).await;
    let mut client = cluster.client();
    let running = tokio::spawn(async move { client.generate(cat()).await });
    cluster.base_unet[0].running(1).await;
    cluster.shutdown.trigger();
    cluster.becomes(NotServing, Duration::from_secs(1)).await;
    let status = cluster.generate(cat()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(running.await.unwrap().unwrap().into_inner().images.len(), 1);
    tokio::time::timeout(Duration::from_secs(5), cluster.serving).await.unwrap().unwrap().unwrap();
}

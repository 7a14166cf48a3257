//! Requests with a `request_id`.

use crate::{
    cluster::{Cluster, Layout, cat},
    fake::Script,
    redis::RedisServer,
};
use sdxl_coordinator::Keep;
use sdxl_core::StageKind;
use sdxl_proto::v1::{GenerateRequest, generate_stream_response::Event};
use std::time::Duration;
use tonic::{Code, Request};
use tonic_types::StatusExt;

const STEP: Duration = Duration::from_millis(100);

fn called(id: &str) -> GenerateRequest {
    GenerateRequest { request_id: Some(id.into()), seed: None, ..cat() }
}

fn slow() -> Layout {
    Layout::bases([Script::new(StageKind::BaseUnet).step_time(STEP)])
}

#[tokio::test]
async fn the_same_again_gets_the_same_pictures() {
    let cluster = Cluster::start(Layout::default()).await;
    let first = cluster.generate(called("one")).await.unwrap();
    assert_eq!(cluster.generate(called("one")).await.unwrap(), first);
    let (events, error) = cluster.stream(called("one")).await;
    assert!(error.is_none());
    let [Event::Image(image), Event::Summary(summary)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(image.image.as_ref(), first.images.first());
    assert!(first.request_timing.is_some() && summary.request_timing == first.request_timing);
    assert_eq!(cluster.base_unet[0].denoises(), 1);
    assert_ne!(cluster.generate(called("two")).await.unwrap().images[0].seed, first.images[0].seed);
}

#[tokio::test]
async fn another_request_with_the_same_id_is_refused_unless_it_is_another_tenants() {
    let cluster = Cluster::start(Layout::default()).await;
    cluster.generate(called("one")).await.unwrap();
    let other = GenerateRequest { prompt: "a dog".into(), ..called("one") };
    let status = cluster.generate(other.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().starts_with("request_id: "), "{}", status.message());
    assert_eq!(cluster.stream(other.clone()).await.1.unwrap().code(), Code::AlreadyExists);
    let mut request = Request::new(other);
    request.metadata_mut().insert("sdxl-tenant", "somebody-else".parse().unwrap());
    assert!(cluster.client().generate(request).await.is_ok());
}

#[tokio::test]
async fn an_id_that_is_none_is_named() {
    let cluster = Cluster::start(Layout::default()).await;
    for id in ["", "é", "a\nb", &"x".repeat(129)] {
        let status = cluster.generate(called(id)).await.unwrap_err();
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!((status.code(), violations[0].field.as_str()), (Code::InvalidArgument, "request_id"));
    }
    cluster.generate(called(&"~ ".repeat(64))).await.unwrap();
}

#[tokio::test]
async fn whoever_comes_later_joins_and_stays_when_the_first_hangs_up() {
    let cluster = Cluster::start(slow()).await;
    let [mut one, mut other] = [cluster.client(), cluster.client()];
    let first = tokio::spawn(async move { one.generate(called("one")).await });
    cluster.base_unet[0].running(1).await;
    let second =
        tokio::spawn(async move { other.generate_stream(called("one")).await.unwrap().into_inner() });
    tokio::time::sleep(STEP).await;
    first.abort();
    let mut stream = second.await.unwrap();
    assert!(matches!(stream.message().await.unwrap().unwrap().event, Some(Event::Image(_))));
    assert_eq!(cluster.base_unet[0].denoises(), 1);
}

#[tokio::test]
async fn work_that_nobody_waits_for_is_given_up_and_begun_anew_with_its_seed() {
    let cluster = Cluster::start(slow()).await;
    let mut stream = cluster.client().generate_stream(called("one")).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some(), "progress comes as it is made");
    cluster.base_unet[0].running(1).await;
    drop(stream);
    cluster.base_unet[0].running(0).await;
    cluster.generate(called("one")).await.unwrap();
    let log = cluster.base_unet[0].log.denoises.lock().unwrap();
    assert_eq!((log.len(), &log[0].request.start), (2, &log[1].request.start));
}

#[tokio::test]
async fn results_go_after_their_time() {
    let keep = Keep { result_ttl: Duration::from_millis(300), ..Keep::default() };
    let cluster = Cluster::start(Layout { keep, ..Layout::default() }).await;
    let first = cluster.generate(called("one")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_ne!(cluster.generate(called("one")).await.unwrap().images, first.images);
}

#[tokio::test]
async fn coordinators_join_each_other_and_share_what_came_of_it() {
    let redis = RedisServer::start();
    let cluster = Cluster::start(Layout { keep: redis.keep(), ..slow() }).await;
    let other = cluster.beside().await;
    let mut client = cluster.client();
    let first = tokio::spawn(async move { client.generate(called("one")).await });
    cluster.base_unet[0].running(1).await;
    let dog = GenerateRequest { prompt: "a dog".into(), ..called("one") };
    assert_eq!(other.generate(dog).await.unwrap_err().code(), Code::AlreadyExists);
    let joined = other.generate(called("one")).await.unwrap();
    assert_eq!(joined, first.await.unwrap().unwrap().into_inner());
    let third = cluster.beside().await;
    assert_eq!(third.generate(called("one")).await.unwrap(), joined);
    assert_eq!(cluster.base_unet[0].denoises(), 1);
    let keys = redis.has("sdxl:request:*", 1).await;
    let left: i64 = redis.ask(::redis::cmd("PTTL").arg(&keys[0]));
    assert!((1..=60_000).contains(&left), "{left} ms");
}

#[tokio::test]
async fn whoever_streams_gets_the_pictures_of_another_coordinator_too() {
    let redis = RedisServer::start();
    let cluster = Cluster::start(Layout { keep: redis.keep(), ..slow() }).await;
    let other = cluster.beside().await;
    let mut client = cluster.client();
    let first = tokio::spawn(async move { client.generate(called("one")).await });
    cluster.base_unet[0].running(1).await;
    let (while_it_runs, _) = other.stream(called("one")).await;
    let first = first.await.unwrap().unwrap().into_inner();
    let (afterwards, _) = cluster.beside().await.stream(called("one")).await;
    for events in [while_it_runs, afterwards] {
        let [Event::Image(image), Event::Summary(_)] = &events[..] else { panic!("{events:?}") };
        assert_eq!(image.image.as_ref(), first.images.first());
    }
}

#[tokio::test]
async fn a_request_that_is_wrong_does_not_use_its_id_up() {
    let cluster = Cluster::start(Layout::default()).await;
    let wrong = GenerateRequest { width: 7, ..called("one") };
    assert_eq!(cluster.generate(wrong.clone()).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(cluster.stream(wrong).await.1.unwrap().code(), Code::InvalidArgument);
    cluster.generate(called("one")).await.unwrap();
}

#[tokio::test]
async fn another_coordinator_takes_over_once_a_lease_ends() {
    let redis = RedisServer::start();
    let cluster = Cluster::start(Layout { keep: redis.keep(), ..slow() }).await;
    let other = cluster.beside().await;
    let mut client = other.client();
    let first = tokio::spawn(async move { client.generate(called("one")).await });
    cluster.base_unet[0].running(1).await;
    let mut client = cluster.client();
    let second = tokio::spawn(async move { client.generate(called("one")).await });
    tokio::time::sleep(STEP).await;
    // The lease of one that died is not renewed, and ends by itself.
    redis.ask::<()>(::redis::cmd("DEL").arg(redis.keys("sdxl:request:*:lease")));
    let second = second.await.unwrap().unwrap().into_inner();
    assert_eq!(second.images, first.await.unwrap().unwrap().into_inner().images, "with the same seed");
    assert_eq!(cluster.base_unet[0].denoises(), 2);
}

#[tokio::test]
async fn a_corrupt_result_is_dropped_and_done_again_and_redis_need_not_be_there() {
    let mut redis = RedisServer::start();
    let cluster = Cluster::start(Layout { keep: redis.keep(), ..Layout::default() }).await;
    let first = cluster.generate(called("one")).await.unwrap();
    let key = redis.has("sdxl:request:*", 1).await.remove(0);
    redis.ask::<()>(::redis::cmd("HSET").arg(&key).arg("result").arg("SDX1 nonsense"));
    let other = cluster.beside().await;
    let again = other.generate(called("one")).await.unwrap();
    assert_eq!(again.images, first.images, "the seed was kept");
    redis.stop();
    assert_eq!(cluster.generate(called("one")).await.unwrap(), first);
    other.generate(called("two")).await.unwrap();
}

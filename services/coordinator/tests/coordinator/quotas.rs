//! How much a tenant may ask for.

use crate::{
    cluster::{Cluster, Layout, cat},
    fake::Script,
    keys::{KeyFile, entry, generate, with},
    redis::RedisServer,
};
use ::redis::cmd;
use sdxl_coordinator::Keep;
use sdxl_core::StageKind;
use sdxl_proto::v1::{self, GenerateRequest, Job, JobState, job_service_client::JobServiceClient};
use std::time::{Duration, Instant};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus::{NotServing, Serving};
use tonic_types::StatusExt;

const JOBS: &str = "sdxl.v1.JobService";
/// Less than a request takes to come back to a bucket of 30 a minute, more than the machine is late by.
const SLACK: Duration = Duration::from_millis(500);

struct Quotas {
    keys: KeyFile,
    redis: Option<RedisServer>,
}

impl Quotas {
    fn new(quotas: &str, redis: bool) -> Self {
        let keys = KeyFile::new(&format!("{}{}", entry("k", "team", quotas), entry("other", "other", "")));
        Self { keys, redis: redis.then(RedisServer::start) }
    }

    async fn start(&self, layout: Layout) -> Cluster {
        let keep = self.redis.as_ref().map_or_else(Keep::default, RedisServer::keep);
        let cluster = Cluster::start(Layout { keep, access: self.keys.access(), ..layout }).await;
        if self.redis.is_some() {
            becomes(&cluster, Serving).await;
        }
        cluster
    }

    fn redis(&self) -> &RedisServer {
        self.redis.as_ref().unwrap()
    }
}

async fn becomes(cluster: &Cluster, wanted: tonic_health::pb::health_check_response::ServingStatus) {
    let end = Instant::now() + Duration::from_secs(10);
    while cluster.health(JOBS).await.unwrap() != wanted {
        assert!(Instant::now() < end, "jobs did not become {wanted:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How many of `request` are served before one is refused, and when it may come again.
async fn until_refused(cluster: &Cluster, request: &GenerateRequest) -> (u32, Status, Duration) {
    for served in 0..100 {
        if let Err(status) = generate(cluster, "k", request.clone()).await {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
            return (served, status, wait);
        }
    }
    panic!("nothing is refused");
}

fn slow(step: Duration) -> Layout {
    Layout::bases([Script::new(StageKind::BaseUnet).step_time(step)])
}

/// 512x512 x 4 steps, which is 1.05 million pixel-steps.
fn large() -> GenerateRequest {
    GenerateRequest { width: 512, height: 512, ..cat() }
}

#[tokio::test]
async fn each_bucket_is_used_up_and_says_when_there_is_enough_again() {
    let cases = [
        ("requests_per_minute = 30", cat(), 30, "30 requests a minute", 2.0),
        ("pixel_steps_per_minute = 20", large(), 19, "20 million pixel-steps a minute", 3.15),
    ];
    for (quota, request, fit, named, seconds) in cases {
        for redis in [false, true] {
            let quotas = Quotas::new(quota, redis);
            let cluster = quotas.start(Layout::default()).await;
            let begun = Instant::now();
            let (served, status, wait) = until_refused(&cluster, &request).await;
            // What comes back while they are served is not much.
            let refilled = (begun.elapsed().as_secs_f64() / seconds) as u32;
            assert!((fit..=fit + 1 + refilled).contains(&served), "{quota}: {served} were served");
            assert!(status.message().contains(named), "{status}");
            assert!(wait.as_secs_f64() <= seconds && !wait.is_zero(), "{quota}: {wait:?}");
            assert!(
                generate(&cluster, "other", request.clone()).await.is_ok(),
                "another tenant's is its own"
            );
            // It is as honest about too early as about late enough.
            let refused = generate(&cluster, "k", request.clone()).await.unwrap_err();
            let wait = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
            if wait > SLACK {
                tokio::time::sleep(wait - SLACK).await;
                assert!(
                    generate(&cluster, "k", request.clone()).await.is_err(),
                    "{quota}: {wait:?} is too long"
                );
                tokio::time::sleep(SLACK).await;
            } else {
                tokio::time::sleep(wait).await;
            }
            generate(&cluster, "k", request.clone()).await.expect("waiting for so long works");
        }
    }
}

#[tokio::test]
async fn what_is_more_than_a_whole_quota_is_named_as_such() {
    let quotas = Quotas::new("pixel_steps_per_minute = 20\nmax_pictures_in_flight = 3", true);
    let cluster = quotas.start(Layout::default()).await;
    let cases = [
        (
            GenerateRequest { num_inference_steps: 100, ..large() },
            "are 27 million, more than this tenant's whole quota of 20 million",
        ),
        (
            GenerateRequest { num_images: 4, ..cat() },
            "4 are more than this tenant's whole quota of 3 pictures in flight",
        ),
    ];
    for (request, said) in cases {
        let status = generate(&cluster, "k", request.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let violation = &status.get_details_bad_request().unwrap().field_violations[0];
        assert_eq!(violation.field, "num_images");
        assert!(violation.description.contains(said), "{}", violation.description);
        assert!(generate(&cluster, "other", request).await.is_ok());
    }
    let too_large = GenerateRequest { num_inference_steps: 20, num_images: 4, ..large() };
    let status = submit(&cluster, too_large).await.unwrap_err();
    let violation = &status.get_details_bad_request().unwrap().field_violations[0];
    assert_eq!((status.code(), violation.field.as_str()), (Code::InvalidArgument, "request.num_images"));
}

#[tokio::test]
async fn pictures_are_in_flight_until_they_are_done_or_given_up() {
    for redis in [false, true] {
        let quotas = Quotas::new("max_pictures_in_flight = 3", redis);
        let cluster = quotas.start(slow(Duration::from_millis(250))).await;
        let [mut first, mut second] = [cluster.client(), cluster.client()];
        let running = tokio::spawn(async move {
            first.generate(with("k", GenerateRequest { num_images: 2, ..cat() })).await
        });
        cluster.base_unet[0].running(2).await;
        let two = GenerateRequest { num_images: 2, ..cat() };
        let (served, status, wait) = until_refused(&cluster, &two).await;
        assert_eq!((served, wait), (0, Duration::from_secs(1)));
        assert!(status.message().contains("3 pictures in flight"), "{status}");
        generate(&cluster, "k", cat()).await.expect("there is room for one");
        running.await.unwrap().unwrap();
        // Redis hears of what is done while the answer is on its way, and so perhaps after the next request.
        let given_up = tokio::spawn(async move {
            while second.generate(with("k", two.clone())).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        cluster.base_unet[0].running(2).await;
        given_up.abort();
        cluster.base_unet[0].running(0).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        generate(&cluster, "k", GenerateRequest { num_images: 3, ..cat() })
            .await
            .expect("all room is there again");
    }
}

#[tokio::test]
async fn pictures_are_in_flight_for_as_long_as_they_take_and_a_dead_coordinators_for_its_lease() {
    let quotas = Quotas::new("max_pictures_in_flight = 2", true);
    let cluster = quotas.start(slow(Duration::from_millis(600))).await;
    let mut client = cluster.client();
    let long = GenerateRequest { num_inference_steps: 20, num_images: 2, ..cat() };
    let running = tokio::spawn(async move { client.generate(with("k", long)).await });
    cluster.base_unet[0].running(2).await;
    let key = "sdxl:quota:team:pictures";
    let left: i64 = quotas.redis().ask(cmd("PTTL").arg(key));
    assert!((1..=10_000).contains(&left), "{left} ms");
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(!running.is_finished());
    assert_eq!(generate(&cluster, "k", cat()).await.unwrap_err().code(), Code::ResourceExhausted);
    running.await.unwrap().unwrap();
    // As one leaves it behind that died.
    let (seconds, micros): (u64, u64) = quotas.redis().ask(&cmd("TIME"));
    let end = seconds * 1_000_000 + micros + 700_000;
    quotas.redis().ask::<()>(cmd("ZADD").arg(key).arg(end).arg("2:dead"));
    assert_eq!(generate(&cluster, "k", cat()).await.unwrap_err().code(), Code::ResourceExhausted);
    tokio::time::sleep(Duration::from_millis(800)).await;
    generate(&cluster, "k", cat()).await.expect("the lease has ended");
}

#[tokio::test]
async fn coordinators_share_what_redis_counts_and_count_on_while_it_is_gone() {
    let mut quotas = Quotas::new("requests_per_minute = 12", true);
    let cluster = quotas.start(Layout::default()).await;
    let other = cluster.beside().await;
    becomes(&other, Serving).await;
    for _ in 0..4 {
        generate(&cluster, "k", cat()).await.unwrap();
        generate(&other, "k", cat()).await.unwrap();
    }
    let key = "sdxl:quota:team:requests";
    let left: i64 = quotas.redis().ask(cmd("PTTL").arg(key));
    assert!((30_000..=40_000).contains(&left), "eight of twelve are used: {left} ms");
    // Each knows of its own four.
    quotas.redis.as_mut().unwrap().stop();
    becomes(&cluster, NotServing).await;
    let begun = Instant::now();
    let (served, ..) = until_refused(&cluster, &cat()).await;
    let refilled = (begun.elapsed().as_secs() / 5) as u32;
    assert!((8..=9 + refilled).contains(&served), "{served} of eight");
    quotas.redis.as_mut().unwrap().resume();
    becomes(&cluster, Serving).await;
    becomes(&other, Serving).await;
    let before: String = quotas.redis().ask(cmd("GET").arg(key));
    let begun = Instant::now();
    let (served, ..) = until_refused(&cluster, &cat()).await;
    let after: String = quotas.redis().ask(cmd("GET").arg(key));
    assert!(served >= 3 && after > before, "Redis has four and counts again: {served}");
    // Nothing is left for the other but what comes back meanwhile.
    let (served, ..) = until_refused(&other, &cat()).await;
    let refilled = (begun.elapsed().as_secs() / 5) as u32 + 1;
    assert!(served <= refilled, "{served} of {refilled}");
}

#[tokio::test]
async fn pictures_that_redis_does_not_know_of_are_told_once_it_is_back() {
    let mut quotas = Quotas::new("max_pictures_in_flight = 2", true);
    let cluster = quotas.start(slow(Duration::from_millis(500))).await;
    let other = cluster.beside().await;
    quotas.redis.as_mut().unwrap().stop();
    becomes(&cluster, NotServing).await;
    let mut client = cluster.client();
    let long = GenerateRequest { num_inference_steps: 30, num_images: 2, ..cat() };
    let running = tokio::spawn(async move { client.generate(with("k", long)).await });
    cluster.base_unet[0].running(2).await;
    quotas.redis.as_mut().unwrap().resume();
    becomes(&other, Serving).await;
    quotas.redis().has("sdxl:quota:team:pictures", 1).await;
    assert_eq!(generate(&other, "k", cat()).await.unwrap_err().code(), Code::ResourceExhausted);
    running.abort();
}

#[tokio::test]
async fn a_request_that_is_not_done_is_not_paid_for() {
    for redis in [false, true] {
        let quotas = Quotas::new(
            "requests_per_minute = 3\npixel_steps_per_minute = 3\nmax_pictures_in_flight = 2",
            redis,
        );
        let full = Script::new(StageKind::BaseUnet).refuse(Status::resource_exhausted("full"));
        let cluster = quotas.start(Layout::bases([full])).await;
        for _ in 0..8 {
            let status = generate(&cluster, "k", large()).await.unwrap_err();
            assert!(status.message().contains("base-unet: every replica is full"), "{status}");
            let status = generate(&cluster, "k", GenerateRequest { width: 7, ..cat() }).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
        }
    }
}

#[tokio::test]
async fn a_request_that_is_not_admitted_is_not_paid_for() {
    for redis in [false, true] {
        let quotas = Quotas::new("requests_per_minute = 3\nmax_pictures_in_flight = 2", redis);
        let layout = Layout { max_requests: 1, ..slow(Duration::from_millis(300)) };
        let cluster = quotas.start(layout).await;
        let mut client = cluster.client();
        let running = tokio::spawn(async move { client.generate(with("other", cat())).await });
        cluster.base_unet[0].running(1).await;
        for _ in 0..8 {
            let status = generate(&cluster, "k", cat()).await.unwrap_err();
            assert!(status.message().contains("requests of this tenant are at work"), "{status}");
        }
        running.await.unwrap().unwrap();
        assert_eq!(until_refused(&cluster, &cat()).await.0, 3);
    }
}

#[tokio::test]
async fn whoever_hangs_up_before_redis_has_answered_has_not_paid() {
    let quotas = Quotas::new("requests_per_minute = 3\nmax_pictures_in_flight = 1", true);
    let cluster = quotas.start(Layout::default()).await;
    quotas.redis().freeze(true);
    let mut client = cluster.client();
    let asking = tokio::spawn(async move { client.generate(with("k", cat())).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    asking.abort();
    tokio::time::sleep(Duration::from_millis(50)).await;
    quotas.redis().freeze(false);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(cluster.base_unet[0].denoises(), 0);
    assert_eq!(quotas.redis().keys("sdxl:quota:team:*"), ["sdxl:quota:team:requests"], "it was taken");
    assert_eq!(until_refused(&cluster, &cat()).await.0, 3, "and given back");
}

#[tokio::test]
async fn asking_again_for_the_same_costs_nothing() {
    let quotas = Quotas::new("requests_per_minute = 2", true);
    let cluster = quotas.start(Layout::default()).await;
    let called = |id: &str| GenerateRequest { request_id: Some(id.into()), ..cat() };
    for _ in 0..5 {
        generate(&cluster, "k", called("one")).await.unwrap();
    }
    for _ in 0..5 {
        submit(&cluster, called("job")).await.unwrap();
    }
    let (served, ..) = until_refused(&cluster, &cat()).await;
    assert_eq!(served, 0);
    generate(&cluster, "k", called("one")).await.expect("it was paid for");
}

async fn submit(cluster: &Cluster, request: GenerateRequest) -> Result<Job, Status> {
    let mut client = JobServiceClient::new(cluster.channel.clone());
    let request = v1::SubmitJobRequest { request: Some(request), deadline: None };
    client.submit_job(with("k", request)).await.map(|answer| answer.into_inner().job.unwrap())
}

#[tokio::test]
async fn jobs_are_paid_for_when_they_are_submitted_and_once() {
    let quotas = Quotas::new("requests_per_minute = 6\nmax_pictures_in_flight = 1", true);
    let cluster = quotas.start(slow(Duration::from_millis(50))).await;
    let mut jobs = Vec::new();
    for _ in 0..6 {
        jobs.push(submit(&cluster, cat()).await.unwrap().id);
    }
    let status = submit(&cluster, cat()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!((Duration::from_secs(7)..=Duration::from_secs(10)).contains(&wait), "{wait:?}");
    let mut client = JobServiceClient::new(cluster.channel.clone());
    for id in jobs {
        let end = Instant::now() + Duration::from_secs(20);
        let mut state = JobState::Queued;
        while state != JobState::Succeeded {
            assert!(Instant::now() < end, "{state:?}");
            let request = with("k", v1::GetJobRequest { job_id: id.clone(), include_images: false });
            state = client.get_job(request).await.unwrap().into_inner().job.unwrap().state();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

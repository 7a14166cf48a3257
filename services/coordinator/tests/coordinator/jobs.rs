//! `JobService`, over fake stages and a Redis of the test's own.

use crate::{
    cluster::{Cluster, Layout, cat, refined},
    fake::{Fake, Fate, Script},
    redis::RedisServer,
};
use ::redis::cmd;
use sdxl_coordinator::Keep;
use sdxl_core::StageKind;
use sdxl_proto::v1::{
    self, GenerateRequest, Job, JobState, denoise_request::Start, job_service_client::JobServiceClient,
    refiner::Mode, watch_job_response::Event,
};
use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_health::pb::health_check_response::ServingStatus::{NotServing, Serving};
use tonic_types::StatusExt;

const STEP: Duration = Duration::from_millis(50);
const JOBS: &str = "sdxl.v1.JobService";

fn base() -> Script {
    Script::new(StageKind::BaseUnet)
}

fn client(cluster: &Cluster) -> JobServiceClient<Channel> {
    JobServiceClient::new(cluster.channel.clone())
}

/// A cluster whose jobs can be reached.
async fn start(redis: &RedisServer, layout: Layout) -> Cluster {
    let cluster = Cluster::start(Layout { keep: redis.keep(), ..layout }).await;
    becomes(&cluster, Serving).await;
    cluster
}

async fn becomes(cluster: &Cluster, wanted: tonic_health::pb::health_check_response::ServingStatus) {
    let end = Instant::now() + Duration::from_secs(10);
    while cluster.health(JOBS).await.unwrap() != wanted {
        assert!(Instant::now() < end, "jobs did not become {wanted:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn submit(cluster: &Cluster, request: GenerateRequest) -> Result<Job, Status> {
    let request = v1::SubmitJobRequest { request: Some(request), deadline: None };
    client(cluster).submit_job(request).await.map(|answer| answer.into_inner().job.unwrap())
}

async fn get(cluster: &Cluster, id: &str) -> Result<Job, Status> {
    let request = v1::GetJobRequest { job_id: id.into(), include_images: false };
    client(cluster).get_job(request).await.map(|answer| answer.into_inner().job.unwrap())
}

async fn cancel(cluster: &Cluster, id: &str) -> Job {
    let request = v1::CancelJobRequest { job_id: id.into() };
    client(cluster).cancel_job(request).await.unwrap().into_inner().job.unwrap()
}

/// All states and pictures, until the job is over.
async fn watch(cluster: &Cluster, id: &str) -> (Vec<Job>, Vec<v1::GeneratedImage>) {
    let request = v1::WatchJobRequest { job_id: id.into() };
    let mut stream = client(cluster).watch_job(request).await.unwrap().into_inner();
    let (mut jobs, mut images) = (Vec::new(), Vec::new());
    let all = async {
        while let Some(message) = stream.message().await.unwrap() {
            match message.event.unwrap() {
                Event::Job(job) => jobs.push(job),
                Event::Image(image) => images.push(image),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.expect("the job ends");
    (jobs, images)
}

async fn ended(cluster: &Cluster, id: &str) -> Job {
    watch(cluster, id).await.0.pop().unwrap()
}

/// What SIGKILL does to a coordinator.
async fn kill(cluster: &mut Cluster) {
    cluster.serving.abort();
    assert!((&mut cluster.serving).await.is_err());
}

/// Waits until as many steps of a job are known to be done.
async fn got_to(cluster: &Cluster, id: &str, steps: u32) {
    let end = Instant::now() + Duration::from_secs(10);
    while get(cluster, id).await.unwrap().steps_done < steps {
        assert!(Instant::now() < end, "the job does not get on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_job_is_done_and_told_of() {
    let redis = RedisServer::start();
    let cluster = start(&redis, Layout::with_refiner()).await;
    let request = GenerateRequest { num_images: 3, ..refined(Mode::DenoisingSplit(0.8)) };
    let job = submit(&cluster, request.clone()).await.unwrap();
    assert_eq!((job.steps_total, job.num_images, job.seed, job.id.len()), (30, 3, 7, 32));
    let (jobs, mut images) = watch(&cluster, &job.id).await;
    let last = jobs.last().unwrap();
    assert_eq!(
        (last.state(), last.attempts, last.steps_done, last.images_done),
        (JobState::Succeeded, 1, 30, 3)
    );
    assert!(last.create_time.is_some() && last.start_time.is_some() && last.end_time.is_some());
    let summary = last.summary.as_ref().unwrap();
    assert_eq!(summary.timings.len(), 10);
    assert_eq!(summary.request_timing.unwrap().texts, 3);
    images.sort_by_key(|image| image.image_index);
    let images: Vec<_> = images.into_iter().map(|image| image.image.unwrap()).collect();
    assert_eq!(images, cluster.generate(request).await.unwrap().images, "as without a job");
    let answer =
        client(&cluster).get_job(v1::GetJobRequest { job_id: job.id.clone(), include_images: true }).await;
    assert_eq!(answer.unwrap().into_inner().images.len(), 3);
    let priorities = cluster.base_unet[0].log.denoises.lock().unwrap();
    assert_eq!(priorities[0].metadata.get("sdxl-priority").unwrap(), "batch");
}

#[tokio::test]
async fn a_job_that_has_ended_leaves_nothing_that_does_not_go_by_itself() {
    let redis = RedisServer::start();
    let cluster = start(&redis, Layout::default()).await;
    let job = submit(&cluster, cat()).await.unwrap();
    ended(&cluster, &job.id).await;
    for key in redis.keys("*") {
        let left: i64 = redis.ask(cmd("PTTL").arg(&key));
        assert!(left > 0 || key == "sdxl:jobs", "{key} stays");
    }
    assert_eq!(redis.ask::<i64>(cmd("XLEN").arg("sdxl:jobs")), 0);
    assert_eq!(redis.ask::<Vec<String>>(cmd("HKEYS").arg(format!("sdxl:job:{}:work", job.id))), ["0:image"]);
}

#[tokio::test]
async fn another_coordinator_resumes_from_the_last_checkpoint() {
    let redis = RedisServer::start();
    let mut cluster = start(&redis, Layout::bases([base().step_time(STEP)])).await;
    let request = GenerateRequest { num_inference_steps: 40, num_images: 2, ..cat() };
    let job = submit(&cluster, request).await.unwrap();
    got_to(&cluster, &job.id, 20).await;
    let other = cluster.beside().await;
    kill(&mut cluster).await;
    let last = ended(&other, &job.id).await;
    assert_eq!((last.state(), last.attempts, last.images_done), (JobState::Succeeded, 2, 2));
    let log = cluster.base_unet[0].log.denoises.lock().unwrap();
    assert_eq!(log.len(), 4, "two pictures, twice");
    for seen in &log[2..] {
        let Some(Start::Checkpoint(checkpoint)) = &seen.request.start else {
            panic!("not from a checkpoint")
        };
        assert!(checkpoint.step >= 8, "from step {}", checkpoint.step);
    }
    let timings = last.summary.unwrap().timings;
    let steps: u32 = timings.iter().map(|timing| timing.steps).sum();
    assert!(steps <= 2 * (40 - 8), "{steps} steps, although others had been done before");
}

#[tokio::test]
async fn pictures_and_stages_that_are_done_are_not_done_again() {
    let redis = RedisServer::start();
    let slow = Script::new(StageKind::Vae).step_time(Duration::from_secs(60));
    let layout = Layout { vae: vec![slow], ..Layout::with_refiner() };
    let mut cluster = start(&redis, layout).await;
    let job = submit(&cluster, refined(Mode::DenoisingSplit(0.5))).await.unwrap();
    cluster.vae[0].running(1).await;
    got_to(&cluster, &job.id, 10).await;
    let other = cluster.beside().await;
    kill(&mut cluster).await;
    cluster.vae[0].running(0).await;
    cluster.vae[0].running(1).await;
    assert_eq!((cluster.base_unet[0].denoises(), cluster.refiner[0].denoises()), (1, 1));
    assert_eq!(cancel(&other, &job.id).await.state(), JobState::Cancelled);
}

#[tokio::test]
async fn a_coordinator_that_stops_hands_its_jobs_over_at_once() {
    let redis = RedisServer::start();
    let keep = Keep { job_lease: Duration::from_secs(60), ..redis.keep() };
    let mut cluster = Cluster::start(Layout { keep, ..Layout::bases([base().step_time(STEP)]) }).await;
    becomes(&cluster, Serving).await;
    let job = submit(&cluster, GenerateRequest { num_inference_steps: 40, ..cat() }).await.unwrap();
    got_to(&cluster, &job.id, 6).await;
    let other = cluster.beside().await;
    cluster.shutdown.trigger();
    (&mut cluster.serving).await.unwrap().unwrap();
    let last = ended(&other, &job.id).await;
    assert_eq!((last.state(), last.attempts), (JobState::Succeeded, 2));
    assert_eq!(cluster.base_unet[0].denoises(), 2);
}

#[tokio::test]
async fn a_job_that_is_cancelled_frees_its_denoiser_and_stays_so() {
    let redis = RedisServer::start();
    let cluster = start(&redis, Layout::bases([base().step_time(Duration::from_secs(60))])).await;
    let job = submit(&cluster, cat()).await.unwrap();
    cluster.base_unet[0].running(1).await;
    assert_eq!(cancel(&cluster, &job.id).await.state(), JobState::Cancelled);
    cluster.base_unet[0].running(0).await;
    let last = cancel(&cluster, &job.id).await;
    assert_eq!((last.state(), last.error), (JobState::Cancelled, None));
}

#[tokio::test]
async fn whoever_was_thought_dead_has_no_say_any_more() {
    let redis = RedisServer::start();
    let cluster = start(&redis, Layout::bases([base().step_time(STEP)])).await;
    let job = submit(&cluster, GenerateRequest { num_inference_steps: 20, ..cat() }).await.unwrap();
    got_to(&cluster, &job.id, 4).await;
    // As if another had taken it up: its owner finds its fence outdated.
    let key = format!("sdxl:job:{}", job.id);
    redis.ask::<()>(cmd("HINCRBY").arg(&key).arg("fence").arg(1));
    cluster.base_unet[0].running(0).await;
    assert_eq!(get(&cluster, &job.id).await.unwrap().state(), JobState::Running);
    let last = ended(&cluster, &job.id).await;
    assert_eq!((last.state(), last.attempts), (JobState::Succeeded, 2));
    let end = redis.ask::<Vec<u8>>(cmd("HGET").arg(&key).arg("end"));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(redis.ask::<Vec<u8>>(cmd("HGET").arg(&key).arg("end")), end);
}

#[tokio::test]
async fn a_job_that_kills_whoever_does_it_is_given_up() {
    let redis = RedisServer::start();
    let cluster = start(&redis, Layout::bases([base().step_time(Duration::from_secs(60))])).await;
    let job = submit(&cluster, cat()).await.unwrap();
    cluster.base_unet[0].running(1).await;
    let key = format!("sdxl:job:{}", job.id);
    redis.ask::<()>(cmd("HSET").arg(&key).arg("stalled").arg(3));
    redis.ask::<()>(cmd("HINCRBY").arg(&key).arg("fence").arg(1));
    let last = ended(&cluster, &job.id).await;
    let error = last.error.clone().unwrap();
    assert_eq!((last.state(), error.code), (JobState::Failed, i32::from(Code::Aborted)));
    assert_eq!(error.message, "it was taken up 3 times in a row without getting on");
}

#[tokio::test]
async fn a_failure_that_may_pass_is_tried_again_and_one_that_does_not_ends_the_job() {
    let redis = RedisServer::start();
    let layout = Layout { retries_per_second: 0, ..Layout::bases([base().fate(1, Fate::Stop)]) };
    let cluster = start(&redis, layout).await;
    let job = submit(&cluster, GenerateRequest { num_inference_steps: 9, ..cat() }).await.unwrap();
    // A step to each failure, and two from one checkpoint to the next.
    let last = ended(&cluster, &job.id).await;
    assert_eq!(last.state(), JobState::Failed);
    assert_eq!(last.error.unwrap().code, i32::from(Code::Unavailable));
    assert_eq!(cluster.base_unet[0].denoises(), 3);
}

#[tokio::test]
async fn failures_between_which_it_gets_on_do_not_end_a_job() {
    let redis = RedisServer::start();
    let layout = Layout { retries_per_second: 0, ..Layout::bases([base().fate(3, Fate::Stop)]) };
    let cluster = start(&redis, layout).await;
    let job = submit(&cluster, GenerateRequest { num_inference_steps: 9, ..cat() }).await.unwrap();
    assert_eq!(ended(&cluster, &job.id).await.state(), JobState::Succeeded);
    assert!(cluster.base_unet[0].denoises() > 3, "as often as a job may fail without getting on");
}

#[tokio::test]
async fn a_job_is_found_behind_many_that_are_being_done() {
    let redis = RedisServer::start();
    let keep = Keep { job_concurrency: 16, ..redis.keep() };
    let cluster =
        Cluster::start(Layout { keep, ..Layout::bases([base().step_time(Duration::from_secs(60))]) }).await;
    becomes(&cluster, Serving).await;
    let mut last = String::new();
    for _ in 0..16 {
        last = submit(&cluster, cat()).await.unwrap().id;
    }
    let end = Instant::now() + Duration::from_secs(10);
    while get(&cluster, &last).await.unwrap().attempts == 0 {
        assert!(Instant::now() < end, "it is not taken up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // As if its owner had died.
    let key = format!("sdxl:job:{last}");
    redis.ask::<()>(cmd("HINCRBY").arg(&key).arg("fence").arg(1));
    let entry: String = redis.ask(cmd("HGET").arg(&key).arg("entry"));
    let mut claim = cmd("XCLAIM");
    claim.arg("sdxl:jobs").arg("coordinators").arg("dead").arg(0).arg(entry).arg("IDLE").arg(60_000);
    redis.ask::<::redis::Value>(claim.arg("JUSTID"));
    let end = Instant::now() + Duration::from_secs(10);
    while get(&cluster, &last).await.unwrap().attempts == 1 {
        assert!(Instant::now() < end, "nobody takes it up again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_redis_that_is_full_takes_no_jobs_and_ends_those_that_it_has() {
    let redis = RedisServer::start();
    let cluster = start(&redis, Layout::bases([base().step_time(STEP)])).await;
    let [done, cancelled] =
        [submit(&cluster, cat()).await.unwrap().id, submit(&cluster, cat()).await.unwrap().id];
    redis.ask::<()>(cmd("CONFIG").arg("SET").arg("maxmemory").arg(1));
    let refused = submit(&cluster, cat()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("OOM"), "{}", refused.message());
    assert_eq!(cancel(&cluster, &cancelled).await.state(), JobState::Cancelled);
    assert_eq!(ended(&cluster, &done).await.state(), JobState::Succeeded);
    assert_eq!(cluster.health(JOBS).await.unwrap(), Serving);
}

#[tokio::test]
async fn a_redis_that_takes_no_writes_or_does_not_answer_is_gone_until_it_does() {
    let redis = RedisServer::start();
    let cluster = start(&redis, Layout::default()).await;
    redis.ask::<()>(cmd("REPLICAOF").arg("127.0.0.1").arg(1));
    becomes(&cluster, NotServing).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.health(JOBS).await.unwrap(), NotServing, "although it answers");
    redis.ask::<()>(cmd("REPLICAOF").arg("NO").arg("ONE"));
    becomes(&cluster, Serving).await;

    redis.freeze(true);
    let began = Instant::now();
    cluster.generate(GenerateRequest { request_id: Some("one".into()), ..cat() }).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    becomes(&cluster, NotServing).await;
    let began = Instant::now();
    cluster.generate(GenerateRequest { prompt: "a dog".into(), ..cat() }).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(500), "nobody asks one that is known to be gone");
    redis.freeze(false);
    becomes(&cluster, Serving).await;
}

#[tokio::test]
async fn a_picture_that_is_lost_is_not_left_out_in_silence() {
    let redis = RedisServer::start();
    let cluster = start(&redis, Layout::default()).await;
    let job = submit(&cluster, GenerateRequest { num_images: 2, ..cat() }).await.unwrap();
    ended(&cluster, &job.id).await;
    let work = format!("sdxl:job:{}:work", job.id);
    for spoilt in [true, false] {
        match spoilt {
            true => redis.ask::<()>(cmd("HSET").arg(&work).arg("1:image").arg("nonsense")),
            false => redis.ask::<()>(cmd("HDEL").arg(&work).arg("1:image")),
        }
        let request = v1::GetJobRequest { job_id: job.id.clone(), include_images: true };
        let status = client(&cluster).get_job(request).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.message(), "picture 1 of the job was lost from Redis");
    }
}

#[tokio::test]
async fn a_deadline_that_is_no_time_is_refused() {
    let redis = RedisServer::start();
    let cluster = start(&redis, Layout::default()).await;
    for (seconds, nanos) in [(i64::MAX, 0), (1_800_000_000_000, 0), (-1, 0), (1, -1), (1, 1_000_000_000)] {
        let deadline = Some(prost_types::Timestamp { seconds, nanos });
        let request = v1::SubmitJobRequest { request: Some(cat()), deadline };
        let status = client(&cluster).submit_job(request).await.unwrap_err();
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!((status.code(), violations[0].field.as_str()), (Code::InvalidArgument, "deadline"));
    }
    // The last of those that are.
    let deadline = Some(prost_types::Timestamp { seconds: 253_402_300_799, nanos: 0 });
    let request = v1::SubmitJobRequest { request: Some(cat()), deadline };
    let job = client(&cluster).submit_job(request).await.unwrap().into_inner().job.unwrap();
    assert_eq!(ended(&cluster, &job.id).await.state(), JobState::Succeeded);
}

#[tokio::test]
async fn a_job_is_not_done_after_its_deadline() {
    let redis = RedisServer::start();
    let cluster = start(&redis, Layout::bases([base().step_time(Duration::from_secs(60))])).await;
    let deadline = Some((SystemTime::now() + Duration::from_millis(700)).into());
    let request = v1::SubmitJobRequest { request: Some(cat()), deadline };
    let job = client(&cluster).submit_job(request).await.unwrap().into_inner().job.unwrap();
    let last = ended(&cluster, &job.id).await;
    assert_eq!(last.state(), JobState::Failed);
    assert_eq!(last.error.unwrap().code, i32::from(Code::DeadlineExceeded));
}

#[tokio::test]
async fn what_is_wrong_or_too_large_is_refused_when_it_is_submitted() {
    let redis = RedisServer::start();
    let cluster = start(&redis, Layout::default()).await;
    let long = "x".repeat(20_000);
    let requests = [
        (GenerateRequest { width: 7, ..cat() }, "request.width"),
        (
            GenerateRequest { width: 2048, height: 2048, num_inference_steps: 40, ..cat() },
            "request.num_images",
        ),
        (
            GenerateRequest {
                prompt_2: Some(long.clone()),
                negative_prompt: Some(long.clone()),
                negative_prompt_2: Some(long.clone()),
                prompt: long,
                ..cat()
            },
            "request.prompt",
        ),
    ];
    for (request, field) in requests {
        let status = submit(&cluster, request).await.unwrap_err();
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!((status.code(), violations.len()), (Code::InvalidArgument, 1), "{status:?}");
        assert_eq!(violations[0].field, field);
    }
    assert!(redis.keys("sdxl:job:*").is_empty());
}

#[tokio::test]
async fn more_jobs_than_there_is_room_for_are_refused() {
    let redis = RedisServer::start();
    let keep = Keep { max_jobs: 4, job_concurrency: 0, ..redis.keep() };
    let cluster = Cluster::start(Layout { keep, ..Layout::default() }).await;
    becomes(&cluster, Serving).await;
    let first = submit(&cluster, cat()).await.unwrap();
    submit(&cluster, cat()).await.unwrap();
    let status = submit(&cluster, cat()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().is_some());
    // A tenant leaves room for others.
    let mut other = tonic::Request::new(v1::SubmitJobRequest { request: Some(cat()), deadline: None });
    other.metadata_mut().insert("sdxl-tenant", "other".parse().unwrap());
    client(&cluster).submit_job(other).await.unwrap();
    cancel(&cluster, &first.id).await;
    submit(&cluster, cat()).await.unwrap();
}

#[tokio::test]
async fn a_job_that_is_submitted_twice_is_one() {
    let redis = RedisServer::start();
    let cluster = start(&redis, Layout::default()).await;
    let called = GenerateRequest { request_id: Some("one".into()), seed: None, ..cat() };
    let first = submit(&cluster, called.clone()).await.unwrap();
    let again = submit(&cluster, called.clone()).await.unwrap();
    assert_eq!((&again.id, again.seed), (&first.id, first.seed));
    let other = submit(&cluster, GenerateRequest { prompt: "a dog".into(), ..called }).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
}

#[tokio::test]
async fn jobs_are_listed_by_tenant_and_page() {
    let redis = RedisServer::start();
    let keep = Keep { job_concurrency: 0, ..redis.keep() };
    let cluster = Cluster::start(Layout { keep, ..Layout::default() }).await;
    becomes(&cluster, Serving).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.insert(0, submit(&cluster, cat()).await.unwrap().id);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let list = async |size, token: String, tenant: &'static str| {
        let mut request = Request::new(v1::ListJobsRequest { page_size: size, page_token: token });
        if !tenant.is_empty() {
            request.metadata_mut().insert("sdxl-tenant", tenant.parse().unwrap());
        }
        client(&cluster).list_jobs(request).await.map(tonic::Response::into_inner)
    };
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = list(2, token, "").await.unwrap();
        seen.extend(page.jobs.into_iter().map(|job| job.id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ids);
    assert!(list(0, String::new(), "somebody-else").await.unwrap().jobs.is_empty());
    assert_eq!(list(1001, "nonsense".into(), "").await.unwrap_err().code(), Code::InvalidArgument);
    redis.ask::<()>(cmd("DEL").arg(format!("sdxl:job:{}", ids[0])));
    assert_eq!(list(0, String::new(), "").await.unwrap().jobs.len(), 4);
    assert_eq!(redis.ask::<i64>(cmd("ZCARD").arg("sdxl:jobs:of:")), 4);
}

#[tokio::test]
async fn anothers_job_does_not_exist() {
    let redis = RedisServer::start();
    let cluster = start(&redis, Layout::default()).await;
    let job = submit(&cluster, cat()).await.unwrap();
    ended(&cluster, &job.id).await;
    let mut request = Request::new(v1::GetJobRequest { job_id: job.id.clone(), include_images: false });
    request.metadata_mut().insert("sdxl-tenant", "somebody-else".parse().unwrap());
    assert_eq!(client(&cluster).get_job(request).await.unwrap_err().code(), Code::NotFound);
    for id in ["", "nonsense", &format!("{}:work", job.id), &"0".repeat(32)] {
        assert_eq!(get(&cluster, id).await.unwrap_err().code(), Code::NotFound, "{id}");
    }
}

#[tokio::test]
async fn without_redis_jobs_are_unavailable_and_the_rest_goes_on_and_all_comes_back() {
    let mut redis = RedisServer::start();
    let cluster = start(&redis, Layout::bases([base().step_time(STEP)])).await;
    let job = submit(&cluster, GenerateRequest { num_inference_steps: 40, ..cat() }).await.unwrap();
    got_to(&cluster, &job.id, 4).await;
    redis.stop();
    becomes(&cluster, NotServing).await;
    assert_eq!(cluster.health("sdxl.v1.ImageGenerationService").await.unwrap(), Serving);
    let page = cluster.healthz().await;
    assert!(page.starts_with("HTTP/1.1 200") && page.contains(r#""redis":"NOT_SERVING""#), "{page}");
    assert_eq!(submit(&cluster, cat()).await.unwrap_err().code(), Code::Unavailable);
    let began = Instant::now();
    cluster.generate(cat()).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // Longer than the lease, of which nobody could say meanwhile that it has it.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    redis.resume();
    becomes(&cluster, Serving).await;
    assert!(cluster.healthz().await.contains(r#""redis":"SERVING""#));
    let last = ended(&cluster, &job.id).await;
    assert_eq!((last.state(), last.attempts), (JobState::Succeeded, 1), "its owner went on with it");
}

#[tokio::test]
async fn a_group_that_redis_lost_is_made_anew() {
    let redis = RedisServer::start();
    let cluster = start(&redis, Layout::bases([base().step_time(STEP)])).await;
    let job = submit(&cluster, GenerateRequest { num_inference_steps: 20, ..cat() }).await.unwrap();
    got_to(&cluster, &job.id, 4).await;
    redis.ask::<()>(cmd("XGROUP").arg("DESTROY").arg("sdxl:jobs").arg("coordinators"));
    assert_eq!(ended(&cluster, &job.id).await.state(), JobState::Succeeded);
    let second = submit(&cluster, cat()).await.unwrap();
    assert_eq!(ended(&cluster, &second.id).await.state(), JobState::Succeeded);
}

#[tokio::test]
async fn work_that_is_corrupt_or_of_another_model_is_done_again() {
    let redis = RedisServer::start();
    let mut cluster = start(&redis, Layout::bases([base().step_time(STEP)])).await;
    let job =
        submit(&cluster, GenerateRequest { num_inference_steps: 20, num_images: 2, ..cat() }).await.unwrap();
    got_to(&cluster, &job.id, 16).await;
    kill(&mut cluster).await;
    let work = format!("sdxl:job:{}:work", job.id);
    let pieces: HashMap<String, Vec<u8>> = redis.ask(cmd("HGETALL").arg(&work));
    let mut rotten = pieces["0:base"].clone();
    rotten[40] ^= 1;
    redis.ask::<()>(cmd("HSET").arg(&work).arg("0:base").arg(rotten));
    let other = cluster.beside().await;
    assert_eq!(ended(&other, &job.id).await.state(), JobState::Succeeded);
    let from_checkpoint = |cluster: &Cluster, from: usize| {
        let log = cluster.base_unet[0].log.denoises.lock().unwrap();
        log[from..].iter().filter(|seen| matches!(seen.request.start, Some(Start::Checkpoint(_)))).count()
    };
    assert_eq!(
        (cluster.base_unet[0].denoises(), from_checkpoint(&cluster, 2)),
        (4, 1),
        "one of both goes on"
    );

    let second = submit(&other, GenerateRequest { num_inference_steps: 20, ..cat() }).await.unwrap();
    got_to(&other, &second.id, 8).await;
    let address = cluster.base_unet[0].address;
    cluster.base_unet[0].kill();
    cluster.base_unet[0] = Fake::start_at(base().revision("another"), address);
    assert_eq!(ended(&other, &second.id).await.state(), JobState::Succeeded);
    assert_eq!((cluster.base_unet[0].denoises(), from_checkpoint(&cluster, 0)), (1, 0));
}

#[tokio::test]
async fn a_coordinator_without_redis_says_that_it_keeps_no_jobs() {
    let cluster = Cluster::start(Layout::default()).await;
    let status = submit(&cluster, cat()).await.unwrap_err();
    let expected = (Code::FailedPrecondition, "this cluster keeps no jobs: it has no Redis");
    assert_eq!((status.code(), status.message()), expected);
    assert_eq!(cluster.health(JOBS).await.unwrap(), NotServing);
}

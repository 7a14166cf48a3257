//! A cluster at work under faults, for as long as one likes: what does not come to rest afterwards, or grows, is a leak.
//!
//! The stages are simulated, so that two cores carry enough requests for a leak to show. Coordinators, Redis and all that
//! is between them are real.

use integration_tests::{Clients, Fault, Member, Profile, Redis};
use sdxl_proto::v1::{self, JobState, job_service_client::JobServiceClient};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{
    task::{LocalSet, spawn_local},
    time::{sleep, timeout},
};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_health::pb::health_check_response::ServingStatus;

/// How long anything is kept in Redis, in seconds.
const TTL: u64 = 15;
const LEASE: u64 = 2;
/// Requests that differ; each comes many times.
const DISTINCT: usize = 50;
const CALLERS: usize = 8;
const BETWEEN_FAULTS: Duration = Duration::from_secs(1);
const STOP: Duration = Duration::from_secs(4);
/// Redis is restarted once in so many faults.
const REDIS_FAULT: usize = 15;
const SAMPLE: Duration = Duration::from_secs(1);
const MIB: f64 = 1024.0 * 1024.0;

struct Soaking {
    /// The first is spared, so that what it holds can be followed; the others are killed in turn.
    coordinators: Vec<Member>,
    /// Of each stage the first is stopped at times but never ends.
    stages: Vec<Vec<Member>>,
    redis: Mutex<Redis>,
    _profile: Profile,
}

impl Soaking {
    fn start() -> Self {
        let (profile, redis) = (Profile::quick(0.02), Redis::start());
        let path = profile.path().display().to_string();
        let engine = ["--engine", "simulated", "--profile", &path].map(str::to_owned);
        let kinds = ["text-encoder", "base-unet", "refiner", "vae"];
        let stages: Vec<Vec<_>> = ["sdxl-text-encoder", "sdxl-base-unet", "sdxl-refiner", "sdxl-vae"]
            .map(|binary| (0..2).map(|_| Member::start(binary, engine.to_vec())).collect())
            .into();
        let mut flags = vec!["--redis".to_owned(), redis.url()];
        for (kind, members) in kinds.iter().zip(&stages) {
            let addresses: Vec<_> = members.iter().map(Member::address).collect();
            flags.extend([format!("--{kind}"), addresses.join(",")]);
        }
        for flag in ["embedding-cache-ttl", "result-ttl", "job-ttl"] {
            flags.extend([format!("--{flag}"), TTL.to_string()]);
        }
        // Small enough to be full soon.
        for flag in ["embedding-cache-bytes", "result-bytes"] {
            flags.extend([format!("--{flag}"), (2 * 1024 * 1024).to_string()]);
        }
        flags.extend([
            "--job-lease".to_owned(),
            LEASE.to_string(),
            "--job-attempts".to_owned(),
            "20".to_owned(),
        ]);
        let coordinators = (0..2).map(|_| Member::start("sdxl-coordinator", flags.clone())).collect();
        Self { coordinators, stages, redis: Mutex::new(redis), _profile: profile }
    }

    fn ask(&self, command: &str) -> String {
        self.redis.lock().unwrap().ask(command).unwrap_or_default()
    }

    fn tasks(&self) -> u64 {
        self.coordinators[0].healthz()["tasks"].as_u64().unwrap()
    }

    /// A fault each second until told to end; how many of the stages, the coordinator and Redis there were.
    fn torment(&self, over: &AtomicBool) -> [usize; 3] {
        let mut counts = [0; 3];
        let started = Instant::now();
        thread::scope(|scope| {
            for round in 1_usize.. {
                let next = started + BETWEEN_FAULTS * u32::try_from(round).unwrap();
                thread::sleep(next.saturating_duration_since(Instant::now()));
                if over.load(Ordering::Relaxed) {
                    break;
                }
                if round.is_multiple_of(REDIS_FAULT) {
                    counts[2] += 1;
                    self.redis.lock().unwrap().restart(Duration::from_secs(1));
                } else if round % REDIS_FAULT == 7 {
                    counts[1] += 1;
                    scope.spawn(|| self.coordinators[1].suffer(Fault::Kill, STOP));
                } else {
                    counts[0] += 1;
                    let kind = Fault::ALL[(round / 8) % 3];
                    let (stage, place) = (round % 4, usize::from(kind != Fault::Stop || round % 8 < 4));
                    scope.spawn(move || self.stages[stage][place].suffer(kind, STOP));
                }
            }
        });
        counts
    }
}

fn request(i: usize) -> v1::GenerateRequest {
    let i = i % DISTINCT;
    let mode = v1::refiner::Mode::DenoisingSplit(0.7);
    v1::GenerateRequest {
        prompt: format!("fox number {i}"),
        seed: Some(i as u64),
        num_inference_steps: 10 + (i % 7) as u32,
        num_images: 1 + u32::from(i % 5 == 1),
        refiner: i.is_multiple_of(3).then(|| v1::Refiner { mode: Some(mode), ..Default::default() }),
        height: 128,
        width: if i.is_multiple_of(4) { 96 } else { 128 },
        ..Default::default()
    }
}

/// What became of the requests.
#[derive(Debug, Default)]
struct Outcomes {
    /// Pictures by request, of the first answer.
    pictures: Mutex<HashMap<usize, Vec<Vec<u8>>>>,
    wrong: Mutex<Vec<String>>,
    done: AtomicUsize,
    given_up: AtomicUsize,
    late: AtomicUsize,
    jobs: AtomicUsize,
    cancelled: AtomicUsize,
}

impl Outcomes {
    fn check(&self, i: usize, images: &[Vec<u8>]) {
        let mut pictures = self.pictures.lock().unwrap();
        if *pictures.entry(i % DISTINCT).or_insert_with(|| images.to_vec()) != images {
            self.wrong.lock().unwrap().push(format!("request {i}: other bytes"));
        }
    }

    fn wrong(&self, i: usize, what: &str) {
        self.wrong.lock().unwrap().push(format!("request {i}: {what}"));
    }
}

/// One request after the other, each in another manner, until it is over.
async fn call(clients: &[Clients], next: &AtomicUsize, over: &AtomicBool, outcomes: &Outcomes) {
    while !over.load(Ordering::Relaxed) {
        let i = next.fetch_add(1, Ordering::Relaxed);
        let images = clients[0].images();
        match i % 8 {
            0 => late(images, i, outcomes).await,
            1 => given_up(images, i, outcomes).await,
            2 => job(clients, i, outcomes).await,
            // Under a name that a few others have too.
            3 => {
                let request_id = Some(format!("{} in {}", i % DISTINCT, i / 100));
                plain(images, v1::GenerateRequest { request_id, ..request(i) }, i, outcomes).await;
            }
            _ => plain(images, request(i), i, outcomes).await,
        }
    }
}

type Images = v1::image_generation_service_client::ImageGenerationServiceClient<Channel>;

async fn plain(mut images: Images, request: v1::GenerateRequest, i: usize, outcomes: &Outcomes) {
    match images.generate(request).await {
        Ok(answer) => {
            let images = answer.into_inner().images.into_iter().map(|image| image.data.to_vec());
            outcomes.check(i, &images.collect::<Vec<_>>());
            outcomes.done.fetch_add(1, Ordering::Relaxed);
        }
        Err(status) => outcomes.wrong(i, &status.to_string()),
    }
}

/// With a deadline that may or may not be met.
async fn late(mut images: Images, i: usize, outcomes: &Outcomes) {
    let mut request = Request::new(request(i));
    request.set_timeout(Duration::from_millis(100 + 50 * (i as u64 % 7)));
    match images.generate(request).await.map_err(|status| status.code()) {
        Ok(_) | Err(Code::DeadlineExceeded | Code::ResourceExhausted | Code::Cancelled) => {
            outcomes.late.fetch_add(1, Ordering::Relaxed);
        }
        Err(code) => outcomes.wrong(i, &format!("{code:?}")),
    }
}

/// Whose caller loses interest.
async fn given_up(mut images: Images, i: usize, outcomes: &Outcomes) {
    if let Ok(answer) = images.generate_stream(request(i)).await {
        let mut events = answer.into_inner();
        let _ = timeout(Duration::from_millis(50 * (i as u64 % 5)), async {
            while let Ok(Some(_)) = events.message().await {}
        })
        .await;
    }
    outcomes.given_up.fetch_add(1, Ordering::Relaxed);
}

/// A job, which one in four cancels.
async fn job(clients: &[Clients], i: usize, outcomes: &Outcomes) {
    match timeout(Duration::from_secs(90), follow(clients, i)).await {
        Ok(Ok(answer)) => match answer.job.as_ref().map(v1::Job::state) {
            Some(JobState::Succeeded) => {
                let data = |image: v1::GeneratedImage| image.image.unwrap().data.to_vec();
                outcomes.check(i, &answer.images.into_iter().map(data).collect::<Vec<_>>());
                outcomes.jobs.fetch_add(1, Ordering::Relaxed);
            }
            Some(JobState::Cancelled) if (i / 8).is_multiple_of(4) => {
                outcomes.cancelled.fetch_add(1, Ordering::Relaxed);
            }
            _ => outcomes.wrong(i, &format!("{:?}", answer.job)),
        },
        Ok(Err(status)) => outcomes.wrong(i, &status.to_string()),
        Err(_) => outcomes.wrong(i, "a job has not ended in 90 s"),
    }
}

async fn follow(clients: &[Clients], i: usize) -> Result<v1::GetJobResponse, Status> {
    let request = v1::GenerateRequest { request_id: Some(format!("job {i}")), ..request(i) };
    let submit = v1::SubmitJobRequest { request: Some(request), deadline: None };
    let submit = async |mut jobs: JobServiceClient<Channel>| jobs.submit_job(submit.clone()).await;
    let id = ask(clients, i, submit).await?.job.unwrap().id;
    if (i / 8).is_multiple_of(4) {
        sleep(Duration::from_millis(i as u64 % 300)).await;
        let cancel = v1::CancelJobRequest { job_id: id.clone() };
        ask(clients, i, async |mut jobs| jobs.cancel_job(cancel.clone()).await).await?;
    }
    loop {
        let get = v1::GetJobRequest { job_id: id.clone(), include_images: true };
        let answer = ask(clients, i, async |mut jobs| jobs.get_job(get.clone()).await).await?;
        if answer.job.as_ref().is_some_and(|job| job.end_time.is_some()) {
            return Ok(answer);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Asks one coordinator after the other until one answers.
async fn ask<T>(
    clients: &[Clients],
    i: usize,
    call: impl AsyncFn(JobServiceClient<Channel>) -> Result<tonic::Response<T>, Status>,
) -> Result<T, Status> {
    loop {
        for turn in 0..clients.len() {
            match call(clients[(i / 8 + turn) % clients.len()].jobs()).await {
                Ok(answer) => return Ok(answer.into_inner()),
                // It is killed, or Redis is away.
                Err(status)
                    if [Code::Unavailable, Code::Unknown, Code::Cancelled].contains(&status.code()) => {}
                Err(status) => return Err(status),
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// What does not grow: the first coordinator, and the first replica of each stage.
const FOLLOWED: [&str; 5] = ["coordinator", "text-encoder", "base-unet", "refiner", "vae"];

fn memory(cluster: &Soaking) -> [f64; FOLLOWED.len()] {
    let mut members = std::iter::once(&cluster.coordinators[0]).chain(cluster.stages.iter().map(|s| &s[0]));
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    std::array::from_fn(|_| members.next().unwrap().resident_bytes() as f64 / MIB)
}

/// Waits until `holds`, or gives up after `limit`.
async fn settles(limit: Duration, holds: impl Fn() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !holds() {
        if Instant::now() > end {
            return false;
        }
        sleep(Duration::from_millis(200)).await;
    }
    true
}

async fn soak(duration: Duration) {
    let cluster = Arc::new(Soaking::start());
    for member in &cluster.coordinators {
        assert!(
            Clients::new(member.address()).becomes(ServingStatus::Serving, Duration::from_secs(60)).await
        );
    }
    let (next, outcomes) = (Arc::new(AtomicUsize::new(0)), Arc::new(Outcomes::default()));
    // Once everything was used that is connected to when it is first used.
    let clients: Vec<_> = cluster.coordinators.iter().map(|m| Clients::new(m.address())).collect();
    job(&clients, 8, &outcomes).await;
    // The job may have been the other coordinator's.
    let named = v1::GenerateRequest { request_id: Some("first".to_owned()), ..request(3) };
    plain(clients[0].images(), named, 3, &outcomes).await;
    drop(clients);
    sleep(Duration::from_secs(2)).await;
    let at_rest = cluster.tasks();
    let over = Arc::new(AtomicBool::new(false));
    let tormentor = {
        let (cluster, over) = (Arc::clone(&cluster), Arc::clone(&over));
        thread::spawn(move || cluster.torment(&over))
    };
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let clients: Vec<_> = cluster.coordinators.iter().map(|m| Clients::new(m.address())).collect();
            let (next, over, outcomes) = (Arc::clone(&next), Arc::clone(&over), Arc::clone(&outcomes));
            spawn_local(async move { call(&clients, &next, &over, &outcomes).await })
        })
        .collect();
    let (started, mut samples, mut said) = (Instant::now(), Vec::new(), 0);
    while started.elapsed() < duration {
        sleep(SAMPLE).await;
        samples.push(memory(&cluster));
        if started.elapsed().as_secs() / 30 > said {
            said = started.elapsed().as_secs() / 30;
            let now = samples.last().unwrap();
            println!(
                "{} s: {} requests, {} tasks, MiB {now:.1?} of {FOLLOWED:?}, Redis {}",
                said * 30,
                next.load(Ordering::Relaxed),
                cluster.tasks(),
                cluster.ask("DBSIZE")
            );
        }
    }
    over.store(true, Ordering::Relaxed);
    let faults = tormentor.join().unwrap();
    for caller in callers {
        timeout(Duration::from_secs(120), caller).await.expect("no request hangs").unwrap();
    }

    let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    println!(
        "{} s under {faults:?} faults (stages, coordinator, Redis): {} requests done, {} given up by their callers, {} with \
         short deadlines, {} jobs done, {} cancelled; {} went wrong",
        duration.as_secs(),
        count(&outcomes.done),
        count(&outcomes.given_up),
        count(&outcomes.late),
        count(&outcomes.jobs),
        count(&outcomes.cancelled),
        outcomes.wrong.lock().unwrap().len()
    );
    let rests = settles(Duration::from_secs(30), || cluster.tasks() <= at_rest).await;
    println!("tasks of the coordinator at rest: {at_rest} before, {} after", cluster.tasks());
    let consumers =
        || cluster.ask("XINFO CONSUMERS sdxl:jobs coordinators").lines().next().map(str::to_owned);
    let is_clear = || {
        cluster.ask("DBSIZE") == ":1"
            && cluster.ask("XLEN sdxl:jobs") == ":0"
            && consumers().is_some_and(|count| ["*0", "*1", "*2"].contains(&count.as_str()))
    };
    let clear = settles(Duration::from_secs(2 * TTL + 20 * LEASE), is_clear).await;
    println!("keys in Redis: {} ({:?})", cluster.ask("DBSIZE"), cluster.ask("KEYS *"));
    println!("consumers of the queue: {:?}, for 2 coordinators after {} deaths", consumers(), faults[1]);
    let third = samples.len() / 3;
    let mut grown = Vec::new();
    for (i, name) in FOLLOWED.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let mean =
            |part: &[[f64; FOLLOWED.len()]]| part.iter().map(|s| s[i]).sum::<f64>() / part.len() as f64;
        let (before, after) = (mean(&samples[third..2 * third]), mean(&samples[2 * third..]));
        println!("{name}: {before:.1} MiB in the second third, {after:.1} in the last");
        if after > 1.05 * before + 1.0 {
            grown.push(*name);
        }
    }
    let wrong = outcomes.wrong.lock().unwrap();
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), cluster.coordinators[0].stderr());
    assert!(rests, "tasks were leaked\n{}", cluster.coordinators[0].stderr());
    assert!(clear, "more is left in Redis than an empty queue for two coordinators");
    assert!(grown.is_empty(), "memory grows: {grown:?}");
    assert!(faults.iter().all(|n| *n > 0) && count(&outcomes.jobs) > 0, "nothing was survived");
}

#[tokio::test]
async fn nothing_is_left_of_a_minute_under_faults() {
    LocalSet::new().run_until(soak(Duration::from_secs(60))).await;
}

#[tokio::test]
#[ignore = "ten minutes: make soak"]
async fn nothing_is_left_of_ten_minutes_under_faults() {
    LocalSet::new().run_until(soak(Duration::from_secs(600))).await;
}

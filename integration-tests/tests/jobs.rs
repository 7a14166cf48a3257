//! A hundred jobs over two coordinators, of which one is killed or stopped every few seconds, while Redis is restarted
//! once: a hundred results, each once, with the bytes of an undisturbed run.

use integration_tests::{Clients, Fault, Made, Member, Redis, Server};
use sdxl_proto::{
    MAX_MESSAGE_BYTES,
    v1::{self, Job, JobState, job_service_client::JobServiceClient},
};
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::health_check_response::ServingStatus;

const JOBS: usize = 100;
/// Jobs that differ; each comes several times.
const DISTINCT: usize = 20;
const STEPS: u32 = 12;
const LEASE: Duration = Duration::from_secs(2);
/// Between two faults, and for how long a coordinator is stopped: until long after it is thought dead.
const FAULTS: Duration = Duration::from_secs(5);
const STOP: Duration = Duration::from_secs(4);
/// How long Redis is away.
const AWAY: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(300);

struct Cluster {
    coordinators: Vec<Member>,
    _stages: Vec<Server>,
}

impl Cluster {
    fn start(redis: &Redis) -> Self {
        let (base, refiner) = (Made::pico().base(), Made::pico().refiner());
        let path = |path: &std::path::Path| path.display().to_string();
        let stages = [
            ("--text-encoder", "sdxl-text-encoder", vec!["--base", "B", "--refiner", "R"]),
            ("--base-unet", "sdxl-base-unet", vec!["--model", "B", "--threads", "1"]),
            ("--refiner", "sdxl-refiner", vec!["--model", "R", "--threads", "1"]),
            ("--vae", "sdxl-vae", vec!["--model", "B"]),
        ];
        let mut flags = vec!["--redis".to_owned(), redis.url()];
        let mut servers = Vec::new();
        for (flag, binary, args) in stages {
            let args = args.into_iter().map(|arg| match arg {
                "B" => path(&base),
                "R" => path(&refiner),
                arg => arg.to_owned(),
            });
            let server = Server::start(binary, args.collect::<Vec<_>>());
            flags.extend([flag.to_owned(), server.address().to_owned()]);
            servers.push(server);
        }
        let lease = LEASE.as_secs().to_string();
        // A job may wait for its turn at a stage for as long as its coordinator lives here; that does not make it a bad one.
        let of_jobs = [
            "--job-attempts",
            "20",
            "--job-lease",
            &lease,
            "--job-concurrency",
            "3",
            "--checkpoint-interval",
            "2",
        ];
        flags.extend(of_jobs.map(str::to_owned));
        let coordinators = (0..2).map(|_| Member::start("sdxl-coordinator", flags.clone())).collect();
        Self { coordinators, _stages: servers }
    }

    fn clients(&self) -> Vec<JobServiceClient<Channel>> {
        let client = |member: &Member| {
            let endpoint = Endpoint::from_shared(member.address().to_owned()).unwrap();
            // One that is stopped does not answer; the other does.
            let channel = endpoint.timeout(Duration::from_secs(2)).connect_lazy();
            JobServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
        };
        self.coordinators.iter().map(client).collect()
    }
}

fn request(i: usize) -> v1::GenerateRequest {
    let i = i % DISTINCT;
    let mode = v1::refiner::Mode::DenoisingSplit(0.7);
    v1::GenerateRequest {
        prompt: format!("fox number {i}"),
        seed: Some(i as u64),
        num_inference_steps: STEPS,
        num_images: 1 + u32::from(i % 4 == 1),
        refiner: i.is_multiple_of(3).then(|| v1::Refiner { mode: Some(mode), ..Default::default() }),
        height: 64,
        width: if i.is_multiple_of(4) { 96 } else { 64 },
        ..Default::default()
    }
}

/// Asks one coordinator after the other until one answers.
async fn ask<T, F>(
    clients: &[JobServiceClient<Channel>],
    call: impl Fn(JobServiceClient<Channel>) -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let end = Instant::now() + Duration::from_secs(60);
    let mut failures = Vec::new();
    while Instant::now() < end {
        for client in clients {
            match call(client.clone()).await {
                Ok(answer) => return Ok(answer.into_inner()),
                // Gone or stopped, or Redis is.
                Err(status)
                    if [Code::Unavailable, Code::Cancelled, Code::Unknown].contains(&status.code()) =>
                {
                    failures.push(status);
                }
                Err(status) => return Err(status),
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(failures.pop().unwrap())
}

async fn submit(clients: &[JobServiceClient<Channel>], i: usize) -> Job {
    // Whether a coordinator that died had it written down is not known, so it goes under a name.
    let request = v1::GenerateRequest { request_id: Some(format!("job {i}")), ..request(i) };
    let request = v1::SubmitJobRequest { request: Some(request), deadline: None };
    let call = |mut client: JobServiceClient<Channel>| {
        let request = request.clone();
        async move { client.submit_job(request).await }
    };
    ask(clients, call).await.unwrap().job.unwrap()
}

async fn get(clients: &[JobServiceClient<Channel>], id: &str, include_images: bool) -> v1::GetJobResponse {
    let request = v1::GetJobRequest { job_id: id.to_owned(), include_images };
    let call = |mut client: JobServiceClient<Channel>| {
        let request = request.clone();
        async move { client.get_job(request).await }
    };
    ask(clients, call).await.unwrap()
}

/// Kills or stops the coordinators in turn until it is told to end; how often it did either.
fn torment(cluster: &Cluster, over: &AtomicBool) -> [usize; 2] {
    let mut counts = [0; 2];
    for round in 0_usize.. {
        thread::sleep(FAULTS);
        if over.load(Ordering::Relaxed) {
            break;
        }
        let kind = usize::from(round % 4 == 3);
        counts[kind] += 1;
        cluster.coordinators[round % 2].suffer([Fault::Kill, Fault::Stop][kind], STOP);
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_jobs_survive_their_coordinators_and_a_restart_of_redis() {
    let mut redis = Redis::start();
    let cluster = Arc::new(Cluster::start(&redis));
    let mut undisturbed = Vec::new();
    for member in &cluster.coordinators {
        let clients = Clients::new(member.address());
        assert!(clients.becomes(ServingStatus::Serving, Duration::from_secs(120)).await);
    }
    let calm = Instant::now();
    for i in 0..DISTINCT {
        let clients = Clients::new(cluster.coordinators[0].address());
        let answer = clients.images().generate(request(i)).await.unwrap().into_inner();
        undisturbed.push(answer.images.into_iter().map(|image| image.data).collect::<Vec<_>>());
    }
    println!("{DISTINCT} requests undisturbed, one by one, in {:.1} s", calm.elapsed().as_secs_f64());

    let over = Arc::new(AtomicBool::new(false));
    let tormentor = {
        let (cluster, over) = (Arc::clone(&cluster), Arc::clone(&over));
        thread::spawn(move || torment(&cluster, &over))
    };
    let (clients, started) = (cluster.clients(), Instant::now());
    let mut ids = Vec::new();
    for i in 0..JOBS {
        ids.push(submit(&clients, i).await.id);
    }
    let restart = thread::spawn(move || {
        thread::sleep(Duration::from_secs(5));
        redis.restart(AWAY);
        redis
    });
    let mut open: HashSet<usize> = (0..JOBS).collect();
    let mut ended: HashMap<usize, Job> = HashMap::new();
    while !open.is_empty() {
        assert!(started.elapsed() < LIMIT, "{} jobs have not ended", open.len());
        tokio::time::sleep(Duration::from_millis(200)).await;
        for i in open.clone() {
            let job = get(&clients, &ids[i], false).await.job.unwrap();
            if job.end_time.is_some() {
                open.remove(&i);
                ended.insert(i, job);
            }
        }
    }
    let elapsed = started.elapsed();
    over.store(true, Ordering::Relaxed);
    let [killed, stopped] = tormentor.join().unwrap();
    let redis = restart.join().unwrap();
    // Whoever was stopped and still believes in its job has its say by now, were it heard.
    tokio::time::sleep(2 * LEASE).await;

    let mut failed = Vec::new();
    for (i, id) in ids.iter().enumerate() {
        let v1::GetJobResponse { job, images } = get(&clients, id, true).await;
        let (job, pictures): (_, Vec<_>) =
            (job.unwrap(), images.into_iter().map(|image| image.image.unwrap().data).collect());
        if job.state() != JobState::Succeeded {
            failed.push(format!("job {i}: {job:?}"));
        } else if pictures != undisturbed[i % DISTINCT] {
            failed.push(format!("job {i}: other bytes"));
        } else if Some(&job) != ended.get(&i) {
            failed.push(format!("job {i} ended twice: {job:?}"));
        }
    }
    let attempts: u32 = ended.values().map(|job| job.attempts).sum();
    println!(
        "{JOBS} jobs in {:.0} s, coordinators killed {killed} times and stopped {stopped} times, Redis restarted once: {} \
         failed, taken up {attempts} times",
        elapsed.as_secs_f64(),
        failed.len()
    );
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), JOBS);
    assert_eq!(redis.ask("XLEN sdxl:jobs").as_deref(), Some(":0"), "nothing is left in the queue");
    assert!(killed > 0 && attempts as usize > JOBS, "nothing was survived");
}

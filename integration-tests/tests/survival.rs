//! Two hundred requests while, every second, a process is killed, stopped or told to end: every one ends well, with the
//! bytes of an undisturbed run.

use integration_tests::{Clients, Fault, Made, Member, Server};
use sdxl_proto::v1::{self, generate_stream_response::Event};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tonic_health::pb::health_check_response::ServingStatus;

const REQUESTS: usize = 200;
/// Requests that differ; each comes several times.
const DISTINCT: usize = 20;
const CONCURRENCY: usize = 12;
const CHECKPOINT_INTERVAL: u32 = 5;
/// A process that is stopped goes on after this.
const STOP: Duration = Duration::from_secs(4);

struct Fleet {
    coordinator: Server,
    /// Text encoders, bases, refiners and VAEs.
    stages: [Vec<Member>; 4],
}

impl Fleet {
    fn start(counts: [usize; 4]) -> Self {
        let (base, refiner) = (Made::shipped().base(), Made::shipped().refiner());
        let path = |path: &std::path::Path| path.display().to_string();
        let model = |folder: &std::path::Path| {
            ["--model", &path(folder), "--max-batch", "4", "--threads", "2"].map(str::to_owned).to_vec()
        };
        let vae = ["--model", &path(&base)].map(str::to_owned).to_vec();
        let text = ["--base", &path(&base), "--refiner", &path(&refiner)].map(str::to_owned).to_vec();
        let kinds = [
            ("sdxl-text-encoder", text),
            ("sdxl-base-unet", model(&base)),
            ("sdxl-refiner", model(&refiner)),
            ("sdxl-vae", vae),
        ];
        let mut counts = counts.into_iter();
        let stages = kinds.map(|(binary, args)| {
            (0..counts.next().unwrap()).map(|_| Member::start(binary, args.clone())).collect::<Vec<_>>()
        });
        let flags = ["--text-encoder", "--base-unet", "--refiner", "--vae"];
        let mut args: Vec<String> = Vec::new();
        for (flag, members) in flags.into_iter().zip(&stages) {
            let addresses: Vec<_> = members.iter().map(Member::address).collect();
            args.extend([flag.to_owned(), addresses.join(",")]);
        }
        args.extend(["--checkpoint-interval".to_owned(), CHECKPOINT_INTERVAL.to_string()]);
        Self { coordinator: Server::start("sdxl-coordinator", args), stages }
    }

    async fn clients(&self) -> Clients {
        let clients = Clients::new(self.coordinator.address());
        assert!(clients.becomes(ServingStatus::Serving, Duration::from_secs(120)).await);
        clients
    }
}

fn request(i: usize) -> v1::GenerateRequest {
    let i = i % DISTINCT;
    let colours = ["red", "blue", "green", "yellow", "purple"];
    let shapes = ["circle", "square", "triangle", "star"];
    let mode = v1::refiner::Mode::DenoisingSplit(0.6);
    let (height, width) = if i.is_multiple_of(5) { (96, 160) } else { (128, 128) };
    v1::GenerateRequest {
        prompt: format!("a {} {} on a white background", colours[i % 5], shapes[i % 4]),
        seed: Some(i as u64),
        num_inference_steps: 12 + (i % 3) as u32,
        refiner: i.is_multiple_of(2).then(|| v1::Refiner { mode: Some(mode), ..Default::default() }),
        // Steps that take up what others kept are not gone on from, but from the last one that was whole.
        deep_cache: (i % 4 > 1).then_some(v1::DeepCache { cache_interval: 3, cache_branch_id: 1 }),
        guidance_interval: i
            .is_multiple_of(3)
            .then_some(v1::GuidanceInterval { start: None, stop: Some(0.7) }),
        height,
        width,
        ..Default::default()
    }
}

/// By the streaming call: with it each step is heard of, so that every one that is done twice is counted.
async fn picture(clients: &Clients, i: usize) -> Result<(Vec<u8>, Vec<v1::StageTiming>), tonic::Status> {
    let mut events = clients.images().generate_stream(request(i)).await?.into_inner();
    let mut picture = Vec::new();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Image(image)) => picture = image.image.expect("a picture").data.to_vec(),
            Some(Event::Summary(summary)) => return Ok((picture, summary.timings)),
            _ => {}
        }
    }
    Err(tonic::Status::internal("the stream ended without a summary"))
}

/// Lets something befall each stage's processes in turn, each second, until told to stop; how often it did.
fn torment(stages: &Arc<Fleet>, over: &Arc<AtomicBool>) -> [usize; 3] {
    let mut counts = [0; 3];
    let mut at_work: Vec<thread::JoinHandle<()>> = Vec::new();
    let started = Instant::now();
    for round in 0_usize.. {
        let next = started + Duration::from_secs(1) * u32::try_from(round + 1).unwrap();
        thread::sleep(next.saturating_duration_since(Instant::now()));
        if over.load(Ordering::Relaxed) {
            break;
        }
        let members = round % 4;
        let place = (round / 4) % stages.stages[members].len();
        // So that each process meets each fault in time.
        let kind = (round + round / 12) % 3;
        counts[kind] += 1;
        let stages = Arc::clone(stages);
        at_work.push(thread::spawn(move || stages.stages[members][place].suffer(Fault::ALL[kind], STOP)));
    }
    for thread in at_work {
        thread.join().expect("a process came back");
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_requests_survive_a_fault_every_second() {
    let fleet = Arc::new(Fleet::start([2, 3, 2, 2]));
    let clients = fleet.clients().await;
    let mut undisturbed = Vec::new();
    for i in 0..DISTINCT {
        undisturbed.push(picture(&clients, i).await.unwrap().0);
    }

    let over = Arc::new(AtomicBool::new(false));
    let torment = {
        let (fleet, over) = (Arc::clone(&fleet), Arc::clone(&over));
        thread::spawn(move || torment(&fleet, &over))
    };
    let (next, started) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let undisturbed = Arc::new(undisturbed);
    let callers: Vec<_> = (0..CONCURRENCY)
        .map(|_| {
            let (clients, next, undisturbed) = (clients.clone(), Arc::clone(&next), Arc::clone(&undisturbed));
            tokio::spawn(async move {
                let (mut failed, mut timings) = (Vec::new(), Vec::new());
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= REQUESTS {
                        return (failed, timings);
                    }
                    match picture(&clients, i).await {
                        Ok((data, own)) => {
                            if data != undisturbed[i % DISTINCT] {
                                failed.push(format!("request {i}: other bytes"));
                            }
                            timings.extend(own);
                        }
                        Err(status) => failed.push(format!("request {i}: {status}")),
                    }
                }
            })
        })
        .collect();
    let (mut failed, mut timings) = (Vec::new(), Vec::new());
    for caller in callers {
        let (own_failed, own_timings) = caller.await.unwrap();
        failed.extend(own_failed);
        timings.extend(own_timings);
    }
    let elapsed = started.elapsed();
    over.store(true, Ordering::Relaxed);
    let faults = torment.join().unwrap();

    let sum = |of: fn(&v1::StageTiming) -> u32| timings.iter().map(of).sum::<u32>();
    let (steps, resumes, repeated) = (sum(|t| t.steps), sum(|t| t.resumes), sum(|t| t.steps_repeated));
    println!(
        "{REQUESTS} requests in {:.0} s under {faults:?} faults (killed, stopped, drained): {} failed; {resumes} units of \
         work went on elsewhere, {repeated} of {steps} steps were done twice",
        elapsed.as_secs_f64(),
        failed.len()
    );
    assert!(failed.is_empty(), "{}\n{}", failed.join("\n"), fleet.coordinator.stderr());
    assert!(faults.iter().all(|count| *count > 0) && resumes > 0, "nothing was survived");
    // Every other request has one step of three to go back to, up to two steps further.
    let allowed = (1.2 * f64::from(CHECKPOINT_INTERVAL) + 1.0) * f64::from(resumes);
    assert!(f64::from(repeated) <= allowed, "{repeated} steps repeated for {resumes} losses");
}

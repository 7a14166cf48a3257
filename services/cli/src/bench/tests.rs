//! Whole measurements of a cluster in this process, whose answers are known.

use super::*;
use crate::args::{Cli, Command};
use baseline::Baseline;
use clap::Parser;
use sdxl_proto::v1::{
    GenerateRequest, GenerateResponse, GenerateStreamResponse, GetModelRequest, Image, Size, StageStatus,
    StageTiming,
    image_generation_service_server::{ImageGenerationService, ImageGenerationServiceServer},
    model_service_server::{ModelService, ModelServiceServer},
};
use sdxl_runtime::{Health, Shutdown, Terms, server};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;
use tonic::{Request, Response};

/// What the fake saw of a request.
#[derive(Clone, Debug)]
struct Seen {
    request: GenerateRequest,
    terms: Terms,
}

/// Answers after `delay`, or never; refuses the tenant "refused". Texts that it has seen take no time.
#[derive(Clone)]
struct Fake {
    delay: Option<Duration>,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Requests at work, and the most at a time.
    active: Arc<watch::Sender<(usize, usize)>>,
}

/// Requests at work are one less when it goes.
struct Active(Arc<watch::Sender<(usize, usize)>>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.send_modify(|(now, _)| *now -= 1);
    }
}

impl Fake {
    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the text is one that came before.
    fn note(&self, seen: Seen) -> bool {
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.iter().any(|other| other.request.prompt == seen.request.prompt);
        all.push(seen);
        before
    }
}

fn timing(stage: Stage, image_index: Option<u32>, run: Duration, steps: u32) -> StageTiming {
    let run_time = Some(sdxl_proto::convert::duration(run));
    StageTiming {
        stage: stage.into(),
        image_index,
        run_time,
        total_time: run_time,
        steps,
        ..Default::default()
    }
}

#[tonic::async_trait]
impl ImageGenerationService for Fake {
    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<GenerateResponse>, Status> {
        self.active.send_modify(|(now, most)| {
            *now += 1;
            *most = (*most).max(*now);
        });
        let _active = Active(Arc::clone(&self.active));
        let terms = Terms::from_metadata(request.metadata()).unwrap();
        let request = request.into_inner();
        let known = self.note(Seen { request: request.clone(), terms: terms.clone() });
        if terms.tenant.name() == "refused" {
            return Err(Status::resource_exhausted("base-unet: every replica is full"));
        }
        match self.delay {
            Some(delay) => tokio::time::sleep(delay).await,
            None => std::future::pending().await,
        }
        let millis = Duration::from_millis;
        let mut timings = Vec::new();
        if !known {
            timings.push(timing(Stage::TextEncoder, None, millis(1), 0));
        }
        for index in 0..request.num_images {
            let steps = request.num_inference_steps;
            timings.push(timing(Stage::BaseUnet, Some(index), millis(1) * steps, steps));
            timings.push(timing(Stage::Vae, Some(index), millis(1), 0));
        }
        let images = vec![Image::default(); usize::try_from(request.num_images).unwrap()];
        Ok(Response::new(GenerateResponse { images, timings, ..Default::default() }))
    }

    type GenerateStreamStream = tokio_stream::Empty<Result<GenerateStreamResponse, Status>>;

    async fn generate_stream(
        &self,
        _: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        Err(Status::unimplemented("a measurement takes whole answers"))
    }
}

#[tonic::async_trait]
impl ModelService for Fake {
    async fn get_model(&self, _: Request<GetModelRequest>) -> Result<Response<GetModelResponse>, Status> {
        let status = |stage: Stage, ready_replicas| StageStatus {
            stage: stage.into(),
            ready_replicas,
            ..Default::default()
        };
        Ok(Response::new(GetModelResponse {
            model: "fake".into(),
            default_size: Some(Size { height: 64, width: 64 }),
            default_num_inference_steps: 4,
            stages: vec![status(Stage::TextEncoder, 1), status(Stage::BaseUnet, 2), status(Stage::Vae, 1)],
            ..Default::default()
        }))
    }
}

/// A fake that answers after `delay`, and its address.
async fn serve(delay: Option<Duration>) -> (Fake, String) {
    let fake = Fake { delay, seen: Arc::default(), active: Arc::new(watch::Sender::new((0, 0))) };
    let listener = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = server::Server {
        listener,
        health: Health::new(&[]).await,
        descriptors: &[],
        drain_timeout: Duration::ZERO,
        shutdown: Shutdown::new(),
    };
    let routes = tonic::service::Routes::new(ImageGenerationServiceServer::new(fake.clone()))
        .add_service(ModelServiceServer::new(fake.clone()));
    tokio::spawn(server::serve(server, routes));
    (fake, address)
}

fn parse(endpoint: &str, flags: &[&str]) -> BenchArgs {
    let fixed = ["sdxl", "bench", "--endpoint", endpoint, "--seed", "3"];
    match Cli::try_parse_from(fixed.iter().chain(flags)).unwrap().command {
        Command::Bench(args) => *args,
        other => panic!("{other:?}"),
    }
}

async fn bench_until(
    endpoint: &str,
    flags: &[&str],
    stop: impl Future<Output = ()>,
) -> Result<Report, Failure> {
    measure(&parse(endpoint, flags), &mut Progress::new(false), stop).await
}

async fn bench(endpoint: &str, flags: &[&str]) -> Report {
    bench_until(endpoint, flags, std::future::pending()).await.unwrap()
}

#[tokio::test]
async fn an_open_loop_sends_what_was_drawn_and_counts_what_came() {
    let (fake, endpoint) = serve(Some(Duration::from_millis(20))).await;
    let flags = [
        "--rate",
        "300",
        "--requests",
        "80",
        "--warm-up-requests",
        "20",
        "--tenants",
        "served=3,refused=1",
        "--num-images",
        "1..3",
        "--repeat-prompts",
        "0.5",
        "--prompt-pool",
        "3",
        "--batch-share",
        "0.5",
    ];
    let report = bench(&endpoint, &flags).await;

    let model = fake.get_model(Request::new(GetModelRequest {})).await.unwrap().into_inner();
    let mix = work::Mix::new(&parse(&endpoint, &flags).work, 3, &model).unwrap();
    let drawn: Vec<_> = (0..100).map(|index| mix.draw(index, &Baseline::default())).collect();
    let seen = fake.seen();
    let key = |request: &GenerateRequest| {
        (request.seed, request.prompt.clone(), request.num_images, request.priority)
    };
    let sent: BTreeSet<_> = seen.iter().map(|seen| key(&seen.request)).collect();
    assert_eq!(sent, drawn.iter().map(|work| key(&work.message())).collect());
    assert_eq!(seen.len(), 100);

    let measured = &drawn[20..];
    let (served, refused): (Vec<_>, Vec<_>) = measured.iter().partition(|w| w.tenant.name() == "served");
    assert_eq!(report.outcomes["OK"], served.len() as u64);
    assert_eq!(report.outcomes["RESOURCE_EXHAUSTED"], refused.len() as u64);
    assert_eq!(report.messages["RESOURCE_EXHAUSTED"], "base-unet: every replica is full");
    assert_eq!(report.time_to_refusal_s.unwrap().count, refused.len());
    assert_eq!((report.requests.arrived, report.requests.dropped), (80, 0));
    let pictures: u32 = served.iter().map(|work| work.num_images).sum();
    let asked: u32 = measured.iter().map(|work| work.num_images).sum();
    assert_eq!(report.goodput.share, Some(f64::from(pictures) / f64::from(asked)));
    assert!(report.latency_s.unwrap().p50 >= 0.02);
    let base = report.stages.iter().find(|stage| stage.stage == "base-unet").unwrap();
    assert_eq!((base.replicas, base.calls), (2, pictures as usize));
    let texts = report.text_encoder;
    assert!(texts.calls < texts.requests, "{texts:?}");
    // A request alone takes 1 ms a step in this fake, and 1 ms for the text that is not known and for the VAE.
    assert!(report.slowdown.unwrap().p50 >= 20.0 / 6.0);
    assert_eq!(report.by_tenant.len(), 2);
    assert_eq!(report.by_priority.len(), 2);
}

#[tokio::test]
async fn a_closed_loop_has_so_many_at_a_time() {
    let (fake, endpoint) = serve(Some(Duration::from_millis(10))).await;
    let report = bench(&endpoint, &["--concurrency", "4", "--requests", "40", "--connections", "2"]).await;
    assert_eq!(report.outcomes["OK"], 40);
    assert_eq!(fake.seen().len(), 40);
    assert!(fake.active.borrow().1 <= 4);
    assert!(report.measured_s >= 0.1, "ten rounds of 10 ms");
    assert_eq!((report.load.mode, report.load.concurrency), ("closed", Some(4)));
}

#[tokio::test]
async fn a_duration_ends_the_load_after_the_warm_up() {
    let (fake, endpoint) = serve(Some(Duration::from_millis(5))).await;
    let report = bench(&endpoint, &["--rate", "100", "--duration", "0.4", "--warm-up", "0.2"]).await;
    let mut arrivals = work::Arrivals::new(3, 100.0);
    let times: Vec<_> =
        std::iter::from_fn(|| Some(arrivals.next().as_secs_f64())).take_while(|t| *t < 0.6).collect();
    assert_eq!(fake.seen().len(), times.len());
    assert_eq!(report.requests.arrived, times.iter().filter(|t| **t >= 0.2).count() as u64);
    assert!((report.measured_s - 0.4).abs() < 1e-9);
}

#[tokio::test]
async fn what_is_too_much_in_flight_is_dropped_and_counted() {
    let (fake, endpoint) = serve(None).await;
    let flags = ["--rate", "5000", "--requests", "10", "--max-in-flight", "2", "--timeout", "2"];
    let report = bench(&endpoint, &flags).await;
    assert_eq!((report.requests.arrived, report.requests.dropped, report.requests.no_answer), (10, 8, 2));
    assert_eq!(fake.seen().len(), 2);
    assert_eq!(report.goodput.share, Some(0.0));
    assert!(report.outcomes.is_empty());
}

#[tokio::test]
async fn deadlines_go_to_the_cluster_and_are_counted_where_they_pass() {
    let (fake, endpoint) = serve(None).await;
    let report = bench(&endpoint, &["--rate", "1000", "--requests", "5", "--deadline", "0.2..0.3"]).await;
    assert_eq!(report.outcomes["DEADLINE_EXCEEDED"], 5);
    assert_eq!(report.goodput.share, Some(0.0));
    assert!(fake.seen().iter().all(|seen| seen.terms.deadline.is_some()));
}

#[tokio::test]
async fn factors_are_of_what_a_request_takes_alone() {
    let (fake, endpoint) = serve(Some(Duration::from_millis(1))).await;
    let flags = ["--concurrency", "2", "--requests", "6", "--sizes", "64x64,128x64", "--deadline", "1000x"];
    let report = bench(&endpoint, &flags).await;
    assert_eq!(report.outcomes["OK"], 6);
    let seen = fake.seen();
    assert_eq!(seen.len(), 2 + 6);
    let (alone, load) = seen.split_at(2);
    let sizes: BTreeSet<_> = alone.iter().map(|seen| seen.request.height).collect();
    assert_eq!(sizes, BTreeSet::from([64, 128]));
    assert!(alone.iter().all(|seen| seen.terms.deadline.is_none()));
    // Six times a millisecond, a thousand times.
    for seen in load {
        let left = seen.terms.deadline.unwrap().remaining();
        assert!(left <= Duration::from_secs(6), "{left:?}");
    }
}

#[tokio::test]
async fn a_person_who_ends_it_gets_what_there_is() {
    let (fake, endpoint) = serve(None).await;
    let mut active = fake.active.subscribe();
    let stop = async move {
        active.wait_for(|(now, _)| *now == 3).await.unwrap();
    };
    let report = bench_until(&endpoint, &["--concurrency", "3", "--duration", "600"], stop).await.unwrap();
    assert!(report.interrupted);
    assert_eq!((report.requests.arrived, report.requests.unfinished), (3, 3));
    assert!(report.measured_s < 600.0);
    let tables = table::tables(&report);
    assert!(tables.contains("interrupted") && tables.contains("3 unfinished"), "{tables}");
}

#[tokio::test]
async fn what_cannot_be_measured_is_told_before_the_load() {
    let (fake, endpoint) = serve(Some(Duration::ZERO)).await;
    let flags = ["--rate", "1", "--requests", "1", "--refiner-share", "0.5"];
    let failure = bench_until(&endpoint, &flags, std::future::pending()).await.unwrap_err();
    assert_eq!(failure.code(), 2);
    assert!(fake.seen().is_empty());
    let missing = Path::new("/nowhere/bench.json");
    assert_eq!(check_output(missing).unwrap_err().code(), 2);
    assert_eq!(check_output(Path::new("/")).unwrap_err().code(), 2);
    assert!(check_output(Path::new("bench.json")).is_ok());
}

#[tokio::test]
async fn tables_hold_what_json_holds() {
    let (_, endpoint) = serve(Some(Duration::from_millis(1))).await;
    let flags = ["--concurrency", "2", "--requests", "6", "--tenants", "one,two", "--warm-up-requests", "2"];
    let report = bench(&endpoint, &flags).await;
    let tables = table::tables(&report);
    for part in [
        "model fake",
        "closed loop, 2 at a time",
        "seed 3",
        "6 arrived",
        "OK",
        "base-unet run",
        "slowdown",
        "two",
    ] {
        assert!(tables.contains(part), "{part} is not in\n{tables}");
    }
    assert!(tables.lines().all(|line| line.len() <= 110 && line.trim_end() == line), "{tables}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["outcomes"]["OK"], 6);
    assert_eq!(json["seed"], 3);
    assert_eq!(json["stages"][1]["stage"], "base-unet");
    assert!(json["latency_s"]["p99"].is_number());
}

//! A stage with a toy engine behind its real services, on a real socket.

use super::*;
use crate::{
    args::WorkerArgs,
    engine::{EngineError, Step, StepOf, Work},
    info::Details,
    jobs::{Checkpoint, StepDone},
};
use candle_core::{DType, Device};
use sdxl_core::{DenoiserInfo, SchedulerConfig, SchedulerKind};
use std::{net::SocketAddr, num::NonZeroUsize, time::Duration};
use tokio::{task::JoinHandle, time::timeout};
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;
use v1::{
    denoise_response::Event, denoiser_service_client::DenoiserServiceClient,
    stage_service_client::StageServiceClient,
};

const STEP: Duration = Duration::from_millis(30);
const REVISION: &str = "0123";
const SOON: Duration = Duration::from_secs(10);

/// Denoises nothing, slowly; a request of 13 steps brings misfortune.
struct SlowDenoiser;

impl Engine for SlowDenoiser {
    type Request = DenoiseJob;
    type Run = (DenoiseJob, u32);
    type Event = DenoiseEvent;
    type Output = Tensor;

    fn warm_up(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn begin(&mut self, job: DenoiseJob) -> Result<Self::Run, EngineError> {
        job.check(&details(), REVISION)?;
        let first = job.first_step();
        Ok((job, first))
    }

    fn work(&self, (job, step): &Self::Run) -> Work {
        Work::even(job.size, 1, job.end_step - step)
    }

    fn advance(&mut self, runs: &mut [&mut Self::Run]) -> Vec<Result<StepOf<Self>, EngineError>> {
        runs.iter_mut().map(|run| self.step(run)).collect()
    }

    fn checkpoint(
        &mut self,
        (job, step): &Self::Run,
        now: bool,
    ) -> Result<Option<DenoiseEvent>, EngineError> {
        let interval = job.checkpoint_interval;
        let is_due = interval > 0 && (now || step.is_multiple_of(interval) && *step < job.end_step);
        Ok(is_due.then(|| {
            let latents = latents(job, 0.25).unwrap();
            DenoiseEvent::Checkpoint(Checkpoint { revision: REVISION.to_owned(), step: *step, latents })
        }))
    }
}

impl SlowDenoiser {
    fn step(&self, (job, step): &mut (DenoiseJob, u32)) -> Result<StepOf<Self>, EngineError> {
        if *step == job.end_step {
            return latents(job, 0.5).map(Step::Done).map_err(EngineError::failed);
        }
        std::thread::sleep(STEP);
        assert!(job.num_inference_steps != 13, "thirteen steps");
        *step += 1;
        let done = StepDone {
            step: *step - 1,
            timestep: 1.0,
            step_time: STEP,
            batch_evaluations: 1,
            batch_work: 1.0,
        };
        Ok(Step::Continue(DenoiseEvent::Step(done)))
    }
}

fn latents(job: &DenoiseJob, value: f32) -> candle_core::Result<Tensor> {
    Tensor::full(value, &job.latents_shape(&details())[..], &Device::Cpu)
}

fn details() -> DenoiserInfo {
    DenoiserInfo {
        latent_channels: 4,
        sample_size: 8,
        requires_aesthetics_score: false,
        cross_attention_dim: 2,
        pooled_projection_dim: 3,
        scheduler: SchedulerConfig::new(SchedulerKind::Euler),
        training_buckets: Vec::new(),
        cache_branch_costs: vec![0.5, 0.75],
        guidance_steps: true,
    }
}

struct Running {
    channel: Channel,
    shutdown: Shutdown,
    worker: WorkerHandle<SlowDenoiser>,
    serving: JoinHandle<anyhow::Result<()>>,
    /// Lets the engine be built.
    warm: std::sync::mpsc::Sender<()>,
}

async fn start_cold() -> Running {
    let listener = server::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (warm, wait) = std::sync::mpsc::channel();
    let args =
        WorkerArgs { queue_depth: NonZeroUsize::new(2).unwrap(), max_active: NonZeroUsize::new(1).unwrap() };
    let (worker, built) = worker::spawn(StageKind::BaseUnet, args, move || {
        wait.recv()?;
        let info = StageInfo {
            kind: StageKind::BaseUnet,
            model: "toy".to_owned(),
            revision: REVISION.to_owned(),
            device: "cpu".to_owned(),
            dtype: DType::BF16,
            details: Details::Denoiser(details()),
        };
        Ok((SlowDenoiser, info))
    })
    .unwrap();
    let info = InfoCell::default();
    let service = Service::denoiser(worker.clone(), info.clone());
    let shutdown = Shutdown::new();
    let server = Server {
        listener,
        health: Health::new(&[service.name, v1::stage_service_server::SERVICE_NAME]).await,
        descriptors: &[FILE_DESCRIPTOR_SET],
        drain_timeout: SOON,
        shutdown: shutdown.clone(),
    };
    let serving = tokio::spawn(serve(server, service, worker.clone(), info, built));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    Running { channel, shutdown, worker, serving, warm }
}

async fn start() -> Running {
    let stage = start_cold().await;
    stage.warm.send(()).unwrap();
    stage.until(ServingStatus::Serving).await;
    stage
}

impl Running {
    async fn health(&self) -> ServingStatus {
        let request = HealthCheckRequest { service: "sdxl.v1.DenoiserService".to_owned() };
        HealthClient::new(self.channel.clone()).check(request).await.unwrap().into_inner().status()
    }

    async fn until(&self, status: ServingStatus) {
        let reached = async {
            while self.health().await != status {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, reached).await.unwrap();
    }

    async fn denoise(&self, steps: u32) -> Result<Streaming<v1::DenoiseResponse>, Status> {
        let mut client = DenoiserServiceClient::new(self.channel.clone());
        Ok(client.denoise(request(steps)).await?.into_inner())
    }
}

fn request(steps: u32) -> v1::DenoiseRequest {
    let size = v1::Size { height: 64, width: 72 };
    v1::DenoiseRequest {
        size: Some(size),
        scheduler: Some((&details().scheduler).into()),
        num_inference_steps: steps,
        begin_step: 0,
        end_step: steps,
        guidance_scale: 1.0,
        conditioning: Some(v1::Conditioning {
            original_size: Some(size),
            target_size: Some(size),
            ..Default::default()
        }),
        start: Some(v1::denoise_request::Start::Noise(v1::SeededNoise { seed: 1, draws_before: 0 })),
        ..Default::default()
    }
}

async fn until_progress(events: &mut Streaming<v1::DenoiseResponse>) {
    while let Some(message) = events.message().await.unwrap() {
        if matches!(message.event, Some(Event::Progress(_))) {
            return;
        }
    }
    panic!("no progress");
}

/// The result, or the status that the stream ends with.
async fn result(mut events: Streaming<v1::DenoiseResponse>) -> Result<v1::DenoiseResult, Status> {
    while let Some(message) = events.message().await? {
        if let Some(Event::Result(result)) = message.event {
            return Ok(result);
        }
    }
    panic!("no result");
}

#[tokio::test]
async fn a_stream_tells_start_steps_and_result() {
    let stage = start().await;
    let mut events = stage.denoise(3).await.unwrap();
    let mut told = Vec::new();
    while let Some(message) = events.message().await.unwrap() {
        told.push(match message.event.unwrap() {
            Event::Started(_) => "started".to_owned(),
            Event::Progress(progress) => format!("step {}", progress.step),
            Event::Result(result) => format!("latents {:?}", result.latents.unwrap().shape),
            Event::Checkpoint(_) => "a checkpoint, unasked".to_owned(),
        });
    }
    assert_eq!(told, ["started", "step 0", "step 1", "step 2", "latents [4, 8, 9]"]);
}

#[tokio::test]
async fn checkpoints_come_as_often_as_asked_for_and_lead_on() {
    let stage = start().await;
    let mut client = DenoiserServiceClient::new(stage.channel.clone());
    let request = v1::DenoiseRequest { checkpoint_interval: 2, ..request(5) };
    let mut events = client.denoise(request.clone()).await.unwrap().into_inner();
    let mut checkpoints = Vec::new();
    while let Some(message) = events.message().await.unwrap() {
        if let Some(Event::Checkpoint(checkpoint)) = message.event {
            checkpoints.push(checkpoint);
        }
    }
    assert_eq!(checkpoints.iter().map(|c| c.step).collect::<Vec<_>>(), [2, 4]);
    let start = v1::denoise_request::Start::Checkpoint(checkpoints.pop().unwrap());
    let resumed = v1::DenoiseRequest { start: Some(start), ..request };
    let mut events = client.denoise(resumed).await.unwrap().into_inner();
    let mut steps = Vec::new();
    while let Some(message) = events.message().await.unwrap() {
        if let Some(Event::Progress(progress)) = message.event {
            steps.push(progress.step);
        }
    }
    assert_eq!(steps, [4]);
}

#[tokio::test]
async fn several_steps_are_told_at_once_where_that_is_asked_for() {
    let stage = start().await;
    let mut client = DenoiserServiceClient::new(stage.channel.clone());
    let request = v1::DenoiseRequest { progress_interval: 3, checkpoint_interval: 4, ..request(9) };
    let mut events = client.denoise(request).await.unwrap().into_inner();
    let mut told = Vec::new();
    while let Some(message) = events.message().await.unwrap() {
        told.push(match message.event.unwrap() {
            Event::Started(_) => "started".to_owned(),
            Event::Progress(progress) => format!("{} to {}", progress.steps, progress.step),
            Event::Checkpoint(checkpoint) => format!("checkpoint {}", checkpoint.step),
            Event::Result(_) => "latents".to_owned(),
        });
    }
    // Before a checkpoint, and before the end, all steps are told that led to it.
    let expected = ["3 to 2", "1 to 3", "checkpoint 4", "3 to 6", "1 to 7", "checkpoint 8", "1 to 8"];
    assert_eq!(told[1..told.len() - 1], expected);
    assert_eq!((told[0].as_str(), told.last().map(String::as_str)), ("started", Some("latents")));
}

#[tokio::test]
async fn a_checkpoint_that_does_not_fit_is_refused_by_name() {
    let stage = start().await;
    let tensor = |shape: [u32; 3], dtype: v1::DType| {
        let bytes = shape.iter().product::<u32>() as usize * if dtype == v1::DType::F32 { 4 } else { 2 };
        v1::Tensor { shape: shape.to_vec(), dtype: dtype.into(), data: vec![0; bytes].into() }
    };
    let right = v1::DenoiseCheckpoint {
        revision: REVISION.to_owned(),
        step: 5,
        latents: Some(tensor([4, 8, 9], v1::DType::F32)),
        sampler_history: Vec::new(),
    };
    let history = vec![tensor([4, 8, 9], v1::DType::F32)];
    let cases = [
        ("checkpoint.revision", v1::DenoiseCheckpoint { revision: "4567".to_owned(), ..right.clone() }),
        ("checkpoint.step", v1::DenoiseCheckpoint { step: 11, ..right.clone() }),
        (
            "checkpoint.latents.shape",
            v1::DenoiseCheckpoint { latents: Some(tensor([4, 9, 8], v1::DType::F32)), ..right.clone() },
        ),
        (
            "checkpoint.latents.dtype",
            v1::DenoiseCheckpoint { latents: Some(tensor([4, 8, 9], v1::DType::F16)), ..right.clone() },
        ),
        ("checkpoint.latents", v1::DenoiseCheckpoint { latents: None, ..right.clone() }),
        ("checkpoint.sampler_history", v1::DenoiseCheckpoint { sampler_history: history, ..right.clone() }),
    ];
    let mut client = DenoiserServiceClient::new(stage.channel.clone());
    for (field, checkpoint) in cases {
        let start = Some(v1::denoise_request::Start::Checkpoint(checkpoint));
        let status = client.denoise(v1::DenoiseRequest { start, ..request(10) }).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}");
        let fields: Vec<_> =
            status.get_details_bad_request().unwrap().field_violations.into_iter().map(|v| v.field).collect();
        assert_eq!(fields, [field]);
    }
}

#[tokio::test]
async fn a_caller_that_hangs_up_frees_the_device_within_one_step() {
    let stage = start().await;
    let mut events = stage.denoise(1000).await.unwrap();
    until_progress(&mut events).await;
    assert_eq!(stage.worker.load().borrow().active, 1);
    drop(events);
    // A step, and the reset's way over the socket.
    timeout(STEP * 5, stage.worker.idle()).await.unwrap();
}

#[tokio::test]
async fn a_stage_tells_its_load_while_its_device_is_busy() {
    let stage = start().await;
    let mut client = StageServiceClient::new(stage.channel.clone());
    let idle = client.get_load(v1::GetLoadRequest {}).await.unwrap().into_inner();
    assert_eq!(idle, v1::GetLoadResponse::default());
    let mut running = stage.denoise(1000).await.unwrap();
    until_progress(&mut running).await;
    let _waiting = stage.denoise(1).await.unwrap();
    let load = client.get_load(v1::GetLoadRequest {}).await.unwrap().into_inner();
    assert_eq!((load.queued, load.active), (1, 1));
    let since: Duration = load.since_progress.unwrap().try_into().unwrap();
    assert!(since < SOON, "{since:?}");
    let busy: Duration = load.busy_time.unwrap().try_into().unwrap();
    assert!(busy >= STEP, "{busy:?}");
}

#[tokio::test]
async fn the_deadline_is_kept_in_the_middle_of_a_stream() {
    let stage = start().await;
    let mut request = Request::new(request(1000));
    // Not by set_timeout: tonic's client would keep it too, but for the stream neither side of tonic does.
    request.metadata_mut().insert("grpc-timeout", "200m".parse().unwrap());
    let events =
        DenoiserServiceClient::new(stage.channel.clone()).denoise(request).await.unwrap().into_inner();
    assert_eq!(result(events).await.unwrap_err().code(), Code::DeadlineExceeded);
    timeout(STEP * 5, stage.worker.idle()).await.unwrap();
}

#[tokio::test]
async fn a_full_stage_says_so_at_once() {
    let stage = start().await;
    let mut running = stage.denoise(1000).await.unwrap();
    until_progress(&mut running).await;
    let _waiting = (stage.denoise(1000).await.unwrap(), stage.denoise(1000).await.unwrap());
    let status = timeout(STEP, stage.denoise(1)).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().is_some());
}

#[tokio::test]
async fn wrong_fields_are_named_before_the_queue() {
    let stage = start().await;
    let mut wrong = request(10);
    wrong.end_step = 11;
    wrong.guidance_scale = f32::NAN;
    let mut client = DenoiserServiceClient::new(stage.channel.clone());
    let status = client.denoise(wrong).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let fields: Vec<_> =
        status.get_details_bad_request().unwrap().field_violations.into_iter().map(|v| v.field).collect();
    assert_eq!(fields, ["end_step", "guidance_scale"]);

    let mut wrong = request(10);
    let tensor = v1::Tensor { shape: vec![77, 2], dtype: v1::DType::F32.into(), data: vec![0; 12].into() };
    wrong.conditioning.as_mut().unwrap().prompt_embeds = Some(tensor);
    let status = client.denoise(wrong).await.unwrap_err();
    assert_eq!(
        status.get_details_bad_request().unwrap().field_violations[0].field,
        "conditioning.prompt_embeds.data"
    );
}

#[tokio::test]
async fn not_before_it_is_warm() {
    let stage = start_cold().await;
    assert_eq!(stage.health().await, ServingStatus::NotServing);
    assert_eq!(stage.denoise(1).await.unwrap_err().code(), Code::Unavailable);
    let mut client = StageServiceClient::new(stage.channel.clone());
    assert_eq!(client.get_stage(v1::GetStageRequest {}).await.unwrap_err().code(), Code::Unavailable);
    stage.warm.send(()).unwrap();
    stage.until(ServingStatus::Serving).await;
    let said = client.get_stage(v1::GetStageRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (said.stage(), said.dtype(), said.model.as_str()),
        (v1::Stage::BaseUnet, v1::DType::Bf16, "toy")
    );
    let Some(v1::get_stage_response::Details::Denoiser(denoiser)) = said.details else {
        panic!("no details")
    };
    assert_eq!(denoiser.pooled_projection_dim, 3);
}

#[tokio::test]
async fn draining_finishes_what_runs_and_refuses_what_comes() {
    let stage = start().await;
    let mut running = stage.denoise(10).await.unwrap();
    until_progress(&mut running).await;
    stage.shutdown.trigger();
    stage.until(ServingStatus::NotServing).await;
    assert_eq!(stage.denoise(1).await.unwrap_err().code(), Code::Unavailable);
    assert!(result(running).await.is_ok());
    timeout(SOON, stage.serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_panic_ends_the_stage_with_an_error() {
    let stage = start().await;
    let status = result(stage.denoise(13).await.unwrap()).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().contains("thirteen steps"), "{}", status.message());
    let ended = timeout(SOON, stage.serving).await.unwrap().unwrap();
    assert!(ended.unwrap_err().to_string().contains("panicked"));
}

#[tokio::test]
async fn an_engine_that_cannot_be_built_ends_the_stage() {
    let stage = start_cold().await;
    drop(stage.warm);
    assert!(timeout(SOON, stage.serving).await.unwrap().unwrap().is_err());
}

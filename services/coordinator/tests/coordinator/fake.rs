//! Stages that compute nothing: they note what they are asked and answer by a script. Each has a runtime of its own, so
//! that it can be killed with all its connections, as a process can.

use sdxl_core::{
    Conditioner, ConditionerInfo, DeepCache, DenoiserInfo, SchedulerConfig, SchedulerKind, Size, StageKind,
    StepKinds, VaeInfo,
};
use sdxl_proto::{
    FILE_DESCRIPTOR_SET, convert,
    v1::{
        self, DecodeRequest, DecodeResponse, DenoiseRequest, DenoiseResponse, DenoiseResult, EncodeRequest,
        EncodeResponse, GetStageRequest, GetStageResponse,
        denoise_response::Event,
        denoiser_service_server::{DenoiserService, DenoiserServiceServer},
        get_stage_response::Details,
        stage_service_server::{StageService, StageServiceServer},
        text_encoder_service_server::{TextEncoderService, TextEncoderServiceServer},
        vae_service_server::{VaeService, VaeServiceServer},
    },
};
use sdxl_runtime::{
    Health, Shutdown,
    server::{self, Server},
};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, mpsc as std_mpsc},
    time::Duration,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, metadata::MetadataMap, service::Routes};

pub(crate) const CROSS_ATTENTION_DIM: u32 = 64;
pub(crate) const REFINER_CROSS_ATTENTION_DIM: u32 = 40;
pub(crate) const POOLED_PROJECTION_DIM: u32 = 32;
/// A prompt is cut off after this word.
pub(crate) const CUT: &str = "CUT";

/// What a fake answers, before it may be spoilt.
pub(crate) enum Reply<'a> {
    Encode(&'a mut EncodeResponse),
    Denoise(&'a mut DenoiseResult),
    Decode(&'a mut DecodeResponse),
}

/// What befalls a denoising run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing is heard of it any more, and the stage says that its device has ended no step for a minute.
    Hang,
    /// It ends with UNAVAILABLE, after a checkpoint.
    HandOver,
    /// It ends with UNAVAILABLE.
    Stop,
}

/// How a fake behaves.
#[derive(Clone)]
pub(crate) struct Script {
    pub info: GetStageResponse,
    /// In place of working.
    pub refuse: Option<Status>,
    /// Of a denoising step, or of a whole job of another stage.
    pub step_time: Duration,
    /// What befalls a denoising run after so many steps.
    pub fate: Option<(u32, Fate)>,
    /// Whether it tells of several steps in one, as it is asked to.
    pub together: bool,
    pub spoil: fn(Reply<'_>),
}

impl Script {
    pub(crate) fn new(stage: StageKind) -> Self {
        let info = GetStageResponse {
            stage: v1::Stage::from(stage).into(),
            model: "tiny".into(),
            revision: format!("{stage}-1"),
            device: "cpu".into(),
            dtype: v1::DType::F32.into(),
            details: Some(details(stage)),
        };
        Self { info, refuse: None, step_time: Duration::ZERO, fate: None, together: false, spoil: |_| {} }
    }

    pub(crate) fn step_time(self, step_time: Duration) -> Self {
        Self { step_time, ..self }
    }

    pub(crate) fn fate(self, steps: u32, fate: Fate) -> Self {
        Self { fate: Some((steps, fate)), ..self }
    }

    pub(crate) fn together(self) -> Self {
        Self { together: true, ..self }
    }

    pub(crate) fn refuse(self, status: Status) -> Self {
        Self { refuse: Some(status), ..self }
    }

    pub(crate) fn spoil(self, spoil: fn(Reply<'_>)) -> Self {
        Self { spoil, ..self }
    }

    pub(crate) fn revision(mut self, revision: &str) -> Self {
        self.info.revision = revision.into();
        self
    }
}

fn details(stage: StageKind) -> Details {
    let conditioner = |cross_attention_dim, force_zeros| ConditionerInfo {
        num_hidden_layers: 4,
        cross_attention_dim,
        pooled_projection_dim: POOLED_PROJECTION_DIM,
        force_zeros_for_empty_prompt: force_zeros,
    };
    let denoiser = |cross_attention_dim, requires_aesthetics_score| DenoiserInfo {
        latent_channels: 4,
        sample_size: 16,
        requires_aesthetics_score,
        cross_attention_dim,
        pooled_projection_dim: POOLED_PROJECTION_DIM,
        scheduler: SchedulerConfig {
            beta_start: Some(0.00085),
            beta_end: Some(0.012),
            steps_offset: Some(1),
            ..SchedulerConfig::new(SchedulerKind::Euler)
        },
        training_buckets: vec![Size::new(128, 128), Size::new(96, 160)],
        cache_branch_costs: vec![0.25, 0.5],
        guidance_steps: true,
    };
    match stage {
        StageKind::TextEncoder => Details::TextEncoder(v1::TextEncoderDetails {
            conditioners: vec![
                convert::conditioner_details(Conditioner::Base, &conditioner(CROSS_ATTENTION_DIM, true)),
                convert::conditioner_details(
                    Conditioner::Refiner,
                    &conditioner(REFINER_CROSS_ATTENTION_DIM, false),
                ),
            ],
        }),
        StageKind::BaseUnet => Details::Denoiser((&denoiser(CROSS_ATTENTION_DIM, false)).into()),
        StageKind::Refiner => Details::Denoiser((&denoiser(REFINER_CROSS_ATTENTION_DIM, true)).into()),
        StageKind::Vae => Details::Vae((&VaeInfo { latent_channels: 4, vae_scale_factor: 8 }).into()),
    }
}

/// A request as a fake received it.
pub(crate) struct Seen<T> {
    pub request: T,
    pub metadata: MetadataMap,
}

/// What a fake noted.
#[derive(Default)]
pub(crate) struct Log {
    pub encodes: Mutex<Vec<Seen<EncodeRequest>>>,
    pub denoises: Mutex<Vec<Seen<DenoiseRequest>>>,
    pub decodes: Mutex<Vec<Seen<DecodeRequest>>>,
    /// Requests at work.
    pub running: watch::Sender<usize>,
}

struct Running(Arc<Log>);

impl Running {
    fn new(log: &Arc<Log>) -> Self {
        log.running.send_modify(|n| *n += 1);
        Self(Arc::clone(log))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.send_modify(|n| *n -= 1);
    }
}

/// A stage with a socket.
pub(crate) struct Fake {
    pub address: SocketAddr,
    pub log: Arc<Log>,
    pub health: Health,
    runtime: Option<Runtime>,
}

impl Fake {
    pub(crate) fn start(script: Script) -> Self {
        Self::start_at(script, "127.0.0.1:0".parse().unwrap())
    }

    pub(crate) fn start_at(script: Script, address: SocketAddr) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let log = Arc::new(Log::default());
        let stage = Stage { script, log: Arc::clone(&log) };
        let (sender, receiver) = std_mpsc::channel();
        runtime.spawn(async move {
            // The sockets of one that was killed here close a moment later. Who waits below limits it.
            let listener = loop {
                match server::bind(address).await {
                    Ok(listener) => break listener,
                    Err(_) => sleep(Duration::from_millis(10)).await,
                }
            };
            let health = Health::new(&["sdxl.v1.StageService"]).await;
            health.set_serving().await;
            sender.send((listener.local_addr().unwrap(), health.clone())).unwrap();
            let server = Server {
                listener,
                health,
                descriptors: &[FILE_DESCRIPTOR_SET],
                drain_timeout: Duration::ZERO,
                shutdown: Shutdown::new(),
            };
            let routes = Routes::new(StageServiceServer::new(stage.clone()))
                .add_service(TextEncoderServiceServer::new(stage.clone()))
                .add_service(DenoiserServiceServer::new(stage.clone()))
                .add_service(VaeServiceServer::new(stage));
            server::serve(server, routes).await.unwrap();
        });
        let (address, health) = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        Self { address, log, health, runtime: Some(runtime) }
    }

    /// Closes every socket at once.
    pub(crate) fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    /// Waits until so many requests are at work.
    pub(crate) async fn running(&self, count: usize) {
        let mut running = self.log.running.subscribe();
        tokio::time::timeout(Duration::from_secs(5), running.wait_for(|n| *n == count))
            .await
            .unwrap_or_else(|_| panic!("{} at work, not {count}", *self.log.running.borrow()))
            .unwrap();
    }

    pub(crate) fn denoises(&self) -> usize {
        self.log.denoises.lock().unwrap().len()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone)]
struct Stage {
    script: Script,
    log: Arc<Log>,
}

impl Stage {
    /// Notes the request and works for one step.
    async fn work<T>(&self, seen: &Mutex<Vec<Seen<T>>>, request: Request<T>) -> Result<(), Status> {
        let (metadata, _, request) = request.into_parts();
        seen.lock().unwrap().push(Seen { request, metadata });
        if let Some(status) = &self.script.refuse {
            return Err(status.clone());
        }
        let _running = Running::new(&self.log);
        sleep(self.script.step_time).await;
        Ok(())
    }
}

pub(crate) fn tensor(shape: &[u32], fill: u8) -> v1::Tensor {
    let values: u32 = shape.iter().product();
    let data = vec![fill; values as usize * 4].into();
    v1::Tensor { shape: shape.to_vec(), dtype: v1::DType::F32.into(), data }
}

pub(crate) fn time(milliseconds: u64) -> Option<prost_types::Duration> {
    Some(convert::duration(Duration::from_millis(milliseconds)))
}

fn cut(prompt: &str) -> String {
    prompt.split_once(CUT).map(|(_, lost)| lost.to_owned()).unwrap_or_default()
}

#[tonic::async_trait]
impl StageService for Stage {
    async fn get_stage(&self, _: Request<GetStageRequest>) -> Result<Response<GetStageResponse>, Status> {
        Ok(Response::new(self.script.info.clone()))
    }

    async fn get_load(
        &self,
        _: Request<v1::GetLoadRequest>,
    ) -> Result<Response<v1::GetLoadResponse>, Status> {
        let hangs = matches!(self.script.fate, Some((_, Fate::Hang)));
        let since_progress = if hangs { time(60_000) } else { time(1) };
        Ok(Response::new(v1::GetLoadResponse { queued: 0, active: 1, since_progress, busy_time: None }))
    }
}

#[tonic::async_trait]
impl TextEncoderService for Stage {
    /// Text i is embedded as bytes of i + 1.
    async fn encode(&self, request: Request<EncodeRequest>) -> Result<Response<EncodeResponse>, Status> {
        let inputs = request.get_ref().inputs.clone();
        self.work(&self.log.encodes, request).await?;
        let embeddings = (1_u8..).zip(&inputs).map(|(fill, input)| {
            let width = match input.conditioner() {
                v1::Conditioner::Refiner => REFINER_CROSS_ATTENTION_DIM,
                _ => CROSS_ATTENTION_DIM,
            };
            v1::TextEmbedding {
                prompt_embeds: Some(tensor(&[77, width], fill)),
                pooled_prompt_embeds: Some(tensor(&[POOLED_PROJECTION_DIM], fill)),
                prompt_truncated: cut(&input.prompt),
                prompt_2_truncated: cut(&input.prompt_2),
            }
        });
        let mut answer =
            EncodeResponse { embeddings: embeddings.collect(), queue_time: time(1), run_time: time(2) };
        (self.script.spoil)(Reply::Encode(&mut answer));
        Ok(Response::new(answer))
    }
}

#[tonic::async_trait]
impl DenoiserService for Stage {
    type DenoiseStream = ReceiverStream<Result<DenoiseResponse, Status>>;

    /// Latents are filled with the stage's number on the wire.
    async fn denoise(
        &self,
        request: Request<DenoiseRequest>,
    ) -> Result<Response<Self::DenoiseStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.log.denoises.lock().unwrap().push(Seen { request: request.clone(), metadata });
        if let Some(status) = &self.script.refuse {
            return Err(status.clone());
        }
        let (sender, receiver) = mpsc::channel(4);
        let running = Running::new(&self.log);
        let script = self.script.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = steps(&script, &request, &sender) => {}
                () = sender.closed() => {}
            }
            drop(running);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn steps(
    script: &Script,
    request: &DenoiseRequest,
    sender: &mpsc::Sender<Result<DenoiseResponse, Status>>,
) {
    let send = async |event| {
        let _ = sender.send(Ok(DenoiseResponse { event: Some(event) })).await;
    };
    let checkpoint = |step| {
        Event::Checkpoint(v1::DenoiseCheckpoint {
            revision: script.info.revision.clone(),
            step,
            latents: Some(latents(request, u8::try_from(step).unwrap())),
            sampler_history: Vec::new(),
        })
    };
    send(Event::Started(v1::DenoiseStarted { queue_time: time(1) })).await;
    let first = match &request.start {
        Some(v1::denoise_request::Start::Checkpoint(checkpoint)) => checkpoint.step,
        _ => request.begin_step,
    };
    let mut untold = 0;
    for step in first..request.end_step {
        sleep(script.step_time).await;
        match script.fate {
            Some((steps, Fate::Hang)) if steps == step - first => std::future::pending().await,
            Some((steps, fate)) if steps == step - first => {
                if fate == Fate::HandOver {
                    send(checkpoint(step)).await;
                }
                let _ = sender.send(Err(Status::unavailable("this stage is shutting down"))).await;
                return;
            }
            _ => {}
        }
        untold += 1;
        let is_due = !script.together || untold >= request.progress_interval;
        if is_due || step + 1 == request.end_step {
            send(Event::Progress(v1::DenoiseProgress {
                step,
                timestep: 1.0,
                step_time: Some(convert::duration(script.step_time.max(Duration::from_millis(1)))),
                batch_evaluations: 1,
                // As those say that know of single steps only.
                steps: if script.together { std::mem::take(&mut untold) } else { 0 },
                batch_work: 0.0,
            }))
            .await;
        }
        let is_due = kinds(request).is_checkpoint(step + 1, request.checkpoint_interval);
        if is_due && step + 1 < request.end_step {
            send(checkpoint(step + 1)).await;
        }
    }
    let latents = Some(latents(request, u8::try_from(script.info.stage).unwrap()));
    let mut result = DenoiseResult { latents, queue_time: time(1), run_time: time(5) };
    (script.spoil)(Reply::Denoise(&mut result));
    send(Event::Result(result)).await;
}

fn latents(request: &DenoiseRequest, fill: u8) -> v1::Tensor {
    let size = request.size.unwrap();
    tensor(&[4, size.height / 8, size.width / 8], fill)
}

#[tonic::async_trait]
impl VaeService for Stage {
    async fn decode(&self, request: Request<DecodeRequest>) -> Result<Response<DecodeResponse>, Status> {
        let asked = request.get_ref().clone();
        self.work(&self.log.decodes, request).await?;
        let latents = asked.latents.clone().unwrap();
        let mut answer = DecodeResponse {
            data: latents.data.slice(..8),
            media_type: convert::image_format(asked.image_format()).media_type().into(),
            width: latents.shape[2] * 8,
            height: latents.shape[1] * 8,
            queue_time: time(1),
            run_time: time(3),
        };
        (self.script.spoil)(Reply::Decode(&mut answer));
        Ok(Response::new(answer))
    }
}

/// How the steps of a request are done.
fn kinds(request: &DenoiseRequest) -> StepKinds {
    let guided = match &request.guidance_steps {
        _ if request.negative_conditioning.is_none() => 0..0,
        Some(steps) => steps.begin..steps.end,
        None => 0..u32::MAX,
    };
    let deep_cache = request.deep_cache.map(|cache| DeepCache {
        cache_interval: cache.cache_interval,
        cache_branch_id: cache.cache_branch_id,
    });
    StepKinds { begin_step: request.begin_step, guided, deep_cache }
}

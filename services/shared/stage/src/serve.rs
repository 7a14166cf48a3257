//! A stage's `main`: telemetry, listener, engine, services and an orderly end, in one call.

use crate::{
    args::StageArgs,
    engine::Engine,
    grpc::{DenoiserGrpc, InfoCell, StageInfoGrpc, TextEncoderGrpc, VaeGrpc},
    info::StageInfo,
    jobs::{DecodeJob, DenoiseEvent, DenoiseJob, EncodeJob, EncodedPicture, TextEmbedding},
    worker::{self, Load, Phase, WorkerHandle},
};
use anyhow::{Context, bail};
use candle_core::Tensor;
use sdxl_core::StageKind;
use sdxl_proto::{FILE_DESCRIPTOR_SET, MAX_MESSAGE_BYTES, v1};
use sdxl_runtime::{
    Health, Shutdown,
    metrics::catalogue,
    server::{self, Server},
    telemetry,
};
use std::{
    io::{self, Write},
    num::NonZeroUsize,
    process::ExitCode,
    thread,
    time::Instant,
};
use tokio::sync::oneshot;
use tonic::service::Routes;
use tracing::info;
use v1::{
    denoiser_service_server::DenoiserServiceServer, stage_service_server::StageServiceServer,
    text_encoder_service_server::TextEncoderServiceServer, vae_service_server::VaeServiceServer,
};

/// Threads for the network; computing has its own.
const ASYNC_THREADS: usize = 2;

/// Serves a text encoder until it is told to stop; `build` makes the engine, on the thread that will own it.
///
/// The process's standard output gets the line `listening http://ADDR`, or `https` with TLS, as soon as the address is bound; health says
/// SERVING once the engine is warm. What is wrong is told in one line on standard error.
pub fn text_encoder<const PORT: u16, E>(
    args: &StageArgs<PORT>,
    build: impl FnOnce() -> anyhow::Result<(E, StageInfo)> + Send + 'static,
) -> ExitCode
where
    E: Engine<Request = EncodeJob, Output = Vec<TextEmbedding>> + 'static,
{
    exit(StageKind::TextEncoder, args, build, |worker, _| Service::text_encoder(worker))
}

/// Serves a base UNet or a refiner, as [`text_encoder`] does a text encoder.
pub fn denoiser<const PORT: u16, E>(
    kind: StageKind,
    args: &StageArgs<PORT>,
    build: impl FnOnce() -> anyhow::Result<(E, StageInfo)> + Send + 'static,
) -> ExitCode
where
    E: Engine<Request = DenoiseJob, Event = DenoiseEvent, Output = Tensor> + 'static,
{
    exit(kind, args, build, Service::denoiser)
}

/// Serves an autoencoder, as [`text_encoder`] does a text encoder.
pub fn vae<const PORT: u16, E>(
    args: &StageArgs<PORT>,
    build: impl FnOnce() -> anyhow::Result<(E, StageInfo)> + Send + 'static,
) -> ExitCode
where
    E: Engine<Request = DecodeJob, Output = EncodedPicture> + 'static,
{
    exit(StageKind::Vae, args, build, |worker, _| Service::vae(worker))
}

/// A stage's own service beside `StageService`.
struct Service {
    name: &'static str,
    routes: Routes,
}

impl Service {
    fn text_encoder<E>(worker: WorkerHandle<E>) -> Self
    where
        E: Engine<Request = EncodeJob, Output = Vec<TextEmbedding>> + 'static,
    {
        let service = TextEncoderServiceServer::new(TextEncoderGrpc::new(worker));
        let service = service.max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self { name: v1::text_encoder_service_server::SERVICE_NAME, routes: Routes::new(service) }
    }

    fn denoiser<E>(worker: WorkerHandle<E>, info: InfoCell) -> Self
    where
        E: Engine<Request = DenoiseJob, Event = DenoiseEvent, Output = Tensor> + 'static,
    {
        let service = DenoiserServiceServer::new(DenoiserGrpc::new(worker, info));
        let service = service.max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self { name: v1::denoiser_service_server::SERVICE_NAME, routes: Routes::new(service) }
    }

    fn vae<E>(worker: WorkerHandle<E>) -> Self
    where
        E: Engine<Request = DecodeJob, Output = EncodedPicture> + 'static,
    {
        let service = VaeServiceServer::new(VaeGrpc::new(worker));
        let service = service.max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self { name: v1::vae_service_server::SERVICE_NAME, routes: Routes::new(service) }
    }
}

/// Runs a stage to its end and tells what was wrong.
fn exit<const PORT: u16, E: Engine + 'static>(
    kind: StageKind,
    args: &StageArgs<PORT>,
    build: impl FnOnce() -> anyhow::Result<(E, StageInfo)> + Send + 'static,
    service: impl FnOnce(WorkerHandle<E>, InfoCell) -> Service,
) -> ExitCode {
    let served = start(kind, args, build, service);
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let line = format!("{error:#}").replace('\n', " ");
            let _ = writeln!(io::stderr(), "error: {line}");
            ExitCode::FAILURE
        }
    }
}

fn start<const PORT: u16, E: Engine + 'static>(
    kind: StageKind,
    args: &StageArgs<PORT>,
    build: impl FnOnce() -> anyhow::Result<(E, StageInfo)> + Send + 'static,
    service: impl FnOnce(WorkerHandle<E>, InfoCell) -> Service,
) -> anyhow::Result<()> {
    let threads = args.threads;
    let build = move || {
        compute_on(threads)?;
        build()
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(ASYNC_THREADS).enable_all().build();
    runtime.context("cannot start the network threads")?.block_on(async {
        let _telemetry = telemetry::init(telemetry_name(kind), &args.telemetry)?;
        let shutdown = Shutdown::on_signals(args.server.stop_on_stdin_close)?;
        let listener = server::listen(&args.server).await?;
        let (worker, built) =
            worker::spawn(kind, args.worker, build).context("cannot start the device's thread")?;
        let info = InfoCell::default();
        observe(kind, &worker, &info);
        let service = service(worker.clone(), info.clone());
        let server = Server {
            listener,
            health: Health::new(&[service.name, v1::stage_service_server::SERVICE_NAME]).await,
            descriptors: &[FILE_DESCRIPTOR_SET],
            drain_timeout: args.server.drain_timeout,
            shutdown,
        };
        serve(server, service, worker, info, built).await
    })
}

/// Starts the threads that compute, as many as there are cores if nothing else is said. The calling thread, which owns the
/// device, is one of them: a step is hundreds of small parts, and to hand each to other threads and wait for them took nearly
/// as long as computing them.
fn compute_on(threads: Option<NonZeroUsize>) -> anyhow::Result<()> {
    let threads = threads.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    // While it waits for requests it computes for nobody else, so it is not the only one.
    let pool = if threads > 1 { pool.use_current_thread() } else { pool };
    pool.build_global().context("cannot start the computing threads")
}

/// Has what the worker has to do read whenever somebody asks for metrics.
fn observe<E: Engine + 'static>(kind: StageKind, worker: &WorkerHandle<E>, info: &InfoCell) {
    let stage = kind.name();
    let load = worker.load();
    catalogue::DEVICE_BUSY.observe(move |emit| emit.value(load.borrow().busy.as_secs_f64(), [stage.into()]));
    let load = worker.load();
    catalogue::DEVICE_RUNS.observe(move |emit| {
        let Load { queued, active, .. } = *load.borrow();
        for (state, count) in [("queued", queued), ("active", active)] {
            #[expect(clippy::cast_precision_loss, reason = "some hundreds at most")]
            emit.value(count as f64, [stage.into(), state.into()]);
        }
    });
    let info = info.clone();
    catalogue::DEVICE_MEMORY.observe(move |emit| {
        let is_cpu = info.get().is_ok_and(|info| info.device == "cpu");
        if let Some(bytes) = telemetry::resident_bytes().filter(|_| is_cpu) {
            emit.value(bytes, [stage.into(), "cpu".into()]);
        }
    });
}

fn telemetry_name(kind: StageKind) -> &'static str {
    match kind {
        StageKind::TextEncoder => "sdxl-text-encoder",
        StageKind::BaseUnet => "sdxl-base-unet",
        StageKind::Refiner => "sdxl-refiner",
        StageKind::Vae => "sdxl-vae",
    }
}

/// Serves until the shutdown or until the engine fails.
async fn serve<E: Engine>(
    server: Server,
    service: Service,
    worker: WorkerHandle<E>,
    info: InfoCell,
    built: oneshot::Receiver<anyhow::Result<StageInfo>>,
) -> anyhow::Result<()> {
    let (health, shutdown) = (server.health.clone(), server.shutdown.clone());
    let drain_timeout = server.drain_timeout;
    let routes =
        service.routes.add_service(StageServiceServer::new(StageInfoGrpc::new(info.clone(), worker.load())));
    let mut serving = Box::pin(server::serve(server, routes));

    let started = Instant::now();
    let said = tokio::select! {
        ended = &mut serving => return Ok(ended?),
        built = built => built.context("the device's thread ended")??,
    };
    let elapsed_ms = started.elapsed().as_millis();
    info!(model = said.model, revision = said.revision, dtype = ?said.dtype, elapsed_ms, "warm");
    info.set(said);
    health.set_serving().await;

    let mut load = worker.load();
    let end = async {
        tokio::select! {
            () = shutdown.triggered() => {}
            _ = load.wait_for(|load| load.phase == Phase::Failed) => shutdown.trigger(),
        }
        // Once more than the server does it, for a shutdown while the engine was getting warm.
        health.set_not_serving().await;
        worker.drain(Some(drain_timeout));
        Ok(())
    };
    tokio::try_join!(serving, end)?;
    if worker.load().borrow().phase == Phase::Failed {
        bail!("the engine panicked; its message is above");
    }
    Ok(())
}

#[cfg(test)]
mod tests;

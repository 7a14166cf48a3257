mod answers;

use super::InfoCell;
use crate::{
    engine::Engine,
    error::StageError,
    info::Details,
    jobs::{Checkpoint, DenoiseConditioning, DenoiseEvent, DenoiseJob, DenoiseStart},
    tensor,
    worker::WorkerHandle,
};
use answers::Answers;
use candle_core::Tensor;
use futures::stream::BoxStream;
use sdxl_core::{CropCoords, DeepCache, SchedulerConfig, Size};
use sdxl_proto::{
    convert::WireError,
    status::status,
    v1::{self, denoise_request::Start},
};
use std::fmt;
use tonic::{Request, Response, Status};

/// `DenoiserService` over an engine.
pub struct DenoiserGrpc<E: Engine> {
    worker: WorkerHandle<E>,
    info: InfoCell,
}

impl<E: Engine> DenoiserGrpc<E> {
    /// Serves the engine of `worker`, which `info` describes.
    #[must_use]
    pub fn new(worker: WorkerHandle<E>, info: InfoCell) -> Self {
        Self { worker, info }
    }

    /// A job that fits the denoiser, so that a wrong one takes no place in the queue.
    fn job(&self, message: v1::DenoiseRequest) -> Result<DenoiseJob, StageError> {
        let info = self.info.get()?;
        let job = job(message)?;
        if let Details::Denoiser(denoiser) = &info.details {
            job.check(denoiser, &info.revision)?;
        }
        Ok(job)
    }
}

impl<E: Engine> fmt::Debug for DenoiserGrpc<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DenoiserGrpc").field("info", &self.info).finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl<E> v1::denoiser_service_server::DenoiserService for DenoiserGrpc<E>
where
    E: Engine<Request = DenoiseJob, Event = DenoiseEvent, Output = Tensor> + 'static,
{
    /// Dropped by tonic when the caller resets the call or its connection ends, and with it the run's events, by which
    /// the worker knows.
    type DenoiseStream = BoxStream<'static, Result<v1::DenoiseResponse, Status>>;

    async fn denoise(
        &self,
        request: Request<v1::DenoiseRequest>,
    ) -> Result<Response<Self::DenoiseStream>, Status> {
        let (metadata, _, message) = request.into_parts();
        let terms = super::terms(&metadata).map_err(|error| status(&error))?;
        let (deadline, interval) = (terms.deadline, message.progress_interval);
        let events = self.job(message).and_then(|job| self.worker.submit(job, terms));
        let events = events.map_err(|error| status(&error))?;
        Ok(Response::new(Answers::<E>::new(events, deadline, interval).stream()))
    }
}

fn job(message: v1::DenoiseRequest) -> Result<DenoiseJob, StageError> {
    let size = message.size.ok_or_else(|| WireError::missing("size"))?;
    let scheduler = message.scheduler.as_ref().ok_or_else(|| WireError::missing("scheduler"))?;
    let conditioning_half =
        message.conditioning.as_ref().ok_or_else(|| WireError::missing("conditioning"))?;
    let negative = message.negative_conditioning.as_ref();
    Ok(DenoiseJob {
        size: size.into(),
        scheduler: SchedulerConfig::try_from(scheduler)?,
        num_inference_steps: message.num_inference_steps,
        begin_step: message.begin_step,
        end_step: message.end_step,
        guidance_scale: message.guidance_scale,
        guidance_rescale: message.guidance_rescale,
        conditioning: conditioning("conditioning", conditioning_half)?,
        negative_conditioning: negative
            .map(|half| conditioning("negative_conditioning", half))
            .transpose()?,
        start: start(message.start)?,
        checkpoint_interval: message.checkpoint_interval,
        guidance_steps: message.guidance_steps.map(|steps| steps.begin..steps.end),
        deep_cache: message.deep_cache.map(|cache| DeepCache {
            cache_interval: cache.cache_interval,
            cache_branch_id: cache.cache_branch_id,
        }),
    })
}

fn start(start: Option<Start>) -> Result<DenoiseStart, StageError> {
    match start {
        None => {
            let description = "absent; one of noise, latents and noised_latents is needed";
            Err(WireError::new("start", description).into())
        }
        Some(Start::Noise(v1::SeededNoise { seed, draws_before: 0 })) => Ok(DenoiseStart::Noise { seed }),
        Some(Start::Noise(v1::SeededNoise { draws_before, .. })) => {
            let description = format!("{draws_before} is not 0: pure noise is a generator's first draw");
            Err(WireError::new("noise.draws_before", description).into())
        }
        Some(Start::Latents(latents)) => Ok(DenoiseStart::Latents(tensor::from_wire("latents", &latents)?)),
        Some(Start::NoisedLatents(noised)) => {
            let field = "noised_latents.latents";
            let latents = noised.latents.as_ref().ok_or_else(|| WireError::missing(field))?;
            let noise = noised.noise.ok_or_else(|| WireError::missing("noised_latents.noise"))?;
            Ok(DenoiseStart::NoisedLatents {
                latents: tensor::from_wire(field, latents)?,
                seed: noise.seed,
                draws_before: noise.draws_before,
            })
        }
        Some(Start::Checkpoint(checkpoint)) => {
            let field = "checkpoint.latents";
            if !checkpoint.sampler_history.is_empty() {
                let found = checkpoint.sampler_history.len();
                let description = format!("{found} tensors; Euler and DDIM have none");
                return Err(WireError::new("checkpoint.sampler_history", description).into());
            }
            let latents = checkpoint.latents.as_ref().ok_or_else(|| WireError::missing(field))?;
            let latents = tensor::from_wire(field, latents)?;
            let (revision, step) = (checkpoint.revision, checkpoint.step);
            Ok(DenoiseStart::Checkpoint(Checkpoint { revision, step, latents }))
        }
    }
}

fn conditioning(prefix: &str, half: &v1::Conditioning) -> Result<DenoiseConditioning, StageError> {
    let read = |name: &str, message: &Option<v1::Tensor>| {
        message.as_ref().map(|m| tensor::from_wire(&format!("{prefix}.{name}"), m)).transpose()
    };
    let original_size =
        half.original_size.ok_or_else(|| WireError::missing(&format!("{prefix}.original_size")))?;
    Ok(DenoiseConditioning {
        prompt_embeds: read("prompt_embeds", &half.prompt_embeds)?,
        pooled_prompt_embeds: read("pooled_prompt_embeds", &half.pooled_prompt_embeds)?,
        original_size: original_size.into(),
        crops_coords_top_left: half.crops_coords_top_left.map(CropCoords::from).unwrap_or_default(),
        target_size: half.target_size.map(Size::from),
        aesthetic_score: half.aesthetic_score,
    })
}

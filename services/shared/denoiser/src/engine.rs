use candle_core::{DType, Device, Tensor};
use sdxl_core::{CropCoords, DenoiserInfo, Schedule, Size};
use sdxl_models::{
    ModelError,
    denoise::{Conditioning, DenoiseInputs, DenoiseRun, Start, TimeIds},
    guidance::Guidance,
    unet::Unet,
};
use sdxl_stage::{
    Engine, EngineError, Step,
    jobs::{DenoiseConditioning, DenoiseEvent, DenoiseJob, DenoiseStart, NUM_TOKENS},
};
use std::time::Instant;

/// A UNet that denoises step by step.
#[derive(Debug)]
pub struct DenoiserEngine {
    unet: Unet,
    info: DenoiserInfo,
}

/// A picture between two steps.
#[derive(Debug)]
pub struct DenoiserRun {
    run: DenoiseRun,
    /// Where the network is asked in each step of the whole schedule.
    timesteps: Vec<f32>,
}

impl DenoiserEngine {
    pub(crate) fn new(unet: Unet, info: DenoiserInfo) -> Self {
        Self { unet, info }
    }

    /// One half of the batch; absent tensors are zeros.
    fn conditioning(&self, half: DenoiseConditioning) -> candle_core::Result<Conditioning> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, self.unet.dtype(), &Device::Cpu);
        let (context, pooled) =
            (self.info.cross_attention_dim as usize, self.info.pooled_projection_dim as usize);
        let or_zeros = |tensor: Option<Tensor>, shape: &[usize]| tensor.map_or_else(|| zeros(shape), Ok);
        // Both halves in one format, so that they can be stacked whatever was sent.
        let in_format = |tensor: Tensor| tensor.to_dtype(self.unet.dtype());
        let (size, crop) = (half.original_size, half.crops_coords_top_left);
        let time_ids = match half.aesthetic_score.filter(|_| self.info.requires_aesthetics_score) {
            Some(score) => TimeIds::refiner(size, crop, score),
            None => TimeIds::base(size, crop, half.target_size.unwrap_or(size)),
        };
        Ok(Conditioning {
            prompt_embeds: in_format(or_zeros(half.prompt_embeds, &[NUM_TOKENS, context])?)?,
            pooled_prompt_embeds: in_format(or_zeros(half.pooled_prompt_embeds, &[pooled])?)?,
            time_ids,
        })
    }

    fn inputs(&self, job: DenoiseJob, schedule: Schedule) -> candle_core::Result<DenoiseInputs> {
        let [_, height, width] = job.latents_shape(&self.info);
        let guided = job.guidance_scale > 1.0;
        Ok(DenoiseInputs {
            schedule,
            steps: job.begin_step as usize..job.end_step as usize,
            start: match job.start {
                DenoiseStart::Noise { seed } => Start::Noise { seed, latent_size: [height, width] },
                DenoiseStart::Latents(latents) => Start::Latents(latents),
                DenoiseStart::NoisedLatents { latents, seed, draws_before } => {
                    Start::NoisedLatents { latents, seed, draws_before: draws_before as usize }
                }
            },
            positive: self.conditioning(job.conditioning)?,
            negative: job
                .negative_conditioning
                .filter(|_| guided)
                .map(|half| self.conditioning(half))
                .transpose()?,
            guidance: Guidance { scale: job.guidance_scale, rescale: job.guidance_rescale },
        })
    }

    /// One guided step at a small size with no text.
    fn warm_up_job(&self) -> DenoiseJob {
        let size = Size::new(64, 64);
        let conditioning = DenoiseConditioning {
            prompt_embeds: None,
            pooled_prompt_embeds: None,
            original_size: size,
            crops_coords_top_left: CropCoords::default(),
            target_size: Some(size),
            aesthetic_score: Some(6.0),
        };
        DenoiseJob {
            size,
            scheduler: self.info.scheduler.clone(),
            num_inference_steps: 1,
            begin_step: 0,
            end_step: 1,
            guidance_scale: 5.0,
            guidance_rescale: 0.0,
            conditioning: conditioning.clone(),
            negative_conditioning: Some(conditioning),
            start: DenoiseStart::Noise { seed: 0 },
        }
    }
}

impl Engine for DenoiserEngine {
    type Request = DenoiseJob;
    type Run = DenoiserRun;
    type Event = DenoiseEvent;
    type Output = Tensor;

    fn warm_up(&mut self) -> Result<(), EngineError> {
        let mut run = self.begin(self.warm_up_job())?;
        while let Step::Continue(_) = self.advance(&mut run)? {}
        Ok(())
    }

    fn begin(&mut self, job: DenoiseJob) -> Result<DenoiserRun, EngineError> {
        let schedule = job.check(&self.info)?;
        let timesteps = (0..schedule.len()).map(|i| schedule.timestep(i)).collect();
        let begin = job.begin_step;
        let inputs = self.inputs(job, schedule).map_err(EngineError::failed)?;
        let run = DenoiseRun::new(&self.unet, inputs).map_err(|error| match error {
            ModelError::NonFinite { what, step: None } => {
                EngineError::failed(format!("{what} is not finite before step {begin}"))
            }
            other => EngineError::failed(other),
        })?;
        Ok(DenoiserRun { run, timesteps })
    }

    fn advance(&mut self, run: &mut DenoiserRun) -> Result<Step<DenoiseEvent, Tensor>, EngineError> {
        let started = Instant::now();
        match run.run.step(&self.unet).map_err(EngineError::failed)? {
            Some(step) => Ok(Step::Continue(DenoiseEvent {
                step: u32::try_from(step).map_err(EngineError::failed)?,
                timestep: run.timesteps.get(step).copied().unwrap_or_default(),
                step_time: started.elapsed(),
            })),
            None => {
                let latents = run.run.latents().map_err(EngineError::failed)?;
                latents.to_dtype(DType::F32).map(Step::Done).map_err(EngineError::failed)
            }
        }
    }
}

#[cfg(test)]
mod tests;

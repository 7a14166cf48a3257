use candle_core::{DType, Device, Tensor};
use sdxl_core::{
    CropCoords, DenoiserInfo, Schedule, Size, StepKinds,
    size::{MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE},
};
use sdxl_models::{
    ModelError,
    denoise::{self, Ahead, Conditioning, DenoiseInputs, DenoiseRun, Start, Stepped, TimeIds},
    guidance::Guidance,
    unet::Unet,
};
use sdxl_stage::{
    BatchLimit, BatchLimits, Engine, EngineError, Step, StepOf, Took, Work, batch,
    jobs::{Checkpoint, DenoiseConditioning, DenoiseEvent, DenoiseJob, DenoiseStart, NUM_TOKENS, StepDone},
};
use std::{ops::Range, time::Duration};

/// So many times as long as a step may take, the first one takes only where the next does not fit either.
const NO_DOUBT: f64 = 3.0;

/// A UNet that denoises step by step.
#[derive(Debug)]
pub struct DenoiserEngine {
    unet: Unet,
    info: DenoiserInfo,
    revision: String,
    limits: BatchLimits,
    /// As given; what is missing is found when getting warm.
    given: Vec<BatchLimit>,
    /// What trying layers took while they were loaded.
    tried: Option<Duration>,
    /// Where the device is given a step before the last one is waited for.
    ahead: Option<Ahead>,
}

/// A picture between two steps.
#[derive(Debug)]
pub struct DenoiserRun {
    run: DenoiseRun,
    size: Size,
    kinds: StepKinds,
    /// What an evaluation from the cache costs of a whole one.
    cached: f32,
    checkpoint_interval: u32,
    /// Where the network is asked in each step of the whole schedule.
    timesteps: Vec<f32>,
    /// What it was advanced with last.
    batch: Option<Batch>,
    /// Of the last step that is known to be done, where the device is ahead.
    took: Option<Took>,
}

/// Steps that are done together.
#[derive(Clone, Copy, Debug)]
struct Batch {
    runs: usize,
    evaluations: u32,
    work: f64,
}

impl DenoiserEngine {
    pub(crate) fn new(
        (unet, tried): (Unet, Option<Duration>),
        info: DenoiserInfo,
        revision: String,
        given: Vec<BatchLimit>,
    ) -> Self {
        let limits = BatchLimits::new(&given, (Size::new(1, 1), 1));
        let ahead = unet.device().is_cuda().then(Ahead::default);
        Self { unet, info, revision, limits, given, tried, ahead }
    }

    /// One half of the batch; absent tensors are zeros, of so many tokens.
    fn conditioning(&self, half: DenoiseConditioning, tokens: usize) -> candle_core::Result<Conditioning> {
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
            prompt_embeds: in_format(or_zeros(half.prompt_embeds, &[tokens, context])?)?,
            pooled_prompt_embeds: in_format(or_zeros(half.pooled_prompt_embeds, &[pooled])?)?,
            time_ids,
        })
    }

    fn inputs(
        &self,
        job: DenoiseJob,
        schedule: Schedule,
        tokens: usize,
    ) -> candle_core::Result<DenoiseInputs> {
        let [_, height, width] = job.latents_shape(&self.info);
        let kinds = job.kinds();
        let guided = !kinds.guided.is_empty();
        let steps = job.first_step() as usize..job.end_step as usize;
        Ok(DenoiseInputs {
            schedule,
            steps,
            start: match job.start {
                DenoiseStart::Noise { seed } => Start::Noise { seed, latent_size: [height, width] },
                DenoiseStart::Latents(latents) | DenoiseStart::Checkpoint(Checkpoint { latents, .. }) => {
                    Start::Latents(latents)
                }
                DenoiseStart::NoisedLatents { latents, seed, draws_before } => {
                    Start::NoisedLatents { latents, seed, draws_before: draws_before as usize }
                }
            },
            positive: self.conditioning(job.conditioning, tokens)?,
            negative: job
                .negative_conditioning
                .filter(|_| guided)
                .map(|half| self.conditioning(half, tokens))
                .transpose()?,
            guidance: Guidance { scale: job.guidance_scale, rescale: job.guidance_rescale },
            kinds,
        })
    }

    /// A run; what it is not given is zeros, of so many tokens.
    fn begin_with(&self, job: DenoiseJob, tokens: usize) -> Result<DenoiserRun, EngineError> {
        let schedule = job.check(&self.info, &self.revision)?;
        let timesteps = (0..schedule.len()).map(|i| schedule.timestep(i)).collect();
        let (first, size, checkpoint_interval) = (job.first_step(), job.size, job.checkpoint_interval);
        let (kinds, cached) = (job.kinds(), job.cached_cost(&self.info));
        let inputs = self.inputs(job, schedule, tokens).map_err(EngineError::failed)?;
        let run = DenoiseRun::new(&self.unet, inputs).map_err(|error| match error {
            ModelError::NonFinite { what, step: None } => {
                EngineError::failed(format!("{what} is not finite before step {first}"))
            }
            other => failed(other),
        })?;
        Ok(DenoiserRun { run, size, kinds, cached, checkpoint_interval, timesteps, batch: None, took: None })
    }

    /// Guided steps with no text.
    fn warm_up_job(&self, size: Size, steps: u32) -> DenoiseJob {
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
            num_inference_steps: steps,
            begin_step: 0,
            end_step: steps,
            guidance_scale: 5.0,
            guidance_rescale: 0.0,
            conditioning: conditioning.clone(),
            negative_conditioning: Some(conditioning),
            start: DenoiseStart::Noise { seed: 0 },
            checkpoint_interval: 0,
            guidance_steps: None,
            deep_cache: None,
        }
    }

    /// Seconds that a guided step of so many pictures takes, the better of two; of one where that leaves no doubt.
    fn measure(&mut self, size: Size, pictures: usize, tokens: usize) -> Result<f64, EngineError> {
        let begin = |_| self.begin_with(self.warm_up_job(size, 2), tokens);
        let mut runs = (0..pictures).map(begin).collect::<Result<Vec<_>, _>>()?;
        let mut best = f64::INFINITY;
        while runs.iter().any(|run| !run.run.is_done()) {
            for result in self.advance(&mut runs.iter_mut().collect::<Vec<_>>()) {
                if let Step::Continue(DenoiseEvent::Step(done)) = result? {
                    best = best.min(done.step_time.as_secs_f64());
                }
            }
            // A device that has programs to load first may be quick after all; a processor is not.
            if best > NO_DOUBT * batch::LONGEST && best.is_finite() && self.unet.device().is_cpu() {
                break;
            }
        }
        Ok(best)
    }

    /// The next step of each, begun; and what became of it, or of the one before where the device is a step ahead.
    fn step(
        &mut self,
        runs: &mut [&mut DenoiserRun],
    ) -> Result<Vec<Result<Stepped, ModelError>>, ModelError> {
        let mut inner: Vec<_> = runs.iter_mut().map(|run| &mut run.run).collect();
        match &mut self.ahead {
            Some(ahead) => ahead.step(&self.unet, &mut inner),
            None => denoise::step_together(&self.unet, &mut inner),
        }
    }
}

impl DenoiserRun {
    /// Its steps that are not known to be done.
    fn left(&self) -> Range<u32> {
        let Range { start, end } = self.run.remaining();
        index(start)..index(end)
    }
}

/// A step's place; a schedule has at most 1001.
fn index(step: usize) -> u32 {
    u32::try_from(step).unwrap_or(u32::MAX)
}

fn failed(error: ModelError) -> EngineError {
    EngineError::failed(error)
}

impl Engine for DenoiserEngine {
    type Request = DenoiseJob;
    type Run = DenoiserRun;
    type Event = DenoiseEvent;
    type Output = Tensor;

    fn warm_up(&mut self) -> Result<(), EngineError> {
        if self.tried.is_some_and(|took| took.as_secs_f64() > NO_DOUBT * batch::LONGEST) {
            // Where a step would be too long to wait for, all but it.
            return self.begin_with(self.warm_up_job(Size::new(MIN_SIDE, MIN_SIDE), 2), 1).map(drop);
        }
        let side = (self.info.sample_size * SIDE_MULTIPLE).clamp(MIN_SIDE, MAX_SIDE);
        // A small size and one token are enough to find what does not work: a whole prompt's keys and values would take
        // longer than the step.
        let (mut trial, mut seconds) = (MIN_SIDE, self.measure(Size::new(MIN_SIDE, MIN_SIDE), 1, 1)?);
        if BatchLimits::are_given(&self.given) {
            return Ok(());
        }
        while trial < side && seconds < batch::LONGEST {
            trial = (2 * trial).min(side);
            seconds = self.measure(Size::new(trial, trial), 1, NUM_TOKENS)?;
        }
        // A device that is too slow for a picture of the usual size gains nothing by several.
        if seconds < batch::LONGEST {
            let size = Size::new(side, side);
            let found = batch::find(|pictures| self.measure(size, pictures, NUM_TOKENS))?;
            self.limits = BatchLimits::new(&self.given, (size, found));
        }
        Ok(())
    }

    fn begin(&mut self, job: DenoiseJob) -> Result<DenoiserRun, EngineError> {
        self.begin_with(job, NUM_TOKENS)
    }

    fn work(&self, run: &DenoiserRun) -> Work {
        Work::of_steps(run.size, &run.kinds, run.left(), run.cached)
    }

    fn max_batch(&self, size: Size) -> usize {
        self.limits.of(size)
    }

    fn advance(&mut self, runs: &mut [&mut DenoiserRun]) -> Vec<Result<StepOf<Self>, EngineError>> {
        let next: Vec<_> = runs.iter().map(|run| run.run.next().map(index)).collect();
        let begun = || runs.iter().zip(&next).filter_map(|(run, next)| Some((run, (*next)?)));
        let batch = Batch {
            runs: begun().count(),
            evaluations: begun().map(|(run, step)| run.kinds.evaluations(step)).sum(),
            work: begun().map(|(run, step)| run.kinds.cost(step, run.cached)).sum(),
        };
        let stepped = match self.step(runs) {
            Ok(stepped) => stepped,
            Err(error) => {
                let text = error.to_string();
                return runs.iter().map(|_| Err(EngineError::failed(text.clone()))).collect();
            }
        };
        let is_ahead = self.ahead.is_some();
        let tell = |(run, stepped): (&mut &mut DenoiserRun, Result<Stepped, ModelError>)| {
            let before = run.batch.replace(batch).filter(|_| is_ahead);
            match stepped.map_err(failed)? {
                Stepped::Begun => Ok(Step::Begun),
                Stepped::Done { step, took } => {
                    let Batch { runs, evaluations, work } = before.unwrap_or(batch);
                    run.took = is_ahead.then_some(Took { time: took, runs, evaluations: work });
                    Ok(Step::Continue(DenoiseEvent::Step(StepDone {
                        step: u32::try_from(step).map_err(EngineError::failed)?,
                        timestep: run.timesteps.get(step).copied().unwrap_or_default(),
                        step_time: took,
                        batch_evaluations: evaluations,
                        batch_work: work,
                    })))
                }
                Stepped::Over => {
                    let latents = run.run.latents().map_err(failed)?;
                    latents.to_dtype(DType::F32).map(Step::Done).map_err(EngineError::failed)
                }
            }
        };
        runs.iter_mut().zip(stepped).map(tell).collect()
    }

    fn took(&self, run: &DenoiserRun) -> Option<Took> {
        run.took
    }

    fn checkpoint(&mut self, run: &DenoiserRun, now: bool) -> Result<Option<DenoiseEvent>, EngineError> {
        let interval = run.checkpoint_interval;
        // After the last step comes the result itself.
        let is_due = || run.kinds.is_checkpoint(run.left().start, interval) && !run.run.is_done();
        if interval == 0 || !now && !is_due() {
            return Ok(None);
        }
        let (step, latents) = run.run.resumable().map_err(failed)?;
        Ok(Some(DenoiseEvent::Checkpoint(Checkpoint {
            revision: self.revision.clone(),
            step: u32::try_from(step).map_err(EngineError::failed)?,
            latents,
        })))
    }
}

#[cfg(test)]
mod tests;

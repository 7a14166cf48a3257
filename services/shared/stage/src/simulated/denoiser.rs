use super::{
    device::{Device, Present},
    digest::{Digest, Draws, Summed},
    info,
    profile::{DenoiserProfile, Profile},
};
use crate::{
    BatchLimit, Details, Engine, EngineError, StageInfo, Step, StepOf, Work,
    jobs::{Checkpoint, DenoiseConditioning, DenoiseEvent, DenoiseJob, DenoiseStart, StepDone},
};
use anyhow::Context;
use candle_core::{DType, Device as Memory, Tensor};
use sdxl_core::{Size, StageKind, StepKinds};
use std::{ops::Range, path::Path, thread, time::Duration};

/// Values that a step changes. More would only cost time: the latents after it depend on it all the same.
const CHANGED: usize = 16;

/// A base UNet or refiner that takes its time.
#[derive(Debug)]
pub struct SimulatedDenoiser {
    profile: DenoiserProfile,
    revision: String,
    given: Vec<BatchLimit>,
    device: Device,
}

/// A picture between two steps.
#[derive(Debug)]
pub struct SimulatedDenoiserRun {
    size: Size,
    steps: Range<u32>,
    kinds: StepKinds,
    /// What an evaluation from the cache costs of a whole one.
    cached: f32,
    checkpoint_interval: u32,
    timesteps: Vec<f32>,
    /// Of everything that a step's result depends on beside the latents.
    request: u64,
    shape: [usize; 3],
    latents: Summed,
    /// Where steps are cached, the last one that was whole and the latents before it.
    whole: Option<(u32, Summed)>,
    _present: Present,
}

impl SimulatedDenoiser {
    /// The stage `kind` by the profile in `path`. As many pictures share a step as `max_batch` says, or else the
    /// profile.
    ///
    /// # Errors
    /// Where the profile cannot be read or has no such stage; one line.
    pub fn load(kind: StageKind, path: &Path, max_batch: &[BatchLimit]) -> anyhow::Result<(Self, StageInfo)> {
        Self::new(kind, &Profile::open(path)?, max_batch).with_context(|| path.display().to_string())
    }

    /// The stage `kind` by `profile`.
    ///
    /// # Errors
    /// Where `profile` has no such stage.
    pub fn new(
        kind: StageKind,
        profile: &Profile,
        max_batch: &[BatchLimit],
    ) -> anyhow::Result<(Self, StageInfo)> {
        let own = profile.denoiser(kind).context("the profile has no [refiner]")?.clone();
        let info = info(kind, profile, Details::Denoiser(own.info.clone()));
        let revision = profile.revision.clone();
        let device = Device::new();
        Ok((Self { profile: own, revision, given: max_batch.to_vec(), device }, info))
    }
}

impl SimulatedDenoiserRun {
    fn step(
        &mut self,
        time: Duration,
        (batch_evaluations, batch_work): (u32, f64),
    ) -> Result<StepOf<SimulatedDenoiser>, EngineError> {
        if self.steps.is_empty() {
            return self.tensor().map(Step::Done).map_err(EngineError::failed);
        }
        let step = self.steps.start;
        self.steps.start += 1;
        if self.kinds.deep_cache.is_some() && self.kinds.is_whole(step) {
            self.whole = Some((step, self.latents.clone()));
        }
        let seed = Digest::of("step").number(self.request).number(step.into()).number(self.latents.sum());
        let mut draws = Draws::new(seed.finish());
        for _ in 0..CHANGED {
            let (place, value) = (draws.number(), draws.value());
            self.latents.set(place, value);
        }
        let timestep = self.timesteps.get(step as usize).copied().unwrap_or_default();
        let done = StepDone { step, timestep, step_time: time, batch_evaluations, batch_work };
        Ok(Step::Continue(DenoiseEvent::Step(done)))
    }

    /// The latents as they are, `[4, height / 8, width / 8]` in f32.
    fn tensor(&self) -> candle_core::Result<Tensor> {
        self.tensor_of(&self.latents)
    }

    fn tensor_of(&self, latents: &Summed) -> candle_core::Result<Tensor> {
        Tensor::from_slice(latents.values(), &self.shape, &Memory::Cpu)
    }

    fn work(&self) -> Work {
        Work::of_steps(self.size, &self.kinds, self.steps.clone(), self.cached)
    }
}

/// Everything that decides what a step makes of latents. Neither the seed, which is in the latents, nor where the run
/// begins and ends: a schedule in parts is the schedule.
fn request(job: &DenoiseJob) -> candle_core::Result<u64> {
    let guided = job.guidance_scale > 1.0;
    let digest = Digest::of("request")
        .text(&format!("{:?}", job.scheduler))
        .number(job.num_inference_steps.into())
        .number(job.guidance_scale.to_bits().into())
        .number(job.guidance_rescale.to_bits().into())
        .text(&format!("{:?} {:?}", job.guidance_steps.as_ref().filter(|_| guided), job.deep_cache));
    let digest = conditioning(digest, &job.conditioning)?;
    match job.negative_conditioning.as_ref().filter(|_| guided) {
        Some(negative) => conditioning(digest.text("negative"), negative),
        None => Ok(digest),
    }
    .map(Digest::finish)
}

fn conditioning(digest: Digest, half: &DenoiseConditioning) -> candle_core::Result<Digest> {
    let size = |size: Size| u64::from(size.height) << 32 | u64::from(size.width);
    let crop = half.crops_coords_top_left;
    let digest = digest
        .number(size(half.original_size))
        .number(u64::from(crop.top) << 32 | u64::from(crop.left))
        .number(half.target_size.map_or(0, size))
        .number(half.aesthetic_score.map_or(0, |score| score.to_bits().into()));
    digest.tensor(half.prompt_embeds.as_ref())?.tensor(half.pooled_prompt_embeds.as_ref())
}

/// The latents of the first step.
fn start(start: &DenoiseStart, count: usize) -> candle_core::Result<Vec<f32>> {
    let values = |latents: &Tensor| latents.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    match start {
        DenoiseStart::Noise { seed } => Ok(noise(*seed, 0).take(count).collect()),
        DenoiseStart::Latents(latents) | DenoiseStart::Checkpoint(Checkpoint { latents, .. }) => {
            values(latents)
        }
        DenoiseStart::NoisedLatents { latents, seed, draws_before } => {
            let noise = noise(*seed, *draws_before);
            Ok(values(latents)?.into_iter().zip(noise).map(|(value, noise)| value + noise).collect())
        }
    }
}

/// Not torch's noise, which costs as much as a hundred of these steps.
fn noise(seed: u64, draws_before: u32) -> impl Iterator<Item = f32> {
    let seed = Digest::of("noise").number(seed).number(draws_before.into()).finish();
    let mut draws = Draws::new(seed);
    std::iter::repeat_with(move || draws.value())
}

impl Engine for SimulatedDenoiser {
    type Request = DenoiseJob;
    type Run = SimulatedDenoiserRun;
    type Event = DenoiseEvent;
    type Output = Tensor;

    fn warm_up(&mut self) -> Result<(), EngineError> {
        thread::sleep(self.profile.warm_up);
        Ok(())
    }

    fn begin(&mut self, job: DenoiseJob) -> Result<SimulatedDenoiserRun, EngineError> {
        let schedule = job.check(&self.profile.info, &self.revision)?;
        let shape = job.latents_shape(&self.profile.info);
        let first = job.first_step();
        let latents = start(&job.start, shape.iter().product()).map_err(EngineError::failed)?;
        if !latents.iter().all(|value| value.is_finite()) {
            return Err(EngineError::failed(format!("latents is not finite before step {first}")));
        }
        Ok(SimulatedDenoiserRun {
            size: job.size,
            steps: first..job.end_step,
            kinds: job.kinds(),
            cached: job.cached_cost(&self.profile.info),
            checkpoint_interval: job.checkpoint_interval,
            timesteps: (0..schedule.len()).map(|i| schedule.timestep(i)).collect(),
            request: request(&job).map_err(EngineError::failed)?,
            shape,
            latents: Summed::new(latents),
            whole: None,
            _present: self.device.enter(),
        })
    }

    fn work(&self, run: &SimulatedDenoiserRun) -> Work {
        run.work()
    }

    fn max_batch(&self, size: Size) -> usize {
        BatchLimit::of(&self.given, size).unwrap_or_else(|| self.profile.max_batch(size))
    }

    fn advance(&mut self, runs: &mut [&mut SimulatedDenoiserRun]) -> Vec<Result<StepOf<Self>, EngineError>> {
        let going: Vec<_> = runs.iter().filter(|run| !run.steps.is_empty()).collect();
        let batch_evaluations = going.iter().map(|run| run.kinds.evaluations(run.steps.start)).sum();
        let batch_work = going.iter().map(|run| run.kinds.cost(run.steps.start, run.cached)).sum();
        // Where all that is left is to hand over what is done, the network is not asked.
        let time = match runs.first().filter(|_| batch_evaluations > 0) {
            Some(first) => self.device.work(self.profile.step(first.size, batch_work)),
            None => Duration::ZERO,
        };
        runs.iter_mut().map(|run| run.step(time, (batch_evaluations, batch_work))).collect()
    }

    fn checkpoint(
        &mut self,
        run: &SimulatedDenoiserRun,
        now: bool,
    ) -> Result<Option<DenoiseEvent>, EngineError> {
        let step = run.steps.start;
        let interval = run.checkpoint_interval;
        // After the last step comes the result itself.
        let is_due =
            interval > 0 && (now || run.kinds.is_checkpoint(step, interval) && !run.steps.is_empty());
        if !is_due {
            return Ok(None);
        }
        let (step, latents) = match &run.whole {
            Some((whole, latents)) if !run.steps.is_empty() && !run.kinds.is_whole(step) => (*whole, latents),
            _ => (step, &run.latents),
        };
        let latents = run.tensor_of(latents).map_err(EngineError::failed)?;
        Ok(Some(DenoiseEvent::Checkpoint(Checkpoint { revision: self.revision.clone(), step, latents })))
    }
}

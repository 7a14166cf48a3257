//! A denoiser's work, and what is wrong with it.

use super::NUM_TOKENS;
use crate::engine::EngineError;
use candle_core::{DType, Tensor};
use sdxl_core::{
    CropCoords, DeepCache, DenoiserInfo, Schedule, SchedulerConfig, Size, StepKinds, Violations,
    plan::MAX_CACHE_INTERVAL,
    size::{MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE},
};
use std::{ops::Range, time::Duration};

/// Noise to latents over a slice of a schedule. Tells [`DenoiseEvent::Step`] after each step, a
/// [`DenoiseEvent::Checkpoint`] after some, and ends with latents `[4, height / 8, width / 8]` in f32.
#[derive(Clone, Debug)]
pub struct DenoiseJob {
    /// Of the picture in pixels.
    pub size: Size,
    /// The schedule's kind and settings.
    pub scheduler: SchedulerConfig,
    /// Of the whole schedule.
    pub num_inference_steps: u32,
    /// First step to run.
    pub begin_step: u32,
    /// One past the last; the first itself where there is none, which gives what it would start from.
    pub end_step: u32,
    /// Guidance is on above 1.
    pub guidance_scale: f32,
    /// 0 for none.
    pub guidance_rescale: f32,
    /// The prompt's half.
    pub conditioning: DenoiseConditioning,
    /// The negative half; needed where guidance is on, unused where it is not.
    pub negative_conditioning: Option<DenoiseConditioning>,
    /// What the first step starts from.
    pub start: DenoiseStart,
    /// Steps from one checkpoint to the next; 0 for none.
    pub checkpoint_interval: u32,
    /// The steps of the whole schedule in which guidance is on; all where absent.
    pub guidance_steps: Option<Range<u32>>,
    /// Step caching.
    pub deep_cache: Option<DeepCache>,
}

/// What one half of the batch is conditioned by.
#[derive(Clone, Debug)]
pub struct DenoiseConditioning {
    /// `[77, cross_attention_dim]`; zeros where absent.
    pub prompt_embeds: Option<Tensor>,
    /// `[pooled_projection_dim]`; zeros where absent.
    pub pooled_prompt_embeds: Option<Tensor>,
    /// Size conditioning.
    pub original_size: Size,
    /// Crop conditioning.
    pub crops_coords_top_left: CropCoords,
    /// Size conditioning, for denoisers without an aesthetic score.
    pub target_size: Option<Size>,
    /// For denoisers that require one.
    pub aesthetic_score: Option<f32>,
}

/// What a denoiser's first step starts from. Latents are `[4, height / 8, width / 8]`.
#[derive(Clone, Debug)]
pub enum DenoiseStart {
    /// Pure noise: the first draw.
    Noise {
        /// Of torch's CPU generator.
        seed: u64,
    },
    /// Latents as they are.
    Latents(Tensor),
    /// Clean latents, to be noised to the first step's level.
    NoisedLatents {
        /// The clean latents.
        latents: Tensor,
        /// Of torch's CPU generator.
        seed: u64,
        /// Tensors of this shape that the generator has drawn before.
        draws_before: u32,
    },
    /// Where another run of the same request stood.
    Checkpoint(Checkpoint),
}

/// A run between two steps: any replica goes on from it as if nothing had happened, to the last bit.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Of the stage that made it; no other goes on with it.
    pub revision: String,
    /// The next step, in the whole schedule.
    pub step: u32,
    /// `[4, height / 8, width / 8]` in f32.
    pub latents: Tensor,
}

/// What a run tells on its way.
#[derive(Clone, Debug)]
pub enum DenoiseEvent {
    /// A step has been done.
    Step(StepDone),
    /// From here another replica can go on.
    Checkpoint(Checkpoint),
}

/// A step that has been done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepDone {
    /// Its index in the whole schedule, from 0.
    pub step: u32,
    /// Where the network was asked.
    pub timestep: f32,
    /// On the device, together with others.
    pub step_time: Duration,
    /// Evaluations of the network in it, of all pictures that took it together.
    pub batch_evaluations: u32,
    /// The same where one from a cache counts as the part of it that is computed.
    pub batch_work: f64,
}

/// The most draws that a generator may have to catch up on: each costs as much as the noise itself.
const MAX_DRAWS_BEFORE: u32 = 16;

impl DenoiseJob {
    /// Checks everything against the denoiser that is to run it, and makes the schedule.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] with all wrong fields, as the protocol names them.
    pub fn check(&self, denoiser: &DenoiserInfo, revision: &str) -> Result<Schedule, EngineError> {
        let mut wrong = Violations::default();
        for (field, side) in [("size.height", self.size.height), ("size.width", self.size.width)] {
            if !(MIN_SIDE..=MAX_SIDE).contains(&side) || side % SIDE_MULTIPLE != 0 {
                wrong.add(field, side, format!("a multiple of {SIDE_MULTIPLE} in {MIN_SIDE}..={MAX_SIDE}"));
            }
        }
        let schedule = self.check_schedule(&mut wrong);
        for (field, value) in
            [("guidance_scale", self.guidance_scale), ("guidance_rescale", self.guidance_rescale)]
        {
            if !(value.is_finite() && value >= 0.0) {
                wrong.add(field, value, "a finite number of at least 0");
            }
        }
        self.conditioning.check("conditioning", denoiser, &mut wrong);
        match &self.negative_conditioning {
            Some(negative) => negative.check("negative_conditioning", denoiser, &mut wrong),
            None if self.is_guided() => {
                let scale = self.guidance_scale;
                wrong.push("negative_conditioning", format!("absent; guidance_scale {scale} needs it"));
            }
            None => {}
        }
        self.check_cache(denoiser, &mut wrong);
        self.check_start(denoiser, revision, &mut wrong);
        match schedule {
            Some(schedule) if wrong.is_empty() => Ok(schedule),
            _ => Err(EngineError::Invalid(wrong.into_vec())),
        }
    }

    fn check_schedule(&self, wrong: &mut Violations) -> Option<Schedule> {
        let schedule = match Schedule::new(&self.scheduler, self.num_inference_steps) {
            Ok(schedule) => schedule,
            Err(error) => {
                let violation = error.into_violation();
                wrong.push(&violation.field, violation.description);
                return None;
            }
        };
        let (begin, end) = (self.begin_step as usize, self.end_step as usize);
        if end > schedule.len() {
            wrong.add("end_step", end, format!("in 0..={}, the schedule's length", schedule.len()));
        } else if begin > end {
            wrong.add("begin_step", begin, format!("in 0..={end}, which is end_step"));
        }
        if let Some(Range { start, end }) = self.guidance_steps {
            if end as usize > schedule.len() {
                let allowed = format!("in 0..={}, the schedule's length", schedule.len());
                wrong.add("guidance_steps.end", end, allowed);
            } else if start > end {
                wrong.add(
                    "guidance_steps.begin",
                    start,
                    format!("in 0..={end}, which is guidance_steps.end"),
                );
            }
        }
        Some(schedule)
    }

    fn check_cache(&self, denoiser: &DenoiserInfo, wrong: &mut Violations) {
        let Some(DeepCache { cache_interval, cache_branch_id }) = self.deep_cache else { return };
        if !(2..=MAX_CACHE_INTERVAL).contains(&cache_interval) {
            let allowed = format!("in 2..={MAX_CACHE_INTERVAL}");
            wrong.add("deep_cache.cache_interval", cache_interval, allowed);
        }
        let branches = denoiser.cache_branch_costs.len();
        if cache_branch_id as usize >= branches {
            let allowed = format!("in 0..{branches}, the network's skip connections");
            wrong.add("deep_cache.cache_branch_id", cache_branch_id, allowed);
        }
    }

    fn check_start(&self, denoiser: &DenoiserInfo, revision: &str, wrong: &mut Violations) {
        let wanted = self.latents_shape(denoiser);
        match &self.start {
            DenoiseStart::Noise { .. } => {
                if self.begin_step != 0 {
                    let begin = self.begin_step;
                    wrong.push("noise", format!("begin_step is {begin}; only step 0 starts from pure noise"));
                }
            }
            DenoiseStart::Latents(latents) => check_shape("latents", latents, &wanted, wrong),
            DenoiseStart::NoisedLatents { latents, draws_before, .. } => {
                check_shape("noised_latents.latents", latents, &wanted, wrong);
                if *draws_before > MAX_DRAWS_BEFORE {
                    let allowed = format!("in 0..={MAX_DRAWS_BEFORE}");
                    wrong.add("noised_latents.noise.draws_before", draws_before, allowed);
                }
            }
            DenoiseStart::Checkpoint(checkpoint) => {
                check_shape("checkpoint.latents", &checkpoint.latents, &wanted, wrong);
                if checkpoint.latents.dtype() != DType::F32 {
                    let dtype = checkpoint.latents.dtype().as_str();
                    wrong.push("checkpoint.latents.dtype", format!("{dtype} is not f32"));
                }
                let steps = self.begin_step..=self.end_step;
                if !steps.contains(&checkpoint.step) {
                    wrong.add(
                        "checkpoint.step",
                        checkpoint.step,
                        format!("in {steps:?}, the steps asked for"),
                    );
                } else if checkpoint.step < self.end_step && !self.kinds().is_whole(checkpoint.step) {
                    let allowed = "a step that is computed whole, as deep_cache and guidance_steps have it";
                    wrong.add("checkpoint.step", checkpoint.step, allowed);
                }
                if checkpoint.revision != revision {
                    let description = format!("{:?} is not this stage's {revision:?}", checkpoint.revision);
                    wrong.push("checkpoint.revision", description);
                }
            }
        }
    }

    /// How each step is done.
    #[must_use]
    pub fn kinds(&self) -> StepKinds {
        let all = if self.guidance_scale > 1.0 { 0..u32::MAX } else { 0..0 };
        let guided = match &self.guidance_steps {
            Some(steps) if !all.is_empty() => steps.clone(),
            _ => all,
        };
        StepKinds { begin_step: self.begin_step, guided, deep_cache: self.deep_cache }
    }

    /// What an evaluation from the cache costs of a whole one.
    #[must_use]
    pub fn cached_cost(&self, denoiser: &DenoiserInfo) -> f32 {
        let cost = |cache: DeepCache| denoiser.cache_branch_costs.get(cache.cache_branch_id as usize);
        self.deep_cache.and_then(cost).copied().unwrap_or(1.0)
    }

    /// Whether any of its steps is guided.
    fn is_guided(&self) -> bool {
        self.kinds().is_guided_in(self.begin_step..self.end_step)
    }

    /// The first step to run: that of the checkpoint where there is one.
    #[must_use]
    pub fn first_step(&self) -> u32 {
        match &self.start {
            DenoiseStart::Checkpoint(checkpoint) => checkpoint.step,
            _ => self.begin_step,
        }
    }

    /// `[channels, height / 8, width / 8]`.
    #[must_use]
    pub fn latents_shape(&self, denoiser: &DenoiserInfo) -> [usize; 3] {
        let side = |pixels: u32| (pixels / SIDE_MULTIPLE) as usize;
        [denoiser.latent_channels as usize, side(self.size.height), side(self.size.width)]
    }
}

impl DenoiseConditioning {
    fn check(&self, prefix: &str, denoiser: &DenoiserInfo, wrong: &mut Violations) {
        let context = [NUM_TOKENS, denoiser.cross_attention_dim as usize];
        if let Some(tensor) = &self.prompt_embeds {
            check_shape(&format!("{prefix}.prompt_embeds"), tensor, &context, wrong);
        }
        if let Some(tensor) = &self.pooled_prompt_embeds {
            let pooled = [denoiser.pooled_projection_dim as usize];
            check_shape(&format!("{prefix}.pooled_prompt_embeds"), tensor, &pooled, wrong);
        }
        if denoiser.requires_aesthetics_score {
            let field = format!("{prefix}.aesthetic_score");
            match self.aesthetic_score {
                None => wrong.push(&field, "absent; this denoiser requires one"),
                Some(score) if !score.is_finite() => wrong.add(&field, score, "a finite number"),
                Some(_) => {}
            }
        } else if self.target_size.is_none() {
            wrong.push(&format!("{prefix}.target_size"), "absent; this denoiser requires it");
        }
    }
}

fn check_shape(field: &str, tensor: &Tensor, wanted: &[usize], wrong: &mut Violations) {
    if tensor.dims() != wanted {
        wrong.push(&format!("{field}.shape"), format!("{:?} is not {wanted:?}", tensor.dims()));
    }
}

#[cfg(test)]
mod tests;

//! A request made into work: validated once, into a plan that cannot be wrong.

mod conditioning;
mod validate;

use crate::{
    error::{Classify, ErrorClass, FieldViolation, Violations},
    model::{Conditioner, DenoiserInfo, ModelInfo},
    request::{GenerateRequest, GuidanceInterval, ImageFormat, RefinerMode},
    schedule::Schedule,
    scheduler::SchedulerConfig,
    size::{CropCoords, Size},
    steps::{DeepCache, StepKinds, meet},
};
use std::ops::Range;
use thiserror::Error;

/// The most pictures in one request.
pub const MAX_IMAGES: u32 = 16;
/// The most steps of one schedule.
pub const MAX_STEPS: u32 = 1000;
/// Steps where a request names none, as in diffusers.
pub const DEFAULT_STEPS: u32 = 50;
/// `guidance_scale` where a request names none, as in diffusers.
pub const DEFAULT_GUIDANCE_SCALE: f32 = 5.0;
/// `cache_interval` where step caching is asked for and none is named, as in DeepCache's examples.
pub const DEFAULT_CACHE_INTERVAL: u32 = 3;
/// The greatest `cache_interval`, the greatest that its authors tried.
pub const MAX_CACHE_INTERVAL: u32 = 20;
/// The longest prompt in bytes. 77 tokens are far less.
pub const MAX_PROMPT_BYTES: usize = 32 * 1024;

/// The longest `request_id`.
pub const MAX_REQUEST_ID_BYTES: usize = 128;

/// Why a request has no plan.
#[derive(Debug, Error)]
pub enum PlanError {
    /// Fields are wrong.
    #[error("{}", crate::error::sentence(.0))]
    Invalid(Vec<FieldViolation>),
    /// A refiner was asked for and the cluster has none.
    #[error("refiner: this cluster serves no refiner; leave the field out")]
    NoRefiner,
}

impl Classify for PlanError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Invalid(_) => ErrorClass::InvalidRequest,
            Self::NoRefiner => ErrorClass::FailedPrecondition,
        }
    }

    fn violations(&self) -> &[FieldViolation] {
        match self {
            Self::Invalid(violations) => violations,
            Self::NoRefiner => &[],
        }
    }
}

/// All the work of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Of the pictures, in pixels.
    pub size: Size,
    /// Each distinct text, once.
    pub texts: Vec<TextPlan>,
    /// The base's part.
    pub base: DenoisePlan,
    /// The refiner's part.
    pub refiner: Option<DenoisePlan>,
    /// One for each picture.
    pub seeds: Vec<u64>,
    /// The pictures' encoding.
    pub image_format: ImageFormat,
    /// 1 to 100.
    pub quality: u32,
    /// The nearest training bucket, where `size` is none.
    pub nearest_bucket: Option<Size>,
}

/// A text to encode. Equal plans have equal embeddings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TextPlan {
    /// For whom.
    pub conditioner: Conditioner,
    /// For the first encoder.
    pub prompt: String,
    /// For the second encoder; empty for the same as the first.
    pub prompt_2: String,
    /// Layers left out.
    pub clip_skip: u32,
    /// The request's fields that the texts came from, for warnings.
    pub fields: (&'static str, &'static str),
}

/// A slice of a schedule on one denoiser, the same for each picture of a request but for the seed.
#[derive(Clone, Debug, PartialEq)]
pub struct DenoisePlan {
    /// The schedule's kind and settings.
    pub scheduler: SchedulerConfig,
    /// Of the whole schedule.
    pub num_inference_steps: u32,
    /// First step to run.
    pub begin_step: u32,
    /// One past the last.
    pub end_step: u32,
    /// What the first step starts from.
    pub start: Start,
    /// Guidance is on above 1.
    pub guidance_scale: f32,
    /// 0 for none.
    pub guidance_rescale: f32,
    /// The steps with guidance, where an interval is asked for.
    pub guidance_steps: Option<Range<u32>>,
    /// Step caching, and what an evaluation from the cache costs of a whole one.
    pub deep_cache: Option<(DeepCache, f32)>,
    /// The prompt's half.
    pub positive: ConditioningPlan,
    /// The negative half; present where guidance is on in any step that runs.
    pub negative: Option<ConditioningPlan>,
}

impl DenoisePlan {
    /// Steps that run.
    #[must_use]
    pub fn steps(&self) -> u32 {
        self.end_step - self.begin_step
    }

    /// How each step is done.
    #[must_use]
    pub fn kinds(&self) -> StepKinds {
        let guided = match (&self.negative, &self.guidance_steps) {
            (None, _) => 0..0,
            (Some(_), None) => 0..u32::MAX,
            (Some(_), Some(steps)) => steps.clone(),
        };
        let deep_cache = self.deep_cache.map(|(cache, _)| cache);
        StepKinds { begin_step: self.begin_step, guided, deep_cache }
    }

    /// What a replica's work is counted in: evaluations of the network in `steps`, one from the cache as the part of it that
    /// is computed, times `latent_pixels`. Each step is rounded by itself, so that parts come to the whole.
    #[must_use]
    pub fn work(&self, steps: Range<u32>, latent_pixels: u64) -> u64 {
        let kinds = self.kinds();
        let Some((_, cached)) = self.deep_cache else {
            return steps.map(|step| u64::from(kinds.evaluations(step)) * latent_pixels).sum();
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a picture has far fewer pixels than an f64 counts"
        )]
        let of_a_step = |step| (kinds.cost(step, cached) * latent_pixels as f64).round() as u64;
        steps.map(of_a_step).sum()
    }

    /// [`DenoisePlan::work`] of all its steps.
    #[must_use]
    pub fn whole_work(&self, latent_pixels: u64) -> u64 {
        self.work(self.begin_step..self.end_step, latent_pixels)
    }
}

/// What a denoiser's first step starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Pure noise of the picture's seed.
    Noise,
    /// The stage before's latents as they are.
    Latents,
    /// The stage before's latents, noised again from the same generator.
    NoisedLatents,
}

/// What one half of the batch is conditioned by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConditioningPlan {
    /// Index in [`Plan::texts`]; `None` for zeros.
    pub text: Option<usize>,
    /// Size conditioning.
    pub original_size: Size,
    /// Crop conditioning.
    pub crops_coords_top_left: CropCoords,
    /// Size conditioning, where there is no aesthetic score.
    pub target_size: Size,
    /// For denoisers that require one.
    pub aesthetic_score: Option<f32>,
}

impl Plan {
    /// Validates `request` against what the cluster serves. `violations` holds what is already known to be wrong (as
    /// unknown enum values); `draw_seed` is asked where the request has no seed.
    ///
    /// # Errors
    /// All wrong fields at once, or that there is no refiner.
    pub fn new(
        request: &GenerateRequest,
        model: &ModelInfo,
        mut violations: Violations,
        draw_seed: impl FnOnce() -> u64,
    ) -> Result<Self, PlanError> {
        validate::fields(request, model, &mut violations);
        let parts = Self::schedules(request, model, &mut violations);
        if !violations.is_empty() {
            return Err(PlanError::Invalid(violations.into_vec()));
        }
        if request.refiner.is_some() && model.refiner.is_none() {
            return Err(PlanError::NoRefiner);
        }
        let Some((base, refiner)) = parts else { return Err(PlanError::Invalid(Vec::new())) };

        let size = size_of(request, model);
        let mut texts = Vec::new();
        let halves = conditioning::base(request, model, size, base.is_guided(request), &mut texts);
        let base = base.into_plan(request, &model.base, halves);
        let refiner = match (refiner, &model.refiner) {
            (Some(slice), Some((conditioner, info))) => {
                let guided = slice.is_guided(request);
                let halves = conditioning::refiner(request, (conditioner, info), size, guided, &mut texts);
                Some(slice.into_plan(request, info, halves))
            }
            _ => None,
        };
        let seed = request.seed.unwrap_or_else(draw_seed);
        let buckets = model.training_buckets();
        Ok(Self {
            size,
            texts,
            base,
            refiner,
            seeds: (0..u64::from(request.num_images.max(1))).map(|i| seed.wrapping_add(i)).collect(),
            image_format: request.image_format,
            quality: if request.quality == 0 { 90 } else { request.quality },
            nearest_bucket: if buckets.contains(&size) { None } else { size.nearest(&buckets) },
        })
    }

    /// Steps of one picture over base and refiner.
    #[must_use]
    pub fn steps(&self) -> u32 {
        self.base.steps() + self.refiner.as_ref().map_or(0, DenoisePlan::steps)
    }

    /// Base and refiner slices of the schedule; notes what rules them out.
    fn schedules(
        request: &GenerateRequest,
        model: &ModelInfo,
        violations: &mut Violations,
    ) -> Option<(Slice, Option<Slice>)> {
        let steps = or_default(request.num_inference_steps, DEFAULT_STEPS);
        let base = Slice::whole(&model.base.scheduler, request, steps, "num_inference_steps", violations);
        if let (Some((base, schedule)), Some(interval)) = (&base, request.guidance_interval)
            && base.guidance_steps.as_ref().is_some_and(Range::is_empty)
        {
            let ([start, stop], steps) = (interval.ends(), schedule.len());
            violations.push("guidance_interval", format!("{start}..{stop} of {steps} steps holds no step"));
        }
        let (Some(refiner), Some((_, info))) = (&request.refiner, &model.refiner) else {
            return base.map(|(slice, _)| (slice, None));
        };
        let field = if refiner.num_inference_steps == 0 {
            "num_inference_steps"
        } else {
            "refiner.num_inference_steps"
        };
        let steps = or_default(refiner.num_inference_steps, steps);
        let second = Slice::whole(&info.scheduler, request, steps, field, violations);
        let ((mut base, base_schedule), (mut second, schedule)) = (base?, second?);
        match refiner.mode.filter(RefinerMode::is_fraction)? {
            RefinerMode::DenoisingSplit(split) => {
                base.end_step = count(base_schedule.split(as_written(split)));
                second.begin_step = count(schedule.split(as_written(split)));
                second.start = Start::Latents;
            }
            RefinerMode::Strength(strength) => {
                second.begin_step = count(schedule.first_step_of_strength(steps, as_written(strength)));
                second.start = Start::NoisedLatents;
                if second.begin_step >= second.end_step {
                    violations.push(
                        "refiner.strength",
                        format!(
                            "{strength} of {steps} steps is less than one step; at least 1/{steps} is needed"
                        ),
                    );
                }
            }
        }
        Some((base, Some(second)))
    }
}

/// A [`DenoisePlan`] before its conditioning.
struct Slice {
    scheduler: SchedulerConfig,
    num_inference_steps: u32,
    guidance_steps: Option<Range<u32>>,
    begin_step: u32,
    end_step: u32,
    start: Start,
}

impl Slice {
    /// The whole of a schedule: the checkpoint's with the request's changes.
    fn whole(
        config: &SchedulerConfig,
        request: &GenerateRequest,
        num_inference_steps: u32,
        field: &str,
        violations: &mut Violations,
    ) -> Option<(Self, Schedule)> {
        let mut config = config.clone();
        if let Some(wanted) = request.scheduler {
            config.kind = wanted.kind.unwrap_or(config.kind);
            config.timestep_spacing = wanted.timestep_spacing.or(config.timestep_spacing);
            config.use_karras_sigmas = wanted.use_karras_sigmas.or(config.use_karras_sigmas);
        }
        if num_inference_steps > MAX_STEPS {
            return None; // already noted
        }
        let interval = request.guidance_interval.filter(GuidanceInterval::is_part);
        match Schedule::new(&config, num_inference_steps) {
            Ok(schedule) => Some((
                Self {
                    scheduler: config,
                    num_inference_steps,
                    guidance_steps: interval.map(|interval| guidance_steps(interval, &schedule)),
                    begin_step: 0,
                    end_step: count(schedule.len()),
                    start: Start::Noise,
                },
                schedule,
            )),
            Err(error) => {
                violations.push(field, error.into_violation().description);
                None
            }
        }
    }

    /// Whether guidance is on in any of its steps.
    fn is_guided(&self, request: &GenerateRequest) -> bool {
        let steps = self.guidance_steps.clone().unwrap_or(0..u32::MAX);
        guidance_scale(request) > 1.0 && meet(&steps, &(self.begin_step..self.end_step))
    }

    fn into_plan(
        self,
        request: &GenerateRequest,
        info: &DenoiserInfo,
        halves: conditioning::Halves,
    ) -> DenoisePlan {
        let cache = request.deep_cache.map(|wanted| DeepCache {
            cache_interval: or_default(wanted.cache_interval, DEFAULT_CACHE_INTERVAL),
            cache_branch_id: wanted.cache_branch_id,
        });
        let cost = |cache: &DeepCache| info.cache_branch_costs.get(cache.cache_branch_id as usize).copied();
        DenoisePlan {
            guidance_steps: self.guidance_steps,
            deep_cache: cache.map(|cache| (cache, cost(&cache).unwrap_or(1.0))),
            scheduler: self.scheduler,
            num_inference_steps: self.num_inference_steps,
            begin_step: self.begin_step,
            end_step: self.end_step,
            start: self.start,
            guidance_scale: guidance_scale(request),
            guidance_rescale: request.guidance_rescale.unwrap_or(0.0),
            positive: halves.positive,
            negative: halves.negative,
        }
    }
}

/// The steps of a guidance interval as diffusers counts them.
fn guidance_steps(interval: GuidanceInterval, schedule: &Schedule) -> Range<u32> {
    let [start, stop] = interval.ends().map(|part| count(schedule.step_at(as_written(part))));
    start..stop
}

/// The request's size, or the model's default side by side.
fn size_of(request: &GenerateRequest, model: &ModelInfo) -> Size {
    let default = model.default_size();
    Size::new(or_default(request.height, default.height), or_default(request.width, default.width))
}

fn guidance_scale(request: &GenerateRequest) -> f32 {
    request.guidance_scale.unwrap_or(DEFAULT_GUIDANCE_SCALE)
}

fn or_default(value: u32, default: u32) -> u32 {
    if value == 0 { default } else { value }
}

#[expect(clippy::cast_possible_truncation, reason = "a schedule has at most 1001 steps")]
fn count(steps: usize) -> u32 {
    steps as u32
}

/// The decimal fraction that the caller wrote. diffusers takes 0.7 as a double, and cuts 10 steps at 0.7 to 7; the
/// nearest f32 would cut to 6.
fn as_written(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

#[cfg(test)]
mod tests;

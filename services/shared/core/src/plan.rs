//! A request made into work: validated once, into a plan that cannot be wrong.

mod conditioning;
mod validate;

use crate::{
    error::{Classify, ErrorClass, FieldViolation, Violations},
    model::{Conditioner, ModelInfo},
    request::{GenerateRequest, ImageFormat, RefinerMode, SchedulerRequest},
    schedule::Schedule,
    scheduler::SchedulerConfig,
    size::{CropCoords, Size},
};
use thiserror::Error;

/// The most pictures in one request.
pub const MAX_IMAGES: u32 = 16;
/// The most steps of one schedule.
pub const MAX_STEPS: u32 = 1000;
/// Steps where a request names none, as in diffusers.
pub const DEFAULT_STEPS: u32 = 50;
/// `guidance_scale` where a request names none, as in diffusers.
pub const DEFAULT_GUIDANCE_SCALE: f32 = 5.0;
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
    /// The prompt's half.
    pub positive: ConditioningPlan,
    /// The negative half; present where guidance is on.
    pub negative: Option<ConditioningPlan>,
}

impl DenoisePlan {
    /// Steps that run.
    #[must_use]
    pub fn steps(&self) -> u32 {
        self.end_step - self.begin_step
    }

    /// Network evaluations a picture: what a replica's work is counted in.
    #[must_use]
    pub fn evaluations(&self) -> u64 {
        u64::from(self.steps()) * if self.negative.is_some() { 2 } else { 1 }
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
        let base = base.into_plan(request, conditioning::base(request, model, size, &mut texts));
        let refiner = match (refiner, &model.refiner) {
            (Some(slice), Some((conditioner, info))) => {
                let halves = conditioning::refiner(request, conditioner, info, size, &mut texts);
                Some(slice.into_plan(request, halves))
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
        let base =
            Slice::whole(&model.base.scheduler, request.scheduler, steps, "num_inference_steps", violations);
        let (Some(refiner), Some((_, info))) = (&request.refiner, &model.refiner) else {
            return base.map(|(slice, _)| (slice, None));
        };
        let field = if refiner.num_inference_steps == 0 {
            "num_inference_steps"
        } else {
            "refiner.num_inference_steps"
        };
        let steps = or_default(refiner.num_inference_steps, steps);
        let second = Slice::whole(&info.scheduler, request.scheduler, steps, field, violations);
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
    begin_step: u32,
    end_step: u32,
    start: Start,
}

impl Slice {
    /// The whole of a schedule: the checkpoint's with the request's changes.
    fn whole(
        config: &SchedulerConfig,
        request: Option<SchedulerRequest>,
        num_inference_steps: u32,
        field: &str,
        violations: &mut Violations,
    ) -> Option<(Self, Schedule)> {
        let mut config = config.clone();
        if let Some(wanted) = request {
            config.kind = wanted.kind.unwrap_or(config.kind);
            config.timestep_spacing = wanted.timestep_spacing.or(config.timestep_spacing);
            config.use_karras_sigmas = wanted.use_karras_sigmas.or(config.use_karras_sigmas);
        }
        if num_inference_steps > MAX_STEPS {
            return None; // already noted
        }
        match Schedule::new(&config, num_inference_steps) {
            Ok(schedule) => Some((
                Self {
                    scheduler: config,
                    num_inference_steps,
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

    fn into_plan(self, request: &GenerateRequest, halves: conditioning::Halves) -> DenoisePlan {
        DenoisePlan {
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

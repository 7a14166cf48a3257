//! Noise schedules as diffusers computes them: timesteps, sigmas and the coefficients of each step.
//!
//! A schedule is numbers only. Whoever owns the latents applies them: scale the input by [`Schedule::input_scale`], ask
//! the network at [`Schedule::timestep`], then combine by [`Schedule::step`]. All formulas are those of diffusers
//! 0.42; sums run in double precision and are rounded to f32 where diffusers stores f32.

mod betas;
mod ddim;
mod euler;
mod spacing;

use crate::{
    error::{Classify, ErrorClass, FieldViolation},
    scheduler::{SchedulerConfig, SchedulerKind},
};
use thiserror::Error;

/// Why there is no schedule for a request.
#[derive(Debug, Error)]
#[error("{}: {}", .0.field, .0.description)]
pub struct ScheduleError(FieldViolation);

impl ScheduleError {
    fn new(field: &str, description: String) -> Self {
        Self(FieldViolation { field: field.to_owned(), description })
    }

    /// The field that rules the schedule out, and why.
    #[must_use]
    pub fn into_violation(self) -> FieldViolation {
        self.0
    }
}

impl Classify for ScheduleError {
    fn class(&self) -> ErrorClass {
        ErrorClass::InvalidRequest
    }

    fn violations(&self) -> &[FieldViolation] {
        std::slice::from_ref(&self.0)
    }
}

/// How the next sample follows from this one and the network's output:
/// `sample * self.sample + model_output * self.model_output`, plus the clipped part where there is one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepCoefficients {
    /// Factor of the sample.
    pub sample: f32,
    /// Factor of the network's output.
    pub model_output: f32,
    /// DDIM with `clip_sample`: what passes through the clip.
    pub clipped: Option<ClippedOriginal>,
}

/// `weight * clamp(sample * self.sample + model_output * self.model_output, -range, range)`: the predicted clean
/// sample, clipped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClippedOriginal {
    /// Factor of the sample.
    pub sample: f32,
    /// Factor of the network's output.
    pub model_output: f32,
    /// The clip's bound on both sides.
    pub range: f32,
    /// Factor of the clipped sum in the next sample.
    pub weight: f32,
}

/// How clean latents and unit noise mix at one step: `latents * signal + noise * self.noise`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseLevel {
    /// Factor of the clean latents.
    pub signal: f32,
    /// Factor of unit normal noise.
    pub noise: f32,
}

#[derive(Clone, Debug)]
struct Step {
    timestep: f32,
    input_scale: f32,
    level: NoiseLevel,
    coefficients: StepCoefficients,
}

/// A noise schedule of a number of steps, from pure noise to a picture.
#[derive(Clone, Debug)]
pub struct Schedule {
    steps: Vec<Step>,
    init_noise_sigma: f32,
    num_train_timesteps: u32,
}

impl Schedule {
    /// The schedule of `num_inference_steps` steps that `config` describes.
    ///
    /// # Errors
    /// Where the count is 0 or over the training schedule's length, or diffusers itself has no such schedule (a DDIM
    /// schedule that would start after the last training timestep).
    pub fn new(config: &SchedulerConfig, num_inference_steps: u32) -> Result<Self, ScheduleError> {
        let train = config.train_timesteps();
        if num_inference_steps == 0 || num_inference_steps > train {
            let description =
                format!("{num_inference_steps} is not in 1..={train}, the checkpoint's training timesteps");
            return Err(ScheduleError::new("num_inference_steps", description));
        }
        let alphas_cumprod = betas::alphas_cumprod(config);
        let (steps, init_noise_sigma) = match config.kind {
            SchedulerKind::Euler => euler::steps(config, num_inference_steps, &alphas_cumprod),
            SchedulerKind::Ddim => (ddim::steps(config, num_inference_steps, &alphas_cumprod)?, 1.0),
        };
        Ok(Self { steps, init_noise_sigma, num_train_timesteps: train })
    }

    /// How many steps there are. A few counts with trailing spacing give one more than asked for, as in diffusers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there are no steps; never true.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Unit noise times this is what the first step starts from.
    #[must_use]
    pub fn init_noise_sigma(&self) -> f32 {
        self.init_noise_sigma
    }

    /// The timestep at which the network is asked in step `i`.
    ///
    /// # Panics
    /// Where `i` is not below [`Schedule::len`], as do the three below.
    #[must_use]
    pub fn timestep(&self, i: usize) -> f32 {
        self.steps[i].timestep
    }

    /// The network's input in step `i` is the sample times this.
    #[must_use]
    pub fn input_scale(&self, i: usize) -> f32 {
        self.steps[i].input_scale
    }

    /// How to noise clean latents so that step `i` can start from them (diffusers' `add_noise`).
    #[must_use]
    pub fn noise_level(&self, i: usize) -> NoiseLevel {
        self.steps[i].level
    }

    /// How step `i` makes the next sample.
    #[must_use]
    pub fn step(&self, i: usize) -> StepCoefficients {
        self.steps[i].coefficients
    }

    /// Where an ensemble of experts hands over: the number of steps whose timestep is at or above the cutoff that
    /// diffusers derives from `denoising_end` of the base and `denoising_start` of the refiner, a fraction in 0..1.
    #[must_use]
    pub fn split(&self, denoising_split: f64) -> usize {
        let train = f64::from(self.num_train_timesteps);
        let cutoff = (train - denoising_split * train).round_ties_even();
        self.steps.iter().filter(|s| f64::from(s.timestep) >= cutoff).count()
    }

    /// The first step of those behind `part` of all, a fraction in 0..=1, as diffusers' guiders count them.
    #[must_use]
    pub fn step_at(&self, part: f64) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "0 to 1001, cut as Python's int()"
        )]
        let step = (part * self.len() as f64) as usize;
        step.min(self.len())
    }

    /// The first of the last steps that SDEdit at `strength`, a fraction in 0..1, runs of `num_inference_steps`.
    #[must_use]
    pub fn first_step_of_strength(&self, num_inference_steps: u32, strength: f64) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 1000, cut as Python's int()"
        )]
        let run = ((f64::from(num_inference_steps) * strength) as u32).min(num_inference_steps);
        (num_inference_steps - run) as usize
    }
}

#[cfg(test)]
mod tests;

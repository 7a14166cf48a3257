//! diffusers' `DDIMScheduler` with eta 0 (Song et al. 2021, equation 12).

use super::{ClippedOriginal, NoiseLevel, ScheduleError, Step, StepCoefficients, spacing};
use crate::scheduler::{PredictionType, SchedulerConfig, TimestepSpacing};

pub(super) fn steps(
    config: &SchedulerConfig,
    num_inference_steps: u32,
    alphas_cumprod: &[f32],
) -> Result<Vec<Step>, ScheduleError> {
    let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Leading);
    let train = config.train_timesteps();
    let offset = config.steps_offset.unwrap_or(0);
    let timesteps = spacing::timesteps(spacing, train, num_inference_steps, offset);
    if let Some(first) = timesteps.first().filter(|t| **t >= f64::from(train)) {
        let description = format!(
            "{num_inference_steps} steps of DDIM with {spacing:?} spacing and steps_offset {offset} would start at \
             timestep {first}, after the last of the {train} the checkpoint was trained on"
        );
        return Err(ScheduleError::new("num_inference_steps", description));
    }
    let stride = f64::from(train / num_inference_steps);
    let final_alpha = if config.set_alpha_to_one.unwrap_or(true) { 1.0 } else { alphas_cumprod[0] };
    Ok(timesteps
        .iter()
        .map(|t| {
            let t = t.round_ties_even();
            let alpha = at(alphas_cumprod, t);
            let previous = if t - stride >= 0.0 { at(alphas_cumprod, t - stride) } else { final_alpha };
            step(config, t, alpha.into(), previous.into())
        })
        .collect())
}

/// Python's indexing: -1, which a few trailing schedules end with, is the last.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a whole number below the length"
)]
fn at(alphas_cumprod: &[f32], t: f64) -> f32 {
    if t < 0.0 { alphas_cumprod[alphas_cumprod.len() - 1] } else { alphas_cumprod[t as usize] }
}

#[expect(clippy::cast_possible_truncation, reason = "coefficients are applied in f32")]
fn step(config: &SchedulerConfig, timestep: f64, alpha: f64, previous: f64) -> Step {
    let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
    // Predicted clean sample and noise, each as factors of (sample, model_output).
    let (original, epsilon) = match config.prediction_type.unwrap_or(PredictionType::Epsilon) {
        PredictionType::Epsilon => ((1.0 / signal, -noise / signal), (0.0, 1.0)),
        PredictionType::VPrediction => ((signal, -noise), (noise, signal)),
        PredictionType::Sample => ((0.0, 1.0), (1.0 / noise, -signal / noise)),
    };
    let (to_signal, to_noise) = (previous.sqrt(), (1.0 - previous).sqrt());
    let direction = (to_noise * epsilon.0, to_noise * epsilon.1);
    let coefficients = if config.clip_sample.unwrap_or(true) {
        StepCoefficients {
            sample: direction.0 as f32,
            model_output: direction.1 as f32,
            clipped: Some(ClippedOriginal {
                sample: original.0 as f32,
                model_output: original.1 as f32,
                range: config.clip_sample_range.unwrap_or(1.0) as f32,
                weight: to_signal as f32,
            }),
        }
    } else {
        StepCoefficients {
            sample: (to_signal * original.0 + direction.0) as f32,
            model_output: (to_signal * original.1 + direction.1) as f32,
            clipped: None,
        }
    };
    Step {
        timestep: timestep as f32,
        input_scale: 1.0,
        level: NoiseLevel { signal: signal as f32, noise: noise as f32 },
        coefficients,
    }
}

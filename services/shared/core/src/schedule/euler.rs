//! diffusers' `EulerDiscreteScheduler` (Karras et al. 2022, algorithm 2 without churn).

use super::{NoiseLevel, Step, StepCoefficients, spacing};
use crate::scheduler::{FinalSigmas, PredictionType, SchedulerConfig, TimestepSpacing};

/// The steps and the first noise's scale.
#[expect(clippy::cast_possible_truncation, reason = "rounded to f32 where diffusers stores f32")]
pub(super) fn steps(
    config: &SchedulerConfig,
    num_inference_steps: u32,
    alphas_cumprod: &[f32],
) -> (Vec<Step>, f32) {
    let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
    let offset = config.steps_offset.unwrap_or(0);
    let train_sigmas: Vec<f32> = alphas_cumprod.iter().map(|a| ((1.0 - a) / a).sqrt()).collect();

    let mut timesteps: Vec<f32> =
        spacing::timesteps(spacing, config.train_timesteps(), num_inference_steps, offset)
            .iter()
            .map(|t| *t as f32)
            .collect();
    let mut sigmas: Vec<f64> = timesteps.iter().map(|t| interpolate(&train_sigmas, f64::from(*t))).collect();
    if config.use_karras_sigmas.unwrap_or(false) {
        sigmas = karras(&sigmas, num_inference_steps);
        let logs: Vec<f32> = train_sigmas.iter().map(|s| s.ln()).collect();
        timesteps = sigmas.iter().map(|s| timestep_of(&logs, *s) as f32).collect();
    }
    let last = match config.final_sigmas_type.unwrap_or(FinalSigmas::Zero) {
        FinalSigmas::Zero => 0.0,
        FinalSigmas::SigmaMin => train_sigmas[0],
    };
    let sigmas: Vec<f32> = sigmas.iter().map(|s| *s as f32).chain([last]).collect();

    let max = sigmas.iter().copied().fold(0.0_f32, f32::max);
    let init_noise_sigma = match spacing {
        TimestepSpacing::Leading => (max * max + 1.0).sqrt(),
        TimestepSpacing::Linspace | TimestepSpacing::Trailing => max,
    };
    let prediction = config.prediction_type.unwrap_or(PredictionType::Epsilon);
    let steps = timesteps
        .iter()
        .zip(sigmas.windows(2))
        .map(|(timestep, pair)| Step {
            timestep: *timestep,
            input_scale: 1.0 / (pair[0] * pair[0] + 1.0).sqrt(),
            level: NoiseLevel { signal: 1.0, noise: pair[0] },
            coefficients: coefficients(prediction, pair[0].into(), pair[1].into()),
        })
        .collect();
    (steps, init_noise_sigma)
}

/// `x + (next - sigma) * (x - x0) / sigma`, written as factors of x and of the network's output.
#[expect(clippy::cast_possible_truncation, reason = "coefficients are applied in f32")]
fn coefficients(prediction: PredictionType, sigma: f64, next: f64) -> StepCoefficients {
    let dt = next - sigma;
    let (sample, model_output) = match prediction {
        PredictionType::Epsilon => (1.0, dt),
        PredictionType::VPrediction => {
            let square = sigma * sigma + 1.0;
            (1.0 + dt * sigma / square, dt / square.sqrt())
        }
        PredictionType::Sample => (1.0 + dt / sigma, -dt / sigma),
    };
    StepCoefficients { sample: sample as f32, model_output: model_output as f32, clipped: None }
}

/// `np.interp` over the whole numbers: values outside are the end's.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the table before the cast"
)]
fn interpolate(table: &[f32], t: f64) -> f64 {
    let low = t.floor().clamp(0.0, (table.len() - 1) as f64) as usize;
    let high = (low + 1).min(table.len() - 1);
    let (a, b) = (f64::from(table[low]), f64::from(table[high]));
    a + (b - a) * (t - low as f64).clamp(0.0, 1.0)
}

/// Karras et al. (2022), equation 5 with rho 7, between the first and the last of `sigmas`.
fn karras(sigmas: &[f64], steps: u32) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (max, min) = (sigmas[0].powf(1.0 / RHO), sigmas[sigmas.len() - 1].powf(1.0 / RHO));
    let gap = f64::from(steps.saturating_sub(1).max(1));
    (0..steps).map(|i| (max + f64::from(i) / gap * (min - max)).powf(RHO)).collect()
}

/// The timestep whose log sigma is `sigma`'s, interpolated between training timesteps.
fn timestep_of(log_sigmas: &[f32], sigma: f64) -> f64 {
    let log = sigma.max(1e-10).ln();
    // diffusers counts the sigmas at or below in a running sum and takes the first maximum of that sum.
    let low = log_sigmas.iter().rposition(|s| log >= f64::from(*s)).unwrap_or(0).min(log_sigmas.len() - 2);
    let (a, b) = (f64::from(log_sigmas[low]), f64::from(log_sigmas[low + 1]));
    low as f64 + ((a - log) / (a - b)).clamp(0.0, 1.0)
}

//! Scheduler words.

use super::WireError;
use crate::v1;
use sdxl_core::{BetaSchedule, FinalSigmas, PredictionType, SchedulerConfig, SchedulerKind, TimestepSpacing};

/// Both directions between an enum of the domain and its wire twin.
macro_rules! twins {
    ($domain:ident: $($variant:ident = $wire:ident),+) => {
        impl From<$domain> for v1::$domain {
            fn from(value: $domain) -> Self {
                match value { $($domain::$variant => Self::$wire),+ }
            }
        }

        impl TryFrom<v1::$domain> for $domain {
            type Error = ();
            fn try_from(value: v1::$domain) -> Result<Self, ()> {
                match value { v1::$domain::Unspecified => Err(()), $(v1::$domain::$wire => Ok(Self::$variant)),+ }
            }
        }
    };
}

twins!(SchedulerKind: Euler = Euler, Ddim = Ddim);
twins!(TimestepSpacing: Leading = Leading, Linspace = Linspace, Trailing = Trailing);
twins!(PredictionType: Epsilon = Epsilon, VPrediction = VPrediction, Sample = Sample);
twins!(BetaSchedule: Linear = Linear, ScaledLinear = ScaledLinear, SquaredcosCapV2 = SquaredcosCapV2);
twins!(FinalSigmas: Zero = Zero, SigmaMin = SigmaMin);

impl From<&SchedulerConfig> for v1::SchedulerConfig {
    fn from(config: &SchedulerConfig) -> Self {
        Self {
            kind: v1::SchedulerKind::from(config.kind).into(),
            num_train_timesteps: config.num_train_timesteps,
            beta_start: config.beta_start,
            beta_end: config.beta_end,
            beta_schedule: config.beta_schedule.map(|v| v1::BetaSchedule::from(v).into()),
            prediction_type: config.prediction_type.map(|v| v1::PredictionType::from(v).into()),
            timestep_spacing: config.timestep_spacing.map(|v| v1::TimestepSpacing::from(v).into()),
            steps_offset: config.steps_offset,
            use_karras_sigmas: config.use_karras_sigmas,
            rescale_betas_zero_snr: config.rescale_betas_zero_snr,
            final_sigmas_type: config.final_sigmas_type.map(|v| v1::FinalSigmas::from(v).into()),
            set_alpha_to_one: config.set_alpha_to_one,
            clip_sample: config.clip_sample,
            clip_sample_range: config.clip_sample_range,
        }
    }
}

impl TryFrom<&v1::SchedulerConfig> for SchedulerConfig {
    type Error = WireError;

    fn try_from(config: &v1::SchedulerConfig) -> Result<Self, WireError> {
        Self {
            kind: required::<v1::SchedulerKind, _>("scheduler.kind", config.kind)?,
            num_train_timesteps: config.num_train_timesteps,
            beta_start: config.beta_start,
            beta_end: config.beta_end,
            beta_schedule: optional::<v1::BetaSchedule, _>("scheduler.beta_schedule", config.beta_schedule)?,
            prediction_type: optional::<v1::PredictionType, _>(
                "scheduler.prediction_type",
                config.prediction_type,
            )?,
            timestep_spacing: optional::<v1::TimestepSpacing, _>(
                "scheduler.timestep_spacing",
                config.timestep_spacing,
            )?,
            steps_offset: config.steps_offset,
            use_karras_sigmas: config.use_karras_sigmas,
            rescale_betas_zero_snr: config.rescale_betas_zero_snr,
            final_sigmas_type: optional::<v1::FinalSigmas, _>(
                "scheduler.final_sigmas_type",
                config.final_sigmas_type,
            )?,
            set_alpha_to_one: config.set_alpha_to_one,
            clip_sample: config.clip_sample,
            clip_sample_range: config.clip_sample_range,
        }
        .check()
        .map_err(|error| WireError::new("scheduler", error.to_string()))
    }
}

fn required<W: TryFrom<i32>, D: TryFrom<W>>(field: &str, value: i32) -> Result<D, WireError> {
    let wire = W::try_from(value).map_err(|_| WireError::unknown_enum(field, value))?;
    D::try_from(wire).map_err(|_| WireError::unknown_enum(field, value))
}

fn optional<W: TryFrom<i32>, D: TryFrom<W>>(field: &str, value: Option<i32>) -> Result<Option<D>, WireError> {
    value.map(|value| required::<W, D>(field, value)).transpose()
}

//! A checkpoint's `scheduler_config.json` and the words in it.

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

/// Which sampler walks the noise schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SchedulerKind {
    /// diffusers' `EulerDiscreteScheduler`.
    Euler,
    /// diffusers' `DDIMScheduler` with eta 0.
    Ddim,
}

impl SchedulerKind {
    /// Every kind that is served.
    pub const ALL: [Self; 2] = [Self::Euler, Self::Ddim];

    /// The name of diffusers' class.
    #[must_use]
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Euler => "EulerDiscreteScheduler",
            Self::Ddim => "DDIMScheduler",
        }
    }
}

/// How the training timesteps are thinned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of a whole ratio, plus `steps_offset`.
    Leading,
    /// From the last training timestep to the first, fractions kept.
    Linspace,
    /// From the last training timestep downwards by a fractional ratio.
    Trailing,
}

/// What the network's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The velocity of Salimans and Ho.
    VPrediction,
    /// The clean sample.
    #[serde(alias = "original_sample")]
    Sample,
}

/// How beta grows over the training timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly.
    Linear,
    /// Evenly in its square root (latent diffusion's).
    ScaledLinear,
    /// By Nichol and Dhariwal's cosine.
    SquaredcosCapV2,
}

/// Where the sigmas of an Euler schedule end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// At zero.
    Zero,
    /// At the least training sigma.
    SigmaMin,
}

/// A scheduler's configuration as a checkpoint brings it: what is `None` takes the default of diffusers' class for
/// `kind`, just as diffusers' `from_config` does when a pipeline's scheduler is replaced by another class.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// The sampler.
    pub kind: SchedulerKind,
    /// Length of the training schedule.
    pub num_train_timesteps: Option<u32>,
    /// First beta.
    pub beta_start: Option<f64>,
    /// Last beta.
    pub beta_end: Option<f64>,
    /// The way between.
    pub beta_schedule: Option<BetaSchedule>,
    /// What the network's output means.
    pub prediction_type: Option<PredictionType>,
    /// How timesteps are thinned out.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to leading timesteps.
    pub steps_offset: Option<u32>,
    /// Euler: sigmas by Karras et al. (2022) with rho 7.
    pub use_karras_sigmas: Option<bool>,
    /// Betas stretched so that the last timestep is pure noise.
    pub rescale_betas_zero_snr: Option<bool>,
    /// Euler: the sigma after the last step.
    pub final_sigmas_type: Option<FinalSigmas>,
    /// DDIM: whether the last step ends at alpha 1 or at the first training timestep's.
    pub set_alpha_to_one: Option<bool>,
    /// DDIM: clip the predicted clean sample.
    pub clip_sample: Option<bool>,
    /// DDIM: to plus and minus this.
    pub clip_sample_range: Option<f64>,
}

/// Why a `scheduler_config.json` cannot be served.
#[derive(Debug, Error)]
pub enum SchedulerConfigError {
    /// It is not JSON of the right types.
    #[error("not a scheduler config: {0}")]
    Parse(#[from] serde_json::Error),
    /// A setting that changes the result and is not implemented.
    #[error("{key} = {value} is not supported; supported: {supported}")]
    Unsupported {
        /// The JSON key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is.
        supported: &'static str,
    },
}

/// The keys that are read, as they stand in the file.
#[derive(Deserialize)]
struct File {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    num_train_timesteps: Option<u32>,
    beta_start: Option<f64>,
    beta_end: Option<f64>,
    beta_schedule: Option<BetaSchedule>,
    prediction_type: Option<PredictionType>,
    timestep_spacing: Option<TimestepSpacing>,
    steps_offset: Option<u32>,
    use_karras_sigmas: Option<bool>,
    rescale_betas_zero_snr: Option<bool>,
    final_sigmas_type: Option<FinalSigmas>,
    set_alpha_to_one: Option<bool>,
    clip_sample: Option<bool>,
    clip_sample_range: Option<f64>,
    #[serde(default)]
    trained_betas: Value,
    #[serde(default)]
    interpolation_type: Value,
    #[serde(default)]
    use_exponential_sigmas: Value,
    #[serde(default)]
    use_beta_sigmas: Value,
    #[serde(default)]
    sigma_min: Value,
    #[serde(default)]
    sigma_max: Value,
    #[serde(default)]
    timestep_type: Value,
    #[serde(default)]
    thresholding: Value,
}

impl SchedulerConfig {
    /// Everything at the defaults of `kind`'s class.
    #[must_use]
    pub fn new(kind: SchedulerKind) -> Self {
        Self {
            kind,
            num_train_timesteps: None,
            beta_start: None,
            beta_end: None,
            beta_schedule: None,
            prediction_type: None,
            timestep_spacing: None,
            steps_offset: None,
            use_karras_sigmas: None,
            rescale_betas_zero_snr: None,
            final_sigmas_type: None,
            set_alpha_to_one: None,
            clip_sample: None,
            clip_sample_range: None,
        }
    }

    /// Reads the text of a `scheduler_config.json`.
    ///
    /// # Errors
    /// Where it is not JSON of the right types, or asks for something that is not implemented. A checkpoint whose
    /// scheduler is another class than those served is taken as Euler, SDXL's own, with the settings it shares.
    pub fn from_json(text: &str) -> Result<Self, SchedulerConfigError> {
        let file: File = serde_json::from_str(text)?;
        let rejected: [(&'static str, &Value, &[Value], &'static str); 8] = [
            ("trained_betas", &file.trained_betas, &[], "null"),
            ("interpolation_type", &file.interpolation_type, &[Value::from("linear")], "\"linear\""),
            ("use_exponential_sigmas", &file.use_exponential_sigmas, &[Value::Bool(false)], "false"),
            ("use_beta_sigmas", &file.use_beta_sigmas, &[Value::Bool(false)], "false"),
            ("sigma_min", &file.sigma_min, &[], "null"),
            ("sigma_max", &file.sigma_max, &[], "null"),
            ("timestep_type", &file.timestep_type, &[Value::from("discrete")], "\"discrete\""),
            ("thresholding", &file.thresholding, &[Value::Bool(false)], "false"),
        ];
        for (key, value, allowed, supported) in rejected {
            if !value.is_null() && !allowed.contains(value) {
                return Err(SchedulerConfigError::Unsupported { key, value: value.to_string(), supported });
            }
        }
        let kind = match file.class_name.as_deref() {
            Some("DDIMScheduler") => SchedulerKind::Ddim,
            _ => SchedulerKind::Euler,
        };
        Self {
            kind,
            num_train_timesteps: file.num_train_timesteps,
            beta_start: file.beta_start,
            beta_end: file.beta_end,
            beta_schedule: file.beta_schedule,
            prediction_type: file.prediction_type,
            timestep_spacing: file.timestep_spacing,
            steps_offset: file.steps_offset,
            use_karras_sigmas: file.use_karras_sigmas,
            rescale_betas_zero_snr: file.rescale_betas_zero_snr,
            final_sigmas_type: file.final_sigmas_type,
            set_alpha_to_one: file.set_alpha_to_one,
            clip_sample: file.clip_sample,
            clip_sample_range: file.clip_sample_range,
        }
        .check()
    }

    /// Checks the numbers, so that every schedule made of them is finite.
    ///
    /// # Errors
    /// The first key that is out of range, its value and the range.
    pub fn check(self) -> Result<Self, SchedulerConfigError> {
        let out_of_range =
            |key, value: String, supported| Err(SchedulerConfigError::Unsupported { key, value, supported });
        if let Some(n) = self.num_train_timesteps.filter(|n| !(2..=100_000).contains(n)) {
            return out_of_range("num_train_timesteps", n.to_string(), "2..=100000");
        }
        if let Some(n) = self.steps_offset.filter(|n| *n > 1000) {
            return out_of_range("steps_offset", n.to_string(), "0..=1000");
        }
        for (key, beta) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            if let Some(beta) = beta.filter(|b| !(*b > 0.0 && *b < 1.0)) {
                return out_of_range(key, beta.to_string(), "between 0 and 1, both excluded");
            }
        }
        if let Some(range) = self.clip_sample_range.filter(|r| !(r.is_finite() && *r > 0.0)) {
            return out_of_range("clip_sample_range", range.to_string(), "a finite number above 0");
        }
        Ok(self)
    }

    /// Length of the training schedule: 1000 where not set.
    #[must_use]
    pub fn train_timesteps(&self) -> u32 {
        self.num_train_timesteps.unwrap_or(1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_published_config() {
        let config = SchedulerConfig::from_json(
            r#"{"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "beta_end": 0.012,
                "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false,
                "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
                "sample_max_value": 1.0, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1,
                "timestep_spacing": "leading", "trained_betas": null, "use_karras_sigmas": false}"#,
        )
        .unwrap();
        assert_eq!(config.kind, SchedulerKind::Euler);
        assert_eq!(config.beta_schedule, Some(BetaSchedule::ScaledLinear));
        assert_eq!(config.timestep_spacing, Some(TimestepSpacing::Leading));
        assert_eq!((config.clip_sample, config.set_alpha_to_one), (Some(false), Some(false)));
        assert_eq!(config.final_sigmas_type, None);
    }

    #[test]
    fn names_what_is_not_supported() {
        let error = SchedulerConfig::from_json(r#"{"use_beta_sigmas": true}"#).unwrap_err();
        assert_eq!(error.to_string(), "use_beta_sigmas = true is not supported; supported: false");
        let error = SchedulerConfig::from_json(r#"{"beta_schedule": "sigmoid"}"#).unwrap_err().to_string();
        assert!(error.contains("sigmoid") && error.contains("scaled_linear"), "{error}");
    }

    #[test]
    fn numbers_without_a_schedule_are_named() {
        for (key, value) in [
            ("num_train_timesteps", "0"),
            ("num_train_timesteps", "1"),
            ("num_train_timesteps", "200000"),
            ("steps_offset", "4294967295"),
            ("beta_start", "0.0"),
            ("beta_end", "1.5"),
            ("clip_sample_range", "-1.0"),
        ] {
            let error =
                SchedulerConfig::from_json(&format!("{{\"{key}\": {value}}}")).unwrap_err().to_string();
            assert!(error.starts_with(key) && error.contains("supported"), "{error}");
        }
    }
}

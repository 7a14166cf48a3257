//! From a profile's text to a [`Profile`], or to the line or key that is wrong.

use super::{
    ConditionerProfile, DenoiserProfile, MOST_TOGETHER, Profile, StepTime, TextEncoderProfile, VaeProfile,
    seconds,
};
use anyhow::{Context, bail, ensure};
use candle_core::DType;
use sdxl_core::{
    ConditionerInfo, DenoiserInfo, SchedulerConfig, Size, StageKind, VaeInfo,
    size::{MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::{fs, path::Path};

/// No piece of work that anyone simulates takes longer.
const LONGEST_SECONDS: f64 = 3600.0;
/// Wider than any denoiser's embeddings; a slip of the pen beyond it would fill the memory.
const MOST_FEATURES: u32 = 65_536;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    dtype: Format,
    latent_channels: u32,
    text_encoder: TextEncoder,
    base_unet: Denoiser,
    refiner: Option<Denoiser>,
    vae: Vae,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    F32,
    F16,
    Bf16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextEncoder {
    #[serde(default)]
    warm_up_seconds: f64,
    base: Conditioner,
    refiner: Option<Conditioner>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Conditioner {
    num_hidden_layers: u32,
    force_zeros_for_empty_prompt: bool,
    seconds_per_text: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Denoiser {
    #[serde(default)]
    warm_up_seconds: f64,
    sample_size: u32,
    cross_attention_dim: u32,
    pooled_projection_dim: u32,
    /// `[height, width]` each.
    #[serde(default)]
    training_buckets: Vec<[u32; 2]>,
    /// By cache_branch_id, the part of an evaluation that is computed where the rest comes from the cache.
    #[serde(default)]
    cache_branch_costs: Vec<f32>,
    /// As `scheduler_config.json`.
    scheduler: Map<String, Value>,
    step: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    height: u32,
    width: u32,
    overhead_seconds: f64,
    per_evaluation_seconds: f64,
    max_batch: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vae {
    #[serde(default)]
    warm_up_seconds: f64,
    picture: Vec<Picture>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Picture {
    height: u32,
    width: u32,
    seconds: f64,
}

impl Profile {
    /// Reads a file.
    ///
    /// # Errors
    /// Where it cannot be read, or is no profile; one line that names the file, and the line or the key in it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("{}: cannot read the profile", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// Where it is no profile; one line that names the line or the key.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let file: File = toml::from_str(text).map_err(|error| parse_error(error, text))?;
        ensure!(!file.name.trim().is_empty(), "name: empty; callers see it as the model's");
        let latent_channels = count("latent_channels", file.latent_channels, 64)?;
        let base_unet = denoiser(StageKind::BaseUnet, &file.base_unet, latent_channels)?;
        let refiner = file.refiner.as_ref().map(|file| denoiser(StageKind::Refiner, file, latent_channels));
        let refiner = refiner.transpose()?;
        let text_encoder = TextEncoderProfile {
            warm_up: seconds(time("text_encoder.warm_up_seconds", file.text_encoder.warm_up_seconds)?),
            base: conditioner("text_encoder.base", &file.text_encoder.base, &base_unet.info)?,
            refiner: match (&file.text_encoder.refiner, &refiner) {
                (Some(file), Some(refiner)) => {
                    Some(conditioner("text_encoder.refiner", file, &refiner.info)?)
                }
                (None, None) => None,
                (Some(_), None) => bail!("text_encoder.refiner: there is no [refiner] that it encodes for"),
                (None, Some(_)) => bail!("refiner: there is no [text_encoder.refiner] to encode for it"),
            },
        };
        let hash = Sha256::digest(text);
        Ok(Self {
            name: file.name,
            revision: hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect(),
            dtype: match file.dtype {
                Format::F32 => DType::F32,
                Format::F16 => DType::F16,
                Format::Bf16 => DType::BF16,
            },
            text_encoder,
            base_unet,
            refiner,
            vae: vae(&file.vae, latent_channels)?,
        })
    }
}

fn conditioner(key: &str, file: &Conditioner, denoiser: &DenoiserInfo) -> anyhow::Result<ConditionerProfile> {
    let info = ConditionerInfo {
        num_hidden_layers: count(&format!("{key}.num_hidden_layers"), file.num_hidden_layers, 1000)?,
        cross_attention_dim: denoiser.cross_attention_dim,
        pooled_projection_dim: denoiser.pooled_projection_dim,
        force_zeros_for_empty_prompt: file.force_zeros_for_empty_prompt,
    };
    let per_text = seconds(time(&format!("{key}.seconds_per_text"), file.seconds_per_text)?);
    Ok(ConditionerProfile { info, per_text })
}

fn denoiser(kind: StageKind, file: &Denoiser, latent_channels: u32) -> anyhow::Result<DenoiserProfile> {
    let section = if kind == StageKind::Refiner { "refiner" } else { "base_unet" };
    let key = |name: &str| format!("{section}.{name}");
    let info = DenoiserInfo {
        latent_channels,
        sample_size: count(&key("sample_size"), file.sample_size, MAX_SIDE / SIDE_MULTIPLE)?,
        requires_aesthetics_score: kind == StageKind::Refiner,
        cross_attention_dim: count(&key("cross_attention_dim"), file.cross_attention_dim, MOST_FEATURES)?,
        pooled_projection_dim: count(
            &key("pooled_projection_dim"),
            file.pooled_projection_dim,
            MOST_FEATURES,
        )?,
        scheduler: scheduler(&key("scheduler"), &file.scheduler)?,
        training_buckets: file
            .training_buckets
            .iter()
            .enumerate()
            .map(|(i, bucket)| size(&key(&format!("training_buckets[{i}]")), *bucket))
            .collect::<anyhow::Result<_>>()?,
        cache_branch_costs: file.cache_branch_costs.clone(),
        guidance_steps: true,
    };
    if let Some(cost) = info.cache_branch_costs.iter().find(|cost| !(0.0..=1.0).contains(*cost)) {
        bail!("{}: {cost} is not in 0..=1", key("cache_branch_costs"));
    }
    let step = |(i, step): (usize, &Step)| {
        let key = |name: &str| format!("{section}.step[{i}].{name}");
        let most = 1..=MOST_TOGETHER;
        let max_batch = step.max_batch;
        ensure!(most.contains(&max_batch), "{}: {max_batch} is not in {most:?}", key("max_batch"));
        let overhead = time(&key("overhead_seconds"), step.overhead_seconds)?;
        let per_evaluation = time(&key("per_evaluation_seconds"), step.per_evaluation_seconds)?;
        let size = size(&format!("{section}.step[{i}]"), [step.height, step.width])?;
        Ok((size, StepTime { overhead, per_evaluation, max_batch }))
    };
    let steps = file.step.iter().enumerate().map(step).collect::<anyhow::Result<Vec<_>>>()?;
    check_sizes(&key("step"), &steps)?;
    let warm_up = seconds(time(&key("warm_up_seconds"), file.warm_up_seconds)?);
    Ok(DenoiserProfile { warm_up, info, steps })
}

fn vae(file: &Vae, latent_channels: u32) -> anyhow::Result<VaeProfile> {
    let picture = |(i, picture): (usize, &Picture)| {
        let size = size(&format!("vae.picture[{i}]"), [picture.height, picture.width])?;
        Ok((size, time(&format!("vae.picture[{i}].seconds"), picture.seconds)?))
    };
    let pictures = file.picture.iter().enumerate().map(picture).collect::<anyhow::Result<Vec<_>>>()?;
    check_sizes("vae.picture", &pictures)?;
    Ok(VaeProfile {
        warm_up: seconds(time("vae.warm_up_seconds", file.warm_up_seconds)?),
        info: VaeInfo { latent_channels, vae_scale_factor: SIDE_MULTIPLE },
        pictures,
    })
}

/// A checkpoint's file may hold keys that no sampler of ours reads; here one would be a misspelt one.
fn scheduler(key: &str, table: &Map<String, Value>) -> anyhow::Result<SchedulerConfig> {
    const READ: [&str; 14] = [
        "_class_name",
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "prediction_type",
        "timestep_spacing",
        "steps_offset",
        "use_karras_sigmas",
        "rescale_betas_zero_snr",
        "final_sigmas_type",
        "set_alpha_to_one",
        "clip_sample",
        "clip_sample_range",
    ];
    if let Some(unknown) = table.keys().find(|name| !READ.contains(&name.as_str())) {
        bail!("{key}.{unknown}: unknown; known are {}", READ.join(", "));
    }
    let json = serde_json::to_string(table).context("a table is always JSON")?;
    SchedulerConfig::from_json(&json).with_context(|| key.to_owned())
}

/// At least one, and none twice.
fn check_sizes<T>(key: &str, listed: &[(Size, T)]) -> anyhow::Result<()> {
    ensure!(!listed.is_empty(), "{key}: empty; at least one size is needed");
    for (i, (size, _)) in listed.iter().enumerate() {
        let first = listed.iter().position(|(other, _)| other == size);
        ensure!(first == Some(i), "{key}[{i}]: {size} stands twice");
    }
    Ok(())
}

fn size(key: &str, [height, width]: [u32; 2]) -> anyhow::Result<Size> {
    for (name, side) in [("height", height), ("width", width)] {
        ensure!(
            (MIN_SIDE..=MAX_SIDE).contains(&side) && side % SIDE_MULTIPLE == 0,
            "{key}.{name}: {side} is not a multiple of {SIDE_MULTIPLE} in {MIN_SIDE}..={MAX_SIDE}"
        );
    }
    Ok(Size::new(height, width))
}

fn count(key: &str, value: u32, most: u32) -> anyhow::Result<u32> {
    ensure!((1..=most).contains(&value), "{key}: {value} is not in 1..={most}");
    Ok(value)
}

fn time(key: &str, value: f64) -> anyhow::Result<f64> {
    ensure!(
        (0.0..=LONGEST_SECONDS).contains(&value),
        "{key}: {value} is not a number of seconds from 0 to {LONGEST_SECONDS}"
    );
    Ok(value)
}

/// toml draws the line and points at it; here is one line that says where.
fn parse_error(mut error: toml::de::Error, text: &str) -> anyhow::Error {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = 1 + text.get(..start).unwrap_or_default().matches('\n').count();
    error.set_input(None);
    anyhow::anyhow!("line {line}: {}", error.to_string().trim().replace('\n', " "))
}

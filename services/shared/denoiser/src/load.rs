//! From a checkpoint folder to an engine, or to the reason why it is not one.

use crate::DenoiserEngine;
use anyhow::{Context, anyhow, bail};
use candle_core::{DType, Device};
use sdxl_core::{DenoiserInfo, StageKind};
use sdxl_models::{
    ModelError, Packing, PipelineDir, Weights,
    text::ClipTextConfig,
    unet::{Unet, UnetConfig},
};
use sdxl_stage::{BatchLimit, Details, StageInfo, device_name};
use std::{panic::resume_unwind, path::Path, thread};

impl DenoiserEngine {
    /// Loads the UNet of the checkpoint `path` as the stage `kind`. As many pictures take a step together as `max_batch`
    /// says, or as turn out to be worth it.
    ///
    /// # Errors
    /// Where a file or tensor is missing or wrong, or the checkpoint is for the other kind of denoiser; one line that
    /// names the file.
    pub fn load(
        kind: StageKind,
        path: &Path,
        (dtype, device): (DType, &Device),
        max_batch: &[BatchLimit],
    ) -> anyhow::Result<(Self, StageInfo)> {
        let dir = PipelineDir::open(path)?;
        check_kind(kind, &dir)?;
        let config_path = dir.unet().join("config.json");
        let config = UnetConfig::open(&config_path)?;
        check_widths(&dir, &config, &config_path)?;
        let denoiser = describe(&dir, &config)?;
        // From here on it is read.
        let weights = Weights::open(&dir.unet())?.var_builder(dtype, device);
        // A few blocks here and there: each is waited for while the disk has larger ones to bring. What is wrong with the
        // network is told first.
        let revision = || dir.revision(&["unet", "scheduler"]);
        let (built, revision) = thread::scope(|scope| {
            let beside = thread::Builder::new().name("revision".to_owned()).spawn_scoped(scope, revision);
            let _packing = Packing::new();
            let built = Unet::tried(&weights, &config);
            let revision = match beside {
                Ok(beside) => beside.join().unwrap_or_else(|panic| resume_unwind(panic)),
                // Where there can be no thread it is only slower.
                Err(_) => revision(),
            };
            (built, revision)
        });
        let (unet, tried) = built.map_err(|error| match error {
            ModelError::Compute(_) => anyhow!("{}: {error}", dir.unet().display()),
            other => other.into(),
        })?;
        let revision = revision?;
        let info = StageInfo {
            kind,
            model: dir.name().to_owned(),
            revision: revision.clone(),
            device: device_name(device),
            dtype,
            details: Details::Denoiser(denoiser.clone()),
        };
        Ok((Self::new((unet, tried), denoiser, revision, max_batch.to_vec()), info))
    }
}

/// A base denoiser is asked by target size, a refiner by aesthetic score.
fn check_kind(kind: StageKind, dir: &PipelineDir) -> anyhow::Result<()> {
    let index = dir.root().join("model_index.json");
    match (kind, dir.requires_aesthetics_score()) {
        (StageKind::Refiner, true) | (StageKind::BaseUnet, false) => Ok(()),
        (StageKind::Refiner, false) => bail!(
            "{}: requires_aesthetics_score is false, so this is no refiner; serve it with base-unet",
            index.display()
        ),
        (_, _) => bail!(
            "{}: requires_aesthetics_score is true, so this is a refiner; serve it with refiner",
            index.display()
        ),
    }
}

/// The UNet's widths are those of the checkpoint's text encoders: its context theirs side by side, its added embedding
/// the pooled text with as many time ids as it was trained with. A folder with the UNet alone is taken at its word.
fn check_widths(dir: &PipelineDir, config: &UnetConfig, config_path: &Path) -> anyhow::Result<()> {
    let encoder = dir.text_encoder_2().text_encoder.join("config.json");
    if !encoder.exists() {
        return Ok(());
    }
    let second = ClipTextConfig::load(&dir.text_encoder_2().text_encoder)?;
    let pooled = second.projection_dim;
    let time_ids = if dir.requires_aesthetics_score() { 5 } else { 6 };
    let wanted = pooled + time_ids * config.addition_time_embed_dim;
    let found = config.projection_class_embeddings_input_dim;
    if found != wanted {
        bail!(
            "{}: projection_class_embeddings_input_dim is {found}, but {time_ids} time ids of {} features and pooled \
             text of {pooled} take {wanted}",
            config_path.display(),
            config.addition_time_embed_dim
        );
    }
    let first = dir.text_encoder().map(|encoder| encoder.text_encoder.join("config.json"));
    if let Some(first) = first.filter(|first| !dir.requires_aesthetics_score() && first.exists()) {
        let first = ClipTextConfig::load(first.parent().unwrap_or(dir.root()))?;
        let (found, wanted) = (config.cross_attention_dim, first.hidden_size + second.hidden_size);
        if found != wanted {
            bail!(
                "{}: cross_attention_dim is {found}, but the text encoders' hidden_size are {} and {}, together {wanted}",
                config_path.display(),
                first.hidden_size,
                second.hidden_size
            );
        }
    }
    Ok(())
}

fn describe(dir: &PipelineDir, config: &UnetConfig) -> anyhow::Result<DenoiserInfo> {
    let count = |n: usize| u32::try_from(n).context("unet/config.json: a width beyond 2^32");
    let requires_aesthetics_score = dir.requires_aesthetics_score();
    Ok(DenoiserInfo {
        latent_channels: count(config.in_channels)?,
        // diffusers' default.
        sample_size: count(config.sample_size.unwrap_or(128))?,
        requires_aesthetics_score,
        cross_attention_dim: count(config.cross_attention_dim)?,
        pooled_projection_dim: count(config.pooled_projection_dim(requires_aesthetics_score))?,
        scheduler: dir.scheduler_config()?,
        training_buckets: dir.training_buckets()?.unwrap_or_default(),
        cache_branch_costs: config.cache_branch_costs(),
        guidance_steps: true,
    })
}

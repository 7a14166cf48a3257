//! From checkpoint folders to an engine, or to the reason why they are none.

use crate::TextEncoderEngine;
use anyhow::{Context, bail};
use candle_core::{DType, Device};
use sdxl_core::{Conditioner, ConditionerInfo, StageKind};
use sdxl_models::{Packing, PipelineDir, PipelineKind, TextConditioner};
use sdxl_stage::{Details, StageInfo, device_name};
use std::path::Path;

impl TextEncoderEngine {
    /// Loads the text encoders of the checkpoint `base`, and those of `refiner`.
    ///
    /// # Errors
    /// Where a file or tensor is missing or wrong, or a checkpoint is not of its kind; one line that names the file.
    pub(crate) fn load(
        base: &Path,
        refiner: Option<&Path>,
        dtype: DType,
        device: &Device,
    ) -> anyhow::Result<(Self, StageInfo)> {
        let _packing = Packing::new();
        let dir = open(base, PipelineKind::Base, "--base")?;
        let conditioner = TextConditioner::load(&dir, dtype, device)?;
        let mut revision = revision(&dir)?;
        let mut described = vec![(Conditioner::Base, describe(&conditioner)?)];
        let mut second = None;
        if let Some(path) = refiner {
            let dir = open(path, PipelineKind::Refiner, "--refiner")?;
            let conditioner = TextConditioner::load_refiner_sharing(&conditioner, &dir, dtype, device)?;
            revision = format!("{revision}-{}", self::revision(&dir)?);
            described.push((Conditioner::Refiner, describe(&conditioner)?));
            second = Some(conditioner);
        }
        let info = StageInfo {
            kind: StageKind::TextEncoder,
            model: dir.name().to_owned(),
            revision,
            device: device_name(device),
            dtype,
            details: Details::TextEncoder(described),
        };
        Ok((Self::new(conditioner, second), info))
    }
}

fn open(path: &Path, kind: PipelineKind, flag: &str) -> anyhow::Result<PipelineDir> {
    let dir = PipelineDir::open(path)?;
    if dir.kind() != kind {
        let index = path.join("model_index.json");
        let (found, wanted) = match kind {
            PipelineKind::Base => ("a refiner's", "a base's"),
            PipelineKind::Refiner => ("a base's", "a refiner's"),
        };
        bail!("{}: this is {found} checkpoint, and {flag} takes {wanted}", index.display());
    }
    Ok(dir)
}

/// Over the folders that this stage reads, whatever the checkpoint calls them.
fn revision(dir: &PipelineDir) -> anyhow::Result<String> {
    let encoders = dir.text_encoder().into_iter().chain([dir.text_encoder_2()]);
    let folders: Vec<_> = encoders
        .flat_map(|encoder| [&encoder.text_encoder, &encoder.tokenizer])
        .filter_map(|path| path.file_name().and_then(|name| name.to_str()))
        .collect();
    Ok(dir.revision(&folders)?)
}

fn describe(conditioner: &TextConditioner) -> anyhow::Result<ConditionerInfo> {
    let count = |n: usize| u32::try_from(n).context("text_encoder/config.json: a width beyond 2^32");
    Ok(ConditionerInfo {
        num_hidden_layers: count(conditioner.num_hidden_layers())?,
        cross_attention_dim: count(conditioner.cross_attention_dim())?,
        pooled_projection_dim: count(conditioner.pooled_projection_dim())?,
        force_zeros_for_empty_prompt: conditioner.force_zeros_for_empty_prompt(),
    })
}

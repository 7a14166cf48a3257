//! `vae/config.json`: diffusers' `AutoencoderKL`.

use std::path::Path;

use candle_core::DType;
use serde::Deserialize;
use serde_json::Value;

use crate::{ModelError, config::read_json};

/// A checked autoencoder configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each level, the picture's first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each encoder level; a decoder level has one more.
    pub layers_per_block: usize,
    /// Groups of the normalizations.
    pub norm_num_groups: usize,
    /// Latents are multiplied by this in encoding, divided in decoding.
    pub scaling_factor: f64,
    /// Each latent channel's mean, with `latents_std`, for autoencoders that normalize by channel.
    pub latents_mean: Option<Vec<f32>>,
    /// Each latent channel's standard deviation.
    pub latents_std: Option<Vec<f32>>,
    /// Whether half precision overflows, so that it is not computed in.
    pub force_upcast: bool,
    /// Whether latents go through a 1 x 1 convolution first.
    pub use_post_quant_conv: bool,
    /// Whether there is attention at the lowest level.
    pub mid_block_add_attention: bool,
}

/// The keys as they stand in the file; what is missing or null takes the default of diffusers' constructor.
#[derive(Deserialize)]
struct File {
    out_channels: Option<usize>,
    latent_channels: Option<usize>,
    block_out_channels: Option<Vec<usize>>,
    up_block_types: Option<Vec<String>>,
    layers_per_block: Option<usize>,
    norm_num_groups: Option<usize>,
    act_fn: Option<String>,
    scaling_factor: Option<f64>,
    #[serde(default)]
    shift_factor: Value,
    latents_mean: Option<Vec<f32>>,
    latents_std: Option<Vec<f32>>,
    force_upcast: Option<bool>,
    use_post_quant_conv: Option<bool>,
    mid_block_add_attention: Option<bool>,
}

impl VaeConfig {
    /// Reads `path`, an autoencoder's `config.json`.
    ///
    /// # Errors
    /// The file is missing or no JSON of the right types, asks for something that is not implemented, or contradicts
    /// itself; the message names file and key.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::check(read_json(path)?, path)
    }

    /// Reads the text of a `config.json`; `path` is only named in errors.
    ///
    /// # Errors
    /// As [`VaeConfig::open`].
    pub fn from_json(text: &str, path: &Path) -> Result<Self, ModelError> {
        let file = serde_json::from_str(text)
            .map_err(|e| ModelError::ParseConfig { path: path.to_owned(), why: e.to_string() })?;
        Self::check(file, path)
    }

    /// Pixels a latent: a doubling for each level but one.
    #[must_use]
    pub fn vae_scale_factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// The type to load the decoder in where `requested` was asked for: as in diffusers, f32 in place of f16 where
    /// that overflows. bf16 has the range.
    #[must_use]
    pub fn compute_dtype(&self, requested: DType) -> DType {
        if requested == DType::F16 && self.force_upcast { DType::F32 } else { requested }
    }

    fn check(file: File, path: &Path) -> Result<Self, ModelError> {
        let act_fn = file.act_fn.as_deref().unwrap_or("silu");
        if act_fn != "silu" {
            return Err(ModelError::unsupported(path, "act_fn", format!("{act_fn:?}"), "\"silu\""));
        }
        if !file.shift_factor.is_null() {
            return Err(ModelError::unsupported(path, "shift_factor", file.shift_factor, "null"));
        }
        let out_channels = file.out_channels.unwrap_or(3);
        if out_channels != 3 {
            return Err(ModelError::unsupported(path, "out_channels", out_channels, "3"));
        }
        let block_out_channels = file.block_out_channels.unwrap_or_else(|| vec![64]);
        let types = file.up_block_types.unwrap_or_else(|| vec!["UpDecoderBlock2D".to_owned()]);
        if let Some(other) = types.iter().find(|name| *name != "UpDecoderBlock2D") {
            return Err(ModelError::unsupported(
                path,
                "up_block_types",
                format!("{other:?}"),
                "UpDecoderBlock2D",
            ));
        }
        let config = Self {
            latent_channels: file.latent_channels.unwrap_or(4),
            layers_per_block: file.layers_per_block.unwrap_or(1),
            norm_num_groups: file.norm_num_groups.unwrap_or(32),
            scaling_factor: file.scaling_factor.unwrap_or(0.18215),
            latents_mean: file.latents_mean,
            latents_std: file.latents_std,
            force_upcast: file.force_upcast.unwrap_or(true),
            use_post_quant_conv: file.use_post_quant_conv.unwrap_or(true),
            mid_block_add_attention: file.mid_block_add_attention.unwrap_or(true),
            block_out_channels,
        };
        config.contradictions(types.len(), path)?;
        Ok(config)
    }

    fn contradictions(&self, up_blocks: usize, path: &Path) -> Result<(), ModelError> {
        let wrong = |key: &str, why: String| Err(ModelError::contradicting(path, key, why));
        let blocks = self.block_out_channels.len();
        if up_blocks != blocks || !(1..=8).contains(&blocks) {
            return wrong("up_block_types", format!("{up_blocks} blocks for {blocks} of block_out_channels"));
        }
        let groups = self.norm_num_groups;
        let undivided = |c: &&usize| groups == 0 || **c == 0 || !c.is_multiple_of(groups);
        if let Some(channels) = self.block_out_channels.iter().find(undivided) {
            return wrong("norm_num_groups", format!("{groups} groups do not divide {channels} channels"));
        }
        if !self.scaling_factor.is_normal() {
            return wrong("scaling_factor", format!("{} cannot be divided by", self.scaling_factor));
        }
        if self.latents_mean.is_some() != self.latents_std.is_some() {
            return wrong("latents_mean", "latents_mean and latents_std come only together".into());
        }
        for (key, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            let (n, channels) =
                (values.as_ref().map_or(self.latent_channels, Vec::len), self.latent_channels);
            if n != channels {
                return wrong(key, format!("{n} values for {channels} latent_channels"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<VaeConfig, ModelError> {
        VaeConfig::from_json(text, Path::new("vae/config.json"))
    }

    const SDXL: &str = r#"{"block_out_channels": [128, 256, 512, 512], "force_upcast": true, "layers_per_block": 2,
        "latent_channels": 4, "scaling_factor": 0.13025, "sample_size": 1024,
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;

    #[test]
    fn reads_sdxl() {
        let config = read(SDXL).unwrap();
        assert_eq!((config.vae_scale_factor(), config.scaling_factor), (8, 0.13025));
        assert_eq!(config.compute_dtype(DType::F16), DType::F32);
        assert_eq!(config.compute_dtype(DType::BF16), DType::BF16);
        let fixed = VaeConfig { force_upcast: false, ..config };
        assert_eq!(fixed.compute_dtype(DType::F16), DType::F16);
    }

    #[test]
    fn names_what_is_wrong() {
        for (text, expected) in [
            (r#"{"act_fn": "relu"}"#, "act_fn = \"relu\" is not supported; supported: \"silu\""),
            (r#"{"shift_factor": 0.1}"#, "shift_factor = 0.1 is not supported"),
            (r#"{"up_block_types": ["AttnUpDecoderBlock2D"]}"#, "up_block_types = \"AttnUpDecoderBlock2D\""),
            (r#"{"block_out_channels": [64, 64]}"#, "up_block_types: 1 blocks for 2"),
            (r#"{"block_out_channels": [48]}"#, "norm_num_groups: 32 groups do not divide 48"),
            (r#"{"scaling_factor": 0}"#, "scaling_factor: 0 cannot be divided by"),
            (r#"{"latents_mean": [0, 0, 0, 0]}"#, "latents_mean: "),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}

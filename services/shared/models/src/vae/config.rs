//! `vae/config.json`: diffusers' `AutoencoderKL`.

use std::path::Path;

use candle_core::{DType, Tensor};
use serde::Deserialize;
use serde_json::Value;

use crate::{ModelError, config::read_json, resnet::Norm};

/// Fixed in diffusers, unlike the UNet's.
const EPS: f32 = 1e-6;

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
    /// Whether the encoder's result goes through a 1 x 1 convolution.
    pub use_quant_conv: bool,
    /// Whether latents go through a 1 x 1 convolution before they are decoded.
    pub use_post_quant_conv: bool,
    /// Whether there is attention at the lowest level.
    pub mid_block_add_attention: bool,
}

/// The keys as they stand in the file; what is missing or null takes the default of diffusers' constructor.
#[derive(Deserialize)]
struct File {
    in_channels: Option<usize>,
    out_channels: Option<usize>,
    latent_channels: Option<usize>,
    block_out_channels: Option<Vec<usize>>,
    down_block_types: Option<Vec<String>>,
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
    use_quant_conv: Option<bool>,
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

    /// Latents for the denoiser: `latents` `[B, C, h, w]` of the encoder times `scaling_factor`, or by each channel's
    /// mean and deviation.
    ///
    /// # Errors
    /// A wrong shape; a failed computation.
    pub fn scale(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        let Some([mean, std]) = self.by_channel(latents)? else {
            return Ok((latents * self.scaling_factor)?);
        };
        Ok((latents.broadcast_sub(&mean)?.broadcast_div(&std)? * self.scaling_factor)?)
    }

    /// The reverse of [`VaeConfig::scale`]: the autoencoder's own latents.
    ///
    /// # Errors
    /// As [`VaeConfig::scale`].
    pub fn unscale(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        let Some([mean, std]) = self.by_channel(latents)? else {
            return Ok((latents / self.scaling_factor)?);
        };
        Ok((latents.broadcast_mul(&std)? / self.scaling_factor)?.broadcast_add(&mean)?)
    }

    /// Mean and deviation `[1, C, 1, 1]` where latents are normalized by channel, as `like` in type and device.
    fn by_channel(&self, like: &Tensor) -> Result<Option<[Tensor; 2]>, ModelError> {
        let (Some(mean), Some(std)) = (&self.latents_mean, &self.latents_std) else { return Ok(None) };
        let tensor =
            |v: &[f32]| Tensor::new(v, like.device())?.reshape((1, v.len(), 1, 1))?.to_dtype(like.dtype());
        Ok(Some([tensor(mean)?, tensor(std)?]))
    }

    /// How every residual block normalizes.
    pub(super) fn norm(&self) -> Norm {
        Norm { num_groups: self.norm_num_groups, eps: EPS }
    }

    fn check(file: File, path: &Path) -> Result<Self, ModelError> {
        let act_fn = file.act_fn.as_deref().unwrap_or("silu");
        if act_fn != "silu" {
            return Err(ModelError::unsupported(path, "act_fn", format!("{act_fn:?}"), "\"silu\""));
        }
        if !file.shift_factor.is_null() {
            return Err(ModelError::unsupported(path, "shift_factor", file.shift_factor, "null"));
        }
        for (key, channels) in [("in_channels", file.in_channels), ("out_channels", file.out_channels)] {
            if let Some(other) = channels.filter(|n| *n != 3) {
                return Err(ModelError::unsupported(path, key, other, "3"));
            }
        }
        let block_out_channels = file.block_out_channels.unwrap_or_else(|| vec![64]);
        let up = block_count("up_block_types", file.up_block_types, "UpDecoderBlock2D", path)?;
        let down = block_count("down_block_types", file.down_block_types, "DownEncoderBlock2D", path)?;
        let config = Self {
            latent_channels: file.latent_channels.unwrap_or(4),
            layers_per_block: file.layers_per_block.unwrap_or(1),
            norm_num_groups: file.norm_num_groups.unwrap_or(32),
            scaling_factor: file.scaling_factor.unwrap_or(0.18215),
            latents_mean: file.latents_mean,
            latents_std: file.latents_std,
            force_upcast: file.force_upcast.unwrap_or(true),
            use_quant_conv: file.use_quant_conv.unwrap_or(true),
            use_post_quant_conv: file.use_post_quant_conv.unwrap_or(true),
            mid_block_add_attention: file.mid_block_add_attention.unwrap_or(true),
            block_out_channels,
        };
        // A decoder's config may leave the encoder's blocks out.
        let (up, down) = (up.unwrap_or(1), down.unwrap_or(config.block_out_channels.len()));
        config.contradictions([("up_block_types", up), ("down_block_types", down)], path)?;
        Ok(config)
    }

    fn contradictions(&self, counts: [(&str, usize); 2], path: &Path) -> Result<(), ModelError> {
        let wrong = |key: &str, why: String| Err(ModelError::contradicting(path, key, why));
        let blocks = self.block_out_channels.len();
        for (key, found) in counts {
            if found != blocks || !(1..=8).contains(&blocks) {
                return wrong(key, format!("{found} blocks for {blocks} of block_out_channels"));
            }
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
        if let Some(std) = self.latents_std.iter().flatten().find(|std| !std.is_normal()) {
            return wrong("latents_std", format!("{std} cannot be divided by"));
        }
        Ok(())
    }
}

/// How many blocks `names` asks for, all of the one kind that there is.
fn block_count(
    key: &str,
    names: Option<Vec<String>>,
    kind: &str,
    path: &Path,
) -> Result<Option<usize>, ModelError> {
    let Some(names) = names else { return Ok(None) };
    match names.iter().find(|name| *name != kind) {
        Some(other) => Err(ModelError::unsupported(path, key, format!("{other:?}"), kind)),
        None => Ok(Some(names.len())),
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
            (r#"{"in_channels": 4}"#, "in_channels = 4 is not supported; supported: 3"),
            (r#"{"down_block_types": ["AttnDownEncoderBlock2D"]}"#, "down_block_types = \"AttnDown"),
            (r#"{"down_block_types": []}"#, "down_block_types: 0 blocks for 1"),
            (r#"{"scaling_factor": 0}"#, "scaling_factor: 0 cannot be divided by"),
            (r#"{"latents_mean": [0, 0, 0, 0]}"#, "latents_mean: "),
            (r#"{"latents_mean": [0, 0, 0, 0], "latents_std": [1, 1, 0, 1]}"#, "latents_std: 0 cannot be"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}

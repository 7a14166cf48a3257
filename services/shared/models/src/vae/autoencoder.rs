//! Both halves as one network that can be trained.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::{Posterior, VaeConfig, check_images, check_latents, decoder::Decoder, encoder::Encoder};
use crate::ModelError;

/// The whole autoencoder. Differentiable where the tensors of its `VarBuilder` are variables; a batch is one graph, and
/// nothing is checked for NaN, which a trainer sees in its loss.
#[derive(Clone, Debug)]
pub struct Autoencoder {
    config: VaeConfig,
    dtype: DType,
    device: Device,
    encoder: Encoder,
    decoder: Decoder,
}

impl Autoencoder {
    /// Loads both halves in the type of `vb`, by diffusers' names: `encoder`, `quant_conv`, `post_quant_conv` and
    /// `decoder`.
    ///
    /// # Errors
    /// A tensor is missing, misshapen or not finite.
    pub fn new(vb: &VarBuilder<'_>, config: &VaeConfig) -> Result<Self, ModelError> {
        Ok(Self {
            dtype: vb.dtype(),
            device: vb.device().clone(),
            encoder: Encoder::load(vb, config)?,
            decoder: Decoder::load(vb, config)?,
            config: config.clone(),
        })
    }

    /// What the autoencoder was built from.
    #[must_use]
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Where its weights lie.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Mean and logarithm of the variance, within -30..=20, of the latents of `images` `[B, 3, H, W]` in -1..1: each
    /// `[B, C, H/8, W/8]`, f32, not scaled.
    ///
    /// # Errors
    /// Sides that are no multiples of [`VaeConfig::vae_scale_factor`] or another wrong shape; a failed computation.
    pub fn moments(&self, images: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
        check_images(images, &self.config)?;
        let moments = self.encoder.forward(&images.to_dtype(self.dtype)?)?;
        let Posterior { mean, logvar } = Posterior::of_moments(&moments.to_dtype(DType::F32)?)?;
        Ok((mean, logvar))
    }

    /// Pictures `[B, 3, 8h, 8w]` in f32, nominally in -1..1, of `latents` `[B, C, h, w]` as [`Autoencoder::moments`]
    /// gives them, not scaled.
    ///
    /// # Errors
    /// A wrong shape; a failed computation.
    pub fn reconstruct(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        check_latents(latents, &self.config)?;
        Ok(self.decoder.forward(&latents.to_dtype(self.dtype)?)?.to_dtype(DType::F32)?)
    }
}

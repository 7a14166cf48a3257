//! The autoencoder (diffusers' `AutoencoderKL`): [`VaeEncoder`] takes pictures to latents and [`VaeDecoder`] latents to
//! pictures, each without the other's weights; [`Autoencoder`] is both as one differentiable network, for training.

mod autoencoder;
mod config;
mod decoder;
mod encoder;
mod mid;
mod picture;
mod posterior;

pub use autoencoder::Autoencoder;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
pub use config::VaeConfig;
use decoder::Decoder;
use encoder::Encoder;
pub use picture::to_rgb8;
pub use posterior::Posterior;

use crate::{ModelError, finite};

/// A loaded decoder.
#[derive(Clone, Debug)]
pub struct VaeDecoder {
    config: VaeConfig,
    dtype: DType,
    device: Device,
    decoder: Decoder,
}

impl VaeDecoder {
    /// Loads the decoder that `config` describes, in the type of `vb`, which [`VaeConfig::compute_dtype`] chooses.
    ///
    /// # Errors
    /// A tensor is missing, misshapen or not finite.
    pub fn new(vb: &VarBuilder<'_>, config: &VaeConfig) -> Result<Self, ModelError> {
        Ok(Self {
            dtype: vb.dtype(),
            device: vb.device().clone(),
            decoder: Decoder::load(vb, config)?,
            config: config.clone(),
        })
    }

    /// What the decoder was built from.
    #[must_use]
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Where its weights lie.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Decodes `latents` `[B, 4, h, w]`, as they come from the denoiser, to pictures `[B, 3, 8h, 8w]` in f32, nominally
    /// in -1..1. One after another, so that memory does not grow with the batch.
    ///
    /// # Errors
    /// [`ModelError::NonFinite`] where latents or pictures hold NaN or infinity; a wrong shape; a failed computation.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        check_latents(latents, &self.config)?;
        finite::check(latents, "latents", None)?;
        let latents = self.config.unscale(&latents.to_dtype(DType::F32)?)?.to_dtype(self.dtype)?;
        let images = one_by_one(&latents, |latents| self.decoder.forward(latents))?;
        finite::check(&images, "image", None)?;
        Ok(images)
    }
}

/// A loaded encoder.
#[derive(Clone, Debug)]
pub struct VaeEncoder {
    config: VaeConfig,
    device: Device,
    encoder: Encoder,
}

impl VaeEncoder {
    /// Loads the encoder that `config` describes, in f32 whatever the type of `vb`: pictures are encoded once, and
    /// half precision overflows or costs digits that every later step would miss.
    ///
    /// # Errors
    /// A tensor is missing, misshapen or not finite.
    pub fn new(vb: &VarBuilder<'_>, config: &VaeConfig) -> Result<Self, ModelError> {
        let vb = vb.clone().set_dtype(DType::F32);
        Ok(Self { device: vb.device().clone(), encoder: Encoder::load(&vb, config)?, config: config.clone() })
    }

    /// What the encoder was built from.
    #[must_use]
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Where its weights lie.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Encodes `images` `[B, 3, H, W]` in -1..1, their sides multiples of [`VaeConfig::vae_scale_factor`]. One after
    /// another, so that memory does not grow with the batch.
    ///
    /// # Errors
    /// [`ModelError::NonFinite`] where pictures or latents hold NaN or infinity; a wrong shape; a failed computation.
    pub fn encode(&self, images: &Tensor) -> Result<Posterior, ModelError> {
        check_images(images, &self.config)?;
        finite::check(images, "image", None)?;
        let moments = one_by_one(&images.to_dtype(DType::F32)?, |image| self.encoder.forward(image))?;
        finite::check(&moments, "latents", None)?;
        Ok(Posterior::of_moments(&moments)?)
    }

    /// The latents of `images`, `[B, C, H/8, W/8]`, scaled as the denoiser takes them: the mean of what
    /// [`VaeEncoder::encode`] gives.
    ///
    /// # Errors
    /// As [`VaeEncoder::encode`].
    pub fn latents(&self, images: &Tensor) -> Result<Tensor, ModelError> {
        self.config.scale(&self.encode(images)?.mean)
    }
}

/// `f` of each item of a batch in turn, in f32.
fn one_by_one(
    batch: &Tensor,
    f: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Tensor> {
    let item = |i| f(&batch.narrow(0, i, 1)?.contiguous()?)?.to_dtype(DType::F32);
    let items = (0..batch.dim(0)?).map(item).collect::<candle_core::Result<Vec<_>>>()?;
    if let [only] = items.as_slice() { Ok(only.clone()) } else { Tensor::cat(&items, 0) }
}

fn check_latents(latents: &Tensor, config: &VaeConfig) -> Result<(), ModelError> {
    let channels = config.latent_channels;
    if matches!(*latents.dims(), [b, c, h, w] if b > 0 && c == channels && h > 0 && w > 0) {
        return Ok(());
    }
    let (found, expected) = (latents.dims().to_vec(), format!("[batch, {channels}, height, width]"));
    Err(ModelError::InvalidInput { what: "latents", found, expected })
}

fn check_images(images: &Tensor, config: &VaeConfig) -> Result<(), ModelError> {
    let factor = config.vae_scale_factor();
    let fits = |side: usize| side > 0 && side.is_multiple_of(factor);
    if matches!(*images.dims(), [b, 3, height, width] if b > 0 && fits(height) && fits(width)) {
        return Ok(());
    }
    let found = images.dims().to_vec();
    let expected = format!("[batch, 3, height, width] with height and width multiples of {factor}");
    Err(ModelError::InvalidInput { what: "image", found, expected })
}

#[cfg(test)]
mod tests;

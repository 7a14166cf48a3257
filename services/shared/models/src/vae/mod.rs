//! The autoencoder's decoder: latents to pictures (diffusers' `AutoencoderKL`).

mod config;
mod decoder;
mod picture;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
pub use config::VaeConfig;
use decoder::Decoder;
pub use picture::to_rgb8;

use crate::{ModelError, conv::Conv2d, finite};

/// A loaded decoder.
#[derive(Clone, Debug)]
pub struct VaeDecoder {
    config: VaeConfig,
    dtype: DType,
    device: Device,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
}

impl VaeDecoder {
    /// Loads the decoder that `config` describes, in the type of `vb`, which [`VaeConfig::compute_dtype`] chooses.
    ///
    /// # Errors
    /// A tensor is missing or misshapen.
    pub fn new(vb: &VarBuilder<'_>, config: &VaeConfig) -> Result<Self, ModelError> {
        let conv = || Conv2d::load(&vb.pp("post_quant_conv"), [config.latent_channels; 2], 1);
        Ok(Self {
            dtype: vb.dtype(),
            device: vb.device().clone(),
            post_quant_conv: config.use_post_quant_conv.then(conv).transpose()?,
            decoder: Decoder::load(&vb.pp("decoder"), config)?,
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
        let channels = self.config.latent_channels;
        if !matches!(*latents.dims(), [b, c, h, w] if b > 0 && c == channels && h > 0 && w > 0) {
            let (found, expected) = (latents.dims().to_vec(), format!("[batch, {channels}, height, width]"));
            return Err(ModelError::InvalidInput { what: "latents", found, expected });
        }
        finite::check(latents, "latents", None)?;
        let latents = self.unscale(&latents.to_dtype(DType::F32)?)?.to_dtype(self.dtype)?;
        let mut images = Vec::with_capacity(latents.dim(0)?);
        for i in 0..latents.dim(0)? {
            let mut latents = latents.narrow(0, i, 1)?.contiguous()?;
            if let Some(conv) = &self.post_quant_conv {
                latents = conv.forward(&latents)?;
            }
            images.push(self.decoder.forward(&latents)?.to_dtype(DType::F32)?);
        }
        let images = if let [only] = images.as_slice() { only.clone() } else { Tensor::cat(&images, 0)? };
        finite::check(&images, "image", None)?;
        Ok(images)
    }

    /// The autoencoder's own latents: `latents / scaling_factor`, or by each channel's mean and deviation.
    fn unscale(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        let scaling_factor = self.config.scaling_factor;
        let (Some(mean), Some(std)) = (&self.config.latents_mean, &self.config.latents_std) else {
            return latents / scaling_factor;
        };
        let by_channel = |v: &[f32]| Tensor::new(v, latents.device())?.reshape((1, v.len(), 1, 1));
        (latents.broadcast_mul(&by_channel(std)?)? / scaling_factor)?.broadcast_add(&by_channel(mean)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded;

    fn tiny() -> VaeDecoder {
        let text = r#"{"block_out_channels": [4, 8], "norm_num_groups": 4, "scaling_factor": 0.5,
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;
        let config = VaeConfig::from_json(text, std::path::Path::new("config.json")).unwrap();
        VaeDecoder::new(&seeded::weights(), &config).unwrap()
    }

    fn latents() -> Tensor {
        Tensor::randn(0f32, 1.0, (2, 4, 5, 3), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_batch_equals_its_items() {
        let (vae, latents) = (tiny(), latents());
        let both = vae.decode(&latents).unwrap();
        assert_eq!(both.dims(), [2, 3, 10, 6]);
        let second = vae.decode(&latents.narrow(0, 1, 1).unwrap()).unwrap();
        let difference = (both.narrow(0, 1, 1).unwrap() - second).unwrap().abs().unwrap();
        assert_eq!(difference.max_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    }

    #[test]
    fn means_and_deviations_count() {
        let mut vae = tiny();
        vae.config.latents_mean = Some(vec![1.0, 0.0, 0.0, 0.0]);
        vae.config.latents_std = Some(vec![1.0, 3.0, 1.0, 1.0]);
        let ones = Tensor::ones((1, 4, 1, 1), DType::F32, &Device::Cpu).unwrap();
        let got = vae.unscale(&ones).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(got, [3.0, 6.0, 2.0, 2.0]);
    }

    #[test]
    fn nan_is_an_error_and_not_a_black_picture() {
        let latents = (latents() * f64::NAN).unwrap();
        let error = tiny().decode(&latents).unwrap_err();
        assert!(matches!(error, ModelError::NonFinite { what: "latents", step: None }), "{error}");
    }
}

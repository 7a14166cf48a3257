//! What the encoder makes of a picture.

use candle_core::{Result, Tensor};

/// The normal distribution of a picture's latents, each value on its own, not yet scaled for the denoiser (see
/// [`VaeConfig::scale`](super::VaeConfig::scale)).
#[derive(Clone, Debug)]
pub struct Posterior {
    /// `[B, C, h, w]`, f32.
    pub mean: Tensor,
    /// The natural logarithm of the variance, `[B, C, h, w]`, f32, within -30..=20.
    pub logvar: Tensor,
}

impl Posterior {
    /// Halves the encoder's result, `[B, 2C, h, w]`.
    pub(super) fn of_moments(moments: &Tensor) -> Result<Self> {
        let channels = moments.dim(1)? / 2;
        let mean = moments.narrow(1, 0, channels)?.contiguous()?;
        // As diffusers does, so that no variance is infinite or nothing.
        let logvar = moments.narrow(1, channels, channels)?.clamp(-30f32, 20f32)?;
        Ok(Self { mean, logvar })
    }
}

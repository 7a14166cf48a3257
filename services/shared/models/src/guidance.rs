//! Classifier-free guidance (Ho and Salimans 2022).

use candle_core::{Result, Tensor};

/// How strongly, and how far the result is rescaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// `guidance_scale`: 1 for the positive prediction alone.
    pub scale: f32,
    /// `guidance_rescale`: how much of the guided prediction gets the positive one's deviation back (Lin et al. 2023,
    /// section 3.4), 0 to 1.
    pub rescale: f32,
}

impl Guidance {
    /// Combines predictions of one shape `[B, C, h, w]` in f32.
    ///
    /// # Errors
    /// A failed computation.
    pub fn combine(&self, negative: &Tensor, positive: &Tensor) -> Result<Tensor> {
        let guided = (negative + ((positive - negative)? * f64::from(self.scale))?)?;
        if self.rescale == 0.0 {
            return Ok(guided);
        }
        let factor = (deviation(positive)? / deviation(&guided)?)?;
        let rescale = f64::from(self.rescale);
        (guided.broadcast_mul(&factor)? * rescale)? + (guided * (1.0 - rescale))?
    }
}

/// Unbiased standard deviation of each item, `[B, 1, 1, 1]`.
fn deviation(x: &Tensor) -> Result<Tensor> {
    let items = x.flatten_from(1)?;
    let n = items.dim(1)?;
    let centred = items.broadcast_sub(&items.mean_keepdim(1)?)?;
    #[expect(clippy::cast_precision_loss, reason = "a count of latents")]
    let variance = (centred.sqr()?.sum_keepdim(1)? / (n as f64 - 1.0))?;
    variance.sqrt()?.reshape((x.dim(0)?, 1, 1, 1))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(values: [f32; 4]) -> Tensor {
        Tensor::from_vec(values.to_vec(), (1, 1, 2, 2), &Device::Cpu).unwrap()
    }

    fn combine(scale: f32, rescale: f32) -> Vec<f32> {
        let (negative, positive) = (tensor([0.0, 1.0, 2.0, 3.0]), tensor([1.0, 1.0, 4.0, 2.0]));
        let got = Guidance { scale, rescale }.combine(&negative, &positive).unwrap();
        got.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn moves_from_negative_past_positive() {
        assert_eq!(combine(2.0, 0.0), [2.0, 1.0, 6.0, 1.0]);
        assert_eq!(combine(1.0, 0.0), [1.0, 1.0, 4.0, 2.0]);
    }

    #[test]
    fn rescale_restores_the_unbiased_deviation() {
        // diffusers' rescale_noise_cfg: deviations sqrt(2) and sqrt(17 / 3), whose ratio is 0.594089.
        let ratio = (2.0_f32 / (17.0 / 3.0)).sqrt();
        for (got, guided) in combine(2.0, 0.7).into_iter().zip([2.0, 1.0, 6.0, 1.0_f32]) {
            let expected = 0.7 * guided * ratio + 0.3 * guided;
            assert!((got - expected).abs() < 1e-6, "{got} for {expected}");
        }
    }
}

//! Sinusoids of timesteps and of size conditioning, and the small networks over them.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::UnetConfig;
use crate::linear::{Linear, linear};

/// Sines and cosines of a number (Vaswani et al. 2017), diffusers' `Timesteps`. Always in f32: in half precision the
/// angles would be off by whole turns.
#[derive(Clone, Debug)]
pub(super) struct Timesteps {
    frequencies: Vec<f32>,
    flip_sin_to_cos: bool,
}

impl Timesteps {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "torch computes these in f32"
    )]
    pub(super) fn new(width: usize, config: &UnetConfig) -> Self {
        let half = width / 2;
        let rate = -(10000_f64.ln() as f32);
        let frequency = |i| {
            let exponent = rate * i as f32 / (half as f32 - config.freq_shift);
            f64::from(exponent).exp() as f32 // rounded once, as torch's exp nearly always is
        };
        Self { frequencies: (0..half).map(frequency).collect(), flip_sin_to_cos: config.flip_sin_to_cos }
    }

    /// Features of each value, `width` apiece, one after another.
    pub(super) fn features(&self, values: &[f32]) -> Vec<f32> {
        let of = |value: &f32, f: fn(f32) -> f32| {
            self.frequencies.iter().map(move |w| f(value * w)).collect::<Vec<_>>()
        };
        let halves: [fn(f32) -> f32; 2] =
            if self.flip_sin_to_cos { [f32::cos, f32::sin] } else { [f32::sin, f32::cos] };
        values.iter().flat_map(|value| halves.into_iter().flat_map(move |f| of(value, f))).collect()
    }

    /// `values` `[B * n]` to features `[B, n * width]` of type `dtype`.
    pub(super) fn forward(
        &self,
        values: &[f32],
        batch: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        Tensor::from_vec(self.features(values), values.len() * self.frequencies.len() * 2, device)?
            .reshape((batch, ()))?
            .to_dtype(dtype)
    }
}

/// Linear, SiLU, Linear.
#[derive(Clone, Debug)]
pub(super) struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    pub(super) fn load(vb: &VarBuilder<'_>, width: usize, time_embed_dim: usize) -> Result<Self> {
        Ok(Self {
            linear_1: linear(width, time_embed_dim, &vb.pp("linear_1"))?,
            linear_2: linear(time_embed_dim, time_embed_dim, &vb.pp("linear_2"))?,
        })
    }

    /// `[B, width]` to `[B, time_embed_dim]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.linear_2.forward_each(&self.linear_1.forward_each(x)?.silu()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timesteps(flip_sin_to_cos: bool) -> Timesteps {
        let text = r#"{"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64}"#;
        let mut config = UnetConfig::from_json(text, std::path::Path::new("config.json")).unwrap();
        config.flip_sin_to_cos = flip_sin_to_cos;
        Timesteps::new(8, &config)
    }

    #[test]
    fn equals_diffusers() {
        // get_timestep_embedding(torch.tensor([981.0, 0.5]), 8, flip_sin_to_cos=True, downscale_freq_shift=0)
        #[rustfmt::skip]
        let expected = [
            0.6799572, -0.75795853, -0.9267152, 0.5561918, 0.7332518, -0.65230274, -0.37576443, 0.831054,
            0.87758255, 0.99875027, 0.9999875, 0.9999999, 0.47942555, 0.049979165, 0.004999979, 0.00049999997,
        ];
        let got = timesteps(true).features(&[981.0, 0.5]);
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            assert!((got - expected).abs() <= 1e-7, "feature {i}: {got} for {expected}");
        }
    }

    #[test]
    fn sines_come_first_unless_flipped() {
        let (flipped, plain) = (timesteps(true).features(&[3.0]), timesteps(false).features(&[3.0]));
        assert_eq!(flipped[..4], plain[4..]);
        assert_eq!(flipped[4..], plain[..4]);
    }

    #[test]
    fn time_ids_are_flattened_in_order() {
        let got = timesteps(true).forward(&[1.0, 2.0, 3.0, 4.0], 2, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(got.dims(), [2, 16]);
        let second = got.get(1).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(second, timesteps(true).features(&[3.0, 4.0]));
    }
}

//! Normalization over the last dimension (Ba et al. 2016).

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::autograd;

/// `weight` and `bias` `[C]`.
#[derive(Clone, Debug)]
pub(crate) struct LayerNorm {
    layer: candle_nn::LayerNorm,
    eps: f64,
}

/// Loads a normalization of `[.., width]`.
pub(crate) fn layer_norm(width: usize, eps: f64, vb: VarBuilder<'_>) -> Result<LayerNorm> {
    Ok(LayerNorm { layer: candle_nn::layer_norm(width, eps, vb)?, eps })
}

impl LayerNorm {
    /// Weight and bias.
    pub(crate) fn affine(&self) -> Option<[&Tensor; 2]> {
        Some([self.layer.weight(), self.layer.bias()?])
    }
}

impl Module for LayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = self.layer.weight();
        match (autograd::wanted(&[x, weight]), self.layer.bias()) {
            #[expect(clippy::cast_possible_truncation, reason = "an epsilon")]
            (Some(_), Some(bias)) => autograd::layer_norm(x, [weight, bias], self.eps as f32),
            _ => self.layer.forward(x),
        }
    }
}

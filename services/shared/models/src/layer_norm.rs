//! Normalization over the last dimension (Ba et al. 2016).

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{
    autograd,
    cpu::{self, Element, Operand},
    cuda,
};

/// `weight` and `bias` `[C]`.
#[derive(Clone, Debug)]
pub(crate) struct LayerNorm {
    layer: candle_nn::LayerNorm,
    eps: f64,
    /// Weight and bias as the CPU's kernels take them.
    packed: Option<[Vec<f32>; 2]>,
}

/// Loads a normalization of `[.., width]`.
pub(crate) fn layer_norm(width: usize, eps: f64, vb: VarBuilder<'_>) -> Result<LayerNorm> {
    let layer = candle_nn::layer_norm(width, eps, vb)?;
    let packed = match (cpu::wanted(layer.weight()), layer.bias()) {
        (Some(_), Some(bias)) => {
            let values = |t: &Tensor| t.to_dtype(DType::F32)?.to_vec1::<f32>();
            Some([values(layer.weight())?, values(bias)?])
        }
        _ => None,
    };
    Ok(LayerNorm { layer, eps, packed })
}

impl LayerNorm {
    /// Weight and bias.
    pub(crate) fn affine(&self) -> Option<[&Tensor; 2]> {
        Some([self.layer.weight(), self.layer.bias()?])
    }

    /// Rows of `x` as factors, if the layer was packed.
    #[expect(clippy::cast_possible_truncation, reason = "an epsilon")]
    pub(crate) fn rows(&self, x: &[f32], element: Element) -> Option<Operand> {
        let [weight, bias] = self.packed.as_ref()?;
        Some(cpu::layer_norm(x, [weight, bias], self.eps as f32, element))
    }
}

impl Module for LayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = self.layer.weight();
        if let Some([weight, bias]) = &self.packed {
            #[expect(clippy::cast_possible_truncation, reason = "an epsilon")]
            let eps = self.eps as f32;
            return cpu::layer_norm_forward(x, [weight, bias], eps);
        }
        match (autograd::wanted(&[x, weight]), self.layer.bias()) {
            #[expect(clippy::cast_possible_truncation, reason = "an epsilon")]
            (Some(_), Some(bias)) => autograd::layer_norm(x, [weight, bias], self.eps as f32),
            #[expect(clippy::cast_possible_truncation, reason = "an epsilon")]
            (None, Some(bias)) if cuda::wanted(&[weight]) => {
                cuda::layer_norm(x, [weight, bias], self.eps as f32)
            }
            #[expect(clippy::cast_possible_truncation, reason = "an epsilon")]
            (None, Some(bias)) if weight.track_op() => {
                candle_nn::ops::layer_norm_slow(x, weight, bias, self.eps as f32)
            }
            _ => self.layer.forward(x),
        }
    }
}

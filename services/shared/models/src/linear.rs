//! Affine maps of the last dimension.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::autograd;

/// `weight` `[out, in]`, `bias` `[out]`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    layer: candle_nn::Linear,
}

impl Linear {
    /// From tensors at hand.
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { layer: candle_nn::Linear::new(weight, bias) }
    }

    pub(crate) fn weight(&self) -> &Tensor {
        self.layer.weight()
    }

    /// Weight and bias, of a map that has one.
    pub(crate) fn affine(&self) -> Option<[&Tensor; 2]> {
        Some([self.layer.weight(), self.layer.bias()?])
    }
}

/// Loads a map with a bias.
pub(crate) fn linear(input: usize, output: usize, vb: VarBuilder<'_>) -> Result<Linear> {
    Ok(Linear { layer: candle_nn::linear(input, output, vb)? })
}

/// Loads a map without one.
pub(crate) fn linear_no_bias(input: usize, output: usize, vb: VarBuilder<'_>) -> Result<Linear> {
    Ok(Linear { layer: candle_nn::linear_no_bias(input, output, vb)? })
}

impl Module for Linear {
    /// `[.., in]` to `[.., out]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match autograd::wanted(&[x, self.layer.weight()]) {
            Some(precision) => autograd::linear(x, self.layer.weight(), self.layer.bias(), precision),
            None => self.layer.forward(x),
        }
    }
}

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

impl Linear {
    /// `[B, in]` to `[B, out]`, where each row is an item of a batch of its own.
    pub(crate) fn forward_each(&self, x: &Tensor) -> Result<Tensor> {
        if autograd::wanted(&[x, self.layer.weight()]).is_some() { self.forward(x) } else { self.by_item(x) }
    }

    /// On the CPU one item after another: how a product sums up depends on its number of rows, and an item must not
    /// depend on what it shares a batch with. Nothing is lost, as an item's product is enough work for all threads.
    fn by_item(&self, x: &Tensor) -> Result<Tensor> {
        let items = x.dim(0)?;
        if items == 1 || !x.device().is_cpu() {
            return self.layer.forward(x);
        }
        let products = (0..items).map(|i| self.layer.forward(&x.narrow(0, i, 1)?));
        Tensor::cat(&products.collect::<Result<Vec<_>>>()?, 0)
    }
}

impl Module for Linear {
    /// `[.., in]` to `[.., out]`; from three dimensions on the first is a batch, whose items do not depend on each
    /// other, to the last bit.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match autograd::wanted(&[x, self.layer.weight()]) {
            Some(precision) => autograd::linear(x, self.layer.weight(), self.layer.bias(), precision),
            None if x.rank() > 2 => self.by_item(x),
            None => self.layer.forward(x),
        }
    }
}

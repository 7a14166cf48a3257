//! Affine maps of the last dimension.

use std::sync::Arc;

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{
    autograd,
    cpu::{self, Element, Matrix},
};

/// `weight` `[out, in]`, `bias` `[out]`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// Without elements where the weight is packed.
    layer: candle_nn::Linear,
    packed: Option<Arc<Matrix>>,
}

impl Linear {
    /// From tensors at hand.
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let element = cpu::wanted(&weight);
        Self::packed_by(weight, bias, element, Matrix::new)
    }

    /// The first half of the results values, the second their gates.
    pub(crate) fn gated(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let element = cpu::wanted(&weight);
        Self::packed_by(weight, bias, element, Matrix::gated)
    }

    fn packed_by(
        weight: Tensor,
        bias: Option<Tensor>,
        element: Option<Element>,
        pack: impl Fn(&Tensor, Option<&Tensor>, Element) -> Result<Matrix>,
    ) -> Result<Self> {
        let Some(element) = element else {
            return Ok(Self { layer: candle_nn::Linear::new(weight, bias), packed: None });
        };
        let packed = pack(&weight, bias.as_ref(), element)?;
        let empty = Tensor::zeros(0, weight.dtype(), weight.device())?;
        Ok(Self { layer: candle_nn::Linear::new(empty, None), packed: Some(Arc::new(packed)) })
    }

    /// As the CPU's kernels take it, if it was packed.
    pub(crate) fn packed(&self) -> Option<&Matrix> {
        self.packed.as_deref()
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
pub(crate) fn linear(input: usize, output: usize, vb: &VarBuilder<'_>) -> Result<Linear> {
    Linear::new(vb.get((output, input), "weight")?, Some(vb.get(output, "bias")?))
}

/// Loads a map without one.
pub(crate) fn linear_no_bias(input: usize, output: usize, vb: &VarBuilder<'_>) -> Result<Linear> {
    Linear::new(vb.get((output, input), "weight")?, None)
}

impl Linear {
    /// `[B, in]` to `[B, out]`, where each row is an item of a batch of its own.
    pub(crate) fn forward_each(&self, x: &Tensor) -> Result<Tensor> {
        if self.packed.is_some() || autograd::wanted(&[x, self.layer.weight()]).is_some() {
            self.forward(x)
        } else {
            self.by_item(x)
        }
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
    /// other, to the last bit. A packed map gives f32 whatever it gets.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(packed) = &self.packed {
            return packed.forward(x);
        }
        match autograd::wanted(&[x, self.layer.weight()]) {
            Some(precision) => autograd::linear(x, self.layer.weight(), self.layer.bias(), precision),
            None if x.rank() > 2 => self.by_item(x),
            None => self.layer.forward(x),
        }
    }
}

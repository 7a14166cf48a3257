//! Affine maps of the last dimension.

use std::sync::Arc;

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{
    autograd,
    cpu::{Loaded, Matrix},
    cuda,
};

/// `weight` `[out, in]`, `bias` `[out]`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// Without elements where the weight is packed.
    layer: candle_nn::Linear,
    packed: Option<Arc<Matrix>>,
}

impl Linear {
    /// With a weight of `shape`, `[out, in]` and ones behind it where it is stored as a convolution; `gated` where the first
    /// half of the results are values and the second their gates.
    fn load(vb: &VarBuilder<'_>, shape: &[usize], has_bias: bool, gated: bool) -> Result<Self> {
        let weight = Loaded::new(vb, shape, "weight")?;
        let bias = has_bias.then(|| vb.get(shape[0], "bias")).transpose()?;
        let pack = if gated { Matrix::gated } else { Matrix::new };
        match weight.packed(|weight, element| pack(weight, bias.as_ref(), element))? {
            Ok((none, packed)) => {
                Ok(Self { layer: candle_nn::Linear::new(none, None), packed: Some(Arc::new(packed)) })
            }
            Err(weight) => {
                // A variable stays the one that it is, wherever it has the shape already.
                let weight = if shape.len() == 2 { weight } else { weight.reshape(&shape[..2])? };
                Ok(Self { layer: candle_nn::Linear::new(weight, bias), packed: None })
            }
        }
    }

    /// Of a `weight` `[out, in]` without a bias.
    pub(crate) fn of(weight: Tensor) -> Self {
        Self { layer: candle_nn::Linear::new(weight, None), packed: None }
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
    Linear::load(vb, &[output, input], true, false)
}

/// Loads a map without one.
pub(crate) fn linear_no_bias(input: usize, output: usize, vb: &VarBuilder<'_>) -> Result<Linear> {
    Linear::load(vb, &[output, input], false, false)
}

/// Loads a map with a bias, the first half of whose results are values and the second their gates.
pub(crate) fn linear_gated(input: usize, output: usize, vb: &VarBuilder<'_>) -> Result<Linear> {
    Linear::load(vb, &[output, input], true, true)
}

/// Loads a map over channels with a bias, which is stored as a 1 x 1 convolution.
pub(crate) fn linear_of_pixels(input: usize, output: usize, vb: &VarBuilder<'_>) -> Result<Linear> {
    Linear::load(vb, &[output, input, 1, 1], true, false)
}

impl Linear {
    /// `[B, in]` to `[B, out]`, where each row is an item of a batch of its own.
    pub(crate) fn forward_each(&self, x: &Tensor) -> Result<Tensor> {
        let whole = self.packed.is_some() || cuda::wanted(&[x, self.layer.weight()]);
        if whole || autograd::wanted(&[x, self.layer.weight()]).is_some() {
            self.forward(x)
        } else {
            self.by_item(x)
        }
    }

    /// [`Linear::forward`] with as many `others` as results added.
    pub(crate) fn forward_onto(&self, x: &Tensor, others: &Tensor) -> Result<Tensor> {
        if cuda::wanted(&[x, self.layer.weight()]) {
            return cuda::linear(x, self.layer.weight(), self.layer.bias(), Some(others));
        }
        others + self.forward(x)?
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
            None if cuda::wanted(&[x, self.layer.weight()]) => {
                cuda::linear(x, self.layer.weight(), self.layer.bias(), None)
            }
            None if x.rank() > 2 => self.by_item(x),
            None => self.layer.forward(x),
        }
    }
}

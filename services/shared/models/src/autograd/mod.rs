//! The layers' differentiable paths, for training on the CPU. On a GPU layers are trained by candle's operations, with channels first.
//!
//! The kernels that serve have no gradients. A layer takes its path here where its weights or its input are part of a
//! graph (candle's `Var`s), or where a [`Scope`] asks for it; the result is the same within rounding, which each file's
//! tests check, as they check every gradient against differences. All of it runs on the calling thread alone, so that
//! a trainer can run several graphs side by side, with the same result whatever else runs.

pub(crate) mod activation;
mod attention;
mod conv;
mod dense;
mod heads;
mod linear;
mod many;
mod matmul;
mod norm;
mod pixels;
mod rearrange;
mod resnet;
pub(crate) mod scratch;
pub(crate) mod slices;
#[cfg(test)]
mod testing;
mod transformer;
mod vector;

use std::cell::Cell;

pub(crate) use activation::{gelu, quick_gelu};
pub(crate) use attention::attend;
use candle_core::{D, Result, Tensor};
pub(crate) use conv::conv2d;
pub(crate) use linear::linear;
pub(crate) use norm::{group_norm, layer_norm};
pub(crate) use pixels::{pixels_in, pixels_out};
pub(crate) use resnet::{ResnetTensors, resnet_block};
pub(crate) use transformer::{TransformerTensors, transformer_block};

/// How matrix products and convolutions compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// In f32.
    #[default]
    F32,
    /// Factors rounded to bf16, sums in f32, where the processor has a matrix unit for it (AMX); elsewhere as
    /// [`Precision::F32`].
    Bf16,
}

thread_local!(static PRECISION: Cell<Option<Precision>> = const { Cell::new(None) });

/// While it lives, every layer on this thread takes its differentiable path, at this precision.
#[derive(Debug)]
pub struct Scope {
    outer: Option<Precision>,
}

impl Scope {
    /// Opens a scope on this thread.
    #[must_use]
    pub fn new(precision: Precision) -> Self {
        Self { outer: PRECISION.replace(Some(precision)) }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        PRECISION.set(self.outer);
    }
}

/// The softmax of the last dimension: by one kernel, which has no gradient, where none may be asked for.
pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    if x.track_op() { candle_nn::ops::softmax(x, D::Minus1) } else { candle_nn::ops::softmax_last_dim(x) }
}

/// `[B, M, N]` to `[B, N, M]`, contiguous.
pub(crate) fn exchanged(x: &Tensor) -> Result<Tensor> {
    match wanted(&[x]) {
        Some(_) => rearrange::exchange(x),
        None => x.transpose(1, 2)?.contiguous(),
    }
}

/// `[B, C, H, W]` to `[B, C, height, width]`, up to twice the size, each pixel by its nearest.
pub(crate) fn upsampled(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    match wanted(&[x]) {
        Some(_) => rearrange::upsample(x, height, width),
        None if x.track_op() => {
            // candle's own has a gradient for whole factors alone, and odd sides are not doubled.
            let nearest = |dim: usize, size: usize| {
                let side = x.dim(dim)?;
                let places = (0..size).map(|i| u32::try_from(i * side / size));
                let places = places.collect::<std::result::Result<Vec<_>, _>>()?;
                Tensor::from_vec(places, size, x.device())
            };
            x.index_select(&nearest(2, height)?, 2)?.index_select(&nearest(3, width)?, 3)
        }
        None => x.upsample_nearest2d(height, width),
    }
}

/// The precision to compute differentiably in, if a gradient may be asked for: `tensors` are a layer's input and
/// weights. On a GPU candle's own operations have gradients.
pub(crate) fn wanted(tensors: &[&Tensor]) -> Option<Precision> {
    if tensors.iter().any(|tensor| !tensor.device().is_cpu()) {
        return None;
    }
    match PRECISION.get() {
        Some(precision) => Some(precision),
        None => tensors.iter().any(|t| t.track_op()).then(Precision::default),
    }
}

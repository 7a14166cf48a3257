//! The layers on the CPU as they serve: weights packed once at load, products and convolutions in kernels of our own,
//! what lies between them fused into what comes before or after.
//!
//! Activations are f32 and lie channel by channel of each pixel, `[B, H, W, C]`, so that a pixel is a row of a matrix
//! and a convolution a sum of matrix products over shifted rows, or in f32 of fewer over tiles. Factors of products are f32, or bf16 summed in f32.
//! Every number of a result is summed in one order, whatever the batch, the threads and the tiles: an item does not
//! depend on what it shares a batch with, to the last bit.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod convolution;
mod element;
mod finish;
mod isa;
mod kept;
mod matrix;
mod norm;
mod operand;
mod packed;
mod portable;
mod product;
mod room;
mod strassen;
mod target;
mod turned;
pub(crate) mod wide;
mod winograd;

use std::{cell::Cell, marker::PhantomData};

pub(crate) use attention::{Keys, Queries, attend};
use candle_core::{DType, Device, Tensor};
pub(crate) use convolution::{Convolution, Margins, Source};
pub(crate) use element::Element;
pub(crate) use finish::Activation;
pub(crate) use matrix::Matrix;
pub(crate) use norm::{Normalization, Then, layer_norm, layer_norm_forward};
pub(crate) use operand::Operand;
pub(crate) use packed::Loaded;

thread_local!(static PACKING: Cell<bool> = const { Cell::new(false) });

/// While it lives, networks that this thread loads on the CPU in f32 or bf16 are packed to serve: much faster, without
/// gradients. In bf16 weights are rounded to it, and where the processor multiplies it so are the other factors of
/// products; everything else is in f32.
#[derive(Debug)]
pub struct Packing {
    outer: bool,
    /// It is its thread's.
    here: PhantomData<*const ()>,
}

impl Packing {
    /// Opens a scope on this thread.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a scope, and no value")]
    pub fn new() -> Self {
        Self { outer: PACKING.replace(true), here: PhantomData }
    }
}

impl Drop for Packing {
    fn drop(&mut self) {
        PACKING.set(self.outer);
    }
}

/// How a weight that is at hand is to be packed, if it is.
pub(crate) fn wanted(weight: &Tensor) -> Option<Element> {
    wanted_of(weight.dtype(), weight.device()).filter(|_| !weight.track_op())
}

/// How weights that are loaded as that type are to be packed, if they are.
fn wanted_of(dtype: DType, device: &Device) -> Option<Element> {
    if !PACKING.get() || !device.is_cpu() {
        return None;
    }
    match dtype {
        DType::F32 => Some(Element::F32),
        DType::BF16 if isa::multiplies_bf16() => Some(Element::Bf16),
        DType::BF16 => Some(Element::F32),
        _ => None,
    }
}

#[cfg(test)]
mod tests;

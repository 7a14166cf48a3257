//! Seeded random weights for tests: any network can be built from them, and no part of it is zero.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

use crate::noise::TorchGenerator;

/// Weights scaled by their fan-in, biases small, both by the tensor's name.
struct Seeded;

impl SimpleBackend for Seeded {
    fn get(&self, s: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let seed = name.bytes().fold(7_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let noise = TorchGenerator::new(seed).randn(s.elem_count());
        let (scale, shift) = match *s.dims() {
            [_] if name.ends_with("weight") => (0.1, 1.0),
            [_] => (0.1, 0.0),
            [out, ..] => ((out as f64 / s.elem_count() as f64).sqrt(), 0.0),
            [] => (1.0, 0.0),
        };
        Tensor::from_vec(noise, s, device)?.affine(scale, shift)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name} has no shape to draw")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// Weights in f32 on the CPU for any network.
pub(crate) fn weights() -> VarBuilder<'static> {
    weights_on(DType::F32, &Device::Cpu)
}

/// The same numbers in another type and place.
pub(crate) fn weights_on(dtype: DType, device: &Device) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Seeded), dtype, device.clone())
}

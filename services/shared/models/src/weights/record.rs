//! A `VarBuilder` that only notes what a network asks for.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

/// A tensor's name and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Full name, as in the safetensors file.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

/// Collects the names and shapes of the tensors that a network is made of, in the order in which it asks, without
/// holding any weights: every tensor handed out is one zero, broadcast.
#[derive(Clone, Debug, Default)]
pub struct TensorRecorder {
    specs: Arc<Mutex<Vec<TensorSpec>>>,
}

impl TensorRecorder {
    /// A builder to make the network with. The network cannot be run sensibly.
    #[must_use]
    pub fn var_builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), DType::F32, Device::Cpu)
    }

    /// What was asked for so far, each name once.
    #[must_use]
    pub fn specs(&self) -> Vec<TensorSpec> {
        self.specs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl SimpleBackend for TensorRecorder {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut specs = self.specs.lock().unwrap_or_else(PoisonError::into_inner);
        if !specs.iter().any(|s| s.name == name) {
            specs.push(TensorSpec { name: name.to_owned(), shape: shape.dims().to_vec() });
        }
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("the shape of {name} is not known while recording")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_shapes_are_noted_once_and_in_order() {
        let recorder = TensorRecorder::default();
        let vb = recorder.var_builder();
        candle_nn::linear(3, 5, vb.pp("a.b")).unwrap();
        vb.get(4, "c").unwrap();
        vb.get(4, "c").unwrap();
        let specs: Vec<_> = recorder.specs().into_iter().map(|s| (s.name, s.shape)).collect();
        let expected = [("a.b.weight", vec![5, 3]), ("a.b.bias", vec![5]), ("c", vec![4])];
        assert_eq!(specs, expected.map(|(n, s)| (n.to_owned(), s)));
    }
}

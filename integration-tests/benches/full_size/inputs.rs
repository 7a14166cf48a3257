//! What both sides are given and what comes out, as safetensors files.

use safetensors::{Dtype, SafeTensors, serialize_to_file, tensor::TensorView};
use sdxl_models::noise::TorchGenerator;
use std::{collections::HashMap, fs, path::Path};

/// A tensor in f32.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

impl Values {
    /// Unit noise of a seed, times `scale`.
    pub(crate) fn noise(seed: u64, shape: &[usize], scale: f32) -> Self {
        let values = TorchGenerator::new(seed).randn(shape.iter().product());
        Self { shape: shape.to_vec(), values: values.into_iter().map(|v| v * scale).collect() }
    }

    /// Little-endian bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// One item of the first dimension.
    pub(crate) fn item(&self, i: usize) -> Self {
        let shape = self.shape[1..].to_vec();
        let size: usize = shape.iter().product();
        Self { values: self.values[i * size..(i + 1) * size].to_vec(), shape }
    }
}

/// Writes the peers' inputs, with what is no tensor as metadata.
pub(crate) fn write(file: &Path, tensors: &[(&str, &Values)], metadata: &[(&str, String)]) {
    let bytes: Vec<_> = tensors.iter().map(|(_, tensor)| tensor.bytes()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, tensor), bytes)| {
        (*name, TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).expect("bytes that fit"))
    });
    let metadata: HashMap<_, _> =
        metadata.iter().map(|(key, text)| ((*key).to_owned(), text.clone())).collect();
    serialize_to_file(views, Some(metadata), file).expect("the inputs are written");
}

/// What a peer has written.
pub(crate) fn read(file: &Path) -> HashMap<String, Vec<f32>> {
    let bytes = fs::read(file).expect("a peer's outputs");
    let tensors = SafeTensors::deserialize(&bytes).expect("a peer's outputs");
    let floats =
        |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    tensors.iter().map(|(name, tensor)| (name.to_owned(), floats(tensor.data()))).collect()
}

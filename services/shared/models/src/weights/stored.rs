//! Weights as they lie in their files, for whoever takes them apart in any case: no tensor is made of them.

use std::{cell::RefCell, ops::Range, path::PathBuf};

use candle_core::{DType, Shape, Tensor};
use candle_nn::VarBuilder;
use half::{bf16, slice::HalfFloatSliceExt};
use safetensors::Dtype;

use super::{
    convert::{self, BLOCK},
    mapping::{MappedFile, StoredTensor},
    pages::Bytes,
};
use crate::ModelError;

/// A tensor's bytes as they were in its file. Whether its numbers are finite is for whoever takes them apart to
/// [`Stored::check`].
#[derive(Debug)]
pub(crate) struct Stored {
    bytes: Bytes,
    origin: Origin,
    stored_as: Dtype,
    shape: Vec<usize>,
    dtype: DType,
}

/// Where a tensor comes from, for what is wrong with it.
#[derive(Debug)]
pub(super) struct Origin {
    path: PathBuf,
    tensor: String,
}

impl Origin {
    pub(super) fn new(file: &MappedFile, tensor: &StoredTensor<'_>) -> Self {
        Self { path: file.path().to_owned(), tensor: tensor.name.to_owned() }
    }

    /// One of its numbers is not finite in `dtype`.
    pub(super) fn non_finite(&self, dtype: DType) -> ModelError {
        let Self { path, tensor } = self;
        ModelError::NonFiniteTensor { path: path.clone(), tensor: tensor.clone(), dtype: dtype.as_str() }
    }
}

thread_local!(static ASKED: RefCell<Option<Option<Stored>>> = const { RefCell::new(None) });

/// While it lives, its thread asks for weights as they are stored.
struct Asking;

impl Drop for Asking {
    fn drop(&mut self) {
        ASKED.take();
    }
}

impl Stored {
    /// The weight of `name` and `shape` as it is stored, if what `vb` builds from are [`super::Weights`] as they are; else the
    /// tensor.
    ///
    /// # Errors
    /// Where it is missing, misshapen or of a type that is not computed with, as `vb` says.
    pub(crate) fn of(
        vb: &VarBuilder<'_>,
        shape: &[usize],
        name: &str,
    ) -> candle_core::Result<Result<Self, Tensor>> {
        // A `VarBuilder` hands on nothing but tensors, so what it is asked for passes it by on the thread that asks.
        ASKED.set(Some(None));
        let asking = Asking;
        let tensor = vb.get(shape, name)?;
        let answer = ASKED.take().flatten();
        drop(asking);
        // Whoever makes something else of a tensor on its way is taken at its word.
        Ok(answer.filter(|stored| tensor.elem_count() == 0 && stored.shape == shape).ok_or(tensor))
    }

    /// Whether this thread asks for a weight as it is stored.
    pub(super) fn is_asked_for() -> bool {
        ASKED.with_borrow(Option::is_some)
    }

    /// What it gets.
    pub(super) fn answer(self) {
        ASKED.set(Some(Some(self)));
    }

    pub(super) fn new(bytes: Bytes, origin: Origin, stored_as: Dtype, shape: &Shape, dtype: DType) -> Self {
        Self { bytes, origin, stored_as, shape: shape.dims().to_vec(), dtype }
    }

    pub(crate) fn dims(&self) -> &[usize] {
        &self.shape
    }

    /// The type that is computed with.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// The type that they are stored as.
    pub(crate) fn stored_as(&self) -> Dtype {
        self.stored_as
    }

    /// As they were in the file, the little end first.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Looks at `count` numbers from `first` on.
    ///
    /// # Errors
    /// [`ModelError::NonFiniteTensor`].
    pub(crate) fn check(&self, first: usize, count: usize) -> Result<(), ModelError> {
        let width = self.stored_as.bitsize() / 8;
        let bytes = &self.bytes[first * width..(first + count) * width];
        match convert::are_finite(bytes, self.stored_as, self.dtype) {
            true => Ok(()),
            false => Err(self.origin.non_finite(self.dtype)),
        }
    }

    /// Numbers from `first` on, as those that are computed with.
    pub(crate) fn read(&self, first: usize, out: &mut [f32]) {
        let from = self.stored_as;
        let width = from.bitsize() / 8;
        let Range { start, end } = first * width..(first + out.len()) * width;
        let bytes = &self.bytes[start..end];
        for (out, bytes) in out.chunks_mut(BLOCK).zip(bytes.chunks(BLOCK * width)) {
            convert::read_f32(bytes, from, out);
            if self.dtype == DType::BF16 {
                let mut rounded = [bf16::ZERO; BLOCK];
                let rounded = &mut rounded[..out.len()];
                rounded.convert_from_f32_slice(out);
                rounded.convert_to_f32_slice(out);
            }
        }
    }
}

//! Tensors as the slices they are, and back.

use candle_core::{CpuStorage, Layout, Result, Shape, Storage, Tensor, bail};

/// The elements of contiguous f32 `storage`.
pub(crate) fn of<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a kernel takes contiguous tensors"),
    }
}

/// Calls `f` with the elements of `tensor`, laid out anew if they are not contiguous.
pub(crate) fn with<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(of(storage, layout)?),
        _ => bail!("kernels run on the CPU"),
    }
}

/// [`with`] several at once.
pub(crate) fn with_all<T, const N: usize>(
    tensors: &[&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> Result<T>,
) -> Result<T> {
    with_list(tensors, |slices| match slices.try_into() {
        Ok(slices) => f(slices),
        Err(_) => bail!("as many slices as tensors"),
    })
}

/// [`with`] any number of them.
pub(crate) fn with_list<T>(tensors: &[&Tensor], f: impl FnOnce(&[&[f32]]) -> Result<T>) -> Result<T> {
    let tensors = tensors.iter().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
    let guards: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let storages = guards.iter().map(|(storage, layout)| match &**storage {
        Storage::Cpu(storage) => of(storage, layout),
        _ => bail!("kernels run on the CPU"),
    });
    let slices = storages.collect::<Result<Vec<_>>>()?;
    f(&slices)
}

/// A kernel's result.
pub(crate) fn result(values: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(values), shape.into()))
}

/// A gradient of the shape of `like`.
pub(crate) fn tensor_like(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}

//! From a file's little-endian bytes to a tensor of the dtype that is computed in, in one parallel pass.

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;
use safetensors::tensor::Dtype;

/// Elements that one task converts: large enough to hide the cost of a task, small enough to stay in cache.
const CHUNK: usize = 64 * 1024;
/// Half-precision values are gathered in blocks of this many before the vectorised conversion.
pub(super) const BLOCK: usize = 1024;

/// Whether weights may be stored as `dtype`.
pub(super) fn is_supported(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

/// Whether all numbers of a supported type are finite as `to`, too.
pub(super) fn are_finite(data: &[u8], from: Dtype, to: DType) -> bool {
    // From here on they are rounded to infinity.
    let limit = match to {
        DType::F16 => 65_520_f32.to_bits(),
        DType::BF16 => 0x7f7f_8000,
        _ => f32::INFINITY.to_bits(),
    };
    match from {
        // Every type holds the greatest of them.
        Dtype::F16 => greatest(data, |b| u16::from_le_bytes(b) & 0x7fff) < 0x7c00,
        Dtype::BF16 => u32::from(greatest(data, |b| u16::from_le_bytes(b) & 0x7fff)) << 16 < limit,
        Dtype::F64 => greatest(data, |b| (f64::from_le_bytes(b) as f32).to_bits() & 0x7fff_ffff) < limit,
        _ => greatest(data, |b| u32::from_le_bytes(b) & 0x7fff_ffff) < limit,
    }
}

/// Of the numbers of so many bytes, by what makes of each bits that are in the order of their magnitudes.
fn greatest<const WIDTH: usize, T: Ord + Default>(data: &[u8], magnitude: impl Fn([u8; WIDTH]) -> T) -> T {
    data.as_chunks().0.iter().fold(T::default(), |most, bytes| most.max(magnitude(*bytes)))
}

/// Makes a tensor of `shape` and `to` on `device` out of `data`, whose length fits `shape` and `from`; none where a number is
/// not finite.
pub(super) fn to_tensor(
    data: &[u8],
    from: Dtype,
    shape: &[usize],
    to: DType,
    device: &Device,
) -> candle_core::Result<Option<Tensor>> {
    match to {
        DType::F32 => build(data, from, shape, device, |block, out: &mut [f32]| out.copy_from_slice(block)),
        DType::F16 if from == Dtype::F16 => same_width(data, from, shape, device, f16::from_le_bytes),
        DType::BF16 if from == Dtype::BF16 => same_width(data, from, shape, device, bf16::from_le_bytes),
        DType::F16 => {
            build(data, from, shape, device, |block, out: &mut [f16]| out.convert_from_f32_slice(block))
        }
        DType::BF16 => {
            build(data, from, shape, device, |block, out: &mut [bf16]| out.convert_from_f32_slice(block))
        }
        other => {
            candle_core::bail!("weights cannot be computed with in {other:?}; supported: f32, f16, bf16")
        }
    }
}

/// Copies values that need no conversion.
fn same_width<T: WithDType + Send + Sync>(
    data: &[u8],
    from: Dtype,
    shape: &[usize],
    device: &Device,
    read: impl Fn([u8; 2]) -> T + Sync,
) -> candle_core::Result<Option<Tensor>> {
    by_chunks(data, from, shape, device, |bytes, out| {
        for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
            *o = read(*b);
        }
    })
}

/// Converts by way of f32, block by block.
fn build<T: WithDType + Send + Sync>(
    data: &[u8],
    from: Dtype,
    shape: &[usize],
    device: &Device,
    write: impl Fn(&[f32], &mut [T]) + Sync,
) -> candle_core::Result<Option<Tensor>> {
    let width = from.bitsize() / 8;
    by_chunks(data, from, shape, device, |bytes, out| {
        let mut block = [0f32; BLOCK];
        for (out, bytes) in out.chunks_mut(BLOCK).zip(bytes.chunks(BLOCK * width)) {
            let block = &mut block[..out.len()];
            read_f32(bytes, from, block);
            write(block, out);
        }
    })
}

/// `convert`s bytes chunk by chunk, each seen to be finite before.
fn by_chunks<T: WithDType + Send + Sync>(
    data: &[u8],
    from: Dtype,
    shape: &[usize],
    device: &Device,
    convert: impl Fn(&[u8], &mut [T]) + Sync,
) -> candle_core::Result<Option<Tensor>> {
    let width = from.bitsize() / 8;
    let mut values = vec![T::zero(); data.len() / width];
    let chunks = values.par_chunks_mut(CHUNK).zip(data.par_chunks(CHUNK * width));
    let finite =
        chunks.try_for_each(|(out, bytes)| are_finite(bytes, from, T::DTYPE).then(|| convert(bytes, out)));
    finite.map(|()| Tensor::from_vec(values, shape, device)).transpose()
}

/// Reads at most [`BLOCK`] values of a supported type as f32.
pub(super) fn read_f32(bytes: &[u8], from: Dtype, out: &mut [f32]) {
    match from {
        Dtype::F16 => {
            let mut halves = [f16::ZERO; BLOCK];
            let halves = &mut halves[..out.len()];
            for (h, b) in halves.iter_mut().zip(bytes.as_chunks().0) {
                *h = f16::from_le_bytes(*b);
            }
            halves.convert_to_f32_slice(out);
        }
        Dtype::BF16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        Dtype::F64 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                // The nearest f32 is what torch's `.float()` gives.
                *o = f64::from_le_bytes(*b) as f32;
            }
        }
        _ => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than a chunk, and not a whole number of blocks.
    const COUNT: usize = CHUNK + 3 * BLOCK + 17;

    fn values() -> Vec<f32> {
        (0..COUNT).map(|i| (i as f32 - 3e4) * 1e-3).collect()
    }

    fn read(data: &[u8], from: Dtype, to: DType) -> Vec<f32> {
        let tensor = to_tensor(data, from, &[COUNT], to, &Device::Cpu).unwrap().unwrap();
        assert_eq!(tensor.dtype(), to);
        tensor.to_dtype(DType::F32).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn every_pair_of_types_gives_the_nearest_value() {
        let v = values();
        let f32s: Vec<u8> = v.iter().flat_map(|x| x.to_le_bytes()).collect();
        let f64s: Vec<u8> = v.iter().flat_map(|x| f64::from(*x).to_le_bytes()).collect();
        let f16s: Vec<u8> = v.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        let bf16s: Vec<u8> = v.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        let in_f16: Vec<f32> = v.iter().map(|x| f16::from_f32(*x).to_f32()).collect();
        let in_bf16: Vec<f32> = v.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        for (data, from) in [(&f32s, Dtype::F32), (&f64s, Dtype::F64)] {
            assert!(read(data, from, DType::F32) == v);
            assert!(read(data, from, DType::F16) == in_f16);
            assert!(read(data, from, DType::BF16) == in_bf16);
        }
        assert!(read(&f16s, Dtype::F16, DType::F32) == in_f16);
        assert!(read(&f16s, Dtype::F16, DType::F16) == in_f16);
        assert!(read(&bf16s, Dtype::BF16, DType::F32) == in_bf16);
        assert!(read(&bf16s, Dtype::BF16, DType::BF16) == in_bf16);
    }

    #[test]
    fn what_is_finite_is_told_as_converting_would() {
        let limits = [65_504.0, 65_520.0, f32::from_bits(0x7f7f_8000), f32::MAX, f32::INFINITY];
        let near = |limit: f32| [limit, f32::from_bits(limit.to_bits() - 1)];
        let magnitudes = limits.into_iter().flat_map(near).chain([0.0, f32::MIN_POSITIVE / 2.0, f32::NAN]);
        for value in magnitudes.flat_map(|value| [value, -value]) {
            let mut f64s = vec![f64::from(value)];
            if value.abs() == f32::MAX {
                f64s.push(f64::from(value) * 2.0);
            }
            let mut stored = vec![
                (Dtype::F32, value.to_le_bytes().to_vec()),
                (Dtype::F16, f16::from_f32(value).to_le_bytes().to_vec()),
                (Dtype::BF16, bf16::from_f32(value).to_le_bytes().to_vec()),
            ];
            stored.extend(f64s.iter().map(|value| (Dtype::F64, value.to_le_bytes().to_vec())));
            for (from, bytes) in stored {
                let mut number = [0.0];
                read_f32(&bytes, from, &mut number);
                let [number] = number;
                for (to, finite) in [
                    (DType::F32, number.is_finite()),
                    (DType::F16, f16::from_f32(number).is_finite()),
                    (DType::BF16, bf16::from_f32(number).is_finite()),
                ] {
                    // Wherever it is among others.
                    let len = bytes.len();
                    for at in [0, 33, 99] {
                        let mut many = vec![0; 100 * len];
                        many[at * len..][..len].copy_from_slice(&bytes);
                        assert_eq!(are_finite(&many, from, to), finite, "{value} in {from:?} as {to:?}");
                        let tensor = to_tensor(&many, from, &[100], to, &Device::Cpu).unwrap();
                        assert_eq!(tensor.is_some(), finite, "{value} in {from:?} as {to:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_number_in_the_last_chunk_counts() {
        for (from, to) in [(Dtype::F32, DType::F32), (Dtype::F16, DType::F16)] {
            let width = from.bitsize() / 8;
            let mut data = vec![0; COUNT * width];
            let all = |data: &[u8]| to_tensor(data, from, &[COUNT], to, &Device::Cpu).unwrap();
            assert!(all(&data).is_some());
            data[(COUNT - 1) * width..].fill(0xff);
            assert!(all(&data).is_none());
        }
    }

    #[test]
    fn unaligned_bytes_are_read_right() {
        let v = values();
        let mut bytes = vec![0u8];
        bytes.extend(v.iter().flat_map(|x| x.to_le_bytes()));
        assert!(read(&bytes[1..], Dtype::F32, DType::F32) == v);
    }
}

//! Tensors off and onto the wire.

use crate::error::StageError;
use bytes::Bytes;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use sdxl_proto::{convert::WireError, v1};

/// The tensor that `message`, the request's field `field`, holds, on the CPU.
///
/// # Errors
/// Where the number format is unknown or the bytes do not fit shape and format; the field is named.
pub fn from_wire(field: &str, message: &v1::Tensor) -> Result<Tensor, StageError> {
    let (dtype, name, width) = match message.dtype() {
        v1::DType::F32 => (DType::F32, "f32", 4),
        v1::DType::F16 => (DType::F16, "f16", 2),
        v1::DType::Bf16 => (DType::BF16, "bf16", 2),
        v1::DType::Unspecified => {
            return Err(WireError::unknown_enum(&format!("{field}.dtype"), message.dtype).into());
        }
    };
    let shape: Vec<usize> = message.shape.iter().map(|d| *d as usize).collect();
    let wanted = shape.iter().try_fold(width, |product: usize, d| product.checked_mul(*d));
    if wanted != Some(message.data.len()) {
        let wanted = wanted.map_or("more than there can be".to_owned(), |n| n.to_string());
        let description = format!(
            "{} bytes do not fit shape {shape:?} of {name}, which takes {wanted}",
            message.data.len()
        );
        return Err(WireError::new(&format!("{field}.data"), description).into());
    }
    let tensor = Tensor::from_raw_buffer(&message.data, dtype, &shape, &Device::Cpu);
    tensor.map_err(|e| WireError::new(field, e.to_string()).into())
}

/// `tensor` as a message, in its own number format; formats that the wire does not have go as f32.
///
/// # Errors
/// Where the tensor cannot be read from its device.
pub fn to_wire(tensor: &Tensor) -> candle_core::Result<v1::Tensor> {
    #[expect(clippy::cast_possible_truncation, reason = "no side of a tensor reaches 2^32")]
    let shape = tensor.dims().iter().map(|d| *d as u32).collect();
    let flat = tensor.flatten_all()?;
    let data = match flat.dtype() {
        DType::F16 => bytes_of(&flat.to_vec1::<f16>()?, f16::to_le_bytes),
        DType::BF16 => bytes_of(&flat.to_vec1::<bf16>()?, bf16::to_le_bytes),
        _ => bytes_of(&flat.to_dtype(DType::F32)?.to_vec1::<f32>()?, f32::to_le_bytes),
    };
    Ok(v1::Tensor { shape, dtype: wire_type(tensor.dtype()).into(), data })
}

/// The wire's name of a number format; f32 for those that it does not have.
#[must_use]
pub fn wire_type(dtype: DType) -> v1::DType {
    match dtype {
        DType::F16 => v1::DType::F16,
        DType::BF16 => v1::DType::Bf16,
        _ => v1::DType::F32,
    }
}

fn bytes_of<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Bytes {
    // In place, which the compiler makes one copy of; appending looks at the capacity for each value.
    let mut data = vec![0; values.len() * N];
    for (place, value) in data.chunks_exact_mut(N).zip(values) {
        place.copy_from_slice(&bytes(*value));
    }
    data.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdxl_core::Classify;

    fn message(shape: &[u32], dtype: v1::DType, bytes: usize) -> v1::Tensor {
        v1::Tensor { shape: shape.to_vec(), dtype: dtype.into(), data: vec![0; bytes].into() }
    }

    #[test]
    fn every_format_comes_back_as_it_went() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let tensor = Tensor::new(&[[1.5f32, -2.0], [0.25, 1e-3]], &Device::Cpu).unwrap();
            let tensor = tensor.to_dtype(dtype).unwrap();
            // A transposed view: the wire is row-major whatever the layout.
            let sent = to_wire(&tensor.t().unwrap()).unwrap();
            let received = from_wire("x", &sent).unwrap();
            assert_eq!((received.dtype(), received.dims()), (dtype, &[2, 2][..]));
            let values = |t: &Tensor| t.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(values(&received), values(&tensor.t().unwrap()));
        }
    }

    #[test]
    fn bytes_that_do_not_fit_name_the_field() {
        let error =
            from_wire("conditioning.prompt_embeds", &message(&[77, 64], v1::DType::F32, 12)).unwrap_err();
        let violation = &error.violations()[0];
        assert_eq!(violation.field, "conditioning.prompt_embeds.data");
        assert_eq!(violation.description, "12 bytes do not fit shape [77, 64] of f32, which takes 19712");
    }

    #[test]
    fn shapes_too_big_to_count_are_refused() {
        let error = from_wire("latents", &message(&[u32::MAX; 4], v1::DType::F16, 8)).unwrap_err();
        assert_eq!(error.violations()[0].field, "latents.data");
    }

    #[test]
    fn an_unknown_format_is_refused() {
        let mut wrong = message(&[1], v1::DType::F32, 4);
        wrong.dtype = 17;
        let error = from_wire("latents", &wrong).unwrap_err();
        assert_eq!(error.violations()[0].field, "latents.dtype");
        assert!(error.to_string().contains("17"), "{error}");
    }
}

//! Decoded values to bytes.

use candle_core::{DType, Tensor};

use crate::{ModelError, finite};

/// A decoded picture `[3, H, W]`, nominally in -1..1, as `H * W * 3` bytes of RGB. Rounds to the nearest, ties to even,
/// as diffusers does.
///
/// # Errors
/// Another shape, or [`ModelError::NonFinite`] where a value is NaN or infinite.
pub fn to_rgb8(image: &Tensor) -> Result<Vec<u8>, ModelError> {
    if !matches!(*image.dims(), [3, _, _]) {
        let (found, expected) = (image.dims().to_vec(), "[3, height, width]".to_owned());
        return Err(ModelError::InvalidInput { what: "image", found, expected });
    }
    let values = image.to_dtype(DType::F32)?.permute((1, 2, 0))?.flatten_all()?.to_vec1::<f32>()?;
    if !values.iter().all(|v| v.is_finite()) {
        return Err(finite::error("image", None));
    }
    Ok(values.into_iter().map(to_byte).collect())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
fn to_byte(v: f32) -> u8 {
    ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn bytes_are_interleaved_and_clamped() {
        let values: Vec<f32> = vec![-2.0, -1.0, 0.0, 1.0, 2.0, 0.5];
        let image = Tensor::from_vec(values, (3, 1, 2), &Device::Cpu).unwrap();
        assert_eq!(to_rgb8(&image).unwrap(), [0, 128, 255, 0, 255, 191]);
    }

    #[test]
    fn ties_go_to_even() {
        // In f32 these come to exactly 64.5, 127.5 and 200.5.
        assert_eq!([-0.494_117_65, 0.0, 0.572_549].map(to_byte), [64, 128, 200]);
    }

    #[test]
    fn infinity_is_an_error() {
        let image = Tensor::from_vec(vec![0.0f32, f32::INFINITY, 0.0], (3, 1, 1), &Device::Cpu).unwrap();
        assert!(matches!(to_rgb8(&image), Err(ModelError::NonFinite { what: "image", .. })));
        assert!(matches!(to_rgb8(&image.unsqueeze(0).unwrap()), Err(ModelError::InvalidInput { .. })));
    }
}

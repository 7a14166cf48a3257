//! NaN and infinity are errors, never pictures.

use candle_core::{DType, Tensor};

use crate::ModelError;

/// Fails where a value is NaN or infinite; `step` is the one just done.
pub(crate) fn check(tensor: &Tensor, what: &'static str, step: Option<usize>) -> Result<(), ModelError> {
    // Finite values times zero add up to zero, on any device; others to NaN.
    let sum = (tensor.to_dtype(DType::F32)? * 0.0)?.sum_all()?.to_scalar::<f32>()?;
    if sum == 0.0 { Ok(()) } else { Err(error(what, step)) }
}

/// The error itself.
pub(crate) fn error(what: &'static str, step: Option<usize>) -> ModelError {
    ModelError::NonFinite { what, step }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn one_bad_value_is_found() {
        for (bad, fine) in
            [(f32::NAN, false), (f32::INFINITY, false), (f32::NEG_INFINITY, false), (f32::MAX, true)]
        {
            let mut values = vec![f32::MAX; 1000];
            values[617] = bad;
            let tensor = Tensor::from_vec(values, (10, 100), &Device::Cpu).unwrap();
            assert_eq!(check(&tensor, "latents", Some(3)).is_ok(), fine, "{bad}");
        }
    }
}

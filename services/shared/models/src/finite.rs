//! NaN and infinity are errors, never pictures.

use candle_core::{DType, Tensor};

use crate::{ModelError, cuda};

/// Whether values are finite: asked of a device that may have other work before it.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Zero where they are.
    sum: Sum,
    what: &'static str,
    step: Option<usize>,
}

#[derive(Debug)]
enum Sum {
    Known(f32),
    Arriving(cuda::Arriving),
}

/// Asks, and does not wait where the device works by itself; `step` is the one just done.
pub(crate) fn ask(tensor: &Tensor, what: &'static str, step: Option<usize>) -> Result<Asked, ModelError> {
    // Finite values times zero add up to zero, on any device; others to NaN.
    let sum = (tensor.to_dtype(DType::F32)? * 0.0)?.sum_all()?;
    let sum = match sum.device().is_cuda() {
        true => Sum::Arriving(cuda::Arriving::of(&sum)?),
        false => Sum::Known(sum.to_scalar()?),
    };
    Ok(Asked { sum, what, step })
}

impl Asked {
    /// Waits for the answer; fails where a value is NaN or infinite.
    pub(crate) fn answer(&self) -> Result<(), ModelError> {
        let sum = match &self.sum {
            Sum::Known(sum) => *sum,
            Sum::Arriving(sum) => sum.wait()?,
        };
        if sum == 0.0 { Ok(()) } else { Err(error(self.what, self.step)) }
    }
}

/// Fails where a value is NaN or infinite; `step` is the one just done.
pub(crate) fn check(tensor: &Tensor, what: &'static str, step: Option<usize>) -> Result<(), ModelError> {
    ask(tensor, what, step)?.answer()
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

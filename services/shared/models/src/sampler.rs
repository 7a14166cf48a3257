//! A noise schedule's numbers applied to latents, always in f32.

use candle_core::{Result, Tensor};
use sdxl_core::schedule::{NoiseLevel, StepCoefficients};

/// The next sample, from this one and the network's output, both f32 of one shape.
///
/// # Errors
/// A failed computation.
pub fn step(coefficients: &StepCoefficients, sample: &Tensor, model_output: &Tensor) -> Result<Tensor> {
    let next = combine(sample, coefficients.sample, model_output, coefficients.model_output)?;
    let Some(clipped) = &coefficients.clipped else { return Ok(next) };
    let original = combine(sample, clipped.sample, model_output, clipped.model_output)?;
    next + (original.clamp(-clipped.range, clipped.range)? * f64::from(clipped.weight))?
}

/// Clean latents with unit noise on them, so that a step can start from them: diffusers' `add_noise`.
///
/// # Errors
/// A failed computation.
pub fn add_noise(level: NoiseLevel, latents: &Tensor, noise: &Tensor) -> Result<Tensor> {
    combine(latents, level.signal, noise, level.noise)
}

fn combine(a: &Tensor, factor_a: f32, b: &Tensor, factor_b: f32) -> Result<Tensor> {
    (a * f64::from(factor_a))? + (b * f64::from(factor_b))?
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use sdxl_core::schedule::ClippedOriginal;

    use super::*;

    fn tensor(values: [f32; 3]) -> Tensor {
        Tensor::new(&values, &Device::Cpu).unwrap()
    }

    #[test]
    fn steps_are_weighted_sums() {
        let mut coefficients = StepCoefficients { sample: 2.0, model_output: -1.0, clipped: None };
        let (sample, output) = (tensor([1.0, 2.0, 3.0]), tensor([0.5, 0.0, -4.0]));
        let got = step(&coefficients, &sample, &output).unwrap();
        assert_eq!(got.to_vec1::<f32>().unwrap(), [1.5, 4.0, 10.0]);

        // The clean samples 1.5, 2 and -1 are clipped to 1.5, 1.5 and -1, and halved.
        coefficients.clipped =
            Some(ClippedOriginal { sample: 1.0, model_output: 1.0, range: 1.5, weight: 0.5 });
        let got = step(&coefficients, &sample, &output).unwrap();
        assert_eq!(got.to_vec1::<f32>().unwrap(), [2.25, 4.75, 9.5]);
    }

    #[test]
    fn noise_is_added_by_level() {
        let level = NoiseLevel { signal: 0.5, noise: 3.0 };
        let got = add_noise(level, &tensor([2.0, 4.0, 6.0]), &tensor([1.0, 0.0, -1.0])).unwrap();
        assert_eq!(got.to_vec1::<f32>().unwrap(), [4.0, 2.0, 0.0]);
    }
}

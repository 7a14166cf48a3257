//! Activations with their gradients, from an exponential that the compiler can vectorize.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::slices;

/// `exp(x)` to about one part in ten million: a power of two by the exponent's bits, the rest by its series.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const HIGH: f32 = 355.0 / 512.0;
    const LOW: f32 = -2.121_944_4e-4;
    /// Where the last bit of a number counts ones: adding it rounds, and leaves the integer in the lowest bits.
    const ONES: f32 = 12_582_912.0;
    // Comparisons so arranged that NaN stays.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ONES);
    let n = shifted - ONES;
    let r = n.mul_add(-HIGH, x);
    let r = n.mul_add(-LOW, r);
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The normal distribution function to 1e-7 (Abramowitz and Stegun 7.1.26 in the normal's own terms), and its density.
#[inline(always)]
pub(crate) fn normal(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / 0.327_591_1_f32.mul_add(z, 1.0);
    let p = 1.061_405_4_f32;
    let p = p.mul_add(t, -1.453_152_1);
    let p = p.mul_add(t, 1.421_413_8);
    let p = p.mul_add(t, -0.284_496_74);
    let p = p.mul_add(t, 0.254_829_6);
    let bell = exp(-z * z);
    let tail = 0.5 * p * t * bell;
    let above = 1.0 - tail;
    (if x < 0.0 { tail } else { above }, bell * 0.398_942_3)
}

/// An activation of one value.
#[derive(Clone, Copy, Debug)]
enum Activation {
    Gelu,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
}

impl Activation {
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        match self {
            Self::Gelu => x * normal(x).0,
            Self::QuickGelu => x * sigmoid(1.702 * x),
        }
    }

    #[inline(always)]
    fn slope(self, x: f32) -> f32 {
        match self {
            Self::Gelu => {
                let (above, density) = normal(x);
                x.mul_add(density, above)
            }
            Self::QuickGelu => {
                let s = sigmoid(1.702 * x);
                s * (1.702 * x).mul_add(1.0 - s, 1.0)
            }
        }
    }
}

#[inline(always)]
pub(super) fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * x.mul_add(1.0 - s, 1.0)
}

/// `x` by the normal distribution function of `x`.
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Activation::Gelu)
}

/// OpenAI's approximation, `x sigmoid(1.702 x)`.
pub(crate) fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Activation::QuickGelu)
}

impl CustomOp1 for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slices::of(x, layout)?;
        // One loop for each, so that each is vectorized.
        let y = match self {
            Self::Gelu => x.iter().map(|x| Self::Gelu.value(*x)).collect(),
            Self::QuickGelu => x.iter().map(|x| Self::QuickGelu.value(*x)).collect(),
        };
        slices::result(y, layout.shape())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let dx = slices::with(x, |x| {
            slices::with(grad, |dy| {
                let both = x.iter().zip(dy);
                Ok(match self {
                    Self::Gelu => both.map(|(x, dy)| dy * Self::Gelu.slope(*x)).collect::<Vec<_>>(),
                    Self::QuickGelu => both.map(|(x, dy)| dy * Self::QuickGelu.slope(*x)).collect(),
                })
            })
        })?;
        Ok(Some(slices::tensor_like(dx, x)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::testing::{draw, gradients_hold, worst};

    #[test]
    fn the_exponential_is_close() {
        for i in -8000..8000 {
            let x = i as f32 * 0.01;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) / expected - 1.0).abs() < 3e-7, "{x}");
        }
        assert!(exp(-1000.0) < 1e-37);
    }

    #[test]
    fn equal_candle_and_their_gradients_hold() {
        let x = (draw((3, 40), 1) * 2.0).unwrap();
        assert!(worst(&gelu(&x).unwrap(), &x.gelu_erf().unwrap()) < 2e-6);
        let quick = (&x * candle_nn::ops::sigmoid(&(&x * 1.702).unwrap()).unwrap()).unwrap();
        assert!(worst(&quick_gelu(&x).unwrap(), &quick) < 1e-6);
        for f in [gelu, quick_gelu] {
            gradients_hold(&[&x], |t| f(&t[0]));
        }
    }
}

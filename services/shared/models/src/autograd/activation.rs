//! Activations with their gradients, from an exponential that the compiler can vectorize.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};

use super::slices;

/// `exp(x)` to about one part in ten million: a power of two by the exponent's bits, the rest by its series.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the exponent is within -126..=127")]
pub(super) fn exp(x: f32) -> f32 {
    const HIGH: f32 = 0.693_359_375;
    const LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let n = x.mul_add(std::f32::consts::LOG2_E, 0.5).floor();
    let r = n.mul_add(-HIGH, x);
    let r = n.mul_add(-LOW, r);
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    p * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The normal distribution function to 1e-7 (Abramowitz and Stegun 7.1.26 in the normal's own terms), and its density.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
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

/// `[.., 2 n]`, values and gates, to `[.., n]`: each value by its gate's GELU.
pub(crate) fn geglu(both: &Tensor) -> Result<Tensor> {
    both.contiguous()?.apply_op1(Geglu)
}

#[derive(Clone, Copy, Debug)]
struct Geglu;

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, both: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let both = slices::of(both, layout)?;
        let mut dims = layout.dims().to_vec();
        let Some(last) = dims.last_mut().filter(|n| **n > 0 && n.is_multiple_of(2)) else {
            bail!("geglu halves its last dimension, which {:?} does not allow", layout.dims())
        };
        *last /= 2;
        let n = *last;
        let mut y = vec![0_f32; both.len() / 2];
        for (row, y) in both.chunks_exact(2 * n).zip(y.chunks_exact_mut(n)) {
            let (values, gates) = row.split_at(n);
            for ((y, value), gate) in y.iter_mut().zip(values).zip(gates) {
                *y = value * gate * normal(*gate).0;
            }
        }
        slices::result(y, dims)
    }

    fn bwd(&self, both: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let n = both.dim(D::Minus1)? / 2;
        let gradient = slices::with(both, |both| {
            slices::with(grad, |dy| {
                let mut out = vec![0_f32; both.len()];
                let rows = both.chunks_exact(2 * n).zip(dy.chunks_exact(n));
                for ((row, dy), out) in rows.zip(out.chunks_exact_mut(2 * n)) {
                    let (values, gates) = row.split_at(n);
                    let (d_values, d_gates) = out.split_at_mut(n);
                    for i in 0..n {
                        let gate = gates[i];
                        let (above, density) = normal(gate);
                        d_values[i] = dy[i] * gate * above;
                        d_gates[i] = dy[i] * values[i] * gate.mul_add(density, above);
                    }
                }
                Ok(out)
            })
        })?;
        Ok(Some(slices::tensor_like(gradient, both)?))
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
        let (value, gate) = (x.narrow(1, 0, 20).unwrap(), x.narrow(1, 20, 20).unwrap());
        assert!(worst(&geglu(&x).unwrap(), &(value * gate.gelu_erf().unwrap()).unwrap()) < 5e-6);
        for f in [gelu, quick_gelu, geglu] {
            gradients_hold(&[&x], |t| f(&t[0]));
        }
    }
}

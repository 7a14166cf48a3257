//! Group normalization, with the SiLU that mostly follows, and layer normalization, with their gradients.
//!
//! Both are one operation: rows of a length that share mean and deviation, and an affine map whose factor belongs to a
//! plane of the row (group norm's channel) or to a place in it (layer norm's).

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::{
    activation::{sigmoid, silu_slope},
    slices,
};

/// `x` `[B, C, ..]` normalized over each of `num_groups` groups of channels, scaled and shifted by `weight` and `bias`
/// `[C]`, then through SiLU if `then_silu`.
pub(crate) fn group_norm(
    x: &Tensor,
    [weight, bias]: [&Tensor; 2],
    num_groups: usize,
    eps: f32,
    then_silu: bool,
) -> Result<Tensor> {
    let op = GroupNorm { num_groups, eps, then_silu };
    x.contiguous()?.apply_op3(weight, bias, op)
}

/// `x` `[.., C]` normalized over the last dimension, scaled and shifted by `weight` and `bias` `[C]`.
pub(crate) fn layer_norm(x: &Tensor, [weight, bias]: [&Tensor; 2], eps: f32) -> Result<Tensor> {
    x.contiguous()?.apply_op3(weight, bias, LayerNorm { eps })
}

/// Sum of `f` over slices of one length, in sixteen lanes.
#[inline(always)]
fn sum_with<const N: usize>(slices: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let mut lanes = [0_f32; 16];
    let len = slices[0].len();
    let whole = len / 16 * 16;
    for at in (0..whole).step_by(16) {
        let parts: [&[f32]; N] = std::array::from_fn(|s| &slices[s][at..at + 16]);
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(std::array::from_fn(|s| parts[s][lane]));
        }
    }
    let rest: f32 = (whole..len).map(|i| f(std::array::from_fn(|s| slices[s][i]))).sum();
    lanes.iter().sum::<f32>() + rest
}

/// Mean and reciprocal standard deviation.
#[expect(clippy::cast_precision_loss, reason = "a count of values")]
fn moments(x: &[f32], eps: f32) -> [f32; 2] {
    let n = x.len() as f32;
    let mean = sum_with([x], |[v]| v) / n;
    let variance = sum_with([x], |[v]| (v - mean) * (v - mean)) / n;
    [mean, 1.0 / (variance + eps).sqrt()]
}

#[derive(Clone, Copy, Debug)]
struct GroupNorm {
    num_groups: usize,
    eps: f32,
    then_silu: bool,
}

impl GroupNorm {
    /// Channels of a group and pixels of a channel.
    fn sizes(self, dims: &[usize], channels: usize) -> Result<[usize; 2]> {
        if dims.len() < 2 || dims[1] != channels || !channels.is_multiple_of(self.num_groups) {
            bail!("group norm of {channels} channels in {} groups got {dims:?}", self.num_groups);
        }
        Ok([channels / self.num_groups, dims[2..].iter().product()])
    }

    /// Gradients of one group of one item: `dx` is written, `dw` and `db` of its channels added to.
    fn group_backward(self, x: &[f32], dy: &[f32], dx: &mut [f32], affine: Affine<'_>) {
        let Affine { weight, bias, dw, db } = affine;
        let pixels = x.len() / weight.len();
        let [mean, scale] = moments(x, self.eps);
        let (mut sum, mut sum_with_x) = (0_f32, 0_f32);
        let channels = weight.len();
        for c in 0..channels {
            let range = c * pixels..(c + 1) * pixels;
            let (x, dy, dz) = (&x[range.clone()], &dy[range.clone()], &mut dx[range]);
            let (factor, shift) = (scale * weight[c], bias[c] - mean * scale * weight[c]);
            if self.then_silu {
                for ((dz, x), dy) in dz.iter_mut().zip(x).zip(dy) {
                    *dz = dy * silu_slope(x.mul_add(factor, shift));
                }
            } else {
                dz.copy_from_slice(dy);
            }
            let total = sum_with([&*dz], |[v]| v);
            let with_x = sum_with([&*dz, x], |[dz, x]| dz * (x - mean)) * scale;
            dw[c] += with_x;
            db[c] += total;
            sum += total * weight[c];
            sum_with_x += with_x * weight[c];
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of values")]
        let n = x.len() as f32;
        let (mean_dz, mean_dz_x) = (sum / n, sum_with_x / n);
        for c in 0..channels {
            let range = c * pixels..(c + 1) * pixels;
            let factor = weight[c] * scale;
            // dx = scale (w dz - mean(w dz) - (x - mean) scale mean(w dz (x - mean) scale))
            let (by_x, shift) = (-scale * scale * mean_dz_x, -scale * mean_dz + scale * scale * mean_dz_x * mean);
            for (dz, x) in dx[range.clone()].iter_mut().zip(&x[range]) {
                *dz = dz.mul_add(factor, x.mul_add(by_x, shift));
            }
        }
    }
}

/// The affine map of some channels, with its gradients.
struct Affine<'a> {
    weight: &'a [f32],
    bias: &'a [f32],
    dw: &'a mut [f32],
    db: &'a mut [f32],
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight, bias) = (slices::of(x, lx)?, slices::of(w, lw)?, slices::of(b, lb)?);
        let [channels, pixels] = self.sizes(lx.dims(), weight.len())?;
        let mut y = vec![0_f32; x.len()];
        let groups = x.chunks_exact(channels * pixels).zip(y.chunks_exact_mut(channels * pixels));
        for (i, (x, y)) in groups.enumerate() {
            let [mean, scale] = moments(x, self.eps);
            let first = i % self.num_groups * channels;
            for (c, (x, y)) in x.chunks_exact(pixels).zip(y.chunks_exact_mut(pixels)).enumerate() {
                let factor = scale * weight[first + c];
                let shift = bias[first + c] - mean * factor;
                if self.then_silu {
                    for (y, x) in y.iter_mut().zip(x) {
                        let z = x.mul_add(factor, shift);
                        *y = z * sigmoid(z);
                    }
                } else {
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = x.mul_add(factor, shift));
                }
            }
        }
        slices::result(y, lx.shape())
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [channels, pixels] = self.sizes(x.dims(), w.elem_count())?;
        let (mut dw, mut db) = (vec![0_f32; w.elem_count()], vec![0_f32; w.elem_count()]);
        let mut dx = vec![0_f32; x.elem_count()];
        let weight = w.to_vec1::<f32>()?;
        let bias = b.to_vec1::<f32>()?;
        slices::with(x, |x| {
            slices::with(grad, |dy| {
                let len = channels * pixels;
                let both = x.chunks_exact(len).zip(dy.chunks_exact(len));
                for (i, ((x, dy), dx)) in both.zip(dx.chunks_exact_mut(len)).enumerate() {
                    let range = i % self.num_groups * channels..(i % self.num_groups + 1) * channels;
                    let affine = Affine {
                        weight: &weight[range.clone()],
                        bias: &bias[range.clone()],
                        dw: &mut dw[range.clone()],
                        db: &mut db[range],
                    };
                    self.group_backward(x, dy, dx, affine);
                }
                Ok(())
            })
        })?;
        Ok((
            Some(slices::tensor_like(dx, x)?),
            Some(slices::tensor_like(dw, w)?),
            Some(slices::tensor_like(db, b)?),
        ))
    }
}

#[derive(Clone, Copy, Debug)]
struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight, bias) = (slices::of(x, lx)?, slices::of(w, lw)?, slices::of(b, lb)?);
        let width = weight.len();
        if lx.dims().last() != Some(&width) || width == 0 {
            bail!("layer norm of width {width} got {:?}", lx.dims());
        }
        let mut y = vec![0_f32; x.len()];
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let [mean, scale] = moments(x, self.eps);
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = ((x - mean) * scale).mul_add(*w, *b);
            }
        }
        slices::result(y, lx.shape())
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let weight = w.to_vec1::<f32>()?;
        let width = weight.len();
        let (mut dw, mut db) = (vec![0_f32; width], vec![0_f32; width]);
        let mut dx = vec![0_f32; x.elem_count()];
        slices::with(x, |x| {
            slices::with(grad, |dy| {
                let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
                for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(width)) {
                    self.row_backward([x, dy, &weight], dx, [&mut dw, &mut db]);
                }
                Ok(())
            })
        })?;
        Ok((
            Some(slices::tensor_like(dx, x)?),
            Some(slices::tensor_like(dw, w)?),
            Some(slices::tensor_like(db, b)?),
        ))
    }
}

impl LayerNorm {
    fn row_backward(self, [x, dy, weight]: [&[f32]; 3], dx: &mut [f32], [dw, db]: [&mut [f32]; 2]) {
        #[expect(clippy::cast_precision_loss, reason = "a count of values")]
        let n = x.len() as f32;
        let [mean, scale] = moments(x, self.eps);
        let mean_dz = sum_with([dy, weight], |[dy, w]| dy * w) / n;
        let mean_dz_x = sum_with([dy, weight, x], |[dy, w, x]| dy * w * (x - mean)) * scale / n;
        for i in 0..x.len() {
            let unit = (x[i] - mean) * scale;
            dw[i] += dy[i] * unit;
            db[i] += dy[i];
            dx[i] = scale * (dy[i] * weight[i] - mean_dz - unit * mean_dz_x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::testing::{draw, gradients_hold, worst};

    #[test]
    fn group_norm_equals_its_formula_and_its_gradients_hold() {
        let (x, w, b) = (draw((2, 12, 5, 7), 1), draw(12, 2), draw(12, 3));
        for then_silu in [false, true] {
            let groups = x.reshape((2, 4, 105)).unwrap();
            let centred = groups.broadcast_sub(&groups.mean_keepdim(2).unwrap()).unwrap();
            let deviation = (centred.sqr().unwrap().mean_keepdim(2).unwrap() + 1e-5).unwrap().sqrt().unwrap();
            let unit = centred.broadcast_div(&deviation).unwrap().reshape((2, 12, 5, 7)).unwrap();
            let affine = |t: &Tensor| t.reshape((1, 12, 1, 1)).unwrap();
            let y = unit.broadcast_mul(&affine(&w)).unwrap().broadcast_add(&affine(&b)).unwrap();
            let expected = if then_silu { y.silu().unwrap() } else { y };
            let got = group_norm(&x, [&w, &b], 4, 1e-5, then_silu).unwrap();
            assert!(worst(&got, &expected) < 3e-6);
            gradients_hold(&[&x, &w, &b], |t| group_norm(&t[0], [&t[1], &t[2]], 4, 1e-5, then_silu));
        }
    }

    #[test]
    fn layer_norm_equals_candle_and_its_gradients_hold() {
        let (x, w, b) = (draw((2, 3, 37), 1), draw(37, 2), draw(37, 3));
        let expected = candle_nn::ops::layer_norm_slow(&x, &w, &b, 1e-5).unwrap();
        assert!(worst(&layer_norm(&x, [&w, &b], 1e-5).unwrap(), &expected) < 3e-6);
        gradients_hold(&[&x, &w, &b], |t| layer_norm(&t[0], [&t[1], &t[2]], 1e-5));
    }
}

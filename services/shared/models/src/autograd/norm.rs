//! Group normalization, with the SiLU that mostly follows, and layer normalization, with their gradients.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::{slices, vector};

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

#[derive(Clone, Copy, Debug)]
pub(super) struct GroupNorm {
    pub(super) num_groups: usize,
    pub(super) eps: f32,
    pub(super) then_silu: bool,
}

/// Items `[C, pixels]`, one after another, with the moments of their groups.
#[derive(Clone, Copy, Debug)]
pub(super) struct Items<'a> {
    pub(super) x: &'a [f32],
    pub(super) pixels: usize,
    pub(super) moments: &'a [[f32; 2]],
}

impl GroupNorm {
    fn check(self, dims: &[usize], channels: usize) -> Result<()> {
        if dims.len() < 2 || dims[1] != channels || !channels.is_multiple_of(self.num_groups) {
            bail!("group norm of {channels} channels in {} groups got {dims:?}", self.num_groups);
        }
        Ok(())
    }

    /// Mean and reciprocal deviation of each group of each item `[channels, pixels]` in `x`.
    pub(super) fn moments(self, x: &[f32], channels: usize, pixels: usize) -> Vec<[f32; 2]> {
        let groups = x.chunks_exact(channels / self.num_groups * pixels);
        groups.map(|x| vector::moments(x, self.eps)).collect()
    }

    /// Normalizes items to `y`.
    pub(super) fn forward(self, items: Items<'_>, [weight, bias]: [&[f32]; 2], y: &mut [f32]) {
        let Items { x, pixels, moments } = items;
        let channels = weight.len() / self.num_groups;
        let groups = x.chunks_exact(channels * pixels).zip(y.chunks_exact_mut(channels * pixels));
        for (i, ((x, y), &[mean, scale])) in groups.zip(moments).enumerate() {
            let first = i % self.num_groups * channels;
            for (c, (y, x)) in y.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels)).enumerate() {
                let factor = scale * weight[first + c];
                vector::affine(x, [factor, bias[first + c] - mean * factor], self.then_silu, y);
            }
        }
    }

    /// Turns `dy`, the gradient behind items, to that of the items; adds those of weight and bias to the last. Writes
    /// the normalized items to `y` too, where it is not empty.
    pub(super) fn backward(
        self,
        items: Items<'_>,
        [weight, bias]: [&[f32]; 2],
        dy: &mut [f32],
        y: &mut [f32],
        [dw, db]: [&mut [f32]; 2],
    ) {
        assert!(y.is_empty() || y.len() == dy.len());
        let Items { x, pixels, moments } = items;
        let channels = weight.len() / self.num_groups;
        let groups = x.chunks_exact(channels * pixels).zip(dy.chunks_exact_mut(channels * pixels));
        for (i, ((x, dy), &[mean, scale])) in groups.zip(moments).enumerate() {
            let first = i % self.num_groups * channels;
            let (mut sum, mut sum_with_x) = (0_f32, 0_f32);
            for (c, (x, dy)) in x.chunks_exact(pixels).zip(dy.chunks_exact_mut(pixels)).enumerate() {
                let c = first + c;
                let factor = scale * weight[c];
                let affine = [factor, bias[c] - mean * factor, mean];
                let at = i * channels * pixels + (c - first) * pixels;
                let [total, with_x] = match y.get_mut(at..at + pixels) {
                    Some(y) if self.then_silu => vector::affine_both(x, affine, dy, y),
                    Some(y) => {
                        vector::affine(x, [affine[0], affine[1]], false, y);
                        vector::affine_slopes(x, affine, false, dy)
                    }
                    None => vector::affine_slopes(x, affine, self.then_silu, dy),
                };
                let with_x = with_x * scale;
                dw[c] += with_x;
                db[c] += total;
                sum += total * weight[c];
                sum_with_x += with_x * weight[c];
            }
            #[expect(clippy::cast_precision_loss, reason = "a count of values")]
            let n = x.len() as f32;
            let (mean_dz, mean_dz_x) = (sum / n, sum_with_x / n);
            // dx = scale (w dz - mean(w dz) - (x - mean) scale mean(w dz (x - mean) scale))
            let by_x = -scale * scale * mean_dz_x;
            let shift = -scale * mean_dz - by_x * mean;
            for (c, (x, dy)) in x.chunks_exact(pixels).zip(dy.chunks_exact_mut(pixels)).enumerate() {
                vector::combine(dy, x, [weight[first + c] * scale, by_x, shift]);
            }
        }
    }
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
        self.check(lx.dims(), weight.len())?;
        let mut y = vec![0_f32; x.len()];
        let pixels = lx.dims()[2..].iter().product();
        let moments = self.moments(x, weight.len(), pixels);
        self.forward(Items { x, pixels, moments: &moments }, [weight, bias], &mut y);
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
        let (mut dw, mut db) = (vec![0_f32; w.elem_count()], vec![0_f32; w.elem_count()]);
        let pixels = x.dims()[2..].iter().product();
        let dx = slices::with_all(&[x, w, b, grad], |[x, w, b, dy]| {
            let mut dx = dy.to_vec();
            let moments = self.moments(x, w.len(), pixels);
            self.backward(
                Items { x, pixels, moments: &moments },
                [w, b],
                &mut dx,
                &mut [],
                [&mut dw, &mut db],
            );
            Ok(dx)
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
        vector::normalize_rows(x, [weight, bias], self.eps, &mut y);
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
        let (mut dw, mut db) = (vec![0_f32; w.elem_count()], vec![0_f32; w.elem_count()]);
        let mut dx = vec![0_f32; x.elem_count()];
        slices::with_all(&[x, w, grad], |[x, w, dy]| {
            vector::normalize_rows_back([x, dy, w], self.eps, &mut dx, [&mut dw, &mut db]);
            Ok(())
        })?;
        Ok((
            Some(slices::tensor_like(dx, x)?),
            Some(slices::tensor_like(dw, w)?),
            Some(slices::tensor_like(db, b)?),
        ))
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

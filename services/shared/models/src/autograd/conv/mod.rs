//! Convolution with its gradients.

mod lattice;
mod plain;
#[cfg(target_arch = "x86_64")]
mod tiled;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use lattice::Lattice;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::{Precision, slices};

/// `x` `[B, C_in, H, W]` by `weight` `[C_out, C_in, k, k]` with k 1 or 3, plus `bias`, `[C_out]` or one for each item,
/// `[B, C_out]`.
pub(crate) fn conv2d(
    x: &Tensor,
    [weight, bias]: [&Tensor; 2],
    stride: usize,
    padding: usize,
    precision: Precision,
) -> Result<Tensor> {
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Conv2d { stride, padding, precision })
}

#[derive(Clone, Copy, Debug)]
struct Conv2d {
    stride: usize,
    padding: usize,
    precision: Precision,
}

/// Channels in and out and the kernel's side.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    c_in: usize,
    c_out: usize,
    side: usize,
}

impl Kernel {
    fn taps(self) -> usize {
        self.side * self.side
    }
}

impl Conv2d {
    fn sizes(self, x: &Shape, weight: &Shape, bias: &Shape) -> Result<(Lattice, Kernel)> {
        let ((batch, c_in, height, width), (c_out, weight_in, side, other)) = (x.dims4()?, weight.dims4()?);
        let biased = *bias.dims() == [c_out] || *bias.dims() == [batch, c_out];
        if c_in != weight_in || side != other || !(side == 1 || side == 3) || !biased || self.stride == 0 {
            bail!("convolution: {x:?} does not fit a kernel of {weight:?} with a bias of {bias:?}");
        }
        if self.padding > side / 2 || height + 2 * self.padding < side || width + 2 * self.padding < side {
            bail!("convolution: {x:?} padded by {} is smaller than a kernel of {weight:?}", self.padding);
        }
        let lattice = Lattice::new([batch, height, width], side, self.stride, self.padding);
        Ok((lattice, Kernel { c_in, c_out, side }))
    }

    fn is_tiled(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.precision == Precision::Bf16 && amx::available();
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
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
        let (lattice, kernel) = self.sizes(lx.shape(), lw.shape(), lb.shape())?;
        let (x, w, b) = (slices::of(x, lx)?, slices::of(w, lw)?, slices::of(b, lb)?);
        let mut y = vec![0_f32; lattice.batch * kernel.c_out * lattice.out_plane()];
        for (item, y) in y.chunks_exact_mut(kernel.c_out * lattice.out_plane()).enumerate() {
            let b = &b[if lb.shape().rank() == 2 { item * kernel.c_out } else { 0 }..][..kernel.c_out];
            y.chunks_exact_mut(lattice.out_plane()).zip(b).for_each(|(y, b)| y.fill(*b));
        }
        #[cfg(target_arch = "x86_64")]
        if self.is_tiled() {
            tiled::forward(&lattice, kernel, x, w, &mut y);
        }
        if !self.is_tiled() {
            plain::forward(&lattice, kernel, x, w, &mut y);
        }
        slices::result(y, (lattice.batch, kernel.c_out, lattice.out_height, lattice.out_width))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (lattice, kernel) = self.sizes(x.shape(), w.shape(), b.shape())?;
        let mut dx = x.track_op().then(|| vec![0_f32; x.elem_count()]);
        let mut dw = vec![0_f32; w.elem_count()];
        let mut db = vec![0_f32; b.elem_count()];
        slices::with(grad, |dy| {
            for (i, dy) in dy.chunks_exact(lattice.out_plane()).enumerate() {
                let n = db.len();
                db[i % n] += dy.iter().sum::<f32>();
            }
            slices::with(x, |x| {
                slices::with(w, |w| {
                    let dx = dx.as_deref_mut();
                    #[cfg(target_arch = "x86_64")]
                    if self.is_tiled() {
                        tiled::backward(&lattice, kernel, [x, w, dy], dx, &mut dw);
                        return Ok(());
                    }
                    plain::backward(&lattice, kernel, [x, w, dy], dx, &mut dw);
                    Ok(())
                })
            })
        })?;
        let dx = dx.map(|dx| slices::tensor_like(dx, x)).transpose()?;
        Ok((dx, Some(slices::tensor_like(dw, w)?), Some(slices::tensor_like(db, b)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::testing::{draw, gradients_hold, worst};

    #[test]
    fn equals_candle_and_its_gradients_hold() {
        let cases = [
            ([2, 5, 9, 7], 6, 3, 1, 1),
            ([1, 3, 4, 4], 40, 3, 1, 1),
            ([3, 33, 8, 8], 34, 1, 1, 0),
            ([2, 4, 9, 6], 3, 3, 2, 1),
            ([2, 4, 9, 7], 3, 3, 2, 0),
            ([40, 2, 16, 16], 3, 3, 1, 1),
        ];
        for (dims, c_out, side, stride, padding) in cases {
            let [batch, c_in, ..] = dims;
            let (x, w) = (draw(dims.as_slice(), 1), draw((c_out, c_in, side, side), 2));
            for b in [draw(c_out, 3), draw((batch, c_out), 3)] {
                let bias = b.reshape(((), c_out, 1, 1)).unwrap();
                let expected = x.conv2d(&w, padding, stride, 1, 1).unwrap().broadcast_add(&bias).unwrap();
                let size = ((c_in * side * side) as f32).sqrt();
                for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.015)] {
                    let got = conv2d(&x, [&w, &b], stride, padding, precision).unwrap();
                    let worst = worst(&got, &expected) / size;
                    assert!(worst <= tolerance, "{dims:?} {c_out} {side} {stride} {precision:?}: {worst}");
                }
                gradients_hold(&[&x, &w, &b], |t| {
                    conv2d(&t[0], [&t[1], &t[2]], stride, padding, Precision::F32)
                });
            }
        }
    }

    #[test]
    fn bf16_gradients_are_those_of_f32_rounded() {
        let (x, w, b) = (draw((3, 20, 9, 8), 1), draw((36, 20, 3, 3), 2), draw(36, 3));
        for stride in [1, 2] {
            let gradients = |precision| {
                let vars = [&x, &w, &b].map(|t| candle_core::Var::from_tensor(t).unwrap());
                let y = conv2d(&vars[0], [&vars[1], &vars[2]], stride, 1, precision).unwrap();
                let weights = draw(y.shape(), 9);
                let store = (y * weights).unwrap().sum_all().unwrap().backward().unwrap();
                vars.map(|v| store.get(&v).unwrap().clone())
            };
            let (exact, rounded) = (gradients(Precision::F32), gradients(Precision::Bf16));
            for (exact, rounded) in exact.iter().zip(&rounded) {
                let size = exact.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
                assert!(worst(exact, rounded) <= 0.03 * size, "{}", worst(exact, rounded) / size);
            }
        }
    }
}

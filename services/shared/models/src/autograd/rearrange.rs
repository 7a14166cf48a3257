//! Transposition of the last two dimensions and doubling of pictures, each a copy with a copy for a gradient.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::slices;

/// `[B, M, N]` to `[B, N, M]`, laid out so.
pub(crate) fn exchange(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Exchange)
}

#[derive(Clone, Copy, Debug)]
struct Exchange;

fn exchanged(x: &[f32], [m, n]: [usize; 2]) -> Vec<f32> {
    const BLOCK: usize = 16;
    let mut out = vec![0_f32; x.len()];
    for (x, out) in x.chunks_exact(m * n).zip(out.chunks_exact_mut(m * n)) {
        for row in (0..m).step_by(BLOCK) {
            for column in (0..n).step_by(BLOCK) {
                for j in column..(column + BLOCK).min(n) {
                    let height = BLOCK.min(m - row);
                    for (i, out) in out[j * m + row..][..height].iter_mut().enumerate() {
                        *out = x[(row + i) * n + j];
                    }
                }
            }
        }
    }
    out
}

impl CustomOp1 for Exchange {
    fn name(&self) -> &'static str {
        "exchange"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, m, n) = layout.shape().dims3()?;
        slices::result(exchanged(slices::of(x, layout)?, [m, n]), (batch, n, m))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, n, m) = grad.dims3()?;
        let dx = slices::with(grad, |dy| Ok(exchanged(dy, [n, m])))?;
        Ok(Some(slices::tensor_like(dx, x)?))
    }
}

/// `[B, C, H, W]` to `[B, C, height, width]`, up to twice the size, each pixel by its nearest.
pub(crate) fn upsample(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Upsample { height, width })
}

#[derive(Clone, Copy, Debug)]
struct Upsample {
    height: usize,
    width: usize,
}

impl Upsample {
    /// Calls `f` with the indices of each large pixel and the small one that it is a copy of, row by row.
    fn rows(self, [h, w]: [usize; 2], planes: usize, mut f: impl FnMut(usize, usize)) {
        for plane in 0..planes {
            for y in 0..self.height {
                let small = (plane * h + (y * h / self.height)) * w;
                f((plane * self.height + y) * self.width, small);
            }
        }
    }
}

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, h, w) = layout.shape().dims4()?;
        if h == 0 || w == 0 || self.height < h || self.width < w {
            bail!("upsample: {h} x {w} to {} x {}", self.height, self.width);
        }
        let x = slices::of(x, layout)?;
        let mut out = vec![0_f32; batch * channels * self.height * self.width];
        self.rows([h, w], batch * channels, |large, small| {
            let row = &x[small..][..w];
            let out = &mut out[large..][..self.width];
            if self.width == 2 * w {
                out.chunks_exact_mut(2).zip(row).for_each(|(out, x)| out.fill(*x));
            } else {
                out.iter_mut().enumerate().for_each(|(i, out)| *out = row[i * w / self.width]);
            }
        });
        slices::result(out, (batch, channels, self.height, self.width))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (batch, channels, h, w) = x.dims4()?;
        let dx = slices::with(grad, |dy| {
            let mut dx = vec![0_f32; batch * channels * h * w];
            self.rows([h, w], batch * channels, |large, small| {
                let row = &dy[large..][..self.width];
                let out = &mut dx[small..][..w];
                if self.width == 2 * w {
                    out.iter_mut().zip(row.chunks_exact(2)).for_each(|(out, dy)| *out += dy[0] + dy[1]);
                } else {
                    row.iter().enumerate().for_each(|(i, dy)| out[i * w / self.width] += dy);
                }
            });
            Ok(dx)
        })?;
        Ok(Some(slices::tensor_like(dx, x)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::testing::{draw, gradients_hold, worst};

    #[test]
    fn equal_candle_and_their_gradients_hold() {
        let x = draw((2, 21, 19), 1);
        assert!(worst(&exchange(&x).unwrap(), &x.transpose(1, 2).unwrap()) == 0.0);
        gradients_hold(&[&x], |t| exchange(&t[0]));
        let x = draw((2, 3, 5, 4), 1);
        for (height, width) in [(10, 8), (9, 7), (9, 8)] {
            let expected = x.upsample_nearest2d(height, width).unwrap();
            assert!(worst(&upsample(&x, height, width).unwrap(), &expected) == 0.0, "{height} {width}");
            gradients_hold(&[&x], |t| upsample(&t[0], height, width));
        }
    }
}

//! Scaled dot-product attention with its gradients; the scores of one head of one item are all that is ever held.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::{Precision, heads::Head, matmul::Target, slices};

/// `softmax(q k^T / sqrt(d)) v` for each head. `q` `[B, S, heads * d]`, `k` and `v` `[B, T, heads * d]`; gives
/// `[B, S, heads * d]`. With `causal`, row `i` sees rows `0..=i`.
pub(crate) fn attend(
    [q, k, v]: [&Tensor; 3],
    heads: usize,
    causal: bool,
    precision: Precision,
) -> Result<Tensor> {
    let op = Attend { heads, causal, precision };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

#[derive(Clone, Copy, Debug)]
struct Attend {
    heads: usize,
    causal: bool,
    precision: Precision,
}

/// Sizes of one call.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    rows: usize,
    context: usize,
    width: usize,
}

impl Attend {
    fn sizes(self, q: &Shape, k: &Shape, v: &Shape) -> Result<Sizes> {
        let ((batch, rows, width), (items, context, context_width)) = (q.dims3()?, k.dims3()?);
        let fits = k == v && batch == items && width == context_width && width.is_multiple_of(self.heads);
        if !fits || context == 0 || width == 0 {
            bail!("attention of {} heads got {q:?}, {k:?}, {v:?}", self.heads);
        }
        Ok(Sizes { batch, rows, context, width })
    }

    fn head(self, sizes: Sizes) -> Head {
        let Self { heads, causal, precision } = self;
        let Sizes { rows, context, width, .. } = sizes;
        Head { rows, context, depth: width / heads, causal, precision }
    }

    /// Where each head of each item begins in the queries and in the keys.
    fn starts(self, sizes: Sizes) -> impl Iterator<Item = [usize; 2]> {
        let (heads, depth) = (self.heads, sizes.width / self.heads);
        let items = (0..sizes.batch).flat_map(move |item| (0..heads).map(move |head| (item, head)));
        items.map(move |(item, head)| {
            [sizes.rows, sizes.context].map(|rows| item * rows * sizes.width + head * depth)
        })
    }
}

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = self.sizes(lq.shape(), lk.shape(), lv.shape())?;
        let (q, k, v) = (slices::of(q, lq)?, slices::of(k, lk)?, slices::of(v, lv)?);
        let (head, width) = (self.head(sizes), sizes.width);
        let mut y = vec![0_f32; q.len()];
        for [at_q, at_k] in self.starts(sizes) {
            let rows = [(&q[at_q..], width), (&k[at_k..], width), (&v[at_k..], width)];
            head.forward(rows, &mut Target::new(&mut y[at_q..], width));
        }
        slices::result(y, lq.shape())
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let sizes = self.sizes(q.shape(), k.shape(), v.shape())?;
        let [mut dq, mut dk, mut dv] = [q, k, v].map(|t| vec![0_f32; t.elem_count()]);
        let (head, width) = (self.head(sizes), sizes.width);
        slices::with_all(&[q, k, v, grad], |[q, k, v, dy]| {
            for [at_q, at_k] in self.starts(sizes) {
                let rows = [(&q[at_q..], width), (&k[at_k..], width), (&v[at_k..], width)];
                let slopes =
                    [&mut dq[at_q..], &mut dk[at_k..], &mut dv[at_k..]].map(|s| Target::new(s, width));
                let [mut dq, mut dk, mut dv] = slopes;
                head.backward(rows, (&dy[at_q..], width), [&mut dq, &mut dk, &mut dv]);
            }
            Ok(())
        })?;
        Ok((
            Some(slices::tensor_like(dq, q)?),
            Some(slices::tensor_like(dk, k)?),
            Some(slices::tensor_like(dv, v)?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::D;

    use super::*;
    use crate::autograd::testing::{draw, gradients_hold, worst};

    fn plain(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Tensor {
        let split = |t: &Tensor| {
            let (b, s, c) = t.dims3().unwrap();
            t.reshape((b, s, heads, c / heads)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap()
        };
        let (q, k, v) = (split(q), split(k), split(v));
        let depth = q.dim(D::Minus1).unwrap() as f64;
        let mut scores = (q.matmul(&k.t().unwrap()).unwrap() / depth.sqrt()).unwrap();
        if causal {
            let s = q.dim(2).unwrap();
            let mask = (0..s * s).map(|i| if i % s > i / s { f32::NEG_INFINITY } else { 0.0 });
            let mask = Tensor::from_iter(mask, q.device()).unwrap().reshape((s, s)).unwrap();
            scores = scores.broadcast_add(&mask).unwrap();
        }
        let y = candle_nn::ops::softmax(&scores, D::Minus1).unwrap().matmul(&v).unwrap();
        y.transpose(1, 2).unwrap().flatten_from(2).unwrap()
    }

    #[test]
    fn equals_the_textbook_and_its_gradients_hold() {
        for (rows, context, causal) in [(6, 11, false), (20, 20, true), (40, 77, false)] {
            let (q, k, v) = (draw((2, rows, 24), 1), draw((2, context, 24), 2), draw((2, context, 24), 3));
            let expected = plain(&q, &k, &v, 3, causal);
            for (precision, tolerance) in [(Precision::F32, 3e-6), (Precision::Bf16, 0.03)] {
                let got = attend([&q, &k, &v], 3, causal, precision).unwrap();
                assert!(worst(&got, &expected) <= tolerance, "{rows} {precision:?}");
            }
            gradients_hold(&[&q, &k, &v], |t| attend([&t[0], &t[1], &t[2]], 3, causal, Precision::F32));
        }
    }
}

//! Scaled dot-product attention with its gradients; the scores of one head of one item are all that is ever held.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::{
    Precision,
    activation::exp,
    matmul::{Target, View, matmul},
    slices,
};

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
    /// Of one head.
    depth: usize,
}

impl Sizes {
    /// Where item `item`'s head `head` begins in the queries and in the keys.
    fn starts(self, item: usize, head: usize) -> [usize; 2] {
        [self.rows, self.context].map(|rows| item * rows * self.width + head * self.depth)
    }

    fn heads(self) -> impl Iterator<Item = [usize; 2]> {
        let heads = self.width / self.depth;
        (0..self.batch).flat_map(move |item| (0..heads).map(move |head| self.starts(item, head)))
    }

    #[expect(clippy::cast_precision_loss, reason = "a head's width")]
    fn scale(self) -> f32 {
        1.0 / (self.depth as f32).sqrt()
    }
}

impl Attend {
    fn sizes(self, q: &Shape, k: &Shape, v: &Shape) -> Result<Sizes> {
        let ((batch, rows, width), (items, context, context_width)) = (q.dims3()?, k.dims3()?);
        let fits = k == v && batch == items && width == context_width && width.is_multiple_of(self.heads);
        if !fits || context == 0 || width == 0 {
            bail!("attention of {} heads got {q:?}, {k:?}, {v:?}", self.heads);
        }
        Ok(Sizes { batch, rows, context, width, depth: width / self.heads })
    }

    /// Softmax of one head's scores, `[rows, context]`.
    fn weights(self, sizes: Sizes, q: &[f32], k: &[f32], weights: &mut [f32]) {
        let Sizes { rows, context, width, depth, .. } = sizes;
        let mut target = Target::new(&mut *weights, context);
        let (q, k) = (View::new(q, width), View::new(k, width).transposed());
        matmul([rows, context, depth], q, k, &mut target, self.precision);
        let scale = sizes.scale();
        for (i, row) in weights.chunks_exact_mut(context).enumerate() {
            let seen = if self.causal { (i + 1).min(context) } else { context };
            let (row, hidden) = row.split_at_mut(seen);
            hidden.fill(0.0);
            let greatest = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            row.iter_mut().for_each(|v| *v = exp((*v - greatest) * scale));
            let sum: f32 = row.iter().sum();
            let factor = 1.0 / sum;
            row.iter_mut().for_each(|v| *v *= factor);
        }
    }

    /// Gradients of one head, written from the same starts as its inputs.
    fn head_backward(self, sizes: Sizes, inputs: [&[f32]; 4], outputs: [&mut [f32]; 3], scratch: [&mut [f32]; 2]) {
        let Sizes { rows, context, width, depth, .. } = sizes;
        let ([q, k, v, dy], [dq, dk, dv], [weights, d_scores]) = (inputs, outputs, scratch);
        let precision = self.precision;
        self.weights(sizes, q, k, weights);
        let dy = View::new(dy, width);
        let by_row = |s| View::new(s, context);
        matmul([context, depth, rows], by_row(weights).transposed(), dy, &mut Target::new(dv, width), precision);
        let v = View::new(v, width).transposed();
        matmul([rows, context, depth], dy, v, &mut Target::new(&mut *d_scores, context), precision);
        let scale = sizes.scale();
        for (weights, d_scores) in weights.chunks_exact(context).zip(d_scores.chunks_exact_mut(context)) {
            let mean: f32 = weights.iter().zip(&*d_scores).map(|(w, d)| w * d).sum();
            d_scores.iter_mut().zip(weights).for_each(|(d, w)| *d = w * (*d - mean) * scale);
        }
        let (q, k) = (View::new(q, width), View::new(k, width));
        matmul([rows, depth, context], by_row(d_scores), k, &mut Target::new(dq, width), precision);
        let d_scores = by_row(d_scores).transposed();
        matmul([context, depth, rows], d_scores, q, &mut Target::new(dk, width), precision);
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
        let Sizes { rows, context, width, depth, .. } = sizes;
        let mut y = vec![0_f32; q.len()];
        let mut weights = vec![0_f32; rows * context];
        for [at_q, at_k] in sizes.heads() {
            self.weights(sizes, &q[at_q..], &k[at_k..], &mut weights);
            let (weights, v) = (View::new(&weights, context), View::new(&v[at_k..], width));
            let mut target = Target::new(&mut y[at_q..], width);
            matmul([rows, depth, context], weights, v, &mut target, self.precision);
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
        let [mut weights, mut d_scores] = [(); 2].map(|()| vec![0_f32; sizes.rows * sizes.context]);
        slices::with(q, |q| {
            slices::with(k, |k| {
                slices::with(v, |v| {
                    slices::with(grad, |dy| {
                        for [at_q, at_k] in sizes.heads() {
                            let inputs = [&q[at_q..], &k[at_k..], &v[at_k..], &dy[at_q..]];
                            let outputs = [&mut dq[at_q..], &mut dk[at_k..], &mut dv[at_k..]];
                            self.head_backward(sizes, inputs, outputs, [&mut weights, &mut d_scores]);
                        }
                        Ok(())
                    })
                })
            })
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

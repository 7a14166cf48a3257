//! A whole transformer block as one operation: what lies between its parts stays in the cache.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use candle_core::{Result, Shape, Tensor, bail};

use super::{
    Precision,
    dense::{Dense, Slopes},
    heads::{Head, Heads, Projected},
    many::{self, Operation},
    scratch::Scratch,
    vector,
};

/// Rows computed at a time.
const ROWS: usize = 256;

/// diffusers' `BasicTransformerBlock`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransformerTensors<'a> {
    /// Weight and bias of each normalization.
    pub(crate) norms: [[&'a Tensor; 2]; 3],
    /// Weights of `to_q`, `to_k`, `to_v` and `to_out` of both attentions, and the bias of `to_out`.
    pub(crate) attentions: [[&'a Tensor; 5]; 2],
    /// Weights and biases of `net.0.proj` and `net.2`.
    pub(crate) feed_forward: [[&'a Tensor; 2]; 2],
}

/// Self-attention of `x` `[B, S, C]`, attention to `context` `[B, T, D]`, feed-forward with GEGLU; each normalized before
/// and added to its input.
pub(crate) fn transformer_block(
    [x, context]: [&Tensor; 2],
    tensors: &TransformerTensors<'_>,
    heads: usize,
    eps: f32,
    precision: Precision,
) -> Result<Tensor> {
    let ((batch, rows, width), (items, context_rows, context_width)) = (x.dims3()?, context.dims3()?);
    if batch != items || !width.is_multiple_of(heads) || rows * width * context_rows * context_width == 0 {
        bail!("a transformer block of {heads} heads got {:?} and {:?}", x.shape(), context.shape());
    }
    let TransformerTensors { norms, attentions, feed_forward } = tensors;
    let inner = feed_forward[1][0].dim(1)?;
    let sizes = Sizes { batch, rows, width, context_rows, context_width, inner, heads };
    let mut inputs = vec![x, context];
    inputs.extend(norms.as_flattened());
    inputs.extend(attentions.as_flattened());
    inputs.extend(feed_forward.as_flattened());
    many::apply(Block { sizes, eps, precision, kept: Mutex::default() }, &inputs)
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    rows: usize,
    width: usize,
    context_rows: usize,
    context_width: usize,
    inner: usize,
    heads: usize,
}

impl Sizes {
    fn chunks(self) -> impl Iterator<Item = Range<usize>> {
        let size = (ROWS / self.rows).max(1);
        (0..self.batch).step_by(size).map(move |first| first..(first + size).min(self.batch))
    }

    /// Where items lie in what has rows as `x`.
    fn range(self, items: &Range<usize>) -> Range<usize> {
        let len = self.rows * self.width;
        items.start * len..items.end * len
    }

    /// Where they lie in the context.
    fn context_range(self, items: &Range<usize>) -> Range<usize> {
        let len = self.context_rows * self.context_width;
        items.start * len..items.end * len
    }
}

/// What the backward pass would have to compute again: results of both attentions before `to_out`, and the sums with
/// them.
#[derive(Debug, Default)]
struct Kept {
    attended: [Vec<f32>; 2],
    sums: [Vec<f32>; 2],
}

struct Block {
    sizes: Sizes,
    eps: f32,
    precision: Precision,
    kept: Mutex<Option<Kept>>,
}

/// Weights that are multiplied by the same rows, one below the other.
fn joined(weights: &[&[f32]]) -> Scratch<f32> {
    let mut all = Scratch::stale(weights.iter().map(|w| w.len()).sum());
    let mut rest = &mut *all;
    for weight in weights {
        let (to, behind) = rest.split_at_mut(weight.len());
        to.copy_from_slice(weight);
        rest = behind;
    }
    all
}

/// The parts, ready.
struct Layers<'a> {
    norms: [[&'a [f32]; 2]; 3],
    qkv: Dense<'a>,
    out_1: Dense<'a>,
    q: Dense<'a>,
    kv: Dense<'a>,
    out_2: Dense<'a>,
    proj: Dense<'a>,
    out: Dense<'a>,
}

/// Sums of the parts' gradients.
struct LayerSlopes {
    norms: [[Vec<f32>; 2]; 3],
    qkv: Slopes,
    out_1: Slopes,
    q: Slopes,
    kv: Slopes,
    out_2: Slopes,
    proj: Slopes,
    out: Slopes,
}

impl<'a> Layers<'a> {
    /// `joined` are the weights of `qkv` and of `kv`.
    fn new(block: &Block, inputs: &[&'a [f32]], joined: [&'a [f32]; 2]) -> Self {
        let Sizes { width, context_width, inner, .. } = block.sizes;
        let dense = |weight, bias, sizes| Dense::new(weight, bias, sizes, block.precision);
        let square = [width, width];
        Self {
            norms: [[inputs[2], inputs[3]], [inputs[4], inputs[5]], [inputs[6], inputs[7]]],
            qkv: dense(joined[0], None, [3 * width, width]),
            out_1: dense(inputs[11], Some(inputs[12]), square),
            q: dense(inputs[13], None, square),
            kv: dense(joined[1], None, [2 * width, context_width]),
            out_2: dense(inputs[16], Some(inputs[17]), square),
            proj: dense(inputs[18], Some(inputs[19]), [2 * inner, width]),
            out: dense(inputs[20], Some(inputs[21]), [width, inner]),
        }
    }

    fn slopes(&self) -> LayerSlopes {
        LayerSlopes {
            norms: self.norms.map(|norm| norm.map(|t| vec![0.0; t.len()])),
            qkv: self.qkv.slopes(),
            out_1: self.out_1.slopes(),
            q: self.q.slopes(),
            kv: self.kv.slopes(),
            out_2: self.out_2.slopes(),
            proj: self.proj.slopes(),
            out: self.out.slopes(),
        }
    }
}

impl LayerSlopes {
    /// In the order of the operation's inputs, behind the first two.
    fn into_list(self) -> Vec<Vec<f32>> {
        let split = |weight: Vec<f32>, parts: usize| {
            let len = weight.len() / parts;
            weight.chunks_exact(len).map(<[f32]>::to_vec).collect::<Vec<_>>()
        };
        let mut list: Vec<Vec<f32>> = self.norms.into_iter().flatten().collect();
        list.extend(split(self.qkv.weight, 3));
        list.extend([self.out_1.weight, self.out_1.bias, self.q.weight]);
        list.extend(split(self.kv.weight, 2));
        list.extend([self.out_2.weight, self.out_2.bias, self.proj.weight, self.proj.bias]);
        list.extend([self.out.weight, self.out.bias]);
        list
    }
}

impl Block {
    fn normalized(&self, x: &[f32], norm: [&[f32]; 2]) -> Scratch<f32> {
        let mut y = Scratch::stale(x.len());
        vector::normalize_rows(x, norm, self.eps, &mut y);
        y
    }

    /// The heads that attend to as many rows as `context`.
    fn heads(&self, context: usize) -> Heads {
        let Sizes { rows, width, heads, .. } = self.sizes;
        let head = Head { rows, context, depth: width / heads, causal: false, precision: self.precision };
        Heads { head, width }
    }

    /// Appends `x` with all that is added to it, of some items, to `y`, and what it came by to `kept`.
    fn forward_chunk(
        &self,
        layers: &Layers<'_>,
        [x, context]: [&[f32]; 2],
        kept: &mut Kept,
        y: &mut Vec<f32>,
    ) {
        let Sizes { width, rows, context_rows, .. } = self.sizes;
        let (start, end) = (y.len(), y.len() + x.len());
        let Kept { attended: [attended_1, attended_2], sums: [sum_1, sum_2] } = kept;
        let qkv = layers.qkv.forward(&self.normalized(x, layers.norms[0]));
        let projected = Projected { q: &qkv, q_stride: 3 * width, kv: &qkv[width..], kv_stride: 3 * width };
        attended_1.resize(end, 0.0);
        self.heads(rows).forward(projected, &mut attended_1[start..]);
        sum_1.extend_from_slice(x);
        layers.out_1.add(&attended_1[start..], &mut sum_1[start..]);
        let q = layers.q.forward(&self.normalized(&sum_1[start..], layers.norms[1]));
        let kv = layers.kv.forward(context);
        let projected = Projected { q: &q, q_stride: width, kv: &kv, kv_stride: 2 * width };
        attended_2.resize(end, 0.0);
        self.heads(context_rows).forward(projected, &mut attended_2[start..]);
        sum_2.extend_from_slice(&sum_1[start..]);
        layers.out_2.add(&attended_2[start..], &mut sum_2[start..]);
        let both = layers.proj.forward(&self.normalized(&sum_2[start..], layers.norms[2]));
        let mut inner = Scratch::stale(both.len() / 2);
        vector::geglu(&both, self.sizes.inner, &mut inner);
        y.extend_from_slice(&sum_2[start..]);
        layers.out.add(&inner, &mut y[start..]);
    }

    /// The feed-forward's share: `dx`, the gradient behind it, to that before.
    fn feed_forward_back(&self, layers: &Layers<'_>, slopes: &mut LayerSlopes, x: &[f32], dx: &mut [f32]) {
        let normed = self.normalized(x, layers.norms[2]);
        let mut both = layers.proj.forward(&normed);
        let mut inner = Scratch::stale(both.len() / 2);
        vector::geglu(&both, self.sizes.inner, &mut inner);
        slopes.out.add(&inner, dx);
        vector::geglu_back(&mut both, self.sizes.inner, &layers.out.backward(dx));
        slopes.proj.add(&normed, &both);
        let d_normed = layers.proj.backward(&both);
        self.norm_back(layers.norms[2], [x, &d_normed], dx, &mut slopes.norms[2]);
    }

    /// The same of the attention to the context, the gradient of which is written to `d_context`.
    fn cross_back(
        &self,
        layers: &Layers<'_>,
        slopes: &mut LayerSlopes,
        [x, context, attended]: [&[f32]; 3],
        [dx, d_context]: [&mut [f32]; 2],
    ) {
        let width = self.sizes.width;
        let normed = self.normalized(x, layers.norms[1]);
        let (q, kv) = (layers.q.forward(&normed), layers.kv.forward(context));
        slopes.out_2.add(attended, dx);
        let d_attended = layers.out_2.backward(dx);
        let mut dkv = Scratch::stale(kv.len());
        let projected = Projected { q: &q, q_stride: width, kv: &kv, kv_stride: 2 * width };
        let dq = self.heads(self.sizes.context_rows).backward(projected, &d_attended, &mut dkv);
        slopes.q.add(&normed, &dq);
        slopes.kv.add(context, &dkv);
        d_context.copy_from_slice(&layers.kv.backward(&dkv));
        let d_normed = layers.q.backward(&dq);
        self.norm_back(layers.norms[1], [x, &d_normed], dx, &mut slopes.norms[1]);
    }

    /// The same of the self-attention.
    fn self_back(
        &self,
        layers: &Layers<'_>,
        slopes: &mut LayerSlopes,
        [x, attended]: [&[f32]; 2],
        dx: &mut [f32],
    ) {
        let Sizes { width, rows, .. } = self.sizes;
        let normed = self.normalized(x, layers.norms[0]);
        let qkv = layers.qkv.forward(&normed);
        slopes.out_1.add(attended, dx);
        let d_attended = layers.out_1.backward(dx);
        let mut d_qkv = Scratch::stale(qkv.len());
        let projected = Projected { q: &qkv, q_stride: 3 * width, kv: &qkv[width..], kv_stride: 3 * width };
        let dq = self.heads(rows).backward(projected, &d_attended, &mut d_qkv[width..]);
        for (to, from) in d_qkv.chunks_exact_mut(3 * width).zip(dq.chunks_exact(width)) {
            to[..width].copy_from_slice(from);
        }
        slopes.qkv.add(&normed, &d_qkv);
        let d_normed = layers.qkv.backward(&d_qkv);
        self.norm_back(layers.norms[0], [x, &d_normed], dx, &mut slopes.norms[0]);
    }

    fn norm_back(
        &self,
        [weight, _]: [&[f32]; 2],
        [x, d_normed]: [&[f32]; 2],
        dx: &mut [f32],
        [dw, db]: &mut [Vec<f32>; 2],
    ) {
        vector::normalize_rows_back([x, d_normed, weight], self.eps, dx, [dw, db]);
    }
}

impl Operation for Block {
    fn name(&self) -> &'static str {
        "transformer-block"
    }

    fn forward(&self, inputs: &[&[f32]], keep: bool) -> Result<(Vec<f32>, Shape)> {
        let joined = [joined(&inputs[8..11]), joined(&inputs[14..16])];
        let layers = Layers::new(self, inputs, [&joined[0], &joined[1]]);
        let len = inputs[0].len();
        let empty = || [(); 2].map(|()| Vec::with_capacity(len));
        let (mut y, mut kept) = (Vec::with_capacity(len), Kept { attended: empty(), sums: empty() });
        for items in self.sizes.chunks() {
            let range = self.sizes.range(&items);
            let from = [&inputs[0][range], &inputs[1][self.sizes.context_range(&items)]];
            self.forward_chunk(&layers, from, &mut kept, &mut y);
        }
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = keep.then_some(kept);
        let Sizes { batch, rows, width, .. } = self.sizes;
        Ok((y, (batch, rows, width).into()))
    }

    fn backward(&self, inputs: &[&[f32]], dy: &[f32]) -> Result<Vec<Vec<f32>>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Kept { attended, sums }) = &*kept else { bail!("a transformer block kept nothing") };
        let joined = [joined(&inputs[8..11]), joined(&inputs[14..16])];
        let layers = Layers::new(self, inputs, [&joined[0], &joined[1]]);
        let mut slopes = layers.slopes();
        let mut dx = Vec::with_capacity(dy.len());
        let mut d_context = Vec::with_capacity(inputs[1].len());
        for items in self.sizes.chunks() {
            let (range, context_range) = (self.sizes.range(&items), self.sizes.context_range(&items));
            dx.extend_from_slice(&dy[range.clone()]);
            d_context.resize(context_range.end, 0_f32);
            let (dx, d_context) = (&mut dx[range.start..], &mut d_context[context_range.start..]);
            self.feed_forward_back(&layers, &mut slopes, &sums[1][range.clone()], dx);
            let context = &inputs[1][context_range];
            let cross = [&sums[0][range.clone()], context, &attended[1][range.clone()]];
            self.cross_back(&layers, &mut slopes, cross, [dx, d_context]);
            let within = [&inputs[0][range.clone()], &attended[0][range]];
            self.self_back(&layers, &mut slopes, within, dx);
        }
        let mut gradients = vec![dx, d_context];
        gradients.extend(slopes.into_list());
        Ok(gradients)
    }
}

#[cfg(test)]
mod tests;

//! Scaled dot-product attention (Vaswani et al. 2017) that never holds a large score matrix.

use candle_core::{D, DType, IndexOp, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{
    autograd::{self, slices},
    cpu::{self, Activation, Element, Keys, Matrix, Operand, Queries},
    cuda,
    linear::{Linear, linear, linear_no_bias},
};

/// The most scores held at once. A 2048 x 2048 picture has 10 heads of 16384 x 16384 scores in one UNet layer, 10.7 GB;
/// query rows beyond what fits here are done in turn.
const SCORE_BYTES: usize = 256 << 20;

/// Which projections have a bias.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bias {
    /// `to_out` only, as in transformer blocks.
    Output,
    /// All, as in the autoencoder.
    All,
}

/// diffusers' `Attention`: projections to queries, keys and values, heads, and the way back.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
    upcast: bool,
    /// On NVIDIA GPUs, of one that attends to itself without biases: the first three weights under each other.
    joined: Option<Tensor>,
}

impl Attention {
    /// `widths` are those of the input and of the context attended to.
    pub(crate) fn load(vb: &VarBuilder<'_>, widths: [usize; 2], heads: usize, bias: Bias) -> Result<Self> {
        let [width, context] = widths;
        let project = match bias {
            Bias::Output => linear_no_bias,
            Bias::All => linear,
        };
        let mut attention = Self {
            to_q: project(width, width, &vb.pp("to_q"))?,
            to_k: project(context, width, &vb.pp("to_k"))?,
            to_v: project(context, width, &vb.pp("to_v"))?,
            to_out: linear(width, width, &vb.pp("to_out").pp("0"))?,
            heads,
            upcast: false,
            joined: None,
        };
        if matches!(bias, Bias::Output) && width == context && cuda::wanted(&[attention.weight()]) {
            attention.join(width)?;
        }
        Ok(attention)
    }

    /// Makes one map of the first three, of which they are parts from then on.
    fn join(&mut self, width: usize) -> Result<()> {
        let parts = [&mut self.to_q, &mut self.to_k, &mut self.to_v];
        let joined = Tensor::cat(&parts.each_ref().map(|part| part.weight()), 0)?;
        for (i, part) in parts.into_iter().enumerate() {
            *part = Linear::of(joined.narrow(0, i * width, width)?);
        }
        self.joined = Some(joined);
        Ok(())
    }

    pub(crate) fn heads(&self) -> usize {
        self.heads
    }

    /// One of the weights, which stands for all.
    pub(crate) fn weight(&self) -> &Tensor {
        self.to_q.weight()
    }

    /// Weights of the four projections and the bias of the last, where it alone has one.
    pub(crate) fn tensors(&self) -> Option<[&Tensor; 5]> {
        let ([out, bias], inner) = (self.to_out.affine()?, [&self.to_q, &self.to_k, &self.to_v]);
        if inner.iter().any(|linear| linear.affine().is_some()) {
            return None;
        }
        let [q, k, v] = inner.map(Linear::weight);
        Some([q, k, v, out, bias])
    }

    /// diffusers' `upcast_attention`: scores in f32 whatever the model's type.
    pub(crate) fn with_upcast(self, upcast: bool) -> Self {
        Self { upcast, ..self }
    }

    /// `x` `[B, S, C]` attends to `context` `[B, T, D]`.
    pub(crate) fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (x.apply(&self.to_q)?, context.apply(&self.to_k)?, context.apply(&self.to_v)?);
        if let Some(precision) = autograd::wanted(&[&q, &k, &v]) {
            return autograd::attend([&q, &k, &v], self.heads, false, precision)?.apply(&self.to_out);
        }
        let [k, v] = [self.scored(&k)?, self.scored(&v)?];
        let items = (0..k.dim(0)?).map(|item| Ok([k.i(item)?, v.i(item)?])).collect::<Result<Vec<_>>>()?;
        self.attend(&q, &items)
    }

    /// What the CPU's kernels take, where the projections were packed.
    pub(crate) fn element(&self) -> Option<Element> {
        self.to_q.packed().map(Matrix::element)
    }

    fn packed(&self) -> Result<[&Matrix; 4]> {
        match [&self.to_q, &self.to_k, &self.to_v, &self.to_out].map(Linear::packed) {
            [Some(q), Some(k), Some(v), Some(out)] => Ok([q, k, v, out]),
            _ => candle_core::bail!("an attention's projections are packed together"),
        }
    }

    /// Packed keys and values of rows, as many for each of `items`; `pack` is one of [`Keys`]' makers.
    fn keys_of(
        &self,
        rows: &Operand,
        items: usize,
        pack: fn([&Operand; 2], usize, [usize; 2]) -> Keys,
    ) -> Result<Keys> {
        let [_, to_k, to_v, _] = self.packed()?;
        let (k, v) = (to_k.factors(rows, Activation::Nothing), to_v.factors(rows, Activation::Nothing));
        Ok(pack([&k, &v], items, [self.heads, to_k.outputs() / self.heads]))
    }

    /// Packed keys and values of `context` `[B, T, D]`, to be kept.
    pub(crate) fn packed_keys(&self, context: &Tensor) -> Result<Keys> {
        let [_, to_k, _, _] = self.packed()?;
        let context = context.to_dtype(DType::F32)?;
        let rows = slices::with(&context, |x| Ok(Operand::new(to_k.element(), x, to_k.inputs())))?;
        self.keys_of(&rows, context.dim(0)?, Keys::kept)
    }

    /// Rows that attend to packed `keys`, given with the projection that follows to `then`.
    pub(crate) fn attend_to(
        &self,
        rows: &Operand,
        keys: &[&Keys],
        then: &mut dyn FnMut(&Operand, &Matrix),
    ) -> Result<()> {
        let [to_q, _, _, to_out] = self.packed()?;
        let q = to_q.factors(rows, Activation::Nothing);
        let scale = ((to_q.outputs() / self.heads) as f32).powf(-0.5);
        then(&cpu::attend(Queries { rows: &q, scale, causal: false }, keys)?, to_out);
        Ok(())
    }

    /// [`Attention::attend_to`] themselves, as many for each of `items`.
    pub(crate) fn attend_to_self(
        &self,
        rows: &Operand,
        items: usize,
        then: &mut dyn FnMut(&Operand, &Matrix),
    ) -> Result<()> {
        self.attend_to(rows, &[&self.keys_of(rows, items, Keys::new)?], then)
    }

    /// `x` `[B, S, C]` attends to itself on an NVIDIA GPU; as many `others` are added.
    pub(crate) fn attend_to_self_onto(&self, x: &Tensor, others: &Tensor) -> Result<Tensor> {
        let (items, width) = (x.dim(0)?, x.dim(2)?);
        let [q, k, v] = match &self.joined {
            Some(joined) => {
                let all = cuda::linear(x, joined, None, None)?;
                let part = |i: usize| all.narrow(2, i * width, width);
                [part(0)?, part(1)?, part(2)?]
            }
            None => [x.apply(&self.to_q)?, x.apply(&self.to_k)?, x.apply(&self.to_v)?],
        };
        let keys = (0..items).map(|i| Ok([k.i(i)?, v.i(i)?])).collect::<Result<Vec<_>>>()?;
        self.attend_onto(&q, &keys, others)
    }

    /// [`Attention::forward_to`] on an NVIDIA GPU; as many `others` are added.
    pub(crate) fn forward_to_onto(
        &self,
        x: &Tensor,
        keys: &[[Tensor; 2]],
        others: &Tensor,
    ) -> Result<Tensor> {
        self.attend_onto(&x.apply(&self.to_q)?, keys, others)
    }

    fn attend_onto(&self, q: &Tensor, keys: &[[Tensor; 2]], others: &Tensor) -> Result<Tensor> {
        if !self.upcast
            && let Some(attended) = cuda::attend(q, keys, self.heads)?
        {
            return self.to_out.forward_onto(&attended, others);
        }
        let scored = |pair: &[Tensor; 2]| {
            let [k, v] = pair;
            Ok([self.scored(k)?.contiguous()?, self.scored(v)?.contiguous()?])
        };
        let keys = keys.iter().map(scored).collect::<Result<Vec<_>>>()?;
        let attended = attend(&self.scored(q)?.contiguous()?, &keys, self.heads, SCORE_BYTES)?;
        self.to_out.forward_onto(&attended.to_dtype(q.dtype())?, others)
    }

    /// Keys and values of `context` `[B, T, D]`, as [`Attention::forward_to`] takes them of each item; without a gradient.
    pub(crate) fn keys(&self, context: &Tensor) -> Result<[Tensor; 2]> {
        Ok([self.scored(&context.apply(&self.to_k)?)?, self.scored(&context.apply(&self.to_v)?)?])
    }

    /// `x` `[B, S, C]` attends to what has these keys and values, `[T, C]` for each item.
    pub(crate) fn forward_to(&self, x: &Tensor, keys: &[[Tensor; 2]]) -> Result<Tensor> {
        self.attend(&x.apply(&self.to_q)?, keys)
    }

    fn attend(&self, q: &Tensor, keys: &[[Tensor; 2]]) -> Result<Tensor> {
        attend(&self.scored(q)?, keys, self.heads, SCORE_BYTES)?.to_dtype(q.dtype())?.apply(&self.to_out)
    }

    /// In the type of the scores. Half precision gains nothing on the CPU.
    fn scored(&self, x: &Tensor) -> Result<Tensor> {
        if self.upcast || x.device().is_cpu() { x.to_dtype(DType::F32) } else { Ok(x.clone()) }
    }
}

/// `softmax(q k^T / sqrt(d)) v` for each head. `q` `[B, S, heads * d]`, and for each item `k` and `v` `[T, heads * d]`,
/// all contiguous; gives `[B, S, heads * d]`. The softmax is in f32.
fn attend(q: &Tensor, keys: &[[Tensor; 2]], heads: usize, score_bytes: usize) -> Result<Tensor> {
    let (batch, rows, width) = q.dims3()?;
    let scale = ((width / heads) as f64).powf(-0.5);
    let q = (q * scale)?;
    if keys.len() != batch {
        candle_core::bail!("{batch} items attend to {}", keys.len())
    }
    let mut parts = Vec::with_capacity(batch);
    for (item, [k, v]) in keys.iter().enumerate() {
        let rows_at_once =
            (score_bytes / (heads * k.dim(0)? * size_of::<f32>()).max(1)).clamp(1, rows.max(1));
        let (q, k, v) = (by_head(&q.i(item)?, heads)?, by_head(k, heads)?, by_head(v, heads)?);
        let k = k.t()?;
        for row in (0..rows).step_by(rows_at_once) {
            let q = q.narrow(1, row, rows_at_once.min(rows - row))?;
            let scores = q.matmul(&k)?.to_dtype(DType::F32)?;
            let weights = autograd::softmax(&scores)?.to_dtype(v.dtype())?;
            parts.push(weights.matmul(&v)?.transpose(0, 1)?.flatten_from(D::Minus2)?);
        }
    }
    if let [only] = parts.as_slice() {
        only.unsqueeze(0)
    } else {
        Tensor::cat(&parts, 0)?.reshape((batch, rows, width))
    }
}

/// One item's `[S, heads * d]` as `[heads, S, d]`: a view where the device multiplies views.
fn by_head(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let view = x.reshape((rows, heads, width / heads))?.transpose(0, 1)?;
    if x.device().is_cpu() { Ok(view) } else { view.contiguous() }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn draw(shape: (usize, usize, usize)) -> Tensor {
        Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    fn worst(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
    }

    /// Textbook attention over one batch of heads.
    fn plain(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Tensor {
        let split = |x: &Tensor| {
            let (b, s, c) = x.dims3().unwrap();
            x.reshape((b, s, heads, c / heads)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap()
        };
        let (q, k, v) = (split(q), split(k), split(v));
        let scores = (q.matmul(&k.t().unwrap()).unwrap() / (k.dim(3).unwrap() as f64).sqrt()).unwrap();
        let out = candle_nn::ops::softmax(&scores, D::Minus1).unwrap().matmul(&v).unwrap();
        out.transpose(1, 2).unwrap().flatten_from(2).unwrap()
    }

    fn each(k: &Tensor, v: &Tensor) -> Vec<[Tensor; 2]> {
        (0..k.dim(0).unwrap()).map(|i| [k.i(i).unwrap(), v.i(i).unwrap()]).collect()
    }

    #[test]
    fn equals_the_textbook() {
        let (q, k, v) = (draw((2, 11, 24)), draw((2, 7, 24)), draw((2, 7, 24)));
        let got = attend(&q, &each(&k, &v), 3, SCORE_BYTES).unwrap();
        assert_eq!(got.dims(), [2, 11, 24]);
        assert!(worst(&got, &plain(&q, &k, &v, 3)) < 1e-6);
    }

    #[test]
    fn rows_in_turn_equal_rows_at_once() {
        let (q, k, v) = (draw((2, 50, 32)), draw((2, 50, 32)), draw((2, 50, 32)));
        let whole = attend(&q, &each(&k, &v), 4, SCORE_BYTES).unwrap();
        for rows in [1, 7, 49] {
            let got = attend(&q, &each(&k, &v), 4, rows * 4 * 50 * 4).unwrap();
            assert!(worst(&got, &whole) < 1e-6, "{rows} rows at once");
        }
    }
}

//! diffusers' `Transformer2DModel`: transformer blocks over the pixels of a feature map.

use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    UnetConfig,
    prompt::{self, Prompt},
};
use crate::{
    attention::{Attention, Bias},
    autograd::{self, TransformerTensors, scratch::Scratch, slices},
    cpu::{Element, Operand},
    cuda,
    layer_norm::{LayerNorm, layer_norm},
    linear::{Linear, linear, linear_gated, linear_of_pixels},
    norm::GroupNorm,
};

/// Not the config's `norm_eps`: diffusers fixes this one.
const GROUP_NORM_EPS: f32 = 1e-6;
const LAYER_NORM_EPS: f64 = 1e-5;

/// Linear to value and gate, value by the gate's exact (erf) GELU, Linear.
#[derive(Clone, Debug)]
struct FeedForward {
    /// `net.0.proj`.
    proj: Linear,
    /// `net.2`.
    out: Linear,
}

impl FeedForward {
    fn load(vb: &VarBuilder<'_>, width: usize) -> Result<Self> {
        let (net, inner) = (vb.pp("net"), 4 * width);
        Ok(Self {
            proj: linear_gated(width, 2 * inner, &net.pp("0").pp("proj"))?,
            out: linear(inner, width, &net.pp("2"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let both = x.apply(&self.proj)?;
        let inner = both.dim(D::Minus1)? / 2;
        let (value, gate) = (both.narrow(D::Minus1, 0, inner)?, both.narrow(D::Minus1, inner, inner)?);
        (value * gate.gelu_erf()?)?.apply(&self.out)
    }
}

/// Self-attention, attention to the prompt, feed-forward; each normalized before and added to its input.
#[derive(Clone, Debug)]
struct BasicTransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl BasicTransformerBlock {
    fn load(vb: &VarBuilder<'_>, width: usize, heads: usize, config: &UnetConfig) -> Result<Self> {
        let norm = |name| layer_norm(width, LAYER_NORM_EPS, vb.pp(name));
        let attention = |name, context| {
            let attention = Attention::load(&vb.pp(name), [width, context], heads, Bias::Output)?;
            Ok::<_, candle_core::Error>(attention.with_upcast(config.upcast_attention))
        };
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: attention("attn1", width)?,
            norm2: norm("norm2")?,
            attn2: attention("attn2", config.cross_attention_dim)?,
            norm3: norm("norm3")?,
            ff: FeedForward::load(&vb.pp("ff"), width)?,
        })
    }

    fn forward(&self, x: &Tensor, prompts: &[&Prompt]) -> Result<Tensor> {
        let mut inputs = vec![x, self.attn1.weight()];
        inputs.extend(prompts.iter().map(|prompt| prompt.states()));
        let wanted = autograd::wanted(&inputs);
        if let (Some(precision), Some(tensors)) = (wanted, self.tensors()) {
            #[expect(clippy::cast_possible_truncation, reason = "an epsilon")]
            let eps = LAYER_NORM_EPS as f32;
            let inputs = [x, &prompt::joined(prompts)?];
            return autograd::transformer_block(inputs, &tensors, self.attn1.heads(), eps, precision);
        }
        if cuda::wanted(&[self.attn1.weight()]) {
            return self.forward_on_gpu(x, prompts);
        }
        let normed = x.apply(&self.norm1)?;
        let x = (x + self.attn1.forward(&normed, &normed)?)?;
        let normed = x.apply(&self.norm2)?;
        let attended = match wanted {
            Some(_) => self.attn2.forward(&normed, &prompt::joined(prompts)?)?,
            None => self.attn2.forward_to(&normed, &prompt::keys(prompts, &self.attn2)?)?,
        };
        let x = (&x + attended)?;
        &x + self.ff.forward(&x.apply(&self.norm3)?)?
    }

    /// [`BasicTransformerBlock::forward`] on an NVIDIA GPU.
    fn forward_on_gpu(&self, x: &Tensor, prompts: &[&Prompt]) -> Result<Tensor> {
        let x = self.attn1.attend_to_self_onto(&x.apply(&self.norm1)?, x)?;
        let keys = prompt::keys(prompts, &self.attn2)?;
        let x = self.attn2.forward_to_onto(&x.apply(&self.norm2)?, &keys, &x)?;
        let inner = cuda::geglu(&x.apply(&self.norm3)?.apply(&self.ff.proj)?)?;
        self.ff.out.forward_onto(&inner, &x)
    }

    /// [`BasicTransformerBlock::forward`] by the CPU's kernels, which it was packed for, in place: rows of all items.
    fn forward_packed(&self, x: &mut [f32], prompts: &[&Prompt], element: Element) -> Result<()> {
        let (Some(proj), Some(out)) = (self.ff.proj.packed(), self.ff.out.packed()) else {
            candle_core::bail!("a transformer block is packed as a whole")
        };
        let items = prompts.iter().map(|prompt| prompt.items()).sum::<Result<usize>>()?;
        let normed = |norm: &LayerNorm, x: &[f32]| match norm.rows(x, element) {
            Some(rows) => Ok(rows.of_items(items)),
            None => candle_core::bail!("a transformer block is packed as a whole"),
        };
        let rows = normed(&self.norm1, x)?;
        self.attn1.attend_to_self(&rows, items, &mut |attended, to_out| to_out.add_to(attended, x))?;
        let rows = normed(&self.norm2, x)?;
        let keys = prompt::packed_keys(prompts, &self.attn2)?;
        let keys: Vec<_> = keys.iter().map(AsRef::as_ref).collect();
        self.attn2.attend_to(&rows, &keys, &mut |attended, to_out| to_out.add_to(attended, x))?;
        let rows = proj.values_by_gates(&normed(&self.norm3, x)?);
        out.add_to(&rows, x);
        Ok(())
    }

    /// As one differentiable operation takes them.
    fn tensors(&self) -> Option<TransformerTensors<'_>> {
        Some(TransformerTensors {
            norms: [self.norm1.affine()?, self.norm2.affine()?, self.norm3.affine()?],
            attentions: [self.attn1.tensors()?, self.attn2.tensors()?],
            feed_forward: [self.ff.proj.affine()?, self.ff.out.affine()?],
        })
    }
}

/// Transformer blocks between two projections, added to the input.
#[derive(Clone, Debug)]
pub(super) struct Transformer2DModel {
    norm: GroupNorm,
    proj_in: Linear,
    transformer_blocks: Vec<BasicTransformerBlock>,
    proj_out: Linear,
}

impl Transformer2DModel {
    pub(super) fn load(
        vb: &VarBuilder<'_>,
        width: usize,
        heads: usize,
        layers: usize,
        config: &UnetConfig,
    ) -> Result<Self> {
        let blocks = vb.pp("transformer_blocks");
        let transformer_blocks = (0..layers)
            .map(|i| BasicTransformerBlock::load(&blocks.pp(i), width, heads, config))
            .collect::<Result<_>>()?;
        Ok(Self {
            norm: GroupNorm::load(&vb.pp("norm"), config.norm_num_groups, width, GROUP_NORM_EPS)?,
            proj_in: projection(&vb.pp("proj_in"), width, config)?,
            transformer_blocks,
            proj_out: projection(&vb.pp("proj_out"), width, config)?,
        })
    }

    /// [`Transformer2DModel::forward`] by the CPU's kernels, where it was packed: `x` `[B, H, W, C]`.
    fn packed(&self, x: &Tensor, prompts: &[&Prompt]) -> Result<Option<Tensor>> {
        let projections = (self.proj_in.packed(), self.proj_out.packed());
        let ((Some(proj_in), Some(proj_out)), Some(norm)) = (projections, self.norm.packed()) else {
            return Ok(None);
        };
        let (items, height, width, _) = x.dims4()?;
        let element = proj_in.element();
        let mut out = vec![0.0; x.elem_count()];
        slices::with(x, |x| {
            let mut hidden = Scratch::<f32>::stale(x.len());
            proj_in.numbers(&norm.rows(x, [items, height * width], element)?, &mut hidden);
            for block in &self.transformer_blocks {
                block.forward_packed(&mut hidden, prompts, element)?;
            }
            let rows = Operand::new(element, &hidden, proj_out.inputs()).of_items(items);
            proj_out.onto(&rows, x, &mut out);
            Ok(())
        })?;
        Tensor::from_vec(out, x.shape(), x.device()).map(Some)
    }

    /// `x` `[B, C, H, W]`, on NVIDIA GPUs with channels last, and prompts of as many items.
    pub(super) fn forward(&self, x: &Tensor, prompts: &[&Prompt]) -> Result<Tensor> {
        if let Some(y) = self.packed(x, prompts)? {
            return Ok(y);
        }
        let projections = (self.proj_in.affine(), self.proj_out.affine());
        if let (Some(precision), (Some(proj_in), Some(proj_out))) =
            (autograd::wanted(&[x, self.proj_in.weight()]), projections)
        {
            let norm = self.norm.affine();
            let mut hidden = autograd::pixels_in(x, norm, self.norm.groups(), proj_in, precision)?;
            for block in &self.transformer_blocks {
                hidden = block.forward(&hidden, prompts)?;
            }
            return autograd::pixels_out(&hidden, x, proj_out, precision);
        }
        if cuda::wanted(&[self.proj_in.weight()]) {
            let (batch, height, width, channels) = x.dims4()?;
            let pixels = self.norm.forward(x)?.reshape((batch, height * width, channels))?;
            let mut hidden = pixels.apply(&self.proj_in)?;
            for block in &self.transformer_blocks {
                hidden = block.forward(&hidden, prompts)?;
            }
            return self.proj_out.forward_onto(&hidden, x)?.reshape(x.shape());
        }
        let (batch, channels, height, width) = x.dims4()?;
        let pixels = self.norm.forward(x)?.reshape((batch, channels, height * width))?;
        let mut hidden = pixels.transpose(1, 2)?.contiguous()?.apply(&self.proj_in)?;
        for block in &self.transformer_blocks {
            hidden = block.forward(&hidden, prompts)?;
        }
        let hidden = hidden.apply(&self.proj_out)?.transpose(1, 2)?.contiguous()?;
        hidden.reshape((batch, channels, height, width))? + x
    }
}

/// A projection over channels, stored as a matrix or as a 1 x 1 convolution, which is the same over pixels.
fn projection(vb: &VarBuilder<'_>, width: usize, config: &UnetConfig) -> Result<Linear> {
    if config.use_linear_projection {
        return linear(width, width, vb);
    }
    linear_of_pixels(width, width, vb)
}

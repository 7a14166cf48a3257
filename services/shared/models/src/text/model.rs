//! CLIP's text transformer (Radford et al. 2021), as transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`
//! compute it: pre-norm, causal mask only, padding not masked. Fields are named as in the safetensors files.

use candle_core::{D, DType, Device, IndexOp, Module, Tensor};
use candle_nn::{Embedding, VarBuilder, embedding};

use super::config::{ClipTextConfig, HiddenAct};
use crate::{
    ModelError, autograd,
    cpu::{self, Activation, Keys, Queries},
    layer_norm::{LayerNorm, layer_norm},
    linear::{Linear, linear, linear_no_bias},
};

/// The id that in old configs stands for "pool at the greatest id".
const LEGACY_EOS_TOKEN_ID: u32 = 2;

/// What one encoder says of a batch of prompts.
#[derive(Clone, Debug)]
pub struct ClipTextOutput {
    /// `hidden_states[-(clip_skip + 2)]`, without the final norm, `[B, S, hidden_size]`.
    pub hidden_states: Tensor,
    /// The projected pooled state, `[B, projection_dim]`; `None` for an encoder without projection.
    pub text_embeds: Option<Tensor>,
}

/// A CLIP text encoder.
#[derive(Clone, Debug)]
pub struct ClipTextModel {
    text_model: TextTransformer,
    text_projection: Option<Linear>,
    config: ClipTextConfig,
}

#[derive(Clone, Debug)]
struct TextTransformer {
    token_embedding: Embedding,
    /// `[S, C]`.
    position_embedding: Tensor,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
}

#[derive(Clone, Debug)]
struct EncoderLayer {
    layer_norm1: LayerNorm,
    self_attn: SelfAttention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

#[derive(Clone, Debug)]
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    num_attention_heads: usize,
}

#[derive(Clone, Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    hidden_act: HiddenAct,
}

impl ClipTextModel {
    /// Builds the encoder from `vb`; `with_projection` for `CLIPTextModelWithProjection`, the one that pools.
    ///
    /// Weights are found with and without the leading `text_model.`, which newer transformers leave out of a
    /// `CLIPTextModel`.
    ///
    /// # Errors
    /// A tensor is missing, misshapen or not finite.
    pub fn new(
        vb: &VarBuilder<'_>,
        config: &ClipTextConfig,
        with_projection: bool,
    ) -> Result<Self, ModelError> {
        let prefixed = vb.pp("text_model");
        let bare = !prefixed.contains_tensor("embeddings.token_embedding.weight")
            && vb.contains_tensor("embeddings.token_embedding.weight");
        let text_model = TextTransformer::new(if bare { vb } else { &prefixed }, config)?;
        let text_projection = with_projection
            .then(|| linear_no_bias(config.hidden_size, config.projection_dim, &vb.pp("text_projection")))
            .transpose()?;
        Ok(Self { text_model, text_projection, config: config.clone() })
    }

    /// Its config.
    #[must_use]
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Whether its layers are packed, so that a text does not depend on what it is encoded with, to the last bit.
    pub(crate) fn is_packed(&self) -> bool {
        self.text_model.layers.iter().all(|layer| layer.self_attn.q_proj.packed().is_some())
    }

    /// Where its weights are.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.text_model.position_embedding.device()
    }

    /// Encodes a batch of prompts of equal length, given as token ids. `clip_skip` counts layers left off the end
    /// beside the last one, as in diffusers; it does not change `text_embeds`.
    ///
    /// # Errors
    /// [`ModelError::ClipSkip`] where the encoder is not that deep, [`ModelError::InvalidInput`] for ids that do not
    /// fit it.
    pub fn forward(&self, ids: &[Vec<u32>], clip_skip: usize) -> Result<ClipTextOutput, ModelError> {
        let num_hidden_layers = self.config.num_hidden_layers;
        let max = num_hidden_layers - 1;
        if clip_skip > max {
            return Err(ModelError::ClipSkip { clip_skip, max, num_hidden_layers });
        }
        let kept = max - clip_skip;
        let mut x = self.text_model.embed(&self.input_ids(ids)?)?;
        let dtype = x.dtype();
        let mask = causal_mask(x.dim(1)?, x.dtype(), x.device())?;
        let (head, tail) = self.text_model.layers.split_at(kept);
        for layer in head {
            x = layer.forward(&x, &mask)?;
        }
        let hidden_states = x.to_dtype(dtype)?;
        let Some(text_projection) = &self.text_projection else {
            return Ok(ClipTextOutput { hidden_states, text_embeds: None });
        };
        for layer in tail {
            x = layer.forward(&x, &mask)?;
        }
        let pooled: Vec<Tensor> = ids
            .iter()
            .enumerate()
            .map(|(b, ids)| x.i((b, self.pooled_position(ids))))
            .collect::<Result<_, _>>()?;
        let pooled = self.text_model.final_layer_norm.forward(&Tensor::stack(&pooled, 0)?)?;
        Ok(ClipTextOutput {
            hidden_states,
            text_embeds: Some(text_projection.forward(&pooled)?.to_dtype(dtype)?),
        })
    }

    /// The position whose state is pooled: the first `eos_token_id`, or by the old rule the first of the greatest id.
    fn pooled_position(&self, ids: &[u32]) -> usize {
        let wanted = match self.config.eos_token_id {
            LEGACY_EOS_TOKEN_ID => ids.iter().max().copied().unwrap_or(0),
            id => id,
        };
        ids.iter().position(|id| *id == wanted).unwrap_or(0)
    }

    fn input_ids(&self, ids: &[Vec<u32>]) -> Result<Tensor, ModelError> {
        let length = ids.first().map_or(0, Vec::len);
        let fits = length > 0
            && length <= self.config.max_position_embeddings
            && ids.iter().all(|p| p.len() == length)
            && ids.iter().flatten().all(|id| (*id as usize) < self.config.vocab_size);
        if !fits {
            let expected = format!(
                "[B, 1..={}] of ids below {}",
                self.config.max_position_embeddings, self.config.vocab_size
            );
            return Err(ModelError::InvalidInput {
                what: "input_ids",
                found: vec![ids.len(), length],
                expected,
            });
        }
        Ok(Tensor::from_vec(ids.concat(), (ids.len(), length), self.device())?)
    }
}

impl TextTransformer {
    fn new(vb: &VarBuilder<'_>, config: &ClipTextConfig) -> Result<Self, ModelError> {
        let width = config.hidden_size;
        let embeddings = vb.pp("embeddings");
        let layers = vb.pp("encoder.layers");
        Ok(Self {
            token_embedding: embedding(config.vocab_size, width, embeddings.pp("token_embedding"))?,
            position_embedding: embeddings
                .get((config.max_position_embeddings, width), "position_embedding.weight")?,
            layers: (0..config.num_hidden_layers)
                .map(|i| EncoderLayer::new(&layers.pp(i), config))
                .collect::<Result<_, _>>()?,
            final_layer_norm: layer_norm(width, config.layer_norm_eps, vb.pp("final_layer_norm"))?,
        })
    }

    fn embed(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        let positions = self.position_embedding.narrow(0, 0, ids.dim(1)?)?;
        self.token_embedding.forward(ids)?.broadcast_add(&positions)
    }
}

impl EncoderLayer {
    fn new(vb: &VarBuilder<'_>, config: &ClipTextConfig) -> Result<Self, ModelError> {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let attn = vb.pp("self_attn");
        Ok(Self {
            layer_norm1: layer_norm(width, eps, vb.pp("layer_norm1"))?,
            self_attn: SelfAttention {
                q_proj: linear(width, width, &attn.pp("q_proj"))?,
                k_proj: linear(width, width, &attn.pp("k_proj"))?,
                v_proj: linear(width, width, &attn.pp("v_proj"))?,
                out_proj: linear(width, width, &attn.pp("out_proj"))?,
                num_attention_heads: config.num_attention_heads,
            },
            layer_norm2: layer_norm(width, eps, vb.pp("layer_norm2"))?,
            mlp: Mlp {
                fc1: linear(width, config.intermediate_size, &vb.pp("mlp.fc1"))?,
                fc2: linear(config.intermediate_size, width, &vb.pp("mlp.fc2"))?,
                hidden_act: config.hidden_act,
            },
        })
    }

    /// By the CPU's kernels, where the layer was packed.
    fn packed(&self, x: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let SelfAttention { q_proj, k_proj, v_proj, out_proj, num_attention_heads: heads } = &self.self_attn;
        let all = [q_proj, k_proj, v_proj, out_proj, &self.mlp.fc1, &self.mlp.fc2].map(Linear::packed);
        let [Some(q_proj), Some(k_proj), Some(v_proj), Some(out_proj), Some(fc1), Some(fc2)] = all else {
            return Ok(None);
        };
        let (items, element) = (x.dim(0)?, q_proj.element());
        let normed = |norm: &LayerNorm, x: &[f32]| match norm.rows(x, element) {
            Some(rows) => Ok(rows),
            None => candle_core::bail!("a layer is packed as a whole"),
        };
        let mut y = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let rows = normed(&self.layer_norm1, &y)?;
        let [q, k, v] = [q_proj, k_proj, v_proj].map(|project| project.factors(&rows, Activation::Nothing));
        let width = q_proj.outputs() / heads;
        let keys = Keys::new([&k, &v], items, [*heads, width]);
        let queries = Queries { rows: &q, scale: (width as f32).powf(-0.5), causal: true };
        out_proj.add_to(&cpu::attend(queries, &[&keys])?, &mut y);
        let activation = match self.mlp.hidden_act {
            HiddenAct::QuickGelu => Activation::QuickGelu,
            HiddenAct::Gelu => Activation::Gelu,
        };
        let rows = fc1.factors(&normed(&self.layer_norm2, &y)?, activation);
        fc2.add_to(&rows, &mut y);
        Tensor::from_vec(y, x.shape(), x.device()).map(Some)
    }

    fn forward(&self, x: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
        if let Some(y) = self.packed(x)? {
            return Ok(y);
        }
        let x = (x + self.self_attn.forward(&self.layer_norm1.forward(x)?, mask)?)?;
        &x + self.mlp.forward(&self.layer_norm2.forward(&x)?)?
    }
}

impl SelfAttention {
    fn forward(&self, x: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
        let (b, s, c) = x.dims3()?;
        let heads = self.num_attention_heads;
        if let Some(precision) = autograd::wanted(&[x]) {
            let qkv = [&self.q_proj.forward(x)?, &self.k_proj.forward(x)?, &self.v_proj.forward(x)?];
            return self.out_proj.forward(&autograd::attend(qkv, heads, true, precision)?);
        }
        let split = |t: Tensor| t.reshape((b, s, heads, c / heads))?.transpose(1, 2)?.contiguous();
        let q = (split(self.q_proj.forward(x)?)? * ((c / heads) as f64).powf(-0.5))?;
        let k = split(self.k_proj.forward(x)?)?;
        let v = split(self.v_proj.forward(x)?)?;
        let weights =
            autograd::softmax(&q.matmul(&k.transpose(D::Minus2, D::Minus1)?)?.broadcast_add(mask)?)?;
        self.out_proj.forward(&weights.matmul(&v)?.transpose(1, 2)?.reshape((b, s, c))?)
    }
}

impl Mlp {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = self.fc1.forward(x)?;
        let differentiable = autograd::wanted(&[&x]).is_some();
        let x = match self.hidden_act {
            HiddenAct::QuickGelu if differentiable => autograd::quick_gelu(&x)?,
            HiddenAct::Gelu if differentiable => autograd::gelu(&x)?,
            HiddenAct::QuickGelu => (&x * candle_nn::ops::sigmoid(&(&x * 1.702)?)?)?,
            HiddenAct::Gelu => x.gelu_erf()?,
        };
        self.fc2.forward(&x)
    }
}

/// Zero on and below the diagonal, minus infinity above, `[S, S]`.
fn causal_mask(s: usize, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
    let above = |i: usize| if i % s > i / s { f32::NEG_INFINITY } else { 0.0 };
    Tensor::from_iter((0..s * s).map(above), device)?.reshape((s, s))?.to_dtype(dtype)
}

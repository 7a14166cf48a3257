//! The text side of a pipeline: its one or two encoders with their tokenizers.

use std::sync::Arc;

use candle_core::{D, DType, Device, IndexOp, Tensor};

use super::{ClipTextConfig, ClipTextModel};
use crate::{ClipTokenizer, EncoderDir, ModelError, PipelineDir, Weights};

/// One prompt, encoded.
#[derive(Clone, Debug)]
pub struct TextEmbedding {
    /// The context for cross-attention, `[77, D]`: both encoders' states side by side, the first encoder's first.
    pub prompt_embeds: Tensor,
    /// The second encoder's projected pooled state, `[P]`.
    pub pooled_prompt_embeds: Tensor,
    /// The tail of `prompt` that did not fit.
    pub prompt_truncated: Option<String>,
    /// The tail of `prompt_2` that did not fit, where one was given and used.
    pub prompt_2_truncated: Option<String>,
}

/// A text to encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a> {
    /// For the first encoder; of a refiner, for its only one.
    pub prompt: &'a str,
    /// For the second; empty for the same. A refiner reads none.
    pub prompt_2: &'a str,
}

/// The text encoders of a base model (CLIP-L and OpenCLIP-bigG) or of a refiner (bigG alone).
#[derive(Debug)]
pub struct TextConditioner {
    first: Option<Encoder>,
    second: Encoder,
    force_zeros_for_empty_prompt: bool,
}

#[derive(Debug)]
struct Encoder {
    tokenizer: ClipTokenizer,
    /// Shared between base and refiner where their files are the same.
    model: Arc<ClipTextModel>,
    weights: Weights,
    dtype: DType,
}

impl TextConditioner {
    /// Loads the encoders and tokenizers of a pipeline.
    ///
    /// # Errors
    /// A file is missing or broken, a tensor missing, misshapen or not finite, or the two encoders do not fit each other.
    pub fn load(dir: &PipelineDir, dtype: DType, device: &Device) -> Result<Self, ModelError> {
        Self::assemble(dir, dtype, device, None)
    }

    /// As [`Self::load`], but where the second encoder's config and weights are byte for byte those of `base`, its
    /// tensors are shared instead of loaded again. SDXL's refiner ships a copy of the base's second encoder.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_refiner_sharing(
        base: &Self,
        dir: &PipelineDir,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        Self::assemble(dir, dtype, device, Some(base))
    }

    fn assemble(
        dir: &PipelineDir,
        dtype: DType,
        device: &Device,
        base: Option<&Self>,
    ) -> Result<Self, ModelError> {
        let first = dir.text_encoder().map(|d| Encoder::load(d, false, dtype, device, None)).transpose()?;
        let second = dir.text_encoder_2();
        let twin = base.map(|b| &b.second);
        let second_dir = second;
        let second = Encoder::load(second_dir, true, dtype, device, twin)?;
        if let Some(first) = &first
            && first.tokenizer.length() != second.tokenizer.length()
        {
            let (a, b) = (first.tokenizer.length(), second.tokenizer.length());
            let path = second_dir.tokenizer.join("tokenizer_config.json");
            let why = format!("{b} tokens where the first tokenizer has {a}");
            return Err(ModelError::contradicting(&path, "model_max_length", why));
        }
        Ok(Self { first, second, force_zeros_for_empty_prompt: dir.force_zeros_for_empty_prompt() })
    }

    /// Encodes one text.
    ///
    /// # Errors
    /// As [`Self::encode_all`].
    pub fn encode(
        &self,
        prompt: &str,
        prompt_2: &str,
        clip_skip: usize,
    ) -> Result<TextEmbedding, ModelError> {
        let why = || candle_core::Error::Msg("a text has no embedding".into());
        Ok(self.encode_all(&[Text { prompt, prompt_2 }], clip_skip)?.pop().ok_or_else(why)?)
    }

    /// Encodes texts, together where that makes no difference to any of them, in order. The first encoder reads
    /// `prompt`, the second `prompt_2`, or `prompt` where that is empty; a refiner has only the second encoder and reads
    /// `prompt` with it, as diffusers does.
    ///
    /// # Errors
    /// [`ModelError::ClipSkip`] where `clip_skip` exceeds `num_hidden_layers() - 1`; computing may fail, and a result
    /// that is not finite is [`ModelError::NonFinite`].
    pub fn encode_all(&self, texts: &[Text<'_>], clip_skip: usize) -> Result<Vec<TextEmbedding>, ModelError> {
        self.check_clip_skip(clip_skip)?;
        let size = if self.encodes_together() { texts.len().max(1) } else { 1 };
        let batches = texts.chunks(size).map(|texts| self.encode_batch(texts, clip_skip));
        Ok(batches.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// Whether texts are encoded together. Each is then what it would be alone, to the last bit.
    #[must_use]
    pub fn encodes_together(&self) -> bool {
        self.first.iter().chain([&self.second]).all(|encoder| encoder.model.is_packed())
    }

    fn encode_batch(&self, texts: &[Text<'_>], clip_skip: usize) -> Result<Vec<TextEmbedding>, ModelError> {
        let first = match &self.first {
            Some(first) => {
                let tokens = first.tokens(texts.iter().map(|text| text.prompt))?;
                Some((first.model.forward(&tokens.ids, clip_skip)?.hidden_states, tokens.truncated))
            }
            None => None,
        };
        let has_own = |text: &Text<'_>| self.first.is_some() && !text.prompt_2.is_empty();
        let second = texts.iter().map(|text| if has_own(text) { text.prompt_2 } else { text.prompt });
        let tokens = self.second.tokens(second)?;
        let output = self.second.model.forward(&tokens.ids, clip_skip)?;
        let why = || candle_core::Error::Msg("the second text encoder has no projection".into());
        let pooled = output.text_embeds.ok_or_else(why)?;
        let one = |(i, (text, mut prompt_2_truncated)): (usize, (&Text<'_>, Option<String>))| {
            let states = output.hidden_states.i(i)?;
            let (prompt_embeds, mut prompt_truncated) = match &first {
                Some((first, truncated)) => {
                    (Tensor::cat(&[first.i(i)?, states], D::Minus1)?, truncated.get(i).cloned().flatten())
                }
                None => (states, None),
            };
            if !has_own(text) {
                // The two tokenizers may count `!` differently; one text is reported once, with the longer loss.
                let both = prompt_truncated.into_iter().chain(prompt_2_truncated.take());
                prompt_truncated = both.max_by_key(String::len);
            }
            let pooled_prompt_embeds = pooled.i(i)?;
            check_finite(&prompt_embeds, "prompt_embeds")?;
            check_finite(&pooled_prompt_embeds, "pooled_prompt_embeds")?;
            Ok(TextEmbedding { prompt_embeds, pooled_prompt_embeds, prompt_truncated, prompt_2_truncated })
        };
        texts.iter().zip(tokens.truncated).enumerate().map(one).collect()
    }

    fn check_clip_skip(&self, clip_skip: usize) -> Result<(), ModelError> {
        let num_hidden_layers = self.num_hidden_layers();
        let max = num_hidden_layers - 1;
        if clip_skip > max {
            return Err(ModelError::ClipSkip { clip_skip, max, num_hidden_layers });
        }
        Ok(())
    }

    /// Depth of the shallowest encoder; `clip_skip` may be at most one less.
    #[must_use]
    pub fn num_hidden_layers(&self) -> usize {
        self.configs().map(|c| c.num_hidden_layers).min().unwrap_or(1)
    }

    /// Width of `prompt_embeds`.
    #[must_use]
    pub fn cross_attention_dim(&self) -> usize {
        self.configs().map(|c| c.hidden_size).sum()
    }

    /// Width of `pooled_prompt_embeds`.
    #[must_use]
    pub fn pooled_projection_dim(&self) -> usize {
        self.second.model.config().projection_dim
    }

    /// Tokens in a prompt, SDXL's 77.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.second.tokenizer.length()
    }

    /// Whether a negative prompt that is absent (not empty) means zeros.
    #[must_use]
    pub fn force_zeros_for_empty_prompt(&self) -> bool {
        self.force_zeros_for_empty_prompt
    }

    /// Whether it shares the second encoder's tensors with `other`.
    #[must_use]
    pub fn shares_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.second.model, &other.second.model)
    }

    fn configs(&self) -> impl Iterator<Item = &ClipTextConfig> {
        self.first.iter().chain([&self.second]).map(|e| e.model.config())
    }
}

/// Texts as an encoder reads them.
struct Tokens {
    ids: Vec<Vec<u32>>,
    /// What of each did not fit.
    truncated: Vec<Option<String>>,
}

impl Encoder {
    fn tokens<'a>(&self, texts: impl Iterator<Item = &'a str>) -> Result<Tokens, ModelError> {
        let mut tokens = Tokens { ids: Vec::new(), truncated: Vec::new() };
        for text in texts {
            let encoded = self.tokenizer.encode(text)?;
            tokens.ids.push(encoded.ids);
            tokens.truncated.push(encoded.truncated);
        }
        Ok(tokens)
    }

    fn load(
        dir: &EncoderDir,
        with_projection: bool,
        dtype: DType,
        device: &Device,
        twin: Option<&Self>,
    ) -> Result<Self, ModelError> {
        let config = ClipTextConfig::load(&dir.text_encoder)?;
        let tokenizer = ClipTokenizer::load(&dir.tokenizer, config.max_position_embeddings)?;
        if tokenizer.vocab_size() > config.vocab_size {
            let path = dir.text_encoder.join("config.json");
            let why = format!("{} for a tokenizer of {} tokens", config.vocab_size, tokenizer.vocab_size());
            return Err(ModelError::contradicting(&path, "vocab_size", why));
        }
        let weights = Weights::open(&dir.text_encoder)?;
        let shared = twin.filter(|t| {
            t.dtype == dtype && *t.model.config() == config && t.model.device().same_device(device)
        });
        let model = match shared.filter(|t| t.weights.same_bytes(&weights)) {
            Some(twin) => Arc::clone(&twin.model),
            None => {
                Arc::new(ClipTextModel::new(&weights.var_builder(dtype, device), &config, with_projection)?)
            }
        };
        Ok(Self { tokenizer, model, weights, dtype })
    }
}

fn check_finite(tensor: &Tensor, what: &'static str) -> Result<(), ModelError> {
    // A sum is not finite if any term is not; terms here are far too small to overflow f32 by themselves.
    let sum = tensor.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
    if sum.is_finite() { Ok(()) } else { Err(ModelError::NonFinite { what, step: None }) }
}

//! The denoising network of SDXL: diffusers' `UNet2DConditionModel` with its `text_time` conditioning.

mod blocks;
mod branches;
mod config;
mod embeddings;
mod prompt;
mod transformer;
mod trial;

use blocks::{Context, DownBlock, Kept, MidBlock, UpBlock};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
pub use config::UnetConfig;
use embeddings::{TimestepEmbedding, Timesteps};
pub use prompt::Prompt;
use std::time::Duration;
use trial::Trial;

use crate::{ModelError, conv::Conv2d, norm::GroupNorm};

/// What conditions the network beside the prompt's tokens: diffusers' `added_cond_kwargs`.
#[derive(Clone, Debug)]
pub struct AddedConditioning {
    /// `pooled_prompt_embeds`, `[B, P]`.
    pub text_embeds: Tensor,
    /// Sizes, crops and scores, `[B, n]`; rounded to the network's type before use, as diffusers has them in the
    /// prompt's.
    pub time_ids: Tensor,
}

/// A loaded UNet. Fields are named as their keys in the safetensors file.
#[derive(Clone, Debug)]
pub struct Unet {
    config: UnetConfig,
    dtype: DType,
    device: Device,
    time_proj: Timesteps,
    time_embedding: TimestepEmbedding,
    add_time_proj: Timesteps,
    add_embedding: TimestepEmbedding,
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Unet {
    /// Loads the network that `config` describes, in the type and on the device of `vb`.
    ///
    /// # Errors
    /// A tensor is missing, misshapen or not finite.
    pub fn new(vb: &VarBuilder<'_>, config: &UnetConfig) -> Result<Self, ModelError> {
        Self::load(vb, config, false).map(|(unet, _)| unet)
    }

    /// [`Unet::new`], and where it is packed its residual blocks and transformers are tried as they are loaded, one of each
    /// kind; then, how long all take: about as long as a guided step of one picture at 8 x 8 latents and of one token.
    ///
    /// # Errors
    /// As [`Unet::new`]; one of them makes of zeros what is not finite.
    pub fn tried(vb: &VarBuilder<'_>, config: &UnetConfig) -> Result<(Self, Option<Duration>), ModelError> {
        Self::load(vb, config, true)
    }

    fn load(
        vb: &VarBuilder<'_>,
        config: &UnetConfig,
        tried: bool,
    ) -> Result<(Self, Option<Duration>), ModelError> {
        let channels = config.block_out_channels[0];
        let blocks = config.block_out_channels.len();
        let embedding = |name, width| TimestepEmbedding::load(&vb.pp(name), width, config.time_embed_dim);
        let (down, up) = (vb.pp("down_blocks"), vb.pp("up_blocks"));
        // In the order of the names, as they lie in a file.
        let add_embedding = embedding("add_embedding", config.projection_class_embeddings_input_dim)?;
        let conv_in = Conv2d::load(&vb.pp("conv_in"), [config.in_channels, channels], 3)?;
        let tried = tried && conv_in.packed().is_some();
        let trial = tried.then(|| Trial::new(config, vb.dtype())).transpose()?;
        let trial = trial.as_ref();
        let unet = Self {
            dtype: vb.dtype(),
            device: vb.device().clone(),
            time_proj: Timesteps::new(channels, config),
            add_time_proj: Timesteps::new(config.addition_time_embed_dim, config),
            add_embedding,
            conv_in,
            conv_norm_out: GroupNorm::load(
                &vb.pp("conv_norm_out"),
                config.norm_num_groups,
                channels,
                config.norm_eps,
            )?,
            conv_out: Conv2d::load(&vb.pp("conv_out"), [channels, config.out_channels], 3)?,
            down_blocks: (0..blocks)
                .map(|i| DownBlock::load(&down.pp(i), i, config, trial))
                .collect::<candle_core::Result<_>>()?,
            mid_block: MidBlock::load(&vb.pp("mid_block"), config, trial)?,
            time_embedding: embedding("time_embedding", channels)?,
            up_blocks: (0..blocks)
                .map(|i| UpBlock::load(&up.pp(i), i, config, trial))
                .collect::<candle_core::Result<_>>()?,
            config: config.clone(),
        };
        Ok((unet, trial.map(Trial::took)))
    }

    /// What the network was built from.
    #[must_use]
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// The type that it computes in.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where its weights lie.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Predicts from `sample` `[B, C, h, w]` at `timesteps` (B of them), given `encoder_hidden_states` `[B, 77, D]`.
    /// Inputs of any float type on the network's device; the result `[B, C, h, w]` has the network's type, or f32 where it
    /// was packed. Items of a batch do not see each other.
    ///
    /// # Errors
    /// A shape that does not fit, or a failed computation.
    pub fn forward(
        &self,
        sample: &Tensor,
        timesteps: &[f32],
        encoder_hidden_states: &Tensor,
        added: &AddedConditioning,
    ) -> Result<Tensor, ModelError> {
        let prompt = self.prompt(encoder_hidden_states, added)?;
        Ok(self.forward_to(sample, timesteps, &[&prompt], &[])?.0)
    }

    /// What `encoder_hidden_states` `[N, 77, D]` and the N conditionings beside them come to, for any number of steps.
    ///
    /// # Errors
    /// A shape that does not fit, or a failed computation.
    pub fn prompt(
        &self,
        encoder_hidden_states: &Tensor,
        added: &AddedConditioning,
    ) -> Result<Prompt, ModelError> {
        self.check_conditioning(encoder_hidden_states, added)?;
        let states = encoder_hidden_states.to_dtype(self.dtype)?.contiguous()?;
        Ok(Prompt::new(states, self.embed_added(added)?))
    }

    /// [`Unet::forward`] given prompts of B items together. What they come to is kept in them. With the prediction come the inner
    /// layers' features, B items each, of the branches `keep`, in their order.
    ///
    /// # Errors
    /// As [`Unet::forward`]; a branch that there is not.
    pub fn forward_to(
        &self,
        sample: &Tensor,
        timesteps: &[f32],
        prompts: &[&Prompt],
        keep: &[usize],
    ) -> Result<(Tensor, Vec<Tensor>), ModelError> {
        let mut kept = Kept { wanted: keep, found: Vec::new() };
        let predicted = self.evaluate(sample, timesteps, prompts, None, &mut kept)?;
        let of = |branch: &usize| kept.found.iter().find(|(found, _)| found == branch);
        let features = |branch| of(branch).map(|(_, x)| x.clone()).ok_or_else(|| self.no_branch(*branch));
        let features = keep.iter().map(features).collect::<Result<_, _>>()?;
        Ok((predicted, features))
    }

    /// [`Unet::forward_to`] of the layers outside of the skip connection `branch` alone, where `features` of an evaluation of the
    /// whole network, B items, stand for what is within (Ma et al. 2023).
    ///
    /// # Errors
    /// As [`Unet::forward`]; a branch that there is not, or features of another one or size.
    pub fn forward_outer(
        &self,
        sample: &Tensor,
        timesteps: &[f32],
        prompts: &[&Prompt],
        (branch, features): (usize, &Tensor),
    ) -> Result<Tensor, ModelError> {
        if branch >= self.config.branches() {
            return Err(self.no_branch(branch));
        }
        if features.dim(0)? != timesteps.len() {
            return Err(invalid("features", features, format!("of {} items", timesteps.len())));
        }
        self.evaluate(sample, timesteps, prompts, Some((branch, features)), &mut Kept::default())
    }

    fn no_branch(&self, branch: usize) -> ModelError {
        let expected = format!("within 0..{}", self.config.branches());
        ModelError::InvalidInput { what: "cache_branch_id", found: vec![branch], expected }
    }

    fn evaluate(
        &self,
        sample: &Tensor,
        timesteps: &[f32],
        prompts: &[&Prompt],
        inner: Option<(usize, &Tensor)>,
        kept: &mut Kept<'_>,
    ) -> Result<Tensor, ModelError> {
        self.check_sample(sample, timesteps, prompts)?;
        let temb = self.embed(timesteps, prompts)?.silu()?;
        let context = Context { temb: &temb, prompts };
        let all = 1 + self.down_blocks.iter().map(DownBlock::skips).sum::<usize>();
        let limit = inner.map_or(all, |(branch, _)| branch + 1);

        let sample = self.conv_in.laid_out(&sample.to_dtype(self.dtype)?)?;
        let mut x = self.conv_in.forward(&sample)?;
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            x = block.forward(x, context, &mut skips, limit)?;
        }
        x = match inner {
            Some((_, features)) => features.clone(),
            None => self.mid_block.forward(x, context)?,
        };
        let mut left = all;
        for block in &self.up_blocks {
            // Those whose skips are not there are within.
            let first = (left - skips.len()).min(block.skips());
            left -= block.skips();
            if first < block.skips() {
                x = block.forward(x, first, context, &mut skips, kept)?;
            }
        }
        let y = self.conv_out.forward_normalized(&x, &self.conv_norm_out)?;
        Ok(self.conv_out.pictures(&y)?)
    }

    /// The time embedding with the added one, `[B, T]`.
    fn embed(&self, timesteps: &[f32], prompts: &[&Prompt]) -> candle_core::Result<Tensor> {
        let time = self.time_proj.forward(timesteps, timesteps.len(), self.dtype, &self.device)?;
        let added: Vec<_> = prompts.iter().map(|prompt| prompt.added()).collect();
        self.time_embedding.forward(&time)? + Tensor::cat(&added, 0)?
    }

    /// What does not depend on the time, `[B, T]`.
    fn embed_added(&self, added: &AddedConditioning) -> candle_core::Result<Tensor> {
        let (batch, dtype) = (added.time_ids.dim(0)?, self.dtype);
        let time_ids =
            added.time_ids.to_dtype(dtype)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let time_ids = self.add_time_proj.forward(&time_ids, batch, dtype, &self.device)?;
        let added = Tensor::cat(&[&added.text_embeds.to_dtype(dtype)?, &time_ids], 1)?;
        self.add_embedding.forward(&added)
    }

    fn check_sample(
        &self,
        sample: &Tensor,
        timesteps: &[f32],
        prompts: &[&Prompt],
    ) -> Result<(), ModelError> {
        let (batch, channels) = (timesteps.len(), self.config.in_channels);
        if !matches!(*sample.dims(), [b, c, h, w] if b == batch && c == channels && h > 0 && w > 0) {
            return Err(invalid("latents", sample, format!("[{batch}, {channels}, height, width]")));
        }
        let items = prompts.iter().map(|prompt| prompt.items()).sum::<candle_core::Result<usize>>()?;
        if items != batch {
            let expected = format!("of {batch} items");
            return Err(ModelError::InvalidInput { what: "prompts", found: vec![items], expected });
        }
        Ok(())
    }

    fn check_conditioning(
        &self,
        encoder_hidden_states: &Tensor,
        added: &AddedConditioning,
    ) -> Result<(), ModelError> {
        let AddedConditioning { text_embeds, time_ids } = added;
        let (batch, width) = (text_embeds.dim(0)?, self.config.cross_attention_dim);
        if !matches!(*encoder_hidden_states.dims(), [b, n, d] if b == batch && n > 0 && d == width) {
            let expected = format!("[{batch}, tokens, {width}]");
            return Err(invalid("prompt_embeds", encoder_hidden_states, expected));
        }
        if !matches!(*time_ids.dims(), [b, n] if b == batch && n > 0) {
            return Err(invalid("time_ids", time_ids, format!("[{batch}, ids]")));
        }
        let total = self.config.projection_class_embeddings_input_dim;
        let pooled = total.saturating_sub(time_ids.dim(1)? * self.config.addition_time_embed_dim);
        if *text_embeds.dims() != [batch, pooled] {
            return Err(invalid("pooled_prompt_embeds", text_embeds, format!("[{batch}, {pooled}]")));
        }
        Ok(())
    }
}

fn invalid(what: &'static str, tensor: &Tensor, expected: String) -> ModelError {
    ModelError::InvalidInput { what, found: tensor.dims().to_vec(), expected }
}

#[cfg(test)]
mod tests;

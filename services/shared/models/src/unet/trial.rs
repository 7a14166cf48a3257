//! Residual blocks and transformers, which hold most weights, tried out one by one as they are loaded, while the disk is at the
//! next one's.
//!
//! A step goes through all weights once more, which on a CPU takes a third as long as reading them did.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use candle_core::{DType, Device, Result, Tensor};

use super::{UnetConfig, blocks::Context, prompt::Prompt, transformer::Transformer2DModel};
use crate::{ModelError, finite, resnet::ResnetBlock2D};

/// Of the latents of a step that would do the same.
const SIDE: usize = 8;
/// With guidance.
const ITEMS: usize = 2;

/// What packed layers are tried with: zeros, of one token.
#[derive(Debug)]
pub(super) struct Trial {
    temb: Tensor,
    prompt: Prompt,
    took: Cell<Duration>,
}

impl Trial {
    pub(super) fn new(config: &UnetConfig, dtype: DType) -> Result<Self> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, dtype, &Device::Cpu);
        let temb = zeros(&[ITEMS, config.time_embed_dim])?;
        let prompt = Prompt::new(zeros(&[ITEMS, 1, config.cross_attention_dim])?, temb.clone());
        Ok(Self { temb, prompt, took: Cell::default() })
    }

    /// How long all layers took so far.
    pub(super) fn took(&self) -> Duration {
        self.took.get()
    }

    /// Tries a block of so many channels where pictures have been halved `level` times; `name` is for what is wrong.
    pub(super) fn resnet(
        &self,
        name: &str,
        block: &ResnetBlock2D,
        level: usize,
        channels: usize,
    ) -> Result<()> {
        self.layer(name, level, channels, |x, context| block.forward(x, Some(context.temb)))
    }

    /// [`Trial::resnet`] of attention.
    pub(super) fn attention(
        &self,
        name: &str,
        block: &Transformer2DModel,
        level: usize,
        channels: usize,
    ) -> Result<()> {
        self.layer(name, level, channels, |x, context| block.forward(&x, context.prompts))
    }

    fn layer(
        &self,
        name: &str,
        level: usize,
        channels: usize,
        forward: impl FnOnce(Tensor, Context<'_>) -> Result<Tensor>,
    ) -> Result<()> {
        let began = Instant::now();
        let side = (SIDE >> level).max(1);
        let x = Tensor::zeros((ITEMS, side, side, channels), DType::F32, &Device::Cpu)?;
        let y = forward(x, Context { temb: &self.temb, prompts: &[&self.prompt] })?;
        match finite::check(&y, "a layer", None) {
            Err(ModelError::NonFinite { .. }) => {
                candle_core::bail!("{name}: what it makes of zeros is not finite: a weight may not be")
            }
            checked => checked?,
        }
        self.took.set(self.took.get() + began.elapsed());
        Ok(())
    }
}

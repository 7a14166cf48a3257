//! Residual blocks and transformers, one of each kind, tried out as they are loaded, while the disk is at the next one's.
//!
//! A step goes through all weights once more, which on a CPU takes a third as long as reading them did. Numbers that are not
//! finite were found as they came from the file; that finite ones overflow in a layer whose like was tried shows in a step.

use std::{
    cell::RefCell,
    collections::HashMap,
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
    kinds: RefCell<HashMap<Kind, Tried>>,
}

/// Layers that do the same with other weights, and as fast where those are stored alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    /// How often pictures have been halved.
    level: usize,
    /// Going in.
    channels: usize,
    /// Transformer blocks, if it is no residual block.
    depth: Option<usize>,
}

#[derive(Debug)]
struct Tried {
    took: Duration,
    layers: u32,
}

impl Trial {
    pub(super) fn new(config: &UnetConfig, dtype: DType) -> Result<Self> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, dtype, &Device::Cpu);
        let temb = zeros(&[ITEMS, config.time_embed_dim])?;
        let prompt = Prompt::new(zeros(&[ITEMS, 1, config.cross_attention_dim])?, temb.clone());
        Ok(Self { temb, prompt, kinds: RefCell::default() })
    }

    /// How long all layers so far take, each as long as the one of its kind that was tried.
    pub(super) fn took(&self) -> Duration {
        self.kinds.borrow().values().map(|tried| tried.took * tried.layers).sum()
    }

    /// Tries a block of so many channels where pictures have been halved `level` times, unless one like it was; `name` is for
    /// what is wrong.
    pub(super) fn resnet(
        &self,
        name: &str,
        block: &ResnetBlock2D,
        level: usize,
        channels: usize,
    ) -> Result<()> {
        let kind = Kind { level, channels, depth: None };
        self.layer(name, kind, |x, context| block.forward(x, Some(context.temb)))
    }

    /// [`Trial::resnet`] of a transformer of so many blocks.
    pub(super) fn attention(
        &self,
        name: &str,
        block: &Transformer2DModel,
        level: usize,
        channels: usize,
        depth: usize,
    ) -> Result<()> {
        let kind = Kind { level, channels, depth: Some(depth) };
        self.layer(name, kind, |x, context| block.forward(&x, context.prompts))
    }

    fn layer(
        &self,
        name: &str,
        kind: Kind,
        forward: impl FnOnce(Tensor, Context<'_>) -> Result<Tensor>,
    ) -> Result<()> {
        if let Some(tried) = self.kinds.borrow_mut().get_mut(&kind) {
            tried.layers += 1;
            return Ok(());
        }
        let began = Instant::now();
        let side = (SIDE >> kind.level).max(1);
        let x = Tensor::zeros((ITEMS, side, side, kind.channels), DType::F32, &Device::Cpu)?;
        let y = forward(x, Context { temb: &self.temb, prompts: &[&self.prompt] })?;
        match finite::check(&y, "a layer", None) {
            Err(ModelError::NonFinite { .. }) => {
                candle_core::bail!("{name}: what it makes of zeros is not finite")
            }
            checked => checked?,
        }
        self.kinds.borrow_mut().insert(kind, Tried { took: began.elapsed(), layers: 1 });
        Ok(())
    }
}

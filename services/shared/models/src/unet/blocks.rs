//! The UNet's down, middle and up blocks, with and without attention.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{UnetConfig, prompt::Prompt, transformer::Transformer2DModel, trial::Trial};
use crate::{
    conv::Conv2d,
    resnet::{Norm, ResnetBlock2D},
};

/// One level's shape: its channels, heads and transformer depth (`None` without attention).
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    pub(super) channels: usize,
    pub(super) heads: usize,
    pub(super) transformer_layers: Option<usize>,
    /// How many times pictures have been halved.
    pub(super) halved: usize,
}

/// What every part of a block is conditioned by.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    /// Time and added embedding after SiLU, `[B, T]`.
    pub(super) temb: &'a Tensor,
    /// Of B items together.
    pub(super) prompts: &'a [&'a Prompt],
}

/// What an evaluation of the whole network leaves for those after it: the inputs of some layers on the way up, by the skip that
/// each takes.
#[derive(Debug, Default)]
pub(super) struct Kept<'a> {
    pub(super) wanted: &'a [usize],
    pub(super) found: Vec<(usize, Tensor)>,
}

impl Kept<'_> {
    fn offer(&mut self, branch: usize, x: &Tensor) {
        if self.wanted.contains(&branch) {
            self.found.push((branch, x.clone()));
        }
    }
}

/// Residual blocks, each followed by a transformer where there is attention.
#[derive(Clone, Debug)]
struct Layers {
    resnets: Vec<ResnetBlock2D>,
    attentions: Vec<Transformer2DModel>,
}

impl Layers {
    /// One layer for each of `inputs`, the channels going in.
    fn load(
        vb: &VarBuilder<'_>,
        inputs: &[usize],
        level: Level,
        config: &UnetConfig,
        trial: Option<&Trial>,
    ) -> Result<Self> {
        let Level { channels, transformer_layers, halved, .. } = level;
        let norm = Norm { num_groups: config.norm_num_groups, eps: config.norm_eps };
        let (resnets, attentions) = (vb.pp("resnets"), vb.pp("attentions"));
        let resnet = |(i, c_in): (usize, &usize)| {
            let vb = resnets.pp(i);
            let block = ResnetBlock2D::load(&vb, [*c_in, channels], Some(config.time_embed_dim), norm)?;
            trial.map(|trial| trial.resnet(&vb.prefix(), &block, halved, *c_in)).transpose()?;
            Ok(block)
        };
        let attention = |i, layers| Self::attention(&attentions.pp(i), level, layers, config, trial);
        // In the order of the names, as they lie in a file.
        Ok(Self {
            attentions: match transformer_layers {
                Some(layers) => (0..inputs.len()).map(|i| attention(i, layers)).collect::<Result<_>>()?,
                None => Vec::new(),
            },
            resnets: inputs.iter().enumerate().map(resnet).collect::<Result<_>>()?,
        })
    }

    fn attention(
        vb: &VarBuilder<'_>,
        Level { channels, heads, halved, .. }: Level,
        layers: usize,
        config: &UnetConfig,
        trial: Option<&Trial>,
    ) -> Result<Transformer2DModel> {
        let block = Transformer2DModel::load(vb, channels, heads, layers, config)?;
        trial.map(|trial| trial.attention(&vb.prefix(), &block, halved, channels, layers)).transpose()?;
        Ok(block)
    }

    fn forward_one(&self, i: usize, x: Tensor, context: Context<'_>) -> Result<Tensor> {
        let x = self.resnets[i].forward(x, Some(context.temb))?;
        self.attend(i, x, context)
    }

    /// [`Layers::forward_one`] of `x`'s channels, then `skip`'s.
    fn forward_joined(&self, i: usize, x: Tensor, skip: Tensor, context: Context<'_>) -> Result<Tensor> {
        let x = self.resnets[i].forward_joined(x, skip, Some(context.temb))?;
        self.attend(i, x, context)
    }

    fn attend(&self, i: usize, x: Tensor, context: Context<'_>) -> Result<Tensor> {
        match self.attentions.get(i) {
            Some(attention) => attention.forward(&x, context.prompts),
            None => Ok(x),
        }
    }
}

/// `DownBlock2D` or `CrossAttnDownBlock2D`.
#[derive(Clone, Debug)]
pub(super) struct DownBlock {
    layers: Layers,
    downsamplers: Option<Conv2d>,
}

impl DownBlock {
    /// The `i`th block on the way down.
    pub(super) fn load(
        vb: &VarBuilder<'_>,
        i: usize,
        config: &UnetConfig,
        trial: Option<&Trial>,
    ) -> Result<Self> {
        let level = Level {
            channels: config.block_out_channels[i],
            heads: config.num_attention_heads[i],
            transformer_layers: config.down_attention[i].then_some(config.transformer_layers_per_block[i]),
            halved: i,
        };
        let mut inputs = vec![level.channels; config.layers_per_block[i]];
        inputs[0] = config.block_out_channels[i.saturating_sub(1)];
        let downsample = i + 1 < config.block_out_channels.len();
        let conv = vb.pp("downsamplers").pp("0").pp("conv");
        Ok(Self {
            layers: Layers::load(vb, &inputs, level, config, trial)?,
            downsamplers: downsample.then(|| Conv2d::load_halving(&conv, level.channels)).transpose()?,
        })
    }

    /// How many skips it leaves.
    pub(super) fn skips(&self) -> usize {
        self.layers.resnets.len() + usize::from(self.downsamplers.is_some())
    }

    /// Keeps a copy of each layer's result, and of the halved one, in `skips`, and ends where there are `limit` of them.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        context: Context<'_>,
        skips: &mut Vec<Tensor>,
        limit: usize,
    ) -> Result<Tensor> {
        for i in 0..self.layers.resnets.len() {
            if skips.len() == limit {
                return Ok(x);
            }
            x = self.layers.forward_one(i, x, context)?;
            skips.push(x.clone());
        }
        if let Some(downsample) = self.downsamplers.as_ref().filter(|_| skips.len() < limit) {
            x = downsample.forward(&x)?;
            skips.push(x.clone());
        }
        Ok(x)
    }
}

/// `UNetMidBlock2DCrossAttn`: residual block, transformer, residual block.
#[derive(Clone, Debug)]
pub(super) struct MidBlock {
    layers: Layers,
}

impl MidBlock {
    pub(super) fn load(vb: &VarBuilder<'_>, config: &UnetConfig, trial: Option<&Trial>) -> Result<Self> {
        let last = config.block_out_channels.len() - 1;
        let level = Level {
            channels: config.block_out_channels[last],
            heads: config.num_attention_heads[last],
            transformer_layers: None,
            halved: last,
        };
        let depth = config.transformer_layers_per_block[last];
        let attention = Layers::attention(&vb.pp("attentions").pp("0"), level, depth, config, trial)?;
        let mut layers = Layers::load(vb, &[level.channels; 2], level, config, trial)?;
        layers.attentions.push(attention);
        Ok(Self { layers })
    }

    pub(super) fn forward(&self, x: Tensor, context: Context<'_>) -> Result<Tensor> {
        let x = self.layers.forward_one(0, x, context)?;
        self.layers.forward_one(1, x, context)
    }
}

/// `UpBlock2D` or `CrossAttnUpBlock2D`.
#[derive(Clone, Debug)]
pub(super) struct UpBlock {
    layers: Layers,
    upsamplers: Option<Conv2d>,
}

impl UpBlock {
    /// The `i`th block on the way up.
    pub(super) fn load(
        vb: &VarBuilder<'_>,
        i: usize,
        config: &UnetConfig,
        trial: Option<&Trial>,
    ) -> Result<Self> {
        let last = config.block_out_channels.len() - 1;
        let channels = |up: usize| config.block_out_channels[last - up.min(last)];
        let level = Level {
            channels: channels(i),
            heads: config.num_attention_heads[last - i],
            transformer_layers: config.up_attention[i]
                .then_some(config.reverse_transformer_layers_per_block[i]),
            halved: last - i,
        };
        let count = config.layers_per_block[last - i] + 1;
        let inputs: Vec<_> = (0..count)
            .map(|layer| {
                let hidden = if layer == 0 { channels(i.saturating_sub(1)) } else { level.channels };
                let skip = if layer + 1 == count { channels(i + 1) } else { level.channels };
                hidden + skip
            })
            .collect();
        let conv = vb.pp("upsamplers").pp("0").pp("conv");
        Ok(Self {
            layers: Layers::load(vb, &inputs, level, config, trial)?,
            upsamplers: (i < last).then(|| Conv2d::load(&conv, [level.channels; 2], 3)).transpose()?,
        })
    }

    /// How many skips it takes.
    pub(super) fn skips(&self) -> usize {
        self.layers.resnets.len()
    }

    /// From the layer `first` on takes one of `skips` for each, last in first out. The size doubles to that of the next skip,
    /// which is one less where halving had rounded up. What `kept` wants of a layer's input is put there.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        first: usize,
        context: Context<'_>,
        skips: &mut Vec<Tensor>,
        kept: &mut Kept<'_>,
    ) -> Result<Tensor> {
        for i in first..self.layers.resnets.len() {
            let Some(skip) = skips.pop() else {
                candle_core::bail!("the up path takes more skips than there are")
            };
            kept.offer(skips.len(), &x);
            x = self.layers.forward_joined(i, x, skip, context)?;
        }
        if let (Some(conv), Some(skip)) = (&self.upsamplers, skips.last()) {
            x = conv.forward_upsampled(&x, conv.sides(skip)?)?;
        }
        Ok(x)
    }
}

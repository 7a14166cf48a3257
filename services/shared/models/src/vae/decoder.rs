//! The decoder half of the autoencoder: latents to a picture eight times their size.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::VaeConfig;
use crate::{
    attention::{Attention, Bias},
    conv::Conv2d,
    norm::GroupNorm,
    resnet::{Norm, ResnetBlock2D},
};

/// Fixed in diffusers, unlike the UNet's.
const EPS: f32 = 1e-6;

/// Attention of one head as wide as the channels, between a normalization and the input added again.
#[derive(Clone, Debug)]
struct MidAttention {
    group_norm: GroupNorm,
    attention: Attention,
}

impl MidAttention {
    fn load(vb: &VarBuilder<'_>, channels: usize, num_groups: usize) -> Result<Self> {
        Ok(Self {
            group_norm: GroupNorm::load(&vb.pp("group_norm"), num_groups, channels, EPS)?,
            attention: Attention::load(vb, [channels, channels], 1, Bias::All)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let pixels =
            self.group_norm.forward(x)?.reshape((batch, channels, height * width))?.transpose(1, 2)?;
        let pixels = pixels.contiguous()?;
        let hidden = self.attention.forward(&pixels, &pixels)?;
        hidden.transpose(1, 2)?.reshape((batch, channels, height, width))? + x
    }
}

/// Residual blocks, then twice the size but for the last.
#[derive(Clone, Debug)]
struct UpDecoderBlock2D {
    resnets: Vec<ResnetBlock2D>,
    upsamplers: Option<Conv2d>,
}

/// The decoder. Fields are named as their keys in the safetensors file.
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    conv_in: Conv2d,
    mid_resnets: [ResnetBlock2D; 2],
    mid_attention: Option<MidAttention>,
    up_blocks: Vec<UpDecoderBlock2D>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub(super) fn load(vb: &VarBuilder<'_>, config: &VaeConfig) -> Result<Self> {
        let channels: Vec<_> = config.block_out_channels.iter().rev().copied().collect();
        let (deepest, last) = (channels[0], channels.len() - 1);
        let norm = Norm { num_groups: config.norm_num_groups, eps: EPS };
        let mid = vb.pp("mid_block");
        let mid_resnet = |i: usize| ResnetBlock2D::load(&mid.pp("resnets").pp(i), [deepest; 2], None, norm);
        let up_block = |i: usize| {
            let vb = vb.pp("up_blocks").pp(i);
            let resnet = |j: usize| {
                let c_in = if j == 0 { channels[i.saturating_sub(1)] } else { channels[i] };
                ResnetBlock2D::load(&vb.pp("resnets").pp(j), [c_in, channels[i]], None, norm)
            };
            let conv = vb.pp("upsamplers").pp("0").pp("conv");
            Ok::<_, candle_core::Error>(UpDecoderBlock2D {
                resnets: (0..=config.layers_per_block).map(resnet).collect::<Result<_>>()?,
                upsamplers: (i < last).then(|| Conv2d::load(&conv, [channels[i]; 2], 3)).transpose()?,
            })
        };
        let attention = mid.pp("attentions").pp("0");
        Ok(Self {
            conv_in: Conv2d::load(&vb.pp("conv_in"), [config.latent_channels, deepest], 3)?,
            mid_resnets: [mid_resnet(0)?, mid_resnet(1)?],
            mid_attention: config
                .mid_block_add_attention
                .then(|| MidAttention::load(&attention, deepest, config.norm_num_groups))
                .transpose()?,
            up_blocks: (0..channels.len()).map(up_block).collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::load(&vb.pp("conv_norm_out"), norm.num_groups, channels[last], EPS)?,
            conv_out: Conv2d::load(&vb.pp("conv_out"), [channels[last], 3], 3)?,
        })
    }

    /// `[1, 4, h, w]` to `[1, 3, 8h, 8w]`.
    pub(super) fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut x = self.mid_resnets[0].forward(self.conv_in.forward(latents)?, None)?;
        if let Some(attention) = &self.mid_attention {
            x = attention.forward(&x)?;
        }
        x = self.mid_resnets[1].forward(x, None)?;
        for block in &self.up_blocks {
            for resnet in &block.resnets {
                x = resnet.forward(x, None)?;
            }
            if let Some(conv) = &block.upsamplers {
                let (_, _, height, width) = x.dims4()?;
                x = x.upsample_nearest2d(2 * height, 2 * width)?;
                x = conv.forward(&x)?;
            }
        }
        let x = self.conv_norm_out.forward_silu(&x)?;
        self.conv_out.forward(&x)
    }
}

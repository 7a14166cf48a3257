//! The decoder half of the autoencoder: latents to a picture eight times their size.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{VaeConfig, mid::MidBlock};
use crate::{conv::Conv2d, norm::GroupNorm, resnet::ResnetBlock2D};

/// Residual blocks, then twice the size but for the last.
#[derive(Clone, Debug)]
struct UpDecoderBlock2D {
    resnets: Vec<ResnetBlock2D>,
    upsamplers: Option<Conv2d>,
}

impl UpDecoderBlock2D {
    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for resnet in &self.resnets {
            x = resnet.forward(x, None)?;
        }
        let Some(conv) = &self.upsamplers else { return Ok(x) };
        let size = conv.sides(&x)?.map(|side| 2 * side);
        conv.forward_upsampled(&x, size)
    }
}

/// The decoder with the 1 x 1 convolution before it. Fields are named as their keys in the safetensors file.
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    post_quant_conv: Option<Conv2d>,
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpDecoderBlock2D>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    /// Loads `post_quant_conv` and `decoder` from an autoencoder's weights.
    pub(super) fn load(root: &VarBuilder<'_>, config: &VaeConfig) -> Result<Self> {
        let (vb, norm) = (root.pp("decoder"), config.norm());
        let channels: Vec<_> = config.block_out_channels.iter().rev().copied().collect();
        let (deepest, last) = (channels[0], channels.len() - 1);
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
        let post_quant_conv = || Conv2d::load(&root.pp("post_quant_conv"), [config.latent_channels; 2], 1);
        Ok(Self {
            post_quant_conv: config.use_post_quant_conv.then(post_quant_conv).transpose()?,
            conv_in: Conv2d::load(&vb.pp("conv_in"), [config.latent_channels, deepest], 3)?,
            mid_block: MidBlock::load(&vb.pp("mid_block"), deepest, config)?,
            up_blocks: (0..channels.len()).map(up_block).collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::load(
                &vb.pp("conv_norm_out"),
                norm.num_groups,
                channels[last],
                norm.eps,
            )?,
            conv_out: Conv2d::load(&vb.pp("conv_out"), [channels[last], 3], 3)?,
        })
    }

    /// `[B, C, h, w]` to `[B, 3, 8h, 8w]`.
    pub(super) fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let latents = self.conv_in.laid_out(latents)?;
        let latents = match &self.post_quant_conv {
            Some(conv) => conv.forward(&latents)?,
            None => latents,
        };
        let mut x = self.mid_block.forward(self.conv_in.forward(&latents)?)?;
        for block in &self.up_blocks {
            x = block.forward(x)?;
        }
        let y = self.conv_out.forward_normalized(&x, &self.conv_norm_out)?;
        self.conv_out.pictures(&y)
    }
}

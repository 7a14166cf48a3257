//! The encoder half of the autoencoder: a picture to the distribution of latents an eighth its size.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{VaeConfig, mid::MidBlock};
use crate::{conv::Conv2d, norm::GroupNorm, resnet::ResnetBlock2D};

/// Residual blocks, then half the size but for the last.
#[derive(Clone, Debug)]
struct DownEncoderBlock2D {
    resnets: Vec<ResnetBlock2D>,
    downsamplers: Option<Conv2d>,
}

impl DownEncoderBlock2D {
    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for resnet in &self.resnets {
            x = resnet.forward(x, None)?;
        }
        let Some(conv) = &self.downsamplers else { return Ok(x) };
        // Unlike the UNet's, these see zeros only past the far edges.
        conv.forward_past_edges(&x)
    }
}

/// The encoder with the 1 x 1 convolution behind it. Fields are named as their keys in the safetensors file.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownEncoderBlock2D>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    quant_conv: Option<Conv2d>,
}

impl Encoder {
    /// Loads `encoder` and `quant_conv` from an autoencoder's weights.
    pub(super) fn load(root: &VarBuilder<'_>, config: &VaeConfig) -> Result<Self> {
        let (vb, norm) = (root.pp("encoder"), config.norm());
        let channels = &config.block_out_channels;
        let last = channels.len() - 1;
        let (deepest, moments) = (channels[last], 2 * config.latent_channels);
        let down_block = |i: usize| {
            let vb = vb.pp("down_blocks").pp(i);
            let resnet = |j: usize| {
                let c_in = if j == 0 { channels[i.saturating_sub(1)] } else { channels[i] };
                ResnetBlock2D::load(&vb.pp("resnets").pp(j), [c_in, channels[i]], None, norm)
            };
            let conv = vb.pp("downsamplers").pp("0").pp("conv");
            Ok::<_, candle_core::Error>(DownEncoderBlock2D {
                resnets: (0..config.layers_per_block).map(resnet).collect::<Result<_>>()?,
                downsamplers: (i < last)
                    .then(|| Conv2d::load_halving_unpadded(&conv, channels[i]))
                    .transpose()?,
            })
        };
        let quant_conv = || Conv2d::load(&root.pp("quant_conv"), [moments; 2], 1);
        Ok(Self {
            conv_in: Conv2d::load(&vb.pp("conv_in"), [3, channels[0]], 3)?,
            down_blocks: (0..channels.len()).map(down_block).collect::<Result<_>>()?,
            mid_block: MidBlock::load(&vb.pp("mid_block"), deepest, config)?,
            conv_norm_out: GroupNorm::load(&vb.pp("conv_norm_out"), norm.num_groups, deepest, norm.eps)?,
            conv_out: Conv2d::load(&vb.pp("conv_out"), [deepest, moments], 3)?,
            quant_conv: config.use_quant_conv.then(quant_conv).transpose()?,
        })
    }

    /// `[B, 3, H, W]` to `[B, 2C, H/8, W/8]`: means, then logarithms of variances.
    pub(super) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(&self.conv_in.laid_out(images)?)?;
        for block in &self.down_blocks {
            x = block.forward(x)?;
        }
        let x = self.mid_block.forward(x)?;
        let mut x = self.conv_out.forward_normalized(&x, &self.conv_norm_out)?;
        if let Some(conv) = &self.quant_conv {
            x = conv.forward(&x)?;
        }
        self.conv_out.pictures(&x)
    }
}

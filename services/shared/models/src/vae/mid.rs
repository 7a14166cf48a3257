//! The lowest level of the autoencoder, of one kind in encoder and decoder.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::VaeConfig;
use crate::{
    attention::{Attention, Bias},
    autograd::{self, slices},
    cuda,
    norm::GroupNorm,
    resnet::{Norm, ResnetBlock2D},
};

/// Attention of one head as wide as the channels, between a normalization and the input added again.
#[derive(Clone, Debug)]
struct MidAttention {
    group_norm: GroupNorm,
    attention: Attention,
}

impl MidAttention {
    fn load(vb: &VarBuilder<'_>, channels: usize, norm: Norm) -> Result<Self> {
        Ok(Self {
            group_norm: GroupNorm::load(&vb.pp("group_norm"), norm.num_groups, channels, norm.eps)?,
            attention: Attention::load(vb, [channels, channels], 1, Bias::All)?,
        })
    }

    /// By the CPU's kernels, where they were packed: `x` `[B, H, W, C]`.
    fn packed(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let (Some(norm), Some(element)) = (self.group_norm.packed(), self.attention.element()) else {
            return Ok(None);
        };
        let (items, height, width, _) = x.dims4()?;
        let mut out = vec![0.0; x.elem_count()];
        slices::with(x, |x| {
            let rows = norm.rows(x, [items, height * width], element)?;
            self.attention
                .attend_to_self(&rows, items, &mut |attended, to_out| to_out.onto(attended, x, &mut out))
        })?;
        Tensor::from_vec(out, x.shape(), x.device()).map(Some)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(y) = self.packed(x)? {
            return Ok(y);
        }
        if cuda::wanted(&[self.attention.weight()]) {
            let (batch, height, width, channels) = x.dims4()?;
            let pixels = self.group_norm.forward(x)?.reshape((batch, height * width, channels))?;
            return self.attention.attend_to_self_onto(&pixels, x)?.reshape(x.shape());
        }
        let (batch, channels, height, width) = x.dims4()?;
        let pixels = self.group_norm.forward(x)?.reshape((batch, channels, height * width))?;
        let pixels = autograd::exchanged(&pixels)?;
        let hidden = autograd::exchanged(&self.attention.forward(&pixels, &pixels)?)?;
        hidden.reshape((batch, channels, height, width))? + x
    }
}

/// Attention between two residual blocks.
#[derive(Clone, Debug)]
pub(super) struct MidBlock {
    resnets: [ResnetBlock2D; 2],
    attention: Option<MidAttention>,
}

impl MidBlock {
    /// Loads the block over the deepest level's channels.
    pub(super) fn load(vb: &VarBuilder<'_>, channels: usize, config: &VaeConfig) -> Result<Self> {
        let norm = config.norm();
        let resnet = |i: usize| ResnetBlock2D::load(&vb.pp("resnets").pp(i), [channels; 2], None, norm);
        let attention = || MidAttention::load(&vb.pp("attentions").pp("0"), channels, norm);
        Ok(Self {
            resnets: [resnet(0)?, resnet(1)?],
            attention: config.mid_block_add_attention.then(attention).transpose()?,
        })
    }

    /// `[B, C, h, w]` to the same.
    pub(super) fn forward(&self, x: Tensor) -> Result<Tensor> {
        let mut x = self.resnets[0].forward(x, None)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.resnets[1].forward(x, None)
    }
}

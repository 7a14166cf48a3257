//! diffusers' `ResnetBlock2D`, which the UNet and the autoencoder share.

use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{
    autograd::{self, ResnetTensors},
    conv::Conv2d,
    cpu::Then,
    linear::{Linear, linear},
    norm::GroupNorm,
};

/// How a residual block normalizes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    pub(crate) num_groups: usize,
    pub(crate) eps: f32,
}

/// Two normalized convolutions around a residual, the first shifted by the time embedding where there is one.
#[derive(Clone, Debug)]
pub(crate) struct ResnetBlock2D {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock2D {
    /// `channels` are those in and out; `temb_channels` is the time embedding's width.
    pub(crate) fn load(
        vb: &VarBuilder<'_>,
        channels: [usize; 2],
        temb_channels: Option<usize>,
        norm: Norm,
    ) -> Result<Self> {
        let [c_in, c_out] = channels;
        let time_emb_proj =
            temb_channels.map(|width| linear(width, c_out, &vb.pp("time_emb_proj"))).transpose()?;
        let conv_shortcut =
            (c_in != c_out).then(|| Conv2d::load(&vb.pp("conv_shortcut"), channels, 1)).transpose()?;
        Ok(Self {
            norm1: GroupNorm::load(&vb.pp("norm1"), norm.num_groups, c_in, norm.eps)?,
            conv1: Conv2d::load(&vb.pp("conv1"), channels, 3)?,
            time_emb_proj,
            norm2: GroupNorm::load(&vb.pp("norm2"), norm.num_groups, c_out, norm.eps)?,
            conv2: Conv2d::load(&vb.pp("conv2"), [c_out, c_out], 3)?,
            conv_shortcut,
        })
    }

    /// `x` `[B, C_in, H, W]` to `[B, C_out, H, W]`; `temb` `[B, T]` has been through SiLU, once for all blocks. Takes
    /// `x` whole, so that a large picture's activations are freed as soon as they can be.
    pub(crate) fn forward(&self, x: Tensor, temb: Option<&Tensor>) -> Result<Tensor> {
        if let Some(y) = self.packed(&[&x], temb)? {
            return Ok(y);
        }
        if let Some(y) = self.differentiable(&[&x], temb)? {
            return Ok(y);
        }
        let hidden = self.norm1.forward_silu(&x)?;
        let residual = match &self.conv_shortcut {
            Some(conv) => conv.forward(&x)?,
            None => x.clone(),
        };
        drop(x);
        let hidden = match (&self.time_emb_proj, temb) {
            (Some(project), Some(temb)) => {
                self.conv1.forward_shifted(&hidden, &project.forward_each(temb)?)?
            }
            _ => self.conv1.forward(&hidden)?,
        };
        let hidden = self.norm2.forward_silu(&hidden)?;
        residual + self.conv2.forward(&hidden)?
    }

    /// [`ResnetBlock2D::forward`] of `x`'s channels, then `skip`'s.
    pub(crate) fn forward_joined(&self, x: Tensor, skip: Tensor, temb: Option<&Tensor>) -> Result<Tensor> {
        if let Some(y) = self.packed(&[&x, &skip], temb)? {
            return Ok(y);
        }
        if let Some(y) = self.differentiable(&[&x, &skip], temb)? {
            return Ok(y);
        }
        let joined = Tensor::cat(&[x, skip], 1)?;
        self.forward(joined, temb)
    }

    /// The block by the CPU's kernels, where it was packed: `parts` `[B, H, W, C]` side by side.
    fn packed(&self, parts: &[&Tensor], temb: Option<&Tensor>) -> Result<Option<Tensor>> {
        let (Some(conv1), Some(conv2)) = (self.conv1.packed(), self.conv2.packed()) else { return Ok(None) };
        let (Some(norm1), Some(norm2)) = (self.norm1.packed(), self.norm2.packed()) else { return Ok(None) };
        let shift = self.time_emb_proj.as_ref().zip(temb);
        let shift = shift.map(|(project, temb)| project.forward_each(temb)).transpose()?;
        let source = self.conv1.source(parts, Some((norm1, Then::Silu)));
        let hidden = conv1.forward(&source, shift.as_ref(), None)?;
        let residual = match &self.conv_shortcut {
            Some(conv) => conv.packed().map(|packed| packed.forward(&conv.source(parts, None), None, None)),
            None => None,
        };
        let residual = match (residual, parts) {
            (Some(residual), _) => residual?,
            (None, [only]) => (*only).clone(),
            (None, _) => Tensor::cat(parts, D::Minus1)?,
        };
        let inner = [&hidden];
        let source = self.conv2.source(&inner, Some((norm2, Then::Silu)));
        Ok(Some(conv2.forward(&source, None, Some(&residual))?))
    }

    /// The block as one operation, where a gradient may be asked for.
    fn differentiable(&self, parts: &[&Tensor], temb: Option<&Tensor>) -> Result<Option<Tensor>> {
        let [weight, _] = self.norm1.affine();
        let tensors: Vec<&Tensor> = parts.iter().copied().chain(temb).chain([weight]).collect();
        let Some(precision) = autograd::wanted(&tensors) else { return Ok(None) };
        let shift = self.time_emb_proj.as_ref().zip(temb);
        let shift = shift.map(|(project, temb)| temb.apply(project)).transpose()?;
        let tensors = ResnetTensors {
            norms: [self.norm1.affine(), self.norm2.affine()],
            convs: [self.conv1.affine(), self.conv2.affine()],
            shortcut: self.conv_shortcut.as_ref().map(Conv2d::affine),
            groups: self.norm1.groups(),
        };
        Ok(Some(autograd::resnet_block(parts, shift.as_ref(), &tensors, precision)?))
    }
}

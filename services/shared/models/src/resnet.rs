//! diffusers' `ResnetBlock2D`, which the UNet and the autoencoder share.

use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{
    autograd::{self, ResnetTensors},
    conv::Conv2d,
    cpu::{Convolution, Normalization, Then},
    linear::{Linear, linear},
    norm::GroupNorm,
};

/// How a residual block normalizes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    pub(crate) num_groups: usize,
    pub(crate) eps: f32,
}

/// What the CPU's kernels take of a block.
struct Packed<'a> {
    norms: [&'a Normalization; 2],
    convs: [&'a Convolution; 2],
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

    /// `x` `[B, C_in, H, W]` to `[B, C_out, H, W]`, or with channels last where it was packed; `temb` `[B, T]` has been through SiLU, once for all blocks. Takes
    /// `x` whole, so that a large picture's activations are freed as soon as they can be.
    pub(crate) fn forward(&self, x: Tensor, temb: Option<&Tensor>) -> Result<Tensor> {
        if let Some(packed) = self.packed() {
            return self.forward_packed(&packed, vec![x], temb);
        }
        if let Some(y) = self.differentiable(&[&x], temb)? {
            return Ok(y);
        }
        if self.conv1.is_on_gpu() {
            return self.forward_on_gpu(&x, temb);
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
        if let Some(packed) = self.packed() {
            return self.forward_packed(&packed, vec![x, skip], temb);
        }
        if let Some(y) = self.differentiable(&[&x, &skip], temb)? {
            return Ok(y);
        }
        let channels = if self.conv1.is_on_gpu() { 3 } else { 1 };
        let joined = Tensor::cat(&[x, skip], channels)?;
        self.forward(joined, temb)
    }

    /// The block on an NVIDIA GPU: `x` `[B, H, W, C]`. The first convolution's bias and the time are added where the second
    /// normalization reads.
    fn forward_on_gpu(&self, x: &Tensor, temb: Option<&Tensor>) -> Result<Tensor> {
        let [hidden, bias] = self.conv1.forward_bare(&self.norm1.forward_silu(x)?)?;
        let shift = match (&self.time_emb_proj, temb) {
            (Some(project), Some(temb)) => project.forward_each(temb)?.broadcast_add(&bias)?,
            _ => bias,
        };
        let hidden = self.norm2.forward_shifted_silu(&hidden, &shift)?;
        match &self.conv_shortcut {
            Some(conv) => self.conv2.forward_onto(&hidden, &conv.forward(x)?),
            None => self.conv2.forward_onto(&hidden, x),
        }
    }

    fn packed(&self) -> Option<Packed<'_>> {
        Some(Packed {
            norms: [self.norm1.packed()?, self.norm2.packed()?],
            convs: [self.conv1.packed()?, self.conv2.packed()?],
        })
    }

    /// The block by the CPU's kernels: `parts` `[B, H, W, C]` side by side.
    fn forward_packed(
        &self,
        packed: &Packed<'_>,
        parts: Vec<Tensor>,
        temb: Option<&Tensor>,
    ) -> Result<Tensor> {
        let Packed { norms, convs } = packed;
        let shift = self.time_emb_proj.as_ref().zip(temb);
        let shift = shift.map(|(project, temb)| project.forward_each(temb)).transpose()?;
        let refs: Vec<&Tensor> = parts.iter().collect();
        let source = self.conv1.source(&refs, Some((norms[0], Then::Silu)));
        let hidden = convs[0].forward(&source, shift.as_ref(), None)?;
        let residual = match (&self.conv_shortcut, refs.as_slice()) {
            (Some(conv), _) => conv.forward_parts(&refs)?,
            (None, [only]) => (*only).clone(),
            (None, _) => Tensor::cat(&refs, D::Minus1)?,
        };
        drop(parts);
        let inner = [&hidden];
        let source = self.conv2.source(&inner, Some((norms[1], Then::Silu)));
        convs[1].forward(&source, None, Some(&residual))
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

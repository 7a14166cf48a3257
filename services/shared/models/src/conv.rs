//! Convolutions whose scratch memory has a bound.

mod kernel;

use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use kernel::Convolve;

use crate::{
    autograd,
    cpu::{Convolution, Loaded, Margins, Normalization, Source, Then},
    cuda,
    norm::GroupNorm,
};

/// The most scratch that one convolution asks of candle at once. On devices without a kernel of ours candle lays out
/// the whole im2col matrix: 4.8 GB for SDXL's last decoder block at 1024 x 1024. Rows beyond what fits are computed in
/// bands.
const SCRATCH_BYTES: usize = 256 << 20;

/// A square convolution with bias, mostly padded to keep the size at stride 1.
#[derive(Clone, Debug)]
pub(crate) struct Conv2d {
    /// `[C_out, C_in, k, k]`; on NVIDIA GPUs `[C_out, k, k, C_in]`.
    weight: Tensor,
    /// `[1, C_out, 1, 1]`.
    bias: Tensor,
    stride: usize,
    padding: usize,
    scratch_bytes: usize,
    /// In place of the weight, which then has no elements. It takes and gives `[B, H, W, C]` in f32.
    packed: Option<Arc<Convolution>>,
}

impl Conv2d {
    /// Loads a `kernel` x `kernel` convolution.
    pub(crate) fn load(vb: &VarBuilder<'_>, channels: [usize; 2], kernel: usize) -> Result<Self> {
        Self::load_with(vb, channels, [kernel, 1, kernel / 2])
    }

    fn load_with(
        vb: &VarBuilder<'_>,
        [c_in, c_out]: [usize; 2],
        [kernel, stride, padding]: [usize; 3],
    ) -> Result<Self> {
        let weight = Loaded::new(vb, &[c_out, c_in, kernel, kernel], "weight")?;
        let bias = vb.get(c_out, "bias")?.reshape((1, c_out, 1, 1))?;
        let (weight, packed) =
            match weight.packed(|weight, element| Convolution::new(weight, &bias, stride, element))? {
                Ok((none, packed)) => (none, Some(Arc::new(packed))),
                Err(weight) => (weight, None),
            };
        let weight = match cuda::wanted(&[&weight]) {
            true => weight.permute((0, 2, 3, 1))?.contiguous()?,
            false => weight,
        };
        Ok(Self { weight, bias, stride, padding, scratch_bytes: SCRATCH_BYTES, packed })
    }

    /// Whether it takes and gives `[B, H, W, C]`.
    fn has_channels_last(&self) -> bool {
        self.packed.is_some() || self.is_on_gpu()
    }

    /// Whether it serves on an NVIDIA GPU, where the layers around it are others.
    pub(crate) fn is_on_gpu(&self) -> bool {
        cuda::wanted(&[&self.weight])
    }

    /// [`Conv2d::forward`] on an NVIDIA GPU, with as many `others` as results added.
    fn on_gpu(&self, x: &Tensor, others: Option<&Tensor>) -> Result<Tensor> {
        let bias = self.gpu_bias()?;
        if self.weight.dim(1)? == 1 && self.stride == 1 {
            return cuda::linear(x, &self.weight.flatten_from(1)?, Some(&bias), others);
        }
        cuda::conv2d(x, &self.weight, [Some(&bias), others], [self.stride, self.padding])
    }

    /// `[C_out]`.
    fn gpu_bias(&self) -> Result<Tensor> {
        self.bias.flatten_all()
    }

    /// [`Conv2d::forward`] on an NVIDIA GPU, without its bias, which is given beside it as `[1, C_out]`.
    pub(crate) fn forward_bare(&self, x: &Tensor) -> Result<[Tensor; 2]> {
        let bare = cuda::conv2d(x, &self.weight, [None, None], [self.stride, self.padding])?;
        Ok([bare, self.gpu_bias()?.unsqueeze(0)?])
    }

    /// [`Conv2d::forward`] on an NVIDIA GPU, with as many `others` as results added.
    pub(crate) fn forward_onto(&self, x: &Tensor, others: &Tensor) -> Result<Tensor> {
        self.on_gpu(x, Some(others))
    }

    /// Loads a 3 x 3 convolution that halves the size, rounding up.
    pub(crate) fn load_halving(vb: &VarBuilder<'_>, channels: usize) -> Result<Self> {
        Self::load_with(vb, [channels; 2], [3, 2, 1])
    }

    /// Loads a 3 x 3 convolution that halves the size of what its caller has padded, rounding down.
    pub(crate) fn load_halving_unpadded(vb: &VarBuilder<'_>, channels: usize) -> Result<Self> {
        Self::load_with(vb, [channels; 2], [3, 2, 0])
    }

    /// As the CPU's kernels take it, if it was packed.
    pub(crate) fn packed(&self) -> Option<&Convolution> {
        self.packed.as_deref()
    }

    fn margins(&self) -> Margins {
        Margins { before: self.padding, behind: self.padding }
    }

    /// Height and width of a map as this convolution takes it.
    pub(crate) fn sides(&self, x: &Tensor) -> Result<[usize; 2]> {
        let (_, a, b, c) = x.dims4()?;
        Ok(if self.has_channels_last() { [a, b] } else { [b, c] })
    }

    /// Pictures `[B, C, H, W]` as this convolution takes them.
    pub(crate) fn laid_out(&self, x: &Tensor) -> Result<Tensor> {
        if self.has_channels_last() { x.permute((0, 2, 3, 1))?.contiguous() } else { Ok(x.clone()) }
    }

    /// What this convolution gave, as pictures `[B, C, H, W]`.
    pub(crate) fn pictures(&self, y: &Tensor) -> Result<Tensor> {
        if self.has_channels_last() { y.permute((0, 3, 1, 2))?.contiguous() } else { Ok(y.clone()) }
    }

    /// Of a packed convolution, what it takes from `parts` side by side.
    pub(crate) fn source<'a>(
        &self,
        parts: &'a [&'a Tensor],
        norm: Option<(&'a Normalization, Then)>,
    ) -> Source<'a> {
        Source { parts, norm, size: None, margins: self.margins() }
    }

    /// [`Conv2d::forward`] of parts' channels side by side, where it was packed.
    pub(crate) fn forward_parts(&self, parts: &[&Tensor]) -> Result<Tensor> {
        match &self.packed {
            Some(packed) => packed.forward(&self.source(parts, None), None, None),
            None => candle_core::bail!("a block is packed as a whole"),
        }
    }

    /// [`Conv2d::forward`] of `x` made as large as `height` and `width`, each pixel by its nearest.
    pub(crate) fn forward_upsampled(&self, x: &Tensor, [height, width]: [usize; 2]) -> Result<Tensor> {
        if let Some(packed) = &self.packed {
            let parts = [x];
            let source = Source { size: Some([height, width]), ..self.source(&parts, None) };
            return packed.forward(&source, None, None);
        }
        if self.is_on_gpu() {
            return self.forward(&cuda::upsampled(x, [height, width])?);
        }
        self.forward(&autograd::upsampled(x, height, width)?)
    }

    /// [`Conv2d::forward`] of `x` normalized, and through SiLU.
    pub(crate) fn forward_normalized(&self, x: &Tensor, norm: &GroupNorm) -> Result<Tensor> {
        if let (Some(packed), Some(norm)) = (&self.packed, norm.packed()) {
            return packed.forward(&self.source(&[x], Some((norm, Then::Silu))), None, None);
        }
        self.forward(&norm.forward_silu(x)?)
    }

    /// Weight, and bias as it stands here.
    pub(crate) fn affine(&self) -> [&Tensor; 2] {
        [&self.weight, &self.bias]
    }

    /// `[B, C_in, H, W]` to `[B, C_out, H, W]`, or half that size where it halves. Channels are last where it is packed, and on
    /// NVIDIA GPUs.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(packed) = &self.packed {
            return packed.forward(&self.source(&[x], None), None, None);
        }
        if self.is_on_gpu() {
            return self.on_gpu(x, None);
        }
        if let Some(precision) = autograd::wanted(&[x, &self.weight]) {
            let bias = self.bias.flatten_all()?;
            return autograd::conv2d(x, [&self.weight, &bias], self.stride, [self.padding; 2], precision);
        }
        self.by_kernel(x)
    }

    /// [`Conv2d::forward`] of `x` with a row and a column of zeros past the far edges.
    pub(crate) fn forward_past_edges(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(packed) = &self.packed {
            let margins = Margins { before: self.padding, behind: self.padding + 1 };
            return packed.forward(&Source { margins, ..self.source(&[x], None) }, None, None);
        }
        if let Some(precision) = autograd::wanted(&[x, &self.weight]) {
            let bias = self.bias.flatten_all()?;
            let padding = [self.padding, self.padding + 1];
            return autograd::conv2d(x, [&self.weight, &bias], self.stride, padding, precision);
        }
        let [first, second] = if self.has_channels_last() { [1, 2] } else { [2, 3] };
        self.forward(&x.pad_with_zeros(first, 0, 1)?.pad_with_zeros(second, 0, 1)?)
    }

    /// [`Conv2d::forward`], each channel of each item shifted by `shift` `[B, C_out]`.
    pub(crate) fn forward_shifted(&self, x: &Tensor, shift: &Tensor) -> Result<Tensor> {
        let Some(precision) = autograd::wanted(&[x, shift, &self.weight]) else {
            return self.by_kernel(x)?.broadcast_add(&shift.unsqueeze(D::Minus1)?.unsqueeze(D::Minus1)?);
        };
        let bias = shift.broadcast_add(&self.bias.flatten_all()?)?;
        autograd::conv2d(x, [&self.weight, &bias], self.stride, [self.padding; 2], precision)
    }

    fn by_kernel(&self, x: &Tensor) -> Result<Tensor> {
        if matches!(x.device(), Device::Cpu) {
            return self.on_cpu(x);
        }
        self.by_tensor_operations(x)
    }

    /// The kernel computes in f32 whatever the type.
    fn on_cpu(&self, x: &Tensor) -> Result<Tensor> {
        let op = Convolve { stride: self.stride, padding: self.padding };
        let single = |x: &Tensor| x.to_dtype(DType::F32)?.contiguous();
        let bias = self.bias.flatten_all()?;
        single(x)?.apply_op3_no_bwd(&single(&self.weight)?, &single(&bias)?, &op)?.to_dtype(x.dtype())
    }

    fn by_tensor_operations(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, _, height, width) = x.dims4()?;
        if self.weight.track_op() && [self.stride, self.padding] == [2, 1] {
            // candle's gradient takes both sides for even, or both for odd: padded so that both are odd, it is right.
            let x = x.pad_with_zeros(2, 1, height % 2)?.pad_with_zeros(3, 1, width % 2)?;
            return x.conv2d(&self.weight, 0, 2, 1, 1)?.broadcast_add(&self.bias);
        }
        let rows = self.rows_per_band(x)?;
        if self.stride != 1 || rows >= height || self.weight.track_op() {
            return self.whole(x)?.broadcast_add(&self.bias);
        }
        let out = Tensor::zeros((batch, self.weight.dim(0)?, height, width), x.dtype(), x.device())?;
        for row in (0..height).step_by(rows) {
            let band = self.band(x, row, rows.min(height - row))?;
            out.slice_set(&band.broadcast_add(&self.bias)?, 2, row)?;
        }
        Ok(out)
    }

    fn whole(&self, x: &Tensor) -> Result<Tensor> {
        x.conv2d(&self.weight, self.padding, self.stride, 1, 1)
    }

    /// Rows `row..row + rows` of the result, from as many input rows and the halo that the kernel reaches over. The
    /// padding of the cut edges makes rows that are cut off again.
    fn band(&self, x: &Tensor, row: usize, rows: usize) -> Result<Tensor> {
        let halo = self.padding;
        let first = row.saturating_sub(halo);
        let end = (row + rows + halo).min(x.dim(2)?);
        self.whole(&x.narrow(2, first, end - first)?)?.narrow(2, row - first, rows)
    }

    fn rows_per_band(&self, x: &Tensor) -> Result<usize> {
        let (batch, c_in, _, width) = x.dims4()?;
        let (c_out, _, kernel, _) = self.weight.dims4()?;
        let row_bytes = batch * (c_in * kernel * kernel + c_out) * width * x.dtype().size_in_bytes();
        Ok((self.scratch_bytes / row_bytes.max(1)).max(8))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::seeded;

    fn conv(kernel: usize, scratch_bytes: usize) -> Conv2d {
        Conv2d { scratch_bytes, ..Conv2d::load(&seeded::weights(), [5, 7], kernel).unwrap() }
    }

    #[test]
    fn bands_join_without_a_seam() {
        let x = Tensor::randn(0f32, 1.0, (2, 5, 43, 19), &Device::Cpu).unwrap();
        for kernel in [1, 3] {
            let mut conv = conv(kernel, SCRATCH_BYTES);
            let whole = conv.by_tensor_operations(&x).unwrap();
            conv.scratch_bytes = 0; // bands of 8 rows, the last of 3
            let banded = conv.by_tensor_operations(&x).unwrap();
            assert_eq!(conv.rows_per_band(&x).unwrap(), 8);
            let worst =
                (whole - banded).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(worst <= 1e-6, "kernel {kernel}: {worst}");
        }
    }

    #[test]
    fn an_odd_size_is_halved_upwards() {
        let conv = Conv2d::load_halving(&seeded::weights(), 4).unwrap();
        let x = Tensor::zeros((1, 4, 9, 6), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(conv.forward(&x).unwrap().dims(), [1, 4, 5, 3]);
    }

    #[test]
    fn what_is_not_padded_is_halved_downwards() {
        let conv = Conv2d::load_halving_unpadded(&seeded::weights(), 4).unwrap();
        let x = Tensor::randn(0f32, 1.0, (2, 4, 9, 6), &Device::Cpu).unwrap();
        let got = conv.forward(&x).unwrap();
        assert_eq!(got.dims(), [2, 4, 4, 2]);
        let plain = conv.by_tensor_operations(&x).unwrap();
        let worst = (got - plain).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst <= 1e-6, "{worst}");
    }
}

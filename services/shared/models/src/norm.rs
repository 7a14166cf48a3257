//! Group normalization (Wu and He 2018), optionally with the SiLU that follows it nearly everywhere in these networks.
//!
//! candle-nn's own sums a group in f32 only, which loses digits over the millions of values of a large picture, rounds
//! half-precision activations before the affine part, and holds five copies of its input on the way.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, bail};
use candle_nn::VarBuilder;
use rayon::prelude::*;

use crate::{
    autograd,
    cpu::{self, Normalization, Then},
    cuda,
};

/// Normalizes `[B, C, ...]`, on NVIDIA GPUs `[B, ..., C]`, over groups of channels. Computes in f32 whatever the input's type, which
/// it gives back.
#[derive(Clone, Debug)]
pub(crate) struct GroupNorm {
    /// `[C]`, f32.
    weight: Tensor,
    /// `[C]`, f32.
    bias: Tensor,
    num_groups: usize,
    eps: f32,
    packed: Option<Arc<Normalization>>,
}

impl GroupNorm {
    pub(crate) fn load(vb: &VarBuilder<'_>, num_groups: usize, channels: usize, eps: f32) -> Result<Self> {
        if num_groups == 0 || !channels.is_multiple_of(num_groups) {
            bail!("{channels} channels do not divide into norm_num_groups = {num_groups}");
        }
        let vb = vb.clone().set_dtype(DType::F32);
        let (weight, bias) = (vb.get(channels, "weight")?, vb.get(channels, "bias")?);
        let packed = match cpu::wanted(&weight) {
            Some(_) => Some(Arc::new(Normalization::new([&weight, &bias], num_groups, eps)?)),
            None => None,
        };
        Ok(Self { weight, bias, num_groups, eps, packed })
    }

    /// As the CPU's kernels take it, if it was packed.
    pub(crate) fn packed(&self) -> Option<&Normalization> {
        self.packed.as_deref()
    }

    /// Weight and bias.
    pub(crate) fn affine(&self) -> [&Tensor; 2] {
        [&self.weight, &self.bias]
    }

    /// The number of groups, and what is added to their variance.
    pub(crate) fn groups(&self) -> (usize, f32) {
        (self.num_groups, self.eps)
    }

    /// The normalized input.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, Then::Nothing)
    }

    /// `silu` of the normalized input.
    pub(crate) fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, Then::Silu)
    }

    /// [`GroupNorm::forward_silu`] on an NVIDIA GPU, of channels shifted by `shift` `[B, C]`, or `[1, C]` for all items.
    pub(crate) fn forward_shifted_silu(&self, x: &Tensor, shift: &Tensor) -> Result<Tensor> {
        cuda::group_norm(x, Some(shift), self.affine(), self.groups(), true)
    }

    fn apply(&self, x: &Tensor, then: Then) -> Result<Tensor> {
        if autograd::wanted(&[x, &self.weight]).is_some() {
            let affine = [&self.weight, &self.bias];
            return autograd::group_norm(x, affine, self.num_groups, self.eps, then == Then::Silu);
        }
        let (dtype, x) = (x.dtype(), x.contiguous()?);
        let op = GroupNormOp { num_groups: self.num_groups, eps: self.eps, then };
        match x.device() {
            Device::Cuda(_) if cuda::wanted(&[&self.weight]) => {
                cuda::group_norm(&x, None, self.affine(), self.groups(), then == Then::Silu)
            }
            Device::Cpu => {
                x.to_dtype(DType::F32)?.apply_op3_no_bwd(&self.weight, &self.bias, &op)?.to_dtype(dtype)
            }
            _ => self.by_tensor_operations(&x.to_dtype(DType::F32)?, then)?.to_dtype(dtype),
        }
    }

    /// The same without a kernel, for devices that have none, and on NVIDIA GPUs for training.
    fn by_tensor_operations(&self, x: &Tensor, then: Then) -> Result<Tensor> {
        let (batch, channels) = (x.dim(0)?, x.dim(1)?);
        let groups = x.reshape((batch, self.num_groups, ()))?;
        let centred = groups.broadcast_sub(&groups.mean_keepdim(2)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(2)? + f64::from(self.eps))?.sqrt()?;
        let mut affine = vec![1; x.rank()];
        affine[1] = channels;
        let y = centred
            .broadcast_div(&deviation)?
            .reshape(x.shape())?
            .broadcast_mul(&self.weight.reshape(affine.as_slice())?)?
            .broadcast_add(&self.bias.reshape(affine.as_slice())?)?;
        match then {
            Then::Nothing => Ok(y),
            Then::Silu => y.silu(),
        }
    }
}

struct GroupNormOp {
    num_groups: usize,
    eps: f32,
    then: Then,
}

impl CustomOp3 for GroupNormOp {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, x_layout)?;
        let (weight, bias) = (contiguous(weight, weight_layout)?, contiguous(bias, bias_layout)?);
        let dims = x_layout.dims();
        if dims.len() < 2 || dims[1] != weight.len() || x.is_empty() {
            bail!("group-norm of {} channels got {dims:?}", weight.len());
        }
        let pixels: usize = dims[2..].iter().product();
        let channels_per_group = weight.len() / self.num_groups;
        let group_len = channels_per_group * pixels;
        let mut out = vec![0_f32; x.len()];
        out.par_chunks_mut(group_len).zip(x.par_chunks(group_len)).enumerate().for_each(|(i, (out, x))| {
            let (mean, scale) = moments(x, self.eps);
            let first = (i % self.num_groups) * channels_per_group;
            for (c, (out, x)) in out.chunks_mut(pixels).zip(x.chunks(pixels)).enumerate() {
                let factor = scale * weight[first + c];
                let shift = bias[first + c] - mean * factor;
                match self.then {
                    Then::Nothing => write(out, x, |v| v.mul_add(factor, shift)),
                    Then::Silu => write(out, x, |v| silu(v.mul_add(factor, shift))),
                }
            }
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("group-norm takes contiguous tensors"),
    }
}

fn write(out: &mut [f32], x: &[f32], f: impl Fn(f32) -> f32) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f(*x);
    }
}

fn silu(v: f32) -> f32 {
    v / (1.0 + (-v).exp())
}

/// Mean and reciprocal standard deviation (biased), the second over differences from the first.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "the result is f32")]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f64;
    let mean = (sum(x, |v| v) / n) as f32;
    let variance = sum(x, |v| (v - mean) * (v - mean)) / n;
    (mean, (1.0 / (variance + f64::from(eps)).sqrt()) as f32)
}

/// Sums in 16 lanes of f32 over short stretches, and those in f64.
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    const LANES: usize = 16;
    let stretch = |x: &[f32]| -> f64 {
        let (blocks, rest) = x.as_chunks::<LANES>();
        let mut lanes = [0_f32; LANES];
        for block in blocks {
            for (lane, v) in lanes.iter_mut().zip(block) {
                *lane += f(*v);
            }
        }
        lanes.iter().chain(&rest.iter().map(|v| f(*v)).collect::<Vec<_>>()).map(|v| f64::from(*v)).sum()
    };
    x.chunks(1024).map(stretch).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn norm(channels: usize) -> GroupNorm {
        let draw = |mean| Tensor::randn(mean, 0.3f32, channels, &Device::Cpu).unwrap();
        GroupNorm { weight: draw(1.0), bias: draw(0.0), num_groups: 4, eps: 1e-5, packed: None }
    }

    fn worst(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
    }

    #[test]
    fn the_kernel_equals_tensor_operations() {
        let norm = norm(8);
        let x = Tensor::randn(0.5f32, 2.0, (2, 8, 7, 5), &Device::Cpu).unwrap();
        let plain = norm.by_tensor_operations(&x, Then::Nothing).unwrap();
        assert!(worst(&norm.forward(&x).unwrap(), &plain) < 1e-5);
        assert!(worst(&norm.forward_silu(&x).unwrap(), &plain.silu().unwrap()) < 1e-5);
    }

    #[test]
    fn a_million_values_far_from_zero_keep_their_digits() {
        // A group of 2^20 values 1000 +- 1: f32 sums would lose the variance altogether.
        let values: Vec<f32> = (0..1 << 20).map(|i| if i % 2 == 0 { 999.0 } else { 1001.0 }).collect();
        let (mean, scale) = moments(&values, 0.0);
        assert_eq!((mean, scale), (1000.0, 1.0));
    }

    #[test]
    fn half_precision_is_rounded_once() {
        let norm = norm(8);
        let x = Tensor::randn(0f32, 1.0, (1, 8, 4, 4), &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap();
        let exact = norm.forward(&x.to_dtype(DType::F32).unwrap()).unwrap().to_dtype(DType::F16).unwrap();
        let got = norm.forward(&x).unwrap();
        assert_eq!(got.dtype(), DType::F16);
        assert_eq!(
            got.flatten_all().unwrap().to_vec1::<half::f16>().unwrap(),
            exact.flatten_all().unwrap().to_vec1::<half::f16>().unwrap()
        );
    }
}

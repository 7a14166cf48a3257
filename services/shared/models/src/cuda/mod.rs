//! Kernels for NVIDIA GPUs: what lies between products in one pass each, as on the CPU. They are compiled when the first
//! of them is launched. Products are cuBLAS's, and convolutions with the feature `cudnn` cuDNN's, both by candle.
#![expect(unsafe_code, reason = "what a kernel is given fits what it reads and writes: each launch says why")]

use std::sync::OnceLock;

use candle_core::{
    CudaDevice, CudaStorage, DType, Layout, Result,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        CudaDType, WrapErr,
        cudarc::{
            driver::{CudaView, DeviceRepr, LaunchConfig, PushKernelArg},
            nvrtc::compile_ptx,
        },
    },
};
use half::{bf16, f16};

const SOURCE: &str = include_str!("kernels.cu");
/// Threads of a block: whole warps.
const THREADS: u32 = 512;
/// Blocks of a kernel that goes over its elements in strides: enough for any device.
const BLOCKS: u32 = 4096;

/// How a group normalization goes.
#[derive(Clone, Copy)]
pub(crate) struct Groups {
    pub(crate) num_groups: usize,
    pub(crate) eps: f32,
    pub(crate) silu: bool,
}

/// The kernels as the driver takes them.
fn ptx() -> Result<&'static str> {
    static PTX: OnceLock<std::result::Result<String, String>> = OnceLock::new();
    let made = PTX.get_or_init(|| compile_ptx(SOURCE).map(|ptx| ptx.to_src()).map_err(|e| format!("{e:?}")));
    match made {
        Ok(ptx) => Ok(ptx),
        Err(why) => bail!("the kernels do not compile: {why}"),
    }
}

/// The elements of a contiguous tensor.
fn elements<'a, T: CudaDType + DeviceRepr>(
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(storage.as_cuda_slice::<T>()?.slice(start..end)),
        None => bail!("the kernels take contiguous tensors"),
    }
}

fn launch(blocks: (u32, u32)) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks.0, blocks.1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}

/// `x` `[B, C, ...]` normalized, in its own type; `affine` are weight and bias `[C]` in f32.
pub(crate) fn group_norm(
    x: (&CudaStorage, &Layout),
    affine: [(&CudaStorage, &Layout); 2],
    groups: Groups,
) -> Result<CudaStorage> {
    match x.0.dtype() {
        DType::F32 => group_norm_of::<f32>("group_norm_f32", x, affine, groups),
        DType::F16 => group_norm_of::<f16>("group_norm_f16", x, affine, groups),
        DType::BF16 => group_norm_of::<bf16>("group_norm_bf16", x, affine, groups),
        other => bail!("group-norm of {other:?}"),
    }
}

fn group_norm_of<T: CudaDType + DeviceRepr>(
    name: &str,
    (x, layout): (&CudaStorage, &Layout),
    [weight, bias]: [(&CudaStorage, &Layout); 2],
    groups: Groups,
) -> Result<CudaStorage> {
    let (device, dims) = (x.device(), layout.dims());
    let (x, weight, bias) =
        (elements::<T>(x, layout)?, elements::<f32>(weight.0, weight.1)?, elements::<f32>(bias.0, bias.1)?);
    let [batch, channels, rest @ ..] = dims else { bail!("group-norm got {dims:?}") };
    if *channels != weight.len() || weight.len() != bias.len() || x.is_empty() {
        bail!("group-norm of {} channels got {dims:?}", weight.len());
    }
    let channels_per_group = u32::try_from(channels / groups.num_groups)?;
    let pixels = rest.iter().product::<usize>() as u64;
    let blocks = (u32::try_from(groups.num_groups)?, u32::try_from(*batch)?);
    // SAFETY: the kernel writes each element before anyone reads it.
    let y = unsafe { device.alloc::<T>(x.len())? };
    let (eps, silu) = (groups.eps, u32::from(groups.silu));
    let function = device.get_or_load_custom_func(name, "sdxl", ptx()?)?;
    let mut builder = function.builder();
    builder
        .arg(&x)
        .arg(&weight)
        .arg(&bias)
        .arg(&y)
        .arg(&channels_per_group)
        .arg(&pixels)
        .arg(&eps)
        .arg(&silu);
    // SAFETY: x and y have batch * channels * pixels elements of T, which is the kernel's by its name; weight and bias have as
    // many as there are channels, which divide into the groups; the types of the numbers are the kernel's.
    unsafe { builder.launch(launch(blocks)) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
}

/// `x` `[.., 2 * width]` to `[.., width]`: values times the GELU of their gates, in its own type.
pub(crate) fn geglu(x: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    match x.dtype() {
        DType::F32 => geglu_of::<f32>("geglu_f32", x, layout),
        DType::F16 => geglu_of::<f16>("geglu_f16", x, layout),
        DType::BF16 => geglu_of::<bf16>("geglu_bf16", x, layout),
        other => bail!("geglu of {other:?}"),
    }
}

fn geglu_of<T: CudaDType + DeviceRepr>(name: &str, x: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    let device: &CudaDevice = x.device();
    let (x, dims) = (elements::<T>(x, layout)?, layout.dims());
    let width = match dims.last() {
        Some(both) if both.is_multiple_of(2) && *both > 0 => both / 2,
        _ => bail!("geglu got {dims:?}"),
    };
    let rows = x.len() / (2 * width);
    // SAFETY: the kernel writes each element before anyone reads it.
    let y = unsafe { device.alloc::<T>(rows * width)? };
    let (rows, width) = (rows as u64, width as u64);
    let blocks = u32::try_from((rows * width).div_ceil(u64::from(THREADS)))?.clamp(1, BLOCKS);
    let function = device.get_or_load_custom_func(name, "sdxl", ptx()?)?;
    let mut builder = function.builder();
    builder.arg(&x).arg(&y).arg(&rows).arg(&width);
    // SAFETY: x has rows * 2 * width elements of T, which is the kernel's by its name, and y half as many.
    unsafe { builder.launch(launch((blocks, 1))) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
}

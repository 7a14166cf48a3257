//! The networks' layers on NVIDIA GPUs, over maps with channels last `[B, H, W, C]`: products by cuBLASLt with bias and residual in
//! one go, convolutions by cuDNN, and kernels of ours for attention and for what lies between. The kernels are compiled when the
//! first of them is launched. Only what says so waits for the device.
//!
//! Without the feature `cuda`, `absent.rs` stands in for this module.
#![expect(unsafe_code, reason = "what a kernel is given fits what it reads and writes: each launch says why")]

mod arriving;
mod attention;
mod convolution;
mod product;

use std::{
    collections::HashMap,
    sync::{Mutex, OnceLock, PoisonError},
};

pub(crate) use arriving::{Arriving, Mark};
pub(crate) use attention::attend;
use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, WithDType,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        CudaDType, WrapErr,
        cudarc::{
            cudnn::CudnnDataType,
            driver::{
                CudaFunction, CudaSlice, CudaView, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg, sys,
            },
            nvrtc::{CompileOptions, compile_ptx_with_opts},
        },
    },
    op::BackpropOp,
};
pub(crate) use convolution::conv2d;
use half::{bf16, f16};
pub(crate) use product::linear;

const SOURCE: &str = concat!(include_str!("instructions.cu"), include_str!("kernels.cu"));
/// Threads of a block.
const THREADS: u32 = 256;
/// Blocks of a kernel that goes over its elements in strides: enough for any device.
const BLOCKS: u64 = 4096;
/// Pixels of a group normalization's stretch at least, and stretches of all items together at most.
const STRETCH: usize = 16;
const STRETCHES: usize = 528;
/// What the kernel of a group normalization has room for.
const MOST_GROUPS: usize = 1024;

/// What the networks compute in.
trait Element: CudaDType + DeviceRepr + CudnnDataType + WithDType {
    /// As the kernels are named.
    const NAME: &'static str;
    /// How many are 16 bytes.
    const LANES: usize;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const LANES: usize = 4;
}

impl Element for f16 {
    const NAME: &'static str = "f16";
    const LANES: usize = 8;
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    const LANES: usize = 8;
}

/// Calls a function of an [`Element`] for the type at hand.
macro_rules! by_type {
    ($dtype:expr, $function:ident($($argument:expr),*)) => {
        match $dtype {
            DType::F32 => $function::<f32>($($argument),*),
            DType::F16 => $function::<f16>($($argument),*),
            DType::BF16 => $function::<bf16>($($argument),*),
            other => bail!("there are no kernels for {other:?}"),
        }
    };
}
use by_type;

/// The GPU of this number, with one stream for all threads, and memory that stays with the process between uses.
pub(crate) fn open(ordinal: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: there is one stream, on which everything is in the order in which it was asked for.
    unsafe { cuda.disable_event_tracking() };
    let stream = cuda.cuda_stream();
    let context = stream.context();
    if context.has_async_alloc() {
        let mut pool = std::ptr::null_mut();
        let mut all = u64::MAX;
        let kept = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the device is the context's, the pool is what the driver gave for it, and this attribute is a number of 64 bits.
        unsafe {
            sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()).result().w()?;
            sys::cuMemPoolSetAttribute(pool, kept, (&raw mut all).cast()).result().w()?;
        }
    }
    Ok(device)
}

/// Whether a layer is computed here, whose input and weights these are: on a GPU, and without a gradient, which candle's own operations
/// have there.
pub(crate) fn wanted(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| tensor.device().is_cuda() && !tensor.track_op())
}

/// An error where a gradient would end unseen: of what is trained, that goes through a layer that is not.
fn has_no_gradient(x: &Tensor) -> Result<()> {
    if x.track_op() {
        bail!("on a GPU no gradient goes through a layer whose weights are not trained");
    }
    Ok(())
}

/// A source compiled with its definitions, as the driver takes it; no two sources have the same.
fn ptx(source: &'static str, definitions: &[String]) -> Result<&'static str> {
    static MADE: OnceLock<Mutex<HashMap<Vec<String>, &'static str>>> = OnceLock::new();
    let made = MADE.get_or_init(Mutex::default);
    let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(ptx) = made.get(definitions) {
        return Ok(ptx);
    }
    // What the attention needs; the oldest GPUs that NVRTC compiles for have all else.
    let arch = if definitions.is_empty() { "compute_75" } else { "compute_80" };
    let options =
        CompileOptions { arch: Some(arch), options: definitions.to_vec(), ..CompileOptions::default() };
    match compile_ptx_with_opts(source, options) {
        Ok(ptx) => Ok(made.entry(definitions.to_vec()).or_insert(Box::leak(ptx.to_src().into_boxed_str()))),
        Err(why) => bail!("the kernels do not compile: {why:?}"),
    }
}

fn device(storage: &Storage) -> Result<&CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => bail!("a tensor lies on another device"),
    }
}

/// The elements of a contiguous tensor.
fn elements<'a, T: Element>(storage: &'a Storage, layout: &Layout) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(device(storage)?.as_cuda_slice::<T>()?.slice(start..end)),
        None => bail!("the kernels take contiguous tensors"),
    }
}

/// Where a view begins; null for none.
fn address<T>(view: Option<&CudaView<'_, T>>, of: &CudaDevice) -> u64 {
    view.map_or(0, |view| view.device_ptr(&of.cuda_stream()).0)
}

/// Room that a kernel fills whole.
fn room<T: DeviceRepr>(device: &CudaDevice, len: usize) -> Result<CudaSlice<T>> {
    // SAFETY: whoever asks writes each element before anyone reads it.
    unsafe { device.alloc::<T>(len) }
}

fn tensor<T: CudaDType>(elements: CudaSlice<T>, device: &CudaDevice, shape: impl Into<Shape>) -> Tensor {
    let storage = CudaStorage::wrap_cuda_slice(elements, device.clone());
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// A kernel for rows of this width.
fn kernel<T: Element>(device: &CudaDevice, name: &str, width: usize) -> Result<CudaFunction> {
    let each = if width.is_multiple_of(T::LANES) { "" } else { "_each" };
    let name = format!("{name}_{}{each}", T::NAME);
    Ok(device.get_or_load_custom_func(&name, "sdxl", ptx(SOURCE, &[])?)?.into_cuda_function())
}

/// Elements that a kernel for rows of this width takes at once.
fn lanes<T: Element>(width: usize) -> usize {
    if width.is_multiple_of(T::LANES) { T::LANES } else { 1 }
}

fn grid(x: u64, y: usize, shared: usize) -> Result<LaunchConfig> {
    Ok(LaunchConfig {
        grid_dim: (u32::try_from(x.max(1))?, u32::try_from(y)?, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: u32::try_from(shared)?,
    })
}

/// The grid of a kernel that goes over this many in strides, one for each thread.
fn strided(threads: usize) -> Result<LaunchConfig> {
    grid((threads as u64).div_ceil(u64::from(THREADS)).min(BLOCKS), 1, 0)
}

/// `x` `[B, .., C]` normalized over groups of channels, and through SiLU; `weight` and `bias` `[C]` in f32. To each channel is added
/// `shift` `[B, C]`, or `[1, C]` for all items, beforehand.
pub(crate) fn group_norm(
    x: &Tensor,
    shift: Option<&Tensor>,
    affine: [&Tensor; 2],
    groups: (usize, f32),
    silu: bool,
) -> Result<Tensor> {
    has_no_gradient(x)?;
    by_type!(x.dtype(), group_norm_of(x, shift, affine, groups, silu))
}

fn group_norm_of<T: Element>(
    x: &Tensor,
    shift: Option<&Tensor>,
    [weight, bias]: [&Tensor; 2],
    (num_groups, eps): (usize, f32),
    silu: bool,
) -> Result<Tensor> {
    let shape = x.shape().clone();
    let [batch, rest @ .., channels] = shape.dims() else { bail!("group-norm got {shape:?}") };
    let (batch, channels, pixels) = (*batch, *channels, rest.iter().product::<usize>());
    let fits = weight.dims() == [channels] && bias.dims() == [channels] && num_groups <= MOST_GROUPS;
    if !fits || !channels.is_multiple_of(num_groups) || shape.elem_count() == 0 {
        bail!("group-norm of {:?} in {num_groups} groups got {shape:?}", weight.dims());
    }
    let shift_step = match shift.map(Tensor::dims) {
        None | Some([1, _]) => 0,
        Some(_) => channels,
    };
    if let Some(shift) = shift
        && (shift.dims() != [shift.dim(0)?, channels] || (shift_step > 0 && shift.dim(0)? != batch))
    {
        bail!("group-norm of {shape:?} is shifted by {:?}", shift.dims());
    }
    let ((x, x_layout), (weight, weight_layout), (bias, bias_layout)) =
        (x.storage_and_layout(), weight.storage_and_layout(), bias.storage_and_layout());
    let device = device(&x)?.device();
    let stream = device.cuda_stream();
    let x = elements::<T>(&x, x_layout)?;
    let (weight, bias) = (elements::<f32>(&weight, weight_layout)?, elements::<f32>(&bias, bias_layout)?);
    let shift = shift.map(Tensor::storage_and_layout);
    let shift = shift.as_ref().map(|(storage, layout)| elements::<T>(storage, layout)).transpose()?;
    let shift = address(shift.as_ref(), device);

    let stretch = pixels.div_ceil((STRETCHES / batch).max(1)).max(STRETCH);
    let stretches = pixels.div_ceil(stretch);
    let rows = (THREADS as usize / (channels / lanes::<T>(channels))).max(1);
    let partial = room::<f32>(device, 2 * batch * stretches * num_groups)?;
    let factors = room::<f32>(device, 2 * batch * channels)?;
    let y = room::<T>(device, x.len())?;
    let number = |n: usize| u32::try_from(n);
    let (channels_, groups_, pixels_) = (number(channels)?, number(num_groups)?, number(pixels)?);
    let (stretch_, shift_step, silu) = (number(stretch)?, number(shift_step)?, u32::from(silu));
    number(pixels * channels)?;

    let function = kernel::<T>(device, "group_norm_moments", channels)?;
    let mut builder = stream.launch_builder(&function);
    builder.arg(&x).arg(&shift).arg(&shift_step).arg(&partial);
    builder.arg(&channels_).arg(&groups_).arg(&pixels_).arg(&stretch_);
    // SAFETY: x has batch * pixels * channels elements of T, which is the kernel's by its name, and the stretches go over the
    // pixels; there is a shift for each channel, of one item or of all by its step; partial has room for two numbers of each
    // group, stretch and item, and shared memory for two of each channel and row of threads.
    unsafe { builder.launch(grid(stretches as u64, batch, 8 * rows * channels)?) }.w()?;

    let function = kernel::<T>(device, "group_norm_factors", channels)?;
    let mut builder = stream.launch_builder(&function);
    builder.arg(&partial).arg(&weight).arg(&bias).arg(&shift).arg(&shift_step).arg(&factors);
    builder.arg(&channels_).arg(&groups_).arg(&pixels_).arg(&stretch_).arg(&eps);
    // SAFETY: as before; weight, bias have an element for each channel, factors two for each channel and item, shared memory two
    // numbers for each group.
    unsafe { builder.launch(grid(batch as u64, 1, 8 * num_groups)?) }.w()?;

    let function = kernel::<T>(device, "group_norm_apply", channels)?;
    let mut builder = stream.launch_builder(&function);
    builder.arg(&x).arg(&factors).arg(&y).arg(&channels_).arg(&pixels_).arg(&silu);
    let threads = pixels * channels / lanes::<T>(channels);
    let blocks = (threads as u64).div_ceil(u64::from(THREADS)).min(BLOCKS);
    // SAFETY: x and y have batch * pixels * channels elements of T, factors two for each channel and item.
    unsafe { builder.launch(grid(blocks, batch, 0)?) }.w()?;
    Ok(tensor(y, device, shape))
}

/// Rows of `x` `[.., C]` normalized; `weight` and `bias` `[C]` in the same type.
pub(crate) fn layer_norm(x: &Tensor, affine: [&Tensor; 2], eps: f32) -> Result<Tensor> {
    has_no_gradient(x)?;
    by_type!(x.dtype(), layer_norm_of(x, affine, eps))
}

fn layer_norm_of<T: Element>(x: &Tensor, [weight, bias]: [&Tensor; 2], eps: f32) -> Result<Tensor> {
    let (shape, x) = (x.shape().clone(), x.contiguous()?);
    let width = shape.dims().last().copied().unwrap_or(0);
    if weight.dims() != [width] || bias.dims() != [width] || shape.elem_count() == 0 {
        bail!("layer-norm of {:?} got {shape:?}", weight.dims());
    }
    let ((x, x_layout), (weight, weight_layout), (bias, bias_layout)) =
        (x.storage_and_layout(), weight.storage_and_layout(), bias.storage_and_layout());
    let device = device(&x)?.device();
    let stream = device.cuda_stream();
    let x = elements::<T>(&x, x_layout)?;
    let (weight, bias) = (elements::<T>(&weight, weight_layout)?, elements::<T>(&bias, bias_layout)?);
    let (y, rows) = (room::<T>(device, x.len())?, x.len() / width);
    let (rows_, width_) = (u32::try_from(rows)?, u32::try_from(width)?);
    let function = kernel::<T>(device, "layer_norm", width)?;
    let mut builder = stream.launch_builder(&function);
    builder.arg(&x).arg(&weight).arg(&bias).arg(&y).arg(&rows_).arg(&width_).arg(&eps);
    // SAFETY: x and y have rows * width elements of T, which is the kernel's by its name, weight and bias have width.
    unsafe { builder.launch(strided(32 * rows)?) }.w()?;
    Ok(tensor(y, device, shape))
}

/// `x` `[.., 2 * width]` to `[.., width]`: values times the GELU of their gates.
pub(crate) fn geglu(x: &Tensor) -> Result<Tensor> {
    has_no_gradient(x)?;
    by_type!(x.dtype(), geglu_of(x))
}

fn geglu_of<T: Element>(x: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let width = match shape.last_mut() {
        Some(last) if last.is_multiple_of(2) && *last > 0 => {
            *last /= 2;
            *last
        }
        _ => bail!("geglu got {shape:?}"),
    };
    let (x, x_layout) = x.storage_and_layout();
    let device = device(&x)?.device();
    let stream = device.cuda_stream();
    let x = elements::<T>(&x, x_layout)?;
    let rows = x.len() / (2 * width);
    let y = room::<T>(device, rows * width)?;
    let (rows_, width_) = (rows as u64, u32::try_from(width)?);
    let function = kernel::<T>(device, "geglu", width)?;
    let mut builder = stream.launch_builder(&function);
    builder.arg(&x).arg(&y).arg(&rows_).arg(&width_);
    // SAFETY: x has rows * 2 * width elements of T, which is the kernel's by its name, and y half as many.
    unsafe { builder.launch(strided(rows * width / lanes::<T>(width))?) }.w()?;
    Ok(tensor(y, device, shape))
}

/// Adds to `y`, rows of as many as `bias`, the bias and, if they are given, as many others.
fn add_onto<T: Element>(
    device: &CudaDevice,
    y: &CudaSlice<T>,
    bias: &CudaView<'_, T>,
    others: Option<&CudaView<'_, T>>,
) -> Result<()> {
    let (channels, others_) = (bias.len(), address(others, device));
    let (len, others) = (y.len(), others.map_or(y.len(), CudaView::len));
    if channels == 0 || !len.is_multiple_of(channels) || others != len {
        bail!("to {len} are added {channels} again and again, and {others}");
    }
    let (rows, channels_) = ((len / channels) as u64, u32::try_from(channels)?);
    let stream = device.cuda_stream();
    let function = kernel::<T>(device, "add_onto", channels)?;
    let mut builder = stream.launch_builder(&function);
    builder.arg(y).arg(bias).arg(&others_).arg(&rows).arg(&channels_);
    // SAFETY: y and, where it is not null, what is added have rows * channels elements of T, which is the kernel's by its name,
    // and the bias has channels. Whoever calls has made y and given it to nobody.
    unsafe { builder.launch(strided(len / lanes::<T>(channels))?) }.w()?;
    Ok(())
}

/// `x` `[B, H, W, C]` made as large as `height` and `width`, each pixel by its nearest.
pub(crate) fn upsampled(x: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    has_no_gradient(x)?;
    by_type!(x.dtype(), upsampled_of(x, size))
}

fn upsampled_of<T: Element>(x: &Tensor, [to_height, to_width]: [usize; 2]) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let (x, x_layout) = x.storage_and_layout();
    let device = device(&x)?.device();
    let stream = device.cuda_stream();
    let x = elements::<T>(&x, x_layout)?;
    let y = room::<T>(device, batch * to_height * to_width * channels)?;
    let sizes = [height, width, to_height, to_width, channels].into_iter().map(u32::try_from);
    let sizes = sizes.collect::<std::result::Result<Vec<_>, _>>()?;
    let function = kernel::<T>(device, "upsample", channels)?;
    let mut builder = stream.launch_builder(&function);
    builder.arg(&x).arg(&y);
    for size in &sizes {
        builder.arg(size);
    }
    // SAFETY: x and y have their sizes' elements of T, which is the kernel's by its name.
    unsafe { builder.launch(grid(to_height as u64, batch, 0)?) }.w()?;
    Ok(tensor(y, device, (batch, to_height, to_width, channels)))
}

#[cfg(test)]
mod tests;

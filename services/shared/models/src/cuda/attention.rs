//! Attention without a score matrix, in half precision. The kernel is compiled for each width of a head.
#![expect(unsafe_code, reason = "what the kernel is given fits what it reads and writes")]

use candle_core::{
    CudaDevice, DType, Result, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg},
    },
};
use half::{bf16, f16};

use super::{Element, device, has_no_gradient, ptx, room, tensor};

const SOURCE: &str = concat!(include_str!("instructions.cu"), include_str!("attention.cu"));
/// Widths of a head that the kernel is made for.
const WIDTHS: [usize; 4] = [16, 32, 64, 128];
const THREADS: u32 = 128;
/// Items of a launch at most.
const ITEMS: usize = 32;
/// What the kernel's reads of 16 bytes want rows to begin at a multiple of.
const ALIGNED: usize = 8;

/// As the kernel has it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Items {
    keys: [u64; ITEMS],
    values: [u64; ITEMS],
    rows: [u32; ITEMS],
}

// SAFETY: plain numbers in the kernel's order.
unsafe impl DeviceRepr for Items {}

/// `softmax(q k^T / sqrt(d)) v` for each head: `q` `[B, S, heads * d]` and each item's `k` and `v` `[T, heads * d]`, whose rows may
/// lie apart, to `[B, S, heads * d]`. `None` where the kernel does not take the type, the width of a head or the device.
pub(crate) fn attend(q: &Tensor, keys: &[[Tensor; 2]], heads: usize) -> Result<Option<Tensor>> {
    has_no_gradient(q)?;
    match q.dtype() {
        DType::F16 => attend_of::<f16>(q, keys, heads),
        DType::BF16 => attend_of::<bf16>(q, keys, heads),
        _ => Ok(None),
    }
}

/// Steps between the rows of what has whole rows.
fn step(tensor: &Tensor) -> Option<usize> {
    match tensor.stride() {
        [.., step, 1]
            if step.is_multiple_of(ALIGNED) && tensor.layout().start_offset().is_multiple_of(ALIGNED) =>
        {
            Some(*step)
        }
        _ => None,
    }
}

fn attend_of<T: Element>(q: &Tensor, keys: &[[Tensor; 2]], heads: usize) -> Result<Option<Tensor>> {
    let (batch, rows, width) = q.dims3()?;
    if keys.len() != batch || heads == 0 || !width.is_multiple_of(heads) {
        bail!("{batch} items of {heads} heads attend to {}", keys.len());
    }
    let head = width / heads;
    let Some(query_step) = step(q).filter(|_| WIDTHS.contains(&head) && rows > 0) else { return Ok(None) };
    let query_item = q.stride()[0] as u64;
    let Some(key_step) = keys.first().and_then(|[k, _]| step(k)) else { return Ok(None) };
    for tensor in keys.iter().flatten() {
        if step(tensor) != Some(key_step) {
            return Ok(None);
        }
    }
    for [k, v] in keys {
        let fits = k.dims() == v.dims() && k.rank() == 2 && k.dim(0)? > 0 && k.dim(1)? == width;
        if !fits || k.dtype() != T::DTYPE || v.dtype() != T::DTYPE {
            bail!("{:?} attend to keys {:?} and values {:?}", q.dims(), k.dims(), v.dims());
        }
    }
    let (q, q_layout) = q.storage_and_layout();
    let storage = device(&q)?;
    let device = storage.device();
    if !is_new_enough(device)? {
        return Ok(None);
    }
    let stream = device.cuda_stream();
    let queries = storage.as_cuda_slice::<T>()?.slice(q_layout.start_offset()..);
    let (queries, _) = queries.device_ptr(&stream);
    let y = room::<T>(device, batch * rows * width)?;
    let (out, _) = y.device_ptr(&stream);
    let size = size_of::<T>() as u64;
    let name = format!("attention_{head}_{}", T::NAME);
    let of_kernels = if T::DTYPE == DType::F16 { "F16" } else { "Bf16" };
    let definitions = [format!("-DHEAD={head}"), format!("-DTYPE={of_kernels}"), format!("-DNAME={name}")];
    let function = device.get_or_load_custom_func(&name, &name, ptx(SOURCE, &definitions)?)?;
    let (rows_, query_step, key_step) = (u32::try_from(rows)?, query_step as u64, key_step as u64);
    let (out_step, out_item) = (width as u64, (rows * width) as u64);
    #[expect(clippy::cast_possible_truncation, reason = "a factor")]
    let scale = ((head as f64).powf(-0.5) * std::f64::consts::LOG2_E) as f32;
    let queries_of_block = if head <= 64 { 128 } else { 64 };
    for (group, keys) in keys.chunks(ITEMS).enumerate() {
        let mut items = Items { keys: [0; ITEMS], values: [0; ITEMS], rows: [0; ITEMS] };
        for (i, [k, v]) in keys.iter().enumerate() {
            items.keys[i] = address::<T>(k)?;
            items.values[i] = address::<T>(v)?;
            items.rows[i] = u32::try_from(k.dim(0)?)?;
        }
        let before = (group * ITEMS) as u64;
        let (queries, out) = (queries + before * query_item * size, out + before * out_item * size);
        let mut builder = function.builder();
        builder.arg(&queries).arg(&items).arg(&out).arg(&rows_).arg(&query_step).arg(&query_item);
        builder.arg(&key_step).arg(&out_step).arg(&out_item).arg(&scale);
        let grid = (rows_.div_ceil(queries_of_block), u32::try_from(heads)?, u32::try_from(keys.len())?);
        let launch = LaunchConfig { grid_dim: grid, block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: queries and out have rows of heads * head elements of T, which is the kernel's by its definitions, at their steps
        // for each item; keys and values have as many rows as is told, alike.
        unsafe { builder.launch(launch) }.w()?;
    }
    Ok(Some(tensor(y, device, (batch, rows, width))))
}

/// Where a tensor's elements begin.
fn address<T: Element>(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let storage = device(&storage)?;
    let view = storage.as_cuda_slice::<T>()?.slice(layout.start_offset()..);
    Ok(view.device_ptr(&storage.device().cuda_stream()).0)
}

/// Whether the device has what the kernel is written for.
fn is_new_enough(device: &CudaDevice) -> Result<bool> {
    let (major, _) = device.cuda_stream().context().compute_capability().w()?;
    Ok(major >= 8)
}

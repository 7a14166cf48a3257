//! Convolutions, by cuDNN in the layout that its tensor cores take as it is.
#![expect(unsafe_code, reason = "what the library is given fits the descriptors that it is told")]

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use candle_core::{
    CudaDevice, DType, Error, Result, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::cudarc::{
        cudnn::{ConvForward, Cudnn, sys},
        driver::CudaSlice,
    },
};
use half::{bf16, f16};

use super::{Element, add_onto, by_type, device, elements, has_no_gradient, room, tensor};

thread_local! {
    /// By the stream.
    static LIBRARIES: RefCell<HashMap<usize, Library>> = RefCell::default();
}

/// A handle of this thread, and how to go about each kind of convolution that it has met; `None` for those that cuDNN does not do in
/// this layout.
struct Library {
    cudnn: Arc<Cudnn>,
    plans: HashMap<Kind, Option<Plan>>,
}

/// Type and sizes.
type Kind = (DType, [i32; 9]);

/// An algorithm, and the bytes that it needs on the way.
type Plan = (sys::cudnnConvolutionFwdAlgo_t, usize);

/// `x` `[B, H, W, C_in]` by `weight` `[C_out, k, k, C_in]` to `[B, H', W', C_out]`, with `bias` `[C_out]` and as many `others` as
/// results added.
pub(crate) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    [bias, others]: [Option<&Tensor>; 2],
    [stride, padding]: [usize; 2],
) -> Result<Tensor> {
    has_no_gradient(x)?;
    let x = x.contiguous()?;
    match by_type!(x.dtype(), conv2d_of(&x, weight, [bias, others], [stride, padding]))? {
        Some(y) => Ok(y),
        None => channels_first(&x, weight, [bias, others], [stride, padding]),
    }
}

/// The same in candle's layout, for what cuDNN does not do in ours.
fn channels_first(
    x: &Tensor,
    weight: &Tensor,
    [bias, others]: [Option<&Tensor>; 2],
    [stride, padding]: [usize; 2],
) -> Result<Tensor> {
    let first = |x: &Tensor| x.permute((0, 3, 1, 2))?.contiguous();
    let y = first(x)?.conv2d(&first(weight)?, padding, stride, 1, 1)?.permute((0, 2, 3, 1))?.contiguous()?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    if let Some(others) = others { y + others } else { Ok(y) }
}

fn conv2d_of<T: Element>(
    x: &Tensor,
    weight: &Tensor,
    [bias, others]: [Option<&Tensor>; 2],
    [stride, padding]: [usize; 2],
) -> Result<Option<Tensor>> {
    let (batch, height, width, c_in) = x.dims4()?;
    let (c_out, kernel, other_side, inputs) = weight.dims4()?;
    if c_in != inputs || kernel != other_side || kernel > height.min(width) + 2 * padding || stride == 0 {
        bail!("a convolution of {:?} got {:?}", weight.dims(), x.dims());
    }
    let side = |from: usize| (from + 2 * padding - kernel) / stride + 1;
    let shape = [batch, side(height), side(width), c_out];
    let ((x, x_layout), (weight, weight_layout)) = (x.storage_and_layout(), weight.storage_and_layout());
    let device = device(&x)?.device();
    let (x, weight) = (elements::<T>(&x, x_layout)?, elements::<T>(&weight, weight_layout)?);
    let mut y = room::<T>(device, shape.iter().product())?;

    let sizes = [batch, height, width, c_in, c_out, kernel, stride, padding, shape[1]].map(i32::try_from);
    let mut numbers = [0; 9];
    for (number, size) in numbers.iter_mut().zip(sizes) {
        *number = size?;
    }
    let [batch, height, width, c_in, c_out, kernel, stride, padding, to_height] = numbers;
    let to_width = i32::try_from(shape[2])?;
    let done = LIBRARIES.with_borrow_mut(|libraries| {
        let key = device.cuda_stream().cu_stream() as usize;
        let Library { cudnn, plans } = match libraries.entry(key) {
            Entry::Occupied(library) => library.into_mut(),
            Entry::Vacant(none) => {
                none.insert(Library { cudnn: Cudnn::new(device.cuda_stream())?, plans: HashMap::new() })
            }
        };
        let last = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let mut conv = cudnn.create_conv2d::<f32>([padding; 2], [stride; 2], [1; 2], mode)?;
        // Single precision stays single.
        conv.set_math_type(match T::DTYPE {
            DType::F32 => sys::cudnnMathType_t::CUDNN_FMA_MATH,
            _ => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        })?;
        let x_description = cudnn.create_4d_tensor::<T>(last, [batch, c_in, height, width])?;
        let y_description = cudnn.create_4d_tensor::<T>(last, [batch, c_out, to_height, to_width])?;
        let w_description = cudnn.create_4d_filter::<T>(last, [c_out, c_in, kernel, kernel])?;
        let forward = ConvForward { conv: &conv, x: &x_description, w: &w_description, y: &y_description };
        let plan = plans.entry((T::DTYPE, numbers)).or_insert_with(|| {
            let algorithm = forward.pick_algorithm().ok()?;
            Some((algorithm, forward.get_workspace_size(algorithm).ok()?))
        });
        let Some((algorithm, size)) = *plan else { return Ok(false) };
        let mut workspace: Option<CudaSlice<u8>> = (size > 0).then(|| room(device, size)).transpose()?;
        // SAFETY: x, weight and y have as many elements of T as their descriptors tell, and the workspace what the library asked
        // for.
        let launched = unsafe {
            forward.launch(algorithm, workspace.as_mut(), (T::one(), T::zero()), &x, &weight, &mut y)
        };
        if launched.is_err() {
            *plan = None;
        }
        Ok::<_, Error>(launched.is_ok())
    })?;
    if !done {
        return Ok(None);
    }
    finish(device, &y, [bias, others])?;
    Ok(Some(tensor(y, device, shape.as_slice())))
}

/// Adds what there is to add.
fn finish<T: Element>(
    device: &CudaDevice,
    y: &CudaSlice<T>,
    [bias, others]: [Option<&Tensor>; 2],
) -> Result<()> {
    let Some(bias) = bias else {
        if others.is_some() {
            bail!("others are added with a bias alone");
        }
        return Ok(());
    };
    let (bias, bias_layout) = bias.storage_and_layout();
    let bias = elements::<T>(&bias, bias_layout)?;
    let others = others.map(Tensor::storage_and_layout);
    let others = others.as_ref().map(|(storage, layout)| elements::<T>(storage, layout)).transpose()?;
    add_onto(device, y, &bias, others.as_ref())
}

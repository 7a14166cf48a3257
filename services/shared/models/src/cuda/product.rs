//! Products with a matrix, by cuBLASLt: what is added to them is added before they are written.
#![expect(unsafe_code, reason = "what the library is given fits the layouts that it is told")]

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    ffi::c_void,
};

use candle_core::{
    CudaDevice, DType, Error, Result, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        WrapErr,
        cudarc::{
            cublaslt::{result, result::CublasError, sys},
            driver::{CudaSlice, DevicePtr},
        },
    },
};
use half::{bf16, f16};

use super::{Element, address, by_type, device, elements, has_no_gradient, room, tensor};

/// What the library may use on the way, as NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Of two, the power that addresses are asked for: more gains nothing.
const MOST_ALIGNED: u32 = 8;

thread_local! {
    /// By the stream.
    static LIBRARIES: RefCell<HashMap<usize, Library>> = RefCell::default();
}

/// A handle of this thread, and how to go about each kind of product that it has met. They are given back with the process.
struct Library {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    plans: HashMap<Kind, Plan>,
}

/// Products that go alike.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    dtype: DType,
    rows: usize,
    inputs: usize,
    outputs: usize,
    bias: bool,
    others: bool,
    /// What all addresses are multiples of.
    aligned: u32,
}

struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// `x` `[.., in]` by `weight` `[out, in]` to `[.., out]`, with `bias` `[out]` and as many `others` as results added.
pub(crate) fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    others: Option<&Tensor>,
) -> Result<Tensor> {
    has_no_gradient(x)?;
    by_type!(x.dtype(), linear_of(x, weight, bias, others))
}

fn linear_of<T: Element>(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    others: Option<&Tensor>,
) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    let fits = shape.last() == Some(&inputs) && x.elem_count() > 0;
    if !fits || bias.is_some_and(|bias| bias.dims() != [outputs]) {
        bail!("a map of {:?} got {shape:?}", weight.dims());
    }
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    let rows = x.elem_count() / inputs;
    if others.is_some_and(|others| others.elem_count() != rows * outputs) {
        bail!("to {shape:?} others are added: {:?}", others.map(Tensor::dims));
    }
    let x = x.contiguous()?;
    let ((x, x_layout), (weight, weight_layout)) = (x.storage_and_layout(), weight.storage_and_layout());
    let device = device(&x)?.device();
    let (x, weight) = (elements::<T>(&x, x_layout)?, elements::<T>(&weight, weight_layout)?);
    let [bias, others] = [bias, others].map(|tensor| tensor.map(Tensor::storage_and_layout));
    let [bias, others] = [&bias, &others]
        .map(|held| held.as_ref().map(|(storage, layout)| elements::<T>(storage, layout)).transpose());
    let (bias, others) = (bias?, others?);
    let y = room::<T>(device, rows * outputs)?;
    let stream = device.cuda_stream();
    let [bias_, others_] = [address(bias.as_ref(), device), address(others.as_ref(), device)];
    let [x, weight] = [&x, &weight].map(|view| view.device_ptr(&stream).0);
    let (y_, _) = y.device_ptr(&stream);
    let together = x | weight | y_ | bias_ | others_;
    let kind = Kind {
        dtype: T::DTYPE,
        rows,
        inputs,
        outputs,
        bias: bias.is_some(),
        others: others.is_some(),
        aligned: 1 << together.trailing_zeros().min(MOST_ALIGNED),
    };
    LIBRARIES.with_borrow_mut(|libraries| {
        let key = stream.cu_stream() as usize;
        let Library { handle, workspace, plans } = match libraries.entry(key) {
            Entry::Occupied(library) => library.into_mut(),
            Entry::Vacant(none) => none.insert(Library::new(device)?),
        };
        let plan = match plans.get(&kind) {
            Some(plan) => plan,
            None => plans.entry(kind).or_insert(Plan::new(*handle, kind, bias_)?),
        };
        let (one, beta) = (1.0_f32, if kind.others { 1.0_f32 } else { 0.0 });
        let others = if kind.others { others_ } else { y_ };
        let (workspace, _) = workspace.device_ptr(&stream);
        let pointer = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        // SAFETY: the addresses are of as many elements as the plan's layouts tell, which were made for these sizes and this type;
        // y is nobody else's. The plan has a bias where there is one. The workspace is used by what goes in order on one stream.
        unsafe {
            if kind.bias {
                result::set_matmul_desc_attribute(
                    plan.description,
                    pointer,
                    (&raw const bias_).cast(),
                    size_of::<u64>(),
                )
                .map_err(failed)?;
            }
            result::matmul(
                *handle,
                plan.description,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                weight as *const c_void,
                plan.weight,
                x as *const c_void,
                plan.x,
                others as *const c_void,
                plan.y,
                y_ as *mut c_void,
                plan.y,
                &raw const plan.algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
            .map_err(failed)
        }
    })?;
    Ok(tensor(y, device, shape))
}

fn failed(error: CublasError) -> Error {
    Error::wrap(error)
}

impl Library {
    fn new(device: &CudaDevice) -> Result<Self> {
        device.cuda_stream().context().bind_to_thread().w()?;
        let workspace = room(device, WORKSPACE)?;
        Ok(Self { handle: result::create_handle().map_err(failed)?, workspace, plans: HashMap::new() })
    }
}

impl Plan {
    /// The library counts by columns: what it is told is that y turned is the weight by x turned.
    fn new(handle: sys::cublasLtHandle_t, kind: Kind, bias_at: u64) -> Result<Self> {
        let Kind { dtype, rows, inputs, outputs, bias, others: _, aligned } = kind;
        let data = match dtype {
            DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
            DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
            _ => sys::cudaDataType_t::CUDA_R_32F,
        };
        let layout = |rows: usize, columns: usize| {
            result::create_matrix_layout(data, rows as u64, columns as u64, rows as i64).map_err(failed)
        };
        let (weight, x, y) = (layout(inputs, outputs)?, layout(inputs, rows)?, layout(outputs, rows)?);
        let (sums, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F);
        let description = result::create_matmul_desc(sums, scale).map_err(failed)?;
        let (turned, with_bias) = (1_i32, sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS);
        let attributes = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        let epilogue = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE;
        let pointer = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        let room = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let alignments = [
            sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ];
        // SAFETY: the handles were just made; each attribute is of the type that is given.
        let algorithm = unsafe {
            let set = result::set_matmul_desc_attribute;
            set(description, attributes, (&raw const turned).cast(), size_of::<i32>()).map_err(failed)?;
            if bias {
                set(description, epilogue, (&raw const with_bias).cast(), size_of_val(&with_bias))
                    .map_err(failed)?;
                set(description, pointer, (&raw const bias_at).cast(), size_of::<u64>()).map_err(failed)?;
            }
            let preference = result::create_matmul_pref().map_err(failed)?;
            let (size, set) = (WORKSPACE, result::set_matmul_pref_attribute);
            set(preference, room, (&raw const size).cast(), size_of::<usize>()).map_err(failed)?;
            for of in alignments {
                set(preference, of, (&raw const aligned).cast(), size_of::<u32>()).map_err(failed)?;
            }
            let found = result::get_matmul_algo_heuristic(handle, description, weight, x, y, y, preference)
                .map_err(failed);
            result::destroy_matmul_pref(preference).map_err(failed)?;
            found?.algo
        };
        Ok(Self { description, weight, x, y, algorithm })
    }
}

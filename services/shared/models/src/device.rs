//! Where networks compute.

use candle_core::Device;

use crate::{ModelError, cuda};

/// The NVIDIA GPU of this number, as the networks want it: with one stream for all threads, and memory that stays with the process
/// between uses.
///
/// # Errors
/// There is no such device, or the build has no CUDA.
pub fn open_cuda(ordinal: usize) -> Result<Device, ModelError> {
    Ok(cuda::open(ordinal)?)
}

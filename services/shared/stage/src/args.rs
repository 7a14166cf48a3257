//! The arguments that all stages share.

use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use sdxl_runtime::args::{ServerArgs, TelemetryArgs};
use std::num::NonZeroUsize;

/// What every stage can be told, beside its checkpoint. `PORT` is its default port.
#[derive(Args, Clone, Debug)]
pub struct StageArgs<const PORT: u16> {
    /// Number format that the networks compute in
    #[arg(long, env = "SDXL_DTYPE", value_name = "TYPE", value_enum, default_value_t = ComputeType::F32)]
    pub dtype: ComputeType,

    /// Device that the networks run on
    #[arg(long, env = "SDXL_DEVICE", value_name = "DEVICE", value_enum, default_value_t = ComputeDevice::Cpu)]
    pub device: ComputeDevice,

    /// Threads that compute; all cores if not given
    #[arg(long, env = "SDXL_THREADS", value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help text of the whole command")]
    pub worker: WorkerArgs,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help text of the whole command")]
    pub server: ServerArgs<PORT>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help text of the whole command")]
    pub telemetry: TelemetryArgs,
}

/// How much work a stage takes on.
#[derive(Args, Clone, Copy, Debug)]
pub struct WorkerArgs {
    /// Requests that may wait; further ones are refused at once with RESOURCE_EXHAUSTED
    #[arg(long, env = "SDXL_QUEUE_DEPTH", value_name = "N", default_value = "64")]
    pub queue_depth: NonZeroUsize,

    /// Requests worked on in turns, step by step, so that a short one need not wait for a long one
    #[arg(long, env = "SDXL_MAX_ACTIVE", value_name = "N", default_value = "32")]
    pub max_active: NonZeroUsize,
}

/// Number formats that networks compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComputeType {
    /// Single precision: equal to diffusers in float32
    F32,
    /// Half precision
    F16,
    /// Brain float: half the memory, f32's range
    Bf16,
}

impl ComputeType {
    /// candle's name for it.
    #[must_use]
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// Devices that networks run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComputeDevice {
    /// The processor
    Cpu,
}

impl ComputeDevice {
    /// candle's handle on it.
    #[must_use]
    pub fn device(self) -> Device {
        match self {
            Self::Cpu => Device::Cpu,
        }
    }
}

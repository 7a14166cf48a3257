//! What every stage has: the [`Engine`](engine::Engine) trait with its contract, the worker that owns the device and
//! gives turns to the runs on it, the gRPC services over them, and a `main` in one call ([`serve`]).

pub mod args;
pub mod batch;
pub mod conformance;
pub mod engine;
pub mod error;
pub mod grpc;
pub mod info;
pub mod jobs;
pub mod serve;
pub mod simulated;
pub mod tensor;
pub mod worker;

#[cfg(test)]
mod toy;

pub use args::{EngineArgs, EngineKind, StageArgs};
pub use batch::{BatchLimit, BatchLimits};
pub use engine::{Engine, EngineError, Step, StepOf, Took, Work};
pub use error::StageError;
pub use info::{Details, StageInfo, device_name};

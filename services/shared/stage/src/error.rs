//! Why a stage did not do what it was asked for.

use crate::engine::EngineError;
use sdxl_core::{Classify, ErrorClass, FieldViolation};
use sdxl_proto::convert::WireError;
use std::time::Duration;
use thiserror::Error;

/// When a caller may ask a full stage again, unless it knows better.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An error of a stage.
#[derive(Debug, Error)]
pub enum StageError {
    /// The request is not what the protocol describes.
    #[error(transparent)]
    Read(#[from] WireError),
    /// The engine refused the request, or failed at it.
    #[error(transparent)]
    Run(#[from] EngineError),
    /// The queue is full.
    #[error("{queued} requests are waiting already; ask another replica, or later")]
    Enqueue {
        /// How many are waiting.
        queued: usize,
    },
    /// Nobody waits for the answer any more.
    #[error("the deadline passed after {steps_done} steps")]
    Deadline {
        /// Steps done by then.
        steps_done: usize,
    },
    /// The checkpoint is being loaded.
    #[error("this stage is still loading its checkpoint")]
    Loading,
    /// No new work is taken.
    #[error("this stage is shutting down; ask another replica")]
    Draining,
    /// The engine panicked in this run.
    #[error("the engine failed: {0}")]
    Panic(String),
    /// The engine panicked in another run, and this one with it was given up.
    #[error("this stage failed and stops; ask another replica")]
    Stopped,
}

impl Classify for StageError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Read(error) => error.class(),
            Self::Run(error) => error.class(),
            Self::Enqueue { .. } => ErrorClass::Overloaded,
            Self::Deadline { .. } => ErrorClass::DeadlineExceeded,
            Self::Loading | Self::Draining | Self::Stopped => ErrorClass::Unavailable,
            Self::Panic(_) => ErrorClass::Internal,
        }
    }

    fn violations(&self) -> &[FieldViolation] {
        match self {
            Self::Read(error) => error.violations(),
            Self::Run(error) => error.violations(),
            _ => &[],
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        matches!(self, Self::Enqueue { .. }).then_some(RETRY_AFTER)
    }
}

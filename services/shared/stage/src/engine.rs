//! The engine: what a stage does on its device, apart from everything around it.

use sdxl_core::{Classify, ErrorClass, FieldViolation};
use std::error::Error;
use thiserror::Error;

/// A stage's work on its device, in steps.
///
/// The worker builds an engine on the thread that owns the device and calls it there only, so engines need be neither
/// `Send` nor asynchronous, and may block. What it must keep to ([`crate::conformance`] checks it):
/// - `begin` checks the request whole: after it, only faults of ours can end a run. A wrong request is
///   [`EngineError::Invalid`] and leaves the engine as it was.
/// - A run's output depends on its request alone: not on runs between whose steps it is advanced, nor on those before.
/// - A run can be dropped between any two steps.
/// - `advance` does one bounded piece of work: one denoising step, or the whole of a job that has none. Between two
///   calls the worker drops runs whose caller has gone.
/// - A NaN or an infinity in a result is an error that says where, never a picture.
pub trait Engine {
    /// What a run is asked for.
    type Request: Send + 'static;
    /// Everything of a run between two steps.
    type Run;
    /// What a step tells the caller.
    type Event: Send + 'static;
    /// What a run ends with.
    type Output: Send + 'static;

    /// Does once, with made-up input, what requests will do, so that the first of them does not pay for it.
    ///
    /// # Errors
    /// Where the engine turns out not to work; the process ends with it.
    fn warm_up(&mut self) -> Result<(), EngineError>;

    /// Checks `request` and makes it ready for its first step.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] with every wrong field; [`EngineError::Failed`] for faults of ours.
    fn begin(&mut self, request: Self::Request) -> Result<Self::Run, EngineError>;

    /// Does the next piece of `run`. Not called again after [`Step::Done`] or an error.
    ///
    /// # Errors
    /// [`EngineError::Failed`]; it ends this run and no other.
    fn advance(&mut self, run: &mut Self::Run) -> Result<Step<Self::Event, Self::Output>, EngineError>;
}

/// How a run stands after a piece of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<Event, Output> {
    /// There is more to do.
    Continue(Event),
    /// That was all.
    Done(Output),
}

/// Why an engine did not do what it was asked for.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The request can never be served as it is.
    #[error("{}", sentence(.0))]
    Invalid(Vec<FieldViolation>),
    /// A fault of ours: a failed computation, a result that is not finite.
    #[error(transparent)]
    Failed(Box<dyn Error + Send + Sync>),
}

impl EngineError {
    /// A fault of ours, from whatever error tells of it.
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(error.into())
    }

    /// One wrong field.
    pub fn field(field: &str, description: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldViolation { field: field.to_owned(), description: description.into() }])
    }
}

impl Classify for EngineError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Invalid(_) => ErrorClass::InvalidRequest,
            Self::Failed(_) => ErrorClass::Internal,
        }
    }

    fn violations(&self) -> &[FieldViolation] {
        match self {
            Self::Invalid(violations) => violations,
            Self::Failed(_) => &[],
        }
    }
}

fn sentence(violations: &[FieldViolation]) -> String {
    let parts: Vec<_> = violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
    parts.join("; ")
}

//! The engine: what a stage does on its device, apart from everything around it.

use sdxl_core::{Classify, ErrorClass, FieldViolation, Size, StepKinds};
use std::{error::Error, ops::Range, time::Duration};
use thiserror::Error;

/// A stage's work on its device, in steps.
///
/// The worker builds an engine on the thread that owns the device and calls it there only, so engines need be neither
/// `Send` nor asynchronous, and may block. What it must keep to ([`crate::conformance`] checks it):
/// - `begin` checks the request whole: after it, only faults of ours can end a run. A wrong request is
///   [`EngineError::Invalid`] and leaves the engine as it was.
/// - A run's output depends on its request alone, to the last bit: not on runs that it is advanced together with, nor
///   on those between whose steps it is advanced, nor on those before.
/// - A run can be dropped between any two steps.
/// - `advance` does one bounded piece of work: one denoising step, or the whole of a job that has none. Between two
///   calls the worker drops runs whose caller has gone.
/// - A device that works by itself may be given a run's next piece before the last is waited for. Until it is told of, a piece
///   that is under way counts as not done, in `work` and in `checkpoint`. Of all runs together no more than one piece is under
///   way after `advance`.
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

    /// What `run` has still to do.
    fn work(&self, run: &Self::Run) -> Work;

    /// The most runs of pictures of `size` to advance together.
    fn max_batch(&self, _size: Size) -> usize {
        1
    }

    /// Does the next piece of each of `runs`, which are of one size and at most [`Engine::max_batch`]; a result for each,
    /// in order. Not called again for a run after [`Step::Done`] or an error.
    ///
    /// # Errors
    /// [`EngineError::Failed`], of a run alone or of each.
    fn advance(&mut self, runs: &mut [&mut Self::Run]) -> Vec<Result<StepOf<Self>, EngineError>>;

    /// How long the step took of which the last [`Engine::advance`] told for `run`, and how many runs shared it. `None` where the
    /// time of the call is the answer, as the engine waits for its device.
    fn took(&self, _run: &Self::Run) -> Option<Took> {
        None
    }

    /// An event from which another engine can go on with `run`, if its caller wants one after the step just done, or
    /// wants any and this is the last chance (`now`).
    ///
    /// # Errors
    /// [`EngineError::Failed`].
    fn checkpoint(&mut self, _run: &Self::Run, _now: bool) -> Result<Option<Self::Event>, EngineError> {
        Ok(None)
    }
}

/// What an engine's step gives.
pub type StepOf<E> = Step<<E as Engine>::Event, <E as Engine>::Output>;

/// What a step took that was done by several runs together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Took {
    /// On the device.
    pub time: Duration,
    /// How many runs.
    pub runs: usize,
    /// Of all of them, as in [`Work::evaluations`].
    pub evaluations: f64,
}

/// What a run has still to do: by this it is given its turns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Of its picture: runs of one size can be advanced together.
    pub size: Size,
    /// How often the network is evaluated in its next step; an evaluation that takes up what another one kept counts as
    /// the part that it computes.
    pub evaluations: f64,
    /// Steps to do.
    pub steps: u32,
    /// Evaluations in a step of those to do, in the mean.
    pub mean_evaluations: f64,
}

impl Work {
    /// So many evaluations in each step.
    #[must_use]
    pub fn even(size: Size, evaluations: u32, steps: u32) -> Self {
        let evaluations = f64::from(evaluations);
        Self { size, evaluations, steps, mean_evaluations: evaluations }
    }

    /// Of the steps `ahead` of a run that takes its steps as `kinds` says, where an evaluation from the cache costs the part `cached`.
    #[must_use]
    pub fn of_steps(size: Size, kinds: &StepKinds, ahead: Range<u32>, cached: f32) -> Self {
        let steps = ahead.end.saturating_sub(ahead.start);
        let next = kinds.cost(ahead.start, cached);
        let total: f64 = ahead.map(|step| kinds.cost(step, cached)).sum();
        Self { size, evaluations: next, steps, mean_evaluations: total / f64::from(steps.max(1)) }
    }

    /// Of one step, in evaluations times pixels.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "as casts saturate, so may this"
    )]
    pub(crate) fn of_a_step(&self) -> u64 {
        (self.evaluations * f64::from(self.size.height) * f64::from(self.size.width)).round() as u64
    }
}

/// How a run stands after a piece of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<Event, Output> {
    /// The first piece is under way, and a later call tells of it: from an engine that does not wait for its device.
    Begun,
    /// There is more to do.
    Continue(Event),
    /// That was all.
    Done(Output),
}

/// Why an engine did not do what it was asked for.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The request can never be served as it is.
    #[error("{}", sdxl_core::error::sentence(.0))]
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

//! An engine for tests: counts, at a pace that the test sets, and misbehaves on request.

use crate::engine::{Engine, EngineError, Step, Work};
use sdxl_core::Size;
use std::{
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

/// Of every run.
const SIZE: Size = Size::new(64, 64);
/// Checkpoints are this and the steps done.
pub(crate) const CHECKPOINT: usize = 1_000_000;

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Toy {
    /// Counts to this many steps.
    Count(usize),
    /// Is wrong.
    Wrong,
    /// Fails in its second step.
    Fail,
    /// Panics in its second step.
    Panic,
}

/// A run: what it is and how far.
pub(crate) struct ToyRun(Toy, usize);

/// Every step waits for a permit, or a fixed time.
pub(crate) enum Pace {
    Permits(Receiver<()>),
    Every(Duration),
}

/// Reports `(steps of the run, step)` for each step done, in the order of doing.
pub(crate) struct ToyEngine {
    pub(crate) pace: Pace,
    pub(crate) log: Sender<(usize, usize)>,
    pub(crate) max_batch: usize,
}

impl ToyEngine {
    /// An engine whose steps wait for permits, the giver of permits, and the log.
    pub(crate) fn stepwise() -> (Self, Sender<()>, Receiver<(usize, usize)>) {
        let (give, permits) = channel();
        let (log, done) = channel();
        (Self { pace: Pace::Permits(permits), log, max_batch: 1 }, give, done)
    }

    /// An engine of steps of a fixed time.
    pub(crate) fn every(time: Duration) -> Self {
        Self { pace: Pace::Every(time), log: channel().0, max_batch: 1 }
    }
}

impl Engine for ToyEngine {
    type Request = Toy;
    type Run = ToyRun;
    type Event = usize;
    type Output = usize;

    fn warm_up(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn begin(&mut self, request: Toy) -> Result<ToyRun, EngineError> {
        match request {
            Toy::Wrong => Err(EngineError::field("toy", "wrong")),
            _ => Ok(ToyRun(request, 0)),
        }
    }

    fn work(&self, run: &ToyRun) -> Work {
        let steps = match run.0 {
            Toy::Count(steps) => steps,
            _ => 2,
        };
        let steps = u32::try_from(steps.saturating_sub(run.1)).unwrap();
        Work::even(SIZE, 1, steps)
    }

    fn max_batch(&self, _: Size) -> usize {
        self.max_batch
    }

    fn advance(&mut self, runs: &mut [&mut ToyRun]) -> Vec<Result<Step<usize, usize>, EngineError>> {
        match &self.pace {
            // Without a giver there is no pace to keep.
            Pace::Permits(permits) => drop(permits.recv()),
            Pace::Every(time) => std::thread::sleep(*time),
        }
        runs.iter_mut().map(|run| self.step(run)).collect()
    }

    fn checkpoint(&mut self, run: &ToyRun, now: bool) -> Result<Option<usize>, EngineError> {
        Ok(now.then_some(CHECKPOINT + run.1))
    }
}

impl ToyEngine {
    fn step(&self, run: &mut ToyRun) -> Result<Step<usize, usize>, EngineError> {
        run.1 += 1;
        match run.0 {
            Toy::Count(steps) => {
                let _ = self.log.send((steps, run.1));
                Ok(if run.1 == steps { Step::Done(steps * 10) } else { Step::Continue(run.1) })
            }
            Toy::Fail if run.1 == 2 => Err(EngineError::failed("latents is not finite after step 1")),
            Toy::Panic if run.1 == 2 => panic!("the toy is broken"),
            _ => Ok(Step::Continue(run.1)),
        }
    }
}

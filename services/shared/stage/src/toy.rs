//! An engine for tests: counts, at a pace that the test sets, and misbehaves on request.

use crate::engine::{Engine, EngineError, Step, Took, Work};
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
    /// Counts to this many steps on a device that is a step ahead.
    Ahead(usize),
    /// As that, but its last step fails.
    AheadFail(usize),
}

/// A run: what it is, and how far.
pub(crate) struct ToyRun {
    toy: Toy,
    done: usize,
    /// On a device that is ahead: what the step takes that was begun last, and what the one took that was told of last.
    begun: Option<Took>,
    took: Option<Took>,
}

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
    /// How often it was called: a step that is begun in the third call takes 3 ms on a device that is ahead.
    pub(crate) calls: u64,
}

impl ToyEngine {
    /// An engine whose steps wait for permits, the giver of permits, and the log.
    pub(crate) fn stepwise() -> (Self, Sender<()>, Receiver<(usize, usize)>) {
        let (give, permits) = channel();
        let (log, done) = channel();
        (Self { pace: Pace::Permits(permits), log, max_batch: 1, calls: 0 }, give, done)
    }

    /// An engine of steps of a fixed time.
    pub(crate) fn every(time: Duration) -> Self {
        Self { pace: Pace::Every(time), log: channel().0, max_batch: 1, calls: 0 }
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
            _ => Ok(ToyRun { toy: request, done: 0, begun: None, took: None }),
        }
    }

    fn work(&self, run: &ToyRun) -> Work {
        Work::even(SIZE, 1, u32::try_from(run.left()).unwrap())
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
        self.calls += 1;
        let together = runs.iter().filter(|run| run.begins()).count();
        let time = Duration::from_millis(self.calls);
        let took = Took { time, runs: together, evaluations: together as f64 };
        runs.iter_mut().map(|run| self.step(run, took)).collect()
    }

    fn took(&self, run: &ToyRun) -> Option<Took> {
        run.took
    }

    fn checkpoint(&mut self, run: &ToyRun, now: bool) -> Result<Option<usize>, EngineError> {
        Ok(now.then_some(CHECKPOINT + run.done))
    }
}

impl ToyRun {
    /// Steps that are not known to be done.
    fn left(&self) -> usize {
        let steps = match self.toy {
            Toy::Count(steps) | Toy::Ahead(steps) | Toy::AheadFail(steps) => steps,
            _ => 2,
        };
        steps.saturating_sub(self.done)
    }

    fn begins(&self) -> bool {
        self.left() > usize::from(self.begun.is_some())
    }
}

impl ToyEngine {
    fn step(&self, run: &mut ToyRun, took: Took) -> Result<Step<usize, usize>, EngineError> {
        if let Toy::Ahead(steps) | Toy::AheadFail(steps) = run.toy {
            let next = run.begins().then_some(took);
            let Some(before) = std::mem::replace(&mut run.begun, next) else {
                return Ok(if run.left() > 0 { Step::Begun } else { Step::Done(steps * 10) });
            };
            run.took = Some(before);
        }
        run.done += 1;
        match run.toy {
            Toy::AheadFail(steps) if run.done == steps => Err(EngineError::failed("latents is not finite")),
            Toy::Count(steps) | Toy::Ahead(steps) | Toy::AheadFail(steps) => {
                let _ = self.log.send((steps, run.done));
                let is_done = run.done == steps && run.took.is_none();
                Ok(if is_done { Step::Done(steps * 10) } else { Step::Continue(run.done) })
            }
            Toy::Fail if run.done == 2 => Err(EngineError::failed("latents is not finite after step 1")),
            Toy::Panic if run.done == 2 => panic!("the toy is broken"),
            _ => Ok(Step::Continue(run.done)),
        }
    }
}

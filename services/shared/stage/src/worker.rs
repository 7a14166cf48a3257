//! The worker: one thread that owns the engine and its device, the queue before it, and turns for the runs on it.
//!
//! Up to `max_active` runs are worked on by turns, one step at a time, so that a short one never waits for the whole of a
//! long one; those of one size take their steps together, and join and leave between steps. Between two steps everything
//! whose caller has gone or whose deadline has passed is dropped, waiting or not. A panic in the engine ends the worker;
//! whoever serves has to end the process then.

mod queue;
mod step;
mod told;
mod turns;

use crate::{
    args::WorkerArgs,
    engine::{Engine, EngineError, Step, Work},
    error::StageError,
};
use queue::{Job, Queue};
use sdxl_core::{StageKind, StepTimes, Tenant};
use sdxl_runtime::{Deadline, Terms};
use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use step::Turn;
use tokio::sync::{mpsc, oneshot, watch};
use told::{RunSpan, Steps, outcome};
use tracing::info;
use turns::{Candidate, Turns};

/// What a step is thought to take before any was seen.
const UNKNOWN_STEP: Duration = Duration::from_millis(50);
/// The part of the time for draining that may be planned with.
const DRAINING: f64 = 0.8;

/// What a caller hears of its run. The last message is [`RunEvent::Done`] or an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunEvent<Event, Output> {
    /// It has left the queue.
    Started {
        /// How long it waited.
        queue_time: Duration,
    },
    /// A step has been done.
    Step(Event),
    /// It is done.
    Done(Finished<Output>),
}

/// A run's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished<Output> {
    /// What came out.
    pub output: Output,
    /// How long it waited.
    pub queue_time: Duration,
    /// How long the device and its thread worked on it, alone or together with others, with what is between two turns of
    /// its own, as checkpoints; turns of others alone are not counted.
    pub run_time: Duration,
}

/// What an engine tells its callers.
pub type EventOf<E> = RunEvent<<E as Engine>::Event, <E as Engine>::Output>;
/// Where a caller hears of its run. Dropping it ends the run before another step is begun.
pub type Events<E> = mpsc::UnboundedReceiver<Result<EventOf<E>, StageError>>;

/// What a worker is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The engine is being built and warmed up.
    Loading,
    /// Work is welcome.
    Ready,
    /// No new work is taken; what there is will be finished.
    Draining,
    /// All work is done and the thread is ending.
    Ended,
    /// The engine could not be built, or panicked.
    Failed,
}

/// What a worker has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// What it is about.
    pub phase: Phase,
    /// Requests that wait.
    pub queued: usize,
    /// Runs being worked on.
    pub active: usize,
    /// When the device last ended a piece of work, or began to have any.
    pub progress: Instant,
    /// For how long the device has worked since it was warm.
    pub busy: Duration,
}

/// The async side's hold on a worker. Clones speak to the same one.
#[derive(Debug)]
pub struct WorkerHandle<E: Engine>(Arc<Queue<E>>);

impl<E: Engine> Clone for WorkerHandle<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E: Engine> WorkerHandle<E> {
    /// Puts a request into the queue. The current span becomes the parent of the run's.
    ///
    /// # Errors
    /// [`StageError::Enqueue`] at once where the queue is full, [`StageError::Loading`], [`StageError::Draining`] or
    /// [`StageError::Stopped`] where no work is taken.
    pub fn submit(&self, request: E::Request, terms: Terms) -> Result<Events<E>, StageError> {
        // Unbounded, so that the device never waits for a slow reader; a run has a bounded number of steps.
        let (events, receiver) = mpsc::unbounded_channel();
        let span = RunSpan::new();
        self.0.push(Job { request, events, terms, submitted: Instant::now(), span })?;
        Ok(receiver)
    }

    /// Takes no new work from now on. What is there is finished, as far as it can be within `limit`; runs beyond it end
    /// at once with a checkpoint, if their caller wants any, and [`StageError::Draining`].
    pub fn drain(&self, limit: Option<Duration>) {
        self.0.drain(limit.and_then(|limit| Instant::now().checked_add(limit.mul_f64(DRAINING))));
    }

    /// What there is to do, and every change of it.
    #[must_use]
    pub fn load(&self) -> watch::Receiver<Load> {
        self.0.load()
    }

    /// Waits until nothing is queued or active.
    pub async fn idle(&self) {
        // Fails only if the sender is gone, and self holds it.
        let _ = self.load().wait_for(|load| load.queued == 0 && load.active == 0).await;
    }
}

/// Starts the thread that builds, warms up and owns an engine of a stage. What `build` gives beside the engine arrives at the
/// receiver once the engine is warm, or the error that ended it.
///
/// # Errors
/// Where the system has no thread for it.
pub fn spawn<E, I>(
    stage: StageKind,
    args: WorkerArgs,
    build: impl FnOnce() -> anyhow::Result<(E, I)> + Send + 'static,
) -> io::Result<(WorkerHandle<E>, oneshot::Receiver<anyhow::Result<I>>)>
where
    E: Engine + 'static,
    I: Send + 'static,
{
    told::begin(stage);
    let queue = Arc::new(Queue::new(args.queue_depth.get()));
    let (built, receiver) = oneshot::channel();
    let shared = Arc::clone(&queue);
    thread::Builder::new().name("device".to_owned()).spawn(move || {
        let warm = catch_unwind(AssertUnwindSafe(|| {
            let (mut engine, info) = build()?;
            engine.warm_up()?;
            anyhow::Ok((engine, info))
        }));
        match warm
            .unwrap_or_else(|panic| Err(anyhow::anyhow!("the engine panicked: {}", panic_text(&*panic))))
        {
            Ok((engine, info)) => {
                shared.ready();
                let _ = built.send(Ok(info));
                Worker {
                    engine,
                    queue: shared,
                    active: Vec::new(),
                    max_active: args.max_active.get(),
                    turns: Turns::default(),
                    turn: 0,
                    times: StepTimes::new(),
                    steps: Steps::new(stage),
                }
                .run();
            }
            Err(error) => {
                shared.fail();
                let _ = built.send(Err(error));
            }
        }
    })?;
    Ok((WorkerHandle(queue), receiver))
}

struct Worker<E: Engine> {
    engine: E,
    queue: Arc<Queue<E>>,
    active: Vec<Active<E>>,
    max_active: usize,
    turns: Turns,
    /// How many turns there have been.
    turn: u64,
    /// What steps have taken.
    times: StepTimes,
    steps: Steps,
}

/// A run with its caller.
struct Active<E: Engine> {
    run: E::Run,
    caller: Caller<E>,
    work: Work,
    /// When its turn has come at the latest.
    due: Instant,
    steps_done: usize,
    /// The turn in which the step was begun that its engine has not told of yet, where the device is ahead.
    begun: Option<Rc<Turn>>,
}

/// Everything about a run that the engine does not need to know.
struct Caller<E: Engine> {
    events: mpsc::UnboundedSender<Result<EventOf<E>, StageError>>,
    terms: Terms,
    span: RunSpan,
    stage: StageKind,
    queue_time: Duration,
    run_time: Duration,
    /// When `run_time` was last counted, and how many turns there had been by then.
    counted: (Instant, u64),
}

impl<E: Engine> Caller<E> {
    /// Its turn, the `turn`th of all, took `time` and ends now. Where its last one was the one before, all since then
    /// counts.
    fn took_turn(&mut self, turn: u64, time: Duration) {
        let (since, last) = std::mem::replace(&mut self.counted, (Instant::now(), turn));
        let was_at_work = last + 1 == turn;
        self.run_time += if was_at_work { self.counted.0.saturating_duration_since(since) } else { time };
    }

    fn has_gone(&self) -> bool {
        self.events.is_closed()
    }

    fn late(&self) -> bool {
        self.terms.deadline.is_some_and(Deadline::passed)
    }

    /// What is sent to a caller that has just gone is lost, as it should be.
    fn tell(&self, event: Result<EventOf<E>, StageError>) {
        let _ = self.events.send(event);
    }

    /// It ends with `error`.
    fn fail(self, error: StageError) {
        self.span.ended(self.stage, outcome(&error), self.run_time);
        self.tell(Err(error));
    }

    fn finish(self, output: E::Output) {
        let (queue_time, run_time) = (self.queue_time, self.run_time);
        self.span.ended(self.stage, "ok", run_time);
        self.tell(Ok(RunEvent::Done(Finished { output, queue_time, run_time })));
    }
}

impl<E: Engine> Worker<E> {
    /// Works until the queue has been drained, or the engine panics.
    fn run(mut self) {
        loop {
            self.sweep();
            self.hand_over();
            let work = self.take_on().and_then(|()| self.turn());
            if let Err(panic) = work {
                for active in self.active.drain(..) {
                    active.caller.fail(StageError::Stopped);
                }
                tracing::error!("the engine panicked: {panic}");
                return self.queue.fail();
            }
            self.queue.set_active(self.active.len());
            if self.active.is_empty() && !self.queue.wait() {
                return self.queue.end();
            }
        }
    }

    /// Drops what nobody waits for any more.
    fn sweep(&mut self) {
        self.queue.sweep();
        let is_over = |active: &mut Active<E>| active.caller.has_gone() || active.caller.late();
        let over: Vec<_> = self.active.extract_if(.., is_over).collect();
        for active in over {
            let steps_done = active.steps_done;
            let caller = self.let_go(active);
            if caller.has_gone() {
                info!(parent: caller.span.span(), steps_done, "the caller has gone");
                caller.span.ended(caller.stage, "cancelled", caller.run_time);
            } else {
                caller.fail(StageError::Deadline { steps_done });
            }
        }
        self.queue.set_active(self.active.len());
    }

    /// Begins waiting requests while there is room. `Err` is a panic's text.
    fn take_on(&mut self) -> Result<(), String> {
        loop {
            let count =
                |tenant: &Tenant| self.active.iter().filter(|a| a.caller.terms.tenant == *tenant).count();
            // Whoever has nothing active need not wait until others have finished.
            let room = self.active.len() < self.max_active;
            if !room && self.active.len() >= 2 * self.max_active {
                return Ok(());
            }
            let Some(Job { request, events, terms, submitted, mut span }) = self.queue.pop(count, room)
            else {
                return Ok(());
            };
            let queue_time = submitted.elapsed();
            span.begun(queue_time);
            let stage = self.steps.stage();
            let counted = (Instant::now(), self.turn);
            let mut caller =
                Caller { events, terms, span, stage, queue_time, run_time: Duration::ZERO, counted };
            caller.tell(Ok(RunEvent::Started { queue_time }));
            let engine = &mut self.engine;
            let begun = caller.span.span().clone().in_scope(|| timed(|| engine.begin(request)));
            match begun {
                Ok((run, time)) => {
                    caller.run_time += time;
                    caller.counted.0 = Instant::now();
                    self.begun(run, caller, submitted);
                }
                Err(panic) => {
                    caller.fail(StageError::Panic(panic.clone()));
                    return Err(panic);
                }
            }
            self.queue.set_active(self.active.len());
        }
    }

    fn begun(&mut self, run: Result<E::Run, EngineError>, caller: Caller<E>, submitted: Instant) {
        let run = match run {
            Ok(run) => run,
            Err(error) => return caller.fail(error.into()),
        };
        let work = self.engine.work(&run);
        let deadline = caller.terms.deadline.map(Deadline::instant);
        let due = turns::due(submitted, self.alone(work), caller.terms.priority, deadline);
        self.active.push(Active { run, caller, work, due, steps_done: 0, begun: None });
    }

    /// How long this work takes by itself.
    fn alone(&self, work: Work) -> Duration {
        let step = self.times.estimate(work.size, work.mean_evaluations);
        step.unwrap_or(UNKNOWN_STEP).saturating_mul(work.steps)
    }

    /// Advances the runs whose turn it is. `Err` is a panic's text.
    fn turn(&mut self) -> Result<(), String> {
        let candidates: Vec<_> = self
            .active
            .iter()
            .map(|a| Candidate { tenant: &a.caller.terms.tenant, size: a.work.size, due: a.due })
            .collect();
        let mut chosen = self.turns.next(&candidates, |size| self.engine.max_batch(size));
        if chosen.is_empty() {
            return Ok(());
        }
        chosen.sort_unstable();
        // From the last to the first, so that places stay as they are.
        let mut batch: Vec<_> = chosen.iter().rev().map(|i| self.active.remove(*i)).collect();
        batch.reverse();
        let outcome = self.advance(&mut batch);
        let results = match outcome {
            Ok(results) => results,
            Err(panic) => {
                let alone = batch.len() == 1;
                for active in batch {
                    // Which of several it was is not known.
                    let error = if alone { StageError::Panic(panic.clone()) } else { StageError::Stopped };
                    active.caller.fail(error);
                }
                return Err(panic);
            }
        };
        let (mut going_on, mut ended) = (Vec::new(), Vec::new());
        for (mut active, result) in batch.into_iter().zip(results) {
            active.work = self.engine.work(&active.run);
            match result {
                Ok(Step::Begun) => going_on.push(active),
                Ok(Step::Continue(event)) => {
                    active.steps_done += 1;
                    // Made before either is told, so that both come to the caller in one piece.
                    let checkpoint = self.engine.checkpoint(&active.run, false);
                    active.caller.tell(Ok(RunEvent::Step(event)));
                    match checkpoint {
                        Ok(checkpoint) => {
                            if let Some(checkpoint) = checkpoint {
                                active.caller.tell(Ok(RunEvent::Step(checkpoint)));
                            }
                            going_on.push(active);
                        }
                        Err(error) => ended.push((self.let_go(active), Err(error))),
                    }
                }
                Ok(Step::Done(output)) => ended.push((self.let_go(active), Ok(output))),
                Err(error) => ended.push((self.let_go(active), Err(error))),
            }
        }
        self.active.append(&mut going_on);
        // Gone from the load before the callers hear, so that whoever has all answers sees an idle worker.
        self.queue.set_active(self.active.len());
        for (caller, result) in ended {
            match result {
                Ok(output) => caller.finish(output),
                Err(error) => caller.fail(error.into()),
            }
        }
        Ok(())
    }

    /// While draining, ends the runs that will not be done in time, those that are due last first.
    fn hand_over(&mut self) {
        let Some(end) = self.queue.end_of_draining() else { return };
        let left = end.saturating_duration_since(Instant::now());
        self.active.sort_by_key(|active| active.due);
        let mut total = Duration::ZERO;
        let mut late = Vec::new();
        let times: Vec<_> = self.active.iter().map(|active| self.alone(active.work)).collect();
        for (place, time) in times.into_iter().enumerate() {
            if total + time > left { late.push(place) } else { total += time }
        }
        if !late.is_empty() {
            self.queue.turn_away();
        }
        for place in late.into_iter().rev() {
            match self.engine.checkpoint(&self.active[place].run, true) {
                // Nobody can go on with it: there may yet be time enough.
                Ok(None) => {}
                Ok(Some(checkpoint)) => {
                    let active = self.active.remove(place);
                    info!(parent: active.caller.span.span(), steps_done = active.steps_done, "handed over");
                    let caller = self.let_go(active);
                    caller.tell(Ok(RunEvent::Step(checkpoint)));
                    caller.fail(StageError::Draining);
                }
                Err(error) => {
                    let active = self.active.remove(place);
                    self.let_go(active).fail(error.into());
                }
            }
        }
        self.queue.set_active(self.active.len());
    }
}

/// Does some work and tells how long it took. `Err` is a panic's text.
fn timed<T>(work: impl FnOnce() -> T) -> Result<(T, Duration), String> {
    let started = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(work));
    result.map(|result| (result, started.elapsed())).map_err(|panic| panic_text(&*panic))
}

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no reason given".to_owned())
}

#[cfg(test)]
mod tests;

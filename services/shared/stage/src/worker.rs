//! The worker: one thread that owns the engine and its device, the queue before it, and turns for the runs on it.
//!
//! Up to `max_active` runs are worked on by turns, one step each, so that a short one never waits for the whole of a
//! long one. Between two steps everything whose caller has gone or whose deadline has passed is dropped, waiting or
//! not. A panic in the engine ends the worker; whoever serves has to end the process then.

mod queue;

use crate::{
    args::WorkerArgs,
    engine::{Engine, EngineError, Step},
    error::StageError,
};
use queue::{Job, Queue};
use sdxl_runtime::Deadline;
use std::{
    any::Any,
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{Span, info, info_span};

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
    /// How long the device worked on it, other runs' turns not counted.
    pub run_time: Duration,
}

/// What an engine tells its callers.
pub type EventOf<E> = RunEvent<<E as Engine>::Event, <E as Engine>::Output>;
/// Where a caller hears of its run. Dropping it ends the run before its next step.
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
    pub fn submit(&self, request: E::Request, deadline: Option<Deadline>) -> Result<Events<E>, StageError> {
        // Unbounded, so that the device never waits for a slow reader; a run has a bounded number of steps.
        let (events, receiver) = mpsc::unbounded_channel();
        let span = info_span!("run", queue_ms = tracing::field::Empty, run_ms = tracing::field::Empty);
        self.0.push(Job { request, events, deadline, submitted: Instant::now(), span })?;
        Ok(receiver)
    }

    /// Takes no new work from now on. What is there is finished.
    pub fn drain(&self) {
        self.0.drain();
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

/// Starts the thread that builds, warms up and owns an engine. What `build` gives beside the engine arrives at the
/// receiver once the engine is warm, or the error that ended it.
///
/// # Errors
/// Where the system has no thread for it.
pub fn spawn<E, I>(
    args: WorkerArgs,
    build: impl FnOnce() -> anyhow::Result<(E, I)> + Send + 'static,
) -> io::Result<(WorkerHandle<E>, oneshot::Receiver<anyhow::Result<I>>)>
where
    E: Engine + 'static,
    I: Send + 'static,
{
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
                Worker { engine, queue: shared, active: VecDeque::new(), max_active: args.max_active.get() }
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
    active: VecDeque<Active<E>>,
    max_active: usize,
}

/// A run with its caller.
struct Active<E: Engine> {
    run: E::Run,
    caller: Caller<E>,
    steps_done: usize,
}

/// Everything about a run that the engine does not need to know.
struct Caller<E: Engine> {
    events: mpsc::UnboundedSender<Result<EventOf<E>, StageError>>,
    deadline: Option<Deadline>,
    span: Span,
    queue_time: Duration,
    run_time: Duration,
}

impl<E: Engine> Caller<E> {
    fn has_gone(&self) -> bool {
        self.events.is_closed()
    }

    fn late(&self) -> bool {
        self.deadline.is_some_and(Deadline::passed)
    }

    /// What is sent to a caller that has just gone is lost, as it should be.
    fn tell(&self, event: Result<EventOf<E>, StageError>) {
        let _ = self.events.send(event);
    }

    fn finish(self, output: E::Output) {
        let (queue_time, run_time) = (self.queue_time, self.run_time);
        self.span.record("run_ms", milliseconds(run_time));
        self.tell(Ok(RunEvent::Done(Finished { output, queue_time, run_time })));
    }
}

impl<E: Engine> Worker<E> {
    /// Works until the queue has been drained, or the engine panics.
    fn run(mut self) {
        loop {
            self.sweep();
            let work = self.take_on().and_then(|()| self.turn());
            if let Err(panic) = work {
                for active in self.active.drain(..) {
                    active.caller.tell(Err(StageError::Stopped));
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
        self.active.retain(|active| {
            if active.caller.has_gone() {
                info!(parent: &active.caller.span, steps_done = active.steps_done, "the caller has gone");
                return false;
            }
            if active.caller.late() {
                active.caller.tell(Err(StageError::Deadline { steps_done: active.steps_done }));
                return false;
            }
            true
        });
        self.queue.set_active(self.active.len());
    }

    /// Begins waiting requests while there is room. `Err` is a panic's text.
    fn take_on(&mut self) -> Result<(), String> {
        while self.active.len() < self.max_active {
            let Some(Job { request, events, deadline, submitted, span }) = self.queue.pop() else { break };
            let queue_time = submitted.elapsed();
            span.record("queue_ms", milliseconds(queue_time));
            let mut caller = Caller { events, deadline, span, queue_time, run_time: Duration::ZERO };
            caller.tell(Ok(RunEvent::Started { queue_time }));
            let engine = &mut self.engine;
            let begun = guarded(&mut caller, || engine.begin(request))?;
            match begun {
                Ok(run) => self.active.push_back(Active { run, caller, steps_done: 0 }),
                Err(error) => caller.tell(Err(error.into())),
            }
            self.queue.set_active(self.active.len());
        }
        Ok(())
    }

    /// Advances the run whose turn it is. `Err` is a panic's text.
    fn turn(&mut self) -> Result<(), String> {
        let Some(Active { mut run, mut caller, steps_done }) = self.active.pop_front() else { return Ok(()) };
        let engine = &mut self.engine;
        let step = guarded(&mut caller, || engine.advance(&mut run))?;
        match step {
            Ok(Step::Continue(event)) => {
                caller.tell(Ok(RunEvent::Step(event)));
                self.active.push_back(Active { run, caller, steps_done: steps_done + 1 });
            }
            Ok(Step::Done(output)) => {
                // Gone from the load before the caller hears, so that whoever has all answers sees an idle worker.
                self.queue.set_active(self.active.len());
                caller.finish(output);
            }
            Err(error) => caller.tell(Err(error.into())),
        }
        Ok(())
    }
}

/// Does a piece of `caller`'s work, on its time and in its span. `Err` is a panic's text; the caller has been told.
fn guarded<E: Engine, T>(
    caller: &mut Caller<E>,
    work: impl FnOnce() -> Result<T, EngineError>,
) -> Result<Result<T, EngineError>, String> {
    let started = Instant::now();
    let entered = caller.span.clone().entered();
    let result = catch_unwind(AssertUnwindSafe(work));
    drop(entered);
    caller.run_time += started.elapsed();
    result.map_err(|panic| {
        let text = panic_text(&*panic);
        caller.tell(Err(StageError::Panic(text.clone())));
        text
    })
}

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no reason given".to_owned())
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

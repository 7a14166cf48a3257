//! What a run tells, as messages: several steps in one, where the caller does not care for each.

use crate::{
    engine::{Engine, EngineError},
    error::StageError,
    jobs::{Checkpoint, DenoiseEvent, StepDone},
    tensor,
    worker::{EventOf, Events, Finished, RunEvent},
};
use candle_core::Tensor;
use futures::stream::{self, BoxStream, StreamExt};
use sdxl_proto::{
    convert::duration,
    status::status,
    v1::{self, denoise_response::Event},
};
use sdxl_runtime::Deadline;
use std::time::{Duration, Instant};
use tokio::time::{error::Elapsed, timeout};
use tonic::Status;

/// After so long a step is told alone, so that a caller need not ask for long whether the device hangs.
const LONGEST_SILENCE: Duration = Duration::from_secs(2);

type Answer = Result<v1::DenoiseResponse, Status>;

/// The messages of one run. The deadline is kept here too, as the worker looks at it between steps only.
pub(super) struct Answers<E: Engine> {
    events: Events<E>,
    deadline: Option<Deadline>,
    steps: Steps,
    /// What follows the message that was given last.
    after: Option<Answer>,
    ended: bool,
}

impl<E> Answers<E>
where
    E: Engine<Event = DenoiseEvent, Output = Tensor> + 'static,
{
    /// Progress is told after so many steps, or after each.
    pub(super) fn new(events: Events<E>, deadline: Option<Deadline>, progress_interval: u32) -> Self {
        let steps = Steps::new(progress_interval);
        Self { events, deadline, steps, after: None, ended: false }
    }

    /// They end after an error.
    pub(super) fn stream(self) -> BoxStream<'static, Answer> {
        stream::unfold(self, |mut answers| async { Some((answers.next().await?, answers)) }).boxed()
    }

    async fn next(&mut self) -> Option<Answer> {
        if let Some(after) = self.after.take() {
            return Some(after);
        }
        while !self.ended {
            let Ok(event) = self.event().await else {
                self.ended = true;
                return Some(Err(Status::deadline_exceeded(
                    "the deadline passed before the last step was done",
                )));
            };
            let told = match event? {
                Ok(RunEvent::Step(DenoiseEvent::Step(done))) => match self.steps.add(done) {
                    Some(told) => return Some(Ok(message(told))),
                    None => continue,
                },
                Ok(RunEvent::Step(DenoiseEvent::Checkpoint(checkpoint))) => made(checkpoint),
                Ok(RunEvent::Started { queue_time }) => {
                    Ok(Event::Started(v1::DenoiseStarted { queue_time: Some(duration(queue_time)) }))
                }
                Ok(RunEvent::Done(finished)) => done(&finished),
                Err(error) => Err(error),
            };
            let answer = told.map(message).map_err(|error| status(&error));
            self.ended = answer.is_err();
            // Nothing else is told before the steps that led to it.
            let Some(steps) = self.steps.take() else { return Some(answer) };
            self.after = Some(answer);
            return Some(Ok(message(steps)));
        }
        None
    }

    /// The run's next event, if there is one before the deadline.
    async fn event(&mut self) -> Result<Option<Result<EventOf<E>, StageError>>, Elapsed> {
        match self.deadline {
            None => Ok(self.events.recv().await),
            Some(deadline) => timeout(deadline.remaining(), self.events.recv()).await,
        }
    }
}

/// Steps that are done and not told of yet.
#[derive(Debug)]
struct Steps {
    interval: u32,
    told: Instant,
    count: u32,
    time: Duration,
    evaluations: u32,
    work: f64,
    last: Option<StepDone>,
}

impl Steps {
    fn new(interval: u32) -> Self {
        let (told, time) = (Instant::now(), Duration::ZERO);
        Self { interval, told, count: 0, time, evaluations: 0, work: 0.0, last: None }
    }

    /// One more; what to tell now.
    fn add(&mut self, done: StepDone) -> Option<Event> {
        self.count += 1;
        self.time += done.step_time;
        self.evaluations = self.evaluations.saturating_add(done.batch_evaluations);
        self.work += done.batch_work;
        self.last = Some(done);
        let is_due = self.count >= self.interval || self.told.elapsed() >= LONGEST_SILENCE;
        if is_due { self.take() } else { None }
    }

    /// All of them, if there are any.
    fn take(&mut self) -> Option<Event> {
        let StepDone { step, timestep, .. } = self.last.take()?;
        let steps = std::mem::take(&mut self.count);
        self.told = Instant::now();
        Some(Event::Progress(v1::DenoiseProgress {
            step,
            timestep,
            step_time: Some(duration(std::mem::take(&mut self.time) / steps)),
            batch_evaluations: std::mem::take(&mut self.evaluations) / steps,
            steps,
            batch_work: std::mem::take(&mut self.work) / f64::from(steps),
        }))
    }
}

fn message(event: Event) -> v1::DenoiseResponse {
    v1::DenoiseResponse { event: Some(event) }
}

fn made(checkpoint: Checkpoint) -> Result<Event, StageError> {
    Ok(Event::Checkpoint(v1::DenoiseCheckpoint {
        latents: Some(tensor::to_wire(&checkpoint.latents).map_err(EngineError::failed)?),
        revision: checkpoint.revision,
        step: checkpoint.step,
        sampler_history: Vec::new(),
    }))
}

fn done(finished: &Finished<Tensor>) -> Result<Event, StageError> {
    Ok(Event::Result(v1::DenoiseResult {
        latents: Some(tensor::to_wire(&finished.output).map_err(EngineError::failed)?),
        queue_time: Some(duration(finished.queue_time)),
        run_time: Some(duration(finished.run_time)),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(step: u32, milliseconds: u64, batch_evaluations: u32) -> StepDone {
        let step_time = Duration::from_millis(milliseconds);
        let batch_work = 0.5 * f64::from(batch_evaluations);
        StepDone { step, timestep: 900.0 - step as f32, step_time, batch_evaluations, batch_work }
    }

    fn told(event: Option<&Event>) -> Option<(u32, f32, Duration, u32, u32)> {
        let Some(Event::Progress(progress)) = event else { return None };
        let time = Duration::try_from(progress.step_time.unwrap()).unwrap();
        assert_eq!(progress.batch_work, 0.5 * f64::from(progress.batch_evaluations), "as in each of them");
        Some((progress.step, progress.timestep, time, progress.batch_evaluations, progress.steps))
    }

    #[test]
    fn each_step_is_told_unless_several_are_asked_for() {
        for interval in [0, 1] {
            let mut steps = Steps::new(interval);
            for step in 3..6 {
                let expected = (step, 900.0 - step as f32, Duration::from_millis(7), 2, 1);
                assert_eq!(told(steps.add(done(step, 7, 2)).as_ref()), Some(expected));
            }
            assert!(steps.take().is_none());
        }
    }

    #[test]
    fn several_steps_are_their_mean_and_the_last_of_them() {
        let mut steps = Steps::new(3);
        assert!(steps.add(done(0, 10, 2)).is_none());
        assert!(steps.add(done(1, 20, 4)).is_none());
        let expected = (2, 898.0, Duration::from_millis(20), 4, 3);
        assert_eq!(told(steps.add(done(2, 30, 6)).as_ref()), Some(expected));
        assert!(steps.add(done(3, 10, 2)).is_none());
        assert_eq!(told(steps.take().as_ref()), Some((3, 897.0, Duration::from_millis(10), 2, 1)));
        assert!(steps.take().is_none());
    }

    #[test]
    fn slow_steps_are_told_before_the_caller_wonders() {
        let mut steps = Steps::new(100);
        steps.told = Instant::now() - LONGEST_SILENCE;
        assert_eq!(told(steps.add(done(0, 10, 2)).as_ref()).map(|told| told.4), Some(1));
        assert!(steps.add(done(1, 10, 2)).is_none());
    }
}

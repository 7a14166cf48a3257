//! One step of some runs, and whom it is told of, counted and charged for.
//!
//! An engine that waits for its device tells of a step in the turn that began it. One that is ahead does so in a later turn of the
//! run, and what it took is known from the device alone.

use super::{Active, Caller, UNKNOWN_STEP, Worker, timed, told::StepSpan};
use crate::engine::{Engine, EngineError, Step, StepOf, Took};
use std::{cell::Cell, rc::Rc, time::Duration};

/// What runs have in common that began a step together.
#[derive(Debug)]
pub(super) struct Turn {
    span: StepSpan,
    /// Of all runs, as in [`Work::evaluations`](crate::engine::Work::evaluations).
    evaluations: f64,
    /// What the step took, once a run has been told of it: it is in the estimates and the metrics then.
    took: Cell<Option<Took>>,
}

impl<E: Engine> Active<E> {
    /// Whether there is a step that is neither done nor under way.
    fn begins_a_step(&self) -> bool {
        self.work.steps > u32::from(self.begun.is_some())
    }
}

impl<E: Engine> Worker<E> {
    /// One step of each, together. `Err` is a panic's text.
    pub(super) fn advance(
        &mut self,
        batch: &mut [Active<E>],
    ) -> Result<Vec<Result<StepOf<E>, EngineError>>, String> {
        let begins: Vec<_> = batch.iter().map(Active::begins_a_step).collect();
        let beginning = batch.iter().zip(&begins).filter(|(_, begins)| **begins).map(|(active, _)| active);
        let span = self.steps.span(beginning.clone().map(|active| &active.caller.span));
        let runs = beginning.clone().count();
        let evaluations = beginning.map(|active| active.work.evaluations).sum();
        let turn = Rc::new(Turn { span, evaluations, took: Cell::new(None) });
        let engine = &mut self.engine;
        let mut all: Vec<_> = batch.iter_mut().map(|active| &mut active.run).collect();
        let (results, time) = turn.span.in_scope(|| timed(|| engine.advance(&mut all)))?;
        self.queue.progressed(time);
        self.turn += 1;
        let this_call = Took { time, runs, evaluations };
        let are_right = results.iter().all(Result::is_ok);
        let mut spent = Vec::new();
        for ((active, result), begins) in batch.iter_mut().zip(&results).zip(begins) {
            let mut begun = begins.then(|| Rc::clone(&turn));
            if matches!(result, Ok(Step::Begun)) {
                // The time is counted when it is told of: the device may have been at other work.
                active.begun = begun;
                continue;
            }
            // Of the step that was begun in an earlier turn, or else of this turn's.
            let told = active.begun.take().or_else(|| begun.take());
            active.begun = begun;
            let Some(told) = told else {
                // What was done is handed over.
                active.caller.took_turn(self.turn, time);
                continue;
            };
            // The time of a call in which a run fails says nothing of a step's, but the device's own does.
            let own = self.engine.took(&active.run).filter(|_| result.is_ok());
            let took = own.unwrap_or(this_call);
            active.caller.took_turn(self.turn, took.time);
            told.span.is_over();
            if own.is_some() || are_right {
                told.span.note(&active.caller.span, active.steps_done, took.runs, took.time);
                if told.took.replace(Some(took)).is_none() {
                    self.times.observe(active.work.size, took.evaluations, took.time);
                    self.steps.done(active.work.size, took.runs, took.time);
                }
            }
            let time = part(active.work.evaluations, took.evaluations, took.time);
            spent.push((&active.caller.terms.tenant, active.work.of_a_step(), time));
        }
        if !spent.is_empty() {
            self.turns.spent(spent.iter().copied());
        }
        Ok(results)
    }

    /// The caller of a run that ends. If a step is under way, its tenant pays for its part of that now: the device does it all
    /// the same.
    pub(super) fn let_go(&mut self, active: Active<E>) -> Caller<E> {
        let Active { caller, work, begun, .. } = active;
        if let Some(begun) = begun {
            let known = begun.took.get().map(|took| took.time);
            let time = known.or_else(|| self.times.estimate(work.size, begun.evaluations));
            let time = part(work.evaluations, begun.evaluations, time.unwrap_or(UNKNOWN_STEP));
            self.turns.pay(&caller.terms.tenant, work.of_a_step(), time);
        }
        caller
    }
}

/// The part of `time`, in which there were `all` evaluations, that `own` of them took.
fn part(own: f64, all: f64, time: Duration) -> Duration {
    if all > 0.0 { time.mul_f64((own / all).min(1.0)) } else { time }
}

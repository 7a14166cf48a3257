//! One step of some runs, and whom it is told of, counted and charged for.
//!
//! An engine that waits for its device tells of a step in the turn that began it. One that is ahead does so in a later turn of the
//! run, and what it took is known from the device alone.

use super::{Active, UNKNOWN_STEP, Worker, timed, told::StepSpan};
use crate::engine::{Engine, EngineError, Step, StepOf, Took};
use std::{cell::Cell, rc::Rc};

/// What runs have in common that began a step together.
#[derive(Debug)]
pub(super) struct Turn {
    span: StepSpan,
    /// Whether a run has been told of the step: what it took is in the estimates and the metrics then.
    is_told: Cell<bool>,
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
        let turn = Rc::new(Turn { span, is_told: Cell::new(false) });
        let runs = beginning.clone().count();
        let evaluations = beginning.map(|active| active.work.evaluations).sum();
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
                active.begun = begun;
                active.caller.began(self.turn);
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
            let took = self.engine.took(&active.run).filter(|_| result.is_ok()).unwrap_or(this_call);
            active.caller.took_turn(self.turn, took.time);
            let is_first = !told.is_told.replace(true);
            if is_first {
                told.span.is_over();
            }
            if are_right {
                told.span.note(&active.caller.span, active.steps_done, took.runs, took.time);
                if is_first {
                    self.times.observe(active.work.size, took.evaluations, took.time);
                    self.steps.done(active.work.size, took.runs, took.time);
                }
            }
            let part = if took.evaluations > 0.0 { active.work.evaluations / took.evaluations } else { 1.0 };
            spent.push((&active.caller.terms.tenant, active.work.of_a_step(), took.time.mul_f64(part)));
        }
        if !spent.is_empty() {
            self.turns.spent(spent.iter().copied());
        }
        Ok(results)
    }

    /// Of a run that leaves before it is told of the step that it began: the device does that all the same.
    pub(super) fn charge_for_what_is_under_way(&mut self, active: &Active<E>) {
        if active.begun.is_some() {
            let work = &active.work;
            let time = self.times.estimate(work.size, work.evaluations).unwrap_or(UNKNOWN_STEP);
            self.turns.spent([(&active.caller.terms.tenant, work.of_a_step(), time)].into_iter());
        }
    }
}

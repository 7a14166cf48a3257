//! What every engine has to keep to, as a check that a stage's unit tests run on its own.

use crate::engine::{Engine, EngineError, Step, StepOf};

/// Requests to check an engine with. Made anew for each run.
pub struct Samples<'a, R> {
    /// A right request, of several steps if the engine has steps.
    pub request: &'a dyn Fn() -> R,
    /// Another right one with another output.
    pub other: &'a dyn Fn() -> R,
    /// Wrong ones, and the field that is at fault in each.
    pub wrong: &'a [(&'static str, &'a dyn Fn() -> R)],
}

/// No engine of ours needs as many steps for a sample.
const MAX_STEPS: usize = 10_000;

/// Checks that `engine` keeps the contract of [`Engine`]. `bytes` makes outputs comparable, bit for bit.
///
/// # Errors
/// The promise that is broken, in a sentence.
pub fn check<E: Engine>(
    engine: &mut E,
    samples: &Samples<'_, E::Request>,
    bytes: impl Fn(&E::Output) -> Vec<u8>,
) -> Result<(), String> {
    engine.warm_up().map_err(|e| format!("warm_up failed: {e}"))?;
    let alone = bytes(&run(engine, samples.request)?);
    let other = bytes(&run(engine, samples.other)?);
    ensure(alone != other, "two different requests must have different outputs, or nothing is checked here")?;
    ensure(bytes(&run(engine, samples.request)?) == alone, "the same request twice gave two outputs")?;

    let mut first = begin(engine, samples.request)?;
    let mut second = begin(engine, samples.other)?;
    let (mut outputs, mut steps) = ((None, None), 0);
    while outputs.0.is_none() || outputs.1.is_none() {
        steps += 1;
        ensure(steps < MAX_STEPS, "a run does not end")?;
        for (run, output) in [(&mut first, &mut outputs.0), (&mut second, &mut outputs.1)] {
            if output.is_none() {
                *output = advance(engine, run)?;
            }
        }
    }
    let interleaved = (outputs.0.as_ref().map(&bytes), outputs.1.as_ref().map(&bytes));
    ensure(
        interleaved == (Some(alone.clone()), Some(other.clone())),
        "by turns with another, a run gave another output",
    )?;

    together(engine, samples, &bytes, [&alone, &other])?;

    let mut dropped = begin(engine, samples.other)?;
    advance(engine, &mut dropped)?;
    drop(dropped);
    ensure(
        bytes(&run(engine, samples.request)?) == alone,
        "after a dropped run, another gave another output",
    )?;

    for (field, wrong) in samples.wrong {
        match engine.begin(wrong()).map(drop) {
            Err(EngineError::Invalid(violations)) if violations.iter().any(|v| v.field == *field) => {}
            Err(error) => return Err(format!("a wrong {field} gave: {error}")),
            Ok(()) => return Err(format!("a wrong {field} was accepted")),
        }
    }
    ensure(
        bytes(&run(engine, samples.request)?) == alone,
        "after wrong requests, a right one gave another output",
    )
}

/// Two runs in one batch where the engine takes that many, the second a step behind.
fn together<E: Engine>(
    engine: &mut E,
    samples: &Samples<'_, E::Request>,
    bytes: &impl Fn(&E::Output) -> Vec<u8>,
    alone: [&Vec<u8>; 2],
) -> Result<(), String> {
    let mut runs = [begin(engine, samples.request)?, begin(engine, samples.other)?];
    let works = runs.each_ref().map(|run| engine.work(run));
    if works[0].size != works[1].size || engine.max_batch(works[0].size) < 2 {
        return Ok(());
    }
    ensure(works[0].steps > 1, "with batches, samples must have several steps, or nothing is checked here")?;
    let mut outputs = [advance(engine, &mut runs[0])?, None];
    for _ in 0..MAX_STEPS {
        let missing: Vec<usize> = (0..2).filter(|i| outputs[*i].is_none()).collect();
        if missing.is_empty() {
            break;
        }
        let mut batch: Vec<_> =
            runs.iter_mut().enumerate().filter(|(i, _)| missing.contains(i)).map(|(_, run)| run).collect();
        let results = engine.advance(&mut batch);
        ensure(results.len() == missing.len(), "advance must give a result for each run")?;
        for (i, result) in missing.into_iter().zip(results) {
            if let Step::Done(output) = result.map_err(|e| format!("a right request failed: {e}"))? {
                outputs[i] = Some(output);
            }
        }
    }
    let outputs = outputs.each_ref().map(|output| output.as_ref().map(bytes));
    ensure(
        outputs == alone.map(|alone| Some(alone.clone())),
        "in one batch with another, a run gave another output",
    )
}

fn run<E: Engine>(engine: &mut E, request: &dyn Fn() -> E::Request) -> Result<E::Output, String> {
    let mut run = begin(engine, request)?;
    let mut is_ahead = false;
    for _ in 0..MAX_STEPS {
        match told(engine, &mut run)? {
            Step::Begun => is_ahead = true,
            Step::Continue(_) => ensure(
                engine.took(&run).is_some() == is_ahead,
                "an engine tells what a step took if it is ahead, and only then",
            )?,
            Step::Done(output) => return Ok(output),
        }
    }
    Err("a run does not end".to_owned())
}

fn begin<E: Engine>(engine: &mut E, request: &dyn Fn() -> E::Request) -> Result<E::Run, String> {
    engine.begin(request()).map_err(|e| format!("a right request was refused: {e}"))
}

fn advance<E: Engine>(engine: &mut E, run: &mut E::Run) -> Result<Option<E::Output>, String> {
    told(engine, run).map(|step| if let Step::Done(output) = step { Some(output) } else { None })
}

fn told<E: Engine>(engine: &mut E, run: &mut E::Run) -> Result<StepOf<E>, String> {
    let before = engine.work(run).steps;
    let Some(result) = engine.advance(&mut [run]).pop() else {
        return Err("advance must give a result for each run".to_owned());
    };
    let step = result.map_err(|error| format!("a right request failed: {error}"))?;
    let left = engine.work(run).steps;
    match step {
        Step::Begun => ensure(left == before, "what is only begun must count as not done")?,
        Step::Continue(_) => ensure(left + 1 == before, "a step that is told of must count as done")?,
        Step::Done(_) => {}
    }
    Ok(step)
}

fn ensure(promise: bool, broken: &str) -> Result<(), String> {
    if promise { Ok(()) } else { Err(broken.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::Work,
        toy::{Toy, ToyEngine, ToyRun},
    };
    use sdxl_core::Size;
    use std::time::Duration;

    fn samples() -> Samples<'static, Toy> {
        Samples { request: &|| Toy::Count(4), other: &|| Toy::Count(2), wrong: &[("toy", &|| Toy::Wrong)] }
    }

    #[test]
    fn the_toy_conforms() {
        let mut engine = ToyEngine::every(Duration::ZERO);
        let bytes = |output: &usize| output.to_le_bytes().to_vec();
        check(&mut engine, &samples(), bytes).unwrap();
        let ahead = Samples { request: &|| Toy::Ahead(4), other: &|| Toy::Ahead(2), ..samples() };
        check(&mut engine, &ahead, bytes).unwrap();
        // This one does not pass on what steps took.
        let error = check(&mut Leaky(engine), &ahead, bytes).unwrap_err();
        assert_eq!(error, "an engine tells what a step took if it is ahead, and only then");
    }

    /// Counts on what it is advanced with.
    struct Leaky(ToyEngine);

    impl Engine for Leaky {
        type Request = Toy;
        type Run = ToyRun;
        type Event = usize;
        type Output = usize;

        fn warm_up(&mut self) -> Result<(), EngineError> {
            self.0.warm_up()
        }

        fn begin(&mut self, request: Toy) -> Result<ToyRun, EngineError> {
            self.0.begin(request)
        }

        fn work(&self, run: &ToyRun) -> Work {
            self.0.work(run)
        }

        fn max_batch(&self, _: Size) -> usize {
            2
        }

        fn advance(&mut self, runs: &mut [&mut ToyRun]) -> Vec<Result<Step<usize, usize>, EngineError>> {
            let others = runs.len() - 1;
            let results = self.0.advance(runs).into_iter();
            results
                .map(|result| match result {
                    Ok(Step::Done(output)) => Ok(Step::Done(output + others)),
                    other => other,
                })
                .collect()
        }
    }

    #[test]
    fn a_run_that_depends_on_its_batch_is_told() {
        // Both end in the same step.
        let samples = Samples { other: &|| Toy::Count(3), ..samples() };
        let bytes = |output: &usize| output.to_le_bytes().to_vec();
        let mut engine = ToyEngine::every(Duration::ZERO);
        engine.max_batch = 2;
        check(&mut engine, &samples, bytes).unwrap();
        let error = check(&mut Leaky(engine), &samples, bytes).unwrap_err();
        assert_eq!(error, "in one batch with another, a run gave another output");
    }

    #[test]
    fn what_does_not_conform_is_told() {
        let mut engine = ToyEngine::every(Duration::ZERO);
        let bytes = |output: &usize| output.to_le_bytes().to_vec();
        let accepted = Samples { wrong: &[("toy", &|| Toy::Count(1))], ..samples() };
        assert_eq!(check(&mut engine, &accepted, bytes).unwrap_err(), "a wrong toy was accepted");
        let failing = Samples { other: &|| Toy::Fail, ..samples() };
        let error = check(&mut engine, &failing, bytes).unwrap_err();
        assert!(error.starts_with("a right request failed"), "{error}");
        let forgetful = std::cell::Cell::new(0u8);
        let error = check(&mut engine, &samples(), |_| {
            forgetful.set(forgetful.get() + 1);
            vec![forgetful.get()]
        });
        assert_eq!(error.unwrap_err(), "the same request twice gave two outputs");
    }
}

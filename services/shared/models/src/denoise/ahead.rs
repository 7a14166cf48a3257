//! Steps of several runs together, each waited for, or only once the next one is begun.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use candle_core::Tensor;

use super::{DenoiseRun, evaluate_outer, evaluate_whole};
use crate::{ModelError, finite, moment::Moment, unet::Unet};

/// A step that the device may still be at.
#[derive(Clone, Debug)]
pub(super) struct UnderWay {
    pub(super) step: usize,
    /// As in the run.
    pub(super) latents_before: Tensor,
    finite: Arc<finite::Asked>,
    /// Of all runs that take it together.
    time: Arc<Time>,
}

/// When the device began, and when it was done.
#[derive(Debug)]
struct Time {
    began: Moment,
    done: Moment,
}

/// How a run stands after [`step_together`] or [`Ahead::step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// Its first step is under way.
    Begun,
    /// This step is done; from [`Ahead::step`], the next one, if there is one, is under way.
    Done {
        /// Its place in the schedule.
        step: usize,
        /// How long the device took for it and those that were done together with it; not what other work it did before.
        took: Duration,
    },
    /// All steps were done before.
    Over,
}

impl DenoiseRun {
    /// Waits for a step that was begun, which is no longer under way.
    fn settle(&mut self, begun: &UnderWay) -> Result<Stepped, ModelError> {
        if self.is_done() {
            self.whole = None;
        }
        begun.finite.answer()?;
        Ok(Stepped::Done { step: begun.step, took: begun.time.began.until(&begun.time.done)? })
    }
}

/// Does the next step of each run together and tells for each which step that was and what it took, or that all were
/// done before. The runs may be at different steps of different schedules, guided or not; their latents have one height
/// and width. A run's latents do not depend on the others, to the last bit on the CPU. The network is called once for all
/// that compute it whole, and once for each branch at which others take up what they kept.
///
/// # Errors
/// A failed computation, which ends all runs. A run whose latents hold NaN or infinity then has an error of its own,
/// [`ModelError::NonFinite`] with the step.
pub fn step_together(
    unet: &Unet,
    runs: &mut [&mut DenoiseRun],
) -> Result<Vec<Result<Stepped, ModelError>>, ModelError> {
    let stepped = Ahead::default().step(unet, runs)?;
    let wait = |(run, stepped): (&mut &mut DenoiseRun, Result<Stepped, ModelError>)| match stepped? {
        Stepped::Begun => run.under_way.take().map_or(Ok(Stepped::Over), |begun| run.settle(&begun)),
        other => Ok(other),
    };
    Ok(runs.iter_mut().zip(stepped).map(wait).collect())
}

/// A device that works by itself and is kept one step ahead: it is given the next one before the last is waited for, so
/// that it need not wait for the host between the two.
#[derive(Debug, Default)]
pub struct Ahead {
    /// The last that it was given, whosever it is.
    last: Option<Arc<Time>>,
}

impl Ahead {
    /// [`step_together`], but it is the step before that is told of, and one call more that ends a run; a run whose latents
    /// are not finite has begun another step by then. At most one step, whosever, is left to do when it comes back.
    ///
    /// # Errors
    /// As of [`step_together`].
    pub fn step(
        &mut self,
        unet: &Unet,
        runs: &mut [&mut DenoiseRun],
    ) -> Result<Vec<Result<Stepped, ModelError>>, ModelError> {
        let (begun, time) = begin_together(unet, runs)?;
        if let Some(last) = time.and_then(|time| self.last.replace(time)) {
            last.done.wait()?;
        }
        let settle = |(run, begun): (&mut &mut DenoiseRun, Result<Option<UnderWay>, ModelError>)| {
            let (next, failed) = begun.map_or_else(|error| (None, Some(error)), |next| (next, None));
            let before = std::mem::replace(&mut run.under_way, next);
            // What went wrong in the step before comes first.
            let told = match before {
                Some(before) => run.settle(&before)?,
                None if run.under_way.is_some() => Stepped::Begun,
                None => Stepped::Over,
            };
            failed.map_or(Ok(told), Err)
        };
        Ok(runs.iter_mut().zip(begun).map(settle).collect())
    }
}

/// What was begun of each run, and when that of all is done.
type Begun = (Vec<Result<Option<UnderWay>, ModelError>>, Option<Arc<Time>>);

/// Has the device begin the next step of each run that has one.
fn begin_together(unet: &Unet, runs: &mut [&mut DenoiseRun]) -> Result<Begun, ModelError> {
    let steps: Vec<_> = runs.iter_mut().map(|run| run.steps.next()).collect();
    if steps.iter().all(Option::is_none) {
        return Ok((runs.iter().map(|_| Ok(None)).collect(), None));
    }
    let mut groups: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
    for (place, (run, i)) in runs.iter().zip(&steps).enumerate() {
        let Some(i) = i else { continue };
        let branch = run.caching(*i).and_then(|(branch, whole)| (!whole).then_some(branch));
        groups.entry(branch).or_default().push(place);
    }
    let began = Moment::of(unet.device())?;
    let mut taken: Vec<_> = runs.iter().map(|_| Ok(None)).collect();
    for (branch, places) in groups {
        let members: Vec<_> = places.iter().filter_map(|place| Some((*place, steps[*place]?))).collect();
        let predicted = match branch {
            None => evaluate_whole(unet, runs, &members)?,
            Some(branch) => evaluate_outer(unet, runs, &members, branch)?,
        };
        for ((place, i), own) in members.into_iter().zip(predicted) {
            taken[place] = runs[place].take(i, &own).map(|(before, finite)| Some((i, before, finite)));
        }
    }
    let time = Arc::new(Time { began, done: Moment::of(unet.device())? });
    let under_way = |(step, latents_before, finite)| UnderWay {
        step,
        latents_before,
        finite: Arc::new(finite),
        time: Arc::clone(&time),
    };
    let begun = taken.into_iter().map(|taken| taken.map(|taken| taken.map(under_way))).collect();
    Ok((begun, Some(time)))
}

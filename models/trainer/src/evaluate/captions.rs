//! How often pictures show what their captions say.

use serde::Serialize;

use super::{
    bench::{Bench, Prompt},
    draw::Options,
    figures::Estimate,
};
use crate::{
    TrainError,
    classifier::{Aspect, Raster, Verdict},
};

/// How often an aspect is as said, of the captions that say it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// Of what.
    pub aspect: Aspect,
    /// How often.
    pub rate: Estimate,
}

/// The rates of verdicts; aspects that no caption speaks of are left out.
#[must_use]
pub fn rates(verdicts: &[Verdict]) -> Vec<Rate> {
    let rate = |aspect| {
        let told: Vec<_> = verdicts.iter().filter_map(|verdict| verdict.get(aspect)).collect();
        let right = told.iter().filter(|right| **right).count();
        Rate { aspect, rate: Estimate::share(right, told.len()) }
    };
    Aspect::ALL.into_iter().map(rate).filter(|rate| rate.rate.count > 0).collect()
}

/// Held-out captions, drawn and judged.
#[derive(Clone, Debug, Serialize)]
pub struct Captions {
    /// Captions as they come, three of ten with two objects.
    pub mixed: Vec<Rate>,
    /// Captions of two objects that say how they lie.
    pub related: Vec<Rate>,
    /// What was drawn for `mixed`, then for `related`.
    #[serde(skip)]
    pub drawn: [(Vec<Prompt>, Vec<Raster>); 2],
}

/// Draws `mixed` captions as they come, and `related` of two objects with a relation.
///
/// # Errors
/// A failed computation.
pub fn captions(bench: &Bench, mixed: usize, related: usize) -> Result<Captions, TrainError> {
    let (mixed, mixed_rates) = judged(bench, Prompt::held_out(mixed, |_| true))?;
    let (related, related_rates) =
        judged(bench, Prompt::held_out(related, |facts| facts.relation.is_some()))?;
    Ok(Captions { mixed: mixed_rates, related: related_rates, drawn: [mixed, related] })
}

type Drawn = (Vec<Prompt>, Vec<Raster>);

fn judged(bench: &Bench, prompts: Vec<Prompt>) -> Result<(Drawn, Vec<Rate>), TrainError> {
    let pictures = bench.draw(&prompts, &Options::new(bench.square()))?;
    let verdicts = bench.judge(&prompts, &pictures)?;
    Ok(((prompts, pictures), rates(&verdicts)))
}

/// One line on `count` held-out captions, for a look while the model is still in training.
///
/// # Errors
/// A failed computation.
pub fn quick_look(bench: &Bench, count: usize) -> Result<String, TrainError> {
    let (_, rates) = judged(bench, Prompt::held_out(count, |_| true))?;
    let share = |rate: &Rate| format!("{} {:.0} %", rate.aspect.name(), 100.0 * rate.rate.value);
    Ok(format!("of {count} held-out captions: {}", rates.iter().map(share).collect::<Vec<_>>().join(", ")))
}

#[cfg(test)]
mod tests {
    use sdxl_scenes::{Colour, parse};

    use super::*;
    use crate::classifier::Reading;

    #[test]
    fn only_what_is_said_is_counted() {
        let nothing = Reading { background: Colour::Blue, objects: Vec::new() };
        let said = ["a red star on a blue background", "a red star, gray background", "a red star"];
        let verdicts = said.map(|caption| Verdict::new(&nothing, &parse(caption).unwrap()));
        let rates = rates(&verdicts);
        let counts: Vec<_> = rates.iter().map(|r| (r.aspect, r.rate.value, r.rate.count)).collect();
        assert_eq!(
            counts,
            [
                (Aspect::MainColour, 0.0, 3),
                (Aspect::Background, 0.5, 2),
                (Aspect::Shape, 0.0, 3),
                (Aspect::Count, 0.0, 3),
                (Aspect::Everything, 0.0, 3),
            ]
        );
    }
}

//! What all measurements have in common: a model that draws, a classifier that judges, and captions that the model has
//! never seen.

use sdxl_scenes::{Facts, Sample, Scene, Split};

use super::draw::{Options, Order, Painter};
use crate::{
    TrainError,
    classifier::{Classifier, Raster, Verdict},
    threads::Team,
};

/// A caption to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// The caption.
    pub caption: String,
    /// What it claims.
    pub facts: Facts,
    /// A scene that it is true of.
    pub scene: Scene,
    /// The noise's seed.
    pub seed: u64,
}

impl Prompt {
    /// The first `count` held-out captions that `wanted` wants.
    #[must_use]
    pub fn held_out(count: usize, wanted: impl Fn(&Facts) -> bool) -> Vec<Self> {
        let samples = (0..).map(|seed| (seed, Sample::draw(seed, Split::HeldOut)));
        let wanted = samples.filter(|(_, sample)| wanted(&sample.facts));
        let prompt = |(seed, Sample { scene, caption, facts })| Self { caption, facts, scene, seed };
        wanted.take(count).map(prompt).collect()
    }

    /// Held-out things and background, but with the size and position asked for.
    #[must_use]
    pub fn restated(count: usize, restate: impl Fn(&mut Facts)) -> Vec<Self> {
        let mut prompts = Self::held_out(count, |facts| facts.second.is_none() && facts.background.is_some());
        for prompt in &mut prompts {
            restate(&mut prompt.facts);
            prompt.caption = prompt.facts.caption(prompt.seed);
            prompt.scene = Scene::from_facts(&prompt.facts, prompt.seed);
        }
        prompts
    }
}

/// A model, its judge and the threads to run them.
pub struct Bench {
    /// Draws.
    pub painter: Painter,
    /// Judges.
    pub classifier: Classifier,
    /// How many at once.
    pub team: Team,
    /// `[height, width]` of all sizes that the model was trained at, the square one first.
    pub buckets: Vec<[usize; 2]>,
}

impl Bench {
    /// The square size.
    #[must_use]
    pub fn square(&self) -> [usize; 2] {
        self.buckets.first().copied().unwrap_or([128; 2])
    }

    /// Draws every prompt.
    ///
    /// # Errors
    /// Those of [`Painter::draw`].
    pub fn draw(&self, prompts: &[Prompt], options: &Options) -> Result<Vec<Raster>, TrainError> {
        self.painter.draw(&self.team, &orders(prompts, options))
    }

    /// Judges each picture by its prompt.
    ///
    /// # Errors
    /// A failed computation.
    pub fn judge(&self, prompts: &[Prompt], pictures: &[Raster]) -> Result<Vec<Verdict>, TrainError> {
        let readings = self.classifier.read(pictures)?;
        Ok(readings.iter().zip(prompts).map(|(reading, p)| Verdict::new(reading, &p.facts)).collect())
    }
}

/// The prompts, each drawn in the same way.
pub(super) fn orders(prompts: &[Prompt], options: &Options) -> Vec<Order> {
    let order = |prompt: &Prompt| Order {
        caption: prompt.caption.clone(),
        seed: prompt.seed,
        options: options.clone(),
    };
    prompts.iter().map(order).collect()
}

#[cfg(test)]
mod tests {
    use sdxl_scenes::{Position, parse};

    use super::*;

    #[test]
    fn prompts_are_held_out_and_say_what_is_wanted() {
        let related = Prompt::held_out(20, |facts| facts.relation.is_some());
        assert_eq!(related.len(), 20);
        assert!(related.iter().all(|p| p.facts.relation.is_some() && parse(&p.caption) == Some(p.facts)));
        let centred = Prompt::restated(20, |facts| {
            (facts.size, facts.position) = (None, Some(Position::Center));
        });
        assert_eq!(centred, Prompt::restated(20, |f| (f.size, f.position) = (None, Some(Position::Center))));
        for Prompt { caption, facts, scene, .. } in &centred {
            assert_eq!(parse(caption), Some(*facts));
            let object = &scene.objects[0];
            assert_eq!((object.thing, Some(scene.background)), (facts.main, facts.background));
            assert_eq!(Position::of(object.x, object.y), Position::Center);
        }
    }
}

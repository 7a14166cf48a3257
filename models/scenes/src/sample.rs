//! A picture's scene with a caption that is true of it.

use crate::{
    caption::Facts,
    outline::{Outline, Split},
    scene::Scene,
    word::Size,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A scene and a caption of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// What the picture shows.
    pub scene: Scene,
    /// What is said of it, as "a large red circle on a blue background".
    pub caption: String,
    /// What the caption claims.
    pub facts: Facts,
}

impl Sample {
    /// The seed's sample of the split. Samples with other seeds are independent of it.
    #[must_use]
    pub fn draw(seed: u64, split: Split) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let outline = Outline::draw(split, &mut rng);
        let scene = Scene::place(&outline, &mut rng);
        let facts = tell(&outline, &mut rng);
        Self { scene, caption: facts.write(&mut rng), facts }
    }
}

/// Leaves some things unsaid, so that a model also learns to fill them in.
fn tell(outline: &Outline, rng: &mut ChaCha8Rng) -> Facts {
    let background = rng.random_bool(0.95).then_some(outline.background);
    let blank =
        Facts { main: outline.main, size: None, position: None, second: None, relation: None, background };
    match outline.second {
        Some((second, relation)) => {
            Facts { second: Some(second), relation: rng.random_bool(0.9).then_some(relation), ..blank }
        }
        None => Facts {
            size: (outline.size != Size::Medium && rng.random_bool(0.75)).then_some(outline.size),
            position: (outline.size != Size::Large && rng.random_bool(0.75)).then_some(outline.position),
            ..blank
        },
    }
}

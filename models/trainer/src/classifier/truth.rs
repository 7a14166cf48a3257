//! How well the classifier itself does, on renderings of combinations that it has never seen.

use sdxl_scenes::{Facts, Sample, Split};
use serde::Serialize;

use super::{Aspect, Classifier, Raster, Verdict};
use crate::{TrainError, data, random};

/// What is done to a rendering before it is judged: true pictures are sharper than drawn ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Disturbance {
    /// Nothing.
    None,
    /// Shrunk to half the size and enlarged again.
    Blurred,
    /// With noise of deviation 0.03.
    Noisy,
}

impl Disturbance {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Blurred, Self::Noisy];

    /// Its name in a table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "as rendered",
            Self::Blurred => "through half the size",
            Self::Noisy => "with noise",
        }
    }

    fn apply(self, picture: Raster, seed: u64) -> Raster {
        let Raster { size, mut pixels } = picture;
        match self {
            Self::None => {}
            Self::Blurred => {
                let half = size.map(|side| side / 2);
                pixels = data::resize(&data::resize(&pixels, size, half), half, size);
            }
            Self::Noisy => {
                let noise = random::normal(&mut random::stream(seed, "disturbance", 0, 0), pixels.len());
                let noisy = pixels.iter().zip(noise).map(|(v, noise)| (v + 0.03 * noise).clamp(0.0, 1.0));
                pixels = noisy.collect();
            }
        }
        Raster { size, pixels }
    }
}

/// How often an aspect was told rightly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Accuracy {
    /// What was told.
    pub aspect: Aspect,
    /// From which pictures.
    pub disturbance: Disturbance,
    /// Times that it was right.
    pub right: usize,
    /// Times in all.
    pub total: usize,
}

impl Classifier {
    /// Judges `count` held-out true renderings of all sizes, by all that is true of them, for each disturbance.
    ///
    /// # Errors
    /// A failed computation.
    pub fn accuracy_on_truth(&self, count: usize) -> Result<Vec<Accuracy>, TrainError> {
        let sizes = data::Pictures::new(&self.recipe).buckets();
        let samples: Vec<_> = (0..count as u64).map(|seed| Sample::draw(seed, Split::HeldOut)).collect();
        let mut table = Vec::new();
        for disturbance in Disturbance::ALL {
            let picture = |(i, sample): (usize, &Sample)| {
                // Most are square, as most pictures are; equal sizes follow one another.
                let other = 2 * i < count && sizes.len() > 1;
                let size = if other { sizes[1 + 2 * i * (sizes.len() - 1) / count] } else { sizes[0] };
                disturbance.apply(Raster::of_scene(&sample.scene, size), i as u64)
            };
            let pictures: Vec<_> = samples.iter().enumerate().map(picture).collect();
            let readings = self.read(&pictures)?;
            let verdicts: Vec<_> = readings
                .iter()
                .zip(&samples)
                .map(|(r, sample)| Verdict::new(r, &all_facts(sample)))
                .collect();
            for aspect in Aspect::ALL {
                let told: Vec<_> = verdicts.iter().filter_map(|verdict| verdict.get(aspect)).collect();
                let right = told.iter().filter(|right| **right).count();
                table.push(Accuracy { aspect, disturbance, right, total: told.len() });
            }
        }
        Ok(table)
    }
}

/// What the caption says, and the background in any case.
fn all_facts(sample: &Sample) -> Facts {
    Facts { background: Some(sample.scene.background), ..sample.facts }
}

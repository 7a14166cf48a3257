//! How good pictures are, whatever they show: what the autoencoder loses, what the refiner gains, and how far a set of
//! pictures is from true ones.

use std::{ops::RangeInclusive, path::Path};

use candle_core::{DType, Device, IndexOp, Tensor};
use rand::RngExt;
use sdxl_models::{
    PipelineDir, Weights,
    autograd::Scope,
    vae::{VaeConfig, VaeEncoder, to_rgb8},
};
use sdxl_scenes::Scene;
use serde::Serialize;

use super::{
    bench::{Bench, Prompt},
    captions::{Rate, rates},
    draw::Options,
    features,
    figures::Estimate,
    fit,
    frechet::Gaussian,
};
use crate::{
    TrainError,
    classifier::{Raster, Reading},
    random,
    threads::Team,
};

/// True renderings of each caption that pictures are held against.
const RENDERINGS: u64 = 5;
/// Times that captions are drawn anew, for the distance's error.
const RESAMPLES: usize = 200;

/// What comes back from the autoencoder.
#[derive(Clone, Debug, Serialize)]
pub struct Autoencoder {
    /// Peak signal to noise, in decibels.
    pub psnr: Estimate,
    /// How often the classifier still sees what is there: no picture that the decoder makes can be judged more surely.
    pub rates: Vec<Rate>,
}

/// Sends pictures through a model's autoencoder and back.
///
/// # Errors
/// A broken file or a failed computation.
pub(super) fn decoded(bench: &Bench, model: &Path, pictures: &[Raster]) -> Result<Vec<Raster>, TrainError> {
    let folder = PipelineDir::open(&model.join("base"))?.vae();
    let config = VaeConfig::open(&folder.join("config.json"))?;
    let weights = Weights::open(&folder)?.var_builder(DType::F32, &Device::Cpu);
    let encoder = VaeEncoder::new(&weights, &config)?;
    let one = |picture: &Raster| {
        let _scope = bench.painter.precision.map(Scope::new);
        let [height, width] = picture.size;
        let pixels: Vec<f32> = picture.pixels.iter().map(|v| 2.0 * v - 1.0).collect();
        let image = Tensor::from_vec(pixels, (1, 3, height, width), &Device::Cpu)?;
        let decoded = bench.painter.decoder.decode(&encoder.latents(&image)?)?.i(0)?;
        Ok(Raster::of_rgb8(&to_rgb8(&decoded)?, picture.size))
    };
    in_turn(&bench.team, pictures, one).into_iter().collect()
}

/// Sends held-out renderings through the autoencoder and back.
///
/// # Errors
/// A broken file or a failed computation.
pub fn autoencoder(bench: &Bench, model: &Path, count: usize) -> Result<Autoencoder, TrainError> {
    let (size, prompts) = (bench.square(), Prompt::held_out(count, |_| true));
    let rendered: Vec<_> = prompts.iter().map(|prompt| Raster::of_scene(&prompt.scene, size)).collect();
    let pictures = decoded(bench, model, &rendered)?;
    let values: Vec<f64> = rendered.iter().zip(&pictures).map(|(a, b)| psnr(a, b)).collect();
    Ok(Autoencoder { psnr: Estimate::mean(&values), rates: rates(&bench.judge(&prompts, &pictures)?) })
}

/// `work` for every item, on all threads; results in the items' order.
fn in_turn<I: Sync, T: Send>(team: &Team, items: &[I], work: impl Fn(&I) -> T + Sync) -> Vec<T> {
    let threads = team.size();
    let shares = team.each(threads, |first| items.iter().skip(first).step_by(threads).map(&work).collect());
    let mut shares: Vec<_> = shares.into_iter().map(Vec::into_iter).collect();
    (0..items.len()).filter_map(|i| shares[i % threads].next()).collect()
}

fn psnr(one: &Raster, other: &Raster) -> f64 {
    let squares = one.pixels.iter().zip(&other.pixels).map(|(a, b)| f64::from((a - b) * (a - b)));
    -10.0 * (squares.sum::<f64>() / one.pixels.len().max(1) as f64).max(1e-10).log10()
}

/// The base alone beside the base with the refiner, of the same captions and seeds.
#[derive(Clone, Debug, Serialize)]
pub struct Refined {
    /// The share of steps that is the base's.
    pub split: f64,
    /// Distance of the base's pictures from the nearest true renderings, as fitted, in values of 0..=255.
    pub base: Estimate,
    /// Of the refined pictures.
    pub refined: Estimate,
    /// Refined less base, picture by picture.
    pub difference: Estimate,
    /// How often the refined picture is nearer.
    pub better: Estimate,
    /// Some of them: each prompt with its base picture and the refined one.
    #[serde(skip)]
    pub pairs: Vec<(Prompt, [Raster; 2])>,
}

/// Draws `count` captions without and with the refiner, and fits true renderings to both. None without a refiner.
/// Pictures of which one lacks something that the caption names are left out of both.
///
/// # Errors
/// A failed computation.
pub fn refiner(bench: &Bench, count: usize) -> Result<Option<Refined>, TrainError> {
    const SPLIT: f64 = 0.8;
    if bench.painter.refiner.is_none() {
        return Ok(None);
    }
    let prompts = Prompt::held_out(count, |facts| facts.background.is_some());
    let base = Options::new(bench.square());
    let refined = Options { refiner_split: Some(SPLIT), ..base.clone() };
    let [base, refined] = [bench.draw(&prompts, &base)?, bench.draw(&prompts, &refined)?];
    let fits = |pictures: &[Raster]| {
        let readings = bench.classifier.read(pictures)?;
        let all: Vec<_> = pictures.iter().zip(&readings).zip(&prompts).collect();
        let fit = |((picture, reading), prompt): &((&Raster, &Reading), &Prompt)| {
            Some(fit::nearest(picture, reading, &prompt.facts)?.1)
        };
        Ok::<_, TrainError>(in_turn(&bench.team, &all, fit))
    };
    let both: Vec<_> = fits(&base)?.into_iter().zip(fits(&refined)?).filter_map(|(a, b)| a.zip(b)).collect();
    let (of_base, of_refined): (Vec<f64>, Vec<f64>) = both.iter().copied().unzip();
    let difference: Vec<f64> = both.iter().map(|(base, refined)| refined - base).collect();
    Ok(Some(Refined {
        split: SPLIT,
        base: Estimate::mean(&of_base),
        refined: Estimate::mean(&of_refined),
        better: Estimate::share(difference.iter().filter(|d| **d < 0.0).count(), difference.len()),
        difference: Estimate::mean(&difference),
        pairs: prompts.into_iter().zip(base.into_iter().zip(refined).map(|(a, b)| [a, b])).collect(),
    }))
}

/// True renderings of what captions say, several for each, as points in a fixed space.
pub struct Truth<'a> {
    bench: &'a Bench,
    prompts: &'a [Prompt],
    /// Of each prompt.
    rendered: Vec<Vec<Vec<f64>>>,
}

/// Fréchet distances of what a model draws from true renderings of the same captions.
#[derive(Clone, Debug)]
pub struct Distance {
    /// By what is shown: in the classifier's features alone.
    pub shown: Resampled,
    /// By that and by how sharp it is.
    pub whole: Resampled,
}

/// A distance with the error that comes of having only so many captions.
#[derive(Clone, Debug)]
pub struct Resampled {
    /// The distance.
    pub estimate: Estimate,
    /// Of captions drawn again and again, the same for every model.
    values: Vec<f64>,
}

impl Resampled {
    /// This one less another model's, caption by caption.
    #[must_use]
    pub fn less(&self, other: &Self) -> Estimate {
        let value = self.estimate.value - other.estimate.value;
        let differences: Vec<f64> = self.values.iter().zip(&other.values).map(|(a, b)| a - b).collect();
        spread(value, &differences, self.estimate.count)
    }
}

/// A value whose resamples are all off in one direction, as points drawn twice bring every distance up: only how they
/// spread is of use.
fn spread(value: f64, resampled: &[f64], count: usize) -> Estimate {
    let mean = resampled.iter().sum::<f64>() / resampled.len() as f64;
    let squares = resampled.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    let reach = 1.96 * (squares / (resampled.len() - 1) as f64).sqrt();
    Estimate { value, interval: [value - reach, value + reach], count }
}

#[cfg(test)]
impl Distance {
    /// That is sure: by what is shown, and by sharpness too.
    pub(super) fn of(values: [f64; 2]) -> Self {
        let [shown, whole] = values.map(|value| Resampled {
            estimate: Estimate { value, interval: [value; 2], count: 100 },
            values: vec![value; 2],
        });
        Self { shown, whole }
    }
}

impl<'a> Truth<'a> {
    /// Renders them.
    ///
    /// # Errors
    /// A failed computation.
    pub fn new(bench: &'a Bench, prompts: &'a [Prompt]) -> Result<Self, TrainError> {
        let of_prompt = |prompt: &Prompt| {
            features::features(&bench.classifier, &renderings(bench, prompt, 1..=RENDERINGS))
        };
        let rendered =
            in_turn(&bench.team, prompts, of_prompt).into_iter().collect::<Result<_, TrainError>>()?;
        Ok(Self { bench, prompts, rendered })
    }

    /// The distances of pictures, one of each prompt.
    ///
    /// # Errors
    /// A failed computation.
    pub fn distance(&self, pictures: &[Raster]) -> Result<Distance, TrainError> {
        let points = features::features(&self.bench.classifier, pictures)?;
        let dimension = points.first().map_or(0, Vec::len);
        Ok(Distance {
            shown: self.resampled(&points, dimension.saturating_sub(features::SCALES)),
            whole: self.resampled(&points, dimension),
        })
    }

    /// In the first so many dimensions.
    fn resampled(&self, points: &[Vec<f64>], dimension: usize) -> Resampled {
        let count = points.len();
        let distance = |picked: &[usize]| {
            let drawn: Vec<&[f64]> = picked.iter().map(|i| &points[*i][..dimension]).collect();
            let rendered: Vec<&[f64]> =
                picked.iter().flat_map(|i| &self.rendered[*i]).map(|p| &p[..dimension]).collect();
            Gaussian::fit(&drawn).distance(&Gaussian::fit(&rendered))
        };
        let value = distance(&(0..count).collect::<Vec<_>>());
        let mut rng = random::stream(0, "frechet", 0, 0);
        let samples: Vec<Vec<usize>> =
            (0..RESAMPLES).map(|_| (0..count).map(|_| rng.random_range(0..count)).collect()).collect();
        let values = in_turn(&self.bench.team, &samples, |picked| distance(picked));
        Resampled { estimate: spread(value, &values, count), values }
    }

    /// The distances of as many other true renderings of the same captions: no model does better but by chance.
    ///
    /// # Errors
    /// A failed computation.
    pub fn floor(&self) -> Result<Distance, TrainError> {
        let one = |prompt| renderings(self.bench, prompt, 0..=0);
        self.distance(&self.prompts.iter().flat_map(one).collect::<Vec<_>>())
    }
}

/// Some true renderings of a caption.
fn renderings(bench: &Bench, prompt: &Prompt, which: RangeInclusive<u64>) -> Vec<Raster> {
    // Far from the seeds that scenes of prompts are drawn by.
    let scene = |i| Scene::from_facts(&prompt.facts, (1 << 40) + 16 * prompt.seed + i);
    which.map(|i| Raster::of_scene(&scene(i), bench.square())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_the_ratio_that_it_should() {
        let raster = |value| Raster { size: [2, 2], pixels: vec![value; 12] };
        assert!((psnr(&raster(0.5), &raster(0.4)) - 20.0).abs() < 1e-5);
        assert!(psnr(&raster(0.5), &raster(0.5)) > 99.0);
    }
}

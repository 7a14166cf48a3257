//! Tells what a picture shows, to judge whether it is what was asked for. A network that learnt from true renderings
//! alone says what colour fills each cell; the shape is the one whose outline fits that colour's pixels best. So it knows
//! nothing of the model that it judges, and its own mistakes on renderings it has not seen are counted first.

mod examples;
mod mask;
mod network;
mod outline;
mod reading;
mod training;
mod truth;
mod verdict;

use std::{fs, path::Path};

use candle_core::{DType, Device, Tensor};
use network::Network;
use outline::Outlines;
pub use reading::{Found, Reading};
use sdxl_scenes::{Facts, Scene};
use serde_json::json;
use sha2::{Digest, Sha256};
pub use truth::{Accuracy, Disturbance};
pub use verdict::{Aspect, Verdict};

use crate::{
    StoredType, TrainError, digest,
    recipe::Recipe,
    stop::Stop,
    store::ParameterStore,
    tensor_file::{self, Entry, TensorFile},
};

/// Anything that changes what is learnt and does not stand in the recipe.
const VERSION: u32 = 1;
/// Pictures computed at once.
const BATCH: usize = 16;

/// A picture `[3, H, W]`, planar, sRGB in 0..=1.
#[derive(Clone, Debug, PartialEq)]
pub struct Raster {
    /// `[height, width]` in pixels.
    pub size: [usize; 2],
    /// Plane by plane, row by row.
    pub pixels: Vec<f32>,
}

impl Raster {
    /// The true rendering of a scene.
    #[must_use]
    pub fn of_scene(scene: &Scene, size: [usize; 2]) -> Self {
        Self { size, pixels: scene.render(size[0], size[1]) }
    }

    /// From `H * W * 3` bytes.
    #[must_use]
    pub fn of_rgb8(bytes: &[u8], size: [usize; 2]) -> Self {
        let plane = |channel: usize| bytes.iter().skip(channel).step_by(3).map(|v| f32::from(*v) / 255.0);
        Self { size, pixels: (0..3).flat_map(plane).collect() }
    }

    /// A pixel's colour.
    #[must_use]
    pub fn at(&self, row: usize, column: usize) -> [f32; 3] {
        let [height, width] = self.size;
        [0, 1, 2].map(|channel| self.pixels[(channel * height + row) * width + column])
    }
}

/// A trained classifier.
#[derive(Clone, Debug)]
pub struct Classifier {
    network: Network,
    outlines: Outlines,
    /// Of what it has learnt from, and so what to judge by it.
    recipe: Recipe,
}

impl Classifier {
    /// The recipe's classifier, from `out/classifier` if it is there, else trained in some minutes and put there.
    ///
    /// # Errors
    /// [`TrainError::Interrupted`] where `stop` came first; a file that cannot be read or written.
    pub fn load_or_train(recipe: &Recipe, out: &Path, stop: &Stop) -> Result<Self, TrainError> {
        let folder = out.join("classifier");
        let path = folder.join("classifier.safetensors");
        if let Some(store) = Self::cached(recipe, &path)? {
            return Self::of_store(recipe, &store);
        }
        let store = training::train(recipe, training::STEPS, stop)?;
        fs::create_dir_all(&folder).map_err(TrainError::writing(&folder))?;
        save(&store, &path, fingerprint(recipe))?;
        Self::of_store(recipe, &store)
    }

    /// The weights in `path`, unless there are none or those of another recipe, which would be of no use to anyone.
    fn cached(recipe: &Recipe, path: &Path) -> Result<Option<ParameterStore>, TrainError> {
        if !path.exists() {
            return Ok(None);
        }
        let file = TensorFile::open(path)?;
        if file.tensors()?.metadata("fingerprint")? != fingerprint(recipe) {
            return Ok(None);
        }
        let (store, _) = training::build(recipe.model.seed)?;
        store.read(path)?;
        Ok(Some(store))
    }

    fn of_store(recipe: &Recipe, store: &ParameterStore) -> Result<Self, TrainError> {
        let network = Network::new(&store.frozen()?.var_builder(DType::F32, &Device::Cpu)?)?;
        Ok(Self { network, outlines: Outlines::new(), recipe: recipe.clone() })
    }

    /// What each picture shows.
    ///
    /// # Errors
    /// A size that is not a multiple of 8; a failed computation.
    pub fn read(&self, pictures: &[Raster]) -> Result<Vec<Reading>, TrainError> {
        let mut readings = Vec::with_capacity(pictures.len());
        for batch in batches(pictures) {
            let logits = self.network.forward(&tensor(batch)?)?;
            readings.extend(reading::read(batch, &logits, &self.outlines)?);
        }
        Ok(readings)
    }

    /// Whether a picture shows what is claimed of it.
    ///
    /// # Errors
    /// Those of [`Self::read`].
    pub fn classify(&self, pictures: &[Raster], facts: &Facts) -> Result<Vec<Verdict>, TrainError> {
        Ok(self.read(pictures)?.iter().map(|reading| Verdict::new(reading, facts)).collect())
    }

    /// Each picture as a point: means and deviations over the picture of what the network sees in each cell.
    ///
    /// # Errors
    /// Those of [`Self::read`].
    pub fn features(&self, pictures: &[Raster]) -> Result<Vec<Vec<f64>>, TrainError> {
        let mut features = Vec::with_capacity(pictures.len());
        for batch in batches(pictures) {
            let batch = self.network.forward(&tensor(batch)?)?.features.to_dtype(DType::F64)?;
            features.extend(batch.to_vec2::<f64>()?);
        }
        Ok(features)
    }
}

/// Pictures of one size that follow one another, so many as are computed at once.
fn batches(pictures: &[Raster]) -> impl Iterator<Item = &[Raster]> {
    pictures.chunk_by(|a, b| a.size == b.size).flat_map(|same| same.chunks(BATCH))
}

/// `[B, 3, H, W]` in -1..=1.
fn tensor(pictures: &[Raster]) -> candle_core::Result<Tensor> {
    let [height, width] = pictures.first().map_or([0, 0], |picture| picture.size);
    let pixels: Vec<f32> = pictures.iter().flat_map(|p| &p.pixels).map(|v| 2.0 * v - 1.0).collect();
    Tensor::from_vec(pixels, (pictures.len(), 3, height, width), &Device::Cpu)
}

fn fingerprint(recipe: &Recipe) -> String {
    let data = &recipe.data;
    let content = json!([VERSION, training::STEPS, recipe.model.seed, data.sample_size, data.buckets]);
    digest::hex(&Sha256::digest(content.to_string()))
}

fn save(store: &ParameterStore, path: &Path, fingerprint: String) -> Result<(), TrainError> {
    let values: Vec<_> = store.parameters().iter().map(|p| p.values()).collect::<candle_core::Result<_>>()?;
    let entries: Vec<_> = store
        .parameters()
        .iter()
        .zip(&values)
        .map(|(p, values)| Entry { name: p.name().to_owned(), shape: p.var().dims(), values })
        .collect();
    tensor_file::write(path, &[("fingerprint", fingerprint)], &entries, StoredType::F32)
}

#[cfg(test)]
mod tests;

//! The latents that denoisers train on: each picture is encoded once and kept.

use std::{fs, path::Path, time::Instant};

use candle_core::{DType, Tensor};
use half::f16;
use sdxl_models::{autograd::Scope, vae::Autoencoder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{context::Context, vae};
use crate::{
    TrainError,
    data::{Picture, Pictures},
    digest,
    recipe::{Data, Recipe},
    store::Snapshot,
    tensor_file::{self, Entry, StoredType, TensorFile},
    threads::Team,
};

/// Pictures encoded before they are written.
const CHUNK: usize = 4000;
/// Pictures in one pass of the encoder.
const BATCH: usize = 8;
/// Of ten pictures, how many are square.
const SQUARES_OF_TEN: usize = 6;

/// What conditions one picture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Conditions {
    /// What it shows.
    pub caption: String,
    /// Height and width before resizing.
    pub original_size: [usize; 2],
    /// Cut off at top and left.
    pub crops_coords_top_left: [usize; 2],
    /// Height and width.
    pub target_size: [usize; 2],
    /// About 6 where nothing was enlarged.
    pub aesthetic_score: f32,
}

impl Conditions {
    /// The original's sides as a share of the target's, of that side which is the smaller for it: below 1 it was
    /// enlarged.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let share = |side: usize| self.original_size[side] as f64 / self.target_size[side] as f64;
        share(0).min(share(1))
    }

    /// Whether the original was not enlarged.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.scale() >= 1.0
    }
}

/// Latents with their conditions, sorted by bucket.
#[derive(Debug)]
pub struct LatentSet {
    /// Latents times this have deviation 1; that of the model whose encoder stays as it is, if one does.
    pub scaling_factor: f64,
    /// `[height, width]` in latents and the pictures of each bucket, the square first.
    pub buckets: Vec<Bucket>,
}

/// The pictures of one size.
#[derive(Debug)]
pub struct Bucket {
    /// Height and width in latents.
    pub size: [usize; 2],
    /// `[4, h, w]` of each, one after another, not scaled.
    latents: Vec<f16>,
    conditions: Vec<Conditions>,
}

impl Bucket {
    /// Pictures in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.conditions.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.conditions.is_empty()
    }

    /// Black pictures.
    #[cfg(test)]
    pub(super) fn black(size: [usize; 2], conditions: Vec<Conditions>) -> Self {
        Self { size, latents: vec![f16::ZERO; 4 * size[0] * size[1] * conditions.len()], conditions }
    }

    /// What conditions picture `i`.
    #[must_use]
    pub fn conditions(&self, i: usize) -> &Conditions {
        &self.conditions[i]
    }

    /// Picture `i`'s latents `[4, h, w]`, times `factor`.
    pub fn latents(&self, i: usize, factor: f32) -> impl Iterator<Item = f32> + '_ {
        let len = 4 * self.size[0] * self.size[1];
        self.latents[i * len..(i + 1) * len].iter().map(move |v| v.to_f32() * factor)
    }
}

impl LatentSet {
    /// Reads the set that the finished encoder made, and makes what is missing of it.
    ///
    /// # Errors
    /// The encoder is not finished, a file cannot be read or written, or it is time to stop.
    pub fn load_or_make(context: &Context) -> Result<Self, TrainError> {
        let recipe = &context.recipe;
        let (autoencoder, config) = vae::encoder(context)?;
        let network = Autoencoder::new(&autoencoder.var_builder(DType::F32, &context.device)?, &config)?;
        let folder = context.out.join(format!("latents-{}", name(recipe, &autoencoder)));
        fs::create_dir_all(&folder).map_err(TrainError::writing(&folder))?;
        let pictures = Pictures::new(recipe);
        let sizes = pictures.buckets();
        let mut buckets: Vec<_> = sizes
            .iter()
            .map(|size| Bucket {
                size: size.map(|side| side / 8),
                latents: Vec::new(),
                conditions: Vec::new(),
            })
            .collect();
        let team = Team::new(recipe.training.shards)?;
        let count = recipe.data.dataset_size;
        let started = Instant::now();
        for first in (0..count).step_by(CHUNK) {
            let end = (first + CHUNK).min(count);
            let path = folder.join(format!("{first:07}-{end:07}.safetensors"));
            let indices: Vec<_> = (first..end).collect();
            if !path.is_file() {
                if context.stop.reason().is_some() {
                    return Err(TrainError::Interrupted { what: "encoding the training pictures" });
                }
                let made = encode(&team, recipe, &network, &pictures, &indices)?;
                write(&path, &made)?;
                say(first + indices.len(), count, started);
            }
            read(&path, &mut buckets)?;
        }
        let kept = recipe.pretrained.scaling_factor.filter(|_| recipe.vae.steps == 0);
        let scaling_factor = kept.unwrap_or_else(|| 1.0 / deviation(&buckets));
        Ok(Self { scaling_factor, buckets })
    }
}

/// The bucket of a picture, as a place in a list of `buckets`.
fn bucket_of(index: usize, buckets: usize) -> usize {
    match index % 10 {
        place if place < SQUARES_OF_TEN || buckets == 1 => 0,
        place => 1 + (place - SQUARES_OF_TEN + index / 10) % (buckets - 1),
    }
}

/// What a set depends on, in sixteen digits.
fn name(recipe: &Recipe, autoencoder: &Snapshot) -> String {
    let mut hash = Sha256::new();
    let Data { sample_size, buckets, small_original_fraction, small_original_sizes, crop_fraction, .. } =
        &recipe.data;
    let drawn = (recipe.model.seed, sample_size, buckets, small_original_fraction, crop_fraction);
    hash.update(serde_json::to_string(&drawn).unwrap_or_default());
    if let Some(sizes) = small_original_sizes {
        hash.update(serde_json::to_string(sizes).unwrap_or_default());
    }
    for part in ["encoder.", "quant_conv."] {
        autoencoder.part(part).digest(&mut hash);
    }
    digest::hex(&hash.finalize()[..8])
}

/// One encoded picture.
struct Encoded {
    bucket: usize,
    latents: Vec<f32>,
    conditions: Conditions,
}

fn encode(
    team: &Team,
    recipe: &Recipe,
    network: &Autoencoder,
    pictures: &Pictures,
    indices: &[usize],
) -> Result<Vec<Encoded>, TrainError> {
    let sizes = pictures.buckets();
    let mut jobs: Vec<(usize, Vec<usize>)> = Vec::new();
    for bucket in 0..sizes.len() {
        let of_bucket: Vec<_> =
            indices.iter().copied().filter(|i| bucket_of(*i, sizes.len()) == bucket).collect();
        jobs.extend(of_bucket.chunks(BATCH).map(|batch| (bucket, batch.to_vec())));
    }
    let threads = team.size();
    let parts = team.each(threads, |thread| {
        let _scope = Scope::new(recipe.training.precision.into());
        let own = jobs.iter().skip(thread).step_by(threads);
        own.map(|(bucket, batch)| encode_batch(network, pictures, (*bucket, sizes[*bucket]), batch))
            .collect::<Result<Vec<_>, _>>()
    });
    let mut all = Vec::with_capacity(indices.len());
    for part in parts {
        all.extend(part?.into_iter().flatten());
    }
    Ok(all)
}

fn encode_batch(
    network: &Autoencoder,
    pictures: &Pictures,
    (bucket, size): (usize, [usize; 2]),
    batch: &[usize],
) -> Result<Vec<Encoded>, TrainError> {
    let drawn: Vec<Picture> = batch.iter().map(|index| pictures.picture(*index, size)).collect();
    let pixels = drawn.iter().flat_map(|picture| picture.pixels.iter().copied()).collect::<Vec<_>>();
    let images = Tensor::from_vec(pixels, (batch.len(), 3, size[0], size[1]), network.device())?;
    let latents = network.moments(&images)?.0.flatten_from(1)?.to_vec2::<f32>()?;
    let encoded = |(latents, picture): (Vec<f32>, Picture)| Encoded {
        bucket,
        latents,
        conditions: Conditions {
            caption: picture.caption,
            original_size: picture.original_size,
            crops_coords_top_left: picture.crops_coords_top_left,
            target_size: picture.target_size,
            aesthetic_score: picture.aesthetic_score,
        },
    };
    Ok(latents.into_iter().zip(drawn).map(encoded).collect())
}

fn write(path: &Path, encoded: &[Encoded]) -> Result<(), TrainError> {
    let buckets = encoded.iter().map(|e| e.bucket + 1).max().unwrap_or(0);
    let of = |bucket: usize| encoded.iter().filter(move |e| e.bucket == bucket);
    let latents: Vec<(usize, Vec<f32>)> = (0..buckets)
        .map(|b| (of(b).count(), of(b).flat_map(|e| e.latents.iter().copied()).collect()))
        .collect();
    let shapes: Vec<[usize; 1]> = latents.iter().map(|(_, values)| [values.len()]).collect();
    let entries: Vec<_> = latents
        .iter()
        .zip(&shapes)
        .enumerate()
        .map(|(bucket, ((_, values), shape))| Entry { name: format!("latents.{bucket}"), shape, values })
        .collect();
    let conditions: Vec<Vec<&Conditions>> =
        (0..buckets).map(|bucket| of(bucket).map(|e| &e.conditions).collect()).collect();
    let conditions = serde_json::to_string(&conditions)
        .map_err(|e| TrainError::DamagedFile { path: path.to_owned(), why: e.to_string() })?;
    tensor_file::write(path, &[("conditions", conditions)], &entries, StoredType::F16)
}

fn read(path: &Path, buckets: &mut [Bucket]) -> Result<(), TrainError> {
    let file = TensorFile::open(path)?;
    let tensors = file.tensors()?;
    let damaged = |why: String| TrainError::DamagedFile { path: path.to_owned(), why };
    let conditions: Vec<Vec<Conditions>> =
        serde_json::from_str(tensors.metadata("conditions")?).map_err(|e| damaged(e.to_string()))?;
    for (i, (bucket, conditions)) in buckets.iter_mut().zip(conditions).enumerate() {
        let values = tensors.list(&format!("latents.{i}"))?;
        if values.len() != conditions.len() * 4 * bucket.size[0] * bucket.size[1] {
            return Err(damaged(format!(
                "bucket {i} has {} values for {} pictures",
                values.len(),
                conditions.len()
            )));
        }
        bucket.latents.extend(values.into_iter().map(f16::from_f32));
        bucket.conditions.extend(conditions);
    }
    Ok(())
}

fn deviation(buckets: &[Bucket]) -> f64 {
    let values =
        || buckets.iter().flat_map(|bucket| &bucket.latents).step_by(7).map(|v| f64::from(v.to_f32()));
    let count = values().count().max(1) as f64;
    let mean = values().sum::<f64>() / count;
    (values().map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// One line for each chunk: this takes minutes.
#[expect(clippy::print_stderr, reason = "a command line's progress")]
fn say(done: usize, of: usize, started: Instant) {
    eprintln!("latents {done}/{of}  {:.0} s", started.elapsed().as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Initialisation, ParameterStore};

    #[test]
    fn six_of_ten_pictures_are_square_and_every_bucket_has_its_share() {
        let mut counts = [0; 5];
        for index in 0..1000 {
            counts[bucket_of(index, 5)] += 1;
        }
        assert_eq!(counts, [600, 100, 100, 100, 100]);
        assert!((0..100).all(|index| bucket_of(index, 1) == 0));
    }

    #[test]
    fn a_set_is_of_its_pictures_and_its_encoder() {
        let path = Path::new("tiny.toml");
        let mut recipe = Recipe::parse(include_str!("../recipe/example.toml"), path).unwrap();
        let encoder = |seed| {
            let build = |vb: &candle_nn::VarBuilder<'static>| vb.get(3, "encoder.conv_in.bias");
            let (store, _) = ParameterStore::build(Initialisation::new(seed), build).unwrap();
            store.set(&[vec![seed as f32; 3]]).unwrap();
            store.frozen().unwrap()
        };
        let first = name(&recipe, &encoder(1));
        assert_eq!(first, name(&recipe, &encoder(1)));
        assert_ne!(first, name(&recipe, &encoder(2)));
        recipe.data.dataset_size += 1; // there are only more
        assert_eq!(first, name(&recipe, &encoder(1)));
        recipe.data.small_original_sizes = Some([0.1, 0.2]);
        assert_ne!(first, name(&recipe, &encoder(1)));
    }
}

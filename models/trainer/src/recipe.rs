//! One TOML file that says all there is to say about a model: data, sizes of the networks, and how each is trained.

mod check;
mod pretrained;

use std::{fs, path::Path};

pub use pretrained::{Component, Pretrained};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    TrainError, digest,
    optimizer::{AdamW, Decay, Restart, Schedule},
    vocabulary::Vocabulary,
};

/// What is trained in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The autoencoder.
    Vae,
    /// Its decoder alone, on the finished encoder.
    VaeDecoder,
    /// The base denoiser with both text encoders.
    Base,
    /// The refiner.
    Refiner,
}

impl Stage {
    /// The name in folders, logs and checkpoints.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vae => "vae",
            Self::VaeDecoder => "vae_decoder",
            Self::Base => "base",
            Self::Refiner => "refiner",
        }
    }
}

/// A recipe whose values are all in range.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Recipe {
    /// The model.
    pub model: Model,
    /// What it is trained on.
    pub data: Data,
    /// The autoencoder.
    pub vae: Vae,
    /// CLIP-L's place.
    pub text_encoder: TextEncoder,
    /// OpenCLIP-bigG's place.
    pub text_encoder_2: TextEncoder2,
    /// The base denoiser.
    pub base: Denoiser,
    /// The refiner.
    pub refiner: Denoiser,
    /// How to train, whatever is trained.
    pub training: Training,
    /// Where it begins, if not from nothing.
    pub pretrained: Pretrained,
}

/// The file as it stands, whatever its values.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeFile {
    model: Model,
    data: Data,
    vae: Vae,
    text_encoder: TextEncoder,
    text_encoder_2: TextEncoder2,
    base: Denoiser,
    refiner: Denoiser,
    training: Training,
    #[serde(default)]
    pretrained: pretrained::Folders,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its name, in small letters, digits and `-`.
    pub name: String,
    /// The seed of all that is random.
    pub seed: u64,
    /// Token embeddings of each text encoder: as many as the captions' grammar needs, or more.
    #[serde(default = "default_vocab_size")]
    pub vocab_size: usize,
}

fn default_vocab_size() -> usize {
    Vocabulary::new().len()
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Side of the square picture, in pixels.
    #[serde(default = "default_sample_size")]
    pub sample_size: usize,
    /// `[height, width]` of the pictures in multi-aspect training, in pixels.
    pub buckets: Vec<[usize; 2]>,
    /// How many latents are kept to train on.
    pub dataset_size: usize,
    /// Share of pictures that were small and enlarged.
    pub small_original_fraction: f64,
    /// The smallest and the largest of those, as shares of the bucket's sides: 0.2 and 0.9 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub small_original_sizes: Option<[f64; 2]>,
    /// Share of pictures that are cropped.
    pub crop_fraction: f64,
}

fn default_sample_size() -> usize {
    128
}

/// `[vae]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Vae {
    /// Channels of each of the four levels.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level of the encoder.
    pub layers_per_block: usize,
    /// Groups of the normalizations.
    pub norm_num_groups: usize,
    /// Pictures in a step.
    pub batch_size: usize,
    /// Side of the squares that are cut from pictures, in pixels.
    pub crop: usize,
    /// Steps of encoder and decoder together: none only for what `[pretrained]` names.
    pub steps: u64,
    /// Steps of the decoder alone, after those.
    pub decoder_steps: u64,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// Steps in which it rises to there.
    pub warmup: u64,
    /// What it does then.
    #[serde(default)]
    pub decay: Decay,
    /// Decay of the average of weights.
    pub ema_decay: f64,
    /// Weight of the divergence from the normal distribution.
    pub kl_weight: f64,
    /// Weight of the anchor loss.
    pub anchor_weight: f64,
    /// Steps that have it.
    pub anchor_steps: u64,
}

/// `[text_encoder]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoder {
    /// Width.
    pub hidden_size: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
}

/// `[text_encoder_2]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoder2 {
    /// Width.
    pub hidden_size: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the pooled embedding.
    pub projection_dim: usize,
}

/// `[base]` or `[refiner]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Denoiser {
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level on the way down.
    pub layers_per_block: usize,
    /// Transformer blocks after each residual block, by level.
    pub transformer_layers_per_block: Vec<usize>,
    /// Attention heads, by level: diffusers' word for them.
    pub attention_head_dim: Vec<usize>,
    /// Groups of the normalizations.
    pub norm_num_groups: usize,
    /// Fourier features of each of `time_ids`.
    pub addition_time_embed_dim: usize,
    /// Latents in a step.
    pub batch_size: usize,
    /// Steps on square pictures.
    pub steps: u64,
    /// Steps on those of all buckets, after those.
    pub multi_aspect_steps: u64,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// Steps in which it rises to there.
    pub warmup: u64,
    /// What it does then.
    #[serde(default)]
    pub decay: Decay,
    /// The step at which the decay ends, if not the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<u64>,
    /// If there, the steps on all buckets begin with a warm-up and decay of their own, from this rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multi_aspect_learning_rate: Option<f64>,
    /// Decay of the average of weights.
    pub ema_decay: f64,
    /// Share of captions that are left out.
    pub caption_dropout: f64,
    /// Strength of the noise that is one for a whole channel.
    pub offset_noise: f64,
    /// Longer gradients are shortened to this.
    pub max_grad_norm: f64,
    /// Decay of matrices, in units of the learning rate.
    pub weight_decay: f64,
    /// Share of samples in the steps on all buckets that were small and enlarged; as they come, if this or `crop_share`
    /// is absent. What few pictures show is learnt late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub small_original_share: Option<f64>,
    /// The same of pictures that were cropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop_share: Option<f64>,
    /// The most pictures of each size to keep that were not enlarged; all if absent. Few make a dataset like those of
    /// section 2.2 of the paper, of which most would be lost without the small ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large_originals: Option<usize>,
    /// The same of those that were enlarged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub small_originals: Option<usize>,
    /// How much each level of noise counts.
    #[serde(default, skip_serializing_if = "LossWeight::is_default")]
    pub loss_weight: LossWeight,
    /// Whether pictures that were small and enlarged are left out: the first of the three models that the paper
    /// compares there.
    #[serde(default)]
    pub only_large_originals: bool,
    /// Whether the denoiser is told `original_size`; without, the second of them.
    #[serde(default = "default_size_conditioning")]
    pub size_conditioning: bool,
}

fn default_size_conditioning() -> bool {
    true
}

/// How much an error in the noise counts at each level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LossWeight {
    /// As sigma does, for what is decided under much noise: layout and colour.
    #[default]
    Sigma,
    /// Alike at all levels, as in the paper.
    Uniform,
}

impl LossWeight {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// `[training]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// What networks compute in; weights are f32.
    pub precision: Precision,
    /// Parts of a batch, each computed on a thread of its own. Sums and draws depend on them.
    #[serde(default = "default_shards")]
    pub shards: usize,
    /// Steps from one checkpoint to the next.
    pub checkpoint_every: u64,
    /// Steps from one line in the log to the next.
    pub log_every: u64,
}

const DEFAULT_SHARDS: usize = 2;

fn default_shards() -> usize {
    DEFAULT_SHARDS
}

/// What networks compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bfloat16.
    Bf16,
    /// Single precision.
    F32,
}

impl From<Precision> for sdxl_models::autograd::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Bf16 => Self::Bf16,
            Precision::F32 => Self::F32,
        }
    }
}

impl Recipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// The file cannot be read, does not parse, or has a value out of its range; what it takes from finished models is
    /// not there, or is another network than the recipe's.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        Self::parse(&fs::read_to_string(path).map_err(TrainError::reading(path))?, path)
    }

    /// A recipe's text; `path` is named in errors, and the folders that the text names are relative to its own.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, TrainError> {
        let file: RecipeFile = toml::from_str(text).map_err(|error| parse_error(error, text, path))?;
        let RecipeFile {
            model,
            data,
            vae,
            text_encoder,
            text_encoder_2,
            base,
            refiner,
            training,
            pretrained,
        } = file;
        let none = Pretrained::default();
        let mut recipe = Self {
            model,
            data,
            vae,
            text_encoder,
            text_encoder_2,
            base,
            refiner,
            training,
            pretrained: none,
        };
        check::check(&recipe, pretrained.has_vae(), path)?;
        recipe.pretrained = pretrained.open(&recipe, path)?;
        Ok(recipe)
    }

    /// SHA-256 of all that a stage's weights depend on. Names, and how often to save and to log, are not among it.
    #[must_use]
    pub fn fingerprint(&self, stage: Stage) -> String {
        let Self { model, data, vae, text_encoder, text_encoder_2, base, refiner, training, pretrained } =
            self;
        let own = match stage {
            Stage::Vae | Stage::VaeDecoder => Value::Null,
            Stage::Base => json!([model.vocab_size, text_encoder, text_encoder_2, base]),
            // It sees no first encoder, but the second was trained beside it.
            Stage::Refiner => json!([model.vocab_size, text_encoder, text_encoder_2, base, refiner]),
        };
        let mut data = json!(data);
        if let (Stage::Vae | Stage::VaeDecoder, Some(data)) = (stage, data.as_object_mut()) {
            data.remove("dataset_size"); // it sees every picture once
        }
        let mut content = vec![json!(stage.name()), json!(model.seed), data, json!(vae), own];
        content.push(json!(training.precision));
        if training.shards != DEFAULT_SHARDS {
            content.push(json!(training.shards));
        }
        let begins_with = pretrained.digests(stage);
        if !begins_with.is_empty() {
            content.push(json!(begins_with));
        }
        digest::hex(&Sha256::digest(json!(content).to_string()))
    }
}

impl Vae {
    /// The optimizer's settings, of encoder and decoder together or of the decoder alone.
    #[must_use]
    pub fn adamw(&self, steps: u64) -> AdamW {
        let Self { learning_rate, warmup, decay, ema_decay, .. } = *self;
        AdamW {
            schedule: Schedule { learning_rate, warmup, decay, steps, restart: None },
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            ema_decay,
        }
    }
}

impl Denoiser {
    /// Steps on square pictures and on all.
    #[must_use]
    pub fn all_steps(&self) -> u64 {
        self.steps + self.multi_aspect_steps
    }

    /// The optimizer's settings.
    #[must_use]
    pub fn adamw(&self) -> AdamW {
        let Self { learning_rate, warmup, decay, ema_decay, weight_decay, max_grad_norm, .. } = *self;
        let restart =
            |learning_rate| Restart { after: self.steps, learning_rate, steps: self.multi_aspect_steps };
        let restart = self.multi_aspect_learning_rate.map(restart);
        let steps = self.decay_steps.unwrap_or_else(|| self.all_steps());
        AdamW {
            schedule: Schedule { learning_rate, warmup, decay, steps, restart },
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay,
            max_grad_norm,
            ema_decay,
        }
    }
}

/// toml draws the line and points at it; here is one line that says where.
fn parse_error(mut error: toml::de::Error, text: &str, path: &Path) -> TrainError {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = 1 + text[..start].matches('\n').count();
    error.set_input(None);
    let why = error.to_string().trim().replace("\n", " ");
    TrainError::ParseRecipe { path: path.to_owned(), line, why }
}

#[cfg(test)]
mod tests;

//! Ranges of a recipe's values, and what must fit together.

use std::{
    fmt::Display,
    ops::{Bound, RangeBounds},
    path::Path,
};

use super::{Data, Denoiser, Recipe, TextEncoder2, Vae};
use crate::{TrainError, vocabulary::Vocabulary};

/// Pixels of a latent's side.
const LATENT: usize = 8;
/// Of a bucket's side: latents are even, so that the first halving is exact.
const BUCKET: usize = 2 * LATENT;

/// The file and section in question.
struct Section<'a> {
    path: &'a Path,
    name: &'static str,
}

/// `has_vae`: whether it begins with a finished autoencoder.
pub(super) fn check(recipe: &Recipe, has_vae: bool, path: &Path) -> Result<(), TrainError> {
    let section = |name| Section { path, name };
    let model = section("model");
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let name = &recipe.model.name;
    model.that(!name.is_empty() && name.chars().all(plain), "name", name, "of a-z, 0-9 and -")?;
    model.range("vocab_size", recipe.model.vocab_size, Vocabulary::new().len()..)?;

    check_data(&section("data"), recipe)?;
    check_vae(&section("vae"), &recipe.vae, &recipe.data, has_vae)?;
    let first = &recipe.text_encoder;
    check_text(&section("text_encoder"), [first.hidden_size, first.layers, first.heads])?;
    let TextEncoder2 { hidden_size, layers, heads, projection_dim } = recipe.text_encoder_2;
    let second = section("text_encoder_2");
    check_text(&second, [hidden_size, layers, heads])?;
    second.range("projection_dim", projection_dim, 1..)?;
    check_denoiser(&section("base"), &recipe.base, &recipe.data)?;
    check_denoiser(&section("refiner"), &recipe.refiner, &recipe.data)?;
    let told = recipe.refiner.size_conditioning;
    section("refiner").that(told, "size_conditioning", told, "true: only the base can do without")?;

    let training = section("training");
    training.range("shards", recipe.training.shards, 1..=64)?;
    training.range("checkpoint_every", recipe.training.checkpoint_every, 1..)?;
    training.range("log_every", recipe.training.log_every, 1..)
}

fn check_data(section: &Section<'_>, recipe: &Recipe) -> Result<(), TrainError> {
    let data = &recipe.data;
    // The square's latents halve without remainder at every level.
    let levels = recipe.base.block_out_channels.len().max(recipe.refiner.block_out_channels.len());
    let halved = u32::try_from(levels.saturating_sub(1)).ok().and_then(|n| LATENT.checked_shl(n));
    section.multiple("sample_size", data.sample_size, halved.unwrap_or(usize::MAX))?;
    section.range("sample_size", data.sample_size, 32..=1024)?;
    for (i, side) in data.buckets.iter().enumerate().flat_map(|(i, sides)| sides.map(|side| (i, side))) {
        let key = format!("buckets[{i}]");
        section.multiple(&key, side, BUCKET)?;
        section.range(&key, side, (data.sample_size / 4).max(32)..=data.sample_size * 4)?;
    }
    section.range("dataset_size", data.dataset_size, 1..)?;
    section.range("small_original_fraction", data.small_original_fraction, 0.0..=1.0)?;
    if let Some([least, most]) = data.small_original_sizes {
        section.range("small_original_sizes[0]", least, 0.0625..=0.9)?;
        section.range("small_original_sizes[1]", most, least..=0.9)?;
    }
    section.range("crop_fraction", data.crop_fraction, 0.0..=1.0)?;
    let all = data.small_original_fraction + data.crop_fraction;
    section.that(all <= 1.0, "crop_fraction", data.crop_fraction, "at most 1 with small_original_fraction")
}

fn check_vae(section: &Section<'_>, vae: &Vae, data: &Data, is_finished: bool) -> Result<(), TrainError> {
    let channels = &vae.block_out_channels;
    // Three halvings make a latent of 8 x 8 pixels.
    section.length("block_out_channels", channels.len(), 4)?;
    section.channels(channels, vae.norm_num_groups)?;
    section.range("layers_per_block", vae.layers_per_block, 1..)?;
    section.range("batch_size", vae.batch_size, 1..)?;
    section.multiple("crop", vae.crop, LATENT)?;
    section.range("crop", vae.crop, LATENT..=data.sample_size)?;
    section.range("steps", vae.steps, u64::from(!is_finished)..)?;
    section.rates(vae.learning_rate, vae.ema_decay)?;
    let shorter = [vae.steps, vae.decoder_steps].into_iter().filter(|steps| *steps > 0).min();
    section.range("warmup", vae.warmup, 0..=shorter.unwrap_or(u64::MAX))?;
    section.range("kl_weight", vae.kl_weight, 0.0..=1.0)?;
    section.range("anchor_weight", vae.anchor_weight, 0.0..=1e3)?;
    section.range("anchor_steps", vae.anchor_steps, 0..=vae.steps)
}

fn check_text(section: &Section<'_>, [hidden_size, layers, heads]: [usize; 3]) -> Result<(), TrainError> {
    section.range("hidden_size", hidden_size, 1..)?;
    // SDXL takes the last state but one.
    section.range("layers", layers, 2..)?;
    section.divisor("heads", heads, "hidden_size", hidden_size)
}

fn check_denoiser(section: &Section<'_>, denoiser: &Denoiser, data: &Data) -> Result<(), TrainError> {
    let channels = &denoiser.block_out_channels;
    section.range("block_out_channels.len", channels.len(), 2..=6)?;
    section.channels(channels, denoiser.norm_num_groups)?;
    // Sines and cosines in pairs.
    section.multiple("block_out_channels[0]", channels[0], 2)?;
    section.range("layers_per_block", denoiser.layers_per_block, 1..)?;
    let (depths, heads) = (&denoiser.transformer_layers_per_block, &denoiser.attention_head_dim);
    section.length("transformer_layers_per_block", depths.len(), channels.len())?;
    section.length("attention_head_dim", heads.len(), channels.len())?;
    for (i, (heads, channels)) in heads.iter().zip(channels).enumerate() {
        let of = format!("block_out_channels[{i}]");
        section.divisor(&format!("attention_head_dim[{i}]"), *heads, &of, *channels)?;
    }
    section.range("addition_time_embed_dim", denoiser.addition_time_embed_dim, 2..)?;
    section.multiple("addition_time_embed_dim", denoiser.addition_time_embed_dim, 2)?;
    section.range("batch_size", denoiser.batch_size, 1..=data.dataset_size)?;
    section.range("steps", denoiser.steps, 1..)?;
    section.rates(denoiser.learning_rate, denoiser.ema_decay)?;
    section.range("warmup", denoiser.warmup, 0..=denoiser.steps)?;
    section.range("decay_steps", denoiser.decay_steps.unwrap_or(denoiser.steps), denoiser.warmup..)?;
    let again = denoiser.multi_aspect_learning_rate.unwrap_or(denoiser.learning_rate);
    section.positive("multi_aspect_learning_rate", again, 1.0)?;
    if denoiser.multi_aspect_learning_rate.is_some() {
        section.range("warmup", denoiser.warmup, 0..=denoiser.multi_aspect_steps)?;
    }
    section.range("caption_dropout", denoiser.caption_dropout, 0.0..=1.0)?;
    section.range("offset_noise", denoiser.offset_noise, 0.0..=1.0)?;
    section.positive("max_grad_norm", denoiser.max_grad_norm, 1e6)?;
    section.range("weight_decay", denoiser.weight_decay, 0.0..=1.0)?;
    section.range("large_originals", denoiser.large_originals.unwrap_or(1), 1..)?;
    section.range("small_originals", denoiser.small_originals.unwrap_or(1), 1..)?;
    let [has_small, has_cropped] = [denoiser.small_original_share, denoiser.crop_share].map(|s| s.is_some());
    section.that(has_small == has_cropped, "crop_share", has_cropped, "there if small_original_share is")?;
    let [small, cropped] = [denoiser.small_original_share, denoiser.crop_share].map(|s| s.unwrap_or(0.0));
    section.range("small_original_share", small, 0.0..=1.0)?;
    section.range("crop_share", cropped, 0.0..=1.0)?;
    section.that(small + cropped <= 1.0, "crop_share", cropped, "at most 1 with small_original_share")
}

impl Section<'_> {
    fn that(
        &self,
        holds: bool,
        key: &str,
        found: impl Display,
        allowed: impl Display,
    ) -> Result<(), TrainError> {
        if holds {
            return Ok(());
        }
        Err(TrainError::InvalidRecipe {
            path: self.path.to_owned(),
            key: format!("{}.{key}", self.name),
            found: found.to_string(),
            allowed: allowed.to_string(),
        })
    }

    fn range<T>(&self, key: &str, value: T, range: impl RangeBounds<T>) -> Result<(), TrainError>
    where
        T: Display + PartialOrd + Copy,
    {
        let allowed = match (range.start_bound(), range.end_bound()) {
            (Bound::Included(low), Bound::Included(high)) => format!("{low} to {high}"),
            (Bound::Included(low), Bound::Excluded(high)) => format!("{low} to less than {high}"),
            (Bound::Included(low), _) => format!("at least {low}"),
            _ => String::new(),
        };
        self.that(range.contains(&value), key, value, allowed)
    }

    fn positive(&self, key: &str, value: f64, most: f64) -> Result<(), TrainError> {
        self.that(value > 0.0 && value <= most, key, value, format_args!("more than 0, and at most {most}"))
    }

    fn multiple(&self, key: &str, value: usize, of: usize) -> Result<(), TrainError> {
        self.that(value > 0 && value.is_multiple_of(of), key, value, format_args!("a multiple of {of}"))
    }

    fn divisor(&self, key: &str, value: usize, of: &str, number: usize) -> Result<(), TrainError> {
        let holds = value > 0 && number.is_multiple_of(value);
        self.that(holds, key, value, format_args!("a divisor of {of}, {number}"))
    }

    fn length(&self, key: &str, found: usize, wanted: usize) -> Result<(), TrainError> {
        self.that(found == wanted, &format!("{key}.len"), found, wanted)
    }

    fn channels(&self, channels: &[usize], groups: usize) -> Result<(), TrainError> {
        for (i, channels) in channels.iter().enumerate() {
            self.range(&format!("block_out_channels[{i}]"), *channels, 1..)?;
            self.divisor("norm_num_groups", groups, &format!("block_out_channels[{i}]"), *channels)?;
        }
        Ok(())
    }

    fn rates(&self, learning_rate: f64, ema_decay: f64) -> Result<(), TrainError> {
        self.positive("learning_rate", learning_rate, 1.0)?;
        self.range("ema_decay", ema_decay, 0.0..1.0)
    }
}

//! The base denoiser with both text encoders, from nothing or from a finished model: square pictures first, then all
//! buckets with offset noise.

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Linear, VarBuilder, linear};
use sdxl_models::{
    autograd::Scope,
    text::ClipTextModel,
    unet::{AddedConditioning, Unet},
};

use super::{
    configs,
    context::{Context, Outcome},
    denoiser::{self, Noised, Steps},
    latents::{Conditions, LatentSet},
};
use crate::{
    TrainError,
    gradients::Shard,
    noise::{LEVELS, NoiseSchedule},
    recipe::{Recipe, Stage},
    store::{Initialisation, ParameterStore, Snapshot},
    vocabulary::{Tokenizers, Vocabulary},
};

/// Cells along a side of what the pooled text alone is asked to tell.
const CELLS: usize = 4;
/// Weight of that beside the loss of the noise.
const AUXILIARY_WEIGHT: f64 = 0.3;

/// All that learns in this stage.
#[derive(Debug)]
pub struct Networks {
    text_encoder: ClipTextModel,
    text_encoder_2: ClipTextModel,
    unet: Unet,
    /// From the pooled text to the latents' means over a coarse grid; not part of the model. Without it the encoders
    /// learn to tell captions apart only once the denoiser listens to them.
    auxiliary: Linear,
}

/// Trains until it is done or time to stop.
///
/// # Errors
/// The autoencoder is not finished; those of [`crate::run::Run`].
pub fn train(context: &Context) -> Result<Outcome, TrainError> {
    let recipe = &context.recipe;
    let (store, networks) = begin(recipe)?;
    let (device, weights) = (&context.device, store.clone());
    let set = LatentSet::load_or_make(context)?;
    let steps = steps(recipe, &set)?;
    let trainer = Trainer {
        recipe,
        networks: &networks,
        weights: &weights,
        device,
        steps,
        schedule: NoiseSchedule::default(),
        tokenizers: Tokenizers::new(&Vocabulary::new())?,
    };
    let mut run = context.run(Stage::Base, recipe.base.all_steps(), store, recipe.base.adamw())?;
    let outcome = run.train(|step| trainer.steps.samples(step), |shard| trainer.loss(shard));
    outcome.map_err(|error| trainer.steps.locate(error))
}

/// The averaged weights of the finished stage: `text_encoder`, `text_encoder_2` and `unet`, each with that prefix.
///
/// # Errors
/// The stage is not finished, or its checkpoint is damaged.
pub fn finished(context: &Context) -> Result<Snapshot, TrainError> {
    let (store, _) = begin(&context.recipe)?;
    context.average(Stage::Base, context.recipe.base.all_steps(), &store, context.recipe.base.adamw())
}

/// The networks as training begins.
fn begin(recipe: &Recipe) -> Result<(ParameterStore, Networks), TrainError> {
    let (store, networks) = build(recipe)?;
    for part in &recipe.pretrained.base {
        store.read_part(&format!("{}.", part.name), &part.weights)?;
    }
    Ok((store, networks))
}

fn build(recipe: &Recipe) -> Result<(ParameterStore, Networks), TrainError> {
    let silent = |name: &str| {
        ["conv2.weight", "proj_out.weight", "unet.conv_out.weight"].iter().any(|end| name.ends_with(end))
    };
    let initialisation = Initialisation { seed: recipe.model.seed, is_zero: silent };
    ParameterStore::build(initialisation, |vb| Networks::load(vb, recipe))
}

impl Networks {
    fn load(vb: &VarBuilder<'_>, recipe: &Recipe) -> Result<Self, TrainError> {
        let (text_encoder, text_encoder_2) =
            (configs::text_encoder(recipe)?, configs::text_encoder_2(recipe)?);
        let projection = recipe.text_encoder_2.projection_dim;
        Ok(Self {
            text_encoder: ClipTextModel::new(&vb.pp("text_encoder"), &text_encoder, false)?,
            text_encoder_2: ClipTextModel::new(&vb.pp("text_encoder_2"), &text_encoder_2, true)?,
            unet: Unet::new(&vb.pp("unet"), &configs::unet(recipe)?)?,
            auxiliary: linear(projection, 4 * CELLS * CELLS, vb.pp("auxiliary"))?,
        })
    }
}

fn steps<'a>(recipe: &'a Recipe, set: &'a LatentSet) -> Result<Steps<'a>, TrainError> {
    let (denoiser, pools) = (&recipe.base, denoiser::pools(&recipe.base, set)?);
    Ok(Steps { seed: recipe.model.seed, label: "base", denoiser, set, pools, levels: LEVELS, sharp: 0.0 })
}

/// What both encoders say of some captions.
struct Text {
    /// `[B, 77, D]`.
    prompt_embeds: Tensor,
    /// `[B, P]`.
    pooled_prompt_embeds: Tensor,
}

impl Text {
    /// Zeros in place of captions that are left out, as in place of an absent negative prompt when pictures are drawn.
    fn without(&self, dropped: &[bool]) -> Result<Self, TrainError> {
        let kept: Vec<f32> = dropped.iter().map(|dropped| f32::from(!dropped)).collect();
        let kept = Tensor::from_vec(kept, (dropped.len(), 1), self.prompt_embeds.device())?;
        Ok(Self {
            prompt_embeds: self.prompt_embeds.broadcast_mul(&kept.unsqueeze(2)?)?,
            pooled_prompt_embeds: self.pooled_prompt_embeds.broadcast_mul(&kept)?,
        })
    }
}

struct Trainer<'a> {
    recipe: &'a Recipe,
    networks: &'a Networks,
    weights: &'a ParameterStore,
    device: &'a Device,
    steps: Steps<'a>,
    schedule: NoiseSchedule,
    tokenizers: Tokenizers,
}

impl Trainer<'_> {
    fn loss(&self, shard: &Shard<'_>) -> Result<Tensor, TrainError> {
        let _scope = Scope::new(self.recipe.training.precision.into());
        let copies;
        let networks = if self.device.is_cpu() {
            self.networks
        } else {
            copies = Networks::load(&self.weights.var_builder(DType::F32, self.device), self.recipe)?;
            &copies
        };
        let noised = self.steps.noised(shard, &self.schedule)?.on(self.device)?;
        let conditions = self.steps.conditions(shard);
        let text = self.encode(networks, &conditions)?;
        let auxiliary = auxiliary_loss(networks, &text.pooled_prompt_embeds, &noised)?;
        let text = text.without(&self.steps.dropped(shard))?;
        let added = AddedConditioning {
            text_embeds: text.pooled_prompt_embeds,
            time_ids: time_ids(&conditions, self.recipe.base.size_conditioning)?.to_device(self.device)?,
        };
        let predicted =
            networks.unet.forward(&noised.latents, &noised.timesteps, &text.prompt_embeds, &added)?;
        Ok((denoiser::loss(&predicted, &noised)? + (auxiliary * AUXILIARY_WEIGHT)?)?)
    }

    fn encode(&self, networks: &Networks, conditions: &[&Conditions]) -> Result<Text, TrainError> {
        let ids =
            conditions.iter().map(|c| self.tokenizers.ids(&c.caption)).collect::<Result<Vec<_>, _>>()?;
        let (first, second): (Vec<_>, Vec<_>) =
            ids.into_iter().map(|[first, second]| (first, second)).unzip();
        let first = networks.text_encoder.forward(&first, 0)?.hidden_states;
        let second = networks.text_encoder_2.forward(&second, 0)?;
        let missing = || candle_core::Error::Msg("the second encoder has no projection".into());
        let pooled_prompt_embeds = second.text_embeds.ok_or_else(missing)?;
        let prompt_embeds = Tensor::cat(&[first, second.hidden_states], 2)?;
        Ok(Text { prompt_embeds, pooled_prompt_embeds })
    }
}

fn auxiliary_loss(networks: &Networks, pooled: &Tensor, noised: &Noised) -> Result<Tensor, TrainError> {
    let (batch, channels, h, w) = noised.clean.dims4()?;
    let (rows, columns) = (h / CELLS, w / CELLS);
    let cells = noised.clean.narrow(2, 0, rows * CELLS)?.narrow(3, 0, columns * CELLS)?;
    let cells =
        cells.contiguous()?.avg_pool2d((rows, columns))?.reshape((batch, channels * CELLS * CELLS))?;
    Ok((networks.auxiliary.forward(pooled)? - cells)?.sqr()?.mean_all()?)
}

/// Original size, crop and target size, `[B, 6]`; the target size in place of the original one if that is kept secret.
fn time_ids(conditions: &[&Conditions], size_conditioning: bool) -> Result<Tensor, TrainError> {
    let ids = |c: &&Conditions| {
        let original_size = if size_conditioning { c.original_size } else { c.target_size };
        [original_size, c.crops_coords_top_left, c.target_size]
    };
    let ids: Vec<f32> = conditions.iter().flat_map(ids).flatten().map(|v| v as f32).collect();
    Ok(Tensor::from_vec(ids, (conditions.len(), 6), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions() -> Conditions {
        Conditions {
            caption: "a red circle".to_owned(),
            original_size: [64, 72],
            crops_coords_top_left: [3, 5],
            target_size: [128, 144],
            aesthetic_score: 3.0,
        }
    }

    #[test]
    fn time_ids_are_original_size_crop_and_target_size() {
        let ids = |told| time_ids(&[&conditions()], told).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(ids(true), [[64.0, 72.0, 3.0, 5.0, 128.0, 144.0]]);
        // Not told, the model takes every picture for one of its own size.
        assert_eq!(ids(false), [[128.0, 144.0, 3.0, 5.0, 128.0, 144.0]]);
    }

    #[test]
    fn captions_that_are_left_out_are_zeros() {
        let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        let text = Text { prompt_embeds: ones(&[2, 3, 4]), pooled_prompt_embeds: ones(&[2, 5]) };
        let left = text.without(&[false, true]).unwrap();
        let sums =
            |tensor: &Tensor| tensor.flatten_from(1).unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(sums(&left.prompt_embeds), [12.0, 0.0]);
        assert_eq!(sums(&left.pooled_prompt_embeds), [5.0, 0.0]);
    }
}

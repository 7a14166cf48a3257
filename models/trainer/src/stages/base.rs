//! The base denoiser with both text encoders, from nothing: square pictures first, then all buckets with offset noise.

use candle_core::{Device, Module, Tensor};
use candle_nn::{Linear, linear};
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
    let set = LatentSet::load_or_make(context)?;
    let (store, networks) = build(recipe)?;
    let steps = steps(recipe, &set);
    let trainer = Trainer {
        recipe,
        networks: &networks,
        steps,
        schedule: NoiseSchedule::default(),
        tokenizers: Tokenizers::new(&Vocabulary::new())?,
    };
    let mut run = context.run(Stage::Base, recipe.base.all_steps(), store, recipe.base.adamw())?;
    run.train(|step| trainer.steps.samples(step), |shard| trainer.loss(shard))
}

/// The averaged weights of the finished stage: `text_encoder`, `text_encoder_2` and `unet`, each with that prefix.
///
/// # Errors
/// The stage is not finished, or its checkpoint is damaged.
pub fn finished(context: &Context) -> Result<Snapshot, TrainError> {
    let (store, _) = build(&context.recipe)?;
    context.average(Stage::Base, context.recipe.base.all_steps(), &store, context.recipe.base.adamw())
}

fn build(recipe: &Recipe) -> Result<(ParameterStore, Networks), TrainError> {
    let silent = |name: &str| {
        ["conv2.weight", "proj_out.weight", "unet.conv_out.weight"].iter().any(|end| name.ends_with(end))
    };
    let initialisation = Initialisation { seed: recipe.model.seed, is_zero: silent };
    ParameterStore::build(initialisation, |vb| {
        let projection = recipe.text_encoder_2.projection_dim;
        Ok(Networks {
            text_encoder: ClipTextModel::new(&vb.pp("text_encoder"), &configs::text_encoder(recipe)?, false)?,
            text_encoder_2: ClipTextModel::new(
                &vb.pp("text_encoder_2"),
                &configs::text_encoder_2(recipe)?,
                true,
            )?,
            unet: Unet::new(&vb.pp("unet"), &configs::unet(recipe)?)?,
            auxiliary: linear(projection, 4 * CELLS * CELLS, vb.pp("auxiliary"))?,
        })
    })
}

fn steps<'a>(recipe: &'a Recipe, set: &'a LatentSet) -> Steps<'a> {
    let sharp = if recipe.base.only_large_originals { 1.0 } else { 0.0 };
    Steps { seed: recipe.model.seed, label: "base", denoiser: &recipe.base, set, levels: LEVELS, sharp }
}

/// What both encoders say of some captions.
struct Text {
    /// `[B, 77, D]`.
    prompt_embeds: Tensor,
    /// `[B, P]`.
    pooled_prompt_embeds: Tensor,
}

struct Trainer<'a> {
    recipe: &'a Recipe,
    networks: &'a Networks,
    steps: Steps<'a>,
    schedule: NoiseSchedule,
    tokenizers: Tokenizers,
}

impl Trainer<'_> {
    fn loss(&self, shard: &Shard<'_>) -> Result<Tensor, TrainError> {
        let _scope = Scope::new(self.recipe.training.precision.into());
        let noised = self.steps.noised(shard, &self.schedule)?;
        let conditions = self.steps.conditions(shard);
        let text = self.encode(&conditions)?;
        let auxiliary = self.auxiliary_loss(&text.pooled_prompt_embeds, &noised)?;
        let kept: Vec<f32> = self.steps.dropped(shard).iter().map(|dropped| f32::from(!dropped)).collect();
        let kept = Tensor::from_vec(kept, (conditions.len(), 1), &Device::Cpu)?;
        // A caption that is left out is zeros, as an absent negative prompt is when the picture is drawn.
        let added = AddedConditioning {
            text_embeds: text.pooled_prompt_embeds.broadcast_mul(&kept)?,
            time_ids: time_ids(&conditions, self.recipe.base.size_conditioning)?,
        };
        let prompt_embeds = text.prompt_embeds.broadcast_mul(&kept.unsqueeze(2)?)?;
        let predicted =
            self.networks.unet.forward(&noised.latents, &noised.timesteps, &prompt_embeds, &added)?;
        Ok((denoiser::loss(&predicted, &noised)? + (auxiliary * AUXILIARY_WEIGHT)?)?)
    }

    fn encode(&self, conditions: &[&Conditions]) -> Result<Text, TrainError> {
        let ids =
            conditions.iter().map(|c| self.tokenizers.ids(&c.caption)).collect::<Result<Vec<_>, _>>()?;
        let (first, second): (Vec<_>, Vec<_>) =
            ids.into_iter().map(|[first, second]| (first, second)).unzip();
        let first = self.networks.text_encoder.forward(&first, 0)?.hidden_states;
        let second = self.networks.text_encoder_2.forward(&second, 0)?;
        let missing = || candle_core::Error::Msg("the second encoder has no projection".into());
        let pooled_prompt_embeds = second.text_embeds.ok_or_else(missing)?;
        let prompt_embeds = Tensor::cat(&[first, second.hidden_states], 2)?;
        Ok(Text { prompt_embeds, pooled_prompt_embeds })
    }

    fn auxiliary_loss(&self, pooled: &Tensor, noised: &Noised) -> Result<Tensor, TrainError> {
        let (batch, channels, h, w) = noised.clean.dims4()?;
        let (rows, columns) = (h / CELLS, w / CELLS);
        let cells = noised.clean.narrow(2, 0, rows * CELLS)?.narrow(3, 0, columns * CELLS)?;
        let cells =
            cells.contiguous()?.avg_pool2d((rows, columns))?.reshape((batch, channels * CELLS * CELLS))?;
        Ok((self.networks.auxiliary.forward(pooled)? - cells)?.sqr()?.mean_all()?)
    }
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

//! The refiner (section 2.5): an expert for the 200 lowest levels of noise, on sharp pictures, told how good they are.

use candle_core::{DType, Device, Tensor};
use sdxl_models::{
    autograd::Scope,
    text::ClipTextModel,
    unet::{AddedConditioning, Unet},
};

use super::{
    base, configs,
    context::{Context, Outcome},
    denoiser::{self, Steps},
    latents::{Conditions, LatentSet},
};
use crate::{
    TrainError,
    gradients::Shard,
    noise::NoiseSchedule,
    recipe::{Recipe, Stage},
    store::{Initialisation, ParameterStore, Snapshot},
    vocabulary::{Tokenizers, Vocabulary},
};

/// It is the expert for the lowest so many levels.
const LEVELS: usize = 200;
/// Share of samples that must be of originals that were not enlarged. The others give a low score its meaning.
const SHARP: f64 = 0.9;

/// Trains until it is done or time to stop.
///
/// # Errors
/// The autoencoder or the base is not finished; those of [`crate::run::Run`].
pub fn train(context: &Context) -> Result<Outcome, TrainError> {
    let recipe = &context.recipe;
    let text = base::finished(context)?.part("text_encoder_2.").var_builder(DType::F32, &context.device)?;
    let set = LatentSet::load_or_make(context)?;
    let (store, unet) = build(recipe)?;
    let weights = store.clone();
    let trainer = Trainer {
        recipe,
        unet: &unet,
        weights: &weights,
        device: &context.device,
        text_encoder_2: ClipTextModel::new(&text, &configs::text_encoder_2(recipe)?, true)?,
        steps: Steps {
            seed: recipe.model.seed,
            label: "refiner",
            denoiser: &recipe.refiner,
            pools: denoiser::pools(&recipe.refiner, &set)?,
            set: &set,
            levels: LEVELS,
            sharp: SHARP,
        },
        schedule: NoiseSchedule::default(),
        tokenizers: Tokenizers::new(&Vocabulary::new())?,
    };
    let mut run = context.run(Stage::Refiner, recipe.refiner.all_steps(), store, recipe.refiner.adamw())?;
    let outcome = run.train(|step| trainer.steps.samples(step), |shard| trainer.loss(shard));
    outcome.map_err(|error| trainer.steps.locate(error))
}

/// The averaged weights of the finished stage.
///
/// # Errors
/// The stage is not finished, or its checkpoint is damaged.
pub fn finished(context: &Context) -> Result<Snapshot, TrainError> {
    let (store, _) = build(&context.recipe)?;
    context.average(
        Stage::Refiner,
        context.recipe.refiner.all_steps(),
        &store,
        context.recipe.refiner.adamw(),
    )
}

fn build(recipe: &Recipe) -> Result<(ParameterStore, Unet), TrainError> {
    let silent = |name: &str| {
        ["conv2.weight", "proj_out.weight"].iter().any(|end| name.ends_with(end)) || name == "conv_out.weight"
    };
    let initialisation = Initialisation { seed: recipe.model.seed + 1, is_zero: silent };
    ParameterStore::build(initialisation, |vb| Ok(Unet::new(vb, &configs::refiner_unet(recipe)?)?))
}

struct Trainer<'a> {
    recipe: &'a Recipe,
    unet: &'a Unet,
    weights: &'a ParameterStore,
    device: &'a Device,
    text_encoder_2: ClipTextModel,
    steps: Steps<'a>,
    schedule: NoiseSchedule,
    tokenizers: Tokenizers,
}

impl Trainer<'_> {
    fn loss(&self, shard: &Shard<'_>) -> Result<Tensor, TrainError> {
        let _scope = Scope::new(self.recipe.training.precision.into());
        let copy;
        let unet = if self.device.is_cpu() {
            self.unet
        } else {
            let weights = self.weights.var_builder(DType::F32, self.device);
            copy = Unet::new(&weights, &configs::refiner_unet(self.recipe)?)?;
            &copy
        };
        let noised = self.steps.noised(shard, &self.schedule)?.on(self.device)?;
        let conditions = self.steps.conditions(shard);
        // A caption that is left out is the empty one: the refiner's negative prompt is encoded, not zeros.
        let captions = conditions.iter().zip(self.steps.dropped(shard));
        let ids = captions.map(|(c, dropped)| self.tokenizers.ids(if dropped { "" } else { &c.caption }));
        let ids = ids.map(|ids| ids.map(|[_, second]| second)).collect::<Result<Vec<_>, _>>()?;
        let text = self.text_encoder_2.forward(&ids, 0)?;
        let missing = || candle_core::Error::Msg("the second encoder has no projection".into());
        let added = AddedConditioning {
            text_embeds: text.text_embeds.ok_or_else(missing)?.detach(),
            time_ids: time_ids(&conditions)?.to_device(self.device)?,
        };
        let prompt_embeds = text.hidden_states.detach();
        let predicted = unet.forward(&noised.latents, &noised.timesteps, &prompt_embeds, &added)?;
        denoiser::loss(&predicted, &noised)
    }
}

/// Original size, crop and aesthetic score, `[B, 5]`.
fn time_ids(conditions: &[&Conditions]) -> Result<Tensor, TrainError> {
    let mut ids = Vec::with_capacity(5 * conditions.len());
    for c in conditions {
        ids.extend([c.original_size, c.crops_coords_top_left].into_iter().flatten().map(|v| v as f32));
        ids.push(c.aesthetic_score);
    }
    Ok(Tensor::from_vec(ids, (conditions.len(), 5), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_ids_are_original_size_crop_and_score() {
        let conditions = Conditions {
            caption: String::new(),
            original_size: [64, 72],
            crops_coords_top_left: [3, 5],
            target_size: [128, 144],
            aesthetic_score: 3.0,
        };
        let ids = time_ids(&[&conditions]).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(ids, [[64.0, 72.0, 3.0, 5.0, 3.0]]);
    }
}

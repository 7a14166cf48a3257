//! The autoencoder (section 2.4): encoder and decoder together, then the decoder alone, each with the moving average of
//! its weights.

use candle_core::{DType, Device, Tensor};
use rand::RngExt;
use sdxl_models::{
    autograd::Scope,
    vae::{Autoencoder, VaeConfig},
};

use super::context::{Context, Outcome};
use crate::{
    TrainError,
    data::Pictures,
    gradients::Shard,
    random,
    recipe::{Recipe, Stage, Vae},
    store::{Initialisation, ParameterStore, Snapshot},
};

/// Trains until both parts are done or it is time to stop, from nothing or from a finished autoencoder, which may stay as
/// it is.
///
/// # Errors
/// Those of [`crate::run::Run`].
pub fn train(context: &Context) -> Result<Outcome, TrainError> {
    let recipe = &context.recipe;
    let config = super::configs::vae(recipe, 1.0)?;
    if recipe.vae.steps > 0 {
        let (store, network) = begin(recipe, &config)?;
        let trained = Trained { network, weights: store.clone(), device: &context.device };
        let mut run = context.run(Stage::Vae, recipe.vae.steps, store, recipe.vae.adamw(recipe.vae.steps))?;
        let outcome =
            run.train(|step| samples(step, &recipe.vae), |shard| together(recipe, &trained, shard))?;
        if !matches!(outcome, Outcome::Finished) {
            return Ok(outcome);
        }
    }
    match (recipe.vae.steps, recipe.vae.decoder_steps) {
        (0, 0) => say_nothing_to_do(),
        (_, 0) => {}
        _ => return decoder(context, &config),
    }
    Ok(Outcome::Finished)
}

#[expect(clippy::print_stderr, reason = "a command line's progress")]
fn say_nothing_to_do() {
    eprintln!("vae: the recipe takes [pretrained] vae as it is");
}

/// The averaged weights after the first part, in which the encoder is finished, or those that the recipe takes as they
/// are; and the config with a scaling factor of 1. The denoisers' latents depend on nothing later.
///
/// # Errors
/// The part is not finished, or its checkpoint is damaged.
pub fn encoder(context: &Context) -> Result<(Snapshot, VaeConfig), TrainError> {
    let recipe = &context.recipe;
    let config = super::configs::vae(recipe, 1.0)?;
    let (store, _) = begin(recipe, &config)?;
    let steps = recipe.vae.steps;
    let weights = match steps {
        0 => store.frozen()?,
        _ => context.average(Stage::Vae, steps, &store, recipe.vae.adamw(steps))?,
    };
    Ok((weights, config))
}

/// The averaged weights of the finished autoencoder, and its config with a scaling factor of 1.
///
/// # Errors
/// The stage is not finished, or its checkpoint is damaged.
pub fn finished(context: &Context) -> Result<(Snapshot, VaeConfig), TrainError> {
    let recipe = &context.recipe;
    let steps = recipe.vae.decoder_steps;
    let first = encoder(context)?;
    let is_begun = context.folder(Stage::VaeDecoder).join("latest.safetensors").is_file();
    if steps == 0 || (context.unfinished && !is_begun) {
        return Ok(first);
    }
    let (store, _) = build(recipe.model.seed, &first.1)?;
    Ok((context.average(Stage::VaeDecoder, steps, &store, recipe.vae.adamw(steps))?, first.1))
}

/// The decoder goes on from the averaged weights; the encoder is the average, and stays.
fn decoder(context: &Context, config: &VaeConfig) -> Result<Outcome, TrainError> {
    let recipe = &context.recipe;
    let (average, _) = encoder(context)?;
    let frozen = Autoencoder::new(&average.var_builder(DType::F32, &context.device)?, config)?;
    let (store, network) = build(recipe.model.seed, config)?;
    store.adopt(&average)?;
    let trained = Trained { network, weights: store.clone(), device: &context.device };
    let steps = recipe.vae.decoder_steps;
    let mut run = context.run(Stage::VaeDecoder, steps, store, recipe.vae.adamw(steps))?;
    run.train(
        |step| samples(recipe.vae.steps + step, &recipe.vae),
        |shard| decoder_only(recipe, &frozen, &trained, shard),
    )
}

/// What learns, and where.
struct Trained<'a> {
    network: Autoencoder,
    weights: ParameterStore,
    device: &'a Device,
}

impl Trained<'_> {
    /// The network of this step: on another device than the CPU a copy, through which gradients flow back.
    fn network(&self) -> Result<Autoencoder, TrainError> {
        if self.device.is_cpu() {
            return Ok(self.network.clone());
        }
        let weights = self.weights.var_builder(DType::F32, self.device);
        Ok(Autoencoder::new(&weights, self.network.config())?)
    }
}

/// The networks as training begins.
fn begin(recipe: &Recipe, config: &VaeConfig) -> Result<(ParameterStore, Autoencoder), TrainError> {
    let (store, network) = build(recipe.model.seed, config)?;
    if let Some(pretrained) = &recipe.pretrained.vae {
        store.read(&pretrained.weights)?;
    }
    Ok((store, network))
}

fn build(seed: u64, config: &VaeConfig) -> Result<(ParameterStore, Autoencoder), TrainError> {
    let initialisation = Initialisation { seed, is_zero: |name| name.ends_with("conv2.weight") };
    Ok(ParameterStore::build(initialisation, |vb| Autoencoder::new(vb, config))?)
}

fn samples(step: u64, vae: &Vae) -> Vec<usize> {
    let first = usize::try_from(step - 1).unwrap_or(usize::MAX).saturating_mul(vae.batch_size);
    (first..first + vae.batch_size).collect()
}

/// Squares cut from training pictures, `[B, 3, crop, crop]`.
fn crops(recipe: &Recipe, shard: &Shard<'_>) -> Result<Tensor, TrainError> {
    let (side, crop) = (recipe.data.sample_size, recipe.vae.crop);
    let pictures = Pictures::new(recipe);
    let mut pixels = Vec::<f32>::with_capacity(shard.samples.len() * 3 * crop * crop);
    for index in shard.samples {
        let picture = pictures.picture(*index, [side; 2]);
        let mut rng = random::stream(recipe.model.seed, "crop", 0, *index as u64);
        let (top, left) = (rng.random_range(0..=side - crop), rng.random_range(0..=side - crop));
        let rows = (0..3).flat_map(|c| (top..top + crop).map(move |y| (c * side + y) * side + left));
        pixels.extend(rows.flat_map(|row| &picture.pixels[row..row + crop]));
    }
    Ok(Tensor::from_vec(pixels, (shard.samples.len(), 3, crop, crop), &Device::Cpu)?)
}

fn together(recipe: &Recipe, trained: &Trained<'_>, shard: &Shard<'_>) -> Result<Tensor, TrainError> {
    let _scope = Scope::new(recipe.training.precision.into());
    let network = trained.network()?;
    let images = crops(recipe, shard)?.to_device(trained.device)?;
    let (mean, logvar) = network.moments(&images)?;
    let mut noise = random::stream(recipe.model.seed, "posterior", shard.step, shard.index as u64);
    let noise =
        Tensor::from_vec(random::normal(&mut noise, mean.elem_count()), mean.shape(), trained.device)?;
    let latents = (&mean + ((&logvar * 0.5)?.exp()? * noise)?)?;
    let reconstructed = network.reconstruct(&latents)?;
    let kl = ((mean.sqr()? + logvar.exp()?)? - &logvar)?.affine(0.5, -0.5)?.mean_all()?;
    let loss = (reconstruction(&reconstructed, &images)? + (kl * recipe.vae.kl_weight)?)?;
    let weight = anchor_weight(&recipe.vae, shard.step);
    if weight == 0.0 {
        return Ok(loss);
    }
    // Layout and colour first: three channels start as the shrunken picture, and are let go little by little.
    let shrunken = images.avg_pool2d(8)?;
    let anchor = (mean.narrow(1, 0, 3)? - shrunken)?.sqr()?.mean_all()?;
    Ok((loss + (anchor * weight)?)?)
}

fn decoder_only(
    recipe: &Recipe,
    frozen: &Autoencoder,
    trained: &Trained<'_>,
    shard: &Shard<'_>,
) -> Result<Tensor, TrainError> {
    let _scope = Scope::new(recipe.training.precision.into());
    let images = crops(recipe, shard)?.to_device(trained.device)?;
    let latents = frozen.moments(&images)?.0.detach();
    reconstruction(&trained.network()?.reconstruct(&latents)?, &images)
}

/// Falls linearly to nothing.
fn anchor_weight(vae: &Vae, step: u64) -> f64 {
    let left = vae.anchor_steps.saturating_sub(step) as f64;
    vae.anchor_weight * left / vae.anchor_steps.max(1) as f64
}

/// L1 and L2 of pixels, L1 of their differences to the right and down, and of the means over 8 x 8.
fn reconstruction(got: &Tensor, wanted: &Tensor) -> Result<Tensor, TrainError> {
    let error = (got - wanted)?;
    let side = error.dim(2)?;
    let along = |dim| {
        Ok::<_, TrainError>(
            (error.narrow(dim, 1, side - 1)? - error.narrow(dim, 0, side - 1)?)?.abs()?.mean_all()?,
        )
    };
    let pixels = (error.abs()?.mean_all()? + (error.sqr()?.mean_all()? * 4.0)?)?;
    let edges = (along(2)? + along(3)?)?;
    let means = error.avg_pool2d(8)?.abs()?.mean_all()?;
    Ok(((pixels + edges)? + means)?)
}

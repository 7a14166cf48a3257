//! How the classifier learns: some minutes on two shards, whatever the machine has, with the same result wherever
//! products are computed alike.

use candle_core::{Device, Tensor};
use candle_nn::loss::cross_entropy;
use rand::RngExt;
use sdxl_models::autograd::{Precision, Scope};

use super::{
    examples::Example,
    network::{COLOURS, Network, SHAPES},
};
use crate::{
    TrainError,
    gradients::{self, Batch, Shard},
    optimizer::{AdamW, Decay, Optimizer, Schedule},
    progress::{Display, Record},
    random,
    recipe::Recipe,
    stop::Stop,
    store::{Initialisation, ParameterStore},
    threads::Team,
};

pub(super) const STEPS: u64 = 400;
const BATCH: usize = 32;
/// A fixed number, as sums depend on it.
const SHARDS: usize = 2;

pub(super) fn build(seed: u64) -> Result<(ParameterStore, Network), TrainError> {
    let initialisation = Initialisation { seed, is_zero: |name| name.ends_with("conv2.weight") };
    Ok(ParameterStore::build(initialisation, Network::new)?)
}

/// Trains from nothing. The store has the averaged weights then.
pub(super) fn train(recipe: &Recipe, steps: u64, stop: &Stop) -> Result<ParameterStore, TrainError> {
    let (store, network) = build(recipe.model.seed)?;
    let team = Team::new(SHARDS)?;
    let mut optimizer = Optimizer::new(adamw(steps), &store)?;
    let mut display = Display::new("classifier", steps, 0, 50);
    let (mut losses, mut total_seconds) = (Vec::new(), 0.0);
    for step in 1..=steps {
        if stop.reason().is_some() {
            return Err(TrainError::Interrupted { what: "training the classifier" });
        }
        let started = std::time::Instant::now();
        let first = usize::try_from(step - 1).unwrap_or(usize::MAX) * BATCH;
        let batch = Batch { step, samples: (first..first + BATCH).collect() };
        let (loss, gradients) =
            gradients::step(&team, &store, &batch, |shard| loss(recipe, &network, shard))?;
        let applied = optimizer.step(&team, &store, &gradients)?;
        losses.push(loss);
        let seconds = started.elapsed().as_secs_f64();
        total_seconds += seconds;
        let (learning_rate, grad_norm) = (applied.learning_rate, applied.grad_norm);
        let record = Record { step, loss, learning_rate, grad_norm, samples: BATCH, seconds, total_seconds };
        display.show(&record, &losses);
    }
    store.adopt(&optimizer.ema(&store))?;
    Ok(store)
}

fn adamw(steps: u64) -> AdamW {
    AdamW {
        schedule: Schedule { learning_rate: 3e-3, warmup: 30, decay: Decay::Cosine, steps, restart: None },
        betas: [0.9, 0.99],
        epsilon: 1e-8,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        ema_decay: 0.98,
    }
}

/// Half of all batches are square, the others of any bucket.
fn size(recipe: &Recipe, step: u64) -> [usize; 2] {
    let square = [recipe.data.sample_size; 2];
    let mut rng = random::stream(recipe.model.seed, "classifier size", step, 0);
    let (others, other) = (&recipe.data.buckets, rng.random_bool(0.5));
    if other && !others.is_empty() { others[rng.random_range(0..others.len())] } else { square }
}

fn loss(recipe: &Recipe, network: &Network, shard: &Shard<'_>) -> Result<Tensor, TrainError> {
    let _scope = Scope::new(Precision::Bf16);
    let (size, strange) = (size(recipe, shard.step), shard.step.is_multiple_of(2));
    let example = |index: &usize| Example::draw(recipe.model.seed, *index, size, strange);
    let examples: Vec<_> = shard.samples.iter().map(example).collect();
    let pixels: Vec<f32> = examples.iter().flat_map(|e| &e.picture.pixels).map(|v| 2.0 * v - 1.0).collect();
    let pictures = Tensor::from_vec(pixels, (examples.len(), 3, size[0], size[1]), &Device::Cpu)?;
    let logits = network.forward(&pictures)?;
    let targets = |of: &dyn Fn(&Example) -> Vec<u32>| {
        let values: Vec<u32> = examples.iter().flat_map(of).collect();
        Tensor::from_vec(values.clone(), values.len(), &Device::Cpu)
    };
    let shapes = cross_entropy(&logits.shapes.reshape(((), SHAPES))?, &targets(&|e| e.shapes.clone())?)?;
    if strange {
        return Ok(shapes);
    }
    let colours = cross_entropy(&logits.colours.reshape(((), COLOURS))?, &targets(&|e| e.colours.clone())?)?;
    let background = cross_entropy(&logits.background, &targets(&|e| vec![e.background])?)?;
    Ok(((colours + shapes)? + (background * 0.2)?)?)
}

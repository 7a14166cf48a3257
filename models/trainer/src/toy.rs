//! A small regression to try the harness on.

use candle_core::{Device, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear};

use crate::{
    TrainError,
    gradients::Shard,
    optimizer::{AdamW, Decay, Schedule},
    random,
    store::{Initialisation, ParameterStore},
};

pub(crate) const SAMPLES: usize = 64;
const INPUTS: usize = 3;

/// Two layers, the weights of which a store holds.
pub(crate) struct Toy {
    hidden: Linear,
    out: Linear,
}

impl Toy {
    pub(crate) fn new(seed: u64) -> (ParameterStore, Self) {
        let build = |vb: &VarBuilder<'static>| {
            let (hidden, out) = (linear(INPUTS, 16, vb.pp("hidden"))?, linear(16, 1, vb.pp("out"))?);
            candle_core::Result::Ok(Self { hidden, out })
        };
        ParameterStore::build(Initialisation::new(seed), build).unwrap()
    }

    /// Mean square error on a shard, with noise that depends on step and sample.
    pub(crate) fn loss(&self, shard: &Shard<'_>) -> Result<Tensor, TrainError> {
        let mut inputs = Vec::new();
        let mut targets = Vec::new();
        for sample in shard.samples {
            let x = random::normal(&mut random::stream(1, "input", 0, *sample as u64), INPUTS);
            let noise = random::normal(&mut random::stream(1, "noise", shard.step, *sample as u64), 1);
            targets.push(x[0] * x[1] - x[2] + 0.1 * noise[0]);
            inputs.extend(x);
        }
        let count = shard.samples.len();
        let x = Tensor::from_vec(inputs, (count, INPUTS), &Device::Cpu)?;
        let y = Tensor::from_vec(targets, (count, 1), &Device::Cpu)?;
        let predicted = self.out.forward(&self.hidden.forward(&x)?.silu()?)?;
        Ok((predicted - y)?.sqr()?.mean_all()?)
    }
}

/// A batch of ten, drawn anew for each step.
pub(crate) fn batch(step: u64) -> Vec<usize> {
    let mut rng = random::stream(2, "batch", step, 0);
    (0..10).map(|_| rand::RngExt::random_range(&mut rng, 0..SAMPLES)).collect()
}

pub(crate) fn adamw(steps: u64) -> AdamW {
    AdamW {
        schedule: Schedule { learning_rate: 0.02, warmup: 5, decay: Decay::Cosine, steps, restart: None },
        betas: [0.9, 0.99],
        epsilon: 1e-8,
        weight_decay: 0.1,
        max_grad_norm: 1.0,
        ema_decay: 0.9,
    }
}

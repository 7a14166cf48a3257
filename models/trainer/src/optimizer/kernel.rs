//! The arithmetic of a step on plain slices, in loops that the compiler turns into vector instructions.

use std::ops::Range;

use super::{AdamW, State};

/// A step's factors, the same for all numbers of a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coefficients {
    clip: f32,
    betas: [f32; 2],
    /// What remains of a weight.
    keep: f32,
    /// The learning rate, corrected for the first moment's start at zero.
    rate: f32,
    /// `1 / sqrt(1 - beta2^t)`, the same for the second.
    unbias: f32,
    epsilon: f32,
    ema: f32,
}

impl Coefficients {
    pub(super) fn new(config: &AdamW, step: u64, learning_rate: f64, grad_norm: f64) -> Self {
        let t = step as f64;
        let [beta1, beta2] = config.betas;
        // As torch's clip_grad_norm_ has it.
        let clip = (config.max_grad_norm / (grad_norm + 1e-6)).min(1.0);
        // A young average would otherwise remember the initial weights.
        let ema = config.ema_decay.min((1.0 + t) / (10.0 + t));
        Self {
            clip: clip as f32,
            betas: [beta1 as f32, beta2 as f32],
            keep: (1.0 - learning_rate * config.weight_decay) as f32,
            rate: (learning_rate / (1.0 - beta1.powf(t))) as f32,
            unbias: (1.0 - beta2.powf(t)).sqrt().recip() as f32,
            epsilon: config.epsilon as f32,
            ema: ema as f32,
        }
    }

    /// Biases and normalizations do not decay.
    pub(super) fn for_rank(mut self, rank: usize) -> Self {
        if rank < 2 {
            self.keep = 1.0;
        }
        self
    }
}

/// A part of a parameter's state.
pub(super) struct Part<'a> {
    first_moment: &'a mut [f32],
    second_moment: &'a mut [f32],
    ema: &'a mut [f32],
}

impl State {
    pub(super) fn part(&mut self, range: Range<usize>) -> Part<'_> {
        Part {
            first_moment: &mut self.first_moment[range.clone()],
            second_moment: &mut self.second_moment[range.clone()],
            ema: &mut self.ema[range],
        }
    }
}

/// One step of AdamW and of the average. All slices have one length.
pub(super) fn update(c: &Coefficients, weights: &mut [f32], gradient: &[f32], part: Part<'_>) {
    let Part { first_moment, second_moment, ema } = part;
    let [beta1, beta2] = c.betas;
    let state = first_moment.iter_mut().zip(second_moment).zip(ema);
    for ((weight, gradient), ((m, v), average)) in weights.iter_mut().zip(gradient).zip(state) {
        let g = c.clip * gradient;
        *m = beta1 * *m + (1.0 - beta1) * g;
        *v = beta2 * *v + (1.0 - beta2) * g * g;
        *weight = c.keep * *weight - c.rate * *m / (v.sqrt() * c.unbias + c.epsilon);
        *average = *weight + c.ema * (*average - *weight);
    }
}

/// The average alone, of weights that stay as they are.
pub(super) fn average(c: &Coefficients, weights: &[f32], ema: &mut [f32]) {
    for (weight, average) in weights.iter().zip(ema) {
        *average = weight + c.ema * (*average - weight);
    }
}

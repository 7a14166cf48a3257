//! AdamW (Loshchilov and Hutter 2019) with clipping of the gradient's norm, and the average of weights that is kept of
//! them. One pass over memory does it all.

mod kernel;
mod schedule;

use kernel::Coefficients;
use rayon::prelude::*;
pub use schedule::{Decay, Restart, Schedule};

use crate::{
    TrainError,
    gradients::Gradients,
    store::{ParameterStore, Snapshot},
    threads::Team,
};

/// The optimizer's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// The learning rate over the steps.
    pub schedule: Schedule,
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// Keeps the step finite where gradients vanish.
    pub epsilon: f64,
    /// Decay of matrices and convolutions, in units of the learning rate; vectors do not decay.
    pub weight_decay: f64,
    /// Longer gradients are shortened to this.
    pub max_grad_norm: f64,
    /// Decay of the average of weights, once it has seen enough steps.
    pub ema_decay: f64,
}

/// What goes with each parameter, besides its weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    pub(crate) first_moment: Vec<f32>,
    pub(crate) second_moment: Vec<f32>,
    pub(crate) ema: Vec<f32>,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Applied {
    /// The learning rate.
    pub learning_rate: f64,
    /// The gradient's norm before clipping.
    pub grad_norm: f64,
}

/// The moments and averages of a store's weights.
#[derive(Clone, Debug)]
pub struct Optimizer {
    config: AdamW,
    states: Vec<State>,
}

impl Optimizer {
    /// Moments at zero, averages at the weights as they are.
    ///
    /// # Errors
    /// A failed copy.
    pub fn new(config: AdamW, store: &ParameterStore) -> Result<Self, TrainError> {
        let state = |parameter: &crate::store::Parameter| {
            let ema = parameter.values()?;
            Ok(State { first_moment: vec![0.0; ema.len()], second_moment: vec![0.0; ema.len()], ema })
        };
        let states = store.parameters().iter().map(state).collect::<candle_core::Result<_>>()?;
        Ok(Self { config, states })
    }

    /// Changes weights, moments and averages by one step. A parameter without gradient keeps its weights.
    ///
    /// # Errors
    /// The gradient is not finite; nothing has changed then.
    pub fn step(
        &mut self,
        team: &Team,
        store: &ParameterStore,
        gradients: &Gradients,
    ) -> Result<Applied, TrainError> {
        let step = gradients.batch().step;
        let grad_norm = gradients.norm(team)?;
        if !grad_norm.is_finite() {
            return Err(TrainError::NotFinite {
                step,
                what: "gradient",
                batch: gradients.batch().samples.clone(),
                bucket: None,
            });
        }
        let learning_rate = self.config.schedule.learning_rate(step);
        let coefficients = Coefficients::new(&self.config, step, learning_rate, grad_norm);
        let update = |(i, state): (usize, &mut State)| {
            let parameter = &store.parameters()[i];
            let coefficients = coefficients.for_rank(parameter.var().rank());
            parameter.change(|weights| {
                let mut moved = false;
                gradients.chunks(i, &mut |range, gradient| {
                    moved = true;
                    kernel::update(&coefficients, &mut weights[range.clone()], gradient, state.part(range));
                })?;
                if !moved {
                    kernel::average(&coefficients, weights, &mut state.ema);
                }
                Ok(())
            })
        };
        team.together(|| {
            self.states.par_iter_mut().enumerate().map(update).collect::<candle_core::Result<()>>()
        })?;
        Ok(Applied { learning_rate, grad_norm })
    }

    /// The averaged weights, which make better pictures than the last ones.
    #[must_use]
    pub fn ema(&self, store: &ParameterStore) -> Snapshot {
        store.snapshot(self.states.iter().map(|state| state.ema.clone()).collect())
    }

    pub(crate) fn states(&self) -> &[State] {
        &self.states
    }

    /// Goes on from states saved before, which fit the store.
    pub(crate) fn restore(&mut self, states: Vec<State>) {
        self.states = states;
    }
}

#[cfg(test)]
mod tests;

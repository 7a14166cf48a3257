//! The noise of training (section 2.5): 1000 levels of a scaled-linear schedule, the same that sampling goes down.

use crate::recipe::LossWeight;

/// Levels of noise.
pub const LEVELS: usize = 1000;

const BETA_START: f64 = 0.000_85;
const BETA_END: f64 = 0.012;

/// Shares of signal and noise at every level.
#[derive(Clone, Debug)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
}

impl Default for NoiseSchedule {
    fn default() -> Self {
        let mut product = 1.0;
        let beta = |t: usize| {
            let root = |beta: f64| beta.sqrt();
            let share = t as f64 / (LEVELS - 1) as f64;
            (root(BETA_START) + share * (root(BETA_END) - root(BETA_START))).powi(2)
        };
        let mut next = |t| {
            product *= 1.0 - beta(t);
            product
        };
        Self { alphas_cumprod: (0..LEVELS).map(&mut next).collect() }
    }
}

impl NoiseSchedule {
    /// Factors of clean latents and of unit noise at level `t`, below [`LEVELS`].
    #[must_use]
    pub fn shares(&self, t: usize) -> [f32; 2] {
        let alpha = self.alphas_cumprod[t];
        [alpha.sqrt() as f32, (1.0 - alpha).sqrt() as f32]
    }

    /// Noise over signal at level `t`.
    #[must_use]
    pub fn sigma(&self, t: usize) -> f32 {
        let alpha = self.alphas_cumprod[t];
        ((1.0 - alpha) / alpha).sqrt() as f32
    }

    /// Weight of the loss at level `t`, on average 1 over levels `0..levels`.
    #[must_use]
    pub fn weight(&self, kind: LossWeight, t: usize, levels: usize) -> f32 {
        if kind == LossWeight::Uniform {
            return 1.0;
        }
        let raw = |t| self.sigma(t).clamp(0.1, 15.0);
        let mean = (0..levels).map(raw).sum::<f32>() / levels as f32;
        raw(t) / mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_sdxls() {
        // diffusers' EulerDiscreteScheduler with SDXL's config.
        let schedule = NoiseSchedule::default();
        for (t, sigma) in [(0, 0.029_167_5), (999, 14.614_647)] {
            // It computes them in f32, where 1 - 0.99915 keeps four digits.
            assert!((schedule.sigma(t) / sigma - 1.0).abs() < 1e-4, "{t}: {}", schedule.sigma(t));
        }
        let [signal, noise] = schedule.shares(500);
        assert!((signal * signal + noise * noise - 1.0).abs() < 1e-6);
    }

    #[test]
    fn weights_of_the_loss_rise_with_the_noise_or_are_alike() {
        let schedule = NoiseSchedule::default();
        let weights = |kind| (0..200).map(|t| schedule.weight(kind, t, 200)).collect::<Vec<_>>();
        let mean = weights(LossWeight::Sigma).iter().sum::<f32>() / 200.0;
        assert!((mean - 1.0).abs() < 1e-4, "{mean}");
        let ratio = |kind| schedule.weight(kind, 199, 200) / schedule.weight(kind, 100, 200);
        let sigmas = schedule.sigma(199) / schedule.sigma(100);
        assert!((ratio(LossWeight::Sigma) / sigmas - 1.0).abs() < 1e-5);
        assert!(weights(LossWeight::Uniform).iter().all(|weight| *weight == 1.0));
    }
}

//! What base and refiner train alike (section 2.5): to tell the noise that was added to latents.

use candle_core::{Device, Tensor};
use rand::RngExt;

use super::latents::{Bucket, Conditions, LatentSet};
use crate::{TrainError, gradients::Shard, noise::NoiseSchedule, random, recipe::Denoiser};

/// Latents under noise, and the noise.
pub(super) struct Noised {
    /// `[B, 4, h, w]`.
    pub(super) latents: Tensor,
    /// The level of each.
    pub(super) timesteps: Vec<f32>,
    /// `[B, 4, h, w]`.
    pub(super) noise: Tensor,
    /// `[B, 1, 1, 1]`.
    pub(super) weights: Tensor,
    /// The clean latents, `[B, 4, h, w]`.
    pub(super) clean: Tensor,
}

/// The steps of a denoiser, and what is drawn for each: a function of seed and step.
#[derive(Debug)]
pub(super) struct Steps<'a> {
    pub(super) seed: u64,
    /// What tells this denoiser's draws from the other's.
    pub(super) label: &'static str,
    pub(super) denoiser: &'a Denoiser,
    pub(super) set: &'a LatentSet,
    /// It trains on the lowest so many levels.
    pub(super) levels: usize,
    /// Share of samples that must be of originals that were not enlarged.
    pub(super) sharp: f64,
}

impl Steps<'_> {
    /// The bucket of a step. All are square at first (section 2.3); then each has its share, and a batch is of one.
    fn bucket(&self, step: u64) -> usize {
        if step <= self.denoiser.steps {
            return 0;
        }
        let total: usize = self.set.buckets.iter().map(Bucket::len).sum();
        let mut place = random::stream(self.seed, self.label, step, 0).random_range(0..total.max(1));
        let reached = |bucket: &Bucket| {
            let here = place < bucket.len();
            place = place.saturating_sub(bucket.len());
            here
        };
        self.set.buckets.iter().position(reached).unwrap_or(0)
    }

    /// The pictures of a step, as places in its bucket.
    pub(super) fn samples(&self, step: u64) -> Vec<usize> {
        let count = self.set.buckets[self.bucket(step)].len();
        let mut rng = random::stream(self.seed, self.label, step, 1);
        let bucket = &self.set.buckets[self.bucket(step)];
        let is_sharp = |i: usize| {
            let Conditions { original_size, target_size, .. } = bucket.conditions(i);
            original_size[0] >= target_size[0] && original_size[1] >= target_size[1]
        };
        let mut draw = || {
            let picky = rng.random_bool(self.sharp);
            let tries = if picky { 100 } else { 1 };
            let mut i = rng.random_range(0..count);
            for _ in 1..tries {
                if is_sharp(i) {
                    break;
                }
                i = rng.random_range(0..count);
            }
            i
        };
        (0..self.denoiser.batch_size).map(|_| draw()).collect()
    }

    /// The bucket that a shard's samples are of.
    pub(super) fn bucket_of(&self, shard: &Shard<'_>) -> &Bucket {
        &self.set.buckets[self.bucket(shard.step)]
    }

    /// What conditions the shard's pictures.
    pub(super) fn conditions(&self, shard: &Shard<'_>) -> Vec<&Conditions> {
        let bucket = self.bucket_of(shard);
        shard.samples.iter().map(|i| bucket.conditions(*i)).collect()
    }

    /// Which captions are left out.
    pub(super) fn dropped(&self, shard: &Shard<'_>) -> Vec<bool> {
        let mut rng = random::stream(self.seed, self.label, shard.step, 2 + 2 * shard.index as u64);
        shard.samples.iter().map(|_| rng.random_bool(self.denoiser.caption_dropout)).collect()
    }

    /// The shard's latents with noise. Levels are spread evenly over the whole batch, each within its own share of them.
    pub(super) fn noised(&self, shard: &Shard<'_>, schedule: &NoiseSchedule) -> Result<Noised, TrainError> {
        let bucket = self.bucket_of(shard);
        let [h, w] = bucket.size;
        let (batch, len) = (shard.samples.len(), 4 * h * w);
        let mut rng = random::stream(self.seed, self.label, shard.step, 3 + 2 * shard.index as u64);
        let mut noise = random::normal(&mut rng, batch * len);
        let offset_noise =
            if shard.step > self.denoiser.steps { self.denoiser.offset_noise as f32 } else { 0.0 };
        if offset_noise > 0.0 {
            let offsets = random::normal(&mut rng, batch * 4);
            for (plane, offset) in noise.chunks_exact_mut(h * w).zip(offsets) {
                plane.iter_mut().for_each(|v| *v += offset_noise * offset);
            }
        }
        let total = self.denoiser.batch_size as f64;
        let scale = self.set.scaling_factor as f32;
        let (mut clean, mut latents) = (Vec::with_capacity(batch * len), Vec::with_capacity(batch * len));
        let (mut timesteps, mut weights) = (Vec::new(), Vec::new());
        for (i, sample) in shard.samples.iter().enumerate() {
            let place = (shard.first + i) as f64 + rng.random::<f64>();
            let t = ((place / total * self.levels as f64) as usize).min(self.levels - 1);
            let [signal, share] = schedule.shares(t);
            let from = clean.len();
            clean.extend(bucket.latents(*sample, scale));
            let both = clean[from..].iter().zip(&noise[from..from + len]);
            latents.extend(both.map(|(x, n)| signal * x + share * n));
            timesteps.push(t as f32);
            weights.push(schedule.weight(t, self.levels));
        }
        let tensor = |values| Tensor::from_vec(values, (batch, 4, h, w), &Device::Cpu);
        Ok(Noised {
            latents: tensor(latents)?,
            timesteps,
            noise: tensor(noise)?,
            weights: Tensor::from_vec(weights, (batch, 1, 1, 1), &Device::Cpu)?,
            clean: tensor(clean)?,
        })
    }
}

/// Mean square of what is wrong about the noise, by weight.
pub(super) fn loss(predicted: &Tensor, noised: &Noised) -> Result<Tensor, TrainError> {
    Ok((predicted - &noised.noise)?.sqr()?.broadcast_mul(&noised.weights)?.mean_all()?)
}

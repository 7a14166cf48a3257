//! What base and refiner train alike (section 2.5): to tell the noise that was added to latents.

use candle_core::{Device, Tensor};
use rand::{Rng, RngExt};

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

impl Noised {
    /// The same on a device.
    pub(super) fn on(self, device: &Device) -> Result<Self, TrainError> {
        let Self { latents, timesteps, noise, weights, clean } = self;
        Ok(Self {
            latents: latents.to_device(device)?,
            timesteps,
            noise: noise.to_device(device)?,
            weights: weights.to_device(device)?,
            clean: clean.to_device(device)?,
        })
    }
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
    /// The pictures of each bucket that it trains on.
    pub(super) pools: Vec<Pool>,
    /// Share of samples that must be of originals that were not enlarged.
    pub(super) sharp: f64,
}

/// The pictures of a bucket that a denoiser trains on, as places in the bucket.
#[derive(Debug)]
pub(super) struct Pool {
    all: Vec<usize>,
    /// Those of them that were small and enlarged, those that were cropped, and the rest.
    kinds: [Vec<usize>; 3],
}

impl Pool {
    fn new(denoiser: &Denoiser, bucket: &Bucket) -> Self {
        let all = kept(denoiser, (0..bucket.len()).map(|i| bucket.conditions(i).scale()));
        let mut kinds = [const { Vec::new() }; 3];
        for i in &all {
            let conditions = bucket.conditions(*i);
            let is_cropped = conditions.crops_coords_top_left != [0, 0];
            let kind = if !conditions.is_large() {
                0
            } else if is_cropped {
                1
            } else {
                2
            };
            kinds[kind].push(*i);
        }
        Self { all, kinds }
    }

    /// Those to draw from, of all or of a kind that is drawn by its share of all samples.
    fn places(&self, denoiser: &Denoiser, rng: &mut impl Rng) -> &[usize] {
        let (small, cropped) = (denoiser.small_original_share, denoiser.crop_share);
        let (Some(small), Some(cropped)) = (small, cropped) else { return &self.all };
        let place = rng.random::<f64>();
        let kind = if place < small {
            0
        } else if place < small + cropped {
            1
        } else {
            2
        };
        if self.kinds[kind].is_empty() { &self.all } else { &self.kinds[kind] }
    }
}

/// The pictures of each bucket that a denoiser trains on: all, unless its recipe leaves some out.
///
/// # Errors
/// No square picture is left.
pub(super) fn pools(denoiser: &Denoiser, set: &LatentSet) -> Result<Vec<Pool>, TrainError> {
    let pools: Vec<_> = set.buckets.iter().map(|bucket| Pool::new(denoiser, bucket)).collect();
    if pools.first().is_none_or(|square| square.all.is_empty()) {
        let why = "the recipe leaves out every square picture".to_owned();
        return Err(TrainError::StartUp { what: "choose training pictures", why });
    }
    Ok(pools)
}

/// The places of those that are kept, of pictures by the [`Conditions::scale`] of their originals.
fn kept(denoiser: &Denoiser, scales: impl Iterator<Item = f64>) -> Vec<usize> {
    let small = if denoiser.only_large_originals { Some(0) } else { denoiser.small_originals };
    let mut left = [small, denoiser.large_originals].map(|most| most.unwrap_or(usize::MAX));
    let mut keeps = |scale: f64| {
        let left = &mut left[usize::from(scale >= 1.0)];
        let is_kept = *left > 0;
        *left -= usize::from(is_kept);
        is_kept
    };
    scales.enumerate().filter_map(|(place, scale)| keeps(scale).then_some(place)).collect()
}

impl Steps<'_> {
    /// The bucket of a step. All are square at first (section 2.3); then each has its share, and a batch is of one.
    fn bucket(&self, step: u64) -> usize {
        if step <= self.denoiser.steps {
            return 0;
        }
        let total: usize = self.pools.iter().map(|pool| pool.all.len()).sum();
        let mut place = random::stream(self.seed, self.label, step, 0).random_range(0..total.max(1));
        let reached = |pool: &Pool| {
            let here = place < pool.all.len();
            place = place.saturating_sub(pool.all.len());
            here
        };
        self.pools.iter().position(reached).unwrap_or(0)
    }

    /// The pictures of a step, as places in its bucket.
    pub(super) fn samples(&self, step: u64) -> Vec<usize> {
        let mut rng = random::stream(self.seed, self.label, step, 1);
        let bucket = self.bucket(step);
        let (bucket, pool) = (&self.set.buckets[bucket], &self.pools[bucket]);
        let is_late = step > self.denoiser.steps;
        let mut draw = || {
            let picky = rng.random_bool(self.sharp);
            let tries = if picky { 100 } else { 1 };
            let places = if is_late { pool.places(self.denoiser, &mut rng) } else { &pool.all };
            let mut i = places[rng.random_range(0..places.len())];
            for _ in 1..tries {
                if bucket.conditions(i).is_large() {
                    break;
                }
                i = places[rng.random_range(0..places.len())];
            }
            i
        };
        (0..self.denoiser.batch_size).map(|_| draw()).collect()
    }

    /// The bucket that a shard's samples are of.
    pub(super) fn bucket_of(&self, shard: &Shard<'_>) -> &Bucket {
        &self.set.buckets[self.bucket(shard.step)]
    }

    /// An error with the size that its samples are numbered by.
    pub(super) fn locate(&self, error: TrainError) -> TrainError {
        match error {
            TrainError::NotFinite { step, what, batch, .. } => {
                let bucket = Some(self.set.buckets[self.bucket(step)].size.map(|side| 8 * side));
                TrainError::NotFinite { step, what, batch, bucket }
            }
            other => other,
        }
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
            weights.push(schedule.weight(self.denoiser.loss_weight, t, self.levels));
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{noise::LEVELS, recipe::Recipe};

    fn denoiser() -> Denoiser {
        Recipe::parse(include_str!("../recipe/example.toml"), Path::new("tiny.toml")).unwrap().base
    }

    #[test]
    fn only_the_pictures_that_the_recipe_names_are_trained_on() {
        let of = |large_originals, small_originals, only_large_originals| {
            let denoiser = Denoiser { large_originals, small_originals, only_large_originals, ..denoiser() };
            kept(&denoiser, [1.0, 0.8, 1.0, 1.5, 0.4, 2.0].into_iter())
        };
        assert_eq!(of(None, None, false), [0, 1, 2, 3, 4, 5]);
        assert_eq!(of(None, None, true), [0, 2, 3, 5]);
        assert_eq!(of(Some(2), None, false), [0, 1, 2, 4]);
        assert_eq!(of(Some(2), Some(1), false), [0, 1, 2]);
        assert_eq!(of(None, Some(1), false), [0, 1, 2, 3, 5]);
        assert_eq!(of(Some(2), Some(1), true), [0, 2]);
    }

    #[test]
    fn kinds_of_pictures_have_their_shares_once_all_sizes_are_trained_on() {
        // Of ten pictures one was small and one is cropped.
        let conditions = |i: usize| Conditions {
            caption: String::new(),
            original_size: if i == 0 { [24, 24] } else { [128, 192] },
            crops_coords_top_left: [0, if i == 1 { 16 } else { 0 }],
            target_size: [128, 128],
            aesthetic_score: 6.0,
        };
        let bucket = Bucket::black([16, 16], (0..10).map(conditions).collect());
        let set = LatentSet { scaling_factor: 1.0, buckets: vec![bucket] };
        let shares = |denoiser: Denoiser, step| {
            let denoiser = Denoiser { steps: 1, multi_aspect_steps: 1, batch_size: 10_000, ..denoiser };
            let samples = steps(&denoiser, &set, LEVELS).samples(step);
            [0, 1].map(|i| samples.iter().filter(|sample| **sample == i).count() as f64 / 1e4)
        };
        let near = |got: [f64; 2], wanted: [f64; 2]| {
            assert!(got.iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() < 0.02), "{got:?}");
        };
        let by_share = Denoiser { small_original_share: Some(0.3), crop_share: Some(0.5), ..denoiser() };
        near(shares(by_share.clone(), 1), [0.1, 0.1]);
        near(shares(by_share, 2), [0.3, 0.5]);
        near(shares(denoiser(), 2), [0.1, 0.1]);
        let only_large = Denoiser { only_large_originals: true, ..denoiser() };
        near(shares(only_large, 1), [0.0, 1.0 / 9.0]);
    }

    fn steps<'a>(denoiser: &'a Denoiser, set: &'a LatentSet, levels: usize) -> Steps<'a> {
        let pools = pools(denoiser, set).unwrap();
        Steps { seed: 1, label: "base", denoiser, set, pools, levels, sharp: 0.0 }
    }

    /// Black pictures of two sizes, 600 square ones and 400 others.
    fn two_sizes() -> LatentSet {
        let bucket = |size: [usize; 2], count| {
            let conditions = Conditions {
                caption: String::new(),
                original_size: size.map(|side| 8 * side),
                crops_coords_top_left: [0, 0],
                target_size: size.map(|side| 8 * side),
                aesthetic_score: 6.0,
            };
            Bucket::black(size, vec![conditions; count])
        };
        LatentSet { scaling_factor: 1.0, buckets: vec![bucket([16, 16], 600), bucket([12, 20], 400)] }
    }

    #[test]
    fn first_come_square_pictures_then_all_sizes_one_in_a_batch() {
        let denoiser = Denoiser { steps: 50, multi_aspect_steps: 1000, ..denoiser() };
        let set = two_sizes();
        let steps = steps(&denoiser, &set, LEVELS);
        assert!((1..=50).all(|step| steps.bucket(step) == 0));
        let others = (51..=1050).filter(|step| steps.bucket(*step) == 1).count();
        assert!((330..470).contains(&others), "{others}");
        assert!((51..=1050).all(|step| {
            let count = set.buckets[steps.bucket(step)].len();
            steps.samples(step).iter().all(|sample| *sample < count)
        }));
    }

    #[test]
    fn offset_noise_comes_with_all_sizes_and_levels_stay_below_the_experts() {
        let denoiser =
            Denoiser { steps: 1, multi_aspect_steps: 1, batch_size: 400, offset_noise: 0.5, ..denoiser() };
        let set = two_sizes();
        let steps = steps(&denoiser, &set, 200);
        let noised = |step| {
            let samples = steps.samples(step);
            let shard = Shard { step, index: 0, count: 1, first: 0, samples: &samples };
            steps.noised(&shard, &NoiseSchedule::default()).unwrap()
        };
        // The mean of 256 or 240 values has a deviation of 1/16, with the offset's of about 1/2.
        let spread = |noised: &Noised| {
            let means = noised.noise.flatten_from(2).unwrap().mean(2).unwrap().flatten_all().unwrap();
            let means = means.to_vec1::<f32>().unwrap();
            (means.iter().map(|v| v * v).sum::<f32>() / means.len() as f32).sqrt()
        };
        let (square, late) = (noised(1), noised(2));
        assert!((spread(&square) - 0.0625).abs() < 0.006, "{}", spread(&square));
        assert!((spread(&late) - 0.504).abs() < 0.03, "{}", spread(&late));
        let highest = square.timesteps.iter().copied().fold(0.0, f32::max);
        let lowest = square.timesteps.iter().copied().fold(f32::MAX, f32::min);
        assert_eq!((lowest, highest), (0.0, 199.0));
        // Black latents are zeros: what is there is noise, as much as its level says.
        let first = square.latents.get(399).unwrap().sqr().unwrap().mean_all().unwrap();
        let share = NoiseSchedule::default().shares(199)[1];
        assert!((first.to_scalar::<f32>().unwrap().sqrt() / share - 1.0).abs() < 0.2);
    }

    #[test]
    fn captions_are_left_out_as_often_as_said() {
        let set = two_sizes();
        let denoiser = Denoiser { caption_dropout: 0.1, ..denoiser() };
        let steps = steps(&denoiser, &set, LEVELS);
        let samples: Vec<usize> = (0..10_000).map(|i| i % 600).collect();
        let dropped = steps.dropped(&Shard { step: 1, index: 0, count: 1, first: 0, samples: &samples });
        let count = dropped.iter().filter(|dropped| **dropped).count();
        assert!((900..1100).contains(&count), "{count}");
    }

    #[test]
    fn a_recipe_that_leaves_no_picture_is_refused() {
        let set = LatentSet { scaling_factor: 1.0, buckets: vec![Bucket::black([16, 16], Vec::new())] };
        assert!(pools(&denoiser(), &set).unwrap_err().to_string().contains("every square picture"));
    }
}

//! The denoising loop, one step at a time, so that whoever owns the device can do other work between steps.

mod ahead;

use std::{collections::BTreeSet, ops::Range};

use candle_core::{DType, IndexOp, Tensor};
use sdxl_core::{CropCoords, Schedule, Size, StepKinds};

use crate::{
    ModelError, finite,
    guidance::Guidance,
    noise::TorchGenerator,
    sampler,
    unet::{AddedConditioning, Prompt, Unet},
};

use ahead::UnderWay;
pub use ahead::{Ahead, Stepped, step_together};

/// SDXL's micro-conditioning (Podell et al. 2023, section 2.2) in the order that the networks were trained with.
#[derive(Clone, Debug, PartialEq)]
pub struct TimeIds(Vec<f32>);

impl TimeIds {
    /// The base's six: original height and width, crop top and left, target height and width.
    #[must_use]
    pub fn base(original_size: Size, crops_coords_top_left: CropCoords, target_size: Size) -> Self {
        let mut ids = size_and_crop(original_size, crops_coords_top_left);
        ids.extend([float(target_size.height), float(target_size.width)]);
        Self(ids)
    }

    /// The refiner's five: original height and width, crop top and left, aesthetic score.
    #[must_use]
    pub fn refiner(original_size: Size, crops_coords_top_left: CropCoords, aesthetic_score: f32) -> Self {
        let mut ids = size_and_crop(original_size, crops_coords_top_left);
        ids.push(aesthetic_score);
        Self(ids)
    }

    /// The values in order.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }
}

fn size_and_crop(original_size: Size, crop: CropCoords) -> Vec<f32> {
    [original_size.height, original_size.width, crop.top, crop.left].map(float).to_vec()
}

#[expect(clippy::cast_precision_loss, reason = "torch makes f32 of these integers too")]
fn float(value: u32) -> f32 {
    value as f32
}

/// What one half of a guided batch is conditioned by.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// `[77, D]`.
    pub prompt_embeds: Tensor,
    /// `[P]`.
    pub pooled_prompt_embeds: Tensor,
    /// Sizes, crops and scores.
    pub time_ids: TimeIds,
}

/// What the first step starts from. Latents are `[C, h, w]`.
#[derive(Clone, Debug)]
pub enum Start {
    /// Pure noise of a seed.
    Noise {
        /// Seed of torch's CPU generator.
        seed: u64,
        /// Latents' height and width.
        latent_size: [usize; 2],
    },
    /// Latents as another denoiser left them, or as checkpointed.
    Latents(Tensor),
    /// Clean latents, noised to the level of the first step.
    NoisedLatents {
        /// The clean latents.
        latents: Tensor,
        /// Seed of torch's CPU generator.
        seed: u64,
        /// Draws of this shape that the same generator has made before: 1 where the base began from its noise.
        draws_before: usize,
    },
}

/// One picture's way over a slice of a schedule.
#[derive(Clone, Debug)]
pub struct DenoiseInputs {
    /// The whole schedule.
    pub schedule: Schedule,
    /// The steps to run, of those in the schedule.
    pub steps: Range<usize>,
    /// What the first of them starts from.
    pub start: Start,
    /// The prompt's half.
    pub positive: Conditioning,
    /// The negative half; without one there is no guidance.
    pub negative: Option<Conditioning>,
    /// How the halves combine.
    pub guidance: Guidance,
    /// How each step is done; without a negative half none is guided.
    pub kinds: StepKinds,
}

/// A picture being denoised: everything between two steps.
#[derive(Clone, Debug)]
pub struct DenoiseRun {
    schedule: Schedule,
    steps: Range<usize>,
    guidance: Guidance,
    kinds: StepKinds,
    /// `[1, C, h, w]`, f32.
    latents: Tensor,
    positive: Prompt,
    negative: Option<Prompt>,
    /// Of the last step that was computed whole, where steps are cached: its place, its latents as here, and what its inner
    /// layers made.
    whole: Option<Whole>,
    /// The last step that was begun, until it is known to be done.
    under_way: Option<UnderWay>,
}

#[derive(Clone, Debug)]
struct Whole {
    step: usize,
    latents: Tensor,
    features: Tensor,
}

impl DenoiseRun {
    /// Puts latents and conditioning on the network's device.
    ///
    /// # Errors
    /// Steps outside the schedule or that begin where a cache is needed, a shape that does not fit the network, or latents with
    /// NaN or infinity.
    pub fn new(unet: &Unet, inputs: DenoiseInputs) -> Result<Self, ModelError> {
        let DenoiseInputs { schedule, steps, start, positive, negative, guidance, mut kinds } = inputs;
        if steps.start > steps.end || steps.end > schedule.len() {
            let (found, expected) =
                (vec![steps.start, steps.end], format!("steps within 0..{}", schedule.len()));
            return Err(ModelError::InvalidInput { what: "steps", found, expected });
        }
        if negative.is_none() {
            kinds.guided = 0..0;
        }
        if !steps.is_empty() && !kinds.is_whole(index(steps.start)) {
            let (found, expected) = (vec![steps.start], "a step that is computed whole".to_owned());
            return Err(ModelError::InvalidInput { what: "steps", found, expected });
        }
        let latents = begin(unet, &schedule, steps.start, &start)?;
        if let Some(negative) = &negative {
            alike("prompt_embeds", &negative.prompt_embeds, &positive.prompt_embeds)?;
        }
        Ok(Self {
            positive: prompt(unet, &positive)?,
            negative: negative.map(|negative| prompt(unet, &negative)).transpose()?,
            schedule,
            steps,
            guidance,
            kinds,
            latents,
            whole: None,
            under_way: None,
        })
    }

    /// Whether every step is done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.remaining().is_empty()
    }

    /// The steps that are not known to be done.
    #[must_use]
    pub fn remaining(&self) -> Range<usize> {
        self.under_way.as_ref().map_or(self.steps.start, |under_way| under_way.step)..self.steps.end
    }

    /// The step to begin next.
    #[must_use]
    pub fn next(&self) -> Option<usize> {
        self.steps.clone().next()
    }

    /// The latents after the last step that was begun, `[C, h, w]` in f32.
    ///
    /// # Errors
    /// A failed computation.
    pub fn latents(&self) -> Result<Tensor, ModelError> {
        Ok(self.latents.squeeze(0)?)
    }

    /// Does the next step and tells which it was; `None` where all are done.
    ///
    /// # Errors
    /// [`ModelError::NonFinite`] with the step where its latents hold NaN or infinity; a failed computation.
    pub fn step(&mut self, unet: &Unet) -> Result<Option<usize>, ModelError> {
        match step_together(unet, &mut [self])?.pop().transpose()? {
            Some(Stepped::Done { step, .. }) => Ok(Some(step)),
            _ => Ok(None),
        }
    }

    /// Where another run of the same request can go on from: the first step that is not known to be done with the latents before it,
    /// or the last that was computed whole with its own. Latents are `[C, h, w]` in f32.
    ///
    /// # Errors
    /// A failed computation.
    pub fn resumable(&self) -> Result<(usize, Tensor), ModelError> {
        let (step, latents) = match &self.under_way {
            Some(under_way) => (under_way.step, &under_way.latents_before),
            None => (self.steps.start, &self.latents),
        };
        match &self.whole {
            Some(whole) if !self.is_done() && !self.kinds.is_whole(index(step)) => {
                Ok((whole.step, whole.latents.squeeze(0)?))
            }
            _ => Ok((step, latents.squeeze(0)?)),
        }
    }

    /// How often the network is evaluated in step `i`.
    fn evaluations(&self, i: usize) -> usize {
        self.kinds.evaluations(index(i)) as usize
    }

    /// The network's input in step `i`, once for each half.
    fn scaled(&self, i: usize) -> candle_core::Result<Tensor> {
        let scaled = (&self.latents * f64::from(self.schedule.input_scale(i)))?;
        let (_, channels, height, width) = scaled.dims4()?;
        scaled.broadcast_as((self.evaluations(i), channels, height, width))?.contiguous()
    }

    /// The prompts in step `i`, negative first.
    fn prompts(&self, i: usize) -> impl Iterator<Item = &Prompt> {
        self.negative.iter().filter(move |_| self.kinds.is_guided(index(i))).chain([&self.positive])
    }

    /// The branch at which step `i` takes up what an earlier one left, and whether it is itself one that leaves it.
    fn caching(&self, i: usize) -> Option<(usize, bool)> {
        let branch = self.kinds.deep_cache?.cache_branch_id as usize;
        Some((branch, self.kinds.is_whole(index(i))))
    }

    /// Takes what the network predicted in step `i` for each half, and gives the latents before.
    fn take(&mut self, i: usize, predicted: &Tensor) -> Result<(Tensor, finite::Asked), ModelError> {
        let predicted = match self.kinds.is_guided(index(i)) {
            true => &self.guidance.combine(&predicted.i(..1)?, &predicted.i(1..)?)?,
            false => predicted,
        };
        let latents = sampler::step(&self.schedule.step(i), &self.latents, predicted)?;
        let finite = finite::ask(&latents, "latents", Some(i))?;
        Ok((std::mem::replace(&mut self.latents, latents), finite))
    }
}

/// What the network is given of the runs that take a step together, by run and step.
struct Given<'a> {
    sample: Tensor,
    timesteps: Vec<f32>,
    prompts: Vec<&'a Prompt>,
    /// Items of each run.
    evaluations: Vec<usize>,
}

impl<'a> Given<'a> {
    fn new(runs: &'a [&mut DenoiseRun], members: &[(usize, usize)]) -> Result<Self, ModelError> {
        let (mut inputs, mut timesteps, mut prompts) = (Vec::new(), Vec::new(), Vec::new());
        let mut evaluations = Vec::new();
        for (place, i) in members {
            let (run, i) = (&*runs[*place], *i);
            inputs.push(run.scaled(i)?);
            timesteps.extend(std::iter::repeat_n(run.schedule.timestep(i), run.evaluations(i)));
            prompts.extend(run.prompts(i));
            evaluations.push(run.evaluations(i));
        }
        Ok(Self { sample: Tensor::cat(&inputs, 0)?, timesteps, prompts, evaluations })
    }
}

/// The parts of `together` that are each run's: views of it.
fn parts(together: &Tensor, evaluations: &[usize]) -> Result<Vec<Tensor>, ModelError> {
    let mut first = 0;
    let part = |count: &usize| {
        first += count;
        Ok(together.narrow(0, first - count, *count)?)
    };
    evaluations.iter().map(part).collect()
}

/// A part for itself: a view would hold what all of the batch left for as long as one of them needs its own.
fn alone(part: Tensor, of: usize) -> candle_core::Result<Tensor> {
    if part.dim(0)? < of { part.force_contiguous() } else { Ok(part) }
}

/// What the whole network predicts for each; what those that cache steps need later is kept.
fn evaluate_whole(
    unet: &Unet,
    runs: &mut [&mut DenoiseRun],
    members: &[(usize, usize)],
) -> Result<Vec<Tensor>, ModelError> {
    for (place, _) in members {
        runs[*place].whole = None; // before there is more of the kind
    }
    let given = Given::new(runs, members)?;
    let branches: BTreeSet<_> =
        members.iter().filter_map(|(place, i)| runs[*place].caching(*i)).map(|(branch, _)| branch).collect();
    let branches: Vec<_> = branches.into_iter().collect();
    let (predicted, features) =
        unet.forward_to(&given.sample, &given.timesteps, &given.prompts, &branches)?;
    let evaluations = given.evaluations;
    for (branch, features) in branches.into_iter().zip(features) {
        for ((place, i), features) in members.iter().zip(parts(&features, &evaluations)?) {
            let run = &mut *runs[*place];
            if run.caching(*i).is_some_and(|(own, _)| own == branch) {
                let features = alone(features, evaluations.iter().sum())?;
                run.whole = Some(Whole { step: *i, latents: run.latents.clone(), features });
            }
        }
    }
    parts(&predicted.to_dtype(DType::F32)?, &evaluations)
}

/// What the layers outside of `branch` predict for each from what it kept.
fn evaluate_outer(
    unet: &Unet,
    runs: &mut [&mut DenoiseRun],
    members: &[(usize, usize)],
    branch: usize,
) -> Result<Vec<Tensor>, ModelError> {
    let given = Given::new(runs, members)?;
    let kept = |(place, i): &(usize, usize)| match &runs[*place].whole {
        Some(whole) if whole.features.dim(0)? == runs[*place].evaluations(*i) => Ok(whole.features.clone()),
        _ => candle_core::bail!("step {i} takes up what no step before it left"),
    };
    let features = members.iter().map(kept).collect::<candle_core::Result<Vec<_>>>()?;
    let features = Tensor::cat(&features, 0)?;
    let Given { sample, timesteps, prompts, evaluations } = given;
    let predicted = unet.forward_outer(&sample, &timesteps, &prompts, (branch, &features))?;
    parts(&predicted.to_dtype(DType::F32)?, &evaluations)
}

/// A step's place; a schedule has at most 1001.
fn index(step: usize) -> u32 {
    u32::try_from(step).unwrap_or(u32::MAX)
}

/// The latents of the first step, `[1, C, h, w]` in f32 on the network's device.
fn begin(unet: &Unet, schedule: &Schedule, step: usize, start: &Start) -> Result<Tensor, ModelError> {
    let latents = match start {
        Start::Noise { seed, latent_size } => {
            let noise = draw(unet, &mut TorchGenerator::new(*seed), *latent_size)?;
            return Ok((noise * f64::from(schedule.init_noise_sigma()))?);
        }
        Start::Latents(latents) | Start::NoisedLatents { latents, .. } => latents,
    };
    let channels = unet.config().in_channels;
    let [_, height, width] = match *latents.dims() {
        [c, h, w] if c == channels && h > 0 && w > 0 => [c, h, w],
        _ => {
            let (found, expected) = (latents.dims().to_vec(), format!("[{channels}, height, width]"));
            return Err(ModelError::InvalidInput { what: "latents", found, expected });
        }
    };
    let latents = latents.unsqueeze(0)?.to_device(unet.device())?.to_dtype(DType::F32)?.contiguous()?;
    finite::check(&latents, "latents", None)?;
    let Start::NoisedLatents { seed, draws_before, .. } = start else { return Ok(latents) };
    let mut generator = TorchGenerator::new(*seed);
    for _ in 0..*draws_before {
        let _ = generator.randn(channels * height * width);
    }
    let noise = draw(unet, &mut generator, [height, width])?;
    if step >= schedule.len() {
        return Ok(latents); // no step will run
    }
    Ok(sampler::add_noise(schedule.noise_level(step), &latents, &noise)?)
}

/// Unit noise `[1, C, h, w]`.
fn draw(
    unet: &Unet,
    generator: &mut TorchGenerator,
    [height, width]: [usize; 2],
) -> candle_core::Result<Tensor> {
    let channels = unet.config().in_channels;
    Tensor::from_vec(generator.randn(channels * height * width), (1, channels, height, width), unet.device())
}

/// What one half comes to inside the network.
fn prompt(unet: &Unet, half: &Conditioning) -> Result<Prompt, ModelError> {
    let put = |tensor: &Tensor| tensor.unsqueeze(0)?.to_device(unet.device())?.to_dtype(unet.dtype());
    let ids = half.time_ids.as_slice();
    let added = AddedConditioning {
        text_embeds: put(&half.pooled_prompt_embeds)?,
        time_ids: Tensor::from_slice(ids, (1, ids.len()), unet.device())?,
    };
    unet.prompt(&put(&half.prompt_embeds)?, &added)
}

/// The halves have as many tokens each, since they are evaluated together.
fn alike(what: &'static str, negative: &Tensor, positive: &Tensor) -> Result<(), ModelError> {
    if negative.dims() == positive.dims() {
        return Ok(());
    }
    let (found, expected) = (negative.dims().to_vec(), format!("the positive's {:?}", positive.dims()));
    Err(ModelError::InvalidInput { what, found, expected })
}

#[cfg(test)]
mod tests;

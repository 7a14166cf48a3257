//! The denoising loop, one step at a time, so that whoever owns the device can do other work between steps.

use std::ops::Range;

use candle_core::{DType, IndexOp, Tensor};
use sdxl_core::{CropCoords, Schedule, Size};

use crate::{
    ModelError, finite,
    guidance::Guidance,
    noise::TorchGenerator,
    sampler,
    unet::{AddedConditioning, Prompt, Unet},
};

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
}

/// A picture being denoised: everything between two steps.
#[derive(Clone, Debug)]
pub struct DenoiseRun {
    schedule: Schedule,
    steps: Range<usize>,
    guidance: Guidance,
    /// `[1, C, h, w]`, f32.
    latents: Tensor,
    /// Whether there is a negative half.
    negative: bool,
    /// Negative and positive, or positive alone.
    prompt: Prompt,
}

impl DenoiseRun {
    /// Puts latents and conditioning on the network's device.
    ///
    /// # Errors
    /// Steps outside the schedule, a shape that does not fit the network, or latents with NaN or infinity.
    pub fn new(unet: &Unet, inputs: DenoiseInputs) -> Result<Self, ModelError> {
        let DenoiseInputs { schedule, steps, start, positive, negative, guidance } = inputs;
        if steps.start > steps.end || steps.end > schedule.len() {
            let (found, expected) =
                (vec![steps.start, steps.end], format!("steps within 0..{}", schedule.len()));
            return Err(ModelError::InvalidInput { what: "steps", found, expected });
        }
        let latents = begin(unet, &schedule, steps.start, &start)?;
        let halves: Vec<_> = negative.iter().chain([&positive]).collect();
        let stack = |name, of: &dyn Fn(&Conditioning) -> Tensor| stack(name, unet, &halves, of);
        let ids = |half: &Conditioning| {
            let ids = half.time_ids.as_slice();
            Tensor::from_slice(ids, ids.len(), unet.device())
        };
        let time_ids = halves.iter().map(|half| ids(half)).collect::<candle_core::Result<Vec<_>>>()?;
        let prompt_embeds = stack("prompt_embeds", &|half| half.prompt_embeds.clone())?;
        let added = AddedConditioning {
            text_embeds: stack("pooled_prompt_embeds", &|half| half.pooled_prompt_embeds.clone())?,
            time_ids: Tensor::stack(&time_ids, 0)?,
        };
        Ok(Self {
            prompt: unet.prompt(&prompt_embeds, &added)?,
            negative: negative.is_some(),
            schedule,
            steps,
            guidance,
            latents,
        })
    }

    /// Whether every step is done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.steps.is_empty()
    }

    /// The steps to come; the first is next.
    #[must_use]
    pub fn remaining(&self) -> Range<usize> {
        self.steps.clone()
    }

    /// The latents as they are now, `[C, h, w]` in f32.
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
        step_together(unet, &mut [self])?.pop().unwrap_or(Ok(None))
    }

    /// How often the network is evaluated in a step: twice with guidance.
    #[must_use]
    pub fn evaluations(&self) -> usize {
        if self.negative { 2 } else { 1 }
    }

    /// The network's input in step `i`, once for each half.
    fn scaled(&self, i: usize) -> candle_core::Result<Tensor> {
        let scaled = (&self.latents * f64::from(self.schedule.input_scale(i)))?;
        let (_, channels, height, width) = scaled.dims4()?;
        scaled.broadcast_as((self.evaluations(), channels, height, width))?.contiguous()
    }

    /// Takes what the network predicted in step `i` for each half.
    fn take(&mut self, i: usize, predicted: &Tensor) -> Result<(), ModelError> {
        let predicted = match self.negative {
            true => &self.guidance.combine(&predicted.i(..1)?, &predicted.i(1..)?)?,
            false => predicted,
        };
        self.latents = sampler::step(&self.schedule.step(i), &self.latents, predicted)?;
        finite::check(&self.latents, "latents", Some(i))
    }
}

/// Does the next step of each run in one call of the network and tells for each which step that was, or that all were
/// done before. The runs may be at different steps of different schedules, guided or not; their latents have one height
/// and width. A run's latents do not depend on the others, to the last bit on the CPU.
///
/// # Errors
/// A failed computation, which ends all runs. A run whose latents hold NaN or infinity then has an error of its own,
/// [`ModelError::NonFinite`] with the step.
pub fn step_together(
    unet: &Unet,
    runs: &mut [&mut DenoiseRun],
) -> Result<Vec<Result<Option<usize>, ModelError>>, ModelError> {
    let steps: Vec<_> = runs.iter_mut().map(|run| run.steps.next()).collect();
    let (mut inputs, mut timesteps) = (Vec::with_capacity(runs.len()), Vec::with_capacity(2 * runs.len()));
    let mut prompts = Vec::with_capacity(runs.len());
    for (run, i) in runs.iter().zip(&steps).filter_map(|(run, i)| Some((run, (*i)?))) {
        inputs.push(run.scaled(i)?);
        timesteps.extend(std::iter::repeat_n(run.schedule.timestep(i), run.evaluations()));
        prompts.push(&run.prompt);
    }
    if inputs.is_empty() {
        return Ok(runs.iter().map(|_| Ok(None)).collect());
    }
    let predicted = unet.forward_to(&Tensor::cat(&inputs, 0)?, &timesteps, &prompts)?;
    let predicted = predicted.to_dtype(DType::F32)?;
    let mut first = 0;
    let taken = runs.iter_mut().zip(steps).map(|(run, i)| {
        let Some(i) = i else { return Ok(None) };
        let own = predicted.narrow(0, first, run.evaluations())?;
        first += run.evaluations();
        run.take(i, &own).map(|()| Some(i))
    });
    Ok(taken.collect())
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

/// One tensor of each half, stacked on the network's device in its type.
fn stack(
    what: &'static str,
    unet: &Unet,
    halves: &[&Conditioning],
    of: &dyn Fn(&Conditioning) -> Tensor,
) -> Result<Tensor, ModelError> {
    let tensors: Vec<_> = halves.iter().map(|half| of(half)).collect();
    if let [first, second] = tensors.as_slice()
        && first.dims() != second.dims()
    {
        let (found, expected) = (first.dims().to_vec(), format!("the positive's {:?}", second.dims()));
        return Err(ModelError::InvalidInput { what, found, expected });
    }
    Ok(Tensor::stack(&tensors, 0)?.to_device(unet.device())?.to_dtype(unet.dtype())?)
}

#[cfg(test)]
mod tests;

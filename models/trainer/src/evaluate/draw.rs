//! Draws pictures in process, with the parts and in the order that the services draw with.

use std::{ops::Range, path::Path};

use candle_core::{DType, Device, IndexOp, Tensor};
use sdxl_core::{CropCoords, Schedule, SchedulerConfig, Size};
use sdxl_models::{
    ModelError, PipelineDir, TextConditioner, Weights,
    autograd::{Precision, Scope},
    denoise::TimeIds,
    guidance::Guidance,
    noise::TorchGenerator,
    sampler,
    unet::{AddedConditioning, Unet, UnetConfig},
    vae::{VaeConfig, VaeDecoder, to_rgb8},
};

use crate::{
    TrainError,
    classifier::Raster,
    export::{self, Parts},
    recipe::Recipe,
    threads::Team,
};

/// Pictures in one batch.
const BATCH: usize = 8;

/// A prompt's `[77, D]` context and `[P]` pooled embedding.
pub type Encode = Box<dyn Fn(&str) -> Result<[Tensor; 2], ModelError> + Send + Sync>;

/// A denoiser with the text encoders that it listens to.
pub struct Denoiser {
    /// Its text encoders.
    pub encode: Encode,
    /// The network.
    pub unet: Unet,
    /// Its noise schedule.
    pub scheduler: SchedulerConfig,
    /// Whether no negative prompt means zeros.
    pub zeros_for_no_prompt: bool,
}

impl Denoiser {
    /// That of an exported pipeline.
    ///
    /// # Errors
    /// A file is missing or broken.
    pub fn open(folder: &Path) -> Result<Self, TrainError> {
        let dir = PipelineDir::open(folder)?;
        let texts = TextConditioner::load(&dir, DType::F32, &Device::Cpu)?;
        let config = UnetConfig::open(&dir.unet().join("config.json"))?;
        let weights = Weights::open(&dir.unet())?;
        let encode = move |prompt: &str| {
            let text = texts.encode(prompt, "", 0)?;
            Ok([text.prompt_embeds, text.pooled_prompt_embeds])
        };
        Ok(Self {
            encode: Box::new(encode),
            unet: Unet::new(&weights.var_builder(DType::F32, &Device::Cpu), &config)?,
            scheduler: dir.scheduler_config()?,
            zeros_for_no_prompt: dir.force_zeros_for_empty_prompt(),
        })
    }

    fn schedule(&self, steps: u32) -> Result<Schedule, TrainError> {
        let failed = |e| TrainError::StartUp { what: "make a noise schedule", why: format!("{e}") };
        Schedule::new(&self.scheduler, steps).map_err(failed)
    }

    /// The texts' and sizes' part of a batch: the negative halves, where there is guidance, then the prompts'.
    fn condition(
        &self,
        orders: &[Order],
        [positive, negative]: [&TimeIds; 2],
    ) -> Result<Conditions, TrainError> {
        let guided = orders.first().is_some_and(|order| order.options.guidance_scale > 1.0);
        let texts =
            orders.iter().map(|order| (self.encode)(&order.caption)).collect::<Result<Vec<_>, _>>()?;
        let mut halves = Vec::with_capacity(2 * texts.len());
        if guided && !self.zeros_for_no_prompt {
            halves = vec![(self.encode)("")?; texts.len()];
        } else if guided {
            let zeros = |[context, pooled]: &[Tensor; 2]| Ok([context.zeros_like()?, pooled.zeros_like()?]);
            halves = texts.iter().map(zeros).collect::<candle_core::Result<_>>()?;
        }
        halves.extend(texts);
        let stack = |i: usize| Tensor::stack(&halves.iter().map(|half| &half[i]).collect::<Vec<_>>(), 0);
        let negatives = halves.len() - orders.len();
        let ids = (0..halves.len()).flat_map(|i| if i < negatives { negative } else { positive }.as_slice());
        let time_ids = ids.copied().collect::<Vec<_>>();
        let time_ids = Tensor::from_vec(time_ids, (halves.len(), positive.as_slice().len()), &Device::Cpu)?;
        Ok(Conditions {
            prompt_embeds: stack(0)?,
            added: AddedConditioning { text_embeds: stack(1)?, time_ids },
        })
    }

    /// Runs `steps` of a schedule on latents `[B, C, h, w]`: [`sdxl_models::denoise::DenoiseRun`] for many at once.
    fn denoise(
        &self,
        (schedule, steps): (&Schedule, Range<usize>),
        mut latents: Tensor,
        conditions: &Conditions,
        scale: f32,
    ) -> Result<Tensor, TrainError> {
        let (count, halves) = (latents.dim(0)?, conditions.prompt_embeds.dim(0)?);
        let guidance = Guidance { scale, rescale: 0.0 };
        for i in steps {
            let scaled = (&latents * f64::from(schedule.input_scale(i)))?;
            let batch = if halves > count { Tensor::cat(&[&scaled, &scaled], 0)? } else { scaled };
            let timesteps = vec![schedule.timestep(i); halves];
            let Conditions { prompt_embeds, added } = conditions;
            let mut predicted = self.unet.forward(&batch, &timesteps, prompt_embeds, added)?;
            if halves > count {
                let [negative, positive] =
                    [predicted.narrow(0, 0, count)?, predicted.narrow(0, count, count)?];
                predicted = guidance.combine(&negative, &positive)?;
            }
            latents = sampler::step(&schedule.step(i), &latents, &predicted)?;
        }
        Ok(latents)
    }
}

/// What a batch is conditioned by.
struct Conditions {
    /// `[N, 77, D]`.
    prompt_embeds: Tensor,
    added: AddedConditioning,
}

/// How a picture is drawn. Sizes and places are `[height, width]` and `[top, left]`, in pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Steps of the whole schedule.
    pub num_inference_steps: u32,
    /// How far to follow the caption.
    pub guidance_scale: f32,
    /// The picture's size.
    pub size: [usize; 2],
    /// What it should look to have been before resizing; its size if none.
    pub original_size: Option<[usize; 2]>,
    /// What should look to have been cut off.
    pub crops_coords_top_left: [usize; 2],
    /// What it should look to have been resized to; its size if none.
    pub target_size: Option<[usize; 2]>,
    /// The share of the schedule that is the base's where the refiner does the rest.
    pub refiner_split: Option<f64>,
    /// The refiner's scores for the caption's half and the negative half.
    pub aesthetic_scores: [f32; 2],
}

impl Options {
    /// As the services draw where nothing is said.
    #[must_use]
    pub fn new(size: [usize; 2]) -> Self {
        Self {
            num_inference_steps: 30,
            guidance_scale: 5.0,
            size,
            original_size: None,
            crops_coords_top_left: [0, 0],
            target_size: None,
            refiner_split: None,
            aesthetic_scores: [6.0, 2.5],
        }
    }

    fn original(&self) -> Size {
        pixels(self.original_size.unwrap_or(self.size))
    }

    fn crop(&self) -> CropCoords {
        let Size { height: top, width: left } = pixels(self.crops_coords_top_left);
        CropCoords { top, left }
    }
}

fn pixels([height, width]: [usize; 2]) -> Size {
    let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    Size::new(side(height), side(width))
}

/// A picture to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// The prompt.
    pub caption: String,
    /// The noise's seed.
    pub seed: u64,
    /// How to draw it.
    pub options: Options,
}

/// A model that draws.
pub struct Painter {
    /// The denoiser that every picture begins with.
    pub base: Denoiser,
    /// The denoiser that may go on.
    pub refiner: Option<Denoiser>,
    /// From latents to pictures.
    pub decoder: VaeDecoder,
    /// The kernels of training, at that precision, in place of those that serve: bf16 is twice as fast.
    pub precision: Option<Precision>,
}

impl Painter {
    /// An exported model: `model/base` and, if it is there, `model/refiner`.
    ///
    /// # Errors
    /// A file is missing or broken.
    pub fn open(model: &Path) -> Result<Self, TrainError> {
        let (base, refiner) = (model.join("base"), model.join("refiner"));
        let refiner = refiner.exists().then(|| Denoiser::open(&refiner)).transpose()?;
        let vae = base.join("vae");
        let config = VaeConfig::open(&vae.join("config.json"))?;
        let weights = Weights::open(&vae)?.var_builder(DType::F32, &Device::Cpu);
        let decoder = VaeDecoder::new(&weights, &config)?;
        Ok(Self { base: Denoiser::open(&base)?, refiner, decoder, precision: None })
    }

    /// The model that a training run has come to, as it would be exported.
    ///
    /// # Errors
    /// No folder can be made, or the parts do not fit the recipe.
    pub fn of_parts(recipe: &Recipe, parts: &Parts) -> Result<Self, TrainError> {
        let failed = |source| TrainError::WriteFile { path: std::env::temp_dir(), source };
        let folder = tempfile::tempdir().map_err(failed)?;
        export::export(recipe, parts, folder.path())?;
        Self::open(folder.path())
    }

    /// Draws pictures, several at once; those that follow one another with the same options together.
    ///
    /// # Errors
    /// A network does not fit its inputs, or latents are not finite.
    pub fn draw(&self, team: &Team, orders: &[Order]) -> Result<Vec<Raster>, TrainError> {
        let same = orders.chunk_by(|a, b| a.options == b.options);
        let batches: Vec<_> = same.flat_map(|same| same.chunks(BATCH)).collect();
        let threads = team.size().min(batches.len());
        // One after the other in turn, so that neighbours, which cost alike, are spread.
        let drawn = team.each(threads, |first| {
            let own = batches.iter().skip(first).step_by(threads);
            own.map(|batch| self.draw_batch(batch)).collect::<Result<Vec<_>, _>>()
        });
        let drawn = drawn.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut drawn: Vec<_> = drawn.into_iter().map(Vec::into_iter).collect();
        Ok((0..batches.len()).filter_map(|i| drawn[i % threads].next()).flatten().collect())
    }

    fn draw_batch(&self, orders: &[Order]) -> Result<Vec<Raster>, TrainError> {
        let _scope = self.precision.map(Scope::new);
        let pictures = self.decoder.decode(&self.latents(orders)?)?;
        let picture =
            |(i, order): (usize, &Order)| Ok(Raster::of_rgb8(&to_rgb8(&pictures.i(i)?)?, order.options.size));
        orders.iter().enumerate().map(picture).collect()
    }

    /// Clean latents, `[B, C, h, w]`.
    fn latents(&self, orders: &[Order]) -> Result<Tensor, TrainError> {
        let Some(Order { options, .. }) = orders.first() else {
            return Err(candle_core::Error::Msg("nothing to draw".into()).into());
        };
        let target = pixels(options.target_size.unwrap_or(options.size));
        let time_ids = TimeIds::base(options.original(), options.crop(), target);
        let conditions = self.base.condition(orders, [&time_ids; 2])?;
        let schedule = self.base.schedule(options.num_inference_steps)?;
        let refined = options.refiner_split.and_then(|split| Some((split, self.refiner.as_ref()?)));
        let end = refined.map_or(schedule.len(), |(split, _)| schedule.split(split));
        let noise = (self.noise(orders)? * f64::from(schedule.init_noise_sigma()))?;
        let latents = self.base.denoise((&schedule, 0..end), noise, &conditions, options.guidance_scale)?;
        let Some((split, refiner)) = refined else { return Ok(latents) };

        let [score, negative_score] = options.aesthetic_scores;
        // The negative half has no crop, as in the services.
        let positive = TimeIds::refiner(options.original(), options.crop(), score);
        let negative = TimeIds::refiner(options.original(), CropCoords::default(), negative_score);
        let conditions = refiner.condition(orders, [&positive, &negative])?;
        let schedule = refiner.schedule(options.num_inference_steps)?;
        let steps = schedule.split(split)..schedule.len();
        refiner.denoise((&schedule, steps), latents, &conditions, options.guidance_scale)
    }

    /// Unit noise `[B, C, h, w]`, each picture's of its own seed.
    fn noise(&self, orders: &[Order]) -> candle_core::Result<Tensor> {
        let channels = self.base.unet.config().in_channels;
        let noise = |order: &Order| {
            let [h, w] = order.options.size.map(|side| side / 8);
            let values = TorchGenerator::new(order.seed).randn(channels * h * w);
            Tensor::from_vec(values, (channels, h, w), &Device::Cpu)
        };
        Tensor::stack(&orders.iter().map(noise).collect::<candle_core::Result<Vec<_>>>()?, 0)
    }
}

#[cfg(test)]
mod tests;

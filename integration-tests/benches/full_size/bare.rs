//! The engines of a picture in one process, with no server between them: what a cluster is held against.

use candle_core::{DType, Device, Tensor};
use image::{
    ExtendedColorType, ImageEncoder,
    codecs::png::{CompressionType, FilterType, PngEncoder},
};
use sdxl_core::{CropCoords, Schedule, SchedulerConfig, Size, StepKinds};
use sdxl_models::{
    ModelError, Packing, PipelineDir, TextConditioner, Weights,
    denoise::{Conditioning, DenoiseInputs, DenoiseRun, Start, TimeIds},
    guidance::Guidance,
    unet::{Unet, UnetConfig},
    vae::{VaeConfig, VaeDecoder, to_rgb8},
};
use std::path::Path;

/// A base pipeline in f32.
#[derive(Debug)]
pub(crate) struct Bare {
    text: TextConditioner,
    unet: Unet,
    vae: VaeDecoder,
    scheduler: SchedulerConfig,
}

impl Bare {
    pub(crate) fn load(folder: &Path) -> Result<Self, ModelError> {
        let (dir, device) = (PipelineDir::open(folder)?, Device::Cpu);
        let weights =
            |folder: &Path| Ok::<_, ModelError>(Weights::open(folder)?.var_builder(DType::F32, &device));
        let unet_config = UnetConfig::open(&dir.unet().join("config.json"))?;
        let vae_config = VaeConfig::open(&dir.vae().join("config.json"))?;
        let _packing = Packing::new();
        Ok(Self {
            text: TextConditioner::load(&dir, DType::F32, &device)?,
            unet: Unet::new(&weights(&dir.unet())?, &unet_config)?,
            vae: VaeDecoder::new(&weights(&dir.vae())?, &vae_config)?,
            scheduler: dir.scheduler_config()?,
        })
    }

    /// The PNG that a request for `prompt` gives at `side` x `side` pixels, guided by 5 and without a negative prompt.
    pub(crate) fn picture(
        &self,
        prompt: &str,
        seed: u64,
        steps: u32,
        side: u32,
    ) -> Result<Vec<u8>, ModelError> {
        self.picture_by(prompt, seed, (steps, StepKinds::plain()), side)
    }

    /// [`Bare::picture`] whose steps are done as `kinds` says.
    pub(crate) fn picture_by(
        &self,
        prompt: &str,
        seed: u64,
        (steps, kinds): (u32, StepKinds),
        side: u32,
    ) -> Result<Vec<u8>, ModelError> {
        let embedding = self.text.encode(prompt, "", 0)?;
        let time_ids = TimeIds::base(Size::new(side, side), CropCoords::default(), Size::new(side, side));
        let positive = Conditioning {
            prompt_embeds: embedding.prompt_embeds,
            pooled_prompt_embeds: embedding.pooled_prompt_embeds,
            time_ids,
        };
        let negative = Conditioning {
            prompt_embeds: positive.prompt_embeds.zeros_like()?,
            pooled_prompt_embeds: positive.pooled_prompt_embeds.zeros_like()?,
            time_ids: positive.time_ids.clone(),
        };
        let schedule =
            Schedule::new(&self.scheduler, steps).expect("a number of steps that the schedule has");
        let inputs = DenoiseInputs {
            steps: 0..schedule.len(),
            schedule,
            start: Start::Noise { seed, latent_size: [side as usize / 8, side as usize / 8] },
            positive,
            negative: Some(negative),
            guidance: Guidance { scale: 5.0, rescale: 0.0 },
            kinds,
        };
        let mut run = DenoiseRun::new(&self.unet, inputs)?;
        while run.step(&self.unet)?.is_some() {}
        self.png(&run.latents()?, side)
    }

    /// As the VAE stage makes it.
    fn png(&self, latents: &Tensor, side: u32) -> Result<Vec<u8>, ModelError> {
        let pixels = to_rgb8(&self.vae.decode(&latents.unsqueeze(0)?)?.squeeze(0)?)?;
        let mut file = Vec::new();
        PngEncoder::new_with_quality(&mut file, CompressionType::Fast, FilterType::Adaptive)
            .write_image(&pixels, side, side, ExtendedColorType::Rgb8)
            .expect("a picture of that size");
        Ok(file)
    }
}

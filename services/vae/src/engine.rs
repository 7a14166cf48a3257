use crate::encode::encode;
use anyhow::{Context, bail};
use candle_core::{DType, Device, Tensor};
use sdxl_core::{
    ImageFormat, Size, StageKind, VaeInfo, Violations,
    size::{MAX_SIDE, SIDE_MULTIPLE},
};
use sdxl_models::{
    Packing, PipelineDir, Weights,
    vae::{VaeConfig, VaeDecoder, to_rgb8},
};
use sdxl_stage::{
    Details, Engine, EngineError, StageInfo, Step, StepOf, Work, device_name,
    jobs::{DecodeJob, EncodedPicture},
};
use std::{convert::Infallible, path::Path};
use tracing::info_span;

/// An autoencoder's decoder with the picture formats.
#[derive(Debug)]
pub(crate) struct VaeEngine {
    decoder: VaeDecoder,
}

impl VaeEngine {
    /// Loads the decoder of the checkpoint `path`.
    ///
    /// # Errors
    /// Where a file or tensor is missing or wrong; one line that names the file.
    pub(crate) fn load(path: &Path, dtype: DType, device: &Device) -> anyhow::Result<(Self, StageInfo)> {
        let dir = PipelineDir::open(path)?;
        let config = VaeConfig::open(&dir.vae().join("config.json"))?;
        let factor = config.vae_scale_factor();
        if factor != SIDE_MULTIPLE as usize {
            let path = dir.vae().join("config.json");
            bail!(
                "{}: block_out_channels compresses {factor}-fold; SDXL's latents are an 8th",
                path.display()
            );
        }
        let dtype = config.compute_dtype(dtype);
        let weights = Weights::open(&dir.vae())?;
        let _packing = Packing::new();
        let decoder = VaeDecoder::new(&weights.var_builder(dtype, device), &config)?;
        let count = |n: usize| u32::try_from(n).context("vae/config.json: a width beyond 2^32");
        let details = VaeInfo {
            latent_channels: count(config.latent_channels)?,
            vae_scale_factor: count(config.vae_scale_factor())?,
        };
        let info = StageInfo {
            kind: StageKind::Vae,
            model: dir.name().to_owned(),
            revision: dir.revision(&["vae"])?,
            device: device_name(device),
            dtype,
            details: Details::Vae(details),
        };
        Ok((Self { decoder }, info))
    }

    fn decode(&self, job: &DecodeJob) -> Result<EncodedPicture, EngineError> {
        let batch = job.latents.unsqueeze(0).and_then(|latents| latents.to_device(self.decoder.device()));
        let picture =
            self.decoder.decode(&batch.map_err(EngineError::failed)?).map_err(EngineError::failed)?;
        let picture = picture.squeeze(0).map_err(EngineError::failed)?;
        let (_, height, width) = picture.dims3().map_err(EngineError::failed)?;
        let pixels = to_rgb8(&picture).map_err(EngineError::failed)?;
        let side = |n: usize| u32::try_from(n).map_err(EngineError::failed);
        let (width, height) = (side(width)?, side(height)?);
        let span = info_span!("encode picture", media_type = job.image_format.media_type());
        let data = span.in_scope(|| encode(&pixels, [width, height], job.image_format, job.quality));
        let data = data.map_err(EngineError::Failed)?;
        let media_type = job.image_format.media_type();
        Ok(EncodedPicture { data: data.into(), media_type, width, height })
    }

    fn check(&self, latents: &Tensor) -> Result<(), EngineError> {
        let mut wrong = Violations::default();
        let channels = self.decoder.config().latent_channels;
        let most = MAX_SIDE as usize / self.decoder.config().vae_scale_factor();
        match *latents.dims() {
            [c, h, w] if c == channels && [h, w].iter().all(|side| (1..=most).contains(side)) => {
                return Ok(());
            }
            ref dims => wrong.push(
                "latents.shape",
                format!("{dims:?} is not [{channels}, height, width] with sides of 1 to {most}"),
            ),
        }
        Err(EngineError::Invalid(wrong.into_vec()))
    }
}

impl Engine for VaeEngine {
    type Request = DecodeJob;
    type Run = DecodeJob;
    type Event = Infallible;
    type Output = EncodedPicture;

    fn warm_up(&mut self) -> Result<(), EngineError> {
        let shape = [self.decoder.config().latent_channels, 8, 8];
        let latents = Tensor::zeros(&shape[..], DType::F32, &Device::Cpu).map_err(EngineError::failed)?;
        self.decode(&DecodeJob { latents, image_format: ImageFormat::Png, quality: 90 }).map(drop)
    }

    fn begin(&mut self, request: DecodeJob) -> Result<DecodeJob, EngineError> {
        self.check(&request.latents)?;
        Ok(request)
    }

    fn work(&self, job: &DecodeJob) -> Work {
        let side = |i: usize| job.latents.dims().get(i).map_or(0, |n| u32::try_from(*n).unwrap_or(u32::MAX));
        Work::even(Size::new(side(1), side(2)), 1, 1)
    }

    fn advance(&mut self, jobs: &mut [&mut DecodeJob]) -> Vec<Result<StepOf<Self>, EngineError>> {
        jobs.iter().map(|job| self.decode(job).map(Step::Done)).collect()
    }
}

#[cfg(test)]
mod tests;

use super::{
    device::{Device, Present},
    digest::{Digest, Draws},
    info,
    profile::{Profile, VaeProfile},
};
use crate::{
    Details, Engine, EngineError, StageInfo, Step, StepOf, Work,
    jobs::{DecodeJob, EncodedPicture},
};
use candle_core::{DType, Tensor};
use png::{BitDepth, ColorType, Compression, Encoder, EncodingError, Filter};
use sdxl_core::{
    ImageFormat, Size, StageKind, Violations,
    size::{MAX_SIDE, SIDE_MULTIPLE},
};
use std::{convert::Infallible, path::Path, thread};
use tracing::info_span;

/// An autoencoder's decoder that takes its time.
#[derive(Debug)]
pub struct SimulatedVae {
    profile: VaeProfile,
    device: Device,
}

/// A picture to decode.
#[derive(Debug)]
pub struct SimulatedDecodeRun {
    latents: Tensor,
    /// Of the picture in pixels.
    size: Size,
    _present: Present,
}

impl SimulatedVae {
    /// A VAE by the profile in `path`.
    ///
    /// # Errors
    /// Where the profile cannot be read; one line.
    pub fn load(path: &Path) -> anyhow::Result<(Self, StageInfo)> {
        Ok(Self::new(&Profile::open(path)?))
    }

    /// A VAE by `profile`.
    #[must_use]
    pub fn new(profile: &Profile) -> (Self, StageInfo) {
        let own = profile.vae.clone();
        let info = info(StageKind::Vae, profile, Details::Vae(own.info.clone()));
        (Self { profile: own, device: Device::new() }, info)
    }

    /// The picture's size.
    fn check(&self, job: &DecodeJob) -> Result<Size, EngineError> {
        let mut wrong = Violations::default();
        if job.image_format != ImageFormat::Png {
            let found = job.image_format.media_type();
            wrong
                .push("image_format", format!("{found} is not image/png; the simulated vae only writes PNG"));
        }
        let channels = self.profile.info.latent_channels as usize;
        let most = (MAX_SIDE / SIDE_MULTIPLE) as usize;
        let size = match *job.latents.dims() {
            [c, h, w] if c == channels => pixels(h).zip(pixels(w)).map(|(h, w)| Size::new(h, w)),
            _ => None,
        };
        if size.is_none() {
            let allowed = format!("[{channels}, height, width] with sides of 1 to {most}");
            wrong.push("latents.shape", format!("{:?} is not {allowed}", job.latents.dims()));
        }
        size.filter(|_| wrong.is_empty()).ok_or_else(|| EngineError::Invalid(wrong.into_vec()))
    }

    fn decode(&mut self, run: &SimulatedDecodeRun) -> Result<EncodedPicture, EngineError> {
        self.device.work(self.profile.picture(run.size));
        let hash = hash(&run.latents)?;
        let Size { height, width } = run.size;
        let span = info_span!("encode picture", media_type = ImageFormat::Png.media_type());
        let data = span.in_scope(|| encode(hash, run.size)).map_err(EngineError::failed)?;
        let media_type = ImageFormat::Png.media_type();
        Ok(EncodedPicture { data: data.into(), media_type, width, height })
    }
}

/// A picture's side from the latents', if any is that long.
fn pixels(side: usize) -> Option<u32> {
    let pixels = u32::try_from(side).ok()?.checked_mul(SIDE_MULTIPLE)?;
    (SIDE_MULTIPLE..=MAX_SIDE).contains(&pixels).then_some(pixels)
}

fn hash(latents: &Tensor) -> Result<u64, EngineError> {
    let values = latents.to_dtype(DType::F32).and_then(|latents| latents.flatten_all()?.to_vec1::<f32>());
    if !values.map_err(EngineError::failed)?.iter().all(|value| value.is_finite()) {
        return Err(EngineError::failed("latents is not finite"));
    }
    Digest::of("picture").tensor(Some(latents)).map(Digest::finish).map_err(EngineError::failed)
}

/// A PNG of one colour, which is the hash's, and the hash itself in a text chunk, so that other latents give other bytes
/// even where they give the same colour. One bit a pixel, all of them zero: a picture costs a fraction of a millisecond.
fn encode(hash: u64, size: Size) -> Result<Vec<u8>, EncodingError> {
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, size.width, size.height);
    encoder.set_color(ColorType::Indexed);
    encoder.set_depth(BitDepth::One);
    let [red, green, blue, ..] = Draws::new(hash).number().to_le_bytes();
    encoder.set_palette(vec![red, green, blue]);
    encoder.set_compression(Compression::Fastest);
    encoder.set_filter(Filter::NoFilter);
    encoder.add_text_chunk("latents".to_owned(), format!("{hash:016x}"))?;
    let mut writer = encoder.write_header()?;
    let row = size.width.div_ceil(8) as usize;
    writer.write_image_data(&vec![0; row * size.height as usize])?;
    writer.finish()?;
    Ok(file)
}

impl Engine for SimulatedVae {
    type Request = DecodeJob;
    type Run = SimulatedDecodeRun;
    type Event = Infallible;
    type Output = EncodedPicture;

    fn warm_up(&mut self) -> Result<(), EngineError> {
        thread::sleep(self.profile.warm_up);
        Ok(())
    }

    fn begin(&mut self, job: DecodeJob) -> Result<SimulatedDecodeRun, EngineError> {
        let size = self.check(&job)?;
        Ok(SimulatedDecodeRun { latents: job.latents, size, _present: self.device.enter() })
    }

    fn work(&self, run: &SimulatedDecodeRun) -> Work {
        // In latents, as the real one says it.
        let side = |pixels: u32| pixels / SIDE_MULTIPLE;
        Work::even(Size::new(side(run.size.height), side(run.size.width)), 1, 1)
    }

    fn advance(&mut self, runs: &mut [&mut SimulatedDecodeRun]) -> Vec<Result<StepOf<Self>, EngineError>> {
        runs.iter().map(|run| self.decode(run).map(Step::Done)).collect()
    }
}

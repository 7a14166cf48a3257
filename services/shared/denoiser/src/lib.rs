//! The engine that the base UNet and the refiner share. They differ in their conditioning and in what they say of
//! themselves.

mod engine;
mod load;

pub use engine::{DenoiserEngine, DenoiserRun};
use sdxl_core::StageKind;
use sdxl_stage::{BatchLimit, StageArgs, serve};
use std::{path::PathBuf, process::ExitCode};

/// What a denoiser is told at its start.
#[derive(clap::Args, Clone, Debug)]
pub struct DenoiserArgs<const PORT: u16> {
    /// Checkpoint folder, with model_index.json, scheduler/ and unet/
    #[arg(long, env = "SDXL_MODEL", value_name = "DIR")]
    pub model: PathBuf,

    /// Pictures that take a step together, as N for all sizes or HEIGHTxWIDTH=N for one; found at the start if not given
    #[arg(long, env = "SDXL_MAX_BATCH", value_name = "N,…", value_delimiter = ',')]
    pub max_batch: Vec<BatchLimit>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help text of the whole command")]
    pub stage: StageArgs<PORT>,
}

/// Serves the checkpoint as the stage `kind`, [`StageKind::BaseUnet`] or [`StageKind::Refiner`], until told to stop.
pub fn run<const PORT: u16>(kind: StageKind, args: DenoiserArgs<PORT>) -> ExitCode {
    let DenoiserArgs { model, max_batch, stage } = args;
    let (dtype, device) = (stage.dtype.dtype(), stage.device.device());
    serve::denoiser(kind, &stage, move || DenoiserEngine::load(kind, &model, (dtype, &device), &max_batch))
}

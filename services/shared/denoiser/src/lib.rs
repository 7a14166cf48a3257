//! The engine that the base UNet and the refiner share. They differ in their conditioning and in what they say of
//! themselves.

mod engine;
mod load;

pub use engine::{DenoiserEngine, DenoiserRun};
use sdxl_core::StageKind;
use sdxl_stage::{BatchLimit, EngineKind, StageArgs, serve, simulated::SimulatedDenoiser};
use std::{path::PathBuf, process::ExitCode};

/// What a denoiser is told at its start.
#[derive(clap::Args, Clone, Debug)]
pub struct DenoiserArgs<const PORT: u16> {
    /// Checkpoint folder, with model_index.json, scheduler/ and unet/
    #[arg(
        long,
        env = "SDXL_MODEL",
        value_name = "DIR",
        required_unless_present = "engine",
        required_if_eq("engine", "candle")
    )]
    pub model: Option<PathBuf>,

    /// Pictures that take a step together, as N for all sizes or HEIGHTxWIDTH=N for one; found at the start if not given,
    /// or as the profile says
    #[arg(long, env = "SDXL_MAX_BATCH", value_name = "N,…", value_delimiter = ',')]
    pub max_batch: Vec<BatchLimit>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help text of the whole command")]
    pub stage: StageArgs<PORT>,
}

/// Serves the checkpoint, or what the profile makes of it, as the stage `kind`, [`StageKind::BaseUnet`] or
/// [`StageKind::Refiner`], until told to stop.
pub fn run<const PORT: u16>(kind: StageKind, args: DenoiserArgs<PORT>) -> ExitCode {
    let DenoiserArgs { model, max_batch, stage } = args;
    let (dtype, device, engine) = (stage.dtype.dtype(), stage.device, stage.engine.clone());
    match engine.kind {
        EngineKind::Candle => serve::denoiser(kind, &stage, move || {
            let (model, device) =
                (engine.checkpoint("--model", model)?, device.open(sdxl_models::open_cuda)?);
            DenoiserEngine::load(kind, &model, (dtype, &device), &max_batch)
        }),
        EngineKind::Simulated => serve::denoiser(kind, &stage, move || {
            SimulatedDenoiser::load(kind, engine.profile()?, &max_batch)
        }),
    }
}

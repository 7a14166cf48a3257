//! The VAE stage: latents to encoded pictures.

mod encode;
mod engine;

use clap::Parser;
use engine::VaeEngine;
use sdxl_stage::{EngineKind, StageArgs, serve, simulated::SimulatedVae};
use std::{path::PathBuf, process::ExitCode};

/// SDXL's autoencoder as a gRPC server: latents to PNG, JPEG or WebP pictures.
///
/// Prints `listening http://ADDR` on standard output once its address is bound, and serves sdxl.v1.VaeService,
/// sdxl.v1.StageService, health and reflection there. Health says SERVING once the checkpoint is loaded and a picture
/// has been decoded. SIGTERM lets running work finish.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Checkpoint folder, with model_index.json and vae/
    #[arg(
        long,
        env = "SDXL_MODEL",
        value_name = "DIR",
        required_unless_present = "engine",
        required_if_eq("engine", "candle")
    )]
    model: Option<PathBuf>,

    #[command(flatten)]
    stage: StageArgs<50064>,
}

fn main() -> ExitCode {
    let Args { model, stage } = Args::parse();
    let (dtype, device, engine) = (stage.dtype.dtype(), stage.device, stage.engine.clone());
    match engine.kind {
        EngineKind::Candle => serve::vae(&stage, move || {
            VaeEngine::load(
                &engine.checkpoint("--model", model)?,
                dtype,
                &device.open(sdxl_models::open_cuda)?,
            )
        }),
        EngineKind::Simulated => serve::vae(&stage, move || SimulatedVae::load(engine.profile()?)),
    }
}
